"""Tests that may stop at any trial, Wald's ratio test and a confidence sequence that is always valid; the worst prompt's tail."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import linregress

from ramp.errors import UserError


@dataclass(frozen=True)
class SPRT:
    """Sequential probability ratio test of reliability `bad` against `good` (Wald 1945).

    alpha: chance to accept a bad system; beta: to reject a good one.
    """

    bad: float
    good: float
    alpha: float = 0.05
    beta: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.bad < self.good < 1 and 0 < self.alpha < 0.5 and 0 < self.beta < 0.5):
            raise UserError("a sequential test needs 0 < bad < good < 1 and risks between 0 and .5")

    @property
    def win(self) -> float:
        return float(np.log(self.good / self.bad))

    @property
    def loss(self) -> float:
        return float(np.log((1 - self.good) / (1 - self.bad)))

    @property
    def bounds(self) -> tuple[float, float]:
        return float(np.log(self.beta / (1 - self.alpha))), float(
            np.log((1 - self.beta) / self.alpha)
        )

    @property
    def clean(self) -> int:
        """Trials to acceptance without a failure."""
        return int(np.ceil(self.bounds[1] / self.win))

    @property
    def price(self) -> int:
        """Further clean trials that one failure costs."""
        return int(np.ceil(-self.loss / self.win))

    def decide(self, wins: int, failures: int) -> str:
        ratio, (low, high) = wins * self.win + failures * self.loss, self.bounds
        return "accept" if ratio >= high else "reject" if ratio <= low else "go on"


def confidence_sequence(wins: int, failures: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for the success rate that covers at all times at once, however often one looks (Ville's inequality on
    the beta-binomial mixture, Robbins 1970): the p whose likelihood is at least (1 - level) of the mixture's."""
    a, b = 1.0, 0.5  # of the mixture: the weight on rates near 1
    mixture = betaln(a + wins, b + failures) - betaln(a, b) + np.log(1 - level)

    def over(p: float) -> float:
        return (
            (wins * np.log(p) if wins else 0.0)
            + (failures * np.log1p(-p) if failures else 0.0)
            - mixture
        )

    if wins + failures == 0:
        return 0.0, 1.0
    top = min(max(wins / (wins + failures), 1e-15), 1 - 1e-15)
    low = brentq(over, 1e-300, top) if wins and over(1e-300) < 0 else 0.0
    return low, brentq(over, top, 1 - 1e-16) if failures and over(1 - 1e-16) < 0 else 1.0


def worst_prompt(rates: np.ndarray, queries: float, top: int = 10) -> float:
    """The largest failure rate to expect among `queries` prompts, from the rates of those tried, each above 0 and below 1:
    a line through the log survival of the score -log(-log p) of the `top` worst, as for Gumbel tails (Jones et al. 2025,
    arXiv:2502.16797). UserError where fewer than three of them differ."""
    p = np.sort(np.asarray(rates, float))[::-1][:top]
    if len(np.unique(p)) < 3 or p[0] >= 1 or p[-1] <= 0:
        raise UserError(
            "the tail of the worst prompt needs three different failure rates above 0 and below 1"
        )
    survival = np.log((np.arange(len(p)) + 0.5) / len(rates))
    line = linregress(-np.log(-np.log(p)), survival)
    return float(np.exp(-np.exp((np.log(queries) + line.intercept) / line.slope)))
