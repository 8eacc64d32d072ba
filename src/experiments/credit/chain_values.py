"""Exact values and gradients, for judging estimators.

Two policies of the task `chain`. The *table* holds a softmax over digits for each (value,
operation, operand), so that values and the gradient of the success chance follow from dynamic
programming (differentiated by jax). A *transformer* on short chains has its success chance summed
over all 10^K ways through the values: what is left out are rollouts that break the form, and how
much of the success that is can be measured.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from ramp.config import Model
from ramp.credit.loss import token_logps
from ramp.credit.rollouts import pack_conversations
from ramp.tasks import Problem
from ramp.tasks.chain import OPS
from ramp.tasks.protocol import render
from ramp.text.tokenizer import Tokenizer


def encode(problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start [P], op and operand [P, K], answer [P]) of chains of one length."""
    starts = np.array([p.gold[0] for p in problems])
    ops = np.array([[(OPS.index(op), n) for _, op, n in p.gold[1]] for p in problems])
    return starts, ops, np.array([int(p.answer) for p in problems])


def truth() -> np.ndarray:
    """int [10, 3, 10]: the right value of (value, op, operand)."""
    v, n = np.arange(10)[:, None], np.arange(10)[None, :]
    return np.stack([(v + n) % 10, (v - n) % 10, (v * n) % 10], axis=1)


def values(table: jax.Array, ops_k2: np.ndarray, answer: int) -> jax.Array:
    """[K+1, 10]: the chance of ending in `answer` from value v before operation k.

    table: logits [10, 3, 10, 10].
    """
    probs = jax.nn.softmax(table, axis=-1)
    v = jax.nn.one_hot(answer, 10)
    found = [v]
    for op, n in reversed(ops_k2.tolist()):
        v = probs[:, op, n] @ v
        found.append(v)
    return jnp.stack(found[::-1])


def success(table: jax.Array, problems: list[Problem]) -> jax.Array:
    """The exact mean chance of the right final value."""
    starts, ops, answers = encode(problems)
    chances = [
        values(table, o, a)[0, s] for s, o, a in zip(starts, ops, answers.tolist(), strict=True)
    ]
    return jnp.mean(jnp.stack(chances))


def skilled(seed: int, right: float) -> jax.Array:
    """Table logits that give the right value the chance `right` in the mean, with noise.

    Some facts known, some not.
    """
    noise = np.random.default_rng(seed).normal(0, 1, (10, 3, 10, 10))
    hit = np.eye(10)[truth()]
    low, high = -10.0, 20.0
    for _ in range(60):  # bisection on the bonus of the right value
        bonus = (low + high) / 2
        p = np.exp(noise + bonus * hit)
        fraction = ((p * hit).sum(-1) / p.sum(-1)).mean()
        low, high = (bonus, high) if fraction < right else (low, bonus)
    return jnp.asarray(noise + bonus * hit, jnp.float32)


def every_success(tokenizer: Tokenizer, problem: Problem, length: int) -> dict[str, np.ndarray]:
    """All 10^K rollouts of a chain that end in the right answer and keep the format.

    As rows of `token_logps`.
    """
    labels = [label for label, _, _ in problem.gold[1]]
    ways = (
        [f"{a}{v}" for a, v in zip(labels, digits, strict=True)]
        for digits in product(range(10), repeat=len(labels))
    )
    return pack_conversations(
        [render(tokenizer, problem, steps, problem.answer) for steps in ways], length
    )


def transformer_success(c: Model, lm: dict, rows: dict[str, jax.Array]) -> jax.Array:
    """The summed chance of the rollouts in `rows`.

    For `every_success` of a problem, its chance of success.
    """
    logp, _ = token_logps(c, lm, rows["tokens"], rows["targets"])
    return jnp.sum(jnp.exp(jnp.sum(logp * rows["weights"], axis=1)))
