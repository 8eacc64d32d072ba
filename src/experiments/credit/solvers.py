"""Solvers that err or vary, to write solutions for the benchmarks of credit."""

from itertools import combinations

from ramp.tasks import Problem, chain
from ramp.tasks.protocol import make_rng


def solve_with_slips(problem: Problem, fraction: float) -> tuple[list[str], str]:
    """Steps and answer of a chain, with a random digit at a `fraction` of the steps.

    The later steps go on from that digit.
    """
    rng = make_rng("slips", problem.seed, problem.level)
    value, steps = problem.gold[0], []
    for label, op, operand in problem.gold[1]:
        slips = rng.random() < fraction
        value = rng.randrange(10) if slips else chain.apply(value, op, operand)
        steps.append(f"{label}{value}")
    return steps, str(value)


def solve_by_random_swaps(problem: Problem) -> tuple[list[str], str]:
    """Steps and answer of a row sorted by any swaps that undo inversions: many ways are right."""
    rng = make_rng("wandering", problem.seed, problem.level)
    row, steps = list(problem.question), []
    while pairs := [(i, j) for i, j in combinations(range(len(row)), 2) if row[i] > row[j]]:
        i, j = rng.choice(pairs)
        row[i], row[j] = row[j], row[i]
        steps.append("".join(row))
    return steps, "".join(row)
