"""What training stages share: from a configuration and a loss to a trained, checkpointed, logged state."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Model, Train, fingerprint, get
from ramp.errors import UserError
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.reporting.metrics import MetricWriter, read_last_values
from ramp.rundir import RunDir
from ramp.stages import STAGES
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.checkpoint import Checkpoints
from ramp.train.mesh import ROWS, compiler_options
from ramp.train.preemption import Preemption
from ramp.train.state import State, abstract_state, eval_params, init_state
from ramp.train.step import Loss, make_step
from ramp.train.trainer import KINDS, Clock, train_loop


@dataclass(frozen=True)
class Trainer:
    """One stage of training on one mesh: its name, its configuration, its loss and the rows it reads."""

    name: str
    c: Config
    t: Train
    loss: Loss
    batches: Callable[..., dict[str, np.ndarray]]  # (step, lo, hi), as `Batches`
    tokenizer: Tokenizer
    wrap_step: Callable[[Callable], Callable] = lambda update: (
        update
    )  # what a step does beside its update
    keep_ref: bool = False  # the starting parameters stay in the state, frozen
    add_params: Callable[[dict], dict] = lambda params: (
        params
    )  # what is added to the parameters it starts from

    def train(
        self,
        rundir: RunDir,
        start: Callable[[], dict],
        evaluate: Callable[[dict, int, MetricWriter, Preemption], dict[str, float]],
        score: str,
        stop: Preemption,
    ) -> tuple[State, dict[str, Any]]:
        """Start from the parameters `start()` makes, or go on from the stage's last checkpoint; (state, report).

        `evaluate(params, step, board, stop)` returns figures by tag and may draw on the board.
        """
        clock = Clock()
        t, mesh = self.t, jax.sharding.get_mesh()
        tx = optim.make_optimizer(t, self.c.model.dtype)
        meta = self.meta()
        checkpoints = Checkpoints(rundir.checkpoints(self.name), keep=self.c.checkpoint.max_to_keep)
        spent: dict[str, float] = {}
        with clock("init"):
            found = checkpoints.restore(
                abstract_state(lambda: self.init_state(init_template(self.c.model)), mesh)
            )
            if found is None:
                state = jax.jit(self.init_state, donate_argnums=0)(start())
            else:
                state, saved, step = found
                require_same_identity(saved, meta, checkpoints.directory / str(step))
                spent = saved["clock"]
        if jax.process_index() == 0:
            logged = read_last_values(rundir.path / "metrics.jsonl", self.name, "time/")
            clock.add(spent, {kind: seconds for kind, seconds in logged.items() if kind in KINDS})
        first, last = int(state.step), {}
        board = MetricWriter(
            rundir.path, self.name, first + 1 if first else 0, jax.process_index() == 0
        )

        def figures(state: State, stop: Preemption) -> dict[str, float]:
            params, step = eval_params(state), int(state.step)
            log_weight_histograms(board, step, params)
            found = evaluate(params, step, board, stop)  # nothing, if it was cut short
            last.update(found)
            return found

        with board, closing(checkpoints):
            state = train_loop(
                state,
                self.wrap_step(
                    make_step(
                        self.loss, tx, t, optim.make_schedule(t), compiler_options(self.c.mesh)
                    )
                ),
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
            "tokens": t.steps * t.batch_size * t.seq_len,
            "skipped_steps": int(state.guard["skipped"]),
            "best_step": checkpoints.best_step(),
        }
        return state, report

    def init_state(self, params: dict) -> State:
        """The state that the stage begins with."""
        ref = jax.tree.map(lambda w: w + 0, params) if self.keep_ref else None
        tx = optim.make_optimizer(self.t, self.c.model.dtype)
        return init_state(self.add_params(params), tx, self.c.seed, self.t.ema_decay > 0, ref)

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from."""
        return {
            "stage": self.name,
            "model": fingerprint(model_identity(self.c.model)),
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.c.seed,
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        }


def log_weight_histograms(board: MetricWriter, step: int, params: dict) -> None:
    """A histogram of every array that this process holds whole."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if board.enabled and leaf.is_fully_addressable:
            board.histogram(
                step,
                "params/" + jax.tree_util.keystr(path, simple=True, separator="/"),
                np.asarray(leaf),
            )


LATER = (
    "norm_eps",
    "token_mixer",
    "rope",
    "norm",
    "residual",
)  # keys younger than some checkpoints: at their default, unsaid


def model_identity(m: Model) -> dict[str, Any]:
    """The keys of a model that its parameters depend on; the rest only says how it is computed. A key that is younger
    than some checkpoints counts where it is not what was built in before."""
    free = {"dtype", "attention", "remat", "unroll", "loss_chunk"}
    free |= {name for name in LATER if getattr(m, name) == getattr(Model(), name)}
    return {k: v for k, v in vars(m).items() if k not in free}


def require_same_identity(saved: dict, now: dict, where: Any) -> None:
    for name in ("model", "tokenizer"):
        if saved[name] != now[name]:
            raise UserError(
                f"{where} was saved with another {name}; name another directory with --run, or delete this run"
            )


def init_template(c: Model) -> dict:
    """Parameters {"lm": ...} as a template wants them; only their shapes and shardings count."""
    return {"lm": transformer.init_params(c, jax.random.PRNGKey(0))}


def lower_train_step(
    c: Config,
    t: Train,
    mesh: jax.sharding.Mesh,
    loss: Loss | None = None,
    add_params: Callable[[dict], dict] = lambda params: params,
    floats: tuple[str, ...] = ("weights",),
) -> Any:
    """A stage's training step, lowered for abstract arrays: for plans, nothing is made. By default that of the next-token
    loss. add_params: see `Stage`; floats: what the loss reads beside tokens and targets, each [B, T] like them."""
    tx, place = optim.make_optimizer(t, c.model.dtype), jax.NamedSharding(mesh, P(ROWS))
    kinds = {"tokens": jnp.int32, "targets": jnp.int32} | dict.fromkeys(floats, jnp.float32)
    rows = {
        name: jax.ShapeDtypeStruct((t.batch_size, t.seq_len), kind, sharding=place)
        for name, kind in kinds.items()
    }
    state = abstract_state(
        lambda: init_state(add_params(init_template(c.model)), tx, 0, t.ema_decay > 0), mesh
    )
    return make_step(
        loss or next_token_loss(c.model, t.z_loss), tx, t, optim.make_schedule(t)
    ).lower(state, rows)


def load_params(rundir: RunDir, stage: str, c: Config, tokenizer: Tokenizer | None = None) -> dict:
    """The best parameters {"lm": ...} of a finished or unfinished stage, on the current mesh."""
    directory = rundir.checkpoints(stage)
    # synthesize-3 is a generation of synthesize.
    settings = get(c, STAGES[stage.partition("-")[0]].train)
    average = settings.ema_decay > 0
    lm = abstract_state(lambda: init_template(c.model), jax.sharding.get_mesh())["lm"]
    like = {"opt": {"ema": {"lm": lm}}} if average else {"params": {"lm": lm}}
    checkpoints = Checkpoints(directory)
    found = checkpoints.restore(like, step=checkpoints.best_step(), partial=True)
    if found is None:
        raise UserError(f"{directory} holds no checkpoint; run `ramp {stage} {rundir.path}` first")
    tree, saved, step = found
    if tokenizer is not None:
        now = {"model": fingerprint(model_identity(c.model)), "tokenizer": tokenizer.fingerprint}
        require_same_identity(saved, now, directory / str(step))
    return tree["opt"]["ema"] if average else tree["params"]
