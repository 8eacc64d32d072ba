"""Figures of one style for pages, light or dark, and for TensorBoard.

No background is painted and every colour reads on white and on black. `svg` puts a figure into a
page, where each colour is a CSS variable and text takes the page's font. Same data, same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from ramp.reporting.html import Html, escape

# Each name is a CSS variable of page.css, too.
COLORS = {
    "main": "#4a6fe8",
    "side": "#8d9ab8",
    "warm": "#cf692b",
    "grey": "#858a93",
    "green": "#3aa387",
    "gold": "#d9a13b",
    "violet": "#a06bd0",
    "pink": "#d3607f",
}
GREY = COLORS["grey"]
CLEAR = LinearSegmentedColormap.from_list("clear", [to_rgba(COLORS["main"], a) for a in (0.04, 1)])
FONT = 8.5  # points
NAME_WIDTH = 1.5  # inches of a name in the legend, at least
LETTER = 0.085  # inches of a letter in it
NARROW = 6  # inches; what is narrower fits a phone
MAX_POINTS = 500  # of a curve: more would only make the page larger
LARGEST = 1e30  # values from here on break matplotlib's arithmetic and are left out
STYLE: dict = {
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.color": GREY,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.facecolor": "none",
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, and takes the font of the page
    "svg.hashsalt": "ramp",
}

Levels = Mapping[str, tuple[float, str]]  # name -> (y, a key of COLORS)


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    name: str
    x: ArrayLike
    y: ArrayLike
    color: str = "main"  # a key of COLORS
    half_life: float = 0  # in points, of the moving average that is drawn; 0: the values themselves
    dots: bool = False

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """At most MAX_POINTS of what can be drawn: finite and below LARGEST."""
        x, y = np.asarray(self.x, float), np.asarray(self.y, float)
        drawable = (np.abs(x) < LARGEST) & (np.abs(y) < LARGEST)
        x, y = x[drawable], y[drawable]
        n = len(x)
        if self.half_life and n:
            weights = 0.5 ** (np.arange(30 * self.half_life) / self.half_life)
            # Divided by the same sum over ones, the average is unbiased at the start.
            y = np.convolve(y, weights)[:n] / np.convolve(np.ones(n), weights)[:n]
        if n > MAX_POINTS:
            # Means over equal pieces; the last piece is the last point as it is.
            starts = np.linspace(0, n - 1, MAX_POINTS).astype(int)
            sizes = np.diff(starts, append=n)
            x = np.add.reduceat(x, starts) / sizes
            y = np.add.reduceat(y, starts) / sizes
        return x, y


@rc_context(STYLE)
def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches, and its axes; draw on them under `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), dpi=130, facecolor="none", layout="constrained")
    axes = figure.subplots()
    # Ticks are made late, when STYLE no longer holds.
    axes.tick_params(which="both", length=0, labelsize=FONT, labelcolor=GREY)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    return figure, axes


@rc_context(STYLE)
def plot_curves(
    curves: Sequence[Curve],
    levels: Levels,
    labels: tuple[str, str],
    log: bool = False,
    size: tuple[float, float] = (9.6, 4),
    span: float = 0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Curves with horizontal lines at `levels`, named at the right. `labels` are of x and y.

    `size` is in inches; a page is 9.6 wide. `span` is the least height of the y axis, so that
    differences too small to matter look small. `limits` of the y axis, if any, overrule the data.

    `log` sets a logarithmic y axis if every value is above 0. Under a moving average the values
    themselves are drawn faintly.
    """
    figure, axes = blank(*size)
    axes.set(xlabel=labels[0], ylabel=labels[1], xmargin=0)
    for curve in curves:
        x, y = curve.points()
        color = COLORS[curve.color]
        marker = "o" if curve.dots or len(x) == 1 else ""
        width = 1.6 if curve.color == "main" else 1.1
        # The last dot stands on the edge of the axes, and would be cut in half.
        axes.plot(x, y, marker=marker, ms=3, lw=width, color=color, label=curve.name, clip_on=False)
        if curve.half_life:
            raw = replace(curve, half_life=0)
            axes.plot(*raw.points(), lw=0.7, alpha=0.35, color=color)
    levels = {name: level for name, level in levels.items() if abs(level[0]) < LARGEST}
    for y, color in levels.values():
        axes.axhline(y, color=COLORS[color], lw=0.8, ls=(0, (5, 4)), alpha=0.8)
    (left, low), (right, high) = axes.dataLim.get_points()
    if 0 < left < 0.1 * right:
        axes.set_xlim(left=0)
    # There is no step 1.5, no such generation, and no such training.
    if labels[0] in ("step", "generation", "training"):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=(1, 2, 2.5, 5, 10)))
    # Where nothing can be drawn, `low` is inf.
    if log and 1e-9 < low < LARGEST:
        axes.set_yscale("log")
        # Less than two decades need more ticks than the powers of ten.
        subs = (1, 1.5, 2, 3, 4, 5, 7) if high < 5 * low else (1, 2, 3, 5, 7)
        subs = subs if high < 50 * low else (1,)
        axes.yaxis.set(major_locator=LogLocator(subs=subs), minor_locator=NullLocator())
    else:
        _set_height(axes, low, high, span)
    axes.set_ylim(limits)
    axes.xaxis.set(major_formatter=Ticks())
    axes.yaxis.set(major_formatter=Ticks())
    if len(curves) > 1 or levels:
        # As many names beside each other as there is room for; those with "_" are not shown.
        names = [curve.name for curve in curves if not curve.name.startswith("_")]
        wide = max(NAME_WIDTH, 0.5 + LETTER * max(map(len, names), default=0))
        columns = max(1, min(len(names), int(size[0] / wide)))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    if levels:
        _label_levels(axes, levels, gap=0.18 / size[1])
    return figure


def _set_height(axes, low, high, span):
    """The range of a y axis that is not logarithmic."""
    # What is never negative, such as a fraction, has no axis below 0.
    if low >= 0 > axes.get_ylim()[0]:
        axes.set_ylim(0, None if high else 1)
    bottom, top = axes.get_ylim()
    if (missing := span - (top - bottom)) > 0:
        axes.set_ylim(bottom - missing / 2, top + missing / 2)


def _label_levels(axes, levels, gap):
    """Name each level at the right of the axes, labels at least `gap` of the height apart."""
    rows = sorted((y, COLORS[color], name) for name, (y, color) in levels.items())
    left = axes.get_xlim()[0]
    to_axes = axes.transData - axes.transAxes
    heights = to_axes.transform([(left, y) for y, _, _ in rows])[:, 1]
    for (y, color, name), height, place in zip(rows, heights, spread(heights, gap), strict=True):
        printable = "".join(c if c.isprintable() else "?" for c in name[:40])
        lead = {"arrowstyle": "-", "color": color, "lw": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            f"{printable} {y:#.4g}",
            xy=(1, height),
            xytext=(1.02, place),
            xycoords="axes fraction",
            va="center",
            color=color,
            arrowprops=lead | {"shrinkA": 0, "shrinkB": 0},
        )


@rc_context(STYLE)
def plot_heatmap(
    values: np.ndarray, columns: list[str], rows: list[str], labels: tuple[str, str]
) -> Figure:
    """Numbers from 0 to 1 as colours, [rows, columns]."""
    figure, axes = blank(9.6, 1 + 0.2 * len(rows))
    axes.grid(False)
    x, y = np.arange(len(columns)), np.arange(len(rows))
    # A mesh of vectors: the page's policy allows no bitmap.
    axes.pcolormesh(x, y, values, cmap=CLEAR, vmin=0, vmax=1)
    axes.invert_yaxis()
    is_long = max(map(len, columns)) > 2
    axes.set_xticks(x, columns, rotation=90 if is_long else 0)
    axes.set_yticks(y, rows)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    return figure


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Ascending `places`, moved until they are `gap` apart and at most 1."""
    steps = gap * np.arange(len(places))
    return np.minimum(np.maximum.accumulate(places - steps) + steps, 1 - steps[::-1])


def short(value: float, digits: int = 3) -> str:
    """1234567 as 1.23M, and 1.23456 as 1.235."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits + 1}g}"


class Ticks(Formatter):
    """Writes the ticks of an axis, with as many digits as tell them apart."""

    def __call__(self, x: float, pos: Any = None) -> str:
        """One tick, by itself."""
        return short(x)

    def format_ticks(self, values: Any) -> list[str]:
        """All ticks of an axis."""
        labels = []
        for digits in range(3, 15):
            labels = [short(x, digits) for x in values]
            if len(set(labels)) == len(labels):
                break
        return labels


@rc_context(STYLE)
def svg(figure: Figure) -> Html:
    """The figure as an element of a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # What stands before holds a style that matplotlib would set for the whole page.
    body = out.getvalue().split("</defs>", 1)[1]
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # not unique among the figures of a page
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--{name}, {color})")
    width, height = 72 * figure.get_size_inches()
    axes = figure.axes[0]
    label = escape(" by ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel()))))
    # What is wide can be scrolled on a phone; what is narrow fits it, and stays small elsewhere.
    kind = "narrow" if width < 72 * NARROW else "scroll wide"
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">'
    return Html(f'<div class="{kind}">{head}{body}</div>')


def picture(curves: Sequence[Curve], *args: Any, **kwargs: Any) -> Html:
    """`plot_curves` of the same arguments as SVG; nothing if no point can be drawn."""
    curves = [curve for curve in curves if curve.points()[0].size]
    return svg(plot_curves(curves, *args, **kwargs)) if curves else Html()
