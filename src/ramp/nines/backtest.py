"""How good such forecasts have been: rolling origins, proper scores, baselines beside them, and a live record.

A forecast is a set of draws. It is scored when the later checkpoint is known: CRPS and log score (Gneiting & Raftery
2007), PIT and coverage; an event ("the curve reaches T") by Brier. Weights of the shapes and widening of the intervals
at one origin come only from forecasts whose outcome was known before it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import growth
from ramp.nines.growth import SHAPES, Points
from ramp.nines.trials import Table, select

DRAWS = 2000
WINDOW = 1.2  # decades before the origin that growth is read from


def crps(draws: np.ndarray, y: float) -> float:
    """E|X - y| - E|X - X'| / 2 of an ensemble, in O(n log n)."""
    s, n = np.sort(draws), len(draws)
    return float(np.abs(s - y).mean() - ((2 * np.arange(1, n + 1) - n - 1) * s).sum() / n**2)


@dataclass(frozen=True)
class Past:
    """One resolved forecast of one run's accuracy on one task."""

    run: str
    task: str
    actual: float
    pit: float
    crps: dict[str, float]  # by method: "nines" and the baselines
    covered: dict[str, bool]  # by its 90% interval
    median: float
    low: float
    high: float
    shapes: np.ndarray  # [K] log densities
    events: list[tuple[float, float, bool]]  # threshold, probability, happened


def logits(c: Table) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies to logits and their standard errors, half a success added on each side so that 0 and 1 stay finite."""
    p = (c["value"] * c["n"] + 0.5) / (c["n"] + 1)
    return logit(p), 1 / np.sqrt(c["n"] * p * (1 - p))


def points(c: Table, now: float) -> Points:
    size = np.log10(c["size"]) if np.isfinite(c["size"]).all() else np.zeros(len(c["x"]))
    return Points(c["x"] - now, size, c["run"])


def fits(c: Table, now: float) -> list[growth.Fit]:
    y, error = logits(c)
    return [growth.fit(shape, points(c, now), y, error) for shape in SHAPES]


def over_sizes(
    c: Table,
    origin: float,
    target: float,
    thresholds: tuple[float, ...] = (),
    least: int = 2,
) -> list[Past]:
    """Forecast runs at `target` from what they show up to `origin` (both log10), with all smaller runs known to the end.

    Groups of one size go from small to large: each is weighted and widened by the scores of those before it.
    least: sizes that must be finished before the first forecast.
    """
    ends = np.isclose(c["x"], target)
    full = np.isin(_pair(c), _pair(select(c, ends)))
    sizes = np.unique(c["size"][ends])
    if len(sizes) <= least or np.isnan(sizes).any():
        raise UserError(
            f"a backtest over sizes needs more than {least} sizes of run with a checkpoint at the target; there are {len(sizes)}"
        )
    seen = c["x"] >= origin - WINDOW
    past: list[Past] = []
    for size in sizes[1:]:
        weights = growth.stack(np.array([p.shapes for p in past]).reshape(-1, len(SHAPES)))
        factor = growth.widening(np.array([p.pit for p in past]))
        for task in np.unique(c["task"]):
            of = seen & (c["task"] == task)
            known = of & ((c["size"] < size) | ((c["size"] == size) & (c["x"] <= origin + 1e-9)))
            runs = np.unique(c["run"][of & full & (c["size"] == size)])
            runs = [r for r in runs if (known & (c["run"] == r)).any()]
            found = fits(select(c, known), origin) if runs else []
            for run in runs:
                mine = select(c, of & (c["run"] == run))
                past.append(score(found, weights, factor, select(c, known), mine, origin, target, thresholds))
    return [p for p in past if not np.isin(p.run, c["run"][c["size"] < sizes[least]])]


def _pair(c: Table) -> np.ndarray:
    return np.array([f"{r}\0{t}" for r, t in zip(c["run"], c["task"], strict=True)])


def score(
    found: list[growth.Fit],
    weights: np.ndarray,
    factor: float,
    known: Table,
    mine: Table,
    origin: float,
    target: float,
    thresholds: tuple[float, ...] = (),
) -> Past:
    """Forecast every later checkpoint of one curve jointly; score the one at `target`, and the events up to it."""
    rng = np.random.default_rng(0)
    order = np.argsort(mine["x"])
    mine = select(mine, order[mine["x"][order] <= target + 1e-9])
    before, after = select(mine, mine["x"] <= origin + 1e-9), select(mine, mine["x"] > origin + 1e-9)
    error = float(logits(select(before, np.array([-1])))[1][0])
    to, actual = points(after, origin), float(after["value"][-1])
    curves = growth.draw(found, weights, to, DRAWS, rng)
    noise = np.average([np.hypot(f.noise, f.error_scale * error) for f in found], weights=weights)
    shown = growth.widen(curves + noise * rng.standard_normal(curves.shape), factor)
    y_end = float(logits(select(after, np.array([-1])))[0][0])
    shapes = np.empty(len(found))
    for k, f in enumerate(found):
        mean, cov = f.predict(to[np.array([-1])])
        var = cov[0, 0] + f.noise**2 + (f.error_scale * error) ** 2
        shapes[k] = -0.5 * (np.log(2 * np.pi * var) + (y_end - mean[0]) ** 2 / var)
    final = expit(shown[:, -1])
    ensembles = {"nines": final} | baselines(known, before, origin, target, rng)
    low, median, high = np.quantile(final, (0.05, 0.5, 0.95))
    happened = np.concatenate([before["value"], after["value"]])
    futures = np.concatenate([np.tile(before["value"], (DRAWS, 1)), expit(shown)], 1)
    reached, begun, tops = _best(happened), _best(happened[: len(before["x"])]), _best(futures)
    events = [(t, float((tops >= t).mean()), bool(reached >= t)) for t in thresholds if begun < t]
    scores = {k: crps(v, actual) for k, v in ensembles.items()}
    covered = {k: bool(np.quantile(v, 0.05) <= actual <= np.quantile(v, 0.95)) for k, v in ensembles.items()}
    of, pit = (str(mine["run"][0]), str(mine["task"][0])), float((final < actual).mean())
    return Past(*of, actual, pit, scores, covered, median, low, high, shapes, events)


def baselines(
    known: Table, before: Table, origin: float, target: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Ensembles of accuracies at `target`. persistence: the last value and its standard error. log-linear: the logit
    over log10 steps through the last 8. power law: T - A s^-q through the same, by least squares over T, A >= 0, q.
    analog: the last logit moved as the two next smaller sizes moved from here to the end."""
    y, error = logits(before)
    x, lead = before["x"][-8:] - origin, target - origin
    z = rng.standard_normal(DRAWS)
    out = {"persistence": before["value"][-1] + np.nan_to_num(before["stderr"][-1]) * z}
    if len(x) >= 3:
        out["log-linear"] = expit(_line(x, y[-8:], lead) + np.hypot(error[-1], _rest(x, y[-8:])) * z)
        v = before["value"][-8:]
        best = min(((_rest(10 ** (-q * x), v), q) for q in np.geomspace(0.05, 3, 30)), key=lambda r: r[0])
        centre = _line(10 ** (-best[1] * x), v, 10 ** (-best[1] * lead))
        out["power law"] = centre + np.hypot(np.nan_to_num(before["stderr"][-1]), best[0]) * z
    smaller = np.unique(known["size"][known["size"] < before["size"][-1]])[-2:]
    moves = []
    for run in np.unique(known["run"][np.isin(known["size"], smaller)]):
        other = select(known, known["run"] == run)
        start, end = np.isclose(other["x"], before["x"][-1]), np.isclose(other["x"], target)
        if start.any() and end.any():
            moves.append(float(logits(other)[0][end][0] - logits(other)[0][start][0]))
    if len(moves) >= 2:
        spread = np.hypot(np.std(moves, ddof=1) * np.sqrt(1 + 1 / len(moves)), error[-1])
        out["analog"] = expit(y[-1] + np.mean(moves) + spread * z)
    return out


def _line(x: np.ndarray, y: np.ndarray, at: float) -> float:
    slope, level = np.polyfit(x, y, 1)
    return float(level + slope * at)


def _rest(x: np.ndarray, y: np.ndarray) -> float:
    """Residual standard deviation of a line."""
    return float(np.sqrt(((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum() / max(len(x) - 2, 1)))


def _best(values: np.ndarray) -> np.ndarray:
    """The highest median of three neighbouring checkpoints along the last axis: a lucky one does not count as reached."""
    if values.shape[-1] < 3:
        return values.max(-1)
    return np.median([values[..., :-2], values[..., 1:-1], values[..., 2:]], axis=0).max(-1)


def over_time(c: Table, thresholds: tuple[float, ...] = (), least: int = 3, ahead: int = 4) -> list[tuple[float, Past]]:
    """Forecast each curve from every one of its checkpoints but the first few, `ahead` checkpoints on at most.

    (horizon in decades, outcome); weights and widening come only from outcomes that lay before the origin."""
    done: list[tuple[float, float, Past]] = []  # when it was known, horizon, outcome
    keys = _pair(c)
    for now in np.unique(c["x"]):
        known_by_now = [p for when, _, p in done if when <= now + 1e-9]
        weights = growth.stack(np.array([p.shapes for p in known_by_now]).reshape(-1, len(SHAPES)))
        factor = growth.widening(np.array([p.pit for p in known_by_now]))
        for task in np.unique(c["task"]):
            rows = (c["task"] == task) & (c["x"] <= now + 1e-9) & (c["x"] >= now - WINDOW)
            starts = [k for k in np.unique(keys[rows & np.isclose(c["x"], now)]) if (keys[rows] == k).sum() >= least]
            later = {k: np.unique(c["x"][(keys == k) & (c["x"] > now + 1e-9)])[:ahead] for k in starts}
            if not any(len(v) for v in later.values()):
                continue
            found = fits(select(c, rows), now)
            for key, targets in later.items():
                mine = select(c, (keys == key) & (c["x"] >= now - WINDOW))
                for x in targets:
                    outcome = score(found, weights, factor, select(c, rows), mine, now, x, thresholds)
                    done.append((float(x), float(x - now), outcome))
    if not done:
        raise UserError(f"no curve has more than {least} checkpoints; a backtest forecasts from {least} to a later one")
    return [(lead, p) for _, lead, p in done]


def summary(past: list[Past]) -> dict:
    """Scores by method over the same forecasts, the events, and the PIT in tenths."""
    methods = [m for m in past[0].crps if all(m in p.crps for p in past)]
    out: dict = {"forecasts": len(past), "methods": {}}
    for m in methods:
        mean, inside = np.mean([p.crps[m] for p in past]), np.mean([p.covered[m] for p in past])
        out["methods"][m] = {"crps": float(mean), "coverage": float(inside)}
    pit = np.array([p.pit for p in past])
    out["coverage80"] = float(((pit >= 0.1) & (pit <= 0.9)).mean())
    out["mae"] = float(np.mean([abs(p.median - p.actual) for p in past]))
    out["pit"] = np.histogram(pit, np.linspace(0, 1, 11))[0].tolist()
    events = np.array([(p, h) for q in past for _, p, h in q.events], float).reshape(-1, 2)
    if len(events):
        base, brier = float(events[:, 1].mean()), float(((events[:, 0] - events[:, 1]) ** 2).mean())
        out["events"] = {"count": len(events), "rate": base, "brier": brier, "base_brier": base * (1 - base)}
        said = np.digitize(events[:, 0], (0.1, 0.3, 0.5, 0.7, 0.9))
        groups = [events[said == k] for k in range(6)]
        out["calibration"] = [(*g.mean(0).tolist(), len(g)) for g in groups if len(g)]
    return out


# ---- the live record ------------------------------------------------------------------------------------------------

LEVELS = np.arange(1, 100) / 100


def issue(path: Path, run: str, task: str, issued: float, unit: str, targets: np.ndarray, draws: np.ndarray) -> None:
    """Append one line a target: the 99 percentiles of the accuracy there. draws: [S, T]."""
    with path.open("a", encoding="utf-8") as file:
        for x, column in zip(targets, draws.T, strict=True):
            line = {"run": run, "task": task, "unit": unit, "issued": issued, "target": float(x)}
            line["quantiles"] = np.quantile(column, LEVELS).round(6).tolist()
            file.write(json.dumps(line) + "\n")


def resolve(path: Path, c: Table) -> tuple[list[dict], int]:
    """Score the recorded forecasts whose checkpoint has arrived; (scored, still open). The record itself never changes."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        parsed = [(r, r["run"], r["task"], float(r["target"]), np.array(r["quantiles"], float)) for r in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record of forecasts ({type(error).__name__}: {error})") from None
    scored, waiting = [], 0
    for record, run, task, target, quantiles in parsed:
        mine = (c["run"] == run) & (c["task"] == task)
        hit = np.flatnonzero(mine & (np.abs(c["x"] - target) < 0.005))
        last = np.flatnonzero(mine & (np.abs(c["x"] - record["issued"]) < 0.005))
        if not len(hit):
            waiting += 1
            continue
        y = float(c["value"][hit[0]])
        row = {"run": run, "task": task, "target": target, "actual": y, "crps": crps(quantiles, y)}
        row["covered80"] = bool(quantiles[9] <= y <= quantiles[89])
        if len(last):
            row["persistence"] = crps(c["value"][last[0]] + np.nan_to_num(c["stderr"][last[0]]) * norm.ppf(LEVELS), y)
        scored.append(row)
    return scored, waiting
