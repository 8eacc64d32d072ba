"""Every stage in several processes: the same rows, ledgers and figures as in one.

The matrix of shapes, about ten minutes: `uv run pytest -m slow tests/test_stages_on_hosts.py -s`.
"""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq

STAGES = ["finetune", "reinforce", "synthesize"]
CONFIG = """
stages = ["prepare", "pretrain", "finetune", "reinforce", "synthesize"]
[text]
sources = ["file:{folder}/text/*.txt"]
val_fraction = 0.3
tokenizer = "bytes"
[model]
depth = 1
width = 32
head_dim = 16
mlp_dim = 64
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
[finetune]
steps = 4
batch_size = 12
seq_len = 96
eval_every = 2
save_every = 2
num_samples = 0
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
    found = list_figures(report, "report")
    for name in ("metrics", "trials"):
        for line in (run / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            place = "/".join(
                str(record.get(k)) for k in ("stage", "step", "task", "item", "slice", "seed")
            )
            found |= list_figures(record, f"{name} {place}")
    return found | list_figures(json.loads((run / "synth" / "history.json").read_text()), "history")


def assert_same(run: Path, want: Path) -> float:
    """The same texts, decisions and steps; every figure to 1e-5. Returns the largest difference."""
    worst = 0.0
    for g in (1, 2):
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
        assert difference < 1e-5, (name, mine[name], figure)
        worst = max(worst, difference)
    return worst
