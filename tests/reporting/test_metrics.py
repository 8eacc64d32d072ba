"""Everything a board writes, read back through TensorBoard's own readers and as JSON."""

import io
import json
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams_metadata

from ramp.files import read_jsonl
from ramp.reporting.metrics import (
    CHARTS,
    DESCRIPTIONS,
    MetricWriter,
    drop_later_records,
    read_last_values,
)

KEEP_ALL = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)


def read(run_dir, stage="pretrain"):
    return EventAccumulator(str(run_dir / "tb" / stage), size_guidance=KEEP_ALL).Reload()


def lines(path):
    """As another tool reads them, without the checksums; as ramp reads them it is the same."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    plain = [{key: x for key, x in r.items() if key != "crc"} for r in records]
    assert plain == list(read_jsonl(path))
    return plain


def test_scalars_reach_both_places(tmp_path):
    with MetricWriter(tmp_path, "pretrain") as board:
        for step in range(50):
            board.scalars(step, {"train/loss": 10.0 - step, "train/lr": np.float32(0.5)})
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (s, 10.0 - s) for s in range(50)
    ]
    want = {"step": 3, "stage": "pretrain", "train/loss": 7.0, "train/lr": 0.5}
    assert lines(tmp_path / "metrics.jsonl")[3] == want


def test_values_that_are_not_finite_are_null_in_json(tmp_path):
    with MetricWriter(tmp_path, "pretrain") as board:
        board.scalars(1, {"a": float("nan"), "b": float("inf"), "c": 1})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "stage": "pretrain", "a": None, "b": None, "c": 1.0}
    ]
    assert np.isnan(read(tmp_path).Scalars("a")[0].value)


def test_text_is_kept_as_it_stands(tmp_path):
    text = "one\n  <b>two</b> \N{SNOWMAN}\n\n# three"
    with MetricWriter(tmp_path, "finetune") as board:
        board.text(7, "samples/0", text)
    assert lines(tmp_path / "samples.jsonl") == [
        {"step": 7, "stage": "finetune", "tag": "samples/0", "text": text}
    ]
    (event,) = read(tmp_path, "finetune").Tensors("samples/0")
    shown = event.tensor_proto.string_val[0].decode()
    assert (event.step, [line[4:] for line in shown.splitlines()]) == (7, text.splitlines())


def test_figure_is_an_image(tmp_path):
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    with MetricWriter(tmp_path, "pretrain") as board:
        board.figure(2, "eval/curve", figure)
    (image,) = read(tmp_path).Images("eval/curve")
    assert (image.step, image.width, image.height) == (2, 100, 50)
    assert imread(io.BytesIO(image.encoded_image_string)).shape == (50, 100, 4)


def test_what_no_font_has_is_drawn_without_a_warning(tmp_path, recwarn):
    figure = Figure(layout="constrained")
    figure.suptitle("how many \U0001f37a?")
    with MetricWriter(tmp_path, "reinforce") as board:
        board.figure(1, "credit", figure)
    assert not recwarn.list and read(tmp_path, "reinforce").Images("credit")


def test_histogram_counts_the_finite_values(tmp_path):
    values = np.concatenate([np.linspace(-1, 1, 999), [np.nan, np.inf]]).astype(np.float32)
    with MetricWriter(tmp_path, "pretrain") as board:
        board.histogram(4, "params/w", values.reshape(-1, 7))
        board.histogram(4, "params/none", np.array([np.nan]))
        board.histogram(4, "params/constant", np.zeros(5))
    events = read(tmp_path)
    histo = events.Histograms("params/w")[0].histogram_value
    assert (histo.num, histo.min, histo.max, sum(histo.bucket)) == (999, -1, 1, 999)
    assert len(histo.bucket) == len(histo.bucket_limit)
    assert sum(events.Histograms("params/constant")[0].histogram_value.bucket) == 5
    assert "params/none" not in events.Tags()["histograms"]


def test_hparams_row_with_its_metric(tmp_path):
    with MetricWriter(tmp_path, "pretrain") as board:
        board.scalars(9, {"eval/val_bpb": 1.5})
        settings = {"model.depth": 4, "lr": 0.1, "name": "x", "ema": None, "on": True}
        board.hparams(settings, {"eval/val_bpb": 1.5, "score": 2})
    events = read(tmp_path)
    content = events.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = hparams_metadata.parse_session_start_info_plugin_data(content)
    got = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert got == {"model.depth": 4, "lr": 0.1, "name": "x", "ema": "None", "on": True}
    content = events.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = hparams_metadata.parse_experiment_plugin_data(content)
    assert [m.name.tag for m in experiment.metric_infos] == ["eval/val_bpb", "score"]
    content = events.SummaryMetadata(hparams_metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert (
        hparams_metadata.parse_session_end_info_plugin_data(content).status == 1
    )  # STATUS_SUCCESS
    assert [(e.step, e.value) for e in events.Scalars("eval/val_bpb")] == [
        (9, 1.5)
    ]  # drawn before, not drawn twice
    assert [(e.step, e.value) for e in events.Scalars("score")] == [(9, 2.0)]


def test_a_resumed_run_draws_one_clean_curve(tmp_path):
    with MetricWriter(tmp_path, "pretrain") as board:
        for step in range(10):
            board.scalars(step, {"train/loss": step})
            board.histogram(step, "params/w", np.full(3, step))
            board.text(step, "samples/0", f"before {step}")
    with MetricWriter(tmp_path, "finetune") as board:
        board.scalars(8, {"train/loss": -1})
    with MetricWriter(tmp_path, "pretrain", start_step=6) as board:
        for step in range(6, 12):
            board.scalars(step, {"train/loss": 100 + step})
            board.text(step, "samples/0", f"after {step}")
    want = [(s, s if s < 6 else 100 + s) for s in range(12)]
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == want
    assert [e.step for e in events.Histograms("params/w")] == list(range(6))
    metrics = lines(tmp_path / "metrics.jsonl")
    assert [(m["step"], m["train/loss"]) for m in metrics if m["stage"] == "pretrain"] == want
    assert [m["step"] for m in metrics if m["stage"] == "finetune"] == [8]
    texts = [s["text"] for s in lines(tmp_path / "samples.jsonl")]
    assert texts == [f"before {s}" for s in range(6)] + [f"after {s}" for s in range(6, 12)]


@hypothesis_settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), start=st.integers(0, 6))
def test_rewind_mends_a_file_cut_anywhere(tmp_path_factory, cut, start):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    records = [{"step": i // 2, "stage": "ab"[i % 2], "text": "caf\u00e9"} for i in range(10)]
    whole = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    path.write_bytes(whole[:cut])
    drop_later_records(path, "a", start)
    ends = np.cumsum([len(line) for line in whole.split(b"\n")[:-1]]) + np.arange(
        10
    )  # each line without its newline
    want = [
        r
        for r, end in zip(records, ends, strict=True)
        if end <= cut and (r["stage"] == "b" or r["step"] < start)
    ]
    assert lines(path) == want
    assert not path.read_bytes() or path.read_bytes().endswith(b"\n")


def test_last_with_finds_the_latest_values_of_a_stage_below_a_torn_line(tmp_path):
    assert read_last_values(tmp_path / "metrics.jsonl", "pretrain", "time/") == {}
    for stage, at in (("pretrain", 1.0), ("pretrain", 2.0), ("finetune", 3.0)):
        with MetricWriter(tmp_path, stage, start_step=int(at)) as board:
            board.scalars(int(at), {"time/step": at, "train/loss": 9})
            board.scalars(int(at), {"train/loss": 8})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "stage": "pretrain", "time/st')
    assert read_last_values(tmp_path / "metrics.jsonl", "pretrain", "time/") == {"step": 2.0}
    assert read_last_values(tmp_path / "metrics.jsonl", "pretrain", "eval/") == {}


def test_events_survive_a_kill(tmp_path):
    code = f"""
import os, pathlib
from ramp.reporting.metrics import MetricWriter
board = MetricWriter(pathlib.Path({str(tmp_path)!r}), "pretrain")
for step in range(5):
    board.scalars(step, {{"train/loss": step}})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "sta')
    with MetricWriter(tmp_path, "pretrain", start_step=4) as board:
        board.scalars(4, {"train/loss": 40})
    assert [e.value for e in read(tmp_path).Scalars("train/loss")] == [0, 1, 2, 3, 40]
    assert [m["train/loss"] for m in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 40]


def test_a_disabled_board_writes_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", "pretrain", enabled=False) as board:
        board.scalars(0, {"a": 1})
        board.text(0, "t", "x")
        board.figure(0, "f", Figure())
        board.histogram(0, "h", np.zeros(3))
        board.hparams({}, {})
        board.publish()
    assert list(tmp_path.iterdir()) == []


def test_neither_tensorflow_nor_torch_nor_pyplot_is_loaded():
    unwanted = "('tensorflow', 'torch', 'matplotlib.pyplot')"
    code = f"import sys, ramp.reporting.metrics; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_closing_twice_is_harmless(tmp_path):
    board = MetricWriter(tmp_path, "pretrain")
    board.close()
    board.close()
    board.scalars(1, {"a": 1})  # after the end nothing is written, nothing fails
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_layout_of_the_promises_and_the_descriptions_reach_tensorboard(tmp_path):
    for stage in ("pretrain", "eval"):
        with MetricWriter(tmp_path, stage) as board:
            board.scalars(1, {"train/loss": 2.0, "mine": 1.0})
            board.scalars(2, {"train/loss": 1.0, "mine": 1.0})
    layouts = set()
    for stage in ("pretrain", "eval"):
        events = read(tmp_path, stage)
        (event,) = events.Tensors("custom_scalars__config__")
        layouts.add(event.tensor_proto.string_val[0])
        said = events.SummaryMetadata("train/loss").summary_description
        assert said == DESCRIPTIONS["train/loss"]
        assert events.SummaryMetadata("mine").summary_description == ""
    (only,) = layouts  # TensorBoard merges those that are equal
    assert [chart.title for chart in Layout.FromString(only).category[0].chart] == list(CHARTS)
