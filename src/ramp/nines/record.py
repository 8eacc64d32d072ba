"""The record of live forecasts: written when they are made, scored when later checkpoints arrive.

A line is one curve (a run's accuracy on a task under one slice) seen from one checkpoint:
percentiles of the accuracy that it will show at some places ahead. Between places they are
interpolated, so any checkpoint on the way can score it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from ramp.errors import UserError
from ramp.files import append_jsonl, read_whole_jsonl
from ramp.nines import backtest
from ramp.nines.trials import Curves, Trials, accuracy_curves, split_slices

LEVELS = np.arange(1, 100) / 100
BASELINES = ("persistence", "log-linear", "power law")


@dataclass(frozen=True)
class Recorded:
    """One line of a record."""

    run: str
    task: str
    issued: float  # log10 progress that it was made at
    targets: ndarray  # [T] log10 progress, rising
    quantiles: ndarray  # [T, 99] accuracy at LEVELS


@dataclass(frozen=True)
class ScoredLine:
    """A recorded forecast compared with what a later checkpoint showed."""

    run: str
    task: str
    issued: float
    target: float
    actual: float
    pit: tuple[float, float]
    crps: dict[str, float]  # of the record, as backtest.NINES, and of each baseline


@dataclass(frozen=True)
class Summary:
    """Means over the forecasts that every baseline could make too."""

    count: int
    checkpoints: int  # that scored them
    covered80: float  # by 80% intervals
    covered80_stderr: float
    crps: dict[str, float]  # by method
    crps_stderr: float  # of our own


def append(
    path: Path,
    c: Curves,
    now: float,
    places: ndarray,
    past: Sequence[backtest.ScoredForecast],
    **keys: Any,
) -> int:
    """Record a forecast of each curve that can be forecast from its checkpoint at `now`.

    What is recorded of a curve at this checkpoint already stays as it is.
    c: of the trials with their slices split; places: [T] log10 progress after now, rising;
    past: earlier forecasts, scored, which weigh the shapes of growth; keys: further ones of a line.
    Returns how many curves could be forecast.
    """
    earlier = _read(path) if path.exists() else []
    recorded = [(r.run, r.task, r.issued) for r in earlier]
    count = 0
    for run, task, draws in backtest.forecast_curves(c, now, places, past):
        count += 1
        if (run, task, now) in recorded:
            continue
        quantiles = np.quantile(draws, LEVELS, axis=0).T.round(5)
        line = {"date": date.today().isoformat(), "run": run, "task": task, "issued": now}
        keys |= line | {"targets": places.tolist(), "quantiles": quantiles.tolist()}
        append_jsonl(path, keys)
    return count


def append_run(path: Path, t: Trials, run: str, now: float, end: float, unit: str) -> int:
    """Record forecasts of every task and slice of a run at twenty places up to `end`.

    Returns how many curves. Raises UserError where none has enough checkpoints.
    """
    c = accuracy_curves(split_slices(t))
    c = c[c.run == run]
    past = []
    with suppress(UserError):  # too few checkpoints to have forecast any before
        past = backtest.over_time(c)
    # Close enough for straight lines between them.
    places = np.linspace(now, end, 21)[1:]
    count = append(path, c, now, places, past, unit=unit)
    if not count:
        what = f"{backtest.MIN_CHECKPOINTS} checkpoints within {backtest.WINDOW} decades"
        raise UserError(
            f"a record takes curves of {what}, the last one's among them; "
            "try more often, or forecast without --record"
        )
    return count


def _read(path):
    """The lines of a record. Unlike a log, it is refused where one line is broken."""
    lines = []
    try:
        for line in read_whole_jsonl(path):
            targets = np.array(line["targets"])
            quantiles = np.array(line["quantiles"])
            if quantiles.shape != (len(targets), len(LEVELS)):
                raise ValueError("as many rows of 99 percentiles as targets are needed")
            issued = float(line["issued"])
            lines.append(Recorded(line["run"], line["task"], issued, targets, quantiles))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a record of forecasts ({type(error).__name__}: {error})"
        ) from None
    return lines


def score(path: Path, c: Curves) -> tuple[list[ScoredLine], int]:
    """Score recorded forecasts by every later checkpoint, along with the baselines of that time.

    c: of the trials with their slices split. Returns the scores and how many forecasts are open.
    Raises UserError where the file is not a record.
    """
    scored = []
    still_open = 0
    for r in _read(path):
        curve = c[(c.run == r.run) & (c.task == r.task)]
        curve = curve[np.argsort(curve.x)]
        is_before = curve.x <= r.issued + 1e-6
        # A checkpoint one percent beyond the last target still scores it.
        later = curve[~is_before & (curve.x <= r.targets[-1] + 0.005)]
        still_open += not len(later)
        for x, actual in zip(later.x.tolist(), later.value.tolist(), strict=True):
            scored.append(_score_line(r, curve[is_before], x, actual))
    return scored, still_open


def _score_line(r, before, x, actual):
    draws = np.array([np.interp(x, r.targets, quantile) for quantile in r.quantiles.T])
    crps = {backtest.NINES: backtest.crps(draws, actual)}
    if len(before):
        rng = np.random.default_rng(0)
        others = backtest.baselines(before, before, r.issued, x, rng)
        crps |= {name: backtest.crps(others[name], actual) for name in BASELINES if name in others}
    pit = backtest.pit(draws, actual)
    return ScoredLine(r.run, r.task, r.issued, x, actual, pit, crps)


def summarize(scored: list[ScoredLine]) -> Summary:
    """Average over the forecasts that every baseline could make too; NaN where there are none.

    One checkpoint scores many forecasts of one model, so standard errors are over checkpoints.
    """
    # Means of methods are comparable only over the same forecasts.
    common = [s for s in scored if len(s.crps) == 1 + len(BASELINES)]
    names = [f"{s.run} {s.target:.6f}" for s in common]
    checkpoint = np.unique(names, return_inverse=True)[1]
    n = len(set(names))

    def cluster_mean(values):
        mean = np.mean(values or [np.nan])
        if n < 2:
            return mean, np.nan
        # Summed within a checkpoint first: its forecasts are wrong together.
        residual = np.bincount(checkpoint, np.array(values) - mean)
        return mean, np.sqrt((residual**2).sum() * n / (n - 1)) / len(values)

    covered = cluster_mean([backtest.coverage(*s.pit, 0.8) for s in common])
    methods = (backtest.NINES, *BASELINES)
    crps = {name: cluster_mean([s.crps[name] for s in common]) for name in methods}
    means = {name: mean for name, (mean, _) in crps.items()}
    return Summary(len(common), n, *covered, means, crps[backtest.NINES][1])
