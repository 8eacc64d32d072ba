"""The guard of a loop of generations: warn, repair, roll back, stop. A pure state machine; the stage does what it says.

Two looks at a generation. `before` training: what was sampled and accepted, against the first model's samples and real
text; what is out of bounds is repaired (more real tokens, more rare seeds, less weight) before it teaches anything.
`after` training: held-out documents, paired with the last good model's, by an e-process; a model that got worse is
rolled back.

E-process. d_i is how much worse document i got, scaled into [-1, 1] with the tolerated loss taken off. Under the null
E[d] <= 0, prod(1 + l_i d_i) with l_i in [0, 0.9] chosen from the documents before i is a nonnegative supermartingale
that starts at 1: it ever reaches 1/a with probability at most a (Ville). Generation g's test has the threshold
(1/a) g (g+1), and sum 1/(g(g+1)) = 1: over any number of generations and however their documents overlap, the chance of
one false alarm is at most a. (Waudby-Smith & Ramdas 2024, arXiv:2010.09686; the spending is a union bound.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ramp.config import Synthesize

Action = Literal["go", "warn", "repair", "roll back", "stop"]


@dataclass(frozen=True)
class CollapseGuard:
    """What the guard carries from one generation to the next."""

    m: float  # real share of the tokens of the next generation
    rare: float = 1 / 6  # of the real share: documents with rare contexts; `Synthesize.rare`
    weight: float = 1.0  # of this generation's samples in the loss
    good: int = 0  # last generation whose weights are kept; 0: the first model
    rolled: int = 0  # roll-backs in a row
    poor: int = 0  # generations in a row that brought in no more bits than they lost
    tests: int = 0  # roll-back tests so far, for the spending of the false-alarm rate


@dataclass(frozen=True)
class Decision:
    action: Action
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Sampled:
    """A generation before it teaches. `figures`: by name at least z and ratio, as `measure.Null.against` gives them."""

    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    imbalance: float = 1.0  # median over the least acceptance among cells
    precision: float = 1.0  # lower bound of the audited precision of what was accepted
    accepted: int = 1


@dataclass(frozen=True)
class Trained:
    """A generation after it taught: paired figures of held-out documents or problems, new and last good."""

    bits: tuple[np.ndarray, np.ndarray] | None = None  # per document
    tail_bits: tuple[np.ndarray, np.ndarray] | None = None  # per document with rare tokens
    right: tuple[np.ndarray, np.ndarray] | None = None  # per novel problem, 0..1
    bits_in: float = 0.0
    bits_lost: float = 0.0


# ---------------------------------------------------------------------------------------------------- evidence
def log_e(worse: np.ndarray, most: float = 0.9) -> float:
    """Largest log of the e-process on differences in [-1, 1], positive where things got worse.

    The bet is the growth-optimal one of the differences seen so far (mean over mean square, shrunk), between 0 and
    `most`, so that no factor falls below 1 - most. Shrunk: a quarter of one largest square is counted before any was
    seen, so that the first documents bet little; any bet made beforehand keeps the bound.
    """
    d = np.asarray(worse, float)
    if not np.all(np.abs(d) <= 1 + 1e-9):
        raise ValueError("differences of an e-process lie in [-1, 1]: scale and clip them first")
    before = np.arange(len(d)) + 1.0
    mean = np.concatenate([[0.0], np.cumsum(d)[:-1]]) / before
    square = (0.25 + np.concatenate([[0.0], np.cumsum(d * d)[:-1]])) / before
    log_wealth = np.cumsum(np.log1p(np.clip(mean / square, 0.0, most) * d))
    return float(max(log_wealth.max(initial=0.0), 0.0))


def scaled(new: np.ndarray, good: np.ndarray, tolerance: float, span: float = 4.0) -> np.ndarray:
    """How much worse each document got beyond a relative `tolerance`, in [-1, 1]: in units of `span` times the mean
    absolute difference of the documents before it, and clipped. Clipping is symmetric, so that the null is one of the
    clipped mean: a few wild documents decide nothing. Before any difference was seen, one of 2% of the document's figure
    is taken for granted. Any scale fixed beforehand keeps the bound; these two only set the power. A document whose new
    figure is not a number got worse."""
    new, good = np.asarray(new, float), np.asarray(good, float)
    d = np.where(np.isfinite(new), new, np.inf) - (1 + tolerance) * good
    seen = np.minimum(np.abs(d), np.abs(good) + 1e-9)
    before = np.concatenate([[0.0], np.cumsum(seen)[:-1]])
    scale = span * (0.02 * np.abs(good) + before) / (np.arange(len(d)) + 1.0)
    return np.clip(d / np.maximum(scale, 1e-12), -1, 1)


def threshold(level: float, test: int) -> float:
    """log of what an e-value must reach in the test-th test (1, 2, ...) of a sequence with false-alarm rate `level`."""
    return math.log(test * (test + 1) / level)


# ---------------------------------------------------------------------------------------------------- decisions
def judge_samples(g: CollapseGuard, t: Synthesize, seen: Sampled) -> tuple[CollapseGuard, Decision]:
    """Judge what was sampled. A repair takes effect on this very generation."""
    if not seen.accepted:
        return _repaired(g, t, "no sample was accepted: this generation is real text alone")
    reasons = []
    out = {
        name: figure for name, figure in seen.figures.items() if abs(figure["z"]) > t.guard.warn_z
    }  # a ratio may be noise
    for name, limit, side in (
        ("coverage_2", t.guard.min_coverage, -1),
        ("vendi", t.guard.min_vendi_ratio, -1),
        ("kl_drift", t.guard.max_kl_ratio, 1),
    ):
        if name in out and side * out[name]["ratio"] > side * limit:
            reasons.append(f"{name} is {out[name]['ratio']:.2f} of the null (limit {limit:g})")
    if seen.imbalance > t.guard.max_imbalance:
        reasons.append(
            f"a cell is accepted {seen.imbalance:.1f} times less often than the median cell"
        )
    if seen.precision < t.guard.min_precision:
        reasons.append(
            f"audited precision of what was accepted may be as low as {seen.precision:.2f}"
        )
    if reasons:
        return _repaired(g, t, *reasons)
    warned = tuple(f"{name}: z {figure['z']:+.1f}" for name, figure in sorted(out.items()))
    return replace(g, weight=1.0), Decision("warn" if warned else "go", warned)


def _repaired(g: CollapseGuard, t: Synthesize, *reasons: str) -> tuple[CollapseGuard, Decision]:
    """More real tokens, twice the share of rare ones among them (half at most), nothing of this generation's samples."""
    return replace(
        g, m=min(1.0, g.m + t.guard.repair_increment), rare=min(0.5, 2 * g.rare), weight=0.0
    ), Decision("repair", reasons)


def judge_model(
    g: CollapseGuard, t: Synthesize, seen: Trained, generation: int
) -> tuple[CollapseGuard, Decision]:
    """Judge what was trained: keep it as the last good one, or go back."""
    test = g.tests + 1
    limit = threshold(t.guard.false_alarm_rate / 3, test)  # three questions share the rate
    reasons = []
    for name, pair, tolerance in (
        ("bits", seen.bits, t.guard.max_loss_rise),
        ("bits of the tail", seen.tail_bits, t.guard.max_tail_loss_rise),
    ):
        if pair is not None and len(pair[0]):
            e = log_e(scaled(*pair, tolerance))
            if e >= limit:
                change = np.sum(pair[0]) / np.sum(pair[1]) - 1
                reasons.append(f"{name} rose {change:+.1%} (e-value 10^{e / math.log(10):.1f})")
    if seen.right is not None and len(seen.right[0]):
        e = log_e(np.asarray(seen.right[1], float) - np.asarray(seen.right[0], float))
        if e >= limit:
            fell = np.mean(seen.right[1]) - np.mean(seen.right[0])
            reasons.append(
                f"right answers to novel problems fell by {fell:.1%} (e-value 10^{e / math.log(10):.1f})"
            )
    g = replace(g, tests=test, poor=g.poor + 1 if seen.bits_in <= seen.bits_lost else 0)
    if reasons:
        g = replace(g, rolled=g.rolled + 1, m=min(1.0, g.m + t.guard.repair_increment))
        if g.rolled >= 2:
            return g, Decision("stop", (*reasons, "second roll-back in a row"))
        return g, Decision("roll back", tuple(reasons))
    g = replace(g, good=generation, rolled=0)
    if g.poor >= 2:
        return g, Decision(
            "stop", ("two generations in a row brought in no more bits than they lost",)
        )
    return g, Decision("go", ())
