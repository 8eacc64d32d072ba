"""What evaluation tools leave behind, as a table of readers: a format is a file and one entry.

A reader gets a `Log` and yields rows of named cells: the columns of `Trials`, and `scorer`,
`metric` and `filter` where one trial was measured in several ways, and `error` where something
else than the system kept a trial from an outcome.
"""

import csv
import json
import zipfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ramp.errors import UserError
from ramp.files import iterate_whole_jsonl
from ramp.nines import columns
from ramp.nines.columns import Table
from ramp.nines.formats import agents, checks, helm, inspect_logs, lm_eval
from ramp.nines.formats.log import Format, Log
from ramp.nines.notes import Note, Reading, list_some

# The first one that knows a document reads it.
FORMATS: tuple[Format, ...] = (
    *inspect_logs.FORMATS,
    *lm_eval.FORMATS,
    *helm.FORMATS,
    *agents.FORMATS,
    *checks.FORMATS,
)
TABLES = {".csv": columns.read_csv, ".tsv": columns.read_csv, ".parquet": columns.read_parquet}
ENDINGS = (*TABLES, ".jsonl", ".json", ".eval", ".xml")
# What a reader may meet in a file that is not what its name says.
BROKEN_FILE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    StopIteration,
    OSError,
    NotImplementedError,
    csv.Error,
    zipfile.BadZipFile,
    ElementTree.ParseError,
)


def read_files(paths: Sequence[Path], reading: Reading, notes: list[Note]) -> list[Table]:
    """A table of each file, and of each log in the folders. Raises UserError for what is no log."""
    tables = []
    # A file that the user names has to be a log; one that lies in a folder need not be.
    for path in paths:
        if path.is_dir():
            tables += _read_folder(path, reading, notes)
        elif path.is_file():
            tables.append(_require_rows(path, _read_file(path, reading, notes), notes))
        else:
            raise UserError(
                f"{path} is not a file or folder; "
                "name a table of trials (CSV, Parquet, JSONL) or an evaluation log"
            )
    return tables


def _read_folder(folder, reading, notes):
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    tables = []
    left_out = []
    for path in files:
        # A folder of logs holds configurations and the like as well, but they are said.
        table = _read_file(path, reading, notes, is_sure=False)
        if table:
            tables.append(table)
        else:
            left_out.append(path.relative_to(folder))
    if left_out:
        notes.append(Note("dropped", f"files of {folder} that are no logs: {list_some(left_out)}"))
    if not tables:
        said = "".join(f"; {note.text}" for note in notes if note.kind == "partial")
        raise UserError(
            f"{folder} holds no log with trials that ramp knows; it looks for files ending in "
            f"{', '.join(ENDINGS)}{said}"
        )
    return tables


def _require_rows(path, table, notes):
    if not table or not columns.count_rows(table):
        # A log without samples may say why.
        said = "".join(f"; {note.text}" for note in notes if note.text.startswith(path.name))
        raise UserError(f"{path} holds no rows of named columns{said}")
    return table


def _read_file(path, reading, notes, is_sure=True) -> Table | None:
    """The table of one file; None: it is no log, where that is not sure."""
    try:
        kind = path.suffix.lower()
        if kind in TABLES:
            table = TABLES[kind](path)
            known = agents.rename_known(table, reading, notes)
        else:
            known = _read_log(path, kind, reading, notes, is_sure)
            if known is None:
                return None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except BROKEN_FILE as error:
        raise UserError(
            f"{path} cannot be read as a table of trials ({type(error).__name__}: {error}); "
            "mend it or leave it out"
        ) from None
    rows = columns.count_rows(known)
    # For messages, and for what stands in a path, such as the step of a checkpoint.
    return columns.with_column(known, "path", columns.constant(str(path), rows)) if rows else known


def _read_log(path, kind, reading, notes, is_sure):
    first, data = _parse(path, kind)
    log = Log(path, data, reading, notes)
    for form in FORMATS:
        if kind in form.endings and form.matches(first):
            return columns.from_rows(form.read(log))
    is_list = isinstance(data, list) and data and all(isinstance(row, dict) for row in data)
    # A list of a folder may be anything, such as a configuration.
    if kind == ".jsonl" or (is_list and is_sure):
        return agents.rename_known(columns.from_rows(map(_flatten, data)), reading, notes)
    if is_sure:
        names = ", ".join(form.name for form in FORMATS if kind in form.endings)
        # The user named this file, and is told what it could have been.
        raise UserError(f"it is none of the logs that ramp knows ({names})")
    return None


def _flatten(row):
    """A record with the values of what is nested as cells of their own, `grade.passed`."""
    if not isinstance(row, dict):
        return row
    flat = {key: value for key, value in row.items() if not isinstance(value, dict)}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": cell for name, cell in value.items()}
    return flat


def _parse(path: Path, kind: str) -> tuple[Any, Any]:
    """What a log is recognised by, the document or its first record, and all of it."""
    if kind == ".jsonl":
        records = iterate_whole_jsonl(path)
        first = next(records, {})
        return first, chain([first], records)
    if kind == ".json":
        # Windows writes a mark before UTF-8.
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    elif kind == ".xml":
        document = ElementTree.parse(path).getroot()
    elif kind == ".eval":
        document = zipfile.ZipFile(path)
    else:
        raise ValueError(f"the ending {kind or 'none'} is none of {', '.join(ENDINGS)}")
    return document, document
