"""Curves that go on in one of several ways: a line, a power law, a sudden rise, or as modelled."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, spearmanr

from ramp.nines import pool, rise
from ramp.nines.usage import Measured


def measured(x, rate, n=400.0):
    count = len(x)
    same = np.full(count, "a")
    rate = np.asarray(rate, float)
    return Measured(
        same, same, np.full(count, np.nan), np.asarray(x, float), rate, np.full(count, 0.01),
        np.full(count, n), rate,
    )  # fmt: skip


def shares(m):
    """Of the line, the power law and the rise."""
    members = pool._draw_members(m, m.x[-1:], 200, np.random.default_rng(0))
    return pool._weigh_members(m, members)


def test_what_has_not_risen_may_rise_and_the_sooner_the_less_it_has_been_tried():
    """The middle of the rise by Pareto, most of it a little later; whatever the unit."""
    chances = []
    for last in (100, 1000):
        m = measured(np.log10([last / 8, last / 4, last / 2, last]), [0.0] * 4, n=20)
        places = np.log10(last * np.array([1, 2, 4, 16]))
        draws = rise.sample_rise(m, places, 4000, np.random.default_rng(0))
        chances.append((draws > 0.3).mean(0))
    by_double, by_four, by_sixteen = chances[0][1:]
    assert chances[0] == pytest.approx(chances[1], abs=0.03)
    assert chances[0][0] < 0.02
    assert 0.2 < by_double < 0.5 < by_four < 0.75 < by_sixteen < 0.95


def test_a_rise_agrees_with_the_posterior_of_another_sampler():
    """Plain rejection with other random numbers, of counts below the cap on trials."""
    x = np.array([0.0, 0.3, 0.5, 0.7])
    wins = np.array([0, 1, 4, 8])
    m = measured(x, wins / 12, n=12.0)
    draws = rise.sample_rise(m, np.array([0.8, 1.2]), 8000, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    size = 400_000
    floor = rng.beta(0.3, 2, size)
    cap = floor + (1 - floor) * rng.beta(2, 0.7, size)
    middle = rng.exponential(1 / np.log(10), size)
    width = 0.1 * np.exp(rng.standard_normal(size))

    def curve(at):
        return floor + (cap - floor) * expit((at - middle) / width)

    trials = 1 / (1 / 12 + 1 / 100)
    chance = np.prod(
        [curve(a) ** (w / 12 * trials) * (1 - curve(a)) ** (trials - w / 12 * trials)
         for a, w in zip(x, wins, strict=True)], axis=0,
    )  # fmt: skip
    kept = rng.random(size) < chance / chance.max()
    for k, at in enumerate((0.8, 1.2)):
        expected = np.quantile(curve(at)[kept], (0.1, 0.5, 0.9))
        assert np.quantile(draws[:, k], (0.1, 0.5, 0.9)) == pytest.approx(expected, abs=0.04)


def test_a_late_rise_is_seen_however_long_nothing_was():
    """Steps 1 to 8192 without a success, then two measured ones."""
    x = np.log10(2.0) * np.arange(16)
    m = measured(x, [0.0] * 14 + [0.4, 0.9], n=20.0)
    draws = rise.sample_rise(m, x[-2:], 4000, np.random.default_rng(0))
    assert np.median(draws, 0) == pytest.approx([0.4, 0.85], abs=0.12)
    # The longer it was tried in vain the likelier it is that it never rises, but not by collapse.
    late = measured(np.log10([200, 400, 600, 800]), [0.0] * 4, n=20)
    early = measured(np.log10([1, 200, 400, 600, 800]), [0.0] * 5, n=20)
    by_double = [
        (rise.sample_rise(m, np.log10([1600]), 4000, np.random.default_rng(0)) > 0.3).mean()
        for m in (late, early)
    ]
    assert 0.1 < by_double[1] < by_double[0] < 0.3


def test_many_trials_are_explained_too():
    x = np.linspace(0, 1, 30)
    m = measured(x, 0.1 + 0.6 * expit((x - 0.5) / 0.07), n=100_000.0)
    draws = rise.sample_rise(m, np.array([0.5, 1.0, 1.3]), 2000, np.random.default_rng(0))
    assert len(np.unique(draws[:, 0])) > 60
    assert np.median(draws, 0) == pytest.approx([0.4, 0.7, 0.7], abs=0.03)
    assert np.ptp(np.quantile(draws[:, 2], (0.05, 0.95))) < 0.1


def test_where_no_draw_explains_what_was_measured_no_rise_is_told(monkeypatch):
    x = np.linspace(0, 1, 30)
    m = measured(x, 0.1 + 0.6 * (x > 0.3) + 0.2 * (x > 0.7), n=100_000.0)
    monkeypatch.setattr(rise, "ROUNDS", 1)
    assert rise.sample_rise(m, x[-1:], 100, np.random.default_rng(0)) is None
    pooled = pool.pool(np.full((600, 1), 0.5), m, x[-1:] + 0.3, 1.0, np.random.default_rng(0))
    assert (pooled == 0.5).mean() == pytest.approx(1 / 3, abs=0.06)
    monkeypatch.undo()
    # Three checkpoints near the top promise no fall.
    flat = measured([0.0, 0.1, 0.2], [0.995] * 3, n=5000.0)
    model = np.full((800, 1), 0.995)
    pooled = pool.pool(model, flat, np.array([0.5]), 0.2, np.random.default_rng(0))
    assert np.quantile(pooled, 0.1) > 0.97


def test_members_go_on_from_the_last_checkpoint_of_the_mix():
    """The last checkpoint of all may have tried a part of it only."""
    x = np.linspace(0, 1, 8)
    m = measured(x, expit(2 * x - 1), n=100.0)
    grid = np.array([1.5])
    later, same = (
        pool.pool(np.full((4000, 1), np.nan), m, grid, now, np.random.default_rng(0))
        for now in (1.4, 1.0)
    )
    assert np.nanmedian(later) == pytest.approx(np.nanmedian(same), abs=0.02)


def test_each_member_gains_where_curves_are_its_own():
    x = np.linspace(0, 0.9, 9)
    rng = np.random.default_rng(0)

    def observe(rate):
        return measured(x, binom.rvs(100, rate, random_state=rng) / 100, n=100.0)

    # Unsolved for long, then all at once.
    sudden = shares(observe(0.95 * expit((x - 0.62) / 0.03)))
    assert sudden[2] > 0.9
    assert shares(observe(expit(4 * x - 2)))[0] > sudden[0]
    steady = shares(observe(0.8 - 0.6 * 10 ** (-1.0 * x)))
    assert steady[1] > sudden[1]
    # One surprise rules nothing out.
    assert min(steady) > 1e-4


def test_the_model_keeps_its_share_and_what_is_past():
    x = np.linspace(2, 2.7, 8)
    m = measured(x, expit(4 * (x - 2.4)))
    ahead = np.array([-0.1, 0.0, 0.3])
    plateau = np.full((2400, 3), 0.5)
    pooled = pool.pool(plateau, m, 2.7 + ahead, 2.7, np.random.default_rng(0))
    is_model = (pooled == 0.5).all(1)
    assert 0.2 < is_model.mean() < 0.3
    assert (pooled[:, 0] == 0.5).all()
    others = pooled[~is_model]
    # What holds now was measured: most draws take the item model for it.
    is_measured = others[:, 1] == 0.5
    assert 0.8 < is_measured.mean() < 0.98
    others = others[~is_measured]
    assert np.median(others[:, 2]) > others[:, 1].mean() > 0.7
    # A draw that is high now is high later: they are curves.
    assert spearmanr(others[:, 1], others[:, 2]).statistic > 0.2


def test_few_checkpoints_pool_what_they_can():
    x = np.arange(4) / 4
    ahead = np.array([0.3])
    plateau = np.full((800, 1), 0.5)

    def modelled(count):
        m = measured(x[:count], [0.0] * count, n=20.0)
        now = m.x[-1]
        return (pool.pool(plateau, m, now + ahead, now, np.random.default_rng(0)) == 0.5).mean()

    assert modelled(2) == 1
    assert modelled(3) == pytest.approx(1 / 2, abs=0.05)
    assert modelled(4) == pytest.approx(1 / 4, abs=0.05)
