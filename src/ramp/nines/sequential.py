"""Tests that may stop at any trial, and the worst failure rate to expect among many prompts.

Wald's sequential test, a confidence sequence that stays valid however often one looks, and an
extrapolation of the tail of failure rates.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.optimize import brentq
from scipy.special import betaln

from ramp.errors import UserError
from ramp.nines.intervals import Interval


@dataclass(frozen=True)
class SPRT:
    """Sequential probability ratio test of reliability `bad` against `good` (Wald 1945)."""

    bad: float
    good: float
    alpha: float = 0.05  # chance to accept a bad system
    beta: float = 0.05  # chance to reject a good system

    def __post_init__(self) -> None:
        if not (0 < self.bad < self.good < 1 and 0 < self.alpha < 0.5 and 0 < self.beta < 0.5):
            raise UserError("a sequential test needs 0 < bad < good < 1 and risks between 0 and .5")

    @property
    def success_weight(self) -> float:
        """What a success adds to the log likelihood ratio of good to bad."""
        return np.log(self.good / self.bad)

    @property
    def failure_weight(self) -> float:
        """What a failure adds to the log likelihood ratio; negative."""
        return np.log((1 - self.good) / (1 - self.bad))

    @property
    def bounds(self) -> tuple[float, float]:
        """Log likelihood ratios at which the system is rejected and accepted."""
        # Wald's approximation: what overshoots the bounds is ignored.
        return np.log(self.beta / (1 - self.alpha)), np.log((1 - self.beta) / self.alpha)

    @property
    def clean_trials(self) -> int:
        """Trials to acceptance if none fails."""
        return int(np.ceil(self.bounds[1] / self.success_weight))

    @property
    def trials_per_failure(self) -> int:
        """Further successes that make up for one failure."""
        return int(np.ceil(-self.failure_weight / self.success_weight))

    def decide(self, successes: int, failures: int) -> str:
        """ "accept", "reject" or "go on"."""
        ratio = successes * self.success_weight + failures * self.failure_weight
        low, high = self.bounds
        if ratio >= high:
            return "accept"
        return "reject" if ratio <= low else "go on"


def confidence_sequence(successes: int, failures: int, level: float = 0.95) -> Interval:
    """Interval for the success rate that covers at all times at once, however often one looks.

    The rates whose likelihood is at least (1 - level) of a beta-binomial mixture's (Robbins 1970,
    by Ville's inequality).
    """
    a = 1.0
    b = 0.5  # of the mixture: more weight on rates near 1
    mixture = betaln(a + successes, b + failures) - betaln(a, b) + np.log(1 - level)

    def excess(rate):
        # Log likelihood over the threshold. 0 log 0 counts as 0.
        won = successes * np.log(rate) if successes else 0.0
        lost = failures * np.log1p(-rate) if failures else 0.0
        return won + lost - mixture

    if successes + failures == 0:
        return 0.0, 1.0
    # The likelihood rises to its peak and falls after it: one root on each side.
    peak = min(max(successes / (successes + failures), 1e-15), 1 - 1e-15)
    low = 1e-300
    high = 1 - 1e-16
    low = brentq(excess, low, peak) if successes and excess(low) < 0 else 0.0
    high = brentq(excess, peak, high) if failures and excess(high) < 0 else 1.0
    return low, high


def predict_worst_rate(rates: ndarray, queries: float) -> float:
    """The largest failure rate to expect among `queries` prompts, from the rates of those tried.

    A line through the log survival of the score -log(-log rate) of the ten worst prompts, as for
    Gumbel tails (Jones et al. 2025, arXiv:2502.16797). rates: each above 0 and below 1.
    Raises UserError where fewer than three of the worst differ.
    """
    worst = np.sort(np.asarray(rates, float))[::-1][:10]
    if len(np.unique(worst)) < 3 or worst[0] >= 1 or worst[-1] <= 0:
        raise UserError(
            "the tail of the worst prompt needs three different failure rates above 0 and below 1"
        )
    score = -np.log(-np.log(worst))
    # Mid-rank plotting positions: the worst of n prompts stands at survival 0.5 / n.
    survival = np.log((np.arange(len(worst)) + 0.5) / len(rates))
    slope, intercept = np.polyfit(score, survival, 1)
    # The score at which one prompt in `queries` is left.
    return np.exp(-np.exp((np.log(queries) + intercept) / slope))
