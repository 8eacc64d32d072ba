"""The page of a run: is the model still as diverse as the world it learned from, what was lost, and
what did the loop do about it?
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.reporting.figure import COLORS, STYLE, Curve, blank, picture, svg
from ramp.reporting.html import section, table, write_page
from ramp.synth.decide import Histogram
from ramp.synth.history import GenerationResult

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
    "At one fixed number of samples. "
    "z: normal deviates from resamples of the first model's samples, and of real text."
)
ACCOUNTS_NOTE = (
    "In: what verifiers told of the samples they let pass, and what held-out text got cheaper by. "
    "Lost: what it got dearer by."
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
    figures = history[-1].figures  # curves show all generations, figures the newest
    sides = ""
    if figures.shift:
        left, right = figures.shift.left, figures.shift.right
        sides = f"Collapse moves it left ({left:.3f} bits), its own language right ({right:.3f})."
    notes = table(("verifier", "note"), figures.notes.items()) if figures.notes else ""
    histogram = svg(plot_surprisal(figures.histogram))
    parts = [
        section(
            "Held-out text, generation after generation",
            *_plot_bits(history),
            note="Text that no model was trained on.",
        ),
        section("Samples compared with real text", histogram, note=sides),
        section("Figures of the newest samples", _tabulate_panel(figures.panel), note=PANEL_NOTE),
        section("What the guard did, and why", _tabulate_decisions(history)),
        section("Bits in, bits lost", _tabulate_accounts(history), note=ACCOUNTS_NOTE),
        section("Notes", notes),
    ]
    return write_page(directory / "synth.html", f"{directory.resolve().name}: generations", parts)


def _plot_bits(history):
    """Curves of all held-out text and of its rare tokens, from the first model on."""
    last = history[-1]
    # Generation 0 is the first model.
    generations = [0, *(h.generation for h in history)]
    bpb = [last.first_bpb, *(h.bpb for h in history)]
    rare = [last.first_rare_bits, *(h.rare_bits for h in history)]
    rare = [np.nan if bits is None else bits for bits in rare]
    # Two pictures: bits per byte and bits per rare token have different scales.
    all_text = picture(
        [Curve("this run", generations, bpb, dots=True)],
        {"first model": (last.first_bpb, "green")},
        ("generation", "bits per byte, held out"),
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


def _tabulate_accounts(history):
    rows = []
    for h in history:
        rows.append((h.generation, *(f"{bits:,.0f}" for bits in vars(h.accounts).values())))
    return table(("generation", "in: verifiers", "in: real text", "lost"), rows)
