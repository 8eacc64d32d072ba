"""The live record: forecasts are written down when they are made, and scored when later checkpoints have arrived.

A line is one curve (a run's accuracy on a task under one slice) seen from one checkpoint: percentiles of the accuracy
that it will show at some places ahead. Between places they are interpolated, so any checkpoint on the way can score it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.nines import backtest, trials

LEVELS = np.arange(1, 100) / 100
BASELINES = ("persistence", "log-linear", "power law")


def append(
    path: Path, c: trials.Table, now: float, places: np.ndarray, past: Sequence[backtest.Past], **said: Any
) -> int:
    """One line for each curve that has a checkpoint at `now`, in curves(by_slice(trials)); how many. said: further keys.

    places: [T] log10 progress beyond now, rising; past: earlier forecasts, scored, which weigh the shapes of growth.
    """
    lines = []
    for run, task, shown in backtest.forecasts(c, now, places, past):
        line = said | {"run": run, "task": task, "issued": now, "targets": places.tolist()}
        lines.append(json.dumps(line | {"quantiles": np.quantile(shown, LEVELS, axis=0).T.round(5).tolist()}) + "\n")
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
    return len(lines)


def resolve(path: Path, c: trials.Table) -> tuple[list[dict], int]:
    """Score the recorded forecasts by every later checkpoint in curves(by_slice(trials)), beside the baselines from what
    was known then: (scored, forecasts that are open still).

    Raises UserError where the file is not a record.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        said = [(r["run"], r["task"], float(r["issued"])) for r in lines]
        told = [(np.array(r["targets"], float), np.array(r["quantiles"], float)) for r in lines]
        if any(q.shape != (len(at), len(LEVELS)) for at, q in told):
            raise ValueError("as many rows of 99 percentiles as targets are needed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record of forecasts ({type(error).__name__}: {error})") from None
    scored, waiting = [], 0
    for (run, task, issued), (places, quantiles) in zip(said, told, strict=True):
        mine = trials.select(c, (c["run"] == run) & (c["task"] == task))
        mine = trials.select(mine, np.argsort(mine["x"]))
        before = trials.select(mine, mine["x"] <= issued + 1e-6)
        hits = np.flatnonzero((mine["x"] > issued + 1e-6) & (mine["x"] <= places[-1] + 0.005))
        waiting += not len(hits)
        for k in hits:
            x, y = float(mine["x"][k]), float(mine["value"][k])
            at = np.array([np.interp(x, places, q) for q in quantiles.T])
            row = {"run": run, "task": task, "issued": issued, "target": x, "actual": y, "crps": backtest.crps(at, y)}
            row["covered80"] = bool(at[9] <= y <= at[89])
            row["pit"] = np.searchsorted(at, y) / (len(LEVELS) + 1)
            if len(before["x"]):
                others = backtest.baselines(before, before, issued, x, np.random.default_rng(0))
                row |= {name: backtest.crps(others[name], y) for name in BASELINES if name in others}
            scored.append(row)
    return scored, waiting


def summary(scored: list[dict]) -> dict[str, float]:
    """Means over the forecasts that every baseline could make too: count, coverage of 80% intervals, CRPS by method."""
    rows = [r for r in scored if all(name in r for name in BASELINES)]
    mean = {k: float(np.mean([r[k] for r in rows] or [np.nan])) for k in ("covered80", "crps", *BASELINES)}
    return {"count": len(rows), **mean}
