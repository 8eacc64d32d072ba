"""A tiny run of all stages, interrupted again and again: the workshop of test_interruptions.py.

`whole` makes a run that nobody disturbs. `Chain` starts the same command until it ends, striking
each start at a random moment, and `differences` compares what the two leave.
"""

import hashlib
import importlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = """
stages = ["prepare", "pretrain", "eval", "finetune", "sample", "dpo", "reinforce", "synthesize"]
[text]
sources = ["file:{folder}/text/*.txt"]
val_fraction = 0.3
vocab_size = 400
[model]
depth = 1
width = 32
head_dim = 16
mlp_dim = 64
context_len = 128
dtype = "float32"
[pretrain]
steps = 40
batch_size = 8
seq_len = 64
log_every = 1
eval_every = 8
save_every = 6
num_samples = 1
[eval]
batch_size = 8
num_rows = 64
[sample]
prompts = ["w1 w2"]
questions = ["what is w1", "what is w2"]
max_new_tokens = 24
[chat]
sources = ["file:{folder}/chat.jsonl"]
val_fraction = 0.2
tasks = ["addition/1"]
problems_per_task = 60
[finetune]
steps = 20
batch_size = 8
seq_len = 96
log_every = 1
eval_every = 5
save_every = 4
num_samples = 1
[trials]
items_per_task = 4
tries_per_item = 2
max_new_tokens = 32
[dpo]
sources = ["file:{folder}/pairs.jsonl"]
val_fraction = 0.2
[dpo.train]
steps = 10
batch_size = 8
seq_len = 64
log_every = 1
eval_every = 4
save_every = 3
[reinforce]
reward = "random"
task = "addition"
level = 1
sft_steps = 6
num_prompts = 4
group_size = 2
max_new_tokens = 32
num_eval_problems = 8
[reinforce.train]
steps = 6
seq_len = 96
log_every = 1
eval_every = 3
save_every = 2
[synthesize]
generations = 2
num_documents = 32
max_new_tokens = 32
num_measured = 16
num_guard_documents = 16
[synthesize.train]
steps = 6
batch_size = 8
seq_len = 64
log_every = 1
save_every = 2
"""


def write_config(folder: Path) -> Path:
    """The configuration, its text, its conversations and its preferences."""
    draw = random.Random(0)
    (folder / "text").mkdir(parents=True)

    def say(count: int) -> str:
        return " ".join(f"w{int(draw.paretovariate(1)) % 60}" for _ in range(count))

    for i in range(90):
        (folder / "text" / f"{i:03}.txt").write_text(say(160))
    chats, pairs = [], []
    for i in range(80):
        question = {"role": "user", "content": f"what is w{i}"}
        answers = [{"role": "assistant", "content": say(5)} for _ in range(2)]
        chats.append({"messages": [question, answers[0]]})
        pairs.append({"prompt": f"what is w{i}", "chosen": say(4), "rejected": say(6)})
    for name, records in (("chat", chats), ("pairs", pairs)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    path = folder / "all.toml"
    path.write_text(CONFIG.format(folder=folder))
    return path


def start(config: Path, run: Path, log: Path, strike: str = "") -> subprocess.Popen:
    """Begin or go on with a run, as a program of its own; strike: see `strike_itself`."""
    command = [sys.executable, __file__, "run", str(config), "--run", str(run)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    env |= {"TEST_STRIKE": strike}
    with log.open("a") as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=file)


def strike_itself(strike: str) -> None:
    """Arm this process: the signal NUMBER at the call COUNT of MODULE:FUNCTION."""
    number, count, place = strike.split(" ")
    module, name = place.split(":")
    module = importlib.import_module(module)
    wrapped, calls = getattr(module, name), itertools.count(1)

    def struck(*args, **kwargs):
        if next(calls) == int(count):
            os.kill(os.getpid(), int(number))
        return wrapped(*args, **kwargs)

    setattr(module, name, struck)


# --- what a run leaves


def digest_arrays(path: Path) -> dict[str, str]:
    """The arrays of a checkpoint by name, as hashes."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(path / "state")
    return {
        jax.tree_util.keystr(place): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def last_checkpoint(stage: Path) -> Path:
    return max((p for p in stage.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def without_times(value):
    """Figures without what a clock has made."""
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if key not in ("seconds", "time", "date", "crc", "finished")
            and not key.startswith("time/")
        }
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def read_lines(path: Path) -> Counter:
    """The records of a JSONL file. The run's own name is part of some."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record.pop("run", None)
    return Counter(json.dumps(without_times(record), sort_keys=True) for record in records)


def describe(run: Path) -> dict:
    """All that two runs of one configuration must have in common."""
    found = {}
    for stage in sorted((run / "checkpoints").iterdir()):
        newest = last_checkpoint(stage)
        arrays = digest_arrays(newest)
        found |= {f"checkpoints/{stage.name}/{newest.name} {k}": v for k, v in arrays.items()}
    for path in sorted((run / "data").rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and path.suffix not in (".json", ".copy", ".tmp"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    report = json.loads((run / "report.json").read_text())
    for stage, figures in report.items():
        found |= {f"report.json {stage} {k}": v for k, v in without_times(figures).items()}
    for name in ("metrics", "samples", "trials", "forecasts"):
        found[f"{name}.jsonl"] = read_lines(run / f"{name}.jsonl")
    found["history"] = without_times(json.loads((run / "synth" / "history.json").read_text()))
    for path in sorted((run / "synth").glob("*.parquet")):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["pages"] = sorted(p.name for p in run.glob("*.html"))
    return found


def differences(got: dict, want: dict) -> list[str]:
    """What differs, a line each."""
    lines = []
    for name in sorted(got.keys() | want.keys()):
        a, b = got.get(name), want.get(name)
        if isinstance(a, Counter) and isinstance(b, Counter):
            lines += [f"{name}: only here: {n} x {x[:300]}" for x, n in (a - b).items()]
            lines += [f"{name}: missing: {n} x {x[:300]}" for x, n in (b - a).items()]
        elif a != b:
            lines.append(f"{name}: {str(a)[:300]} instead of {str(b)[:300]}")
    return lines


# --- interruptions


def count_signs(run: Path) -> int:
    """Grows while a run gets on: its files, and the lines of its logs."""
    logs = (run.with_suffix(".log"), run / "metrics.jsonl")
    lines = sum(path.read_bytes().count(b"\n") for path in logs if path.exists())
    # Not `rglob`, which trips over folders that vanish.
    return lines + sum(len(files) for _, _, files in os.walk(run))


@dataclass
class Chain:
    """One run, begun again after each interruption until it ends, and then another one."""

    folder: Path
    config: Path
    want: dict
    kills: int
    terms: int
    seed: int
    faults: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    places: Counter = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def log(self) -> Path:
        """A line for every strike and for the end of every run. A chain goes on from it."""
        return self.folder / "interruptions.log"

    def tell(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")

    def recall(self) -> int:
        """Count what an earlier start of this chain has done; the runs that have ended."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        for line in lines:
            if found := re.fullmatch(r"\S+ (.*): (\d+) -> \S+ (\S+) s", line):
                place, number, seconds = found.groups()
                kind = signal.SIGKILL if number == "9" else signal.SIGTERM
                self.counts[kind] += 1
                self.places[place] += 1
                self.slowest = max(self.slowest, float(seconds))
            self.faults += [line] if line.startswith(("  ", "FAULT")) else []
        return sum(": ended, " in line or line.startswith("FAULT") for line in lines)

    def strike(self, run: Path, draw: random.Random) -> bool:
        """One start of the run; whether it came to its end."""
        left = [signal.SIGKILL] * (self.kills - self.counts[signal.SIGKILL])
        left += [signal.SIGTERM] * (self.terms - self.counts[signal.SIGTERM])
        log = run.with_suffix(".log")
        size = log.stat().st_size if log.exists() else 0
        process = start(self.config, run, log)
        code = self.wait(process, run, draw) if left else process.wait(900)
        if code is None:
            # A third of the SIGTERMs are Ctrl-C.
            number = draw.choice(left)
            sent = draw.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT))
            place = self.find_place(run)
            began = time.monotonic()
            process.send_signal(sent if number == signal.SIGTERM else number)
            code = process.wait(120)
            took = time.monotonic() - began
            if code != 0:
                self.counts[number] += 1
                self.places[place] += 1
                # Before Python itself is up no program can catch a signal.
                early = code == -sent and not log.read_bytes()[size:]
                if number == signal.SIGTERM:
                    self.slowest = max(self.slowest, took)
                    if code != 75 and not early:
                        self.faults.append(f"{place}: {sent!r} gave {code}")
                said = int(sent if number == signal.SIGTERM else number)
                self.tell(f"{run.name} {place}: {said} -> {code} {took:.1f} s")
        if code not in (0, 75, -9, -15, -2):
            self.faults.append(f"{run.name}: exit {code}: {log.read_text()[size:][-1500:]}")
            raise AssertionError(self.faults[-1])
        return code == 0

    def wait(self, process: subprocess.Popen, run: Path, draw: random.Random) -> int | None:
        """Until the moment of the strike, None, or until the process ends, its code.

        Mostly a while after some signs of progress, so that a busy machine gets on too.
        """
        seconds, signs = draw.uniform(0, 6), 0
        if draw.random() < 0.75:
            seconds, signs = draw.uniform(0, 0.7), count_signs(run) + draw.randrange(1, 40)
        while count_signs(run) < signs and process.poll() is None:
            time.sleep(0.2)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def find_place(self, run: Path) -> str:
        """The last stage that is done."""
        report = run / "report.json"
        stages = json.loads(report.read_text()) if report.exists() else {}
        done = [name for name, figures in stages.items() if figures.get("done")]
        return f"after {done[-1]}" if done else "at first"

    def go(self) -> None:
        """Strike until all strikes are spent; every run is compared at its end."""
        number = self.recall()
        while sum(self.counts.values()) < self.kills + self.terms:
            run = self.folder / f"run-{self.seed}-{number}"
            draw = random.Random(f"{self.seed} {number} {sum(self.counts.values())}")
            number += 1
            try:
                while not self.strike(run, draw):
                    pass
            except AssertionError as fault:
                # What it left stays for whoever looks into it.
                self.tell(f"FAULT {fault!r}")
                continue
            unlike = differences(describe(run), self.want)
            self.faults += [f"{run.name}: {line}" for line in unlike]
            self.tell(f"{run.name}: ended, {len(unlike)} differences, {dict(self.counts)}")
            for line in unlike:
                self.tell(f"  {line}")


if __name__ == "__main__":
    from ramp import interrupts
    from ramp.__main__ import main

    if os.environ["TEST_STRIKE"]:
        # As the program itself does, before anything slow.
        interrupts.block()
        strike_itself(os.environ["TEST_STRIKE"])
    sys.exit(main())
