"""Rollouts: judged as their text is, continued from any step as if they had just been sampled."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from ramp.credit import audit, learn, page, process_head, rollouts
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
    (values, cost), (same_values, same_cost) = results
    assert cost == same_cost > 0
    np.testing.assert_array_equal(values, same_values)


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
        value_bs, cost = rollouts.sample_continuations(
            MODEL, lm, TOKENIZER, chain.TASK, r, 2, 0, chunk=16
        )
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
        _, cost = rollouts.sample_continuations(
            MODEL, lm, TOKENIZER, chain.TASK, r, 2, 0, 1e-3, chunk=16
        )
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


def test_held_out_problems_are_not_trained_on():
    trained = {
        p.seed
        for step in range(50)
        for p in learn.make_problems(chain.TASK, 2, (1 * 1_000_003 + step) * 4, 4)
    }
    assert not trained & {p.seed for p in learn.held_out_problems(chain.TASK, 2, 256)}


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
