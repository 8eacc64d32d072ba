"""How good such forecasts have been: rolling origins, proper scores, simple baselines.

A forecast is a set of draws. It is scored when the later checkpoint is known: by CRPS and log score
(Gneiting & Raftery 2007), PIT and coverage; an event ("the curve reaches T") by the Brier score.
Weights of the shapes and widening of the intervals at one origin come only from forecasts whose
outcome was known before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import expit
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import growth
from ramp.nines.baselines import DRAWS, accuracy_logits, baselines, observe_accuracy
from ramp.nines.growth import SHAPES, Fit, Points, Stacking
from ramp.nines.trials import Curves, group_rows

WINDOW = 1.2  # decades before the origin that growth is read from
MIN_SIZES = 2  # sizes that must be finished before the first forecast over sizes
MIN_CHECKPOINTS = 3  # of a curve that are known before it is forecast
AHEAD = 4  # checkpoints ahead that a curve is forecast
NINES = "nines"  # our own forecast among the methods
Ensembles = dict[str, ndarray]  # draws by method


# Scores of one forecast


def crps(draws: ndarray, y: float) -> float:
    """Continuous ranked probability score, E|X - y| - E|X - X'| / 2, in O(n log n)."""
    ordered = np.sort(draws)
    n = len(draws)
    weights = 2 * np.arange(1, n + 1) - n - 1
    return np.abs(ordered - y).mean() - (weights * ordered).sum() / n**2


def pit(draws: ndarray, y: float) -> tuple[float, float]:
    """Probability integral transform: the chance of less than y, and of at most y.

    They differ where y is an atom, such as 0 of n: the truth is anywhere between the two.
    """
    return (draws < y).mean(), (draws <= y).mean()


def coverage(low: float, high: float, level: float) -> float:
    """The fraction of a PIT that lies in the central interval of this level.

    0 or 1, or between them where an atom straddles the end of the interval.
    """
    tail = (1 - level) / 2
    if high - low < 1e-9:
        return float(tail <= low <= 1 - tail)
    return max(0.0, min(high, 1 - tail) - max(low, tail)) / (high - low)


@dataclass(frozen=True)
class ScoredForecast:
    """One forecast of one run's accuracy on one task, and what happened."""

    run: str
    task: str
    origin: float  # log10 progress that it was made at
    target: float  # log10 progress that it is of
    actual: float
    median: float
    pits: dict[str, tuple[float, float]]  # by method: NINES and the baselines
    crps: dict[str, float]  # by method
    raw_pits: dict[str, float]  # by method, the middle, before widening
    shape_scores: ndarray  # [K] log density of what happened, by shape
    events: list[tuple[float, bool]]  # "it reaches T": probability, and whether it did


# Between accuracies and logits


def growth_points(c: Curves, now: float) -> Points:
    """Where the curves are known, with progress counted from `now`."""
    # Without sizes all runs are alike.
    size = c.size if np.isfinite(c.size).all() else np.ones(len(c))
    return Points(c.x - now, np.log10(size), c.run)


@dataclass(frozen=True)
class Origin:
    """What forecasts of one task from one checkpoint may know."""

    now: float
    known: Curves  # of the task, up to now
    stacking: Stacking
    past: Sequence["ScoredForecast"]  # whose outcome was known

    @cached_property
    def fits(self) -> list[Fit]:
        """Every shape of growth, fitted to what is known; only when a forecast asks for it."""
        points = growth_points(self.known, self.now)
        values = accuracy_logits(self.known)
        return [growth.fit(shape, points, *values) for shape in SHAPES]

    def sample_logits(self, before: Curves, to: Points, rng: np.random.Generator) -> ndarray:
        """[DRAWS, T] logits that one curve, known as `before`, will show; not widened yet."""
        weights = self.stacking.weights
        curves = growth.sample_curves(self.fits, weights, to, DRAWS, rng)
        error = accuracy_logits(before)[1][-1]
        noise = np.average([fit.noise_sd(error) for fit in self.fits], weights=weights)
        return curves + noise * rng.standard_normal(curves.shape)

    def widen(self, logits: ndarray, before: Curves) -> ndarray:
        """[DRAWS, T] accuracies with the spread that past forecasts call for."""
        return _to_accuracy(growth.widen(logits, self.stacking.widening), before)


def _to_accuracy(logits, before):
    return observe_accuracy(expit(logits), before.n[-1])


def _look_back(now, known, past):
    """What a forecast from `now` may know, weighed by the past forecasts."""
    pits = [p.raw_pits[NINES] for p in past]
    stacking = growth.learn_stacking([p.shape_scores for p in past], pits)
    return Origin(now, known, stacking, past)


def score(
    origin: Origin, curve: Curves, target: float, thresholds: Sequence[float] = ()
) -> ScoredForecast:
    """Forecast every checkpoint of a curve after the origin jointly, and score the one at `target`.

    thresholds: also score whether the curve reaches them by then.
    """
    rng = np.random.default_rng(0)
    curve = curve[np.argsort(curve.x)]
    curve = curve[curve.x <= target + 1e-9]
    is_before = curve.x <= origin.now + 1e-9
    before = curve[is_before]
    after = curve[~is_before]
    to = growth_points(after, origin.now)
    logits = origin.sample_logits(before, to, rng)
    draws = origin.widen(logits, before)
    # The baselines draw from the same generator, after our own forecast.
    others = baselines(origin.known, before, origin.now, target, rng)
    actual = after.value[-1]
    raw = {NINES: _to_accuracy(logits[:, -1], before)} | others
    # Baselines learn from their misses as our own forecast does.
    factors = learn_widening(others, origin.past)
    ensembles = {NINES: draws[:, -1]} | widen_all(others, factors)
    # What is known already counts towards an event too.
    known = np.tile(before.value, (DRAWS, 1))
    tops = best(np.append(known, draws, axis=1))
    open_thresholds = [t for t in thresholds if best(before.value) < t]
    last_logit = accuracy_logits(after)[0][-1]
    error = accuracy_logits(before)[1][-1]
    predicted = [fit.predict_observation(to[-1:], error) for fit in origin.fits]
    shape_scores = norm.logpdf(last_logit, *np.transpose(predicted))
    events = [((tops >= t).mean(), bool(best(curve.value) >= t)) for t in open_thresholds]
    what = str(curve.run[0]), str(curve.task[0]), origin.now, float(target), actual
    return score_draws(what, raw, ensembles, shape_scores, events)


def learn_widening(names: Iterable[str], past: Sequence[ScoredForecast]) -> Mapping[str, float]:
    """The factor that past misses of each method call for."""
    pits = {name: [p.raw_pits[name] for p in past if name in p.raw_pits] for name in names}
    return {name: growth.widening_factor(np.array(each)) for name, each in pits.items()}


def widen_all(ensembles: Ensembles, factors: Mapping[str, float]) -> Ensembles:
    """Accuracies with the spread that past misses call for."""
    return {
        name: np.clip(growth.widen(draws, factors[name]), 0, 1) for name, draws in ensembles.items()
    }


def score_draws(
    what: tuple[str, str, float, float, float],
    raw: Ensembles,
    wide: Ensembles,
    shape_scores: ndarray,
    events: list[tuple[float, bool]],
) -> ScoredForecast:
    """Score the draws of every method.

    what: run, task, origin, target and what happened; raw, wide: draws before and after widening.
    """
    actual = what[-1]
    return ScoredForecast(
        *what,
        median=np.median(wide[NINES]),
        pits={name: pit(draws, actual) for name, draws in wide.items()},
        crps={name: crps(draws, actual) for name, draws in wide.items()},
        raw_pits={name: float(np.mean(pit(draws, actual))) for name, draws in raw.items()},
        shape_scores=shape_scores,
        events=events,
    )


def best(values: ndarray) -> ndarray:
    """The highest median of three neighbouring checkpoints along the last axis.

    One lucky checkpoint does not count as reached.
    """
    if values.shape[-1] < 3:
        return values.max(-1)
    return np.median(sliding_window_view(values, 3, axis=-1), axis=-1).max(-1)


# Rolling origins


def over_sizes(
    c: Curves, origin: float, target: float, thresholds: Sequence[float] = ()
) -> list[ScoredForecast]:
    """Forecast runs at `target` from what they show up to `origin` (log10 progress both).

    All smaller runs are known to the end. Sizes go from small to large: each is weighted and
    widened by the scores of those before it. Raises UserError where there are too few sizes.
    """
    c = c[c.x >= origin - WINDOW]
    curve_of = group_rows(c.run, c.task)[1]
    is_end = np.isclose(c.x, target)
    reaches_target = np.isin(curve_of, curve_of[is_end])
    sizes = np.unique(c.size[is_end])
    if len(sizes) <= MIN_SIZES or np.isnan(sizes).any():
        raise UserError(
            f"a backtest over sizes needs more than {MIN_SIZES} sizes of run"
            f" with a checkpoint at the target; there are {len(sizes)}"
        )
    past = []
    # The smallest size has nothing smaller to be forecast from.
    for size in sizes[1:]:
        scored = list(past)
        is_size = c.size == size
        is_known = (c.size < size) | (is_size & (c.x <= origin + 1e-9))
        for task in np.unique(c.task):
            rows = c.task == task
            at = _look_back(origin, c[rows & is_known], scored)
            for run in np.unique(c.run[rows & reaches_target & is_size]):
                if (at.known.run == run).any():
                    past.append(score(at, c[rows & (c.run == run)], target, thresholds))
    # The first sizes only taught the weights.
    small_runs = c.run[c.size < sizes[MIN_SIZES]]
    past = [p for p in past if p.run not in small_runs]
    if not past:
        raise UserError(
            "no run has a checkpoint both at or before the origin and at the target; "
            "move one of the two"
        )
    return past


def over_time(c: Curves, thresholds: Sequence[float] = ()) -> list[ScoredForecast]:
    """Forecast each curve from every checkpoint but its first few, AHEAD checkpoints on at most.

    Weights and widening come only from outcomes before the origin.
    Raises UserError where no curve is long enough.
    """
    scored = []
    for now in np.unique(c.x):
        in_window = c.x >= now - WINDOW
        for run, task, origin in _open_origins(c, now, scored):
            curve = c[(c.run == run) & (c.task == task) & in_window]
            for target in np.unique(curve.x[curve.x > now + 1e-9])[:AHEAD]:
                scored.append(score(origin, curve, target, thresholds))
    if not scored:
        raise UserError(
            f"no curve has more than {MIN_CHECKPOINTS} checkpoints, which a backtest forecasts from"
        )
    return scored


def _open_origins(c, now, past):
    """Run, task and what is known, of each curve with enough checkpoints up to `now`."""
    past = [p for p in past if p.target <= now + 1e-9]
    rows = c[(c.x <= now + 1e-9) & (c.x >= now - WINDOW)]
    for task in np.unique(rows.task):
        known = rows[rows.task == task]
        origin = _look_back(now, known, past)
        for run in np.unique(known.run[np.isclose(known.x, now)]):
            if (known.run == run).sum() >= MIN_CHECKPOINTS:
                yield str(run), str(task), origin


# Scores of many forecasts


@dataclass(frozen=True)
class MethodScores:
    """Means of one method, over the forecasts that it made."""

    forecasts: int  # fewer than all where it had too little to go by
    crps: float
    coverage: float  # of 90% intervals
    behind: float  # CRPS above that of our own forecast, mean of the tasks
    behind_stderr: float  # paired by task; NaN of one task


@dataclass(frozen=True)
class EventScores:
    """Scores of "the curve reaches T"."""

    count: int
    rate: float  # how often it did
    brier: float
    base_brier: float  # of forecasting the rate itself
    calibration: list[tuple[float, float, int]]  # mean probability, frequency, number; by bin


@dataclass(frozen=True)
class Summary:
    """Scores by method, each beside our own on the forecasts that it made too."""

    forecasts: int
    methods: dict[str, MethodScores]
    coverage80: float
    mae: float  # of the medians
    pit: list[int]  # forecasts by tenth of the PIT
    events: EventScores | None


def count_pits(pits: Sequence[tuple[float, float]]) -> list[int]:
    """How many PITs, by their middle, fall into each tenth."""
    return np.histogram(np.mean(pits, axis=-1), np.linspace(0, 1, 11))[0].tolist()


def summarize(past: list[ScoredForecast]) -> Summary:
    """Average the scores of forecasts."""
    names = dict.fromkeys(name for p in past for name in p.crps)
    methods = {name: _summarize_method(name, past) for name in names}
    pits = [p.pits[NINES] for p in past]
    coverage80 = np.mean([coverage(*ends, 0.8) for ends in pits])
    mae = np.mean([abs(p.median - p.actual) for p in past])
    events = summarize_events([event for p in past for event in p.events])
    return Summary(len(past), methods, coverage80, mae, count_pits(pits), events)


def _summarize_method(name, past):
    made = [p for p in past if name in p.crps]
    behind = [p.crps[name] - p.crps[NINES] for p in made]
    task = np.unique([p.task for p in made], return_inverse=True)[1]
    by_task = np.bincount(task, behind) / np.bincount(task)
    tasks = len(by_task)
    return MethodScores(
        forecasts=len(made),
        crps=np.mean([p.crps[name] for p in made]),
        coverage=np.mean([coverage(*p.pits[name], 0.9) for p in made]),
        behind=by_task.mean(),
        behind_stderr=np.std(by_task, ddof=1) / np.sqrt(tasks) if tasks > 1 else np.nan,
    )


def summarize_events(events: Sequence[tuple[float, bool]]) -> EventScores | None:
    """Score chances of events and whether they happened; None: there are none."""
    if not events:
        return None
    probability, happened = np.array(events, float).T
    rate = happened.mean()
    calibration = []
    bins = np.digitize(probability, (0.1, 0.3, 0.5, 0.7, 0.9))
    for rows in (bins == k for k in np.unique(bins)):
        calibration.append((probability[rows].mean(), happened[rows].mean(), int(rows.sum())))
    brier = ((probability - happened) ** 2).mean()
    return EventScores(len(events), rate, brier, rate * (1 - rate), calibration)
