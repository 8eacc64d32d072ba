"""Methods as estimators of the policy gradient, held against the exact one, and training curves.

`audit_gradient` runs a method on the table policy of `chain_values`, whose success chance and
gradient are exact.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.credit import chain_values
from ramp.credit.advantages import METHODS
from ramp.credit.audit import find_sign_errors
from ramp.credit.baselines import Credit
from ramp.tasks import Problem

BATCHES_AT_ONCE = 20


@dataclass(frozen=True)
class GradientAudit:
    """An estimator of the gradient compared with the exact one."""

    cos: float  # of the mean estimate and the exact gradient
    snr: float  # |E g|² / tr Cov g of one batch, unbiased
    tokens: int  # sampled for one batch, Monte Carlo continuations included
    wrong_up: float  # these three: see `ramp.credit.audit.SignErrors`
    right_down: float
    mass_on_wrong: float


def audit_gradient(
    table: jax.Array,
    problems: list[Problem],
    method: str,
    group_size: int,
    repeats: int,
    seed: int = 0,
    n: int = 4,
) -> GradientAudit:
    """An estimator on the table policy, over at least `repeats` batches of P x group_size rollouts.

    method: a name of METHODS, or "oracle": exact values in place of estimates. n: continuations.
    """
    exact = np.asarray(jax.grad(chain_values.success)(table, problems).reshape(-1))

    @jax.jit
    def draw_batches(key):
        draw = jax.vmap(partial(_draw_batch, problems, method, group_size, n, table))
        g, a, right, won = draw(jax.random.split(key, BATCHES_AT_ONCE))
        return jnp.sum(g, axis=0).reshape(-1), jnp.sum(g * g), a, right, won

    turns = -(-repeats // BATCHES_AT_ONCE)
    repeats = turns * BATCHES_AT_ONCE
    total, squares, steps = 0.0, 0.0, []
    for i in range(turns):
        g, g2, *drawn = draw_batches(jax.random.fold_in(jax.random.PRNGKey(seed), i))
        total, squares = total + np.asarray(g, np.float64), squares + float(g2)
        steps.append([np.asarray(x).ravel() for x in drawn])
    mean = total / repeats
    noise = (squares / repeats - mean @ mean) * repeats / (repeats - 1)
    a, right, won = (np.concatenate(x) for x in zip(*steps, strict=True))
    num_steps = problems[0].level
    rollout_tokens = group_size * len(problems) * num_steps
    is_monte_carlo = method in METHODS and METHODS[method].family == "monte_carlo"
    # Every step but the first is continued n times to the end: K - 1 + ... + 1 steps.
    extra = rollout_tokens * n * (num_steps - 1) // 2 if is_monte_carlo else 0
    return GradientAudit(
        cos=float(mean @ exact / (np.linalg.norm(mean) * np.linalg.norm(exact))),
        snr=float(max(mean @ mean - noise / repeats, 0) / noise),
        tokens=rollout_tokens + extra,
        **vars(find_sign_errors(a, right > 0, won > 0)),
    )


def _draw_batch(
    problems: list[Problem], method: str, group_size: int, n: int, table: jax.Array, key: jax.Array
) -> tuple:
    """(gradient estimate, advantages [B, K], right [B, K], won [B, K]) of one batch."""
    starts, ops, answers = chain_values.encode(problems)
    (P, K), G = ops.shape[:2], group_size
    ops_b, answer_b = jnp.repeat(ops, G, axis=0), jnp.repeat(answers, G)
    stated, before = sample_table(table, jnp.repeat(starts, G), ops_b, 0, key)
    won = (stated[:, -1] == answer_b).astype(jnp.float32)
    truth = jnp.asarray(chain_values.truth())[before, ops_b[..., 0], ops_b[..., 1]]
    right = (stated == truth).astype(jnp.float32)
    values = {}
    if method in METHODS and METHODS[method].family == "monte_carlo":
        wins = [jnp.zeros(P * G)]
        for k in range(1, K):
            keys = jax.random.split(jax.random.fold_in(key, k), n)

            def continue_from(one, k=k):
                return sample_table(table, before[:, k], ops_b, k, one)[0][:, -1]

            ends_nb = jax.vmap(continue_from)(keys)
            wins.append(jnp.sum(ends_nb == answer_b, axis=0))
        value_bs = jnp.stack(wins, axis=1) / n
        values = {"value_bs": value_bs, "best_bs": (value_bs > 0).astype(jnp.float32)}
    if method == "oracle":
        chance = jnp.stack(
            [chain_values.values(table, o, a) for o, a in zip(ops, answers.tolist(), strict=True)]
        )
        path = jnp.concatenate([before, stated[:, -1:]], axis=1)
        v = jnp.take_along_axis(jnp.repeat(chance, G, axis=0), path[..., None], axis=2)[..., 0]
        a = jnp.diff(v, axis=1)
    else:
        step_bn = jnp.broadcast_to(jnp.arange(K), (P * G, K))
        credit = Credit(won.reshape(P, G), right, jnp.ones_like(right), step_bn, **values)
        a = METHODS[method](credit)

    def surrogate(table):
        logp = jax.nn.log_softmax(table, axis=-1)[before, ops_b[..., 0], ops_b[..., 1], stated]
        return jnp.sum(jax.lax.stop_gradient(a) * logp) / (P * G)

    return jax.grad(surrogate)(table), a, right, jnp.broadcast_to(won[:, None], right.shape)


def sample_table(table, value_b, ops_bk, first: int, key) -> tuple[jax.Array, jax.Array]:
    """(values stated, values before each step), int [B, K - first], from operation `first` on."""
    stated, before = [], []
    for k in range(first, ops_bk.shape[1]):
        before.append(value_b)
        logits = table[value_b, ops_bk[:, k, 0], ops_bk[:, k, 1]]
        value_b = jax.random.categorical(jax.random.fold_in(key, 1000 + k), logits)
        stated.append(value_b)
    return jnp.stack(stated, axis=1), jnp.stack(before, axis=1)
