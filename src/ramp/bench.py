"""`ramp bench`: tokens per second of training and generation, alone or against the same architecture in PyTorch.

Every contender is a process of its own, started once and given work in turn, A B C A B C ..., while the others wait: a
machine that slows down slows all of them, and the ratio of one round means something where two runs would not. All of
them get the same cores. No jax here; the workers are `bench_ramp` and `bench_torch`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.model import cost

DEFAULT = "[model]\ndepth = 4\ncontext = 256\n[pretrain]\nbatch = 16\n"
PROMPT, NEW, BATCHES = 32, (128, 512), (1, 16)
SECONDS = 2.0  # least work in one turn

# Dense bfloat16 TFLOP/s of one device, from the makers' data sheets; the first name found in the device's kind counts.
PEAK = {
    "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5p": 459, "TPU v5": 459, "TPU v6 lite": 918,
    "TPU v6e": 918, "H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312,
}  # fmt: skip


class Worker:
    """A process that answers lines of JSON; what it says besides goes to a log, shown when it dies."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, env=os.environ | (env or {})
        )

    def __call__(self, do: str, **work: object) -> dict:
        try:
            self.process.stdin.write(json.dumps({"do": do, **work}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(
                f"{' '.join(self.process.args[:3])} died while asked to {do}:\n{self.log.read()[-4000:]}"
            )
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


@dataclass(frozen=True)
class Contender:
    """A name and what one turn of it is: () -> {"wall": seconds, "cpu": seconds}."""

    name: str
    turn: Callable[[], dict]


def interleave(contenders: list[Contender], rounds: int) -> dict[str, list[dict]]:
    """Every contender's turns; the order is reversed in every other round, so that no one always follows the same."""
    turns = {c.name: [] for c in contenders}
    for i in range(rounds):
        for c in contenders if i % 2 == 0 else reversed(contenders):
            turns[c.name].append(c.turn())
    return turns


# ---------------------------------------------------------------------------------------------------- the verb
def run(args: argparse.Namespace, flags: list[str]) -> int:
    if args.rounds < 1 or args.threads < 1:
        raise UserError("--rounds and --threads take numbers of at least 1")
    c = load(args.config, flags)
    if args.peer:
        peer_fits(c)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    dtypes = ("float32", "bfloat16") if args.dtype == "both" else (args.dtype,)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(c, args, Path(scratch))
        for dtype in dtypes:
            if args.peer and dtype == "float32":
                bench.agree()
            if args.only != "generate":
                bench.train(dtype)
            if args.only != "train":
                bench.generate(dtype)
    if args.json:
        args.json.write_text(json.dumps(bench.figures, indent=1) + "\n")
    return 0


def load(path: Path | None, flags: list[str]) -> Config:
    if path is not None:
        return config.load(path, flags)
    with tempfile.TemporaryDirectory() as scratch:
        default = Path(scratch) / "bench.toml"
        default.write_text(DEFAULT)
        return config.load(default, flags)


def peer_fits(c: Config) -> None:
    """The peer is Qwen3: every switch must stand where Qwen3 has it."""
    m, usual = c.model, config.Model()
    for key in ("mlp", "qk_norm", "window", "softcap", "value_embeds", "x0_scalars", "smear"):
        if getattr(m, key) != getattr(usual, key):
            raise UserError(f"model.{key} = {getattr(m, key)!r} does not exist in the peer; bench it without --peer")


class Bench:
    def __init__(self, c: Config, args: argparse.Namespace, scratch: Path) -> None:
        self.c, self.args, self.scratch = c, args, scratch
        self.python = str(args.peer_python or sys.executable)
        self.figures = {"date": time.strftime("%Y-%m-%d"), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        if args.peer:
            self._require_peer()
        m = self.resolved("float32").model
        print(
            f"depth {m.depth}, width {m.width}, {m.heads} heads of {m.head_dim}, ff {m.ff}, vocabulary {m.vocab}: "
            f"{cost.param_count(m) / 1e6:.2f}M parameters; {args.threads} threads a contender, load {os.getloadavg()[0]:.1f}"
        )

    def _require_peer(self) -> None:
        try:
            probe = subprocess.run([self.python, "-c", "import torch, transformers, numpy"], capture_output=True)
            found = probe.returncode == 0
        except OSError:
            found = False
        if not found:
            raise UserError(
                f"{self.python} has no torch, transformers and numpy; make an environment that has, `python3 -m venv "
                "peer && peer/bin/pip install torch transformers numpy`, and pass --peer-python peer/bin/python"
            )

    def resolved(self, dtype: str, optimizer: str = "adamw") -> Config:
        c = replace(self.c, model=replace(self.c.model, dtype=dtype))
        return config.resolve(replace(c, pretrain=replace(c.pretrain, optimizer=optimizer)))

    # ------------------------------------------------------------------------------------------------ workers
    def ramp(self, dtype: str, optimizer: str = "adamw", cache: str | None = None) -> Worker:
        path = self.scratch / f"{dtype}-{optimizer}.toml"
        path.write_text(config.to_toml(self.resolved(dtype, optimizer)))
        env = {"JAX_COMPILATION_CACHE_DIR": str(self.scratch / (cache or "cache"))}
        return Worker([sys.executable, "-m", "ramp.bench_ramp", str(path)], env)

    def torch(self, dtype: str) -> Worker:
        c = self.resolved(dtype)
        shape = {
            k: getattr(c.model, k)
            for k in ["depth", "width", "ff", "heads", "kv_heads", "head_dim", "vocab", "tied", "rope_base"]
        }
        shape |= {"dtype": dtype, "seq": c.pretrain.seq, "batch": c.pretrain.batch, "threads": self.args.threads}
        return Worker([self.python, str(Path(__file__).with_name("bench_torch.py")), json.dumps(shape)])

    # ------------------------------------------------------------------------------------------------ measurements
    def agree(self) -> None:
        """The same weights give the same loss: it is the same architecture."""
        files = {"weights": str(self.scratch / "weights.npz"), "tokens": str(self.scratch / "tokens.npz")}
        with self.ramp("float32") as ours, self.torch("float32") as theirs:
            a, b = ours("loss", **files)["loss"], theirs("loss", **files)["loss"]
        self.figures["agreement"] = {"ramp": a, "torch": b}
        print(f"same weights, same tokens: loss {a:.6f} (ramp), {b:.6f} (torch), difference {abs(a - b):.1e}")
        if abs(a - b) > 1e-3:
            raise RuntimeError("the peer is not the same architecture")

    def train(self, dtype: str) -> None:
        c = self.resolved(dtype)
        tokens = c.pretrain.batch * c.pretrain.seq
        print(f"\n## Training, {dtype}, batch {c.pretrain.batch} x {c.pretrain.seq}")
        workers = {}
        with ExitStack() as stack:
            for optimizer in ("adamw", "muon"):
                with self.ramp(dtype, optimizer, f"cold-{dtype}-{optimizer}") as cold:
                    first = cold("compile")
                warm = stack.enter_context(self.ramp(dtype, optimizer, f"cold-{dtype}-{optimizer}"))
                workers[f"ramp {optimizer}"] = warm
                self._start(dtype, optimizer, first, warm("compile"))
            if self.args.peer:
                workers |= self._peer_train(stack, dtype)
            seconds = workers["ramp adamw"]("train", steps=2)["wall"] / 2
            steps = max(1, round(SECONDS / seconds))
            for worker in workers.values():
                worker("train", steps=1)
            turns = interleave(
                [Contender(n, lambda w=w: w("train", steps=steps)) for n, w in workers.items()], self.args.rounds
            )
            rates = {n: [steps * tokens / t["wall"] for t in ts] for n, ts in turns.items()}
            self._table(f"train {dtype}", rates, turns, "ramp adamw")
            self._device(c, workers, statistics.median(rates["ramp adamw"]))

    def _start(self, dtype: str, optimizer: str, cold: dict, warm: dict) -> None:
        self.figures[f"start {dtype} {optimizer}"] = {"cold": cold, "warm": warm}
        said = [f"{x['init'] + x['trace'] + x['compile']:.1f} s {n}" for n, x in (("cold", cold), ("warm", warm))]
        parts = ", ".join(f"{k} {cold[k]:.1f}" for k in ("init", "trace", "compile"))
        print(f"{optimizer}: before the first step {said[0]} ({parts}), {said[1]}")

    def _peer_train(self, stack: ExitStack, dtype: str) -> dict[str, Worker]:
        """Eager with the faster of the two attentions, and that compiled."""
        found = {}
        for attention in ("sdpa", "eager"):
            worker = stack.enter_context(self.torch(dtype))
            worker("compile", attention=attention, compiled=False)
            found[attention] = min(worker("train", steps=2)["cpu"] for _ in range(2)), worker
        best = min(found, key=lambda a: found[a][0])
        compiled = stack.enter_context(self.torch(dtype))
        first = compiled("compile", attention=best, compiled=True)["first"]
        print(f"torch: {best} attention is the faster one; torch.compile took {first:.1f} s to the first step")
        return {"torch eager": found[best][1], "torch compiled": compiled}

    def _device(self, c: Config, workers: dict[str, Worker], rate: float) -> None:
        ours = workers["ramp adamw"]
        device, flops = ours("device"), cost.flops_per_token(c.model, c.pretrain.seq)
        peak = next((p for name, p in PEAK.items() if name in device["kind"]), None)
        share = f", MFU {rate * flops / (peak * 1e12 * device['count']):.1%}" if peak else ""
        print(
            f"{device['kind']} x {device['count']}: {rate * flops / 1e12:.3f} TFLOP/s ({flops / 1e6:.1f} MFLOP/token){share}"
        )
        state = cost.state_bytes(c.model, c.pretrain)
        self.figures[f"memory {c.model.dtype}"] = memory = {n: w("memory") for n, w in workers.items()}
        peaks = [f"{n} {(m['device'] or m['process']) / 2**20:.0f}" for n, m in memory.items()]
        kind = "device" if memory["ramp adamw"]["device"] else "process"
        print(f"peak memory of the {kind}, MiB: {', '.join(peaks)}; ramp's adamw state alone is {state / 2**20:.0f}")

    def generate(self, dtype: str) -> None:
        c = self.resolved(dtype).model
        print(f"\n## Generation, {dtype}, prompts of {PROMPT}, top-k 50")
        with ExitStack() as stack:
            ours = stack.enter_context(self.ramp(dtype))
            theirs = stack.enter_context(self.torch(dtype)) if self.args.peer else None
            for new in NEW:
                for batch in BATCHES:
                    work = {"batch": batch, "prompt": PROMPT, "new": new}
                    contenders = [Contender("ramp", lambda w=work: ours("generate", **w))]
                    if theirs:
                        peer = self._peer_attention(theirs, work)
                        contenders.append(Contender("torch", lambda w=peer: theirs("generate", **w)))
                    for contender in contenders:
                        contender.turn()
                    turns = interleave(contenders, self.args.rounds)
                    rates = {n: [batch * new / t["wall"] for t in ts] for n, ts in turns.items()}
                    room = cost.cache_bytes(c, batch, PROMPT + new) / 2**20
                    self._table(
                        f"generate {dtype} batch {batch} new {new} (cache {room:.1f} MiB)", rates, turns, "ramp"
                    )

    def _peer_attention(self, theirs: Worker, work: dict) -> dict:
        """The work with the attention that is the faster for it."""
        short = work | {"new": 32}
        seconds = {}
        for attention in ("sdpa", "eager"):
            theirs("generate", **short, attention=attention)
            seconds[attention] = theirs("generate", **short, attention=attention)["wall"]
        return work | {"attention": min(seconds, key=seconds.get)}

    # ------------------------------------------------------------------------------------------------ figures
    def _table(self, title: str, rates: dict[str, list[float]], turns: dict[str, list[dict]], ours: str) -> None:
        """Tokens per second, and ramp's share of each round's peer by the clock and by CPU time."""
        self.figures[title] = {"tokens_per_second": rates, "turns": turns}
        print(f"\n| {title} | tokens/s [min, max] | ramp / it [min, max] | by CPU time |\n|---|---|---|---|")
        for name, values in rates.items():
            ratios = [a / b for a, b in zip(rates[ours], values, strict=True)]
            cpu = [b["cpu"] / a["cpu"] for a, b in zip(turns[ours], turns[name], strict=True)]
            print(
                f"| {name} | {spread(values, '.0f')} | {spread(ratios, '.2f')} | {statistics.median(cpu):.2f} |",
                flush=True,
            )


def spread(values: list[float], form: str) -> str:
    low, middle, high = (format(v, form) for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}, {high}]"
