"""Every command and every Python example of every README, run as it stands on a tiny run in place of the real one.

A block ```sh holds commands, one a line; ```python holds an example that prints or asserts; other blocks hold output or
commands that need a cluster.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from test_runs import ROOT, SMOKE, command, env, ramp, smoke  # noqa: F401 (fixtures)

from ramp import cli

READMES = sorted(
    path
    for path in (ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("src/**/README.md"))
    if ".venv" not in path.parts
)

# What a test cannot run as it stands: it installs, takes minutes, is this suite itself, or needs what is not here.
# Each is held by the test or command that is named.
ELSEWHERE = {
    "python3 -m pip install uv && uv run pytest": "this suite",
    "uv run pytest": "this suite",
    "uv run ruff": ".ci/run",
    "uv run ty": ".ci/run",
    "pip install": "tests/test_wheel.py",
    "uv pip install": "it installs; tests/export/test_files.py finds a model in a package",
    "ramp run smollm2": "three quarters of an hour; tests/test_branch.py, on a tiny model",
    "python -m experiments.credit credit-bench": "tests/experiments, by parts",
    "python -m experiments.collapse collapse-bench": "tests/experiments, by parts",
    "ramp plan": "tests/pods, with the compilers of the extra `plan`",
    "ramp ladder": "tests/ladder, rung by rung",
    "ramp run nines-bench": "a quarter of an hour; tests/stages/test_trials_stage.py",
    "ramp import": "tests/export, with files that are made there",
    "ramp reinforce --from": "tests/credit/test_doors.py, with the other two of its three",
    "ramp credit runs/mine": "tests/credit/test_doors.py",
    "ramp credit audit": "tests/credit/test_credit_readme.py, with files that are made there",
    "ramp serve": "tests/serve",
    "ramp synthesize": "tests/synth; the tiny run has too few documents",
    "ramp synth measure": "tests/synth/test_synth_readme.py, on files that it makes",
    "ramp synth decide": "tests/synth/test_synthesize.py, on texts that it makes",
    "ramp nines": "tests/nines/test_nines_readme.py, where they may write",
    "ramp synth why": "tests/synth, on a run that has generations",
}
# Packages whose own test runs the Python of their README, on files that it brings.
OWN_TEST = {path.parent.name for path in ROOT.glob("tests/*/test_*_readme.py")}


def blocks(path, language):
    """The fenced blocks of a language, dedented."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.M | re.S)


def commands():
    """(README, line) of every command."""
    return [
        (path, line.split("   #")[0].strip())
        for path in READMES
        for block in blocks(path, "sh")
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def plain(line):
    """The command without what installs and starts it."""
    line = line.removeprefix("python3 -m pip install uv && ")
    return re.sub(r"^uv run (--extra \w+ )*", "", line)


def link_clone(folder):
    """A folder that looks like the clone: what a command writes stays out of the real one."""
    folder.mkdir()
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name != "runs":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_readmes_are_short(path):
    limit = 180 if path.parent == ROOT else 120
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("path", "line"), commands(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_command_runs(request, path, line, tmp_path, monkeypatch):
    words = plain(line)
    clone = link_clone(tmp_path / "clone")
    monkeypatch.chdir(clone)
    if words.startswith("ramp ") and "GLOB" not in words:
        cli.parse(
            shlex.split(words.removeprefix("ramp "), comments=True)
        )  # it must parse, whatever runs it
    if any(line.startswith(start) or words.startswith(start) for start in ELSEWHERE):
        return
    if words in ("ramp run cpu", "ramp run configs/cpu.toml"):
        words = "ramp run cpu --dry-run"  # the whole takes 14 minutes; smoke does the same stages
    if "runs/" in words or words.startswith("ramp run smoke"):
        run = request.getfixturevalue("smoke")
        words = re.sub(r"--run runs/\w+", f"--run {tmp_path / 'run'}", words)
        words = words.replace("runs/cpu", str(run))
        words = re.sub(r"\bruns/", f"{tmp_path}/", words)
        words = f"{words} --run {run}" if words == "ramp run smoke" else words
    environment = request.getfixturevalue("env")
    if ">" in words:
        subprocess.run(words, shell=True, check=True, cwd=clone)
        return
    script = shlex.split(words, comments=True)
    if script[0] == "ramp":
        ramp(environment, *script[1:], cwd=clone)
        return
    if script[0] == "python":
        script[0] = sys.executable
    elif script[0] == "tensorboard":
        script = [sys.executable, "-m", "tensorboard.main", *script[1:], "--inspect"]
    done = subprocess.run(
        script,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        cwd=clone,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def examples():
    """(README, source) of every Python example that no test of its package runs."""
    return [
        (path, source)
        for path in READMES
        for source in blocks(path, "python")
        if path.parent.name not in OWN_TEST
    ]


@pytest.mark.parametrize(
    ("path", "source"), examples(), ids=lambda v: str(v)[-40:] if isinstance(v, Path) else ""
)
def test_every_example_runs(path, source, tmp_path, monkeypatch):
    if "openai" in source:
        pytest.skip("a client of a server: tests/serve/test_api.py runs one")
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(source, str(path), "exec"), {"__name__": "example"})
    assert output.getvalue().strip() or "assert" in source
