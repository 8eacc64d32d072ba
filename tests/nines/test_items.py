import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, gammaln, polygamma
from scipy.stats import betabinom
from test_oracle import suite
from worlds import odd_kind, world

from ramp.errors import UserError
from ramp.nines import horizons, items, readiness, trials


def test_trigamma_is_the_function():
    z = np.geomspace(1e-8, 1e5, 200)
    assert np.allclose(items._trigamma(z), polygamma(1, z), rtol=1e-8)


def test_likelihood_is_scipys_beta_binomial_and_its_slopes_are_its_differences():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 20, 50)
    s, eta, lapse = rng.binomial(n, 0.6), rng.normal(0, 2, 50), rng.normal(-3, 1, 50)
    none = np.zeros(0)
    d = items.Cells(
        none, none, none, s.astype(float), n.astype(float), np.full(50, 0.25), none, [], [], [],
        none, none, [],
    )  # fmt: skip

    def ours(a, b):
        return items._log_likelihood(items._probability(eta + a, lapse + b, d), 1.2, d)

    p = 0.25 + (0.75 - 1 / (1 + np.exp(-lapse))) / (1 + np.exp(-eta))
    full = betabinom.logpmf(s, n, p * np.exp(1.2), (1 - p) * np.exp(1.2))
    choose = gammaln(n + 1) - gammaln(s + 1) - gammaln(n - s + 1)
    assert np.allclose(ours(0, 0) + choose, full, atol=1e-8)
    t = 1e-4
    differences = (
        (ours(t, 0) - ours(-t, 0)) / (2 * t),
        (ours(0, t) - ours(0, -t)) / (2 * t),
        (ours(t, 0) + ours(-t, 0) - 2 * ours(0, 0)) / t**2,
        (ours(t, t) - ours(t, -t) - ours(-t, t) + ours(-t, -t)) / (4 * t**2),
        (ours(0, t) + ours(0, -t) - 2 * ours(0, 0)) / t**2,
    )
    for slope, difference in zip(items._derivatives(eta, lapse, 1.2, d), differences, strict=True):
        assert np.allclose(-slope, difference, atol=2e-5)


@given(
    st.tuples(*[st.floats(-1.5, 1.5)] * 3),
    st.tuples(*[st.floats(0.5, 1000)] * 3),
    st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_peak_of_a_valley_is_found(centre, curves, turn):
    axes = np.linalg.qr(np.eye(3) + np.array([turn, turn[::-1], turn[1:] + turn[:1]]))[0]

    def loss(x):
        y = axes @ (x - np.array(centre))
        return float((curves * y**2 + 0.1 * y**4).sum())

    x, _, settled = items._minimize_hyper(loss, np.zeros(3), np.array([(-4, -4, -4), (4, 4, 4)]))
    assert settled
    assert loss(x) < 0.1


def test_scales_that_do_not_settle_are_said_and_widen_every_interval(monkeypatch):
    rng = np.random.default_rng(0)
    calls = []

    def rough(x):
        calls.append(x)
        return float(100 * rng.random())

    settled = [
        items._minimize_hyper(rough, np.zeros(3), np.array([(-4, -4, -4), (4, 4, 4)]))[2]
        for _ in range(20)
    ]
    assert len(calls) <= 20 * 130
    assert not any(settled)
    c = suite(3, 40, 3, 4, 3)
    fit, peak = items.fit(c), items._minimize_hyper
    monkeypatch.setattr(items, "_minimize_hyper", lambda *a: (*peak(*a)[:2], False))
    wide = items.fit(c)
    assert fit.converged
    assert not wide.converged
    assert wide.cov == pytest.approx(items.UNSETTLED**2 * fit.cov)
    assert np.log(wide.hyper).std(0) == pytest.approx(2 * np.log(fit.hyper).std(0), rel=0.3)


def test_scales_abilities_and_items_are_recovered():
    c = suite(3, 300, 5, 6, 10)
    fit = items.fit(c)
    assert fit.hyper[:, 0].mean() == pytest.approx(1.5, abs=0.25)
    assert fit.hyper[:, 2].mean() == pytest.approx(6, rel=0.4)
    truth = 1.5 + 1.5 * c.x
    ours = fit.mean[:5]
    assert ours - ours.mean() == pytest.approx(truth - truth.mean(), abs=0.35)
    share = np.array(
        [c.successes[c.item == i].sum() / c.count[c.item == i].sum() for i in range(300)]
    )
    assert np.corrcoef(fit.difficulty(), share)[0, 1] < -0.9
    again = items.fit(c)
    assert np.array_equal(fit.effects, again.effects)


def test_slices_have_a_price():
    rng, rows = np.random.default_rng(0), []
    for step in (10, 100):
        for i in range(80):
            hard = rng.normal(0, 1)
            for name, cost in (("base", 0.0), ("typos", 1.5)):
                p = 1 / (1 + np.exp(-(np.log10(step) - hard - cost)))
                rows += [
                    {
                        "run": "a",
                        "step": step,
                        "item": str(i),
                        "slice": name,
                        "success": int(rng.random() < p),
                    }
                    for _ in range(4)
                ]
    fit = items.fit(items.sum_cells(trials.from_rows(rows)))
    assert fit.cells.slices == ["base", "typos"]
    assert fit.mean[fit.columns("slice ")] == pytest.approx([1.5], abs=0.5)


@pytest.mark.parametrize("outcome", [0, 1])
def test_all_failures_or_all_passes_leave_a_wide_interval(outcome):
    rows = [
        {"run": "a", "step": s, "item": str(i), "seed": str(k), "success": outcome}
        for s in (1, 3, 10) for i in range(20) for k in range(2)
    ]  # fmt: skip
    o = readiness.forecast(trials.from_rows(rows), draws=200)
    low, high = np.quantile(o.mix[:, np.searchsorted(o.grid, o.now)], (0.05, 0.95))
    assert high - low > 0.01
    if outcome:
        assert o.is_ready(3)[:, -1].mean() < 0.9  # 120 clean trials of 20 items are no three nines


def test_one_item_is_refused():
    rows = [{"run": "a", "step": s, "item": "x", "success": s % 2} for s in (1, 2, 3)]
    with pytest.raises(UserError, match="one item"):
        items.sum_cells(trials.from_rows(rows))
    with pytest.raises(UserError, match="item of every trial"):
        items.sum_cells(trials.from_rows([{"run": "a", "step": 1, "success": 0.5, "stderr": 0.1}]))


@pytest.fixture(scope="module")
def covered():
    """Shares of 200 worlds whose 90% interval holds the truth, and of fits that settled.

    A third of the worlds is odd: equal items, items that nothing solves, all-pass checkpoints, one
    try. Passages by the randomised PIT: "never" and "already" are atoms, of which an interval takes
    the share that is due.
    """
    rng = np.random.default_rng(0)
    inside = {1: [], 2: [], 3: [], "now": [], "settled": []}
    for seed in range(21000, 21200):
        t, grid, truth = world(seed, odd=odd_kind(seed))
        o = readiness.forecast(t, decades=2.0, draws=400, steps=61)
        inside["settled"].append(o.converged)
        at = np.searchsorted(o.grid, o.now)
        inside["now"].append(0.05 <= (o.mix[:, at] < truth[at]).mean() <= 0.95)
        for r in (1, 2, 3):
            ok = (truth >= 1 - 10.0**-r) & (grid >= o.now - 1e-9)  # from now on
            actual = grid[ok.argmax()] if ok.any() else np.inf
            passage = o.first_ready(r)
            below, at_most = (passage < actual - 1e-9).mean(), (passage <= actual + 1e-9).mean()
            inside[r].append(0.05 <= below + (at_most - below) * rng.random() <= 0.95)
    shares = {k: float(np.mean(v)) for k, v in inside.items()}
    print(shares)
    return shares


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_fits_of_two_hundred_worlds_settle(covered):
    assert covered["settled"] >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("nines", [1, 2, 3])
def test_first_passages_of_two_hundred_worlds_are_covered(covered, nines):
    assert 0.85 <= covered[nines] <= 0.95


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_last_checkpoint_of_two_hundred_worlds_is_covered(covered):
    assert 0.85 <= covered["now"] <= 0.95


@pytest.mark.parametrize("outcome", [0, 1])
def test_where_nothing_differs_the_fit_settles_near_what_is_proven(outcome):
    rows = [
        {"run": "a", "step": s, "item": str(i), "seed": str(k), "success": outcome}
        for s in (1, 10) for i in range(50) for k in range(4)
    ]  # fmt: skip
    o = readiness.forecast(trials.from_rows(rows), draws=200)
    assert o.converged
    now = o.mix[:, np.searchsorted(o.grid, o.now)]
    low, high = np.quantile(now, (0.05, 0.95))
    # 50 items without a failure show .942 at 95%.
    assert low > 0.94 if outcome else high < 0.06


def test_items_of_equal_difficulty_settle():
    rng = np.random.default_rng(3)
    rates = expit(np.linspace(0.5, np.log(99), 5))
    rows = [
        {"run": "a", "step": 10**k, "item": str(i), "seed": str(j), "success": int(rng.random() < p)}
        for k, p in enumerate(rates) for i in range(100) for j in range(4)
    ]  # fmt: skip
    fit = items.fit(items.sum_cells(trials.from_rows(rows)), draws=80)
    assert fit.converged
    # The spread of the only family is not told by it.
    assert np.unique(fit.hyper[:, 1]) == pytest.approx(np.exp(-0.5))


def test_horizons_are_found_with_their_growth():
    """Items of 2 to 1,024 minutes, of which each doubling costs half a logit."""
    rng, rows = np.random.default_rng(5), []
    abilities = {1: 1.0, 10: 2.0, 100: 3.0}
    minutes = np.repeat(np.arange(1, 11), 12)
    own = rng.normal(0, 0.5, len(minutes))
    for step, ability in abilities.items():
        p = expit(ability - 0.5 * (minutes - 5.5) - own)
        for k in range(4):
            passed = rng.random(len(p)) < p
            rows += [
                {"run": "a", "step": step, "item": str(i), "seed": str(k), "difficulty": int(d), "success": int(s)}
                for i, (d, s) in enumerate(zip(minutes, passed, strict=True))
            ]  # fmt: skip
    fit = items.fit(items.sum_cells(trials.from_rows(rows)), draws=200)
    nodes, mass = np.polynomial.hermite_e.hermegauss(41)
    every = horizons.find_horizons(fit)
    for model, ability in enumerate(abilities.values()):
        half, most, all_but = every[3 * model : 3 * model + 3]
        assert all_but.difficulty[1] < most.difficulty[1] < half.difficulty[1]
        for found in (half, most):
            low, middle, high = found.difficulty
            # The truth at this rate, by the law that made the items.
            at = np.linspace(-10, 30, 4001)
            shown = expit(ability - 0.5 * (at[:, None] - 5.5) + 0.5 * nodes) @ (mass / mass.sum())
            truth = np.interp(-found.success, -shown, at)
            # One suite is a little harder than the law it is drawn from.
            assert low - 0.3 <= truth <= high + 0.3
            assert high - low < 5
            assert low < middle < high
    same = trials.from_rows([{k: v for k, v in r.items() if k != "difficulty"} for r in rows[:240]])
    plain = items.fit(items.sum_cells(same), draws=40)
    assert horizons.find_horizons(plain) == horizons.find_growth(plain, same) == []
