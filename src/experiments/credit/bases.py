"""Starting policies that are wrong where it counts.

An expert that slips at random is right in its most likely answer, so that sharpening alone improves
it, and a comparison of rewards on it measures sharpening. These policies hold a wrong rule: what is
most likely under them is wrong, and the right move is rare.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ramp.tasks import Problem, chain
from ramp.tasks.protocol import make_rng


@dataclass(frozen=True)
class Misconception:
    """A wrong rule of chain arithmetic, and how often its owner follows it."""

    op: str  # the operation that it gets wrong
    wrong: Callable[[int, int], int]  # (value, operand) to the digit that it states
    fraction: float  # of those operations at which the rule is followed


MISCONCEPTIONS = {
    # Entrenched: the right digit of a product is drawn 3 times in 100.
    "products": Misconception("*", lambda value, operand: value * operand + 1, 0.97),
    # The same rule, held loosely.
    "loose": Misconception("*", lambda value, operand: value * operand + 1, 0.75),
    # One operation is taken for another.
    "confusion": Misconception("-", lambda value, operand: value + operand, 0.97),
}


def solve_with_misconception(problem: Problem, rule: Misconception) -> tuple[list[str], str]:
    """Steps and answer of a chain by somebody who holds the rule; later steps go on from them."""
    rng = make_rng("misconception", problem.seed, problem.level)
    value, steps = problem.gold[0], []
    for label, op, operand in problem.gold[1]:
        follows = op == rule.op and rng.random() < rule.fraction
        value = rule.wrong(value, operand) % 10 if follows else chain.apply(value, op, operand)
        steps.append(f"{label}{value}")
    return steps, str(value)
