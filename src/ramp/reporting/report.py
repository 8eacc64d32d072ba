"""The record and the page of a run: report.json holds each stage's figures, report.html shows them.

Every stage gets a section from what it logged and reported, without a word about it here: its
metrics as curves, its figures as tables, its samples as cards. PANELS only says which metrics share
a picture. The page shows whatever there is, so a half-finished run has a report as well.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ramp.files import read_jsonl, read_kept, to_json, warn_once, write_kept
from ramp.reporting import html
from ramp.reporting.figure import LARGEST, Curve, picture
from ramp.reporting.html import Html, escape
from ramp.rundir import RunDir
from ramp.stages import STAGES

MAX_SAMPLES = 8  # of a stage, spread over its steps
MAX_PANELS = 12  # small pictures of a stage
MAX_ROWS = 100  # of a table or a conversation
MAX_COLUMNS = 12
MAX_CHARS = 200  # of a cell or a name
MAX_FILE_CHARS = 60_000  # of the configuration and the provenance

BASELINE_NAMES = {"unigram": "byte unigram", "bigram": "byte bigram", "trigram": "byte trigram"}
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
# Shown in the table of costs, in the headline or as a conversation: not again among the figures.
SHOWN_ELSEWHERE = {"seconds", "time", "tokens", "done", "baselines", "conversation"}
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
    report[stage] = _dict(report.get(stage)) | plain
    write_kept(run_dir / "report.json", to_json(report, indent=2) + "\n")


# Reading a run that may be cut off anywhere


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds so far; whatever is missing or broken is empty."""

    name: str  # of the directory
    report: dict[str, dict[str, Any]]  # stage -> figures
    provenance: dict[str, Any]  # date, devices, commit
    metrics: dict[str, list[dict[str, Any]]]  # stage -> records by step
    samples: dict[str, list[dict[str, Any]]]  # stage -> records by step
    texts: dict[str, str]  # the files shown at the end, by name

    def stages(self) -> list[str]:
        """Stages that reported or logged anything, in the order of the report."""
        return list(dict.fromkeys([*self.report, *self.metrics, *self.samples]))

    def figure(self, stage: str, name: str) -> float | None:
        """A figure of the report, if it is a number."""
        return _number(self.report.get(stage, {}).get(name))

    def series(self, stage: str, tag: str) -> np.ndarray:
        """Steps and values of one metric, [2, N]."""
        points = [
            (record["step"], record[tag])
            for record in self.metrics.get(stage, [])
            if _number(record.get(tag)) is not None
        ]
        return np.array(points, float).reshape(-1, 2).T

    def last_values(self, stage: str) -> dict[str, float]:
        """The last number of each metric of a stage."""
        last = {}
        for record in self.metrics.get(stage, []):
            last |= {tag: x for tag, x in record.items() if _number(x) is not None}
        return last


def read_run(run_dir: Path) -> RunFiles:
    """Read every file that the page shows."""
    paths = [run_dir / name for name in ("config.toml", "provenance.json", "report.json")]
    texts = {p.name: _read_text(p) for p in paths if p.is_file()}
    report = _parse(texts.get("report.json", ""))
    return RunFiles(
        name=run_dir.resolve().name,
        report={stage: _dict(figures) for stage, figures in report.items()},
        provenance=_parse(texts.get("provenance.json", "")),
        metrics=_records(run_dir / "metrics.jsonl"),
        samples=_records(run_dir / "samples.jsonl"),
        texts=texts,
    )


def _read_text(path):
    # People may edit the configuration, and it is shown as it stands.
    if path.suffix == ".toml":
        return path.read_text("utf-8", "replace")
    try:
        return read_kept(path).decode("utf-8", "replace")
    except ValueError as error:
        warn_once(f"{path} is left out: {error}")
        return ""


def _parse(text):
    try:
        return _dict(json.loads(text))
    except ValueError:
        return {}  # half written: the page shows the rest


def _records(path):
    # A record without step or stage has no place on the page.
    sound = [
        record
        for record in read_jsonl(path)
        if _number(record.get("step")) is not None and isinstance(record.get("stage"), str)
    ]
    stages = defaultdict(list)
    for record in sorted(sound, key=itemgetter("step")):
        stages[record["stage"]].append(record)
    return stages


def _dict(value):
    return value if isinstance(value, dict) else {}


def _number(value) -> float | None:
    """The value, if it is a number that can be drawn."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < LARGEST else None


# The page


def write_report(run_dir: Path) -> Path:
    """Write report.html from what `run_dir` holds so far; returns its path."""
    run = read_run(run_dir)
    levels = _baseline_levels(run)
    keys = ("date", "devices", "processor", "commit")
    origin = [str(run.provenance[key]) for key in keys if run.provenance.get(key)]
    parts = [_headline(run, levels)]
    parts += [_stage_section(run, stage, levels) for stage in run.stages()]
    parts += [_cost_section(run), _files_section(run)]
    return html.write_page(run_dir / "report.html", run.name, parts, " · ".join(origin))


def _baseline_levels(run: RunFiles):
    """Bits per byte of the same text under models that anyone can fit."""
    levels = {}
    for key, value in _dict(run.report.get("eval", {}).get("baselines")).items():
        bits = _number(value) or 0
        name, color = BASELINE_NAMES.get(key, key), "grey"
        if key.startswith("kn"):
            name, color = f"Kneser-Ney {key[2:]}", "warm"
        if bits > 0:
            levels[name] = bits, color
    return levels


def _bits_per_byte(run: RunFiles) -> float | None:
    """The run's own figure: of the evaluation, else of pretraining so far."""
    so_far = run.last_values("pretrain").get("eval/val_bpb")
    figures = (run.figure("eval", "val_bpb"), run.figure("pretrain", "val_bpb"), so_far)
    return next((bits for bits in figures if bits is not None), None)


def _headline(run: RunFiles, levels):
    """The figure of the run among its baselines, worst first."""
    bits = _bits_per_byte(run)
    rows = [(value, name, color) for name, (value, color) in levels.items()]
    if rows and bits is not None:
        rows.append((bits, "this model", "main"))
    rows.sort(reverse=True)
    bars = []
    for value, name, color in rows:
        # Bars are relative to the worst model, which comes first.
        width = 100 * value / rows[0][0]
        bar = f'<div><i style="width:{width:.2f}%"></i></div><b>{value:.3f}</b>'
        bars.append(f'<div class="row {color}"><span>{escape(name)}</span>{bar}</div>')
    figure = "?" if bits is None else f"{bits:.3f}"
    return Html(
        f'<section class="hero"><div><div class="figure">{figure}</div>'
        f"<b>bits per byte on held-out text</b>{html.remark(_verdict(bits, levels))}</div>"
        f"<div>{''.join(bars)}</div></section>"
    )


def _verdict(bits, levels):
    """Between which two baselines the model stands."""
    if bits is None:
        return "not evaluated yet"
    rows = sorted((value, name) for name, (value, _) in levels.items())
    worse = [f"better than {name} ({value:.3f})" for value, name in rows if value > bits]
    better = [f"not as good as {name} ({value:.3f})" for value, name in rows if value <= bits]
    return ", ".join(worse[:1] + better[-1:]) or "no baselines to compare it with yet"


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
    return html.section(stage.capitalize(), *parts, note=note)


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
    drawing = picture(curves, levels, ("step", panel.label), log=is_bits, size=(9.6, 3.5))
    return _div("scroll wide", [drawing])


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
        role, content = _dict(turn).get("role", ""), _dict(turn).get("content", "")
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
        reported = _dict(run.report.get(stage, {}).get("time"))
        last = run.last_values(stage)
        spent = {}
        for kind in TIME_COLORS:
            spent[kind] = _number(reported.get(kind)) or last.get(f"time/{kind}", 0.0)
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
