"""ladder.html: a section for each rung, and the table of them all."""

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ramp.ladder.learn import CorpusResult, RungResult
from ramp.ladder.probes import PROBES
from ramp.ladder.rungs import FAIL, PASS, Rung, rung_below
from ramp.model import transformer
from ramp.reporting import html
from ramp.reporting.figure import Curve, plot_curves, plot_heatmap, short, svg
from ramp.train import optim

WIDE = (9.6, 3)  # inches
COSTS = {
    "params": "weights",
    "flops": "FLOPs a token",
    "cache": "cache bytes a token",
    "decode": "tokens/s written",
}
VERDICTS = {None: "", True: "earned", False: "did not earn its place"}


@dataclass(frozen=True)
class Verdict:
    """Figures of the rung below and of this one; whether it earned its place, None: not judged."""

    below: Sequence[float] = ()
    this: Sequence[float] = ()
    earned: bool | None = None


@dataclass(frozen=True)
class Row:
    """A rung with its result, that of the rung below, and the verdict."""

    rung: Rung
    below: RungResult
    result: RungResult
    verdict: Verdict

    def cells(self) -> list[tuple[str, str]]:
        """A line of the table: columns and texts."""
        rung = self.rung
        branch = "" if rung.main else " (branch)"
        cells = [
            ("rung", f"{rung.number} {rung.name}{branch}"),
            ("below", _format_figures(self.verdict.below)),
            ("this", _format_figures(self.verdict.this)),
            ("verdict", VERDICTS[self.verdict.earned]),
        ]
        corpus = self.result.corpus
        if corpus.params:  # not when only the probes were asked for
            is_worse = rung.main and 0 < self.below.corpus.bpb_equal < corpus.bpb_equal
            arrow = " ↑" if is_worse else ""
            cells.append(("bits/byte, equal tokens", f"{corpus.bpb:.3f}"))
            cells.append(("equal FLOPs", f"{corpus.bpb_equal:.3f}{arrow}"))
            cells += [(title, short(getattr(corpus, name))) for name, title in COSTS.items()]
        judge = rung.measure or (f"probe: {rung.probe}" if rung.probe else "")
        return [*cells, ("judged by", judge)]

    def summarize(self) -> str:
        """The first columns of the line, for a terminal."""
        # The costs do not fit next to them; the page has them.
        return "  ".join(text for _, text in self.cells()[:6] if text)

    def draw_figures(self) -> list[tuple[str, Figure]]:
        """The pictures of a rung, each with its caption: for the page and for TensorBoard."""
        sides = [(f"rung {self.rung.number}", self.result, "main")]
        lower = rung_below(self.rung)
        if lower:
            sides.insert(0, (f"rung {lower.number}", self.below, "warm"))
        figures = _draw_probe(self.rung, sides) if self.rung.probe else []
        corpus = self.result.corpus
        if corpus.table:
            names = [_name_byte(byte) for byte in corpus.bytes]
            counts = np.array(corpus.table, float)
            fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
            # The square root keeps rare pairs visible.
            labels = ("the next byte", "the last byte")
            figure = plot_heatmap(np.sqrt(fractions), names, names, labels)
            figures.append(("How often the next byte follows the last", figure))
        curves = [
            make_curve(name, result.corpus, color)
            for name, result, color in sides
            if result.corpus.curve
        ]
        if curves:
            labels = ("tokens", "training loss, bits per byte")
            figure = plot_curves(curves, {}, labels, log=True, size=WIDE)
            figures.append(("On the text", figure))
        return figures

    def render(self) -> html.Html:
        """The section: why, what failed and what passed, the code, a sample, the line."""
        note = ""
        if self.rung.probe:
            note = (
                f"The probe asks {PROBES[self.rung.probe].asks}. "
                f"{self.below.probe.diverged:.0%} of runs diverged below, "
                f"{self.result.probe.diverged:.0%} of runs diverged here."
            )
        parts = [html.paragraph(self.rung.motive)]
        for caption, figure in self.draw_figures():
            parts += [html.heading(caption), svg(figure)]
        # A setting that switches something off names no line of its own.
        excerpts = [
            f"{setting} = {value!r}\n{source}"
            for setting, value in self.rung.settings.items()
            if (source := extract_source(setting, value))
        ]
        if excerpts:
            code = html.preformatted("\n".join(excerpts), limit=20_000)
            parts += [html.heading("What it switches on"), code]
        parts.append(html.heading("It writes"))
        parts.append(html.preformatted(self.result.corpus.sample))
        parts.append(_make_table([self]))
        title = f"{self.rung.number} · {self.rung.name}"
        verdict = VERDICTS[self.verdict.earned]
        return html.section(f"{title}: {verdict}" if verdict else title, *parts, note=note)


def write(path: Path, rows: Sequence[Row], baselines: Mapping[str, float]) -> None:
    """Write the page; `baselines`: bits per byte of the same held-out text."""
    bits = "  ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    note = (
        "Each part is added where the model without it fails. Figures of a probe are fractions of "
        "the way from chance to all right, seed by seed. ↑: more bits at equal FLOPs than the rung "
        f"below. The same held-out text, bits per byte: {bits}."
    )
    parts = [html.section("All rungs", _make_table(rows), note=note)]
    parts += [row.render() for row in rows]
    html.write_page(path, "The ladder", parts)
    print(f"page: {path}")


def _make_table(rows):
    """The lines of some rungs; every row has the same columns."""
    columns = [column for column, _ in rows[0].cells()]
    return html.table(columns, [[text for _, text in row.cells()] for row in rows])


def _format_figures(figures):
    """Figures of a verdict, one a seed."""
    return " ".join(f"{x:.4g}" if x >= 10 else f"{x:.2f}" for x in figures)


def _name_byte(byte):
    """How a byte is shown."""
    character = chr(byte) if 32 < byte < 127 else f"{byte:02x}"
    return {32: "␣", 10: "↵"}.get(byte, character)  # space and line feed


def make_curve(name: str, corpus: CorpusResult, color: str = "main") -> Curve:
    """The training loss on the corpus, over tokens."""
    # Point i is after step i + 1.
    tokens = corpus.batch * (1 + np.arange(len(corpus.curve)))
    return Curve(name, tokens, corpus.curve, color, half_life=10)


def _draw_probe(rung, sides):
    """Accuracy over training, a curve for each seed, and where this rung's last question looks."""
    probe = PROBES[rung.probe]
    result = sides[-1][1].probe
    # One curve a seed, in the color of its rung.
    curves = []
    for name, side, color in sides:
        for seed, accuracy in enumerate(zip(*side.probe.accuracy, strict=True)):
            curves.append(Curve(f"{name}, seed {seed}", side.probe.steps, accuracy, color))
    chance = probe.chance(result.n)
    bars = {"chance": 0, "fails": FAIL, "passes": PASS}
    levels = {name: (chance + bar * (1 - chance), "grey") for name, bar in bars.items()}
    figure = plot_curves(curves, levels, ("step", "accuracy"), size=WIDE)
    figures = [("On the probe", figure)]
    if result.attention:
        names = probe.names(result.n)
        # Ids without a name are the questions.
        row = [names[i] if i < len(names) else "?" for i in result.row]
        weights_lht = np.array(result.attention)
        layers, heads, length = weights_lht.shape
        labels = [f"block {i + 1}, head {j + 1}" for i, j in np.ndindex(layers, heads)]
        figure = plot_heatmap(weights_lht.reshape(-1, length), row, labels, ("the row", ""))
        figures.append(("Where the last question looks", figure))
    return figures


def extract_source(setting: str, value: Any) -> str:
    """The lines of source that name a setting, and the branch that its value takes.

    They are read from the source as it is now: of the model, or for the optimizer of
    train/optim.py, where the lines that name the chosen one count.
    """
    text = inspect.getsource(optim if setting == "optimizer" else transformer)
    names_it = re.compile(rf"\b[ct]\.{setting}\b|by_{value}\(")
    lines = text.splitlines()
    # Lines are counted from 1, as editors count them.
    shown = {i for i, line in enumerate(lines, 1) if names_it.search(line)}
    hidden = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.If) or not names_it.search(ast.unparse(node.test)):
            continue
        # `c.mlp == "swiglu"` compares with a constant, `c.rope` is true or not.
        constants = [n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)]
        is_negated = "!=" in ast.unparse(node.test)
        holds = (value in constants) != is_negated if constants else bool(value)
        taken, left = (node.body, node.orelse) if holds else (node.orelse, node.body)
        shown |= _list_lines(taken)
        hidden |= _list_lines(left)
        # The line of an `if` that is not entered is no part of it either; an `elif` may be.
        if not taken or isinstance(taken[0], ast.If):
            hidden.add(node.lineno)
    excerpt = []
    for i in sorted(shown - hidden):
        if excerpt and i - 1 not in shown - hidden:
            excerpt.append("⋮")
        excerpt.append(f"{i:4}  {lines[i - 1]}")
    return "\n".join(excerpt)


def _list_lines(nodes):
    """The numbers of all lines of some statements."""
    return {i for node in nodes for i in range(node.lineno, node.end_lineno + 1)}
