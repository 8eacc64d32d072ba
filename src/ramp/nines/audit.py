"""What the trials prove without a forecast: levels of readiness, and how much a demo flatters.

An item that failed once tends to fail again, so repeats prove little: certification counts distinct
items, each by its first try in its worst slice.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray
from scipy.special import logit

from ramp.errors import UserError
from ramp.nines import growth, intervals
from ramp.nines.cleaning import suggest_pattern
from ramp.nines.notes import list_some
from ramp.nines.sequential import (
    Evidence,
    confidence_sequence,
    count_clean_units,
    count_evidence,
)
from ramp.nines.trials import (
    UNNAMED,
    Trials,
    checkpoint_progress,
    group_rows,
    name_families,
    rank_dates,
)
from ramp.nines.words import plural

# What a demo and a pilot take; rates are those that are shown at the confidence asked for.
DEMO_TRIES, DEMO_RATE = 8, 0.8
PILOT_TRIES, PILOT_RATE, PILOT_ALL, PILOT_DROP = 4, 0.9, 0.7, 0.1
# Share of the items that have the number of tries which is judged; the others are left out.
TRIED = 0.9


@dataclass(frozen=True)
class Level:
    """One level of readiness. It is reached only if all levels below it are."""

    name: str
    reached: bool
    reason: str


@dataclass(frozen=True)
class LastCheckpoint:
    """The trials of the last checkpoint, by (task, item, slice), and its distinct items.

    An item fails if the first try at it does, in its worst slice. The first try is the one whose
    seed is 0, or 1 where none is 0. Where seeds do not count from there nothing says which try came
    first, and the worst counts.
    """

    successes: ndarray  # [C]
    tries: ndarray  # [C]
    slices: ndarray  # [C]
    of_item: ndarray  # [C] the place of its item
    first: ndarray  # [C] whether its first try succeeded, or the worst where there is no first
    is_ordered: bool  # whether every cell with several tries has a first
    task: ndarray  # [I]
    item: ndarray  # [I]
    passed: ndarray  # [I] whether the item did
    family: ndarray  # [I] of the item; "": none
    notes: tuple[str, ...]  # what was decided about the trials, for people

    @property
    def items(self) -> int:
        """How many distinct items there are."""
        return len(self.passed)

    @property
    def failures(self) -> int:
        """How many of them failed."""
        return int((~self.passed).sum())

    def name_failing(self, most: int) -> list[str]:
        """The names of the first items that failed, with their tasks where there are several."""
        task, item = self.task[~self.passed][:most], self.item[~self.passed][:most]
        if len(np.unique(self.task)) == 1:
            return item.tolist()
        return [f"{t}/{i}" for t, i in zip(task, item, strict=True)]

    def evidence(self, unit: str) -> Evidence:
        """The items as independent units, or their families."""
        return unit_evidence(self.passed.astype(float), self.family, unit)


def choose_unit(family: ndarray, unit: str = "auto") -> str:
    """What is independent of each other, of items of these families: "item" or "family".

    auto: families where any is named. One family is one unit: were its items units until a second
    one came, a log that grows by families would pass on the first of them.
    Raises UserError for families where none is named.
    """
    is_named = bool((family != "").any())
    if unit == "family" and not is_named:
        raise UserError("no item has a family; add that column, or leave --unit out")
    if unit == "auto":
        return "family" if is_named else "item"
    return unit


def unit_evidence(values: ndarray, family: ndarray, unit: str) -> Evidence:
    """Evidence of items with these values, [I], each or by family as one independent unit.

    A family counts with the mean of its items. An item without a family is a unit of its own.
    """
    if unit == "item":
        return count_evidence(values)
    own = np.where(family == "", np.arange(1, len(family) + 1), 0)
    of_item = group_rows(family, own)[1]
    return count_evidence(np.bincount(of_item, values) / np.bincount(of_item))


def find_last(t: Trials) -> tuple[ndarray, str]:
    """The rows of the last checkpoint of a run, or of its last date, and which that is, in words.

    Raises UserError where it is of several runs.
    """
    x = checkpoint_progress(t)
    rows = np.flatnonzero(x == x.max())
    last = t[rows]
    runs = np.unique(last.run)
    if len(runs) > 1:
        hint = suggest_pattern(runs)
        raise UserError(
            f"the last checkpoint is of several runs ({list_some(runs)}); choose one with "
            f"--where run=NAME{'; ' if hint else ''}{hint}"
        )
    place = rank_dates(last)
    dates = np.unique(last.date)
    which = f"last checkpoint, {10 ** x.max():,.6g}" if len(rows) < len(t) else ""
    if place.any():
        which = (
            f"last of {len(dates)} dates, {dates[-1]}; --where date=... chooses another, and each "
            "date is a statement of its own, with its own chance of error"
        )
    return rows[place == place.max()], which


def last_checkpoint(t: Trials) -> LastCheckpoint:
    """Sum the trials of the last checkpoint. A repeat never counts as evidence of its own.

    Raises UserError where a trial has no item, or the last checkpoint is of several runs.
    """
    if (t.item == "").any():
        raise UserError(
            "certification needs the item of every trial, and these are accuracies: give the log "
            "of single trials (lm_eval writes it with --log_samples), or name the column of items "
            "with --map COLUMN=item"
        )
    rows, which = find_last(t)
    t = t[rows]
    passed = t.success >= 1 - 1e-9
    row_of_item, item = group_rows(t.task, t.item)
    row_of_cell, cell = group_rows(item, t.slice)
    tries = np.bincount(cell)
    # The file may be in any order: a first try is told by its seed alone.
    is_first = find_first(t.seed)
    has_first = np.bincount(cell, is_first) > 0
    counts = is_first | ~has_first[cell]
    failed_cell = np.bincount(cell, counts & ~passed) > 0
    of_item = item[row_of_cell]
    failed = np.bincount(of_item, failed_cell, len(row_of_item)) > 0
    is_ordered = bool((has_first | (tries == 1)).all())
    return LastCheckpoint(
        successes=np.bincount(cell, passed).astype(float),
        tries=tries.astype(float),
        slices=t.slice[row_of_cell],
        of_item=of_item,
        first=~failed_cell,
        is_ordered=is_ordered,
        task=t.task[row_of_item],
        item=t.item[row_of_item],
        passed=~failed,
        family=name_families(item, t.family, t.task, t.item),
        notes=tuple(_describe_choices(t, tries, is_ordered, which)),
    )


def find_first(seed: ndarray) -> ndarray:
    """[N] whether a try is the first by its seed: 0, or 1 where no seed is 0.

    Other seeds, such as random ones, do not say which came first, and whoever tries again what
    failed could choose the lowest.
    """
    is_zero = seed == "0"
    return is_zero if is_zero.any() else seed == "1"


def _describe_choices(t, tries, is_ordered, which):
    """Sentences on what counts for less than it seems."""
    if which:
        yield which
    partial = int(((t.success > 0) & (t.success < 1 - 1e-9)).sum())
    if partial:
        yield f"{partial} trials scored between 0 and 1; they count as failed"
    repeats = len(t) - len(tries)
    if repeats and not is_ordered:
        why = "have no seed" if t.seed[0].startswith(UNNAMED) else "have seeds not from 0 or 1 on"
        yield (
            f"{repeats} repeats {why}, so the worst try at an item counts; number the tries at an "
            "item from 0 in the column seed, or name with --where date=... a date that tried all"
        )
        if 2 * len(np.unique(t.date)) > len(t):
            yield "this looks like a live log, which ramp nines monitor is for"
    elif repeats:
        yield f"{repeats} repeats left out; the first try at an item counts, by its seed"
        same = len(t) - len(group_rows(t.task, t.item, t.slice, t.seed)[0])
        if same:
            yield (
                f"{same} of them have a seed that the item has already, from another time or log: "
                "the worst of those counts; give one log of a system at a time, and the older as "
                "--baseline"
            )
    if (t.slice != t.slice[0]).any():
        yield "an item counts by the worst of its slices"


def readiness_levels(
    t: Trials, nines: float = 2, confidence: float = 0.95, unit: str = "auto"
) -> list[Level]:
    """The levels from "demo" up, judged by the trials of the last checkpoint.

    Bounds are the gate's: of items, or of families, and they hold however often one looks.
    """
    last = last_checkpoint(t)
    successes = last.successes
    tries = last.tries
    slices = last.slices
    rates = {name: (successes / tries)[slices == name].mean() for name in np.unique(slices)}
    base = "base" if "base" in rates else slices[0]
    worst = min(rates.values())
    n = last.items
    failures = last.failures
    unit = choose_unit(last.family, unit)
    family_of_cell = last.family[last.of_item]

    def shown(values, family):
        return confidence_sequence(unit_evidence(values, family, unit), confidence)[0]

    # demo: one of several tries works.
    is_base = slices == base
    k, has = common_tries(tries[is_base], DEMO_TRIES)
    any_try = 1 - intervals.all_of_k(k, (tries - successes)[is_base][has], tries[is_base][has])
    low = shown(any_try, family_of_cell[is_base][has])
    where = f" on {base}" if len(rates) > 1 else ""
    tries_work = "the first try works" if k == 1 else f"one of {k} tries works"
    sure = f"at {confidence:.6g} confidence"
    reason = (
        f"{tries_work}{where} for {any_try.mean():.1%} of items, which shows at least {low:.1%} "
        f"{sure} (a demo takes {DEMO_RATE:.0%})"
    )
    checks = [("demo", low >= DEMO_RATE, reason)]

    # pilot: most items work every time, in every slice.
    k, has = common_tries(tries, PILOT_TRIES)
    low = shown(last.passed.astype(float), last.family)
    every = shown(intervals.all_of_k(k, successes[has], tries[has]), family_of_cell[has])
    drop = rates[base] - worst
    every_try = "that try" if k == 1 else f"each of {k} tries"
    reached = low >= PILOT_RATE and every >= PILOT_ALL and drop <= PILOT_DROP
    reason = (
        f"{sure} the first try works for at least {low:.1%} of items (a pilot takes "
        f"{PILOT_RATE:.0%}), {every_try} for at least {every:.1%} ({PILOT_ALL:.0%})"
    )
    if len(rates) > 1:
        reason += f", the worst slice is {drop:.1%} below {base} (at most {PILOT_DROP:.0%})"
    if k < PILOT_TRIES:
        reached = False
        reason += f"; four tries an item are needed, there are {k}"
    if not has.all():
        few = int((~has).sum())
        reason += f"; {few} {plural('item', few)} of fewer tries left out of that"
    checks.append(("pilot", reached, reason))

    # production: demonstrated, with no slice more than one nine worse.
    more = count_clean_units(last.evidence(unit), 1 - 10.0**-nines, confidence)
    reason = (
        f"{n} distinct items with {failures} failures; {more:,} more {plural(unit, more)} without "
        "a failure would prove it"
    )
    if len(rates) > 1:
        reason += f"; the worst slice passes {worst:.3f}"
    reached = more == 0 and worst >= 1 - 10.0 ** -(nines - 1)
    checks.append((f"production-{nines:g}", reached, reason))

    checks.append(("sustained", *_is_sustained(t, confidence, unit)))
    levels = []
    missing = ""  # the first level that is not reached: none above it is
    for name, reached, reason in checks:
        if missing and reached:
            reason += f"; but {missing} is not reached"
        missing = missing or ("" if reached else name)
        levels.append(Level(name, not missing, reason))
    return levels


def common_tries(tries: ndarray, most: float) -> tuple[int, ndarray]:
    """How many tries nine tenths of the items have, at most `most`, and which items have them.

    A single item that was tried less often must not decide for all.
    """
    k = min(most, np.quantile(tries, 1 - TRIED, method="lower"))
    return int(k), tries >= k


def _is_sustained(t, confidence, unit):
    """Whether failures thin out over the checkpoints, taken as rounds of repair; and why.

    A round is one try an item, its failures spread evenly over it.
    """
    if unit == "family":
        return False, "not judged: items of a family fail together, which looks like a change"
    # One of the two is the same everywhere.
    x = checkpoint_progress(t) + rank_dates(t)
    is_run = t.run == t.run[x.argmax()]
    failures = []
    tried = 0
    for checkpoint in np.unique(x[is_run]):
        last = last_checkpoint(t[is_run & (x == checkpoint)])
        # In the middle of equal parts of the round.
        places = (np.arange(last.failures) + 0.5) / max(last.failures, 1)
        failures += (tried + last.items * places).tolist()
        tried += last.items
    try:
        r = growth.fit_repair(np.array(failures), tried, confidence)
    except UserError as error:
        return False, str(error)
    low, high = r.interval
    return high < 1, (
        "failures become rarer from checkpoint to checkpoint where the exponent of their growth "
        f"(Crow-AMSAA) is below 1: {r.exponent:.2f} [{low:.2f} .. {high:.2f}]; in as many trials "
        f"again {r.next_failures:.3g} failures"
    )


# The audit of a demo


@dataclass(frozen=True)
class DemoAudit:
    """How much a choice of items flatters a system."""

    items: int  # of the demo
    suite: int
    item_hash: str  # of the demo's items
    hash_matches: bool | None  # the one published before; None: none was
    p_value: float | None  # that a random choice is as easy; None: no other system tried the suite
    pass_rate: float  # of the demo's items over all trials
    suite_pass_rate: float
    attempts_until_clean: float  # see `attempts_until_clean`
    k: int | None  # tries of the two chances below; None: too few to tell
    pass_at_k: float | None
    pass_hat_k: float | None
    slices: dict[str, float]  # pass rate by slice


def permutation_p_value(
    difficulty: ndarray, chosen: ndarray, draws: int = 4000, seed: int = 0
) -> float:
    """The chance that as many items drawn at random are as easy as those chosen.

    difficulty: [I], from other systems; chosen: places of the demo's items.
    """
    rng = np.random.default_rng(seed)
    k = len(chosen)
    samples = np.array([rng.permutation(difficulty)[:k].mean() for _ in range(draws)])
    easy = (samples <= difficulty[chosen].mean() + 1e-12).sum()
    # The demo itself counts as one of the draws, so that p is never 0.
    return (1 + easy) / (1 + draws)


def attempts_until_clean(items: int, pass_rate: float) -> float:
    """Attempts at a demo until one without a failure is likelier than not; inf: never.

    Each of `items` passes independently with probability `pass_rate`.
    """
    clean = pass_rate**items
    if clean == 0:
        return np.inf
    return 1.0 if clean >= 0.5 else np.log(0.5) / np.log1p(-clean)


def hash_items(names: list[str]) -> str:
    """SHA-256 of the item names.

    Published before a demo, it proves that the items were not chosen afterwards.
    """
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def audit_demo(
    t: Trials, run: str, chosen: list[str], published_hash: str | None = None
) -> DemoAudit:
    """Audit a demo of `run` on the items `chosen`, by trials of it and of others on the same suite.

    Raises UserError where the run or an item of the demo has no trials, or the demo is the whole
    suite.
    """
    if len(group_rows(t.task, t.item)[0]) > len(np.unique(t.item)):
        # Items of two tasks that have one name stay two items.
        t = replace(t, item=np.char.add(np.char.add(t.task, "/"), t.item))
    is_run = t.run == run
    suite, item = np.unique(t.item, return_inverse=True)
    if not is_run.any():
        raise UserError(f"the run {run!r} has no trials; there are {list_some(np.unique(t.run))}")
    own = t[is_run]
    tried = np.unique(own.item)
    missing = [name for name in chosen if name not in tried]
    if missing or not chosen:
        raise UserError(
            f"{run} has no trial of the demo item {(missing or ['?'])[0]!r}; an audit needs the "
            f"demo's items among its trials of the suite, such as {tried[0]}"
        )
    if len(set(chosen)) >= len(suite):
        raise UserError(
            "the demo shows the whole suite; nothing was left out that could have been picked from"
        )
    successes = np.bincount(item, t.success * is_run)
    tries = np.bincount(item, is_run)
    other_successes = np.bincount(item, t.success) - successes
    other_tries = np.bincount(item) - tries
    difficulty = -logit((other_successes + 0.5) / (other_tries + 1))
    places = np.flatnonzero(np.isin(suite, chosen))
    pass_rate = own.success[np.isin(own.item, chosen)].mean()
    suite_pass_rate = own.success.mean()
    k = int(min(8, tries.min()))
    at_k = hat_k = None
    if k >= 2:
        at_k = intervals.pass_at_k(k, successes, tries)
        hat_k = intervals.pass_hat_k(k, successes, tries)
    else:
        # Nothing was tried twice: the correlation of tries is borrowed from other systems.
        correlation = _borrow_correlation(t, run)
        k = None
        if correlation is not None:
            k = 8
            hat_k = intervals.beta_binomial_pass_hat_k(k, suite_pass_rate, correlation)
    item_hash = hash_items(chosen)
    return DemoAudit(
        items=len(places),
        suite=len(suite),
        item_hash=item_hash,
        hash_matches=None if published_hash is None else published_hash == item_hash,
        p_value=None if is_run.all() else permutation_p_value(difficulty, places),
        pass_rate=pass_rate,
        suite_pass_rate=suite_pass_rate,
        attempts_until_clean=attempts_until_clean(len(places), pass_rate),
        k=k,
        pass_at_k=at_k,
        pass_hat_k=hat_k,
        slices={str(s): own.success[own.slice == s].mean() for s in np.unique(own.slice)},
    )


def _borrow_correlation(t, run):
    """The correlation of tries to expect of a run that tried no item twice; None: too few did."""
    first, group = group_rows(t.run, t.task)
    runs = t.run[first]
    tasks = t.task[first]
    rate = np.bincount(group, t.success) / np.bincount(group)
    correlation = np.empty(len(first))
    for g in range(len(first)):
        of_group = t[group == g]
        item = np.unique(of_group.item, return_inverse=True)[1]
        successes = np.bincount(item, of_group.success)
        correlation[g] = intervals.intraclass_correlation(successes, np.bincount(item))
    known = np.isfinite(correlation) & (runs != run)
    if known.sum() < 3:
        return None
    others = rate[known], correlation[known], tasks[known]
    own = np.flatnonzero(runs == run)
    return np.mean([intervals.predict_correlation(*others, rate[g], tasks[g]) for g in own])
