"""How difficult items may be for a system to succeed at a rate, and how fast that grows.

With log2 of human minutes as the difficulty a horizon is the length of tasks that a system does at
50%, 80% or 99% (Kwa et al. 2025, arXiv:2503.14499), and its slope over years counts doublings. The
line is fitted to every draw of the item model, so that doubts about items reach it, and what
systems scatter around it widens it by Student's distribution: three systems say very little.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import expit
from scipy.stats import t as student

from ramp.nines.items import QUADRATURE, SD_ITEM, ItemFit, find_models
from ramp.nines.trials import Trials

RATES = (0.5, 0.8, 0.99)  # of success, whose difficulty is asked for
ENDS = (0.05, 0.5, 0.95)  # quantiles of what is said
LEAST = 3  # systems that a line is fitted to
LEAST_YEARS = 0.25  # between the first and the last system, to count in years
KNOWN = 0.9  # of the draws that have a horizon, or a system has none


@dataclass(frozen=True)
class Horizon:
    """How difficult items may be for one checkpoint to succeed at this rate."""

    run: str
    x: float  # log10 progress of the checkpoint
    success: float
    difficulty: list[float]  # at 5%, 50% and 95%; -inf: at none, however easy


@dataclass(frozen=True)
class Growth:
    """How fast the difficulty grows that is mastered at a rate."""

    success: float
    unit: str  # "year", "decade of compute" or "decade of step"
    systems: int  # checkpoints that have such a horizon
    slope: list[float]  # difficulty by unit, at 5%, 50% and 95%
    ahead: list[float]  # difficulty of a further system one unit after the last, the same


def draw_horizons(fit: ItemFit, model: int) -> ndarray:
    """[RATES, S] the difficulty at which a checkpoint succeeds at each rate, by draw.

    Families and items of one difficulty differ: success is the mean over those of the suite.
    """
    c = fit.cells
    effects = fit.effects
    family = effects[:, fit.columns("family ")]
    level = effects[:, model] - family.mean(1)
    spread = np.hypot(fit.hyper[:, SD_ITEM], family.std(1))
    lapse = expit(effects[:, -2] + effects[:, -1] * (c.x[model] - c.x.max()))
    most = (1 - lapse) * (1 - expit(effects[:, fit.columns("never")][:, 0]))
    nodes, mass = QUADRATURE
    margin = np.linspace(-20, 20, 401)  # ability less difficulty
    needed = np.empty((len(RATES), len(effects)))
    for s, sd in enumerate(spread):
        solved = most[s] * (expit(margin[:, None] + sd * nodes) @ (mass / mass.sum()))
        # A lapse may keep it from so much.
        needed[:, s] = np.interp(RATES, solved, margin, right=np.inf)
    slope = np.maximum(effects[:, len(c.runs)], 1e-6)
    return (level - needed) / slope + c.mean_difficulty


def find_horizons(fit: ItemFit) -> list[Horizon]:
    """The horizons of every checkpoint; none where items have no difficulty that differs."""
    c = fit.cells
    if np.ptp(c.difficulty) == 0:
        return []
    found = []
    for model, (run, x) in enumerate(zip(c.runs, c.x, strict=True)):
        where = draw_horizons(fit, model)
        bounds = np.quantile(where, ENDS, axis=1, method="inverted_cdf").T.tolist()
        found += [Horizon(str(run), float(x), *each) for each in zip(RATES, bounds, strict=True)]
    return found


def place_models(fit: ItemFit, t: Trials) -> tuple[ndarray, str]:
    """[M] where each checkpoint stands in time, in years, or else in progress; and the unit.

    Its date is that of its first trial, or of its release where the table has those.
    """
    c = fit.cells
    if (t.date != "").all():
        days = t.date.astype("U10").astype("datetime64[D]").astype(float)
        first = np.full(len(c.runs), np.inf)
        np.minimum.at(first, find_models(t)[1], days / 365.25)
        # Within weeks they are the days on which the systems were tried, not made.
        if np.ptp(first) >= LEAST_YEARS:
            return first, "year"
    return c.x, f"decade of {'compute' if np.isfinite(t.compute).all() else 'step'}"


def find_growth(fit: ItemFit, t: Trials) -> list[Growth]:
    """The growth of horizons over the checkpoints; none where fewer than LEAST have one."""
    if np.ptp(fit.cells.difficulty) == 0:
        return []
    place, unit = place_models(fit, t)
    # [RATES, M, S]
    where = np.stack([draw_horizons(fit, model) for model in range(len(place))], axis=1)
    found = []
    for rate, drawn in zip(RATES, where, strict=True):
        has = np.isfinite(drawn).mean(1) >= KNOWN
        # A draw counts where every one of these systems has a horizon.
        draws = drawn[has][:, np.isfinite(drawn[has]).all(0)]
        if len(np.unique(place[has])) >= LEAST and draws.size:
            slope, ahead = fit_line(place[has], draws, np.random.default_rng(0))
            bounds = [np.quantile(values, ENDS).tolist() for values in (slope, ahead)]
            found.append(Growth(rate, unit, int(has.sum()), *bounds))
    return found


def fit_line(x: ndarray, draws: ndarray, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    """[S] slopes of lines through each draw, [M, S], and [S] a new system one unit after the last.

    Both with the scatter of the systems around the line.
    """
    count = len(x)
    off = x - x.mean()
    squares = off @ off
    slope = off @ draws / squares
    level = draws.mean(0)
    left = draws - level - off[:, None] * slope
    spread = np.sqrt((left**2).sum(0) / (count - 2))
    at = off.max() + 1
    noise = student.rvs(count - 2, size=(2, draws.shape[1]), random_state=rng)
    slopes = slope + spread / np.sqrt(squares) * noise[0]
    reach = np.sqrt(1 + 1 / count + at**2 / squares)
    return slopes, level + at * slope + spread * reach * noise[1]
