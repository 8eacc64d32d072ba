"""Every method's mean gradient against the exact gradient of what its docstring says it estimates.

On policies so small that all rollouts are listed; steps and rollouts have uneven lengths. For two
rollouts a group the mean is exact. For more, each rollout is tried beside the same random siblings:
what a baseline adds then cancels as it does in the mean.
"""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.credit import tree as T
from ramp.credit import baselines as B
from ramp.credit.advantages import METHODS

BEST_OF = 3
TEACHER = 3  # seed of the teacher's logits
SHAPES = {3: 2, 8: 1}  # K steps: letters a step


def make_world(K: int, real: bool = False):
    tree = T.grow(K, SHAPES.get(K, 1), seed=K, real=real)
    logits = T.draw_logits(tree, seed=1)
    return T.with_values(tree, logits, BEST_OF, TEACHER), logits


@pytest.fixture(scope="module")
def worlds():
    return {K: make_world(K) for K in SHAPES}


@pytest.fixture(scope="module")
def real_world():
    return make_world(3, real=True)


# What each method says that it estimates, as a function of (tree, logits, G).


def reward(tree, logits, G):
    return T.whole(tree, tree.reward_m)


def grpo(tree, logits, G):
    """The closed form of the docstring, at the success of this policy."""
    p, n = float(tree.chances(logits) @ tree.reward_m), G - 1
    slope = sum(
        comb(n, k)
        * p**k
        * (1 - p) ** (n - k)
        * (np.sqrt((n - k) / (k + 1)) + np.sqrt(k / (n + 1 - k)))
        for k in range(n + 1)
    )
    return T.whole(tree, slope * tree.reward_m)


def best_of_k(tree, logits, G):
    """The mean best of k independent rollouts, whatever their rewards."""
    k, order = min(4, G), np.argsort(tree.reward_m)

    def objective(logits):
        below = jnp.cumsum(tree.chances(logits)[order])
        at_most = jnp.concatenate([jnp.zeros(1), below]) ** k
        return jnp.diff(at_most) @ tree.reward_m[order]

    return objective


def prover(tree, logits, G):
    """The value of the best of K after each step, in its context."""
    goes_on = np.pad(tree.exists_ms[:, 1:], ((0, 0), (0, 1))) > 0
    after = np.pad(tree.extra["best_bs"][:, 1:], ((0, 0), (0, 1)))
    return T.in_context(tree, np.where(goes_on, after, tree.reward_m[:, None]))


def implicit(tree, logits, G):
    mask, p = tree.step_mn >= 0, np.asarray(tree.chances(logits))
    token_reward = tree.extra["implicit_bn"] * mask
    mean = p @ (token_reward.sum(1) / mask.sum(1))
    return T.whole(tree, ((token_reward - mean) * mask).sum(1))


def steps(tree, logits, G):
    return T.in_context(tree, tree.right_ms)


def clean_steps(tree, logits, G):
    chance = np.clip(tree.right_ms, 0, 1)
    clean = np.stack([chance[:, :s].prod(1) for s in range(chance.shape[1])], axis=1)
    return T.in_context(tree, clean * tree.right_ms)


def sum_of_steps(tree, logits, G):
    return T.whole(tree, (tree.right_ms * tree.exists_ms).sum(1))


def standard_units(tree, logits, G):
    """The sum of step rewards in units of all steps that the policy takes."""
    w = np.asarray(tree.chances(logits))[:, None] * tree.exists_ms
    mean = (w * tree.right_ms).sum() / w.sum()
    unit = np.sqrt((w * (tree.right_ms - mean) ** 2).sum() / w.sum())
    return T.whole(tree, (tree.exists_ms * (tree.right_ms - mean)).sum(1) / unit)


def minus_kl(tree, logits, G):
    return T.minus_kl(tree, logits, T.draw_logits(tree, TEACHER))


def both(*objectives):
    return lambda *args: lambda logits: sum(objective(*args)(logits) for objective in objectives)


# Those that estimate a gradient for any G; the other two have tests of their own.
ESTIMATES = {
    "rloo": reward,
    "grpo": grpo,
    "pass_at_k": best_of_k,
    "vine": reward,
    "prover": both(prover, reward),
    "implicit": both(implicit, reward),
    "step_return": sum_of_steps,
    "step_local": steps,
    "outcome_and_step": both(steps, reward),
    "first_error": clean_steps,
    "teacher": minus_kl,
    "self_teacher": minus_kl,
}
LARGE_GROUPS = ("grpo_process",)
NO_GRADIENT = ("min_form",)


def estimate(world, name, G, draws=10, **settings):
    """The mean gradient of a method."""
    if name == "implicit" and G > 2:
        draws *= 15  # its baseline is multiplied by the length, so its noise does not cancel
    tree, logits = world
    chances = tree.chances(logits)
    by_reward = name in ("rloo", "grpo", "pass_at_k") and set(tree.reward_m) == {0, 1}
    others, weight = (
        T.draw_by_reward(tree, chances, G)
        if by_reward
        else T.draw_others(chances, G, draws, seed=G)
    )
    settings = {"pass_k": min(4, G)} | settings
    a_mln = T.advantages(tree, METHODS[name], others, **settings)
    return T.mean_gradient(tree, logits, np.einsum("mln,l->mn", a_mln, weight))


def compare(got, want):
    """(cosine, ratio of the norms)."""
    norms = np.linalg.norm(got), np.linalg.norm(want)
    return float((got * want).sum() / np.prod(norms)), float(norms[0] / norms[1])


def assert_is_gradient(world, name, G, **how):
    tree, logits = world
    want = np.asarray(jax.grad(ESTIMATES[name](tree, logits, G))(logits))
    got = estimate(world, name, G, **how)
    cos, ratio = compare(got, want)
    assert cos > 0.99 and ratio == pytest.approx(1, abs=0.03), (cos, ratio)
    return got, want


def test_every_method_says_what_it_estimates():
    assert {*ESTIMATES, *LARGE_GROUPS, *NO_GRADIENT} == METHODS.keys()


@pytest.mark.parametrize(("K", "G"), [(3, 2), (8, 2), (8, 5)])
@pytest.mark.parametrize("name", ESTIMATES)
def test_the_mean_is_the_gradient_that_the_docstring_says(worlds, name, K, G):
    assert_is_gradient(worlds[K], name, G)


@pytest.mark.slow
@pytest.mark.parametrize("K", range(3, 9))
@pytest.mark.parametrize("G", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("name", ESTIMATES)
def test_at_every_size(name, K, G):
    """`pytest -m slow -n 2 tests/credit/test_estimators.py`."""
    assert_is_gradient(make_world(K), name, G, draws=20)


REWARDS_OF_ANY_SIZE = (
    "rloo",
    "pass_at_k",
    "vine",
    "prover",
    "step_local",
    "step_return",
    "first_error",
)


@pytest.mark.parametrize("name", REWARDS_OF_ANY_SIZE)
def test_with_rewards_that_are_any_number(real_world, name):
    assert_is_gradient(real_world, name, 2)


def test_grpo_process_in_large_groups(worlds):
    tree, logits = worlds[3]
    want = np.asarray(jax.grad(standard_units(tree, logits, None))(logits))
    cos, ratio = compare(estimate(worlds[3], "grpo_process", 200, draws=4), want)
    assert cos > 0.98 and ratio == pytest.approx(1, abs=0.05)


def asymmetry(name, **settings):
    """How far the Jacobian of a mean gradient is from symmetric: that of a true gradient is."""
    tree = T.grow(2, 2, seed=0)
    logits = T.draw_logits(tree, seed=1)
    others, _ = T.draw_others(tree.chances(logits), 2, 0, seed=0)
    a_mln = T.advantages(tree, METHODS[name], others, **settings)

    def mean_gradient(at):
        p = tree.chances(at)
        weight_mn = p[:, None] * jnp.einsum("mln,l->mn", a_mln, p)
        return jax.grad(lambda logits: jnp.sum(weight_mn * tree.logps(logits)))(at)

    jacobian = np.asarray(jax.jacfwd(mean_gradient)(logits)).reshape(logits.size, -1)
    return np.linalg.norm(jacobian - jacobian.T) / np.linalg.norm(jacobian)


def test_two_methods_are_the_gradient_of_nothing():
    assert asymmetry("rloo") < 1e-5
    assert asymmetry("min_form", outcome_coef=0.0) > 0.05
    assert asymmetry("grpo_process") > 0.05


def test_a_baseline_for_each_later_step_fines_every_further_step(worlds):
    """verl#7244: as many terms as the rollout has steps, so its gradient is that of the sum of step
    rewards less the mean reward of a sibling's step at each place that the rollout reaches.
    """
    tree, logits = worlds[3]

    def biased(c):
        w, r = (B.group_by_problem(c, a) for a in (c.exists_bs, c.right_bs))
        mean = B.sum_of_others(w * r) / jnp.maximum(B.sum_of_others(w), 1)
        to_go = B.reward_to_go((w * (r - mean)).reshape(c.right_bs.shape))
        return B.spread_to_tokens(c, to_go)

    others, weight = T.draw_others(tree.chances(logits), 2, 0, seed=0)
    a_mln = T.advantages(tree, biased, others)
    got = T.mean_gradient(tree, logits, np.einsum("mln,l->mn", a_mln, weight))
    mean_s = weight @ (tree.exists_ms * tree.right_ms)
    closed = T.whole(tree, (tree.exists_ms * (tree.right_ms - mean_s)).sum(1))
    assert compare(got, np.asarray(jax.grad(closed)(logits))) == pytest.approx((1, 1), abs=1e-3)
    # Which is another gradient than that of the sum; `step_return` has that one.
    want = np.asarray(jax.grad(sum_of_steps(tree, logits, 2))(logits))
    assert compare(got, want)[0] < 0.98
