"""ladder.html: one picture, then a section for each rung, and the table of them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.ladder import lesson
from ramp.ladder.learn import CorpusResult, ProbeResult, RungResult
from ramp.ladder.practices import PRACTICES, find_probe
from ramp.ladder.rungs import COSTS, FAIL, PASS, SAME_BITS, Rung, rung_below
from ramp.reporting import html
from ramp.reporting.figure import (
    COLORS,
    STYLE,
    Curve,
    blank,
    plot_curves,
    plot_heatmap,
    short,
    svg,
)
from ramp.reporting.html import Html

SIZE = (3.9, 2.3)  # inches: a telephone shows such a picture at its size
COST_TITLES = {
    "params": "weights",
    "flops": "FLOPs per token of training",
    "cache": "bytes kept per token of context while writing",
    "decode": "tokens written per second",
}
VERDICTS = {None: "", True: "earned its place", False: "did not earn its place"}
HALF_COLORS = ("gold", "pink")

OPENING = (
    "A transformer is built here part by part, each where the model without it falls short. Rungs "
    "3 to 10 are judged by small tasks (probes) that the model without the part fails, rungs 1, 2 "
    "and 11 to 17 by bits, cost or stability. From rung 18 on the model stays and is taught in "
    "other ways, again with probes. The score of a probe is (s - g) / (1 - g), where s is the "
    "share of right answers and g that of the best guessing without the part: 0 is guessing, 1 "
    "all right, below 0 worse than guessing. Dots and curves are trainings that differ in their "
    "random numbers alone. In code a row has T tokens, each a vector of D numbers; there are V "
    "different tokens, H heads of h numbers each, and F units in a feed-forward layer."
)
ABOUT_BITS = (
    "Bits per byte do not fall with every rung: each model read the same {tokens} bytes, which "
    "settle a small model and only begin a deep one, and a probe shows that a part is needed for "
    "an ability, not that text rewards this ability after so short a training. "
    "'Equal work' trains a cheaper model on more text, up to the operations of the last rung. "
    "The same text by tables of counts, and by the compressor xz: {bits}."
)


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
    halves: Mapping[str, ProbeResult] = field(default_factory=dict)  # see `Rung`

    @property
    def title(self) -> str:
        """The number and the name of the rung."""
        return f"{self.rung.number} · {self.rung.name}"

    def cells(self) -> list[tuple[str, str]]:
        """A line of the table: columns and texts."""
        rung = self.rung
        branch = "" if rung.main else " (tried, then left)"
        cells = [
            ("rung", f"{rung.number} {rung.name}{branch}"),
            ("rung below", _format_figures(self.verdict.below)),
            ("this rung", _format_figures(self.verdict.this)),
            ("verdict", VERDICTS[self.verdict.earned]),
        ]
        corpus = self.result.corpus
        if corpus.params:  # not when only the probes were asked for
            cells.append(("bits per byte, equal tokens", f"{corpus.bpb:.3f}"))
            cells.append(("equal work", f"{corpus.bpb_equal:.3f}"))
        judge = rung.measure or (f"probe: {rung.probe}" if rung.probe else "")
        return [*cells, ("judged by", judge)]

    def name_sides(self) -> tuple[str, str]:
        """What the two that are compared are called; the first is empty for what stands on none."""
        practice = PRACTICES.get(self.rung.probe)
        if practice:
            return practice.sides
        lower = rung_below(self.rung)
        return f"rung {lower.number}" if lower else "", f"rung {self.rung.number}"

    def summarize(self) -> str:
        """The first columns of the line, for a terminal."""
        return "  ".join(text for _, text in self.cells()[:6] if text)

    def draw_figures(self) -> list[tuple[str, Figure]]:
        """The pictures of a rung, each with its caption: for the page and for TensorBoard."""
        below, this = self.name_sides()
        sides = [(this, self.result, "main")]
        if below:
            sides.insert(0, (below, self.below, "warm"))
        figures = []
        if self.rung.probe:
            probed = [(name, result.probe, color) for name, result, color in sides]
            halves = zip(self.halves.items(), HALF_COLORS, strict=False)
            probed += [(name, result, color) for (name, result), color in halves]
            figures.append(
                ("On the probe: a line for each training", draw_probe(self.rung, probed))
            )
        corpus = self.result.corpus
        if corpus.table:
            names = [_name_byte(byte) for byte in corpus.bytes]
            counts = np.array(corpus.table, float)
            fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
            # The square root keeps rare pairs visible.
            labels = ("the next byte", "the last byte")
            figure = plot_heatmap(np.sqrt(fractions), names, names, labels)
            figures.append(
                ("How often the next byte follows the last: more colour, more often", figure)
            )
        curves = [
            make_curve(name, result.corpus, color)
            for name, result, color in sides
            if result.corpus.curve
        ]
        if curves:
            labels = ("bytes of text read", "loss, bits per byte")
            figure = plot_curves(curves, {}, labels, log=True, size=SIZE)
            figures.append(("On the text: faint each step, bold their moving average", figure))
        return figures

    def render(self) -> html.Html:
        """The section: the failure, the idea, the code, the pictures, what it costs."""
        rung = self.rung
        probe = find_probe(rung.probe) if rung.probe else None
        verdict = VERDICTS[self.verdict.earned]
        parts, looks = [], []
        if rung.lesson.fails:
            parts += [html.heading("What fails without it"), lesson.prose(rung.lesson.fails)]
        if probe and self.below.probe.rows:
            below, this = self.below.probe, self.result.probe
            failure, chosen = lesson.render_failure(probe, self.name_sides(), below, this)
            parts += failure
            if this.attention:
                looks = lesson.render_attention(probe, this, chosen)
        parts += lesson.render_story(rung.lesson) + lesson.render_code(rung.lesson, rung.number)
        parts += [html.heading("Did it help?"), lesson.prose(self.describe_verdict())]
        for caption, figure in self.draw_figures():
            # A table of bytes is too wide for a telephone, and is moved under the finger there.
            wide = figure.get_size_inches()[0] > SIZE[0]
            kind = "scroll wide" if wide else "small"
            picture = Html(f'<div class="{kind}">{svg(figure)}</div>')
            parts += [html.remark(caption), picture]
        parts += looks
        corpus = self.result.corpus
        if rung.lesson.pays:
            parts += [html.heading("What it costs, when it does not pay")]
            parts.append(lesson.prose(rung.lesson.pays))
        if corpus.params:
            costs = [
                f"{title} {short(getattr(corpus, name))}"
                for name, title in COST_TITLES.items()
                if getattr(corpus, name)
            ]
            parts += [html.remark(" · ".join(costs)), html.heading("It writes")]
            parts.append(html.preformatted(corpus.sample))
        title = f"{self.title}: {verdict}" if verdict else self.title
        anchor = f'<a id="rung-{rung.number}"></a>'
        return Html(anchor + html.section(title, *parts, note=rung.motive.strip()))

    def describe_verdict(self) -> str:
        """How this rung was judged, what it did, and what became of the text."""
        rung, below, this = self.rung, self.below, self.result
        figures = [_format_figures(x) for x in (self.verdict.below, self.verdict.this)]
        names = self.name_sides()
        shares = [
            " ".join(f"{share:.0%}" for share in side.probe.accuracy[-1])
            for side in (below, this)
            if side.probe.accuracy
        ]
        told = []
        if rung.measure:
            margin = f"; at least {rung.margin:.0%} less was asked for"
            if rung.margin < 0:
                margin = f"; at most {-rung.margin:.2%} more was allowed"
            if rung.measure in COSTS:
                margin += f", and at most {SAME_BITS} bits per byte more"
            told.append(f"Judged by {rung.measure}: {figures[0]} below, {figures[1]} here{margin}.")
        elif rung.probe:
            told.append(
                f"On its probe {names[0]} comes to {figures[0]}, {names[1]} to {figures[1]} "
                f"(0: guessing, 1: all right; three trainings each), that is {shares[0]} and "
                f"{shares[1]} right. Asked for: at most {FAIL} below in every training, at least "
                f"{PASS} here."
            )
        lost = [f"{x.probe.diverged:.0%}" for x in (below, this)]
        if rung.probe and lost != ["0%", "0%"]:
            told.append(f"Trainings that diverged: {lost[0]} below, {lost[1]} here.")
        if below.corpus.params:
            better = "better" if this.corpus.bpb < below.corpus.bpb else "worse"
            told.append(
                f"On text, after the same number of bytes, {below.corpus.bpb:.3f} bits per byte "
                f"became {this.corpus.bpb:.3f}: {better}."
            )
        if not rung.main:
            told.append("A branch: the rungs after it stand on the one below it, not on this one.")
        return " ".join(told) or "Nothing stands below it, so it is not judged."


def write(path: Path, rows: Sequence[Row], baselines: Mapping[str, float]) -> None:
    """Write the page; `baselines`: bits per byte of the same held-out text."""
    links = [f'<a href="#rung-{row.rung.number}">{html.escape(row.title)}</a>' for row in rows]
    contents = Html(f"<p>{', '.join(links)}</p>")
    overview = draw_overview(rows)
    pictures = [Html(f'<div class="small">{svg(overview)}</div>')] if overview else []
    bits = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    tokens = max(row.result.corpus.batch * len(row.result.corpus.curve) for row in rows)
    note = ABOUT_BITS.format(tokens=f"{tokens:,}", bits=bits) if tokens else ""
    parts = [html.section("Every part, where the model without it fails", *pictures, contents)]
    parts += [row.render() for row in rows]
    parts.append(html.section("All rungs", _make_table(rows), note=note))
    html.write_page(path, "The ladder", parts, note=OPENING)
    print(f"page: {path}")


@rc_context(STYLE)
def draw_overview(rows: Sequence[Row]) -> Figure | None:
    """Every rung that a probe judges: the model without the part and with it, a dot a training."""
    rows = [row for row in rows if row.rung.probe and not row.rung.measure]
    if not rows:
        return None
    figure, axes = blank(SIZE[0], 0.9 + 0.27 * len(rows))
    sides = (("without the part", "below", "warm"), ("with it", "this", "main"))
    for title, side, color in sides:
        for i, row in enumerate(rows):
            figures = getattr(row.verdict, side)
            label = title if i == 0 else None
            axes.plot(figures, [i] * len(figures), "o", ms=5, color=COLORS[color], label=label)
    for i, row in enumerate(rows):
        middles = np.mean(row.verdict.below), np.mean(row.verdict.this)
        axes.plot(middles, [i, i], lw=1, color=COLORS["grey"], alpha=0.6, zorder=0)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xticks([0, FAIL, PASS])
    axes.grid(axis="x", color=COLORS["grey"], alpha=0.25)
    axes.set_xlabel("0: guessing, 1: all answers right")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def _make_table(rows):
    """The lines of some rungs."""
    lines = [dict(row.cells()) for row in rows]
    # Rungs beyond pretraining read no text and have fewer figures.
    columns = max(lines, key=len)
    return html.table(list(columns), [[line.get(c, "") for c in columns] for line in lines])


def _format_figures(figures):
    """Figures of a verdict, one a seed."""
    written = []
    for x in figures:
        text = f"{x:,.0f}" if x >= 100 else f"{x:.2f}"
        # What never gets there takes infinitely many tokens.
        written.append("never" if x == np.inf else text.replace("-0.00", "0.00"))
    return " ".join(written)


def _name_byte(byte):
    """How a byte is shown."""
    character = chr(byte) if 32 < byte < 127 else f"{byte:02x}"
    return {32: "␣", 10: "↵"}.get(byte, character)  # space and line feed


def make_curve(name: str, corpus: CorpusResult, color: str = "main") -> Curve:
    """The training loss on the corpus, over tokens."""
    # Point i is after step i + 1.
    tokens = corpus.batch * (1 + np.arange(len(corpus.curve)))
    return Curve(name, tokens, corpus.curve, color, half_life=10)


def draw_probe(rung: Rung, sides: Sequence[tuple[str, ProbeResult, str]]) -> Figure:
    """Accuracy over training, a curve for each seed; the sides are (name, result, color)."""
    probe = find_probe(rung.probe)
    curves = []
    for name, result, color in sides:
        for seed, accuracy in enumerate(zip(*result.accuracy, strict=True)):
            # matplotlib leaves names with a leading underscore out of the legend.
            label = name if seed == 0 else f"_{seed}"
            curves.append(Curve(label, result.steps, accuracy, color))
    chance = probe.chance(sides[0][1].n)
    bars = {"guessing": 0, "at most": FAIL, "at least": PASS}
    levels = {name: (chance + bar * (1 - chance), "grey") for name, bar in bars.items()}
    return plot_curves(curves, levels, probe.labels, size=SIZE)
