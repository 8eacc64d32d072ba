"""The drift law against simulation and against its own recursion; mode coverage falls while Simpson stays put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.collapse import drift, exact
from experiments.collapse.table import estimate_drift


def test_zipf_modes_die_out_while_simpson_diversity_stays_put():
    runs = [
        exact.simulate_generations(
            exact.zipf(2000), 20_000, "replace", 20, np.random.default_rng(s)
        )
        for s in range(5)
    ]
    first, last = (np.mean([exact.coverage(p)[g] for p in runs]) for g in (0, 20))
    assert first == pytest.approx(0.895, abs=0.01)
    assert last == pytest.approx(0.30, abs=0.02)
    simpson = np.mean([exact.simpson(p)[20] / exact.simpson(p)[0] for p in runs])
    assert simpson == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("m", [0.05, 0.1, 0.3, 0.5])
def test_anchor_law_within_a_tenth(m):
    """Variance about the real pool after many generations, in units of one replace step, against the closed form."""
    truth, n = exact.zipf(500), 20_000
    held = []
    for seed in range(60):
        p_gk = exact.simulate_generations(truth, n, "anchored", 80, np.random.default_rng(seed), m)
        pool = p_gk[0]
        step = (pool * (1 - pool)).sum() / n
        held.append(((p_gk[40:] - pool) ** 2).sum(axis=1).mean() / step)
    assert np.mean(held) == pytest.approx(drift.excess_loss(1.0, m, 10_000), rel=0.1)


@given(st.floats(0.01, 1), st.integers(1, 60), st.floats(0.05, 1))
def test_closed_form_is_the_recursion(m, g, gain):
    v = 0.0
    for _ in range(g):
        v = gain * (1 - m) ** 2 * v + (1 - m)
    assert drift.excess_loss(2.0, m, g, gain) == pytest.approx(2 * v, rel=1e-9, abs=1e-12)
    assert drift.excess_loss(2.0, m, g, gain) <= drift.excess_loss(2.0, m, g) * (1 + 1e-12)


@given(st.floats(0.01, 10), st.floats(0.1, 1), st.integers(2, 8))
def test_drift_reads_the_law_off_replace(d1, gain, generations):
    replaced = drift.excess_loss(d1, 0.0, np.arange(1, generations + 1), gain)
    assert estimate_drift(replaced) == pytest.approx((d1, gain), rel=1e-6)


def test_drift_that_quickens_or_stops_has_no_gain():
    assert estimate_drift(np.array([0.1, 0.3, 0.6])) == pytest.approx((0.2, 1.0))
    assert estimate_drift(np.array([0.1])) == estimate_drift(np.array([0.1, 0.05])) == (0.1, 1.0)


@given(st.floats(0.01, 100))
def test_share_for_inverts_the_law(tolerance):
    m = drift.real_fraction_for(tolerance)
    assert 0 < m < 1
    assert (1 - m) / (m * (2 - m)) == pytest.approx(tolerance, rel=1e-6)


def test_published_points_of_the_law():
    assert [round(drift.real_fraction_for(r), 2) for r in (0.5, 1, 2)] == [0.59, 0.38, 0.22]
    assert drift.excess_loss(0.1, 0, 7) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="fraction"):
        drift.excess_loss(1, 1.2, 3)
    with pytest.raises(ValueError, match="hands on"):
        drift.excess_loss(1, 0.2, 3, 1.5)


def test_policies_are_ordered_as_published():
    kept = {}
    for policy, m in (("replace", 0), ("subsample", 0), ("accumulate", 0), ("anchored", 0.3)):
        p_gk = exact.simulate_generations(
            exact.zipf(2000), 20_000, policy, 20, np.random.default_rng(1), m
        )
        kept[policy] = exact.coverage(p_gk)[20]
    assert kept["replace"] < kept["subsample"] < kept["accumulate"]
    assert kept["replace"] < kept["anchored"]
    with pytest.raises(ValueError, match="policy"):
        exact.simulate_generations(exact.zipf(5), 10, "hope", 1, np.random.default_rng(0))
