"""The stage from its first sample to its page, on a model too small to learn anything; then everything that can go wrong."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from ramp import config
from ramp.cli import main
from ramp.config import Config, Synthesize, Text, Thresholds, Train
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.reporting.report import update_report
from ramp.run import is_finished
from ramp.rundir import RunDir
from ramp.stages import candidates, synthesize
from ramp.stages.checks import check_synthesize
from ramp.stages.synthesize import GenerationLoop
from ramp.synth import decide, generate, ledger, prompts
from ramp.synth.corpus import PackedSamples, RealCorpus, TrainingPlan
from ramp.synth.docs import Docs
from ramp.synth.guard import CollapseGuard, judge_samples
from ramp.text.shards import write_tokens
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.preemption import Preemption

SETTINGS = Synthesize(
    generations=2,
    num_documents=24,
    num_measured=12,
    max_new_tokens=20,
    num_guard_documents=12,
    num_null_resamples=7,
    seeded_fraction=0.25,
    guard=Thresholds(min_precision=0.0, min_real_pass=0.0),
    control=True,
    train=Train(
        steps=4,
        seq_len=32,
        batch_size=4,
        warmup_steps=5,
        save_every=2,
        adam_lr=1e-3,
        embed_lr=1e-3,
        head_lr=1e-3,
        scalar_lr=1e-3,
        skip_sigma=0.0,
        optimizer="adamw",
    ),
)
T = Tokenizer.bytes_only()


def sentences(n, seed):
    r = np.random.default_rng(seed)
    who, what = ("Ann Lee", "Bo", "a fox", "the king of Ur"), ("sees", "sold", "is", "ate 7 of")
    return [
        f"{r.choice(who)} {r.choice(what)} {r.choice(who)}, {r.choice(who)} {r.integers(99)}."
        for _ in range(n)
    ]


def directory(path, n=60):
    rundir = RunDir(path)
    rundir.data.mkdir(parents=True)
    T.save(rundir.tokenizer)
    for seed, (split, k) in enumerate((("train", n), ("val", 40))):
        write_tokens(rundir.tokens(split), T.encode_stream(sentences(k, seed)), T)
    return rundir


def configured(**over):
    model = tiny.model(vocab_size=264, context_len=64)
    return config.resolve(
        Config(text=Text(tokenizer="bytes"), model=model, synthesize=replace(SETTINGS, **over))
    )


@pytest.fixture(scope="module", autouse=True)
def start():
    """Every run starts from one lively model; the mesh is one device."""
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(tiny.mesh()):
        first, real = (
            {"lm": tiny.lively(tiny.model(vocab_size=264, context_len=64))},
            restore.load_params,
        )
        patch.setattr(
            restore,
            "load_params",
            lambda d, s, c, t=None: first if s == "pretrain" else real(d, s, c, t),
        )
        yield first


VERIFIERS = """
def broken(text):
    raise ValueError("no")
def never(text):
    return False
def always(text):
    return True
def whole(text):
    return text.endswith(".")
def sometimes(text):
    if "z" in text:
        raise ValueError("a letter that real text does not have")
    return True
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's file of verifiers: the model writes noise, which the default ones refuse."""
    path = tmp_path_factory.mktemp("verifiers") / "mine.py"
    path.write_text(VERIFIERS)
    return str(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory, start, mine):
    rundir = directory(tmp_path_factory.mktemp("synth") / "run")
    c = configured(verifiers=(f"{mine}:always", f"{mine}:sometimes"))
    return rundir, c, synthesize.run(rundir, c, Preemption())


def test_from_first_model_to_page(done):
    rundir, _c, report = done
    assert (
        len(report["generations"]) == 2
        and np.isfinite(report["final_bpb"])
        and report["policy"] == "guarded"
    )
    pairs = report["own_samples"].get("distinct_2")
    # Of what the model says by itself; the first model is not compared with itself.
    assert (pairs is None) == (report["generation"] == 0)
    lines = [json.loads(x) for x in (rundir.path / "metrics.jsonl").read_text().splitlines()]
    tags = set().union(*(x.keys() for x in lines if x["stage"] == "synthesize"))
    assert {"synth/bpb", "synth/z/coverage_2", "synth/ratio/vendi", "synth/first_bpb"} <= tags
    page = (rundir.path / "synth.html").read_text()
    assert "What the guard did" in page and page.count("<svg") >= 2
    rows, facts = ledger.read_ledger(rundir.path / "synth", 2)
    assert len(rows) == 24 and {r.decision for r in rows} <= {"kept", "dropped"}
    assert all(r.reason for r in rows if r.decision == "dropped")
    kept = [r for r in rows if r.decision == "kept"]
    assert len(kept) > 12 and any(r.weight > 0 and r.steps for r in kept)
    assert json.loads(facts["figures"])["panel"]["distinct_2"]["null"] > 0
    assert {p for r in rows for p in r.parents} and max(len(r.prompt) for r in rows) > 1


def test_every_sample_can_be_made_again_from_its_row(done, start):
    rundir, c, _ = done
    rows, _ = ledger.read_ledger(rundir.path / "synth", 1)
    for row in (rows[0], rows[-1]):
        how = SamplingParams(row.temperature, row.top_k, min_p=row.min_p)
        (made,) = generate.generate_samples(
            c.model,
            start["lm"],
            [prompts.Prompt(tuple(row.prompt))],
            row.key,
            c.synthesize.max_new_tokens,
            how,
            (T.bos,),
            T.vocab_size,
        )
        assert list(made.ids) == row.tokens


def test_why(done, capsys):
    rundir, c, _ = done
    (rundir.path / "config.toml").write_text(config.to_toml(c))
    assert main(["synth", "why", str(rundir.path), "g1-00000"]) == 0
    assert "under the first model" in capsys.readouterr().out
    assert main(["synth", "why", str(rundir.path), "g9-00000"]) == 2


def test_texts_from_elsewhere_pass_the_same_selection(done, tmp_path, capsys):
    """A candidate that holds held-out text with other line breaks is refused, repeats are, and why says so."""
    rundir, c, _ = done
    documents = RealCorpus.read(rundir.tokens, c, T).held_out
    number = max(range(len(documents)), key=lambda i: len(documents[i]))
    held = T.decode(documents[number])
    twice = "A letter about nothing at all, sent two times by mistake."
    texts = [*sentences(30, 9), held.replace(" ", "\n"), twice, twice]
    path = tmp_path / "api.jsonl"
    path.write_text("\n".join(json.dumps({"answer": text}) for text in texts))
    c = replace(c, synthesize=replace(c.synthesize, contamination_tokens=len(held)))
    candidates.run(rundir, c, str(path))
    said = capsys.readouterr().out
    assert "33 texts" in said and "answer" in said
    made = rundir.path / "synth" / "api"
    rows, _ = ledger.read_ledger(made, 0)
    assert f"held-out document {number}" in rows[30].reason and "repeats" in rows[32].reason
    # So few sentences of one kind are no sample that the guard lets teach.
    kept = [json.loads(line) for line in (made / "passed.jsonl").read_text().splitlines()]
    assert [row["id"] for row in kept] == [r.id for r in rows if r.decision == "kept"]
    assert "read from" in ledger.describe_sample(rundir.path / "synth", "api/g0-00030")
    page = (made / "synth.html").read_text()
    assert "Refusals" in page and "dropped: the guard" not in page
    # The same name of another source: the first keeps its results.
    other = tmp_path / "more" / "api.jsonl"
    other.parent.mkdir()
    other.write_text("\n".join(json.dumps({"answer": text}) for text in texts[:9]))
    candidates.run(rundir, c, str(other))
    assert len(ledger.read_ledger(made, 0)[0]) == 33
    assert len(list((rundir.path / "synth").glob("api-*/source.txt"))) == 1


def test_what_the_guard_refuses_is_no_source_of_text(done, tmp_path, capsys, monkeypatch):
    rundir, c, _ = done
    path = tmp_path / "日本.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in sentences(40, 9)))

    def refuse(guard, *_):
        return replace(guard, weight=0.0), "refused"

    made = rundir.path / "synth" / "日本"
    monkeypatch.setattr(candidates, "judge_samples", lambda guard, *_: (guard, "fine"))
    assert candidates.run(rundir, c, str(path)) == 0 and (made / "kept.jsonl").exists()
    monkeypatch.setattr(candidates, "judge_samples", refuse)
    assert candidates.run(rundir, c, str(path)) == 1
    assert not (made / "kept.jsonl").exists() and (made / "passed.jsonl").exists()
    assert "passed.jsonl; together: refused" in capsys.readouterr().out


def test_more_generations_go_on_with_a_finished_loop(done):
    """Unless the guard has stopped it; other settings cannot change."""
    rundir, c, report = done
    update_report(rundir.path, "synthesize", report | {"done": True})
    more = replace(c, synthesize=replace(c.synthesize, generations=3))
    assert is_finished(rundir, c, "synthesize") and not is_finished(rundir, more, "synthesize")
    assert rundir.find_conflict(c, more) is None
    stopped = [*report["generations"][:1], report["generations"][1] | {"decision": "stop"}]
    update_report(rundir.path, "synthesize", {"generations": stopped})
    assert is_finished(rundir, more, "synthesize")


def test_what_is_done_is_not_done_again(done):
    rundir, c, report = done
    again = synthesize.run(rundir, c, Preemption())
    assert (
        again["final_bpb"] == report["final_bpb"] and again["generations"] == report["generations"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["synthesize-1", "synthesize-control-1"])
def test_killed_in_training_the_generation_goes_on_alike(done, tmp_path, place):
    """A generation from its ledger, or from nothing, ends in the same model as one that was not killed."""
    _, c, report = done
    c = replace(c, synthesize=replace(c.synthesize, generations=1))
    other = directory(tmp_path / "other")
    train = synthesize.GenerationLoop.train

    def killed(loop, name, *rest):
        if name == place:  # the ledger is written between the two
            raise KeyboardInterrupt
        return train(loop, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesize.GenerationLoop, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            synthesize.run(other, c, Preemption())
    assert ledger.ledger_path(other.path / "synth", 1).exists() == (place == "synthesize-1")
    got = synthesize.run(other, c, Preemption())
    assert got["generations"][0] == report["generations"][0]


def test_a_model_that_fails_at_the_end_is_not_handed_back(done, capsys):
    """The guard's documents liked generation 2; those kept for the end do not, by any tolerance below its gain."""
    rundir, c, report = done
    strict = Thresholds(**(vars(c.synthesize.guard) | {"max_loss_rise": 0.0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesize, "choose_model", lambda t, history: 2)
        patch.setattr(GenerationLoop, "identity", GenerationLoop(rundir, c, T, None, None).identity)
        measure = GenerationLoop.measure_bits

        def dearer(loop, params, docs):
            bits = measure(loop, params, docs)
            is_first = bits.per_byte.mean() == pytest.approx(report["first_bpb"])
            return bits if is_first else replace(bits, per_byte=bits.per_byte + 1)

        patch.setattr(GenerationLoop, "measure_bits", dearer)
        c = replace(c, synthesize=replace(c.synthesize, guard=strict))
        again = synthesize.run(rundir, c, Preemption())
    assert again["generation"] == 0 and again["final_bpb"] == again["first_bpb"]
    assert again["own_samples"] == {}
    assert "is not handed back" in capsys.readouterr().out


def test_a_ledger_of_another_run_is_refused(done, tmp_path):
    rundir, c, _ = done
    other = directory(tmp_path / "other")
    (other.path / "synth").mkdir()
    source = ledger.ledger_path(rundir.path / "synth", 1)
    ledger.ledger_path(other.path / "synth", 1).write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="another run"):
        synthesize.run(other, replace(c, seed=5), Preemption())


@pytest.mark.parametrize(
    "over, says",
    [
        ({"num_measured": 20}, "begin from nothing"),
        ({"verifiers": ("clean",)}, "two that differ"),
        ({"verifiers": ("clean", "/nowhere/check.py:right")}, "there is no file"),
        ({"max_new_tokens": 60}, "do not fit"),
        ({"num_measured": 35, "num_documents": 60}, "needs 70 training documents and has 40"),
    ],
)
def test_mistakes_in_the_configuration(tmp_path, over, says):
    rundir, c = directory(tmp_path / "run", 40), configured(**over)
    with pytest.raises(UserError, match=says):
        check_synthesize(c)
        synthesize.run(rundir, c, Preemption())


def test_a_pool_of_one_document_is_refused(tmp_path):
    with pytest.raises(UserError, match="training documents and has 1"):
        RealCorpus.read(directory(tmp_path / "run", 1).tokens, configured(), T)


@pytest.fixture
def judge(mine, done):
    """decide() on samples of the first model with given verifiers."""
    rundir, _, _ = done

    def run(*names, change=lambda made, real: made, **over):
        c = configured(
            verifiers=tuple(f"{mine}:{n}" if n not in ("clean", "typical") else n for n in names),
            **over,
        )
        loop = GenerationLoop(rundir, c, T, RealCorpus.read(rundir.tokens, c, T), Preemption())
        params = loop.load_params(0)
        made = loop.sample(params, loop.make_prompts(1), 1, SamplingParams())
        made = change(made, loop.real)
        scorer = loop.make_scorer(params)
        return decide.decide(loop.verifiers, scorer, made, Docs.from_lists([]), 12)

    return run


def test_verifiers_that_break_refuse_all_or_agree_to_all(judge):
    with pytest.raises(UserError, match="fails on every real document"):
        judge("broken", "clean")
    refused = judge("never", "clean")
    assert (
        refused.evidence.accepted == 0
        and not refused.kept.any()
        and "never says no" in refused.reasons[0]
    )
    agreed = judge("always", "always")
    assert agreed.evidence.precision == 0.0 and any(
        "shuffled" in note for note in agreed.figures.notes.values()
    )


def test_a_verifier_of_ends_sees_whole_documents_and_teaches(judge):
    """Real documents are longer than a sample; cut at its length, the verifier would refuse them all."""

    def write(made, real):
        texts = sentences(len(made), 77)
        return [replace(s, ids=(*T.encode(x), T.bos)) for s, x in zip(made, texts, strict=True)]

    alike = {"contamination_tokens": 200, "dedup_threshold": 1.0}  # all of one pattern
    found = judge("clean", "whole", change=write, guard=Thresholds(), num_audited=30, **alike)
    assert not found.evidence.faults and found.evidence.precision > 0.9
    assert "accepts 100% of real documents, 0% of their first halves" in str(found.figures.notes)
    # Sentences of one pattern are less diverse than the noise of the first model.
    limits = Thresholds(min_vendi_ratio=0.0)
    _, said = judge_samples(CollapseGuard(0.4), limits, found.evidence)
    assert found.evidence.accepted > 10 and said.action in ("go", "warn")


def test_nan_contamination_and_repeats_are_decisions(judge):
    def spoil(made, real):
        held = tuple(int(i) for i in real.guard[3])
        made[0] = replace(made[0], logp=float("nan"))
        made[1] = replace(made[1], prompt=prompts.Prompt((T.bos,)), ids=held)
        return [*made, made[2]]

    found = judge("always", "always", change=spoil, contamination_tokens=8)
    kept = np.array(found.reasons) == ""
    assert found.reasons[0] == "its log-probability is not a number"
    assert (
        "held-out document" in found.reasons[1] and "nearly repeats sample 2" in found.reasons[-1]
    )
    assert kept.sum() > 10


def test_an_edited_verifier_is_noticed(done, mine):
    """Its ledgers were decided with other code; --force or the old file are the ways on."""
    rundir, c, _ = done
    path = Path(mine)
    old = path.read_text()
    try:
        path.write_text(old.replace('"z" in text', '"y" in text'))
        with pytest.raises(UserError, match="edited after generation 1"):
            synthesize.run(rundir, c, Preemption())
    finally:
        path.write_text(old)
    synthesize.run(rundir, c, Preemption())


def test_no_sample_accepted_leaves_real_text_alone(mine, tmp_path):
    rundir, c = (
        directory(tmp_path / "run"),
        configured(generations=1, verifiers=(f"{mine}:never", "clean")),
    )
    report = synthesize.run(rundir, c, Preemption())
    assert "no sample was accepted" in report["generations"][0]["before"]


def test_rows_of_a_lesson():
    docs = [[1, 2, 3, T.bos], [4, 5]]
    made = PackedSamples.pack(docs, [2.0, 0.5], 4, T.bos)
    stream = [T.bos, 1, 2, 3, T.bos, 4, 5, T.bos]
    assert (
        made.tokens.ravel()[:7].tolist() == stream[:7]
        and made.targets.ravel()[:7].tolist() == stream[1:]
    )
    assert made.weights.ravel().tolist() == [
        2,
        2,
        2,
        2,
        0.5,
        0.5,
        0,
        0,
    ]  # a cut is no end, padding nothing
    assert made.owner.ravel().tolist() == [0, 0, 0, 0, 1, 1, 1, -1]


def test_a_lesson_is_pure_ends_on_real_rows_and_knows_its_steps(done):
    rundir, _, _ = done
    c = configured(train=replace(SETTINGS.train, steps=8), final_real_fraction=0.25, max_passes=4)
    real = RealCorpus.read(rundir.tokens, c, T)
    made = [
        PackedSamples.pack(
            [list(d) for d in real.train[:10]], np.ones(10), c.synthesize.train.seq_len, T.bos
        )
    ]
    plan = lambda: TrainingPlan.build(c, real, made, [1.0], 0.5, 0.2)  # noqa: E731
    a, b = plan(), plan()
    for step in range(8):
        for name, x in a(step, 0, 4).items():
            assert np.array_equal(x, b(step, 0, 4)[name])
            assert np.array_equal(x[1:3], a(step, 1, 3)[name])
    assert (a.generation[6:] == 0).all() and (a.generation[:6] == 1).any()
    assert (a.generation == 0).mean() == pytest.approx(0.5, abs=0.06)
    for i, steps in enumerate(a.find_steps(1, 10)):
        rows = {r for r in range(len(made[0].owner)) if i in made[0].owner[r]}
        assert steps == [
            s
            for s in range(8)
            if any(g == 1 and n in rows for g, n in zip(a.generation[s], a.index[s], strict=True))
        ]
    dropped = TrainingPlan.build(c, real, made, [0.0], 0.5, 0.2)
    assert (dropped.generation == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["replace", "accumulate", "subsample", "anchored"])
def test_the_baselines_take_what_comes(tmp_path, policy):
    report = synthesize.run(
        directory(tmp_path / "run"), configured(policy=policy, generations=2), Preemption()
    )
    assert [h["decision"] for h in report["generations"]] == ["go", "go"]
    assert all(h["kept"] == h["sampled"] for h in report["generations"])
    assert np.isfinite(report["own_samples"]["distinct_2"]["z"])
