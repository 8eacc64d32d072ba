"""The table of trials, and readers that make one from what evaluation tools leave behind.

A row is one trial: which run, at which step, tried which item of which task, under which slice
(base, paraphrase, fault, ...) and seed, and whether it succeeded. A row without an item is an
aggregate: an accuracy with its standard error. Columns are NumPy arrays of one length, so every
method of this package works on anyone's numbers.
"""

import csv
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy import ndarray

from ramp.errors import UserError
from ramp.files import read_whole_jsonl

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
ALIASES = {
    "model": "run",
    "value": "success",
    "correct": "success",
    "score": "success",
    "flops": "compute",
}
TRUTHS = {"true": 1, "false": 0}
UNNAMED = "#"  # before the seed of a try that has none in the file: its number says no order
# Two trials that agree in all of these are the same trial.
KEY = ("run", "step", "compute", "task", "item", "slice", "seed")
# What a reader may meet in a file that is not what its name says.
BROKEN_FILE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    StopIteration,
    OSError,
    csv.Error,
)


@dataclass(frozen=True)
class Note:
    """One thing that reading left out, took by default, guessed or chose."""

    kind: str  # "dropped", "default", "guess", "choice", "error" or "partial"
    text: str  # a sentence for people
    rows: int = 0  # that it touched


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


def read(path: Path | str, where: Mapping[str, str] | None = None) -> Trials:
    """Read a table of trials or the log of an evaluation tool.

    CSV, Parquet or JSONL with the columns of `Trials`; a sample log of lm-evaluation-harness
    (samples_*.jsonl); a JSON log of inspect; a JSON results file of tau-bench or tau2.
    where: see `from_rows`. Raises UserError for what is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not a file; "
            "name a table of trials (CSV, Parquet, JSONL) or an evaluation log"
        )
    try:
        rows = _read_rows(path)
    except BROKEN_FILE as error:
        raise UserError(
            f"{path} cannot be read as a table of trials ({type(error).__name__}: {error})"
        ) from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no rows of named columns")
    return from_rows(rows, str(path), where)


def _read_rows(path):
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet as pq  # slow to import, and needed by this format only

        return pq.read_table(path).to_pylist()
    if kind == ".jsonl":
        rows = read_whole_jsonl(path)
        is_lm_eval = rows and "doc_id" in rows[0]
        return [_from_lm_eval(row, path) for row in rows] if is_lm_eval else rows
    text = path.read_text(encoding="utf-8-sig")
    if kind == ".csv":
        return list(csv.DictReader(text.splitlines(), strict=True))
    if kind == ".json":
        log = json.loads(text)
        if isinstance(log, dict) and "samples" in log:
            return _from_inspect(log.get("eval", {}), log["samples"])
        return _from_tau(log["simulations"] if isinstance(log, dict) else log, path)
    raise ValueError(f"the ending {kind or 'none'} is none of .csv, .parquet, .jsonl, .json")


def _from_lm_eval(row, path):
    metrics = ("exact_match", "acc", "acc_norm", "pass@1", "em")
    metric = next(m for m in metrics if m in row)
    # samples_TASK_2026-01-01T00-00-00.jsonl
    task = re.sub(r"^samples_|_\d{4}-\d\d-\d\dT.*$|\.jsonl$", "", path.name)
    trial = {"run": path.parent.name, "task": task, "item": row["doc_id"], "success": row[metric]}
    # One sample is scored once per filter that extracts the answer.
    if row.get("filter") not in (None, "none"):
        trial["slice"] = row["filter"]
    return trial


def _from_inspect(header, samples):
    # inspect writes C, P, I, N for correct, partial, incorrect, no answer.
    grades = {"C": 1, "P": 0.5, "I": 0, "N": 0}
    rows = []
    for sample in samples:
        score = next(iter(sample["scores"].values()))["value"]
        row = {
            "run": header.get("model", "run"),
            "task": header.get("task", "task"),
            "item": sample["id"],
            "seed": sample.get("epoch", 1),
            "success": grades.get(score, score),
        }
        rows.append(row)
    return rows


def _from_tau(trials, path):
    rows = []
    for trial in trials:
        reward = trial["reward"] if "reward" in trial else trial["reward_info"]["reward"]
        row = {
            "run": path.stem,
            "task": "tau",
            "item": trial["task_id"],
            "seed": trial.get("trial", ""),
            # A trial counts where the whole reward was earned, as in pass^k of Yao et al. 2024.
            "success": float(reward >= 1 - 1e-6),
        }
        rows.append(row)
    return rows


def from_rows(
    rows: Sequence[Mapping[str, Any]],
    name: str = "the table",
    where: Mapping[str, str] | None = None,
) -> Trials:
    """Check rows of named values and make a table of them.

    name: of the table, for messages.
    where: keep only rows whose column holds one of these texts ("a,b"). A column that ramp does not
    know must be constant in what is left.
    Raises UserError for what cannot be a table of trials.
    """
    rows = [{ALIASES.get(key, key): value for key, value in row.items()} for row in rows]
    rows = _filter_rows(rows, where or {}, name)
    _check_columns(rows, name)
    t = Trials(**{key: _read_column(rows, key, name) for key in DEFAULTS})
    if np.isnan(t.size).all():
        t = replace(t, size=np.array([parse_size(run) for run in t.run]))
    _check_numbers(t, name)
    if (t.seed == "").all():
        # Repeats without a name are numbered, where there are items to repeat.
        number = np.char.add(UNNAMED, _count_earlier(t, KEY[:-1]).astype(str))
        t = replace(t, seed=np.where(t.item == "", "", number))
    _check_distinct(t, name)
    return t


def _filter_rows(rows, where, name):
    for alias, values in where.items():
        key = ALIASES.get(alias, alias)
        if key not in rows[0]:
            raise UserError(
                f"{name} has no column {key!r} to select by; it has {', '.join(map(str, rows[0]))}"
            )
        rows = [row for row in rows if str(row.get(key)) in values.split(",")]
        if not rows:
            raise UserError(f"{name} has no row with {where}")
    return rows


def _check_columns(rows, name):
    # A dict keeps the order of the file, so that the first wrong column is named.
    for key in dict.fromkeys(key for row in rows for key in row):
        is_constant = len({str(row.get(key)) for row in rows}) == 1
        if key in DEFAULTS or is_constant:
            continue
        hint = f"drop it, or keep one of its values with --where {key}=..."
        for near in difflib.get_close_matches(str(key), [*DEFAULTS, *ALIASES], 1):
            hint = f"did you mean {near!r}?"
        raise UserError(f"{name} has a column {key!r} that ramp does not know; {hint}")


def _read_column(rows, key, name):
    default = DEFAULTS[key]
    cells = []
    for row in rows:
        value = row.get(key)
        if value in (None, ""):
            value = default
        # A column has the type of its default.
        if isinstance(default, float):
            value = TRUTHS.get(str(value).lower(), value)
        try:
            cells.append(type(default)(value))
        except (TypeError, ValueError):
            raise UserError(f"{name} has {key} = {value!r}, which is not a number") from None
    return np.array(cells)


def _check_numbers(t, name):
    for row, success in enumerate(t.success, 1):
        if not 0 <= success <= 1:  # NaN is wrong too
            raise UserError(
                f"{name} has success = {success:g} in row {row}; "
                "every trial needs a success between 0 and 1"
            )
    for key in ("difficulty", "chance", "step", "compute"):
        values = getattr(t, key)
        may_be_missing = np.isnan(DEFAULTS[key])
        if np.isinf(values).any() or (np.isnan(values).any() and not may_be_missing):
            raise UserError(f"{name} has a {key} that is not a finite number")
    if (t.chance < 0).any() or (t.chance >= 1).any():
        raise UserError(f"{name} has a chance level outside [0, 1)")


def _check_distinct(t, name):
    earlier = _count_earlier(t, KEY)
    if not earlier.any():
        return
    row = int(np.argmax(earlier > 0))
    values = {key: str(getattr(t, key)[row]) for key in KEY}
    trial = ", ".join(f"{k} {v}" for k, v in values.items() if v not in ("", "nan"))
    raise UserError(
        f"{name} has the same trial twice, again in row {row + 1} ({trial}); "
        "give repeats seeds of their own"
    )


def group_rows(*columns: ndarray) -> tuple[ndarray, ndarray]:
    """Group rows that agree in every column; groups are in the columns' order.

    Returns [G] the first row of each group and [N] the group of each row.
    """
    group = np.zeros(len(columns[0]), int)
    for column in columns:
        values, index = np.unique(column, return_inverse=True)
        code = group * len(values) + index
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
    return first, group


def _count_earlier(t, keys):
    """[N] how many earlier rows agree with each row in all the columns."""
    group = group_rows(*(getattr(t, key) for key in keys))[1]
    order = np.argsort(group, kind="stable")
    in_order = group[order]
    count = np.empty_like(group)
    count[order] = np.arange(len(group)) - np.searchsorted(in_order, in_order)
    return count


def parse_size(run: str) -> float:
    """Parameters by the name of a run: "pythia-1.4b" is 1.4e9; NaN where the name has no size."""
    match = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mbk])(?![a-z])", run.lower())
    if not match:
        return np.nan
    return float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[match[2]]


def log_progress(t: Trials) -> tuple[ndarray, str]:
    """log10 of compute where every row has it, else of the step; and the name of the one taken.

    Raises UserError where some row has neither.
    """
    for unit, values in (("compute", t.compute), ("step", t.step)):
        if (values >= 0).all():  # False where one is NaN
            with np.errstate(divide="ignore"):
                return np.log10(values), unit
    raise UserError(
        "the trials need a compute or a step in every row, or there is nothing to extrapolate over"
    )


def checkpoint_progress(t: Trials) -> ndarray:
    """[N] `log_progress` of each row; 0 in a table of finished systems without checkpoints."""
    if np.isnan(t.step).any() and np.isnan(t.compute).any():
        return np.zeros(len(t))
    return log_progress(t)[0]


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
    typical = np.nanmedian(n[n > 0]) if (n > 0).any() else 100.0
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
