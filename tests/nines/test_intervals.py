import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ramp.errors import UserError
from ramp.nines import intervals

N = st.integers(1, 60)


def test_trials_that_show_a_reliability():
    assert [intervals.trials_to_demonstrate(0.999, f) for f in (0, 1, 2, 3, 5)] == [
        2995,
        4742,
        6294,
        7752,
        10511,
    ]
    assert [intervals.trials_to_demonstrate(r) for r in (0.9, 0.99, 0.9999)] == [29, 299, 29956]
    assert intervals.pass_probability(2995, 0, 0.9995) == pytest.approx(0.2236, abs=1e-4)
    assert intervals.pass_probability(7752, 3, 0.9998) == pytest.approx(0.928, abs=1e-3)


@given(N, st.floats(0.02, 0.98), st.sampled_from([0.8, 0.9, 0.95]))
def test_clopper_pearson_covers_whatever_the_truth(n, truth, level):
    inside = [
        low <= truth <= high
        for low, high in (intervals.clopper_pearson(k, n, level) for k in range(n + 1))
    ]
    assert binom.pmf(np.arange(n + 1), n, truth)[inside].sum() >= level - 1e-9


@given(N, st.data())
def test_no_interval_is_a_point(n, data):
    k = data.draw(st.integers(0, n))
    for interval in (intervals.clopper_pearson, intervals.jeffreys):
        low, high = interval(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert high - low > 0.5 / (n + 10)


@settings(max_examples=20)
@given(st.integers(2, 7), st.data())
def test_pass_at_and_hat_equal_the_mean_over_all_choices(n, data):
    from itertools import combinations

    k = data.draw(st.integers(1, n))
    tries = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    picks = list(combinations(tries, k))
    wins = np.array([sum(tries)])
    assert intervals.pass_hat_k(k, wins, np.array([n])) == pytest.approx(
        np.mean([all(p) for p in picks])
    )
    assert intervals.pass_at_k(k, wins, np.array([n])) == pytest.approx(
        np.mean([any(p) for p in picks])
    )


def test_pass_needs_as_many_tries():
    with pytest.raises(UserError, match="needs 5 tries"):
        intervals.pass_hat_k(5, np.array([3, 4]), np.array([4, 5]))


def test_correlation_is_recovered():
    rng = np.random.default_rng(0)
    for rho in (0.2, 0.5, 0.8):
        phi = 1 / rho - 1
        wins = rng.binomial(4, rng.beta(0.6 * phi, 0.4 * phi, 20_000))
        assert intervals.intraclass_correlation(wins, np.full(20_000, 4)) == pytest.approx(
            rho, abs=0.02
        )
        assert intervals.pass_hat_k(3, wins, np.full(20_000, 4)) == pytest.approx(
            intervals.beta_binomial_pass_hat_k(3, 0.6, rho), abs=0.02
        )


@settings(max_examples=30)  # each solves for a distribution
@given(st.floats(0.05, 0.95), st.floats(0.05, 1.0))
def test_pass_from_two_keeps_both_moments_and_falls(one, rho):
    two = one**2 + rho * one * (1 - one)
    passes = [intervals.logit_normal_pass_hat_k(k, one, two) for k in (1, 2, 3, 4, 8)]
    assert passes[:2] == pytest.approx([one, two], abs=2e-4)
    assert np.all(np.diff(passes) <= 1e-9)
    assert passes[3] >= two**2 - 1e-6  # Jensen: E p^4 >= (E p^2)^2


def test_effective_trials():
    assert intervals.effective_trials(1872, 4, 0.5) == pytest.approx(2995.2)
    assert intervals.effective_trials(100, 7, 1.0) == pytest.approx(100)


@pytest.mark.parametrize("plan", [(1.0, 0), (0.9, -1), (0.0, 0)])
def test_impossible_plans_are_refused(plan):
    with pytest.raises(UserError):
        intervals.trials_to_demonstrate(*plan)


def test_one_sided_bound_is_an_end_of_the_two_sided_interval():
    for k in (0, 1, 40, 50):
        both = intervals.clopper_pearson(k, 50, 0.9)
        assert intervals.lower_bound(k, 50, 0.95) == pytest.approx(both[0])
