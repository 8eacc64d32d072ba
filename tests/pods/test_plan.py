"""Plans of the real step for machines that are not here. They need libtpu (`uv sync --extra plan`) and 15 to 40 CPU-seconds
each: CI compiles the tiny step of every family of chips, the others are slow tests
(`uv run --extra plan pytest -m "slow or not slow" tests/pods`).

`budgets.json` holds what each tiny plan needs; growing by more than 5% fails until the record is changed by hand:
RAMP_RECORD_BUDGETS=1 pytest tests/pods/test_plan.py writes it again.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ramp import config
from ramp.pods import roofline
from ramp.pods.chips import installed

BUDGETS = Path(__file__).with_name("budgets.json")
TINY = """
[text]
vocab_size = 1024
[model]
depth = 2
width = 128
context_len = 256
remat = "saved"
loss_chunk = 64
[pretrain]
batch_size = 16
[finetune]
batch_size = 16
[eval]
batch_size = 16
[mesh]
compiler_flags = ["{flags}"]
"""
needs_libtpu = pytest.mark.skipif(
    installed("libtpu") == "", reason="needs libtpu: uv sync --extra plan"
)
needs_cuda = pytest.mark.skipif(
    installed("jax-cuda12-pjrt") == "", reason="needs jax-cuda12-plugin: uv sync --extra plan-gpu"
)


def plan(tmp_path, topology, *more, flags="whole-gathers", check=True, file=None):
    """`ramp plan` in a process of its own: a planning process has other devices than the tests."""
    if file is None:
        file = tmp_path / "tiny.toml"
        file.write_text(TINY.format(flags=flags))
    command = [
        sys.executable,
        "-m",
        "ramp.cli",
        "plan",
        str(file),
        "--topology",
        topology,
        "--save",
        str(tmp_path / "plan"),
        *more,
    ]
    env = os.environ | {"RAMP_PLAN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    saved = tmp_path / "plan" / "plan.json"
    return done, json.loads(saved.read_text()) if saved.exists() else None


FAMILIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# One family on more chips, where a compiler chooses other collectives: it has turned scatters of
# one or two weights into all-reduces on 2x4 and on 4x4. Wide enough that a chip has whole tiles.
SIZES = ("v6e:2x4", "v6e:4x4", "v6e:4x8")
WIDER = ("--model.width", "512", "--reinforce.num_prompts", "32")
WIDER += tuple(
    word for stage in ("pretrain", "finetune", "eval") for word in (f"--{stage}.batch_size", "64")
)


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "program"),
    [(name, "train") for name in FAMILIES]
    + [(name, program) for name in SIZES for program in ("train", "reinforce")],
)
def test_a_tiny_step_stays_within_its_budget(tmp_path, topology, program):
    more = WIDER if topology in SIZES else ()
    _, report = plan(tmp_path, topology, "--only", program, *more)
    step = report["programs"][program]
    assert step["fits"]
    c = config.load(tmp_path / "tiny.toml", more)
    shape = config.resolve(
        replace(c, model=replace(c.model, dtype="bfloat16"), mesh=config.Mesh(**report["mesh"]))
    )
    moved = {
        kind: sum(k["bytes"] for k in step["collectives"] if k["kind"] == kind)
        for kind in ("all-gather", "reduce-scatter", "all-reduce")
    }
    smallest = 4 * shape.model.width**2
    assert moved["all-reduce"] < smallest, "a weight or its gradient is all-reduced whole"
    if program == "train":
        # donated: all that the step returns but its metrics is written over what came in
        assert step["alias"] >= 0.99 * step["argument"] - c.pretrain.batch_size * 256 * 12
        # a compiler may gather once for both passes
        design = roofline.predict_received(shape)
        assert moved["all-gather"] <= 1.1 * design.gathered
        assert moved["reduce-scatter"] <= 1.1 * design.scattered
    else:
        assert step["alias"] >= 0.95 * (step["argument"] - 32 * 8 * 256 * 4)
    now = {"peak": step["peak"], "moved": sum(k["bytes"] for k in step["collectives"])}
    key = topology if program == "train" else f"{topology} {program}"
    kept = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    if os.environ.get("RAMP_RECORD_BUDGETS"):
        BUDGETS.write_text(json.dumps(dict(sorted((kept | {key: now}).items())), indent=2) + "\n")
        return
    for figure, value in now.items():
        assert value <= 1.05 * kept[key][figure], (
            f"{figure} of {key} has grown; see this file's docstring"
        )


@pytest.mark.slow
@needs_libtpu
def test_decoding_moves_little_more_than_it_must(tmp_path):
    """16 rows of the depth-24 model on v6e-8: the weights and the full cache, read once a token."""
    file = Path(__file__).parents[2] / "configs" / "speedrun-v6e8.toml"
    _, report = plan(
        tmp_path, "v6e:2x4", "--only", "decode", "--mesh.data", "2", "--mesh.model", "4", file=file
    )
    c = config.load(file)
    c = config.resolve(
        replace(c, model=replace(c.model, dtype="bfloat16"), mesh=config.Mesh(**report["mesh"]))
    )
    least = roofline.decode_bytes(c, roofline.decode_rows(c))
    assert 0.9 * least < report["programs"]["decode"]["traffic"] < 1.3 * least


@pytest.mark.slow
@needs_libtpu
def test_between_slices_only_gradients_travel(tmp_path):
    _, report = plan(tmp_path, "v5e:2x2", "--slices", "2", "--only", "train")
    crossing = [k for k in report["programs"]["train"]["largest"] if k["between_slices"]]
    assert crossing and all(k["kind"] in ("all-reduce", "send", "reduce-scatter") for k in crossing)


@pytest.mark.slow
@needs_libtpu
def test_a_planned_step_is_not_compiled_again(tmp_path):
    first, report = plan(tmp_path, "v6e:2x2", "--only", "decode")
    again, same = plan(tmp_path, "v6e:2x2", "--only", "decode")
    assert (
        same == report and first.stdout == again.stdout
    )  # compile_seconds too: it was not measured anew


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_says_what_to_change(tmp_path):
    done, _ = plan(
        tmp_path, "v5e:1x1", "--only", "train", "--pretrain.batch_size", "65536", check=False
    )
    assert (
        done.returncode == 1
        and "DOES NOT FIT" in done.stdout
        and "--pretrain.grad_accum_steps 2" in done.stdout
    )


@pytest.mark.slow
@needs_cuda
@pytest.mark.parametrize("topology", ["h100:1x8", "h200:1x8", "b200:1x8"])
def test_gpus(tmp_path, topology):
    _, report = plan(tmp_path, topology, "--only", "train", flags="gpu-overlap")
    assert report["programs"]["train"]["fits"]


@pytest.mark.skipif(installed("libtpu") != "", reason="libtpu is here")
def test_without_the_compiler_it_says_what_to_install(tmp_path):
    done, _ = plan(tmp_path, "v5e:2x2", "--only", "train", check=False)
    assert done.returncode == 2 and "uv sync --extra plan" in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--topology", "v6:2x2"], "similar: v6e"),
        (
            ["--topology", "v6e:2x2", "--only", "trian"],
            "a plan has train, finetune, reinforce, synthesize, prefill, decode",
        ),
        (["--topology", "v6e:2x2", "--mesh.compiler_flags", "fast"], "there is no set 'fast'"),
        ([], "needs a configuration and --topology"),
        (["--diff", "nowhere", "elsewhere"], "no such plan"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, said):
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.format(flags="whole-gathers"))
    done = subprocess.run(
        [sys.executable, "-m", "ramp.cli", "plan", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
