"""`ramp synth measure`: two sets of texts, a verdict, the figures, a page."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy import ndarray

from ramp.errors import UserError
from ramp.files import to_json
from ramp.reporting.figure import COLORS, STYLE, blank, svg
from ramp.reporting.html import paragraph, section, table, write_page
from ramp.synth.compare import LEAST_TEXTS, Comparing, Evidence
from ramp.synth.page import LABELS
from ramp.synth.texts import Texts, Vocabulary, require_texts
from ramp.synth.verdicts import Finding, judge, percent

EXIT_AGAINST = 1  # a verdict against the samples, or too few texts to tell
FIGURES = LABELS | {
    "compression": "compression, bytes before over bytes after",
    "known_1": "words that real text knows",
    "known_2": "pairs of words that real text knows",
    "recurrence": "uncommon words that come again in their text",
    "rare": "words that are rare in real text",
    "order": "pairs that are known for the order of the words",
    "phrase": "how many more than of real text hold one phrase",
}
SHARES = {
    "variants": "one more variant of a text that is there already",
    "near_duplicates": "nearly repeat an earlier text (J ≥ .8, or 92% in order)",
    "repeats": "word for word an earlier one",
    "copied": "for the most part in real or training text",
    "foreign": "hardly a common word of real text",
    "cut_ends": "end where real texts do not",
}
SHOWN = 300  # characters of a culprit
LIMITS = (
    "What is not seen: variants and copies that share less than half of their words in the same "
    "order (paraphrases), copies of a part of a long text with words changed, a small part of the "
    "samples that is shuffled or has no subject, whether anything is true or good, and what a set "
    "of this size is too small to show."
)


def run(
    real: str, samples: str, train: str | None, page: Path | None, as_json: bool, seed: int
) -> int:
    """Compare the texts of two sources, print the verdict; returns the exit code.

    train: the source that the samples may have been copied from. UserError for a source that
    cannot be read or that holds fewer texts than can be compared.
    """
    # Known before the work that it would waste.
    if page and (page.is_dir() or not page.parent.is_dir()):
        raise UserError(f"{page} cannot be written; name a file in a directory that exists")
    vocabulary = Vocabulary()
    sources = {"real": real, "samples": samples} | ({"train": train} if train else {})
    texts = {name: vocabulary.read(source) for name, source in sources.items()}
    require_texts(texts["real"], 2 * LEAST_TEXTS)
    require_texts(texts["samples"], 2)
    comparing = Comparing(texts["real"], texts["samples"], texts.get("train"), vocabulary, seed)
    evidence = comparing.weigh()
    findings = judge(comparing, evidence)
    if page:
        write(page, comparing, evidence, findings)
    if as_json:
        print(to_json(list_figures(texts, evidence, findings), indent=1))
    else:
        print("\n".join(describe(texts, evidence, findings)))
    return EXIT_AGAINST if any(finding.is_against for finding in findings) else 0


def list_figures(texts: dict[str, Texts], e: Evidence, findings: Sequence[Finding]) -> dict:
    """Everything, for a program."""
    shares = {name: {**vars(share), "rows": share.rows[:100]} for name, share in e.shares.items()}
    figures = {
        "verdict": findings[0].name,
        "findings": [asdict(finding) for finding in findings],
        "sources": {
            name: {"source": t.source, "texts": len(t), "notes": t.notes}
            for name, t in texts.items()
        },
        "compared": {
            "texts": e.num_compared,
            "words": e.num_tokens,
            "how": e.matching.describe(),
            "length_ratio": e.length_ratio,
            "lengths_differ": e.lengths_differ,
        },
        "figures": {name: asdict(figure) for name, figure in e.panel.items()},
        "shares": shares,
    }
    # By way of JSON: numbers of NumPy become plain ones.
    return json.loads(json.dumps(figures, default=lambda value: value.tolist()))


def describe_compared(e: Evidence) -> str:
    """How the two sets were made comparable, in words."""
    parts = [f"{e.num_compared:,} texts of {e.num_tokens:,} words on each side"]
    if e.num_compared < e.num_sample:
        parts.append(f"at most half of the {e.num_real:,} real texts, beside the other half")
    if e.lengths_differ:
        parts.append(f"lengths differ ({e.length_ratio:.2f} times): {e.matching.describe()}")
    else:
        parts.append("lengths agree, and are made equal rank by rank")
    return "; ".join(parts)


def describe_source(texts: Texts) -> str:
    """Where texts are from and how they were read, in words."""
    notes = f" ({'; '.join(texts.notes)})" if texts.notes else ""
    return f"{len(texts):,} texts of {texts.source}{notes}"


def describe(texts: dict[str, Texts], e: Evidence, findings: Sequence[Finding]) -> list[str]:
    """Lines for a terminal."""
    lines = [finding.sentence for finding in findings] + [""]
    for finding in findings:
        for culprit in finding.culprits:
            lines.append(f"  {culprit.what}: {' '.join(culprit.text.split())[:100]}")
    lines += [""] if lines[-1] else []
    lines += [f"{name:8} {describe_source(t)}" for name, t in texts.items()]
    lines.append(f"compared {describe_compared(e)}")
    lines.append("")
    rows = tabulate(e)
    width = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        lines.append(f"{name:{width}}" + "".join(f"{cell:>10}" for cell in cells))
    lines += ["", LIMITS]
    return lines


def tabulate(e: Evidence) -> list[list[str]]:
    """A head, and a row for each figure and each share."""
    rows = [["", "samples", "real", "ratio", "z"]]
    for name, f in e.panel.items():
        cells = (format_number(f.value, ".4g"), format_number(f.null, ".4g"))
        rows.append(
            [
                FIGURES[name],
                *cells,
                format_number(f.ratio, ".2f"),
                format_number(f.z, "+.1f"),
            ]
        )
    for name, share in e.shares.items():
        cells = (percent(share.value), percent(share.null))
        rows.append([SHARES[name], *cells, "", format_number(share.z, "+.1f")])
    return rows


def format_number(value: float, form: str) -> str:
    """The number, or that it is none."""
    return format(value, form) if np.isfinite(value) else "none"


# --- the page


def write(path: Path, comparing: Comparing, e: Evidence, findings: Sequence[Finding]) -> None:
    """Write the page of a comparison."""
    sections = [section("Verdict", *(paragraph(f.sentence) for f in findings), note=LIMITS)]
    for finding in findings:
        rows = [(c.what, c.text[:SHOWN]) for c in finding.culprits]
        if rows:
            title = f"What shows it: {finding.sentence.split(':')[0]}"
            sections.append(section(title, table(("", "text"), rows)))
    head, *rows = tabulate(e)
    note = (
        "Real: the same figure on real text of the same number of texts and words. z: normal "
        "deviates of the difference from chance."
    )
    sections.append(section("Every figure", table(head, rows), note=note))
    lengths = [texts.docs.lengths for texts in (comparing.real, comparing.sample)]
    sections.append(section("Lengths", svg(plot_lengths(*lengths)), note=describe_compared(e)))
    named = {"real": comparing.real, "samples": comparing.sample, "train": comparing.train}
    # One cell of words: a long path can be broken in it.
    sources = [(name, describe_source(texts)) for name, texts in named.items() if texts]
    sections.append(section("What was read", table(("", "texts"), sources)))
    write_page(path, f"{Path(comparing.sample.source).name}: as diverse as real text?", sections)


@rc_context(STYLE)
def plot_lengths(real: ndarray, sample: ndarray) -> Figure:
    """The words of a text, of samples beside real text."""
    figure, axes = blank(5.9, 2.4)  # so narrow that it fits a phone
    most = float(np.quantile(np.concatenate([real, sample]), 0.99)) + 1
    edges = np.linspace(0, most, 41)
    for lengths, name, color, is_filled in (
        (real, "real text", "green", True),
        (sample, "samples", "main", False),
    ):
        share = np.histogram(lengths, edges)[0] / len(lengths)
        alpha = 0.35 if is_filled else 1
        axes.stairs(
            share, edges, color=COLORS[color], fill=is_filled, alpha=alpha, lw=1.6, label=name
        )
    axes.set(xlabel="words of a text", ylabel="share of the texts", xmargin=0)
    axes.legend(loc="upper right")
    return figure
