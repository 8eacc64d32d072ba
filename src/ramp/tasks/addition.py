"""Addition of two numbers of `level` digits, a column a step from the right, the carry as a third term.

478+365   ->   8+5=13 | 7+6+1=14 | 4+3+1=8 | 843
"""

import re
from collections.abc import Sequence

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng


def sample(seed: int, level: int) -> Problem:
    if level < 1:
        raise UserError(f"numbers have at least one digit, not {level}")
    r = make_rng("addition", seed, level)
    a, b = (r.randrange(10 ** (level - 1) if level > 1 else 0, 10**level) for _ in range(2))
    return Problem("addition", seed, level, f"{a}+{b}", (a, b), str(a + b))


def _columns(problem: Problem) -> list[tuple[int, int]]:
    a, b = (str(n).zfill(problem.level)[::-1] for n in problem.gold)
    return [(int(x), int(y)) for x, y in zip(a, b, strict=True)]


def solution(problem: Problem) -> list[str]:
    steps, carry = [], 0
    for x, y in _columns(problem):
        terms = [x, y, 1] if carry else [x, y]
        steps.append("+".join(map(str, terms)) + f"={sum(terms)}")
        carry = sum(terms) // 10
    return steps


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Step k is right when it adds column k and the carry of the sum stated last."""
    columns, carry, digits, verdicts = _columns(problem), 0, "", []
    for k, text in enumerate(steps):
        found = re.fullmatch(r"(\d)([+\-*])(\d)(?:([+\-*])(\d))?=(\d{1,2})", text)
        if not found:
            verdicts.append(Step(False, "malformed"))
            continue
        terms = [int(n) for n in (found[1], found[3], found[5]) if n is not None]
        want = (
            [*columns[k], 1]
            if carry and k < len(columns)
            else [*columns[k]]
            if k < len(columns)
            else None
        )
        verdicts.append(_step(terms, want, found[2] + (found[4] or "+"), int(found[6])))
        last = k == len(columns) - 1
        digits = (found[6] if last else found[6][-1]) + digits
        carry = int(found[6]) // 10
    follows = digits.lstrip("0") or "0" if len(steps) == len(columns) else None
    return close_steps(verdicts, answer, follows, problem.answer)


def _step(terms: list[int], want: list[int] | None, ops: str, stated: int) -> Step:
    if want is None:
        return Step(False, "irrelevant")
    if ops != "++":
        return Step(False, "wrong operation")
    if sorted(terms) != sorted(want):
        return Step(False, "wrong operand")
    return Step(True) if stated == sum(terms) else Step(False, "wrong value")


TASK = Task("addition", sample, solution, judge)
