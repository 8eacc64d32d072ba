"""Real formats: hand-made fixtures always, the files themselves where RAMP_SHARED_DATA names their directory."""

import json
import os
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from experiments.credit import data, mistakes
from ramp.errors import UserError
from ramp.tasks import gsm8k
from ramp.tasks.calculator import calculate

SHARED = os.environ.get("RAMP_SHARED_DATA")
needs_data = pytest.mark.skipif(not SHARED, reason="RAMP_SHARED_DATA is not set")

RECORD = {
    "question": "Natalia sold clips to 48 friends in April, and half as many in May. How many altogether?",
    "answer": "She sold 48/2 = <<48/2=24>>24 in May.\nShe sold 48+24 = <<48+24=72>>72 altogether.\n#### 72",
}


def test_a_gsm8k_file_is_a_task(tmp_path):
    path = tmp_path / "gsm.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    task = gsm8k.load_task(path)
    problem = task.sample(5, 1)
    assert problem.answer == "72" and problem.level == 2
    assert task.judge(problem, task.solution(problem), "72").verified
    said = ["<<48/2=25>>25", "<<48+25=73>>73"]
    verdict = task.judge(problem, said, "73")
    assert (
        [s.why for s in verdict.steps] == ["wrong value", ""]
        and not verdict.final_right
        and verdict.answer.right
    )
    assert (
        task.judge(problem, ["<<48/2=24>>24", "<<48+777=825>>825"], "72").steps[1].why
        == "wrong operand"
    )
    assert task.judge(problem, ["<<48/x=24>>24"], "72").steps[0].why == "malformed"
    assert not task.judge(problem, ["no note here"], "72").verified
    assert not task.judge(problem, list(problem.gold), "seventy").final_right


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"question": "a"}', "question"),
        ('{"question": "a", "answer": "b"}', "####"),
        ("[", "object"),
    ],
)
def test_a_bad_gsm8k_file_is_named(tmp_path, line, word):
    path = tmp_path / "gsm.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=word):
        gsm8k.load_task(path)


def test_answers_as_people_write_them():
    problem = gsm8k.Problem("gsm8k", 0, 0, "Pay $1,200 for 3.", (), "1,200")
    for said in ("1200", "$1,200", "1200.00", "1,200."):
        assert gsm8k.judge(problem, [], said).final_right
    assert gsm8k.read_notes("a <<1+1=2>> b <<4/2=2.0=2>>") == [("1+1", "2"), ("4/2", "2")]
    assert gsm8k.is_same(Fraction(10, 3), "3.33") and not gsm8k.is_same(Fraction(10, 3), "3.3")


ARITHMETIC = [
    'This equation can be written as "A - B", where A = (2 * 3 + 1) and B = (4 - -1).',
    "Let's calculate A = (2 * 3 + 1) = (6 + 1) = 7.",
    "Let's calculate B = (4 - -1) = (4 + 1) = 5.",
    "Then, the final equation is A - B = 7 - 5 = 2. So the answer is 2",
]


SORTING = [
    'The first letter: "bee": "b" (2). "cat": "c" (3). "ant": "a" (1). "bat": "b" (2).',
    'We now have: (1) "ant" < (2) ["bee" ? "bat"] < (3) "cat".',
    'Now let us sort this subpart ["bee" ? "bat"] by their second letters. The second letter: "bee": "e" (5). "bat": "a" (1).',
    'We now have: (1) "bat" < (5) "bee" for the subpart. Hence, we have "ant" < "bat" < "bee" < "cat".',
    "I have now sorted all the words. The answer is ant bat bee cat",
]


CHECKERS = {
    "arithmetic": (mistakes.arithmetic_error, "((2 * 3 + 1) - (4 - -1)) =", ARITHMETIC),
    "sorting": (mistakes.sorting_error, "bee cat ant bat", SORTING),
}


@pytest.mark.parametrize(
    ("kind", "step", "old", "new", "error"),
    [
        ("arithmetic", 1, "", "", None),
        ("arithmetic", 1, "(6 + 1)", "(5 + 1)", 1),
        ("arithmetic", 2, "= 5.", "= 3.", 2),
        ("arithmetic", 3, "= 2.", "= 1.", 3),
        ("arithmetic", 3, "is 2", "is 9", 3),
        ("sorting", 0, "", "", None),
        ("sorting", 0, '"c" (3)', '"c" (4)', 0),
        ("sorting", 1, ' < (3) "cat"', "", 1),
        ("sorting", 2, '"e" (5)', '"a" (1)', 2),
        ("sorting", 3, '(1) "bat" < (5) "bee" for', '(5) "bee" < (1) "bat" for', 3),
        ("sorting", 3, '"ant" < "bat" < "bee"', '"ant" < "bee" < "bat"', 3),
        ("sorting", 4, "bat bee", "bee bat", 4),
    ],
)
def test_the_first_fault_of_a_trace_is_found(kind, step, old, new, error):
    check, question, steps = CHECKERS[kind]
    assert old in steps[step]
    steps = [s.replace(old, new) if old and i == step else s for i, s in enumerate(steps)]
    assert check(question, steps) == error


def test_missing_data_is_said(tmp_path):
    with pytest.raises(UserError, match="--data"):
        data.big_bench_mistake(tmp_path)


@needs_data
def test_checkers_on_the_labelled_traces():
    found = data.big_bench_mistake(Path(SHARED) / "process")
    assert all(scores["consistent"]["f1"] >= 0.95 for scores in found.values())


@needs_data
@pytest.mark.slow
def test_real_model_solutions():
    found = data.gsm8k_solutions(Path(SHARED) / "process" / "gsm8k_example_model_solutions.jsonl")
    assert (
        found["parsed"] / found["annotated_lines"] >= 0.999
        and found["answer_agrees"] == found["solutions"]
    )


def corrupt(problem, rng):
    """(kind, number of the step, steps): published solutions with one fault each."""
    lines = list(problem.gold)
    notes = [k for k, line in enumerate(lines) if re.search("=[0-9]+>>", line)]
    if notes:
        k = rng.choice(notes)
        wrong = re.sub("=([0-9]+)>>", lambda m: f"={int(m[1]) + 7}>>", lines[k], count=1)
        yield "note", k, [*lines[:k], wrong, *lines[k + 1 :]]
    plain = [gsm8k.NOTE.sub("", line) for line in lines]
    equations = [k for k, line in enumerate(plain) if re.search("= *[$]?[0-9]+", line)]
    if equations and gsm8k.judge(problem, plain, problem.answer).verified:
        k = rng.choice(equations)
        wrong = re.sub(
            "(= *[$]?)([0-9]+)(?!.*=)", lambda m: m[1] + str(int(m[2]) + 7), plain[k], count=1
        )
        if wrong != plain[k]:
            yield "plain", k, [*plain[:k], wrong, *plain[k + 1 :]]
    for k, line in enumerate(lines):
        if found := re.search(r"<<([0-9.]+)\+([0-9.]+)=[0-9.]+>>[0-9.,]*", line):
            value = float(calculate(f"{found[1]}-{found[2]}"))
            wrong = line.replace(found[0], f"<<{found[1]}-{found[2]}={value:g}>>{value:g}")
            yield "sum made a difference", k, [*lines[:k], wrong, *lines[k + 1 :]]
            return


@needs_data
def test_verdicts_on_published_solutions_and_on_ones_with_a_fault():
    """Bars for the figures of RESULTS.md, on GSM8K's test set; `-s` prints them."""
    problems = gsm8k.load_problems(Path(SHARED) / "math" / "gsm8k_test.jsonl")
    rng = random.Random(0)
    named, seen, count = Counter(), Counter(), Counter()
    for problem in problems:
        verified = gsm8k.judge(problem, problem.gold, problem.answer).verified
        count["published"] += 1
        named["published"] += verified
        for steps in ([], [f"The answer is {problem.answer}."]):
            assert not gsm8k.judge(problem, steps, problem.answer).verified
        if not verified:
            continue
        for kind, k, steps in corrupt(problem, rng):
            error = gsm8k.judge(problem, steps, problem.answer).first_error
            count[kind] += 1
            named[kind] += error == k
            seen[kind] += error is not None
    for kind in count:
        print(f"{kind}: {named[kind]} of {count[kind]}; seen somewhere {seen[kind]}")
    rate = {kind: named[kind] / count[kind] for kind in count}
    assert rate["published"] >= 0.9 and rate["note"] >= 0.99 and rate["plain"] >= 0.98
    assert rate["sum made a difference"] >= 0.9
