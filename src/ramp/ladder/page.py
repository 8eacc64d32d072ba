"""ladder.html: one picture, then a section for each rung, and the table of them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.ladder import lesson
from ramp.ladder.learn import CorpusResult, ProbeResult, RungResult
from ramp.ladder.practices import PRACTICES, find_probe
from ramp.ladder.rungs import COSTS, FAIL, PASS, SAME_BITS, Measure, Rung, read_table, rung_below
from ramp.reporting import html
from ramp.reporting.figure import (
    COLORS,
    STYLE,
    Curve,
    blank,
    plot_curves,
    plot_heatmap,
    svg,
)
from ramp.reporting.html import Html

SIZE = (3.6, 2.3)  # inches: a telephone shows such a picture at its size
LINE = 0.2  # inches of a line of a legend
# What is measured of a model on the text: a line of the table of costs, and the unit.
COSTS_SHOWN = {
    "params": ("weights", "numbers"),
    "flops": ("work for each token of training", "FLOPs"),
    "cache": ("memory for each token while writing", "bytes"),
}
VERDICTS = {None: "", True: "earned its place", False: "did not earn its place"}
HALF_COLORS = ("gold", "pink")
# Bits per byte that are drawn at most: knowing nothing costs 8, and one spike would take all room.
MOST_BITS = 9.0
SHARES = (-0.04, 1.04)  # what an axis of shares shows: a line at 0 or 1 is not hidden by the edge


@dataclass(frozen=True)
class Texts:
    """What the page says besides its lessons, as page.toml has it."""

    opening: str
    reading: Sequence[str]  # how the page is read
    letters: Mapping[str, str]  # of the code
    measures: Mapping[str, Measure]  # by the keys of `run.MEASURES`
    # Of pictures and tables:
    overview: str
    probe: str
    counts: str
    loss: str
    cut: str  # of a loss that is too high to be drawn
    sizes: str  # of a figure for each training
    table: str
    bits: str


def read_texts() -> Texts:
    """The texts of page.toml."""
    told = read_table("page.toml")
    measures = {name: Measure(**row) for name, row in told.pop("measures").items()}
    return Texts(measures=measures, **told)


TEXTS = read_texts()


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
            ("rung below", self.format_figures(self.verdict.below)),
            ("this rung", self.format_figures(self.verdict.this)),
            ("verdict", VERDICTS[self.verdict.earned]),
        ]
        corpus = self.result.corpus
        if corpus.params:  # not when only the probes were asked for
            cells.append(("bits per byte, equal tokens", f"{corpus.bpb:.3f}"))
            cells.append(("bits per byte, equal work", f"{corpus.bpb_equal:.3f}"))
        judge = rung.measure or (f"probe: {rung.probe}" if rung.probe else "")
        return [*cells, ("judged by", judge)]

    def format_figures(self, figures: Sequence[float]) -> str:
        """Figures of the verdict with their unit: scores, which have none, are one a training."""
        written = _format_figures(figures)
        if not self.rung.measure or not np.isfinite(figures).all():
            return written  # "never" has no unit either
        return f"{written} {TEXTS.measures[self.rung.measure].unit}"

    def name_sides(self) -> tuple[str, str]:
        """What the two that are compared are called; the first is empty for what stands on none."""
        practice = PRACTICES.get(self.rung.probe)
        if practice:
            return practice.sides
        below, this = (
            f"rung {rung.number} ({rung.name})" if rung else ""
            for rung in (rung_below(self.rung), self.rung)
        )
        return below, this

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
            caption = TEXTS.probe.format(axis=find_probe(self.rung.probe).labels[0])
            figures.append((caption, draw_probe(self.rung, probed)))
            if self.rung.measure:  # what it is judged by is no share of right answers
                # Trainings are apart from each other: a dot each, and no line between them.
                write = "{:.2f}".format
                dots = [
                    Curve(f"_{s}" if s else _name_line(name, x.score, write), [s + 1], [y], color)
                    for name, x, color in probed
                    for s, y in enumerate(x.score)
                ]
                labels = ("training", TEXTS.measures[self.rung.measure].title)
                figures.append((TEXTS.sizes, plot_curves(dots, {}, labels, size=_make_room(2))))
        corpus = self.result.corpus
        if corpus.table:
            names = [_name_byte(byte) for byte in corpus.bytes]
            counts = np.array(corpus.table, float)
            fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
            # The square root keeps rare pairs visible.
            labels = ("the next byte", "the last byte")
            figure = plot_heatmap(np.sqrt(fractions), names, names, labels)
            figures.append((TEXTS.counts, figure))
        # Cut for the picture alone: verdicts are on the losses as they were.
        curves = [
            _cut_high(make_curve(name, result.corpus, color))
            for name, result, color in sides
            if result.corpus.curve
        ]
        if curves:
            labels = ("bytes of text read", "loss, bits per byte")
            named = [
                replace(x, name=_name_line(x.name, x.points()[1][-1:], "{:.2f}".format))
                for x in curves
            ]
            figure = plot_curves(named, {}, labels, log=True, size=_make_room(len(curves)))
            # A single line has no legend.
            single = f" The line: {curves[0].name}." if len(curves) == 1 else ""
            cut = TEXTS.cut.format(MOST_BITS=MOST_BITS) if _is_cut(sides) else ""
            figures.append((TEXTS.loss + single + cut, figure))
        return figures

    def render(self) -> html.Html:
        """The section: the failure, the idea, the code, the pictures, what it costs."""
        rung = self.rung
        probe = find_probe(rung.probe) if rung.probe else None
        verdict = VERDICTS[self.verdict.earned]
        parts, looks = [], []
        if rung.lesson.fails:
            measure = TEXTS.measures.get(rung.measure, Measure)
            parts += [html.heading(measure.lacks), lesson.prose(rung.lesson.fails)]
            parts += lesson.render_example(rung.lesson)
        if rung.lesson.notice:
            parts.append(lesson.prose(rung.lesson.notice))
        if probe and self.below.probe.rows:
            below, this = self.below.probe, self.result.probe
            names, row = self.name_sides(), rung.lesson.row
            failure, chosen = lesson.render_failure(probe, names, below, this, row)
            parts += failure
            if this.attention:
                looks = lesson.render_attention(probe, this, chosen, rung.lesson.looks)
        parts += lesson.render_story(rung.lesson) + lesson.render_code(rung.lesson, rung.number)
        parts.append(html.heading("Did it help?"))
        parts += [*_lay_out(self.render_verdict(), self.draw_figures()), *looks]
        corpus = self.result.corpus
        if rung.lesson.pays:
            parts += [html.heading("What it costs, when it does not pay")]
            parts.append(lesson.prose(rung.lesson.pays))
        if corpus.params:
            parts += self.render_costs()
        title = f"{self.title}: {verdict}" if verdict else self.title
        anchor = f'<a id="rung-{rung.number}"></a>'
        return Html(anchor + html.section(title, *parts, note=rung.motive.strip()))

    def render_costs(self) -> list[Html]:
        """What this rung and the one below it cost, and what they write."""
        sides = [(self.name_sides()[1], self.result.corpus)]
        if self.below.corpus.params:
            sides.insert(0, (self.name_sides()[0], self.below.corpus))
        lines = []
        for name, (title, unit) in COSTS_SHOWN.items():
            values = [getattr(corpus, name) for _, corpus in sides]
            if any(values):
                lines.append((title, *(f"{x:,.0f} {unit}" if x else "-" for x in values)))
        # In a head there is no room for names.
        parts = [html.table(("cost", *(name.split(" (")[0] for name, _ in sides)), lines)]
        parts.append(html.heading("What it writes"))
        for name, corpus in sides:
            parts += [html.remark(f"{name}:"), html.preformatted(corpus.sample)]
        return parts

    def render_verdict(self) -> list[Html]:
        """How this rung was judged, what it did, and what became of the text."""
        rung, names, verdict = self.rung, self.name_sides(), self.verdict
        figures = [self.format_figures(x) for x in (verdict.below, verdict.this)]
        parts = []
        if rung.measure:
            measure = TEXTS.measures[rung.measure]
            parts.append(lesson.prose(f"Judged by {measure.told}"))
            lines = zip(names, figures, ("", _describe_margin(rung)), strict=True)
            parts.append(html.table(("", measure.title, "asked for"), lines))
        elif verdict.this:
            ends = [side.probe.accuracy[-1] for side in (self.below, self.result)]
            shares = [" ".join(map(_write_share, end)) for end in ends]
            asked = f"at most {FAIL} each", f"at least {PASS} each"
            head = ("", "scores", find_probe(rung.probe).labels[1], "scores asked for")
            parts.append(html.table(head, zip(names, figures, shares, asked, strict=True)))
        told = self.describe_rest() or "Nothing stands below it, so it is not judged."
        return [*parts, lesson.prose(told)]

    def describe_rest(self) -> str:
        """What there is to say beside the figures of the verdict; nothing for the lowest rung."""
        rung, below, this = self.rung, self.below, self.result
        told = [f"It {VERDICTS[self.verdict.earned]}."] if self.verdict.this else []
        if rung.measure and not rung.probe and this.corpus.curve:
            told.append("That is one training: another might be judged otherwise.")
        lost = [f"{x.probe.diverged:.0%}" for x in (below, this)]
        if rung.probe and lost != ["0%", "0%"]:
            told.append(f"Trainings that diverged: {lost[0]} below, {lost[1]} here.")
        if below.corpus.params:
            better = "better" if this.corpus.bpb < below.corpus.bpb else "worse"
            # A table of counts has no curve: it is made of all of the text.
            read = "after the same number of bytes"
            read = read if below.corpus.curve or not this.corpus.curve else "of which it read less"
            # Else "earned its place" and "worse" look like a contradiction.
            judged = f"; it is judged by {rung.measure or 'its probe'}, not by this"
            if rung.measure in COSTS:
                judged = f", where at most {SAME_BITS} more was asked for"
            told.append(
                f"On text, {read}, {below.corpus.bpb:.3f} bits per byte became "
                f"{this.corpus.bpb:.3f}: {better}{judged if better == 'worse' else ''}."
            )
        told.append(this.probe.notes)
        if not rung.main:
            told.append(
                "A branch: it is tried on top of the rung below it and then left, whatever it did, "
                "since the model that `ramp run` trains goes without it. The rungs after it stand "
                "on the one below it."
            )
        return " ".join(filter(None, told))


def write(path: Path, rows: Sequence[Row], baselines: Mapping[str, float]) -> None:
    """Write the page; `baselines`: bits per byte of the same held-out text."""
    # A title is not broken.
    link = '<a href="#rung-{}" style="white-space: nowrap">{}</a>'
    links = [link.format(row.rung.number, html.escape(row.title)) for row in rows]
    contents = Html(f"<p>{', '.join(links)}</p>")
    overview = draw_overview(rows)
    about = TEXTS.overview.format(FAIL=FAIL, PASS=PASS)
    if overview:
        contents = Html("".join(_lay_out([contents], [(about, overview)])))
    bits = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    tokens = max(row.result.corpus.batch * len(row.result.corpus.curve) for row in rows)
    notes = [TEXTS.table]
    if tokens:
        notes.append(TEXTS.bits.format(tokens=f"{tokens:,}", bits=bits))
    letters = html.table(("letter in the code", "meaning"), TEXTS.letters.items())
    parts = [
        html.section("How to read this page", *map(lesson.prose, TEXTS.reading), letters),
        html.section("Every part, where the model without it fails", contents),
    ]
    parts += [row.render() for row in rows]
    words = lesson.render_words([row.rung for row in rows])
    parts.append(html.section("All rungs", *map(html.remark, notes), _make_table(rows), words))
    html.write_page(path, "The ladder", parts, note=TEXTS.opening)
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
    axes.set_xticks([0, FAIL, PASS, 1], ["0", f"{FAIL}", f"{PASS}", "1"])
    axes.get_xticklabels()[2].set_horizontalalignment("right")  # beside the 1
    axes.grid(axis="x", color=COLORS["grey"], alpha=0.25)
    axes.set_xlabel("score: 0 guessing, 1 all right")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def _make_table(rows):
    """The lines of some rungs."""
    lines = [dict(row.cells()) for row in rows]
    # Rungs beyond pretraining read no text and have fewer figures.
    columns = max(lines, key=len)
    table = html.table(list(columns), [[line.get(c) or "-" for c in columns] for line in lines])
    # On a telephone it is moved under the finger: its columns would have no room.
    return Html(f'<div class="wide">{table}</div>')


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


def _describe_margin(rung):
    """What a measure must come to, against the rung below."""
    if rung.margin < 0:
        return f"at most {-rung.margin:.2%} more"
    also = f", and at most {SAME_BITS} bits per byte more" if rung.measure in COSTS else ""
    return f"at least {rung.margin:.0%} less{also}"


def _lay_out(told, pictures):
    """What is told and the pictures: a single one stands beside it, several side by side below."""
    small, wide = [], []
    for caption, figure in pictures:
        picture = html.remark(caption) + svg(figure)
        if figure.get_size_inches()[0] > SIZE[0]:
            # A table of bytes is too wide for a telephone, and is moved under the finger there.
            wide.append(Html(f'<div class="scroll wide large">{picture}</div>'))
        else:
            small.append(picture)
    if len(small) == 1:
        told, small = [], ["".join(told), *small]
    cells = "".join(f"<div>{part}</div>" for part in small)
    return [*told, Html(f'<div class="panels">{cells}</div>'), *wide]


def _cut_high(curve):
    """The curve without what is above MOST_BITS; what is not finite stays so."""
    y = np.asarray(curve.y, float)
    return replace(curve, y=np.where(np.isfinite(y), np.minimum(y, MOST_BITS), y))


def _is_cut(sides):
    """Whether a loss is too high to be drawn."""
    return any(max(result.corpus.curve, default=0) > MOST_BITS for _, result, _ in sides)


def _write_share(share):
    """A share in percent, of which only all is 100%."""
    return f"{min(round(100 * share, 1), 100 if share == 1 else 99.9):g}%"


def _name_line(name, ends, write):
    """A name in a legend, short, and where its lines end, as some lie behind each other."""
    if not len(ends):
        return name  # nothing can be drawn of it
    low, high = write(min(ends)), write(max(ends))
    span = low if low == high else f"{low} to {high}"
    return f"{name.split(' (')[0]}: {span}"


def _make_room(names):
    """Inches of a picture whose legend has a line for each of so many names."""
    return SIZE[0], SIZE[1] + LINE * (names - 1)


def make_curve(name: str, corpus: CorpusResult, color: str = "main") -> Curve:
    """The training loss on the corpus, over tokens."""
    # Point i is after step i + 1.
    tokens = corpus.batch * (1 + np.arange(len(corpus.curve)))
    return Curve(name, tokens, np.array(corpus.curve, float), color, half_life=10)


def draw_probe(rung: Rung, sides: Sequence[tuple[str, ProbeResult, str]]) -> Figure:
    """Accuracy over training, a curve for each seed; the sides are (name, result, color)."""
    probe = find_probe(rung.probe)
    curves = []
    for name, result, color in sides:
        for seed, accuracy in enumerate(zip(*result.accuracy, strict=True)):
            # matplotlib leaves names with a leading underscore out of the legend.
            ends = result.accuracy[-1]
            label = _name_line(name, ends, _write_share) if seed == 0 else f"_{seed}"
            curves.append(Curve(label, result.steps, accuracy, color))
    chance = probe.chance(sides[0][1].n)
    bars = {"guess": 0, "fail ≤": FAIL, "pass ≥": PASS}
    levels = {name: (chance + bar * (1 - chance), "grey") for name, bar in bars.items()}
    if rung.measure:  # there is nothing to pass
        levels = {"guess": levels["guess"]}
    elif not chance:
        del levels["guess"]  # it is the axis itself
    room = _make_room(len(sides))
    return plot_curves(curves, levels, probe.labels, size=room, limits=SHARES)
