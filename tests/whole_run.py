"""A tiny run in which every stage has been done, made by the command line in this process."""

import json
from pathlib import Path

import numpy as np

from ramp import cli

CONFIG = """
stages = ["prepare", "pretrain", "eval", "finetune", "sample", "dpo", "reinforce", "synthesize"]

[text]
sources = ["file:{texts}/*.txt"]
val_fraction = 0.25
vocab_size = 300

[model]
depth = 1
width = 16
head_dim = 8
context_len = 96
dtype = "float32"

[pretrain]
steps = 4
batch_size = 8
seq_len = 32
eval_every = 2
save_every = 2
log_every = 1
num_samples = 1

[chat]
sources = ["file:{texts}/talks.jsonl"]
val_fraction = 0.3
tasks = ["addition/1"]
problems_per_task = 8

[finetune]
steps = 4
batch_size = 8
seq_len = 80
eval_every = 2
save_every = 2
log_every = 1
num_samples = 1

[trials]
items_per_task = 2
tries_per_item = 1
max_new_tokens = 32

[eval]
num_rows = 4
batch_size = 8

[sample]
max_new_tokens = 8
questions = ["How?"]

[dpo]
sources = ["file:{texts}/pairs.jsonl"]
val_fraction = 0.3

[dpo.train]
steps = 2
batch_size = 8
seq_len = 48
eval_every = 1
save_every = 1

[reinforce]
reward = "random"
task = "chain"
level = 1
num_prompts = 4
group_size = 2
max_new_tokens = 10
num_eval_problems = 4
sft_steps = 2

[reinforce.train]
steps = 2
batch_size = 8
seq_len = 64
eval_every = 1
save_every = 1

[synthesize]
generations = 2
num_documents = 16
num_measured = 8
max_new_tokens = 16
num_guard_documents = 8
num_null_resamples = 7

[synthesize.train]
steps = 2
batch_size = 8
seq_len = 32
save_every = 1
"""


def make_texts(directory: Path) -> None:
    """Documents of random words, conversations and preferences; few, so that all is quick."""
    directory.mkdir()
    draw = np.random.default_rng(0)
    words = (
        "we",
        "see",
        "the",
        "old",
        "sea",
        "a",
        "red",
        "ship",
        "goes",
        "by",
        "Ann",
        "Bo",
        "sold",
    )

    def write(count: int) -> str:
        return " ".join(draw.choice(words, count))

    for i in range(120):
        (directory / f"{i}.txt").write_text(f"{write(30)}. {i}\n")
    talks, pairs = [], []
    for i in range(24):
        turns = [
            {"role": "user", "content": f"{write(2)} {i}?"},
            {"role": "assistant", "content": write(4)},
        ]
        talks.append(json.dumps({"messages": turns}))
        pair = {"prompt": f"{write(2)} {i}?", "chosen": write(3), "rejected": write(3)}
        pairs.append(json.dumps(pair))
    (directory / "talks.jsonl").write_text("\n".join(talks))
    (directory / "pairs.jsonl").write_text("\n".join(pairs))


def make_run(directory: Path) -> Path:
    """Make `directory`/run, all stages done; returns its path."""
    make_texts(directory / "texts")
    file = directory / "tiny.toml"
    file.write_text(CONFIG.format(texts=directory / "texts"))
    assert cli.main(["run", str(file), "--run", str(directory / "run")]) == 0
    return directory / "run"
