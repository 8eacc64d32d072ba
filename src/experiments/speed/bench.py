"""Tokens per second of training and generation, alone or against the same architecture in PyTorch.

Every contender is a process of its own, started once and given work in turn, A B C A B C ...: a
machine that slows down slows all of them, and the ratio of one round means something where two runs
would not. All of them get the same cores. No jax here: it runs in the workers, `jax_worker` and
`torch_worker`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.model import cost
from ramp.pods import chips

DEFAULT = """
[model]
depth = 4
context_len = 256
unroll = true
[pretrain]
batch_size = 16
"""
PROMPT = 32  # tokens
NEW = (128, 512)
BATCHES = (1, 16)
SECONDS = 2.0  # least work in one turn
# What the peer is told of the model.
SHAPE = (
    "depth",
    "width",
    "mlp_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "tie_embeddings",
    "rope_theta",
)
# Switches that must stand where Qwen3 has them, which are the defaults.
QWEN3 = (
    "token_mixer",
    "rope",
    "norm",
    "residual",
    "mlp",
    "qk_norm",
    "window_pattern",
    "logit_softcap",
    "value_embeds",
    "x0_scalars",
    "smear",
)

Worker = Callable[..., dict]  # (do, **arguments) -> answer


def start(stack: ExitStack, command: list[str], env: dict[str, str]) -> Worker:
    """A process that answers lines of JSON until `stack` ends; its stderr is shown when it dies."""
    log = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
    pipe = subprocess.PIPE
    environment = os.environ | env
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment
    )
    stack.enter_context(process)

    def worker(do: str, **work: object) -> dict:
        # A worker that is gone gives no line; that is reported below, with its stderr.
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": do, **work}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        log.seek(0)
        raise RuntimeError(f"{' '.join(command[:3])} died in {do}:\n{log.read()[-4000:]}")

    return worker


def run(args: argparse.Namespace, flags: list[str]) -> int:
    """Measure what the arguments ask for, print tables; 0."""
    if args.rounds < 1 or args.threads < 1:
        raise UserError("--rounds and --threads take numbers of at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        default = Path(scratch) / "bench.toml"
        default.write_text(DEFAULT)
        bench = Bench(config.load(args.config or default, flags), args, Path(scratch))
        if args.peer:
            check_peer(bench.c.model, args.peer_python)
        # Workers inherit the cores of this process.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        bench.describe()
        wanted = [getattr(bench, args.only)] if args.only else [bench.train, bench.generate]
        for dtype in ("float32", "bfloat16") if args.dtype == "both" else (args.dtype,):
            checks = [bench.agree] if args.peer and dtype == "float32" else []
            for measure in checks + wanted:
                with ExitStack() as stack:
                    measure(stack, dtype)
    if args.json:
        args.json.write_text(json.dumps(bench.figures, indent=1) + "\n")
    return 0


def check_peer(m: config.Model, python: Path) -> None:
    """Refuse a model that Qwen3 is not, and an interpreter without the peer's packages."""
    for key in QWEN3:
        value = getattr(m, key)
        if value != getattr(config.Model(), key):
            raise UserError(f"model.{key} = {value!r} does not exist in the peer; leave out --peer")
    try:
        probe = [python, "-c", "import torch, transformers, numpy"]
        subprocess.run(probe, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{python} has no torch, transformers and numpy; make an environment that has, "
            "`python3 -m venv peer && peer/bin/pip install torch transformers numpy`, "
            "and pass --peer-python peer/bin/python"
        ) from None


def peak_tflops(kind: str) -> float | None:
    """Dense bfloat16 TFLOP/s of one device of jax's `device_kind`; None: not in the table."""
    for chip in chips.read_chips().values():
        if kind in chip.device:
            return chip.bf16 / chip.devices_per_chip
    return None


@dataclass(frozen=True)
class Bench:
    """The measurements of one configuration. Workers end with their `stack`."""

    c: Config
    args: argparse.Namespace
    scratch: Path
    figures: dict = field(default_factory=dict)  # all results, for --json

    def describe(self) -> None:
        """Print the model, the machine and its load."""
        m = self.resolve("float32").model
        load = os.getloadavg()[0]
        self.figures.update(date=time.strftime("%Y-%m-%d"), cpus=os.cpu_count(), load=load)
        print(
            f"depth {m.depth}, width {m.width}, {m.num_heads} heads of {m.head_dim}, "
            f"mlp {m.mlp_dim}, vocabulary {m.vocab_size}: "
            f"{cost.count_params(m) / 1e6:.2f}M parameters; "
            f"{self.args.threads} threads a contender, load {load:.1f}"
        )

    def resolve(self, dtype: str, optimizer: str = "adamw") -> Config:
        """The configuration with this dtype and optimizer, complete."""
        pretrain = replace(self.c.pretrain, optimizer=optimizer)
        model = replace(self.c.model, dtype=dtype)
        return config.resolve(replace(self.c, model=model, pretrain=pretrain))

    def ramp(
        self, stack: ExitStack, dtype: str, optimizer: str = "adamw", cache: str = "cache"
    ) -> Worker:
        """Start ramp's worker; cache: the folder of compiled programs."""
        path = self.scratch / f"{dtype}-{optimizer}.toml"
        path.write_text(config.to_toml(self.resolve(dtype, optimizer)))
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.scratch / cache)}
        return start(stack, [sys.executable, "-m", "experiments.speed.jax_worker", str(path)], env)

    def torch(self, stack: ExitStack, dtype: str) -> Worker:
        """Start the peer's worker."""
        c = self.resolve(dtype)
        shape = {key: getattr(c.model, key) for key in SHAPE}
        shape |= {"seq": c.pretrain.seq_len, "batch": c.pretrain.batch_size}
        shape |= {"dtype": dtype, "threads": self.args.threads}
        script = Path(__file__).with_name("torch_worker.py")
        return start(stack, [str(self.args.peer_python), str(script), json.dumps(shape)], {})

    def agree(self, stack: ExitStack, dtype: str) -> None:
        """Check that the same weights give the same loss, so that it is the same architecture."""
        files = {name: str(self.scratch / f"{name}.npz") for name in ("weights", "tokens")}
        # ramp writes the files that the peer reads.
        ours = self.ramp(stack, dtype)("loss", **files)["loss"]
        theirs = self.torch(stack, dtype)("loss", **files)["loss"]
        difference = abs(ours - theirs)
        self.figures["agreement"] = {"ramp": ours, "torch": theirs}
        print(
            f"same weights, same tokens: loss {ours:.6f} (ramp), {theirs:.6f} (torch), "
            f"difference {difference:.1e}"
        )
        if difference > 1e-3:
            raise RuntimeError("the peer is not the same architecture")

    def train(self, stack: ExitStack, dtype: str) -> None:
        """Training: seconds before the first step, tokens per second, memory."""
        t = self.resolve(dtype).pretrain
        print(f"\n## Training, {dtype}, batch {t.batch_size} x {t.seq_len}")
        workers = {}
        for optimizer in ("adamw", "muon"):
            workers[f"ramp {optimizer}"] = self._start_compiled(stack, dtype, optimizer)
        if self.args.peer:
            workers |= self._start_compiled_peer(stack, dtype)
        seconds = workers["ramp adamw"]("train", steps=2)["wall"] / 2
        steps = max(1, round(SECONDS / seconds))
        for worker in workers.values():
            worker("train", steps=1)
        turns = {name: partial(worker, "train", steps=steps) for name, worker in workers.items()}
        rate = self.race(f"train {dtype}", turns, steps * t.batch_size * t.seq_len)
        self._describe_device(dtype, workers, rate)

    def _start_compiled(self, stack: ExitStack, dtype: str, optimizer: str) -> Worker:
        """A worker ready to train. It is the second of two: the first found an empty cache."""
        cache = f"cold-{dtype}-{optimizer}"
        with ExitStack() as alone:
            cold = self.ramp(alone, dtype, optimizer, cache)("compile")
        worker = self.ramp(stack, dtype, optimizer, cache)
        starts = {"cold": cold, "warm": worker("compile")}
        self.figures[f"start {dtype} {optimizer}"] = starts
        parts = ("init", "trace", "compile")
        totals = [f"{sum(x[p] for p in parts):.1f} s {name}" for name, x in starts.items()]
        details = ", ".join(f"{part} {cold[part]:.1f}" for part in parts)
        print(f"{optimizer}: before the first step {', '.join(totals)} (cold: {details})")
        return worker

    def _start_compiled_peer(self, stack: ExitStack, dtype: str) -> dict[str, Worker]:
        """The peer eager, with the faster of two attentions, and compiled."""
        eager = {attention: self.torch(stack, dtype) for attention in ("sdpa", "eager")}
        seconds = {}
        for attention, worker in eager.items():
            worker("compile", attention=attention, compiled=False)
            seconds[attention] = min(worker("train", steps=2)["cpu"] for _ in range(2))
        best = min(seconds, key=seconds.get)
        compiled = self.torch(stack, dtype)
        first = compiled("compile", attention=best, compiled=True)["first"]
        print(f"torch: {best} attention is faster; torch.compile: {first:.1f} s to the first step")
        return {"torch eager": eager[best], "torch compiled": compiled}

    def _describe_device(self, dtype: str, workers: dict[str, Worker], rate: float) -> None:
        """Print the device's arithmetic at `rate` tokens per second, and its memory."""
        c = self.resolve(dtype)
        device = workers["ramp adamw"]("device")
        flops = cost.flops_per_token(c.model, c.pretrain.seq_len)
        peak = peak_tflops(device["kind"])
        utilization = rate * flops / (peak * 1e12 * device["count"]) if peak else 0
        mfu = f", MFU {utilization:.1%}" if peak else ""
        speed = f"{rate * flops / 1e12:.3f} TFLOP/s ({flops / 1e6:.1f} MFLOP/token)"
        print(f"{device['kind']} x {device['count']}: {speed}{mfu}")
        memory = {name: worker("memory") for name, worker in workers.items()}
        self.figures[f"memory {dtype}"] = memory
        # Devices that keep count tell their own peak; on a CPU it is the process's.
        kind = "device" if memory["ramp adamw"]["device"] else "process"
        peaks = [
            f"{name} {(m['device'] or m['process']) / 2**20:.0f}" for name, m in memory.items()
        ]
        state = memory.state_bytes(c.model, c.pretrain) / 2**20
        print(f"peak memory of the {kind}, MiB: {', '.join(peaks)}; ramp's state is {state:.0f}")

    def generate(self, stack: ExitStack, dtype: str) -> None:
        """Generation: tokens per second of prefill and decode together."""
        print(f"\n## Generation, {dtype}, prompts of {PROMPT}, top-k 50")
        ours = self.ramp(stack, dtype)
        theirs = self.torch(stack, dtype) if self.args.peer else None
        for new, batch in itertools.product(NEW, BATCHES):
            work = {"batch": batch, "prompt": PROMPT, "new": new}
            turns = {"ramp": partial(ours, "generate", **work)}
            if theirs:
                attention = find_faster_attention(theirs, work)
                turns["torch"] = partial(theirs, "generate", **work, attention=attention)
            for turn in turns.values():
                turn()  # the first time it compiles
            cache = cost.cache_bytes(self.resolve(dtype).model, batch, PROMPT + new) / 2**20
            title = f"generate {dtype} batch {batch} new {new} (cache {cache:.1f} MiB)"
            self.race(title, turns, batch * new)

    def race(self, title: str, contenders: dict[str, Callable[[], dict]], tokens: int) -> float:
        """Give each contender turns of `tokens` tokens; returns the first one's median rate.

        Every other round goes in reverse order, so that no one always follows the same. Prints
        tokens per second, and the first contender's rate as a multiple of each other's, round by
        round, by the clock and by CPU time.
        """
        turns = {name: [] for name in contenders}
        for i in range(self.args.rounds):
            for name in list(contenders)[:: -1 if i % 2 else 1]:
                turns[name].append(contenders[name]())
        rates = {name: [tokens / turn["wall"] for turn in those] for name, those in turns.items()}
        self.figures[title] = {"tokens_per_second": rates, "turns": turns}
        print(f"\n| {title} | tokens/s [min, max] | ramp / it [min, max] | by CPU time |")
        print("|---|---|---|---|")
        first = next(iter(contenders))
        for name, values in rates.items():
            ratios = [a / b for a, b in zip(rates[first], values, strict=True)]
            pairs = zip(turns[first], turns[name], strict=True)
            cpu = median(theirs["cpu"] / ours["cpu"] for ours, theirs in pairs)
            spread = f"{format_spread(values, '.0f')} | {format_spread(ratios, '.2f')}"
            print(f"| {name} | {spread} | {cpu:.2f} |", flush=True)
        return median(rates[first])


def find_faster_attention(worker: Worker, work: dict) -> str:
    """The attention of the peer that generates 32 tokens sooner."""
    seconds = {}
    short = work | {"new": 32}
    for attention in ("sdpa", "eager", "sdpa", "eager"):  # the second time counts
        seconds[attention] = worker("generate", **short, attention=attention)["wall"]
    return min(seconds, key=seconds.get)


def format_spread(values: list[float], form: str) -> str:
    """Median [min, max]."""
    low, middle, high = (format(v, form) for v in (min(values), median(values), max(values)))
    return f"{middle} [{low}, {high}]"
