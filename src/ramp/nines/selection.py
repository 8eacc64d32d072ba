"""Which rows of a table are evidence: chosen by the user, of one measurement, whole and no copies.

Every step takes a table and returns one, and notes what it left out.
"""

from collections import Counter

import numpy as np
from numpy import ndarray

from ramp.errors import UserError
from ramp.nines.cleaning import (
    ALIASES,
    CHOICES,
    GUESSES,
    list_names,
    parse_date,
    parse_success,
    to_text,
)
from ramp.nines.columns import (
    Column,
    Table,
    constant,
    count_rows,
    group_codes,
    keep_rows,
    with_column,
)
from ramp.nines.notes import Note, Reading, list_some


def filter_rows(table: Table, reading: Reading, is_renamed: bool) -> Table:
    """Keep the rows whose columns hold one of the texts of --where.

    is_renamed: the names are ramp's. Those of the file are asked first, which have to be gone then.
    """
    for alias, values in reading.where.items():
        key = alias if alias in table else ALIASES.get(alias, alias)
        if key not in table:
            is_file_name = alias in reading.rename or any(alias in g for g in GUESSES.values())
            if not is_renamed or is_file_name:
                continue
            raise UserError(
                f"there is no column {key!r} to select by; there are {list_names(table)}"
            )
        column = table[key]
        whole = set(map(to_text, column.values))
        # "a,b" and two times --where mean the same: one of them, unless a cell is "a,b".
        wanted = {w for value in values for w in ([value] if value in whole else value.split(","))}
        is_kept = np.array([to_text(value) in wanted for value in column.values], bool)
        if key == "date" and not is_kept.any():
            # Dates are printed as ISO text, whatever the file has.
            is_kept = np.array([v is not None and parse_date(v) in wanted for v in column.values])
        if not is_kept[column.codes].any():
            raise UserError(
                f"there is no row with {key} = {' or '.join(sorted(wanted))}; "
                f"there are {list_some(column.used())}"
            )
        table = keep_rows(table, is_kept[column.codes])
    return table


def choose_measurement(table: Table, reading: Reading, notes: list[Note]) -> Table:
    """Keep one scorer, one metric and one filter of every task; the user names which.

    Raises UserError that lists them where the choice is open: they are several measurements of the
    same trials, and no evidence independent of each other.
    """
    is_open: dict[str, dict[str, set[str]]] = {}
    for key in CHOICES:
        if key in table and table[key].used():
            earlier = [k for k, choices in is_open.items() if choices]
            table, is_open[key] = _choose(table, key, getattr(reading, key), earlier, notes)
        elif getattr(reading, key):
            raise UserError(f"the log has no {key}s; leave out --{key}")
    # All at once: whoever names a metric should not then learn that there are filters too.
    listed = [
        f"{task} has the {key}s {list_some(sorted(names))}"
        for key, choices in is_open.items()
        for task, names in list(choices.items())[:6]
    ]
    if listed:
        flags = " and ".join(f"--{key} NAME" for key, choices in is_open.items() if choices)
        raise UserError(
            f"there are several measurements of one trial: {'; '.join(listed)}; name one with "
            f"{flags}"
        )
    return table


def _choose(table, key, named, earlier, notes):
    """The table with the rows of one measurement, and what is open: names by task.

    Rows of an open choice stay. earlier: keys whose choice is open; each of theirs has its own.
    """
    column = table[key]
    tasks = table.get("task") or constant("task", count_rows(table))
    # A trial that broke has no measurement to choose.
    keep = ~column.present()
    if key == "metric":
        keep |= _is_no_share(table, named, notes)
        keep_as_is = ~column.present()
    else:
        keep_as_is = keep
    known = set(column.used())
    # A name that no log has is a slip, and would keep nothing.
    if wrong := set(named) - known:
        raise UserError(f"there is no {key} {min(wrong)!r}; there are {list_some(sorted(known))}")
    is_open: dict[str, set[str]] = {}
    result = keep_as_is.copy()
    # Every task has measurements of its own, and leaves a choice of its own.
    group = group_codes([tasks, *(table[k] for k in earlier)], count_rows(table))
    for g in np.unique(group):
        rows = (group == g) & ~keep
        task = tasks.values[tasks.codes[int(np.argmax(group == g))]]
        there = column[rows].used()
        # What has one measurement leaves no choice, whatever was named for other tasks.
        chosen = [name for name in there if name in named] if len(there) > 1 else there
        if len(chosen) > 1 or (there and not chosen):
            is_open.setdefault(task, set()).update(there)
            result |= rows
            continue
        # "none" is the name of what was not filtered.
        if chosen and named and chosen[0] not in (*named, "none"):
            notes.append(Note("choice", f"{task} has no {key} but {chosen[0]}, which is taken"))
        taken = rows & np.array([v in chosen for v in column.values], bool)[column.codes]
        left = int(rows.sum() - taken.sum())
        if left:
            others = list_some(name for name in there if name not in chosen)
            text = f"{task}: the {key} {chosen[0]}, and not {others}, of the same trials"
            notes.append(Note("choice", text, left))
        result |= taken
    return keep_rows(table, result), is_open


def _is_no_share(table, named, notes):
    """Rows of metrics that are no share of success, such as a perplexity, and that nobody named."""
    column = table["metric"]
    success = table.get("success") or constant(None, len(column.codes))
    numbers = [parse_success(value, 0.0) for value in success.values]
    is_share = np.array([n is not None and 0 <= n <= 1 for n in numbers], bool)
    odd = np.unique(column.codes[~is_share[success.codes]])
    names = [column.values[k] for k in odd]
    names = [name for name in names if name is not None and name not in named]
    # Where it is the only one, its values are refused later, with a sentence of their own.
    if not names or len(names) == len(column.used()):
        return np.zeros(len(column.codes), bool)
    rows = np.array([v in names for v in column.values], bool)[column.codes]
    text = f"metrics that are no share between 0 and 1: {list_some(names)}"
    notes.append(Note("dropped", text, int(rows.sum())))
    return rows


def settle_errors(table: Table, reading: Reading, notes: list[Note]) -> Table:
    """Count trials that infrastructure broke as failures, or leave them out and say how many.

    A trial without an outcome and without an error is one only where the user says what becomes
    of them; else it is refused later.
    """
    success = table.get("success")
    if success and reading.errors != "report" and not success.present().all():
        column = table.get("error") or constant(None, count_rows(table))
        values = [*column.values, "no outcome"]
        is_missing = ~success.present() & ~column.present()
        codes = np.where(is_missing, len(column.values), column.codes)
        table = with_column(table, "error", Column(values, codes))
    if "error" not in table:
        return table
    column = table["error"]
    broke = column.present()
    if not broke.any():
        return table
    total = int(broke.sum())
    named = _name_errors(column, broke)
    if reading.errors == "fail":
        success = table.get("success") or constant(None, len(broke))
        codes = np.where(broke, len(success.values), success.codes)
        notes.append(Note("error", f"broken trials count as failures: {named}", total))
        return with_column(table, "success", Column([*success.values, 0.0], codes))
    if reading.errors == "report":
        notes += _describe_errors(table, broke)
    else:
        notes.append(Note("error", f"broken trials are left out: {named}", total))
    if broke.all():
        raise UserError(
            f"every trial broke ({named}), and none has an outcome; "
            "--errors fail counts them as failures"
        )
    return keep_rows(table, ~broke)


def _name_errors(column, rows):
    """The three kinds that came most often: they say where to look."""
    kinds = Counter(str(column.values[k])[:60] for k in column.codes[rows])
    return ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common(3))


def _describe_errors(table, broke):
    rows = len(broke)
    # By run and task, since errors that pile up in one of them bias what is left.
    columns = [table.get(key) or constant(key, rows) for key in ("run", "task")]
    group = group_codes(columns, rows)
    for g in np.unique(group[broke]):
        mine = group == g
        first = int(np.argmax(mine))
        run, task = (column.values[column.codes[first]] for column in columns)
        named = _name_errors(table["error"], mine & broke)
        yield Note(
            "error",
            f"{run}, {task}: {int((mine & broke).sum())} of {int(mine.sum())} trials broke and are "
            f"left out of every rate ({named}); --errors fail counts them as failures",
            int((mine & broke).sum()),
        )


# --- repeats


def drop_copies(table: Table, notes: list[Note]) -> Table:
    """Leave out what is a copy: rows that agree in everything, where that is no further try.

    Rows that name a try (a seed) and agree in everything are one. Without seeds, a table of which
    every row is there equally often is taken as that many copies of one.
    """
    rows = count_rows(table)
    # Not the file: a log may be given twice, or lie in two folders.
    group = group_codes([column for key, column in table.items() if key != "path"], rows)
    copies = np.bincount(group)
    if "item" not in table and ("path" not in table or len(np.unique(table["path"].codes)) == 1):
        return table  # accuracies, of which two of one place are refused later
    earlier = count_earlier(group)
    is_named = "seed" in table or "item" not in table
    allowed = np.ones_like(copies) if is_named else copies // np.gcd.reduce(copies)
    is_copy = earlier >= allowed[group]
    if not is_copy.any():
        return table
    # Said even where it is certain: whoever copied them should know.
    reason = "rows that agree in everything are copies, no further tries"
    if not is_named:
        reason += "; give tries a column seed if they are"
    notes.append(Note("dropped", reason, int(is_copy.sum())))
    return keep_rows(table, ~is_copy)


def count_earlier(group: ndarray) -> ndarray:
    """[N] how many earlier rows are of the same group."""
    order = np.argsort(group, kind="stable")
    in_order = group[order]
    count = np.empty(len(group), int)
    count[order] = np.arange(len(group)) - np.searchsorted(in_order, in_order)
    return count
