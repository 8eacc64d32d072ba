"""The guard: false alarms on null generations, power, and what each action does."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from experiments.collapse import exact
from ramp.config import Thresholds
from ramp.synth import guard, measure
from ramp.synth.guard import CollapseGuard, SampleEvidence, TrainingEvidence
from ramp.synth.measure import Comparison, Docs

T = Thresholds()


def test_e_process_rarely_reaches_a_hundred_however_long_one_looks():
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.choice([-1, 1], 2000), lambda: rng.uniform(-0.3, 0.3, 2000)):
        reached = np.mean([guard.log_e_value(draw()) >= math.log(100) for _ in range(400)])
        assert reached <= 0.02


def test_e_process_sees_a_shift_soon():
    rng = np.random.default_rng(1)
    wealth = [guard.log_e_value(np.clip(rng.normal(0.1, 0.25, 300), -1, 1)) for _ in range(50)]
    assert np.mean(np.array(wealth) > math.log(1000)) > 0.95


def test_villes_bound_holds_over_all_sequences_of_a_fair_coin():
    """The share of the 2^12 sequences that ever reach 1/a is at most a, and not by betting nothing."""
    wealth = np.array(
        [guard.log_e_value(np.array(flips)) for flips in product([-1.0, 1.0], repeat=12)]
    )
    for level in (0.5, 0.2, 0.1, 0.05, 0.01):
        assert level / 10 < np.mean(wealth >= -math.log(level)) <= level
    assert guard.log_e_value(np.ones(10)) > 3


def test_wrong_scales_are_refused():
    with pytest.raises(ValueError, match="scale and clip"):
        guard.log_e_value(np.array([0.0, 2.0]))


def test_spending_adds_up_to_the_rate():
    assert sum(math.exp(-guard.log_threshold(0.01, k)) for k in range(1, 5000)) == pytest.approx(
        0.01, rel=1e-3
    )


def taught(new, good, bits_in=1.0):
    return TrainingEvidence(guard.compare_bits("bits", new, good, T.max_loss_rise), bits_in)


def docs_of(p, n, rng):
    return Docs.from_lists(rng.choice(len(p), (n, 12), p=p))


def test_five_hundred_null_generations_raise_at_most_five_alarms():
    """Exact tier: each generation is refitted on fresh real samples; same documents judge all of them."""
    truth, rng = exact.zipf(400), np.random.default_rng(5)
    real = docs_of(truth, 400, rng)
    pool = docs_of(truth, 1600, rng)

    def figures(d):
        _, drift = measure.divergences(real, d)
        return {
            "coverage_2": measure.coverage(real, d, 2),
            "kl_drift": drift,
            "unseen_mass": measure.unseen_mass(d),
        }

    null = measure.Null.resample(pool, 300, figures, 20)
    alarms, g = 0, CollapseGuard(0.3)
    good = document_bits(truth, rng, real)
    for i in range(500):
        _, said = guard.judge_samples(
            g, T, SampleEvidence(null.compare(figures(docs_of(truth, 300, rng))))
        )
        new = document_bits(truth, rng, real)
        g, after = guard.judge_model(replace(g, real_fraction=0.3), T, taught(new, good), i + 1)
        alarms += (said.action == "repair") + (after.action in ("roll back", "stop"))
        good = new if after.action == "go" else good
    assert alarms <= 5


def document_bits(truth, rng, real):
    """Bits per token of the real documents under a model refitted on fresh samples of the world."""
    counts = rng.multinomial(20_000, truth) + 0.5
    bits = -np.log2(counts / counts.sum())[real.flat]
    return np.bincount(real.owner, bits) / real.lengths


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
        SampleEvidence(imbalance=5),
        SampleEvidence(precision=0.8),
        SampleEvidence(accepted=0),
        seen(vendi=(-5.0, 0.5)),
        seen(kl_drift=(5.0, 1.6)),
    ):
        assert guard.judge_samples(g, T, bad)[1].action == "repair"
    assert (
        guard.judge_samples(CollapseGuard(0.95), T, SampleEvidence(precision=0.1))[0].real_fraction
        == 1.0
    )


def test_roll_back_then_stop_and_poverty():
    fine = np.full(200, 2.0) + np.random.default_rng(0).normal(0, 0.1, 200)
    worse = fine * 1.05
    g, said = guard.judge_model(CollapseGuard(0.3), T, taught(worse, fine), 1)
    assert (
        said.action == "roll back"
        and g.good_generation == 0
        and g.real_fraction == pytest.approx(0.4)
    )
    g2, said = guard.judge_model(g, T, taught(fine, fine), 2)
    assert said.action == "go" and g2.good_generation == 2 and g2.rollbacks == 0
    _, said = guard.judge_model(g, T, taught(worse, fine), 2)
    assert said.action == "stop" and "second" in said.reasons[-1]
    g4, said = guard.judge_model(CollapseGuard(0.3), T, taught(fine, fine, 0.0), 1)
    assert (
        said.action == "go"
        and guard.judge_model(g4, T, taught(fine, fine, 0.0), 2)[1].action == "stop"
    )
    nan = np.full(200, np.nan)
    assert guard.judge_model(CollapseGuard(0.3), T, taught(nan, fine), 1)[1].action == "roll back"
    fell = {"right answers": np.r_[np.ones(40), np.zeros(60)]}
    assert (
        guard.judge_model(CollapseGuard(0.3), T, TrainingEvidence(fell, bits_in=1), 1)[1].action
        == "roll back"
    )
