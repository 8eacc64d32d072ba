"""Has it got worse? An alarm over a live log, at a stated rate of false ones.

Every trial opens a bet that failures have become more frequent from here on; the bets of all
starts are summed (Shiryaev 1963, Roberts 1966). While the pass rate holds, the sum is at most the
number of trials on average, so an alarm at 100,000 is raised once in 100,000 trials at most,
whatever the shares in which slices and budgets are watched (Shin, Ramdas & Rinaldo 2024). Assumed
is that trials are independent of each other, as requests of users are: a fixed suite tried again
and again is not.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.stats import fisher_exact

from ramp.errors import UserError
from ramp.nines.intervals import Interval, clopper_pearson
from ramp.nines.trials import Trials

# Multiples of the failures allowed that are bet on, in equal shares.
TIMES_WORSE = np.array([1.5, 2.0, 3.0, 5.0, 10.0, 30.0])
RECENT = 500  # last trials whose rate is shown
ORDERS = ("date", "step", "compute")


@dataclass(frozen=True)
class Stream:
    """One condition that every trial should meet, with the share that has to."""

    name: str
    good: ndarray  # [N] whether the trial meets it
    counts: ndarray  # [N] whether it can be told
    share: float


@dataclass(frozen=True)
class Alarm:
    """The first moment at which the bets are worth what an alarm takes."""

    at: str  # date, step or compute
    trials: int  # up to then
    change: str  # where the change most likely began
    since: int  # trials from there to the alarm
    stream: str  # the condition that broke most clearly, and its slice
    before: float | None  # share of good trials before the change; None: not shown to be better
    after: float  # and from it to the alarm


@dataclass(frozen=True)
class Recent:
    """The last trials of a stream."""

    trials: int
    rate: float  # share of good ones; NaN: none is known
    interval: Interval  # of it, 90%


@dataclass(frozen=True)
class Watch:
    """A log as it was watched."""

    trials: int
    one_in: float  # trials a false alarm, at least
    alarm: Alarm | None
    rates: dict[str, float]  # share of good trials, by stream
    recent: dict[str, Recent]  # by stream
    unknown: dict[str, int]  # trials that lack what a budget is about


def build_streams(
    t: Trials,
    rate: float,
    seconds: float | None = None,
    cost: float | None = None,
    within: float = 0.99,
) -> list[Stream]:
    """Success, and where they are given the budgets of time and cost, which `within` must meet.

    Raises UserError for a budget on a column that the log lacks.
    """
    if (t.item == "").all() and ((t.success > 0) & (t.success < 1 - 1e-9)).any():
        raise UserError(
            "there are accuracies, and the monitor watches single trials: give the log of those"
        )
    streams = [Stream("success", t.success >= 1 - 1e-9, np.isfinite(t.success), rate)]
    for name, limit in (("seconds", seconds), ("cost", cost)):
        if limit is None:
            continue
        values = getattr(t, name)
        if np.isnan(values).all():
            raise UserError(f"no trial has a value of {name}; add that column to the log")
        streams.append(Stream(name, values <= limit, np.isfinite(values), within))
    for s in streams:
        if not 0 < s.share < 1:
            name = "--rate" if s.name == "success" else "--within"
            raise UserError(f"{name} is the share of good trials, and must lie between 0 and 1")
    return streams


def order_trials(t: Trials, by: str) -> tuple[ndarray, ndarray]:
    """[N] the moment of each trial, from 0 up, and the [B] names of the moments.

    Trials of one moment have no order. Raises UserError where a trial has no place.
    """
    values = getattr(t, by)
    missing = (values == "") if by == "date" else ~np.isfinite(values)
    if missing.any():
        raise UserError(
            f"{missing.sum()} of {len(t)} trials have no {by}; fill that column, "
            f"or order by another with --by {' or '.join(o for o in ORDERS if o != by)}"
        )
    names, moment = np.unique(values, return_inverse=True)
    return moment, names.astype(str)


def watch(t: Trials, streams: list[Stream], by: str = "date", one_in: float = 1e5) -> Watch:
    """Watch the streams, each as a whole and slice by slice. Raises UserError for several runs."""
    runs = np.unique(t.run)
    if len(runs) > 1:
        raise UserError(
            f"the log is of several runs ({', '.join(runs[:8])}); choose one with "
            "--where run=NAME, or take them as one system with --ignore run"
        )
    moment, names = order_trials(t, by)
    total = np.zeros(len(names))
    parts = []
    slices = np.unique(t.slice)
    for s in streams:
        alone = len(slices) == 1
        whole = [(s.name, s.counts, 1.0 if alone else 0.5)]
        # A slice counts its own trials only, so together they cost as much as the whole.
        by_slice = [(f"{s.name}, {k}", s.counts & (t.slice == k), 0.5) for k in slices]
        for name, rows, share in whole if alone else whole + by_slice:
            growth = _log_growth(s, rows, moment, len(names))
            sums = _sum_starts(growth, np.bincount(moment[rows], minlength=len(names)))
            value = np.exp(np.minimum(np.logaddexp.reduce(sums), 600)) / len(TIMES_WORSE)
            total += share / len(streams) * value
            parts.append((name, s, rows, growth, sums))
    rung = np.flatnonzero(total >= one_in)
    order = np.argsort(moment, kind="stable")
    alarm = None
    if len(rung):
        alarm = _describe(parts, int(rung[0]), moment, names)
    recent = {}
    for s in streams:
        last = s.good[order][s.counts[order]][-RECENT:]
        interval = clopper_pearson(last.sum(), len(last), 0.9)
        recent[s.name] = Recent(len(last), float(last.mean()) if len(last) else np.nan, interval)
    return Watch(
        trials=len(t),
        one_in=one_in,
        alarm=alarm,
        rates={s.name: float(s.good[s.counts].mean()) for s in streams},
        recent=recent,
        unknown={s.name: int((~s.counts).sum()) for s in streams if not s.counts.all()},
    )


def _log_growth(s, rows, moment, moments):
    """[K, B] what each bet gains in each moment, in logs."""
    allowed = 1 - s.share
    times = np.minimum(TIMES_WORSE, 1 / allowed)[:, None]
    bad = np.bincount(moment[rows & ~s.good], minlength=moments)
    good = np.bincount(moment[rows & s.good], minlength=moments)
    with np.errstate(divide="ignore"):
        gain = np.log(np.maximum((1 - times * allowed) / s.share, 1e-300))
    return bad * np.log(times) + good * gain


def _sum_starts(growth, count):
    """[K, B] log of the bets of all starts so far: (the sum before + new trials) x growth."""
    capital = np.cumsum(growth, axis=1)
    with np.errstate(divide="ignore"):  # no new trial
        opened = np.log(count) - (capital - growth)
    return capital + np.logaddexp.accumulate(opened, axis=1)


def _describe(parts, at, moment, names):
    """The alarm at a moment, by the stream whose bets are worth most."""
    name, s, rows, growth, sums = max(parts, key=lambda part: part[-1][:, at].max())
    capital = np.cumsum(growth[sums[:, at].argmax()][: at + 1])
    # The start whose bet has gained most: after the capital was lowest.
    start = int(np.argmin(np.append(0.0, capital[:-1])))
    inside = rows & (moment >= start) & (moment <= at)
    earlier = rows & (moment < start)
    return Alarm(
        at=str(names[at]),
        trials=int((moment <= at).sum()),
        change=str(names[start]),
        since=int(inside.sum()),
        stream=name,
        before=float(s.good[earlier].mean()) if _is_shown(s.good, earlier, inside) else None,
        after=float(s.good[inside].mean()),
    )


def _is_shown(good, earlier, inside):
    """Whether the trials before were better for certain: a good start of few is no fall.

    The place of the change was chosen to tell them apart, hence a hundredth.
    """
    if not earlier.any():
        return False
    counts = [[good[rows].sum(), (~good[rows]).sum()] for rows in (earlier, inside)]
    return fisher_exact(np.array(counts), alternative="greater").pvalue < 0.01
