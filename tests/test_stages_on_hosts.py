"""Every stage in several processes: the same rows, ledgers and figures as in one.

The matrix of shapes, about ten minutes: `uv run pytest -m slow tests/test_stages_on_hosts.py -s`.
"""

import json
import random
import signal
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from evals.test_core import write_bundle
from hosts import Strike, launch

CONFIG = """
stages = ["prepare", "pretrain", "finetune", "reinforce", "synthesize", "diversity"]
[text]
sources = ["file:{folder}/text/*.txt"]
val_fraction = 0.3
tokenizer = "bytes"
[model]
depth = 1
width = 48
head_dim = 16
mlp_dim = 96
vocab_size = 384
context_len = 128
dtype = "float32"
[pretrain]
steps = 8
batch_size = 12
seq_len = 64
num_samples = 0
[eval]
batch_size = 12
num_rows = 24
[chat]
sources = ["file:{folder}/chat.jsonl"]
val_fraction = 0.2
tasks = ["addition/1"]
problems_per_task = 24
own_answers = 32
[finetune]
steps = 4
batch_size = 12
seq_len = 96
eval_every = 2
save_every = 2
num_samples = 0
[diversity]
questions = ["what is w3", "what is w5"]
num_replies = 10
max_new_tokens = 16
[trials]
items_per_task = 3
tries_per_item = 2
max_new_tokens = 32
[reinforce]
reward = "0.5 verified + 0.5 {folder}/mine.py:reward"
task = "addition"
level = 1
method = "rloo"
sft_steps = 2
num_prompts = 6
group_size = 2
max_new_tokens = 16
num_eval_problems = 5
[reinforce.train]
steps = 4
seq_len = 64
log_every = 1
eval_every = 2
save_every = 2
[synthesize]
generations = 2
num_documents = 32
max_new_tokens = 24
num_measured = 16
num_guard_documents = 16
num_null_resamples = 7
verifiers = ["{folder}/mine.py:verify", "{folder}/mine.py:read"]
auditor = "{folder}/mine.py:read"
[synthesize.train]
steps = 2
batch_size = 12
seq_len = 64
log_every = 1
save_every = 2
"""
# Tells who was asked; the rewards differ between rollouts of a group, so that there is a signal.
MINE = """
import os
def tell(kind, texts):
    with open({calls!r}, "a") as file:
        file.writelines(f"{{kind}} {{os.getpid()}} {{t!r}}\\n" for t in texts)
def reward(records):
    tell("reward", [r.text for r in records])
    return [sum(map(ord, r.text)) % 7 / 7 for r in records]
def verify(text):
    tell("verify", [text])
    return sum(map(ord, text)) % 17 != 0
def read(text):
    return len(text) > 3
"""


def write_config(folder: Path) -> Path:
    """The configuration, its texts, and the user's own code."""
    draw = random.Random(0)
    (folder / "text").mkdir(parents=True)
    for i in range(60):
        words = " ".join(f"w{int(draw.paretovariate(1)) % 60}" for _ in range(60))
        (folder / "text" / f"{i}.txt").write_text(words)
    with (folder / "chat.jsonl").open("w") as file:
        for i in range(60):
            ask, say = f"what is w{i}", f"w{i} is w{i * i % 60}"
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "mine.py").write_text(MINE.format(calls=str(folder / "calls")))
    path = folder / "all.toml"
    path.write_text(CONFIG.format(folder=folder))
    return path


# --- what two runs have in common


def read_ledger(run: Path, g: int) -> list[dict]:
    return pq.read_table(run / "synth" / f"g{g:03}.parquet").to_pylist()


def list_figures(value, name: str = "") -> dict[str, float]:
    """Every number of a record by its path, but for those that a clock has made."""
    if isinstance(value, dict):
        parts = [(k, v) for k, v in value.items() if k not in ("seconds", "time", "crc")]
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return {name: float(value)} if isinstance(value, int | float) else {}
    found = {}
    for key, part in parts:
        if not str(key).startswith("time/"):
            found |= list_figures(part, f"{name}/{key}")
    return found


def read_figures(run: Path) -> dict[str, float]:
    """What report.json, metrics.jsonl, trials.jsonl and history.json say."""
    report = json.loads((run / "report.json").read_text())
    report.pop("core", None)  # asked afterwards, and compared by itself
    found = list_figures(report, "report")
    for name in ("metrics", "trials"):
        for line in (run / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record.get("stage") == "core":
                continue
            place = "/".join(
                str(record.get(k)) for k in ("stage", "step", "task", "item", "slice", "seed")
            )
            found |= list_figures(record, f"{name} {place}")
    return found | list_figures(json.loads((run / "synth" / "history.json").read_text()), "history")


def assert_same(run: Path, want: Path, generations: int = 2) -> float:
    """The same texts, decisions and steps; every figure to 1e-5. Returns the largest difference."""
    worst = 0.0
    for g in range(1, generations + 1):
        for got, row in zip(read_ledger(run, g), read_ledger(want, g), strict=True):
            # The name of the weights is a hash of their bits.
            assert {
                k: v for k, v in got.items() if k not in ("logp", "logp_first", "generator")
            } == {k: v for k, v in row.items() if k not in ("logp", "logp_first", "generator")}
            worst = max(worst, abs(got["logp"] / row["logp"] - 1))
    mine, its = read_figures(run), read_figures(want)
    assert mine.keys() == its.keys()
    for name, figure in its.items():
        difference = abs(mine[name] - figure) / max(1, abs(figure))
        # A deviate divides by the spread of a few resamples, and enlarges what rounding leaves.
        assert difference < (1e-4 if "z" in name.split("/") else 1e-5), (name, mine[name], figure)
        worst = max(worst, difference)
    return worst


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a configuration and its run by one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
        life = run_all(folder, "whole", 1, 1)
        assert life.codes == [0], life.said
        yield folder


def run_all(folder: Path, name: str, processes: int, devices: int, strike: Strike | None = None):
    config = folder / "in" / "all.toml"
    if not config.exists():
        write_config(folder / "in")
        write_bundle(folder / "bundle")
    notes = folder / f"notes-{name}-{random.random()}"
    words = ["run", config, "--run", folder / name]
    return launch(notes, processes, devices, words, strike, timeout=600)


def ask_core(folder: Path, name: str, processes: int, devices: int) -> dict[str, float]:
    words = ["eval", folder / name, "--suite", "core", "--bundle", folder / "bundle"]
    life = launch(folder / f"core-{name}-{random.random()}", processes, devices, words, timeout=600)
    assert set(life.codes) == {0}, life.said
    return list_figures(json.loads((folder / name / "report.json").read_text())["core"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (3, 1), (2, 2), (4, 1)])
def test_every_stage_on_several_hosts_is_that_of_one(whole, processes, devices):
    """`uv run pytest -m slow tests/test_stages_on_hosts.py -s -k several`; about a minute each."""
    calls = whole / "in" / "calls"
    calls.unlink(missing_ok=True)
    name = f"{processes}x{devices}"
    life = run_all(whole, name, processes, devices)
    assert set(life.codes) == {0}, life.said
    worst = assert_same(whole / name, whole / "whole")
    asked = [line.split(" ")[:2] for line in calls.read_text().splitlines()]
    # A reward sees all rollouts, in one process; each has tried it on four solutions before they
    # met. Texts are shared out among verifiers.
    calls_of = Counter(pid for kind, pid in asked if kind == "reward")
    assert sorted(calls_of.values())[:-1] == [4] * (processes - 1)
    assert len({pid for kind, pid in asked if kind == "verify"}) == processes
    core, alone = (
        ask_core(whole, n, p, d) for n, p, d in ((name, processes, devices), ("whole", 1, 1))
    )
    assert core.keys() == alone.keys() and all(abs(core[k] - alone[k]) < 1e-5 for k in core)
    print(f"{name}: largest difference {worst:.1e}; CORE {core['/core']:.5f}, {alone['/core']:.5f}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_one_mesh_the_ledger_is_the_same_byte_for_byte(whole):
    """Two processes of one device, and one process of two devices."""
    for name, processes, devices in (("a", 2, 1), ("b", 1, 2)):
        life = run_all(whole, name, processes, devices)
        assert set(life.codes) == {0}, life.said
    for g in (1, 2):
        one, two = ((whole / name / "synth" / f"g00{g}.parquet").read_bytes() for name in "ab")
        assert one == two


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_twenty_times_in_any_phase_and_gone_on_with_by_another_number(whole):
    """`uv run pytest -m slow tests/test_stages_on_hosts.py -s -k twenty`; about half an hour."""
    draw, kills, number = random.Random(7), 0, 0
    phases = ("train", "sample", "judge", "ledger", "eval")
    while kills < 20:
        name, number, done = f"chain-{number}", number + 1, False
        while not done:
            processes, devices = draw.choice([(1, 1), (2, 1), (3, 1), (2, 2), (4, 1)])
            phase = draw.choice(phases)
            rank, steps = draw.randrange(processes), draw.randrange(0, 4)
            strike = Strike(signal.SIGKILL, rank, phase, steps, draw.uniform(0, 0.5))
            life = run_all(whole, name, processes, devices, strike if kills < 20 else None)
            done = set(life.codes) == {0}
            if not done:
                assert life.codes[rank] == -signal.SIGKILL, life.said
                kills += 1
            print(f"{name} {processes}x{devices} {phase} {steps}: {life.codes}", flush=True)
        print(f"{name}: largest difference {assert_same(whole / name, whole / 'whole'):.1e}")
