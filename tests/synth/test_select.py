"""Filters against brute force, the projection against a general solver, the audit against simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ramp.synth import select
from ramp.synth.measure import Docs


def test_verifiers_that_refuse_and_raise():
    def broken(text):
        raise RuntimeError("no interpreter")

    assert select.apply_verifier(["ab", "b"], "a", lambda t: "a" in t) == ["", "a says no"]
    assert select.apply_verifier(["ab"], "broken", broken) == [
        "broken raised RuntimeError: no interpreter"
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=10), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 3), max_size=10), min_size=1, max_size=5),
    st.integers(3, 6),
)
def test_contamination_by_brute_force(docs, held, n):
    def shares(doc, other, k):
        parts = {tuple(other[i : i + k]) for i in range(len(other) - k + 1)}
        return any(tuple(doc[i : i + k]) in parts for i in range(len(doc) - k + 1))

    found = select.find_contaminated(Docs.from_lists(docs), Docs.from_lists(held), n)
    for doc, hit in zip(docs, found, strict=True):
        guilty = [
            j
            for j, h in enumerate(held)
            if shares(doc, h, n) or (3 <= len(h) < n and shares(doc, h, len(h)))
        ]
        assert (hit in guilty) if guilty else hit == -1


def test_repeats_look_at_the_pool_first():
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 1000, 40) for _ in range(5)]
    new = [rng.integers(0, 1000, 40), pool[3]]
    assert select.find_repeats(
        Docs.from_lists([*new, new[0]]), Docs.from_lists(pool), 0.8
    ).tolist() == [-1, 3, 5]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_projection_is_the_nearest_distribution_with_those_moments(seed):
    rng = np.random.default_rng(seed)
    base = rng.random(30) + 0.1
    f = np.concatenate([np.eye(3)[rng.integers(0, 3, 30)][:, :2], rng.normal(size=(30, 2))], axis=1)
    target = rng.dirichlet(np.ones(30) * 3) @ f
    w = select.project_weights(f, target, base, 1e9, 0.0, ridge=1e-9)
    q = base / base.sum()
    dual = lambda t: np.log(np.exp(np.log(q) + f @ t).sum()) - t @ target  # noqa: E731
    theta = optimize.minimize(dual, np.zeros(4), tol=1e-12).x
    want = q * np.exp(f @ theta)
    np.testing.assert_allclose(w.w / 30, want / want.sum(), atol=2e-4)
    np.testing.assert_allclose(w.missed, 0, atol=1e-6)


def test_projection_says_what_it_could_not_reach():
    cell = np.array([0] * 95 + [1] * 5)
    f = np.eye(3)[cell]
    w = select.project_weights(f, np.array([0.4, 0.4, 0.2]), np.ones(100), 4.0, 0.3)
    assert w.w.max() <= 4.0 + 1e-9 and w.ess >= 0.3 and w.w.mean() == pytest.approx(1)
    assert w.missed[2] == pytest.approx(0.2)  # an extinct cell cannot be reweighted back
    assert w.w[cell == 1].mean() > 2 * w.w[cell == 0].mean()
    tight = select.project_weights(f, np.array([0.1, 0.9, 0.0]), np.ones(100), 20.0, 0.6)
    loose = select.project_weights(f, np.array([0.1, 0.9, 0.0]), np.ones(100), 20.0, 0.0)
    assert tight.ess >= 0.6 > loose.ess and tight.w[95] < loose.w[95]
    with pytest.raises(ValueError, match="nothing"):
        select.project_weights(f[:0], np.zeros(3), np.ones(0), 4, 0.3)


@given(st.lists(st.floats(0.01, 50), min_size=2, max_size=40), st.floats(1.0, 10))
def test_clipped_weights(w, most):
    got = select.clip_weights(np.array(w), most)
    assert got.max() <= most * (1 + 1e-9) and (got >= 0).all()
    assert got.mean() == pytest.approx(1, abs=1e-6) or most * len(w) < len(w) * (1 + 1e-9)
    assert (np.argsort(got, kind="stable")[np.argsort(w)] >= 0).all()


def test_smoothed_masses_and_copies():
    p = select.smooth_counts(np.array([6, 1, 1, 0, 0]))
    assert p.sum() == pytest.approx(1) and p[3] == p[4] == pytest.approx(0.125)
    assert select.cap_duplicates("aaab", 2).tolist() == [2 / 3, 2 / 3, 2 / 3, 1]


def test_rarity_by_hand():
    count = np.array([100, 10, 1])
    docs = [[0, 0, 0, 2, 0, 0, 0, 1], [1], []]
    logs = np.log(count + 0.5)
    want = [(logs[2] + logs[1]) / 2, logs[1], 0]
    np.testing.assert_allclose(select.rarity(Docs.from_lists(docs), count), want)


def test_cells_hold_equal_shares_of_real_text():
    rng = np.random.default_rng(0)
    docs = Docs.from_lists([rng.integers(0, 50, 20) for _ in range(800)])
    bits = rng.normal(5, 1, 800)
    rare, surprising = select.Cells.fit(docs, bits, 50).assign(docs, bits)
    for band in (rare, surprising):
        assert np.bincount(band, minlength=8).min() > 60


def test_precision_bound_holds_in_simulation():
    rng = np.random.default_rng(0)
    for share, tpr, fpr in ((0.5, 0.95, 0.02), (0.6, 0.8, 0.2), (0.9, 0.99, 0.01)):
        true = share * tpr / (share * tpr + (1 - share) * fpr)
        bounds = []
        for _ in range(300):
            accepted = share * tpr + (1 - share) * fpr
            bounds.append(
                select.precision_bound(
                    accepted, rng.binomial(200, tpr), rng.binomial(200, fpr), 200
                )
            )
        assert np.mean(np.array(bounds) <= true) > 0.85
        assert np.mean(bounds) > true - 0.12
    assert select.precision_bound(1.0, 200, 200, 200) == 0.0  # one that always agrees tells nothing


def test_a_verifier_blind_to_the_tail_is_noticed_and_small_cells_do_not_cry_wolf():
    rng = np.random.default_rng(0)
    cell = rng.choice(8, 800, p=np.r_[0.3, np.full(7, 0.1)])
    fair = rng.random(800) < 0.7
    blind = fair & (cell < 6)
    assert (
        select.acceptance_imbalance(fair, cell) < 2
        and select.acceptance_imbalance(blind, cell) > 10
    )
    assert select.acceptance_imbalance(np.zeros(30, bool), np.arange(30)) == 1.0
