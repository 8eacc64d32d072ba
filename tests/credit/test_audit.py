"""The audit: known credit gives known figures, right estimators are found right, attacks are attacks."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rollouts import TOKENIZER, written

from experiments.credit import chain_values
from ramp.credit import audit, page, process_head
from ramp.credit.advantages import METHODS
from ramp.credit.learn import checker_credit
from ramp.errors import UserError
from ramp.tasks import TASKS, chain
from ramp.tasks.protocol import parse

SLOW = pytest.mark.slow


def group_of_four():
    """One lucky success, one clean one, two failures with a right step."""
    r = written("a2|b4|4.", "a7|b4|4.", "a7|b5|5.", "a7|b9|9.")
    r = replace(r, group=4)
    return r, {
        name: np.asarray(METHODS[name](checker_credit(r)))
        for name in ("rloo", "step_local", "first_error")
    }


def test_straw_of_a_group_known_by_hand():
    r, credited = group_of_four()
    outcome = audit.misassigned_credit(r, credited["rloo"])
    assert outcome["wrong_up"] == 1 and outcome["right_down"] == 1 and outcome["lucky"] == 0.5
    assert outcome["mass_on_wrong"] == pytest.approx(
        1 / 6
    )  # of the six steps of the two successes one is wrong
    assert outcome["bits"] == pytest.approx(1)  # half up, half down: one bit a rollout
    for name in ("step_local", "first_error"):
        process = audit.misassigned_credit(r, credited[name])
        assert process["wrong_up"] == process["right_down"] == process["mass_on_wrong"] == 0
    assert audit.misassigned_credit(r, credited["step_local"])["bits"] > 1


def test_exact_values_against_all_ways():
    """Dynamic programming equals summing over all 10^3 sequences of values."""
    problem, table = (
        chain.make(3, (("a", "+", 4), ("b", "*", 2), ("c", "-", 1))),
        chain_values.skilled(1, 0.5),
    )
    probs = np.asarray(jnp.exp(table - jnp.log(jnp.sum(jnp.exp(table), -1, keepdims=True))))
    (start,), (ops,), (answer,) = chain_values.encode([problem])
    total = 0.0
    for x in range(10):
        for y in range(10):
            path = [start, x, y, answer]
            total += np.prod([probs[path[i], ops[i][0], ops[i][1], path[i + 1]] for i in range(3)])
    assert float(chain_values.success(table, [problem])) == pytest.approx(total, rel=1e-5)
    for value, op, n in ((3, 0, 4), (7, 2, 2), (4, 1, 9)):
        assert chain_values.truth()[value, op, n] == chain.apply(value, "+-*"[op], n)


@pytest.mark.parametrize(
    "method", ["rloo", pytest.param("oracle", marks=SLOW), pytest.param("vine", marks=SLOW)]
)
def test_outcome_estimators_are_unbiased(method):
    found = audit.gradient(
        chain_values.skilled(0, 0.6), [chain.sample(i, 3) for i in range(2)], method, 8, 300
    )
    assert found["cos"] > 0.97


def test_process_credit_is_another_gradient():
    """Step validity is not the outcome's gradient, and does not claim to be."""
    found = audit.gradient(
        chain_values.skilled(0, 0.3), [chain.sample(i, 4) for i in range(2)], "step_local", 8, 200
    )
    assert found["cos"] < 0.9 and found["wrong_up"] == found["right_down"] == 0


@given(st.sampled_from(sorted(TASKS)), st.integers(0, 10**6), st.integers(1, 5))
def test_attacks_parse_and_none_is_verified(name, seed, level):
    task = TASKS[name]
    problem = task.sample(seed, level)
    tried = audit.attacks(TOKENIZER, task, problem, seed)
    assert len(tried) >= 12
    for ids in tried.values():
        parsed = parse(TOKENIZER, ids)
        assert not task.judge(problem, parsed.steps, parsed.answer).verified


def test_the_checker_withstands_every_attack_and_a_credulous_reward_none():
    checker = audit.find_reward_hacks(lambda r: r.right_bs, TOKENIZER, chain.TASK, level=4, n=20)
    assert checker[0]["attack"] == "right solutions" and checker[0]["accepted"] == 1
    assert max(row["accepted"] for row in checker[1:]) == 0

    def credulous(r):
        return np.ones(r.right_bs.shape, np.float32)

    rows = {
        row["attack"]: row["accepted"]
        for row in audit.find_reward_hacks(credulous, TOKENIZER, chain.TASK, level=4, n=20)
    }
    assert rows["babble"] == rows["thanks"] == rows["all steps are correct"] == 1


def test_a_perfect_checker_is_hacked_through_its_sum_but_not_through_its_least_step():
    def total(reward_bs, r):
        return (reward_bs * r.exists_bs).sum(axis=1) / 4

    rows = {
        row["attack"]: row["accepted"]
        for row in audit.find_reward_hacks(
            lambda r: r.right_bs, TOKENIZER, chain.TASK, 4, 20, 0.5, total
        )
    }
    assert rows["never ends"] == 1 and rows["right but for the last step"] == 1


@pytest.mark.parametrize(
    "reward",
    [
        lambda r: r.right_bs[:, :1],
        lambda r: r.right_bs > 0,
        lambda r: r.right_bs * np.nan,
        lambda r: r.right_bs.astype(int),
    ],
)
def test_a_reward_of_the_wrong_kind_is_refused(reward):
    with pytest.raises(UserError, match="the reward"):
        audit.find_reward_hacks(reward, TOKENIZER, chain.TASK, level=2, n=2)


def test_tokens_to_and_ratio():
    assert audit.tokens_to_reach([(0, 0.5), (100, 0.8), (200, 1.0)], 0.9) == pytest.approx(150)
    assert audit.tokens_to_reach([(0, 0.5), (100, 0.8)], 0.9) == float("inf")
    assert audit.tokens_to_reach([(0, 0.95)], 0.9) == 0
    mean, low, high = audit.bootstrap_ratio([100, 110, 90], [50, 55, 45])
    assert mean == pytest.approx(2) and 1.6 < low < mean < high


def test_diversity_counts_distinct_verified_solutions():
    r = written("a7|b4|4.", "a7|b4|4.", "a2|b4|4.", "a7|b5|5.")
    found = audit.diversity(replace(r, group=4), (1, 2, 16))
    assert (
        found["pass@1"] == 0.5
        and found["pass@2"] == pytest.approx(1 - 1 / 6)
        and found["distinct"] == 1
    )
    assert "pass@16" not in found


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30))
def test_auc_against_all_pairs(pairs):
    p, y = (np.array(x, np.float64) for x in zip(*pairs, strict=True))
    right, wrong = p[y > 0.5], p[y <= 0.5]
    got = process_head.auc(p, y)
    if len(right) and len(wrong):
        want = np.mean([(a > b) + 0.5 * (a == b) for a in right for b in wrong])
        assert got == pytest.approx(want)
    else:
        assert np.isnan(got)


def test_pictures_show_every_token_and_every_verdict():
    r, credited = group_of_four()
    text = page.render_page(TOKENIZER, r, credited, range(4), "Credit <here>")
    assert text.count("<table>") == 4 and "Credit &lt;here&gt;" in text and "right by luck" in text
    assert text.count("✗") == sum(not s.right for v in r.verdicts for s in v.all_steps)
    assert text.count("<span") == 3 * r.tokens
    assert "wrong operation" in page.describe_rollout(
        TOKENIZER, r, credited, 0
    ) and "rloo" in page.describe_rollout(TOKENIZER, r, credited, 0)
    assert len(page.plot_rollout(TOKENIZER, r, credited, 0).axes[0].patches) == 3 * len(r.ids(0))
    assert page.colour(0.0, 1.0) == (255, 255, 255) and page.colour(1.0, 0.0) == (255, 255, 255)
    green, red = page.colour(1.0, 1.0), page.colour(-1.0, 1.0)
    assert green[1] > green[0] and red[0] > red[1]
