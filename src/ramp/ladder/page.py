"""ladder.html: a screen a rung, and the table of them all. No script, nothing fetched; light and dark."""

import ast
import inspect
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from ramp import report
from ramp.figure import COLORS, STYLE, Curve, blank, line, short, svg
from ramp.ladder.probes import PROBES
from ramp.ladder.rungs import FAIL, PASS, Rung, below
from ramp.model import transformer
from ramp.rundir import write_atomic
from ramp.train import optim

CLEAR = LinearSegmentedColormap.from_list("clear", [to_rgba(COLORS["main"], a) for a in (0.04, 1)])


# ---------------------------------------------------------------------------------------------------- the source
def source(setting: str, value: Any) -> str:
    """The lines that a setting switches on, read from the source as it is now (of the optimizer: train/optim.py).

    Where an `if` or a conditional expression asks for it: the branch that its value takes. Where nothing asks: the
    statements of `Block` that use it.
    """
    module, name = (optim, f"t.{setting}") if setting == "optimizer" else (transformer, f"c.{setting}")
    text = inspect.getsource(module)
    tree = ast.parse(text)
    on, off, asked = set(), set(), False
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp) and name in ast.unparse(node.test):
            asked, holds = True, _holds(node.test, name, value)
            both = [n if isinstance(n, list) else [n] for n in (node.body, node.orelse)]
            taken, left = both if holds else both[::-1]
            if isinstance(node, ast.IfExp):
                on |= _lines([node]) if holds else set()
            else:
                off |= _lines(left)
                on |= {node.lineno} | _lines(taken) if taken and not isinstance(taken[0], ast.If) else set()
    if not on and (not asked or setting == "optimizer"):
        where = tree if setting == "optimizer" else next(n for n in tree.body if getattr(n, "name", "") == "Block")
        name = str(value) if setting == "optimizer" else name
        plain = (n for n in ast.walk(where) if isinstance(n, ast.Assign | ast.AugAssign) and name in ast.unparse(n))
        on = _lines(plain)
    shown, lines = sorted(on - off), text.splitlines()
    return "\n".join(("⋮\n" if i - 1 not in on and i != shown[0] else "") + f"{i:4}  {lines[i - 1]}" for i in shown)


def _lines(nodes: Iterable[ast.AST]) -> set[int]:
    return {i for n in nodes for i in range(n.lineno, n.end_lineno + 1)}


def _holds(test: ast.expr, name: str, value: Any) -> bool:
    """Whether a test is true where `name` has this value; one that it cannot read it takes for true."""
    if isinstance(test, ast.Compare) and ast.unparse(test.left) == name:
        return (ast.literal_eval(test.comparators[0]) == value) == isinstance(test.ops[0], ast.Eq)
    return bool(value) if ast.unparse(test) == name else True


# ---------------------------------------------------------------------------------------------------- pictures
def pictures(rung: Rung, low: dict | None, high: dict) -> dict[str, Figure]:
    """What there is to see of a rung, by name: for the page and for TensorBoard."""
    drawn: dict[str, Figure] = {}
    if low and "probe" in high:
        curves = [
            Curve(f"{name}, seed {s}" if s == 0 else f"{s}", x["probe"]["steps"], [a[s] for a in x["probe"]["accuracy"]], color)
            for name, x, color in ((f"rung {below(rung).number}", low, "warm"), (f"rung {rung.number}", high, "main"))
            for s in range(len(x["probe"]["accuracy"][0]))
        ]  # fmt: skip
        chance = PROBES[rung.probe].chance(high["probe"]["n"])
        levels = {"chance": (chance, "grey")}
        levels |= {name: (chance + share * (1 - chance), "grey") for name, share in (("fails", FAIL), ("passes", PASS))}
        drawn["probe"] = line(curves, levels, ("step", "right answers"), size=(9.6, 3))
        if high["probe"]["attention"]:
            drawn["attention"] = attention(rung, high["probe"])
    if "curve" in high["tokens"]:
        runs = [(f"rung {rung.number}", high, "main")]
        runs += [(f"rung {below(rung).number}", low, "warm")] if low and "curve" in low["tokens"] else []
        curves = [
            Curve(
                name, x["tokens"]["batch"] * (1 + np.arange(len(x["tokens"]["curve"]))), x["tokens"]["curve"], color, 8
            )
            for name, x, color in runs
        ]
        drawn["corpus"] = line(curves, {}, ("tokens", "training loss, bits a byte"), log=True, size=(9.6, 3))
    if rung.number == 1:
        drawn["table"] = bigram_table(high["bytes"], np.array(high["table"], float))
    return drawn


@rc_context(STYLE)
def bigram_table(symbols: list[int], counts: np.ndarray) -> Figure:
    """p(next | last) of the commonest bytes; a space is ␣."""
    figure, axes = blank(9.6, 8.4)
    axes.grid(False)
    axes.imshow(np.sqrt(counts / counts.sum(axis=1, keepdims=True).clip(1)), cmap=CLEAR, interpolation="nearest")
    names = ["␣" if s == 32 else "↵" if s == 10 else chr(s) if 32 < s < 127 else f"{s:02x}" for s in symbols]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="the next byte", ylabel="the last byte")
    return figure


@rc_context(STYLE)
def attention(rung: Rung, probe: dict) -> Figure:
    """Who looks at whom in one row of the probe, by block and head; the last line is the question's."""
    maps, labels = np.array(probe["attention"]), [PROBES[rung.probe].show(probe["n"], i) for i in probe["row"]]
    L, H, T, _ = maps.shape
    figure = Figure(figsize=(9.6, max(2.2, 9.6 * L / max(H, 4))), dpi=130, facecolor="none", layout="constrained")
    for (block, head), axes in np.ndenumerate(figure.subplots(L, max(H, 4), squeeze=False)):
        axes.set_axis_off()
        if head < H:
            axes.set_axis_on()
            axes.imshow(maps[block, head], cmap=CLEAR, vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"block {block + 1}, head {head + 1}", size=8)
            axes.set_xticks(range(T), labels, rotation=90, size=6)
            axes.set_yticks(range(T), labels if head == 0 else [], size=6)
            axes.tick_params(length=0, labelcolor=COLORS["grey"])
    return figure


# ---------------------------------------------------------------------------------------------------- the page
def write(path: Path, title: str, rows: list[tuple[Rung, dict | None, dict, dict | None]], beside: dict) -> None:
    """`rows`: rung, what the one below found, what this one found, the verdict; `beside`: bits per byte of baselines."""
    sections = [_screen(*row) for row in rows]
    notes = "  ".join(f"{name} {bits:.3f}" for name, bits in beside.items())
    style = Path(report.__file__).with_suffix(".css").read_text()
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · ramp</title><style>{style}{CSS}</style></head>"
    )
    why = "<p class='note'>Each part is added where the model without it fails.</p>"
    top = f"<header><b>ramp</b><h1>{escape(title)}</h1>{why}</header>"
    body = [
        top,
        report.section(
            "All rungs", _table(rows), note=f"The same held-out text, bits per byte: {notes}" if beside else ""
        ),
    ]
    write_atomic(path, f"{head}\n<body><main>{''.join(body + sections)}</main></body></html>\n")


CSS = """
td.text, thead th:nth-child(2) { text-align: left; white-space: normal; min-width: 9.5em; overflow-wrap: normal; }
.no { color: var(--warm); font-weight: 600; }
.yes { color: var(--green); font-weight: 600; } th:nth-child(3) { width: auto; } h2 span { float: right; font-size: 14px; }
pre.code { background: var(--page); border-radius: 8px; padding: 10px 14px; overflow-x: auto; white-space: pre; }
"""


def told(verdict: dict | None) -> str:
    """ "earned", "did not earn its place", or nothing for a rung that stands on nothing."""
    return "" if verdict is None else "earned" if verdict["earned"] else "did not earn its place"


def figures(verdict: dict | None, side: str) -> str:
    shown = [short(round(x, 3)) if np.isfinite(x) else "never" for x in (verdict[side] if verdict else [])]
    return " ".join(shown)


def _table(rows: list) -> str:
    """A line a rung."""
    names = ("", "rung", "judged by", "below", "this", "verdict", "bits/byte, equal tokens", "bits/byte, equal FLOPs")
    names += ("weights", "FLOPs a token", "cache bytes a token", "tokens/s written")
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for rung, low, high, verdict in rows:
        tone, what = ("yes" if verdict and verdict["earned"] else "no"), verdict["what"] if verdict else ""
        ends = [high[k]["bpb"] for k in ("tokens", "equal")]
        worse = " ↑" if rung.main and low and ends[1] > low["equal"]["bpb"] else ""
        cells = [figures(verdict, "below"), figures(verdict, "this"), f'<span class="{tone}">{told(verdict)}</span>']
        cells += [f"{ends[0]:.3f}", f"{ends[1]:.3f}{worse}"]
        cells += [short(high[k]) for k in ("params", "flops", "cache")] + [short(high["tokens"].get("decode", 0))]
        line = f'<th>{rung.number}</th><td class="text">{escape(rung.name)}{"" if rung.main else " (branch)"}</td>'
        lines.append(
            f'<tr>{line}<td class="text">{escape(what)}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        )
    note = '<p class="note">↑: more bits at equal FLOPs than the rung below. Three figures: three seeds.</p>'
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{note}'
    )


def _screen(rung: Rung, low: dict | None, high: dict, verdict: dict | None) -> str:
    """One rung: why, what failed and what passed, the code, the text it writes, its line of the table."""
    title = f"{rung.number} · {rung.name}"
    tone = "yes" if verdict and verdict["earned"] else "no"
    parts = [f'<h2>{escape(title)}<span class="{tone}">{told(verdict)}</span></h2><p>{escape(rung.motive)}</p>']
    drawn = pictures(rung, low, high)
    if "probe" in drawn:
        asks = PROBES[rung.probe].asks
        diverged = f"; runs that diverged: {low['probe']['diverged']:.0%} below, {high['probe']['diverged']:.0%} here"
        parts.append(f'<p class="note">The probe asks {escape(asks)}{diverged}.</p>{svg(drawn["probe"])}')
    for name, what in (
        ("table", "How often the next byte follows the last"),
        ("attention", "Who looks at whom"),
        ("corpus", "On the text"),
    ):
        parts += [f"<h3>{what}</h3>{svg(drawn[name])}"] if name in drawn else []
    code = [f"{k} = {v!r}\n{lines}" for k, v in rung.settings.items() if (lines := source(k, v))]
    parts += [f'<h3>What it switches on</h3><pre class="code">{escape(chr(10).join(code))}</pre>'] if code else []
    parts.append(
        f"<h3>It writes</h3><pre>{escape(high['tokens']['sample'])}</pre>{_table([(rung, low, high, verdict)])}"
    )
    return f"<section>{''.join(parts)}</section>"
