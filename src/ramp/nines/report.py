"""Results for people: lines, tables and pictures that a page, a terminal and TensorBoard share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy import ndarray

from ramp.nines import backtest, growth, intervals, items, record
from ramp.nines.audit import LastCheckpoint, Level
from ramp.nines.intervals import count_nines
from ramp.nines.notes import Note
from ramp.nines.readiness import Forecast, schedule_dates
from ramp.nines.trials import Trials, accuracy_curves, split_slices
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


# When nines are reached


@dataclass(frozen=True)
class ReadyTimes:
    """When so many nines are reached. Places are log10 progress; inf: beyond the grid."""

    nines: float
    now: float  # probability that they hold already
    never: float  # probability that they are not reached within the grid
    sure: float  # the first place with the probability that is asked for
    low: float  # 80% of the draws reach them between low and high
    high: float
    date: list[str] | None  # of sure, low and high, where there is a schedule


@dataclass(frozen=True)
class ReadinessSummary:
    """Where a forecast stands today, and when each number of nines is reached."""

    run: str
    unit: str
    at: float  # log10 progress of today
    times: float  # how far the forecast goes, as a multiple of today's progress
    now: ndarray  # reliability at 5%, 50% and 95%
    end: ndarray  # the same at the end of the grid
    levels: list[ReadyTimes]
    probability: float
    shape_weights: dict[str, float]
    widening: float
    converged: bool


def summarize_readiness(
    f: Forecast,
    nines: list[float],
    probability: float = 0.8,
    schedule: list[tuple[str, float]] | None = None,
) -> ReadinessSummary:
    """Find when each of `nines` is reached with this probability; dates need a schedule."""
    today = int(np.searchsorted(f.grid, f.now))
    now, end = np.quantile(f.mix[:, [today, -1]], (0.05, 0.5, 0.95), axis=0).T
    levels = []
    for r in nines:
        first = f.first_ready(r)
        low, high = np.quantile(first, (0.1, 0.9), method="inverted_cdf")
        places = np.array([f.ready_at(r, probability), low, high])
        date = schedule_dates(schedule, places) if schedule else None
        held = f.is_ready(r)[:, today].mean()
        levels.append(ReadyTimes(r, held, np.isinf(first).mean(), *places, date))
    shape_weights = dict(zip(growth.SHAPES, f.stacking.weights.tolist(), strict=True))
    return ReadinessSummary(
        f.run, f.unit, f.now, 10 ** (f.grid[-1] - f.now), now, end, levels,
        probability, shape_weights, f.stacking.widening, f.converged,
    )  # fmt: skip


def readiness_parts(s: ReadinessSummary) -> list[Part]:
    """The summary as lines and a table."""
    sure = f"first {s.probability:.0%} sure at"
    rows = [["nines", "now", sure, "80% of futures", f"not within {s.times:.3g}x"]]
    for level in s.levels:
        when = []
        for k, place in enumerate((level.sure, level.low, level.high)):
            date = level.date[k] if level.date else ""
            text = f"{s.unit} {10**place:.3g} ({10 ** (place - s.at):.2g}x) {date}".strip()
            when.append(f"not by {s.times:.3g}x" if np.isinf(place) else text)
        by, low, high = when
        now, never = f"p = {level.now:.2f}", f"p = {level.never:.2f}"
        rows.append([f"{level.nines:g}", now, by, f"{low} to {high}", never])
    # One shape rarely wins outright, so its weight is shown too.
    weight, best = max((weight, shape) for shape, weight in s.shape_weights.items())
    return [
        "## Reliability of the mix",
        f"{s.run}: now {s.now[1]:.4f} [{format_interval(s.now[::2])}], "
        f"at {s.times:.3g}x {s.end[1]:.4f} [{format_interval(s.end[::2])}] (90%).",
        f"Growth by past score: {best} leads with weight {weight:.2f}; "
        f"intervals widened by {s.widening:.2f}.",
        *convergence_warning(s.converged),
        rows,
    ]


def readiness_sentence(name: str, s: ReadinessSummary, others: Mapping[str, float]) -> str:
    """ "addition/2: 0.94 [0.91, 0.96] today, 1 nine by 2.1x this compute (80%: ...)".

    others: further accuracies by name, in brackets.
    """
    low, middle, high = s.now
    sentence = f"{name}: {middle:.2f} [{low:.2f}, {high:.2f}] today"
    if others:
        sentence += f" ({', '.join(f'{k} {v:.2f}' for k, v in others.items())})"
    for level in s.levels:
        plural = "" if level.nines == 1 else "s"
        sentence += f", {level.nines:g} nine{plural} "
        if level.now >= s.probability:
            sentence += f"reached (p = {level.now:.2f})"
        elif math.isinf(level.sure):
            sentence += f"within {s.times:.3g}x with p = {1 - level.never:.2f}"
        else:
            places = (level.sure, level.low, level.high)
            by, low, high = ("never" if p == np.inf else f"{10 ** (p - s.at):.2g}" for p in places)
            sentence += f"by {by}x this {s.unit} (80%: {low} to {high})"
    return sentence


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
    text = "No item was tried twice, so how much the best of several tries flatters is unknown."
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
    return [text, rows, lambda: levels_figure(levels)]


def score_parts(s: backtest.Summary) -> list[Part]:
    """The scores of a backtest."""
    rows = [["method", "CRPS", "90% interval covers"]]
    for name, method in sorted(s.methods.items(), key=lambda item: item[1].crps):
        rows.append([name, f"{method.crps:.4f}", f"{method.coverage:.3f}"])
    text = (
        f"{s.forecasts} forecasts; 80% interval covers {s.coverage80:.3f}; "
        f"median misses by {s.mae:.4f}."
    )
    parts: list[Part] = [text, rows, lambda: pit_figure(s.pit)]
    if e := s.events:
        parts.append(
            f"{e.count} events 'reaches T': Brier {e.brier:.4f}; "
            f"their rate {e.rate:.3f} alone would have {e.base_brier:.4f}."
        )
        rows = [[f"{p:.2f}", f"{rate:.2f}", n] for p, rate, n in e.calibration]
        parts.append([["probability", "frequency", "events"], *rows])
    return parts


def score_record(path: Path, t: Trials) -> tuple[record.Summary, Answer]:
    """Score the recorded forecasts in a file by a table that has grown since."""
    scored, still_open = record.score(path, accuracy_curves(split_slices(t)))
    s = record.summarize(scored)
    facts = {"scores; forecasts still open": f"{len(scored)}; {still_open}"}
    if s.count:
        key = "of them with every baseline; checkpoints that scored them"
        facts[key] = f"{s.count}; {s.checkpoints}"
        facts["80% intervals cover"] = f"{s.covered80:.3f} ± {s.covered80_stderr:.3f}"
        facts["CRPS"] = f"{s.crps[backtest.NINES]:.4f} ± {s.crps_stderr:.4f}"
        facts |= {f"CRPS of {name}": f"{s.crps[name]:.4f}" for name in record.BASELINES}
    parts: list[Part] = [
        "## The record of live forecasts",
        "Each forecast is of one curve, a task under one slice, by its own growth and that of what "
        "was scored before.",
        facts_table(facts),
    ]
    if scored:
        pits = backtest.count_pits([line.pit for line in scored])
        parts.append(lambda: pit_figure(pits))
    else:
        parts.append("None has been scored yet: the table has no later checkpoint of their curves.")
    return s, Answer({"scored": scored, "open": still_open, "summary": s}, parts)


# Pictures


@in_style
def reliability_figure(f: Forecast) -> Figure:
    """Nines over compute or steps: observed, and the forecast with its 50% and 90% bands."""
    figure, axes = blank(9.6, 4)
    main, *others = COLORS.values()
    # At most 6 nines, so that a draw of exactly 1 can be drawn.
    x = 10**f.grid
    nines = np.minimum(count_nines(f.mix), 6)
    for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.3)):
        band = np.percentile(nines, (low, high), axis=0)
        axes.fill_between(x, *band, alpha=alpha, color=main, lw=0)
    axes.plot(x, np.median(nines, 0), color=main, label="mix: median, 50% and 90%")
    if len(f.slices) > 1:
        for k, (name, path) in enumerate(f.slices.items()):
            middle = np.minimum(count_nines(np.median(path, 0)), 6)
            color = others[k % len(others)]
            axes.plot(x, middle, "--", lw=1, color=color, label=f"slice {name}")
    at, *observed = np.transpose(f.observed)
    y, low, high = np.minimum(count_nines(np.array(observed)), 6)
    y = np.clip(y, low, high)
    axes.errorbar(
        10**at, y, [y - low, high - y], fmt="o", color=COLORS["warm"], ms=4, label="observed, 90%"
    )
    axes.axvline(10**f.now, color=GREY, lw=0.8, ls=":")
    axes.set_xscale("log")
    # The page's text is plain: powers of ten would be TeX.
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x < 1e6 else f"{x:.3g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    top = max(3.3, np.median(nines[:, -1]) + 1)
    axes.set(xlabel=f.unit, ylabel="nines", ylim=(0, top))
    axes.legend()
    return figure


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


@in_style
def levels_figure(levels: list[Level]) -> Figure:
    """Steps up to each level of readiness, in green where it is reached."""
    figure, axes = blank(9.6, 1.6)
    for k, level in enumerate(levels):
        color, alpha = ("green", 1) if level.reached else ("side", 0.3)
        axes.bar(k, k + 1, color=COLORS[color], alpha=alpha)
        axes.text(k, -0.1, level.name, ha="center", va="top")
    axes.set_axis_off()
    return figure
