"""Error rates of the figures of a log: honest logs, also with clusters, duplicates, uneven lengths."""

import random

import numpy as np
import pytest
from test_logs import make_rows, write

from ramp.credit import log_figures, logs

# Problems' numbers of rollouts, and what hangs together in the log.
HONEST = {
    "plain": ([8] * 12, ""),
    "pairs": ([2] * 60, ""),
    "few problems": ([4] * 4, ""),
    "a judge's taste differs, few problems": ([40] * 7, "taste"),
    "a judge's taste differs": ([8] * 30, "taste"),
    "long ones are noisier": ([8] * 16, "noise"),
    "each is logged five times": ([6] * 10, "twice"),
    "one problem has most": ([100] + [4] * 20, "taste"),
}


def make_honest(rng, kind, sizes):
    """Rollouts whose reward is the answer and noise; right ones are longer."""
    vocabulary = [f"w{i}" for i in range(30)]
    rollouts = []
    for problem, size in enumerate(sizes):
        # One problem's rollouts are paid for this or that, the next one's for something else.
        taste = rng.normal(size=31) * (kind == "taste")
        for _ in range(size):
            right = bool(rng.random() < 0.5)
            has = rng.random(30) < 0.3
            filling = int(rng.integers(5, 30) + 10 * right)
            words = [word for word, there in zip(vocabulary, has, strict=True) if there]
            text = " ".join([*words, *["x"] * filling])
            noise = rng.normal() * (len(text) / 50 if kind == "noise" else 1)
            reward = right + noise + taste[:30] @ has + taste[30] * filling / 10
            tokens = tuple(rng.choice(vocabulary[:12], 12))
            advantages = tuple(np.repeat(rng.normal(size=4), 3))  # of four steps
            one = logs.LoggedRollout(
                f"q{problem}", text, reward, right, (), None, None, tokens, advantages
            )
            rollouts += [one] * (5 if kind == "twice" else 1)
    return rollouts


@pytest.mark.parametrize("name", HONEST)
def test_honest_logs_raise_an_alarm_in_one_of_twenty(name, monkeypatch, num_logs=40):
    """More than 6 of 40 happen once in 300 times at 5%."""
    monkeypatch.setattr(log_figures, "NUM_FLIPS", 99)
    sizes, kind = HONEST[name]
    alarms = np.zeros(3, int)
    for seed in range(num_logs):
        rng = np.random.default_rng([7, seed])
        rollouts = make_honest(rng, kind, sizes)
        alarms += (
            log_figures.measure_length_bias(rollouts, rng).p_value < 0.05,
            bool(log_figures.find_paid_words(rollouts, rng)),
            bool(log_figures.find_paid_tokens(rollouts, rng)),
        )
    assert max(alarms) <= max(6, 0.08 * num_logs), alarms


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honest_logs_over_many_seeds(name, monkeypatch):
    """`pytest -n 0 -m slow tests/credit/test_log_figures.py`: at most 8% of 400 logs."""
    test_honest_logs_raise_an_alarm_in_one_of_twenty(name, monkeypatch, num_logs=400)


def test_length_words_and_tokens_that_are_paid_are_found(tmp_path):
    rows = make_rows(400, 0, per_char=0.004)
    found = log_figures.audit_log(logs.read_log(write(tmp_path / "a.jsonl", rows)))
    assert found.length.p_value < 0.01
    assert found.length.per_100_chars == pytest.approx(0.4, abs=0.02)
    rows = make_rows(400, 1, word=0.3)
    found = log_figures.audit_log(logs.read_log(write(tmp_path / "b.jsonl", rows)))
    assert [word.word for word in found.words] == ["well"]
    assert found.words[0].more == pytest.approx(0.3, abs=0.08)
    rng = random.Random(2)
    rows = [
        {"prompt": f"q{i // 4}", "completion": " ".join(t), "tokens": t,
         "advantages": [rng.gauss(i % 4, 0.3) + 0.5 * (token == "paid") for token in t]}
        for i, t in ((i, rng.sample(["paid", "a", "b", "c", "d"], 4)) for i in range(80))
    ]  # fmt: skip
    found = log_figures.audit_log(logs.read_log(write(tmp_path / "c.jsonl", rows)))
    assert [word.word for word in found.tokens] == ["paid"]
    # An effect that seven problems share is found in seven problems of forty.
    rows = make_rows(280, 3, per_char=0.004)
    rows = [row | {"prompt": f"q{i // 40}"} for i, row in enumerate(rows)]
    found = log_figures.audit_log(logs.read_log(write(tmp_path / "d.jsonl", rows)))
    assert found.length.p_value < 0.05 and found.length.num_problems == 7


def test_what_a_whole_rollout_got_is_no_tokens_own(tmp_path):
    """An advantage that is the same for all tokens pays for none of them."""
    rows = [
        {"prompt": f"q{i // 4}", "completion": "a b", "tokens": ["a", "paid" if i % 2 else "b"],
         "advantages": [float(i % 2), float(i % 2)]}
        for i in range(80)
    ]  # fmt: skip
    assert not log_figures.audit_log(logs.read_log(write(tmp_path / "a.jsonl", rows))).tokens


@pytest.mark.parametrize("sizes", [[1] * 40, [8] * 10, [30] * 5, [60] + [2] * 15])
@pytest.mark.parametrize("mean", [0.06, 0.5])
def test_intervals_of_shares_hold_the_truth(sizes, mean):
    """Problems differ as a beta distribution does: 95% means 93% of 400 at least."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        chances = rng.beta(2 * mean, 2 * (1 - mean), len(sizes))
        cases = [
            (f"q{i}", bool(rng.random() < chance))
            for i, (chance, size) in enumerate(zip(chances, sizes, strict=True))
            for _ in range(size)
        ]
        share = log_figures.estimate_share(cases)
        held += share.low <= mean <= share.high
    assert held >= 0.93 * 400


def test_shares_that_one_problem_or_no_case_stands_for():
    assert log_figures.estimate_share([]) is None
    one = log_figures.estimate_share([("q", True)] * 9)
    assert (one.value, one.low, one.high) == (1, 0, 1)
    assert str(log_figures.estimate_share([("a", True), ("b", True)])) == "100% [16%, 100%] of 2"
