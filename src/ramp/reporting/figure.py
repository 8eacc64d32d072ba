"""Pictures in one hand for report.html, light or dark, and for TensorBoard: no background, colours that read on both.

`svg` puts a figure into a page, where each colour is a CSS variable and text takes the page's font. Same data, same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ramp.reporting.html import Html

COLORS = {"main": "#4a6fe8", "side": "#8d9ab8", "warm": "#cf692b", "grey": "#858a93"}
COLORS |= {"green": "#3aa387", "gold": "#d9a13b", "violet": "#a06bd0", "pink": "#d3607f"}
CLEAR = LinearSegmentedColormap.from_list("clear", [to_rgba(COLORS["main"], a) for a in (0.04, 1)])
GREY, FONT, MAX_POINTS = COLORS["grey"], 8.5, 500
STYLE = {f"axes.spines.{side}": False for side in ("left", "right", "top")} | {
    "font.family": "DejaVu Sans", "font.size": FONT, "text.color": GREY, "text.parse_math": False,
    "axes.facecolor": "none", "axes.edgecolor": GREY, "axes.labelcolor": GREY, "axes.axisbelow": True,
    "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "ramp",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = "main"  # a key of COLORS
    half_life: float = 0  # in points, of the moving average that is drawn; 0: the values themselves
    dots: bool = False

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """At most MAX_POINTS of what can be drawn: finite and below 1e30."""
        x, y = np.asarray(self.x, float), np.asarray(self.y, float)
        fit = (np.abs(x) < 1e30) & (np.abs(y) < 1e30)
        x, y, n = x[fit], y[fit], int(fit.sum())
        if self.half_life and n:
            weights = 0.5 ** (np.arange(min(n, int(30 * self.half_life))) / self.half_life)
            y = np.convolve(y, weights)[:n] / np.convolve(np.ones(n), weights)[:n]
        if n > MAX_POINTS:  # means over equal pieces, the last point as it is
            starts = np.linspace(0, n - 1, MAX_POINTS).astype(int)
            x, y = (np.add.reduceat(a, starts) / np.diff(starts, append=n) for a in (x, y))
        return x, y


@rc_context(STYLE)
def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches (a page is 9.6 wide), and its axes; draw on them under `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), dpi=130, facecolor="none", layout="constrained")
    axes = figure.subplots()
    axes.tick_params(
        which="both", length=0, labelsize=FONT, labelcolor=GREY
    )  # ticks are made late, without STYLE
    axes.grid(axis="y", color=GREY, alpha=0.25)
    return figure, axes


@rc_context(STYLE)
def line(
    curves: Sequence[Curve],
    levels: Mapping[str, tuple[float, str]],
    labels: tuple[str, str],
    log: bool = False,
    size: tuple[float, float] = (9.6, 4),
) -> Figure:
    """Curves against `levels`, name -> (y, color): horizontal lines, named at the right. `labels` of x and y. `log` y,
    if all are above 0. Under a moving average the values themselves are faint."""
    figure, axes = blank(*size)
    axes.set(xlabel=labels[0], ylabel=labels[1], xmargin=0)
    for c in curves:
        x, y = c.points()
        marker, width = "o" if c.dots or len(x) == 1 else "", 1.6 if c.color == "main" else 1.1
        axes.plot(x, y, marker=marker, ms=3, lw=width, color=COLORS[c.color], label=c.name)
        if c.half_life:
            axes.plot(*replace(c, half_life=0).points(), lw=0.7, alpha=0.35, color=COLORS[c.color])
    rows = sorted(
        (y, name[:40], COLORS[color]) for name, (y, color) in levels.items() if abs(y) < 1e30
    )
    for y, _, color in rows:
        axes.axhline(y, color=color, lw=0.8, ls=(0, (5, 4)), alpha=0.8)
    (left, low), (right, high) = axes.dataLim.get_points()
    if 0 < left < 0.1 * right:
        axes.set_xlim(left=0)
    if log and low > 1e-9:
        axes.set_yscale("log")
        ticks = LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 50 * low else (1,))
        axes.yaxis.set(major_locator=ticks, minor_locator=NullLocator())
    axes.xaxis.set(major_formatter=short)
    axes.yaxis.set(major_formatter=short)
    if len(curves) > 1 or rows:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=max(1, len(curves)))
    ends = (axes.transData - axes.transAxes).transform(
        [(axes.get_xlim()[0], y) for y, *_ in rows] or np.empty((0, 2))
    )
    for (y, name, color), end, place in zip(
        rows, ends[:, 1], spread(ends[:, 1], 0.18 / size[1]), strict=True
    ):
        name = "".join(c if c.isprintable() else "?" for c in name)
        lead = {
            "arrowstyle": "-",
            "color": color,
            "lw": 0.6,
            "shrinkA": 0,
            "shrinkB": 0,
            "relpos": (0, 0.5),
        }
        at = {"xy": (1, end), "xytext": (1.02, place), "xycoords": "axes fraction", "va": "center"}
        axes.annotate(f"{name} {y:#.4g}", **at, color=color, arrowprops=lead)
    return figure


@rc_context(STYLE)
def heat(
    values: np.ndarray, columns: list[str], rows: list[str], labels: tuple[str, str]
) -> Figure:
    """Numbers from 0 to 1 as colours, [rows, columns]."""
    figure, axes = blank(9.6, 1 + 0.2 * len(rows))
    axes.grid(False)
    places = np.arange(len(columns)), np.arange(len(rows))
    axes.pcolormesh(
        *places, values, cmap=CLEAR, vmin=0, vmax=1
    )  # vectors: the page's policy allows no bitmap
    axes.invert_yaxis()
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    return figure


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Ascending `places`, moved until they are `gap` apart and at most 1."""
    steps = gap * np.arange(len(places))
    return np.minimum(np.maximum.accumulate(places - steps) + steps, 1 - steps[::-1])


def short(value: float, _: object = None) -> str:
    """1234567 as 1.23M; also what matplotlib calls to write a tick."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


@rc_context(STYLE)
def svg(figure: Figure) -> Html:
    """The figure as an element of a page, without matplotlib's ids and the style that it would set for the whole page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    body = re.sub(r' id="[\w.]+_\d+"', "", out.getvalue().split("</defs>", 1)[1])
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--{name}, {color})")
    width, height = 72 * figure.get_size_inches()
    label = " by ".join(filter(None, (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel())))
    picture = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{body}'
    )
    return Html(picture)


def picture(
    curves: Sequence[Curve],
    levels: Mapping[str, tuple[float, str]],
    x: str,
    y: str,
    log: bool = False,
    size: tuple[float, float] = (9.6, 4),
) -> Html:
    """The curves of `line` as SVG; nothing if no point of them can be drawn."""
    curves = [curve for curve in curves if len(curve.points()[0])]
    return svg(line(curves, levels, (x, y), log, size)) if curves else Html()
