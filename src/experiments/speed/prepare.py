"""How fast text becomes tokens, and in how much memory.

python -m experiments.speed.prepare 1000 --workers 2 --engine local

Generates so many MB of JSONL (sentences of the demo corpus in new documents of about 4 kB, some
words of their own), prepares them in a process of its own, and prints MB/s by the clock and by CPU
time, and the highest sum of the resident memory of all its processes.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from ramp.config import Text
from ramp.text.corpus import documents
from ramp.text.prepare import prepare_tokens

POLL_SECONDS = 0.2


def write_text(path: Path, num_bytes: float, seed: int = 0) -> None:
    """Documents that share no more than sentences."""
    demo = [d.text for source in Text().sources for d in documents(source, Counter())]
    sentences = [s for text in demo for s in re.split(r"(?<=[.!?\n]) ?", text) if s]
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        while file.tell() < num_bytes:
            chosen = [sentences[i] for i in rng.integers(len(sentences), size=rng.integers(5, 60))]
            # So that the number of different words grows, as it does in real text.
            names = [np.base_repr(x, 36).lower() for x in rng.integers(36**5, size=3)]
            record = {"text": " ".join([*chosen, *names])}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def resident_bytes(root: int) -> int:
    """Of a process and all that it has started."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(stat[1])
        sizes[int(folder.name)] = int(stat[21]) * os.sysconf("SC_PAGE_SIZE")

    def is_below(process):
        while process > 1:
            if process == root:
                return True
            process = parents.get(process, 0)
        return False

    return sum(size for process, size in sizes.items() if is_below(process))


def prepare(source: str, data: Path, workers: int, engine: str, dedup: str, vocab: int) -> None:
    """What the measured process does."""
    text = replace(
        Text(), sources=(source,), workers=workers, engine=engine, dedup=dedup, vocab_size=vocab
    )
    data.mkdir(parents=True, exist_ok=True)
    made = prepare_tokens(text, data, data / "tokenizer.json")
    print(made.counts, f"fitted to {made.sample_bytes / 1e6:.0f} MB", flush=True)


def main() -> None:
    """Generate, prepare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--dedup", default="near")
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--data", help=argparse.SUPPRESS)  # in the measured process
    args = parser.parse_args()
    if args.data:
        source = f"file:{args.folder}/*.jsonl"
        prepare(source, Path(args.data), args.workers, args.engine, args.dedup, args.vocab)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        size = args.megabytes * 1e6 / args.files
        for i in range(args.files):
            write_text(Path(folder) / f"{i}.jsonl", size, i)
        command = [sys.executable, "-m", "experiments.speed.prepare", *sys.argv[1:]]
        began = time.perf_counter()
        process = subprocess.Popen([*command, "--folder", folder, "--data", f"{folder}/data"])
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(
        f"{args.megabytes:.0f} MB, {args.workers} workers ({args.engine}): {seconds:.1f} s, "
        f"{args.megabytes / seconds:.1f} MB/s by the clock; {cpu:.1f} CPU seconds, "
        f"{args.megabytes / cpu:.1f} MB for each; {peak / 1e6:.0f} MB resident at most"
    )


if __name__ == "__main__":
    main()
