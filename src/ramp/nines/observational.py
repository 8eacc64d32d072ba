"""What a system will do on one task from what it does on others: observational scaling.

Systems are summed up by what they are seen to do, not by what they cost (Ruan, Maddison & Hashimoto 2024,
arXiv:2405.10938). Where they take principal components and a sigmoid, this is a Gaussian process over the logits z of the
other tasks, standardised, so that what lies far from every known system is uncertain:

    logit of the task = level + w·z + g(z) + family + noise       w ~ N(0, a²)   g: radial, scale b, width c
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize
from scipy.special import expit

from ramp.errors import UserError
from ramp.nines.backtest import DRAWS, covers, crps, logits, observed_variance, pit
from ramp.nines.trials import Table, checkpoint, curves, select

# Logs of a, b, the standard deviations of family and noise, and c: prior means; each normal with standard deviation 1.
PRIOR = np.array([0.0, -0.5, -0.5, -0.5, 0.5])
LEVEL = 3.0  # standard deviation of the level, beside the mean of the known systems
LEAST = 5  # known systems


@dataclass(frozen=True)
class Systems:
    """Curves of one point a system and task, as a table: rows are systems."""

    names: list[str]
    family: np.ndarray  # [N]
    x: np.ndarray  # [N] log10 compute
    z: np.ndarray  # [N, K] logits on the other tasks
    y: np.ndarray  # [N] logit on the task, nan where it was not tried
    value: np.ndarray  # [N] the accuracy itself
    error: np.ndarray  # [N] standard error of y
    n: np.ndarray  # [N] trials that would have that error


def build_systems(
    t: Table, task: str, by: list[str] | None = None, never: Sequence[str] = ()
) -> Systems:
    """The systems that tried all the tasks in `by`: unless named, every other one that nine tenths of the systems tried,
    but those in `never`. Of several checkpoints of a system the last counts."""
    x, compute = checkpoint(t), np.isfinite(t["compute"]).all()
    last = {run: x[t["run"] == run].max() for run in np.unique(t["run"])}
    t = select(t, x >= np.array([last[run] for run in t["run"]]) - 1e-9)
    family = dict(zip(t["run"], np.where(t["family"] == "", t["run"], t["family"]), strict=True))
    c = curves(t if compute else t | {"compute": np.ones(len(t["run"]))})
    tasks, runs = np.unique(c["task"]).tolist(), np.unique(c["run"]).tolist()
    if task not in tasks:
        raise UserError(f"no trial is of the task {task!r}; there are {', '.join(tasks)}")
    table = {
        name: np.full((len(runs), len(tasks)), np.nan) for name in ("x", "y", "error", "value", "n")
    }
    place = [runs.index(r) for r in c["run"]], [tasks.index(t) for t in c["task"]]
    y, error = logits(c)
    for name, column in (c | {"y": y, "error": error}).items():
        if name in table:
            table[name][place] = column
    tried = np.isfinite(table["y"]).mean(0)
    others = (
        [t for k, t in enumerate(tasks) if t not in (task, *never) and tried[k] >= 0.9]
        if by is None
        else by
    )
    if wrong := [t for t in others if t not in tasks or t == task] or ([] if others else ["none"]):
        raise UserError(
            f"{task} is told by other tasks, not by {wrong[0]!r}; there are {', '.join(tasks)}"
        )
    z, k = table["y"][:, [tasks.index(t) for t in others]], tasks.index(task)
    whole = np.isfinite(z).all(1)
    names = [r for r, ok in zip(runs, whole, strict=True) if ok]
    x = np.nanmax(np.where(np.isfinite(table["x"]), table["x"], -np.inf), axis=1)[whole]
    mine = (table[name][whole, k] for name in ("y", "value", "error", "n"))
    return Systems(names, np.array([family.get(r, r) for r in names]), x, z[whole], *mine)


def predict(s: Systems, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[DRAWS, A] accuracies that the systems `asked` will show, from those `known`; both bool [N]."""
    known = known & np.isfinite(s.y)
    if known.sum() < LEAST:
        raise UserError(
            f"{known.sum()} systems are known on the task; {LEAST} are the least to learn from"
        )
    spread = s.z[known].std(0)
    z = (s.z - s.z[known].mean(0)) / np.where(spread > 0, spread, 1.0)
    square = ((z[:, None] - z) ** 2).sum(-1)
    same, linear = s.family[:, None] == s.family, z @ z.T
    mean, noise = s.y[known].mean(), np.diag(s.error[known] ** 2)

    def kernel(h: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        at, v = np.ix_(rows, columns), np.exp(2 * h)
        return (
            LEVEL**2 + v[0] * linear[at] + v[1] * np.exp(-square[at] / (2 * v[4])) + v[2] * same[at]
        )

    def root(h: np.ndarray) -> np.ndarray:
        jitter = (np.exp(2 * h[3]) + 1e-6) * np.eye(known.sum())
        return cholesky(kernel(h, known, known) + noise + jitter, lower=True)

    def loss(h: np.ndarray) -> float:
        chol = root(h)
        off = s.y[known] - mean
        return (
            0.5 * off @ cho_solve((chol, True), off)
            + np.log(np.diag(chol)).sum()
            + 0.5 * ((h - PRIOR) ** 2).sum()
        )

    h = minimize(loss, PRIOR, method="L-BFGS-B", bounds=[(-5, 3)] * len(PRIOR)).x
    chol, cross = root(h), kernel(h, known, asked)
    center = mean + cross.T @ cho_solve((chol, True), s.y[known] - mean)
    n = np.median(s.n[known])  # of the asked nothing is known, their number of trials neither
    fresh = 1 / (
        n * expit(center) * expit(-center) + 0.5
    )  # of the logit they show, by those trials
    variance = (
        np.diag(kernel(h, asked, asked) - cross.T @ cho_solve((chol, True), cross))
        + np.exp(2 * h[3])
        + fresh
    )
    scatter = np.random.default_rng(0).standard_normal((DRAWS, asked.sum()))
    p = expit(center + np.sqrt(np.maximum(variance, 1e-9)) * scatter)
    return observed_variance(p, n)


def predict_beyond(s: Systems, compute: float) -> dict[str, float]:
    """Systems of more than `compute` (FLOP), from those of at most that: scores of the means and of the intervals."""
    if (s.x == 0).all():
        raise UserError("these systems have no compute; --beyond needs that column")
    known = s.x <= np.log10(compute) + 1e-9
    asked = ~known & np.isfinite(s.y)
    if not asked.any():
        raise UserError(
            f"no system beyond {compute:g} FLOP tried the task; there is nothing to score"
        )
    draws, y = predict(s, known, asked), s.value[asked]
    return {
        "systems": int(asked.sum()),
        "squared_error": float(((draws.mean(0) - y) ** 2).mean()),
        "coverage": float(
            np.mean([covers(*pit(d, v), 0.9) for d, v in zip(draws.T, y, strict=True)])
        ),
        "crps": float(np.mean([crps(d, v) for d, v in zip(draws.T, y, strict=True)])),
    }
