"""The command of the package's README runs, and tells a collapsed sample from real text."""

import json
import re
import shlex
from pathlib import Path

import numpy as np

import ramp.synth
from ramp import cli

README = Path(ramp.synth.__file__).with_name("README.md")


def test_the_example_runs(capsys, tmp_path, monkeypatch):
    (line,) = re.findall(r"^ramp (synth measure .*)$", README.read_text("utf-8"), re.M)
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    for name, n, words in (("real", 400, 500), ("samples", 100, 50), ("pool", 100, 500)):
        texts = [" ".join(f"w{i % words}" for i in rng.zipf(1.5, 60)) for _ in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert cli.main(shlex.split(line)) == 1
    assert capsys.readouterr().out.startswith("a small vocabulary: ")
    assert "never used" in Path("verdict.html").read_text("utf-8")


def test_it_is_short():
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) <= 120 and all(len(line) <= 120 for line in lines)
