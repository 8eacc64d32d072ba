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


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Step k is right when it does operation k on the value stated last."""
    value, ops = problem.gold
    verdicts = []
    for k, text in enumerate(steps):
        match = re.fullmatch(r"([a-z])(\d)", text)
        if match:
            stated = int(match[2])
            verdicts.append(_judge_step(ops, k, value, match[1], stated))
            value = stated  # right or wrong: the next step goes on from here
        else:
            verdicts.append(Step(False, "malformed"))  # and the value stays as it was
    follows = str(value) if len(steps) == len(ops) else None
    return close_steps(verdicts, answer, follows, problem.answer)


def _judge_step(ops: tuple, k, value, label, stated) -> Step:
    if k >= len(ops) or label in [name for name, _, _ in ops[:k]]:
        # The chain is over, or this operation was done before.
        return Step(False, "irrelevant")
    # Steps have to come in the order of the question.
    name, op, operand = ops[k]
    if label != name:
        return Step(False, "wrong operation")
    if stated == apply(value, op, operand):
        return Step(True)
    # The mistake that explains the digit: another sign, then the operand of another operation.
    if any(stated == apply(value, other, operand) for other in OPS):
        return Step(False, "wrong operation")
    if any(stated == apply(value, op, n) for _, _, n in ops):
        return Step(False, "wrong operand")
    return Step(False, "wrong value")


TASK = Task(NAME, sample, solution, judge)
