"""What each policy takes, and the order of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramp.synth import mix

RNG = np.random.default_rng


def test_policies_take_what_they_say():
    sizes = [100, 40, 60]
    got = {p: mix.compose(p, sizes, 80, RNG(0), 0.25) for p in mix.POLICIES}
    assert (
        set(got["replace"].generation) == {2} and len(got["replace"].index) == 80
    )  # 60 and 20 of them again
    assert len(got["accumulate"].index) == 200
    some = got["subsample"]
    assert (
        len(some.index) == 80 == len(np.unique(np.stack([some.generation, some.index]), axis=1).T)
    )
    assert (
        (got["anchored"].generation == 0).mean() == (got["guarded"].generation == 0).mean() == 0.25
    )
    assert set(got["anchored"].generation) == {0, 2} and set(got["guarded"].generation) == {0, 1, 2}
    assert set(mix.compose("replace", [10], 25, RNG(0)).generation) == {0}


@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 5))
def test_nothing_is_taken_twice_before_all_were(size, n, seed):
    got = mix.compose("replace", [1, size], n, RNG(seed))
    counts = np.bincount(got.index, minlength=size)
    assert len(got.index) == n and counts.max() - counts.min() <= 1


def test_ours_prefers_the_young_leaves_out_weight_zero_and_keeps_rare_rows():
    sizes, weights = [1000, 4000, 4000], [np.ones(4000), np.r_[np.zeros(2000), np.full(2000, 3.0)]]
    rare = np.arange(990, 1000)
    got = mix.compose("guarded", sizes, 1000, RNG(0), 0.3, rare, 0.5, weights, age_decay=0.5)
    young, old = (got.generation == g for g in (2, 1))
    assert got.index[young].min() >= 2000
    assert 0.8 < young.sum() / old.sum() < 1.25  # 2000 live ones against 4000 half as likely
    assert np.isin(got.index[got.generation == 0], rare).sum() >= 150
    made = got.weight[got.generation > 0]
    assert made.mean() == pytest.approx(1) and (got.weight[got.generation == 0] == 1).all()
    alone = mix.compose("guarded", [50, 10], 40, RNG(0), 0.3, weights=[np.zeros(10)])
    assert not alone.generation.any() and len(alone.index) == 40


def test_weighted_draw_is_in_proportion():
    chance = np.array([0.0, 1.0, 3.0])
    first = [mix.draw_weighted(chance, 1, RNG(i))[0] for i in range(2000)]
    assert np.mean(np.array(first) == 2) == pytest.approx(0.75, abs=0.04) and 0 not in first
    assert sorted(mix.draw_weighted(chance, 4, RNG(0))) == [1, 1, 2, 2]


def test_few_samples_are_not_learned_by_heart():
    """Each fills two places at most; real documents take the others."""
    made = mix.compose(
        "guarded", [50, 3], 20, RNG(0), 0.4, weights=[np.array([1, 1, 0])], max_passes=2
    )
    of_samples = made.index[made.generation == 1]
    assert sorted(of_samples) == [0, 0, 1, 1] and len(made.index) == 20


def test_order_ends_on_real_rows_and_is_a_pure_function():
    a = mix.order_rows(30, 10, 12, 4, 0.25, 7)
    assert a.shape == (12, 4) and (a[:9] < 30).all() and (a[9:] >= 30).all()
    assert np.array_equal(a, mix.order_rows(30, 10, 12, 4, 0.25, 7))
    assert sorted(a.ravel()[:30]) == list(range(30))
    with pytest.raises(ValueError, match="no rows"):
        mix.order_rows(3, 0, 2, 2, 0.5, 0)
    with pytest.raises(ValueError, match="real document"):
        mix.compose("guarded", [0, 3], 2, RNG(0))
    with pytest.raises(ValueError, match="policy"):
        mix.compose("magic", [3], 2, RNG(0))
