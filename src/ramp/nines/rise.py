"""A skill that is learned suddenly: unsolved, unsolved, half solved, nearly always solved.

A line or a power law through such a curve says that what was never solved never will be. This model
says by when it may be, from how long it has not been:

    p(x) = floor + (cap - floor) · σ((x - middle) / width),   x = log10 of compute or steps

The middle has Pareto's prior of index 1: what has not risen by now rises before twice as much
progress with probability one half (Gott 1993, "Implications of the Copernican principle for our
future prospects", Nature 363). The posterior is drawn by importance resampling of the prior.
"""

from functools import cache

import numpy as np
from numpy import ndarray
from scipy.special import expit, xlog1py, xlogy
from scipy.stats import beta, norm, qmc

from ramp.nines.trials import Curves

PRIOR_DRAWS = 2**14
MIN_EFFECTIVE = 100  # draws that share the posterior; below it the likelihood is flattened
FLOOR = beta(0.3, 2)  # success before the rise
CAP = beta(2, 0.7)  # after it, as a share of what lies above the floor
WIDTH, WIDTH_SD = 0.1, 1.0  # decades, log-normal; the rise from 5% to 95% takes six widths
MAX_TRIALS = 100  # that a checkpoint counts for: training is noisy beyond the choice of items


def sample_rise(measured: Curves, places: ndarray, draws: int, rng: np.random.Generator) -> ndarray:
    """[draws, T] whole curves of success at `places`, in log10 progress, given what was measured.

    measured: one run, from its first checkpoint.
    """
    floor, cap, after, width = _draw_prior()
    middle = measured.x[0] + after
    success = _rise(floor, cap, middle, width, measured.x)
    trials = count_trials(measured)
    wins = measured.value * trials
    log_likelihood = (xlogy(wins, success) + xlog1py(trials - wins, -success)).sum(1)
    kept = rng.choice(PRIOR_DRAWS, draws, p=_weigh(log_likelihood))
    return _rise(floor[kept], cap[kept], middle[kept], width[kept], places)


def count_trials(measured: Curves) -> ndarray:
    """[K] trials that each checkpoint counts for, below `MAX_TRIALS`."""
    return 1 / (1 / np.maximum(measured.n, 1) + 1 / MAX_TRIALS)


def _rise(floor, cap, middle, width, x):
    """[S, T] success at the places x of S curves."""
    share = expit((x - middle[:, None]) / width[:, None])
    return floor[:, None] + (cap - floor)[:, None] * share


@cache
def _draw_prior():
    """Floor, cap, decades from the first checkpoint to the middle, and width; [PRIOR_DRAWS] each.

    By a Sobol sequence, which leaves no gaps: the posterior may lie in a small corner.
    """
    u = qmc.Sobol(4, seed=0).random(PRIOR_DRAWS).clip(1e-6, 1 - 1e-6)
    floor = FLOOR.ppf(u[:, 0])
    cap = floor + (1 - floor) * CAP.ppf(u[:, 1])
    after = -np.log10(u[:, 2])
    width = WIDTH * np.exp(WIDTH_SD * norm.ppf(u[:, 3]))
    # A success rate of exactly 0 or 1 would rule out what one lucky try shows.
    return floor.clip(1e-4), cap.clip(None, 1 - 1e-4), after, width


def _weigh(log_likelihood):
    """[N] weights of the draws, with enough of them in effect."""
    power = 1.0
    while True:
        weights = np.exp(power * (log_likelihood - log_likelihood.max()))
        weights /= weights.sum()
        if 1 / (weights @ weights) >= MIN_EFFECTIVE:
            return weights
        power *= 0.8
