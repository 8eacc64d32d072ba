"""The headline of a forecast: what the page says, --json prints, --record keeps and is scored.

How reliable a run is and will be under the declared mix, and when it first reaches so many nines.
A later checkpoint scores it: by CRPS and coverage of the reliability that it measures, and by the
Brier score of "so many nines by then".
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import numpy as np
from scipy.stats import beta

from ramp.errors import UserError
from ramp.nines import backtest, readiness
from ramp.nines.baselines import baselines
from ramp.nines.growth import SHAPES
from ramp.nines.readiness import Forecast, schedule_dates
from ramp.nines.trials import Trials, log_progress
from ramp.nines.usage import Measured, Usage, measure

LEVELS = np.arange(1, 40) / 40  # of the recorded quantiles
PLACES = 21  # between which what is recorded is interpolated
BASELINES = ("persistence", "log-linear", "power law")
MIN_CHECKPOINTS = 3  # of a run before it is forecast again as of then
ORIGINS = 5  # last checkpoints that earlier statements are made again from
SAMPLES = 1000  # of what was recorded, by which it is scored
DRAWS = 160  # of each: four a quantile


@dataclass(frozen=True)
class Passage:
    """When so many nines are first reached. Places are log10 progress; inf: not within reach."""

    nines: float
    now: float  # probability that they hold already
    by_end: float  # probability that they are reached within the horizon
    sure: float  # the first place with the probability that is asked for
    low: float  # 80% of the futures reach them between low and high
    high: float
    dates: list[str]  # of sure, low and high; "": none, or outside the schedule
    chances: list[float]  # that they have been reached, by place of the headline


@dataclass(frozen=True)
class Headline:
    """One statement about one run, made at one checkpoint."""

    made: str  # date
    run: str
    usage: Usage  # the mix that it is about
    unit: str  # "compute" or "step"
    probability: float  # to be sure with
    places: list[float]  # log10 progress, from today's to the horizon
    quantiles: list[list[float]]  # reliability at LEVELS, by place
    now: list[float]  # reliability at 5%, 50% and 95%
    end: list[float]  # the same at the horizon
    levels: list[Passage]
    shape_weights: dict[str, float]  # of growth, by past score
    widening: float
    converged: bool

    @property
    def times(self) -> float:
        """How far it goes, as a multiple of today's progress."""
        return 10 ** (self.places[-1] - self.places[0])


def summarize(
    f: Forecast,
    nines: Sequence[float],
    probability: float = 0.8,
    schedule: list[tuple[str, float]] | None = None,
) -> Headline:
    """Find when each of `nines` is reached with this probability; dates need a schedule."""
    ahead = f.grid >= f.now - 1e-9
    grid, mix = f.grid[ahead], f.mix[:, ahead]
    places = np.linspace(f.now, grid[-1], PLACES)
    quantiles = np.quantile(mix, LEVELS, axis=0)
    recorded = [np.interp(places, grid, line) for line in quantiles]
    levels = []
    for r in nines:
        first = f.first_ready(r)
        low, high = np.quantile(first, (0.1, 0.9), method="inverted_cdf")
        when = np.array([f.ready_at(r, probability), low, high])
        dates = schedule_dates(schedule, when) if schedule else [""] * 3
        chances = (first[:, None] <= places + 1e-9).mean(0)
        levels.append(Passage(r, chances[0], chances[-1], *when, dates, chances.tolist()))
    now, end = np.quantile(mix[:, [0, -1]], (0.05, 0.5, 0.95), axis=0).T.tolist()
    return Headline(
        made=date.today().isoformat(),
        run=f.run,
        usage=f.usage,
        unit=f.unit,
        probability=probability,
        places=places.tolist(),
        quantiles=np.transpose(recorded).round(5).tolist(),
        now=now,
        end=end,
        levels=levels,
        shape_weights=dict(zip(SHAPES, f.stacking.weights.tolist(), strict=True)),
        widening=f.stacking.widening,
        converged=f.converged,
    )


# What later checkpoints say of it


@dataclass(frozen=True)
class Event:
    """ "So many nines by this checkpoint": what was said, and what was measured."""

    nines: float
    chance: float
    by_persistence: float  # the chance that they held already, by the trials of the day
    happened: bool


@dataclass(frozen=True)
class Scored:
    """A headline compared with what one later checkpoint measured."""

    run: str
    tasks: list[str]
    issued: float
    target: float  # log10 progress
    actual: float
    pit: tuple[float, float]
    crps: dict[str, float]  # of the headline, as backtest.NINES, and of each baseline
    events: list[Event]  # of levels that had not been measured before


def score(h: Headline, t: Trials) -> list[Scored]:
    """Score a headline by every later checkpoint within its horizon; none: still open.

    Raises UserError where the table tried the run on something else.
    """
    m = measure(t, h.run, h.usage)
    if (t.run == h.run).any() and not len(m):
        raise UserError(
            f"the forecast of {h.run} is about {_name_mix(h.usage)}, which this table did not try; "
            "give the table that it was made from, with its later checkpoints"
        )
    is_before = m.x <= h.places[0] + 1e-6
    # A checkpoint one percent beyond the horizon still scores it.
    later = m[~is_before & (m.x <= h.places[-1] + 0.005)]
    return [_score_at(h, m[is_before], later[: k + 1]) for k in range(len(later))]


def _name_mix(usage):
    parts = [*usage.slices, *usage.families] or usage.tasks
    return ", ".join(parts)


def _score_at(h, before, after):
    rng = np.random.default_rng(0)
    x, actual = after.x[-1], after.value[-1]
    quantile = [np.interp(x, h.places, line) for line in zip(*h.quantiles, strict=True)]
    level = (np.arange(SAMPLES) + 0.5) / SAMPLES
    rate = np.interp(level, LEVELS, quantile)
    n = max(1, round(after.n[-1]))
    ensembles = {backtest.NINES: rng.binomial(n, rate) / n}
    events = []
    if len(before):
        others = baselines(before, before, h.places[0], x, rng)
        ensembles |= {name: others[name] for name in BASELINES if name in others}
        events = [_judge(h, level, before, after) for level in h.levels]
    return Scored(
        run=h.run,
        tasks=h.usage.tasks,
        issued=h.places[0],
        target=float(x),
        actual=float(actual),
        pit=backtest.pit(ensembles[backtest.NINES], actual),
        crps={name: backtest.crps(draws, actual) for name, draws in ensembles.items()},
        events=[event for event in events if event],
    )


def _judge(h, level, before, after):
    """The event of one level at the last of `after`; None where it had been measured before."""
    if _was_reached(before, level.nines):
        return None
    chance = float(np.interp(after.x[-1], h.places, level.chances))
    wins = before.value[-1] * before.n[-1]
    posterior = beta(wins + 0.5, before.n[-1] - wins + 0.5)
    persists = float(posterior.sf(1 - 10.0**-level.nines))
    return Event(level.nines, chance, persists, _was_reached(after, level.nines))


def _was_reached(m: Measured, nines: float) -> bool:
    """Whether two of three neighbouring checkpoints, or the only ones, measured so many nines.

    One lucky checkpoint does not count.
    """
    return bool(backtest.best(m.is_ready(nines).astype(float)) > 0.5)


@dataclass(frozen=True)
class Summary:
    """Means over headlines and the checkpoints that scored them."""

    count: int
    checkpoints: int
    covered80: float  # by 80% intervals
    covered80_stderr: float
    compared: int  # of them, those that every baseline could forecast too
    crps: dict[str, float]  # by method, over these
    events: backtest.EventScores | None  # "so many nines by then"
    brier_persistence: float | None


def summarize_scores(scored: Sequence[Scored]) -> Summary:
    """Average; NaN where there are none.

    One checkpoint scores many headlines of one model, so standard errors are over checkpoints.
    """
    common = [s for s in scored if len(s.crps) == 1 + len(BASELINES)]
    names = (backtest.NINES, *BASELINES)
    crps = {name: float(np.mean([s.crps[name] for s in common] or [np.nan])) for name in names}
    covered = np.array([backtest.coverage(*s.pit, 0.8) for s in scored])
    mean = covered.mean() if len(covered) else np.nan
    keys, checkpoint = np.unique([f"{s.run} {s.target:.6f}" for s in scored], return_inverse=True)
    stderr = np.nan
    if len(keys) > 1:
        # Summed within a checkpoint first: its headlines are wrong together.
        residual = np.bincount(checkpoint, covered - mean)
        stderr = np.sqrt((residual**2).sum() * len(keys) / (len(keys) - 1)) / len(scored)
    events = [event for s in scored for event in s.events]
    pairs = [(event.chance, event.happened) for event in events]
    persistence = None
    if events:
        persistence = float(np.mean([(e.by_persistence - e.happened) ** 2 for e in events]))
    return Summary(
        len(scored), len(keys), float(mean), float(stderr), len(common), crps,
        backtest.summarize_events(pairs), persistence,
    )  # fmt: skip


def replay(t: Trials, h: Headline) -> list[Scored]:
    """Make the same statement as of earlier checkpoints of the run, and score it by the later ones.

    Nothing later than a checkpoint is known to the statement that is made at it.
    """
    t = t[np.isin(t.task, h.usage.tasks)]
    x = log_progress(t)[0]
    places = np.unique(x[t.run == h.run])
    places = places[np.isfinite(places)]
    usage = h.usage
    nines = [level.nines for level in h.levels]
    scored = []
    for now in places[MIN_CHECKPOINTS - 1 : -1][-ORIGINS:]:
        decades = max(places[-1] - now, 0.1)
        known = t[x <= now + 1e-9]
        with suppress(UserError):  # a part of the mix had not been tried by then
            f = readiness.forecast(
                known, decades, usage.families, usage.slices, h.run, DRAWS, PLACES
            )
            scored += score(summarize(f, nines, h.probability), t)
    return scored
