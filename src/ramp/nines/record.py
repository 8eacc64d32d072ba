"""The live record: forecasts are written down when they are made, and scored when later checkpoints have arrived.

A line is one curve (a run's accuracy on a task under one slice) seen from one checkpoint: percentiles of the accuracy
that it will show at some places ahead. Between places they are interpolated, so any checkpoint on the way can score it.
"""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.nines import backtest, trials

LEVELS = np.arange(1, 100) / 100
BASELINES = ("persistence", "log-linear", "power law")


def append(
    path: Path,
    c: trials.Table,
    now: float,
    places: np.ndarray,
    past: Sequence[backtest.Past],
    **said: Any,
) -> int:
    """One line for each curve that can be forecast from its checkpoint at `now`, in curves(by_slice(trials)); how many
    can. What was said of a curve at this checkpoint before stays as it is. said: further keys of the lines.

    places: [T] log10 progress beyond now, rising; past: earlier forecasts, scored, which weigh the shapes of growth.
    """
    have = {(r["run"], r["task"], r["issued"]) for r in _read(path)} if path.exists() else set()
    lines, count = [], 0
    for run, task, shown in backtest.forecasts(c, now, places, past):
        line = said | {"date": date.today().isoformat(), "run": run, "task": task, "issued": now}
        line |= {
            "targets": places.tolist(),
            "quantiles": np.quantile(shown, LEVELS, axis=0).T.round(5).tolist(),
        }
        count += 1
        if (run, task, now) not in have:
            lines.append(json.dumps(line) + "\n")
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    return count


def live(path: Path, t: trials.Table, run: str, now: float, end: float, unit: str) -> int:
    """Append forecasts of every task and slice of a run at twenty places up to `end`; how many curves.

    Raises UserError where none has checkpoints enough.
    """
    c = trials.curves(trials.by_slice(t))
    c = trials.select(c, c["run"] == run)
    try:
        past = backtest.over_time(c)
    except UserError:
        past = []  # too few checkpoints to have forecast any before
    if count := append(path, c, now, np.linspace(now, end, 21)[1:], past, unit=unit):
        return count
    least = f"{backtest.LEAST_CHECKPOINTS} checkpoints within {backtest.WINDOW} decades, the last one's among them"
    raise UserError(
        f"a record takes curves of {least}; try more often, or forecast without --record"
    )


def _read(path: Path) -> list[dict]:
    """The lines of a record; UserError where it is none."""
    try:
        lines = [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        for r in lines:
            r["targets"], r["quantiles"] = (
                np.array(r["targets"], float),
                np.array(r["quantiles"], float),
            )
            r["run"], r["task"], r["issued"] = str(r["run"]), str(r["task"]), float(r["issued"])
            if r["quantiles"].shape != (len(r["targets"]), len(LEVELS)):
                raise ValueError("as many rows of 99 percentiles as targets are needed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a record of forecasts ({type(error).__name__}: {error})"
        ) from None
    return lines


def resolve(path: Path, c: trials.Table) -> tuple[list[dict], int]:
    """Score the recorded forecasts by every later checkpoint in curves(by_slice(trials)), beside the baselines from what
    was known then: (scored, forecasts that are open still).

    Raises UserError where the file is not a record.
    """
    scored, waiting = [], 0
    for r in _read(path):
        mine = trials.select(c, (c["run"] == r["run"]) & (c["task"] == r["task"]))
        mine = trials.select(mine, np.argsort(mine["x"]))
        before = trials.select(mine, mine["x"] <= r["issued"] + 1e-6)
        hits = np.flatnonzero(
            (mine["x"] > r["issued"] + 1e-6) & (mine["x"] <= r["targets"][-1] + 0.005)
        )
        waiting += not len(hits)
        scored += [_scored(r, before, float(mine["x"][k]), float(mine["value"][k])) for k in hits]
    return scored, waiting


def _scored(r: dict, before: trials.Table, x: float, y: float) -> dict:
    """A recorded forecast beside what was seen at x."""
    said = np.array([np.interp(x, r["targets"], q) for q in r["quantiles"].T])
    row = {"run": r["run"], "task": r["task"], "issued": r["issued"], "target": x, "actual": y}
    row |= {"pit": backtest.pit(said, y), "crps": backtest.crps(said, y)}
    if len(before["x"]):
        others = backtest.baselines(before, before, r["issued"], x, np.random.default_rng(0))
        row |= {name: backtest.crps(others[name], y) for name in BASELINES if name in others}
    return row


def summary(scored: list[dict]) -> dict[str, float]:
    """Over the forecasts that every baseline could make too: their number, the checkpoints that scored them, coverage of
    80% intervals and CRPS by method, each a mean, the first two with standard errors: one checkpoint scores many
    forecasts of one model, so these are over checkpoints."""
    rows = [r for r in scored if all(name in r for name in BASELINES)]
    seen, of = np.unique([f"{r['run']} {r['target']:.6f}" for r in rows], return_inverse=True)
    found = {"count": len(rows), "checkpoints": len(seen)}
    figures = {"covered80": [backtest.covers(*r["pit"], 0.8) for r in rows]}
    figures |= {name: [r[name] for r in rows] for name in ("crps", *BASELINES)}
    for name, values in figures.items():
        found[name] = float(np.mean(values or [np.nan]))
        residual = (
            np.bincount(of, np.array(values) - found[name], len(seen))
            if len(seen) > 1
            else np.array([np.nan])
        )
        if name in ("covered80", "crps"):
            spread = np.sqrt((residual**2).sum() * len(seen) / max(len(seen) - 1, 1))
            found[f"{name}_stderr"] = float(spread / max(len(rows), 1))
    return found
