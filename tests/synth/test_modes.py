"""The drift law against simulation and against its own recursion; mode coverage falls while Simpson stays put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramp.synth import exact


def test_zipf_modes_die_out_while_simpson_diversity_stays_put():
    traces = [exact.generations(exact.zipf(2000), 20_000, "replace", 20, np.random.default_rng(s)) for s in range(5)]
    first, last = (np.mean([t.coverage_g[g] for t in traces]) for g in (0, 20))
    assert first == pytest.approx(0.895, abs=0.01)
    assert last == pytest.approx(0.30, abs=0.02)
    simpson = np.mean([t.simpson_g[20] / t.simpson_g[0] for t in traces])
    assert simpson == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("m", [0.05, 0.1, 0.3, 0.5])
def test_anchor_law_within_a_tenth(m):
    """Variance about the real pool after many generations, in units of one replace step, against the closed form."""
    truth, n = exact.zipf(500), 20_000
    pool = np.random.default_rng(99).multinomial(n, truth) / n
    step = (pool * (1 - pool)).sum() / n
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        trace = exact.generations(truth, round((1 - m) * n), "anchored", 80, rng, m, pool_k=pool)
        held.append(trace.variance_g(pool)[40:].mean())
    assert np.mean(held) / step == pytest.approx(exact.excess(1.0, m, 10_000), rel=0.1)


@given(st.floats(0.01, 1), st.integers(1, 60))
def test_closed_form_is_the_recursion(m, g):
    v = 0.0
    for _ in range(g):
        v = (1 - m) ** 2 * v + (1 - m)
    assert exact.excess(2.0, m, g) == pytest.approx(2 * v, rel=1e-9, abs=1e-12)


@given(st.floats(0.01, 100))
def test_share_for_inverts_the_law(tolerance):
    m = exact.share_for(tolerance)
    assert 0 < m < 1
    assert (1 - m) / (m * (2 - m)) == pytest.approx(tolerance, rel=1e-6)


def test_published_points_of_the_law():
    assert [round(exact.share_for(r), 2) for r in (0.5, 1, 2)] == [0.59, 0.38, 0.22]
    assert exact.excess(0.1, 0, 7) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="share"):
        exact.excess(1, 1.2, 3)


def test_policies_are_ordered_as_published():
    kept = {}
    for policy, m in (("replace", 0), ("subsample", 0), ("accumulate", 0), ("anchored", 0.3)):
        trace = exact.generations(exact.zipf(2000), 20_000, policy, 20, np.random.default_rng(1), m)
        kept[policy] = trace.coverage_g[20]
    assert kept["replace"] < kept["subsample"] < kept["accumulate"]
    assert kept["replace"] < kept["anchored"]
    with pytest.raises(ValueError, match="policy"):
        exact.generations(exact.zipf(5), 10, "hope", 1, np.random.default_rng(0))
