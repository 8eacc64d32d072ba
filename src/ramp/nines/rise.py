"""A skill that is learned suddenly: unsolved, unsolved, half solved, nearly always solved.

A line or a power law through such a curve says that what was never solved never will be. This model
says by when it may be, from how long it has not been:

    p(x) = floor + (cap - floor) · σ((x - middle) / width),   x = log10 of compute or steps

The middle has Pareto's prior of index 1: what has not risen by now rises before twice as much
progress with probability one half, if it ever does (Gott 1993, "Implications of the Copernican
principle for our future prospects", Nature 363). The posterior is drawn by adaptive importance
sampling (Cappé et al. 2004, "Population Monte Carlo"): where the prior's draws miss it, others are
drawn around the best.
"""

from functools import cache

import numpy as np
from numpy import ndarray
from scipy.special import expit, logit, xlog1py, xlogy
from scipy.stats import beta, multivariate_t, norm, qmc

from ramp.nines.trials import Curves

DRAWS = 2**14  # of a proposal
ROUNDS = 8  # of drawing closer
MIN_EFFECTIVE = 100  # draws that share the posterior
FLOOR = beta(0.3, 2)  # success before the rise
CAP = beta(2, 0.7)  # after it, as a share of what lies above the floor
WIDTH = norm(np.log(0.1), 1.0)  # log of decades; the rise from 5% to 95% takes six widths
MAX_TRIALS = 100  # that a checkpoint counts for: training is noisy beyond the choice of items
LN10 = np.log(10)


def sample_rise(
    measured: Curves, places: ndarray, draws: int, rng: np.random.Generator
) -> ndarray | None:
    """[draws, T] whole curves of success at `places`, in log10 progress, given what was measured.

    measured: one run, from its first checkpoint. None where no rise explains it.
    """
    z, log_proposal = _propose(measured.x[0], measured.x[-1])
    for _ in range(ROUNDS):
        log_weights = _log_posterior(z, measured) - log_proposal
        weights, power = _flatten(log_weights)
        if power == 1:
            return _rise(z[rng.choice(DRAWS, draws, p=weights)], places)
        # Wider than the posterior, since the weights are flattened and the tails are heavy.
        spread = np.cov(z.T, aweights=weights) + 1e-6 * np.eye(z.shape[1])
        closer = multivariate_t(weights @ z, spread, df=5, seed=rng)
        z = closer.rvs(DRAWS)
        log_proposal = closer.logpdf(z)
    return None


def count_trials(measured: Curves) -> ndarray:
    """[K] trials that each checkpoint counts for, below `MAX_TRIALS`."""
    return 1 / (1 / np.maximum(measured.n, 1) + 1 / MAX_TRIALS)


# z: [N, 4] logits of the floor and of the cap's share, middle, log of the width


def _rise(z, x):
    """[N, T] success at the places x."""
    floor, cap, middle, width = z.T[:, :, None]
    share = expit(cap) * expit((x - middle) / np.exp(width))
    # Exactly 0 or 1 would rule out what one lucky try shows.
    return (expit(floor) + (1 - expit(floor)) * share).clip(1e-4, 1 - 1e-4)


def _propose(first, last):
    """Draws by the prior, but for the middle, and the logs of their density.

    Half of the middles lie among the checkpoints, where a rise may have been measured however late
    it came; the others after the last.
    """
    u, floor, cap, width = _draw_standard()
    known = max(last - first, 1e-9)
    middle = np.where(u < 0.5, first + 2 * u * known, last - np.log10(np.minimum(2 - 2 * u, 1)))
    tail = np.log(LN10) - LN10 * np.maximum(middle - last, 0)
    log_middle = np.log(0.5) + np.where(u < 0.5, -np.log(known), tail)
    z = np.transpose([floor, cap, middle, width])
    return z, _log_others(z) + log_middle


@cache
def _draw_standard():
    """Uniform numbers that place the middle; floors, caps and widths of the prior; [DRAWS] each.

    By a Sobol sequence, which leaves no gaps.
    """
    u = qmc.Sobol(4, seed=0).random(DRAWS).clip(1e-6, 1 - 1e-6)
    floor, cap = (logit(p.ppf(u[:, k]).clip(1e-9, 1 - 1e-9)) for k, p in enumerate((FLOOR, CAP)))
    return u[:, 2], floor, cap, WIDTH.ppf(u[:, 3])


def _log_others(z):
    """Log prior density of all but the middle."""
    density = WIDTH.logpdf(z[:, 3])
    for p, prior in ((expit(z[:, 0]), FLOOR), (expit(z[:, 1]), CAP)):
        p = p.clip(1e-12, 1 - 1e-12)
        density = density + prior.logpdf(p) + np.log(p) + np.log1p(-p)
    return density


def _log_posterior(z, measured):
    success = _rise(z, measured.x)
    trials = count_trials(measured)
    wins = measured.value * trials
    log_likelihood = (xlogy(wins, success) + xlog1py(trials - wins, -success)).sum(1)
    ahead = z[:, 2] - measured.x[0]
    log_middle = np.where(ahead >= 0, np.log(LN10) - LN10 * ahead, -np.inf)
    return log_likelihood + log_middle + _log_others(z)


def _flatten(log_weights):
    """[N] weights to a power at which enough draws are in effect, and that power: 1 if possible."""
    power = 1.0
    while True:
        weights = np.exp(power * (log_weights - log_weights.max()))
        weights /= weights.sum()
        # Of weights that are no numbers none is in effect at any power.
        if 1 / (weights @ weights) >= MIN_EFFECTIVE or power < 1e-6:
            return weights, power
        power *= 0.7
