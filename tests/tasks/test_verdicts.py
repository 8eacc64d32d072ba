"""Verdicts on their own terms: any valid order, values, ASCII digits, abstention, one fault found."""

import json
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.credit import mistakes
from ramp.tasks import TASKS, Step, Verdict, addition, chain, gsm8k, words
from ramp.tasks.calculator import NotArithmetic, parse_answer, parse_number
from ramp.tasks.protocol import NO_CLAIM, UNCHECKED, Problem

seeds = st.integers(0, 10**6)
levels = st.integers(1, 7)
# What a solution may be made of, and what has confused readers of numbers.
pieces = st.sampled_from(
    [*"0123456789+-*/=<>().,$%x|~ ", "<<", ">>", "eggs", "\u0663", "\uff13", "\u00b2", "\u00bd"]
)
scribble = st.lists(pieces, max_size=25).map("".join)

CLIPS = gsm8k.Problem(
    "gsm8k",
    0,
    2,
    "Natalia sold clips to 48 friends in April, and half as many in May. How many altogether?",
    (
        "She sold 48/2 = <<48/2=24>>24 in May.",
        "She sold 48+24 = <<48+24=72>>72 altogether.",
    ),
    "72",
)


def ask_clips(*steps, answer="72"):
    return gsm8k.judge(CLIPS, steps, answer)


# --- orders


def draw_order(ops, may_pass, rng):
    """Operations in an order in which each may pass all those before it that are left."""
    left, order = list(ops), []
    while left:
        free = [i for i in range(len(left)) if all(may_pass(left[i], o) for o in left[:i])]
        order.append(left.pop(rng.choice(free)))
    return order


@given(seeds, levels)
def test_a_chain_in_any_order_that_keeps_its_value(seed, level):
    problem = chain.sample(seed, level)
    value, ops = problem.gold

    def may_pass(a, b):  # oracle: sums with sums, products with products
        return (a[1] == "*") == (b[1] == "*")

    steps = []
    for label, op, operand in draw_order(ops, may_pass, random.Random(seed)):
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[op] % 10
        steps.append(f"{label}{value}")
    assert chain.judge(problem, steps, problem.answer).verified


def test_operations_that_do_not_commute_keep_their_order():
    problem = chain.make(3, (("a", "+", 4), ("b", "*", 2), ("c", "-", 1)))
    assert chain.judge(problem, ["b6", "a0", "c9"], "9").first_error == 0
    assert chain.judge(problem, ["a7", "b4", "c3"], "3").verified


@given(seeds, levels, st.randoms(use_true_random=False))
def test_columns_in_any_order(seed, level, rng):
    problem = addition.sample(seed, level)
    steps = addition.solution(problem)
    rng.shuffle(steps)
    assert addition.judge(problem, steps, problem.answer).verified


@given(seeds, levels)
def test_words_in_any_order_that_keeps_the_value(seed, level):
    problem = words.sample(seed, level)
    value = Fraction(problem.gold.start)

    def may_pass(a, b):
        return (a[0] in "*/") == (b[0] in "*/")

    steps = []
    for op, n in draw_order(problem.gold.ops, may_pass, random.Random(seed)):
        after = {"+": value + n, "-": value - n, "*": value * n, "/": value / n}[op]
        before = f"({value})" if value.denominator > 1 else value
        steps.append(f"<<{before}{op}{n}={after}>>{after}")
        value = after
    if all("(" not in step and "/" not in step.split("=")[1] for step in steps):
        assert words.judge(problem, steps, problem.answer).verified


def test_twelve_and_five_less_three():
    story = words.Story("Ann", "eggs", 12, (("+", 5), ("-", 3)), (0.0, 0.0), None)
    problem = Problem("words", 0, 2, "Ann has 12 eggs ...", story, "14")
    assert words.judge(problem, ["<<12-3=9>>9", "<<9+5=14>>14"], "14").verified
    assert words.judge(problem, ["<<12+5=17>>17", "<<17-3=14>>14"], "14 eggs").verified
    assert words.judge(problem, ["<<12-5=7>>7", "<<7+3=10>>10"], "10").first_error == 0


# --- faults


@given(st.sampled_from(["chain", "addition", "words"]), seeds, levels, st.data())
def test_one_corrupted_step_is_found(name, seed, level, data):
    task = TASKS[name]
    problem = task.sample(seed, level)
    steps = task.solution(problem)
    k = data.draw(st.integers(0, len(steps) - 1))
    *_, last = re.finditer("[0-9]", steps[k])
    digit = data.draw(st.sampled_from("0123456789".replace(last[0], "")))
    steps[k] = steps[k][: last.start()] + digit + steps[k][last.end() :]
    verdict = task.judge(problem, steps, problem.answer)
    assert verdict.first_error == k and not verdict.verified


@given(st.sampled_from(["paths", "swaps"]), seeds, st.integers(2, 7), st.data())
def test_one_step_too_many_or_twice_is_found(name, seed, level, data):
    task = TASKS[name]
    problem = task.sample(seed, level)
    steps = task.solution(problem)
    k = data.draw(st.integers(0, len(steps) - 1))
    steps.insert(k, steps[k])
    verdict = task.judge(problem, steps, problem.answer)
    assert verdict.first_error == k + 1 and not verdict.verified


@given(
    st.sampled_from(sorted(TASKS)), seeds, levels, st.sampled_from(["\u0660", "\uff10", "\u0966"])
)
def test_digits_are_those_of_ascii(name, seed, level, zero):
    task = TASKS[name]
    problem = task.sample(seed, level)
    foreign = {ord("0") + n: chr(ord(zero) + n) for n in range(10)}
    steps = [step.translate(foreign) for step in task.solution(problem)]
    verdict = task.judge(problem, steps, problem.answer.translate(foreign))
    if name != "paths":  # has no digits
        assert not verdict.final_right and not any(step.right for step in verdict.steps)


@given(st.sampled_from([*sorted(TASKS), "gsm8k"]), seeds, st.lists(scribble, max_size=5), scribble)
def test_no_scribble_raises_or_is_verified(name, seed, steps, answer):
    task, problem = TASKS.get(name), CLIPS
    if task:
        problem = task.sample(seed, 3)
    verdict = (task or gsm8k).judge(problem, steps, answer)
    assert len(verdict.steps) == len(steps)
    assert not verdict.verified or steps


# --- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("72.00", 72),
        ("$72", 72),
        ("-$7.50", Fraction(-15, 2)),
        ("1,200", 1200),
        ("1,200,300.5", Fraction(2400601, 2)),
        ("72 clips", 72),
        ("72 dollars.", 72),
        ("50%", 50),
        ("3/4", Fraction(3, 4)),
        ("7,2", None),
        ("1,2000", None),
        ("48+48/2", None),
        ("144/2", None),
        ("72 or 73", None),
        ("72 million clips", None),
        ("72 certainly", None),
        ("\uff17\uff12", None),
        ("1e3", None),
        ("", None),
    ],
)
def test_an_answer_is_a_value(text, value):
    if value is None:
        with pytest.raises(NotArithmetic):
            parse_answer(text, CLIPS.question)
    else:
        assert parse_answer(text, CLIPS.question) == value


@pytest.mark.parametrize(
    "text", ["72.009", "7,2", "48+48/2", "72.4", "172", "72 or 73", "\u0667\u0662"]
)
def test_these_are_not_72(text):
    assert not gsm8k.judge(CLIPS, CLIPS.gold, text).final_right
    assert not gsm8k.judge(CLIPS, CLIPS.gold, text).verified


def test_a_number_has_a_value_of_its_own():
    assert parse_number("50%") == Fraction(1, 2)
    with pytest.raises(NotArithmetic):
        parse_number("72 clips")


# --- abstention


def test_what_nobody_checked_is_not_verified():
    assert not Verdict((UNCHECKED,), Step(True), True).verified
    assert not Verdict((Step(True),), UNCHECKED, True).verified
    assert Verdict((NO_CLAIM, Step(True)), Step(True), True).verified
    assert Verdict((UNCHECKED,), Step(True), True).first_error is None


def test_gsm8k_gives_no_credit_for_what_is_not_shown():
    for steps in ([], ["The answer is 72."], ["Let us think.", "So it is 72 clips."]):
        verdict = ask_clips(*steps)
        assert verdict.final_right and not verdict.verified and verdict.first_error is None
    assert ask_clips(
        "She sold 48/2 = 24 in May.", "Together 48 clips + 24 clips = 72 clips."
    ).verified
    # A wrong number in a plain equation, and one in words alone.
    assert ask_clips("She sold 48/2 = 25 in May.", "48 + 25 = 73", answer="73").first_error == 0
    assert ask_clips("She sold 25 in May.", "So 48 + 25 = 73.", answer="73").steps[0] == UNCHECKED
    # A sum made a difference: the published numbers under another sign.
    wrong = ask_clips(CLIPS.gold[0], "She sold 48+24 = <<48-24=24>>24 altogether.")
    assert wrong.steps[1].why == "wrong operation" and not wrong.verified
    # Another route to the right answer is right; elsewhere nobody can say.
    assert ask_clips("<<48*3=144>>144", "<<144/2=72>>72").verified
    assert ask_clips("<<48*3=144>>144", answer="144").steps[0] == UNCHECKED
    assert ask_clips("1+1=2", answer=None).steps[0] == UNCHECKED
    assert ask_clips("<<48*3=144.009>>144", answer="144").steps[0].why == "wrong value"


def test_checkers_abstain_on_traces_in_another_manner():
    for name in mistakes.CHECKERS:
        for steps in (["It is 7 + 3 = 11."], [json.dumps({"a": 1})] * 3, []):
            verdicts = mistakes.judge_trace(name, "( [ (", steps)
            assert verdicts == [UNCHECKED] * len(steps)


DYCK = [
    "We should process each input one by one and keep track of the stack configuration.",
    "stack: empty",
    "( ; stack: (",
    "[ ; stack: ( [",
    "] ; stack: (",
    'Now, we have reached the end. The final stack is "(".',
    'We will need to pop out "(" one by one in that order.',
    'So, we need ")". So the answer is )',
]


@pytest.mark.parametrize(
    ("step", "old", "new", "error"),
    [
        (0, "", "", None),
        (3, "( [", "[ (", 3),
        (4, "(", "empty", 4),
        (4, "] ;", ") ;", 4),
        (5, '"("', '"["', 5),
        (6, '"("', '"[" "("', 6),
        (7, "is )", "is ]", 7),
    ],
)
def test_the_first_fault_of_a_dyck_trace(step, old, new, error):
    steps = [s.replace(old, new) if old and i == step else s for i, s in enumerate(DYCK)]
    verdicts = mistakes.judge_trace("dyck_languages", "( [ ]", steps)
    assert mistakes.find_first_error(verdicts) == error and len(verdicts) == len(steps)
