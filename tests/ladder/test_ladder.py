"""The ladder climbed on a small text: figures, files, resuming, the page, and what is refused."""

import inspect
import json
import re
import shutil
import subprocess
import textwrap
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from ramp import config
from ramp.cli import main
from ramp.errors import UserError
from ramp.ladder import learn, lesson, page, run, rungs
from ramp.ladder.learn import CorpusResult, ProbeResult, RungResult
from ramp.ladder.practices import PRACTICES, find_probe
from ramp.ladder.probes import PROBES
from ramp.ladder.rungs import RUNGS, Rung, rung_below, select_rung
from ramp.model import transformer
from ramp.rundir import RunDir

CONFIGS = Path(__file__).parents[2] / "configs"
BYTES = config.Text(tokenizer="bytes")
SMALL = """
[text]
sources = ["file:{text}/*.txt"]
val_fraction = 0.3
[model]
width = 32
context_len = 32
[pretrain]
steps = 12
batch_size = 4
[eval]
num_rows = 8
batch_size = 4
[sample]
prompts = ["the"]
max_new_tokens = 8
"""


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """Rungs 0 to 3 on forty small documents, with short probes; the words that climb again."""
    home = tmp_path_factory.mktemp("ladder")
    rng = np.random.default_rng(0)
    for i in range(40):
        words = rng.choice(["the", "cat", "sat", "on", "<script>", "mat"], 60)
        (home / f"{i}.txt").write_text(" ".join(words))
    (home / "small.toml").write_text(SMALL.format(text=home))
    patch = pytest.MonkeyPatch()
    for name, probe in list(PROBES.items()):
        patch.setitem(PROBES, name, replace(probe, steps=20, batch=8))
    patch.setattr(learn, "HELD_OUT", 64)
    words = ["ladder", str(home / "small.toml"), "--run", str(home / "run")]
    before = jax.sharding.get_mesh()
    assert main([*words, "--to", "3"]) == 0
    yield home / "run", words
    jax.set_mesh(before)
    patch.undo()


def test_it_finds_keeps_and_shows(climbed):
    home, _ = climbed
    names = {p.stem.rpartition("-")[0] for p in (home / "ladder").glob("*.json")}
    assert names == {"baselines", "02-distance-8", "03-distance-8"} | {
        f"0{i}-corpus" for i in range(4)
    }
    (file,) = (home / "ladder").glob("03-corpus-*.json")
    found = json.loads(file.read_text())
    assert (
        0 < found["bpb"] < 12 and found["bpb_equal"] != found["bpb"] and len(found["curve"]) == 12
    )
    html = (home / "ladder.html").read_text()
    for rung in RUNGS[:4]:
        assert f"<h2>{rung.number} · {rung.name}" in html
    assert "4 · the mean" not in html and "elif c.token_mixer == &quot;window&quot;" in html
    assert "did not earn its place" in html
    assert (
        "<script" not in html and "http-equiv" in html and "src=" not in html.replace("img-src", "")
    )
    counts, beside = (
        json.loads(next((home / "ladder").glob(f"{x}-*.json")).read_text())
        for x in ("01-corpus", "baselines")
    )
    assert counts["bpb"] == beside["bigram"] and np.array(counts["table"]).sum() > 1000
    tags = {
        k for line in (home / "metrics.jsonl").read_text().splitlines() for k in json.loads(line)
    }
    assert {"ladder/bpb", "ladder/bpb_equal", "ladder/earned"} <= tags


def test_what_is_done_is_not_done_again(climbed, monkeypatch, capsys):
    home, words = climbed
    before = {p: p.stat().st_mtime_ns for p in (home / "ladder").glob("*.json")}
    monkeypatch.setattr(learn, "train_probe", lambda *a: pytest.fail("a probe was trained again"))
    monkeypatch.setattr(learn, "measure_corpus", lambda *a: pytest.fail("a text was learned again"))
    assert main([*words, "--to", "3"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (home / "ladder").glob("*.json")} == before
    assert "earned their place" in capsys.readouterr().out


def test_another_key_is_another_result(tmp_path):
    found = [
        run.load_or_compute(tmp_path, "a", (key,), lambda key=key: {"x": key}) for key in (1, 2)
    ]
    assert found == [{"x": 1}, {"x": 2}]
    assert run.load_or_compute(tmp_path, "a", (1,), lambda: pytest.fail("made again")) == {"x": 1}


def test_the_key_of_a_probe_depends_on_its_rows(monkeypatch, tmp_path):
    result = ProbeResult(n=12, steps=[], accuracy=[], diverged=0.0)
    monkeypatch.setattr(learn, "train_probe", lambda *a: result)
    shared = run.Climb(config.Config(), RunDir(tmp_path), 1.0, None)
    tokens, answers = PROBES["recall"].rows(np.random.default_rng(0), 12, 4)
    for change in ({}, {"draw": lambda rng, n, count: (tokens, 1 - answers)}, {"steps": 7}):
        monkeypatch.setitem(PROBES, "recall", replace(PROBES["recall"], **change))
        shared.measure(select_rung(5), "recall")
    assert len(list((tmp_path / "ladder").glob("05-recall-12-*.json"))) == 3


def test_counting_is_counting():
    """The table against a loop over all pairs of bytes; 256 and above stand between documents."""
    texts = [b"abcab", b"", b"a", b"bca"]
    want = Counter(pair for t in texts for pair in pairwise(t))
    got = learn.count_bigrams(np.array([i for t in texts for i in (260, *t)], np.uint16))
    assert got.sum() == sum(want.values())
    assert all(got[a, b] == n for (a, b), n in want.items())


def test_the_learned_bigram_becomes_the_counted_one():
    """Depth 0 on a stream of two letters, against the entropy of its own counts."""
    c = learn.make_rung_config(
        select_rung(2),
        config.Config(text=BYTES, model=config.Model(width=32, context_len=32, dtype="float32")),
    )
    m, t = (
        c.model,
        replace(c.pretrain, steps=300, batch_size=16, seq_len=16, warmup_steps=10, skip_sigma=0.0),
    )
    rng = np.random.default_rng(0)
    chain = np.array([[0.9, 0.1], [0.4, 0.6]])
    stream = [0]
    for u in rng.random(20_000):
        stream.append(int(u < chain[stream[-1], 1]))
    stream = np.array(stream, np.int32)
    counts = learn.count_bigrams(stream)[:2, :2]
    want = -(counts * np.log2(counts / counts.sum(1, keepdims=True))).sum() / counts.sum()
    with jax.set_mesh(tiny.mesh()):
        from ramp.model.loss import next_token_loss
        from ramp.train import optim
        from ramp.train.state import init_state
        from ramp.train.step import make_step

        tx = optim.make_optimizer(t)
        state = jax.jit(
            lambda: init_state({"lm": transformer.init_params(m, jax.random.PRNGKey(0))}, tx, 0)
        )()
        step = make_step(next_token_loss(m, 0.0), tx, t)
        for i in range(t.steps):
            at = np.random.default_rng(i).integers(0, len(stream) - 17, t.batch_size)[
                :, None
            ] + np.arange(17)
            rows = stream[at]
            state, _ = step(
                state,
                {
                    "tokens": rows[:, :-1],
                    "targets": rows[:, 1:],
                    "weights": np.ones((16, 16), np.float32),
                },
            )
        logits = np.asarray(tiny.logits(m, state.params["lm"], np.array([[0, 1]], np.int32)))[0]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    got = -(counts * logp[:2, :2]).sum() / counts.sum() / np.log(2)
    assert want < got < want + 0.01


# -- the list
def test_the_last_rung_is_the_default_model():
    cpu = config.load(CONFIGS / "cpu.toml", ["--text.tokenizer", "bytes"])
    top = rungs.find_top()
    assert learn.make_rung_config(top, cpu).model == config.resolve(cpu).model
    assert learn.make_rung_config(top, cpu).pretrain.optimizer == cpu.pretrain.optimizer


def test_every_rung_is_a_model_and_differs_from_the_one_below():
    c = config.load(CONFIGS / "ladder.toml", ["--text.tokenizer", "bytes"])
    for rung in RUNGS[3 : -len(PRACTICES)]:
        here, under = (learn.make_rung_config(r, c) for r in (rung, rung_below(rung)))
        assert (here.model, here.pretrain.optimizer) != (under.model, under.pretrain.optimizer)
        if rung.probe:
            for scale in (1.0, 1.5):
                probe = PROBES[rung.probe]
                learn.make_probe_config(rung, probe, round(probe.size * scale))


def test_the_source_shown_is_the_source():
    """Whole lines of the model, in their order and without gaps."""
    text = Path(transformer.__file__).read_text()
    lines = RUNGS[8].lesson.lines[0]
    shown = lesson.read_lines(*lines)
    assert textwrap.indent(shown, " " * 8) in text
    assert "jax.nn.silu" in shown and "jnp.square" in shown and "attend" not in shown
    assert lesson.read_lines("ramp.model.transformer", "rope") == inspect.getsource(
        transformer.rope
    )


# -- the lesson
def example(asked, said):
    """What a model of recall says of rows whose last question asks for key 1 of three."""
    rows = [[0, 3, 4, 6, 7], [1, 2, 5, 8, 7]]
    attention = [[[[0.1, 0.7, 0.1, 0.05, 0.05]]]] * 2
    return ProbeResult(3, rows=rows, asked=asked, said=said, attention=attention)


def test_the_failure_that_is_shown_is_one():
    """The first row that the rung below gets wrong and this one right."""
    probe = replace(PROBES["recall"], questions=2)
    below, this = example([1, 0], [1, 1]), example([1, 0], [1, 0])
    parts, chosen = lesson.render_failure(probe, ("rung 4", "rung 5"), below, this)
    shown = "".join(parts)
    assert chosen == 1 and "<td>the right answer</td><td>0</td>" in shown
    assert "<td>rung 4</td><td>1 (wrong)</td>" in shown
    assert "<td>rung 5</td><td>0 (right)</td>" in shown
    # Its table and its last question; the question before that is no part of it.
    assert all(f">{label}<" in shown for label in ("0→1", "1→0", "2→1", "1?"))
    assert "2?" not in shown


def test_attention_is_visible():
    """Weights are written, coloured by a scale that stands beside them, and none is flat."""
    probe = replace(PROBES["recall"], questions=2)
    parts = lesson.render_attention(probe, example([1, 0], [1, 0]), 0, "Look there.")
    shown = "".join(parts)
    assert "head 1" in shown and "block" not in shown and "Look there." in shown
    assert "<small>70%</small>" in shown and ">all<small>100%</small>" in shown
    colours = re.findall(r"var\(--main\) (\d+)%", shown)
    assert len(set(colours)) >= 6
    # The weight of the question that is not shown is told: all boxes have 100% together.
    assert ">1 other question<small>5%</small>" in shown
    numbers = [int(x) for x in re.findall(r"<small>(\d+)%</small>", parts[-1])]
    assert sum(numbers) == 100


def test_a_row_that_a_lesson_chooses_is_shown_if_it_is_a_failure():
    probe = replace(PROBES["recall"], questions=2)
    below, this = example([0, 1], [1, 1]), example([0, 1], [0, 1])
    for wanted, shown in ((0, 0), (1, 0)):
        names = "rung 4", "rung 5"
        assert lesson.render_failure(probe, names, below, this, wanted)[1] == shown


def test_a_spike_of_the_loss_is_cut_and_its_end_is_not():
    corpus = CorpusResult(batch=1, curve=[8, 159, 3, 3])
    assert max(page._cut_high(page.make_curve("", corpus)).y) == page.MOST_BITS
    # A verdict goes by what was lost, not by what is drawn.
    assert max(page.make_curve("", corpus).y) == 159
    lost = page.make_curve("", CorpusResult(batch=1, curve=[8, np.inf, np.nan]))
    assert len(lost.points()[1]) == 1


def test_all_words_are_links():
    shown = lesson.render_words(RUNGS)
    assert '<a href="#rung-5">query</a>' in shown and "What a token looks for" not in shown


def test_every_token_of_a_probe_has_a_name():
    for probe in PROBES.values():
        for scale in (0.5, 1.0, 1.5):
            n = round(probe.size * scale)
            tokens, answers = probe.rows(np.random.default_rng(0), n, 50)
            assert len(probe.names(n)) > tokens.max()
            assert answers.shape[1] == probe.questions
            assert all(probe.name_answer(n, int(a)) for a in np.unique(answers))
    assert PROBES["look-ups"].name_answer(5, 2 + 5 * 0 + 25 * 4) == "2,0,4"


# -- what a beginner asks of a picture and of a table
def test_every_measure_has_a_unit_and_is_explained():
    assert run.MEASURES.keys() == page.TEXTS.measures.keys()
    assert {rung.measure for rung in RUNGS} - {""} <= page.TEXTS.measures.keys()
    for measure in page.TEXTS.measures.values():
        assert measure.unit and measure.title and measure.told.endswith(".")


def make_row(number):
    """A rung and the one below it, with a probe of two evaluations and a text of forty steps."""
    rung = select_rung(number)
    corpus = CorpusResult(
        bpb=3.2,
        bpb_equal=3.1,
        sample="the",
        params=1000,
        flops=6000,
        cache=128,
        batch=1024,
        curve=np.linspace(8, 4, 40).tolist(),
    )
    n = find_probe(rung.probe).size if rung.probe else 0
    probe = ProbeResult(n, [1, 2], [[0.5] * 3, [0.9, 0.95, 1]], score=[3.0]) if n else ProbeResult()
    # Rungs beyond pretraining read no text.
    result = RungResult(probe=probe, corpus=CorpusResult() if rung.post_training else corpus)
    verdict = run.judge(rung, result, result) if number else page.Verdict()
    return page.Row(rung, result, result, verdict, dict.fromkeys(rung.halves, probe))


@pytest.mark.parametrize("number", range(1, len(RUNGS)))
def test_pictures_name_their_axes_and_lines(number):
    row = make_row(number)
    for caption, figure in row.draw_figures():
        axes = figure.axes[0]
        assert caption and axes.get_xlabel() and axes.get_ylabel()
        told = [text.get_text() for text in axes.get_legend().get_texts()]
        # Each with where it ends.
        names = {text.split(":")[0] for text in told if text[-1] in "%0123456789"}
        assert {name.split(" (")[0] for name in row.name_sides()} <= names
        if "probe" in caption:
            assert set(row.halves) <= names
        # None is wider than its picture, whose text would shrink on a telephone.
        figure.canvas.draw()
        box = axes.get_legend().get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width


@pytest.mark.parametrize("number", range(1, len(RUNGS)))
def test_tables_have_units(number):
    row = make_row(number)
    shown = row.render()
    if row.rung.measure:
        unit = page.TEXTS.measures[row.rung.measure].unit
        below, this = (text for name, text in row.cells() if name in ("rung below", "this rung"))
        assert below.endswith(unit) and this.endswith(unit)
        assert f"<td>{below}</td>" in shown
    if not row.rung.post_training:
        for cost in ("1,000 numbers", "6,000 FLOPs", "128 bytes"):
            assert shown.count(f"<td>{cost}</td>") >= 2
    # Of what was never reached there is no unit.
    assert row.format_figures([np.inf]) == "never"


# -- refusals
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "99"], "there is no rung 99"),
        (["--to", "-1"], "there is no rung -1"),
        (["--to", "3", "--only", "3"], "exclude each other"),
        (["--scale", "9"], "--scale 9 must be"),
        (["--scale", "nan"], "--scale nan must be"),
        (["--seed", "-1"], "'seed' is -1"),
        (["--model.nonsense", "3"], ""),
        (
            ["--scale", "4", "--only", "4"],
            "'pretrain.seq_len' 96 is longer than 'model.context_len' 64",
        ),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, capsys, tmp_path):
    try:
        code = main(
            ["ladder", str(CONFIGS / "ladder.toml"), "--run", str(tmp_path / "run"), *words]
        )
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2 and sentence in error
    if sentence:
        assert error.startswith("ramp: ") and error.count("\n") == 1
    assert not (tmp_path / "run" / "ladder").exists()


def test_a_rung_of_ones_own_with_a_wrong_setting(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        rungs,
        "RUNGS",
        (*RUNGS, Rung(18, "mine", {"heds": 3}, measure="tokens to match the rung below")),
    )
    with pytest.raises(UserError, match="rung 18 sets 'heds', which the model does not have"):
        learn.make_rung_config(rungs.RUNGS[-1], config.load(CONFIGS / "ladder.toml"))


# -- judging
def test_only_all_is_a_hundred_percent():
    written = [page._write_share(x) for x in (1, 0.9999, 0.995, 0.5, 0.6128, 0)]
    assert written == ["100%", "99.9%", "99.5%", "50%", "61.3%", "0%"]


def test_what_decides_is_not_told_as_if_it_did_not():
    """Rung 13 is dearer in bits, which its verdict asks for too; one training is told as one."""
    row = make_row(13)
    lost = replace(row.result, corpus=replace(row.result.corpus, bpb=3.3))
    told = replace(row, result=lost).describe_rest()
    assert "worse, where at most 0.02 more was asked for" in told and "not by this" not in told
    assert "one training" in told and "one training" not in make_row(11).describe_rest()
    noted = replace(row, result=RungResult(probe=ProbeResult(notes="Two were dropped.")))
    assert "Two were dropped." in noted.describe_rest()


def on_probe(accuracy, n=6):
    return RungResult(probe=ProbeResult(n, [1], [accuracy], 0.0, score=[3.0]))


def on_text(curve):
    corpus = CorpusResult(bpb=1.0, bpb_equal=1.0, sample="", batch=10, curve=curve)
    return RungResult(corpus=corpus)


def test_a_rung_that_is_not_needed_or_does_not_pass_has_not_earned_its_place():
    rung, chance = select_rung(5), PROBES["recall"].chance(6)
    at = [chance + share * (1 - chance) for share in (0.0, 0.2, 0.3, 0.89, 0.95)]
    good, poor, half, nearly, fine = at
    assert run.judge(rung, on_probe([good, good, poor]), on_probe([fine] * 3)).earned
    assert not run.judge(rung, on_probe([good, good, half]), on_probe([fine] * 3)).earned
    assert not run.judge(rung, on_probe([good] * 3), on_probe([fine, fine, nearly])).earned


def test_tokens_to_reach_a_loss():
    low, high, lost = (on_text(np.linspace(8, end, 200).tolist()) for end in (3.0, 1.0, 4.0))
    assert run.count_tokens_to_loss(low, low) == 2000
    assert 1300 < run.count_tokens_to_loss(low, high) < 1600
    assert run.count_tokens_to_loss(low, lost) == np.inf
    assert not run.judge(select_rung(12), low, lost).earned
    assert run.judge(select_rung(12), low, high).earned


def test_two_that_never_arrive_earn_nothing():
    lost = on_text([float("nan")] * 20)
    assert not run.judge(select_rung(12), lost, lost).earned


def test_answers_bear_the_loss_and_are_scored_alone():
    """A model without blocks knows the token of a question alone: all of one, half of the other."""
    probe = replace(PROBES["recall"], steps=100, rate=1.0, draw=two_questions, size=3)
    with jax.set_mesh(tiny.mesh()):
        result = learn.train_probe(select_rung(2), probe, 3, 0)
    assert set(result.accuracy[-1]) == {0.75}


def two_questions(rng, n, count):
    """The first question is answered by itself; the second asks for a coin that nobody sees."""
    first = rng.integers(0, 2, count)
    tokens = np.stack([rng.integers(0, 6, count), 2 + first, np.full(count, 4)], axis=1)
    return tokens.astype(np.int32), np.stack([first, np.arange(count) % 2 + 6], axis=1).astype(
        np.int32
    )


@pytest.mark.parametrize(("number", "name", "factor"), [(9, "two hops", 8), (5, "recall", 4)])
def test_steps_grow_with_the_size(number, name, factor):
    """As its square; those of two hops as its cube."""
    rung, probe = select_rung(number), PROBES[name]
    steps = [learn.make_probe_config(rung, probe, k * probe.size).pretrain.steps for k in (1, 2)]
    assert steps == [probe.steps, factor * probe.steps]


def test_a_diverged_run_is_a_result():
    with jax.set_mesh(tiny.mesh()):
        probe = replace(PROBES["deep"], steps=10, batch=8, rate=1e9, size=4)
        result = learn.train_probe(select_rung(9), probe, 4, 0)
    assert result.diverged == 1.0
    assert all(a <= 0.6 for a in result.accuracy[-1])
    json.dumps(asdict(result), allow_nan=False)


# -- the browser
def test_the_page_opens_in_a_browser(climbed, tmp_path):
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not browser:
        pytest.skip("no Chromium here")
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [browser, *words, "--dump-dom", (climbed[0] / "ladder.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "a fixed window" in done.stdout
    assert "Content Security Policy" not in done.stderr


def test_a_rung_without_a_probe_is_said(capsys):
    for words in (("--only", "13"), ("--to", "1")):
        assert main(["ladder", "--probes", *words]) == 2
        assert f"rung {words[1]} has no probe; leave out --probes" in capsys.readouterr().err
