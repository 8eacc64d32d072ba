"""The one training loop: feed batches, read metrics one step late, evaluate, save, stop when asked.

`Trainer` is what a stage of training is; its `train` starts or resumes it and reports. `train_loop`
is the host's side of it. The device never waits for the host: step k+1 is dispatched before the
metrics of step k are fetched. Nothing of the loop is part of the state: kill the process at any
moment and the same command goes on from the last checkpoint, bitwise.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Train
from ramp.model.loss import next_token_loss
from ramp.reporting.metrics import MetricWriter, read_last_values
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.checkpoint import Checkpoints
from ramp.train.clock import KINDS, Clock
from ramp.train.mesh import ROWS, compiler_options, shard_batch
from ramp.train.preemption import Preempted, Preemption
from ramp.train.progress import Show, show_progress
from ramp.train.restore import (
    init_template,
    make_meta,
    require_same_identity,
    require_same_inputs,
)
from ramp.train.state import State, abstract_state, eval_params, init_state
from ramp.train.step import Batch, Loss, Metrics, Step, make_step

MakeRows = Callable[[int, int, int], dict[str, np.ndarray]]  # (step, lo, hi), see `text.rows`
Evaluate = Callable[[dict, int, MetricWriter, Preemption], dict[str, float]]


class Diverged(Exception):
    """Training cannot go on: the state or every new gradient is bad.

    The last checkpoint is good.
    """


@dataclass(frozen=True)
class TrainReport:
    """What became of a stage, all its starts together."""

    seconds: float
    time: dict[str, float]
    """seconds by kind, see `clock.KINDS`"""
    steps: int
    tokens: int
    skipped_steps: int
    best_step: int | None
    """the checkpoint with the lowest score; None if nothing was evaluated"""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as it is written to report.json."""
        return asdict(self)


@dataclass(frozen=True)
class Trainer:
    """One stage of training: its name, settings, loss and rows."""

    name: str
    c: Config
    t: Train
    loss: Loss
    batches: MakeRows
    tokenizer: Tokenizer
    wrap_step: Callable[[Step], Step] = lambda step: step
    """adds to a step what is done around it, such as sampling the batch from the state"""
    keep_ref: bool = False
    """keep the starting parameters in `State.ref`, frozen"""
    add_params: Callable[[dict], dict] = lambda params: params
    """adds parameters to those that the stage starts from, such as a head"""
    data: str = ""
    """a hash of what it trains on; empty: that follows from the settings alone"""

    def train(
        self,
        rundir: RunDir,
        start: Callable[[], dict],
        evaluate: Evaluate,
        score: str,
        stop: Preemption,
    ) -> tuple[State, TrainReport]:
        """Train to the last step and return the state and a report.

        Goes on from the stage's newest checkpoint, or from the parameters that `start()` makes.
        `evaluate(params, step, writer, stop)` returns values by tag and may draw with the writer;
        the best checkpoint is the one with the lowest value of the tag `score`.
        """
        clock = Clock()
        mesh = jax.sharding.get_mesh()
        on_first_process = jax.process_index() == 0
        meta = make_meta(self.name, self.c, self.tokenizer, self.data)
        checkpoints = Checkpoints(
            rundir.checkpoints(self.name),
            keep=self.c.checkpoint.max_to_keep,
            remedy=f"{rundir.redo(self.name)} trains from the beginning",
        )
        with closing(checkpoints):
            # Restore, or start.
            saved_time: dict[str, float] = {}
            with clock("init"):
                like = abstract_state(lambda: self.init_state(init_template(self.c.model)), mesh)
                restored = checkpoints.restore(like)
                if restored is None:
                    state = jax.jit(self.init_state, donate_argnums=0)(start())
                else:
                    state, saved, step = restored
                    self.require_same(rundir, saved, meta, step)
                    saved_time = saved["clock"]
            # `state.step` is the whole position: in the data, the schedule and the logs.
            first = int(state.step)
            if on_first_process:
                logged = read_last_values(rundir.path / "metrics.jsonl", self.name, "time/")
                clock.add(saved_time, {kind: logged[kind] for kind in KINDS if kind in logged})

            # Train.
            # The writer drops what a killed start had logged after this checkpoint.
            first_line = first + 1 if first else 0
            with MetricWriter(rundir.path, self.name, first_line, on_first_process) as writer:
                last_values: dict[str, float] = {}

                def evaluate_state(state: State, stop: Preemption) -> dict[str, float]:
                    params, step = eval_params(state), int(state.step)  # waits for the device
                    log_weight_histograms(writer, step, params)
                    values = evaluate(params, step, writer, stop)  # none, if it was cut short
                    last_values.update(values)
                    return values

                run = LoopRun(
                    label=self.name,
                    t=self.t,
                    evaluate=evaluate_state,
                    score=score,
                    meta=meta,
                    writer=writer,
                    checkpoints=checkpoints,
                    clock=clock,
                    stop=stop,
                )
                options = compiler_options(self.c.mesh)
                step = make_stage_step(self.loss, self.t, self.c.model.dtype, options)
                state = train_loop(run, state, self.wrap_step(step), self.batches)
                hparams = {f"model.{key}": value for key, value in vars(self.c.model).items()}
                writer.hparams(vars(self.t) | hparams, last_values)

            # Report.
            report = TrainReport(
                seconds=clock.total,
                time=clock.split(),
                steps=self.t.steps,
                tokens=self.t.steps * self.t.batch_size * self.t.seq_len,
                skipped_steps=int(state.guard["skipped"]),
                best_step=checkpoints.best_step(),
            )
        return state, report

    def require_same(self, rundir: RunDir, saved: dict, now: dict, step: int) -> None:
        """Raise `UserError` unless a checkpoint may be gone on from with what there is now."""
        where = rundir.checkpoints(self.name) / str(step)
        require_same_identity(saved, now, where, rundir.redo(self.name))
        origin = rundir.origin()
        # What another run brought here goes on with what `--from` was given.
        if not (origin and origin.whole_state and (origin.stage, origin.step) == (self.name, step)):
            remedy = f"ramp {self.name} --from {rundir.path} --run NEW"
            require_same_inputs(saved, now, where, remedy)

    def init_state(self, params: dict) -> State:
        """Return the state that the stage begins with, from the parameters it starts from."""
        # A copy: the state is donated from step to step, and the reference must outlive it.
        ref = jax.tree.map(lambda w: w + 0, params) if self.keep_ref else None
        tx = optim.make_optimizer(self.t, self.c.model.dtype)
        params = self.add_params(params)
        return init_state(params, tx, self.c.seed, average=self.t.ema_decay > 0, ref=ref)


# ----------------------------------------------------------------------------------------- the loop
@dataclass(frozen=True)
class LoopRun:
    """What the host has at hand while it trains one stage."""

    label: str
    t: Train
    evaluate: Callable[[State, Preemption], dict[str, float]]
    """returns values by tag; raises `Preempted` or returns none when it is asked to stop"""
    score: str
    meta: dict[str, Any]
    writer: MetricWriter
    checkpoints: Checkpoints
    clock: Clock
    stop: Preemption

    def must_evaluate(self, done: int) -> bool:
        """Whether an evaluation is due after `done` steps."""
        return done % self.t.eval_every == 0 or done == self.t.steps

    def must_save(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps."""
        return done % self.t.save_every == 0 or done == self.t.steps

    def evaluate_state(self, state: State, done: int) -> float | None:
        """Evaluate and log; return the score, None if a stop cut the evaluation short."""
        values: dict[str, float] = {}
        with self.clock("eval"), suppress(Preempted):
            values = self.evaluate(state, self.stop)
        if values:
            self.writer.scalars(done, values)
        return values.get(self.score)

    def save(self, state: State, done: int, score: float | None) -> None:
        """Start to save the state in the background."""
        with self.clock("save"):
            meta = self.meta | {"clock": self.clock.split()}
            extra = not self.must_save(done)
            self.checkpoints.save(done, state, meta, score, extra)

    def leave(self, done: int) -> None:
        """Wait for the checkpoint and raise `Preempted`."""
        self.checkpoints.wait()
        raise Preempted(
            f"{self.label} stopped at step {done} of {self.t.steps} and is saved; "
            "the same command goes on"
        )


def train_loop(run: LoopRun, state: State, step: Step, batches: MakeRows) -> State:
    """Train from `state.step` to the last step and return the final state, saved.

    Raises `Diverged`, or `Preempted` with the state saved.
    """
    t, clock, stop = run.t, run.clock, run.stop
    mesh = jax.sharding.get_mesh()
    first = int(state.step)
    with (
        stop.together(),
        show_progress(run.label, first, t.steps) as show,
        ExitStack() as unsaved,
    ):
        # An evaluation that a stop cut short is made up for, before any step.
        if first and run.must_evaluate(first) and not run.checkpoints.scored(first):
            run.checkpoints.rescore(first, run.evaluate_state(state, first))
            if stop.requested(first):
                run.leave(first)

        reader = MetricReader(run, show, first, clock.busy)
        pending: Metrics | None = None  # of the step before, still on the device
        score = None  # of the step before, if it was evaluated
        for done in range(first + 1, t.steps + 1):
            with clock("data"):
                batch = shard_batch(mesh, partial(batches, done - 1), t.batch_size)
            if done == first + 1:
                with clock("compile"):
                    state, metrics = step(state, batch)
                    # Wait, so that the time of compiling is not counted as that of a step.
                    jax.block_until_ready(metrics)
                # From here on there are steps to save before leaving.
                unsaved.enter_context(stop)
            else:
                try:
                    with clock("step"):
                        state, metrics = step(state, batch)
                except Preempted:
                    # A step that samples was cut short, and has left the state as it was.
                    if pending is not None:
                        reader.read(done - 1, pending)
                    run.save(state, done - 1, score)
                    run.leave(done - 1)
            score = None  # of this step
            # While the device is busy with this step, look at the one before.
            with clock("step"):
                if pending is not None:
                    reader.read(done - 1, pending)
                pending = metrics

            # Polled once a step in every process, so that all of them leave at the same step.
            leaving = stop.requested(done)
            evaluating = run.must_evaluate(done) and not leaving
            if not (evaluating or leaving or run.must_save(done)):
                continue
            # Never evaluate or save what the guard has not passed: wait for this step's metrics.
            with clock("step"):
                reader.read(done, pending)
                pending = None
            if evaluating:
                score = run.evaluate_state(state, done)
                leaving = stop.requested(done)  # an evaluation may take minutes
            if leaving or run.must_save(done):
                run.save(state, done, score)
            if leaving:
                run.leave(done)
        # The stage counts as done only when its last checkpoint is on the disk.
        with clock("save"):
            run.checkpoints.wait()
    return state


@dataclass(frozen=True)
class MetricReader:
    """Brings the metrics of a finished step to the host, logs them when due, ends what is lost."""

    run: LoopRun
    show: Show
    first: int
    """steps done when this process began"""
    busy_before: float
    """seconds of data and steps that earlier starts had spent"""

    def read(self, done: int, metrics: Metrics) -> None:
        """Wait for the metrics of the last of `done` steps. Raises `Diverged`."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        t, clock = self.run.t, self.run.clock
        tokens = t.batch_size * t.seq_len
        # The first step of a process is compiling, not speed.
        speed = (done - self.first - 1) * tokens / max(clock.busy - self.busy_before, 1e-9)
        self.show(done, values["train/loss"], speed)
        stuck = values["guard/streak"] >= t.max_skipped_steps
        if done % t.log_every == 0 or done in (1, t.steps) or stuck:
            values["train/tokens"] = float(done * tokens)
            values["time/tokens_per_s"] = speed
            values["time/goodput"] = clock.goodput
            seconds = {f"time/{kind}": spent for kind, spent in clock.split().items()}
            self.run.writer.scalars(done, values | seconds)
            # A save in the background that has failed ends the run here, not at the next save.
            self.run.checkpoints.check()
        # Loss and gradient were good and the state is not any more: it must never be saved.
        if not math.isfinite(values["train/update_norm"]):
            self.run.checkpoints.wait()
            raise Diverged(
                f"the update of step {done} is not finite although its gradient is; "
                "the last checkpoint is good. Look at the settings of the optimizer"
            )
        if stuck:
            self.run.checkpoints.wait()
            raise Diverged(
                f"{int(values['guard/streak'])} steps in a row, up to step {done}, had a "
                f"non-finite or outlying loss or gradient (loss {values['train/loss']:g}, gradient "
                f"norm {values['train/grad_norm']:g}); none of them changed anything. Lower the "
                "rates (lr_scale) or look at the data; the last checkpoint is good"
            )


def run_steps(step: Step, state: State, batches: Iterable[Batch]) -> tuple[State, list[Metrics]]:
    """Take one step a batch; return the state and the metrics of each step, still on the device.

    The bare loop, for experiments that log and save nothing.
    """
    history = []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(metrics)
    return state, history


def log_weight_histograms(writer: MetricWriter, step: int, params: dict) -> None:
    """Draw a histogram of every array that this process holds whole."""
    if not writer.enabled:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # Of a model split over processes none holds the arrays whole.
        if leaf.is_fully_addressable:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            writer.histogram(step, f"params/{name}", np.asarray(leaf))


# ----------------------------------------------------------------------------------------- the step
def make_stage_step(
    loss: Loss, t: Train, dtype: str, compiler_options: dict[str, str | bool] | None = None
) -> Step:
    """Return the step of a stage: a loss with the optimizer and schedule of its settings."""
    tx = optim.make_optimizer(t, dtype)
    return make_step(loss, tx, t, optim.make_schedule(t), compiler_options)


def lower_train_step(
    c: Config,
    t: Train,
    mesh: jax.sharding.Mesh,
    loss: Loss | None = None,
    add_params: Callable[[dict], dict] = lambda params: params,
    floats: tuple[str, ...] = ("weights",),
) -> Any:
    """Lower a stage's step for abstract arrays: a plan makes none.

    loss: that of the next token by default. add_params: as in `Trainer`. floats: what the loss
    reads in addition to tokens and targets, each [B, T] like them.
    """
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32} | dict.fromkeys(floats, jnp.float32)
    shape = (t.batch_size, t.seq_len)
    rows = jax.NamedSharding(mesh, P(ROWS))
    batch = {name: jax.ShapeDtypeStruct(shape, d, sharding=rows) for name, d in dtypes.items()}

    # No seed and no data: a plan is about shapes, shardings and memory.
    def make_state() -> State:
        params = add_params(init_template(c.model))
        tx = optim.make_optimizer(t, c.model.dtype)
        return init_state(params, tx, seed=0, average=t.ema_decay > 0)

    # A jitted function: it can be lowered.
    step: Any = make_stage_step(loss or next_token_loss(c.model, t.z_loss), t, c.model.dtype)
    return step.lower(abstract_state(make_state, mesh), batch)
