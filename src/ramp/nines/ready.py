"""From a fitted table to a decision: at which compute is r nines reached, with what probability, and was the demo honest?

Reliability is the mean success over a declared usage mix of families and slices, for items like those tried, not only
those. Production-ready at r nines with probability q at compute C: P(mix >= 1 - 10^-r and no slice below one nine less)
>= q. Dates exist only through a schedule of compute that the user gives.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from ramp.errors import UserError
from ramp.nines import backtest, exact, growth, items, trials
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
        """[S] log10 progress at which each draw first reaches r nines; inf: not within the grid."""
        ok = self.ready(r)
        return np.where(ok.any(1), self.grid[ok.argmax(1)], np.inf)

    def at(self, r: float, q: float) -> float:
        """The least log10 progress, from now on, where r nines hold with probability q; inf: nowhere in the grid."""
        holds = (self.ready(r).mean(0) >= q) & (self.grid >= self.now - 1e-9)
        return float(self.grid[holds.argmax()]) if holds.any() else float("inf")


def usage(given: dict[str, float] | None, names: list[str], what: str, tried: np.ndarray | None = None) -> np.ndarray:
    """Weights of `names`; where none are given as they were tried, or equal."""
    if not given:
        return np.full(len(names), 1 / len(names)) if tried is None else tried / tried.sum()
    unknown = [k for k in given if k not in names]
    if unknown:
        raise UserError(
            f"the usage mix names the {what} {unknown[0]!r}, which no trial has; there are {', '.join(names)}"
        )
    if min(given.values()) < 0 or abs(sum(given.values()) - 1) > 1e-6:
        raise UserError(f"the usage mix over each {what} sums to {sum(given.values()):g}; it must be parts of 1")
    return np.array([given.get(n, 0.0) for n in names])


def stacked(at: Points, y: np.ndarray, cov: np.ndarray, fresh: bool) -> tuple[np.ndarray, float]:
    """Weights of the shapes and widening, from rolling origins: each of the last checkpoints forecast from those before."""
    order = np.argsort(at.x, kind="stable")
    scores, pits = [], []
    for j in range(max(2, len(y) - 8), len(y)):
        known, one = order[:j], order[j : j + 1]
        now = at.x[known].max()
        shift = Points(at.x - now, at.size, at.run)
        fits = [growth.fit(s, shift[known], y[known], cov[np.ix_(known, known)], fresh) for s in SHAPES]
        means, variances = zip(*((m[0], v[0, 0]) for m, v in (f.predict(shift[one]) for f in fits)), strict=True)
        extra = [f.noise**2 + f.error_scale**2 * cov[one, one][0] for f in fits]
        sd = np.sqrt(np.array(variances) + extra)
        weights = growth.stack(np.array(scores).reshape(-1, len(SHAPES)))
        pits.append(float(weights @ norm.cdf((y[one] - np.array(means)) / sd)))
        scores.append(norm.logpdf(y[one], np.array(means), sd))
    weights = growth.stack(np.array(scores).reshape(-1, len(SHAPES)))
    return weights, growth.widening(np.array(pits))


def outlook(
    t: trials.Table,
    decades: float = 1.0,
    families: dict[str, float] | None = None,
    slices: dict[str, float] | None = None,
    run: str | None = None,
    fit: items.ItemFit | None = None,
    draws: int = 800,
    seed: int = 0,
    steps: int = 41,
) -> Outlook:
    """Reliability of one run (the one that got furthest, unless named) up to `decades` beyond its last checkpoint."""
    rng = np.random.default_rng(seed)
    unit = trials.progress(t)[1]
    if (t["item"] == "").all():
        if families or slices:
            raise UserError("a usage mix needs the items behind the accuracies; this table holds aggregates only")
        return _aggregate(t, decades, run, draws, rng, steps, unit)
    c = fit.cells if fit else items.cells(t)
    by_family = usage(families, c.families, "family", np.bincount(c.family))
    by_slice = usage(slices, c.slices, "slice")
    x, names = np.array([p for _, p in c.models]), np.array([r for r, _ in c.models])
    run = _furthest(names, x, run)
    now = x[names == run].max()
    fit = fit or items.fit(c, draws, seed)
    near = np.flatnonzero(x >= now - max(backtest.WINDOW, 2 * decades))  # growth is read from these
    theta, cov = fit.mean[near], fit.cov[np.ix_(near, near)] + 1e-6 * np.eye(len(near))
    at = Points(x[near] - now, np.zeros(len(near)), names[near])
    weights, factor = stacked(at, theta, cov, True)
    fits = [growth.fit(s, at, theta, cov, True) for s in SHAPES]
    grid = np.unique(np.concatenate([at.x[at.run == run] + now, np.linspace(now, now + decades, steps)]))
    labels = np.concatenate([at.run, np.full(len(grid), run)])
    where = Points(np.concatenate([at.x, grid - now]), np.zeros(len(labels)), labels)
    curves = growth.widen(growth.draw(fits, weights, where, len(fit.effects), rng), factor)
    curves, ahead = curves[:, : len(near)], curves[:, len(near) :]
    # What growth says of the abilities moves what else was estimated beside them.
    pull = np.linalg.solve(cov, fit.cov[near])
    effects = fit.effects + (curves - fit.effects[:, near]) @ pull
    level, trend = effects[:, -2], effects[:, -1]
    lapse = expit(level[:, None] + trend[:, None] * (grid - x.max()))
    paths = _paths(fit, effects, ahead, lapse, by_family)
    mix = np.tensordot(by_slice, np.stack(list(paths.values())), 1)
    used = {k: v for k, v in paths.items() if not slices or slices.get(k, 0) > 0}
    seen = _seen(trials.select(t, t["run"] == run))
    shapes = dict(zip(SHAPES, weights.tolist(), strict=True))
    return Outlook(run, grid, now, mix, used, seen, shapes, factor, unit, fit.converged)


def _furthest(names: np.ndarray, x: np.ndarray, run: str | None) -> str:
    if run is not None and run not in names:
        raise UserError(f"no trial belongs to the run {run!r}; there are {', '.join(np.unique(names))}")
    run = run or str(names[np.argmax(x)])
    if len(np.unique(x[names == run])) < 2:
        raise UserError(f"run {run} has one checkpoint, which cannot show growth; give two or more, better five")
    return run


def _seen(t: trials.Table) -> list[tuple[float, float, float, float]]:
    x = trials.progress(t)[0]
    out = []
    for v in np.unique(x[np.isfinite(x)]):
        c = trials.curves(trials.select(t, x == v) | {"task": np.full((x == v).sum(), "all")})
        out.append((float(v), float(c["value"][0]), *exact.jeffreys(c["value"][0] * c["n"][0], c["n"][0], 0.9)))
    return out


def _paths(fit: items.ItemFit, effects: np.ndarray, theta: np.ndarray, lapse: np.ndarray, mix: np.ndarray) -> dict:
    """[S, T] reliability by slice: the item effect is integrated over its population, families as they are weighted."""
    c, m, draws = fit.cells, len(fit.cells.models), len(effects)
    hard, weight = [], []
    for k, w in enumerate(mix):
        d = np.sort(c.difficulty[c.family == k])
        d = np.unique(np.quantile(d, (np.arange(GROUPS) + 0.5) / GROUPS)) if len(d) > GROUPS else d
        hard += [effects[:, m] * v + effects[:, m + 1 + k] for v in d]
        weight += [w / len(d)] * len(d)
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
            out[name][s] = chance + (1 - chance - lapse[s]) * np.interp(theta[s] - shift[s, k], lattice, curve)
    return out


def _aggregate(t, decades, run, draws, rng, steps, unit) -> Outlook:
    """The same of accuracies alone. No item tells a lapse from a lack of ability: a lapse from the prior caps the curve."""
    c = trials.curves(t | {"task": np.full(len(t["task"]), "all")} if len(np.unique(t["task"])) == 1 else t)
    if len(np.unique(c["task"])) > 1:
        raise UserError("these accuracies are of several tasks; forecast one at a time with --where task=NAME")
    c = trials.select(c, np.isfinite(c["x"]))
    run = _furthest(c["run"], c["x"], run)
    now = c["x"][c["run"] == run].max()
    c = trials.select(c, c["x"] >= now - max(backtest.WINDOW, 2 * decades))
    y, error = backtest.logits(c)
    at = backtest.points(c, now)
    weights, factor = stacked(at, y, np.diag(error**2), False)
    grid = np.linspace(now, now + decades, steps)
    mine = int(np.flatnonzero(c["run"] == run)[0])
    to = Points(grid - now, np.full(steps, at.size[mine]), np.array([run] * steps))
    curves = growth.widen(growth.draw(backtest.fits(c, now), weights, to, draws, rng), factor)
    lapse = rng.normal(*items.LAPSE, draws)[:, None] + rng.normal(*items.TREND, draws)[:, None] * (grid - now)
    mix = np.minimum(expit(curves), np.maximum(1 - expit(lapse), expit(curves[:, :1])))
    last = trials.select(c, c["run"] == run)
    seen = [
        (float(v), float(p), *exact.jeffreys(p * n, n, 0.9))
        for v, p, n in sorted(zip(last["x"], last["value"], last["n"], strict=True))
    ]
    return Outlook(run, grid, now, mix, {}, seen, dict(zip(SHAPES, weights.tolist(), strict=True)), factor, unit)


def record(path: Path, t: trials.Table, o: Outlook) -> None:
    """Append the forecast to a JSONL file: what later accuracies will show, with the error that they have now."""
    ahead = o.grid > o.now
    error = (o.seen[-1][3] - o.seen[-1][2]) / (2 * norm.ppf(0.95))
    shown = o.mix[:, ahead] + error * np.random.default_rng(0).standard_normal((len(o.mix), ahead.sum()))
    task = str(t["task"][0]) if len(np.unique(t["task"])) == 1 else "all"
    backtest.issue(path, o.run, task, o.now, o.unit, o.grid[ahead], np.clip(shown, 0, 1))


# ---- the ladder -----------------------------------------------------------------------------------------------------


def ladder(t: trials.Table, nines: float = 2) -> list[tuple[str, bool, str]]:
    """(level, reached, why) from "demo" up, by the trials of the last checkpoint; a level counts if all below it do."""
    wins, tries, slices, first = last_cells(t)
    base = slices == ("base" if (slices == "base").any() else slices[0])
    k = int(min(8, tries[base].min()))
    shown = exact.pass_at(k, wins[base], tries[base])
    demo = ("demo", shown >= 0.9, f"pass@{k} {shown:.3f} on {slices[base][0]} (at least .9)")
    rates = {s: float((wins[slices == s] / tries[slices == s]).mean()) for s in np.unique(slices)}
    low = exact.jeffreys(first.sum(), len(first), 0.8)[0]
    k4 = int(min(4, tries.min()))
    all4, drop = exact.pass_hat(k4, wins, tries), rates[slices[base][0]] - min(rates.values())
    pilot_ok = low >= 0.9 and all4 >= 0.8 and drop <= 0.1 and k4 == 4
    short = "" if k4 == 4 else f"; four tries an item are needed, there are {k4}"
    why = f"lower bound {low:.3f} (.9), pass^{k4} {all4:.3f} (.8), worst slice {drop:.3f} below base (.1){short}"
    need = exact.demonstration(1 - 10.0**-nines, int(len(first) - first.sum()))
    worst = min(rates.values())
    enough = len(first) >= need and worst >= 1 - 10.0 ** -(nines - 1)
    what = f"{len(first)} distinct items with {int(len(first) - first.sum())} failures; {need:,} are needed so"
    return [demo, ("pilot", pilot_ok, why), (f"production-{nines:g}", enough, f"{what}; worst slice {worst:.3f}")]


def last_cells(t: trials.Table) -> tuple[np.ndarray, ...]:
    """Of the last checkpoint: wins, tries and slice by (task, item, slice), and [I] the first try at each distinct item,
    over all slices the worst of them, so that a repeat never counts as evidence of its own."""
    if (t["item"] == "").any():
        raise UserError("certification needs the item of every trial; repeats of unnamed items prove nothing")
    if not np.isnan(t["step"]).any() or not np.isnan(t["compute"]).any():
        x = trials.progress(t)[0]
        t = trials.select(t, x == x.max())
    if len(np.unique(t["run"])) > 1:
        raise UserError(
            f"the last checkpoint is of several runs; choose one with --where run=NAME ({t['run'][0]}, ...)"
        )
    key = np.array([f"{a}\0{b}\0{c}" for a, b, c in zip(t["task"], t["item"], t["slice"], strict=True)])
    _, at, of = np.unique(key, return_index=True, return_inverse=True)
    item = np.unique(np.char.add(np.char.add(t["task"], "\0"), t["item"]), return_inverse=True)[1]
    first = np.ones(item.max() + 1)
    np.minimum.at(first, item[at], (t["success"][at] >= 1 - 1e-9).astype(float))
    whole = (t["success"] >= 1 - 1e-9).astype(float)
    return np.bincount(of, whole), np.bincount(of).astype(float), t["slice"][at], first


# ---- the audit of a demo --------------------------------------------------------------------------------------------


def permutation(hardness: np.ndarray, shown: np.ndarray, draws: int = 4000, seed: int = 0) -> float:
    """P-value that as many items drawn at random are as easy as those shown. hardness: [I], from other systems."""
    rng = np.random.default_rng(seed)
    observed = hardness[shown].mean()
    means = np.array([hardness[rng.permutation(len(hardness))[: len(shown)]].mean() for _ in range(draws)])
    return float((1 + (means <= observed + 1e-12).sum()) / (1 + draws))


def takes(k: int, rerun: float) -> float:
    """Takes after which a clean run of k items is likelier than not, each passing with probability `rerun`."""
    clean = rerun**k
    return float(np.log(0.5) / np.log1p(-clean)) if 0 < clean < 0.5 else (1.0 if clean > 0 else float("inf"))


def seal(names: list[str]) -> str:
    """A hash of items and seeds, to be published before a demo is run: what was not sealed can have been chosen."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def audit(t: trials.Table, run: str, shown: list[str], sealed: str | None = None) -> dict:
    """How much a demo of `run` on the items `shown` flatters it, from trials of it and of others on the same suite."""
    mine, others = t["run"] == run, t["run"] != run
    suite, of = np.unique(t["item"], return_inverse=True)
    missing = [i for i in shown if i not in suite]
    if not mine.any() or missing or not shown:
        what = f"the demo item {(missing or ['?'])[0]!r}" if mine.any() else f"the run {run!r}"
        raise UserError(f"{what} has no trials; an audit needs the demo's items among the trials of the suite")
    if len(set(shown)) >= len(suite):
        raise UserError("the demo shows the whole suite; nothing was left out that could have been picked from")

    wins, tries = np.bincount(of, t["success"] * mine), np.bincount(of, mine)
    easy = logit((np.bincount(of, t["success"] * others) + 0.5) / (np.bincount(of, others) + 1))
    place = np.flatnonzero(np.isin(suite, shown))
    out: dict = {"items": len(place), "suite": len(suite), "seal": seal(shown)}
    out["sealed"] = None if sealed is None else sealed == out["seal"]
    out["p_value"] = permutation(-easy, place) if others.any() else None
    demo = mine & np.isin(t["item"], shown)
    out["rerun"], out["suite_mean"] = float(t["success"][demo].mean()), float(t["success"][mine].mean())
    out["takes"] = takes(len(place), out["rerun"])
    k = int(min(8, tries.min()))
    if k >= 2:
        out |= {"k": k, "pass_at_k": exact.pass_at(k, wins, tries), "pass_hat_k": exact.pass_hat(k, wins, tries)}
    out["slices"] = {str(s): float(t["success"][mine & (t["slice"] == s)].mean()) for s in np.unique(t["slice"][mine])}
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
