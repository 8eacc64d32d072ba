"""What reading did to the numbers, so that none of it is silent, and what the user asked for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Note:
    """One thing that reading left out, took by default, guessed or chose."""

    kind: str  # "dropped", "default", "guess", "choice", "error" or "partial"
    text: str  # a sentence for people
    rows: int = 0  # that it touched


@dataclass(frozen=True)
class Reading:
    """How logs are to be read: what the user names where a log leaves a choice."""

    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column: values to keep
    rename: Mapping[str, str] = field(default_factory=dict)  # name in the file: name here
    ignore: tuple[str, ...] = ()  # columns to leave out
    scorer: tuple[str, ...] = ()
    metric: tuple[str, ...] = ()
    filter: tuple[str, ...] = ()
    errors: str = "report"  # what becomes of infrastructure errors: "fail", "drop" or "report"
    percent: bool = False  # success and stderr are in percent
    # Regular expressions whose first group is the value, searched in a cell, a run and a path.
    step_from: str | None = None
    compute_from: str | None = None
    date_from: str | None = None
    releases: Path | None = None  # a CSV with the date, compute, step or size of each run


AS_IS = Reading()  # nothing is named: a log that leaves a choice is refused


def list_some(names: Iterable, limit: int = 8) -> str:
    """Names with commas, and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
