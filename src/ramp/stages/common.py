"""What training stages share: from a configuration and a loss to a trained, checkpointed, logged state."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Model, Train, fingerprint
from ramp.errors import UserError
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.board import Board, last_with
from ramp.train.checkpoint import Checkpoints
from ramp.train.loop import KINDS, Clock, fit
from ramp.train.mesh import ROWS, compiler_options
from ramp.train.preemption import Preemption
from ramp.train.state import State, abstract, averaged, new_state
from ramp.train.step import Loss, make_step


@dataclass(frozen=True)
class Stage:
    """One stage of training on one mesh: its name, its configuration, its loss and the rows it reads."""

    name: str
    c: Config
    t: Train
    loss: Loss
    batches: Callable[..., dict[str, np.ndarray]]  # (step, lo, hi), as `Batches`
    tokenizer: Tokenizer
    around: Callable[[Callable], Callable] = lambda update: update  # what a step does beside its update
    keep_ref: bool = False  # the starting parameters stay in the state, frozen
    grow: Callable[[dict], dict] = lambda params: params  # what is added to the parameters it starts from

    def train(
        self,
        rundir: RunDir,
        start: Callable[[], dict],
        evaluate: Callable[[dict, int, Board, Preemption], dict[str, float]],
        score: str,
        stop: Preemption,
    ) -> tuple[State, dict[str, Any]]:
        """Start from the parameters `start()` makes, or go on from the stage's last checkpoint; (state, report).

        `evaluate(params, step, board, stop)` returns figures by tag and may draw on the board.
        """
        clock = Clock()
        t, mesh = self.t, jax.sharding.get_mesh()
        tx = optim.make(t, self.c.model.dtype)
        meta = self.meta()
        checkpoints = Checkpoints(rundir.checkpoints(self.name), keep=self.c.checkpoint.keep)
        spent: dict[str, float] = {}
        with clock("init"):
            found = checkpoints.restore(template(self.c.model, t, mesh, self.keep_ref, self.grow))
            if found is None:
                make = partial(first_state, t=t, tx=tx, seed=self.c.seed, keep_ref=self.keep_ref, grow=self.grow)
                state = jax.jit(make, donate_argnums=0)(start())
            else:
                state, saved, step = found
                require_same(saved, meta, checkpoints.directory / str(step))
                spent = saved["clock"]
        if jax.process_index() == 0:
            logged = last_with(rundir.path / "metrics.jsonl", self.name, "time/")
            clock.add(spent, {kind: seconds for kind, seconds in logged.items() if kind in KINDS})
        first, last = int(state.step), {}
        board = Board(rundir.path, self.name, first + 1 if first else 0, jax.process_index() == 0)

        def figures(state: State, stop: Preemption) -> dict[str, float]:
            params, step = averaged(state), int(state.step)
            draw_weights(board, step, params)
            found = evaluate(params, step, board, stop)  # nothing, if it was cut short
            last.update(found)
            return found

        with board, closing(checkpoints):
            state = fit(
                state,
                self.around(make_step(self.loss, tx, t, compiler_options(self.c.mesh))),
                self.batches,
                t,
                mesh=mesh,
                board=board,
                checkpoints=checkpoints,
                meta=meta,
                evaluate=figures,
                score=score,
                clock=clock,
                stop=stop,
                label=self.name,
            )
            board.hparams(vars(t) | {f"model.{k}": v for k, v in vars(self.c.model).items()}, last)
        report = {
            "seconds": clock.total,
            "time": clock.split(),
            "steps": t.steps,
            "tokens": t.steps * t.batch * t.seq,
            "skipped_steps": int(state.guard["skipped"]),
            "best_step": checkpoints.best_step(),
        }
        return state, report

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from."""
        return {
            "stage": self.name,
            "model": fingerprint(shape_of(self.c.model)),
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.c.seed,
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        }


def draw_weights(board: Board, step: int, params: dict) -> None:
    """A histogram of every array that this process holds whole."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if board.enabled and leaf.is_fully_addressable:
            board.histogram(step, "params/" + jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))


LATER = ("norm_eps", "mix", "rope", "norm", "residual")  # keys younger than some checkpoints: at their default, unsaid


def shape_of(m: Model) -> dict[str, Any]:
    """The keys of a model that its parameters depend on; the rest only says how it is computed. A key that is younger
    than some checkpoints counts where it is not what was built in before."""
    free = {"dtype", "attention", "remat", "unroll", "loss_chunk"}
    free |= {name for name in LATER if getattr(m, name) == getattr(Model(), name)}
    return {k: v for k, v in vars(m).items() if k not in free}


def require_same(saved: dict, now: dict, where: Any) -> None:
    for name in ("model", "tokenizer"):
        if saved[name] != now[name]:
            raise UserError(
                f"{where} was saved with another {name}; name another directory with --run, or delete this run"
            )


def first_state(
    params: dict, t: Train, tx: Any, seed: int, keep_ref: bool = False, grow: Callable = lambda params: params
) -> State:
    ref = jax.tree.map(lambda w: w + 0, params) if keep_ref else None
    return new_state(grow(params), tx, seed, t.ema > 0, ref)


def template(
    m: Model, t: Train, mesh: jax.sharding.Mesh, keep_ref: bool = False, grow: Callable = lambda params: params
) -> State:
    """Shapes and shardings of a stage's state."""
    tx = optim.make(t, m.dtype)
    return abstract(
        lambda: first_state({"lm": transformer.init(m, jax.random.PRNGKey(0))}, t, tx, 0, keep_ref, grow), mesh
    )


def lowered(c: Config, t: Train, mesh: jax.sharding.Mesh) -> Any:
    """The training step of a stage on the next-token loss, lowered for abstract arrays: for plans, nothing is made."""
    step = make_step(next_token_loss(c.model, t.z_loss), optim.make(t, c.model.dtype), t)
    return step.lower(template(c.model, t, mesh), abstract_rows(t, mesh))


def abstract_rows(t: Train, mesh: jax.sharding.Mesh, floats: tuple[str, ...] = ("weights",)) -> dict[str, Any]:
    """Shapes and shardings of a stage's batch: tokens and targets, and what else its loss reads, each [B, T]."""
    kinds = {"tokens": jnp.int32, "targets": jnp.int32} | dict.fromkeys(floats, jnp.float32)
    place = jax.NamedSharding(mesh, P(ROWS))
    return {name: jax.ShapeDtypeStruct((t.batch, t.seq), kind, sharding=place) for name, kind in kinds.items()}


def load_params(rundir: RunDir, stage: str, c: Config, tokenizer: Tokenizer | None = None) -> dict:
    """The best parameters {"lm": ...} of a finished or unfinished stage, on the current mesh."""
    directory = rundir.checkpoints(stage)
    average = getattr(c, stage.partition("-")[0]).ema > 0  # synthesize-3: a generation of synthesize
    lm = abstract(lambda: transformer.init(c.model, jax.random.PRNGKey(0)), jax.sharding.get_mesh())
    like = {"opt": {"ema": {"lm": lm}}} if average else {"params": {"lm": lm}}
    checkpoints = Checkpoints(directory)
    found = checkpoints.restore(like, step=checkpoints.best_step(), partial=True)
    if found is None:
        raise UserError(f"{directory} holds no checkpoint; run `ramp {stage} {rundir.path}` first")
    tree, saved, step = found
    if tokenizer is not None:
        now = {"model": fingerprint(shape_of(c.model)), "tokenizer": tokenizer.fingerprint}
        require_same(saved, now, directory / str(step))
    return tree["opt"]["ema"] if average else tree["params"]
