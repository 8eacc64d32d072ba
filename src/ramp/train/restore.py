"""What a checkpoint must agree with, and the weights of a stage for whoever goes on from them."""

import hashlib
import json
import time
from typing import Any

import jax
import numpy as np

from ramp.config import Config, Model, fingerprint, identity
from ramp.errors import UserError
from ramp.files import quote_path
from ramp.model import transformer
from ramp.rundir import RunDir
from ramp.stages import STAGES, find_stage
from ramp.text.tokenizer import Tokenizer
from ramp.train.checkpoint import Checkpoints
from ramp.train.state import abstract_state

LATER = (
    "qkv_bias",
    "post_norm",
    "embed_scale",
    "rope_theta_short",
    "rope_scaling",
    "rope_factor",
    "rope_original_len",
)


def model_identity(m: Model) -> dict[str, Any]:
    """Return the keys of a model that its parameters depend on."""
    keys = identity(m)
    # The weights are float32 whatever is computed with them: a model trained in bfloat16 on a TPU
    # opens in float32 on a laptop.
    del keys["dtype"]
    # Switches that came later count where they are used: older checkpoints lack them.
    for name in LATER:
        if keys[name] == getattr(Model(), name):
            del keys[name]
    return keys


def make_meta(stage: str, c: Config, tokenizer: Tokenizer, data: str = "") -> dict[str, Any]:
    """Return what is saved with a checkpoint: where it is from, and what it must agree with.

    data: a hash of what the stage trains on; empty: that follows from the settings alone.
    """
    return {
        "stage": stage,
        "model": fingerprint(model_identity(c.model)),
        "tokenizer": tokenizer.fingerprint,
        "settings": list_settings(stage, c),
        "data": data,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def require_same_identity(saved: dict, now: dict, where: Any, remedy: str) -> None:
    """Raise `UserError` unless model and tokenizer are those that the checkpoint was saved with.

    remedy: the command, in backquotes, that makes the stage from the beginning.
    """
    for name in ("model", "tokenizer"):
        if saved[name] != now[name]:
            raise UserError(
                f"{where} was saved with another {name} than this run has now; "
                f"{remedy} begins the stage anew"
            )


def list_settings(stage: str, c: Config) -> dict[str, Any]:
    """Return the keys that the result of a stage depends on, as JSON has them."""
    # A sub-stage, such as a generation, is judged by its owner.
    sections = STAGES[stage].identity if stage in STAGES else ()
    settings: dict[str, Any] = {"seed": c.seed}
    for section in sections:
        settings |= identity(getattr(c, section), f"{section}.")
    # Any device may go on; tuples are lists in JSON.
    settings.pop("model.dtype", None)
    return json.loads(json.dumps(settings))


def require_same_inputs(
    saved: dict[str, Any], now: dict[str, Any], where: Any, remedy: str, redo: str
) -> None:
    """Raise `UserError` where a stage would go on with other settings or other data than before.

    remedy: the command that does so on purpose. redo: the one that begins again, in backquotes.
    """
    before, after = saved.get("settings", {}), now["settings"]
    changes = [
        f"{key} {before[key]!r} -> {after[key]!r}"
        for key in before
        if key in after and before[key] != after[key]
    ]
    if changes:
        raise UserError(
            f"{where} was saved with other settings ({'; '.join(changes[:4])}): set them back, "
            f"or go on with the new ones in a run of its own, `{remedy}`"
        )
    if saved.get("data") and saved["data"] != now["data"]:
        raise UserError(
            f"{where} was trained on other data, or with another reward or task file, than there "
            f"is now: put that back, begin the stage again with {redo}, or go on with what is new "
            f"in a run of its own, `{remedy}`"
        )


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    """Return a SHA-256 of arrays by name: what a stage that holds its rows in memory trains on."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def init_template(c: Model) -> dict:
    """Return parameters {"lm": ...} to trace: only their shapes and shardings count."""
    return {"lm": transformer.init_params(c, jax.random.PRNGKey(0))}


def load_start(rundir: RunDir, stage: str, c: Config, tokenizer: Tokenizer) -> dict:
    """Return the parameters of `stage` for a later stage to start from.

    In a run that began from another one's weights, and has not done `stage` itself, those.
    """
    own = rundir.checkpoints(stage).exists() or not rundir.origin_weights.exists()
    return load_params(rundir, stage if own else rundir.origin_weights.name, c, tokenizer)


def load_params(
    rundir: RunDir,
    stage: str,
    c: Config,
    tokenizer: Tokenizer | None = None,
    step: int | None = None,
) -> dict:
    """Return the best parameters {"lm": ...} of a stage, finished or not, on the current mesh.

    step: those of this step instead.

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
    if step is None:
        found = checkpoints.restore_best(like)
    else:
        found = checkpoints.restore(like, step, partial=True)
    if found is None:
        where = checkpoints.directory
        # A stage that is done would be skipped, if somebody has deleted what it made.
        owner = find_stage(stage)
        command = f"`ramp {owner} {quote_path(rundir.path)}`"
        if rundir.is_done(owner):
            command = rundir.redo(stage)
        raise UserError(f"{where} holds no checkpoint; run {command} first")
    tree, saved, step = found
    # The shapes agree already; this catches another rope_theta, or other texts.
    if tokenizer is not None:
        now = make_meta(stage, c, tokenizer)
        where = checkpoints.directory / str(step)
        require_same_identity(saved, now, where, rundir.redo(stage))
    return tree["opt"]["ema"] if averaged else tree["params"]
