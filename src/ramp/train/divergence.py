"""What happens when training diverges: what is wrong, how far back, and what a person can do."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from ramp.config import Train
from ramp.files import quote_path
from ramp.stages import STAGES, find_stage
from ramp.train import guard
from ramp.train.state import State

# The key of the rates, for sub-stages that have one of their own.
SUBSTAGE_KEYS = {"sft": "reinforce.sft_lr_scale"}


class Diverged(Exception):
    """Training cannot go on."""


@dataclasses.dataclass
class Divergence(Diverged):
    """What is wrong, seen by the loop."""

    reason: str
    done: int
    """steps done when it was seen"""
    trusted: int
    """the last step whose state was seen to be good"""
    calm: int
    """the last step before the loss rose"""

    def __str__(self) -> str:
        return self.reason


def judge_metrics(t: Train, done: int, values: Mapping[str, float]) -> None:
    """Raise `Divergence` where the metrics of the last of `done` steps say that it is in vain."""
    streak, calm = int(values["guard/streak"]), int(values["guard/calm"])
    trusted = guard.find_trusted(done, streak, calm)
    loss = values["train/loss"]
    if values["guard/diverged"]:
        raise Divergence(
            f"the loss has risen since step {calm} and is {loss:g} at step {done}",
            done,
            trusted,
            calm,
        )
    if streak < t.max_skipped_steps:
        return
    if values["train/update_norm"] > 0 or math.isnan(values["train/update_norm"]):
        norm = values["train/update_norm"]
        size = f"an update of norm {norm:g}, too large to be added, or weights that it did not make"
    else:
        size = (
            f"a non-finite or outlying loss or gradient (loss {loss:g}, gradient "
            f"norm {values['train/grad_norm']:g})"
        )
    raise Divergence(
        f"{streak} steps in a row, up to step {done}, had {size}; nothing was added to the weights",
        done,
        trusted,
        calm,
    )


def judge_state(state: State, done: int, calm: int) -> None:
    """Raise `Divergence` where a number of the state is not finite. Every saved one was judged."""
    if not guard.is_finite(state):
        raise Divergence(
            f"the weights or the optimizer hold numbers that are not finite at step {done}",
            done,
            done - 1,
            calm,
        )


def slow_down(t: Train, recoveries: int) -> Train:
    """Return the settings after so many recoveries."""
    return dataclasses.replace(t, lr_scale=t.lr_scale * guard.RECOVERY_RATE**recoveries)


def note_recovery(state: State, recoveries: int, offset: int) -> State:
    """Return the restored state, which remembers that it is one and what batches it passes over."""
    before = state.guard
    place = partial(jax.device_put, device=before.offset.sharding)
    noted = dataclasses.replace(
        before, recoveries=place(jnp.int32(recoveries)), offset=place(jnp.int32(offset))
    )
    return dataclasses.replace(state, guard=noted)


def forget_losses(state: State) -> State:
    """Return the state with a guard that begins, but for the batches that it passes over."""
    offset = int(state.guard.offset)
    begun = jax.tree.map(
        lambda new, old: jax.device_put(new, old.sharding), guard.init_guard(), state.guard
    )
    return note_recovery(dataclasses.replace(state, guard=begun), 0, offset)


def describe_remedy(name: str, t: Train, run: object, good: int | None) -> str:
    """Return what a person can do about a stage (or sub-stage) that diverged.

    run: its directory. good: the step of the last good checkpoint.
    """
    stage = find_stage(name)
    key = SUBSTAGE_KEYS.get(name, f"{STAGES[stage].train}.lr_scale")
    # Back to the rule first, where the rates were raised.
    lower = min(1.0, guard.RECOVERY_RATE * t.lr_scale)
    flags = f"--run NEW --{key} {lower:g}"
    if good is None:
        kept = "no checkpoint from before is left"
        begin = f"ramp run {quote_path(f'{run}/config.toml')} {flags}"
        return f"{kept}; begin anew at a lower rate: `{begin}`"
    # Steps of a sub-stage have no name of their own.
    source = quote_path(f"{run}@{good}" if name in STAGES else f"{run}")
    return (
        f"step {good} is the last good checkpoint; look at the data, or go on from it at a lower "
        f"rate: `ramp {stage} --from {source} {flags}`"
    )
