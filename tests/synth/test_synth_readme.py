"""The Python example of the package's README runs and tells a collapsed sample from real text."""

import re
from pathlib import Path

import ramp.synth

README = Path(ramp.synth.__file__).with_name("README.md")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    z = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert len(lines) == 12 and z["coverage_1"] < -4 and z["kl_lost"] > 4


def test_it_is_short():
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) <= 120 and all(len(line) <= 120 for line in lines)
