"""The stage from its first step to its page, on a model too small to learn anything."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from experiments import results
from experiments.credit import attack, bench, table
from ramp import config
from ramp.config import Config, Reinforce, Text, replace_train
from ramp.credit import process_head
from ramp.errors import UserError
from ramp.model import cost
from ramp.rundir import RunDir
from ramp.stages import reinforce
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.preemption import Preemption

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
            reinforce=SETTINGS,
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
    assert "<table>" in (rundir.path / "credit.html").read_text()
    path = reinforce.show_credit(rundir, c, 3, 1)
    assert path.endswith("credit.html") and "step_local" in capsys.readouterr().out
    with pytest.raises(UserError, match="--problem"):
        reinforce.show_credit(rundir, c, -1, 1)


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
def test_stopped_and_gone_on_with_is_the_same_run(run, tmp_path):
    """Two iterations, then the third after a restart: the same parameters as three at once."""
    rundir, c = run
    reinforce.run(rundir, c, Preemption())
    whole = restore.load_params(rundir, "reinforce", c)
    other = RunDir(tmp_path / "other")
    other.data.mkdir(parents=True)
    Tokenizer.bytes_only().save(other.tokenizer)
    reinforce.run(
        other, replace(c, reinforce=replace_train(c.reinforce, steps=2, eval_every=2)), Preemption()
    )
    reinforce.run(other, c, Preemption())
    tiny.assert_trees_close(restore.load_params(other, "reinforce", c), whole, 0, 0)


def test_the_benchmark_keeps_what_it_has(tmp_path):
    b = results.Results(tmp_path, tiny.model(vocab_size=264), SETTINGS)
    calls = []
    work = lambda: calls.append(1) or {"x": len(calls)}  # noqa: E731
    assert (
        b.once({"part": "a"}, work)["x"] == 1
        and b.once({"part": "a"}, work)["x"] == 1
        and len(calls) == 1
    )
    with b.path.open("a") as file:
        file.write('{"key": {"part": "b"}, "x"')  # a kill tears the line
    assert [r["x"] for r in b.results()] == [1]
    assert b.once({"part": "b"}, work)["x"] == 2 and [r["x"] for r in b.results()] == [1, 2]


def test_gradients_of_a_split_model_are_compared_whole():
    c = tiny.model(vocab_size=264)
    with jax.set_mesh(tiny.mesh(2, 2, 2)):
        params = results.init_lm(c)
        assert bench.flat(params).shape == (cost.count_params(c),)
        assert bench.flat({"w": params["lm"]["head"]["norm"] * 2}).tolist() == [2.0] * c.width


def test_faults_are_of_the_kind_asked_for():
    for kind, why in (
        ("value", {"wrong value", "wrong operand"}),
        ("operation", {"wrong operation"}),
    ):
        r = attack.solved(kind, 4, 0, 60)
        found = {step.why for v in r.verdicts for step in v.steps if not step.right}
        assert found and found <= why
        assert 0 < r.verified_b.mean() < 1


def test_a_stretched_row_is_the_same_row_with_gaps_before_an_operation_and_before_the_solution():
    """Without the gaps everything is as it was, and label, operation and operand still stand side by side."""
    r = attack.solved("value", 4, 0, 20)
    plain = process_head.label_rows(r, 80, process_head.first_error_labels(r))
    longer = attack.stretched(
        {name: a.copy() for name, a in plain.items()}, r, np.random.default_rng(0)
    )
    gaps = {"operation": set(), "solution": set()}
    for b, prompt in enumerate(r.prompts):
        used = np.flatnonzero(longer["tokens"][b])
        for name, a in plain.items():
            np.testing.assert_array_equal(longer[name][b, used], a[b, : len(used)])
        for cut in np.flatnonzero(np.diff(used) > 1):
            kind = "solution" if cut + 1 == len(prompt) else "operation"
            assert kind == "solution" or longer["tokens"][b, used[cut + 1]] == ord(" ")
            gaps[kind].add(int(used[cut + 1] - used[cut]))
    assert min(map(len, gaps.values())) > 5


def learned(method, seed, rate, to, verified=0.95):
    key = {"part": "learn", "base": "mid", "method": method, "rate": rate, "seed": seed}
    figures = {"to_goal": to, "tokens": 1000, "right": verified, "verified": verified, "steps": 1.0}
    return {"key": key} | figures


def test_the_table_takes_the_best_rate_and_bounds_what_never_arrives():
    runs = [learned("rloo", 0, 1e-3, None, 0.2), learned("rloo", 0, 1e-4, None, 0.5)]
    runs += [learned("rloo", s, 1e-4, None, 0.5) for s in range(1, 5)]
    runs += [learned("step_local", s, 1e-3, 250.0) for s in range(5)]
    best = table.best_runs(runs, "mid")
    assert best["rloo"][0]["key"]["rate"] == 1e-4 and len(best["rloo"]) == 5
    text = table.report(runs)
    assert (
        "rloo / step_local | ≥ 2, interval above 1.5 | 4.0 [4.0, 4.0]; rloo arrived in 0 of 5"
        in text
    )
    assert (
        "none in 1k, none in 1k" in text
        and "250k" not in text
        and "| step_local | 0.001 | 0k, 0k" in text
    )
