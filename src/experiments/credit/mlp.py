"""A policy that is a small network: what it learns about one fact moves what it says of others.

It sees the value, the operation and the operand of a step as one-hot vectors, and gives logits of
the digit to state. All 300 facts are evaluated at once, so that it is a table with shared weights.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array

HIDDEN = 64
FIT_STEPS = 3000
FIT_RATE = 3e-3


def init_mlp(key: Array) -> dict[str, Array]:
    """Random weights of two hidden layers."""
    keys = jax.random.split(key, 3)
    shapes = {"in": (23, HIDDEN), "hidden": (HIDDEN, HIDDEN), "out": (HIDDEN, 10)}
    weights = {}
    for k, (name, shape) in zip(keys, shapes.items(), strict=True):
        weights[name] = jax.random.normal(k, shape) / np.sqrt(shape[0])
        weights[f"{name} bias"] = jnp.zeros(shape[1])
    return weights


def list_facts() -> np.ndarray:
    """Float32 [300, 23]: one-hot value, operation and operand of every fact."""
    value, op, operand = (x.ravel() for x in np.indices((10, 3, 10)))
    return np.concatenate([np.eye(10)[value], np.eye(3)[op], np.eye(10)[operand]], axis=1).astype(
        np.float32
    )


def evaluate_facts(weights: dict[str, Array]) -> Array:
    """Logits [10, 3, 10, 10] of every fact."""
    x = jax.nn.relu(jnp.asarray(list_facts()) @ weights["in"] + weights["in bias"])
    x = jax.nn.relu(x @ weights["hidden"] + weights["hidden bias"])
    logits = x @ weights["out"] + weights["out bias"]
    return logits.reshape(10, 3, 10, 10)


@cache
def make_fit() -> jax.stages.Wrapped:
    """The jitted fit of many networks at once, to tables [L, 10, 3, 10, 10] from keys [L]."""
    adam = optax.adam(optax.cosine_decay_schedule(FIT_RATE, FIT_STEPS))

    def loss(weights, table):
        logps = jax.nn.log_softmax(evaluate_facts(weights), axis=-1)
        return -(jax.nn.softmax(table, axis=-1) * logps).sum(axis=-1).mean()

    def fit(key, table):
        weights = init_mlp(key)

        def step(_, carry):
            weights, opt = carry
            change, opt = adam.update(jax.grad(loss)(weights, table), opt)
            return optax.apply_updates(weights, change), opt

        weights, _ = jax.lax.fori_loop(0, FIT_STEPS, step, (weights, adam.init(weights)))
        return weights

    return jax.jit(jax.vmap(fit))


def fit_mlps(tables: np.ndarray, seeds: np.ndarray) -> dict[str, Array]:
    """Weights [L, ...] of networks that state what the tables [L, 10, 3, 10, 10] state."""
    keys = jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds))
    return make_fit()(keys, jnp.asarray(tables))
