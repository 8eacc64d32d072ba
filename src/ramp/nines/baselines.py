"""The simple methods that a forecast has to beat, with prediction intervals of their own."""

import numpy as np
from numpy import ndarray
from scipy.special import expit, logit
from scipy.stats import t as student

from ramp.nines.trials import Curves

DRAWS = 2000
LAST = 8  # checkpoints that lines are fitted to
RATES = np.geomspace(0.05, 3, 30)  # of decay of a power law, by decade of progress


def accuracy_logits(c: Curves) -> tuple[ndarray, ndarray]:
    """Logits of the accuracies and their standard errors.

    Half a success is added on each side, so that 0 and 1 stay finite.
    """
    p = (c.value * c.n + 0.5) / (c.n + 1)
    return logit(p), 1 / np.sqrt(c.n * p * (1 - p))


def observe_accuracy(p: ndarray, n: float) -> ndarray:
    """Accuracies that about n trials show at success rates p; inverts `accuracy_logits`.

    0 of n and n of n are possible outcomes.
    """
    return np.clip((p * (n + 1) - 0.5) / n, 0, 1)


def baselines(
    known: Curves, before: Curves, origin: float, target: float, rng: np.random.Generator
) -> dict[str, ndarray]:
    """[DRAWS] accuracies at `target` by each simple method that has enough to go by.

    persistence: the last logit, which wanders as far as it did so far. log-linear: a line through
    the last logits over log10 progress, and so does what it leaves. power law: T - A s^-q through
    the last values, each rate q weighed by its fit. analog: the last logit moves as the two next
    smaller sizes moved from here to the target. Spreads of few are Student's.
    """
    y, error = accuracy_logits(before)
    n = before.n[-1]
    x = before.x - origin
    lead = target - origin
    z = rng.standard_normal(DRAWS)
    spread = np.hypot(np.sqrt(_wander(x, y, 0.0) * lead), error[-1])
    ensembles = {"persistence": observe_accuracy(expit(y[-1] + spread * z), n)}
    x = x[-LAST:]
    y = y[-LAST:]
    if len(x) >= 3:
        ensembles["log-linear"] = observe_accuracy(expit(sample_line(x, y, lead, rng)), n)
        ensembles["power law"] = sample_power_law(x, before.value[-LAST:], lead, rng)
    moves = _find_moves(known, before, target)
    if len(moves) >= 2:
        # Of a new observation around a mean of few.
        spread = np.std(moves, ddof=1) * np.sqrt(1 + 1 / len(moves))
        noise = spread * student.rvs(len(moves) - 1, size=DRAWS, random_state=rng) + error[-1] * z
        ensembles["analog"] = observe_accuracy(expit(y[-1] + np.mean(moves) + noise), n)
    return ensembles


def _wander(x, y, slope):
    """Variance by decade of a random walk around a line of this slope."""
    moves = np.diff(y) - slope * np.diff(x)
    return (moves**2).sum() / max(np.ptp(x), 1e-9)


def _extrapolate(x, y, at):
    """A least-squares line at one place, the variance of a new observation there, the
    slope, and the squares that are left."""
    slope, level = np.polyfit(x, y, 1)
    residual = y - level - slope * x
    off = x - x.mean()
    leverage = 1 / len(x) + (at - x.mean()) ** 2 / (off @ off)
    squares = residual @ residual
    variance = squares / max(len(x) - 2, 1) * (1 + leverage)
    return level + slope * at, variance, slope, squares


def sample_line(x: ndarray, y: ndarray, lead: float, rng: np.random.Generator) -> ndarray:
    """[DRAWS] logits `lead` after the last place, 0, on a line through y that wanders on."""
    center, variance, slope, _ = _extrapolate(x, y, lead)
    spread = np.sqrt(variance + _wander(x, y, slope) * lead)
    return center + spread * student.rvs(len(x) - 2, size=DRAWS, random_state=rng)


def sample_power_law(x: ndarray, values: ndarray, lead: float, rng: np.random.Generator) -> ndarray:
    """[DRAWS] accuracies `lead` after the last place, 0, each rate of decay weighed by its fit."""
    scales = 10**-RATES
    fits = [_extrapolate(scale**x, values, scale**lead) for scale in scales]
    center, variance, _, residual = np.transpose(fits)
    residual = residual + 1e-12
    weights = (residual.min() / residual) ** (len(x) / 2)
    rate = rng.choice(len(RATES), DRAWS, p=weights / weights.sum())
    # The rate takes a degree of freedom too.
    left = max(len(x) - 3, 1)
    spread = np.sqrt(variance[rate] * (len(x) - 2) / left)
    draws = center[rate] + spread * student.rvs(left, size=DRAWS, random_state=rng)
    return np.clip(draws, 0, 1)


def _find_moves(known, before, target):
    """What the logits of the two next smaller sizes gained from here to the target."""
    smaller = np.unique(known.size[known.size < before.size[-1]])[-2:]
    moves = []
    for run in np.unique(known.run[np.isin(known.size, smaller)]):
        other = known[known.run == run]
        logits = accuracy_logits(other)[0]
        start = np.isclose(other.x, before.x[-1])
        end = np.isclose(other.x, target)
        if start.any() and end.any():
            moves.append(logits[end][0] - logits[start][0])
    return moves
