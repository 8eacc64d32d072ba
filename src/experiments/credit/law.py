"""The straw as a law: sampled steps to unlearn a wrong rule, against the number of steps.

A toy of one number. A problem has K operations; each is of the kind that the policy gets wrong with
probability q, so M ~ Binomial(K, q) of them are. At each of those it makes the right move with
probability p = sigmoid(theta), and S ~ Binomial(M, p) of the moves are right; all else is right.
The score of theta is S - M p, and a rollout estimates the gradient by

    verified   (1[S = M] - p^M) (S - M p)            one bit for all steps
    share      (S - M p) / K  x  (S - M p)           the sum of the bits for all steps
    step-local S (1 - p)^2 + (M - S) p^2             each step its own bit

All three have an exact mean and variance. A stochastic gradient needs rollouts as the noise of
one over its signal, squared, plus a floor for steps that are limited by their size and not by
noise:

    sampled steps = c K x integral over theta of (1 / SNR^2 + floor)

from the skill at the start to the one at which 90% of the problems are verified. The two constants
are fitted to the shorter chains, the same for all arms; the longer ones are a forecast.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.stats import binom

Q = 1 / 3  # of the three operations one is wrong

# (K, M, S, p) to the gradient that one rollout estimates.
Estimate = Callable[[int, np.ndarray, np.ndarray, float], np.ndarray]
ESTIMATES: dict[str, Estimate] = {
    "verified": lambda k, m, s, p: ((s == m) - p**m) * (s - m * p),
    "share": lambda k, m, s, p: (s - m * p) ** 2 / k,
    "step-local": lambda k, m, s, p: s * (1 - p) ** 2 + (m - s) * p**2,
}


@dataclass(frozen=True)
class Law:
    """The constants of the law."""

    scale: float
    floor: float

    def steps(self, arm: str, num_steps: int, start: float, goal: float = 0.9) -> float:
        """Forecast of the sampled steps to the goal, from the skill `start` at the wrong rule."""
        noise, width = integrate_noise(arm, num_steps, start, goal)
        return self.scale * num_steps * (noise + self.floor * width)


def signal_to_noise(arm: str, num_steps: int, p: float) -> float:
    """Squared mean over variance of the gradient that one rollout estimates."""
    m = np.arange(num_steps + 1)[:, None]
    s = np.arange(num_steps + 1)[None]
    weight = binom.pmf(m, num_steps, Q) * binom.pmf(s, m, p)
    g = ESTIMATES[arm](num_steps, m, s, p)
    mean = (weight * g).sum()
    variance = (weight * g**2).sum() - mean**2
    return float(mean**2 / variance)


def skill_at(num_steps: int, verified: float) -> float:
    """p at which so many problems are verified: (1 - q + q p)^K = verified."""
    return 1 - (1 - verified ** (1 / num_steps)) / Q


def integrate_noise(
    arm: str, num_steps: int, start: float, goal: float, n: int = 400
) -> tuple[float, float]:
    """(integral of 1 / SNR^2 over theta, length of the way in theta)."""
    first, last = (np.log(p / (1 - p)) for p in (start, skill_at(num_steps, goal)))
    theta = np.linspace(first, last, n)
    noise = [1 / signal_to_noise(arm, num_steps, p) for p in 1 / (1 + np.exp(-theta))]
    return float(np.trapezoid(noise, theta)), float(last - first)


def fit_law(measured: Sequence[tuple[str, int, float, float]]) -> Law:
    """The constants that are closest, in logarithms, to (arm, K, start, sampled steps)."""
    parts = []
    for arm, num_steps, start, steps in measured:
        noise, width = integrate_noise(arm, num_steps, start, 0.9)
        parts.append((num_steps, noise, width, np.log(steps)))
    length, noise, width, log_steps = np.array(parts).T

    def misfit(x: np.ndarray) -> float:
        scale, floor = np.exp(x)
        forecast = np.log(scale * length * (noise + floor * width))
        return float(((forecast - log_steps) ** 2).sum())

    found = minimize(misfit, x0=(0.0, 0.0), method="Nelder-Mead")
    scale, floor = np.exp(found.x)
    return Law(float(scale), float(floor))
