"""The rungs of the ladder, as rungs.toml has them, and which of them stands on which.

What the page and the exercises teach about a rung is in lessons.toml.

To add one, append a table to rungs.toml: `ramp ladder --only N` then trains it and the rung below
on its probe and on the corpus. If no probe of `ladder/probes.py` isolates what it is for, write one
there: a function that makes rows, and its chance level.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramp.errors import UserError

# Fractions of the way from chance to all answers right, for rungs that a probe judges.
FAIL = 0.25  # the rung below must come no further, with any seed
PASS = 0.9  # the rung itself must come this far, with every seed

# Measures of what a rung saves; its bits per byte must not rise by more than SAME_BITS.
COSTS = ("bytes kept per token", "FLOPs per token")
SAME_BITS = 0.02


@dataclass(frozen=True)
class Measure:
    """How the page names and explains what a rung is judged by, if not by a probe: page.toml."""

    unit: str
    title: str  # of a column
    told: str  # "Judged by ..."
    lacks: str = "What fails without it"  # a heading


@dataclass(frozen=True)
class Mistake:
    """A typical mistake in an exercise: one line of the solution, as it is written wrongly."""

    line: str
    wrong: str
    hint: str


@dataclass(frozen=True)
class Lesson:
    """What is taught about a rung; see the head of lessons.toml."""

    fails: str = ""
    notice: str = ""  # of the row and the pictures: on the page alone
    shows: str = ""  # what the example is
    example: Sequence[Sequence[str]] = ()  # a table: its heads, then its lines
    row: int = 0  # of the rows of a probe that are kept: the one to be shown
    idea: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    predict: str = ""
    answer: str = ""
    mechanism: str = ""  # a function of mechanisms.py
    lines: Sequence[Sequence[str]] = ()
    looks: str = ""  # what is to be seen where attention looks
    pays: str = ""
    mistakes: Sequence[Mistake] = ()


@dataclass(frozen=True)
class Rung:
    """One step of the ladder; see the head of rungs.toml."""

    number: int
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    probe: str = ""  # a key of `probes.PROBES`, or of `practices.PRACTICES`
    measure: str = ""  # a key of `run.MEASURES`
    margin: float = 0.0
    main: bool = True
    motive: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)
    halves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    post_training: bool = False  # beyond pretraining: the same model, taught in another way
    lesson: Lesson = Lesson()


def read_rungs() -> tuple[Rung, ...]:
    """All rungs, from the bottom up."""
    lessons = read_table("lessons.toml")
    rungs = []
    for number, row in enumerate(read_table("rungs.toml")["rung"]):
        # A rung that somebody has just added has no lesson yet.
        lesson = lessons.get(row["name"], {})
        mistakes = [Mistake(**mistake) for mistake in lesson.pop("mistakes", ())]
        rungs.append(Rung(number, **row, lesson=Lesson(**lesson, mistakes=mistakes)))
    return tuple(rungs)


def read_table(name: str) -> Any:
    """A TOML file that stands beside this one."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


RUNGS = read_rungs()


def select_rung(number: int) -> Rung:
    """The rung of that number; `UserError` if there is none."""
    if not 0 <= number < len(RUNGS):
        raise UserError(f"there is no rung {number}; the ladder has 0 to {len(RUNGS) - 1}")
    return RUNGS[number]


def find_top() -> Rung:
    """The last rung of the main line that is a model of its own."""
    return [rung for rung in RUNGS if rung.main and not rung.post_training][-1]


def rung_below(rung: Rung) -> Rung | None:
    """The rung that this one must beat: the last one of the main line before it.

    Rungs beyond pretraining are below each other, and below no part of the model.
    """
    below = [other for other in RUNGS[: rung.number] if other.main]
    if not rung.post_training:
        below = [other for other in below if not other.post_training]
    return below[-1] if below else None


def collect_settings(rung: Rung) -> dict[str, Any]:
    """All settings of a rung: those of the rungs it stands on, then its own.

    Empty for a table of counts. Rungs beyond pretraining have those of the last that is a model.
    """
    below = rung_below(rung)
    inherited = collect_settings(below) if below else {}
    return {**inherited, **rung.settings}
