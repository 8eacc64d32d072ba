"""The host's side of training: feed batches, read metrics one step late, evaluate, save, stop when asked.

The device never waits for the host: step k+1 is dispatched before the metrics of step k are fetched. Nothing here is
part of the state: kill this process at any moment and the same command goes on from the last checkpoint, bitwise.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ramp.config import Train
from ramp.reporting.metrics import MetricWriter
from ramp.text.rows import Batches
from ramp.train.checkpoint import Checkpoints
from ramp.train.mesh import shard_batch
from ramp.train.preemption import Preempted, Preemption
from ramp.train.state import State


class Diverged(Exception):
    """The guard refused so many steps in a row that training cannot go on. The last checkpoint is good."""


KINDS = ("init", "data", "compile", "step", "eval", "save", "lost", "other")


class Clock:
    """Seconds of a stage by kind, its earlier starts included. `lost`: what a killed start did after its last save, up to
    its last logged step; `other`: what belongs to no kind. The time between two starts is nobody's."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS[:-1], 0.0)
        self._began = time.perf_counter()

    def add(self, saved: dict[str, float], logged: dict[str, float]) -> None:
        """Earlier starts: their split when they saved, and as last logged, which a killed one did later than it saved."""
        lost = max(0.0, sum(logged.values()) - sum(saved.values()))
        self._began -= sum(saved.values()) + lost
        for kind in self.seconds:
            self.seconds[kind] += saved.get(kind, 0.0)
        self.seconds["lost"] += lost

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    @property
    def total(self) -> float:
        return time.perf_counter() - self._began

    def split(self) -> dict[str, float]:
        return {**self.seconds, "other": max(0.0, self.total - sum(self.seconds.values()))}

    @property
    def goodput(self) -> float:
        """The share of the time that went into steps which count."""
        return self.seconds["step"] / max(self.total, 1e-9)


@dataclass(frozen=True)
class MetricReader:
    """Brings the metrics of a finished step to the host, logs them when due, stops a run that no longer learns."""

    t: Train
    first: int  # the step this process began at
    busy_before: float  # seconds of data and step that earlier starts had spent
    board: MetricWriter
    checkpoints: Checkpoints
    clock: Clock
    show: Callable[[int, float, float], None]

    def read(self, done: int, metrics: dict) -> None:
        """metrics: of step `done` - 1, still on the device. Waits for them."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        tokens = self.t.batch_size * self.t.seq_len
        busy = self.clock.seconds["step"] + self.clock.seconds["data"] - self.busy_before
        speed = (done - self.first - 1) * tokens / max(busy, 1e-9)
        self.show(done, values["train/loss"], speed)
        stuck = values["guard/streak"] >= self.t.max_skipped_steps
        if done % self.t.log_every == 0 or done in (1, self.t.steps) or stuck:
            values |= {"train/tokens": float(done * tokens), "time/tokens_per_s": speed}
            values["time/goodput"] = self.clock.goodput
            self.board.scalars(
                done, values | {f"time/{kind}": s for kind, s in self.clock.split().items()}
            )
            self.checkpoints.check()
        if not math.isfinite(values["train/update_norm"]):
            # Loss and gradient were good and the state is not any more: it is never saved.
            self.checkpoints.wait()
            raise Diverged(
                f"the update of step {done} is not finite although its gradient is; "
                "the last checkpoint is good. Look at the optimizer's settings"
            )
        if stuck:
            self.checkpoints.wait()
            raise Diverged(
                f"{int(values['guard/streak'])} steps in a row, up to step {done}, had a non-finite or outlying loss or "
                f"gradient (loss {values['train/loss']:g}, gradient norm {values['train/grad_norm']:g}); none of them "
                "changed anything. Lower the rates (lr_scale) or look at the data; the last checkpoint is good"
            )


def train_loop(
    state: State,
    step_fn: Callable,
    batches: Batches,
    t: Train,
    *,
    mesh: jax.sharding.Mesh,
    board: MetricWriter,
    checkpoints: Checkpoints,
    meta: dict,
    evaluate: Callable[[State, Preemption], dict[str, float]],
    score: str,
    clock: Clock,
    stop: Preemption,
    label: str,
) -> State:
    """Train from `state.step` to `t.steps`; `evaluate(state, stop)` gives figures by tag, the best checkpoint is the one
    with the lowest figure `score`. Raises `Diverged` or `Preempted`, with the state saved. An evaluation that a stop cuts
    short, by raising `Preempted` or giving no figures, is made up for at the next start."""
    first = int(state.step)
    pending: dict | None = None

    def due(done: int) -> bool:
        return done % t.eval_every == 0 or done == t.steps

    def judge(done: int) -> float | None:
        figures: dict[str, float] = {}
        with clock("eval"), suppress(Preempted):
            figures = evaluate(state, stop)
        if figures:
            board.scalars(done, figures)
        return figures.get(score)

    def leave_at(done: int) -> None:
        checkpoints.wait()
        raise Preempted(
            f"{label} stopped at step {done} of {t.steps} and is saved; the same command goes on"
        )

    with stop, show_progress(label, first, t.steps) as show:
        if first and due(first) and not checkpoints.scored(first):
            checkpoints.rescore(first, judge(first))
            if stop.requested(first):
                leave_at(first)
        busy = clock.seconds["step"] + clock.seconds["data"]
        meter = MetricReader(t, first, busy, board, checkpoints, clock, show)
        for step in range(first, t.steps):
            done = step + 1
            with clock("data"):
                batch = shard_batch(mesh, partial(batches, step), t.batch_size)
            with clock("compile" if step == first else "step"):
                state, metrics = step_fn(state, batch)
                if step == first:
                    jax.block_until_ready(metrics)
            with clock("step"):
                if pending is not None:
                    meter.read(step, pending)
                pending = metrics
            leave = stop.requested(done)
            saves = done % t.save_every == 0 or done == t.steps or leave
            if not (due(done) or saves):
                continue
            with clock("step"):  # never evaluate or save what the guard has not passed
                meter.read(done, pending)
                pending = None
            figure = None
            if due(done) and not leave:
                figure = judge(done)
                leave = stop.requested(done)
            if saves or leave:
                with clock("save"):
                    checkpoints.save(done, state, meta | {"clock": clock.split()}, figure)
            if leave:
                leave_at(done)
        with clock("save"):
            checkpoints.wait()
    return state


@contextmanager
def show_progress(
    label: str, first: int, steps: int
) -> Iterator[Callable[[int, float, float], None]]:
    """show(step, loss, tokens/s): a bar on a terminal, a line now and then elsewhere, nothing on other processes."""
    if jax.process_index() != 0:
        yield lambda step, loss, speed: None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=steps, completed=first, note="compiling")
            yield lambda step, loss, speed: bar.update(
                task, completed=step, note=f"{step}/{steps}  loss {loss:.3f}  {speed:,.0f} tokens/s"
            )
    else:
        began = last = time.perf_counter()

        def line(step: int, loss: float, speed: float) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last < 15 and step != steps:
                return
            last = now
            left = (now - began) / max(step - first, 1) * (steps - step)
            note = f"loss {loss:.3f}  {speed:,.0f} tokens/s  {left:.0f} s left"
            print(f"{label}  step {step}/{steps}  {note}", file=sys.stderr, flush=True)

        yield line
