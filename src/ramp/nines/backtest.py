"""How good such forecasts have been: rolling origins, proper scores, baselines beside them, and a live record.

A forecast is a set of draws. It is scored when the later checkpoint is known: CRPS and log score (Gneiting & Raftery
2007), PIT and coverage; an event ("the curve reaches T") by Brier. Weights of the shapes and widening of the intervals
at one origin come only from forecasts whose outcome was known before it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from ramp.errors import UserError
from ramp.nines import growth
from ramp.nines.growth import SHAPES, Points
from ramp.nines.trials import Table

DRAWS = 2000


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


def take(c: Table, rows: np.ndarray) -> Table:
    return {k: v[rows] for k, v in c.items()}


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
    window: float = 1.2,
    least: int = 2,
    note: Callable[[str], None] = lambda text: None,
) -> list[Past]:
    """Forecast runs at `target` from what they show up to `origin` (both log10), with all smaller runs known to the end.

    Groups of one size go from small to large: each is weighted and widened by the scores of those before it.
    window: decades before the origin that are looked at; least: sizes that must be finished before the first forecast.
    """
    ends = np.isclose(c["x"], target)
    full = np.isin(_pair(c), _pair(take(c, ends)))
    sizes = np.unique(c["size"][ends])
    if len(sizes) <= least or np.isnan(sizes).any():
        raise UserError(
            f"a backtest over sizes needs more than {least} sizes of run with a checkpoint at the target; there are {len(sizes)}"
        )
    seen = c["x"] >= origin - window
    past: list[Past] = []
    for size in sizes[1:]:
        weights = growth.stack(np.array([p.shapes for p in past]).reshape(-1, len(SHAPES)))
        factor = growth.widening(np.array([p.pit for p in past]))
        for task in np.unique(c["task"]):
            of = seen & (c["task"] == task)
            known = of & ((c["size"] < size) | ((c["size"] == size) & (c["x"] <= origin + 1e-9)))
            runs = np.unique(c["run"][of & full & (c["size"] == size)])
            runs = [r for r in runs if (known & (c["run"] == r)).any()]
            found = fits(take(c, known), origin) if runs else []
            for run in runs:
                mine = take(c, of & (c["run"] == run))
                past.append(score(found, weights, factor, take(c, known), mine, origin, target, thresholds))
        note(f"size {size:g}: {len(past)} forecasts, widened by {factor:.2f}")
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
    mine = take(mine, order[mine["x"][order] <= target + 1e-9])
    before, after = take(mine, mine["x"] <= origin + 1e-9), take(mine, mine["x"] > origin + 1e-9)
    error = float(logits(take(before, np.array([-1])))[1][0])
    to, actual = points(after, origin), float(after["value"][-1])
    curves = growth.draw(found, weights, to, DRAWS, rng)
    noise = np.average([np.hypot(f.noise, f.error_scale * error) for f in found], weights=weights)
    shown = growth.widen(curves + noise * rng.standard_normal(curves.shape), factor)
    y_end = float(logits(take(after, np.array([-1])))[0][0])
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
    reached, begun = _best(happened), _best(happened[: len(before["x"])])
    tops = _best(futures)
    events = [(t, float((tops >= t).mean()), bool(reached >= t)) for t in thresholds if begun < t]
    return Past(
        str(mine["run"][0]),
        str(mine["task"][0]),
        actual,
        float((final < actual).mean()),
        {k: crps(v, actual) for k, v in ensembles.items()},
        {k: bool(np.quantile(v, 0.05) <= actual <= np.quantile(v, 0.95)) for k, v in ensembles.items()},
        median,
        low,
        high,
        shapes,
        events,
    )


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
        other = take(known, known["run"] == run)
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
