"""The table of trials, and readers that make it of what evaluation tools leave behind.

One row a trial: which run at which step tried which item of which task, under which slice (base, paraphrase, fault, ...)
and seed, and whether it succeeded. A row without an item is an aggregate: an accuracy with its standard error. The table
is a plain dict of numpy columns of one length, so that every method of this package works on anyone's numbers.
"""

import csv
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError

Table = dict[str, np.ndarray]
TEXT = {
    "run": "run",
    "date": "",
    "task": "task",
    "family": "",
    "item": "",
    "slice": "base",
    "seed": "",
}
NUMBERS = {
    "step": np.nan,
    "compute": np.nan,  # FLOP spent by then
    "size": np.nan,  # parameters; read from a name such as "pythia-1.4b" where there is no such column
    "success": np.nan,  # 0 or 1, or a fraction; of an aggregate the accuracy
    "difficulty": 0.0,  # any covariate of the item: log2 human minutes, digits, ...
    "chance": 0.0,
    "stderr": np.nan,  # of an aggregate
}
ALIASES = {
    "model": "run",
    "value": "success",
    "correct": "success",
    "score": "success",
    "flops": "compute",
}
KEY = ("run", "step", "compute", "task", "item", "slice", "seed")


def read(path: Path | str, where: Mapping[str, str] | None = None) -> Table:
    """The table in a file: CSV, Parquet or JSONL with the columns above; a sample log of lm-evaluation-harness
    (samples_*.jsonl); a JSON log of inspect; a JSON results file of tau-bench or tau2.

    where: keep only the rows whose column holds one of these texts ("a,b"). A column ramp does not know must be constant
    in what is kept.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not a file; name a table of trials (CSV, Parquet, JSONL) or an evaluation log"
        )
    try:
        rows = _rows(path)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        StopIteration,
        OSError,
        csv.Error,
    ) as error:
        raise UserError(
            f"{path} cannot be read as a table of trials ({type(error).__name__}: {error})"
        ) from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no rows of named columns")
    return table(rows, str(path), where)


def _rows(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8-sig")
    if kind == ".csv":
        return list(csv.DictReader(text.splitlines(), strict=True))
    if kind == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [_lm_eval(row, path) for row in rows] if rows and "doc_id" in rows[0] else rows
    if kind == ".json":
        log = json.loads(text)
        if isinstance(log, dict) and "samples" in log:
            return [_inspect(log.get("eval", {}), sample) for sample in log["samples"]]
        trials = log["simulations"] if isinstance(log, dict) else log
        return [_tau(row, path) for row in trials]
    raise ValueError(f"the ending {kind or 'none'} is none of .csv, .parquet, .jsonl, .json")


def _lm_eval(row: dict, path: Path) -> dict[str, Any]:
    metric = next(m for m in ("exact_match", "acc", "acc_norm", "pass@1", "em") if m in row)
    task = re.sub(r"^samples_|_\d{4}-\d\d-\d\dT.*$|\.jsonl$", "", path.name)
    name = {"run": path.parent.name, "task": task, "item": row["doc_id"], "success": row[metric]}
    return name if row.get("filter") in (None, "none") else name | {"slice": row["filter"]}


def _inspect(header: dict, sample: dict) -> dict[str, Any]:
    """inspect writes C, P, I, N for correct, partial, incorrect, no answer."""
    value = next(iter(sample["scores"].values()))["value"]
    value = {"C": 1, "P": 0.5, "I": 0, "N": 0}.get(value, value)
    common = {"run": header.get("model", "run"), "task": header.get("task", "task")}
    return common | {"item": sample["id"], "seed": sample.get("epoch", 1), "success": value}


def _tau(row: dict, path: Path) -> dict[str, Any]:
    """A trial counts where the whole reward was earned, as in pass^k of Yao et al. 2024."""
    reward = row["reward"] if "reward" in row else row["reward_info"]["reward"]
    success = float(reward >= 1 - 1e-6)
    return {
        "run": path.stem,
        "task": "tau",
        "item": row["task_id"],
        "seed": row.get("trial", ""),
        "success": success,
    }


def table(
    rows: list[Mapping[str, Any]], name: str = "the table", where: Mapping[str, str] | None = None
) -> Table:
    """Rows to checked columns. Raises UserError for what cannot be a table of trials."""
    rows = [{ALIASES.get(k, k): v for k, v in row.items()} for row in rows]
    for key, value in (where or {}).items():
        key = ALIASES.get(key, key)
        if key not in rows[0]:
            raise UserError(
                f"{name} has no column {key!r} to select by; it has {', '.join(map(str, rows[0]))}"
            )
        rows = [row for row in rows if str(row.get(key)) in value.split(",")]
        if not rows:
            raise UserError(f"{name} has no row with {where}")
    for key in dict.fromkeys(k for row in rows for k in row):
        if key not in TEXT and key not in NUMBERS and len({str(row.get(key)) for row in rows}) > 1:
            near = difflib.get_close_matches(str(key), [*TEXT, *NUMBERS, *ALIASES], 1)
            hint = f"drop it, or keep one of its values with --where {key}=..."
            hint = f"did you mean {near[0]!r}?" if near else hint
            raise UserError(f"{name} has a column {key!r} that ramp does not know; {hint}")
    t = {k: _texts(rows, k) for k in TEXT} | {k: _numbers(rows, k, name) for k in NUMBERS}
    if np.isnan(t["size"]).all():
        t["size"] = np.array([size_of(run) for run in t["run"]])
    _check(t, name)
    if np.all(
        t["seed"] == ""
    ):  # repeats without a name are numbered, where there are items to repeat
        t["seed"] = np.where(t["item"] == "", "", _occurrence([t[k] for k in KEY[:-1]]).astype(str))
    again = np.flatnonzero(_occurrence([t[k] for k in KEY]))
    if len(again):
        trial = ", ".join(
            f"{k} {t[k][again[0]]}" for k in KEY if str(t[k][again[0]]) not in ("", "nan")
        )
        what = f"the same trial twice, again in row {again[0] + 1} ({trial})"
        raise UserError(f"{name} has {what}; give repeats seeds of their own")
    return t


def _check(t: Table, name: str) -> None:
    wrong = np.flatnonzero(~((t["success"] >= 0) & (t["success"] <= 1)))
    if len(wrong):
        what = f"success = {t['success'][wrong[0]]:g} in row {wrong[0] + 1}"
        raise UserError(f"{name} has {what}; every trial needs a success between 0 and 1")
    for key in ("difficulty", "chance", "step", "compute"):
        if np.isinf(t[key]).any() or (NUMBERS[key] == 0 and np.isnan(t[key]).any()):
            raise UserError(f"{name} has a {key} that is not a finite number")
    if (t["chance"] < 0).any() or (t["chance"] >= 1).any():
        raise UserError(f"{name} has a chance level outside [0, 1)")


def groups(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that agree in every column make a group, in the columns' order: [G] its first row, [N] the group of each row."""
    code = np.zeros(len(columns[0]), int)
    for column in columns:
        values, at = np.unique(column, return_inverse=True)
        _, first, code = np.unique(code * len(values) + at, return_index=True, return_inverse=True)
    return first, code


def _occurrence(columns: list[np.ndarray]) -> np.ndarray:
    """How often each row has come before."""
    code = groups(*columns)[1]
    order, found = np.argsort(code, kind="stable"), np.empty_like(code)
    found[order] = np.arange(len(code)) - np.searchsorted(code[order], code[order])
    return found


def _texts(rows: list[Mapping[str, Any]], key: str) -> np.ndarray:
    values = [row.get(key) for row in rows]
    return np.array([TEXT[key] if v is None or v == "" else str(v) for v in values])


def _numbers(rows: list[Mapping[str, Any]], key: str, name: str) -> np.ndarray:
    found = np.full(len(rows), NUMBERS[key], float)
    for i, row in enumerate(rows):
        value = row.get(key)
        if value is not None and value != "":
            try:
                found[i] = float({"true": 1, "false": 0}.get(str(value).lower(), value))
            except (TypeError, ValueError):
                raise UserError(f"{name} has {key} = {value!r}, which is not a number") from None
    return found


def size_of(run: str) -> float:
    """Parameters as a name tells them: "pythia-1.4b" -> 1.4e9; nan where it does not."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mbk])(?![a-z])", run.lower())
    return float(found[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[found[2]] if found else np.nan


def select(t: Table, rows: np.ndarray) -> Table:
    return {k: v[rows] for k, v in t.items()}


def progress(t: Table) -> tuple[np.ndarray, str]:
    """log10 of compute where every row has it, else of the step; and which of the two."""
    for key in ("compute", "step"):
        if not np.isnan(t[key]).any() and (t[key] >= 0).all():
            with np.errstate(divide="ignore"):
                return np.log10(t[key]), key
    raise UserError(
        "the trials need a compute or a step in every row, or there is nothing to extrapolate over"
    )


def checkpoint(t: Table) -> np.ndarray:
    """The progress of each row; 0 in a table of finished systems, which says nowhere when it was tried."""
    finished = np.isnan(t["step"]).any() and np.isnan(t["compute"]).any()
    return np.zeros(len(t["run"])) if finished else progress(t)[0]


def curves(t: Table) -> Table:
    """Accuracy with its standard error by run, task and checkpoint: columns run, task, x, size, value, stderr, n.

    Aggregates pass through; of trials the error is clustered by item. n: the number of independent trials that would
    have the same error, so that 0 of n and n of n keep an honest width; never ±0. What step 0 showed is left out: it has
    no logarithm.
    """
    x, _ = progress(t)
    t, x = select(t, np.isfinite(x)), x[np.isfinite(x)]
    if not len(x):
        raise UserError("every trial is of step 0; growth needs checkpoints after it")
    first, group = groups(t["run"], t["task"], x)
    count = np.bincount(group)
    value = np.bincount(group, t["success"]) / count
    if np.all(t["item"] == ""):
        if (count > 1).any():
            what = "several accuracies of one run, task and checkpoint"
            raise UserError(f"{what}; keep one kind with --where column=value")
        error, items = t["stderr"][first], np.full(len(first), np.nan)
    else:
        pair, of = groups(group, t["item"])
        of_item, residual = group[pair], np.bincount(of, t["success"] - value[group])
        items = np.bincount(of_item).astype(float)
        error = (
            np.sqrt(np.bincount(of_item, residual**2) * items / np.maximum(items - 1, 1)) / count
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(error > 0, value * (1 - value) / error**2, items)
        n = np.minimum(
            n, np.where(np.isnan(items), np.inf, count)
        )  # by luck more alike than any trials could be
        n = np.where(
            (n > 0) & np.isfinite(n), n, np.nanmedian(n[n > 0]) if (n > 0).any() else 100.0
        )
    out = {k: t[k][first] for k in ("run", "task", "size")}
    return out | {"x": x[first], "value": value, "stderr": error, "n": n}


def pooled(t: Table) -> Table:
    """The same trials with all tasks as one; an item of one task is none of another."""
    item = np.where(t["item"] == "", "", np.char.add(np.char.add(t["task"], "/"), t["item"]))
    return t | {"task": np.full(len(item), "all"), "item": item}


def by_slice(t: Table) -> Table:
    """The same trials with every slice but base as a task of its own, "task, slice": each has its curve."""
    task = np.where(
        t["slice"] == "base", t["task"], np.char.add(np.char.add(t["task"], ", "), t["slice"])
    )
    return t | {"task": task}
