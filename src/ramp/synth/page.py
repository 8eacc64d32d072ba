"""One page a run: is the model still as diverse as the world it learned from, what was lost, what the loop did about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.reporting.figure import COLORS, STYLE, Curve, blank, picture, svg
from ramp.reporting.html import section, table, write_page

FAMILY = {"real": "green", "replace": "warm", "accumulate": "gold"}
FAMILY |= {"subsample": "pink", "anchored": "violet", "guarded": "main"}
SAID = {
    "coverage_1": "tokens of held-out text that it still uses",
    "coverage_2": "bigrams of held-out text that it still uses",
    "unseen_mass": "mass of what it would say next (Good-Turing)",
    "distinct_1": "tokens per occurrence",
    "distinct_2": "bigrams per occurrence",
    "extinct": "frequent tokens it never uses",
    "kl_lost": "KL(real‖samples), coverage lost",
    "kl_drift": "KL(samples‖real), made up",
    "compression": "compression",
    "self_bleu": "self-BLEU",
    "near_duplicates": "near-duplicates",
    "length": "length, tokens",
    "vendi": "effective number in gradient space (Vendi)",
}


@rc_context(STYLE)
def surprisal(h: Mapping[str, Sequence[float]]) -> Figure:
    """Samples against real text by surprisal under the first model: left of it is collapse, right its own language."""
    figure, axes = blank(9.6, 3)
    edges = np.asarray(h["edges"])
    axes.stairs(h["real"], edges, color=COLORS["green"], fill=True, alpha=0.35, label="real text")
    axes.stairs(h["sample"], edges, color=COLORS["main"], lw=1.6, label="samples")
    axes.set(
        xlabel="bits a token under the first model  (← collapse · a language of its own →)",
        ylabel="share of documents",
    )
    axes.legend(loc="upper right")
    return figure


def family(curves: Mapping[str, Sequence[float]], y: str) -> str:
    """Curves of several policies over generations, as SVG."""
    drawn = [
        Curve(name, range(len(v)), v, FAMILY.get(name.split(" ")[0], "grey"), dots=True)
        for name, v in curves.items()
    ]
    return picture(drawn, {}, "generation", y)


def write(directory: Path, history: Sequence[dict]) -> Path:
    """synth.html of a run directory."""
    last, g = history[-1], [0] + [h["generation"] for h in history]
    figures, moved = last["figures"], last["figures"]["shift"]
    held = Curve("this run", g, [last["first_bpb"], *(h["bpb"] for h in history)], dots=True)
    bits = [last["first_rare_bits"], *(h["rare_bits"] for h in history)]
    rare = Curve("this run", g, [b or np.nan for b in bits], "warm", dots=True)
    curves = picture(
        [held],
        {"first model": (last["first_bpb"], "green")},
        "generation",
        "bits per byte, held out",
    )
    tail = picture([rare], {}, "generation", "bits a rare token, held out", size=(9.6, 2.5))
    sides = f"Collapse moves it left ({moved.get('left', 0):.3f} bits), its own language right ({moved.get('right', 0):.3f})."
    parts = [
        section(
            "Held-out text, generation after generation",
            curves,
            tail,
            note="Text that no model was trained on.",
        ),
        section("Samples beside real text", svg(surprisal(figures["histogram"])), note=sides),
        section("Figures of the newest samples", _panel(figures["panel"]), note=PANEL),
        section("What the guard did, and why", _decisions(history)),
        section("Bits in, bits lost", _accounts(history), note=ACCOUNTS),
        section(
            "Notes", table(("", ""), list(figures["notes"].items())) if figures["notes"] else ""
        ),
    ]
    return write_page(directory / "synth.html", f"{directory.resolve().name}: generations", parts)


PANEL = "At one fixed number of samples. z: normal deviates from resamples of the first model's samples, and of real text."
ACCOUNTS = "In: what verifiers told of the samples they let pass, and what held-out text got cheaper by. Lost: dearer by."


def _panel(panel: Mapping[str, dict]) -> str:
    forms = {
        "value": ".4g",
        "null": ".4g",
        "ratio": ".2f",
        "z": "+.1f",
        "real": ".4g",
        "z_real": "+.1f",
    }
    cells = lambda v: ["" if v.get(k) is None else format(v[k], form) for k, form in forms.items()]  # noqa: E731
    rows = [(SAID.get(name, name), *cells(v)) for name, v in panel.items()]
    return table(("figure", "samples", "first model", "ratio", "z", "real text", "z to real"), rows)


def _decisions(history: Sequence[dict]) -> str:
    head = ("generation", "kept", "real share", "before training", "after training")
    after = [" ".join([h["decision"], "; ".join(h["reasons"])]) for h in history]
    rows = [
        (h["generation"], f"{h['kept']} of {h['sampled']}", f"{h['m']:.2f}", h["before"])
        for h in history
    ]
    return table(head, [(*row, said) for row, said in zip(rows, after, strict=True)])


def _accounts(history: Sequence[dict]) -> str:
    rows = [
        (h["generation"], *(f"{h['accounts'][k]:,.0f}" for k in ("verifier", "real", "lost")))
        for h in history
    ]
    return table(("generation", "in: verifiers", "in: real text", "lost"), rows)
