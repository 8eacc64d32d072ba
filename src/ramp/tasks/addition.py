"""Addition of two numbers of `level` digits, a column a step from the right, the carry as a term.

478+365   ->   8+5=13 | 7+6+1=14 | 4+3+1=8 | 843
"""

import re
from collections.abc import Sequence

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

NAME = "addition"
# One digit, a second and perhaps a carry; - and * match too, so that they are named as mistakes.
STEP = re.compile(r"(\d)([+\-*])(\d)(?:([+\-*])(\d))?=(\d{1,2})")


def sample(seed: int, level: int) -> Problem:
    """Two numbers of exactly `level` digits; `gold` is the two."""
    if level < 1:
        raise UserError(f"numbers have at least one digit, not {level}")
    rng = make_rng(NAME, seed, level)
    smallest = 10 ** (level - 1) if level > 1 else 0
    a = rng.randrange(smallest, 10**level)
    b = rng.randrange(smallest, 10**level)
    return Problem(NAME, seed, level, f"{a}+{b}", (a, b), str(a + b))


def list_columns(problem: Problem) -> list[tuple[int, int]]:
    """The two digits of each column, from the right."""
    a, b = (str(n).zfill(problem.level)[::-1] for n in problem.gold)
    return [(int(x), int(y)) for x, y in zip(a, b, strict=True)]


def solution(problem: Problem) -> list[str]:
    """The sum of each column; its last digit is the one to write down, the first is the carry."""
    steps = []
    carry = 0
    for x, y in list_columns(problem):
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return steps


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Step k is right when it adds column k and the carry of the sum stated last."""
    columns = list_columns(problem)
    carry = 0
    digits = ""  # of the answer that the steps lead to
    verdicts = []
    for k, text in enumerate(steps):
        match = STEP.fullmatch(text)
        if not match:
            verdicts.append(Step(False, "malformed"))  # the carry stays as it was
            continue
        stated = match[6]
        if k < len(columns):
            # The carry of what was stated, be it right or wrong.
            expected = list(columns[k])
            if carry:
                expected.append(1)
            verdicts.append(_judge_sum(match, expected))
        else:
            verdicts.append(Step(False, "irrelevant"))
        # The last column writes its whole sum, the others their last digit.
        digits = (stated if k == len(columns) - 1 else stated[-1]) + digits
        carry = int(stated) // 10
    follows = None
    if len(steps) == len(columns):
        follows = digits.lstrip("0") or "0"
    return close_steps(verdicts, answer, follows, problem.answer)


def _judge_sum(match: re.Match, expected: list[int]) -> Step:
    """A well-formed step, of which `expected` are the right terms in any order."""
    first, operation, second, other_operation, third, stated = match.groups()
    terms = [int(n) for n in (first, second, third) if n is not None]
    # The first thing that is wrong, in the order in which somebody would do the step.
    if operation != "+" or other_operation not in ("+", None):
        return Step(False, "wrong operation")
    if sorted(terms) != sorted(expected):
        return Step(False, "wrong operand")
    return Step(True) if int(stated) == sum(terms) else Step(False, "wrong value")


TASK = Task(NAME, sample, solution, judge)
