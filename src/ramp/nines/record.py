"""The live record: forecasts are appended when they are made and scored when the later checkpoint has arrived."""

import json
from pathlib import Path

import numpy as np
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import trials
from ramp.nines.backtest import crps
from ramp.nines.ready import Outlook

LEVELS = np.arange(1, 100) / 100
POOLED = "all"  # the task of a forecast of several tasks at once


def append(path: Path, t: trials.Table, o: Outlook) -> None:
    """One line a place ahead: the 99 percentiles of the accuracy that will be shown there, with the error it has now."""
    ahead = o.grid > o.now
    error = (o.seen[-1][3] - o.seen[-1][2]) / (2 * norm.ppf(0.95))
    shown = o.mix[:, ahead] + error * np.random.default_rng(0).standard_normal((len(o.mix), ahead.sum()))
    task = str(t["task"][0]) if len(np.unique(t["task"])) == 1 else POOLED
    with path.open("a", encoding="utf-8") as file:
        for x, draws in zip(o.grid[ahead], np.clip(shown, 0, 1).T, strict=True):
            line = {"run": o.run, "task": task, "unit": o.unit, "issued": o.now, "target": float(x)}
            file.write(json.dumps(line | {"quantiles": np.quantile(draws, LEVELS).round(6).tolist()}) + "\n")


def resolve(path: Path, t: trials.Table) -> tuple[list[dict], int]:
    """Score the recorded forecasts whose checkpoint is in the table: (scored, how many are open). The record stays as it is.

    Raises UserError where the file is not a record.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        parsed = [(r["run"], r["task"], r["issued"], r["target"], np.array(r["quantiles"], float)) for r in lines]
        places = np.array([p[2:4] for p in parsed], float).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record of forecasts ({type(error).__name__}: {error})") from None
    scored = []
    curves = {pooled: trials.curves(trials.pooled(t) if pooled else t) for pooled in {r[1] == POOLED for r in parsed}}
    for (run, task, *_, quantiles), (issued, target) in zip(parsed, places, strict=True):
        c = curves[task == POOLED]
        mine = (c["run"] == run) & (c["task"] == task)
        hit = np.flatnonzero(mine & (np.abs(c["x"] - target) < 0.005))
        last = np.flatnonzero(mine & (np.abs(c["x"] - issued) < 0.005))
        if len(hit):
            y = float(c["value"][hit[0]])
            row = {"run": run, "task": task, "target": target, "actual": y, "crps": crps(quantiles, y)}
            row["covered80"] = bool(quantiles[9] <= y <= quantiles[89])
            if len(last):
                at = c["value"][last[0]] + np.nan_to_num(c["stderr"][last[0]]) * norm.ppf(LEVELS)
                row["persistence"] = crps(at, y)
            scored.append(row)
    return scored, len(parsed) - len(scored)
