"""How good such forecasts have been: rolling origins, proper scores, baselines beside them.

A forecast is a set of draws. It is scored when the later checkpoint is known: CRPS and log score (Gneiting & Raftery
2007), PIT and coverage; an event ("the curve reaches T") by Brier. Weights of the shapes and widening of the intervals
at one origin come only from forecasts whose outcome was known before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import growth
from ramp.nines.growth import SHAPES, Points
from ramp.nines.trials import Table, groups, select

DRAWS = 2000
WINDOW = 1.2  # decades before the origin that growth is read from
LEAST_SIZES = 2  # that must be finished before the first forecast over sizes
LEAST_CHECKPOINTS, AHEAD = 3, 4  # of a curve that are seen before it is forecast; how many ahead


def crps(draws: np.ndarray, y: float) -> float:
    """E|X - y| - E|X - X'| / 2 of an ensemble, in O(n log n)."""
    s, n = np.sort(draws), len(draws)
    return float(np.abs(s - y).mean() - ((2 * np.arange(1, n + 1) - n - 1) * s).sum() / n**2)


@dataclass(frozen=True)
class Past:
    """One resolved forecast of one run's accuracy on one task."""

    run: str
    task: str
    origin: float
    target: float
    actual: float
    median: float
    pit: tuple[
        float, float
    ]  # chance of less than what was seen, and of at most that: an atom spans an interval
    raw: float  # the middle of it, before widening
    crps: dict[str, float]  # by method: "nines" and the baselines
    covered: dict[str, float]  # by its 90% interval, 0 or 1, or a share at an atom
    shapes: np.ndarray  # [K] log densities
    events: list[tuple[float, bool]]  # "it reaches T": probability, whether it did


def logits(c: Table) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies to logits and their standard errors, half a success added on each side so that 0 and 1 stay finite."""
    p = (c["value"] * c["n"] + 0.5) / (c["n"] + 1)
    return logit(p), 1 / np.sqrt(c["n"] * p * (1 - p))


def observed_variance(p: np.ndarray, n: float) -> np.ndarray:
    """`logits` turned round: accuracies of about n trials from chances, so that 0 of n and n of n can be shown."""
    return np.clip((p * (n + 1) - 0.5) / n, 0, 1)


def points(c: Table, now: float) -> Points:
    size = np.log10(c["size"]) if np.isfinite(c["size"]).all() else np.zeros(len(c["x"]))
    return Points(c["x"] - now, size, c["run"])


def fits(c: Table, now: float) -> list[growth.Fit]:
    y, error = logits(c)
    return [growth.fit(shape, points(c, now), y, error) for shape in SHAPES]


def over_sizes(
    c: Table, origin: float, target: float, thresholds: tuple[float, ...] = ()
) -> list[Past]:
    """Forecast runs at `target` from what they show up to `origin` (both log10), with all smaller runs known to the end.

    Groups of one size go from small to large: each is weighted and widened by the scores of those before it.
    """
    keys, ends = groups(c["run"], c["task"])[1], np.isclose(c["x"], target)
    full = np.isin(keys, keys[ends])
    sizes = np.unique(c["size"][ends])
    if len(sizes) <= LEAST_SIZES or np.isnan(sizes).any():
        what = f"a backtest over sizes needs more than {LEAST_SIZES} sizes of run with a checkpoint at the target"
        raise UserError(f"{what}; there are {len(sizes)}")
    seen = c["x"] >= origin - WINDOW
    past: list[Past] = []
    for size in sizes[1:]:
        weights, factor = growth.learn_weights([p.shapes for p in past], [p.raw for p in past])
        for task in np.unique(c["task"]):
            of = seen & (c["task"] == task)
            known = of & ((c["size"] < size) | ((c["size"] == size) & (c["x"] <= origin + 1e-9)))
            runs = np.unique(c["run"][of & full & (c["size"] == size)])
            runs = [r for r in runs if (known & (c["run"] == r)).any()]
            found = fits(select(c, known), origin) if runs else []
            for run in runs:
                mine = select(c, of & (c["run"] == run))
                past.append(
                    score(
                        found, weights, factor, select(c, known), mine, origin, target, thresholds
                    )
                )
    past = [p for p in past if not np.isin(p.run, c["run"][c["size"] < sizes[LEAST_SIZES]])]
    if not past:
        raise UserError(
            "no run has a checkpoint both at or before the origin and at the target; move one of the two"
        )
    return past


def predict_ahead(
    found: list[growth.Fit],
    weights: np.ndarray,
    factor: float,
    to: Points,
    before: Table,
    rng: np.random.Generator,
) -> np.ndarray:
    """[DRAWS, T] accuracies that one curve, known up to `before`, will show, all places together."""
    curves = growth.draw(found, weights, to, DRAWS, rng)
    noise = np.average([f.noise(float(logits(before)[1][-1])) for f in found], weights=weights)
    return observed_variance(
        expit(growth.widen(curves + noise * rng.standard_normal(curves.shape), factor)),
        before["n"][-1],
    )


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
    mine = select(mine, np.argsort(mine["x"]))
    mine = select(mine, mine["x"] <= target + 1e-9)
    before, after = (
        select(mine, mine["x"] <= origin + 1e-9),
        select(mine, mine["x"] > origin + 1e-9),
    )
    to, actual, error = (
        points(after, origin),
        float(after["value"][-1]),
        float(logits(before)[1][-1]),
    )
    told = predict_ahead(found, weights, factor, to, before, rng)
    final, unwidened = (
        told[:, -1],
        predict_ahead(found, weights, 1.0, to, before, np.random.default_rng(0))[:, -1],
    )
    ensembles = {"nines": final} | baselines(known, before, origin, target, rng)
    began, reached = _best(before["value"]), _best(mine["value"])
    tops = _best(np.concatenate([np.tile(before["value"], (DRAWS, 1)), told], 1))
    y = logits(after)[0][-1]
    return Past(
        run=str(mine["run"][0]),
        task=str(mine["task"][0]),
        origin=origin,
        target=float(target),
        actual=actual,
        median=float(np.median(final)),
        pit=pit(final, actual),
        raw=float(np.mean(pit(unwidened, actual))),
        crps={k: crps(v, actual) for k, v in ensembles.items()},
        covered={k: covers(*pit(v, actual), 0.9) for k, v in ensembles.items()},
        shapes=np.array([norm.logpdf(y, *f.shown(to[-1:], error)) for f in found]),
        events=[(float((tops >= t).mean()), bool(reached >= t)) for t in thresholds if began < t],
    )


def baselines(
    known: Table, before: Table, origin: float, target: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Ensembles of accuracies at `target`. persistence: the last value and its standard error. log-linear: the logit
    over log10 steps through the last 8. power law: T - A s^-q through the same, by least squares over T, A and q.
    analog: the last logit moved as the two next smaller sizes moved from here to the end."""
    y, error = logits(before)
    x, lead = before["x"][-8:] - origin, target - origin
    z = rng.standard_normal(DRAWS)
    out = {
        "persistence": np.clip(before["value"][-1] + np.nan_to_num(before["stderr"][-1]) * z, 0, 1)
    }
    if len(x) >= 3:
        out["log-linear"] = expit(
            _line(x, y[-8:], lead) + np.hypot(error[-1], _rest(x, y[-8:])) * z
        )
        v = before["value"][-8:]
        best = min(
            ((_rest(10 ** (-q * x), v), q) for q in np.geomspace(0.05, 3, 30)), key=lambda r: r[0]
        )
        centre = _line(10 ** (-best[1] * x), v, 10 ** (-best[1] * lead))
        out["power law"] = np.clip(
            centre + np.hypot(np.nan_to_num(before["stderr"][-1]), best[0]) * z, 0, 1
        )
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
    return float(
        np.sqrt(((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum() / max(len(x) - 2, 1))
    )


def _best(values: np.ndarray) -> np.ndarray:
    """The highest median of three neighbouring checkpoints along the last axis: a lucky one does not count as reached."""
    if values.shape[-1] < 3:
        return values.max(-1)
    return np.median([values[..., :-2], values[..., 1:-1], values[..., 2:]], axis=0).max(-1)


def over_time(
    c: Table, thresholds: tuple[float, ...] = (), past: Sequence[Past] = ()
) -> list[Past]:
    """Forecast each curve from every one of its checkpoints but the first few, AHEAD checkpoints on at most; weights and
    widening come only from outcomes that lay before the origin. past: what this found before the table grew."""
    done = list(past)
    have = {(p.run, p.task, p.origin, p.target) for p in done}
    for now in np.unique(c["x"]):
        for run, task, known, found, weights, factor in _origin(c, now, done):
            mine = select(c, (c["run"] == run) & (c["task"] == task) & (c["x"] >= now - WINDOW))
            for x in np.unique(mine["x"][mine["x"] > now + 1e-9])[:AHEAD]:
                if (run, task, now, x) not in have:
                    done.append(score(found(), weights, factor, known, mine, now, x, thresholds))
    if not done:
        raise UserError(
            f"no curve has more than {LEAST_CHECKPOINTS} checkpoints, which a backtest forecasts from"
        )
    return done


def forecasts(
    c: Table, now: float, places: np.ndarray, past: Sequence[Past]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(run, task, [DRAWS, T] accuracies at `places`) of every curve that can be forecast from its checkpoint at `now`."""
    for run, task, known, found, weights, factor in _origin(c, now, past):
        mine = select(known, known["run"] == run)
        mine = select(mine, np.argsort(mine["x"]))
        last = select(mine, np.full(len(places), -1))
        to = points(last | {"x": places}, now)
        yield run, task, predict_ahead(found(), weights, factor, to, mine, np.random.default_rng(0))


def pit(draws: np.ndarray, y: float) -> tuple[float, float]:
    """Chance of less than y and of at most y. Between the two a truth at an atom, such as 0 of n, is anywhere."""
    return float((draws < y).mean()), float((draws <= y).mean())


def covers(low: float, high: float, level: float) -> float:
    """The share of a PIT that lies in the central interval of this level: 0 or 1, or between where an atom straddles."""
    edge = (1 - level) / 2
    if high - low < 1e-9:
        return float(edge <= low <= 1 - edge)
    return max(0.0, min(high, 1 - edge) - max(low, edge)) / (high - low)


def _origin(c: Table, now: float, past: Sequence[Past]) -> Iterator[tuple]:
    """What a forecast from `now` may know: (run, task, the task's rows, their fits when called for, weights of the
    shapes, widening) of each curve with enough checkpoints up to there."""
    scored = [p for p in past if p.target <= now + 1e-9]
    weights, factor = growth.learn_weights([p.shapes for p in scored], [p.raw for p in scored])
    rows = select(c, (c["x"] <= now + 1e-9) & (c["x"] >= now - WINDOW))
    for task in np.unique(rows["task"]):
        known = select(rows, rows["task"] == task)
        found = cache(partial(fits, known, now))
        for run in np.unique(known["run"][np.isclose(known["x"], now)]):
            if (known["run"] == run).sum() >= LEAST_CHECKPOINTS:
                yield str(run), str(task), known, found, weights, factor


def summary(past: list[Past]) -> dict:
    """Scores by method over the same forecasts, the events, and the PIT in tenths."""
    methods = [m for m in past[0].crps if all(m in p.crps for p in past)]
    out: dict = {"forecasts": len(past), "methods": {}}
    for m in methods:
        means = (float(np.mean([getattr(p, k)[m] for p in past])) for k in ("crps", "covered"))
        out["methods"][m] = dict(zip(("crps", "coverage"), means, strict=True))
    out["coverage80"] = float(np.mean([covers(*p.pit, 0.8) for p in past]))
    out["mae"] = float(np.mean([abs(p.median - p.actual) for p in past]))
    out["pit"] = np.histogram([np.mean(p.pit) for p in past], np.linspace(0, 1, 11))[0].tolist()
    events = np.array([e for q in past for e in q.events], float).reshape(-1, 2)
    if len(events):
        base, brier = float(events[:, 1].mean()), float(((events[:, 0] - events[:, 1]) ** 2).mean())
        out["events"] = {
            "count": len(events),
            "rate": base,
            "brier": brier,
            "base_brier": base * (1 - base),
        }
        said = np.digitize(events[:, 0], (0.1, 0.3, 0.5, 0.7, 0.9))
        said_so = [events[said == k] for k in range(6)]
        out["calibration"] = [(*e.mean(0).tolist(), len(e)) for e in said_so if len(e)]
    return out
