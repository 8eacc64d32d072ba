"""The guard of a loop of generations: warn, repair, roll back, stop.

A pure state machine; the stage does what it decides. It judges a generation twice. Before training
(`judge_samples`) it compares the samples with the first model's and with real text; what is out of
bounds is repaired (more real tokens, more rare contexts, no weight) before it teaches anything.
After training (`judge_model`) it compares held-out documents with the last good model's, paired, by
an e-process; a model that got worse is rolled back.

E-process. d_i is how much worse document i got, scaled into [-1, 1] with the tolerated loss taken
off. Under the null E[d] <= 0, prod(1 + l_i d_i) with l_i in [0, 0.9] chosen from the documents
before i is a nonnegative supermartingale that starts at 1: it ever reaches 1/a with probability at
most a (Ville). Generation g's test has the threshold (1/a) g (g+1), and sum 1/(g(g+1)) = 1: over
any number of generations and however their documents overlap, the chance of one false alarm is at
most a. (Waudby-Smith & Ramdas 2024, arXiv:2010.09686; the spending is a union bound.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy import ndarray

from ramp.config import Thresholds
from ramp.synth.measure import Comparison

# Of a generation: bits, bits of the tail, and one more that a caller may add, such as right
# answers. They share the rate of false alarms.
NUM_TESTS = 3


@dataclass(frozen=True)
class CollapseGuard:
    """What the guard carries from one generation to the next."""

    real_fraction: float  # of the tokens of the next generation
    rare_fraction: float = 1 / 6  # of the real tokens: rows with rare contexts
    weight: float = 1.0  # of this generation's samples in the loss
    good_generation: int = 0  # the last whose weights are kept; 0: the first model
    rollbacks: int = 0  # in a row
    poor_generations: int = 0  # in a row that brought in no more bits than they lost
    tests: int = 0  # tests for a roll-back so far, for the spending of the false-alarm rate


@dataclass(frozen=True)
class Decision:
    """What the guard decided, and why."""

    action: Literal["go", "warn", "repair", "roll back", "stop"]
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.action} {'; '.join(self.reasons)}".strip()


@dataclass(frozen=True)
class SampleEvidence:
    """What the guard judges before a generation teaches."""

    figures: Mapping[str, Comparison] = field(default_factory=dict)  # against the null
    imbalance: float = 1.0  # median over the least acceptance among cells
    precision: float = 1.0  # lower bound of the audited precision of accepted samples
    accepted: int = 1


@dataclass(frozen=True)
class TrainingEvidence:
    """What the guard judges after a generation has taught."""

    # How much worse each document or problem got, in [-1, 1], by what got worse.
    differences: Mapping[str, ndarray]
    bits_in: float = 0.0
    bits_lost: float = 0.0


# Evidence


def log_e_value(worse: ndarray) -> float:
    """Largest log of the e-process on differences in [-1, 1], positive where things got worse.

    The bet is the growth-optimal one for the differences so far, their mean over their mean square,
    and at most .9, so that no factor falls below .1. ValueError for a difference
    outside [-1, 1].
    """
    d = np.asarray(worse, float)
    if not np.all(np.abs(d) <= 1 + 1e-9):
        raise ValueError("differences of an e-process lie in [-1, 1]: scale and clip them first")
    count = np.arange(len(d)) + 1.0
    mean = _sum_before(d) / count
    # A quarter of the largest square counts before the first document, so that early bets are
    # small. Any bet that is made beforehand keeps the bound.
    square = (0.25 + _sum_before(d * d)) / count
    bet = np.clip(mean / square, 0.0, 0.9)
    log_wealth = np.cumsum(np.log1p(bet * d))
    return log_wealth.max(initial=0.0)


def scale_differences(new: ndarray, good: ndarray, tolerance: float) -> ndarray:
    """How much worse each document got beyond a relative `tolerance`, in [-1, 1].

    The unit is 4 times the mean absolute difference of the documents before it. It only sets
    the power: any scale that is fixed beforehand keeps the bound. Clipping is symmetric, so the
    null is one of the clipped mean, and a few wild documents decide nothing.
    """
    new = np.asarray(new, float)
    good = np.asarray(good, float)
    # A document whose new figure is not a number got worse.
    d = np.where(np.isfinite(new), new, np.inf) - (1 + tolerance) * good
    size = np.minimum(np.abs(d), np.abs(good) + 1e-9)
    # Before the first difference, one of 2% of the document's figure is assumed.
    scale = 4 * (0.02 * np.abs(good) + _sum_before(size)) / (np.arange(len(d)) + 1.0)
    return np.clip(d / np.maximum(scale, 1e-12), -1, 1)


def compare_bits(name: str, new: ndarray, good: ndarray, tolerance: float) -> dict[str, ndarray]:
    """Evidence from bits per document of the new and of the last good model, paired.

    Empty without documents.
    """
    if not len(new):
        return {}
    rise = np.sum(new) / np.sum(good) - 1
    return {f"{name} rose {rise:+.1%}": scale_differences(new, good, tolerance)}


def _sum_before(x):
    """The sum of what comes before each element."""
    return np.concatenate([[0.0], np.cumsum(x)[:-1]])


def log_threshold(level: float, test: int) -> float:
    """log of what an e-value must reach in the test-th test (1, 2, ...) of a sequence.

    level: the false-alarm rate of the whole sequence.
    """
    return math.log(test * (test + 1) / level)


# Decisions


def judge_samples(
    guard: CollapseGuard, limits: Thresholds, evidence: SampleEvidence
) -> tuple[CollapseGuard, Decision]:
    """Judge the samples of a generation. A repair takes effect on this very generation."""
    if not evidence.accepted:
        reason = "no sample was accepted: this generation is real text alone"
        return _repair(guard, limits, [reason])
    # A ratio alone may be noise: only figures far from the null count.
    outliers = {n: f for n, f in evidence.figures.items() if abs(f.z) > limits.warn_z}
    reasons = []
    for name, limit, sign in (
        ("coverage_2", limits.min_coverage, -1),
        ("vendi", limits.min_vendi_ratio, -1),
        ("kl_drift", limits.max_kl_ratio, 1),
    ):
        if name in outliers and sign * outliers[name].ratio > sign * limit:
            ratio = outliers[name].ratio
            reasons.append(f"{name} is {ratio:.2f} of the null (limit {limit:g})")
    if evidence.imbalance > limits.max_imbalance:
        times = f"{evidence.imbalance:.1f} times"
        reasons.append(f"a cell is accepted {times} less often than the median cell")
    if evidence.precision < limits.min_precision:
        bound = f"{evidence.precision:.2f}"
        reasons.append(f"audited precision of what was accepted may be as low as {bound}")
    if reasons:
        return _repair(guard, limits, reasons)
    warnings = [f"{name}: z {figure.z:+.1f}" for name, figure in sorted(outliers.items())]
    return replace(guard, weight=1.0), Decision("warn" if warnings else "go", tuple(warnings))


def _repair(guard, limits, reasons):
    """More real tokens, more rare ones among them, and no weight for this generation's samples."""
    repaired = replace(
        guard,
        real_fraction=min(1.0, guard.real_fraction + limits.repair_increment),
        rare_fraction=min(0.5, 2 * guard.rare_fraction),
        weight=0.0,
    )
    return repaired, Decision("repair", tuple(reasons))


def judge_model(
    guard: CollapseGuard, limits: Thresholds, evidence: TrainingEvidence, generation: int
) -> tuple[CollapseGuard, Decision]:
    """Judge the model of a generation: keep it as the last good one, or go back."""
    test = guard.tests + 1
    log_limit = log_threshold(limits.false_alarm_rate / NUM_TESTS, test)
    reasons = []
    for what, worse in evidence.differences.items():
        log_e = log_e_value(worse)
        if log_e >= log_limit:
            reasons.append(f"{what} (e-value 10^{log_e / math.log(10):.1f})")
    is_poor = evidence.bits_in <= evidence.bits_lost
    poor_generations = guard.poor_generations + 1 if is_poor else 0
    guard = replace(guard, tests=test, poor_generations=poor_generations)
    if reasons:
        real_fraction = min(1.0, guard.real_fraction + limits.repair_increment)
        guard = replace(guard, rollbacks=guard.rollbacks + 1, real_fraction=real_fraction)
        if guard.rollbacks >= 2:
            return guard, Decision("stop", (*reasons, "second roll-back in a row"))
        return guard, Decision("roll back", tuple(reasons))
    guard = replace(guard, good_generation=generation, rollbacks=0)
    if poor_generations >= 2:
        reason = "two generations in a row brought in no more bits than they lost"
        return guard, Decision("stop", (reason,))
    return guard, Decision("go")
