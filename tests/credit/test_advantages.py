"""Every method against a slow loop or a closed form."""

from dataclasses import replace
from itertools import combinations
from math import comb

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.credit import advantages as A
from ramp.credit.advantages import best_of
from ramp.credit.audit import solutions_as_rollouts
from ramp.credit.learn import checker_credit
from ramp.credit.rollouts import check_values
from ramp.errors import UserError
from ramp.tasks import chain
from ramp.tasks.protocol import solution_ids
from ramp.text.tokenizer import Tokenizer

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def credit(seed: int, P: int = 3, G: int = 4, S: int = 5) -> A.Credit:
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
    extra |= {k: jnp.asarray(rng.normal(size=(B, N)), jnp.float32) for k in ("implicit_bn",)}
    outcome = jnp.asarray(rng.random((P, G)) < 0.5, jnp.float32)
    return A.Credit(
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
    c = A.Credit(same, c.exists_bs, c.exists_bs, c.step_bn)
    assert np.abs(np.asarray(A.METHODS[name](c))).max() < 1e-5


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


@few
@given(seeds)
def test_step_local_and_first_error_against_loops(seed):
    c = credit(seed)
    ok, exists, G = np.asarray(c.right_bs), np.asarray(c.exists_bs), c.group_size
    local, first = np.asarray(A.step_local(c)), np.asarray(A.first_error(c))
    clean = np.array(
        [[exists[b, s] and all(ok[b, :s]) for s in range(ok.shape[1])] for b in range(len(ok))]
    )
    for b in range(len(ok)):
        others = [i for i in range(b // G * G, b // G * G + G) if i != b]
        for n, s in enumerate(np.asarray(c.step_bn)[b]):
            if s < 0:
                continue
            peers = [ok[i, s] for i in others if exists[i, s]]
            assert local[b, n] == pytest.approx(
                ok[b, s] - np.mean(peers) if peers else 0.0, abs=1e-6
            )
            peers = [ok[i, s] for i in others if clean[i, s]]
            want = ok[b, s] - np.mean(peers) if peers and clean[b, s] else 0.0
            assert first[b, n] == pytest.approx(want, abs=1e-6)


@few
@given(seeds)
def test_process_credit_never_praises_a_wrong_step(seed):
    c = credit(seed)
    wrong = np.asarray(A.spread_to_tokens(c, (1 - c.right_bs) * c.exists_bs)) > 0
    right = np.asarray(A.spread_to_tokens(c, c.right_bs)) > 0
    for method in (A.step_local, A.first_error):
        a = np.asarray(method(c))
        assert (a[wrong] <= 1e-6).all() and (a[right] >= -1e-6).all()


@few
@given(seeds)
def test_vine_sums_to_the_outcome_minus_the_start(seed):
    """The differences telescope: what is given to the steps adds up to what RLOO gives the rollout."""
    c = credit(seed)
    a, step = np.asarray(A.vine(c)), np.asarray(c.step_bn)
    ends = [
        [int(np.flatnonzero(step[b] == s)[-1]) for s in range(step[b].max() + 1)]
        for b in range(len(a))
    ]
    total = np.array([sum(a[b, n] for n in places) for b, places in enumerate(ends)])
    np.testing.assert_allclose(
        total, np.asarray(A.leave_one_out(c.reward_pg)).reshape(-1), atol=1e-5
    )


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
@given(seeds, st.integers(2, 4))
def test_pass_at_k_against_all_subsets(seed, k):
    """The advantage is the leave-one-out of the mean, over all k-subsets with the sample, of `only this one succeeds`."""
    c = credit(seed, P=2, G=5)
    won, G = np.asarray(c.reward_pg), 5
    value = np.zeros_like(won)
    for p in range(2):
        for i in range(G):
            sets = list(combinations([j for j in range(G) if j != i], k - 1))
            value[p, i] = np.mean([won[p, i] and not won[p, list(s)].any() for s in sets])
    want = np.asarray(A.leave_one_out(jnp.asarray(value))).reshape(-1)
    got = np.asarray(A.pass_at_k(c, k))
    np.testing.assert_allclose(got[:, 0], want, atol=1e-6)


def test_min_form_is_about_the_worst_step():
    """One wrong step of three: everything up to it is charged for it, what comes after is not."""
    c = A.Credit(
        jnp.zeros((1, 2)),
        jnp.array([[1.0, 0, 1], [1, 1, 1]]),
        jnp.ones((2, 3)),
        jnp.array([[0, 1, 2], [0, 1, 2]]),
    )
    a = np.asarray(A.min_form(c))
    assert a[0, 0] == pytest.approx(a[0, 1], abs=1e-3) and a[0, 2] - a[0, 1] == pytest.approx(
        1, abs=1e-3
    )


@few
@given(st.integers(2, 8), st.data())
def test_best_of_is_the_hypergeometric_chance(n, data):
    k, wins = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    got = best_of(np.array([[wins / n]], np.float32), n, k)[0, 0]
    assert got == pytest.approx(1 - comb(n - wins, k) / comb(n, k), abs=1e-6)


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
    np.testing.assert_allclose(A.step_local(c), [first, -first])
