"""Iterations without signal stop a run and say why; and an iteration makes as many updates as are asked for."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny
from test_rollouts import TOKENIZER
from test_stage import SETTINGS

from ramp import config, run
from ramp.config import Config, Text, replace_train
from ramp.credit import audit, learn, rewards, rollouts
from ramp.credit.advantages import METHODS
from ramp.errors import NothingToLearn, UserError
from ramp.reporting.report import update_report
from ramp.rundir import RunDir
from ramp.stages import reinforce
from ramp.tasks import chain, open_task
from ramp.train.preemption import Preemption

PROBLEM = chain.make(3, (("a", "+", 4), ("b", "*", 2)))


def iteration(t, *texts, end=True) -> learn.Iteration:
    """What rollouts of these texts, in one group, come to under the settings."""
    said = [TOKENIZER.encode(text) + [TOKENIZER.end] * end for text in texts]
    task = open_task(t)
    problems = [PROBLEM] * len(texts)
    r = audit.solutions_as_rollouts(TOKENIZER, task, problems, said, group_size=len(texts))
    given = rewards.judge(t.reward, r, TOKENIZER, 5)
    advantage_bn = np.asarray(METHODS[t.method](learn.make_credit(r, given)))
    has_signal = rollouts.rows_with_signal(r, advantage_bn).any()
    batch = rollouts.make_rows(r, 64, advantage_bn)
    return learn.Iteration(r, given, advantage_bn, batch, r.num_tokens, 0, int(not has_signal))


@pytest.mark.parametrize(
    ("texts", "keys", "words", "remedy"),
    [
        # As a model from elsewhere writes it: no reserved token, so it is all one wrong answer.
        (("a7\nb4\n4", "a2\nb4\n4"), {}, "set reinforce.steps", {"steps": "newline"}),
        (("x", "y"), {"method": "rloo"}, "set another reinforce.reward", {"reward": "random"}),
    ],
)
def test_why_there_is_no_signal_and_what_brings_it(texts, keys, words, remedy):
    t = replace(SETTINGS, num_prompts=1, group_size=2, **keys)
    i = iteration(t, *texts)
    assert i.num_dropped_groups == 1 and words in reinforce.explain_no_signal(t, i, 3)
    assert iteration(replace(t, **remedy), *texts).num_dropped_groups == 0


def test_other_reasons():
    t = replace(SETTINGS, method="rloo")
    assert "the mean reward is 1;" in reinforce.explain_no_signal(t, iteration(t, "4", "4"), 3)
    said = reinforce.explain_no_signal(t, iteration(t, "x", "y", end=False), 3)
    assert "none ended within reinforce.max_new_tokens 10" in said
    i = iteration(replace(t, steps="newline"), "a7\nb4\n4", "a7\nb4\n4")
    assert "too easy: raise reinforce.level" in reinforce.explain_no_signal(t, i, 3)
    # Questions of a file have no level.
    said = reinforce.explain_no_signal(replace(t, prompts="q.jsonl"), iteration(t, "x", "y"), 3)
    assert "level" not in said and "more reinforce.sft_steps (now 2)" in said


def test_a_reward_that_is_the_same_for_all_is_the_reason(tmp_path):
    (tmp_path / "mine.py").write_text("def one(records): return [1.0 for r in records]\n")
    t = replace(SETTINGS, method="rloo", reward=f"{tmp_path}/mine.py:one")
    said = reinforce.explain_no_signal(t, iteration(t, "4", "5"), 3)
    assert "mine.py:one' is 1 for all of them" in said and "--force" in said


def test_what_a_reward_abstains_from_is_counted(tmp_path):
    source = "def some(records): return [None if i % 2 else 1.0 for i, r in enumerate(records)]\n"
    (tmp_path / "mine.py").write_text(source)
    t = replace(SETTINGS, method="rloo", reward=f"{tmp_path}/mine.py:some")
    i = iteration(t, "4", "5", "6", "7")
    assert learn.share_abstained(i.rewards, i.rollouts) == 0.5
    assert learn.error_of_mean(i.rewards) == 0
    assert learn.share_abstained(iteration(SETTINGS, "4").rewards, i.rollouts) == 0


@pytest.mark.parametrize("method", ["rloo", "step_local"])
def test_a_reward_that_abstains_from_everything_is_the_reason(method):
    """Whether the rollouts ended or not; and what it says of rollouts is nothing to a method of steps."""
    t = replace(SETTINGS, method=method)
    for end in (True, False):
        i = iteration(t, "x", "y", end=end)
        nan_bs = np.full_like(i.rewards.step_bs, np.nan)
        whole = np.ones(2) if method == "step_local" else nan_bs[:, 0]
        i = replace(i, rewards=rewards.Rewards(whole, nan_bs))
        said = reinforce.explain_no_signal(t, i, 3)
        assert "reinforce.reward 'answer' abstained from all" in said


@dataclass(frozen=True)
class Guard:
    offset: int = 0


@dataclass(frozen=True)
class FakeState:
    step: int
    params: tuple = ()
    ref: None = None
    guard: Guard = Guard()


def wrapped(t, monkeypatch, iterations):
    """(the step of a run, what its updates got), on iterations that are given."""
    c = Config(text=Text(tokenizer="bytes"), model=tiny.model(), reinforce=t)
    given = iter(iterations)
    monkeypatch.setattr(learn, "collect_batch", lambda *_: next(given))
    monkeypatch.setattr(learn, "shard_batch", lambda batch: batch)
    seen = []

    def update(state, batch):
        seen.append((state.step, batch["tokens"][:, -1].tolist()))
        return replace(state, step=state.step + 1), {}

    return reinforce.wrap_iteration(c, TOKENIZER, Preemption(), update), seen


def test_a_run_stops_after_iterations_without_signal_on_end(monkeypatch):
    t = replace(SETTINGS, method="rloo", num_prompts=1, group_size=2)
    t = replace_train(replace(t, max_iterations_without_signal=2), steps=9)
    dead, alive = iteration(t, "x", "y"), iteration(t, "x", "4")
    step, seen = wrapped(t, monkeypatch, [dead, alive, dead, dead])
    state = FakeState(0)
    for _ in range(3):
        state, metrics = step(state, {})
    assert state.step == len(seen) == 3 and metrics["rl/dropped_groups"] == 1
    with pytest.raises(UserError, match="in 2 iterations"):
        step(state, {})
    # Where KL divergence and entropy act, it goes on.
    step, _ = wrapped(replace(t, keep_all_groups=True), monkeypatch, [dead] * 3)
    for _ in range(3):
        state, _ = step(state, {})


def test_the_other_stages_of_a_run_are_done_before_it_fails(tmp_path, monkeypatch, capsys):
    """Nothing to learn is no reason to leave what comes after it undone; the exit code says it."""

    def learn_nothing(*_):
        raise NothingToLearn("reinforce: no signal")

    monkeypatch.setattr(reinforce, "run", learn_nothing)
    t = replace(SETTINGS, num_prompts=4, group_size=2)  # the tests have eight devices
    c = config.resolve(Config(text=Text(tokenizer="bytes"), model=tiny.model(), reinforce=t))
    RunDir(tmp_path).check_or_create(c)
    for stage in ("pretrain", "finetune"):
        update_report(tmp_path, stage, {"done": True})
    looked = []
    suites = {"look": lambda *_: looked.append((tmp_path / "report.html").exists()) or {}}
    for _ in range(2):  # the stage is tried again, the other is done
        with pytest.raises(NothingToLearn, match="reinforce is left undone"):
            run.run(c, tmp_path, ("reinforce", "look"), suites=suites)
    assert looked == [True] and RunDir(tmp_path).is_done("look")
    assert not RunDir(tmp_path).is_done("reinforce")
    # Each try says why once.
    assert capsys.readouterr().err.count("no signal") == 2


def test_every_pass_takes_every_row_once(monkeypatch):
    """Two passes in two parts are four updates of one iteration, which the optimizer's schedule counts."""
    t = replace(SETTINGS, method="rloo", num_prompts=2, group_size=2, epochs=2, minibatches=2)
    i = iteration(t, "x", "4", "x", "4")
    i.batch["tokens"][:, -1] = range(4)
    step, seen = wrapped(t, monkeypatch, [i])
    state, _ = step(FakeState(5), {})
    assert seen == [(20, [0, 1]), (21, [2, 3]), (22, [0, 1]), (23, [2, 3])]
    assert state.step == 6
