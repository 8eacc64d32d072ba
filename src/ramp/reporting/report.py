"""The run, told on one page: report.json holds the figures of each stage, report.html shows them to a person.

The page is self-contained: no script, nothing fetched, pictures as inline SVG, every word from the run escaped. It shows
whatever there is, so a half-finished run has a report as well. A section is `section(title, *html)`, a picture in it
`svg(line(...))` of `ramp.figure`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.reporting.figure import Curve, picture, short
from ramp.reporting.html import escape, section, write_page

MAX_SAMPLES = 8  # of a stage, spread over its steps
MAX_FILE_CHARS = 60_000  # of the configuration and the provenance

NAMES = {"unigram": "byte unigram", "bigram": "byte bigram", "trigram": "byte trigram"}
KINDS = {
    "step": "main",
    "data": "green",
    "init": "side",
    "compile": "gold",
    "eval": "violet",
    "save": "pink",
}
KINDS |= {"lost": "warm", "other": "grey"}
PANELS = {
    "gradient norm": "train/grad_norm",
    "learning rate": "train/lr",
    "tokens per second": "time/tokens_per_s",
}

Levels = Mapping[str, tuple[float, str]]  # name -> (bits per byte, color)


def read_report(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The figures of a run by stage; empty before the first stage has reported."""
    path = Path(run_dir) / "report.json"
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); delete it and run the stages again"
        ) from None
    if not isinstance(report, dict):
        raise UserError(f"{path} does not hold a JSON object; delete it and run the stages again")
    return report


def update_report(run_dir: Path, stage: str, values: Mapping[str, Any]) -> None:
    """Merge `values` into the key `stage` of report.json, atomically. A number that is not finite becomes null."""
    report = read_report(run_dir)
    report[stage] = _dict(report.get(stage)) | dict(values)
    write_atomic(
        Path(run_dir) / "report.json", json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    """The value, if it is a number that can be drawn."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    return float(value) if ok else None


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(text: str) -> dict[str, Any]:
    try:
        return _dict(json.loads(text))
    except ValueError:
        return {}


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file by step; a run in progress may have half a line at the end."""
    records = map(_json, _text(path).splitlines())
    sound = [
        r for r in records if _number(r.get("step")) is not None and isinstance(r.get("stage"), str)
    ]
    return sorted(sound, key=lambda record: record["step"])


def _series(records: Iterable[dict], stage: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one tag."""
    points = [(r["step"], _number(r.get(tag))) for r in records if r["stage"] == stage]
    points = np.array([point for point in points if point[1] is not None], float).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _last(records: Iterable[dict], stage: str) -> dict[str, float]:
    """The last number of each tag."""
    items = (item for r in records if r["stage"] == stage for item in r.items())
    return {tag: _number(value) for tag, value in items if _number(value) is not None}


def _name(baseline: str) -> str:
    return NAMES.get(
        baseline, f"Kneser-Ney {baseline[2:]}" if baseline.startswith("kn") else baseline
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _headline(bpb: float | None, levels: Levels) -> str:
    """The figure and, beside it, what the same text costs under models that anyone can fit."""
    rows = sorted(((value, name, color) for name, (value, color) in levels.items()), reverse=True)
    figure, verdict = "?", "not evaluated yet"
    if bpb is not None:
        worse = [f"better than {name} ({value:.3f})" for value, name, _ in rows if value > bpb][-1:]
        better = [
            f"not as good as {name} ({value:.3f})" for value, name, _ in rows if value <= bpb
        ][:1]
        figure, verdict = (
            f"{bpb:.3f}",
            ", ".join(worse + better) or "no baselines to hold it against yet",
        )
        rows = sorted([*rows, (bpb, "this model", "main")], reverse=True) if rows else []
    most = max((value for value, _, _ in rows), default=1.0)
    bars = "".join(
        f'<div class="row {color}"><span>{escape(name)}</span>'
        f'<div><i style="width:{100 * value / most:.2f}%"></i></div><b>{value:.3f}</b></div>'
        for value, name, color in rows
    )
    return (
        f'<section class="hero"><div><div class="figure">{figure}</div><b>bits per byte on held-out text</b>'
        f'<p class="note">{escape(verdict)}</p></div><div>{bars}</div></section>'
    )


def _pretrain(metrics: list[dict], report: dict, levels: Levels) -> str:
    """Validation and train bits per byte against the baselines; train loss in its own panel if it has no bytes."""
    clock = _series(metrics, "pretrain", "train/tokens")
    x_label = "train tokens" if len(clock[0]) else "step"
    val, bpb, loss = (
        _series(metrics, "pretrain", tag) for tag in ("eval/val_bpb", "train/bpb", "train/loss")
    )
    panels = {name: _series(metrics, "pretrain", tag) for name, tag in PANELS.items()}
    bytes_per_token = _number(_dict(report.get("prepare")).get("bytes_per_token"))
    if not len(bpb[0]) and bytes_per_token:
        with np.errstate(over="ignore"):
            bpb = loss[0], loss[1] / (math.log(2) * bytes_per_token)
    elif not len(bpb[0]):
        panels = {"training loss, nats per token": loss} | panels

    def curve(name: str, points: tuple[np.ndarray, np.ndarray], *how: Any) -> Curve:
        steps, values = points
        return Curve(name, np.interp(steps, *clock) if len(clock[0]) else steps, values, *how)

    curves = [curve("training", bpb, "side", 3), curve("validation", val, "main", 0, True)]
    main = picture(curves, levels, x_label, "bits per byte", log=True)
    small = {
        name: picture([curve(name, xy)], {}, x_label, "", size=(3.2, 1.5))
        for name, xy in panels.items()
    }
    small = [f"<div><h3>{name}</h3>{drawn}</div>" for name, drawn in small.items() if drawn]
    note = "Bits per byte on a logarithmic axis. A horizontal line is what the validation text costs under that model."
    parts = main, f'<div class="panels">{"".join(small)}</div>' if small else ""
    return section("Pretraining", *parts, note=note if main and levels else "")


def _finetune(metrics: list[dict]) -> str:
    loss, held = (_series(metrics, "finetune", tag) for tag in ("train/loss", "eval/chat_nats"))
    curves = [
        Curve("training", *loss, "side", 5),
        Curve("held-out conversations", *held, dots=True),
    ]
    body = picture(curves, {}, "step", "nats per assistant token", size=(9.6, 3))
    return section("Fine-tuning to chat", body, note="Nats per token of the assistant's turns.")


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
        Curve("final answer right", *_series(metrics, "reinforce", "rl/right"), "side", dots=True),
        Curve("and every step", *_series(metrics, "reinforce", "rl/verified"), dots=True),
    ]
    body = picture(curves, {}, "step", "share of held-out problems", size=(9.6, 3))
    what = f"{escape(found.get('task', ''), 40)}, level {escape(found.get('level', ''), 9)}, {escape(found.get('method', ''), 40)}"
    return section(
        "Reinforcement, step by step",
        table,
        body,
        note=f"{what}. The credit of rollouts is in credit.html.",
    )


def _synthesize(report: dict) -> str:
    """Bits per byte of held-out text by generation of own samples; the rest is in synth.html."""
    found = _dict(report.get("synthesize"))
    rows = [h for h in found.get("generations") or [] if isinstance(h, dict)]
    first = _number(_dict(rows[0]).get("first_bpb")) if rows else None
    if first is None:
        return ""
    bpb = [first, *(_number(h.get("bpb")) for h in rows)]
    if None in bpb:
        return ""
    levels = {"first model": (first, "green")}
    body = picture(
        [Curve("this run", range(len(bpb)), bpb, dots=True)],
        levels,
        "generation",
        "bits per byte, held out",
    )
    said = "; ".join(f"{h.get('generation')}: {h.get('decision')}" for h in rows)
    return section(
        "Generations of own samples",
        body,
        note=f"Guard by generation: {said}. All of it is in synth.html.",
    )


def _stages(report: dict, metrics: list[dict]) -> str:
    """What each stage took: seconds, split by kind of work, steps, tokens, steps that the guard refused."""
    rows, all_told = [], 0.0
    for stage in dict.fromkeys([*report, *(r["stage"] for r in metrics)]):
        told = _dict(report.get(stage))
        seen = {"train/tokens": _number(told.get("tokens"))} | _last(metrics, stage)
        time = _dict(told.get("time"))
        spent = {kind: _number(time.get(kind)) or seen.get(f"time/{kind}", 0.0) for kind in KINDS}
        seconds = _number(told.get("seconds"))
        all_told += seconds or 0
        look = '<i style="flex: {:.0f}; background: var(--{})" title="{} {}"></i>'
        bar = "".join(
            look.format(1e4 * s, KINDS[kind], kind, _duration(s))
            for kind, s in spent.items()
            if s > 0
        )
        cells = [
            _duration(seconds or sum(spent.values())),
            f'<div class="split">{bar}</div>' if bar else "",
        ]
        keys = {
            "step": ",.0f",
            "train/tokens": "",
            "time/tokens_per_s": "",
            "guard/skipped": ",.0f",
        }
        for value, form in ((seen.get(key), form) for key, form in keys.items()):
            cells.append("" if value is None else format(value, form) if form else short(value))
        rows.append(
            f"<tr><th>{escape(stage)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    head = "</th><th>".join(
        ("stage", "time", "spent on", "steps", "tokens", "tokens/s", "steps refused by the guard")
    )
    keys = "".join(
        f'<span><i style="background: var(--{color})"></i>{kind}</span>'
        for kind, color in KINDS.items()
    )
    table = f'<div class="scroll"><table class="stages"><thead><tr><th>{head}</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    note = f"All stages that have finished: {_duration(all_told)}." if all_told else ""
    return (
        section("Time and cost", table, f'<div class="keys">{keys}</div>', note=note)
        if rows
        else ""
    )


def _samples(samples: list[dict], stage: str, title: str) -> str:
    """What the model wrote at some of its steps, the first and the last among them."""
    records = [r for r in samples if r["stage"] == stage]
    steps = sorted({r["step"] for r in records})
    per_step = max(1, math.ceil(len(records) / max(len(steps), 1)))
    wanted = max(2, MAX_SAMPLES // per_step)
    if len(steps) > wanted:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, wanted).round().astype(int)]
    parts = []
    for step in steps:
        cards = [_card(r) for r in records if r["step"] == step][:MAX_SAMPLES]
        parts.append(f'<h3>step {step:,.0f}</h3><div class="cards">{"".join(cards)}</div>')
    return section(title, *parts)


def _card(record: dict) -> str:
    tag = str(record.get("tag", "")).removeprefix("samples/").removeprefix("chat/")
    return f'<div class="card"><p class="note">{escape(tag, 200)}</p><pre>{escape(record.get("text", ""))}</pre></div>'


def _conversation(report: dict) -> str:
    turns = _dict(report.get("sample")).get("conversation")
    bubbles = [
        f'<div class="turn {"user" if turn.get("role") == "user" else "other"}">'
        f"<span>{escape(turn.get('role', ''), 40)}</span><p>{escape(turn.get('content', ''))}</p></div>"
        for turn in (turns if isinstance(turns, list) else [])[:100]
        if isinstance(turn, dict)
    ]
    return (
        section("A conversation", f'<div class="chat">{"".join(bubbles)}</div>') if bubbles else ""
    )


def _details(run_dir: Path, report: dict) -> str:
    parts = {
        "Configuration": _text(run_dir / "config.toml"),
        "Provenance": _text(run_dir / "provenance.json"),
    }
    hidden = "conversation", "generations"
    plain = {
        stage: {k: v for k, v in _dict(f).items() if k not in hidden} for stage, f in report.items()
    }
    parts["All figures"] = json.dumps(plain, indent=2, ensure_ascii=False) if plain else ""
    look = "<details><summary>{}</summary><pre>{}</pre></details>"
    folded = "".join(
        look.format(name, escape(text, MAX_FILE_CHARS))
        for name, text in parts.items()
        if text.strip()
    )
    return f"<section>{folded}</section>" if folded else ""


def write_report(run_dir: Path) -> Path:
    """Write report.html from what `run_dir` holds so far; returns its path."""
    run_dir = Path(run_dir)
    report, origin = (_json(_text(run_dir / name)) for name in ("report.json", "provenance.json"))
    metrics, samples = _records(run_dir / "metrics.jsonl"), _records(run_dir / "samples.jsonl")
    evaluated = _dict(report.get("eval"))
    found = {str(k): _number(v) for k, v in _dict(evaluated.get("baselines")).items()}
    levels = {
        _name(k): (v, "warm" if k.startswith("kn") else "grey")
        for k, v in found.items()
        if v and v > 0
    }
    figures = evaluated.get("val_bpb"), _dict(report.get("pretrain")).get("val_bpb")
    bpb = next(
        (x for x in map(_number, figures) if x is not None),
        _last(metrics, "pretrain").get("eval/val_bpb"),
    )
    name = run_dir.resolve().name
    made = " · ".join(
        str(origin[key])[:200]
        for key in ("date", "devices", "processor", "commit")
        if origin.get(key)
    )
    body = [
        _headline(bpb, levels),
        _pretrain(metrics, report, levels),
        _samples(samples, "pretrain", "What it wrote while it learned"),
        _finetune(metrics),
        _conversation(report),
        _samples(samples, "finetune", "Answers while it was fine-tuned"),
        _reinforce(report, metrics),
        _synthesize(report),
        _stages(report, metrics),
        _details(run_dir, report),
    ]
    return write_page(run_dir / "report.html", name, body, made)
