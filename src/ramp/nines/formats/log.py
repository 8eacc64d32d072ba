"""A log and a format, as the readers of this folder see them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramp.nines.notes import Note, Reading

Row = dict[str, Any]


@dataclass(frozen=True)
class Log:
    """One file, parsed as far as its ending tells."""

    path: Path
    data: Any  # of .json the document, of .jsonl its records, of .xml the root, of .eval the ZIP
    reading: Reading
    notes: list[Note]

    def note(self, kind: str, text: str, rows: int = 0) -> None:
        """Say what the reader left out, took by default or guessed in this file."""
        self.notes.append(Note(kind, f"{self.path.name}: {text}", rows))


@dataclass(frozen=True)
class Format:
    """One kind of log."""

    name: str
    endings: tuple[str, ...]
    matches: Callable[[Any], bool]  # whether the document, or the first record, is of this kind
    read: Callable[[Log], Iterable[Row]]


def has_keys(document: Any, *keys: str) -> bool:
    """Whether a document is a mapping with all of these keys."""
    return isinstance(document, Mapping) and all(key in document for key in keys)


def is_list_with(document: Any, *keys: str) -> bool:
    """Whether a document is a list whose first element has all of these keys."""
    return isinstance(document, list) and bool(document) and has_keys(document[0], *keys)


def say_error(error: Any, otherwise: str = "error") -> str:
    """The first line of an error that says something, cut to a length for a table."""
    lines = (line.strip() for line in str(error or "").splitlines())
    return next(filter(None, lines), otherwise)[:80]


def is_number(value: Any) -> bool:
    """Whether a score is one number or truth, and no list or text."""
    return isinstance(value, int | float)
