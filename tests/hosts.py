"""A job of several real processes on loopback, watched, and struck by a signal at a chosen moment.

`launch` starts the processes; run as a program, this file is one of them: the command line of ramp, with notes taken of
the rows it read and of where it was when it was stopped.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

CONFIG = """
stages = ["prepare", "pretrain"]
[text]
sources = ["file:{text}/*.txt"]
val_fraction = 0.3
tokenizer = "bytes"
[model]
depth = 1
width = 32
head_dim = 16
mlp_dim = 64
vocab_size = 384
context_len = 512
dtype = "float32"
[pretrain]
batch_size = 8
seq_len = 32
log_every = 1
num_samples = 1
[finetune]
batch_size = 8
[eval]
batch_size = 8
num_rows = 240
[sample]
prompts = ["w1 w2"]
max_new_tokens = 300
temperature = 0.0
"""


@dataclass(frozen=True)
class Strike:
    """`number` to the process `rank`, `delay` seconds after it enters `phase` having done `steps` training steps."""

    number: int
    rank: int
    phase: str  # train, eval, sample, judge or ledger
    steps: int = 1
    delay: float = 0.3


@dataclass
class Life:
    """What became of one start of a job: of each process its exit code and what it wrote; the notes of all together."""

    codes: list[int]
    logs: list[str]
    rows: dict[tuple[int, int], int] = field(
        default_factory=dict
    )  # (step, row of the global batch) -> checksum
    stopped_in: list[str] = field(default_factory=list)

    @property
    def stopped_at(self) -> list[int]:
        """The step that each process says it stopped at."""
        return [int(n) for log in self.logs for n in re.findall(r"stopped at step (\d+) of", log)]

    @property
    def said(self) -> str:
        return "\n".join(
            f"--- exit {code}\n{log[-2500:]}"
            for code, log in zip(self.codes, self.logs, strict=True)
        )

    @property
    def first(self) -> int:
        return min(step for step, _ in self.rows)


def write_config(directory: Path) -> Path:
    """A tiny configuration and its text, enough for thirty batches of validation."""
    draw, text = random.Random(0), directory / "text"
    text.mkdir(parents=True)
    for i in range(80):
        words = " ".join(f"w{draw.randrange(1, 50)}" for _ in range(150))
        (text / f"{i}.txt").write_text(words)
    path = directory / "tiny.toml"
    path.write_text(CONFIG.format(text=text))
    return path


def launch(
    notes: Path,
    processes: int,
    devices: int,
    words: list,
    strike: Strike | None = None,
    timeout: float = 200,
) -> Life:
    """Run `ramp WORDS` in so many processes of so many devices until all have ended.

    After a SIGKILL the others hang or fail, as they may: they are given five seconds and then killed too.
    """
    notes.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    env |= {"TEST_NOTES": str(notes), "TEST_STRIKE": json.dumps(asdict(strike)) if strike else ""}
    children, deadline = [], time.monotonic() + timeout
    try:
        for rank in range(processes):
            place = {"RAMP_DISTRIBUTED": f"{address},{processes},{rank}"} if processes > 1 else {}
            with (notes / f"{rank}.log").open("w") as log:
                command = [sys.executable, __file__, *map(str, words)]
                children.append(subprocess.Popen(command, env=env | place, stdout=log, stderr=log))
        while None in [child.poll() for child in children] and time.monotonic() < deadline:
            if any(child.returncode == -signal.SIGKILL for child in children):
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()  # does nothing to one that has ended
        codes = [child.wait() for child in children]
    life = Life(codes, [(notes / f"{rank}.log").read_text() for rank in range(processes)])
    for path in sorted(notes.glob("*.jsonl")):
        for note in map(json.loads, path.read_text().splitlines()):
            life.rows |= {(note["step"], row): crc for row, crc in note.get("rows", [])}
            life.stopped_in += [note["stopped_in"]] if "stopped_in" in note else []
    return life


def work(words: list[str]) -> int:
    """One process of the job."""
    from ramp import cli
    from ramp.credit import rollouts
    from ramp.decode import sample
    from ramp.evals import bpb
    from ramp.synth import ledger
    from ramp.text.rows import Batches
    from ramp.train import trainer
    from ramp.train.preemption import Preemption

    rank = int(os.environ.get("RAMP_DISTRIBUTED", "0").split(",")[-1])
    notes = (Path(os.environ["TEST_NOTES"]) / f"{rank}.jsonl").open("a")
    strike = Strike(**json.loads(os.environ["TEST_STRIKE"])) if os.environ["TEST_STRIKE"] else None
    seen = {"phase": "", "steps": 0, "armed": False, "stopped": False}

    def note(**what) -> None:
        notes.write(json.dumps(what) + "\n")
        notes.flush()

    def enter(phase: str, seconds: float) -> None:
        """Every process dawdles where the signal is to come, so that it comes there."""
        seen["phase"] = phase
        seen["steps"] += phase == "train"
        if strike is None or strike.phase != phase or seen["steps"] < strike.steps:
            return
        if rank == strike.rank and not seen["armed"]:
            threading.Timer(strike.delay, os.kill, (os.getpid(), strike.number)).start()
        seen["armed"] = True
        time.sleep(seconds)

    def at(module, name: str, phase: str, seconds: float) -> None:
        wrapped = getattr(module, name)

        def watched(*args, **kwargs):
            enter(phase, seconds)
            return wrapped(*args, **kwargs)

        setattr(module, name, watched)

    at(trainer, "shard_batch", "train", 0.08)
    at(bpb, "shard_batch", "eval", 0.12)
    at(sample, "decode_until", "sample", 1.0)
    at(rollouts, "score_rollouts", "judge", 0.5)
    at(ledger, "write_ledger", "ledger", 0.5)
    read, asked = Batches.__call__, Preemption.requested

    def read_and_note(self, step, lo=0, hi=None):
        batch = read(self, step, lo, hi)
        if self.shuffle:
            crcs = [zlib.crc32(row.tobytes()) for row in batch["tokens"]]
            note(step=step, rows=[[lo + i, crc] for i, crc in enumerate(crcs)])
        return batch

    def asked_and_note(self, step):
        answer = asked(self, step)
        if answer and not seen["stopped"]:
            seen["stopped"] = True
            note(step=step, stopped_in=seen["phase"])
        return answer

    Batches.__call__, Preemption.requested = read_and_note, asked_and_note
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(work(sys.argv[1:]))
