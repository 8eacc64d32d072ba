"""From a fitted table to a decision: at which compute is r nines reached, with what probability?

Reliability is the mean success over a declared usage mix of families and slices, for items like those tried, not only
those. Production-ready at r nines with probability q at compute C: P(mix >= 1 - 10^-r and no slice below one nine less)
>= q. Dates exist only through a schedule of compute that the user gives.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import backtest, growth, intervals, items, trials
from ramp.nines.growth import SHAPES, Points

_GAUSS = np.polynomial.hermite_e.hermegauss(25)
GROUPS = 24  # items of one family are read at this many quantiles of difficulty at most


@dataclass(frozen=True)
class Outlook:
    """Draws of the reliability of the usage mix over a grid of progress; `now` is where the last checkpoint stands."""

    run: str
    grid: np.ndarray  # [T] log10 of compute or step
    now: float
    mix: np.ndarray  # [S, T]
    slices: dict[str, np.ndarray]  # [S, T] each
    seen: list[tuple[float, float, float, float]]  # checkpoint, accuracy, low, high
    weights: dict[str, float]  # of the shapes
    widened: float
    unit: str
    converged: bool = True  # of the item model

    def ready(self, r: float) -> np.ndarray:
        """[S, T] whether r nines hold there: the mix, and every slice at one nine less."""
        ok = self.mix >= 1 - 10.0**-r
        for path in self.slices.values():
            ok &= path >= 1 - 10.0 ** -(r - 1)
        return ok

    def passage(self, r: float) -> np.ndarray:
        """[S] log10 progress, from now on, at which each draw first holds r nines; inf: not within the grid."""
        ok = self.ready(r) & (self.grid >= self.now - 1e-9)
        return np.where(ok.any(1), self.grid[ok.argmax(1)], np.inf)

    def at(self, r: float, q: float) -> float:
        """The least log10 progress, from now on, where r nines hold with probability q; inf: nowhere in the grid."""
        holds = (self.ready(r).mean(0) >= q) & (self.grid >= self.now - 1e-9)
        return float(self.grid[holds.argmax()]) if holds.any() else float("inf")


def usage(
    given: dict[str, float] | None, names: list[str], what: str, tried: np.ndarray | None = None
) -> np.ndarray:
    """Weights of `names`; where none are given as they were tried, or equal."""
    if not given:
        return np.full(len(names), 1 / len(names)) if tried is None else tried / tried.sum()
    unknown = [k for k in given if k not in names]
    if unknown:
        raise UserError(
            f"the usage mix names the {what} {unknown[0]!r}, which no trial has; there are {', '.join(names)}"
        )
    if min(given.values()) < 0 or abs(sum(given.values()) - 1) > 1e-6:
        raise UserError(
            f"the usage mix over each {what} sums to {sum(given.values()):g}; it must be parts of 1"
        )
    return np.array([given.get(n, 0.0) for n in names])


def _stacked(at: Points, y: np.ndarray, cov: np.ndarray, fresh: bool) -> tuple[np.ndarray, float]:
    """Weights of the shapes and widening, from rolling origins: each of the last checkpoints forecast from those before."""
    order = np.argsort(at.x, kind="stable")
    scores, pits = [], []
    for j in range(max(2, len(y) - 8), len(y)):
        known, one = order[:j], order[j : j + 1]
        shift = Points(at.x - at.x[known].max(), at.size, at.run)
        fits = [
            growth.fit(s, shift[known], y[known], cov[np.ix_(known, known)], fresh) for s in SHAPES
        ]
        mean, sd = np.transpose([f.shown(shift[one], np.sqrt(cov[one, one][0])) for f in fits])
        weights, _ = growth.learn_weights(scores, pits)
        pits.append(float(weights @ norm.cdf((y[one] - mean) / sd)))
        scores.append(norm.logpdf(y[one], mean, sd))
    return growth.learn_weights(scores, pits)


def _grown(
    at: Points,
    y: np.ndarray,
    cov: np.ndarray,
    to: Points,
    draws: int,
    rng: np.random.Generator,
    fresh: bool,
):
    """([S, T] curves, weights of the shapes, widening) of what is known at `at`."""
    weights, factor = _stacked(at, y, cov, fresh)
    fits = [growth.fit(s, at, y, cov, fresh) for s in SHAPES]
    curves = growth.widen(growth.draw(fits, weights, to, draws, rng), factor)
    return curves, dict(zip(SHAPES, weights.tolist(), strict=True)), factor


def outlook(
    t: trials.Table,
    decades: float = 1.0,
    families: dict[str, float] | None = None,
    slices: dict[str, float] | None = None,
    run: str | None = None,
    draws: int = 800,
    steps: int = 41,
) -> Outlook:
    """Reliability of one run (the one that got furthest, unless named) up to `decades` beyond its last checkpoint, at so
    many `steps`. Raises UserError where there is no growth to see, or no such run, family or slice."""
    if (t["item"] == "").all():
        if families or slices:
            raise UserError(
                "a usage mix needs the items behind the accuracies; this table holds aggregates only"
            )
        return _aggregate(t, decades, run, draws, steps)
    rng, unit = np.random.default_rng(0), trials.progress(t)[1]
    c = items.cells(t)
    by_family = usage(families, c.families, "family", np.bincount(c.family))
    by_slice = usage(slices, c.slices, "slice")
    x, names = np.array([p for _, p in c.models]), np.array([r for r, _ in c.models])
    run = _furthest(names, x, run)
    now = x[names == run].max()
    fit = items.fit(c, draws)
    near = np.flatnonzero(x >= now - max(backtest.WINDOW, 2 * decades))  # growth is read from these
    theta, cov = fit.mean[near], fit.cov[np.ix_(near, near)] + 1e-6 * np.eye(len(near))
    at = Points(x[near] - now, np.zeros(len(near)), names[near])
    grid = np.unique(
        np.concatenate([at.x[at.run == run] + now, np.linspace(now, now + decades, steps)])
    )
    labels = np.concatenate([at.run, np.full(len(grid), run)])
    to = Points(np.concatenate([at.x, grid - now]), np.zeros(len(labels)), labels)
    curves, shapes, factor = _grown(at, theta, cov, to, draws, rng, True)
    curves, ahead = curves[:, : len(near)], curves[:, len(near) :]
    # What growth says of the abilities moves what else was estimated beside them.
    effects = fit.effects + (curves - fit.effects[:, near]) @ np.linalg.solve(cov, fit.cov[near])
    lapse = expit(effects[:, -2:-1] + effects[:, -1:] * (grid - x.max()))
    paths = _paths(fit, effects, ahead, lapse, by_family)
    mix = np.tensordot(by_slice, np.stack(list(paths.values())), 1)
    used = {k: v for k, v in paths.items() if not slices or slices.get(k, 0) > 0}
    seen = _seen(trials.select(t, np.isin(t["slice"], list(used))), run)
    return Outlook(run, grid, now, mix, used, seen, shapes, factor, unit, fit.converged)


def _aggregate(t: trials.Table, decades: float, run: str | None, draws: int, steps: int) -> Outlook:
    """The same of accuracies alone. No item tells a lapse from a lack of ability: a lapse from the prior caps the curve."""
    if len(np.unique(t["task"])) > 1:
        raise UserError(
            "these accuracies are of several tasks; forecast one at a time with --where task=NAME"
        )
    rng, c = np.random.default_rng(0), trials.curves(t)
    run = _furthest(c["run"], c["x"], run)
    now = c["x"][c["run"] == run].max()
    c = trials.select(c, c["x"] >= now - max(backtest.WINDOW, 2 * decades))
    y, error = backtest.logits(c)
    at, grid = backtest.points(c, now), np.linspace(now, now + decades, steps)
    to = Points(grid - now, np.full(steps, at.size[at.run == run][0]), np.full(steps, run))
    curves, shapes, factor = _grown(at, y, np.diag(error**2), to, draws, rng, False)
    lapse = rng.normal(*items.LAPSE, draws)[:, None] + rng.normal(*items.TREND, draws)[:, None] * (
        grid - now
    )
    mix = np.minimum(expit(curves), np.maximum(1 - expit(lapse), expit(curves[:, :1])))
    return Outlook(run, grid, now, mix, {}, _seen(t, run), shapes, factor, trials.progress(t)[1])


def _furthest(names: np.ndarray, x: np.ndarray, run: str | None) -> str:
    if run is not None and run not in names:
        raise UserError(
            f"no trial belongs to the run {run!r}; there are {', '.join(np.unique(names))}"
        )
    run = run or str(names[np.argmax(x)])
    if len(np.unique(x[names == run])) < 2:
        raise UserError(
            f"run {run} has one checkpoint, which cannot show growth; give two or more, better five"
        )
    return run


def _seen(t: trials.Table, run: str) -> list[tuple[float, float, float, float]]:
    """Checkpoint, accuracy over all tasks and trials, and its 90% interval."""
    c = trials.curves(trials.pooled(t))
    c = trials.select(c, c["run"] == run)
    known = zip(c["x"].tolist(), c["value"].tolist(), c["n"].tolist(), strict=True)
    return [(x, p, *intervals.jeffreys(p * n, n, 0.9)) for x, p, n in known]


def _paths(
    fit: items.ItemFit, effects: np.ndarray, theta: np.ndarray, lapse: np.ndarray, mix: np.ndarray
) -> dict:
    """[S, T] reliability by slice: the item effect is integrated over its population, families as they are weighted."""
    c, m, draws = fit.cells, len(fit.cells.models), len(effects)
    hard, weight = [], []
    for k, w in enumerate(mix):
        d = c.difficulty[c.family == k]
        d = np.quantile(d, (np.arange(GROUPS) + 0.5) / GROUPS) if len(d) > GROUPS else d
        d, count = np.unique(d, return_counts=True)
        hard += [effects[:, m] * v + effects[:, m + 1 + k] for v in d]
        weight += (w * count / count.sum()).tolist()
    easy, weight = -np.stack(hard, 1), np.array(weight)  # [S, G]
    nodes, mass = _GAUSS
    chance = np.average(c.chance, weights=c.count)
    # E sigmoid(θ + easy + sd e) by draw on a lattice of θ, then by interpolation: theta has many points, the lattice 80.
    lattice = np.linspace(theta.min() - 2, theta.max() + 2, 80)
    shift = np.concatenate([np.zeros((draws, 1)), effects[:, fit.columns("slice ")]], 1)
    out = {name: np.empty(theta.shape) for name in c.slices}
    for s in range(draws):
        spread = (easy[s][:, None] + fit.hyper[s, 0] * nodes).ravel()
        curve = expit(lattice[:, None] + spread) @ np.outer(weight, mass / mass.sum()).ravel()
        for k, name in enumerate(c.slices):
            out[name][s] = chance + (1 - chance - lapse[s]) * np.interp(
                theta[s] - shift[s, k], lattice, curve
            )
    return out


def dates(schedule: list[tuple[str, float]], progress: np.ndarray) -> list[str]:
    """When a schedule of (ISO date, cumulative compute) reaches each log10 progress; "" beyond its end."""
    days = np.array([np.datetime64(d, "D").astype(int) for d, _ in schedule])
    log = np.log10([c for _, c in schedule])
    if len(log) < 2 or (np.diff(log) <= 0).any() or (np.diff(days) <= 0).any():
        raise UserError("a schedule needs two or more rows of rising date and rising compute")
    inside = (progress >= log[0]) & (progress <= log[-1])
    at = np.round(np.interp(progress, log, days)).astype("datetime64[D]").astype(str)
    return [str(d) if ok else "" for d, ok in zip(at, inside, strict=True)]
