"""Word problems from templates, solved in GSM8K's grammar of calculator notes (Cobbe et al. 2021).

    Ann has 12 eggs. She buys 5 more. Then she gives away 3. How many eggs has she now?
    ->   <<12+5=17>>17 | <<17-3=14>>14 | 14

Some problems hold a sentence whose number plays no part. Each operation has several wordings; the
last of each is kept out of training and makes the slice `reworded`.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from ramp.errors import UserError
from ramp.tasks.calculator import (
    NUMBER,
    NotArithmetic,
    calculate,
    list_operands,
    parse_answer,
    parse_number,
)
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

NAME = "words"
# All women, so that "she" and "her" fit every name.
PEOPLE = ("Ann", "Eve", "Ida", "Joan", "Mary", "Ruth", "Sara", "Zoe")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
# The last one of each operation is kept out of training, for the slice `reworded`.
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
# Sentences whose number plays no part.
NOISE = (
    "Her brother is {n} years old.",
    "Her house has {n} windows.",
    "It is {n} degrees outside.",
)
NOTE = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")


@dataclass(frozen=True)
class Story:
    """All that a problem's words are made from."""

    person: str
    thing: str
    start: int
    ops: tuple[tuple[str, int], ...]  # (sign, operand)
    wordings: tuple[float, ...]  # for each operation a number in [0, 1) that picks its wording
    noise: tuple[str, int] | None  # a sentence without a part in it, and where it stands


def sample(seed: int, level: int) -> Problem:
    """`level` operations on numbers that stay between 1 and 200; `gold` is the `Story`."""
    if level < 1:
        raise UserError(f"a word problem has at least one operation, not {level}")
    rng = make_rng(NAME, seed, level)
    value = start = rng.randint(2, 30)
    ops = []
    # The next operation depends on the value so far, which has to stay small and whole.
    for _ in range(level):
        op, operand = _draw_operation(rng, value)
        ops.append((op, operand))
        value = _apply(value, op, operand)
    # After the sentence of the start at the earliest, before the question at the latest.
    noise = None
    if rng.random() < 0.3:
        sentence = rng.choice(NOISE).format(n=rng.randint(2, 40))
        noise = (sentence, rng.randint(0, level))
    person = rng.choice(PEOPLE)
    thing = rng.choice(THINGS)
    wordings = tuple(rng.random() for _ in ops)
    story = Story(person, thing, start, tuple(ops), wordings, noise)
    return _make_problem(seed, story, held_out=False)


def _draw_operation(rng, value) -> tuple[str, int]:
    """A sign and an operand that keep the value a whole number between 1 and 200."""
    divisors = [d for d in range(2, 10) if value % d == 0 and value > d]
    operands = {"+": range(2, 31)}
    if value > 3:
        operands["-"] = range(2, min(value, 31))
    if value <= 40:  # times 5 at most: 200
        operands["*"] = range(2, 6)
    if divisors:
        operands["/"] = divisors
    op = rng.choice(list(operands))
    return op, rng.choice(operands[op])


def _apply(value, op, operand):
    return int(calculate(f"{value}{op}{operand}"))


def _make_problem(seed, story, held_out):
    value = story.start
    sentences = [f"{story.person} has {story.start} {story.thing}."]
    for (op, operand), u in zip(story.ops, story.wordings, strict=True):
        *usual, unusual = WORDINGS[op]
        wording = unusual if held_out else usual[int(u * len(usual))]
        sentences.append(wording.format(n=operand))
        value = _apply(value, op, operand)
    if story.noise:
        sentence, place = story.noise
        sentences.insert(1 + place, sentence)
    question = " ".join([*sentences, f"How many {story.thing} has she now?"])
    return Problem(NAME, seed, len(story.ops), question, story, str(value))


def reword(problem: Problem) -> Problem:
    """The same story in the wordings kept out of training."""
    return _make_problem(problem.seed, problem.gold, held_out=True)


def solution(problem: Problem) -> list[str]:
    """A calculator note for each operation."""
    value = problem.gold.start
    steps = []
    for op, operand in problem.gold.ops:
        after = _apply(value, op, operand)
        steps.append(f"<<{value}{op}{operand}={after}>>{after}")
        value = after
    return steps


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """A step is right when its note does an operation whose turn it may be on the value before it.

    That is the next one, or one that may change places with all before it: 12+5-3 is also 12-3+5.
    The words around the note do not matter.
    """
    ops = problem.gold.ops
    left = list(ops)
    value = Fraction(problem.gold.start)
    known = {value, *(Fraction(operand) for _, operand in ops)}
    verdicts = []
    for text in steps:
        try:
            expression, stated = _read_note(text)
            op = _find_operation(left, value, expression)
            verdicts.append(_judge_note(op, value, expression, stated, known))
        except NotArithmetic:
            verdicts.append(Step(False, "malformed"))
            del left[:1]
            continue
        if op:
            left.remove(op)
        value = stated  # right or wrong: the next step goes on from here
        known.add(abs(stated))  # a minus before a number is an operation
    follows = _write(value) if len(steps) == len(ops) else None
    # "$1,200" and "1200.0" are the same answer; what is no number is compared as it stands.
    with suppress(NotArithmetic):
        answer = answer and _write(parse_answer(answer, problem.question))
    return close_steps(verdicts, answer, follows, problem.answer)


def _find_operation(left: list, value, expression) -> tuple[str, int] | None:
    """The operation of those left that an expression does; the next one where it does none."""
    used, result = sorted(list_operands(expression)), calculate(expression)
    for i, (sign, operand) in enumerate(left):
        # Sums and differences change places with each other, products and quotients too.
        if any((sign in "+-") != (other in "+-") for other, _ in left[:i]):
            break
        is_used = used == sorted((abs(value), Fraction(operand)))
        if is_used and result == calculate(f"{_write(value)}{sign}{operand}"):
            return left[i]
    return left[0] if left else None


def _read_note(text) -> tuple[str, Fraction]:
    """The expression of a step's one note and its value; the number behind it must be the same."""
    # Two notes in a step would leave open which of them is the step.
    notes = NOTE.findall(text)
    if len(notes) != 1:
        raise NotArithmetic(text)
    expression, stated = notes[0]
    behind = re.search(r">>\s*(-?\$?(?:[0-9]+/[0-9]+|NUMBER))".replace("NUMBER", NUMBER), text)
    if behind and parse_number(behind[1]) != parse_number(stated):
        raise NotArithmetic(text)
    return expression, parse_number(stated)


def _judge_note(op: tuple[str, int] | None, value, expression, stated, known: set) -> Step:
    """A note as the operation `op` on `value`; None: there is no operation left."""
    used = list_operands(expression)
    result = calculate(expression)  # exact: a fraction where the division leaves a remainder
    if not set(used) <= known:
        return Step(False, "wrong operand")
    # All operations are done.
    if op is None:
        return Step(False, "irrelevant")
    # Operands in any order: 5+12 is as good as 12+5, and 5-12 has another result.
    sign, operand = op
    if sorted(used) != sorted((abs(value), Fraction(operand))):
        return Step(False, "irrelevant" if abs(value) not in used else "wrong operand")
    if result != calculate(f"{_write(value)}{sign}{operand}"):
        return Step(False, "wrong operation")
    return Step(True) if stated == result else Step(False, "wrong value")


def _write(value):
    """A whole number as it is, another one as a fraction in brackets, fit for `calculate`."""
    return str(value) if value.denominator == 1 else f"({value})"


TASK = Task(NAME, sample, solution, judge, reword)
