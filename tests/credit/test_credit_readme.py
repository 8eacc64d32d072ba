"""The README's Python runs as it stands, and names every method."""

import re
from pathlib import Path

import pytest

import ramp.credit
from ramp import cli
from ramp.credit.advantages import METHODS, method
from ramp.credit.audit import misassigned_credit, solutions_as_rollouts
from ramp.credit.baselines import spread_to_tokens
from ramp.credit.learn import checker_credit
from ramp.tasks import chain
from ramp.tasks.protocol import solution_ids
from ramp.text.tokenizer import Tokenizer

README = Path(ramp.credit.__file__).with_name("README.md").read_text("utf-8")


def test_a_method_can_be_added(monkeypatch):
    """On four written solutions, the second of them luck: its first step is wrong, its answer right."""
    monkeypatch.setitem(METHODS, "plus_minus", None)  # taken back after the test

    @method("process")
    def plus_minus(c):
        return spread_to_tokens(c, (2 * c.right_bs - 1) * c.exists_bs)

    problem = chain.make(3, (("a", "+", 4), ("b", "*", 2)))
    tokenizer = Tokenizer.bytes_only()
    solutions = [
        solution_ids(tokenizer, steps, steps[-1][1])
        for steps in (["a7", "b4"], ["a2", "b4"], ["a7", "b5"], ["a7", "b9"])
    ]
    r = solutions_as_rollouts(tokenizer, chain.TASK, [problem] * 4, solutions, group_size=4)
    credit = checker_credit(r)
    for name, wrong in (("rloo", 1), ("step_local", 0), ("plus_minus", 0)):
        audit = misassigned_credit(r, METHODS[name](credit))
        assert (audit.wrong_up, audit.right_down) == (wrong, wrong), name


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
