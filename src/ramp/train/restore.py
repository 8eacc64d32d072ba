"""What a checkpoint must agree with, and the weights of a stage for whoever goes on from them."""

import time
from typing import Any

import jax

from ramp.config import Config, Model, fingerprint, identity
from ramp.errors import UserError
from ramp.model import transformer
from ramp.rundir import RunDir
from ramp.stages import find_stage
from ramp.text.tokenizer import Tokenizer
from ramp.train.checkpoint import Checkpoints
from ramp.train.state import abstract_state


def model_identity(m: Model) -> dict[str, Any]:
    """Return the keys of a model that its parameters depend on."""
    keys = identity(m)
    # The weights are float32 whatever is computed with them: a model trained in bfloat16 on a TPU
    # opens in float32 on a laptop.
    del keys["dtype"]
    return keys


def make_meta(stage: str, c: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what is saved with a checkpoint: where it is from, and what it must agree with."""
    return {
        "stage": stage,
        "model": fingerprint(model_identity(c.model)),
        "tokenizer": tokenizer.fingerprint,
        "seed": c.seed,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def require_same_identity(saved: dict[str, Any], now: dict[str, Any], where: Any) -> None:
    """Raise `UserError` unless model and tokenizer are those that the checkpoint was saved with."""
    for name in ("model", "tokenizer"):
        if saved[name] != now[name]:
            raise UserError(
                f"{where} was saved with another {name}; "
                "name another directory with --run, or delete this run"
            )


def init_template(c: Model) -> dict:
    """Return parameters {"lm": ...} to trace: only their shapes and shardings count."""
    return {"lm": transformer.init_params(c, jax.random.PRNGKey(0))}


def load_params(rundir: RunDir, stage: str, c: Config, tokenizer: Tokenizer | None = None) -> dict:
    """Return the best parameters {"lm": ...} of a stage, finished or not, on the current mesh.

    Of the best step that is whole, with a warning where a better one is damaged. The average where
    the stage kept one. With `tokenizer`, model and tokenizer must be those that
    the checkpoint was saved with.
    """
    remedy = f"{rundir.redo(stage)} makes the stage again"
    checkpoints = Checkpoints(rundir.checkpoints(stage), remedy=remedy)
    # Restored straight into the shards of this mesh, whatever mesh it was saved on.
    params = abstract_state(lambda: init_template(c.model), jax.sharding.get_mesh())
    averaged = any(name.startswith("opt/ema/") for name in checkpoints.leaf_names())
    like = {"opt": {"ema": params}} if averaged else {"params": params}
    # No step has a score before the first evaluation; then the newest one is taken.
    found = checkpoints.restore_best(like)
    if found is None:
        where = checkpoints.directory
        # A stage that is done would be skipped, if somebody has deleted what it made.
        owner = find_stage(stage)
        command = f"`ramp {owner} {rundir.path}`"
        if rundir.is_done(owner):
            command = rundir.redo(stage)
        raise UserError(f"{where} holds no checkpoint; run {command} first")
    tree, saved, step = found
    # The shapes agree already; this catches another rope_theta, or other texts.
    if tokenizer is not None:
        now = make_meta(stage, c, tokenizer)
        require_same_identity(saved, now, checkpoints.directory / str(step))
    return tree["opt"]["ema"] if averaged else tree["params"]
