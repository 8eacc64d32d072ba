"""The README's Python runs as it stands, and names every method."""

import re
from pathlib import Path

import pytest

import ramp.credit
from ramp import cli
from ramp.credit.advantages import METHODS

README = Path(ramp.credit.__file__).with_name("README.md").read_text("utf-8")


def test_the_example_shows_what_the_text_says(monkeypatch, capsys):
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setitem(METHODS, "plus_minus", None)  # taken back after the test
    exec(compile(source, "README.md", "exec"), {})
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["rloo"] == "wrong steps praised 100%, right blamed 100%"
    for name in ("step_local", "plus_minus"):
        assert lines[name] == "wrong steps praised 0%, right blamed 0%"


def test_every_method_is_in_the_table():
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert named == METHODS.keys()
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("family", ["outcome", "monte_carlo", "implicit", "process"])
def test_families_are_used(family):
    assert any(entry.family == family for entry in METHODS.values())


def test_the_commands_of_the_audit_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = "def fn(records):\n    return [float('certainly' in r.text) for r in records]\n"
    Path("mine.py").write_text(source, "utf-8")
    Path("log.jsonl").write_text('{"prompt": "q", "completion": "x", "reward": 1}\n', "utf-8")
    commands = re.findall(r"^ramp (credit audit .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        # A smaller search than the default finds this one too.
        budget = ["--budget", "1500"] if "--reward" in command else []
        assert cli.main([*command.split(), *budget]) == 0
    assert "the text 'certainly' is paid: 1.00" in capsys.readouterr().out
    assert Path("audit.html").is_file() and Path("log.json").is_file()
