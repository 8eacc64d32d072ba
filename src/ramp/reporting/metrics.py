"""What a run logs: TensorBoard events, metrics.jsonl and samples.jsonl; no TensorFlow, no torch.

Scalars, histograms and images use the first-generation protos (`simple_value`, `histo`, `image`):
every reader knows them and purges them when a run restarts. A writer opened at step s says so in
the event file (SessionLog START) and removes the lines of its stage with `step >= s` from the JSONL
files, so a resumed run shows each step exactly once.
"""

import io
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

# Protobuf makes these classes when it is imported: a type checker does not see them.
from tensorboard.compat.proto.event_pb2 import (
    Event,  # ty: ignore[missing-module-member]
    SessionLog,  # ty: ignore[missing-module-member]
)
from tensorboard.compat.proto.summary_pb2 import (
    HistogramProto,  # ty: ignore[missing-module-member]
    Summary,  # ty: ignore[missing-module-member]
    SummaryMetadata,  # ty: ignore[missing-module-member]
)
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,  # ty: ignore[missing-module-member]
    Chart,  # ty: ignore[missing-module-member]
    Layout,  # ty: ignore[missing-module-member]
    MultilineChartContent,  # ty: ignore[missing-module-member]
)
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import summary_v2
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,  # ty: ignore[missing-module-member]
)
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from ramp.files import GrowingFile, read_jsonl, to_line, write_atomic

# tensorboardX 2.6 was tried in place of the protos below. Its hparams go to a run of their own
# below the stage, its event files are named by the second, so that a restart within one second
# overwrites the file before it, and the JSONL mirror would stay: it saves about twenty lines.

# The tab "Custom Scalars": what the page of a run begins with. Title of a chart -> tags.
CHARTS = {
    "how well it reads: bits per byte, and Kneser-Ney": r"^eval/(val_bpb|baseline_kn\d)$",
    "credit for every step: held-out problems solved with every step right": r"^rl/verified$",
    "its own samples: bits per byte over generations": r"^synth/(bpb|first_bpb)$",
    "how reliable it is: held-out trials solved": r"^nines/",
}
# What is said of a curve where the reader asks.
DESCRIPTIONS = {
    "train/loss": "nats per token of the batch that was trained on",
    "train/grad_norm": "length of the gradient of all weights, before clipping",
    "train/update_norm": "length of the change of all weights in this step",
    "train/lr": "learning rates, as a share of their peaks",
    "train/weight": "tokens of the batch that carry loss",
    "train/tokens": "tokens read so far",
    "eval/val_bpb": "bits per byte of held-out text; comparable between tokenizers",
    "eval/chat_nats": "nats per token that an assistant says in held-out conversations",
    "guard/skipped": "steps left out because loss or gradient stood out",
    "time/tokens_per_s": "tokens per second since the last line",
    "time/goodput": "share of the time that went into steps",
    "rl/verified": "held-out problems whose answer and every step are right, one sample each",
    "rl/train_verified": "rollouts of this iteration with every step right",
    "rl/dropped_groups": "groups of rollouts that all had the same reward and taught nothing",
    "synth/bpb": "bits per byte of held-out documents, after this generation",
    "synth/first_bpb": "the same, of the model before the first generation",
}


class MetricWriter:
    """Writer for one stage of a run. With `enabled=False` nothing touches the disk.

    In a run of several processes only the first one is enabled.
    """

    def __init__(self, run_dir: Path, stage: str, start_step: int = 0, enabled: bool = True):
        self.stage = stage
        self.folder = run_dir / "tb" / stage
        self.enabled = enabled
        self._last_step = start_step
        self._steps: dict[str, int] = {}  # tag -> the last step at which it was drawn
        if not enabled:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = self._open(run_dir / "metrics.jsonl", start_step)
        self._samples = self._open(run_dir / "samples.jsonl", start_step)
        self._events = _new_event_file(self.folder)
        self._records = RecordWriter(self._events)
        # What TensorBoard knows such a file by.
        self._add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add_event(Event(wall_time=time.time(), step=start_step, session_log=start))
        # In the events of every stage: TensorBoard shows one of layouts that are equal.
        self._add(start_step, make_layout())

    def _open(self, path, start_step):
        drop_later_records(path, self.stage, start_step)
        return GrowingFile(path)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Draw one point per tag and append one line to metrics.jsonl."""
        if not self.enabled:
            return
        numbers = {tag: float(value) for tag, value in values.items()}
        self._draw(step, numbers)
        self._append(self._metrics, step, numbers)

    def text(self, step: int, tag: str, text: str) -> None:
        """Show `text` as it stands and append it to samples.jsonl."""
        if not self.enabled:
            return
        # TensorBoard renders Markdown; a code block keeps the text as it is.
        block = "".join(f"    {line}\n" for line in text.splitlines())
        self._add(step, *text_pb(tag, block.encode("utf-8", "replace")).value)
        self._append(self._samples, step, {"tag": tag, "text": text})

    def figure(self, step: int, tag: str, figure: Any) -> None:
        """Show a matplotlib `Figure` as an image."""
        if not self.enabled:
            return
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A box stands for what no font has, such as an emoji of a question.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(buffer, format="png")
        png = buffer.getvalue()
        width, height = struct.unpack(">II", png[16:24])  # of the PNG's first chunk, IHDR
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(step, Summary.Value(tag=tag, image=image))

    def histogram(self, step: int, tag: str, values: np.ndarray, bins: int = 64) -> None:
        """Show the distribution of the finite entries of `values`; nothing when there are none."""
        if not self.enabled:
            return
        x = np.asarray(values, np.float64).ravel()
        x = x[np.isfinite(x)]  # one NaN would make every edge NaN
        if len(x) == 0:
            return
        counts, edges = np.histogram(x, bins=bins)
        histogram = HistogramProto(
            min=x.min(),
            max=x.max(),
            num=len(x),
            sum=x.sum(),
            sum_squares=np.square(x).sum(),
            bucket_limit=edges[1:],
            bucket=counts,
        )
        self._add(step, Summary.Value(tag=tag, histo=histogram))

    def hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Add a row to the HParams tab: the settings and the metrics they led to.

        Call it once, when the stage is done.
        """
        if not self.enabled:
            return
        plain = {}  # the protos take these four types only
        for name, value in hparams.items():
            plain[name] = value if isinstance(value, bool | int | float | str) else str(value)
        # The columns of the tab; the row itself follows.
        columns = summary_v2.hparams_config_pb(
            map(summary_v2.HParam, plain), map(summary_v2.Metric, metrics)
        )
        self._add(0, *columns.value, *summary_v2.hparams_pb(plain).value)
        # The tab reads each metric from its curve. One that has its last point already gets no
        # second one.
        step = self._last_step
        missing = {tag: float(x) for tag, x in metrics.items() if self._steps.get(tag) != step}
        self._draw(step, missing)
        end = HParamsPluginData()
        end.session_end_info.status = 1  # STATUS_SUCCESS
        end.session_end_info.end_time_secs = time.time()
        metadata = hparams_metadata.create_summary_metadata(end)
        tag = hparams_metadata.SESSION_END_INFO_TAG
        tensor = hparams_metadata.NULL_TENSOR
        self._add(0, Summary.Value(tag=tag, metadata=metadata, tensor=tensor))

    def publish(self) -> None:
        """Let a mounted bucket have all that was logged, see `GrowingFile`."""
        if self.enabled:
            for file in (self._events, self._metrics, self._samples):
                file.publish()

    def close(self) -> None:
        """Publish what is left; later calls do nothing."""
        self.publish()
        # From here on every method does nothing, so that closing twice is harmless.
        self.enabled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _draw(self, step, numbers: Mapping[str, float]):
        values = []
        for tag, x in numbers.items():
            # TensorBoard keeps what comes with the first point of a curve.
            said = "" if tag in self._steps else DESCRIPTIONS.get(tag, "")
            metadata = SummaryMetadata(summary_description=said)
            values.append(Summary.Value(tag=tag, simple_value=x, metadata=metadata))
        self._last_step = max(self._last_step, int(step))
        self._steps |= dict.fromkeys(numbers, int(step))
        self._add(step, *values)

    def _add(self, step, *values: Summary.Value):
        summary = Summary(value=values)
        self._add_event(Event(wall_time=time.time(), step=int(step), summary=summary))

    def _add_event(self, event):
        self._records.write(event.SerializeToString())

    def _append(self, file, step, values: Mapping[str, Any]):
        # Flushed and not synced: a killed process loses no line, and a step need not wait.
        file.write(to_line({"step": int(step), "stage": self.stage, **values}).encode())


def make_layout() -> Summary.Value:
    """CHARTS as the summary that the tab "Custom Scalars" reads."""
    charts = []
    for title, tags in CHARTS.items():
        charts.append(Chart(title=title, multiline=MultilineChartContent(tag=[tags])))
    layout = Layout(category=[Category(title="What this run promises", chart=charts)])
    return Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG,
        metadata=layout_metadata.create_summary_metadata(),
        # By hand: the plugin's own function imports TensorFlow.
        tensor=make_tensor_proto(layout.SerializeToString()),
    )


def _new_event_file(folder):
    """A new event file that sorts after those already there.

    TensorBoard reads files by name, and a name begins with the second of its creation, followed by
    the process id. Of two files of one second the later may be read first, and the purge would then
    miss what it should remove.
    """
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)
    folder.mkdir(parents=True, exist_ok=True)
    host, process = socket.gethostname(), os.getpid()
    return GrowingFile(folder / f"events.out.tfevents.{int(time.time()):010d}.{host}.{process}.0")


def drop_later_records(path: Path, stage: str, start_step: int) -> None:
    """Remove the lines of `stage` with `step >= start_step`, and torn ones, from a JSONL file."""
    if not path.exists():
        return
    kept = []
    for record in read_jsonl(path):
        if record.get("stage") != stage or record.get("step", math.inf) < start_step:
            kept.append(to_line(record))
    write_atomic(path, "".join(kept))


def drop_evaluation(run_dir: Path, stage: str, step: int) -> None:
    """Remove what an evaluation of `stage` at `step` has logged, but not the training step itself.

    For one that was cut short and is made up for.
    """
    for path in (run_dir / "metrics.jsonl", run_dir / "samples.jsonl"):
        kept = []
        for record in read_jsonl(path):
            is_of_step = record.get("stage") == stage and record.get("step") == step
            if not is_of_step or "train/loss" in record:
                kept.append(to_line(record))
        if path.exists():
            write_atomic(path, "".join(kept))


def read_last_values(path: Path, stage: str, prefix: str) -> dict[str, float]:
    """The values whose tags begin with `prefix` in the last line of `stage` that has any.

    Tags are returned without the prefix; {} if there is no such line.
    """
    last = {}
    for record in read_jsonl(path):
        if record.get("stage") == stage:
            values = {tag: x for tag, x in record.items() if tag.startswith(prefix)}
            last = values or last  # many lines have none with this prefix
    return {tag.removeprefix(prefix): value for tag, value in last.items()}
