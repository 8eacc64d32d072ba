"""Sorting by swaps: each step is the row after one swap that undoes inversions.

5381   ->   1385 | 1358 | 1358
"""

from collections.abc import Sequence
from itertools import combinations

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng


def sample(seed: int, level: int) -> Problem:
    """`level` + 1 different digits, not in order."""
    if not 1 <= level <= 9:
        raise UserError(
            f"a row has level + 1 of the ten digits, so the level is 1 to 9, not {level}"
        )
    r = make_rng("swaps", seed, level)
    row = r.sample("0123456789", level + 1)
    while row == sorted(row):
        r.shuffle(row)
    return Problem("swaps", seed, level, "".join(row), None, "".join(sorted(row)))


def solution(problem: Problem) -> list[str]:
    """Selection: the smallest of what is left goes to the front."""
    row, steps = list(problem.question), []
    for i in range(len(row)):
        j = row.index(min(row[i:]))
        if i != j:
            row[i], row[j] = row[j], row[i]
            steps.append("".join(row))
    return steps


def wandering(problem: Problem) -> tuple[list[str], str]:
    """Steps and answer of somebody who does any swap that undoes an inversion: many ways to be right."""
    r, row, steps = make_rng("wandering", problem.seed, problem.level), list(problem.question), []
    while pairs := [(i, j) for i, j in combinations(range(len(row)), 2) if row[i] > row[j]]:
        i, j = r.choice(pairs)
        row[i], row[j] = row[j], row[i]
        steps.append("".join(row))
    return steps, "".join(row)


def inversions(row: str) -> int:
    return sum(a > b for a, b in combinations(row, 2))


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    row, verdicts = problem.question, []
    for text in steps:
        if sorted(text) != sorted(row):
            verdicts.append(Step(False, "wrong value" if text.isdigit() else "malformed"))
            row = text if sorted(text) == sorted(problem.question) else row
            continue
        moved = sum(a != b for a, b in zip(row, text, strict=True))
        fewer = inversions(text) < inversions(row)
        why = "" if moved == 2 and fewer else "wrong operation" if moved > 2 else "irrelevant"
        verdicts.append(Step(not why, why))
        row = text
    return close_steps(verdicts, answer, row if row == problem.answer else None, problem.answer)


TASK = Task("swaps", sample, solution, judge)
