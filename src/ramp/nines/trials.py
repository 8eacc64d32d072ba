"""The table of trials, and what makes one from the logs that evaluations leave behind.

A row is one trial: which run, at which step, tried which item of which task, under which slice
(base, paraphrase, fault, ...) and seed, and whether it succeeded. A row without an item is an
aggregate: an accuracy with its standard error. Columns are NumPy arrays of one length, so every
method of this package works on anyone's numbers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy import ndarray

from ramp.errors import UserError
from ramp.nines import cleaning, columns, formats, selection
from ramp.nines.cleaning import ALIASES, DEFAULTS, KEY
from ramp.nines.columns import Table
from ramp.nines.notes import AS_IS, Note, Reading, list_some

# Independent trials that an accuracy rests on where no standard error in the table says so.
DEFAULT_TRIALS = 100.0
# Share of the tries of the largest date that the last one has where it is a checkpoint.
WHOLE = 0.9
UNNAMED = "#"  # before the seed of a try that has none in the file: its number says no order


@dataclass(frozen=True)
class Columns:
    """Arrays of one length, one a field. Indexing with a mask or row numbers keeps those rows."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows: ndarray | slice) -> Self:
        # What is no array, such as the notes, is of the whole table.
        columns = {key: value for key, value in vars(self).items() if isinstance(value, ndarray)}
        return replace(self, **{key: value[rows] for key, value in columns.items()})


@dataclass(frozen=True)
class Trials(Columns):
    """One row a trial or, where `item` is "", one row an accuracy."""

    run: ndarray
    date: ndarray  # ISO, of UTC where there is a time: text that sorts by time
    task: ndarray
    family: ndarray
    item: ndarray
    slice: ndarray
    seed: ndarray
    step: ndarray
    compute: ndarray  # FLOP spent by then
    size: ndarray  # parameters; without such a column, read from names like "pythia-1.4b"
    success: ndarray  # 0 or 1, or a fraction; of an aggregate the accuracy
    difficulty: ndarray  # any covariate of the item: log2 of human minutes, digits, ...
    chance: ndarray  # success rate of guessing
    stderr: ndarray  # of an aggregate
    cost: ndarray  # dollars of the trial
    seconds: ndarray  # that the trial took
    notes: tuple[Note, ...] = ()  # of what reading did, with every row that is left of it


@dataclass(frozen=True)
class Curves(Columns):
    """Accuracy by run, task and checkpoint, one row each."""

    run: ndarray
    task: ndarray
    size: ndarray
    x: ndarray  # log10 of compute or steps
    value: ndarray  # accuracy
    stderr: ndarray
    n: ndarray  # independent trials that would have the same standard error


def read(paths: Path | str | Sequence[Path], reading: Reading = AS_IS) -> Trials:
    """Read tables of trials and logs of evaluation tools, and folders of them, as one table.

    CSV, Parquet or JSONL with the columns of `Trials`, or any log of `formats.FORMATS`.
    Raises UserError for what is none of these, and where a log leaves a choice to the user.
    """
    paths = [Path(paths)] if isinstance(paths, Path | str) else list(paths)
    notes: list[Note] = []
    tables = formats.read_files(paths, reading, notes)
    name = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files ({paths[0]}, ...)"
    try:
        return from_table(columns.concatenate(tables), reading, notes)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def from_rows(rows: Iterable[Mapping[str, Any]], reading: Reading = AS_IS) -> Trials:
    """A table of rows of named values. Raises UserError for what cannot be one."""
    return from_table(columns.from_rows(rows), reading)


def from_table(table: Table, reading: Reading = AS_IS, notes: Sequence[Note] = ()) -> Trials:
    """Clean a table of anybody's columns, check it, and say what was done to it.

    Raises UserError for what cannot be a table of trials.
    """
    said = list(notes)
    if not columns.count_rows(table):
        raise UserError("there are no rows of named columns")
    # A column that is not there yet is selected by when it is.
    late = {k for k in reading.where if ALIASES.get(k, k) in cleaning.list_found(reading)}
    early = replace(reading, where={k: v for k, v in reading.where.items() if k not in late})
    table = selection.filter_rows(table, early, is_renamed=False)
    table = cleaning.rename_columns(table, reading, said)
    table = cleaning.melt_wide(table, reading, said)
    table = selection.filter_rows(table, early, is_renamed=True)
    table = cleaning.find_progress(table, reading, said)
    then = replace(reading, where={k: reading.where[k] for k in late})
    table = selection.filter_rows(table, then, is_renamed=True)
    table = selection.choose_measurement(table, reading, said)
    table = selection.drop_copies(table, said)
    table = cleaning.check_unknown(table, said)
    table = selection.settle_errors(table, reading, said)
    said += _describe_defaults(table)
    t = _to_trials(table, reading)
    _check_numbers(t, table, reading)
    t = _drop_overlap(t, said)
    if np.isnan(t.size).all():
        names, run = np.unique(t.run, return_inverse=True)
        t = replace(t, size=np.array([parse_size(name) for name in names])[run])
        if np.isfinite(t.size).any():
            said.append(Note("guess", "sizes are read from the names of runs"))
    if (t.family != "").any():
        # By run, since systems may have families. Else items of one name are taken as tries of one.
        name_families(_group(t, ("run", "task", "item")), t.family, t.task, t.item)
    if (t.seed == "").all():
        # Repeats without a name are numbered, where there are items to repeat.
        earlier = selection.count_earlier(_group(t, KEY[:-1]))
        number = np.char.add(UNNAMED, earlier.astype(str))
        t = replace(t, seed=np.where(t.item == "", "", number))
        if earlier.any():
            text = "rows of one item without seeds are taken as tries of it"
            said.append(Note("guess", text, int((earlier > 0).sum())))
    _check_distinct(t)
    rows: dict[tuple[str, str], int] = {}
    for note in said:
        rows[note.kind, note.text] = rows.get((note.kind, note.text), 0) + note.rows
    return replace(t, notes=tuple(Note(kind, text, n) for (kind, text), n in rows.items()))


def _to_trials(table, reading):
    scale = 0.01 if reading.percent else 1.0
    arrays: dict[str, Any] = {}
    for key, default in DEFAULTS.items():
        if isinstance(default, str):
            arrays[key] = cleaning.to_text_array(table, key)
        else:
            by = scale if key in ("success", "stderr") else 1.0
            arrays[key] = cleaning.to_number_array(table, key, by)
    return Trials(**arrays)


def _describe_defaults(table):
    """Notes on the columns that are not there and change what the numbers mean."""
    for key in ("run", "task"):
        if key not in table:
            yield Note("default", f"there is no column {key}: all rows are of one {key}")
    if "item" not in table:
        yield Note("default", "there is no column item: every row is an accuracy, not a trial")
        known = table["stderr"].present().all() if "stderr" in table else False
        if not known:
            yield Note(
                "default",
                "accuracies without a standard error count like the others, and as "
                f"{DEFAULT_TRIALS:g} independent trials where none has one",
            )


def _check_numbers(t, table, reading):
    wrong = ~((t.success >= 0) & (t.success <= 1))  # NaN is wrong too
    if wrong.any():
        row = int(np.argmax(wrong))
        success = t.success[row]
        remedy = "every trial needs a success between 0 and 1"
        if np.isnan(success):
            remedy += "; --errors drop leaves such rows out, --errors fail counts them as failures"
        # Up to 10 may be a scale of ten as well.
        elif 10 < np.nanmax(t.success) <= 100 and not reading.percent:
            remedy += "; --percent divides by 100"
        where = cleaning.name_row(table, row)
        raise UserError(f"success is {success:g} in row {where}, and {remedy}")
    if reading.percent and (t.success <= 0.01).all():
        raise UserError("no success is above 1, so these are no percents: leave out --percent")
    for key in ("difficulty", "chance", "step", "compute", "cost", "seconds"):
        values = getattr(t, key)
        may_be_missing = np.isnan(DEFAULTS[key])
        if np.isinf(values).any() or (np.isnan(values).any() and not may_be_missing):
            raise UserError(f"there is a {key} that is not a finite number")
    for key in ("step", "compute", "stderr", "cost", "seconds"):
        if (getattr(t, key) < 0).any():
            raise UserError(f"there is a {key} below 0, which none can be")
    if (t.chance < 0).any() or (t.chance >= 1).any():
        raise UserError("there is a chance level outside [0, 1)")


def _drop_overlap(t, notes):
    """Leave out accuracies of what is there trial by trial as well.

    An accuracy is alone, and says what the trials say. Raises UserError for other rows without an
    item, which may be trials.
    """
    is_trial = t.item != ""
    if is_trial.all() or not is_trial.any():
        return t
    where = ("run", "task", "step", "compute")
    is_double = np.zeros(len(t), bool)
    wrong = np.zeros(len(t), bool)
    # Of its own evaluation, where several are told apart by their dates.
    for keys in ((*where, "date"), where):
        group = _group(t, keys)
        mine = ~is_trial & ~is_double & np.isin(group, group[is_trial])
        is_double |= mine
        wrong |= mine & ~_is_accuracy(t, group, is_trial, mine)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{int(wrong.sum())} rows have no item among trials of {t.run[row]} on "
            f"{t.task[row]}, and are no accuracy of those; give them an item, or leave them out"
        )
    if is_double.any():
        text = "accuracies of trials that are there themselves"
        notes.append(Note("dropped", text, int(is_double.sum())))
    return t[~is_double]


def _is_accuracy(t, group, is_trial, rows):
    """[N] whether a row is alone in its group and says what its trials say, or has an error bar."""
    groups = group.max() + 1
    count = np.bincount(group[is_trial], minlength=groups)
    mean = np.bincount(group[is_trial], t.success[is_trial], groups) / np.maximum(count, 1)
    # To the third digit, as tools round; a table that weighs slices says its standard error.
    agrees = (np.abs(t.success - mean[group]) < 5e-3) | np.isfinite(t.stderr)
    return agrees & (np.bincount(group[rows], minlength=groups) == 1)[group]


def _group(t, keys):
    return group_rows(*(getattr(t, key) for key in keys))[1]


def _check_distinct(t):
    earlier = selection.count_earlier(_group(t, KEY))
    if not earlier.any():
        return
    row = int(np.argmax(earlier > 0))
    if (t.item == "").all():
        known = ", ".join(cleaning.GUESSES["item"])
        raise UserError(
            f"several rows are of {t.run[row]} on {t.task[row]}, and there is no column of items "
            f"that tells them apart; name it with --map COLUMN=item (known are item, {known}), or "
            "give accuracies of different systems different names in the column run"
        )
    values = {key: str(getattr(t, key)[row]) for key in KEY}
    trial = ", ".join(f"{k} {v}" for k, v in values.items() if v not in ("", "nan"))
    raise UserError(
        f"the same trial is there twice, in rows that differ ({trial}); "
        "give repeats a column seed, leave one of them out, or take files as runs of their own "
        "with --ignore run --map path=run"
    )


def group_rows(*columns: ndarray) -> tuple[ndarray, ndarray]:
    """Group rows that agree in every column; groups are in the columns' order.

    Returns [G] the first row of each group and [N] the group of each row.
    """
    group = np.zeros(len(columns[0]), int)
    for column in columns:
        # A column with one value, such as one that is missing, tells nothing apart.
        if len(column) and (column == column[0]).all():
            continue
        values, index = _number_values(column)
        code = group * len(values) + index
        group = np.unique(code, return_inverse=True)[1]
    return np.unique(group, return_index=True)[1], group


def name_families(group: ndarray, family: ndarray, task: ndarray, item: ndarray) -> ndarray:
    """[G] the family of each group of rows of one item, which some of its rows may leave out.

    Raises UserError for an item of several families: they are several items with one name.
    """
    families = np.full(group.max() + 1, "", family.dtype)
    named = np.flatnonzero((family != "") & (item != ""))
    if not len(named):
        return families
    rows = named[group_rows(group[named], family[named])[0]]
    count = np.bincount(group[rows])
    if count.max() > 1:
        own = rows[group[rows] == count.argmax()]
        first = own[0]
        raise UserError(
            f"the item {str(item[first])!r} of {task[first]} is of several families "
            f"({list_some(family[own], 3)}); give items of each family names of their own, such "
            f"as {family[first]}/{item[first]}; where families are of systems, say --ignore family"
        )
    families[group[rows]] = family[rows]
    return families


def _number_values(column):
    """The distinct values in order, and [N] the place of each row's."""
    if column.dtype.kind != "U":
        return np.unique(column, return_inverse=True)
    # Texts by their hash, since sorting a million of them takes seconds.
    array = pa.array(column)
    # A column of many bytes comes in several pieces.
    pieces = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    encoded = pa.concat_arrays(pieces).dictionary_encode()
    values, place = np.unique(encoded.dictionary.to_numpy(False), return_inverse=True)
    return values, place[encoded.indices.to_numpy()]


def parse_size(run: str) -> float:
    """Parameters by the name of a run: "pythia-1.4b" is 1.4e9; NaN where the name has no size.

    No "k" is read: "gpt-4-32k" tells the length of a context. Nor is an "m" beside a "b".
    """
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z])", run.lower())
    if not sizes:
        return np.nan
    number, unit = min(sizes, key=lambda size: size[1])
    return float(number) * {"m": 1e6, "b": 1e9}[unit]


def log_progress(t: Trials) -> tuple[ndarray, str]:
    """log10 of compute where every row has it, else of the step; and the name of the one taken.

    Raises UserError where some row has neither.
    """
    for unit, values in (("compute", t.compute), ("step", t.step)):
        if (values >= 0).all():  # False where one is NaN
            with np.errstate(divide="ignore"):
                return np.log10(values), unit
    hint = cleaning.suggest_pattern(t.run) or (
        r"--step-from 'ckpt-(\d+)' reads it from a name or a path, --releases from a table"
    )
    raise UserError(
        "the trials need a compute or a step in every row, or there is nothing to extrapolate "
        f"over; {hint}"
    )


def checkpoint_progress(t: Trials) -> ndarray:
    """[N] `log_progress` of each row; 0 in a table of finished systems without checkpoints.

    Raises UserError where a run has it in some rows only, which would make all one checkpoint.
    """
    missing = np.isnan(t.step) & np.isnan(t.compute)
    for run in np.unique(t.run[missing]):
        own = missing[t.run == run]
        if not own.all():
            raise UserError(
                f"{int(own.sum())} of {len(own)} rows of {run} have no step or compute, and which "
                "checkpoint they are of is unknown; fill the column, or leave them out with --where"
            )
    if np.isnan(t.step).any() and np.isnan(t.compute).any():
        return np.zeros(len(t))
    return log_progress(t)[0]


def rank_dates(t: Trials) -> ndarray:
    """[N] the place of each row's date where dates are the checkpoints of a run, else 0.

    They are where there is no progress, and a date tries most of the suite (items and seeds) again.
    The last date has to: it is the one that is judged, and may have tried again what failed alone.
    """
    dates, place = np.unique(t.date, return_inverse=True)
    # The times of a live log differ from row to row, and tries may be spread over days.
    tries = len(group_rows(t.task, t.item, t.slice, t.seed)[0])
    is_repeated = len(t) > tries and 2 * len(t) > len(dates) * tries
    counts = np.bincount(place)
    # Beside the largest date, since items come and go with the months.
    is_whole = len(t) and counts[-1] >= WHOLE * counts.max()
    is_log = len(t) < 2 * len(dates)
    return place * (is_repeated and is_whole and not is_log and not checkpoint_progress(t).any())


def accuracy_curves(t: Trials) -> Curves:
    """Accuracy with its standard error by run, task and checkpoint.

    Aggregates pass through. The error of trials is clustered by item. `n` stays finite where none
    or all succeed, so that their intervals keep an honest width.
    Step 0 is left out, since it has no logarithm. Raises UserError where nothing else is left.
    """
    x = log_progress(t)[0]
    after_start = np.isfinite(x)
    t = t[after_start]
    x = x[after_start]
    if not len(x):
        raise UserError("every trial is of step 0; growth needs checkpoints after it")
    first, group = group_rows(t.run, t.task, x)
    count = np.bincount(group)
    value = np.bincount(group, t.success) / count
    if (t.item == "").all():
        if (count > 1).any():
            raise UserError(
                "several accuracies of one run, task and checkpoint; "
                "keep one kind with --where column=value"
            )
        stderr = t.stderr[first]
        items = np.full(len(first), np.nan)
        most = np.inf
    else:
        # Residuals are summed within an item before they are squared: its tries are no evidence
        # independent of each other.
        row_of_item, item = group_rows(group, t.item)
        residual = np.bincount(item, t.success - value[group])
        group_of_item = group[row_of_item]
        items = np.bincount(group_of_item).astype(float)
        correction = items / np.maximum(items - 1, 1)
        stderr = np.sqrt(np.bincount(group_of_item, residual**2) * correction) / count
        most = count
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(stderr > 0, value * (1 - value) / stderr**2, items)
    # By luck trials can be more alike than independent ones ever are.
    n = np.minimum(n, most)
    is_known = (n > 0) & np.isfinite(n)
    typical = np.nanmedian(n[n > 0]) if (n > 0).any() else DEFAULT_TRIALS
    n = np.where(is_known, n, typical)
    return Curves(t.run[first], t.task[first], t.size[first], x[first], value, stderr, n)


def pool_tasks(t: Trials) -> Trials:
    """The same trials with all tasks as one. Items of different tasks stay different."""
    named = np.char.add(np.char.add(t.task, "/"), t.item)
    item = np.where(t.item == "", "", named)
    return replace(t, task=np.full(len(t), "all"), item=item)


def split_slices(t: Trials) -> Trials:
    """The same trials with every slice but base as a task of its own, "task, slice"."""
    named = np.char.add(np.char.add(t.task, ", "), t.slice)
    return replace(t, task=np.where(t.slice == "base", t.task, named))
