"""Sorting by swaps: each step is the row after one swap that undoes inversions.

5381   ->   1385 | 1358 | 1358
"""

from collections.abc import Sequence
from itertools import combinations

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

NAME = "swaps"


def sample(seed: int, level: int) -> Problem:
    """`level` + 1 different digits, not in order."""
    if not 1 <= level <= 9:
        raise UserError(
            f"a row has level + 1 of the ten digits, so the level is 1 to 9, not {level}"
        )
    rng = make_rng(NAME, seed, level)
    row = rng.sample("0123456789", level + 1)
    # A row in order would have no step.
    while row == sorted(row):
        rng.shuffle(row)
    return Problem(NAME, seed, level, "".join(row), None, "".join(sorted(row)))


def solution(problem: Problem) -> list[str]:
    """Selection sort: the smallest of what is left goes to the front."""
    row = list(problem.question)
    steps = []
    for i in range(len(row)):
        j = row.index(min(row[i:]))
        if i != j:  # a digit in its place needs no step
            row[i], row[j] = row[j], row[i]
            steps.append("".join(row))
    return steps


def count_inversions(row: str) -> int:
    """Pairs of digits in the wrong order."""
    return sum(a > b for a, b in combinations(row, 2))


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """A step is right when it swaps two digits of the row before and undoes inversions."""
    row = problem.question
    verdicts = []
    for text in steps:
        # Other digits than those of the row. The row stays as it was.
        if sorted(text) != sorted(row):
            is_row = text.isascii() and text.isdigit()
            verdicts.append(Step(False, "wrong value" if is_row else "malformed"))
            continue
        moved = sum(a != b for a, b in zip(row, text, strict=True))
        if moved > 2:
            verdicts.append(Step(False, "wrong operation"))  # more than one swap
        elif moved == 2 and count_inversions(text) < count_inversions(row):
            verdicts.append(Step(True))
        else:
            # Nothing moved, or two digits that were in order.
            verdicts.append(Step(False, "irrelevant"))
        row = text
    follows = row if row == problem.answer else None
    return close_steps(verdicts, answer, follows, problem.answer)


TASK = Task(NAME, sample, solution, judge)
