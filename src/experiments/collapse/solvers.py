"""Programs that solve problems of a task, at random among many right ways."""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from ramp.tasks import swaps, words
from ramp.tasks.protocol import Problem

Solver = Callable[[Problem, np.random.Generator], list[str]]  # the steps, then the answer


def sort_by_swaps(problem: Problem, rng: np.random.Generator) -> list[str]:
    """Swaps that undo inversions, each drawn from all of those that do."""
    row = problem.question
    steps = []
    while inverted := [(i, j) for i, j in combinations(range(len(row)), 2) if row[i] > row[j]]:
        i, j = inverted[rng.integers(len(inverted))]
        row = row[:i] + row[j] + row[i + 1 : j] + row[i] + row[j + 1 :]
        steps.append(row)
    return [*steps, row]


# What may stand before and behind a note.
BEFORE = ("", "Now ", "Then ", "That is ", "So ", "She has ")
BEHIND = ("", " left", " in all", " now", " things", " then")


def tell_notes(problem: Problem, rng: np.random.Generator) -> list[str]:
    """The notes of a word problem, each in words that are drawn."""
    steps = [
        BEFORE[rng.integers(len(BEFORE))] + note + BEHIND[rng.integers(len(BEHIND))]
        for note in words.solution(problem)
    ]
    return [*steps, problem.answer]


SOLVERS: dict[str, Solver] = {swaps.NAME: sort_by_swaps, words.NAME: tell_notes}
