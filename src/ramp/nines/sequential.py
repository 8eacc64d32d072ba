"""Tests that may stop at any trial: Wald's ratio test, a confidence sequence that is always valid, the worst prompt's tail."""

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
        return float(np.log(self.beta / (1 - self.alpha))), float(np.log((1 - self.beta) / self.alpha))

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

    def expected_trials(self, truth: float) -> float:
        """Wald's approximation of the mean number of trials at reliability `truth`."""
        low, high = self.bounds
        drift = truth * self.win + (1 - truth) * self.loss
        if abs(drift) < 1e-9:
            return -low * high / (truth * self.win**2 + (1 - truth) * self.loss**2)

        def moment(h: float) -> float:
            return truth * np.exp(h * self.win) + (1 - truth) * np.exp(h * self.loss) - 1

        sign = -np.sign(drift)  # of the other root h of E exp(h Z) = 1
        far = next(h for h in sign * np.geomspace(1e-3, 1e6, 91) if moment(h) > 0)
        root = brentq(moment, sign * 1e-9, far)
        accept = -np.expm1(root * low) / (np.exp(root * high) - np.exp(root * low))
        return float((accept * high + (1 - accept) * low) / drift)


def confidence_sequence(wins: int, failures: int, level: float = 0.95, a: float = 1.0, b: float = 0.5) -> tuple:
    """Interval for the success rate that covers at all times at once, however often one looks (Ville's inequality on
    the beta-binomial mixture, Robbins 1970): the p whose likelihood is at least (1 - level) of the mixture's."""
    mixture = betaln(a + wins, b + failures) - betaln(a, b) + np.log(1 - level)

    def over(p: float) -> float:
        return (wins * np.log(p) if wins else 0.0) + (failures * np.log1p(-p) if failures else 0.0) - mixture

    if wins + failures == 0:
        return 0.0, 1.0
    top = min(max(wins / (wins + failures), 1e-15), 1 - 1e-15)
    low = brentq(over, 1e-300, top) if wins and over(1e-300) < 0 else 0.0
    return low, brentq(over, top, 1 - 1e-16) if failures and over(1 - 1e-16) < 0 else 1.0


def worst_prompt(rates: np.ndarray, queries: np.ndarray, top: int = 10) -> np.ndarray:
    """The largest failure rate to expect among so many prompts, from those tried: a line through the log survival of
    -log(-log p) over the `top` worst, as for Gumbel tails (Jones et al. 2025, eq. 2). queries: numbers of prompts."""
    p = np.sort(np.clip(np.asarray(rates, float), 1e-300, 1 - 1e-12))[::-1][:top]
    if len(p) < 3 or p[0] <= 1e-200 or np.unique(p).size < 3:
        raise UserError("the tail of the worst prompt needs three prompts with different failure rates above zero")
    score = -np.log(-np.log(p))
    line = linregress(score, np.log((np.arange(len(p)) + 0.5) / len(rates)))
    return np.exp(-np.exp(-(-np.log(np.asarray(queries, float)) - line.intercept) / line.slope))
