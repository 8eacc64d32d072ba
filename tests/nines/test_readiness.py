from dataclasses import replace

import numpy as np
import pytest
from worlds import odd_kind, world

from ramp.errors import UserError
from ramp.nines import (
    audit,
    backtest,
    baselines,
    intervals,
    items,
    readiness,
    report,
    trials,
    usage,
)


def outlook(paths, slices=None):
    grid = np.linspace(0, 1, np.shape(paths)[1])
    stacking = readiness.Stacking(np.full(5, 0.2), 1.0)
    paths = np.asarray(paths, float)
    use = usage.Usage(["t"], {}, {})
    none = usage.Measured(*[np.zeros(0)] * 8)
    return readiness.Forecast("a", grid, 0.0, paths, slices or {}, use, none, stacking, "step")


def test_first_passage_and_sureness():
    o = outlook([[0.5, 0.95, 0.99], [0.5, 0.5, 0.95], [0.5, 0.5, 0.5], [0.95, 0.95, 0.95]])
    assert o.first_ready(1).tolist() == [0.5, 1.0, np.inf, 0.0]
    assert o.ready_at(1, 0.5) == 0.5
    assert o.ready_at(1, 0.75) == 1.0
    assert o.ready_at(1, 0.9) == np.inf


def test_the_worst_slice_holds_readiness_back():
    good, bad = np.full((10, 3), 0.995), np.full((10, 3), 0.85)
    assert outlook(good, {"base": good}).ready_at(2, 0.9) == 0
    assert outlook(good, {"base": good, "typos": bad}).ready_at(2, 0.9) == np.inf


@pytest.mark.parametrize(
    "mix",
    [{"a": 0.5}, {"a": 0.7, "b": 0.7}, {"c": 1.0}, {"a": -1, "b": 2}, {"a": np.nan, "b": 1}],
)
def test_a_mix_must_be_parts_of_one(mix):
    with pytest.raises(UserError):
        readiness.mix_weights(mix, ["a", "b"], "slice", np.ones(2))
    assert readiness.mix_weights({"b": 1.0}, ["a", "b"], "slice", np.ones(2)).tolist() == [0, 1]


def test_a_demo_of_items_that_the_run_never_tried_is_refused():
    rows = [{"run": r, "item": str(i), "success": 1} for r in "ab" for i in range(9)]
    t = trials.from_rows([r for r in rows if r["run"] == "b" or r["item"] > "1"])
    for chosen in (["0", "1"], ["0", "5"]):
        with pytest.raises(UserError, match=r"a has no trial of the demo item '0'.*such as 2"):
            audit.audit_demo(t, "a", chosen)
    assert audit.audit_demo(t, "a", ["5"]).pass_rate == 1


def test_dates_come_from_the_schedule_only():
    plan = [("2027-01-01", 1e20), ("2028-01-01", 1e22)]
    assert readiness.schedule_dates(plan, np.array([21.0, 23.0, 19.0])) == ["2027-07-03", "", ""]
    with pytest.raises(UserError, match="rising"):
        readiness.schedule_dates(plan[::-1], np.array([21.0]))


def suite(rng, items=100, tries=4):
    """Two systems on one suite: (table, ids)."""
    p = rng.beta(0.7, 0.7, items)
    rows = [
        {"run": run, "step": 1, "item": f"i{i}", "success": int(rng.random() < np.clip(p[i] + shift, 0, 1))}
        for run, shift in (("ours", 0.0), ("theirs", 0.1)) for i in range(items) for _ in range(tries)
    ]  # fmt: skip
    return trials.from_rows(rows), np.array([f"i{i}" for i in range(items)]), p


def test_cherry_picking_is_found_and_honest_demos_are_not():
    rng, honest, picked = np.random.default_rng(0), 0, 0
    for _ in range(12):
        _, _, p = suite(rng, tries=1)
        other = rng.binomial(4, np.clip(p + 0.1, 0, 1))
        hard = -np.log((other + 0.5) / (4.5 - other))
        passed = np.flatnonzero(rng.random(100) < p)
        for _ in range(50):
            honest += (
                audit.permutation_p_value(
                    hard, rng.choice(100, 10, replace=False), 400, int(rng.integers(1e9))
                )
                < 0.05
            )
        best = passed[np.argsort(hard[passed] + rng.normal(0, 1, len(passed)))[:10]]
        picked += audit.permutation_p_value(hard, best, 400) < 0.05
    assert honest / 600 <= 0.07
    assert picked == 12


def test_audit_of_a_demo():
    t, ids, p = suite(np.random.default_rng(1))
    shown = ids[np.argsort(-p)[:10]].tolist()
    found = audit.audit_demo(t, "ours", shown, audit.hash_items(shown))
    assert found.p_value < 0.01
    assert found.pass_rate > found.suite_pass_rate + 0.2
    assert found.pass_at_k > found.suite_pass_rate > found.pass_hat_k
    assert found.hash_matches
    assert not audit.audit_demo(t, "ours", shown, "0" * 64).hash_matches
    for run, chosen in (
        ("nobody", shown),
        ("ours", ["none"]),
        ("ours", []),
        ("ours", ids.tolist()),
    ):
        with pytest.raises(UserError):
            audit.audit_demo(t, run, chosen)


def test_attempts_until_a_clean_demo():
    rng = np.random.default_rng(0)
    n = audit.attempts_until_clean(10, 0.8)
    clean = rng.random((4000, round(n), 10)).max(2) < 0.8
    assert clean.any(1).mean() == pytest.approx(0.5, abs=0.06)
    assert audit.attempts_until_clean(5, 0.0) == np.inf
    assert audit.attempts_until_clean(5, 1.0) == 1


def test_levels_of_readiness():
    def levels(success, items=60, tries=8):
        rows = [
            {"run": "a", "step": 1, "item": str(i), "slice": s, "seed": str(k), "success": success(i, s, k)}
            for i in range(items) for s in ("base", "typos") for k in range(tries)
        ]  # fmt: skip
        return [level.reached for level in audit.readiness_levels(trials.from_rows(rows), 1)]

    assert levels(lambda i, s, k: 0) == [False, False, False, False]
    assert levels(lambda i, s, k: int(k == i % 8)) == [
        True,
        False,
        False,
        False,
    ]  # once in eight tries
    assert levels(lambda i, s, k: 1) == [
        True,
        True,
        True,
        False,
    ]  # nothing failed that could thin out
    assert levels(lambda i, s, k: int(s == "base")) == [True, False, False, False]
    assert levels(lambda i, s, k: 1, items=20)[2] is False  # 29 distinct items are one nine


def test_one_item_of_fewer_tries_loses_no_rung():
    rows = [
        {"run": "a", "step": 1, "item": str(i), "seed": str(k), "success": 1}
        for i in range(60) for k in range(1 if i == 7 else 8)
    ]  # fmt: skip
    demo, pilot = audit.readiness_levels(trials.from_rows(rows), 1)[:2]
    assert demo.reached
    assert pilot.reached
    assert "1 item of fewer tries left out" in pilot.reason


def test_a_rung_is_shown_at_the_confidence_that_is_asked_for():
    rows = [
        {"run": "a", "step": 1, "item": str(i), "seed": str(k), "success": int(i >= 3)}
        for i in range(120) for k in range(8)
    ]  # fmt: skip
    t = trials.from_rows(rows)
    pilots = [audit.readiness_levels(t, 1, confidence=c)[1] for c in (0.7, 0.99)]
    assert [pilot.reached for pilot in pilots] == [True, False]


def test_sustained_where_failures_thin_out_over_checkpoints():
    def sustained(rate):
        rows = [
            {"run": "a", "step": s, "item": str(i), "seed": str(k), "success": int(i >= rate(s))}
            for s in range(1, 7) for i in range(100) for k in range(4)
        ]  # fmt: skip
        return audit.readiness_levels(trials.from_rows(rows), 1)[3]

    assert sustained(lambda s: 60 / s**2).reached
    even = sustained(lambda s: 5)
    assert not even.reached
    assert "Crow-AMSAA" in even.reason


def test_ties_in_difficulty_keep_their_weight():
    hard = np.r_[np.zeros(36), np.full(4, 3.0)]
    none = np.zeros(0)
    c = items.Cells(
        none, none, none, none, np.ones(1), np.zeros(1), np.array(["a"]), np.zeros(1), list("x" * 40), ["base"],
        np.zeros(40, int), hard, ["f"],
    )  # fmt: skip
    names = ["ability a 0", "difficulty", "family f", "never", "lapse level", "lapse trend"]
    effects = np.array([[0.0, 1, 0, -99, -99, 0]])
    fit = items.ItemFit(c, names, effects, np.array([[1e-6, 1, 1]]), none, none, none)
    found = readiness._slice_paths(fit, effects, np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1))
    assert found[0, 0, 0] == pytest.approx(0.9 / 2 + 0.1 / (1 + np.exp(3)), abs=0.02)


def test_audit_of_a_system_that_tried_nothing_twice_borrows_the_correlation_of_others():
    rng = np.random.default_rng(0)
    rows = []
    for run in ("ours", "b", "c", "d"):
        p = rng.beta(0.7, 0.7, 200)  # correlation 1 / 2.4
        tries = 1 if run == "ours" else 4
        rows += [
            {"run": run, "item": str(i), "success": int(rng.random() < p[i])}
            for i in range(200)
            for _ in range(tries)
        ]
    found = audit.audit_demo(trials.from_rows(rows), "ours", ["1", "2"])
    assert found.pass_hat_k == pytest.approx(
        intervals.beta_binomial_pass_hat_k(8, 0.5, 1 / 2.4), abs=0.1
    )


def test_crps_is_the_energy_form():
    rng = np.random.default_rng(0)
    draws, y = rng.normal(size=300), 0.4
    slow = np.abs(draws - y).mean() - np.abs(draws[:, None] - draws).mean() / 2
    assert backtest.crps(draws, y) == pytest.approx(slow)


def curves(sizes, steps, noise=0.02, seed=0):
    """Aggregates of runs that follow one law in size and steps."""
    rng, rows = np.random.default_rng(seed), []
    for size in sizes:
        for step in steps:
            logit = (
                2 + 0.5 * np.log10(size / 1e9) - 3 * (step / 1000) ** -0.4 + rng.normal(0, noise)
            )
            p = 1 / (1 + np.exp(-logit))
            rows.append(
                {
                    "run": f"m-{size:.0f}",
                    "size": size,
                    "step": step,
                    "task": "t",
                    "success": p,
                    "stderr": 0.01,
                }
            )
    return trials.accuracy_curves(trials.from_rows(rows))


def test_backtest_over_sizes_beats_persistence_and_knows_no_future():
    steps = [1000 * 2**k for k in range(8)]
    c = curves([1e7, 3e7, 1e8, 3e8, 1e9], steps)
    past = backtest.over_sizes(c, np.log10(8000), np.log10(128000), (0.5, 0.7, 0.85))
    s = backtest.summarize(past)
    assert s.forecasts == 3
    assert s.methods["nines"].crps < 0.5 * s.methods["persistence"].crps
    late = (c.size == 1e9) & (c.x > np.log10(8000) + 0.1)
    changed = replace(c, value=np.where(late, 0.01, c.value))
    again = backtest.over_sizes(changed, np.log10(8000), np.log10(128000), (0.5, 0.7, 0.85))
    forecasts = [[(p.median, *(q for q, _ in p.events)) for p in each] for each in (past, again)]
    assert forecasts[0] == forecasts[1]
    with pytest.raises(UserError, match="sizes"):
        backtest.over_sizes(curves([1e8], steps), 3.9, np.log10(128000))


def test_a_method_that_made_fewer_forecasts_is_scored_on_those():
    # The largest run has two checkpoints before the origin.
    steps = [1000 * 2**k for k in range(8)]
    c = curves([1e7, 3e7, 1e8, 3e8, 1e9], steps)
    c = c[(c.size < 1e9) | (c.x > np.log10(3000))]
    s = backtest.summarize(backtest.over_sizes(c, np.log10(8000), np.log10(128000)))
    assert {name: m.forecasts for name, m in s.methods.items()} == {
        "nines": 3, "persistence": 3, "log-linear": 2, "power law": 2, "analog": 3,
    }  # fmt: skip
    assert "fewer forecasts" in report.score_parts(s)[1]


def test_backtest_over_time_knows_no_future():
    c = curves([1e8], [1000 * 2**k for k in range(8)])
    past = backtest.over_time(c)
    assert len(past) == 4 + 4 + 3 + 2 + 1
    late = replace(c, value=np.where(c.x > np.log10(65000), 0.01, c.value))
    again = backtest.over_time(late)
    assert [p.median for p in past] == [p.median for p in again]
    with pytest.raises(UserError, match="no curve"):
        backtest.over_time(curves([1e8], [1000, 2000]))


def test_baselines_have_honest_intervals():
    """Coverage of 90% intervals over curves that nobody tuned on, one to four checkpoints ahead."""
    inside = {}
    for seed in range(700, 720):
        t, _, _ = world(seed, checkpoints=12, odd=odd_kind(seed))
        c = trials.accuracy_curves(t)
        for k in range(5, 12):
            rng = np.random.default_rng(seed)
            for later in range(k, min(k + 4, 12)):
                found = baselines.baselines(c[:k], c[:k], c.x[k - 1], c.x[later], rng)
                for name, draws in found.items():
                    covered = backtest.coverage(*backtest.pit(draws, c.value[later]), 0.9)
                    inside.setdefault(name, []).append(covered)
    rates = {name: np.mean(covered) for name, covered in inside.items()}
    assert rates.keys() == {"persistence", "log-linear", "power law"}
    # Curves of one world miss together: 20 worlds are known to some .03.
    assert all(0.82 <= rate <= 0.98 for rate in rates.values()), rates


def test_a_mix_is_measured_by_its_parts():
    rows = [
        {"run": "a", "step": step, "item": str(i), "slice": kind, "success": int(i < good)}
        for step in (1, 2) for kind, good in (("base", 18), ("typos", 10)) for i in range(20)
        if (step, kind) != (2, "typos")
    ]  # fmt: skip
    mix = usage.Usage(["all"], {"all": 1.0}, {"base": 0.75, "typos": 0.25})
    t = trials.from_rows(rows)
    mix = replace(
        mix, tasks=np.unique(t.task).tolist(), families=dict.fromkeys(t.task.tolist(), 1.0)
    )
    m = usage.measure(t, "a", mix)
    # The second checkpoint did not try typos.
    assert m.x.tolist() == [0.0]
    assert m.value[0] == pytest.approx(0.75 * 0.9 + 0.25 * 0.5)
    assert m.worst[0] == pytest.approx(0.5)
    assert m.is_ready(0.5).tolist() == [True]
    assert m.is_ready(1).tolist() == [False]
    # One trial of each item in each slice: at most as many as there are trials.
    assert 0 < m.n[0] <= 40
