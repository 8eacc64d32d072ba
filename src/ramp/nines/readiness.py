"""From a fitted table to a decision: at which compute are r nines reached, with what probability?

Reliability is the mean success over a declared mix of families and slices, for items like those
tried, not only those. Ready at r nines with probability q at compute C means: the mix is at least
1 - 10^-r, and no slice is below one nine less, with probability at least q. Dates exist only
through a schedule of compute or steps that the user gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray
from scipy.special import expit, logit
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import backtest, growth, items
from ramp.nines.baselines import accuracy_logits
from ramp.nines.cleaning import suggest_pattern
from ramp.nines.growth import SHAPES, Points, Stacking
from ramp.nines.pool import pool
from ramp.nines.trials import Trials, accuracy_curves, log_progress
from ramp.nines.usage import Measured, Usage, measure

QUADRATURE = np.polynomial.hermite_e.hermegauss(25)
MAX_QUANTILES = 24  # of difficulty, at which the items of one family are read
MAX_ORIGINS = 8  # last checkpoints that weigh the shapes of growth


@dataclass(frozen=True)
class Forecast:
    """Draws of the reliability of the mix over a grid of progress."""

    run: str
    grid: ndarray  # [T] log10 of compute or steps
    now: float  # that of the last checkpoint
    mix: ndarray  # [S, T]
    slices: dict[str, ndarray]  # [S, T] each
    usage: Usage
    measured: Measured
    stacking: Stacking  # of the shapes of growth
    unit: str  # "compute" or "step"
    converged: bool = True  # of the item model

    def is_ready(self, nines: float) -> ndarray:
        """[S, T] whether the mix has so many nines, and every slice one nine less; from now on."""
        ready = (self.mix >= 1 - 10.0**-nines) & (self.grid >= self.now - 1e-9)
        for path in self.slices.values():
            ready &= path >= 1 - 10.0 ** -(nines - 1)
        return ready

    def first_ready(self, nines: float) -> ndarray:
        """[S] log10 progress, from now on, at which each draw is first ready; inf: never."""
        ready = self.is_ready(nines)
        return np.where(ready.any(1), self.grid[ready.argmax(1)], np.inf)

    def ready_at(self, nines: float, probability: float) -> float:
        """The log10 progress by which it has been reached with this probability; inf: nowhere."""
        # Of first passages alone: what is true at one place cannot contradict them.
        return np.quantile(self.first_ready(nines), probability, method="inverted_cdf")


def mix_weights(
    mix: Mapping[str, float] | None, names: list[str], what: str, counts: ndarray
) -> ndarray:
    """[N] weights of `names` in a mix; without a mix in proportion to `counts`.

    Raises UserError for a mix of other names, or one that is not parts of 1.
    """
    if not mix:
        return counts / counts.sum()
    for name in mix:
        if name not in names:
            raise UserError(
                f"the mix names the {what} {name!r}, which has no trial; use {', '.join(names)}"
            )
    total = sum(mix.values())
    # NaN is neither near 1 nor far from it.
    if min(mix.values()) < 0 or not abs(total - 1) <= 1e-6:
        raise UserError(f"the mix over each {what} sums to {total:g}; it must be parts of 1")
    return np.array([mix.get(name, 0.0) for name in names])


# Growth of one series


def _extrapolate(at, y, cov, independent, to, draws, rng):
    """[S, T] curves at the points `to`, and the `Stacking` that weighed and widened them.

    at: the N known points; y: [N] logits there; cov: [N, N] their covariance.
    independent: errors of different checkpoints are. The shapes are weighed by forecasting each of
    the last checkpoints from those before it.
    """

    def fit(rows, now):
        # Every shape of growth on some of the points, with progress counted from `now`.
        points = replace(at, x=at.x - now)[rows]
        errors = cov[np.ix_(rows, rows)]
        return [growth.fit(shape, points, y[rows], errors, independent) for shape in SHAPES]

    order = np.argsort(at.x, kind="stable")
    scores = []
    pits = []
    for j in range(max(2, len(order) - MAX_ORIGINS), len(order)):
        known = order[:j]
        new = order[j]
        now = at.x[known].max()
        place = replace(at, x=at.x - now)[order[j : j + 1]]
        error = np.sqrt(cov[new, new])
        predicted = [f.predict_observation(place, error) for f in fit(known, now)]
        mean, sd = np.transpose(predicted)
        # The mixture of shapes as it would have been weighted at the time.
        weights = growth.learn_stacking(scores, pits).weights
        pits.append(weights @ norm.cdf((y[new] - mean) / sd))
        scores.append(norm.logpdf(y[new], mean, sd))
    stacking = growth.learn_stacking(scores, pits)
    fits = fit(np.arange(len(y)), 0)
    curves = growth.sample_curves(fits, stacking.weights, to, draws, rng)
    return growth.widen(curves, stacking.widening), stacking


# The forecast


def forecast(
    t: Trials,
    decades: float = 1.0,
    families: Mapping[str, float] | None = None,
    slices: Mapping[str, float] | None = None,
    run: str | None = None,
    draws: int = 800,
    steps: int = 41,
) -> Forecast:
    """Forecast the reliability of one run up to `decades` beyond its last checkpoint.

    families, slices: the mix, see `mix_weights`. run: by default the one that got furthest.
    steps: points of the grid. Raises UserError where there is no growth to see, or no such run,
    family or slice.
    """
    if (t.item == "").all():
        if families or slices:
            raise UserError(
                "a mix needs the items behind the accuracies; this table holds aggregates only"
            )
        return _forecast_aggregates(t, decades, run, draws, steps)
    rng = np.random.default_rng(0)
    unit = log_progress(t)[1]
    c = items.sum_cells(t)
    family_weights = mix_weights(families, c.families, "family", np.bincount(c.family))
    slice_weights = mix_weights(slices, c.slices, "slice", np.ones(len(c.slices)))
    run, now = _choose_run(c.runs, c.x, run)
    fit = items.fit(c, draws)
    # Growth is read from the abilities of these models.
    near = np.flatnonzero(c.x >= now - max(backtest.WINDOW, 2 * decades))
    at = Points(c.x[near] - now, np.zeros(len(near)), c.runs[near])
    cov = fit.cov[np.ix_(near, near)] + 1e-6 * np.eye(len(near))
    past = at.x[at.run == run] + now
    grid = np.unique(np.append(past, np.linspace(now, now + decades, steps)))
    # Curves at the models' own places too: what growth says of them is used below.
    runs = np.append(at.run, np.full(len(grid), run))
    to = Points(np.append(at.x, grid - now), np.zeros(len(runs)), runs)
    curves, stacking = _extrapolate(at, fit.mean[near], cov, True, to, draws, rng)
    abilities = curves[:, : len(near)]
    ahead = curves[:, len(near) :]
    # Abilities moved by growth move the effects that were estimated together with them.
    moved = abilities - fit.effects[:, near]
    effects = fit.effects + moved @ np.linalg.solve(cov, fit.cov[near])
    lapse = expit(effects[:, -2:-1] + effects[:, -1:] * (grid - c.x.max()))
    paths = _slice_paths(fit, effects, ahead, lapse, family_weights)
    usage = Usage(
        tasks=np.unique(t.task).tolist(),
        families=_name_weights(c.families, family_weights),
        slices=_name_weights(c.slices, slice_weights),
    )
    measured = measure(t, run, usage)
    modelled = np.tensordot(slice_weights, paths, 1)
    mix = pool(modelled, measured, grid, now, rng)
    # A slice that the mix leaves out need not be ready. The others move with the mix.
    is_used = slice_weights > 0
    names = np.array(c.slices)[is_used].tolist()
    moved = expit(_safe_logit(paths[is_used]) + _safe_logit(mix) - _safe_logit(modelled))
    used = dict(zip(names, moved, strict=True))
    return Forecast(run, grid, now, mix, used, usage, measured, stacking, unit, fit.converged)


def _safe_logit(p):
    return logit(np.clip(p, 1e-9, 1 - 1e-9))


def _name_weights(names, weights):
    return {str(n): float(w) for n, w in zip(names, weights, strict=True) if w > 0}


def _forecast_aggregates(t, decades, run, draws, steps):
    """The same of accuracies alone.

    No item tells a lapse from a lack of ability: a lapse drawn from its prior caps the curve.
    """
    if len(np.unique(t.task)) > 1:
        raise UserError(
            "these accuracies are of several tasks; forecast one at a time with --where task=NAME"
        )
    rng = np.random.default_rng(0)
    c = accuracy_curves(t)
    run, now = _choose_run(c.run, c.x, run)
    c = c[c.x >= now - max(backtest.WINDOW, 2 * decades)]
    y, error = accuracy_logits(c)
    at = backtest.growth_points(c, now)
    grid = np.linspace(now, now + decades, steps)
    to = Points(grid - now, np.full(steps, at.size[at.run == run][0]), np.full(steps, run))
    curves, stacking = _extrapolate(at, y, np.diag(error**2), False, to, draws, rng)
    level, trend = (rng.normal(*prior, draws)[:, None] for prior in (items.LAPSE, items.TREND))
    success = expit(curves)
    # A lapse cannot lie above what the run shows already.
    cap = np.maximum(1 - expit(level + trend * (grid - now)), success[:, :1])
    unit = log_progress(t)[1]
    usage = Usage(np.unique(t.task).tolist(), {}, {})
    measured = measure(t, run, usage)
    mix = pool(np.minimum(success, cap), measured, grid, now, rng)
    return Forecast(run, grid, now, mix, {}, usage, measured, stacking, unit)


def _choose_run(names, x, run):
    """The run that is asked for or got furthest, and the progress of its last checkpoint."""
    if run is not None and run not in names:
        raise UserError(
            f"no trial belongs to the run {run!r}; there are {', '.join(np.unique(names))}"
        )
    run = run or str(names[np.argmax(x)])
    checkpoints = np.unique(x[names == run])
    if len(checkpoints) < 2:
        hint = suggest_pattern(names)
        raise UserError(
            f"run {run} has one checkpoint, which cannot show growth; "
            + (hint or "give two or more, better five")
        )
    return run, checkpoints[-1]


def _slice_paths(fit, effects, theta, lapse, family_weights):
    """[K, S, T] reliability in each slice for new items of the same population.

    effects: [S, P]; theta: [S, T] ability; lapse: [S, T].
    """
    c = fit.cells
    models = len(fit.cells.runs)
    easiness = []
    weights = []
    for k, family_weight in enumerate(family_weights):
        hard = c.difficulty[c.family == k]
        if len(hard) > MAX_QUANTILES:
            hard = np.quantile(hard, (np.arange(MAX_QUANTILES) + 0.5) / MAX_QUANTILES)
        hard, count = np.unique(hard, return_counts=True)
        family_effect = effects[:, models + 1 + k]
        easiness += [-effects[:, models] * value - family_effect for value in hard]
        weights += (family_weight * count / count.sum()).tolist()
    easiness = np.stack(easiness, 1)  # [S, G] over families and their difficulties
    nodes, mass = QUADRATURE
    node_weights = np.outer(weights, mass / mass.sum()).ravel()
    chance = np.average(c.chance, weights=c.count)
    never = expit(effects[:, fit.columns("never")][:, 0])  # of the items
    # The base slice has no effect.
    shift = np.pad(effects[:, fit.columns("slice ")], ((0, 0), (1, 0)))
    # Success on a lattice of abilities, then interpolated: theta has many more points.
    lattice = np.linspace(theta.min() - 2, theta.max() + 2, 80)
    paths = np.empty((len(c.slices), *theta.shape))
    for s, sd_item in enumerate(fit.hyper[:, items.SD_ITEM]):
        spread = (easiness[s][:, None] + sd_item * nodes).ravel()
        success = expit(lattice[:, None] + spread) @ node_weights
        solved = np.interp(theta[s] - shift[s][:, None], lattice, success)
        paths[:, s] = chance + (1 - never[s]) * (1 - chance - lapse[s]) * solved
    return paths


def schedule_dates(schedule: list[tuple[str, float]], progress: ndarray) -> list[str]:
    """When a schedule of (ISO date, compute or step by then) reaches each log10 progress.

    "" outside the schedule. Raises UserError where it does not rise.
    """
    # Dates as days, between which a schedule is linear in log compute.
    dates, compute = zip(*schedule, strict=True)
    days = np.array(dates, "datetime64[D]").astype(int)
    log = np.log10(compute)
    if len(log) < 2 or (np.diff(log) <= 0).any() or (np.diff(days) <= 0).any():
        raise UserError("a schedule needs two or more rows of rising date and rising progress")
    inside = (progress >= log[0]) & (progress <= log[-1])
    dates = np.round(np.interp(progress, log, days)).astype("datetime64[D]").astype(str)
    return np.where(inside, dates, "").tolist()
