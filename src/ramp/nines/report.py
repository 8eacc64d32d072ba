"""Results for people: lines, tables and pictures that a page, a terminal and TensorBoard share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy import ndarray

from ramp.nines import backtest, intervals, items
from ramp.nines.audit import LastCheckpoint, Level
from ramp.nines.notes import Note
from ramp.reporting.figure import COLORS, GREY, STYLE, blank, svg
from ramp.reporting.html import paragraph, section, table, write_page

in_style = rc_context(STYLE)  # for all pictures below
# A line of text ("## ...": a heading), a table whose first row is its head, or a picture.
Part = str | list | Callable[[], Figure]


@dataclass(frozen=True)
class Answer:
    """What a command returns."""

    figures: Any  # for a program: a dict or a dataclass
    parts: list[Part]  # for people
    code: int = 0  # exit code
    junit: str = ""  # the report for --junit


def write_parts(path: Path, title: str, parts: list[Part]) -> None:
    """Write one self-contained page."""
    sections: list[list[str]] = []
    # An answer of one line, as the gate's, has no heading of its own.
    if not (isinstance(parts[0], str) and parts[0].startswith("## ")):
        sections.append(["Answer", " "])
    for part in parts:
        if isinstance(part, list):
            sections[-1].append(table(part[0], part[1:]))
        elif not isinstance(part, str):
            sections[-1].append(svg(part()))
        elif part.startswith("## "):
            # The blank keeps a heading that has nothing below it.
            sections.append([part.removeprefix("## "), " "])
        else:
            sections[-1].append(paragraph(part))
    write_page(path, title, [section(*content) for content in sections])


def print_parts(parts: list[Part], file: TextIO | None = None) -> None:
    """Print lines and tables, to standard output or a file. A terminal has no pictures."""
    for part in parts:
        if isinstance(part, str):
            print(part.removeprefix("## "), file=file)
        elif isinstance(part, list):
            widths = [max(len(str(cell)) for cell in column) for column in zip(*part, strict=True)]
            for row in part:
                cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
                print("  " + "  ".join(cells).rstrip(), file=file)
            print(file=file)


def facts_table(facts: Mapping[str, Any]) -> list[list]:
    """A table of two columns."""
    return [["what", "value"], *([name, value] for name, value in facts.items())]


def note_parts(notes: Sequence[Note]) -> list[Part]:
    """What reading the logs left out, took by default, guessed or chose; nothing: no part."""
    if not notes:
        return []
    rows = [[note.kind, note.rows or "", note.text] for note in notes]
    return ["## How the logs were read", [["what", "rows", ""], *rows]]


def format_interval(bounds: Any, digits: int = 4) -> str:
    """The ends of an interval."""
    return f"{bounds[0]:.{digits}f} .. {bounds[1]:.{digits}f}"


def convergence_warning(converged: bool) -> list[Part]:
    """A warning where the item model is unsure of its own scales."""
    if converged:
        return []
    return [
        "WARNING: the spread of items and families did not settle; intervals of the item model "
        f"are widened {items.UNSETTLED:g} times. More items or more tries would help."
    ]


# What is shown today, and how forecasts did


def level_parts(levels: list[Level], last: LastCheckpoint) -> list[Part]:
    """The levels of readiness, and how far the best of several tries lies above all of them."""
    successes = last.successes
    tries = last.tries
    k = int(min(8, tries.min()))
    text = "Not all items were tried twice: how much the best of several tries flatters is unknown."
    if k >= 2:
        best = intervals.pass_at_k(k, successes, tries)
        one, two, every = (intervals.pass_hat_k(n, successes, tries) for n in (1, 2, k))
        more = intervals.logit_normal_pass_hat_k(2 * k, one, two)
        text = (
            f"Best of {k} tries: {best:.3f}; all of {k}: {every:.3f}. A demo shows the first, "
            "a user meets the second. "
            f"All of {2 * k}, extrapolated from one and two tries: {more:.3f}."
        )
    rows = [["level", "reached", "why"]]
    rows += [[level.name, "yes" if level.reached else "no", level.reason] for level in levels]
    return [text, rows]


def score_parts(s: backtest.Summary) -> list[Part]:
    """The scores of a backtest."""
    head = ["method", "forecasts", "CRPS", "90% interval covers", "worse than nines by"]
    rows = [[*head, "± by task"]]
    # By how far they are behind: a method may have made the easier forecasts only.
    for name, method in sorted(s.methods.items(), key=lambda item: item[1].behind):
        scores = f"{method.crps:.4f}", f"{method.coverage:.3f}"
        behind = f"{method.behind:+.4f}", f"{method.behind_stderr:.4f}"
        rows.append([name, method.forecasts, *scores, *behind])
    text = (
        f"{s.forecasts} forecasts; 80% interval covers {s.coverage80:.3f}; "
        f"median misses by {s.mae:.4f}."
    )
    parts: list[Part] = [text, rows, lambda: pit_figure(s.pit)]
    if any(method.forecasts < s.forecasts for method in s.methods.values()):
        parts.insert(
            1,
            "Methods with fewer forecasts had too few checkpoints for the rest; how much worse "
            "they are is counted on those that they made.",
        )
    if e := s.events:
        parts.append(
            f"{e.count} events 'reaches T': Brier {e.brier:.4f}; "
            f"their rate {e.rate:.3f} alone would have {e.base_brier:.4f}."
        )
        rows = [[f"{p:.2f}", f"{rate:.2f}", n] for p, rate, n in e.calibration]
        parts.append([["probability", "frequency", "events"], *rows])
    return parts


# Pictures


@in_style
def pit_figure(counts: list[int]) -> Figure:
    """Forecasts by tenth of the probability integral transform: flat is calibrated."""
    figure, axes = blank(9.6, 2.5)
    axes.bar(np.arange(10) / 10 + 0.05, counts, 0.09, color=COLORS["main"])
    axes.axhline(sum(counts) / 10, color=GREY, lw=0.8)
    axes.set(
        xlabel="where the truth fell in the forecast (probability integral transform)",
        ylabel="forecasts",
    )
    return figure


@in_style
def item_figure(difficulty: ndarray, abilities: ndarray) -> Figure:
    """Items by difficulty, and the abilities of the checkpoints on the same scale."""
    figure, axes = blank(9.6, 2.5)
    axes.hist(difficulty, 40, color=COLORS["main"], alpha=0.6)
    for ability in abilities:
        axes.axvline(ability, color=COLORS["warm"], lw=0.8)
    axes.set(
        xlabel="difficulty of items; lines: ability of each checkpoint (logits)", ylabel="items"
    )
    return figure
