"""One self-contained HTML page: headings, tables and pictures as inline SVG. No script, nothing fetched."""

import io
from html import escape
from pathlib import Path

import numpy as np

from ramp.rundir import write_atomic

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
    "svg{max-width:100%;height:auto}.note{color:#666}"
)


def write(path: Path, title: str, parts: list) -> None:
    """parts: a str is a paragraph, a list of rows a table whose first row is its head, a figure a picture."""
    body = "\n".join(
        _paragraph(p) if isinstance(p, str) else _table(p) if isinstance(p, list) else _svg(p) for p in parts
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    write_atomic(path, f"{head}\n<h1>{escape(title)}</h1>\n{body}\n</html>\n")


def _paragraph(text: str) -> str:
    return f"<h2>{escape(text[3:])}</h2>" if text.startswith("## ") else f"<p>{escape(text)}</p>"


def _table(rows: list) -> str:
    cells = [[escape(str(c)) for c in row] for row in rows]
    head = "".join(f"<th>{c}</th>" for c in cells[0])
    return (
        f"<table><tr>{head}</tr>{''.join('<tr><td>' + '</td><td>'.join(r) + '</td></tr>' for r in cells[1:])}</table>"
    )


def _svg(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _axes(width: float = 8, height: float = 4):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def reliability(o) -> object:
    """Nines over compute or steps: what was seen, and the forecast with its 50% and 90% bands."""
    figure, axes = _axes()
    up = -np.log10(np.maximum(1 - o.mix, 1e-6))
    for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.3)):
        axes.fill_between(10**o.grid, *np.percentile(up, (low, high), axis=0), alpha=alpha, color="C0", lw=0)
    axes.plot(10**o.grid, np.median(up, 0), color="C0", label="usage mix: median, 50% and 90%")
    for name, path in o.slices.items():
        if len(o.slices) > 1:
            axes.plot(
                10**o.grid, np.median(-np.log10(np.maximum(1 - path, 1e-6)), 0), lw=1, ls="--", label=f"slice {name}"
            )
    x, y, low, high = np.array(o.seen).T
    y, low, high = (-np.log10(np.maximum(1 - v, 1e-6)) for v in (y, low, high))
    y = np.clip(y, low, high)
    axes.errorbar(10**x, y, [y - low, np.minimum(high, 6) - y], fmt="o", color="black", ms=4, label="seen, 90%")
    axes.axvline(10**o.now, color="grey", lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_ylim(0, max(3.3, float(np.median(up[:, -1])) + 1))
    axes.set(xlabel=o.unit, ylabel="nines")
    axes.legend(frameon=False)
    return figure


def calibration(s: dict) -> object:
    """PIT in tenths (flat is calibrated), and what was said against what happened."""
    figure, axes = _axes(8, 3)
    axes.remove()
    left, right = figure.subplots(1, 2)
    left.bar(np.arange(10) / 10 + 0.05, s["pit"], 0.09)
    left.axhline(sum(s["pit"]) / 10, color="grey", lw=0.8)
    left.set(title="where the truth fell in the forecast", xlabel="probability integral transform")
    for said, happened, count in s.get("calibration", []):
        right.plot(said, happened, "o", ms=3 + np.sqrt(count), color="C0")
    right.plot([0, 1], [0, 1], color="grey", lw=0.8)
    right.set(title="events: said against happened", xlabel="probability", ylabel="share that happened")
    return figure


def item_map(hard: np.ndarray, abilities: np.ndarray) -> object:
    """Items by difficulty, and the abilities of the checkpoints on the same scale."""
    figure, axes = _axes(8, 2.5)
    axes.hist(hard, 40, color="C0", alpha=0.6)
    for a in abilities:
        axes.axvline(a, color="black", lw=0.8)
    axes.set(xlabel="difficulty of items; lines: ability of each checkpoint (logits)", ylabel="items")
    return figure


def steps(levels: list[tuple[str, bool, str]]) -> object:
    figure, axes = _axes(8, 1.6)
    reached = True
    for k, (name, ok, _) in enumerate(levels):
        reached &= bool(ok)
        axes.bar(k, k + 1, color="C2" if reached else "lightgrey")
        axes.text(k, 0.1, name, ha="center")
    axes.set_axis_off()
    return figure
