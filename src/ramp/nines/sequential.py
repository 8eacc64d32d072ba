"""Evidence that may be looked at after every trial, and the worst failure rate to expect.

A bet that a success rate is above a bar neither gains nor loses on average where the rate is at the
bar. So the capital of whoever bets exceeds 20 times the stake in at most 5% of cases, at whatever
moment one looks (Ville 1939). Nothing is assumed of a unit of evidence but that its success lies
between 0 and 1: an item, or a family of items as a whole (Waudby-Smith & Ramdas 2024, for means of
bounded variables). Every unit counts the same: stakes by size would change whenever a larger unit
came, and what had been won would be bet again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ramp.nines.intervals import Interval

# Shares of the bar's failure rate that a good system may have, and of the capital bet on each.
# The last is kept as cash: error rates stay below their bound instead of at it.
BETTER = np.array([0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0])
BETTER_SHARE = np.array([0.2, 0.35, 0.13, 0.08, 0.06, 0.05, 0.03, 0.1])
# Multiples of it that a bad system may have, in equal shares.
WORSE = np.array([1.0, 1.2, 1.5, 2.0, 4.0, 10.0, 100.0])
# Stakes on the difference of two systems, in equal shares.
LOSS_STAKES = np.array([0.0, 0.05, 0.1, 0.25, 0.5, 0.9])
ROUNDS = 50  # of bisection


@dataclass(frozen=True)
class Evidence:
    """Independent units of evidence. Units that agree are one row with their number."""

    success: ndarray  # [R] of the unit, between 0 and 1
    count: ndarray  # [R] how many such units there are

    def __add__(self, other: "Evidence") -> "Evidence":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Evidence(*(np.concatenate(pair) for pair in pairs))

    @property
    def rate(self) -> float:
        """The mean success of the units."""
        return np.average(self.success, weights=self.count)


def count_evidence(success: ndarray) -> Evidence:
    """Evidence of units with these successes, [U]."""
    return Evidence(*np.unique(success, return_counts=True))


def clean_evidence(units: int) -> Evidence:
    """Evidence of so many units without a failure."""
    return Evidence(np.ones(1), np.array([units]))


def log_capital_above(e: Evidence, rate: float) -> float:
    """Log capital of bets that the success rate is above `rate`, which is above 0.

    Where it is not, this exceeds log(1 / a) at any time with probability a at most. The order of
    the units does not matter, and units may differ: the mean of their rates is what is bet on.
    """
    return np.logaddexp.reduce(
        _log_capitals(e, 1 - BETTER, e.success / rate - 1) + np.log(BETTER_SHARE)
    )


def log_capital_below(e: Evidence, rate: float) -> float:
    """Log capital of bets that the success rate is below `rate`, which is below 1."""
    # More than all trials cannot fail.
    worse = np.minimum(WORSE, 1 / (1 - rate))
    gain = (rate - e.success) / rate
    return _log_mean(_log_capitals(e, worse - 1, gain))


def log_capital_of_loss(e: Evidence) -> float:
    """Log capital of bets that the mean is below 0, of units between -1 and 1."""
    return _log_mean(_log_capitals(e, LOSS_STAKES, -e.success))


def _log_capitals(e, stakes, gain):
    """[S] the log capital of each stake, bet on all units."""
    with np.errstate(divide="ignore"):  # the whole capital may be lost
        logs = np.log1p(np.maximum(stakes[:, None] * gain, -1))
    return logs @ e.count


def _log_mean(logs):
    return np.logaddexp.reduce(logs) - np.log(len(logs))


def confidence_sequence(e: Evidence, level: float = 0.95) -> Interval:
    """The lower and the upper bound of the success rate, each at confidence `level`.

    Each holds at all times at once, however often one looks.
    """
    enough = -math.log(1 - level)
    low = _bisect(lambda rate: log_capital_above(e, rate) >= enough)
    high = 1 - _bisect(lambda failure_rate: log_capital_below(e, 1 - failure_rate) >= enough)
    return low, high


def _bisect(holds: Callable[[float], bool]) -> float:
    """The number in [0, 1] where `holds` turns from true to false."""
    low = 0.0
    high = 1.0
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def count_clean_units(e: Evidence, rate: float, level: float = 0.95) -> int:
    """Further units without a failure that would demonstrate `rate`; 0 where it is demonstrated.

    To follow this advice, however often, costs nothing: the bound holds at all times.
    """
    enough = -math.log(1 - level)
    so_far = _log_capitals(e, 1 - BETTER, e.success / rate - 1) + np.log(BETTER_SHARE)
    gain = np.log1p((1 - BETTER) * (1 / rate - 1))  # of a clean unit

    def is_shown(units):
        return np.logaddexp.reduce(so_far + units * gain) >= enough

    if is_shown(0):
        return 0
    most = 1
    while not is_shown(most):
        most *= 2
    # Between half of it and itself.
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        if is_shown(middle):
            most = middle
        else:
            least = middle
    return most
