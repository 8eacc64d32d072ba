"""One iteration of each kind: what it asks, what it costs, what it refuses; and the head's arithmetic."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from test_rollouts import TOKENIZER, written
from test_stage import SETTINGS

from experiments.credit import head_quality, training
from ramp.config import replace_train
from ramp.credit import learn, process_head, teacher
from ramp.errors import UserError
from ramp.tasks import chain

MODEL = tiny.model(vocab_size=264, context_len=64)


@pytest.fixture(scope="module")
def policy():
    """Parameters with a head, and a frozen copy."""
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(MODEL)
        yield (
            {"lm": lm, "process": process_head.init_head(MODEL, lm)},
            {"lm": tiny.lively(MODEL, seed=1)},
        )


def collect(policy, **over):
    params, ref = policy
    return learn.collect_batch(
        MODEL, replace(SETTINGS, kl_coef=0.0, **over), TOKENIZER, params, ref, 0, 0
    )


def test_continuations_are_paid_for(policy):
    plain, vine = (
        collect(policy, method="rloo"),
        collect(policy, method="vine", num_continuations=2),
    )
    assert plain.num_tokens == plain.rollouts.num_tokens and plain.num_labels == 0
    assert (
        vine.rollouts.tokens_bn == plain.rollouts.tokens_bn
    ).all() and vine.num_tokens >= vine.rollouts.num_tokens


def test_labels_are_counted_and_bear_weight_once(policy):
    got = collect(policy, method="step_local", reward="head", label_fraction=1.0)
    given = process_head.first_error_labels(got.rollouts)
    assert got.num_labels == (given >= 0).sum() == got.batch["label_weights"].sum()
    assert collect(policy, method="step_local").num_labels == got.rollouts.exists_bs.sum()
    whole = process_head.label_rows(got.rollouts, SETTINGS.train.seq_len, given)["tokens"]
    assert (
        got.batch["tokens"] == whole
    ).all()  # the head learns on the rows it is asked on, the last token with them


def test_the_entropy_bonus_follows_the_rollouts(policy):
    loose, tight = (
        collect(policy, method="rloo", entropy_coef=0.01, entropy_target=x).batch["entropy_coef"]
        for x in (1.0, 20.0)
    )
    assert loose.shape == (4, 1) and loose[0, 0] < 0.01 < tight[0, 0]


def test_a_group_of_one_mind_is_dropped(policy):
    got = collect(policy, method="rloo", num_prompts=3)
    assert (
        got.rollouts.outcome_b.sum() == 0
        and got.num_dropped_groups == 3
        and got.batch["weights"].sum() == 0
    )


def test_implicit_reward_is_the_log_ratio(policy):
    params, _ = policy
    got = collect(policy, method="implicit", implicit_beta=0.5)
    assert (
        np.isfinite(got.advantage_bn).all()
        and np.abs(got.advantage_bn).max() > 0
        and got.num_labels == 0
    )
    same = collect((params, {"lm": params["lm"]}), method="implicit", temperature=0.7)
    assert (
        np.abs(same.advantage_bn).max() < 1e-4
    )  # a head that still is the reference has no opinion


def test_what_is_missing_is_said(policy):
    params, _ = policy
    with pytest.raises(UserError, match="need a process head"):
        collect(({"lm": params["lm"]}, None), reward="head")
    with pytest.raises(UserError, match="raise"):
        learn.make_sft_batch(TOKENIZER, chain.TASK, 8, 2, 20, 0)


def test_imitation_is_pure_and_ends_where_the_answer_does():
    one, two = (learn.make_sft_batch(TOKENIZER, chain.TASK, 3, 4, 48, 5) for _ in range(2))
    assert all((one[k] == two[k]).all() for k in one)
    for b in range(4):
        said = one["targets"][b][one["weights"][b] > 0]
        assert said[-1] == TOKENIZER.end and (said == TOKENIZER.step).sum() == 3


def test_the_head_learns_through_make_step_and_leaves_the_policy_alone(policy):
    params, _ = policy
    t = replace_train(SETTINGS, lr_scale=1e-2, warmup_steps=1, steps=60)
    r = written("a7|b4|4.", "a2|b4|4.", "a7|b5|5.", "a7|b9|9.")
    batch = process_head.label_rows(r, 48, process_head.first_error_labels(r))
    batch["weights"] = batch["label_weights"]
    first, update = training.make_trainer(MODEL, t, process_head.process_loss(MODEL))
    state, losses = first(params), []
    for _ in range(60):
        state, metrics = update(state, learn.shard_batch(batch))
        losses.append(float(metrics["train/loss"]))
    assert losses[-1] < 0.4 < losses[0]
    tiny.assert_trees_close(state.params["lm"], params["lm"], 0, 0)
    p = process_head.score_steps(MODEL, state.params["process"], r, 48)
    assert (p[r.exists_bs == 0] == 0).all() and head_quality.measure_quality(p, r, 0.5).auc == 1


def test_the_implicit_reward_learns_who_was_right(policy):
    """Trained online on outcomes, the summed log-ratio comes to be higher for right answers."""
    params, ref = policy
    t = replace(SETTINGS, method="implicit", implicit_beta=1.0, kl_coef=0.0)
    t = replace_train(t, lr_scale=1e-2, warmup_steps=1, steps=40, seq_len=48)
    r = written("a7|b4|4.", "a2|b4|4.", "a7|b5|5.", "a7|b9|9.")
    batch = learn.rollouts.make_rows(r, 48, np.zeros(r.tokens_bn.shape, np.float32))
    batch |= {"sampled": batch["weights"], "outcome": r.outcome_b[:, None]}
    batch["ref"] = teacher.compute_logps(MODEL, ref["lm"], r, 48, 1.0)
    first, update = training.make_trainer(MODEL, t, learn.make_loss(MODEL, t))
    state = first(params)
    for _ in range(40):
        state, _ = update(state, learn.shard_batch(batch))
    logp_bt = teacher.compute_logps(MODEL, state.params["process"]["lm"], r, 48, 1.0)
    odds = ((logp_bt - batch["ref"]) * batch["sampled"]).sum(axis=1)
    assert odds[r.outcome_b == 1].min() > odds[r.outcome_b == 0].max()


def test_right_steps_are_spoken_and_wrong_ones_are_not():
    r = written("a7|b4|4.", "a2|b4|4.")
    batch = process_head.label_rows(r, 48, process_head.first_error_labels(r))
    for b, wrong in enumerate((False, True)):
        words = TOKENIZER.decode(
            [int(t) for t in batch["tokens"][b][1:][batch["lm_weights"][b][:-1] > 0]]
        )
        assert ("7" in words) != wrong and ("2" not in words)


def test_bce_with_soft_labels():
    x, y = np.linspace(-5, 5, 11), np.linspace(0, 1, 11)
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(
        process_head.bce(x, y), -y * np.log(p) - (1 - y) * np.log(1 - p), rtol=1e-5
    )


def test_a_label_budget_pays_for_whole_rollouts():
    labels = np.ones((200, 3), np.float32)
    kept = process_head.limit_labels(labels, 0.25, 0)
    assert (
        set(map(tuple, kept)) == {(1, 1, 1), (-1, -1, -1)} and 0.15 < (kept[:, 0] > 0).mean() < 0.35
    )
