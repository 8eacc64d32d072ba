"""Several ways for a curve to go on, pooled: no single one holds for every task.

The item model's growth keeps an equal share. A line, a power law and a rise (`rise.py`) divide the
rest by how well each would have forecast the last checkpoints from those before them.
"""

import numpy as np
from numpy import ndarray
from scipy.special import expit
from scipy.stats import binom

from ramp.nines.baselines import LAST, accuracy_logits, sample_line, sample_power_law
from ramp.nines.rise import count_trials, sample_rise
from ramp.nines.usage import Measured

MIN_MEASURED = 4  # checkpoints that a line and a power law are drawn through
MIN_RISE = 3  # checkpoints of a rise
SURPRISE = 0.05  # of a score that is uniform over the outcomes: no single miss rules a member out
MEASURED_NOW = 0.9  # share of the draws at the last checkpoint that are of the item model alone


def pool(
    modelled: ndarray, measured: Measured, grid: ndarray, now: float, rng: np.random.Generator
) -> ndarray:
    """[S, T] draws of the mix: `modelled` for its share of them, for the others what was measured.

    modelled: [S, T] by the item model; grid: [T] log10 progress; now: that of the last checkpoint,
    which may have tried only a part of the mix.
    """
    if len(measured) < MIN_RISE:
        return modelled
    draws = len(modelled)
    members = _draw_members(measured, np.maximum(grid, now), draws, rng)
    if not any(m is not None for m in members):
        return modelled
    # The item model would have to be fitted again at every checkpoint to be weighed as the others.
    weights = _weigh_members(measured, members)
    share = 1 / (1 + np.count_nonzero(weights))
    member = rng.choice(1 + len(members), (draws, 1), p=np.append(share, (1 - share) * weights))
    pooled = np.choose(member, [modelled, *(modelled if m is None else m for m in members)])
    # What is past was measured. What holds now was too, but by the item model alone its interval is
    # too narrow, and by the pool too wide.
    is_now = np.isclose(grid, now)
    is_modelled = (grid < now) & ~is_now | is_now & (rng.random((draws, 1)) < MEASURED_NOW)
    return np.where(is_modelled, modelled, pooled)


def _draw_members(measured, places, draws, rng):
    """[draws, T] whole curves by line, power law and rise; None of one that has too few points."""
    rise = sample_rise(measured, places, draws, rng)
    if len(measured) < MIN_MEASURED:
        return [None, None, rise]
    m = measured[-LAST:]
    x = m.x - m.x[-1]
    leads = places - m.x[-1]
    # With one seed a draw keeps its rate and its luck at all places: it is a whole curve.
    line, law = (
        np.transpose([draw(x, y, lead, np.random.default_rng(0)) for lead in leads])
        for draw, y in ((sample_line, accuracy_logits(m)[0]), (sample_power_law, m.value))
    )
    kept = rng.integers(len(line), size=draws)
    return [expit(line[kept]), law[kept], rise]


def _weigh_members(measured, current):
    """Weights by the chances that each member gave to what the last checkpoints then showed.

    current: the members' draws of today; a member without any has no weight.

    Products of chances, as Bayesian model averaging has them. Means over many forecasts, by which
    stacking weighs, would notice a sudden rise only when it is over.
    """
    log_weights = np.where([m is None for m in current], -np.inf, 0.0)
    trials = np.round(count_trials(measured))
    wins = np.round(measured.value * trials)
    for j in range(max(MIN_MEASURED, len(measured) - LAST), len(measured)):
        rng = np.random.default_rng(0)
        members = _draw_members(measured[:j], measured.x[j : j + 1], 1000, rng)
        # A member that had no draws then is given the chance of a guess among all outcomes.
        guess = 1 / (trials[j] + 1)
        chance = [
            guess if d is None else binom.pmf(wins[j], trials[j], d[:, 0]).mean() for d in members
        ]
        log_weights += np.log((1 - SURPRISE) * np.array(chance) + SURPRISE * guess)
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()
