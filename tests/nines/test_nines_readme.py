"""Every command and the example of nines' README, run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from ramp.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "src/ramp/nines/README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.M | re.S)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """What the examples read, where they may write."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)


def test_commands_run(capsys):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) > 8
    for command in commands:
        program, *words = shlex.split(command, comments=True)
        assert program == "ramp"
        # The example is not fit to ship.
        assert main(words) == ("gate" in words), command
        assert capsys.readouterr().out
        # Every command writes a page, of a single line too.
        assert main([*words, "--page", "page.html"]) == ("gate" in words), command
        assert "</html>" in Path("page.html").read_text()
        Path("page.html").unlink()
        capsys.readouterr()
    assert Path("ready.html").exists()
    assert Path("forecasts.jsonl").exists()


def test_example_runs(capsys):
    (example,) = blocks("python")
    exec(example, {})
    assert "even odds" in capsys.readouterr().out
