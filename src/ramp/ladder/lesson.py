"""What the page says of one rung besides its figures: the failure, the words, the code."""

import importlib
import inspect
import re
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ramp.ladder import mechanisms
from ramp.ladder.exercises import list_helpers, write_imports
from ramp.ladder.learn import ProbeResult
from ramp.ladder.practices import Practice
from ramp.ladder.probes import Probe
from ramp.ladder.rungs import Lesson, Rung
from ramp.reporting import html
from ramp.reporting.html import Html

STRONGEST = 4  # attention heads that are shown of a model
SHADE = 55  # percent of colour behind a weight of 1: text on it can still be read
LEAST_SHOWN = 0.03  # a weight below is shown by its colour alone


def prose(text: str) -> Html:
    """Paragraphs, an empty line between them, in which `this` is code."""
    return Html("".join(f"<p>{mark(part)}</p>" for part in text.split("\n\n")))


def mark(text: str) -> str:
    """A text in which `this` is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text.strip()))


def fold(title: str, *parts: str) -> Html:
    """Parts that are shown when their title is clicked."""
    return Html(f"<details><summary>{mark(title)}</summary>{''.join(parts)}</details>")


def write_code(source: str) -> Html:
    """Python as it stands, moved sideways where it is wider than the page."""
    return Html(f'<pre class="code">{html.escape(source, limit=20_000)}</pre>')


def chips(labels: Sequence[str], weights: ArrayLike = ()) -> Html:
    """The tokens of a row side by side; weights from 0 to 1 colour them, large ones in percent."""
    fractions = np.asarray(weights, float)
    written = ""
    for i, label in enumerate(labels):
        weight = fractions[i] if fractions.size else 0.0
        shade = f"color-mix(in srgb, var(--main) {SHADE * weight:.0f}%, transparent)"
        number = f"<small>{weight:.0%}</small>" if weight >= LEAST_SHOWN else ""
        written += f'<span style="background:{shade}">{html.escape(label)}{number}</span>'
    return Html(f'<div class="chips">{written}</div>')


def render_failure(
    probe: Probe | Practice,
    names: tuple[str, str],
    below: ProbeResult,
    this: ProbeResult,
    wanted: int = 0,
) -> tuple[list[Html], int]:
    """A row that one side gets wrong and the other right, and which of the rows it is.

    wanted: the one to be taken, if it is such a row.
    """
    examples = list(zip(this.asked, this.said, below.said, strict=True))
    telling = [i for i, (asked, said, lower) in enumerate(examples) if said == asked != lower]
    chosen = wanted if wanted in telling else min(telling, default=0)
    asked, said, lower = (probe.name_answer(this.n, answer) for answer in examples[chosen])
    row, _ = name_row(probe, this, chosen)
    lines = [("the right answer", asked)]
    for name, answer in zip(names, (lower, said), strict=True):
        verdict = "right" if answer == asked else "wrong"
        lines.append((name, f"{answer} ({verdict})"))
    return [
        prose(f"The probe asks {probe.asks}. What goes in, one of its rows:"),
        chips(row),
        prose("What comes out:"),
        html.table(("", "answer"), lines),
    ], chosen


def render_example(lesson: Lesson) -> list[Html]:
    """What goes in and what comes out, with and without the part, by hand; nothing if not told."""
    if not lesson.example:
        return []
    head, *lines = lesson.example
    return [prose(lesson.shows), html.table(head, lines)]


def name_row(
    probe: Probe | Practice, result: ProbeResult, chosen: int
) -> tuple[list[str], list[int]]:
    """Labels of what a row shows and of its last question, and their places in the row.

    Questions that come before the last one have nothing to do with it.
    """
    row = result.rows[chosen]
    names = probe.names(result.n)
    count = len(row) - probe.questions
    places = [*range(count), len(row) - 1]
    return [names[row[i]] for i in places], places


def render_attention(
    probe: Probe | Practice, result: ProbeResult, chosen: int, looks: str = ""
) -> list[Html]:
    """Where the heads that decide most look from the last question of a row.

    chosen: which of the rows that are kept; looks: what is to be seen there.
    """
    row, places = name_row(probe, result, chosen)
    every_lht = np.array(result.attention[chosen])
    weights_lht = every_lht[:, :, places]
    # A head that looks at the question itself has found nothing in the row.
    decided_lh = weights_lht[:, :, :-1].max(axis=-1)
    strongest = np.sort(np.argsort(-decided_lh, axis=None, kind="stable")[:STRONGEST])
    blocks, heads = np.unravel_index(strongest, decided_lh.shape)
    of = f"The {STRONGEST} of {decided_lh.size} heads that look most sharply"
    which = of if decided_lh.size > STRONGEST else "Each head"
    note = f"{which}, on the row above; how to read it stands at the top. The colours:"
    # What is not shown of the row is its other questions.
    others_lh = every_lht.sum(axis=-1) - weights_lht.sum(axis=-1)
    labels = row
    if probe.questions > 1:
        labels = [*row, f"{probe.questions - 1} other question{'s' * (probe.questions > 2)}"]
        weights_lht = np.concatenate([weights_lht, others_lh[..., None]], axis=-1)
    scale = np.linspace(0, 1, 5)
    parts = [html.heading("Where it looks")]
    if looks:
        parts.append(prose(looks))
    parts += [html.remark(note), chips(["none", *[" "] * 3, "all"], scale)]
    for block, head in zip(blocks, heads, strict=True):
        # What a block is comes with rung 9, the first that has several.
        where = f"block {block + 1}, " if len(decided_lh) > 1 else ""
        parts.append(html.remark(f"{where}head {head + 1}"))
        parts.append(chips(labels, weights_lht[block, head]))
    return parts


def render_story(lesson: Lesson) -> list[Html]:
    """The idea, what to think about first, and the words."""
    parts = [html.heading("The idea"), prose(lesson.idea)]
    if lesson.predict:
        parts.append(fold(f"Before you read on: {lesson.predict}", prose(lesson.answer)))
    if lesson.words:
        parts.append(html.heading("Words that are new here"))
        parts.append(html.table(("word", "meaning"), lesson.words.items()))
    return parts


def render_words(rungs: Sequence[Rung]) -> Html:
    """The words of all these rungs from A to Z, each with a link to where it is explained."""
    words = [(word, rung.number) for rung in rungs for word in rung.lesson.words]
    words.sort(key=lambda line: line[0].lower())
    links = [f'<a href="#rung-{number}">{html.escape(word)}</a>' for word, number in words]
    return fold("All words, from A to Z", f"<p>{' · '.join(links)}</p>")


def render_code(lesson: Lesson, number: int) -> list[Html]:
    """The mechanism, which anybody can run, and the lines of the model that make it."""
    parts = []
    if lesson.mechanism:
        function = getattr(mechanisms, lesson.mechanism)
        source = f"{write_imports(function)}\n\n{inspect.getsource(function)}"
        run = (
            f"To write it yourself: ramp ladder exercise {number}, "
            f"then ramp ladder check exercise-{number}.py"
        )
        parts += [html.heading("The mechanism, to run"), write_code(source)]
        parts.append(html.remark(run))
        called = [getattr(mechanisms, name) for name in list_helpers(function)]
        for helper in filter(inspect.isfunction, called):
            parts.append(
                fold(f"What it calls: {helper.__name__}", write_code(inspect.getsource(helper)))
            )
    excerpts = [write_code(read_lines(*line)) for line in lesson.lines]
    if excerpts:
        names = ", ".join(f"{module}.{name}" for module, name, *_ in lesson.lines)
        parts.append(fold(f"The lines of the model, to read or to skip: {names}", *excerpts))
    return parts


def read_lines(module: str, name: str, start: str = "", end: str = "") -> str:
    """The source of a function or class, or its lines from `start` to before `end`.

    Both are how a line begins.
    """
    source = inspect.getsource(getattr(importlib.import_module(module), name))
    if not start:
        return source
    lines = source.splitlines()
    begins = [line.strip() for line in lines]
    first = next(i for i, line in enumerate(begins) if line.startswith(start))
    last = next(i for i, line in enumerate(begins) if i > first and line.startswith(end))
    return textwrap.dedent("\n".join(lines[first:last]))
