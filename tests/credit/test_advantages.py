"""Every method against a slow loop or a closed form."""

from dataclasses import replace
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.credit import advantages as A
from ramp.credit import baselines
from ramp.credit.audit import solutions_as_rollouts
from ramp.credit.learn import checker_credit
from ramp.credit.rollouts import check_values
from ramp.errors import UserError
from ramp.tasks import chain
from ramp.tasks.protocol import solution_ids
from ramp.text.tokenizer import Tokenizer

few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**31)


def credit(seed: int, P: int = 3, G: int = 4, S: int = 5) -> baselines.Credit:
    """Rollouts of 1 to S steps of 1 to 3 tokens, right or wrong at random, with values for all methods."""
    rng = np.random.default_rng(seed)
    B, N = P * G, 3 * S
    step, exists = np.full((B, N), -1), np.zeros((B, S))
    for b in range(B):
        count = rng.integers(1, S + 1)
        exists[b, :count] = 1
        spelled = np.repeat(np.arange(count), rng.integers(1, 4, count))
        step[b, : len(spelled)] = spelled
    right = (rng.random((B, S)) < 0.6) * exists
    extra = {k: jnp.asarray(rng.random((B, S)), jnp.float32) for k in ("value_bs", "best_bs")}
    extra |= {
        k: jnp.asarray(rng.normal(size=(B, N)), jnp.float32) for k in ("implicit_bn", "teacher_bn")
    }
    outcome = jnp.asarray(rng.random((P, G)) < 0.5, jnp.float32)
    return baselines.Credit(
        outcome,
        jnp.asarray(right, jnp.float32),
        jnp.asarray(exists, jnp.float32),
        jnp.asarray(step),
        **extra,
    )


@few
@given(seeds, st.sampled_from(sorted(A.METHODS)))
def test_shape_mask_and_finiteness(seed, name):
    c = credit(seed)
    a = np.asarray(A.METHODS[name](c))
    assert a.shape == c.step_bn.shape and a.dtype == np.float32 and np.isfinite(a).all()
    assert (a[np.asarray(c.step_bn) < 0] == 0).all()


@few
@given(
    seeds,
    st.sampled_from(["rloo", "grpo", "pass_at_k", "grpo_process", "step_local", "first_error"]),
)
def test_a_group_without_variance_gets_nothing(seed, name):
    c = credit(seed)
    same = jnp.ones_like(c.reward_pg)
    c = baselines.Credit(same, c.exists_bs, c.exists_bs, c.step_bn)
    assert np.abs(np.asarray(A.METHODS[name](c))).max() < 1e-5


@pytest.mark.parametrize("name", sorted({*A.METHODS} - {"implicit", "teacher", "self_teacher"}))
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0, 100.1])
def test_a_group_of_equal_rollouts_gets_exactly_nothing(name, reward):
    """Not what rounding leaves of sums of such rewards, nor what one place has over another."""
    right = jnp.full((8, 3), reward)
    step = jnp.tile(jnp.array([0, 0, 1, 2, 2]), (8, 1))
    c = baselines.Credit(
        jnp.full((1, 8), reward), right, jnp.ones((8, 3)), step, value_bs=right, best_bs=right
    )
    assert (np.asarray(A.METHODS[name](c)) == 0).all()
    # Where equal rollouts slip at the same step, a return says how many steps are left, and a
    # verdict on a step says which of them is wrong.
    same = replace(c, right_bs=right.at[:, 1].set(0.5 * reward))
    if name in ("step_return", "min_form"):
        assert (np.asarray(A.METHODS[name](same)) == 0).all()
    if name in ("step_local", "first_error") and reward:
        got = np.asarray(A.METHODS[name](same))
        assert (got[:, 0] > 0).all() and (got[:, 2] < 0).all()


@pytest.mark.parametrize("name", sorted({*A.METHODS} - {"implicit", "teacher", "self_teacher"}))
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_a_small_difference_is_a_difference(name, size):
    right = jnp.full((4, 2), size).at[0, 0].multiply(1 + 1e-4)
    step = jnp.tile(jnp.array([0, 1]), (4, 1))
    exists = jnp.ones((4, 2))
    c = baselines.Credit(right[None, :, 0], right, exists, step, value_bs=right, best_bs=right)
    assert np.abs(np.asarray(A.METHODS[name](c))).max() > 0


@few
@given(seeds)
def test_rloo_against_a_loop(seed):
    c = credit(seed)
    r, G = np.asarray(c.reward_b), c.group_size
    for b in range(len(r)):
        group = [i for i in range(b // G * G, b // G * G + G) if i != b]
        want = r[b] - np.mean(r[group])
        got = np.asarray(A.rloo(c))[b][np.asarray(c.step_bn)[b] >= 0]
        np.testing.assert_allclose(got, want, atol=1e-6)


def baseline_of(values, weight, others, s, pools_always):
    """Mean of place s in the others, with one more entry: the mean of all their steps."""
    count = weight[others].sum()
    if not count:
        return None
    mean = (values * weight)[others].sum() / count
    here = weight[others, s].sum()
    if not pools_always and here:
        return (values * weight)[others, s].sum() / here
    return ((values * weight)[others, s].sum() + mean) / (weight[others, s].sum() + 1)


@few
@given(seeds, st.booleans())
def test_credit_for_steps_against_loops(seed, abstains):
    """`step_local`, `first_error` and `step_return`, with soft verdicts and with such that abstain."""
    rng = np.random.default_rng(seed)
    c = credit(seed)
    right = rng.random(c.right_bs.shape).astype(np.float32)
    if abstains:
        right[rng.random(right.shape) < 0.3] = np.nan
    c = replace(c, right_bs=jnp.asarray(right))
    exists, G = np.asarray(c.exists_bs), c.group_size
    judged = exists * ~np.isnan(right)
    chance = np.where(judged > 0, right, 1)
    known = np.where(judged > 0, right, 0)
    clean = np.stack([chance[:, :s].prod(1) for s in range(exists.shape[1])], 1)
    to_go = np.stack([known[:, s:].sum(1) for s in range(exists.shape[1])], 1)
    for method, values, weight in (
        (A.step_local, known, judged),
        (A.first_error, known, judged * clean),
        (A.step_return, to_go, judged),
    ):
        got = np.asarray(method(c))
        for b, n in zip(*np.nonzero(np.asarray(c.step_bn) >= 0), strict=True):
            others = [i for i in range(b // G * G, b // G * G + G) if i != b]
            s = int(c.step_bn[b, n])
            baseline = baseline_of(values, weight, others, s, method is not A.step_return)
            want = 0 if baseline is None else weight[b, s] * (values[b, s] - baseline)
            assert got[b, n] == pytest.approx(want, abs=1e-5)


def written_steps(right, exists=None):
    """A group with one token a step; no answer is right."""
    right = jnp.asarray(right, jnp.float32)
    G, S = right.shape
    exists = jnp.ones((G, S)) if exists is None else jnp.asarray(exists, jnp.float32)
    step = jnp.where(exists > 0, jnp.arange(S), -1)
    return baselines.Credit(jnp.zeros((1, G)), right, exists, step)


def test_a_soft_head_pays_nothing_after_an_error():
    a = np.asarray(A.first_error(written_steps([[0.98, 0.02, 0.99, 0.96]] * 2)))
    assert np.abs(a[:, 2:]).max() < 0.01 < np.abs(a[:, 1]).max()


def test_a_lone_step_keeps_its_signal():
    """The only verified rollout of 8, and a rollout longer than all of its siblings."""
    right = np.zeros((8, 4))
    right[0] = 1
    a = np.asarray(A.first_error(written_steps(right)))
    assert (a[0] > 0.8).all() and (a[1:, 0] < 0).all() and (a[1:, 1:] == 0).all()
    exists = np.ones((4, 4))
    exists[1:, 2:] = 0
    right = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    a = np.asarray(A.step_local(written_steps(right, exists)))
    assert a[0, 2] > 0.3 and a[0, 3] < -0.3


@few
@given(seeds)
def test_process_credit_never_praises_a_wrong_step(seed):
    c = credit(seed)
    wrong = np.asarray(baselines.spread_to_tokens(c, (1 - c.right_bs) * c.exists_bs)) > 0
    right = np.asarray(baselines.spread_to_tokens(c, c.right_bs)) > 0
    for method in (A.step_local, A.first_error):
        a = np.asarray(method(c))
        assert (a[wrong] <= 1e-6).all() and (a[right] >= -1e-6).all()


@few
@given(seeds)
def test_vine_sums_to_the_outcome_minus_the_start(seed):
    """The differences telescope: the sum over a row's steps, seen at the last token of each."""
    c = credit(seed)
    a, step, G = np.asarray(A.vine(c)), np.asarray(c.step_bn), c.group_size
    is_end = (step >= 0) & (np.diff(step, axis=1, append=-1) != 0)
    goes_on = np.asarray(c.exists_bs)[:, 1] > 0
    first = np.where(goes_on, np.asarray(c.value_bs)[:, 1], np.asarray(c.reward_b)).reshape(-1, G)
    start = (first.sum(1, keepdims=True) - first) / (G - 1)
    np.testing.assert_allclose((a * is_end).sum(1), c.reward_b - start.reshape(-1), atol=1e-5)


@few
@given(seeds)
def test_grpo_process_against_deepseekmath(seed):
    c = credit(seed)
    r, w, G = np.asarray(c.right_bs), np.asarray(c.exists_bs), c.group_size
    got = np.asarray(A.grpo_process(c))
    for b in range(len(r)):
        g = slice(b // G * G, b // G * G + G)
        pool = r[g][w[g] > 0]
        unit = (r[b] - pool.mean()) / (pool.std() + 1e-4) * w[b]
        for n, s in enumerate(np.asarray(c.step_bn)[b]):
            if s >= 0:
                assert got[b, n] == pytest.approx(unit[s:].sum(), rel=1e-3, abs=1e-3)


@few
@given(seeds, st.integers(2, 5), st.booleans())
def test_pass_at_k_against_all_subsets(seed, k, abstains):
    """k times the mean best of all sets with the rollout, less the mean best of all without it.

    k is at most the number that report.
    """
    G, rng = 5, np.random.default_rng(seed)
    reward = rng.normal(size=(2, G)).astype(np.float32)
    if abstains:
        reward[0, 2] = np.nan
    c = replace(credit(seed, P=2, G=G), reward_pg=jnp.asarray(reward), pass_k=k)
    got = np.asarray(A.pass_at_k(c))[:, 0].reshape(2, G)

    def mean_best(values, size, *more):
        size = min(size, len(values))
        return np.mean([max(*s, *more, -np.inf) for s in combinations(values, size)])

    for p in range(2):
        for i in range(G):
            others = [x for j, x in enumerate(reward[p]) if j != i and not np.isnan(x)]
            size = min(k, len(others) + 1)
            want = size * (mean_best(others, k - 1, reward[p, i]) - mean_best(others, k))
            assert got[p, i] == pytest.approx(0 if np.isnan(reward[p, i]) else want, abs=1e-5)


def test_a_group_smaller_than_k_is_refused():
    with pytest.raises(UserError, match=r"reinforce\.pass_k"):
        A.pass_at_k(replace(credit(0), pass_k=5))
    A.pass_at_k(replace(credit(0), pass_k=4))


@few
@given(seeds, st.sampled_from(["rloo", "grpo", "pass_at_k", "vine"]))
def test_a_rollout_that_abstains_is_as_good_as_absent(seed, name):
    """Its advantage is 0, and the others get what they would get without it."""
    c = credit(seed, P=1, G=5)
    c = replace(c, reward_pg=jnp.asarray(c.reward_pg).at[0, 4].set(jnp.nan), pass_k=2)
    rest = jax.tree.map(lambda a: a[:4], replace(c, reward_pg=c.reward_pg.T))
    rest = replace(rest, reward_pg=rest.reward_pg.T)
    a = np.asarray(A.METHODS[name](c))
    assert (a[4] == 0).all()
    np.testing.assert_allclose(a[:4], A.METHODS[name](rest), atol=1e-5)


@few
@given(
    seeds, st.sampled_from(["grpo_process", "step_return", "step_local", "first_error", "min_form"])
)
def test_a_step_that_abstains_gets_nothing(seed, name):
    c = credit(seed)
    right = np.asarray(c.right_bs).copy()
    right[:, 1] = np.nan
    a = np.asarray(A.METHODS[name](replace(c, right_bs=jnp.asarray(right), outcome_coef=0.0)))
    assert np.isfinite(a).all() and (a[np.asarray(c.step_bn) == 1] == 0).all()


def test_min_form_is_about_the_worst_step():
    """One wrong step of three: everything up to it is charged for it, what comes after is not."""
    c = baselines.Credit(
        jnp.zeros((1, 2)),
        jnp.array([[1.0, 0, 1], [1, 1, 1]]),
        jnp.ones((2, 3)),
        jnp.array([[0, 1, 2], [0, 1, 2]]),
    )
    a = np.asarray(A.min_form(c))
    assert a[0, 0] == pytest.approx(a[0, 1], abs=1e-3) and a[0, 2] - a[0, 1] == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (np.ones((2, 3), np.int32), "int32"),
        (np.ones((2, 3), bool), "bool"),
        (np.ones((2, 2), np.float32), "shape"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
        (np.array([[1, np.inf, 0], [0, 0, 0]], np.float32), "1 values"),
        (np.array([["a"] * 3] * 2), "type"),
    ],
)
def test_rewards_that_are_refused(values, word):
    with pytest.raises(UserError, match=word):
        check_values("the reward", values, (2, 3))


def test_the_worked_example_of_the_docstring():
    """Two solutions of `3 a+4 b*2`, the second of them lucky: the arrays and advantages of `Credit`."""
    problem = chain.make(3, (("a", "+", 4), ("b", "*", 2)))
    tokenizer = Tokenizer.bytes_only()
    said = [solution_ids(tokenizer, steps, "4") for steps in (["a7", "b4"], ["a2", "b4"])]
    r = solutions_as_rollouts(tokenizer, chain.TASK, [problem] * 2, said)
    c = checker_credit(replace(r, group_size=2))
    steps = [0, 0, 0, 1, 1, 1, 2, 2]
    assert c.reward_pg.tolist() == [[1, 1]]
    assert c.right_bs[:, :3].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert c.exists_bs[:, :3].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert c.step_bn.tolist() == [steps, steps]
    assert np.abs(A.rloo(c)).max() == 0
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(A.step_local(c), [first / 2 + 1 / 6, -first], atol=1e-6)
