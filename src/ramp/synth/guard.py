"""The guard of a loop of generations: warn, repair, roll back, stop.

A pure state machine; the stage does what it decides. It judges a generation twice. Before training
(`judge_samples`) it compares what was accepted with the first model's samples; what is out of
bounds is repaired (more real tokens, more rare contexts, no weight) before it teaches anything.
After training (`judge_model`) it compares bits of held-out documents, paired, with three models:
the first one, the last good one, and a control that saw real text alone for as many steps. A model
worse than one of the first two is rolled back. One that is behind the control costs more than it
gives: the next generation gets more real text, and a second time in a row the loop stops.

E-process. d_i is what document i costs more than the reference allows, in a unit that is fixed
before it. Under the null E[d] <= 0 and d >= -1, so prod(1 + l d_i) is for any bet l in [0, 1) a
nonnegative supermartingale that starts at 1, and so is the mean over several bets: it ever reaches
1/a with probability at most a (Ville). d has no upper end: a few documents that became ten times as
dear are as much evidence as all of them a little dearer. Generation g's tests have the threshold
(1/a) g (g+1), and sum 1/(g(g+1)) = 1: over any number of generations the chance of one false alarm
is at most a. (Waudby-Smith & Ramdas 2024, arXiv:2010.09686; the spending is a union bound.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy import ndarray
from scipy.special import logsumexp
from scipy.stats import poisson

from ramp.config import Thresholds
from ramp.nines.intervals import clopper_pearson
from ramp.synth.docs import Docs
from ramp.synth.measure import Comparison

# Of a generation: bits and bits of rare tokens against the first model, bits against the last good
# one and against the control, and one more that a caller may add, such as right answers. They share
# the rate of false alarms.
NUM_TESTS = 5

BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.95])

# A document counts as cheaper by at most so many median differences, or by this fraction of the
# mean document. What lies below is cut, so the null is that the mean AFTER the cut has not risen:
# a model that is far cheaper on a few documents and a little dearer on all others breaks it, even
# where its mean is lower. That is meant: what a few gain does not pay for what most lose. 8 keeps
# the error rate under noise with Student's t of 3 degrees of freedom (tests/synth/test_loops.py).
CUT = 8.0
MIN_CUT = 0.03

# Confidence that a rate must have before the guard acts on it: ten generations of healthy samples
# with several rates each raise fewer than one alarm in a hundred loops.
SURE = 0.9998

MIN_COUNT = 5  # real documents with a token whose loss is noticed
MIN_EXPECTED = 10  # samples with it, if it is used as before
MAX_LOST = 0.01  # fraction of the tokens that may be lost

MAX_MORE_REPEATS = 0.02  # share of repeated samples beyond the first model's that is let pass


@dataclass(frozen=True)
class CollapseGuard:
    """What the guard carries from one generation to the next."""

    real_fraction: float  # of the tokens of the next generation
    rare_fraction: float = 1 / 6  # of the real tokens: rows with rare contexts
    weight: float = 1.0  # of this generation's samples in the loss
    good_generation: int = 0  # the last whose weights are kept; 0: the first model
    depth: int = 0  # generations of training in those weights
    rollbacks: int = 0  # in a row
    idle: int = 0  # generations in a row whose samples taught nothing
    behind: int = 0  # generations in a row behind the control
    tests: int = 0  # tests for a roll-back so far, for the spending of the false-alarm rate


@dataclass(frozen=True)
class Decision:
    """What the guard decided, and why."""

    action: Literal["go", "warn", "repair", "roll back", "stop"]
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.action} {'; '.join(self.reasons)}".strip()


@dataclass(frozen=True)
class RepeatCounts:
    """How many samples nearly repeat another of their generation."""

    repeats: int
    samples: int
    first_repeats: int  # of the first model's samples
    first_samples: int


@dataclass(frozen=True)
class LostWords:
    """How many tokens that the first model used are gone."""

    lost: int
    judged: int
    expected: float  # lost ones, by chance


@dataclass(frozen=True)
class SampleEvidence:
    """What the guard judges before a generation teaches."""

    # Of the accepted samples, against as many of the first model's.
    figures: Mapping[str, Comparison] = field(default_factory=dict)
    repeats: RepeatCounts | None = None
    words: LostWords | None = None
    faults: tuple[str, ...] = ()  # of the verifiers, in words
    precision: float = 1.0  # upper bound of the audited precision of accepted samples
    accepted: int = 1


@dataclass(frozen=True)
class TrainingEvidence:
    """What the guard judges after a generation has taught.

    Each array holds what documents or problems cost more than is tolerated, at least -1 each, under
    a name that says what got worse.
    """

    worse: Mapping[str, ndarray]  # than the first or the last good model
    behind: Mapping[str, ndarray] = field(default_factory=dict)  # the control


# Evidence


def log_e_value(worse: ndarray) -> float:
    """Largest log of the e-process on differences of at least -1, positive where things got worse.

    ValueError for a difference below -1, or one that is not a number.
    """
    d = np.asarray(worse, float)
    if not np.all(d >= -1 - 1e-9):
        raise ValueError("differences of an e-process are at least -1: scale and cut them first")
    log_wealth = np.cumsum(np.log1p(BETS[:, None] * np.maximum(d, -1)), axis=1)
    log_mean = logsumexp(log_wealth, axis=0) - math.log(len(BETS))
    return log_mean.max(initial=0.0)


def scale_differences(new: ndarray, good: ndarray, tolerance: float) -> ndarray:
    """What each document costs beyond `good` and a relative `tolerance`, at least -1.

    The unit is `CUT` times the median size of the differences before it, renewed after 2, 4, 8, ...
    documents: any unit that is fixed beforehand keeps the bound. Documents whose figure under the
    reference is not a number are left out; one whose new figure is none got a thousand times worse.
    """
    is_known = np.isfinite(good)
    new, good = np.asarray(new, float)[is_known], np.asarray(good, float)[is_known]
    new = np.where(np.isfinite(new), new, 1000 * (np.abs(good) + 1))
    d = new - (1 + tolerance) * good
    size = np.abs(d)
    unit = np.zeros(len(d))
    for seen in 2 ** np.arange(1, len(d).bit_length()):
        unit[seen:] = CUT * np.median(size[:seen])
    smallest = MIN_CUT * np.abs(good).mean() if len(good) else 1.0
    return np.maximum(d / np.maximum(unit, max(smallest, 1e-12)), -1)


def compare_bits(name: str, new: ndarray, good: ndarray, tolerance: float) -> dict[str, ndarray]:
    """Evidence from bits per document of the new model and of a reference, paired.

    name: what is compared, such as "bits against the first model". Empty without documents.
    """
    if not len(new):
        return {}
    rise = np.sum(new) / np.sum(good) - 1
    return {f"{name}: {rise:+.1%}": scale_differences(new, good, tolerance)}


def find_lost_words(real: Docs, first: Docs, sample: Docs) -> LostWords:
    """Tokens that real text and the first model's samples use, and this sample does not.

    Judged are those that it would have in `MIN_EXPECTED` documents or more, if it used them as the
    first model does. By chance, one that is used half as often is in none with probability
    exp(-half of what is expected). A slow leak is seen so long before coverage of pairs shows it.
    """
    size = 1 + max((docs.flat.max(initial=-1) for docs in (real, first, sample)), default=0)
    in_real, in_first, in_sample = (_count_holders(docs, size) for docs in (real, first, sample))
    expected = in_first * len(sample) / max(len(first), 1)
    judged = (in_real >= MIN_COUNT) & (expected >= MIN_EXPECTED)
    lost = judged & (in_sample == 0)
    chance = float(np.exp(-expected[judged] / 2).sum())
    return LostWords(int(lost.sum()), int(judged.sum()), chance)


def _count_holders(docs, size):
    """[size]: the number of documents that hold each token."""
    pairs = np.unique(docs.owner * size + docs.flat)
    return np.bincount(pairs % size, minlength=size)


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
    reasons = [
        *evidence.faults,
        *_find_outliers(evidence.figures, limits),
        *_find_repeats(evidence.repeats),
        *_find_lost(evidence.words),
    ]
    if evidence.precision < limits.min_precision:
        bound = f"{evidence.precision:.2f}"
        remedy = "add a verifier that differs, such as typical, or an auditor"
        reasons.append(f"audited precision of what was accepted is {bound} at most: {remedy}")
    if reasons:
        return _repair(guard, limits, reasons)
    # What is not a number is not within a limit.
    far = {n: f for n, f in evidence.figures.items() if not abs(f.z) <= limits.warn_z}
    warnings = tuple(f"{name}: z {figure.z:+.1f}" for name, figure in sorted(far.items()))
    return replace(guard, weight=1.0), Decision("warn" if warnings else "go", warnings)


def _find_outliers(figures, limits):
    """Figures that are out of bounds, and figures that cannot be judged."""
    bounds = (
        ("coverage_2", limits.min_coverage, -1),
        ("vendi", limits.min_vendi_ratio, -1),
        ("kl_drift", limits.max_kl_ratio, 1),
    )
    for name, limit, sign in bounds:
        figure = figures.get(name)
        if figure is None:
            continue
        # What is not a number is no proof of health.
        if not math.isfinite(figure.z):
            yield f"{name} is not a number"
        # A ratio alone may be noise: only figures far from the null count.
        elif sign * figure.z > limits.warn_z and sign * figure.ratio > sign * limit:
            yield f"{name} is {figure.ratio:.2f} of the first model's (limit {limit:g})"


def _find_repeats(counts):
    """Whether samples repeat each other more often than the first model's do."""
    if counts is None or not counts.samples or not counts.first_samples:
        return
    least, _ = clopper_pearson(counts.repeats, counts.samples, SURE)
    _, most = clopper_pearson(counts.first_repeats, counts.first_samples, SURE)
    if least > most + MAX_MORE_REPEATS:
        now = counts.repeats / counts.samples
        first = counts.first_repeats / counts.first_samples
        yield f"{now:.0%} of the samples nearly repeat another ({first:.0%} of the first model's)"


def _find_lost(words):
    """Whether more tokens are gone than chance explains."""
    if words is None or words.lost <= MAX_LOST * words.judged:
        return
    if poisson.sf(words.lost - 1, words.expected) < 1 - SURE:
        yield f"{words.lost} of {words.judged} words that the first model uses are gone"


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
    worse = _find_worse(evidence.worse, log_limit)
    behind = _find_worse(evidence.behind, log_limit)
    more_real = min(1.0, guard.real_fraction + limits.repair_increment)
    guard = replace(
        guard,
        tests=test,
        rollbacks=guard.rollbacks + 1 if worse else 0,
        behind=guard.behind + 1 if behind else 0,
        idle=0 if guard.weight > 0 else guard.idle + 1,
    )
    if worse or behind:
        guard = replace(guard, real_fraction=more_real)
    if worse:
        if guard.rollbacks >= 2:
            return guard, Decision("stop", (*worse, "second roll-back in a row"))
        return guard, Decision("roll back", worse)
    guard = replace(guard, good_generation=generation, depth=guard.depth + 1)
    if guard.behind >= 2:
        reason = "real text alone teaches more, for the second time in a row"
        return guard, Decision("stop", (*behind, reason))
    if guard.idle >= 2:
        reason = "the samples of two generations in a row taught nothing"
        return guard, Decision("stop", (reason,))
    return guard, Decision("repair" if behind else "go", behind)


def _find_worse(differences, log_limit):
    """What got worse, with the evidence for it."""
    reasons = []
    for what, worse in differences.items():
        log_e = log_e_value(worse)
        if not len(worse):
            reasons.append(f"{what}: nothing to judge it by is a number")
        elif log_e >= log_limit:
            reasons.append(f"{what} (e-value 10^{log_e / math.log(10):.1f})")
    return tuple(reasons)


def choose_generation(stopped: bool, good: int, bits: Mapping[int, float], limit: float) -> int:
    """The generation whose model is handed back; 0: the first model.

    bits: mean held-out bits by generation, of the first model and of every model that was kept.
    The last good one, unless the loop was stopped or it is dearer than the first by more than the
    fraction `limit`: then the cheapest of all. What is not a number is never handed back.
    """
    finite = {g: b for g, b in bits.items() if math.isfinite(b)}
    within = good in finite and finite[good] <= (1 + limit) * bits[0]
    if within and not stopped:
        return good
    return min(finite, key=lambda g: (finite[g], g), default=0)
