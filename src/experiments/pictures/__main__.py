"""The two pictures of the README: `python -m experiments.pictures`.

Bits per byte: of the validation text of the default corpus, from bits_per_byte.json beside this
file. The baselines are what `ramp eval` prints (2026-11-28); the models are one run each of
configs/cpu.toml (2026-11-27) and configs/cpu-long.toml (2026-11-23) on two CPU cores.
Credit: two solutions that the checker judges; nothing is trained.
"""

import json
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.credit.example import write_example
from ramp.reporting.figure import COLORS, STYLE

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "ramp" / "reporting" / "pictures"


def draw_bits_per_byte(bits: dict[str, float]) -> Figure:
    """Bars from the worst to the best, ramp's own in the main colour."""
    bars = dict(sorted(bits.items(), key=lambda item: -item[1]))
    figure = Figure(figsize=(6, 0.32 * len(bars) + 0.7), facecolor="none", layout="constrained")
    axes = figure.subplots()
    colors = [COLORS["main" if name.startswith("ramp") else "side"] for name in bars]
    drawn = axes.barh(list(bars), list(bars.values()), color=colors)
    axes.bar_label(drawn, fmt="%.2f", padding=3, color=COLORS["grey"])
    axes.tick_params(length=0, labelcolor=COLORS["grey"])
    axes.set_xticks([])
    axes.set_xlabel("bits per byte of held-out English text (lower is better)")
    return figure


def main() -> None:
    """Write both as SVG, the same bytes every time."""
    FOLDER.mkdir(exist_ok=True)
    write_example(FOLDER / "credit.svg")
    with rc_context(STYLE):
        figure = draw_bits_per_byte(json.loads((HERE / "bits_per_byte.json").read_text()))
        metadata = {"Date": None, "Creator": None}
        figure.savefig(FOLDER / "bits_per_byte.svg", format="svg", metadata=metadata)


if __name__ == "__main__":
    main()
