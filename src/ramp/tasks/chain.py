"""Chain arithmetic: a digit goes through `level` labelled operations modulo 10, one a step.

    3 c+4 d*2 e-1   ->   c7 | d4 | e3 | 3

A step names the operation it does and states the value after it. `*5`, `*0` and the modulus let two
wrong steps cancel, so luck is common: this is the task on which credit is measured. It is small
enough for exact values.
"""

import re
import string
from collections.abc import Sequence

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

NAME = "chain"
OPS = "+-*"  # no division: modulo 10 it has no result for half of the digits
LETTERS = string.ascii_lowercase


def apply(value: int, op: str, operand: int) -> int:
    """The digit after one operation modulo 10."""
    results = {"+": value + operand, "-": value - operand, "*": value * operand}
    return results[op] % 10


def sample(seed: int, level: int) -> Problem:
    """`level` operations on a random digit."""
    if not 1 <= level <= len(LETTERS):
        raise UserError(f"a chain has 1 to {len(LETTERS)} operations, not {level}")
    rng = make_rng(NAME, seed, level)
    # The labels begin anywhere in the alphabet, so that no label belongs to a position.
    first = rng.randint(0, len(LETTERS) - level)
    start = rng.randrange(10)
    labels = LETTERS[first : first + level]
    ops = [(label, rng.choice(OPS), rng.randrange(10)) for label in labels]
    return make(start, tuple(ops), seed)


def make(start: int, ops: tuple[tuple[str, str, int], ...], seed: int = 0) -> Problem:
    """The problem with these operations (label, sign, operand); `gold` is `(start, ops)`."""
    value = start
    words = [str(start)]
    for label, op, operand in ops:
        value = apply(value, op, operand)
        words.append(f"{label}{op}{operand}")
    return Problem(NAME, seed, len(ops), " ".join(words), (start, ops), str(value))


def solution(problem: Problem) -> list[str]:
    """The label of each operation and the digit after it."""
    value, ops = problem.gold
    steps = []
    for label, op, operand in ops:
        value = apply(value, op, operand)
        steps.append(f"{label}{value}")
    return steps


def commute(one: tuple, other: tuple) -> bool:
    """Whether two operations (label, sign, operand) may change places: a sum and a difference."""
    _, op, operand = one
    _, other_op, other_operand = other
    return all(
        apply(apply(v, op, operand), other_op, other_operand)
        == apply(apply(v, other_op, other_operand), op, operand)
        for v in range(10)
    )


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """A step is right when it does an operation whose turn it may be on the value stated last.

    That is one which could change places with all those before it that are still to be done.
    """
    value, ops = problem.gold
    left = list(ops)
    verdicts = []
    for text in steps:
        match = re.fullmatch("([a-z])([0-9])", text)
        if match:
            stated = int(match[2])
            verdicts.append(_judge_step(ops, left, value, match[1], stated))
            value = stated  # right or wrong: the next step goes on from here
        else:
            verdicts.append(Step(False, "malformed"))  # and the value stays as it was
        # The operation that was done; a step that does none takes the place of the next one.
        named = [op for op in left if match and op[0] == match[1]]
        for op in (named or left)[:1]:
            left.remove(op)
    follows = str(value) if len(steps) == len(ops) else None
    return close_steps(verdicts, answer, follows, problem.answer)


def _judge_step(ops: tuple, left: list, value, label, stated) -> Step:
    """The verdict on a step, with the operations that are `left` to be done."""
    done = {op[0] for op in ops} - {op[0] for op in left}
    if not left or label in done:
        return Step(False, "irrelevant")
    place = next((i for i, op in enumerate(left) if op[0] == label), None)
    if place is None or not all(commute(op, left[place]) for op in left[:place]):
        return Step(False, "wrong operation")
    _, op, operand = left[place]
    if stated == apply(value, op, operand):
        return Step(True)
    # The mistake that explains the digit: another sign, then the operand of another operation.
    if any(stated == apply(value, other, operand) for other in OPS):
        return Step(False, "wrong operation")
    if any(stated == apply(value, op, n) for _, _, n in ops):
        return Step(False, "wrong operand")
    return Step(False, "wrong value")


TASK = Task(NAME, sample, solution, judge)
