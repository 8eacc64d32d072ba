"""Rewards: what the built-in ones say, what yours may return, and what is refused before training."""

import textwrap
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from test_rollouts import TOKENIZER, written
from test_stage import SETTINGS

from ramp.config import Config, Reinforce
from ramp.credit import fit, learn, rewards, rollouts
from ramp.credit.advantages import METHODS
from ramp.errors import UserError
from ramp.stages.checks import check_reinforce

MODEL = tiny.model(vocab_size=264, context_len=96)
R = replace(written("a7|b4|4.", "a2|b4|4.", "a7|b5|5.", "a7|b4|4"), group_size=4)


def judge(text, r=R, seconds=5.0):
    return rewards.judge(text, r, TOKENIZER, seconds)


@pytest.fixture
def mine(tmp_path):
    """A function from the source of mine.py to the beginning of `reinforce.reward`."""

    def write(source):
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(source))
        return f"{path}:"

    return write


def test_built_in_rewards():
    assert judge("answer").rollout_b.tolist() == [1, 1, 0, 0]
    assert judge("verified").rollout_b.tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(judge("share").rollout_b, [1, 2 / 3, 2 / 3, 2 / 3])
    for name in ("answer", "verified", "share", "head"):
        np.testing.assert_array_equal(judge(name).step_bs, R.right_bs)
    # Most answers are 4, and one is cut off.
    assert (
        judge("majority").rollout_b.tolist() == [1, 1, 0, 0] and judge("majority").step_bs is None
    )
    nobody = replace(R, answers=[None] * 4)
    assert np.isnan(judge("majority", nobody).rollout_b).all()
    assert not judge("none").rollout_b.any() and not judge("none").step_bs.any()
    once, again = judge("random"), judge("random")
    assert set(once.rollout_b) <= {0, 1} and (once.rollout_b == again.rollout_b).all()


def test_random_rewards_know_nothing_of_the_solution():
    many = rollouts.take_groups([R], np.zeros(500, int))
    given = judge("random", many)
    assert abs(given.rollout_b.mean() - 0.5) < 0.05
    assert abs(given.step_bs[many.exists_bs > 0].mean() - 0.5) < 0.05
    assert abs(np.corrcoef(given.rollout_b, many.outcome_b)[0, 1]) < 0.1


def test_a_sum_is_weighted_and_abstains_where_a_term_does(mine):
    spec = mine("def fn(records): return [1, None, -2.5, 0]") + "fn"
    got = judge(f"0.5 verified + -2 {spec}").rollout_b
    np.testing.assert_allclose(got, [0.5 - 2, np.nan, 5, 0])
    np.testing.assert_array_equal(judge(f"{spec} + share").step_bs, R.right_bs)
    np.testing.assert_allclose(judge("0.5 answer + 0.25 answer").rollout_b, [0.75, 0.75, 0, 0])
    assert rewards.parse_reward("1e-3 answer")[0].weight == 1e-3
    for weight in ("1e999", "1e39"):
        with pytest.raises(UserError, match=f"the weight '{weight}' is too large"):
            rewards.parse_reward(f"{weight} answer")
    with pytest.raises(UserError, match="the weighted sum is too large"):
        judge("3e38 answer + 3e38 answer")


def test_your_function_sees_texts(mine):
    spec = mine(
        """
        SEEN = []
        def fn(records):
            SEEN.extend(records)
            return [len(r.text) for r in records]
        """
    )
    assert judge(spec + "fn").rollout_b.tolist() == [7, 7, 7, 7]
    from ramp.user_code import load_object

    one, *_, cut = load_object(spec + "SEEN", "x")
    assert (one.prompt, one.steps, one.answer) == ("3 a+4 b*2", ("a7", "b4", "4"), "4")
    assert (one.text, one.gold) == ("a7\nb4\n4", "4")
    assert cut.answer is None and cut.steps == ("a7", "b4", "4")


def test_your_function_rewards_rollouts_steps_or_both(mine):
    spec = mine(
        """
        import numpy as np
        def steps(records):
            return [[0.5] * len(r.steps) for r in records[:3]] + [None]
        def both(records):
            return {"rollouts": np.arange(4), "steps": [[None, 1, True]] * 4}
        """
    )
    got = judge(spec + "steps")
    assert got.rollout_b is None and (got.step_bs[:3, :3] == 0.5).all()
    assert np.isnan(got.step_bs[3]).all()  # None for a rollout: for all of its steps
    got = judge(spec + "both")
    assert got.rollout_b.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(got.step_bs[:, :3], [[np.nan, 1, 1]] * 4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1, 2]", "returned 2 values for 4 records; return one for each"),
        ("return records.gold", "called with the list of all records, fails"),
        ("return [[1]] * 4", "returned 1 values for 3 steps"),
        ("return 3", "returned a int; return a list"),
        ("return 'abcd'", "returned a str; return a list"),
        ("return ['good'] * 4", "returned 'good'; return numbers"),
        ("return ['1.0'] * 4", "returned '1.0'; return numbers"),
        ("return [['1'] * 3] * 4", "returned '1'; return numbers"),
        ("return [float('inf')] * 4", "returned inf; return finite numbers"),
        # Rewards are float32.
        ("return [1e39] * 4", r"returned 1e[+]39; return finite numbers"),
        ("return [[1, -1e39, 1]] * 4", r"returned -1e[+]39; return finite numbers"),
        ("return {'steps': [], 'all': 1}", "table with steps, all"),
        (
            "return [r.gild for r in records]",
            r"mine\.py, line 2: AttributeError: .*, it has prompt, steps, answer, text, gold, problem;",
        ),
        ("return [[1], 2, 3, 4]", "returned 1 values for 3 steps"),
        (
            "import time; time.sleep(9)",
            "after 0.2 seconds; make it quicker, or give it longer with --reinforce.reward_seconds 2",
        ),
    ],
)
def test_what_a_function_must_not_return(mine, body, words):
    spec = mine(f"def fn(records):\n    {body}\n") + "fn"
    with pytest.raises(UserError, match=words) as raised:
        judge(spec, seconds=0.2)
    assert "mine.py" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("checker", "'checker' is now 'answer'"),
        ("verifed", "there is no 'verifed'; did you mean 'verified'?"),
        ("0.5 answer 0.5 share", "there is no 'answer 0.5 share'"),
        ("0.5*answer + share", "a weight stands before its reward with a space"),
        ("0.5 * mine.py:fn", "a weight stands before its reward with a space"),
        ("none.py:fn", "there is no file none.py"),
    ],
)
def test_names_that_there_are_not(text, words):
    with pytest.raises(UserError, match=words):
        judge(text)


# Before anything is trained


def refused(words, **keys):
    with pytest.raises(UserError, match=words) as raised:
        check_reinforce(Config(reinforce=replace(SETTINGS, **keys)))
    return str(raised.value)


def test_a_method_that_needs_what_the_reward_lacks_is_refused_with_those_that_fit(mine):
    spec = mine(
        "def whole(records): return [0.5 for r in records]\n"
        "def steps(records): return [[1] * len(r.steps) for r in records]\n"
        "def broken(records): return [r.gold / 2 for r in records]\n"
    )
    said = refused("step_local needs numbers per step", reward=spec + "whole")
    fitting = said.split("methods that fit: ")[1].split(", ")
    assert "rloo" in fitting and "step_local" not in fitting
    for method in fitting:  # the remedy works
        check_reinforce(Config(reinforce=replace(SETTINGS, method=method, reward=spec + "whole")))
    said = refused("grpo needs numbers per rollout", reward=spec + "steps", method="grpo")
    assert "step_local" in said
    check_reinforce(Config(reinforce=replace(SETTINGS, reward=spec + "steps")))
    refused(r"broken, called .*, fails: \S+mine.py, line 3: TypeError", reward=spec + "broken")


def test_a_part_of_a_sum_that_the_method_does_not_read_is_named(mine):
    spec = mine("def fn(records):\n    return [-len(r.text) for r in records]\n") + "fn"
    t = Reinforce(task="chain", level=3, reward=f"0.5 verified + 0.5 {spec}")
    assert fit.require_fit(t).endswith(f", of which step_local does not read {spec}")
    assert "does not read" not in fit.require_fit(replace(t, method="rloo"))


def test_questions_have_no_checker_of_steps(tmp_path, mine):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f'{{"question": "{i}?", "answer": {i}}}\n' for i in range(90)))
    said = refused("gives numbers per rollout on q.jsonl", task="", prompts=str(path))
    assert "rloo" in said
    check_reinforce(Config(reinforce=replace(SETTINGS, task="", prompts=str(path), method="rloo")))
    # It would be 0 of everything, without a word.
    for reward in ("verified", "0.5 verified + 0.5 answer"):
        refused(
            "nobody judges its steps; take 'answer'",
            **{"task": "", "prompts": str(path), "method": "rloo", "reward": reward},
        )
    # Without answers a reward of one's own is all that there can be.
    path2 = tmp_path / "open.jsonl"
    path2.write_text("".join(f'{{"question": "{i}?"}}\n' for i in range(90)))
    keys = {"task": "", "prompts": str(path2), "method": "rloo", "sft_steps": 0}
    refused("set a reward of your own", **keys)
    refused("has no right answers; set it to 0", **(keys | {"sft_steps": 2}))
    spec = mine("def fn(records): return [len(r.text) for r in records]")
    check_reinforce(Config(reinforce=replace(SETTINGS, **keys, reward=spec + "fn")))


def test_controls_that_cannot_work_are_refused():
    refused("keep_all_groups", reward="none")
    acts = {"reward": "none", "keep_all_groups": True, "entropy_coef": -0.1, "kl_coef": 0.0}
    check_reinforce(Config(reinforce=replace(SETTINGS, **acts)))
    refused("judges whole groups", reward="majority", method="vine")
    refused("scale it", reward="2 answer", method="implicit")
    refused("minibatches 3 does not divide", minibatches=3)
    refused("can be token, newline", steps="lines")


# In an iteration


@pytest.fixture(scope="module")
def lm():
    with jax.set_mesh(tiny.mesh()):
        yield tiny.lively(MODEL)


def collect(lm, **over):
    t = replace(SETTINGS, kl_coef=0.0, **over)
    return learn.collect_batch(MODEL, t, TOKENIZER, {"lm": lm}, None, 0, 0)


def test_every_method_takes_a_reward_of_ones_own(lm, mine):
    spec = mine(
        "def fn(records):\n"
        "    return {'rollouts': [len(r.text) / 9 for r in records],\n"
        "            'steps': [[len(s) for s in r.steps] for r in records]}\n"
    )
    r = collect(lm, reward=spec + "fn", method="rloo").rollouts
    lengths = np.array([len(record.text) for record in rewards.make_records(r, TOKENIZER)]) / 9
    for name in ("rloo", "step_local", "vine"):
        i = collect(lm, reward=spec + "fn", method=name, num_continuations=2)
        assert np.isfinite(i.advantage_bn).all() and METHODS[name]
        np.testing.assert_allclose(i.rewards.rollout_b, lengths, rtol=1e-6)
    i = collect(lm, reward=spec + "fn", method="rloo", steps="regex:[0-9]")
    want = lengths.reshape(-1, 2) - lengths.reshape(-1, 2)[:, ::-1]
    first_token = i.advantage_bn[:, 0].reshape(-1, 2)
    np.testing.assert_allclose(first_token, want, rtol=1e-5, atol=1e-6)


def test_an_abstaining_rollout_has_no_part(lm, mine):
    spec = mine("def fn(records): return [None if i % 4 == 0 else i for i in range(len(records))]")
    i = collect(lm, reward=spec + "fn", method="rloo", group_size=4)
    assert not i.advantage_bn[::4].any()
    # The others of the group: 1, 2, 3 have the baselines 2.5, 2, 1.5.
    np.testing.assert_allclose(i.advantage_bn[1:4, 0], [-1.5, 0, 1.5])


def test_truncated_rollouts_are_masked_on_request(lm):
    plain, masked = (
        collect(lm, reward="random", method="rloo", mask_truncated=m, keep_all_groups=True)
        for m in (False, True)
    )
    cut_b = ~plain.rollouts.ended_b
    assert cut_b.any()
    assert not masked.advantage_bn[cut_b].any() and not masked.batch["weights"][cut_b].any()
    assert plain.batch["weights"][cut_b].any()


def test_groups_without_signal_are_replaced(lm, mine):
    """A reward that tells every third rollout of all: refills end when enough groups have signal."""
    spec = mine(
        """
        CALLS = []
        def fn(records):
            CALLS.append(len(records))
            return [float(i == 0) for i in range(len(records))]
        """
    )
    keys = {"reward": spec + "fn", "method": "rloo", "num_prompts": 3, "group_size": 2}
    plain = collect(lm, **keys)
    assert plain.num_dropped_groups == 2  # the first group alone has signal
    filled = collect(lm, **keys, max_refills=5)
    assert filled.num_dropped_groups == 0 and filled.batch["weights"].any(axis=1).all()
    assert filled.num_tokens > 2 * plain.num_tokens  # all that was sampled is paid for
    assert len({p.question for p in filled.rollouts.problems}) == 3
    short = collect(lm, **keys, max_refills=1)
    assert short.num_dropped_groups == 1 and len(short.rollouts.prompts) == 6
    # On groups that have signal at once a refill changes nothing.
    always = mine("def fn(records): return [float(i % 2) for i in range(len(records))]") + "fn"
    keys["reward"] = always
    one, two = collect(lm, **keys), collect(lm, **keys, max_refills=3)
    assert all((one.batch[k] == two.batch[k]).all() for k in one.batch)


def test_the_kinds_of_the_table_are_those_of_the_methods():
    assert {m.family for m in METHODS.values()} - {"teacher"} == fit.NEEDS.keys()
    assert Reinforce().reward in rewards.REWARDS


@pytest.mark.parametrize(
    "arguments", ["prompts, completions, **kwargs", "data_source, solution_str, ground_truth, x=1"]
)
def test_a_function_of_another_trainer_is_told_how_it_is_called(mine, arguments):
    spec = mine(f"def fn({arguments}):\n    return 1.0\n") + "fn"
    with pytest.raises(UserError, match=r"fn takes \(.*\), and gets one list.*reward\(records\)"):
        judge(spec)


def test_what_a_reward_is_short_of_is_said(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = mine("def fn(records):\n    return [1.0] * len(records)\n").removesuffix(":")
    for spec, said in (
        ("0.5 verified + 0.5", "0.5 is a weight without a reward; write '0.5 NAME'"),
        (str(path), "is a file, with fn; add the name, as (.*mine.py:fn)$"),
        (str(tmp_path), "is a folder; write FILE.py:NAME of a file in it"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            rewards.parse_reward(spec)
    with pytest.raises(UserError) as raised:
        rewards.parse_reward(path)
    # The remedy works.
    assert judge(str(raised.value).rpartition("as ")[2]).rollout_b.tolist() == [1] * 4


def test_a_function_that_does_not_tell_its_arguments_is_called():
    assert rewards.takes_one(max)
    assert rewards.takes_one(lambda records, *, weight=1: 0)
    assert not rewards.takes_one(lambda prompts, completions, **more: 0)
