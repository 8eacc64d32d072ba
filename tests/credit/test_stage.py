"""The stage from its first step to its page, on a model too small to learn anything."""

import json
from dataclasses import replace

import jax
import pytest
import tiny

from ramp import config
from ramp.config import Config, Reinforce, Text, replace_train
from ramp.credit import learn
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.stages import reinforce
from ramp.stages.checks import check_reinforce
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.preemption import Preempted, Preemption

SETTINGS = Reinforce(
    task="chain",
    level=2,
    method="step_local",
    sft_steps=2,
    num_prompts=2,
    group_size=2,
    max_new_tokens=10,
    num_eval_problems=4,
    kl_coef=0.01,
)
SETTINGS = replace_train(
    SETTINGS,
    steps=3,
    seq_len=40,
    adam_lr=1.0,
    embed_lr=1.0,
    head_lr=1.0,
    scalar_lr=1.0,
    lr_scale=1e-3,
    eval_every=3,
    save_every=2,
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory whose fine-tuned model is a fresh one."""
    c = config.resolve(
        Config(
            text=Text(tokenizer="bytes"),
            model=tiny.model(vocab_size=264, context_len=64),
            # A model this small writes nothing that any checker would tell from anything else.
            reinforce=replace(SETTINGS, reward="random"),
        )
    )
    rundir = RunDir(tmp_path / "run")
    rundir.data.mkdir(parents=True)
    Tokenizer.bytes_only().save(rundir.tokenizer)
    real = restore.load_params

    def load(rundir, stage, c, tokenizer=None):
        return (
            {"lm": tiny.lively(c.model)}
            if stage == "finetune"
            else real(rundir, stage, c, tokenizer)
        )

    monkeypatch.setattr(restore, "load_params", load)
    with jax.set_mesh(tiny.mesh()):
        yield rundir, c


def test_from_fine_tuned_model_to_page(run, capsys):
    rundir, c = run
    report = reinforce.run(rundir, c, Preemption())
    assert {"right", "verified", "steps"} <= report["before"].keys() == report["after"].keys()
    lines = [json.loads(line) for line in (rundir.path / "metrics.jsonl").read_text().splitlines()]
    tags = set().union(*(m.keys() for m in lines if m["stage"] == "reinforce"))
    assert {
        "rl/tokens",
        "rl/verified",
        "rl/dropped_groups",
        "credit/wrong_up",
        "train/kl",
        "train/entropy",
    } <= tags
    assert "step_local" in (rundir.path / "credit.html").read_text()
    path = reinforce.show_credit(rundir, c, 3, 1)
    assert path.endswith("credit.html") and "step_local" in capsys.readouterr().out
    with pytest.raises(UserError, match="--problem"):
        reinforce.show_credit(rundir, c, -1, 1)


@pytest.mark.parametrize(("scores", "best"), [((0.1, 0.5), 0), ((0.5, 0.1), 3)])
def test_what_is_handed_on_is_no_worse_than_the_start(run, monkeypatch, capsys, scores, best):
    """On problems to choose with; the figures after are those of what is handed on."""
    rundir, c = run

    def evaluate(c, tokenizer, params, step, board, stop):
        score = scores[bool(step)]
        return {"rl/not_verified": score, "rl/lost_reward": score}

    monkeypatch.setattr(reinforce, "evaluate_policy", evaluate)
    report = reinforce.run(rundir, c, Preemption())
    assert report["best_step"] == best
    assert ("step 0 was the best" in capsys.readouterr().out) == (best == 0)
    if best == 0:
        assert report["after"] == report["before"]
    chosen = restore.load_params(rundir, "reinforce", c)["lm"]
    start = restore.load_params(rundir, "sft", c)["lm"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), chosen, start)
    assert all(jax.tree.leaves(same)) == (best == 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"reward": "head", "label_fraction": 0.5}, {"method": "implicit"}])
def test_a_learned_reward_is_trained_beside_the_policy(run, how):
    rundir, c = run
    reinforce.run(rundir, replace(c, reinforce=replace(c.reinforce, **how)), Preemption())
    lines = [json.loads(line) for line in (rundir.path / "metrics.jsonl").read_text().splitlines()]
    assert any(m.get("train/process", 0) > 0 for m in lines if m["stage"] == "reinforce")


def test_a_head_without_labels_is_refused(run):
    rundir, c = run
    with pytest.raises(UserError, match="label_fraction"):
        reinforce.run(
            rundir, replace(c, reinforce=replace(c.reinforce, reward="head")), Preemption()
        )


@pytest.mark.slow
def test_stopped_and_gone_on_with_is_the_same_run(run, tmp_path, monkeypatch, capsys):
    """Two iterations, then the third after a restart: the same parameters as three at once."""
    rundir, c = run
    c = replace(c, reinforce=replace(c.reinforce, epochs=2))
    reinforce.run(rundir, c, Preemption())
    whole = restore.load_params(rundir, "reinforce", c)
    other = RunDir(tmp_path / "other")
    other.data.mkdir(parents=True)
    Tokenizer.bytes_only().save(other.tokenizer)
    collect, done = learn.collect_batch, []

    def cut_short(*args):
        done.append(args)
        if len(done) == 3:
            raise Preempted("asked to stop while it samples")
        return collect(*args)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(learn, "collect_batch", cut_short)
        reinforce.run(other, c, Preemption())
    assert "before on tests" in capsys.readouterr().out
    reinforce.run(other, c, Preemption())
    said = capsys.readouterr().out
    assert "reinforce: goes on from step 2\n" in said
    assert "before on tests" not in said and "sft: goes on" not in said
    tiny.assert_trees_close(restore.load_params(other, "reinforce", c), whole, 0, 0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "step_locl"}, "did you mean 'step_local'"),
        ({"method": "zzz"}, "it can be rloo, grpo"),
        ({"task": "chian"}, "did you mean 'chain'"),
        ({"task": "chain", "level": 99}, "99"),
        ({"reward": "head"}, "label_fraction"),
        ({"label_fraction": 0.5}, "reward 'head'"),
        ({"entropy_target": 0.5}, "entropy_coef"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_stage(keys, words):
    with pytest.raises(UserError, match=words):
        check_reinforce(Config(reinforce=replace(SETTINGS, **keys)))


def test_settings_that_work_are_let_through():
    for keys in ({}, {"reward": "head", "label_fraction": 0.5}, {"method": "prover"}):
        check_reinforce(Config(reinforce=replace(SETTINGS, **keys)))
