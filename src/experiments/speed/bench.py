"""`ramp bench`: tokens per second of training and generation, alone or against the same architecture in PyTorch.

Every contender is a process of its own, started once and given work in turn, A B C A B C ..., while the others wait: a
machine that slows down slows all of them, and the ratio of one round means something where two runs would not. All of
them get the same cores. No jax here; the workers are `bench_ramp` and `bench_torch`.
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

DEFAULT = "[model]\ndepth = 4\ncontext = 256\nunroll = true\n[pretrain]\nbatch = 16\n"
PROMPT, NEW, BATCHES = 32, (128, 512), (1, 16)
SECONDS = 2.0  # least work in one turn
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
)  # what the peer is told
QWEN3 = ("token_mixer", "rope", "norm", "residual", "mlp", "qk_norm")  # as in the peer: left alone
QWEN3 += ("window_pattern", "logit_softcap", "value_embeds", "x0_scalars", "smear")


Worker = Callable[..., dict]  # (do, **work) -> answer


def start(stack: ExitStack, command: list[str], env: dict[str, str]) -> Worker:
    """A process that answers lines of JSON until `stack` ends; what it says besides is shown when it dies."""
    log, pipe = stack.enter_context(tempfile.TemporaryFile("w+")), subprocess.PIPE  # noqa: SIM115
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=os.environ | env
    )
    stack.enter_context(process)

    def worker(do: str, **work: object) -> dict:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": do, **work}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        log.seek(0)
        raise RuntimeError(
            f"{' '.join(command[:3])} died while asked to {do}:\n{log.read()[-4000:]}"
        )

    return worker


def run(args: argparse.Namespace, flags: list[str]) -> int:
    if args.rounds < 1 or args.threads < 1:
        raise UserError("--rounds and --threads take numbers of at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        default = Path(scratch) / "bench.toml"
        default.write_text(DEFAULT)
        bench = Bench(config.load(args.config or default, flags), args, Path(scratch))
        if args.peer:
            peer_fits(bench.c.model, args.peer_python)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        bench.describe()
        wanted = [getattr(bench, args.only)] if args.only else [bench.train, bench.generate]
        for dtype in ("float32", "bfloat16") if args.dtype == "both" else (args.dtype,):
            for measure in [bench.agree, *wanted] if args.peer and dtype == "float32" else wanted:
                with ExitStack() as stack:
                    measure(stack, dtype)
    if args.json:
        args.json.write_text(json.dumps(bench.figures, indent=1) + "\n")
    return 0


def peer_fits(m: config.Model, python: Path) -> None:
    """The peer is Qwen3: every switch must stand where Qwen3 has it, and its interpreter must have its packages."""
    for key in QWEN3:
        if getattr(m, key) != getattr(config.Model(), key):
            raise UserError(
                f"model.{key} = {getattr(m, key)!r} does not exist in the peer; bench it without --peer"
            )
    try:
        subprocess.run(
            [python, "-c", "import torch, transformers, numpy"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{python} has no torch, transformers and numpy; make an environment that has, `python3 -m venv "
            "peer && peer/bin/pip install torch transformers numpy`, and pass --peer-python peer/bin/python"
        ) from None


@dataclass(frozen=True)
class Bench:
    """The measurements of one configuration. The workers of one end with its `stack`; `figures` holds all results."""

    c: Config
    args: argparse.Namespace
    scratch: Path
    figures: dict = field(default_factory=dict)

    def describe(self) -> None:
        m, load = self.resolved("float32").model, os.getloadavg()[0]
        self.figures.update(date=time.strftime("%Y-%m-%d"), cpus=os.cpu_count(), load=load)
        shape = f"depth {m.depth}, width {m.width}, {m.num_heads} heads of {m.head_dim}, ff {m.mlp_dim}, vocabulary {m.vocab_size}"
        size = f"{cost.count_params(m) / 1e6:.2f}M parameters"
        print(f"{shape}: {size}; {self.args.threads} threads a contender, load {load:.1f}")

    def resolved(self, dtype: str, optimizer: str = "adamw") -> Config:
        pretrain, model = (
            replace(self.c.pretrain, optimizer=optimizer),
            replace(self.c.model, dtype=dtype),
        )
        return config.resolve(replace(self.c, model=model, pretrain=pretrain))

    def ramp(
        self, stack: ExitStack, dtype: str, optimizer: str = "adamw", cache: str = "cache"
    ) -> Worker:
        path = self.scratch / f"{dtype}-{optimizer}.toml"
        path.write_text(config.to_toml(self.resolved(dtype, optimizer)))
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.scratch / cache)}
        return start(stack, [sys.executable, "-m", "experiments.speed.jax_worker", str(path)], env)

    def torch(self, stack: ExitStack, dtype: str) -> Worker:
        m, t = self.resolved(dtype).model, self.resolved(dtype).pretrain
        shape = {
            "dtype": dtype,
            "seq": t.seq_len,
            "batch": t.batch_size,
            "threads": self.args.threads,
        }
        shape |= {key: getattr(m, key) for key in SHAPE}
        return start(
            stack,
            [
                str(self.args.peer_python),
                str(Path(__file__).with_name("bench_torch.py")),
                json.dumps(shape),
            ],
            {},
        )

    def agree(self, stack: ExitStack, dtype: str) -> None:
        """The same weights give the same loss: it is the same architecture."""
        files = {
            "weights": str(self.scratch / "weights.npz"),
            "tokens": str(self.scratch / "tokens.npz"),
        }
        a, b = (work(stack, dtype)("loss", **files)["loss"] for work in (self.ramp, self.torch))
        self.figures["agreement"] = {"ramp": a, "torch": b}
        print(
            f"same weights, same tokens: loss {a:.6f} (ramp), {b:.6f} (torch), difference {abs(a - b):.1e}"
        )
        if abs(a - b) > 1e-3:
            raise RuntimeError("the peer is not the same architecture")

    def train(self, stack: ExitStack, dtype: str) -> None:
        t = self.resolved(dtype).pretrain
        print(f"\n## Training, {dtype}, batch {t.batch_size} x {t.seq_len}")
        workers = {
            f"ramp {optimizer}": self._compiled(stack, dtype, optimizer)
            for optimizer in ("adamw", "muon")
        }
        if self.args.peer:
            workers |= self._peer_compiled(stack, dtype)
        steps = max(1, round(SECONDS / (workers["ramp adamw"]("train", steps=2)["wall"] / 2)))
        for worker in workers.values():
            worker("train", steps=1)
        turns = {name: partial(worker, "train", steps=steps) for name, worker in workers.items()}
        rate = self._race(f"train {dtype}", turns, steps * t.batch_size * t.seq_len)
        self._use(dtype, workers, rate)

    def _compiled(self, stack: ExitStack, dtype: str, optimizer: str) -> Worker:
        """A worker that is ready to train, the second of two: the first finds an empty compilation cache."""
        cache = f"cold-{dtype}-{optimizer}"
        with ExitStack() as alone:
            cold = self.ramp(alone, dtype, optimizer, cache)("compile")
        worker = self.ramp(stack, dtype, optimizer, cache)
        self.figures[f"start {dtype} {optimizer}"] = both = {
            "cold": cold,
            "warm": worker("compile"),
        }
        parts = ", ".join(f"{part} {cold[part]:.1f}" for part in ("init", "trace", "compile"))
        said = ", ".join(
            f"{x['init'] + x['trace'] + x['compile']:.1f} s {name}" for name, x in both.items()
        )
        print(f"{optimizer}: before the first step {said} (cold: {parts})")
        return worker

    def _peer_compiled(self, stack: ExitStack, dtype: str) -> dict[str, Worker]:
        """Eager with the faster of the two attentions, and that compiled."""
        eager = {attention: self.torch(stack, dtype) for attention in ("sdpa", "eager")}
        seconds = {}
        for attention, worker in eager.items():
            worker("compile", attention=attention, compiled=False)
            seconds[attention] = min(worker("train", steps=2)["cpu"] for _ in range(2))
        best, compiled = min(seconds, key=seconds.get), self.torch(stack, dtype)
        first = compiled("compile", attention=best, compiled=True)["first"]
        print(
            f"torch: {best} attention is the faster one; torch.compile took {first:.1f} s to the first step"
        )
        return {"torch eager": eager[best], "torch compiled": compiled}

    def _use(self, dtype: str, workers: dict[str, Worker], rate: float) -> None:
        """Of the device: its arithmetic at `rate` tokens a second, and its memory."""
        c, device = self.resolved(dtype), workers["ramp adamw"]("device")
        flops = cost.flops_per_token(c.model, c.pretrain.seq_len)
        peak = chips.peak(device["kind"])
        share = f", MFU {rate * flops / (peak * 1e12 * device['count']):.1%}" if peak else ""
        speed = f"{rate * flops / 1e12:.3f} TFLOP/s ({flops / 1e6:.1f} MFLOP/token)"
        print(f"{device['kind']} x {device['count']}: {speed}{share}")
        self.figures[f"memory {dtype}"] = memory = {
            name: worker("memory") for name, worker in workers.items()
        }
        peaks = ", ".join(
            f"{name} {(m['device'] or m['process']) / 2**20:.0f}" for name, m in memory.items()
        )
        kind = "device" if memory["ramp adamw"]["device"] else "process"
        state = cost.state_bytes(c.model, c.pretrain) / 2**20
        print(f"peak memory of the {kind}, MiB: {peaks}; ramp's adamw state alone is {state:.0f}")

    def generate(self, stack: ExitStack, dtype: str) -> None:
        print(f"\n## Generation, {dtype}, prompts of {PROMPT}, top-k 50")
        ours = self.ramp(stack, dtype)
        theirs = self.torch(stack, dtype) if self.args.peer else None
        for new, batch in itertools.product(NEW, BATCHES):
            work = {"batch": batch, "prompt": PROMPT, "new": new}
            turns = {"ramp": partial(ours, "generate", **work)}
            if theirs:
                turns["torch"] = partial(
                    theirs, "generate", **work, attention=_faster_attention(theirs, work)
                )
            for turn in turns.values():
                turn()
            room = cost.cache_bytes(self.resolved(dtype).model, batch, PROMPT + new) / 2**20
            self._race(
                f"generate {dtype} batch {batch} new {new} (cache {room:.1f} MiB)",
                turns,
                batch * new,
            )

    def _race(self, title: str, contenders: dict[str, Callable[[], dict]], tokens: int) -> float:
        """Turns of `tokens` tokens, in every other round in reverse order, so that no one always follows the same. Prints
        tokens per second and the first contender's share of each other's, round by round, by the clock and by CPU time;
        returns the first one's median."""
        turns = {name: [] for name in contenders}
        for i in range(self.args.rounds):
            for name in list(contenders)[:: -1 if i % 2 else 1]:
                turns[name].append(contenders[name]())
        rates = {name: [tokens / turn["wall"] for turn in those] for name, those in turns.items()}
        self.figures[title] = {"tokens_per_second": rates, "turns": turns}
        print(
            f"\n| {title} | tokens/s [min, max] | ramp / it [min, max] | by CPU time |\n|---|---|---|---|"
        )
        first = next(iter(contenders))
        for name, values in rates.items():
            ratios = [a / b for a, b in zip(rates[first], values, strict=True)]
            cpu = median(
                b["cpu"] / a["cpu"] for a, b in zip(turns[first], turns[name], strict=True)
            )
            print(
                f"| {name} | {_spread(values, '.0f')} | {_spread(ratios, '.2f')} | {cpu:.2f} |",
                flush=True,
            )
        return median(rates[first])


def _faster_attention(theirs: Worker, work: dict) -> str:
    seconds = {}
    for attention in ("sdpa", "eager", "sdpa", "eager"):  # the second time counts
        seconds[attention] = theirs("generate", **work | {"new": 32}, attention=attention)["wall"]
    return min(seconds, key=seconds.get)


def _spread(values: list[float], form: str) -> str:
    low, middle, high = (format(v, form) for v in (min(values), median(values), max(values)))
    return f"{middle} [{low}, {high}]"
