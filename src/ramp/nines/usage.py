"""The declared mix of use, and how reliable a run was measured to be under it."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ramp.nines.trials import (
    Curves,
    Trials,
    accuracy_curves,
    group_rows,
    log_progress,
    pool_tasks,
)


@dataclass(frozen=True)
class Usage:
    """What a reliability is the mean over: the declared mix."""

    tasks: list[str]
    families: dict[str, float]  # parts of 1; empty of accuracies without items
    slices: dict[str, float]


@dataclass(frozen=True)
class Measured(Curves):
    """The same mean as each checkpoint of one run measured it."""

    worst: ndarray  # [K] in the worst slice of the mix

    def is_ready(self, nines: float) -> ndarray:
        """[K] whether so many nines were measured, and in every slice one nine less."""
        most, least = 1 - 10.0**-nines, 1 - 10.0 ** -(nines - 1)
        return (self.value >= most - 1e-9) & (self.worst >= least - 1e-9)


def measure(t: Trials, run: str, usage: Usage) -> Measured:
    """The reliability of the mix that each checkpoint of a run measured, in order.

    Checkpoints that lack a part of the mix are left out.
    """
    t = t[(t.run == run) & np.isin(t.task, usage.tasks)]
    if not usage.slices:
        c = accuracy_curves(pool_tasks(t))
        c = c[np.argsort(c.x)]
        return Measured(**vars(c), worst=c.value)
    x = log_progress(t)[0]
    kind = np.where(t.slice == "", "base", t.slice)
    family = np.where(t.family == "", t.task, t.family)
    part = np.array([usage.slices.get(name, 0.0) for name in kind.tolist()])
    part = part * [usage.families.get(name, 0.0) for name in family.tolist()]
    rows = (part > 0) & np.isfinite(x)
    t, x, kind, part = t[rows], x[rows], kind[rows], part[rows]
    first, cell = group_rows(x, kind, family[rows])
    count = np.bincount(cell)
    weight = part / count[cell]
    rate = np.bincount(cell, t.success) / count
    of_x, checkpoint = group_rows(x)
    # A part of the mix that was not tried leaves less than 1.
    is_whole = np.bincount(checkpoint, weight) > 1 - 1e-6
    value = np.bincount(checkpoint, weight * t.success)
    # Tries of one item are wrong together.
    of_item, item = group_rows(checkpoint, t.task, t.item)
    residual = np.bincount(item, weight * (t.success - rate[cell]))
    items_tried = np.bincount(checkpoint[of_item]).astype(float)
    squares = np.bincount(checkpoint[of_item], residual**2)
    variance = squares * items_tried / np.maximum(items_tried - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(variance > 0, value * (1 - value) / variance, items_tried)
    of_slice = kind[first]
    worst = np.ones(len(of_x))
    for name, share in usage.slices.items():
        in_slice = of_slice == name
        mean = np.bincount(
            checkpoint[first][in_slice], (part[first] * rate)[in_slice] / share, len(of_x)
        )
        worst = np.minimum(worst, mean)
    shown = Measured(
        run=t.run[of_x],
        task=np.full(len(of_x), "mix"),
        size=np.full(len(of_x), np.nan),
        x=x[of_x],
        value=np.clip(value, 0, 1),
        stderr=np.sqrt(variance),
        n=np.minimum(n, np.bincount(checkpoint)),
        worst=worst,
    )
    return shown[is_whole]
