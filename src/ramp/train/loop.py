"""The host's side of training: feed batches, read metrics one step late, evaluate, save, stop when asked.

The device never waits for the host: step k+1 is dispatched before the metrics of step k are fetched. Nothing here is
part of the state: kill this process at any moment and the same command goes on from the last checkpoint, bitwise.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ramp.config import Train
from ramp.text.rows import Batches
from ramp.train.board import Board
from ramp.train.checkpoint import Checkpoints
from ramp.train.mesh import put_batch
from ramp.train.preemption import Preemption
from ramp.train.state import State


class Diverged(Exception):
    """The guard refused so many steps in a row that training cannot go on. The last checkpoint is good."""


class Preempted(Exception):
    """Asked to stop; the state is saved."""


class Clock:
    """Seconds spent by kind, those of earlier starts of the stage included; what belongs to no kind is `other`."""

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.seconds = dict.fromkeys(("data", "compile", "step", "eval", "save", "other"), 0.0) | (before or {})
        self._began = time.perf_counter() - sum(self.seconds.values())
        del self.seconds["other"]

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


@dataclass(frozen=True)
class Meter:
    """Brings the metrics of a finished step to the host, logs them when due, stops a run that no longer learns."""

    t: Train
    first: int  # the step this process began at
    busy_before: float  # seconds of data and step that earlier starts had spent
    board: Board
    checkpoints: Checkpoints
    clock: Clock
    show: Callable[[int, float, float], None]

    def read(self, done: int, metrics: dict) -> None:
        """metrics: of step `done` - 1, still on the device. Waits for them."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        tokens = self.t.batch * self.t.seq
        busy = self.clock.seconds["step"] + self.clock.seconds["data"] - self.busy_before
        speed = (done - self.first - 1) * tokens / max(busy, 1e-9)
        self.show(done, values["train/loss"], speed)
        stuck = values["guard/streak"] >= self.t.guard_limit
        if done % self.t.log_every == 0 or done in (1, self.t.steps) or stuck:
            values |= {"train/tokens": float(done * tokens), "time/tokens_per_s": speed}
            self.board.scalars(done, values | {f"time/{kind}": s for kind, s in self.clock.split().items()})
            self.checkpoints.check()
        if stuck:
            raise Diverged(
                f"{int(values['guard/streak'])} steps in a row, up to step {done}, had a non-finite or outlying loss or "
                f"gradient (loss {values['train/loss']:g}, gradient norm {values['train/grad_norm']:g}); none of them "
                "changed anything. Lower the rates (lr_scale) or look at the data; the last checkpoint is good"
            )


def fit(
    state: State,
    step_fn: Callable,
    batches: Batches,
    t: Train,
    *,
    mesh: jax.sharding.Mesh,
    board: Board,
    checkpoints: Checkpoints,
    meta: dict,
    evaluate: Callable[[State, Preemption], dict[str, float]],
    score: str,
    clock: Clock,
    label: str,
) -> State:
    """Train from `state.step` to `t.steps`; `evaluate(state, stop)` gives figures by tag, the best checkpoint is the one
    with the lowest figure `score`. Raises `Diverged` or `Preempted`, with the state saved."""
    first = int(state.step)
    pending: dict | None = None
    with Preemption() as stop, progress(label, first, t.steps) as show:
        busy = clock.seconds["step"] + clock.seconds["data"]
        meter = Meter(t, first, busy, board, checkpoints, clock, show)
        for step in range(first, t.steps):
            done = step + 1
            with clock("data"):
                batch = put_batch(mesh, partial(batches, step), t.batch)
            with clock("compile" if step == first else "step"):
                state, metrics = step_fn(state, batch)
                if step == first:
                    jax.block_until_ready(metrics)
            with clock("step"):
                if pending is not None:
                    meter.read(step, pending)
                pending = metrics
            leave = stop.requested(done)
            evaluates = done % t.eval_every == 0 or done == t.steps
            saves = done % t.save_every == 0 or done == t.steps or leave
            if not (evaluates or saves):
                continue
            with clock("step"):  # never evaluate or save what the guard has not passed
                meter.read(done, pending)
                pending = None
            figures: dict[str, float] = {}
            if evaluates and not leave:
                with clock("eval"):
                    figures = evaluate(state, stop)
                board.scalars(done, figures)
                leave = stop.requested(done)
            if saves or leave:
                with clock("save"):
                    checkpoints.save(done, state, meta | {"clock": clock.split()}, figures.get(score))
            if leave and done < t.steps:
                checkpoints.wait()
                raise Preempted(f"{label} stopped at step {done} of {t.steps} and is saved; the same command goes on")
        with clock("save"):
            checkpoints.wait()
    return state


@contextmanager
def progress(label: str, first: int, steps: int) -> Iterator[Callable[[int, float, float], None]]:
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
