"""The one training loop: feed batches, read metrics one step late, evaluate, save, stop when asked.

`Trainer` is what a stage of training is; its `train` starts or resumes it and reports. `train_loop`
is the host's side of it. The device never waits for the host: step k+1 is dispatched before the
metrics of step k are fetched. Nothing of the loop is part of the state: kill the process at any
moment and the same command goes on from the last checkpoint, bitwise.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Train
from ramp.errors import UserError
from ramp.files import quote_path
from ramp.model.loss import next_token_loss
from ramp.reporting.metrics import MetricWriter, drop_evaluation, read_last_values
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.checkpoint import Checkpoints
from ramp.train.clock import KINDS, Clock
from ramp.train.divergence import (
    Diverged,
    Divergence,
    describe_remedy,
    forget_losses,
    judge_metrics,
    judge_state,
    note_recovery,
    slow_down,
)
from ramp.train.guard import MAX_RECOVERIES, find_trusted, init_guard
from ramp.train.mesh import ROWS, compiler_options, shard_batch
from ramp.train.preemption import Preempted, Preemption
from ramp.train.processes import is_writer
from ramp.train.profile import Profile
from ramp.train.progress import Show, show_progress
from ramp.train.restore import (
    init_template,
    make_meta,
    require_same_identity,
    require_same_inputs,
)
from ramp.train.state import State, abstract_state, eval_params, init_state
from ramp.train.step import Batch, Loss, Metrics, Step, make_step
from ramp.train.watchdog import watch

MakeRows = Callable[[int, int, int], dict[str, np.ndarray]]  # (step, lo, hi), see `text.rows`
Evaluate = Callable[[dict, int, MetricWriter, Preemption], dict[str, float]]


@dataclass(frozen=True)
class TrainReport:
    """What became of a stage, all its starts together."""

    seconds: float
    time: dict[str, float]
    """seconds by kind, see `clock.KINDS`"""
    steps: int
    tokens: int
    skipped_steps: int
    recoveries: int
    """how often the stage went back and on at a lower rate; see `train.on_divergence`"""
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
    chance: float | None = None
    """the loss of a model that knows nothing, by which divergence is told"""
    updates: int = 1
    """that `wrap_step` makes of a step; the schedule counts them"""
    score_start: bool = False
    """evaluate and save step 0 too: where nothing better comes, the start is the best checkpoint"""

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
        checkpoints = Checkpoints(
            rundir.checkpoints(self.name),
            keep=self.c.checkpoint.max_to_keep,
            remedy=f"{rundir.redo(self.name)} trains from the beginning",
            base=rundir.find_base(self.name),
        )
        with closing(checkpoints):
            with clock("init"):
                state, saved_time = self.restore(rundir, checkpoints, start)
            if is_writer():
                first = int(state.step)
                is_own = first not in (0, self.t.steps, rundir.find_base(self.name))
                if is_own:
                    print(f"{self.name}: goes on from step {first}")
                logged = read_last_values(rundir.path / "metrics.jsonl", self.name, "time/")
                clock.add(saved_time, {kind: logged[kind] for kind in KINDS if kind in logged})
            attempt = Attempt(self, rundir, checkpoints, evaluate, score, clock, stop)
            while True:
                recoveries, offset = (
                    int(getattr(state.guard, key)) for key in ("recoveries", "offset")
                )
                try:
                    state = attempt.train(state)
                    break
                except Divergence as error:
                    # Without its traceback, which would keep the ruined state in memory.
                    problem = error.with_traceback(None)
                good = checkpoints.put_aside_after(problem.trusted, problem.calm)
                can_recover = self.t.on_divergence == "recover" and recoveries < MAX_RECOVERIES
                if not can_recover:
                    remedy = describe_remedy(self.name, self.t, rundir.path, good)
                    raise Diverged(f"{self.name}: {problem}; {remedy}")
                # Nothing of this is written: a killed run diverges again and decides the same.
                state, _ = self.restore(rundir, checkpoints, start)
                passed_over = problem.done + offset - int(state.step)
                state = note_recovery(state, recoveries + 1, passed_over)
                attempt.say_recovered(state, problem)

            report = TrainReport(
                seconds=clock.total,
                time=clock.split(),
                steps=self.t.steps,
                tokens=self.t.steps * self.t.batch_size * self.t.seq_len,
                skipped_steps=int(state.guard.skipped + state.guard.refused),
                recoveries=int(state.guard.recoveries),
                best_step=checkpoints.best_step(),
            )
        return state, report

    def make_meta(self) -> dict[str, Any]:
        """Return what is saved with every checkpoint."""
        return make_meta(self.name, self.c, self.tokenizer, self.data)

    def require_same(self, rundir: RunDir, saved: dict, now: dict, step: int) -> None:
        """Raise `UserError` unless a checkpoint may be gone on from with what there is now."""
        where = rundir.checkpoints(self.name) / str(step)
        require_same_identity(saved, now, where, rundir.redo(self.name))
        # What another run brought here goes on with what `--from` was given.
        if step != rundir.find_base(self.name):
            remedy = f"ramp {self.name} --from {quote_path(rundir.path)} --run NEW"
            require_same_inputs(saved, now, where, remedy, rundir.redo(self.name))

    def restore(
        self, rundir: RunDir, checkpoints: Checkpoints, start: Callable[[], dict]
    ) -> tuple[State, dict[str, float]]:
        """Return the newest state, or the one to begin with, and the seconds it has cost so far."""
        mesh = jax.sharding.get_mesh()
        like = abstract_state(lambda: self.init_state(init_template(self.c.model)), mesh)
        # A checkpoint of before the guard had all its figures opens too.
        try:
            found = checkpoints.restore(like, defaults={"guard": init_guard()})
        except UserError as error:
            if rundir.find_base(self.name) is None:
                raise
            # Another optimizer, or another head: its state is of no use here.
            raise UserError(
                f"{error}; with --from-weights and another --run its weights are taken alone"
            ) from None
        if found is None:
            return jax.jit(self.init_state, donate_argnums=0)(start()), {}
        state, saved, step = found
        self.require_same(rundir, saved, self.make_meta(), step)
        if step == rundir.find_base(self.name):
            # On other data another loss is usual.
            if saved.get("data") != self.data:
                state = forget_losses(state)
            # The rates are those of the new run, whatever became of the old one's.
            state = note_recovery(state, 0, int(state.guard.offset))
        return state, saved["clock"]

    def init_state(self, params: dict) -> State:
        """Return the state that the stage begins with, from the parameters it starts from."""
        # A copy: the state is donated from step to step, and the reference must outlive it.
        ref = jax.tree.map(lambda w: w + 0, params) if self.keep_ref else None
        tx = optim.make_optimizer(self.t, self.c.model.dtype)
        params = self.add_params(params)
        return init_state(params, tx, self.c.seed, average=self.t.ema_decay > 0, ref=ref)


@dataclass(frozen=True)
class Attempt:
    """What the attempts to train a stage have in common: the first, and one after each recovery."""

    trainer: Trainer
    rundir: RunDir
    checkpoints: Checkpoints
    evaluate: Evaluate
    score: str
    clock: Clock
    stop: Preemption

    def open_writer(self, state: State) -> MetricWriter:
        """Return a writer that has dropped what was logged after the step of this state."""
        first = int(state.step)
        # Logged and not saved as the step's score, it is made up for.
        if is_writer() and first and not self.checkpoints.scored(first):
            drop_evaluation(self.rundir.path, self.trainer.name, first)
        first_line = first + 1 if first else 0
        return MetricWriter(self.rundir.path, self.trainer.name, first_line, is_writer())

    def train(self, state: State) -> State:
        """Train from this state to the last step. Raises `Divergence`."""
        trainer = self.trainer
        c, t = trainer.c, trainer.t
        with self.open_writer(state) as writer:
            last_values: dict[str, float] = {}

            def evaluate_state(state: State, stop: Preemption) -> dict[str, float]:
                params, step = eval_params(state), int(state.step)  # waits for the device
                log_weight_histograms(writer, step, params)
                values = self.evaluate(params, step, writer, stop)  # none, if it was cut short
                last_values.update(values)
                return values

            run = LoopRun(
                label=trainer.name,
                t=t,
                evaluate=evaluate_state,
                score=self.score,
                meta=trainer.make_meta(),
                writer=writer,
                checkpoints=self.checkpoints,
                clock=self.clock,
                stop=self.stop,
                score_start=trainer.score_start,
            )
            # Compiled anew after a recovery: the rates are constants of the step.
            slowed = slow_down(t, int(state.guard.recoveries))
            slowed = replace(
                slowed,
                steps=trainer.updates * t.steps,
                warmup_steps=trainer.updates * t.warmup_steps,
            )
            options = compiler_options(c.mesh)
            step = make_stage_step(trainer.loss, slowed, c.model.dtype, options, trainer.chance)
            state = train_loop(run, state, trainer.wrap_step(step), trainer.batches)
            hparams = {f"model.{key}": value for key, value in vars(c.model).items()}
            writer.hparams(vars(t) | hparams, last_values)
        return state

    def say_recovered(self, state: State, problem: Divergence) -> None:
        """Print and log what a recovery has decided."""
        first, recoveries = int(state.step), int(state.guard.recoveries)
        lr_scale = slow_down(self.trainer.t, recoveries).lr_scale
        text = (
            f"{problem}; recovery {recoveries} of at most {MAX_RECOVERIES}: back to step {first}, "
            f"past the batches up to that of step {problem.done}, on at lr_scale {lr_scale:g}"
        )
        with self.open_writer(state) as writer:
            # At the step that comes next: a run that is killed and decides it again says it once.
            writer.text(first + 1, "guard/recovery", text)
        if is_writer():
            print(f"{self.trainer.name}: {text}")


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
    score_start: bool = False
    """see `Trainer`"""

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

    def save(self, state: State, done: int, score: float | None, proven: int | None) -> None:
        """Start to save the state in the background. proven: see `Checkpoints.save`."""
        with self.clock("save"):
            # What led to a checkpoint is kept at least as long as it.
            self.writer.publish()
            meta = self.meta | {"clock": self.clock.split()}
            extra = not self.must_save(done)
            self.checkpoints.save(done, state, meta, score, extra, proven)

    def leave(self, done: int) -> None:
        """Wait for the checkpoint and raise `Preempted`."""
        self.checkpoints.wait()
        raise Preempted(
            f"{self.label} stopped at step {done} of {self.t.steps} and is saved; "
            "the same command goes on"
        )


def train_loop(run: LoopRun, state: State, step: Step, batches: MakeRows) -> State:
    """Train from `state.step` to the last step and return the final state, saved.

    Raises `Divergence`, or `Preempted` with the state saved.
    """
    t, clock, stop = run.t, run.clock, run.stop
    mesh = jax.sharding.get_mesh()
    first = int(state.step)
    offset = int(state.guard.offset)  # batches that a recovery passed over
    with (
        stop.together(),
        show_progress(run.label, first, t.steps) as show,
        ExitStack() as unsaved,
    ):
        # An evaluation that a stop cut short is made up for, before any step.
        must_score = run.must_evaluate(first) if first else run.score_start
        if must_score and run.checkpoints.steps() and not run.checkpoints.scored(first):
            run.checkpoints.rescore(first, run.evaluate_state(state, first))
            if stop.requested(first):
                run.leave(first)
        if run.score_start and not run.checkpoints.steps():
            score = run.evaluate_state(state, first)
            run.save(state, first, score, None)
            if stop.requested(first):
                run.leave(first)

        reader = MetricReader(run, show, first, clock.busy)
        profile = Profile(run.writer.folder, t.profile_steps)
        pending: Metrics | None = None  # of the step before, still on the device
        score = None  # of the step before, if it was evaluated
        proven: int | None = None  # the last step that was seen to be good
        for done in range(first + 1, t.steps + 1):
            with clock("data"):
                batch = shard_batch(mesh, partial(batches, done - 1 + offset), t.batch_size)
            if done == first + 1:
                with clock("compile"):
                    state, metrics = step(state, batch)
                    # Wait, so that the time of compiling is not counted as that of a step.
                    jax.block_until_ready(metrics)
                # From here on there are steps to save before leaving.
                unsaved.enter_context(stop)
                unsaved.enter_context(watch.switch(True))
                unsaved.callback(profile.end)
            else:
                profile.begin()
                try:
                    with clock("step"):
                        state, metrics = step(state, batch)
                except Preempted:
                    # A step that samples was cut short, and has left the state as it was.
                    if pending is not None:
                        proven = reader.judge(done - 1, pending, state)
                    run.save(state, done - 1, score, proven)
                    run.leave(done - 1)
            profile.count(metrics)
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
                proven = reader.judge(done, pending, state)
                pending = None
            if evaluating:
                score = run.evaluate_state(state, done)
                leaving = stop.requested(done)  # an evaluation may take minutes
            if leaving or run.must_save(done):
                run.save(state, done, score, proven)
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

    def read(self, done: int, metrics: Metrics) -> dict[str, float]:
        """Wait for the metrics of the last of `done` steps. Raises `Divergence`."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        t, clock = self.run.t, self.run.clock
        tokens = t.batch_size * t.seq_len
        # The first step of a process is compiling, not speed.
        speed = (done - self.first - 1) * tokens / max(clock.busy - self.busy_before, 1e-9)
        self.show(done, values["train/loss"], speed)
        try:
            judge_metrics(t, done, values)
        except Divergence:
            self.log(done, values, tokens, speed)
            raise
        if done % t.log_every == 0 or done in (1, t.steps):
            self.log(done, values, tokens, speed)
            # A save in the background that has failed ends the run here, not at the next save.
            self.run.checkpoints.check()
        return values

    def judge(self, done: int, metrics: Metrics, state: State) -> int:
        """`read`, and judge the whole state after `done` steps; return the last trusted step."""
        values = self.read(done, metrics)
        streak, calm = int(values["guard/streak"]), int(values["guard/calm"])
        judge_state(state, done, calm)
        return find_trusted(done, streak, calm)

    def log(self, done: int, values: dict[str, float], tokens: int, speed: float) -> None:
        """Write a line of metrics. tokens: of a step; speed: tokens a second."""
        clock = self.run.clock
        own = {
            "train/tokens": float(done * tokens),
            "time/tokens_per_s": speed,
            "time/goodput": clock.goodput,
        }
        seconds = {f"time/{kind}": spent for kind, spent in clock.split().items()}
        self.run.writer.scalars(done, values | own | seconds)


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
    loss: Loss,
    t: Train,
    dtype: str,
    compiler_options: dict[str, str | bool] | None = None,
    chance: float | None = None,
) -> Step:
    """Return the step of a stage: a loss with the optimizer and schedule of its settings."""
    tx = optim.make_optimizer(t, dtype)
    return make_step(loss, tx, t, optim.make_schedule(t), compiler_options, chance)


def lower_train_step(
    c: Config,
    t: Train,
    mesh: jax.sharding.Mesh,
    loss: Loss | None = None,
    add_params: Callable[[dict], dict] = lambda params: params,
    keep_ref: bool = False,
    example: dict[str, Any] | None = None,
) -> Any:
    """Lower a stage's step for abstract arrays: a plan makes none.

    loss: that of the next token by default. add_params, keep_ref: as in `Trainer`. example: a batch
    of the loss, of which only shapes and types count; by default one of the next-token loss.
    """
    if example is None:
        shape = (t.batch_size, t.seq_len)
        names = ["tokens", "targets"] + ["segments"] * c.text.mask_documents
        example = dict.fromkeys(names, jax.ShapeDtypeStruct(shape, jnp.int32))
        example |= {"weights": jax.ShapeDtypeStruct(shape, jnp.float32)}
    place = partial(jax.ShapeDtypeStruct, sharding=jax.NamedSharding(mesh, P(ROWS)))
    batch = {name: place(a.shape, a.dtype) for name, a in example.items()}

    # No seed and no data: a plan is about shapes, shardings and memory.
    def make_state() -> State:
        template = init_template(c.model)
        tx = optim.make_optimizer(t, c.model.dtype)
        ref = template if keep_ref else None
        return init_state(add_params(template), tx, 0, average=t.ema_decay > 0, ref=ref)

    # A jitted function: it can be lowered.
    step: Any = make_stage_step(loss or next_token_loss(c.model, t.z_loss), t, c.model.dtype)
    return step.lower(abstract_state(make_state, mesh), batch)
