"""From the columns of somebody's table to the columns of `Trials`, with nothing done in silence.

Every step takes a table and returns one, and notes what it left out, took by default or guessed.
"""

import datetime
import difflib
import re
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from ramp.errors import UserError
from ramp.nines.columns import (
    Column,
    Table,
    concatenate,
    constant,
    count_rows,
    encode_cells,
    group_codes,
    keep_rows,
    read_csv,
    with_column,
)
from ramp.nines.notes import Note, Reading, list_some

# Columns, of text and of numbers, with the value of a cell that is missing.
DEFAULTS = {
    "run": "run",
    "date": "",
    "task": "task",
    "family": "",
    "item": "",
    "slice": "base",
    "seed": "",
    "step": np.nan,
    "compute": np.nan,
    "size": np.nan,
    "success": np.nan,
    "difficulty": 0.0,
    "chance": 0.0,
    "stderr": np.nan,
    "cost": np.nan,
    "seconds": np.nan,
}
# Columns that are used up here: the choices, what kept a trial from an answer, and the file.
CHOICES = ("scorer", "metric", "filter")
INTERNAL = (*CHOICES, "error", "path")
ALIASES = {
    "model": "run",
    "value": "success",
    "correct": "success",
    "score": "success",
    "flops": "compute",
}
# Names that other tools give to these columns. They are taken where nothing better is there.
GUESSES = {
    "run": ("model_name", "system", "agent"),
    "task": ("benchmark", "dataset", "eval"),
    "item": ("task_id", "item_id", "sample_id", "instance_id", "question_id", "id"),
    "family": ("task_family", "category", "cluster"),
    "seed": ("epoch", "trial", "attempt", "run_id"),
    "success": ("passed", "resolved", "is_correct", "reward", "accuracy"),
    "date": ("release_date", "timestamp", "started_at", "created_at"),
    "size": ("params", "parameters"),
    "seconds": ("latency", "duration"),
}
TRUTHS = {"true": 1.0, "false": 0.0}
OUTCOMES = {"yes": 1.0, "no": 0.0, "pass": 1.0, "passed": 1.0, "fail": 0.0, "failed": 0.0}
# Two trials that agree in all of these are the same trial.
KEY = ("run", "step", "compute", "date", "task", "item", "slice", "seed")
# A column of so few distinct cells may tell conditions apart, such as the number of shots.
FEW = 20
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}
MARKS = " -_.:/@"  # between the parts of a name


# --- names of columns


def rename_columns(table: Table, reading: Reading, notes: list[Note]) -> Table:
    """Give columns ramp's names: by --map, by ALIASES and, where nothing better is there, GUESSES.

    Raises UserError where two columns would become one.
    """
    there = list_names(table)
    for key in reading.rename:
        if key not in table:
            raise UserError(f"there is no column {key!r} for --map; there are {there}")
    # By the name in the file, or else by what ramp takes a column for.
    as_taken = [key for key in reading.ignore if key not in table]
    table = {key: column for key, column in table.items() if key not in reading.ignore}
    # What the user says comes first, then ramp's own names and aliases, then what tools use.
    target = {key: reading.rename.get(key) or ALIASES.get(key, key) for key in table}
    for key in table:
        # "Model" is a model where no other column is.
        lower = ALIASES.get(key.lower(), key.lower())
        if lower in DEFAULTS and lower not in target.values() and key not in reading.rename:
            target[key] = lower
    for key, names in GUESSES.items():
        found = [name for name in names if name in table and name not in reading.rename]
        for name in found:
            # Of several files, each has a name of its own.
            files = [_find_files(table, old) for old in table if target[old] == key]
            if _find_files(table, name).isdisjoint(set().union(*files)):
                target[name] = key
                notes.append(Note("guess", f"the column {name!r} is taken as {key}"))
    # A pattern and a table of releases say dates themselves.
    if not ("date" in target.values() or reading.date_from or reading.releases):
        dates = [key for key in table if _is_unknown(target[key]) and _holds_dates(table[key])]
        if len(dates) == 1:
            target[dates[0]] = "date"
            notes.append(Note("guess", f"the column {dates[0]!r} is taken as date"))
    renamed = _merge_columns(table, target)
    for key in as_taken:
        if key not in renamed:
            raise UserError(f"there is no column {key!r} for --ignore; there are {there}")
    return {key: column for key, column in renamed.items() if key not in as_taken}


def _merge_columns(table: Table, target) -> Table:
    """The columns by their new names; of one name they fill each other's gaps."""
    renamed: Table = {}
    origin: dict[str, str] = {}
    for key, column in table.items():
        name = target[key]
        if name in renamed:
            both = renamed[name].present() & column.present()
            if both.any():
                raise UserError(
                    f"the columns {origin[name]!r} and {key!r} would both be {name}; "
                    f"leave one out with --ignore {key}"
                )
            # Of several files, one has the one name and one the other.
            column = _fill(renamed[name], column)
        renamed[name] = column
        origin[name] = key
    return renamed


def _find_files(table, key):
    """The files that have a cell of the column; without paths all rows are of one."""
    path = table.get("path") or constant("", count_rows(table))
    return set(path.codes[table[key].present()].tolist())


def _is_unknown(key):
    return key not in DEFAULTS and key not in INTERNAL


def _holds_dates(column):
    """Whether all cells are ISO dates or times."""
    texts = [str(cell) for cell in column.used()]
    try:
        # Bare numbers may be anything.
        return bool(texts) and all("-" in text and parse_date(text) for text in texts)
    except UserError:
        return False


def _holds_outcomes(column):
    """Whether all cells are 0 and 1, true and false, or words such as passed and failed."""
    numbers = [parse_success(cell) for cell in column.used()]
    return bool(numbers) and set(numbers) <= {0.0, 1.0}


def _fill(first: Column, second: Column) -> Column:
    """The first column, and the second where the first has no cell."""
    offset = len(first.values)
    codes = np.where(first.present(), first.codes, second.codes + offset)
    return Column([*first.values, *second.values], codes)


def melt_wide(table: Table, reading: Reading, notes: list[Note]) -> Table:
    """Make a table with a row a system and a column a benchmark one with a row an accuracy."""
    if "success" in table or "error" in table:
        return table
    unknown = list(filter(_is_unknown, table))
    found = {key: _find_top(table[key]) for key in unknown}
    tops = {key: top for key, top in found.items() if top is not None}
    tasks = list(tops)
    shares = [key for key in tasks if tops[key] <= (100 if reading.percent else 1)]
    # Where some columns are shares, the others are sizes, ranks and the like.
    tasks = shares or tasks
    if "run" not in table or len(tasks) < 2:
        near = difflib.get_close_matches("success", unknown, 1)
        near = near or list(filter(lambda key: _holds_outcomes(table[key]), unknown)) or ["COLUMN"]
        raise UserError(
            f"there is no column success among {list_names(table)}; "
            f"name the one that says how a trial went, as in --map {near[0]}=success"
        )
    # What is said of a system holds for each of its tasks.
    rest = {key: table[key] for key in table if key in DEFAULTS or key in INTERNAL}
    parts = []
    for task in tasks:
        column = table[task]
        part = rest | {"task": constant(task, count_rows(table)), "success": column}
        parts.append(keep_rows(part, column.present()))
    notes.append(
        Note(
            "guess",
            "the table is taken as wide, a row a system and a column a task: "
            + list_some(tasks, 40),
        )
    )
    dropped = [key for key in unknown if key not in tasks]
    if dropped:
        notes.append(Note("dropped", f"columns that are no accuracies: {list_some(dropped)}"))
    return concatenate(parts)


def list_names(table: Table) -> str:
    """The names of the columns that a user sees."""
    return list_some(key for key in table if key != "path")


def _find_top(column):
    """The largest number of a column, inf where one is negative; None: some cell is no number."""
    cells = column.used()
    numbers = [n for cell in cells if (n := parse_number(cell)) is not None]
    if not numbers or len(numbers) < len(cells):
        return None
    return max(numbers) if min(numbers) >= 0 else np.inf


def check_unknown(table: Table, notes: list[Note]) -> Table:
    """Leave out the columns that ramp does not know.

    Raises UserError where one looks like a known one, or tells apart what would be one trial.
    """
    unknown = list(filter(_is_unknown, table))
    absent = [key for key in DEFAULTS if key not in table]
    # A slip of the pen would otherwise lose a column with no more than a note.
    for key in unknown:
        for near in difflib.get_close_matches(str(key), absent, 1, 0.8):
            raise UserError(
                f"there is a column {key!r} that ramp does not know; did you mean {near!r}? "
                f"Say --map {key}={near} or --ignore {key}"
            )
    rows = count_rows(table)
    # Rows that agree in all that ramp knows would be tries of one item.
    known = [table[key] for key in (*KEY, *CHOICES, "path") if key in table]
    group = group_codes(known, rows)
    groups = len(np.unique(group))
    is_seeded = "seed" in table or "item" not in table
    for key in unknown:
        column = table[key]
        # A text that came of the trial tells nothing apart; shots or a temperature may.
        if not is_seeded and len(column.used()) > FEW:
            continue
        pairs = len(np.unique(group.astype(np.int64) * len(column.values) + column.codes))
        if pairs > groups:
            as_date = f"a date with --map {key}=date, " if _holds_dates(column) else ""
            # Without a column of items this may be the one.
            as_item = "" if "item" in table else f"the name of items with --map {key}=item, "
            raise UserError(
                f"the column {key!r} ({list_some(column.used(), 4)}) tells apart rows that would "
                f"be tries of one item; keep one kind with --where {key}=VALUE, make it {as_item}"
                f"{as_date}part of the trial with --map {key}=slice, or say --ignore {key}"
            )
    if unknown:
        notes.append(Note("dropped", f"columns that ramp does not use: {list_some(unknown)}"))
    return {key: column for key, column in table.items() if key not in unknown}


# --- values


# What patterns and releases find.
PROGRESS = ("step", "compute", "date")


def list_found(reading: Reading) -> set[str]:
    """The columns that reading fills: rows cannot be selected by them before."""
    patterns = {key for key in PROGRESS if getattr(reading, f"{key}_from")}
    return patterns | (set(PROGRESS) if reading.releases else set())


def find_progress(table: Table, reading: Reading, notes: list[Note]) -> Table:
    """Fill step, compute and date from texts by a pattern, and from a table of releases.

    Runs whose names differ in what a pattern finds alone become one run.
    """
    patterns = {key: p for key in PROGRESS if (p := getattr(reading, f"{key}_from"))}
    # All from the names as the logs have them: what makes one run of several comes last.
    found = {key: _find(table, key, pattern) for key, pattern in patterns.items()}
    joined = table.get("run")
    for key in ("step", "compute"):
        # A step that the log itself tells makes no checkpoints of its runs.
        is_told = key in table and len(table[key].used()) > 0
        if joined and key in patterns and not is_told:
            joined = _join_checkpoints(joined, patterns[key])
    if joined and joined is not table["run"]:
        names = list_some(sorted(map(to_text, joined.used())))
        notes.append(
            Note("guess", f"runs whose names differ in the checkpoint alone are one: {names}")
        )
    table = table | found
    if reading.releases:
        table = _join_releases(table, joined, reading, notes)
    return with_column(table, "run", joined) if joined else table


def _join_checkpoints(runs, pattern):
    """The column of runs whose names hold the step, without it: `lm-ckpt-100` is a checkpoint."""
    split = partial(re.compile(pattern).split, maxsplit=1)

    def shorten(name):
        parts = split(to_text(name))
        # Between the first and the last stand the groups of the pattern.
        ends = (parts[0].rstrip(MARKS), parts[-1].lstrip(MARKS))
        return "-".join(filter(None, ends)) or "run"

    names = set(map(to_text, runs.used()))
    if not all(len(split(name)) > 1 for name in names):
        return runs
    if len(set(map(shorten, names))) == len(names):
        return runs
    return runs.map(shorten)


def suggest_pattern(runs: ndarray) -> str:
    """A sentence on --step-from, where names of runs differ in one number alone; "" elsewhere."""
    names = sorted(set(runs.tolist()))
    parts = [re.split(r"(\d+)", name) for name in names]
    if len(names) < 2 or len(set(map(len, parts))) > 1:
        return ""
    differ = [k for k, cells in enumerate(zip(*parts, strict=True)) if len(set(cells)) > 1]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return ""
    place = differ[0]
    before = re.search(r"[A-Za-z]*[-_.=]?$", parts[0][place - 1])
    word = before[0] if before else ""
    pattern = rf"{re.escape(word)}(\d+)"
    found = [re.search(pattern, name) for name in names]
    if not word or any(
        m is None or m[1] != cells[place] for m, cells in zip(found, parts, strict=True)
    ):
        return ""
    return (
        f"if {names[0]} and {names[-1]} are checkpoints of one run, --step-from '{pattern}' makes "
        "them one"
    )


def _find(table, key, pattern):
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UserError(f"--{key}-from {pattern!r} is no regular expression: {error}") from None
    # The cell itself says most, then the name of the run, then where the file lies.
    texts = [table[name] for name in (key, "run", "path") if name in table]
    groups = group_codes(texts, count_rows(table))
    first, group = np.unique(groups, return_index=True, return_inverse=True)[1:]
    values = []
    for row in first:
        words = [to_text(text.values[text.codes[row]]) for text in texts]
        found = next(filter(None, map(search, words)), None)
        if not found:
            raise UserError(
                f"--{key}-from {pattern!r} is found in none of {' and '.join(words)!r}; "
                "its first group is the value"
            )
        values.append(found[1] if found.groups() else found[0])
    return encode_cells([v if key == "date" else _parse_count(v) or v for v in values])[group]


def _parse_count(text):
    """A number with or without k, m or b behind it; None: it is none."""
    match = re.fullmatch(r"([\d.,_]+(?:e[+-]?\d+)?)([kmb]?)", text.strip().lower())
    if not match:
        return None
    number = parse_number(re.sub("[,_]", "", match[1]))
    return None if number is None else number * SUFFIXES.get(match[2], 1.0)


def _join_releases(table, joined, reading, notes):
    path = reading.releases
    try:
        releases = rename_columns(read_csv(path), Reading(), notes)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no table of releases: {error}") from None
    keys = [key for key in ("date", "compute", "step", "size") if key in releases]
    if "run" not in releases or not keys:
        raise UserError(
            f"{path} is no table of releases; it needs a column run, and date, compute or step"
        )
    rows = _index_releases(releases)
    plain = constant("run", count_rows(table))
    # By the name in the log, or by that of the run that its checkpoints were joined to.
    names = [table.get("run") or plain, joined or plain]
    step = table.get("step") or constant(None, count_rows(table))
    group = group_codes([*names, step], count_rows(table))
    first, group = np.unique(group, return_index=True, return_inverse=True)[1:]

    def find_row(row):
        at = to_text(step.values[step.codes[row]])
        texts = [to_text(name.values[name.codes[row]]) for name in names]
        keys = [(text, which) for text in texts for which in (at, None)]
        return next((rows[key] for key in keys if key in rows), None)

    places = [find_row(row) for row in first]
    # They keep what the log says of them, or nothing.
    missing = {
        to_text(names[0].values[names[0].codes[row]])
        for row, place in zip(first, places, strict=True)
        if place is None
    }
    if missing:
        text = f"runs that {path.name} does not have: {list_some(sorted(missing))}"
        notes.append(Note("default", text))
    # What a row says itself is not overwritten.
    for key in keys:
        column = releases[key]
        cells = [None if row is None else column.values[column.codes[row]] for row in places]
        filled = encode_cells(cells)[group]
        table = table | {key: _fill(table[key], filled) if key in table else filled}
    return table


def _index_releases(releases):
    """The row of a run and a step; of None, where the run has one row or no steps.

    The last row of several counts, as of a list that was added to.
    """
    names = [to_text(releases["run"].values[code]) for code in releases["run"].codes]
    if "step" not in releases:
        return {(name, None): row for row, name in enumerate(names)}
    step = releases["step"]
    steps = [to_text(parse_number(step.values[code])) for code in step.codes]
    rows = {(name, at): row for row, (name, at) in enumerate(zip(names, steps, strict=True))}
    # A run with several steps is told apart by them alone.
    counts = Counter(name for name, _ in rows)
    once = {(name, None): row for (name, _), row in rows.items() if counts[name] == 1}
    return rows | once


def to_text_array(table: Table, key: str) -> ndarray:
    """[N] a column as text; the default of the column where it has no cell."""
    if key not in table:
        return np.full(count_rows(table), DEFAULTS[key])
    column = table[key]
    parse = {"date": parse_date, "seed": parse_seed}.get(key, to_text)
    texts = [DEFAULTS[key] if value is None else parse(value) for value in column.values]
    return np.array(texts, str)[column.codes] if texts else np.array([], str)


def to_number_array(table: Table, key: str, scale: float = 1.0) -> ndarray:
    """[N] a column as numbers; UserError names the first cell that is none."""
    if key not in table:
        return np.full(count_rows(table), DEFAULTS[key])
    column = table[key]
    default = float(DEFAULTS[key])
    if set(map(type, column.values)) <= {int, float, type(None)}:
        # Numbers already: None becomes NaN.
        plain = np.array(column.values, float)
        plain[np.isnan(plain)] = default
        return plain[column.codes] * scale
    parse = parse_success if key == "success" else parse_number
    numbers = np.array([parse(value, default) for value in column.values], object)
    wrong = np.array([number is None for number in numbers], bool)[column.codes]
    if wrong.any():
        # The first one is named: it leads to the others.
        row = int(np.argmax(wrong))
        remedy = ""
        if key == "success":
            remedy = "; write 1 and 0, true and false, or fractions"
        if key in ("step", "compute"):
            remedy = f"; --{key}-from 'REGEX' takes the number out of a text"
        raise UserError(
            f"{key} = {column.values[column.codes[row]]!r} in row {name_row(table, row)} "
            f"is not a number{remedy}"
        )
    return numbers.astype(float)[column.codes] * scale


def name_row(table: Table, row: int) -> str:
    """A row by its number in its file."""
    if "path" not in table:
        return str(row + 1)
    column = table["path"]
    path = column.values[column.codes[row]]
    first = int(np.argmax(column.codes == column.codes[row]))
    return f"{row - first + 1} of {path}" if path else str(row + 1)


def parse_number(value: Any, default: float | None = None) -> float | None:
    """A number; the default where there is no cell, None where the cell is no number."""
    if value is None:
        return default
    try:
        return float(TRUTHS.get(str(value).strip().lower(), value))
    except (TypeError, ValueError):
        return None


def parse_success(value: Any, default: float | None = None) -> float | None:
    """The same of an outcome, which may be a word such as "passed"."""
    return parse_number(OUTCOMES.get(str(value).strip().lower(), value), default)


def to_text(value: Any) -> str:
    """A cell as text: an item, a name of a run and the like."""
    # A column of whole numbers with a gap comes as floats from some tools.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # A blank after a comma is no part of a cell, as it is none of a name.
    return str(value).strip()


def parse_seed(value: Any) -> str:
    """A seed as text: "0.0", as pandas writes it beside a gap, is the first try as 0 is."""
    return re.sub(r"^(\d+)\.0+$", r"\1", to_text(value))


def parse_date(value: Any) -> str:
    """A date or a time as ISO text, of UTC. A time without a zone is taken as of UTC."""
    try:
        if isinstance(value, datetime.date | datetime.datetime):
            time = value
        elif parse_number(value) is not None and float(value) > 1e8:
            # Seconds since 1970, or milliseconds.
            seconds = float(value) / (1e3 if float(value) > 1e11 else 1)
            time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        elif re.fullmatch(r"\d{4}-\d\d", str(value)):
            # A month, as of a release: its first day.
            time = datetime.date.fromisoformat(f"{value}-01")
        elif re.fullmatch(r"\d{4}-?\d\d-?\d\d", str(value)):
            time = datetime.date.fromisoformat(str(value))
        else:
            time = datetime.datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"date = {value!r} is no date; "
            "write it as 2026-01, 2026-01-31 or 2026-01-31T12:00:00+00:00"
        ) from None
    if isinstance(time, datetime.datetime) and time.tzinfo:
        time = time.astimezone(datetime.UTC).replace(tzinfo=None)
    return time.isoformat()
