"""`make_step`: the only update in the project.

A stage is a loss. Its contract:

    loss(params, batch, key) -> (total, metrics)

params   the pytree of `State.params`; `params["lm"]` is the model
batch    arrays [B, ...], B rows split over the mesh axes ROWS; "weights" [B, T] is the loss weight
         of every token
total    the sum, not the mean, of the weighted loss over the tokens
metrics  a dict of further sums of the same kind

`make_step` divides all of them by the sum of the weights of the whole global batch. So the gradient
does not depend on how the batch is cut into microbatches or spread over devices.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from ramp.config import Train
from ramp.train.guard import judge_gradient, judge_update, record_update, track_loss
from ramp.train.mesh import ROWS
from ramp.train.state import State

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[[dict, Batch, jax.Array], tuple[jax.Array, Metrics]]
Step = Callable[[State, Batch], tuple[State, Metrics]]


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    t: Train,
    schedule: optax.Schedule | None = None,
    compiler_options: dict[str, str | bool] | None = None,
    chance: float | None = None,
) -> Step:
    """Return step(state, batch) -> (state, metrics), jitted, the state donated.

    tx: any optax transformation; its updates are added to the parameters as they are, so the
    learning rate and the sign belong to it.
    t: `grad_accum_steps`, `skip_sigma` and `ema_decay` are read, nothing else.
    schedule: only logged, as "train/lr"; the one that `tx` was built with.
    chance: the loss of a model that knows nothing, which divergence is measured by; see `guard`.
    The metrics are float32 scalars on the device.
    """
    step = make_update(loss, tx, t, schedule, chance)
    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options)


def make_update(
    loss: Loss,
    tx: optax.GradientTransformation,
    t: Train,
    schedule: optax.Schedule | None = None,
    chance: float | None = None,
) -> Step:
    """Return the step before it is jitted, for callers that `vmap` it over seeds."""

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # A function of (seed, step): a resumed run draws what it would have drawn.
        key = jax.random.fold_in(state.key, state.step)
        # A batch without weight has a zero gradient, not a NaN.
        weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        grads, sums = accumulate_grads(loss, state.params, batch, key, t.grad_accum_steps or 1)
        grads = jax.tree.map(lambda g: g / weight, grads)
        means = {name: total / weight for name, total in sums.items()}
        grad_norm = optax.tree.norm(grads)
        values = jnp.stack([means["loss"], grad_norm])
        ok, guard = judge_gradient(state.guard, values, t.skip_sigma)

        def update(params: dict, opt: dict) -> tuple[dict, dict, jax.Array, jax.Array, jax.Array]:
            updates, tx_state = tx.update(grads, opt["tx"], params)
            norm = optax.tree.norm(updates)
            num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
            param_norm = optax.tree.norm(params)
            fits = judge_update(guard, norm, param_norm, num_params)
            # An update that is refused is not added. The optimizer has heard of its gradient,
            # which was good: to take that back would need a copy of its state.
            added: Any = optax.apply_updates(params, updates)
            new_params = jax.tree.map(partial(jnp.where, fits), added, params)
            ema = update_average(opt["ema"], new_params, t.ema_decay)
            return new_params, {"tx": tx_state, "ema": ema}, norm, param_norm, fits

        def skip(params: dict, opt: dict) -> tuple[dict, dict, jax.Array, jax.Array, jax.Array]:
            zero = jnp.zeros((), jnp.float32)
            return params, opt, zero, zero, jnp.ones((), bool)

        # `cond` and not `where`: the buffers of a donated state are updated in place.
        #
        # A skipped step consumes its batch and nothing else: `State.step` moves on, so that the
        # next step reads the next batch, but the optimizer never hears of it. Its moments and its
        # count stay, and with the count the learning-rate schedule.
        params, opt, update_norm, param_norm, fits = jax.lax.cond(
            ok, update, skip, state.params, state.opt
        )
        guard = record_update(state.guard, guard, fits, update_norm, param_norm)
        done = state.step + 1
        diverged, guard = track_loss(guard, means["loss"], ok, done, chance)

        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics["train/grad_norm"] = grad_norm
        metrics["train/update_norm"] = update_norm
        metrics["train/weight"] = weight
        if schedule is not None:
            applied = state.step - state.guard.skipped  # updates so far: the count of optax
            metrics["train/lr"] = jnp.asarray(schedule(applied))
        metrics["guard/diverged"] = diverged
        for name in ("skipped", "refused", "streak", "calm", "recoveries"):
            metrics[f"guard/{name}"] = getattr(guard, name)
        return replace(state, step=done, params=params, opt=opt, guard=guard), metrics

    return step


def update_average(average: Any, params: Any, decay: float) -> Any:
    """Return decay * average + (1 - decay) * params, leaf by leaf; None where none is kept."""
    if average is None:
        return None
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def accumulate_grads(
    loss: Loss, params: dict, batch: Batch, key: jax.Array, k: int
) -> tuple[dict, Metrics]:
    """Return gradient and metrics, summed over the batch, in k microbatches one after the other.

    Microbatch i takes rows i, i+k, i+2k, ... of every device's part: no row travels.
    """

    def value_and_grad(batch: Batch, key: jax.Array) -> tuple[dict, Metrics]:
        (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return grads, {"loss": total, **sums}

    if k == 1:
        return value_and_grad(batch, jax.random.fold_in(key, 0))

    def split_rows(a: jax.Array) -> jax.Array:
        # [B, ...] -> [k, B/k, ...]. Rows are cut as [B/k, k], so each device keeps its own.
        cut = jax.lax.reshape(a, (a.shape[0] // k, k, *a.shape[1:]), out_sharding=P(ROWS))
        return jnp.moveaxis(cut, 1, 0)

    def add(total: Any, i_and_batch: tuple) -> tuple[Any, None]:
        i, microbatch = i_and_batch
        result = value_and_grad(microbatch, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, result), None

    microbatches = jax.tree.map(split_rows, batch)
    first = jax.tree.map(lambda a: a[0], microbatches)
    _, sums = jax.eval_shape(value_and_grad, first, key)
    # From zeros, not from a first microbatch before the loop: a loop of one turn is unrolled, and
    # compilers then keep the activations of both microbatches at once.
    zero_grads = jax.tree.map(jnp.zeros_like, params)
    zero_sums = {name: jnp.zeros((), s.dtype) for name, s in sums.items()}
    total, _ = jax.lax.scan(add, (zero_grads, zero_sums), (jnp.arange(k), microbatches))
    return total
