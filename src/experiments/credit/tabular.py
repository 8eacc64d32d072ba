"""Chain arithmetic by a policy over a table of facts: a whole training run as one jitted program.

The table holds a softmax over digits for each (value, operation, operand), so that verified
accuracy is exact, and runs are cheap enough to tune every arm of a comparison by itself. Its logits
are free numbers, which share nothing between facts, or the outputs of a small network (`mlp.py`).

A rollout of a chain of K operations is K tokens, one a step; its answer is the last of them.

    tables = np.stack([make_table("products", seed) for seed in (1, 2)])      two lanes
    weights = POLICIES["table"].make(tables, seeds)
    curves = run_lanes(
        ARMS["step-local"], 64, "table", weights, rates, seeds, num_steps=12, budget=10**5
    )
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.credit import chain_values, mlp
from experiments.credit.imitation import IMITATION
from ramp.credit.advantages import METHODS
from ramp.credit.baselines import Credit

GROUP = 8
NUM_HELD_OUT = 512

Array = jax.Array


@dataclass(frozen=True)
class Arm:
    """What is compared: a way to assign credit, and the reward that it is fed."""

    kind: str  # control, outcome or dense
    method: str
    reward: str
    entropy_coef: float = 0.0  # below 0 the entropy is minimised


@dataclass(frozen=True)
class Misconception:
    """A wrong rule, and how likely its owner is to follow it."""

    op: int  # the place in OPS of the operation that it gets wrong
    wrong: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (value, operand) to what is stated
    right: float  # chance of the right digit


MISCONCEPTIONS = {
    # Products are one too high. Entrenched: the right digit is drawn 3 times in 100.
    "products": Misconception(2, lambda value, operand: value * operand + 1, 0.03),
    # The same rule, held loosely.
    "products, loosely": Misconception(2, lambda value, operand: value * operand + 1, 0.25),
    # One operation is taken for another.
    "minus for plus": Misconception(1, lambda value, operand: value + operand, 0.03),
}


@dataclass(frozen=True)
class Policy:
    """What learns."""

    make: Callable[[np.ndarray, np.ndarray], Any]  # weights [L, ...], of tables [L, ...] and seeds
    to_table: Callable[[Any], Array]  # logits of one lane's weights


POLICIES = {
    "table": Policy(lambda tables, seeds: jnp.asarray(tables), lambda weights: weights),
    "network": Policy(mlp.fit_mlps, mlp.evaluate_facts),
}


def make_table(rule: str, seed: int) -> np.ndarray:
    """Float32 logits [10, 3, 10, 10] of somebody who holds the rule and knows all else.

    The seed moves every logit a little, so that each base finds other facts hard. Where the wrong
    rule happens to give the right digit, the fact is known.
    """
    m = MISCONCEPTIONS[rule]
    rng = np.random.default_rng(seed)
    truth = chain_values.truth()
    chance = np.full((10, 3, 10, 10), 0.001)
    value, operand = np.meshgrid(np.arange(10), np.arange(10), indexing="ij")
    stated = m.wrong(value, operand) % 10
    np.put_along_axis(chance, truth[..., None], 0.99, axis=-1)
    slice_vnx = chance[:, m.op]
    slice_vnx[:] = 0.001
    np.put_along_axis(slice_vnx, truth[:, m.op][..., None], m.right, axis=-1)
    # Where both agree the later one stands.
    np.put_along_axis(slice_vnx, stated[..., None], 0.96, axis=-1)
    return (np.log(chance) + rng.normal(0, 0.3, chance.shape)).astype(np.float32)


def make_chains(key: Array, n: int, num_steps: int) -> tuple[Array, Array, Array]:
    """(first value [n], operations [n, S], operands [n, S]) of random chains of S steps."""
    keys = jax.random.split(key, 3)
    return (
        jax.random.randint(keys[0], (n,), 0, 10),
        jax.random.randint(keys[1], (n, num_steps), 0, 3),
        jax.random.randint(keys[2], (n, num_steps), 0, 10),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draw:
    """Rollouts of B chains; [B, S] but for `is_answer_b`."""

    before: Array  # the value before each step
    stated: Array  # the digit that the step states
    right: Array  # float32, 1: it follows from the value before
    is_answer_b: Array  # float32 [B], 1: the last digit is the right answer


def draw_rollouts(table: Array, key: Array, start_b: Array, op_bs: Array, n_bs: Array) -> Draw:
    """One rollout of each chain under the table's policy."""
    truth = jnp.asarray(chain_values.truth())
    noise = jax.random.gumbel(key, (op_bs.shape[1], len(start_b), 10))

    def step(carry, x):
        value, gold = carry
        op, n, noise_bx = x
        stated = jnp.argmax(table[value, op, n] + noise_bx, axis=-1)
        return (stated, truth[gold, op, n]), (
            value,
            stated,
            truth[value, op, n] == stated,
            truth[gold, op, n],
        )

    xs = op_bs.T, n_bs.T, noise
    _, (before, stated, right, gold) = jax.lax.scan(step, (start_b, start_b), xs)
    is_answer = (stated[-1] == gold[-1]).astype(jnp.float32)
    return Draw(before.T, stated.T, right.T.astype(jnp.float32), is_answer)


def compute_reward(name: str, key: Array, d: Draw) -> Array:
    """Float32 [B]: what a rollout is paid."""
    share = d.right.mean(axis=1)
    verified = d.right.min(axis=1)
    answer = d.stated[:, -1].reshape(-1, GROUP)
    votes = (answer[:, :, None] == answer[:, None]).sum(axis=2)
    rewards = {
        "none": jnp.zeros_like(share),
        "random": jax.random.bernoulli(key, 0.5, share.shape).astype(jnp.float32),
        # The answer that most of the group gave; ties pay all of them.
        "majority": (votes == votes.max(axis=1, keepdims=True)).astype(jnp.float32).reshape(-1),
        "answer": d.is_answer_b,
        "verified": verified,
        "share": share,
        "verified + share": (verified + share) / 2,
    }
    return rewards[name]


def policy_loss(table: Array, arm: Arm, key: Array, d: Draw, op_bs: Array, n_bs: Array) -> Array:
    """What `credit.loss.policy_loss` is on-policy: the mean over tokens."""
    step_bn = jnp.broadcast_to(jnp.arange(d.right.shape[1]), d.right.shape)
    reward_pg = compute_reward(arm.reward, key, d).reshape(-1, GROUP)
    credit = Credit(reward_pg, d.right, jnp.ones_like(d.right), step_bn)
    advantage = jax.lax.stop_gradient((METHODS | IMITATION)[arm.method](credit))
    logps = jax.nn.log_softmax(table[d.before, op_bs, n_bs], axis=-1)
    logp = jnp.take_along_axis(logps, d.stated[..., None], axis=-1)[..., 0]
    entropy = -(jnp.exp(logps) * logps).sum(axis=-1)
    return (-advantage * logp - arm.entropy_coef * entropy).mean()


def measure_verified(table: Array, start_b: Array, op_bs: Array, n_bs: Array) -> Array:
    """The exact chance that every step of a chain is right, mean over chains."""
    truth = jnp.asarray(chain_values.truth())
    logps = jax.nn.log_softmax(table, axis=-1)

    def step(value, x):
        op, n = x
        stated = truth[value, op, n]
        return stated, logps[value, op, n, stated]

    _, logp_sb = jax.lax.scan(step, start_b, (op_bs.T, n_bs.T))
    return jnp.exp(logp_sb.sum(axis=0)).mean()


@cache
def make_runner(arm: Arm, num_rollouts: int, policy: str, num_steps: int) -> Callable:
    """The jitted `num_updates` updates of every lane, and the accuracy after them."""
    adam = optax.scale_by_adam()
    to_table = POLICIES[policy].to_table

    def loss(weights, *args):
        return policy_loss(to_table(weights), *args)

    def update(i, carry, rate, key, decay_from, total):
        weights, opt = carry
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        start, op, n = make_chains(keys[0], num_rollouts // GROUP, num_steps)
        start, op, n = (jnp.repeat(x, GROUP, axis=0) for x in (start, op, n))
        d = draw_rollouts(to_table(weights), keys[1], start, op, n)
        g = jax.grad(loss)(weights, arm, keys[2], d, op, n)
        change, opt = adam.update(g, opt)
        left = jnp.clip((total - i) / jnp.maximum(total - decay_from, 1), 0, 1)
        return jax.tree.map(lambda w, c: w - rate * left * c, weights, change), opt

    def run_lane(weights, opt, rate, key, first, num_updates, decay_from, total, held_out):
        body = partial(update, rate=rate, key=key, decay_from=decay_from, total=total)
        weights, opt = jax.lax.fori_loop(first, first + num_updates, body, (weights, opt))
        return weights, opt, measure_verified(to_table(weights), *held_out)

    lanes = jax.vmap(run_lane, in_axes=(0, 0, 0, 0, None, None, None, None, None))
    return jax.jit(lanes, donate_argnums=(0, 1))


@dataclass(frozen=True)
class Curves:
    """Verified accuracy of L lanes at E evaluations; the first is before any update."""

    steps_e: np.ndarray  # int, sampled steps so far
    verified_le: np.ndarray


def run_lanes(
    arm: Arm,
    num_rollouts: int,
    policy: str,
    weights: Any,
    rates: np.ndarray,
    seeds: np.ndarray,
    num_steps: int,
    budget: int,
    decay: bool = False,
    problems: int = 0,
) -> Curves:
    """Train every lane for `budget` sampled steps.

    policy: a name of POLICIES. weights: [L, ...], from its `make`. rates, seeds: [L]. decay: the
    rate falls to 0 over the second half. All lanes learn from other problems; all are judged on the
    same ones, of seed `problems`.
    """
    total = budget // (num_rollouts * num_steps)
    # Half of the evaluations lie in the first tenth, so that an early goal has points before it.
    places = np.concatenate([np.linspace(0, 0.1, 101), np.linspace(0.1, 1, 101)])
    ends = sorted({0, *np.round(places * total).astype(int).tolist()})
    held_out = make_chains(jax.random.PRNGKey(2**31 - 1 - problems), NUM_HELD_OUT, num_steps)
    keys = jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds))
    runner = make_runner(arm, num_rollouts, policy, num_steps)
    # A copy: the runner takes what it is given in.
    weights = jax.tree.map(jnp.copy, weights)
    opts = jax.vmap(optax.scale_by_adam().init)(weights)
    rates = jnp.asarray(rates, jnp.float32)
    decay_from = jnp.int32(total // 2 if decay else total)
    found = []
    for first, last in pairwise([0, *ends]):
        # Without decay `decay_from` is the last update: the rate stays as it is.
        weights, opts, verified = runner(
            weights, opts, rates, keys, first, last - first, decay_from, total, held_out
        )
        found.append(verified)
    steps_e = np.array(ends) * num_rollouts * num_steps
    return Curves(steps_e, np.stack([np.asarray(v) for v in found], axis=1))
