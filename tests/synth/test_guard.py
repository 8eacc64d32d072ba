"""The guard: false alarms on null generations, power, and what each action does."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from experiments.collapse import exact
from ramp.config import Thresholds
from ramp.synth import guard
from ramp.synth.guard import (
    CollapseGuard,
    LostWords,
    RepeatCounts,
    SampleEvidence,
    TrainingEvidence,
)
from ramp.synth.measure import Comparison, Docs

T = Thresholds()


def test_e_process_rarely_reaches_a_hundred_however_long_one_looks():
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.choice([-1, 1], 2000), lambda: rng.uniform(-0.3, 0.3, 2000)):
        reached = np.mean([guard.log_e_value(draw()) >= math.log(100) for _ in range(400)])
        assert reached <= 0.02


def test_e_process_sees_a_shift_soon():
    rng = np.random.default_rng(1)
    wealth = [guard.log_e_value(np.clip(rng.normal(0.1, 0.25, 400), -1, 1)) for _ in range(50)]
    assert np.mean(np.array(wealth) > math.log(1000)) > 0.95


def test_villes_bound_holds_over_all_sequences_of_a_fair_coin():
    """The share of the 2^12 sequences that ever reach 1/a is at most a, and not by betting nothing."""
    wealth = np.array(
        [guard.log_e_value(np.array(flips)) for flips in product([-1.0, 1.0], repeat=12)]
    )
    for level in (0.5, 0.2, 0.1, 0.05, 0.01):
        assert level / 20 < np.mean(wealth >= -math.log(level)) <= level
    assert guard.log_e_value(np.ones(12)) > 3


def test_wrong_scales_are_refused():
    for wrong in (-1.5, np.nan):
        with pytest.raises(ValueError, match="scale and cut"):
            guard.log_e_value(np.array([0.0, wrong]))
    assert guard.log_e_value(np.array([0.0, 1e300, np.inf])) == np.inf


def test_what_a_few_gain_does_not_pay_for_what_most_lose():
    """Cheaper in all, dearer for 95% of the documents: the null is about costs after the cut."""
    rng = np.random.default_rng(0)
    good = np.full(4000, 6.0)
    far_cheaper = rng.random(4000) < 0.05
    new = np.where(far_cheaper, 2.0, 1.005 * good + 0.05)
    assert new.mean() < good.mean()
    cut = guard.scale_differences(new, good, 0.005)
    assert cut.min() == -1 and guard.log_e_value(cut) > math.log(1000)


def test_spending_adds_up_to_the_rate():
    assert sum(math.exp(-guard.log_threshold(0.01, k)) for k in range(1, 5000)) == pytest.approx(
        0.01, rel=1e-3
    )


def taught(new, good, first=None):
    worse = guard.compare_bits("good", new, good, T.max_loss_rise)
    if first is not None:
        worse |= guard.compare_bits("first", new, first, T.max_loss_rise)
    return TrainingEvidence(worse)


def docs_of(p, n, rng):
    return Docs.from_lists(rng.choice(len(p), (n, 12), p=p))


@pytest.mark.parametrize("policy, m", [("replace", 0.0), ("anchored", 0.05)])
def test_a_refitted_world_that_dies_out_is_caught(policy, m):
    truth, rng = exact.zipf(400), np.random.default_rng(6)
    real = docs_of(truth, 400, rng)
    p_gk = exact.simulate_generations(truth, 2000, policy, 6, rng, m)

    def bits(p):
        p = (p + 1e-5) / (p + 1e-5).sum()
        return np.bincount(real.owner, -np.log2(p)[real.flat]) / real.lengths

    g, actions = CollapseGuard(0.3), []
    for i in range(1, 7):
        g, said = guard.judge_model(g, T, taught(bits(p_gk[i]), bits(p_gk[g.good_generation])), i)
        actions.append(said.action)
        if said.action == "stop":
            break
    assert actions[0] == "roll back" and actions[-1] == "stop"


def seen(**figures):
    return SampleEvidence(
        {name: Comparison(ratio, 1.0, ratio, z) for name, (z, ratio) in figures.items()}
    )


def test_actions():
    g = CollapseGuard(0.3)
    acted, said = guard.judge_samples(g, T, seen(coverage_2=(-9.0, 0.9), distinct_2=(0.5, 1.0)))
    assert said.action == "repair" and "coverage_2" in said.reasons[0]
    assert (
        acted.real_fraction == pytest.approx(0.4)
        and acted.rare_fraction == pytest.approx(1 / 3)
        and acted.weight == 0
    )
    assert guard.judge_samples(g, T, seen(coverage_2=(-1.0, 0.9)))[1].action == "go"  # within noise
    assert guard.judge_samples(g, T, seen(distinct_2=(7.0, 1.3)))[1] == guard.Decision(
        "warn", ("distinct_2: z +7.0",)
    )
    assert (
        guard.judge_samples(acted, T, SampleEvidence())[0].weight == 1
    )  # the next generation counts again
    for bad in (
        SampleEvidence(faults=("blind",)),
        SampleEvidence(precision=0.8),
        SampleEvidence(accepted=0),
        SampleEvidence(repeats=RepeatCounts(60, 300, 2, 500)),
        seen(vendi=(-5.0, 0.5)),
        SampleEvidence(words=LostWords(6, 170, 0.3)),
        seen(kl_drift=(5.0, 1.6)),
        seen(kl_drift=(np.nan, 1.0)),
        seen(coverage_2=(np.nan, np.nan)),
    ):
        assert guard.judge_samples(g, T, bad)[1].action == "repair"
    fine = SampleEvidence(repeats=RepeatCounts(12, 300, 18, 500))
    assert guard.judge_samples(g, T, fine)[1].action == "go"
    assert (
        guard.judge_samples(CollapseGuard(0.95), T, SampleEvidence(precision=0.1))[0].real_fraction
        == 1.0
    )


def test_roll_back_then_stop():
    fine = np.full(200, 2.0) + np.random.default_rng(0).normal(0, 0.1, 200)
    worse = fine * 1.05
    g, said = guard.judge_model(CollapseGuard(0.3), T, taught(worse, fine), 1)
    assert (
        said.action == "roll back"
        and g.good_generation == g.depth == 0
        and g.real_fraction == pytest.approx(0.4)
    )
    g2, said = guard.judge_model(g, T, taught(fine, fine), 2)
    assert said.action == "go" and g2.good_generation == 2 and (g2.depth, g2.rollbacks) == (1, 0)
    _, said = guard.judge_model(g, T, taught(worse, fine), 2)
    assert said.action == "stop" and "second" in said.reasons[-1]
    nan = np.full(200, np.nan)
    assert guard.judge_model(CollapseGuard(0.3), T, taught(nan, fine), 1)[1].action == "roll back"
    fell = {"right answers": np.r_[np.ones(40), np.zeros(60)]}
    assert (
        guard.judge_model(CollapseGuard(0.3), T, TrainingEvidence(fell), 1)[1].action == "roll back"
    )


def test_each_step_below_the_tolerance_is_not_a_licence():
    """+.4% a generation: the last good model is never left behind, the first one is."""
    first = np.full(300, 2.0) + np.random.default_rng(0).normal(0, 0.1, 300)
    g, good, kept = CollapseGuard(0.3), first, [1.0]
    for i in range(1, 8):
        new = good * 1.004
        g, said = guard.judge_model(g, T, taught(new, good, first), i)
        if said.action == "go":
            good = new
            kept.append(1.004 ** len(kept))
        if said.action == "stop":
            break
    assert said.action == "stop" and "first" in said.reasons[0] and max(kept) < 1.01


def test_what_is_not_a_number_is_never_go():
    fine, none = np.full(200, 2.0), np.full(200, np.nan)
    worse = guard.compare_bits("bits", fine, none, T.max_loss_rise)
    said = guard.judge_model(CollapseGuard(0.3), T, TrainingEvidence(worse), 1)[1]
    assert said.action == "roll back" and "nothing to judge it by is a number" in said.reasons[0]
    for z, action in ((math.nan, "warn"), (0.0, "go")):
        evidence = SampleEvidence({"distinct_2": Comparison(1.0, 1.0, 1.0, z)})
        assert guard.judge_samples(CollapseGuard(0.3), T, evidence)[1].action == action


def test_behind_the_control_is_repaired_and_then_stopped():
    fine = np.full(200, 2.0) + np.random.default_rng(0).normal(0, 0.1, 200)
    behind = guard.compare_bits("real text", fine, 0.95 * fine, T.max_control_rise)
    evidence = TrainingEvidence(taught(fine, fine).worse, behind)
    g, said = guard.judge_model(CollapseGuard(0.3), T, evidence, 1)
    assert said.action == "repair" and (g.good_generation, g.behind) == (1, 1)
    assert g.real_fraction == pytest.approx(0.4)
    assert guard.judge_model(g, T, evidence, 2)[1].action == "stop"
    assert guard.judge_model(g, T, taught(fine, fine), 2)[0].behind == 0


def test_samples_that_taught_nothing_twice_stop_the_loop():
    fine = np.full(200, 2.0)
    idle = CollapseGuard(0.3, weight=0.0)
    g, said = guard.judge_model(idle, T, taught(fine, fine), 1)
    assert said.action == "go" and g.idle == 1
    assert guard.judge_model(g, T, taught(fine, fine), 2)[1].action == "stop"
    assert guard.judge_model(replace(g, weight=1.0), T, taught(fine, fine), 2)[0].idle == 0


def test_what_is_handed_back_is_never_worse_than_the_start():
    bits = {0: 2.0, 1: 1.95, 2: 2.005}
    assert guard.choose_generation(False, 2, bits, 0.005) == 2  # within the tolerance
    assert guard.choose_generation(True, 2, bits, 0.005) == 1  # the best, where it was stopped
    assert guard.choose_generation(False, 2, bits | {2: 2.05}, 0.005) == 1
    assert guard.choose_generation(True, 0, {0: 2.0}, 0.005) == 0
    assert guard.choose_generation(False, 1, {0: 2.0, 1: math.nan}, 0.005) == 0
