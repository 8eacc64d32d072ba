"""The report: merged atomically, made from whatever a run left, self-contained, bounded."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.reporting.figure import Curve, picture
from ramp.reporting.html import section
from ramp.reporting.report import update_report, write_report
from ramp.rundir import RunDir
from ramp.stages import STAGES

EVIL = "<script>alert('x')</script> & \"quoted\" </pre></svg>"
VOID = {"meta", "br", "hr", "img", "link", "input"}
KN = {"kn1": 2.491, "kn2": 1.692, "kn5": 1.426}
BASELINES = {"unigram": 4.448, "bigram": 3.499, "trigram": 2.817, "xz": 1.922} | KN


class Page(HTMLParser):
    """Fails on a tag that is not closed; collects tags, attributes and text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "a <b> run"
    run.mkdir()
    (run / "config.toml").write_text(f"# {EVIL}\nseed = 0\n")
    (run / "provenance.json").write_text(
        json.dumps({"date": "2026-01-02", "devices": "1 x cpu", "commit": EVIL})
    )
    metrics = [
        {
            "step": s,
            "stage": "pretrain",
            "train/loss": 8.0 / s + 4,
            "train/tokens": s * 1000.0,
            "train/lr": 0.01,
        }
        | {
            "guard/skipped": 2.0,
            "time/step": s * 0.5,
            "time/compile": 9.0,
            "time/tokens_per_s": 2000.0,
        }
        for s in range(1, 2001)
    ]
    metrics += [
        {"step": s, "stage": "pretrain", "eval/val_bpb": 2.0 - s / 4000}
        for s in range(100, 2001, 100)
    ]
    metrics += [
        {"step": s, "stage": "finetune", "train/loss": 3 - s / 50, "guard/skipped": 0.0}
        for s in range(1, 51)
    ]
    write_lines(run / "metrics.jsonl", metrics)
    samples = [
        {"step": s, "stage": "pretrain", "tag": f"samples/{EVIL}", "text": f"at {s}: {EVIL}"}
        for s in range(0, 2001, 50)
    ]
    write_lines(run / "samples.jsonl", samples)
    update_report(run, "prepare", {"seconds": 12.0, "tokens": 4_160_000, "bytes_per_token": 3.93})
    update_report(run, "pretrain", {"seconds": 1009.0, "val_bpb": 1.51})
    update_report(run, "eval", {"seconds": 5.0, "val_bpb": 1.5, "baselines": BASELINES})
    talk = [
        {"role": "user", "content": EVIL},
        {"role": "assistant", "content": "line one\nline two"},
    ]
    update_report(run, "sample", {"seconds": 1.0, "conversation": talk})
    return run


# -- report.json


def test_update_merges_one_stage_and_leaves_the_others(tmp_path):
    assert RunDir(tmp_path).report() == {}
    update_report(tmp_path, "pretrain", {"seconds": 1.0, "val_bpb": 1.7})
    update_report(tmp_path, "eval", {"baselines": {"xz": np.float32(1.5)}})
    update_report(tmp_path, "pretrain", {"val_bpb": math.nan, "more": [math.inf, np.int64(3)]})
    assert RunDir(tmp_path).report() == {
        "pretrain": {"seconds": 1.0, "val_bpb": None, "more": [None, 3]},
        "eval": {"baselines": {"xz": 1.5}},
    }
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["report.json"]


def test_a_failed_update_leaves_the_old_report(tmp_path):
    update_report(tmp_path, "eval", {"seconds": 1.0})
    with pytest.raises(TypeError):
        update_report(tmp_path, "eval", {"bad": object()})
    assert RunDir(tmp_path).report() == {"eval": {"seconds": 1.0}}


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_report_that_is_not_json_is_a_clear_error(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json .*rm .*report.json`"):
        update_report(tmp_path, "eval", {})


# -- report.html


def test_the_page_tells_the_whole_run(whole):
    path = write_report(whole)
    assert path == whole / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "1.500" in page.text  # of eval, not of pretrain
    for name, value in {"byte unigram": 4.448, "xz": 1.922, "Kneser-Ney 5": 1.426}.items():
        assert name in page.text
        assert f"{value:.3f}" in page.text
    assert "better than Kneser-Ney 2 (1.692), not as good as Kneser-Ney 5 (1.426)" in page.text
    assert "16 min 49 s" in page.text  # pretraining
    assert "17 min 07 s" in page.text  # all stages
    assert "at 0:" in page.text  # the first sample
    assert "at 2000:" in page.text  # and the last
    assert "line one\nline two" in page.text
    assert "seed = 0" in page.text
    # Results come first, how the text was prepared behind them.
    anchors = [value for name, value in page.attributes if name == "id" and value in STAGES]
    assert anchors == ["pretrain", "eval", "sample", "finetune", "prepare"]


def test_everything_from_the_run_is_escaped(whole):
    html = write_report(whole).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert (
        page.text.count(EVIL) >= 4
    )  # shown as it stands: title of a sample, its text, the talk, the configuration
    assert "a <b> run" in page.text


def test_the_page_is_self_contained(whole):
    html = write_report(whole).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not {"src", "onload", "onclick", "srcset"} & {name for name, _ in page.attributes}
    # Links stay on the page, or in the folder of the run.
    for name, value in page.attributes:
        assert name != "href" or re.fullmatch(r"#\w+|\w+\.html", value)
    inside = [value for name, value in page.attributes if name == "xlink:href"]
    assert inside
    assert all(value.startswith("#") for value in inside)
    assert (
        re.search(r"url\((?!#)", html) is None
    )  # matplotlib clips a curve by the name of an element of the page
    assert "@import" not in html
    assert "//" not in re.sub(
        r"<pre>.*?</pre>", "", html, flags=re.DOTALL
    )  # no address, of a schema either
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    assert any(value.startswith("default-src 'none'") for _, value in page.attributes if value)


def test_size_is_bounded(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "big")
    write_lines(
        run / "metrics.jsonl",
        [{"step": s, "stage": "pretrain", "train/loss": 5.0} for s in range(20_000)],
    )
    long = [{"step": s, "stage": "pretrain", "tag": "t", "text": "x" * 100_000} for s in range(60)]
    write_lines(run / "samples.jsonl", long)
    html = write_report(run).read_text(encoding="utf-8")
    assert len(html) < 200_000
    assert "96,000 more characters" in html


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('\ufeffsize = "small"', True),
        ('size = "whole"', False),
        ("size = 3", False),
        ("=", False),
    ],
)
def test_a_page_says_that_its_run_is_the_small_size(tmp_path, text, says):
    (tmp_path / "config.toml").write_text(text)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert ("the small size of its configuration" in page) == says


FILES = ("config.toml", "provenance.json", "report.json", "metrics.jsonl", "samples.jsonl")


@settings(max_examples=30, deadline=None)
@given(keep=st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_a_run_cut_anywhere_still_has_a_page(whole, tmp_path_factory, keep):
    run = tmp_path_factory.mktemp("half")
    for name, share in zip(FILES, keep, strict=True):
        content = (whole / name).read_bytes()
        if share > 0:
            (run / name).write_bytes(content[: int(share * len(content))])
    Page(write_report(run).read_text(encoding="utf-8"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(value=json_values, other=json_values, number=st.floats(-1e6, 1e6))
def test_strange_values_still_make_a_page(tmp_path_factory, value, other, number):
    run = tmp_path_factory.mktemp("strange")
    stages = {
        "eval": {"val_bpb": value, "baselines": {"xz": number, "kn1": other}},
        "sample": {"conversation": other},
    }
    stages |= {"pretrain": value, "prepare": {"bytes_per_token": value, "seconds": other}}
    (run / "report.json").write_text(json.dumps(stages))
    (run / "provenance.json").write_text(json.dumps(value))
    tags = (
        "train/loss",
        "train/tokens",
        "eval/val_bpb",
        "time/step",
        "guard/skipped",
        "text",
        "tag",
    )
    lines = [
        {"step": i, "stage": "pretrain"} | dict.fromkeys(tags, x)
        for i, x in enumerate((number, value, other))
    ]
    lines += [{"step": value, "stage": other}, value]
    write_lines(run / "metrics.jsonl", lines)
    write_lines(run / "samples.jsonl", lines)
    Page(write_report(run).read_text(encoding="utf-8"))


@pytest.mark.parametrize("bytes_per_token", [1e-308, -1e-308, 1e29, -3.0, 0, True, "3.9", None])
def test_a_derived_curve_that_overflows_is_left_out(tmp_path, bytes_per_token):
    update_report(tmp_path, "prepare", {"bytes_per_token": bytes_per_token})
    lines = [
        {"step": i, "stage": "pretrain", "train/loss": 5.0 - i, "eval/val_bpb": 2.0 - i / 10}
        for i in range(9)
    ]
    write_lines(tmp_path / "metrics.jsonl", lines)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert ("aria-label", "bits per byte by step") in Page(html).attributes
    assert re.search(r"\b(nan|inf)\b", html) is None


def test_no_name_of_the_run_can_break_the_page(tmp_path):
    baselines = {EVIL: 2.0, "$\\frac{$": 1.5, "\ud800\n" * 50: 1.2, "kn\x00": 1.1}
    update_report(tmp_path, "eval", {"val_bpb": 1.4, "baselines": baselines})
    write_lines(
        tmp_path / "metrics.jsonl",
        [{"step": i, "stage": "pretrain", "eval/val_bpb": 1.5} for i in (1, 2)],
    )
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count("$\\frac{$") == 3  # verdict, bar and picture, where it is no mathematics


def test_a_room_makes_a_section_of_pictures():
    html = section(
        "A <room>",
        picture([Curve("c", [1, 2], [3, 4])], {"other": (3.5, "warm")}, ("x", "y")),
        note="n & m",
    )
    page = Page(html)
    assert page.tags[0] == "section"
    assert "A <room>" in page.text
    assert "other 3.500" in page.text
    assert (
        section("nothing", picture([Curve("c", [1], [float("nan")])], {}, ("x", "y")), note="said")
        == ""
    )


def test_an_empty_directory_has_a_page(tmp_path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "not evaluated yet" in page.text


def test_what_was_measured_once_is_a_sentence_and_no_curve(tmp_path):
    lines = [{"step": 2, "stage": "reinforce", "rl/right": 0.5, "rl/verified": 0.25, "train/lr": 1}]
    lines.append({"step": 3, "stage": "reinforce", "train/lr": 0.5})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = write_report(tmp_path).read_text()
    assert "final answer right 0.5 at step 2, and every step 0.25 at step 2" in page
    assert page.count("<svg") == 1 and "learning rates, as a share of their peaks" in page
    assert "<h3>step</h3>" not in page
