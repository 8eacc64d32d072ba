"""How good forecasts of later systems were, in a table of finished ones with the date of each.

A system that was tried once has no curve. As of an origin date, each system of the next half year
is forecast on each task by the systems that were out: from its date and, where most systems have
them, its compute and size. The forecast pools a Gaussian process over these and every simple
method. Weights and widening come from outcomes before the origin only.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from scipy.stats import t as student

from ramp.errors import UserError
from ramp.nines import growth, observational
from ramp.nines.backtest import NINES, ScoredForecast, learn_widening, score_draws, widen_all
from ramp.nines.baselines import (
    DRAWS,
    accuracy_logits,
    observe_accuracy,
    sample_power_law,
)
from ramp.nines.observational import Systems
from ramp.nines.trials import Trials, accuracy_curves, group_rows

ORIGINS = 8  # dates with as many systems between each two
HORIZON = 0.5  # years ahead
MIN_SYSTEMS = 10  # that are out on a task before a forecast
MIN_DATES = 3  # that they came out on
RECENT = 8  # last systems that the next one is like, by persistence
SIMPLE = ("persistence", "log-linear", "analog", "power law")
MEMBERS = 1 + len(SIMPLE)  # of the pool
DAYS = 365.25  # of a year


def are_finished(t: Trials) -> bool:
    """Whether these are several systems of one checkpoint each, rather than curves."""
    runs = len(group_rows(t.run)[0])
    return 1 < runs == len(group_rows(t.run, t.step, t.compute, t.date)[0])


def backtest(t: Trials, thresholds: Sequence[float] = ()) -> list[ScoredForecast]:
    """Forecast later systems from each origin. Places are years since 1970.

    thresholds: also score whether a system reaches them.
    Raises UserError where too few systems have a date.
    """
    t = t[t.date != ""]
    tasks = [t[t.task == task] for task in np.unique(t.task)]
    first, _ = group_rows(t.run)
    past: list[ScoredForecast] = []
    for now in _find_origins(_to_years(t.date[first])):
        # Its outcome has to be known by then.
        known = [p for p in past if p.target <= now]
        scores = np.reshape([p.shape_scores for p in known], (-1, MEMBERS))
        weights = growth.stacking_weights(scores)
        for rows in tasks:
            past += _forecast(rows, now, weights, known, thresholds)
    if not past:
        remedy = "add systems"
        if not len(first):
            remedy = "name the column with --map COLUMN=date, or give --releases CSV"
        raise UserError(
            f"systems of one checkpoint each are forecast by those of earlier dates, {MIN_SYSTEMS} "
            f"on {MIN_DATES} dates at least, and here {len(first)} have a date, of "
            f"{len(np.unique(t.date))} in all; {remedy}"
        )
    return past


def _to_years(dates):
    return np.array(dates, "datetime64[D]").astype(float) / DAYS


def _find_origins(dates):
    """Release dates between which equally many systems came out; none at either end."""
    levels = np.arange(1, ORIGINS + 1) / (ORIGINS + 1)
    if not len(dates):
        return dates
    return np.unique(np.quantile(dates, levels, method="inverted_cdf"))


def _build_systems(t, now):
    """The systems of one task; what is missing of them is what the known ones suggest."""
    # Curves want a place on an axis: these all stand at the same one.
    curve = accuracy_curves(replace(t, compute=np.ones(len(t))))
    t = t[group_rows(t.run)[0]]  # in the order of the curves
    x = _to_years(t.date)
    y, error = accuracy_logits(curve)
    family = np.where(t.family == "", t.run, t.family)
    z = _find_covariates(t, x, x <= now)
    return Systems(t.run, family, x, z, y, curve.value, error, curve.n)


def _find_covariates(t, x, known):
    """[N, K] the date, and the log10 of the compute and the size that most known systems have."""
    z = x[:, None]
    for values in (t.compute, t.size):
        is_there = values > 0
        rows = known & is_there
        if 2 * rows.sum() < known.sum() or not rows.any():
            continue
        column = np.log10(np.where(is_there, values, 1.0))
        design = _with_level(z)
        slopes = np.linalg.lstsq(design[rows], column[rows], rcond=None)[0]
        z = np.c_[z, np.where(is_there, column, design @ slopes)]
    return z


def _with_level(z):
    return np.c_[np.ones(len(z)), z]


def _forecast(t, now, weights, past, thresholds):
    """The scored forecasts of one task from one origin; none where too little is known."""
    task = str(t.task[0])
    s = _build_systems(t, now)
    known = s.x <= now
    wanted = ~known & (s.x <= now + HORIZON)
    if known.sum() < MIN_SYSTEMS or len(np.unique(s.x[known])) < MIN_DATES or not wanted.any():
        return
    rng = np.random.default_rng(0)
    ensembles = _forecast_simply(s, known, wanted, rng)
    members = [observational.predict(s, known, wanted), *ensembles.values()]
    # A linear pool: each draw is of one of them.
    place = rng.choice(MEMBERS, DRAWS, p=weights)
    ensembles[NINES] = np.choose(place[:, None], members)
    factors = learn_widening(ensembles, past)
    for k, row in enumerate(np.flatnonzero(wanted)):
        actual = s.value[row]
        raw = {name: draws[:, k] for name, draws in ensembles.items()}
        wide = widen_all(raw, factors)
        scores = np.array([_log_density(draws[:, k], actual) for draws in members])
        events = [((wide[NINES] >= t).mean(), bool(actual >= t)) for t in thresholds]
        what = str(s.name[row]), task, float(now), float(s.x[row]), actual
        yield score_draws(what, raw, wide, scores, events)


def _log_density(draws, value):
    """Of draws, smoothed by a normal as wide as a quarter of their middle half."""
    low, high = np.quantile(draws, (0.25, 0.75))
    width = max((high - low) / 4, 1e-3)
    return np.log(norm.pdf(value, draws, width).mean() + 1e-9)


def _forecast_simply(s, known, wanted, rng):
    """[DRAWS, W] accuracies by each simple method, with Student's intervals for a new system.

    persistence: like the last systems. log-linear: a plane over date, log compute and log size.
    power law: T - A C^-q over compute where it is known, else over the date. analog: like the
    nearest system, as well as each known one was like its nearest before it.
    """
    z, y = s.z[known], s.y[known]
    to = s.z[wanted]
    shape = DRAWS, len(to)
    recent = y[np.argsort(s.x[known], kind="stable")][-RECENT:]
    persistence = _draw_like(recent, shape, rng)
    plane = _draw_plane(_with_level(z), y, _with_level(to), rng)
    # By distance in units of what is known.
    scale = np.where(z.std(0) > 0, z.std(0), 1.0)
    is_before = z[:, 0] < z[:, :1]
    distance = np.where(is_before, _measure(z / scale, z / scale), np.inf)
    has_before = is_before.any(1)
    moves = (y - y[distance.argmin(1)])[has_before]
    nearest = _measure(to / scale, z / scale).argmin(1)
    analog = y[nearest] + _draw_like(moves, shape, rng)
    n = s.n[wanted]
    logits = persistence, plane, analog
    axis = min(1, z.shape[1] - 1)  # the compute, or else the date
    top = z[:, axis].max()
    laws = [
        sample_power_law(z[:, axis] - top, s.value[known], place - top, rng)
        for place in to[:, axis]
    ]
    draws = [observe_accuracy(expit(each), n) for each in logits]
    return dict(zip(SIMPLE, [*draws, np.transpose(laws)], strict=True))


def _measure(a, b):
    return ((a[:, None] - b) ** 2).sum(-1)


def _draw_like(values, shape, rng):
    """A new value of a normal population of which these are known."""
    n = len(values)
    spread = np.std(values, ddof=1) * np.sqrt(1 + 1 / n)
    return np.mean(values) + spread * student.rvs(n - 1, size=shape, random_state=rng)


def _draw_plane(a, y, to, rng):
    """A new value at each place, by least squares."""
    inverse = np.linalg.pinv(a)
    slopes = inverse @ y
    residual = y - a @ slopes
    left = max(len(y) - a.shape[1], 1)
    leverage = ((to @ inverse) ** 2).sum(1)
    spread = np.sqrt(residual @ residual / left * (1 + leverage))
    noise = student.rvs(left, size=(DRAWS, len(to)), random_state=rng)
    return to @ slopes + spread * noise
