"""The credit of a rollout in colour: every token on the colour of its advantage.

Green is pushed up, red pushed down, white left alone. Outcome-only credit paints a whole rollout in
one colour; step credit does not. As an HTML page, as a figure and as plain text for a terminal.

`methods` is everywhere name -> advantage [B, N], the lines to compare.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ramp.credit.advantages import METHODS
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
    "red less likely, white stays as it is. The strongest colour is the largest advantage of that "
    "method in the batch. The number is the advantage of a step's last token. Solutions of one "
    "problem stand beside each other, since that is how they are compared."
)
PROBLEMS, SIBLINGS = 4, 3  # shown on a page


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


def describe_step(step: Step, is_answer: bool = False) -> str:
    """The verdict on a step in words. An answer is judged by the steps: it follows, or not."""
    if step.right is None:
        return "not checked"
    if is_answer and step.why != "malformed":
        return "follows from the steps" if step.right else "does not follow from the steps"
    return "right" if step.right else step.why


def describe_outcome(r: Rollouts, row: int) -> str:
    """What the final answer is, in words."""
    verdict = r.verdicts[row]
    if r.answers[row] is None:
        return "missing"
    if verdict.final_right is None:
        return "not known"
    if verdict.verified:
        return "right, and every step is"
    if verdict.lucky and not verdict.all_steps[-1].right:
        return "the right one, though it does not follow: a step is wrong"
    if verdict.lucky:
        return "right by luck: a step is wrong"
    return "right, but not every step was checked" if verdict.final_right else "wrong"


def describe_rollout(tokenizer: Tokenizer, r: Rollouts, methods: Methods, row: int) -> str:
    """A line for each step: its text, its verdict, each method's advantage at its last token."""
    # Fixed columns: the lines stand under each other in a terminal.
    tokens = show_tokens(tokenizer, r, row)
    lines = [f"{r.problems[row].question}    the answer is {describe_outcome(r, row)}"]
    verdict = r.verdicts[row]
    for s, step in enumerate(verdict.all_steps):
        places = [n for n, token_step, _ in tokens if token_step == s]
        text = "".join(tokens[n][2] for n in places)
        figures = []
        if places:
            figures = [f"{name} {a_bn[row, places[-1]]:+.2f}" for name, a_bn in methods.items()]
        mark = {True: "ok ", False: "NO ", None: "?  "}[step.right]
        words = describe_step(step, is_answer=s == len(verdict.steps))
        lines.append(f"  {text:24} {mark} {words:16} {'  '.join(figures)}")
    return "\n".join(lines)


# HTML


def render_page(
    tokenizer: Tokenizer, r: Rollouts, methods: Methods, rows: Sequence[int], title: str
) -> str:
    """An HTML page with the problems of the rollouts `rows`, each with solutions side by side."""
    sections = [
        _render_problem(tokenizer, r, methods, siblings) for siblings in choose_siblings(r, rows)
    ]
    return html.document(title, [_render_methods(methods), *sections], note=NOTE)


def choose_siblings(r: Rollouts, rows: Sequence[int]) -> list[list[int]]:
    """Rows of one problem each, the given ones first, then different solutions of the same one.

    One with every step right is among them where there is one, or else one with the right answer.
    Where the given rows are of few problems, others follow.
    """

    def merit(row: int) -> tuple[bool, bool]:
        return r.verdicts[row].verified, bool(r.verdicts[row].final_right)

    groups = dict.fromkeys(row // r.group_size for row in [*rows, *range(len(r.problems))])
    chosen: dict[str, list[int]] = {}  # a question is shown once
    for group in groups:
        first = group * r.group_size
        own = range(first, first + r.group_size)
        order = [*(row for row in rows if row in own), *own]
        different = {tuple(r.ids(row)): row for row in reversed(order)}
        ranked = sorted(different.values(), key=order.index)
        shown = ranked[:SIBLINGS]
        # What the others should have been.
        best = max(ranked, key=merit)
        if merit(best) > max(map(merit, shown)):
            shown[-1] = best
        chosen.setdefault(r.problems[first].question, shown)
    return list(chosen.values())[:PROBLEMS]


def _render_methods(methods: Methods) -> html.Html:
    """What each method gives credit for, in the first sentence of its docstring."""
    parts = []
    for name in methods:
        text = METHODS[name].assign.__doc__ if name in METHODS else ""
        first = " ".join((text or "a method of your own").split("\n\n")[0].split())
        parts.append(f'<p class="note"><b>{html.escape(name)}</b>: {html.escape(first)}</p>')
    return html.section("Methods: what each gives credit for", *parts)


def _render_problem(
    tokenizer: Tokenizer, r: Rollouts, methods: Methods, siblings: Sequence[int]
) -> html.Html:
    """The solutions of one problem as cards: side by side, or one below the other on a phone."""
    problem = r.problems[siblings[0]]
    first = siblings[0] // r.group_size * r.group_size
    group = slice(first, first + r.group_size)
    note = f"Of {r.group_size} solutions {len(siblings)} are shown."
    if problem.answer:
        num_right = int(np.nansum(r.outcome_b[group]))
        verified = f", {int(r.verified_b[group].sum())} with every step right"
        note += f" {num_right} have the answer {problem.answer}{verified if r.is_judged else ''}."
    cards = [_render_rollout(tokenizer, r, methods, row) for row in siblings]
    grid = html.Html(f'<div class="cards">{"".join(cards)}</div>')
    return html.section(problem.question, grid, note=note)


def _render_rollout(tokenizer: Tokenizer, r: Rollouts, methods: Methods, row: int) -> html.Html:
    tokens = show_tokens(tokenizer, r, row)
    verdict = r.verdicts[row]
    parts = [html.heading(f"The answer is {describe_outcome(r, row)}")]
    for s, step in enumerate(verdict.all_steps):
        is_answer = s == len(verdict.steps)
        name = "answer" if is_answer else f"step {s + 1}"
        spans = [(n, text) for n, token_step, text in tokens if token_step == s]
        css_class = {True: "ok", False: "no", None: ""}[step.right]
        words = html.escape(f"{MARKS[step.right][0]} {describe_step(step, is_answer)}")
        parts.append(f'<p class="note">{name} <span class="{css_class}">{words}</span></p>')
        # Colours are relative to the whole batch, so that rollouts can be compared.
        for method, a_bn in methods.items():
            largest = float(np.abs(a_bn).max())
            figure = f"{a_bn[row, spans[-1][0]]:+.2f}" if spans else "no token"
            parts.append(
                f'<div class="credit"><span>{html.escape(method)}</span>'
                f"{_render_spans(spans, a_bn[row], largest)}<b>{figure}</b></div>"
            )
    return html.Html(f'<div class="card">{"".join(parts)}</div>')


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
