"""Rollouts: judged as their text is, continued from any step as if they had just been sampled."""

from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
import pytest
import tiny

from ramp.credit import audit, page, process_head, rollouts
from ramp.credit.rollouts import sample_rollouts
from ramp.errors import UserError
from ramp.tasks import chain, protocol
from ramp.tasks.protocol import solution_ids
from ramp.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()
MODEL = tiny.model(vocab_size=264, context_len=96)


def written(*texts: str) -> rollouts.Rollouts:
    """Solutions of the same chain, written as `a7|b4|3`; without a last `.` they never end."""
    problem = chain.make(3, (("a", "+", 4), ("b", "*", 2)))
    said = []
    for text in texts:
        *steps, answer = text.rstrip(".").split("|")
        ids = solution_ids(TOKENIZER, steps, answer)
        said.append(ids if text.endswith(".") else ids[:-1])
    return audit.solutions_as_rollouts(TOKENIZER, chain.TASK, [problem] * len(texts), said)


def test_verdicts_become_arrays():
    r = written("a7|b4|4.", "a7|b5|4.", "a2|b4|4.", "a7|b4|4", "4.")
    assert r.outcome_b.tolist() == [1, 1, 1, 0, 1] and r.verified_b.tolist() == [1, 0, 0, 0, 0]
    assert r.right_bs[:, :3].tolist() == [[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert r.exists_bs.sum(axis=1).tolist() == [3, 3, 3, 3, 1]
    assert r.step_bn[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2] and r.step_bn[4].tolist() == [
        0,
        0,
        *[-1] * 6,
    ]
    assert process_head.first_error_labels(r)[:, :3].tolist() == [
        [1, 1, 1],
        [1, 0, -1],
        [0, -1, -1],
        [1, 1, 0],
        [0, -1, -1],
    ]


def test_what_does_not_fit_is_said_in_a_sentence():
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.init(MODEL)
        with pytest.raises(UserError, match="do not fit"):
            sample_rollouts(MODEL, lm, TOKENIZER, chain.TASK, [chain.sample(0, 20)], 2, 60, 0)
        with pytest.raises(UserError, match="problems"):
            sample_rollouts(MODEL, lm, TOKENIZER, chain.TASK, [], 2, 8, 0)
    with pytest.raises(UserError, match="too long"):
        rollouts.make_rows(written("a7|b4|4."), 10, np.zeros((1, 8), np.float32))
    with pytest.raises(UserError, match="advantage"):
        rollouts.make_rows(written("a7|b4|4."), 64, np.zeros((1, 8), np.int32))
    with pytest.raises(UserError, match="labels"):
        process_head.label_rows(written("a7|b4|4."), 64, np.ones((1, 9), bool))


def test_rows_put_everything_where_the_target_is():
    r = written("a7|b4|4.", "4.")
    a = np.arange(16, dtype=np.float32).reshape(2, 8) + 1
    batch = rollouts.make_rows(r, 48, a)
    np.testing.assert_array_equal(rollouts.align_to_tokens(r, batch["advantage"]), a * r.mask_bn)
    for b in range(2):
        ids, n = r.ids(b), len(r.ids(b))
        said = batch["weights"][b] > 0
        assert (
            batch["targets"][b][said].tolist() == ids
            and batch["advantage"][b][said].tolist() == a[b, :n].tolist()
        )
        first = len(r.prompts[b]) - 1
        assert np.flatnonzero(said).tolist() == list(range(first, first + n))
        assert batch["tokens"][b][first] == r.prompts[b][-1]


def test_continuations_do_not_depend_on_how_many_are_sampled_at_once():
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(MODEL)
        problems = [chain.sample(i, 2) for i in range(3)]
        r = sample_rollouts(MODEL, lm, TOKENIZER, chain.TASK, problems, 2, 12, 3)
        r.step_bn[:, 4:] = np.where(r.tokens_bn[:, 4:] >= 0, 1, -1)
        results = [
            rollouts.sample_continuations(MODEL, lm, TOKENIZER, chain.TASK, r, 3, 5, chunk=chunk)
            for chunk in (16, 32)
        ]
    one, other = results
    assert one.num_tokens == other.num_tokens > 0
    np.testing.assert_array_equal(one.reward_bsn, other.reward_bsn)


def test_continuations_count_wins_and_tokens():
    """A policy that always finishes in the same way: values are all 0 or 1, and the cost is what it sampled."""
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(MODEL)
        r = sample_rollouts(
            MODEL, lm, TOKENIZER, chain.TASK, [chain.sample(i, 2) for i in range(3)], 2, 12, 3
        )
        r.step_bn[:, 4:] = np.where(
            r.tokens_bn[:, 4:] >= 0, 1, -1
        )  # whatever was said, let a step begin there
        got = rollouts.sample_continuations(MODEL, lm, TOKENIZER, chain.TASK, r, 2, 0, chunk=16)
    value_bs, cost = got.value_bs, got.num_tokens
    forked = [b for b in range(6) if 1 in r.step_bn[b]]
    assert np.isfinite(value_bs[forked, 1]).all() and np.isnan(np.delete(value_bs, 1, axis=1)).all()
    assert (
        0 < cost <= len(forked) * 2 * 8
        and ((value_bs[forked, 1] >= 0) & (value_bs[forked, 1] <= 1)).all()
    )


def test_continuations_are_sampled_as_the_rollouts_were():
    """Almost greedy, a continuation from any boundary says again what the rollout said from there."""
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(MODEL)
        r = sample_rollouts(
            MODEL, lm, TOKENIZER, chain.TASK, [chain.sample(i, 2) for i in range(3)], 2, 12, 3, 1e-3
        )
        r.step_bn[:, 4:] = np.where(r.tokens_bn[:, 4:] >= 0, r.step_bn[:, 3:4] + 1, -1)
        cost = rollouts.sample_continuations(
            MODEL, lm, TOKENIZER, chain.TASK, r, 2, 0, 1e-3, chunk=16
        ).num_tokens
    begins = [
        (b, n)
        for b in range(6)
        for n in range(12)
        if r.step_bn[b, n] > max(0, *r.step_bn[b, :n], 0)
    ]
    assert begins and cost == 2 * sum(len(r.ids(b)) - n for b, n in begins)


def test_rollouts_are_pure_in_their_seed_and_groups_stay_together():
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(MODEL)
        asked = [chain.sample(i, 2) for i in range(3)]
        one, two = (
            sample_rollouts(MODEL, lm, TOKENIZER, chain.TASK, asked, 2, 8, 3) for _ in range(2)
        )
        other = sample_rollouts(MODEL, lm, TOKENIZER, chain.TASK, asked, 2, 8, 4)
    assert (one.tokens_bn == two.tokens_bn).all() and (one.tokens_bn != other.tokens_bn).any()
    assert [p.seed for p in one.problems] == [0, 0, 1, 1, 2, 2]


def test_the_best_of_k_is_the_mean_over_all_choices_of_k():
    """Real-valued rewards too."""
    rng = np.random.default_rng(0)
    reward_bsn = rng.normal(size=(2, 3, 5)).astype(np.float32)
    got = rollouts.Continuations(reward_bsn, 0)
    for k in (1, 2, 5):
        chosen = [reward_bsn[..., list(c)].max(axis=2) for c in combinations(range(5), k)]
        np.testing.assert_allclose(got.best_of(k), np.mean(chosen, axis=0), atol=1e-6)
    # One that abstains has no part in the mean; where all do, nothing is known.
    reward_bsn[0, 0, 0] = reward_bsn[0, 1] = np.nan
    value_bs = rollouts.Continuations(reward_bsn, 0).value_bs
    np.testing.assert_allclose(value_bs[0, 0], reward_bsn[0, 0, 1:].mean(), rtol=1e-6)
    assert np.isnan(value_bs[0, 1])


def test_continuations_get_the_reward_that_is_asked_for():
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(MODEL)
        problems = [chain.sample(i, 2) for i in range(2)]
        r = sample_rollouts(MODEL, lm, TOKENIZER, chain.TASK, problems, 2, 12, 3)
        r.step_bn[:, 4:] = np.where(r.tokens_bn[:, 4:] >= 0, 1, -1)
        seen = []

        def reward(whole):
            seen.append(whole)
            return np.arange(len(whole.prompts), dtype=np.float32)

        got = rollouts.sample_continuations(
            MODEL, lm, TOKENIZER, chain.TASK, r, 3, 5, chunk=16, reward=reward
        )
    (whole,) = seen
    forked = [b for b in range(4) if 1 in r.step_bn[b]]
    assert whole.group_size == 3 and len(whole.prompts) == 3 * len(forked)
    np.testing.assert_array_equal(
        got.reward_bsn[forked, 1], np.arange(3 * len(forked)).reshape(-1, 3)
    )
    for b, row in zip(np.repeat(forked, 3), whole.tokens_bn, strict=True):
        assert (row[:4] == r.tokens_bn[b, :4]).all()  # the prefix belongs to the solution


def test_groups_are_taken_whole_from_several_samples():
    parts = [written("a7|b4|4.", "a2|b4|4."), written("4.", "a7|b4|44")]
    parts = [replace(part, group_size=2) for part in parts]
    r = rollouts.take_groups(parts, np.array([1, 0]))
    assert r.ids(0) == parts[1].ids(0) and r.ids(3) == parts[0].ids(1)
    assert r.ended_b.tolist() == [True, False, True, True] and r.group_size == 2
    assert r.verified_b.tolist() == [0, 0, 1, 0] and len(r.problems) == 4


def test_what_nobody_can_tell_is_neither_right_nor_wrong():
    """A checker that abstains: no label for the head, no verified solution, no luck, and said on the page."""
    abstains = protocol.Step(None)
    verdict = protocol.Verdict((protocol.Step(True), abstains), protocol.Step(True), True)
    assert verdict.first_error is None and not verdict.verified and not verdict.lucky
    unknown = replace(verdict, final_right=None)
    assert not unknown.verified and not unknown.lucky
    task = replace(chain.TASK, judge=lambda *_: unknown)
    r = written("a7|b4|4.")
    r = audit.solutions_as_rollouts(TOKENIZER, task, r.problems, [r.ids(0)])
    np.testing.assert_array_equal(r.right_bs[0, :3], [1, np.nan, 1])
    assert np.isnan(r.outcome_b).all() and r.verified_b.tolist() == [0]
    assert process_head.first_error_labels(r)[0, :3].tolist() == [1, -1, 1]
    text = page.describe_rollout(TOKENIZER, r, {"a": np.zeros(r.tokens_bn.shape)}, 0)
    assert "not known" in text and "not checked" in text
    assert "not checked" in page.render_page(TOKENIZER, r, {}, [0], "")
