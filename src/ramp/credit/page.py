"""The credit of a rollout in colour: every token on the colour of its advantage.

Green is pushed up, red pushed down, white left alone. Outcome-only credit paints a whole rollout in
one colour; step credit does not. As an HTML page, as a figure and as plain text for a terminal.

`methods` is everywhere name -> advantage [B, N], the columns or lines to compare.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ramp.credit.rollouts import Rollouts
from ramp.reporting import html
from ramp.tasks import Step
from ramp.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Methods = Mapping[str, np.ndarray]
Color = tuple[int, int, int]  # red, green, blue, 0 to 255

UP, DOWN = (46, 160, 67), (218, 54, 51)
# Of a right step, a wrong one, and one that nobody checked.
MARKS = {True: ("✓", "#1a7f37"), False: ("✗", "#cf222e"), None: ("?", "#6e7781")}
NOTE = (
    "Each token stands on the colour of its advantage: green becomes more likely with the update, "
    "red less likely, white stays. The strongest colour is the largest advantage of that method."
)


def blend_color(advantage: float, largest: float) -> Color:
    """White at 0, towards green or red at the largest advantage of the method."""
    if largest <= 0:
        return 255, 255, 255
    # The power keeps small advantages visible, 0.75 keeps the text readable.
    strength = 0.75 * min(1.0, abs(advantage) / largest) ** 0.7
    end = UP if advantage > 0 else DOWN
    red, green, blue = (round(255 + strength * (x - 255)) for x in end)
    return red, green, blue


def show_tokens(tokenizer: Tokenizer, r: Rollouts, row: int) -> list[tuple[int, int, str]]:
    """(n, step, text) of every token of a rollout; `|` is a separator, `■` the end."""
    special = {tokenizer.step: "|", tokenizer.end: "■"}
    tokens = []
    for n, token in enumerate(r.ids(row)):
        if token in special:
            text = special[token]
        elif token < tokenizer.vocab_size:
            text = tokenizer.decode([token])
        else:  # a padded row of the model's table
            text = "\ufffd"
        # Fonts have no picture of a control character, which a model of bytes may well sample.
        text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
        tokens.append((n, int(r.step_bn[row, n]), text))
    return tokens


def describe_step(step: Step) -> str:
    """The verdict on a step in words."""
    if step.right is None:
        return "not checked"
    return "right" if step.right else step.why


def describe_outcome(r: Rollouts, row: int) -> str:
    """What the final answer is, in words."""
    verdict = r.verdicts[row]
    if verdict.final_right is None:
        return "not known"
    if verdict.verified:
        return "right, and every step is"
    if verdict.lucky:
        return "right by luck: a step is wrong"
    return "right, but not every step was checked" if verdict.final_right else "wrong"


def describe_rollout(tokenizer: Tokenizer, r: Rollouts, methods: Methods, row: int) -> str:
    """A line for each step: its text, its verdict, each method's advantage at its last token."""
    # Fixed columns: the lines stand under each other in a terminal.
    tokens = show_tokens(tokenizer, r, row)
    lines = [f"{r.problems[row].question}    the answer is {describe_outcome(r, row)}"]
    for s, step in enumerate(r.verdicts[row].all_steps):
        places = [n for n, token_step, _ in tokens if token_step == s]
        text = "".join(tokens[n][2] for n in places)
        figures = []
        if places:
            figures = [f"{name} {a_bn[row, places[-1]]:+.2f}" for name, a_bn in methods.items()]
        mark = {True: "ok ", False: "NO ", None: "?  "}[step.right]
        lines.append(f"  {text:24} {mark} {describe_step(step):16} {'  '.join(figures)}")
    return "\n".join(lines)


# HTML


def render_page(
    tokenizer: Tokenizer, r: Rollouts, methods: Methods, rows: Sequence[int], title: str
) -> str:
    """An HTML page with a section for each of the rollouts `rows`."""
    sections = [_render_rollout(tokenizer, r, methods, row) for row in rows]
    return html.document(title, sections, note=NOTE)


def _render_rollout(tokenizer: Tokenizer, r: Rollouts, methods: Methods, row: int) -> html.Html:
    tokens = show_tokens(tokenizer, r, row)
    verdict = r.verdicts[row]
    lines = []
    for s, step in enumerate(verdict.all_steps):
        name = "answer" if s == len(verdict.steps) else str(s + 1)
        spans = [(n, text) for n, token_step, text in tokens if token_step == s]
        # Colours are relative to the whole batch, so that rollouts can be compared.
        cells = []
        for a_bn in methods.values():
            largest = float(np.abs(a_bn).max())
            cells.append(_render_spans(spans, a_bn[row], largest))
        css_class = {True: "ok", False: "no", None: ""}[step.right]
        words = html.escape(f"{MARKS[step.right][0]} {describe_step(step)}")
        lines.append([name, *cells, html.Html(f'<span class="{css_class}">{words}</span>')])
    table = html.table(["step", *methods, "verdict"], lines)
    problem = r.problems[row]
    note = f"The answer is {describe_outcome(r, row)}; it should be {problem.answer}."
    return html.section(problem.question, table, note=note)


def _render_spans(spans: list[tuple[int, str]], a_n: np.ndarray, largest: float) -> html.Html:
    parts = []
    for n, text in spans:
        color = blend_color(float(a_n[n]), largest)
        style = f'style="background:rgb{color}" title="{a_n[n]:+.3f}"'
        parts.append(f"<span {style}>{html.escape(text)}</span>")
    return html.Html(f"<code>{''.join(parts)}</code>")


# Figures


def plot_rollouts(
    tokenizer: Tokenizer, r: Rollouts, methods: Methods, rows: Sequence[int]
) -> "Figure":
    """A matplotlib figure, one panel for each of the rollouts `rows`."""
    from matplotlib.figure import Figure

    # The same scale for all panels, so that their tokens line up.
    longest = max(len(r.ids(row)) for row in rows)
    width = max(6, 0.17 * longest + 2)
    height = 0.45 * len(methods) + 1.3
    figure = Figure(figsize=(width, height * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, row in zip(panels, rows, strict=True):
        draw_rollout(axes, tokenizer, r, methods, row)
        axes.set_xlim(-7, longest + 0.5)
    return figure


def draw_rollout(
    axes: "Axes", tokenizer: Tokenizer, r: Rollouts, methods: Methods, row: int
) -> None:
    """A line of coloured tokens for each method, the verdicts on steps below them."""
    from matplotlib.patches import Rectangle

    # One unit of x is a token, one unit of y a line.
    tokens = show_tokens(tokenizer, r, row)
    # A dollar sign in a problem is no formula.
    centered: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
    for line, (name, a_bn) in enumerate(methods.items()):
        y = -line
        largest = float(np.abs(a_bn).max())
        axes.text(-0.5, y, name, ha="right", va="center", fontsize=9)
        for n, _, text in tokens:
            color = np.array(blend_color(float(a_bn[row, n]), largest)) / 255
            box = Rectangle((n, y - 0.42), 1, 0.84, facecolor=color, edgecolor="none")
            axes.add_patch(box)
            axes.text(n + 0.5, y, text, family="monospace", fontsize=9, **centered)
    # Marks stand under the middle of their step; an answer that is missing has no token.
    for s, step in enumerate(r.verdicts[row].all_steps):
        places = [n for n, token_step, _ in tokens if token_step == s]
        if places:
            middle = (places[0] + places[-1] + 1) / 2
            mark, color = MARKS[step.right]
            axes.text(middle, 0.2 - len(methods), mark, color=color, fontsize=11, **centered)
    title = f"{r.problems[row].question}   ({describe_outcome(r, row)})"
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.set_xlim(-7, len(tokens) + 0.5)
    axes.set_ylim(-len(methods) - 0.3, 0.7)
    axes.axis("off")
