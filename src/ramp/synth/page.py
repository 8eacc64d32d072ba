"""The page of a run: is the model still as diverse as the world it learned from, what was lost, and
what did the loop do about it?
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.reporting.figure import COLORS, STYLE, Curve, blank, picture, svg
from ramp.reporting.html import heading, preformatted, section, table, write_page
from ramp.synth.decide import Histogram, SampleFigures
from ramp.synth.history import GenerationResult, ShownSample

# What a figure is called on the page; others keep their names.
LABELS = {
    "coverage_1": "tokens of held-out text that it still uses",
    "coverage_2": "bigrams of held-out text that it still uses",
    "unseen_mass": "mass of what it would say next (Good-Turing)",
    "distinct_1": "tokens per occurrence",
    "distinct_2": "bigrams per occurrence",
    "extinct": "frequent tokens it never uses",
    "kl_lost": "KL(real‖samples), coverage lost",
    "kl_drift": "KL(samples‖real), made up",
    "self_bleu": "self-BLEU",
    "near_duplicates": "near-duplicates",
    "length": "length, tokens",
    "vendi": "effective number in gradient space (Vendi)",
}
LEAST_SPAN = 0.02  # of a picture of bits, as a fraction of them: less than that is hardly a loss
# Columns of the panel: fields of PanelFigure, and how they are written.
FORMATS = {
    "value": ".4g",
    "null": ".4g",
    "ratio": ".2f",
    "z": "+.1f",
    "real": ".4g",
    "z_real": "+.1f",
}
PANEL_NOTE = (
    "Of samples that were accepted, against as many of the first model's. "
    "z: normal deviates from resamples of the first model's samples, and of real text."
)


@rc_context(STYLE)
def plot_surprisal(histogram: Histogram) -> Figure:
    """Samples against real text, by surprisal under the first model."""
    figure, axes = blank(9.6, 3)
    edges = np.asarray(histogram.edges)
    axes.stairs(
        histogram.real, edges, color=COLORS["green"], fill=True, alpha=0.35, label="real text"
    )
    # Real text is filled and samples are a line, so that both stay visible where they overlap.
    axes.stairs(histogram.sample, edges, color=COLORS["main"], lw=1.6, label="samples")
    axes.set(
        xlabel="bits per token under the first model  (← collapse · a language of its own →)",
        ylabel="fraction of documents",
    )
    axes.legend(loc="upper right")
    return figure


def write(directory: Path, history: Sequence[GenerationResult]) -> Path:
    """Write synth.html of a run directory, from the generations that are done."""
    newest = history[-1]  # curves show all generations, figures the newest
    parts = [
        section(
            "Held-out text, generation after generation",
            *_plot_bits(history),
            note="Text that no model was trained on. The control saw real text alone, "
            "in as many steps.",
        ),
        section("What the guard did, and why", _tabulate_decisions(history)),
        *list_sections(newest.figures, newest.refusals, newest.shown),
    ]
    return write_page(directory / "synth.html", f"{directory.resolve().name}: generations", parts)


def list_sections(
    figures: SampleFigures, refusals: dict[str, int], shown: Sequence[ShownSample]
) -> list[str]:
    """What there is to say of samples, wherever they come from."""
    sides = ""
    if figures.shift:
        left, right = figures.shift.left, figures.shift.right
        sides = f"Collapse moves it left ({left:.3f} bits), its own language right ({right:.3f})."
    notes = table(("verifier", "what it does to real text"), figures.notes.items())
    cells = [
        (name, *(f"{fraction:.1%}" for fraction in vars(cell).values()))
        for name, cell in figures.cells.items()
    ]
    reasons = table(("samples", "why they were dropped"), [(n, r) for r, n in refusals.items()])
    texts = []
    for sample in shown:
        texts.append(heading(f"{sample.id} {'dropped: ' if sample.reason else ''}{sample.reason}"))
        texts.append(preformatted(sample.text))
    return [
        section("Verifiers", notes if figures.notes else ""),
        section("Refusals", reasons if refusals else ""),
        section(
            "Kinds of text",
            table(("kind", "of real text", "of samples", "of what was accepted"), cells)
            if cells
            else "",
        ),
        section(
            "Samples compared with real text", svg(plot_surprisal(figures.histogram)), note=sides
        ),
        section("Figures of the newest samples", _tabulate_panel(figures.panel), note=PANEL_NOTE),
        section("Samples", *texts),
    ]


def _plot_bits(history):
    """Curves of all held-out text and of its rare tokens, from the first model on."""
    last = history[-1]
    # Generation 0 is the first model.
    generations = [0, *(h.generation for h in history)]
    bpb = [last.first_bpb, *(h.bpb for h in history)]
    rare = [last.first_rare_bits, *(h.rare_bits for h in history)]
    rare = [np.nan if bits is None else bits for bits in rare]
    control = [last.first_bpb, *(h.control_bpb for h in history)]
    control = [np.nan if bits is None else bits for bits in control]
    # Two pictures: bits per byte and bits per rare token have different scales.
    all_text = picture(
        [
            Curve("this run", generations, bpb, dots=True),
            Curve("real text alone", generations, control, "grey", dots=True),
        ],
        {"first model": (last.first_bpb, "green")},
        ("generation", "bits per byte, held out"),
        span=LEAST_SPAN * last.first_bpb,
    )
    rare_curve = Curve("this run", generations, rare, "warm", dots=True)
    labels = ("generation", "bits per rare token, held out")
    return all_text, picture([rare_curve], {}, labels, size=(9.6, 2.5))


def _tabulate_panel(panel):
    rows = []
    for name, figure in panel.items():
        row = [LABELS.get(name, name)]
        for field, form in FORMATS.items():
            value = getattr(figure, field)  # None: not finite, or not measured on real text
            row.append("" if value is None else format(value, form))
        rows.append(row)
    head = ("figure", "samples", "first model", "ratio", "z", "real text", "z to real")
    return table(head, rows)


def _tabulate_decisions(history):
    rows = []
    for h in history:
        kept = f"{h.kept} of {h.sampled}"
        rows.append((h.generation, kept, f"{h.real_fraction:.2f}", h.before, h.after))
    head = ("generation", "kept", "real fraction", "before training", "after training")
    return table(head, rows)
