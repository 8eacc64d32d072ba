"""The guard: which steps may change anything, whether training still learns, which state is good.

On the device, each step, in `State.guard`, so that a resumed run judges as it would have:

* the gradient before the update (`judge_gradient`): not finite or an outlier changes nothing;
* the update before it is added (`judge_update`): not finite or far too large adds nothing;
* the loss (`track_loss`): a lasting rise towards that of a model that knows nothing is divergence.

On the host: the whole state before it is evaluated or saved (`is_finite`), and how far back a state
must lie to be trusted once something is wrong (`find_trusted`).
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

HISTORY = 64  # steps that the running figures of the gradient cover
WINDOW = 16  # steps that the smoothed loss covers, and that a checkpoint is proven by
# An update of more than so much per parameter, in units of max(1, root mean square of the
# parameters), is no step but a jump. Adam's first update of a table, the largest there is, is its
# rate: .3 by rule at half a million tokens a batch.
LARGEST_UPDATE = 4.0
# A schedule changes the norm of updates smoothly: warm-up by at most four times its running mean.
LARGEST_GROWTH = 20.0
HARMLESS_UPDATE = 0.1  # of the norm of the parameters; a stage that begins to learn may jump to it
LOST = 0.5  # the fraction of what was learned, in nats, whose loss is divergence
RECOVERY_RATE = 0.5  # every recovery multiplies the rates by it
MAX_RECOVERIES = 3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guard:
    """What a stage remembers of its steps, to judge the next one by. Scalars, unless said."""

    # Gradients.
    skipped: jax.Array  # steps whose gradient was refused
    streak: jax.Array  # steps in a row whose gradient or update was refused
    count: jax.Array  # steps whose gradient was good
    mean: jax.Array  # [2] of (loss, gradient norm) over the steps that counted
    var: jax.Array  # [2]
    # Updates.
    refused: jax.Array  # steps whose update was refused
    update: jax.Array  # running mean of their norm
    norm: jax.Array  # of the parameters before the last update that was judged
    added: jax.Array  # norm of what that one added
    # The loss.
    loss: jax.Array  # smoothed
    best: jax.Array  # the lowest of the smoothed
    last: jax.Array  # of the step before
    noise: jax.Array  # mean change from step to step
    high: jax.Array  # fraction of the last steps that were high
    ruinous: jax.Array  # and of those that were ruinous
    calm: jax.Array  # the last step without a rise
    # What the host did.
    recoveries: jax.Array
    offset: jax.Array  # batches that recoveries passed over


def init_guard() -> Guard:
    """Return the guard of a stage that begins."""
    pairs = ("mean", "var")
    numbers = ("update", "norm", "added", "loss", "best", "last", "noise", "high", "ruinous")
    counters = ("skipped", "streak", "count", "refused", "calm", "recoveries", "offset")
    return Guard(
        **{name: jnp.zeros(2, jnp.float32) for name in pairs},
        **{name: jnp.zeros((), jnp.float32) for name in numbers},
        **{name: jnp.zeros((), jnp.int32) for name in counters},
    )


# --- on the device


def judge_gradient(
    guard: Guard, values: jax.Array, sigma: float, history: int = HISTORY
) -> tuple[jax.Array, Guard]:
    """Return whether this step may change anything, and the guard after it.

    values: [2], loss and gradient norm. Refused are non-finite values and, once `history`/2 steps
    have counted, values more than `sigma` running deviations above the running mean (the rule of
    OLMo's skip-step optimizer). A refused value does not enter the running figures, but an outlier
    widens the band by a half: a lasting change of level is let through after a few steps, an
    explosion is not. The host stops the job when `streak` reaches the configured limit.
    """
    finite = jnp.all(jnp.isfinite(values))
    # At least 1% of the mean: where nothing varies, as on a plateau, a small rise is no outlier.
    deviation = jnp.maximum(jnp.sqrt(guard.var), 0.01 * jnp.abs(guard.mean))
    band = guard.mean + sigma * deviation
    outlier = jnp.any(values > band) & (guard.count >= history // 2) & (sigma > 0)
    ok = finite & ~outlier
    count = guard.count + ok
    # Exact mean and variance of the first `history` values, an exponential window after that.
    rate = 1.0 / jnp.minimum(jnp.maximum(count, 1), history)
    delta = jnp.where(finite, values, 0.0) - guard.mean
    mean = guard.mean + rate * delta
    var = (1 - rate) * (guard.var + rate * delta * delta)
    # A factor of 1.5 on the deviation is 2.25 on the variance.
    widened = jnp.where(finite, 2.25 * deviation**2, guard.var)
    return ok, replace(
        guard,
        skipped=guard.skipped + ~ok,
        streak=jnp.where(ok, 0, guard.streak + 1),
        count=count,
        mean=jnp.where(ok, mean, guard.mean),
        var=jnp.where(ok, var, widened),
    )


def judge_update(
    guard: Guard, update_norm: jax.Array, param_norm: jax.Array, num_params: int
) -> jax.Array:
    """Return whether an update may be added to the parameters.

    By the triangle inequality the parameters after it are then finite and of a bounded norm. And
    they are what the last update made of them, or something else has changed them.
    """
    # The root mean square of parameters that begin at zero is no scale.
    scale = jnp.sqrt(num_params + param_norm**2)
    running = jnp.where(guard.update > 0, LARGEST_GROWTH * guard.update, jnp.inf)
    usual = jnp.maximum(running, HARMLESS_UPDATE * param_norm)
    moved = jnp.abs(param_norm - guard.norm)
    untouched = (moved <= guard.added + 1e-2 * guard.norm) | (guard.norm == 0)
    # No comparison with a NaN holds.
    return untouched & (update_norm <= jnp.minimum(LARGEST_UPDATE * scale, usual))


def record_update(
    before: Guard, guard: Guard, fits: jax.Array, update_norm: jax.Array, param_norm: jax.Array
) -> Guard:
    """Return the guard after an update.

    before: the guard before the step. Both norms are 0 where the gradient was refused.
    """
    mean = before.update
    rate = 1.0 / jnp.minimum(jnp.maximum(guard.count, 1), HISTORY)
    counts = fits & (update_norm > 0)
    return replace(
        guard,
        refused=before.refused + ~fits,
        streak=jnp.where(fits, guard.streak, before.streak + 1),
        update=jnp.where(counts, mean + rate * (update_norm - mean), mean),
        norm=jnp.where(fits & (param_norm > 0), param_norm, before.norm),
        added=jnp.where(fits & (param_norm > 0), update_norm, before.added),
    )


def track_loss(
    guard: Guard, loss: jax.Array, ok: jax.Array, done: jax.Array, chance: float | None
) -> tuple[jax.Array, Guard]:
    """Return whether training has diverged, and the guard after `done` steps.

    High is a loss that has lost half of what was learned, the distance from the lowest smoothed
    loss to `chance`, that of a model that knows nothing; and at least a quarter of a nat and twice
    the usual change between steps. Ruinous is one that is above chance too. Diverged means: more
    than half of the last 16 steps are ruinous, or of the last 64 high. One bad batch is not enough,
    nor noise, nor other text, which the model soon learns. ok: the loss counts; chance: None where
    the loss has no such meaning.
    """
    if chance is None:
        return jnp.zeros((), bool), replace(guard, calm=done)
    first = guard.best == 0  # of the stage, or after a checkpoint of an older ramp
    # A model from elsewhere may begin above chance.
    best = jnp.where(first, jnp.maximum(chance, loss), guard.best)
    noise = guard.noise
    margin = jnp.maximum(0.25, 0.05 * best) + 2 * noise
    limit = best + jnp.maximum(LOST * (chance - best), margin)
    rate = 1.0 / jnp.clip(guard.count, 1, WINDOW)
    # Cut off at the limit, so that one monstrous loss weighs no more than a high one.
    smooth = guard.loss + rate * (jnp.minimum(loss, limit) - guard.loss)
    smooth = jnp.where(first, loss, smooth)
    change = jnp.where(first, 0.0, jnp.abs(loss - guard.last))
    is_ruinous = loss > jnp.maximum(limit, chance + 0.1)
    # The smallest deviation of a smoothed loss that is more than noise, six of its own.
    calm = smooth <= best + 0.02 + noise
    after = replace(
        guard,
        loss=smooth,
        last=loss,
        # Of the first few steps a mean is no level yet.
        best=jnp.where(guard.count >= WINDOW // 2, jnp.minimum(best, smooth), best),
        # What a rise brings is no noise.
        noise=jnp.where(calm, noise + rate * (change - noise), noise),
        high=guard.high + ((loss > limit) - guard.high) / HISTORY,
        ruinous=guard.ruinous + (is_ruinous - guard.ruinous) / WINDOW,
        calm=jnp.where(calm, done, guard.calm),
    )
    # A step that does not count leaves no trace.
    after = jax.tree.map(partial(jnp.where, ok), after, guard)
    return (after.high > 0.5) | (after.ruinous > 0.5), after


# --- on the host


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    # A sum of squares overflows with any number that training cannot go on from.
    return jnp.isfinite(jnp.stack([jnp.sum(jnp.square(x)) for x in leaves])).all()


def is_finite(tree: object) -> bool:
    """Whether every number of a state is finite, and the sum of their squares too. Waits for it."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return bool(_all_finite(leaves))


def find_trusted(done: int, streak: int, calm: int) -> int:
    """Return the last step whose state was seen to be good, after `done` steps.

    streak: refused steps in a row. calm: the last step without a rise of the loss.
    """
    before_streak = done - streak
    if streak and calm >= before_streak:
        # The loss of a state is that of the next step, and the first refused one was bad.
        return before_streak - 1
    # A rise shows in the smoothed loss only after some steps.
    return min(calm, before_streak) - WINDOW
