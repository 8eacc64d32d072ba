"""Is one system better than another? Paired by item, exact for few, over many tasks.

Where two systems behave alike, a unit's difference is as likely to be positive as negative,
whatever its size: so signs are flipped (Fisher 1935). A unit is a family of items where any is
named, else an item. All sign patterns are tried of few units, random ones of some, and of many the
sum of flipped differences is normal. Systems of equal means that fail in different ways, the one in
rare whole families, are not alike: no interval knows of failures that have not happened yet.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy import ndarray
from scipy.stats import beta, norm
from scipy.stats import t as student

from ramp.errors import UserError
from ramp.nines.audit import choose_unit, find_last
from ramp.nines.cleaning import parse_number
from ramp.nines.intervals import Interval
from ramp.nines.notes import list_some
from ramp.nines.trials import Trials, group_rows, name_families

EXACT = 14  # units up to which all patterns of signs are tried
SAMPLED = 500  # units up to which they are drawn
DRAWS = 9_999
MOST_STEPS = 5_000  # of the smallest total, in the sum of whole ones
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """Difference of the mean success of two systems over the items that both tried."""

    task: str
    difference: float
    interval: Interval
    p_value: float  # two-sided, of no difference
    q_value: float  # the same, among all tasks (Benjamini & Hochberg 1995)
    detectable: float | None  # the difference found with 80% power; None: none, with so few units
    items: int
    unit: str  # what is independent: "item" or "family"
    units: int


@dataclass(frozen=True)
class Pairs:
    """Items that both systems tried, at the last checkpoint of each."""

    task: ndarray  # [I]
    family: ndarray  # [I]
    difference: ndarray  # [I] second less first, slices averaged
    rows: tuple[str, str]  # of each system, in words: checkpoint or date, and items
    drawn: int = 0  # items that one system tried more often: as many tries of each, at random


def choose_run(t: Trials, name: str) -> Trials:
    """The trials of RUN, or of its checkpoint RUN@STEP. Raises UserError where there is none."""
    own = t[t.run == name]
    run, _, place = name.rpartition("@")
    if not len(own) and run:
        at = parse_number(place, np.nan)
        is_there = (t.step == at) | (t.compute == at) | (t.date == place)
        own = t[(t.run == run) & is_there]
    if not len(own):
        there = name_checkpoints(t, run) or np.unique(t.run).tolist()
        raise UserError(f"no trial belongs to the run {name!r}; there are {list_some(there)}")
    return own


def name_checkpoints(t: Trials, run: str) -> list[str]:
    """The checkpoints of a run as RUN@STEP, or else by compute or date; [] of one or none."""
    own = t[t.run == run]
    for values in (own.step, own.compute, own.date):
        places = [v for v in np.unique(values).tolist() if v != "" and v == v]
        if len(places) > 1:
            return [f"{run}@{v if isinstance(v, str) else f'{v:.10g}'}" for v in places]
    return []


def pair_items(first: Trials, second: Trials) -> Pairs:
    """Pair two systems by task, item and slice. Raises UserError where nothing can be paired."""
    said = []
    last = []
    for t in (first, second):
        if (t.item == "").all():
            raise UserError(
                "accuracies without items cannot be compared item by item; give the log of "
                "single trials (lm_eval writes it with --log_samples), or name the column of "
                "items with --map COLUMN=item"
            )
        has_item = t.item != ""
        # A copy of a million rows is 250 MB.
        own = t if has_item.all() else t[has_item]
        rows, which = find_last(own)
        last.append(own if len(rows) == len(own) else own[rows])
        items = len(group_rows(last[-1].task, last[-1].item)[0])
        said.append(f"{items} items, {which or 'all rows'}")
    task, names, slices, family, success = (
        np.concatenate([getattr(own, key) for own in last])
        for key in ("task", "item", "slice", "family", "success")
    )
    is_second = np.arange(len(task)) >= len(last[0])
    item = group_rows(task, names)[1]
    family = name_families(item, family, task, names)[item]
    row_of_cell, cell = group_rows(item, slices)
    tries = np.stack(
        [np.bincount(cell[own], minlength=len(row_of_cell)) for own in (~is_second, is_second)]
    )
    fewest = tries.min(0)
    # Ten tries spread less than one, so that signs would not be alike: as many of each are taken.
    is_taken = _rank_at_random(cell + len(row_of_cell) * is_second, success) < fewest[cell]
    totals = [
        np.bincount(cell[own], success[own], len(row_of_cell))
        for own in (is_taken & ~is_second, is_taken & is_second)
    ]
    with np.errstate(invalid="ignore"):  # NaN where a system did not try the cell
        change = (totals[1] - totals[0]) / fewest
    paired = np.isfinite(change)
    if not paired.any():
        raise UserError(
            f"no item was tried by both {first.run[0]} and {second.run[0]}; "
            "give logs of the same suite"
        )
    cells = row_of_cell[paired]
    first_of_item, item = group_rows(item[cells])
    difference = np.bincount(item, change[paired]) / np.bincount(item)
    rows_of_items = cells[first_of_item]
    is_uneven = (tries[0] != tries[1])[paired]
    return Pairs(
        task=task[rows_of_items],
        family=family[rows_of_items],
        difference=difference,
        drawn=int((np.bincount(item, is_uneven) > 0).sum()),
        rows=(said[0], said[1]),
    )


def _rank_at_random(group, values):
    """[N] the place of each row in its group, at random, whatever the order of the file."""
    key = np.random.default_rng(0).random(len(group))
    # Rows that agree in both are alike, so the keys may be handed out in their order.
    order = np.lexsort((values, group))
    drawn = np.empty(len(group))
    drawn[order] = key
    order = np.lexsort((drawn, group))
    start = np.searchsorted(group[order], group[order])
    rank = np.empty(len(group), int)
    rank[order] = np.arange(len(group)) - start
    return rank


def compare_runs(p: Pairs, confidence: float = 0.95, unit: str = "auto") -> list[Comparison]:
    """The comparison over all items, named "all", and that of each task where there are several."""
    chosen = choose_unit(p.family, unit)
    tasks = np.unique(p.task)
    whole = _compare("all", p, np.ones(len(p.task), bool), confidence, chosen)
    if len(tasks) == 1:
        return [whole]
    each = [_compare(str(task), p, p.task == task, confidence, chosen) for task in tasks]
    q_values = control_false_discoveries(np.array([c.p_value for c in each]))
    return [whole] + [replace(c, q_value=q) for c, q in zip(each, q_values.tolist(), strict=True)]


def control_false_discoveries(p_values: ndarray) -> ndarray:
    """q-values: of the tasks whose q is at most .05, 5% are false on average.

    Benjamini & Hochberg 1995, for tasks that are independent or fail together.
    """
    order = np.argsort(p_values)
    scaled = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    q_values = np.empty(len(p_values))
    # No task has a larger q than one with a larger p.
    q_values[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return q_values


def _compare(task, p, rows, confidence, unit):
    difference = p.difference[rows]
    family = p.family[rows]
    totals = difference
    sizes = np.ones(len(difference))
    if unit == "family":
        own = np.where(family == "", np.arange(1, len(family) + 1), 0)
        of_item = group_rows(family, own)[1]
        totals = np.bincount(of_item, difference)
        sizes = np.bincount(of_item).astype(float)
    p_value = flip_signs(totals)
    return Comparison(
        task=task,
        difference=float(difference.mean()),
        interval=flip_interval(totals, sizes, confidence),
        p_value=p_value,
        q_value=p_value,
        detectable=_find_detectable(totals, sizes, confidence),
        items=len(difference),
        unit=unit,
        units=len(totals),
    )


@lru_cache(maxsize=4)
def _draw_signs(units):
    """[D, U] patterns of signs: all of them, or random ones. The first is all plus."""
    if units <= EXACT:
        patterns = np.arange(2**units)[:, None] >> np.arange(units)
        return 1.0 - 2.0 * (patterns & 1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS + 1, units))
    # The data are one of the patterns, so that p is never 0.
    signs[0] = 1
    return signs


def flip_signs(totals: ndarray) -> float:
    """Two-sided p-value that signs were as likely plus as minus; totals: [U] of the units."""
    moved = totals[totals != 0]
    if len(moved) > SAMPLED:
        return float(2 * norm.sf(abs(moved.sum()) / np.sqrt((moved**2).sum())))
    if len(moved) > EXACT and (p := _sum_whole(moved)) is not None:
        return p
    sums = np.abs(_draw_signs(len(moved)) @ moved)
    p = float((sums >= sums[0] - 1e-9 * np.abs(moved).sum()).mean())
    if len(moved) > EXACT:
        # Two standard errors of its drawing, so that p is not too low by chance.
        p = min(1.0, p + 2 * math.sqrt(p * (1 - p) / len(sums)))
    return p


def _sum_whole(moved):
    """The exact p-value of totals that are multiples of the smallest, as of single tries; or None.

    Drawn patterns cannot tell one in a million: a larger difference might have the larger p.
    """
    whole = np.abs(moved) / np.abs(moved).min()
    steps = np.rint(whole).astype(int)
    if np.abs(whole - steps).max() > 1e-6 or steps.sum() > MOST_STEPS:
        return None
    # The chance of each sum of the steps so far, from the lowest one on.
    chance = np.ones(1)
    for step in steps:
        wider = np.zeros(len(chance) + 2 * step)
        wider[: len(chance)] += chance / 2
        wider[2 * step :] += chance / 2
        chance = wider
    total = steps.sum()
    observed = abs(int(np.sign(moved) @ steps))
    return float(min(1.0, chance[np.abs(np.arange(-total, total + 1)) >= observed].sum()))


def flip_interval(totals: ndarray, sizes: ndarray, confidence: float = 0.95) -> Interval:
    """The differences that are not rejected, between -1 and 1; sizes: [U] items of the units."""
    center = totals.sum() / sizes.sum()
    if len(totals) > SAMPLED:
        # Rejected where the sum is more than z standard deviations from 0: between two roots.
        z = norm.isf((1 - confidence) / 2)
        shape = np.array([sizes @ sizes, -2 * (sizes @ totals), totals @ totals])
        square = np.array([1, -2 * center, center**2]) * sizes.sum() ** 2
        excess = square - z**2 * shape
        if excess[0] <= 0:
            # A unit so large that however far off, the sum is never z deviations from 0.
            return -1.0, 1.0
        low, high = np.sort(np.roots(excess).real)
        return max(float(low), -1.0), min(float(high), 1.0)
    signs = _draw_signs(len(totals))
    flipped = signs @ totals
    by_size = signs @ sizes

    def is_rejected(difference):
        sums = np.abs(flipped - difference * by_size)
        return (sums >= sums[0] - 1e-9).mean() <= 1 - confidence

    ends = []
    for end in (-1.0, 1.0):
        outside = end
        inside = center
        if not is_rejected(outside):
            inside = outside
        for _ in range(30):
            middle = (inside + outside) / 2
            if is_rejected(middle):
                outside = middle
            else:
                inside = middle
        ends.append(float(inside))
    return ends[0], ends[1]


def _find_detectable(totals, sizes, confidence):
    """The least difference that such units would have shown with 80% power."""
    units = len(totals)
    # So many units of one sign are the fewest that are rejected.
    fewest = int(np.ceil(np.log2(2 / (1 - confidence))))
    if units < fewest:
        return None
    off = totals - sizes * totals.sum() / sizes.sum()
    stderr = np.sqrt(off @ off * units / (units - 1)) / sizes.sum()
    if stderr > 0:
        reach = student.isf((1 - confidence) / 2, units - 1) + student.isf(1 - POWER, units - 1)
        return float(min(1.0, reach * stderr))
    # Nothing differs in its difference: the share of units that must change, all to one side.
    return float(beta.ppf(POWER, fewest, units - fewest + 1))
