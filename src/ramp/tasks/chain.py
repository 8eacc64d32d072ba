"""Chain arithmetic: a digit goes through K labelled operations modulo 10, one a step.

    3 c+4 d*2 e-1   ->   c7 | d4 | e3 | 3

A step names the operation it does and states the value after it. `*5`, `*0` and the modulus let two wrong steps cancel,
so luck is common: this is the task on which credit is measured, and small enough for exact values (`credit/exact.py`).
"""

import re
import string
from collections.abc import Sequence

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

OPS = "+-*"
LETTERS = string.ascii_lowercase


def apply(value: int, op: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[op] % 10


def sample(seed: int, level: int) -> Problem:
    """`level` operations. The labels begin anywhere in the alphabet, so that no label belongs to a position."""
    if not 1 <= level <= len(LETTERS):
        raise UserError(f"a chain has 1 to {len(LETTERS)} operations, not {level}")
    r = make_rng("chain", seed, level)
    first = r.randint(0, len(LETTERS) - level)
    start = r.randrange(10)
    ops = tuple((LETTERS[first + k], r.choice(OPS), r.randrange(10)) for k in range(level))
    return make(start, ops, seed)


def make(start: int, ops: tuple[tuple[str, str, int], ...], seed: int = 0) -> Problem:
    value = start
    for _, op, operand in ops:
        value = apply(value, op, operand)
    question = " ".join([str(start), *(f"{label}{op}{n}" for label, op, n in ops)])
    return Problem("chain", seed, len(ops), question, (start, ops), str(value))


def solution(problem: Problem) -> list[str]:
    value, steps = problem.gold[0], []
    for label, op, operand in problem.gold[1]:
        value = apply(value, op, operand)
        steps.append(f"{label}{value}")
    return steps


def slipping(problem: Problem, share: float) -> tuple[list[str], str]:
    """Steps and answer of somebody who states a random digit at a `share` of the steps and goes on from there."""
    r, value, steps = make_rng("slips", problem.seed, problem.level), problem.gold[0], []
    for label, op, operand in problem.gold[1]:
        value = r.randrange(10) if r.random() < share else apply(value, op, operand)
        steps.append(f"{label}{value}")
    return steps, str(value)


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Step k is right when it does operation k on the value stated last."""
    value, ops = problem.gold
    verdicts = []
    for k, text in enumerate(steps):
        found = re.fullmatch(r"([a-z])(\d)", text)
        verdicts.append(
            _step(ops, k, value, found[1], int(found[2])) if found else Step(False, "malformed")
        )
        value = int(found[2]) if found else value
    return close_steps(
        verdicts, answer, str(value) if len(steps) == len(ops) else None, problem.answer
    )


def _step(ops: tuple, k: int, value: int, label: str, stated: int) -> Step:
    if k >= len(ops) or label in [name for name, _, _ in ops[:k]]:
        return Step(False, "irrelevant")  # over, or done before
    name, op, operand = ops[k]
    if label != name:
        return Step(False, "wrong operation")
    if stated == apply(value, op, operand):
        return Step(True)
    if any(stated == apply(value, other, operand) for other in OPS):
        return Step(False, "wrong operation")
    if any(stated == apply(value, op, n) for _, _, n in ops):
        return Step(False, "wrong operand")
    return Step(False, "wrong value")


TASK = Task("chain", sample, solution, judge)
