"""The workers do what lines of JSON say, the race is fair, mistakes are one sentence."""

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from experiments.speed import __main__ as speed
from experiments.speed import bench
from ramp import config

TINY = """
[text]
vocab_size = 320
[model]
depth = 1
width = 64
head_dim = 32
context_len = 32
vocab_size = 320
[pretrain]
batch_size = 8
"""


def made(tmp_path, **over):
    (tmp_path / "c.toml").write_text(TINY)
    given = {"rounds": 3, "threads": 1, "peer": None, "peer_python": Path(sys.executable)} | over
    return bench.Bench(config.load(tmp_path / "c.toml", []), argparse.Namespace(**given), tmp_path)


def test_ramps_worker_trains_generates_and_tells_its_memory(tmp_path):
    with ExitStack() as stack:
        worker = made(tmp_path).ramp(stack, "float32")
        assert set(worker("compile")) == {"init", "trace", "compile", "planned_bytes"}
        losses = [worker("train", steps=1)["loss"] for _ in range(2)]
        assert losses[1] < losses[0]
        assert worker("generate", batch=2, prompt=4, new=8)["wall"] > 0
        files = {"weights": str(tmp_path / "w.npz"), "tokens": str(tmp_path / "t.npz")}
        assert 5 < worker("loss", **files)["loss"] < 8  # near log 320 = 5.77, of weights with noise
        assert worker("memory")["process"] > 2**20
        with pytest.raises(RuntimeError, match=r"jax_worker died in fly:\n(?s:.)*AttributeError"):
            worker("fly")


def test_the_torch_worker_asks_the_standard_library_alone_of_its_neighbours():
    """Its environment holds torch, transformers and numpy: its neighbour needs a bare Python."""
    source = Path(bench.__file__).with_name("torch_worker.py").read_text()
    assert "from ramp" not in source
    beside = "import sys; sys.path.insert(0, sys.argv[1]); import worker"
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", beside, str(Path(bench.__file__).parent)], check=True
    )


def test_a_race_goes_there_and_back_and_compares_within_a_round(tmp_path, capsys):
    b, order = made(tmp_path), []

    def turn(name, seconds):
        order.append(name)
        slow = 1 + (len(order) - 1) // 2  # each round is slower than the last
        return {"wall": seconds * slow, "cpu": 2 * seconds * slow}

    rate = b.race(
        "t", {"ours": lambda: turn("ours", 1.0), "theirs": lambda: turn("theirs", 4.0)}, tokens=12
    )
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert rate == 6  # the median of 12, 6 and 4 a second
    assert "| ours | 6 [4, 12] | 1.00 [1.00, 1.00] | 1.00 |" in (said := capsys.readouterr().out)
    assert (
        "| theirs | 2 [1, 3] | 4.00 [4.00, 4.00] | 4.00 |" in said
    )  # the machine's slowing down is no part of it
    assert json.loads(json.dumps(b.figures))["t"]["tokens_per_second"]["ours"] == [12, 6, 4]


@pytest.mark.parametrize(
    "words, said",
    [
        (["no.toml"], "no.toml"),
        (["--rounds", "0"], "--rounds"),
        (["--peer", "torch", "--peer-python", "/no/python"], "/no/python has no torch"),
        (
            ["--peer", "torch", "--peer-python", "/no/python", "--model.mlp=relu2"],
            "model.mlp = 'relu2' does not exist",
        ),
    ],
)
def test_a_mistake_is_one_sentence(words, said, capsys):
    """The program ends with code 2 before any worker is started."""
    assert speed.main(words) == 2
    assert said in capsys.readouterr().err


def test_the_peak_of_a_device_is_found_by_its_own_name():
    assert (
        bench.peak_tflops("TPU v5") == 459
        and bench.peak_tflops("TPU v5 lite") == 197
        and bench.peak_tflops("TPU7x") == 2307 / 2
        and bench.peak_tflops("cpu") is None
    )
