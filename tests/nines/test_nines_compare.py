import numpy as np
import pytest
from scipy.stats import binomtest

from ramp.errors import UserError
from ramp.nines import trials
from ramp.nines.compare import (
    Pairs,
    choose_run,
    compare_runs,
    control_false_discoveries,
    flip_interval,
    flip_signs,
    name_checkpoints,
    pair_items,
)

ITEMS = {"three": (3, 1), "four": (4, 1), "families": (10, 30)}


def rows(run, successes, **more):
    return [{"run": run, "item": str(i), "success": s} | more for i, s in enumerate(successes)]


def compare(*parts, unit="auto"):
    t = trials.from_rows([row for part in parts for row in part])
    return compare_runs(pair_items(choose_run(t, "a"), choose_run(t, "b")), unit=unit)


@pytest.mark.parametrize(("items", "p"), [(3, 0.25), (4, 0.125), (10, 2 / 1024)])
def test_few_items_are_exact(items, p):
    (c,) = compare(rows("a", [0] * items), rows("b", [1] * items))
    assert c.p_value == pytest.approx(p)
    assert c.difference == 1
    assert (c.interval[0] <= 0) == (p > 0.05)


@pytest.mark.parametrize("n", [30, 2000])
def test_whole_successes_give_the_sign_test(n):
    rng = np.random.default_rng(n)
    totals = rng.choice([-1.0, 0.0, 1.0], n, p=[0.3, 0.3, 0.4])
    wins, losses = (totals > 0).sum(), (totals < 0).sum()
    exact = binomtest(wins, wins + losses).pvalue
    assert flip_signs(totals) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("n", [8, 60, 1000])
def test_interval_holds_what_the_test_does_not_reject(n):
    rng = np.random.default_rng(n)
    totals = rng.normal(0.1, 0.3, n)
    low, high = flip_interval(totals, np.ones(n))
    for end, inward in ((low, 1), (high, -1)):
        assert flip_signs(totals - end - inward * 0.01) > 0.05
        assert flip_signs(totals - end + inward * 0.02) <= 0.06
    assert low < totals.mean() < high


@pytest.mark.parametrize("largest", [40, 2000, 20_000])
def test_the_estimate_lies_in_its_interval_whatever_the_sizes(largest):
    rng = np.random.default_rng(largest)
    sizes = np.append(np.ones(600), largest)
    for share in (0.3, -0.9):
        totals = np.append(rng.choice([-1.0, 0.0, 1.0], 600), share * largest)
        low, high = flip_interval(totals, sizes)
        assert -1 <= low <= totals.sum() / sizes.sum() <= high <= 1
        assert (low, high) == (-1, 1) or largest == 40


def null_difference(kind, rng):
    """Families of items whose two systems do not differ: [I] differences and the families."""
    families, size = ITEMS.get(kind, (40, 1))
    family = np.arange(families).repeat(size)
    if kind == "continuous":
        return rng.gamma(0.3, 1, 40).clip(0, 1) - rng.gamma(0.3, 1, 40).clip(0, 1), family
    # Each system is good at families of its own.
    p = rng.beta(0.7, 0.7, (2, families))[:, family]
    a, b = rng.random((2, len(family))) < p
    return b.astype(float) - a, family


def false_positives(kind, runs):
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(runs):
        difference, family = null_difference(kind, rng)
        one = np.full(len(family), "task")
        names = np.char.add("f", family.astype(str))
        c = compare_runs(Pairs(one, names, difference, (0, 0)))[0]
        found += c.p_value <= 0.05
    return found / runs


@pytest.mark.parametrize("kind", [*ITEMS, "continuous"])
def test_false_positives(kind):
    assert false_positives(kind, 400) <= 0.07


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [*ITEMS, "continuous"])
def test_false_positives_in_four_thousand_runs(kind):
    """pytest -n 0 -s -m slow tests/nines/test_nines_compare.py"""
    share = false_positives(kind, 4000)
    print(f"{kind}: {share:.4f}")
    # An exact test of ten families is at 5% itself; the rest is chance of the simulation.
    assert share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 4000)


def test_what_is_detectable_is_detected():
    rng = np.random.default_rng(9)
    totals = rng.normal(0, 0.3, 40)
    names = np.arange(40).astype(str)
    one = np.full(40, "task")
    (c,) = compare_runs(Pairs(one, names, totals, (0, 0)))
    found = [flip_signs(rng.normal(c.detectable, totals.std(), 40)) <= 0.05 for _ in range(60)]
    assert 0.6 < np.mean(found) < 0.95
    assert compare(rows("a", [0] * 5), rows("b", [1] * 5))[0].detectable is None
    (same,) = compare(rows("a", [1] * 50), rows("b", [1] * 50))
    assert same.p_value == 1
    assert 0.1 < same.detectable < 0.2  # six items of fifty must turn


def test_last_checkpoints_are_compared_slice_by_slice():
    old = rows("a", [0] * 8, step=1) + rows("b", [1] * 8, step=1)
    new = rows("a", [1] * 8, step=2) + rows("b", [1] * 8, step=2)
    assert compare(old, new)[0].difference == 0
    # A slice that only one of them tried is left out.
    hard = rows("a", [0] * 8, step=2, slice="typos")
    assert compare(old, new, hard)[0].difference == 0
    with pytest.raises(UserError, match="same suite"):
        compare(rows("a", [1]), [{"run": "b", "item": "other", "success": 1}])
    with pytest.raises(UserError, match="no trial belongs"):
        compare(rows("a", [1]))


def test_many_tasks_without_a_difference_are_rarely_called_different():
    rng = np.random.default_rng(10)
    q = [control_false_discoveries(rng.random(50)).min() for _ in range(400)]
    assert np.mean(np.array(q) <= 0.05) < 0.08
    assert control_false_discoveries(np.array([0.04, 0.01, 0.5])) == pytest.approx(
        [0.06, 0.03, 0.5]
    )
    parts = [rows(r, [s] * 12, task=k) for k in "xy" for r, s in (("a", 0), ("b", int(k == "x")))]
    whole, x, y = compare(*parts)
    assert whole.items == 24
    assert x.q_value < 0.01
    assert y.q_value == 1


@pytest.mark.parametrize(("items", "rate", "tries"), [(20, 0.95, (1, 10)), (200, 0.99, (4, 1))])
def test_unequal_tries_are_no_difference(items, rate, tries):
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(200):
        rows = [
            {"run": run, "item": str(i), "success": int(rng.random() < rate)}
            for run, k in zip("ab", tries, strict=True)
            for i in range(items)
            for _ in range(k)
        ]
        t = trials.from_rows(rows)
        pairs = pair_items(t[t.run == "a"], t[t.run == "b"])
        assert pairs.drawn == items
        found += compare_runs(pairs)[0].p_value <= 0.05
    assert found / 200 <= 0.07
    # The order of the file does not matter.
    again = trials.from_rows([rows[i] for i in rng.permutation(len(rows))])
    other = pair_items(again[again.run == "a"], again[again.run == "b"])
    assert other.difference.sum() == pytest.approx(pairs.difference.sum())


def test_one_family_shows_nothing_alone():
    names = np.array(["f"] * 40)
    pairs = Pairs(np.full(40, "t"), names, np.ones(40), ("", ""))
    assert compare_runs(pairs)[0].p_value == 1
    assert compare_runs(pairs, unit="item")[0].p_value < 0.001


def test_the_family_of_an_item_is_told_by_any_of_its_rows():
    plain = rows("a", [0] * 120)
    named = [r | {"family": f"f{i // 30}"} for i, r in enumerate(rows("b", [1] * 120))]
    for parts in ((plain, named), (named, plain)):
        (c,) = compare(*parts)
        assert (c.unit, c.units) == ("family", 4)
        assert c.p_value == pytest.approx(2 / 2**4)
    # One family in one log, another in the other.
    other = [r | {"run": "a", "family": "g"} for r in named]
    with pytest.raises(UserError, match="'0' of task is of several families"):
        compare(other, named)


def test_a_larger_difference_never_has_the_larger_p():
    previous = 1.0
    for k in (1, 5, 10, 13, 14, 15, 19, 30, 60):
        p = flip_signs(np.append(np.ones(k), np.zeros(60 - k)))
        assert p == pytest.approx(2.0 ** (1 - k))
        assert p < previous or k == 1
        previous = p


def test_exact_and_drawn_patterns_agree():
    rng = np.random.default_rng(12)
    for _ in range(20):
        totals = rng.integers(-3, 5, 40).astype(float)
        signs = rng.choice([-1.0, 1.0], (20_000, 40))
        drawn = (np.abs(signs @ totals) >= abs(totals.sum())).mean()
        assert abs(drawn - flip_signs(totals)) < 0.015


def test_checkpoints_have_names_that_are_found():
    steps = trials.from_rows([{"run": "a", "step": s, "item": "i", "success": 1} for s in (1, 20)])
    flops = trials.from_rows(
        [{"run": "a", "compute": c, "item": "i", "success": 1} for c in (1.6e19, 2e18)]
    )
    for t in (steps, flops):
        for name in name_checkpoints(t, "a"):
            assert len(choose_run(t, name)) == 1
    assert name_checkpoints(steps, "b") == name_checkpoints(steps[:1], "a") == []
