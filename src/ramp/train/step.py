"""`make_step`: the only update in the project.

A stage is a loss. Its contract:

    loss(params, batch, key) -> (total, metrics)

total: the sum, not the mean, of the loss over the tokens that bear it (batch["weights"], [B, T]); metrics: a dict of
further sums of the same kind. `make_step` divides all of them by the sum of the weights of the whole global batch, so
the gradient does not depend on how the batch is cut into microbatches or spread over devices.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from ramp.config import Train
from ramp.train import optim
from ramp.train.mesh import ROWS
from ramp.train.state import State

Batch = dict[str, jax.Array]
Loss = Callable[[dict, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def make_step(
    loss: Loss, tx: optax.GradientTransformation, t: Train, options: dict[str, str] | None = None
) -> Callable[[State, Batch], tuple[State, dict]]:
    """(state, batch) -> (state, metrics), jitted, the state donated; metrics are float32 scalars on the device.

    options: of the compiler, see `mesh.compiler_options`."""
    return jax.jit(make_update(loss, tx, t), donate_argnums=0, compiler_options=options)


def make_update(
    loss: Loss, tx: optax.GradientTransformation, t: Train
) -> Callable[[State, Batch], tuple[State, dict]]:
    """The step before it is jitted, for who puts it inside a transformation: `vmap` over seeds, `scan` over batches."""

    def step(state: State, batch: Batch) -> tuple[State, dict]:
        key = jax.random.fold_in(state.key, state.step)
        weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        grads, sums = accumulate_grads(loss, state.params, batch, key, t.grad_accum_steps)
        grads = jax.tree.map(lambda g: g / weight, grads)
        means = {name: total / weight for name, total in sums.items()}
        grad_norm = optax.tree.norm(grads)
        ok, guard = judge_step(state.guard, jnp.stack([means["loss"], grad_norm]), t.skip_sigma)
        rate = optim.schedule(t, state.step)

        def update(params, opt):
            updates, tx_state = tx.update(grads, opt["tx"], params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            ema = opt["ema"] and jax.tree.map(
                lambda a, p: t.ema_decay * a + (1 - t.ema_decay) * p, opt["ema"], params
            )
            return params, {"tx": tx_state, "ema": ema}

        params, opt = jax.lax.cond(
            ok, update, lambda params, opt: (params, opt), state.params, state.opt
        )
        state = replace(state, step=state.step + 1, params=params, opt=opt, guard=guard)
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics |= {"train/grad_norm": grad_norm, "train/lr": rate, "train/weight": weight}
        metrics |= {"guard/skipped": guard["skipped"], "guard/streak": guard["streak"]}
        return state, metrics

    return step


def accumulate_grads(
    loss: Loss, params: dict, batch: Batch, key: jax.Array, k: int
) -> tuple[dict, dict]:
    """Gradient and metrics, summed over the batch, in k microbatches one after the other.

    Microbatch i takes rows i, i+k, i+2k, ... of every device's share: no row travels.
    """

    def value_and_grad(batch: Batch, key: jax.Array) -> tuple[dict, dict]:
        (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return grads, {"loss": total, **sums}

    if k == 1:
        return value_and_grad(batch, jax.random.fold_in(key, 0))

    def cut(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(
            jax.lax.reshape(a, (a.shape[0] // k, k, *a.shape[1:]), out_sharding=P(ROWS)), 1, 0
        )

    def add(total: Any, i_and_batch: tuple) -> tuple[Any, None]:
        i, micro = i_and_batch
        return jax.tree.map(jnp.add, total, value_and_grad(micro, jax.random.fold_in(key, i))), None

    # From zeros, not from a first microbatch before the loop: a loop of one turn is unrolled, and compilers then keep the
    # activations of both microbatches at once.
    micros = jax.tree.map(cut, batch)
    sums = jax.eval_shape(value_and_grad, jax.tree.map(lambda a: a[0], micros), key)[1]
    nothing = (
        jax.tree.map(jnp.zeros_like, params),
        {name: jnp.zeros((), s.dtype) for name, s in sums.items()},
    )
    return jax.lax.scan(add, nothing, (jnp.arange(k), micros))[0]


def judge_step(
    guard: dict, seen: jax.Array, sigma: float, history: int = 64
) -> tuple[jax.Array, dict]:
    """Whether this step may change anything, and the guard after it.

    seen: [2], loss and gradient norm. Refused are non-finite values and, once `history`/2 steps have counted, values
    more than `sigma` running deviations above the running mean (the rule of OLMo's skip-step optimizer). A refused
    value does not enter the running figures, but an outlier widens the band by a half: a lasting change of level is let
    through after a few steps, an explosion is not. The host stops the job when `streak` reaches the configured limit.
    """
    finite = jnp.all(jnp.isfinite(seen))
    # At least 1% of the mean: where nothing varies, as on a plateau, a small rise is no outlier.
    deviation = jnp.maximum(jnp.sqrt(guard["var"]), 0.01 * jnp.abs(guard["mean"]))
    band = guard["mean"] + sigma * deviation
    outlier = jnp.any(seen > band) & (guard["count"] >= history // 2) & (sigma > 0)
    ok = finite & ~outlier
    count = guard["count"] + ok
    # Exact mean and variance of the first `history` values, an exponential window after that.
    share = 1.0 / jnp.minimum(jnp.maximum(count, 1), history)
    delta = jnp.where(finite, seen, 0.0) - guard["mean"]
    mean = guard["mean"] + share * delta
    var = (1 - share) * (guard["var"] + share * delta * delta)
    widened = jnp.where(finite, 2.25 * deviation**2, guard["var"])
    return ok, {
        "skipped": guard["skipped"] + ~ok,
        "streak": jnp.where(ok, 0, guard["streak"] + 1),
        "count": count,
        "mean": jnp.where(ok, mean, guard["mean"]),
        "var": jnp.where(ok, var, widened),
    }
