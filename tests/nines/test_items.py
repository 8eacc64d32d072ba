import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import betabinom
from test_oracle import suite
from worlds import world

from ramp.errors import UserError
from ramp.nines import items, ready, trials


def test_log_gamma_is_the_function():
    with jax.enable_x64(True):
        z = np.geomspace(1e-8, 1e5, 200)
        assert np.allclose(items._log_gamma(jnp.asarray(z)), gammaln(z), rtol=1e-9, atol=2e-9)


def test_likelihood_is_scipys_beta_binomial():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 20, 50)
    s, eta, lapse = rng.binomial(n, 0.6), rng.normal(0, 2, 50), rng.normal(-3, 1, 50)
    with jax.enable_x64(True):
        d = {"wins": jnp.asarray(s, float), "count": jnp.asarray(n, float), "chance": jnp.full(50, 0.25)}
        ours = items._log_likelihood(jnp.asarray(eta), jnp.asarray(lapse), jnp.asarray(1.2), d)
    p = 0.25 + (0.75 - 1 / (1 + np.exp(-lapse))) / (1 + np.exp(-eta))
    full = betabinom.logpmf(s, n, p * np.exp(1.2), (1 - p) * np.exp(1.2))
    choose = gammaln(n + 1) - gammaln(s + 1) - gammaln(n - s + 1)
    assert np.allclose(np.asarray(ours) + choose, full, atol=1e-8)


def test_scales_abilities_and_items_are_recovered():
    c = suite(3, 300, 5, 6, 10)
    fit = items.fit(c)
    assert fit.hyper[:, 0].mean() == pytest.approx(1.5, abs=0.25)
    assert fit.hyper[:, 2].mean() == pytest.approx(6, rel=0.4)
    truth = 1.5 + 1.5 * c.progress
    ours = fit.mean[:5]
    assert ours - ours.mean() == pytest.approx(truth - truth.mean(), abs=0.35)
    share = np.array([c.wins[c.item == i].sum() / c.count[c.item == i].sum() for i in range(300)])
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
                    {"run": "a", "step": step, "item": str(i), "slice": name, "success": int(rng.random() < p)}
                    for _ in range(4)
                ]
    fit = items.fit(items.cells(trials.table(rows)))
    assert fit.cells.slices == ["base", "typos"]
    assert fit.mean[fit.columns("slice ")] == pytest.approx([1.5], abs=0.5)


@pytest.mark.parametrize("outcome", [0, 1])
def test_all_failures_or_all_passes_leave_a_wide_interval(outcome):
    rows = [
        {"run": "a", "step": s, "item": str(i), "seed": str(k), "success": outcome}
        for s in (1, 3, 10) for i in range(20) for k in range(2)
    ]  # fmt: skip
    o = ready.outlook(trials.table(rows), draws=200)
    low, high = np.quantile(o.mix[:, np.searchsorted(o.grid, o.now)], (0.05, 0.95))
    assert high - low > 0.01
    if outcome:
        assert o.ready(3)[:, -1].mean() < 0.9  # 120 clean trials of 20 items are no three nines


def test_one_item_is_refused():
    rows = [{"run": "a", "step": s, "item": "x", "success": s % 2} for s in (1, 2, 3)]
    with pytest.raises(UserError, match="one item"):
        items.cells(trials.table(rows))
    with pytest.raises(UserError, match="item of every trial"):
        items.cells(trials.table([{"run": "a", "step": 1, "success": 0.5, "stderr": 0.1}]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_first_passages_of_two_hundred_worlds_are_covered():
    """By the randomised PIT: "never" and "already" are atoms, of which an interval takes the share that is due."""
    rng, inside = np.random.default_rng(0), {1: [], 2: [], 3: []}
    for seed in range(1000, 1200):
        t, grid, truth = world(seed)
        o = ready.outlook(t, decades=2.0, draws=400, steps=61)
        for r, found in inside.items():
            ok = truth >= 1 - 10.0**-r
            actual = grid[ok.argmax()] if ok.any() else np.inf
            passage = o.passage(r)
            below, at_most = (passage < actual - 1e-9).mean(), (passage <= actual + 1e-9).mean()
            found.append(0.05 <= below + (at_most - below) * rng.random() <= 0.95)
    coverage = {r: float(np.mean(v)) for r, v in inside.items()}
    print(coverage)
    assert all(0.85 <= v <= 0.95 for v in coverage.values()), coverage
