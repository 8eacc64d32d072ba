"""The credit of a rollout, to be seen: every token on the colour of its advantage, every step with its verdict.

Green was pushed up, red pushed down, white left alone. Outcome-only credit paints a whole rollout one colour; step
credit does not. One page, no scripts; the same as a figure for TensorBoard and as plain text for a terminal.
"""

import html
from collections.abc import Sequence

import numpy as np

from ramp.credit.rollouts import Rollouts
from ramp.tasks import Step
from ramp.text.tokenizer import Tokenizer

UP, DOWN = (46, 160, 67), (218, 54, 51)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#1f2328;background:#fff}
table{border-collapse:collapse;margin:.6em 0 1.8em}th,td{padding:.15em .8em;text-align:left;vertical-align:top}
th{font-weight:600;border-bottom:1px solid #d0d7de}code{font:14px ui-monospace,monospace;white-space:pre}
code span{color:#1f2328;border-radius:2px}.ok{color:#1a7f37}.no{color:#cf222e}.note{color:#57606a}
"""


def colour(a: float, largest: float) -> tuple[int, int, int]:
    """White at 0, towards green or red at the largest advantage of its method."""
    share = min(1.0, abs(a) / largest) ** 0.7 if largest > 0 else 0.0
    return tuple(round(255 + share * 0.75 * (end - 255)) for end in (UP if a > 0 else DOWN))


def pieces(tokenizer: Tokenizer, r: Rollouts, row: int) -> list[tuple[int, int, str]]:
    """(place, step, text) of every token of a rollout; a separator is shown as `|`, the end as a full stop mark."""
    shown = {tokenizer.step: "|", tokenizer.end: "■"}

    def text(i: int) -> str:
        return shown.get(i) or (tokenizer.decode([i]) if i < tokenizer.vocab_size else "\ufffd")

    return [(n, int(r.step_bn[row, n]), text(i)) for n, i in enumerate(r.ids(row))]


def verdict(step: Step) -> str:
    return "right" if step.right else step.why


def outcome(r: Rollouts, row: int) -> str:
    v = r.verdicts[row]
    if v.verified:
        return "right, and every step is"
    return "right by luck: a step is wrong" if v.final_right else "wrong"


def render_page(
    tokenizer: Tokenizer,
    r: Rollouts,
    methods: dict[str, np.ndarray],
    rows: Sequence[int],
    title: str,
) -> str:
    """An HTML page: the rollouts `rows`, a column for each method's advantage [B, N]."""
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    said = (
        "Each token stands on the colour of its advantage: green is made likelier by the update, red less likely, "
        "white is left alone. Strong colour is the strongest push of that method."
    )
    tables = "".join(_table(tokenizer, r, methods, row) for row in rows)
    body = f"<h1>{html.escape(title)}</h1><p>{said}</p>{tables}"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _table(tokenizer: Tokenizer, r: Rollouts, methods: dict[str, np.ndarray], row: int) -> str:
    spans, problem, found = pieces(tokenizer, r, row), r.problems[row], r.verdicts[row]
    lines = [
        f"<tr><th>step</th>{''.join(f'<th>{html.escape(name)}</th>' for name in methods)}<th>verdict</th></tr>"
    ]
    for s, step in enumerate(found.all_steps):
        mine = [(n, text) for n, at, text in spans if at == s]
        cells = "".join(
            f"<td><code>{_spans(mine, a[row], np.abs(a).max())}</code></td>"
            for a in methods.values()
        )
        name = "answer" if s == len(found.steps) else str(s + 1)
        kind, mark = ("ok", "✓") if step.right else ("no", "✗")
        told = f"<td class={kind}>{mark} {html.escape(verdict(step))}</td>"
        lines.append(f"<tr><td class=note>{name}</td>{cells}{told}</tr>")
    said = f"The answer is {outcome(r, row)}; it should be {html.escape(problem.answer)}."
    return f"<h3><code>{html.escape(problem.question)}</code></h3><p class=note>{said}</p><table>{''.join(lines)}</table>"


def _spans(mine: list[tuple[int, str]], a_n: np.ndarray, largest: float) -> str:
    return "".join(
        f'<span style="background:rgb{colour(float(a_n[n]), largest)}" title="{a_n[n]:+.3f}">{html.escape(t)}</span>'
        for n, t in mine
    )


def plot_rollout(tokenizer: Tokenizer, r: Rollouts, methods: dict[str, np.ndarray], row: int):
    """The same as a matplotlib figure: a line of coloured tokens for each method, verdicts under them."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    spans = pieces(tokenizer, r, row)
    fig = Figure(
        figsize=(max(6, 0.17 * len(spans) + 2), 0.45 * len(methods) + 1.3), layout="constrained"
    )
    ax = fig.add_subplot()
    for y, (name, a) in enumerate(methods.items()):
        ax.text(-0.5, -y, name, ha="right", va="center", fontsize=9)
        for n, _, text in spans:
            tone = np.array(colour(float(a[row, n]), float(np.abs(a).max()))) / 255
            ax.add_patch(Rectangle((n, -y - 0.42), 1, 0.84, facecolor=tone, edgecolor="none"))
            ax.text(
                n + 0.5,
                -y,
                text.replace("$", r"\$"),
                ha="center",
                va="center",
                family="monospace",
                fontsize=9,
            )
    for s, step in enumerate(r.verdicts[row].all_steps):
        places = [n for n, at, _ in spans if at == s]
        if places:
            middle = (places[0] + places[-1] + 1) / 2
            mark, tone = ("✓", "#1a7f37") if step.right else ("✗", "#cf222e")
            ax.text(
                middle, -len(methods) + 0.2, mark, ha="center", va="center", color=tone, fontsize=11
            )
    ax.set_title(
        f"{r.problems[row].question}   ({outcome(r, row)})".replace("$", r"\$"),
        fontsize=9,
        loc="left",
    )
    ax.set(xlim=(-7, len(spans) + 0.5), ylim=(-len(methods) - 0.3, 0.7))
    ax.axis("off")
    return fig


def describe_rollout(
    tokenizer: Tokenizer, r: Rollouts, methods: dict[str, np.ndarray], row: int
) -> str:
    """Plain lines: the step, its verdict, and each method's advantage at its last token."""
    spans = pieces(tokenizer, r, row)
    lines = [f"{r.problems[row].question}    the answer is {outcome(r, row)}"]
    for s, step in enumerate(r.verdicts[row].all_steps):
        mine = [(n, t) for n, at, t in spans if at == s]
        credit = (
            "  ".join(f"{name} {a[row, mine[-1][0]]:+.2f}" for name, a in methods.items())
            if mine
            else ""
        )
        lines.append(
            f"  {''.join(t for _, t in mine):24} {'ok ' if step.right else 'NO '} {verdict(step):16} {credit}"
        )
    return "\n".join(lines)
