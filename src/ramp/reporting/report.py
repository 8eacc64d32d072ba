"""The record and the page of a run: report.json holds each stage's figures, report.html shows them.

Every stage gets a section from what it logged and reported, without a word about it here: its
metrics as curves, its figures as tables, its samples as cards. PANELS only says which metrics share
a picture; what opens the page is in `promises`. The page shows whatever there is, so a
half-finished run has a report as well.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ramp.files import to_json, write_kept
from ramp.reporting import html, promises
from ramp.reporting.figure import Curve, picture
from ramp.reporting.html import Html, escape
from ramp.reporting.run_files import RunFiles, as_dict, as_number, read_run
from ramp.rundir import RunDir
from ramp.stages import STAGES

MAX_SAMPLES = 8  # of a stage, spread over its steps
MAX_PANELS = 12  # small pictures of a stage
MAX_ROWS = 100  # of a table or a conversation
MAX_COLUMNS = 12
MAX_CHARS = 200  # of a cell or a name
MAX_FILE_CHARS = 60_000  # of the configuration and the provenance

TIME_COLORS = {
    "step": "main",
    "data": "green",
    "init": "side",
    "compile": "gold",
    "eval": "violet",
    "save": "pink",
    "lost": "warm",
    "other": "grey",
}
# Shown in the table of costs, in the headline or as a conversation, or nothing to read: not among
# the figures.
SHOWN_ELSEWHERE = {"seconds", "time", "tokens", "done", "baselines", "conversation", "own_files"}
# Of no use as curves: counters, and what is a figure of the stage as a whole.
NOT_DRAWN = ("step", "time/", "guard/", "params/", "train/tokens", "eval/baseline_")


@dataclass(frozen=True)
class Line:
    """A metric as a curve of a panel."""

    name: str
    tag: str  # in metrics.jsonl
    color: str = "main"
    half_life: float = 0  # in points, of the moving average; 0: dots, for what is measured rarely


@dataclass(frozen=True)
class Panel:
    """A picture of metrics that share an axis. It is drawn where the last of them was logged."""

    label: str  # of the y axis
    lines: tuple[Line, ...]


# Names on the page, where the tag says too little.
TAG_NAMES = {"train/lr": "learning rates, as a share of their peaks"}

BITS = "bits per byte"
# The last line of a panel is the evaluation that decides whether a stage has it.
PANELS = (
    Panel(BITS, (Line("training", "train/loss", "side", 3), Line("validation", "eval/val_bpb"))),
    Panel(
        "nats per assistant token",
        (
            Line("training", "train/loss", "side", 5),
            Line("held-out conversations", "eval/chat_nats"),
        ),
    ),
    Panel(
        "fraction of held-out problems",
        (Line("final answer right", "rl/right", "side"), Line("and every step", "rl/verified")),
    ),
    Panel(
        "bits per byte, held out",
        (Line("first model", "synth/first_bpb", "green"), Line("this run", "synth/bpb")),
    ),
)


# The record


def update_report(run_dir: Path, stage: str, values: Mapping[str, Any]) -> None:
    """Merge `values` into the key `stage` of report.json, atomically.

    A number that is not finite becomes null.
    """
    report = RunDir(run_dir).report()  # stages of other starts stay
    # Through JSON, so that numpy's scalars become Python's. Anything else is a TypeError.
    plain = json.loads(json.dumps(dict(values), default=np.generic.item))
    report[stage] = as_dict(report.get(stage)) | plain
    write_kept(run_dir / "report.json", to_json(report, indent=2) + "\n")


# The page


def write_report(run_dir: Path) -> Path:
    """Write report.html from what `run_dir` holds so far; returns its path."""
    run = read_run(run_dir)
    levels = promises.baseline_levels(run)
    keys = ("date", "devices", "processor", "commit")
    origin = [str(run.provenance[key]) for key in keys if run.provenance.get(key)]
    if run.is_small:
        origin.append("the small size of its configuration")
    parts = [_div("promises", promises.list_promises(run))]
    # Results first: how the text was prepared is for those who look something up.
    stages = sorted(run.stages(), key=lambda stage: stage == "prepare")
    parts += [_stage_section(run, stage, levels) for stage in stages]
    parts += [_cost_section(run), _files_section(run)]
    return html.write_page(run_dir / "report.html", run.name, parts, " · ".join(origin))


def _stage_section(run: RunFiles, stage, levels):
    """Everything about one stage: pictures, figures, conversation and samples."""
    figures = run.report.get(stage, {})
    tags = run.last_values(stage)
    panels = [panel for panel in PANELS if panel.lines[-1].tag in tags]
    drawn = {line.tag for panel in panels for line in panel.lines}
    # What no panel knows of is drawn too, small: a new stage needs no edit here.
    rest = [tag for tag in tags if tag not in drawn and not tag.startswith(NOT_DRAWN)]
    parts = [_draw_panel(run, stage, panel, levels) for panel in panels]
    parts += [_small_panels(run, stage, rest), *_figure_tables(figures)]
    parts += [_conversation(figures), *_sample_cards(run, stage)]
    note = STAGES[stage].help if stage in STAGES else ""
    return html.section(stage.capitalize(), *parts, note=note, anchor=stage)


def _draw_panel(run: RunFiles, stage, panel, levels):
    """The curves of a panel over steps; bits per byte also against the baselines."""
    is_bits = panel.label == BITS
    # Without its bytes a curve in nats per token cannot be drawn as bits per byte.
    bytes_per_token = run.figure("prepare", "bytes_per_token") or math.nan
    curves = []
    for line in panel.lines:
        steps, values = run.series(stage, line.tag)
        if is_bits and line.tag == "train/loss":
            with np.errstate(over="ignore"):
                values = values / (math.log(2) * bytes_per_token)
        dots = not line.half_life
        curves.append(Curve(line.name, steps, values, line.color, line.half_life, dots))
    # What was measured once is a figure, and no curve.
    if all(len(curve.points()[0]) < 2 for curve in curves):
        return html.remark(_describe_points(panel.label, curves))
    levels = levels if is_bits else {}
    return picture(curves, levels, ("step", panel.label), log=is_bits, size=(9.6, 3.5))


def _describe_points(label, curves):
    """Curves of one point each, in words."""
    points = [
        f"{curve.name} {y[0]:.4g} at step {x[0]:,.0f}"
        for curve in curves
        for x, y in [curve.points()]
        if len(x)
    ]
    return f"{label}: {', '.join(points)}" if points else ""


def _small_panels(run: RunFiles, stage, tags):
    """A small picture of each metric that no panel shows, in the order of logging."""
    parts = []
    for tag in tags:
        curve = Curve(tag, *run.series(stage, tag))
        if len(curve.points()[0]) > 1 and len(parts) < MAX_PANELS:
            drawing = picture([curve], {}, ("step", ""), size=(3.2, 1.5))
            parts.append(f"<div>{html.heading(TAG_NAMES.get(tag, tag))}{drawing}</div>")
    return _div("panels", parts)


def _figure_tables(figures):
    """The figures of a stage: single ones by name, records as rows of a table of their own."""
    single = []
    tables = []
    for name, value in figures.items():
        is_empty = isinstance(value, dict | list) and not value
        if name in SHOWN_ELSEWHERE or is_empty:
            continue
        items = value.items() if isinstance(value, dict) else enumerate(_list(value), start=1)
        records = [{name: key} | item for key, item in items if isinstance(item, dict)]
        if records:
            tables.append(_record_table(records))
        else:
            # A dict of plain values, such as `before` and `after`, fits in one cell.
            single.append((name, _format(value)))
    return [html.table(("figure", "value"), single), *tables] if single else tables


def _record_table(records):
    """A row for each record; what is nested in it is in the JSON at the end of the page."""
    nested = dict | list
    columns = [key for key, value in records[0].items() if not isinstance(value, nested)]
    columns = columns[:MAX_COLUMNS]
    rows = [[_format(record.get(key)) for key in columns] for record in records[:MAX_ROWS]]
    return html.table(columns, rows)


def _format(value):
    if isinstance(value, dict):
        return escape(", ".join(f"{key} {_format(item)}" for key, item in value.items()), MAX_CHARS)
    if isinstance(value, float):
        return Html(f"{value:.4g}")
    return Html() if value is None else escape(value, MAX_CHARS)


def _list(value):
    return value if isinstance(value, list) else []


def _conversation(figures):
    bubbles = []
    for turn in _list(figures.get("conversation"))[:MAX_ROWS]:
        role, content = as_dict(turn).get("role", ""), as_dict(turn).get("content", "")
        side = "user" if role == "user" else "other"
        words = f"<span>{escape(role, MAX_CHARS)}</span><p>{escape(content)}</p>"
        bubbles.append(f'<div class="turn {side}">{words}</div>')
    return _div("chat", bubbles)


def _sample_cards(run: RunFiles, stage):
    """What the model wrote at some of its steps, the first and the last among them."""
    cards = defaultdict(list)  # step -> cards, in ascending order as the samples are
    for record in run.samples.get(stage, []):
        tag, text = escape(record.get("tag", ""), MAX_CHARS), escape(record.get("text", ""))
        card = f'<div class="card"><p class="note">{tag}</p><pre>{text}</pre></div>'
        cards[record["step"]].append(card)
    steps = list(cards.items())
    most = max(map(len, cards.values()), default=1)
    wanted = min(len(steps), max(2, MAX_SAMPLES // most))
    parts = []
    for i in np.linspace(0, len(steps) - 1, wanted).round().astype(int):
        step, written = steps[i]
        parts.append(html.heading(f"Written at step {step:,.0f}"))
        parts.append(_div("cards", written[:MAX_SAMPLES]))
    return parts


def _cost_section(run: RunFiles):
    """What each stage took: time by kind of work, steps, tokens, steps skipped by the guard."""
    rows = []
    total = 0.0
    for stage in run.stages():
        # The report has the time of a stage that is done, the metrics that of one under way.
        reported = as_dict(run.report.get(stage, {}).get("time"))
        last = run.last_values(stage)
        spent = {}
        for kind in TIME_COLORS:
            spent[kind] = as_number(reported.get(kind)) or last.get(f"time/{kind}", 0.0)
        seconds = run.figure(stage, "seconds") or 0
        total += seconds
        # A stage that prepares text has tokens and no training metrics.
        tokens = run.figure(stage, "tokens") or last.get("train/tokens")
        logged = map(last.get, ("time/tokens_per_s", "guard/skipped"))
        counts = ["" if x is None else f"{x:,.0f}" for x in (last.get("step"), tokens, *logged)]
        rows.append([stage, _duration(seconds or sum(spent.values())), _time_bar(spent), *counts])
    if not rows:
        return Html()
    head = ("stage", "time", "spent on", "steps", "tokens", "tokens/s", "steps skipped")
    swatch = '<span><i style="background: var(--{})"></i>{}</span>'
    keys = _div("keys", [swatch.format(color, kind) for kind, color in TIME_COLORS.items()])
    note = f"All stages that have finished: {_duration(total)}." if total else ""
    return html.section("Time and cost", html.table(head, rows), keys, note=note)


def _time_bar(spent):
    parts = []
    for kind, seconds in spent.items():
        if seconds > 0:
            style = f"flex: {1e4 * seconds:.0f}; background: var(--{TIME_COLORS[kind]})"
            parts.append(f'<i style="{style}" title="{kind} {_duration(seconds)}"></i>')
    return _div("split", parts)


def _duration(seconds):
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _div(kind, parts):
    """Some HTML in a box of that class; nothing for nothing."""
    body = "".join(parts)
    return Html(f'<div class="{kind}">{body}</div>' if body else "")


def _files_section(run: RunFiles):
    """Configuration, provenance and the whole record, folded away."""
    folded = []
    for name, text in run.texts.items():
        body = html.preformatted(text, MAX_FILE_CHARS)
        folded.append(f"<details><summary>{name}</summary>{body}</details>")
    return Html(f"<section>{''.join(folded)}</section>" if folded else "")
