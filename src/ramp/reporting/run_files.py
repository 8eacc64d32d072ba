"""What a run directory holds so far, read for its page; whatever is cut off or broken is empty."""

import json
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ramp.files import read_jsonl, read_kept, warn_once
from ramp.reporting.figure import LARGEST


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds so far; whatever is missing or broken is empty."""

    name: str  # of the directory
    report: dict[str, dict[str, Any]]  # stage -> figures
    provenance: dict[str, Any]  # date, devices, commit
    metrics: dict[str, list[dict[str, Any]]]  # stage -> records by step
    samples: dict[str, list[dict[str, Any]]]  # stage -> records by step
    texts: dict[str, str]  # the files shown at the end, by name
    rivals: dict[str, "RunFiles"] = field(default_factory=dict)  # by name, see `ramp.rivals`

    def stages(self) -> list[str]:
        """Stages that reported or logged anything, in the order of the report."""
        return list(dict.fromkeys([*self.report, *self.metrics, *self.samples]))

    @property
    def is_small(self) -> bool:
        """Whether it is the small size of its configuration."""
        text = self.texts.get("config.toml", "").removeprefix("\ufeff")
        try:
            return tomllib.loads(text).get("size") == "small"
        except ValueError:
            return False

    def figure(self, stage: str, name: str) -> float | None:
        """A figure of the report, if it is a number."""
        return as_number(self.report.get(stage, {}).get(name))

    def series(self, stage: str, tag: str) -> np.ndarray:
        """Steps and values of one metric, [2, N]."""
        points = [
            (record["step"], record[tag])
            for record in self.metrics.get(stage, [])
            if as_number(record.get(tag)) is not None
        ]
        return np.array(points, float).reshape(-1, 2).T

    def last_values(self, stage: str) -> dict[str, float]:
        """The last number of each metric of a stage."""
        last = {}
        for record in self.metrics.get(stage, []):
            last |= {tag: x for tag, x in record.items() if as_number(x) is not None}
        return last


def read_run(run_dir: Path) -> RunFiles:
    """Read every file that the page shows."""
    paths = [run_dir / name for name in ("config.toml", "provenance.json", "report.json")]
    texts = {p.name: _read_text(p) for p in paths if p.is_file()}
    report = parse_dict(texts.get("report.json", ""))
    rivals = sorted(run_dir.glob("rivals/*/report.json"))
    return RunFiles(
        name=run_dir.resolve().name,
        report={stage: as_dict(figures) for stage, figures in report.items()},
        provenance=parse_dict(texts.get("provenance.json", "")),
        metrics=_records(run_dir / "metrics.jsonl"),
        samples=_records(run_dir / "samples.jsonl"),
        texts=texts,
        rivals={path.parent.name: read_run(path.parent) for path in rivals},
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


def parse_dict(text: str) -> dict:
    """The dict that a JSON text holds; empty where it holds none."""
    try:
        return as_dict(json.loads(text))
    except ValueError:
        return {}  # half written: the page shows the rest


def _records(path):
    # A record without step or stage has no place on the page.
    sound = [
        record
        for record in read_jsonl(path)
        if as_number(record.get("step")) is not None and isinstance(record.get("stage"), str)
    ]
    stages = defaultdict(list)
    for record in sorted(sound, key=itemgetter("step")):
        stages[record["stage"]].append(record)
    return stages


def as_dict(value: Any) -> dict:
    """The value, if it is a dict; else an empty one."""
    return value if isinstance(value, dict) else {}


def as_number(value) -> float | None:
    """The value, if it is a number that can be drawn."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < LARGEST else None
