"""Tokens per CPU-second of a server and of llama.cpp itself, interleaved, on the same weights.

    ramp serve RUN --engine llama.cpp --weights q8_0 --port 8000 &
    python -m experiments.serve.against_llama http://127.0.0.1:8000 $! RUN q8_0

llama.cpp reads the same ids and draws greedily with its own sampler, in this process, for one
sequence or for eight in a batch: nothing of a server is in its figure. A CPU-second is one of all
threads of a process, so two servers may share a machine.

Last, the memory that the server holds.
"""

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import llama_cpp
import numpy as np

from ramp.rundir import open_run
from ramp.serve.llama import LlamaSlots, can_repack, write_weights
from ramp.text.tokenizer import Tokenizer

TOKENS, ROUNDS = 128, 5
PROMPT = "Once upon a time there was a small boat that wanted to see the sea, number {}. It"


def read_cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(client: httpx.Client, name: str, prompt: list[int]) -> int:
    """Tokens of one answer, as long as it may be."""
    body = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = client.post("/v1/completions", json=body, timeout=600).raise_for_status().json()
    return answer["usage"]["completion_tokens"]


def rate_server(url: str, pid: int, name: str, prompts: list[list[int]]) -> float:
    """Tokens per CPU-second of the server, all prompts at once."""
    start = read_cpu_seconds(pid)
    with httpx.Client(base_url=url) as client, ThreadPoolExecutor(len(prompts)) as pool:
        count = sum(pool.map(lambda prompt: ask(client, name, prompt), prompts))
    return count / (read_cpu_seconds(pid) - start)


def rate_llama(slots: LlamaSlots, prompts: list[list[int]], stops: set[int]) -> float:
    """The same of llama.cpp: its own greedy sampler, one batch, no server."""
    sampler = llama_cpp.llama_sampler_init_greedy()
    slots.reset()
    start = time.process_time()
    for slot, prompt in enumerate(prompts):
        places = range(len(prompt))
        slots._decode(prompt, places, [slot] * len(prompt), np.arange(len(prompt)) == places[-1])
        slots.drawn[slot] = llama_cpp.llama_sampler_sample(sampler, slots.context, -1)
    count = len(prompts)
    for step in range(TOKENS - 1):
        running = [slot for slot, id in slots.drawn.items() if id not in stops]
        if not running:
            break
        ids = [slots.drawn[slot] for slot in running]
        places = [len(prompts[slot]) + step for slot in running]
        slots._decode(ids, places, running, np.ones(len(running), bool))
        for row, slot in enumerate(running):
            slots.drawn[slot] = llama_cpp.llama_sampler_sample(sampler, slots.context, row)
        count += len(running)
    return count / (time.process_time() - start)


def main(url: str, pid: int, path: Path, kind: str) -> None:
    """Print the comparison."""
    run, c = open_run(path)
    tokenizer = Tokenizer.load(run.tokenizer)
    name = path.resolve().name
    with tempfile.TemporaryDirectory() as folder:
        stage = "finetune" if run.checkpoints("finetune").exists() else "pretrain"
        weights = write_weights(path, stage, kind, Path(folder))
        shape = tokenizer.vocab_size, c.model.context_len
        slots = LlamaSlots(weights, *shape, 8, can_repack(weights))
    stops = set(tokenizer.stop_ids)
    for clients in (1, 8):
        rates = []
        for turn in range(ROUNDS):
            prompts = [tokenizer.encode(PROMPT.format(8 * turn + i)) for i in range(clients)]
            rates.append((rate_server(url, pid, name, prompts), rate_llama(slots, prompts, stops)))
        ratios = [ours / theirs for ours, theirs in rates]
        ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
        print(
            f"{clients} clients: {ours:.1f} tokens a CPU-second, llama.cpp {theirs:.1f}; "
            f"ratio {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}",
            flush=True,
        )
    status = Path(f"/proc/{pid}/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    print(" ".join(memory.split()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
