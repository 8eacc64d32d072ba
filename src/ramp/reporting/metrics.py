"""What a run shows: TensorBoard events, metrics.jsonl and samples.jsonl, written without TensorFlow or torch.

Scalars, histograms and images use the first-generation protos (`simple_value`, `histo`, `image`): every reader knows
them and purges them when a run restarts. A board opened at step s says so in the event file (SessionLog START) and
takes the lines of its stage with `step >= s` out of the JSONL files, so a resumed run shows each step exactly once.
"""

import io
import json
import math
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.hparams import api_pb2, summary_v2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto


class MetricWriter:
    """Writer for one stage of a run; with `enabled=False` (every process but the first) nothing touches the disk."""

    def __init__(self, run_dir: Path, stage: str, start_step: int = 0, enabled: bool = True):
        self.stage, self.enabled = stage, enabled
        self._step = start_step
        self._drawn: dict[str, int] = {}  # the last step of each scalar
        if not enabled:
            return
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        paths = run_dir / "metrics.jsonl", run_dir / "samples.jsonl"
        for path in paths:
            drop_later_records(path, stage, start_step)
        self._metrics, self._samples = (path.open("a", encoding="utf-8") for path in paths)
        self._events = _event_file(run_dir / "tb" / stage)
        start = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(wall_time=time.time(), step=start_step, session_log=start))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Draw one point per tag and append one line to metrics.jsonl, where a value that is not finite is null."""
        if not self.enabled:
            return
        numbers = {tag: float(value) for tag, value in values.items()}
        self._draw(step, numbers)
        line = {tag: number if math.isfinite(number) else None for tag, number in numbers.items()}
        _append(self._metrics, {"step": int(step), "stage": self.stage} | line)

    def text(self, step: int, tag: str, text: str) -> None:
        """Show `text` as it stands (a Markdown code block) and append it to samples.jsonl."""
        if not self.enabled:
            return
        block = "".join(f"    {line}\n" for line in text.splitlines())
        tensor = make_tensor_proto(np.array([block.encode("utf-8", "replace")], dtype=object))
        self._add(
            step,
            Summary.Value(
                tag=tag, tensor=tensor, metadata=text_metadata.create_summary_metadata(tag, "")
            ),
        )
        _append(self._samples, {"step": int(step), "stage": self.stage, "tag": tag, "text": text})

    def figure(self, step: int, tag: str, figure: Any) -> None:
        """Show a matplotlib `Figure` as an image."""
        if not self.enabled:
            return
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        png = buffer.getvalue()
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(step, Summary.Value(tag=tag, image=image))

    def histogram(self, step: int, tag: str, values: np.ndarray, bins: int = 64) -> None:
        """Show the distribution of the finite entries of `values`; nothing when there are none."""
        if not self.enabled:
            return
        x = np.asarray(values, np.float64).ravel()
        x = x[np.isfinite(x)]
        if len(x) == 0:
            return
        count, edges = np.histogram(x, bins=bins)
        histo = HistogramProto(
            min=x.min(), max=x.max(), num=len(x), sum=x.sum(), sum_squares=np.square(x).sum()
        )
        histo.bucket_limit.extend(edges[1:])
        histo.bucket.extend(count)
        self._add(step, Summary.Value(tag=tag, histo=histo))

    def hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of the HParams tab: the settings and the metrics they led to. Call it once, when the stage is done."""
        if not self.enabled:
            return
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in hparams.items()
        }
        columns = (
            [summary_v2.HParam(name) for name in plain],
            [summary_v2.Metric(tag) for tag in metrics],
        )
        end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        session_end = Summary.Value(
            tag=hparams_metadata.SESSION_END_INFO_TAG,
            metadata=hparams_metadata.create_summary_metadata(
                HParamsPluginData(session_end_info=end)
            ),
            tensor=hparams_metadata.NULL_TENSOR,
        )
        self._add(
            0, *summary_v2.hparams_config_pb(*columns).value, *summary_v2.hparams_pb(plain).value
        )
        self._draw(
            self._step,
            {tag: float(x) for tag, x in metrics.items() if self._drawn.get(tag) != self._step},
        )
        self._add(0, session_end)

    def flush(self) -> None:
        if self.enabled:
            self._events.flush()

    def close(self) -> None:
        if not self.enabled:
            return
        self.enabled = False
        self._events.close()
        self._metrics.close()
        self._samples.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _draw(self, step: int, numbers: Mapping[str, float]) -> None:
        self._step = max(self._step, int(step))
        self._drawn |= dict.fromkeys(numbers, int(step))
        self._add(
            step, *(Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items())
        )

    def _add(self, step: int, *values: Summary.Value) -> None:
        self._events.add_event(
            Event(wall_time=time.time(), step=int(step), summary=Summary(value=values))
        )


def _event_file(folder: Path) -> EventFileWriter:
    """A new event file that sorts after those already there.

    TensorBoard reads files by name, and the name begins with the second of its making and then the process id: of two
    files made in one second the later may be read first, and the purge would then spare what it should take out.
    """
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)
    return EventFileWriter(str(folder), flush_secs=10)


def drop_later_records(path: Path, stage: str, start_step: int) -> None:
    """Take the lines of `stage` with `step >= start_step`, and any line a kill left torn, out of a JSONL file."""
    if not path.exists():
        return
    old = path.read_bytes()
    new = b"".join(line + b"\n" for line in old.split(b"\n") if _stays(line, stage, start_step))
    if new == old:
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as out:
        out.write(new)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def _stays(line: bytes, stage: str, start_step: int) -> bool:
    try:
        record = json.loads(line)
        return record["stage"] != stage or record["step"] < start_step
    except (ValueError, TypeError, KeyError):
        return False


def read_last_values(path: Path, stage: str, prefix: str) -> dict[str, float]:
    """The values whose tags begin with `prefix` in the last line of `stage` that has any; {} if none has."""
    for line in reversed(path.read_bytes().splitlines() if path.exists() else []):
        with suppress(ValueError):  # torn by a kill
            record = json.loads(line)
            if record["stage"] == stage and (
                tags := [tag for tag in record if tag.startswith(prefix)]
            ):
                return {tag.removeprefix(prefix): record[tag] for tag in tags}
    return {}


def _append(file: io.TextIOBase, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, allow_nan=False) + "\n")
    file.flush()
