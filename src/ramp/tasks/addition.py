"""Addition of two numbers of `level` digits, a column a step from the right, the carry as a term.

478+365   ->   8+5=13 | 7+6+1=14 | 4+3+1=8 | 843
"""

import re
from collections.abc import Sequence

from ramp.errors import UserError
from ramp.tasks.protocol import (
    Mistake,
    Problem,
    Step,
    Task,
    Verdict,
    close_steps,
    make_rng,
)

NAME = "addition"
# One digit, a second and perhaps a carry; - and * match too, so that they are named as mistakes.
STEP = re.compile(r"([0-9])([+\-*])([0-9])(?:([+\-*])([0-9]))?=([0-9]{1,2})")


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
    return forget_carries(problem, 0.0)[0]


def forget_carries(problem: Problem, chance: float) -> tuple[list[str], str]:
    """The columns and the answer of somebody who forgets each carry with this chance."""
    rng = make_rng("forgotten carries", problem.seed, problem.level)
    steps, digits = [], []
    carry = 0
    for x, y in list_columns(problem):
        if carry and rng.random() < chance:
            carry = 0
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        digits.append(str(total % 10))
        carry = total // 10
    # The last column writes its whole sum.
    if carry:
        digits.append("1")
    return steps, "".join(reversed(digits))


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """A step is right when it adds a column and the carry into it, in whatever order.

    The carry is that of the sum that was stated for the column before it. Where none was yet, it is
    the true one.
    """
    columns = list_columns(problem)
    true = [int(step.split("=")[1]) for step in solution(problem)]
    totals: dict[int, int] = {}  # column -> the sum stated for it
    verdicts = []
    for text in steps:
        match = STEP.fullmatch(text)
        # The right terms of each column that is left, in the order in which they are written.
        expected = {}
        for k, digits in enumerate(columns):
            if k not in totals:
                carry = totals.get(k - 1, true[k - 1]) // 10 if k else 0
                expected[k] = [*digits, *([1] if carry else [])]
        if not match or not expected:
            verdicts.append(Step(False, "irrelevant" if match else "malformed"))
            continue
        k = _find_column(match, columns, expected)
        verdicts.append(_judge_sum(match, expected[k]))
        totals[k] = int(match[6])
    follows = None
    if len(steps) == len(totals) == len(columns):
        # The last column writes its whole sum, the others their last digit.
        last = str(totals.pop(len(columns) - 1))
        follows = last + "".join(str(totals[k] % 10) for k in sorted(totals, reverse=True))
        follows = follows.lstrip("0") or "0"
    return close_steps(verdicts, answer, follows, problem.answer)


def _list_terms(match: re.Match) -> list[int]:
    return sorted(int(n) for n in match.group(1, 3, 5) if n is not None)


def _find_column(match: re.Match, columns: list, expected: dict[int, list[int]]) -> int:
    """The column that a step adds, of those in `expected`; the next one where it fits none."""
    terms = _list_terms(match)
    exact = [k for k, right in expected.items() if sorted(right) == terms]
    # The digits of a column, with a carry that is missing or too many.
    digits = [k for k in expected if terms in (sorted(columns[k]), sorted([*columns[k], 1]))]
    return [*exact, *digits, *expected][0]


def _judge_sum(match: re.Match, expected: list[int]) -> Step:
    """A well-formed step, of which `expected` are the right terms in any order."""
    terms = _list_terms(match)
    # The first thing that is wrong, in the order in which somebody would do the step.
    if match[2] != "+" or match[4] not in ("+", None):
        return Step(False, "wrong operation")
    if terms != sorted(expected):
        return Step(False, "wrong operand")
    return Step(True) if int(match[6]) == sum(terms) else Step(False, "wrong value")


TASK = Task(NAME, sample, solution, judge, mistake=Mistake("a carry is forgotten", forget_carries))
