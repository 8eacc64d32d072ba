"""ladder.html: a screen a rung, and the table of them all."""

import ast
import inspect
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ramp.ladder.probes import PROBES
from ramp.ladder.rungs import FAIL, PASS, Rung, rung_below
from ramp.model import transformer
from ramp.reporting.figure import Curve, plot_curves, plot_heatmap, short, svg
from ramp.reporting.html import section, table, write_page
from ramp.train import optim

COSTS = {
    "params": "weights",
    "flops": "FLOPs a token",
    "cache": "cache bytes a token",
    "decode": "tokens/s written",
}


def source(setting: str, value: Any) -> str:
    """The lines that name a setting, read from the source as it is now, and the branch that its value takes (of the
    optimizer: train/optim.py, and the lines that name the one chosen)."""
    text = inspect.getsource(optim if setting == "optimizer" else transformer)
    lines, named = text.splitlines(), re.compile(rf"\b[ct]\.{setting}\b|by_{value}\(")
    on, off = {i for i, said in enumerate(lines, 1) if named.search(said)}, set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and named.search(test := ast.unparse(node.test)):
            against = [n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)]
            holds = (value in against) != ("!=" in test) if against else bool(value)
            taken, left = (node.body, node.orelse) if holds else (node.orelse, node.body)
            on |= {i for n in taken for i in range(n.lineno, n.end_lineno + 1)}
            off |= {i for n in left for i in range(n.lineno, n.end_lineno + 1)}
            off |= set() if taken and not isinstance(taken[0], ast.If) else {node.lineno}
    shown = sorted(on - off)
    return "\n".join(
        ("⋮\n" if i - 1 not in shown and i != shown[0] else "") + f"{i:4}  {lines[i - 1]}"
        for i in shown
    )


def pictures(rung: Rung, low: dict | None, high: dict) -> dict[str, Figure]:
    """What there is to see of a rung, by caption: for the page and for TensorBoard."""
    sides = [(f"rung {rung_below(rung).number}", low, "warm")] if low else []
    sides.append((f"rung {rung.number}", high, "main"))
    drawn = on_probe(rung, sides) if "probe" in high else {}
    if "table" in high:
        names = [
            "␣" if b == 32 else "↵" if b == 10 else chr(b) if 32 < b < 127 else f"{b:02x}"
            for b in high["bytes"]
        ]
        counts = np.array(high["table"], float)
        share = np.sqrt(counts / counts.sum(axis=1, keepdims=True).clip(1))
        drawn["How often the next byte follows the last"] = plot_heatmap(
            share, names, names, ("the next byte", "the last byte")
        )
    if curves := [curve(name, x, color) for name, x, color in sides if "curve" in x]:
        labels = "tokens", "training loss, bits a byte"
        drawn["On the text"] = plot_curves(curves, {}, labels, log=True, size=(9.6, 3))
    return drawn


def on_probe(rung: Rung, sides: list[tuple[str, dict, str]]) -> dict[str, Figure]:
    """Right answers over training, one curve a seed, and the attention of this rung's last question."""
    probe, found = PROBES[rung.probe], sides[-1][1]["probe"]
    curves = [
        Curve(f"{name}, seed {seed}", x["probe"]["steps"], accuracy, color)
        for name, x, color in sides
        for seed, accuracy in enumerate(zip(*x["probe"]["accuracy"], strict=True))
    ]
    chance = probe.chance(found["n"])
    levels = {
        "chance": chance,
        "fails": chance + FAIL * (1 - chance),
        "passes": chance + PASS * (1 - chance),
    }
    levels = {name: (share, "grey") for name, share in levels.items()}
    drawn = {"On the probe": plot_curves(curves, levels, ("step", "right answers"), size=(9.6, 3))}
    if "attention" in found:
        names, seen = probe.names(found["n"]), np.array(found["attention"])
        row = [names[i] if i < len(names) else "?" for i in found["row"]]
        heads = [f"block {i + 1}, head {j + 1}" for i, j in np.ndindex(seen.shape[:2])]
        drawn["Where the last question looks"] = plot_heatmap(
            seen.reshape(len(heads), -1), row, heads, ("the row", "")
        )
    return drawn


def curve(name: str, found: dict, color: str = "main") -> Curve:
    """The training loss on the corpus, over tokens."""
    return Curve(
        name,
        found["batch"] * (1 + np.arange(len(found["curve"]))),
        found["curve"],
        color,
        half_life=10,
    )


def cells(rung: Rung, low: dict | None, high: dict, judged: dict) -> dict[str, str]:
    """A line of the table, by column."""
    figures = [
        " ".join(f"{x:.4g}" if x >= 10 else f"{x:.2f}" for x in judged[side])
        for side in ("below", "this")
    ]
    told = {None: "", True: "earned", False: "did not earn its place"}[judged.get("earned")]
    shown = {"rung": f"{rung.number} {rung.name}{'' if rung.main else ' (branch)'}"}
    shown |= {"below": figures[0], "this": figures[1], "verdict": told}
    if "bpb" in high:
        worse = " ↑" if rung.main and low and high["bpb_equal"] > low["bpb_equal"] else ""
        shown |= {
            "bits/byte, equal tokens": f"{high['bpb']:.3f}",
            "equal FLOPs": f"{high['bpb_equal']:.3f}{worse}",
        }
        shown |= {what: short(high[key]) for key, what in COSTS.items()}
    return shown | {"judged by": rung.measure or (f"probe: {rung.probe}" if rung.probe else "")}


def write(
    path: Path, rows: list[tuple[Rung, dict | None, dict, dict]], beside: dict[str, float]
) -> None:
    """`rows`: rung, what the one below found, what this one found, the verdict; `beside`: bits per byte of baselines."""
    told = [cells(*row) for row in rows]
    note = "Each part is added where the model without it fails. Of a probe: the share of the way from chance to all right, seed "
    note += "by seed. ↑: more bits at equal FLOPs than the rung below. The same "
    note += f"held-out text, bits per byte: {'  '.join(f'{name} {bits:.3f}' for name, bits in beside.items())}."
    whole = section("All rungs", table(list(told[0]), [list(t.values()) for t in told]), note=note)
    write_page(path, "The ladder", [whole, *(screen(*row) for row in rows)])
    print(f"page: {path}")


def screen(rung: Rung, low: dict | None, high: dict, judged: dict) -> str:
    """One rung: why, what failed and what passed, the code, the text it writes, its line of the table."""
    told, note = cells(rung, low, high, judged), ""
    if "probe" in high:
        shares = [
            f"{x['probe']['diverged']:.0%} of runs diverged {where}"
            for x, where in ((low, "below"), (high, "here"))
        ]
        note = f"The probe asks {PROBES[rung.probe].asks}. {', '.join(shares)}."
    parts = [f"<p>{escape(rung.motive)}</p>"]
    parts += [
        f"<h3>{caption}</h3>{svg(figure)}" for caption, figure in pictures(rung, low, high).items()
    ]
    code = "\n".join(
        f"{k} = {v!r}\n{shown}" for k, v in rung.settings.items() if (shown := source(k, v))
    )
    parts += [f"<h3>What it switches on</h3><pre>{escape(code)}</pre>"] if code else []
    parts += [
        f"<h3>It writes</h3><pre>{escape(high['sample'])}</pre>",
        table(list(told), [list(told.values())]),
    ]
    return section(
        f"{rung.number} · {rung.name}{': ' * bool(told['verdict'])}{told['verdict']}",
        *parts,
        note=note,
    )
