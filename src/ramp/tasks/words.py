"""Word problems from templates, solved in GSM8K's grammar of calculator notes (Cobbe et al. 2021).

    Ann has 12 eggs. She buys 5 more. Then she gives away 3. How many eggs has she now?
    ->   <<12+5=17>>17 | <<17-3=14>>14 | 14

Some problems hold a sentence whose number plays no part. Each operation has several wordings; the last of each is kept
out of training and makes the slice `reworded`.
"""

import re
from collections.abc import Sequence
from random import Random

from ramp.errors import UserError
from ramp.tasks.calculator import NotArithmetic, calculate, number, operands
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

NAMES = ("Ann", "Eve", "Ida", "Joan", "Mary", "Ruth", "Sara", "Zoe")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
WORDINGS = {
    "+": (
        "She buys {n} more.",
        "Then she finds {n} more.",
        "A friend gives her {n}.",
        "Another {n} come in the post.",
    ),
    "-": (
        "She gives away {n}.",
        "Then she loses {n}.",
        "She sells {n} of them.",
        "A thief takes {n} from her.",
    ),
    "*": (
        "Now she gets {n} times as many.",
        "Her pile grows to {n} times its size.",
        "She ends up with {n} times that number.",
    ),
    "/": (
        "She keeps one of {n} equal parts.",
        "She splits them evenly among {n} boxes and keeps one box.",
        "She shares them fairly with {n} people in all.",
    ),
}
NOISE = (
    "Her brother is {n} years old.",
    "Her house has {n} windows.",
    "It is {n} degrees outside.",
)
NOTE = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")


def sample(seed: int, level: int) -> Problem:
    """`level` operations on numbers that stay between 1 and 200."""
    if level < 1:
        raise UserError(f"a word problem has at least one operation, not {level}")
    r = make_rng("words", seed, level)
    value = start = r.randint(2, 30)
    ops = []
    for _ in range(level):
        op, operand = _operation(r, value)
        ops.append((op, operand))
        value = int(calculate(f"{value}{op}{operand}"))
    noise = (r.choice(NOISE), r.randint(2, 40), r.randint(0, level)) if r.random() < 0.3 else None
    story = (r.choice(NAMES), r.choice(THINGS), tuple(r.random() for _ in ops), noise)
    return _make(seed, start, tuple(ops), story, held_out=False)


def _operation(r: Random, value: int) -> tuple[str, int]:
    divisors = [d for d in range(2, 10) if value % d == 0 and value > d]
    kinds = ["+"] + ["-"] * (value > 3) + ["*"] * (value <= 40) + ["/"] * bool(divisors)
    op = r.choice(kinds)
    operands = {"+": range(2, 31), "-": range(2, min(value, 31)), "*": range(2, 6), "/": divisors}
    return op, r.choice(operands[op])


def _make(seed: int, start: int, ops: tuple, story: tuple, held_out: bool) -> Problem:
    name, thing, which, noise = story
    told = [f"{name} has {start} {thing}."]
    for (op, operand), u in zip(ops, which, strict=True):
        wordings = WORDINGS[op]
        told.append(
            (wordings[-1] if held_out else wordings[int(u * (len(wordings) - 1))]).format(n=operand)
        )
    if noise:
        told.insert(1 + noise[2], noise[0].format(n=noise[1]))
    value = start
    for op, operand in ops:
        value = int(calculate(f"{value}{op}{operand}"))
    question = " ".join([*told, f"How many {thing} has she now?"])
    return Problem("words", seed, len(ops), question, (start, ops, story), str(value))


def reword(problem: Problem) -> Problem:
    start, ops, story = problem.gold
    return _make(problem.seed, start, ops, story, held_out=True)


def solution(problem: Problem) -> list[str]:
    value, steps = problem.gold[0], []
    for op, operand in problem.gold[1]:
        after = int(calculate(f"{value}{op}{operand}"))
        steps.append(f"<<{value}{op}{operand}={after}>>{after}")
        value = after
    return steps


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Step k is right when its note does operation k on the value stated last, whatever words stand around it."""
    start, ops, _ = problem.gold
    value, verdicts, known = (
        number(str(start)),
        [],
        {number(str(start)), *(number(str(n)) for _, n in ops)},
    )
    for k, text in enumerate(steps):
        try:
            expression, stated = _read(text)
            verdicts.append(
                _step(ops[k] if k < len(ops) else None, value, expression, stated, known)
            )
        except NotArithmetic:
            verdicts.append(Step(False, "malformed"))
            continue
        value = stated
        known.add(stated)
    follows = _plain(value) if len(steps) == len(ops) else None
    try:
        answer = answer and _plain(number(answer))
    except NotArithmetic:
        answer = answer or None
    return close_steps(verdicts, answer, follows, problem.answer)


def _read(text: str) -> tuple[str, object]:
    """The expression of a step's one note and the value after it; a note whose two results differ is malformed."""
    found = NOTE.findall(text)
    tail = re.search(r">>\s*\$?([-\d.,/]+)", text)
    if len(found) != 1 or (tail and number(tail[1]) != number(found[0][1])):
        raise NotArithmetic(text)
    return found[0][0], number(found[0][1])


def _step(op: tuple[str, int] | None, value, expression: str, stated, known: set) -> Step:
    used, result = operands(expression), calculate(expression)
    if not set(used) <= known:
        return Step(False, "wrong operand")
    if op is None:
        return Step(False, "irrelevant")
    want = sorted((value, number(str(op[1]))))
    if sorted(used) != want:
        return Step(False, "irrelevant" if value not in used else "wrong operand")
    if result != calculate(f"{_plain(value)}{op[0]}{op[1]}"):
        return Step(False, "wrong operation")
    return Step(True) if stated == result else Step(False, "wrong value")


def _plain(value) -> str:
    return (
        str(value.numerator)
        if value.denominator == 1
        else f"({value.numerator}/{value.denominator})"
    )


TASK = Task("words", sample, solution, judge, reword)
