"""One self-contained page in the report's style: headings, tables, pictures. No script, nothing fetched."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.reporting.figure import COLORS, GREY, STYLE, blank, svg
from ramp.reporting.html import table, write_page

if TYPE_CHECKING:
    from ramp.nines.readiness import Outlook


def write(path: Path, title: str, parts: list) -> None:
    """parts: a str is a paragraph ("## ...": the heading of a section), a list of rows a table whose first row is its
    head, a function draws a picture."""
    sections = [""]
    for part in parts:
        if isinstance(part, str) and part.startswith("## "):
            sections.append(f"<h2>{escape(part[3:])}</h2>")
        elif isinstance(part, str):
            sections[-1] += f"<p>{escape(part)}</p>"
        else:
            sections[-1] += table(part[0], part[1:]) if isinstance(part, list) else svg(part())
    write_page(path, title, [f"<section>{s}</section>" for s in sections if s])


def _nines(p: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(1 - p, 1e-6))


@rc_context(STYLE)
def reliability(o: "Outlook") -> Figure:
    """Nines over compute or steps: what was seen, and the forecast with its 50% and 90% bands."""
    figure, axes = blank(9.6, 4)
    x, up = 10**o.grid, _nines(o.mix)
    for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.3)):
        axes.fill_between(
            x, *np.percentile(up, (low, high), axis=0), alpha=alpha, color=COLORS["main"], lw=0
        )
    axes.plot(x, np.median(up, 0), color=COLORS["main"], label="usage mix: median, 50% and 90%")
    colors = list(COLORS.values())[1:]
    for k, (name, path) in enumerate(o.slices.items() if len(o.slices) > 1 else ()):
        axes.plot(
            x,
            np.median(_nines(path), 0),
            "--",
            lw=1,
            color=colors[k % len(colors)],
            label=f"slice {name}",
        )
    at, *seen = np.array(o.seen).T
    y, low, high = (_nines(v) for v in seen)
    y = np.clip(y, low, high)
    axes.errorbar(
        10**at, y, [y - low, high - y], fmt="o", color=COLORS["warm"], ms=4, label="seen, 90%"
    )
    axes.axvline(10**o.now, color=GREY, lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(
        lambda x, _: f"{x:,.0f}" if x < 1e6 else f"{x:.3g}"
    )  # the page's text is plain, powers would be TeX
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_ylim(0, max(3.3, float(np.median(up[:, -1])) + 1))
    axes.set(xlabel=o.unit, ylabel="nines")
    axes.legend()
    return figure


@rc_context(STYLE)
def calibration(s: dict) -> Figure:
    """The probability integral transform in tenths: flat is calibrated."""
    figure, axes = blank(9.6, 2.5)
    axes.bar(np.arange(10) / 10 + 0.05, s["pit"], 0.09, color=COLORS["main"])
    axes.axhline(sum(s["pit"]) / 10, color=GREY, lw=0.8)
    axes.set(
        xlabel="where the truth fell in the forecast (probability integral transform)",
        ylabel="forecasts",
    )
    return figure


@rc_context(STYLE)
def item_map(hard: np.ndarray, abilities: np.ndarray) -> Figure:
    """Items by difficulty, and the abilities of the checkpoints on the same scale."""
    figure, axes = blank(9.6, 2.5)
    axes.hist(hard, 40, color=COLORS["main"], alpha=0.6)
    for a in abilities:
        axes.axvline(a, color=COLORS["warm"], lw=0.8)
    axes.set(
        xlabel="difficulty of items; lines: ability of each checkpoint (logits)", ylabel="items"
    )
    return figure


@rc_context(STYLE)
def steps(levels: list[tuple[str, bool, str]]) -> Figure:
    """The ladder of readiness: the levels that are reached in green."""
    figure, axes = blank(9.6, 1.6)
    for k, (name, reached, _) in enumerate(levels):
        axes.bar(
            k, k + 1, color=COLORS["green" if reached else "side"], alpha=1 if reached else 0.3
        )
        axes.text(k, -0.1, name, ha="center", va="top")
    axes.set_axis_off()
    return figure
