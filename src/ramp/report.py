"""The run, told on one page: report.json holds the figures of each stage, report.html shows them to a person.

The page is self-contained: no script, nothing fetched, charts as inline SVG, every word from the run escaped. It shows
whatever there is, so a half-finished run has a report as well.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.rundir import write_atomic

MAX_POINTS = 500  # of a curve
MAX_SAMPLES = 8  # of a stage, spread over its steps
MAX_CHARS = 4_000  # of a sample, a turn or a value
MAX_FILE_CHARS = 60_000  # of the configuration and the provenance

NAMES = {"unigram": "byte unigram", "bigram": "byte bigram", "trigram": "byte trigram", "xz": "xz"}
KINDS = ("step", "data", "compile", "eval", "save", "other")


# ---- report.json ----------------------------------------------------------------------------------------------------


def read_report(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The figures of a run by stage; empty before the first stage has reported."""
    path = Path(run_dir) / "report.json"
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it and run the stages again") from None
    if not isinstance(report, dict):
        raise UserError(f"{path} does not hold a JSON object; delete it and run the stages again")
    return report


def update_report(run_dir: Path, stage: str, values: Mapping[str, Any]) -> None:
    """Merge `values` into the key `stage` of report.json, atomically. A number that is not finite becomes null."""
    report = read_report(run_dir)
    report[stage] = _dict(report.get(stage)) | dict(values)
    write_atomic(Path(run_dir) / "report.json", json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- reading what a run left ----------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """The value, if it is a number that can be drawn."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    return float(value) if ok else None


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        return _dict(json.loads(_text(path)))
    except ValueError:
        return {}


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a run in progress may have half a line at the end."""
    records = []
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        record = _dict(record)
        if _number(record.get("step")) is not None and isinstance(record.get("stage"), str):
            records.append(record)
    return sorted(records, key=lambda record: record["step"])


@dataclass(frozen=True)
class Curve:
    name: str
    look: str  # CSS class: main, side
    x: np.ndarray
    y: np.ndarray
    dots: bool = False


def _series(records: Iterable[dict], stage: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one tag."""
    points = [(r["step"], _number(r.get(tag))) for r in records if r["stage"] == stage]
    points = [(step, value) for step, value in points if value is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, float), np.array(values, float)


def _last(records: Iterable[dict], stage: str, tag: str) -> float | None:
    values = _series(records, stage, tag)[1]
    return float(values[-1]) if len(values) else None


def thin(x: np.ndarray, y: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: means over equal pieces, the last point as it is."""
    if len(x) <= most:
        return x, y
    pieces = [np.array_split(a[:-1], most - 1) for a in (x, y)]
    means = [np.array([piece.mean() for piece in side]) for side in pieces]
    return np.append(means[0], x[-1]), np.append(means[1], y[-1])


# ---- numbers as words -----------------------------------------------------------------------------------------------


def _name(baseline: str) -> str:
    return NAMES.get(baseline, f"Kneser-Ney {baseline[2:]}" if baseline.startswith("kn") else baseline)


def _short(value: float) -> str:
    """1234567 as 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _cut(value: Any, most: int = MAX_CHARS) -> str:
    """Escaped text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode()
    return escape(text if len(text) <= most else text[:most] + f" … ({len(text) - most:,} more characters)")


# ---- charts ---------------------------------------------------------------------------------------------------------


def _ticks(low: float, high: float, log: bool, about: int = 5) -> list[float]:
    if log and 2 < high / low < 30:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)
        ticks = [
            s * 10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for s in steps
        ]
    elif log and high / low >= 30:
        ticks = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    else:
        rough = (high - low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
        ticks = [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return [t for t in ticks if low <= t <= high]


def _spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions near ascending `places`, at least `gap` apart, inside [low, high] as far as there is room."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + gap if out else low))
    limit = high
    for i in reversed(range(len(out))):
        out[i] = min(out[i], limit)
        limit = out[i] - gap
    return out


def chart(
    curves: Sequence[Curve],
    lines: Mapping[str, float],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    width: int = 960,
    height: int = 400,
) -> str:
    """Curves over x against labelled horizontal lines, as an SVG element whose colours come from the page's CSS."""
    curves = [c for c in curves if len(c.x)]
    if not curves:
        return '<p class="none">nothing recorded yet</p>'
    left, right, top, bottom = 52, 148 if lines else 16, 12, 40
    ys = np.concatenate([*(c.y for c in curves), [v for v in lines.values() if not log or v > 0]])
    log = log and ys.min() > 1e-9
    scale = np.log if log else np.asarray
    low, high = float(scale(ys.min())), float(scale(ys.max()))
    margin = max(0.04 * (high - low) or 0.05 * abs(high) or 0.5, 1e-6 * abs(high), 1e-9)
    y0, y1 = low - margin, high + margin
    x0, x1 = min(c.x.min() for c in curves), max(c.x.max() for c in curves)
    x0 = min(x0, 0.0) if x0 < 0.1 * x1 else x0
    x1 = x1 if x1 - x0 > 1e-9 * max(1.0, abs(x0), abs(x1)) else x0 + max(1.0, abs(x0))
    w, h = width - left - right, height - top - bottom

    def px(x: Any) -> Any:
        return left + (np.asarray(x) - x0) / (x1 - x0) * w

    def py(y: Any) -> Any:
        return top + (y1 - scale(y)) / (y1 - y0) * h

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    bounds = (math.exp(y0), math.exp(y1)) if log else (y0, y1)
    for tick in _ticks(*bounds, log, about=max(3, h // 50)):
        y = py(tick)
        out.append(f'<line class="grid" x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick end" x="{left - 8}" y="{y + 4:.1f}">{_short(tick)}</text>')
    for tick in _ticks(x0, x1, False, about=max(2, w // 130)):
        out.append(f'<text class="tick mid" x="{px(tick):.1f}" y="{top + h + 18}">{_short(tick)}</text>')
    out.append(f'<text class="axis mid" x="{left + w / 2:.0f}" y="{height - 5}">{escape(x_label)}</text>')
    out.append(f'<line class="base" x1="{left}" x2="{left + w}" y1="{top + h}" y2="{top + h}"/>')

    ranked = sorted(lines.items(), key=lambda item: -item[1])
    places = [float(py(value)) for _, value in ranked]
    for (name, value), y, label_y in zip(ranked, places, _spread(places, 15, top, top + h), strict=True):
        look = "kn" if name.startswith("kn") else "bytes"
        out.append(f'<line class="rule {look}" x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<path class="lead {look}" d="M{left + w},{y:.1f}l4,0L{left + w + 14},{label_y:.1f}"/>')
        label = f"{escape(_name(name))} <tspan class='value'>{value:.3f}</tspan>"
        out.append(f'<text class="label {look}" x="{left + w + 18}" y="{label_y + 4:.1f}">{label}</text>')

    for curve in curves:
        x, y = thin(curve.x, curve.y)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px(x), py(y), strict=True))
        out.append(f'<polyline class="curve {curve.look}" points="{points}"/>')
        if curve.dots or len(x) == 1:
            for a, b in zip(x, y, strict=True):
                tip = f"<title>{escape(curve.name)} {b:.4g} at {_short(a)}</title>"
                place = f'cx="{px(a):.1f}" cy="{py(b):.1f}"'
                out.append(f'<circle class="dot {curve.look}" {place} r="3">{tip}</circle>')
    out.append("</svg>")
    if len(curves) > 1 or lines:
        keys = "".join(f'<span class="key {c.look}">{escape(c.name)}</span>' for c in curves)
        out.append(f'<div class="keys">{keys}</div>')
    return "\n".join(out)


def _smooth(y: np.ndarray, half_life: float = 5.0) -> np.ndarray:
    """Exponential moving average, free of the bias of its start."""
    keep, out, total, weight = 0.5 ** (1 / half_life), np.empty_like(y), 0.0, 0.0
    for i, value in enumerate(y):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


# ---- sections -------------------------------------------------------------------------------------------------------


def _section(title: str, *parts: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>" if body else ""


def _headline(bpb: float | None, baselines: Mapping[str, float]) -> str:
    """The figure and, beside it, what the same text costs under models that anyone can fit."""
    if bpb is None:
        figure, verdict = "?", "not evaluated yet"
    else:
        worse = min(((v, k) for k, v in baselines.items() if v > bpb), default=None)
        better = max(((v, k) for k, v in baselines.items() if v <= bpb), default=None)
        said = [f"better than {_name(worse[1])} ({worse[0]:.3f})" if worse else ""]
        said += [f"not as good as {_name(better[1])} ({better[0]:.3f})" if better else ""]
        figure, verdict = f"{bpb:.3f}", ", ".join(filter(None, said)) or "no baselines to hold it against yet"
    rows = [(value, _name(key), "kn" if key.startswith("kn") else "bytes") for key, value in baselines.items()]
    rows += [(bpb, "this model", "main")] if bpb is not None and rows else []
    most = max((value for value, _, _ in rows), default=1.0)
    bars = "".join(
        f'<div class="row {look}"><span>{escape(name)}</span>'
        f'<div class="track"><div class="bar" style="width:{100 * value / most:.2f}%"></div></div>'
        f"<b>{value:.3f}</b></div>"
        for value, name, look in sorted(rows, reverse=True)
    )
    return (
        f'<section class="hero"><div><div class="figure">{figure}</div>'
        '<div class="unit">bits per byte on held-out text</div>'
        f'<p class="verdict">{escape(verdict)}</p></div><div class="ladder">{bars}</div></section>'
    )


def _pretrain(metrics: list[dict], report: dict, baselines: Mapping[str, float]) -> str:
    """Validation and train bits per byte against the baselines; train loss in its own chart if it has no bytes."""
    clock_steps, clock = _series(metrics, "pretrain", "train/tokens")
    x_label = "train tokens" if len(clock) else "step"

    def by_tokens(steps: np.ndarray) -> np.ndarray:
        return np.interp(steps, clock_steps, clock) if len(clock) else steps

    val, bpb, loss = (_series(metrics, "pretrain", tag) for tag in ("eval/val_bpb", "train/bpb", "train/loss"))
    bytes_per_token = _number(_dict(report.get("prepare")).get("bytes_per_token"))
    if not len(bpb[0]) and bytes_per_token:
        bpb = loss[0], loss[1] / (math.log(2) * bytes_per_token)
    curves = [
        Curve("training", "side", by_tokens(bpb[0]), _smooth(bpb[1], 3)),
        Curve("validation", "main", by_tokens(val[0]), val[1], dots=True),
    ]
    shown = any(len(c.x) for c in curves)
    main = chart(curves, baselines, x_label, "bits per byte", log=True) if shown else ""
    tags = {"gradient norm": "train/grad_norm", "learning rate": "train/lr", "tokens per second": "time/tokens_per_s"}
    panels = {name: _series(metrics, "pretrain", tag) for name, tag in tags.items()}
    if not len(bpb[0]):
        panels = {"training loss, nats per token": loss} | panels
    small = _panels([Curve(name, "main", by_tokens(x), y) for name, (x, y) in panels.items()], x_label)
    note = "Bits per byte on a logarithmic axis. A horizontal line is what the validation text costs under that model."
    return _section("Pretraining", main, small, note=note if shown and baselines else "")


def _panels(curves: Sequence[Curve], x_label: str) -> str:
    """Small charts side by side, one per curve."""
    panels = "".join(
        f"<figure><figcaption>{escape(c.name)}</figcaption>"
        f"{chart([c], {}, x_label, c.name, width=460, height=190)}</figure>"
        for c in curves
        if len(c.x)
    )
    return f'<div class="panels">{panels}</div>' if panels else ""


def _finetune(metrics: list[dict]) -> str:
    loss, held = (_series(metrics, "finetune", tag) for tag in ("train/loss", "eval/chat_nats"))
    curves = [
        Curve("training, each step", "faint", *loss),
        Curve("training, smoothed", "side", loss[0], _smooth(loss[1])),
        Curve("held-out conversations", "main", *held, dots=True),
    ]
    body = chart(curves, {}, "step", "nats per assistant token", height=300) if any(len(c.x) for c in curves) else ""
    return _section("Fine-tuning to chat", body, note="Nats per token of the assistant's turns." if body else "")


def _reinforce(report: dict, metrics: list[dict]) -> str:
    """Accuracy on held-out problems of the task, before and after; verified: the answer is right and so is every step."""
    found = _dict(report.get("reinforce"))
    if not found:
        return ""
    rows = []
    for name in ("right", "verified", "steps", "lucky"):
        both = [_number(_dict(found.get(when)).get(name)) for when in ("before", "after")]
        cells = "".join(f"<td>{'' if x is None else f'{x:.1%}'}</td>" for x in both)
        rows.append(f"<tr><td>{name}</td>{cells}</tr>")
    table = f"<table><tr><th></th><th>before</th><th>after</th></tr>{''.join(rows)}</table>"
    curves = [
        Curve("final answer right", "side", *_series(metrics, "reinforce", "rl/right"), dots=True),
        Curve("and every step", "main", *_series(metrics, "reinforce", "rl/verified"), dots=True),
    ]
    body = chart(curves, {}, "step", "share of held-out problems", height=260) if any(len(c.x) for c in curves) else ""
    what = f"{_cut(found.get('task', ''), 40)}, level {_cut(found.get('level', ''), 9)}, {_cut(found.get('method', ''), 40)}"
    return _section(
        "Reinforcement, step by step", table + body, note=f"{what}. The credit of rollouts is in credit.html."
    )


def _stages(report: dict, metrics: list[dict]) -> str:
    """What each stage took: seconds, split by kind of work, tokens, steps that the guard refused."""
    names = list(dict.fromkeys([*report, *(r["stage"] for r in metrics)]))
    rows = []
    for name in names:
        figures = _dict(report.get(name))
        spent = {kind: _number(_dict(figures.get("time")).get(kind)) for kind in KINDS}
        spent = {kind: s if s is not None else _last(metrics, name, f"time/{kind}") for kind, s in spent.items()}
        spent = {kind: s for kind, s in spent.items() if s}
        seconds = _number(figures.get("seconds"))
        seconds = sum(spent.values()) if seconds is None and spent else seconds
        tokens = _last(metrics, name, "train/tokens") or _number(figures.get("tokens"))
        skipped = _last(metrics, name, "guard/skipped")
        skipped = _number(figures.get("skipped_steps")) if skipped is None else skipped
        steps = [r["step"] for r in metrics if r["stage"] == name]
        cells = [
            _duration(seconds),
            _split_bar(spent),
            f"{max(steps):,.0f}" if steps else "",
            _short(tokens) if tokens else "",
        ]
        speed = _last(metrics, name, "time/tokens_per_s")
        cells += [_short(speed) if speed else "", f"{skipped:,.0f}" if skipped is not None else ""]
        rows.append("<tr><th>" + "</th><td>".join([escape(name), "</td><td>".join(cells)]) + "</td></tr>")
    if not rows:
        return ""
    heads = ("stage", "time", "spent on", "steps", "tokens", "tokens/s", "steps refused by the guard")
    head = "".join(f"<th>{h}</th>" for h in heads)
    keys = "".join(f'<span class="key block {kind}">{kind}</span>' for kind in KINDS)
    total = sum(filter(None, (_number(_dict(figures).get("seconds")) for figures in report.values())))
    note = f"All stages that have finished: {_duration(total)}." if total else ""
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("Time and cost", table, f'<div class="keys">{keys}</div>', note=note)


def _split_bar(spent: Mapping[str, float]) -> str:
    total = sum(spent.values())
    parts = "".join(
        f'<i class="{kind}" style="width:{100 * s / total:.2f}%" title="{kind} {_duration(s)}"></i>'
        for kind, s in spent.items()
    )
    return f'<div class="split">{parts}</div>' if parts else ""


def _samples(samples: list[dict], stage: str, title: str) -> str:
    """What the model wrote at some of its steps, the first and the last among them."""
    records = [r for r in samples if r["stage"] == stage]
    steps = sorted({r["step"] for r in records})
    per_step = max(1, math.ceil(len(records) / max(len(steps), 1)))
    wanted = max(2, MAX_SAMPLES // per_step)
    if len(steps) > wanted:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, wanted).round().astype(int)]
    cards = []
    for step in steps:
        cards.append(f'<h3>step {step:,.0f}</h3><div class="cards">')
        for record in [r for r in records if r["step"] == step][:MAX_SAMPLES]:
            tag = str(record.get("tag", "")).removeprefix("samples/").removeprefix("chat/")
            text = _cut(record.get("text", ""))
            cards.append(f'<div class="card"><div class="tag">{_cut(tag, 200)}</div><pre>{text}</pre></div>')
        cards.append("</div>")
    return _section(title, *cards)


def _conversation(report: dict) -> str:
    turns = _dict(report.get("sample")).get("conversation")
    bubbles = [
        f'<div class="turn {"user" if turn.get("role") == "user" else "other"}">'
        f"<span>{_cut(turn.get('role', ''), 40)}</span><p>{_cut(turn.get('content', ''))}</p></div>"
        for turn in (turns if isinstance(turns, list) else [])[:100]
        if isinstance(turn, dict)
    ]
    return _section("A conversation", f'<div class="chat">{"".join(bubbles)}</div>') if bubbles else ""


def _details(run_dir: Path, report: dict) -> str:
    parts = {"Configuration": _text(run_dir / "config.toml"), "Provenance": _text(run_dir / "provenance.json")}
    plain = {stage: {k: v for k, v in _dict(f).items() if k != "conversation"} for stage, f in report.items()}
    parts["All figures"] = json.dumps(plain, indent=2, ensure_ascii=False, default=str) if plain else ""
    folded = "".join(
        f"<details><summary>{name}</summary><pre>{_cut(text, MAX_FILE_CHARS)}</pre></details>"
        for name, text in parts.items()
        if text.strip()
    )
    return f"<section>{folded}</section>" if folded else ""


# ---- the page -------------------------------------------------------------------------------------------------------


def write_report(run_dir: Path) -> Path:
    """Write report.html from what `run_dir` holds so far; returns its path."""
    run_dir = Path(run_dir)
    report, origin = _json(run_dir / "report.json"), _json(run_dir / "provenance.json")
    metrics, samples = _records(run_dir / "metrics.jsonl"), _records(run_dir / "samples.jsonl")
    evaluated = _dict(report.get("eval"))
    found = {str(k): _number(v) for k, v in _dict(evaluated.get("baselines")).items()}
    baselines = {name: value for name, value in found.items() if value is not None and value > 0}
    figures = evaluated.get("val_bpb"), _dict(report.get("pretrain")).get("val_bpb")
    bpb = next((x for x in map(_number, figures) if x is not None), _last(metrics, "pretrain", "eval/val_bpb"))
    name = run_dir.resolve().name
    made = " · ".join(_cut(origin[key], 200) for key in ("date", "devices", "processor", "commit") if origin.get(key))
    body = [
        f"<header><span>ramp</span><h1>{escape(name)}</h1><p>{made}</p></header>",
        _headline(bpb, baselines),
        _pretrain(metrics, report, baselines),
        _samples(samples, "pretrain", "What it wrote while it learned"),
        _finetune(metrics),
        _conversation(report),
        _samples(samples, "finetune", "Answers while it was fine-tuned"),
        _reinforce(report, metrics),
        _stages(report, metrics),
        _details(run_dir, report),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · ramp</title><style>{CSS}</style></head>\n<body><main>"
    )
    path = run_dir / "report.html"
    write_atomic(path, page + "\n".join(filter(None, body)) + "</main></body></html>\n")
    return path


CSS = """
:root { color-scheme: light dark; --page: #f7f6f3; --card: #fff; --ink: #1c1e21; --soft: #6c7077; --hair: #e3e1db;
  --main: #2f55d4; --side: #8d9ab8; --kn: #c2571a; --bytes: #8a8f98; --user: #2f55d4; --on-user: #fff;
  --other: #efede8; }
@media (prefers-color-scheme: dark) { :root { --page: #131519; --card: #1b1e24; --ink: #e8e8e6; --soft: #989da6;
  --hair: #2c3038; --main: #86a4ff; --side: #66718c; --kn: #f0965a; --bytes: #7d838d; --user: #3656b8;
  --other: #272b33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin-bottom: 24px; }
header span { color: var(--main); font-weight: 700; letter-spacing: .14em; text-transform: uppercase; font-size: 12px; }
header p, .note { color: var(--soft); margin: 2px 0 0; font-size: 13.5px; overflow-wrap: anywhere; }
h1 { font-size: 34px; line-height: 1.2; margin: 4px 0; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 2px; letter-spacing: -.01em; }
h3 { font-size: 13px; color: var(--soft); font-weight: 600; margin: 20px 0 8px; }
section { background: var(--card); border: 1px solid var(--hair); border-radius: 14px; padding: 22px 24px;
  margin-top: 18px; }
.hero { display: grid; grid-template-columns: minmax(220px, 2fr) 3fr; gap: 36px; align-items: center; }
.figure { font-size: 76px; font-weight: 700; line-height: 1; letter-spacing: -.04em; color: var(--main); }
.unit { font-weight: 600; margin-top: 8px; }
.verdict { color: var(--soft); margin: 6px 0 0; }
.row { display: grid; grid-template-columns: 112px 1fr 52px; gap: 10px; align-items: center; font-size: 13px;
  padding: 2.5px 0; }
.row span { color: var(--soft); white-space: nowrap; }
.row b { text-align: right; font-weight: 500; }
.track { height: 10px; }
.bar { height: 100%; border-radius: 3px; background: var(--bytes); opacity: .55; }
.row.kn .bar { background: var(--kn); }
.row.main .bar { background: var(--main); opacity: 1; }
.row.main span, .row.main b { color: var(--main); font-weight: 700; }
svg { width: 100%; height: auto; display: block; margin-top: 12px; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.grid { stroke: var(--hair); } .base { stroke: var(--soft); opacity: .5; }
.rule { stroke-dasharray: 5 4; opacity: .8; } .lead { fill: none; opacity: .6; }
.rule.kn, .lead.kn { stroke: var(--kn); } .rule.bytes, .lead.bytes { stroke: var(--bytes); }
svg .label.kn { fill: var(--kn); } svg .value { font-weight: 600; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.curve.main { stroke: var(--main); stroke-width: 2.4; } .curve.side { stroke: var(--side); }
.curve.faint { stroke: var(--side); opacity: .35; stroke-width: 1; }
.dot.main { fill: var(--main); } .dot.side, .dot.faint { fill: var(--side); }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 10px; font-size: 13px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 18px; height: 3px; border-radius: 2px; margin-right: 7px;
  vertical-align: middle; background: var(--side); }
.key.main::before { background: var(--main); } .key.faint::before { opacity: .35; }
.key.block::before { width: 10px; height: 10px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 20px; margin-top: 18px; }
figure { margin: 0; } figcaption { font-size: 13px; font-weight: 600; }
.panels svg { margin-top: 4px; font-size: 15px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin-top: 10px; font-size: 14px; }
th, td { text-align: right; padding: 8px 0 8px 14px; border-bottom: 1px solid var(--hair); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; font-size: 12.5px; white-space: normal; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; } th:nth-child(3) { text-align: left; }
  td:nth-child(3) { width: 30%; }
.split { display: flex; height: 10px; min-width: 140px; border-radius: 3px; overflow: hidden; gap: 1px; }
.split i.step, .key.step::before { background: var(--main); } .split i.data, .key.data::before { background: #3aa387; }
.split i.compile, .key.compile::before { background: #d9a13b; }
  .split i.eval, .key.eval::before { background: #a06bd0; }
.split i.save, .key.save::before { background: #d3607f; }
  .split i.other, .key.other::before { background: var(--bytes); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--hair); border-radius: 10px; padding: 10px 14px; min-width: 0; }
.tag { color: var(--soft); font-size: 12px; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 0;
  font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.chat { display: flex; flex-direction: column; gap: 10px; margin-top: 14px; }
.turn { max-width: 76%; padding: 8px 14px 10px; border-radius: 16px; background: var(--other); align-self: flex-start;
  border-bottom-left-radius: 4px; }
.turn.user { align-self: flex-end; background: var(--user); color: var(--on-user); border-radius: 16px 16px 4px 16px; }
.turn span { font-size: 11px; opacity: .7; } .turn p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details + details { border-top: 1px solid var(--hair); margin-top: 10px; padding-top: 10px; }
summary { cursor: pointer; font-weight: 600; }
.none { color: var(--soft); }
@media (max-width: 720px) { .hero { grid-template-columns: 1fr; } .turn { max-width: 92%; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
