"""Preference tuning: the loss by hand, what it learns, what it refuses, and that it resumes and runs on meshes."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ramp.config import DPO, Config, Text, Train, resolve
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.stages import dpo
from ramp.stages.checks import check_dpo
from ramp.text import preferences
from ramp.text.tokenizer import Tokenizer
from ramp.train.mesh import shard_batch
from ramp.train.preemption import Preemption

T = Tokenizer.bytes_only()
MODEL = tiny.model(vocab_size=264, context_len=64)


def write_pairs(path, n=60):
    """The preferred answer is always `yes`, whatever is asked."""
    lines = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"file:{path}"


def configure(source, **train):
    settings = {"steps": 12, "batch_size": 8, "seq_len": 24, "eval_every": 6, "save_every": 6}
    rates = dict.fromkeys(("adam_lr", "embed_lr", "head_lr", "scalar_lr"), 1e-3)
    t = Train(**(settings | rates | {"optimizer": "adamw", "warmup_steps": 1} | train))
    c = Config(
        text=Text(tokenizer="bytes"), model=MODEL, dpo=DPO((source,), val_fraction=0.3, train=t)
    )
    return resolve(c)


def read(c, split="train"):
    t = c.dpo.train
    return preferences.read_pairs(c.dpo.sources, T, t.seq_len, split, c.dpo.val_fraction)


@pytest.fixture
def rundir(tmp_path, monkeypatch):
    """A run directory whose fine-tuned model is a fresh one."""
    run = RunDir(tmp_path / "run")
    run.data.mkdir(parents=True)
    T.save(run.tokenizer)
    monkeypatch.setattr(dpo, "load_start", lambda *args: {"lm": tiny.lively(MODEL)})
    return run


def test_the_loss_is_eq_7_of_the_paper(tmp_path):
    c = configure(write_pairs(tmp_path / "pairs.jsonl"))
    with jax.set_mesh(tiny.mesh()):
        batch = {k: jnp.asarray(a) for k, a in read(c).take(np.arange(4)).items()}
        policy, reference = {"lm": tiny.lively(MODEL, 1)}, {"lm": tiny.lively(MODEL, 2)}
        logps = [np.asarray(dpo.sum_logps(MODEL, params, batch)) for params in (policy, reference)]
        batch["ref_logps"] = jnp.asarray(logps[1])
        total, sums = dpo.make_loss(MODEL, 0.5)(policy, batch, jax.random.PRNGKey(0))
    ratio = logps[0] - logps[1]
    margin = 0.5 * (ratio[:, 0] - ratio[:, 1])
    np.testing.assert_allclose(total, np.sum(np.log1p(np.exp(-margin))), rtol=1e-5)
    assert int(sums["accuracy"]) == (margin > 0).sum()


def test_log_probabilities_are_of_the_answer_alone(tmp_path):
    """Summed one answer at a time, from the logits, over the tokens of the answer and its end."""
    c = configure(write_pairs(tmp_path / "pairs.jsonl"))
    with jax.set_mesh(tiny.mesh()):
        params = {"lm": tiny.lively(MODEL)}
        pairs = read(c).take(np.arange(1))
        got = dpo.sum_logps(MODEL, params, {k: jnp.asarray(a) for k, a in pairs.items()})
        for j, answer in enumerate(("yes", "no")):
            logps = jax.nn.log_softmax(tiny.logits(MODEL, params["lm"], pairs["tokens"][:, j]))[0]
            places = np.flatnonzero(pairs["mask"][0, j])
            assert len(places) == len(answer) + 1
            want = sum(logps[p, pairs["targets"][0, j, p]] for p in places)
            np.testing.assert_allclose(got[0, j], want, rtol=1e-4)


def test_it_learns_what_is_preferred_and_resumes_bitwise(tmp_path, rundir):
    c = configure(write_pairs(tmp_path / "pairs.jsonl"))
    with jax.set_mesh(tiny.mesh()):
        report = dpo.run(rundir, c, Preemption())
        assert report["eval/accuracy"] > 0.9
        assert report["eval/loss"] < np.log(2)
        # Again from the middle, as after a kill.
        steps = c.dpo.train.steps
        full = replace(c, dpo=replace(c.dpo, train=replace(c.dpo.train, save_every=steps // 2)))
        whole = RunDir(tmp_path / "whole")
        whole.data.mkdir(parents=True)
        T.save(whole.tokenizer)
        first = dpo.run(whole, full, Preemption())
        shutil.rmtree(whole.checkpoints("dpo") / str(steps))
        assert dpo.run(whole, full, Preemption())["eval/loss"] == first["eval/loss"]


def test_meshes_agree(tmp_path):
    c = configure(write_pairs(tmp_path / "pairs.jsonl"))
    pairs = read(c).take(np.arange(8))
    found = []
    for dims in ((1, 1, 1), (1, 4, 2)):
        with jax.set_mesh(tiny.mesh(*dims)):
            batch = shard_batch(
                jax.sharding.get_mesh(), lambda lo, hi: {k: a[lo:hi] for k, a in pairs.items()}, 8
            )
            params = {"lm": tiny.lively(MODEL)}
            found.append(np.asarray(jax.jit(partial(dpo.sum_logps, MODEL))(params, batch)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"prompt": "a", "chosen": "b"}, "no_preference"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "no_messages"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "content_not_text"),
        ([1], "no_preference"),
    ],
)
def test_bad_records_are_counted_and_named(tmp_path, record, kind):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 300)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    counts = Counter()
    assert len(list(preferences.read_preferences([f"file:{path}"], counts))) == 300
    assert counts[kind] == 1


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"dpo\.sources is empty"):
        check_dpo(Config())
    c = configure(write_pairs(tmp_path / "pairs.jsonl"), seq_len=4)
    with pytest.raises(UserError, match=r"raise dpo\.train\.seq_len"):
        read(c)


def test_prompts_may_be_messages(tmp_path):
    path = tmp_path / "pairs.jsonl"
    turns = [{"role": "user", "content": "a"}]
    path.write_text(json.dumps({"prompt": turns, "chosen": "b", "rejected": "c"}) + "\n")
    [(_, (chosen, rejected))] = preferences.read_preferences([f"file:{path}"], Counter())
    assert chosen == [*turns, {"role": "assistant", "content": "b"}]
    assert rejected == [*turns, {"role": "assistant", "content": "c"}]
