"""`python -m experiments.credit.law`: how the tokens to the goal grow with the number of steps.

On a table every fact has weights of its own, so that what one visit teaches can be worked out. A
token is a step, and each step visits a fact. Let a solution have K steps, each right with chance p:

* A verdict on each step: a visit is paid by itself, whatever stands around it. Tokens: constant.
* The share of right steps, one number a solution: a visit moves it by 1/K, and the other steps by
  about sqrt(K) / K. Signal over noise is 1 / sqrt(K) a visit, and the visits that average the noise
  out grow as its inverse square. Tokens: proportional to K.
* One bit, all steps right: a visit counts only where all others are right, with chance p^(K-1).
  Tokens: proportional to p^-K, with the p of the policy that begins.

Each has one free factor. It is fitted to short solutions, and long ones are forecast.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from experiments.credit import chain_values
from experiments.credit.race import Race, Result
from experiments.credit.tabular import make_table
from experiments.results import Results, markdown
from ramp.config import Config

RULE = "products"
FITTED = (4, 6, 8)
FORECAST = (12, 24)
BASES = tuple(range(21, 27))  # none of those that the races judge


def chance_of_a_right_step() -> float:
    """That of the policies that begin: the mean over facts and bases."""
    truth = chain_values.truth()[..., None]
    tables = [softmax(make_table(RULE, base), axis=-1) for base in BASES]
    return float(np.mean([np.take_along_axis(table, truth, axis=-1) for table in tables]))


@dataclass(frozen=True)
class Law:
    """How many tokens an arm needs, up to a factor."""

    arm: str
    growth: str
    tokens: Callable[[int], float]
    num_rollouts: tuple[int, ...]  # an update, tried first
    budget: Callable[[int], int]  # sampled tokens of a run


LAWS = (
    Law("step-local", "constant", lambda k: 1.0, (16, 64), lambda k: 100_000),
    Law("GRPO, share of right steps", "K", float, (64,), lambda k: 50_000 * k),
    Law(
        "imitation of verified rollouts",
        "p^-K",
        lambda k: chance_of_a_right_step() ** -k,
        (16,),
        lambda k: 50_000 * k,
    ),
)


@dataclass(frozen=True)
class Point:
    """Sampled tokens to the goal with so many steps."""

    num_steps: int
    tokens: float  # the geometric mean over bases
    error: float  # the standard error of its logarithm
    is_bound: bool  # a run never arrived and counts as its whole budget

    def __str__(self) -> str:
        low, high = (self.tokens * np.exp(sign * self.error) / 1e3 for sign in (-1, 1))
        return f"{'≥ ' if self.is_bound else ''}{self.tokens / 1e3:.1f}k [{low:.1f}, {high:.1f}]"


def measure(b: Results, law: Law, num_steps: int) -> Point:
    """Choose the arm's setting for this length on one base, and judge it on others."""
    one = Race(
        RULE,
        num_steps,
        law.budget(num_steps),
        arms=(law.arm,),
        num_rollouts=law.num_rollouts,
        tuning_seeds=(0, 1),
        bases=BASES,
    )
    (result,) = one.run(b)
    return summarize(num_steps, result)


def summarize(num_steps: int, result: Result) -> Point:
    """The mean over bases, each of which counts once however many seeds it has."""
    costs = [
        np.mean([run.cost for run in result.runs if run.base == base])
        for base in sorted({run.base for run in result.runs})
    ]
    logs = np.log(costs)
    error = float(logs.std(ddof=1) / np.sqrt(len(logs)))
    is_bound = any(run.to_goal is None for run in result.runs)
    return Point(num_steps, float(np.exp(logs.mean())), error, is_bound)


def forecast(law: Law, points: Sequence[Point], num_steps: int) -> float:
    """Tokens for so many steps: the law's factor is the geometric mean over short solutions."""
    logs = [np.log(point.tokens / law.tokens(point.num_steps)) for point in points]
    return law.tokens(num_steps) * float(np.exp(np.mean(logs)))


def tabulate(b: Results, laws: Sequence[Law]) -> list[str]:
    """The lines of the table; measures what is missing."""
    rows = []
    for law in laws:
        short = [measure(b, law, k) for k in FITTED]
        cells = [law.arm, law.growth, *map(str, short)]
        for k in FORECAST:
            wanted, found = forecast(law, short, k), measure(b, law, k)
            off = f"{100 * (found.tokens / wanted - 1):+.0f}%"
            cells += [f"{wanted / 1e3:.1f}k", f"{found} ({off})"]
        rows.append(cells)
    head = ["arm", "tokens grow as", *(f"{k} steps" for k in FITTED)]
    head += [word for k in FORECAST for word in (f"forecast for {k}", f"{k} steps")]
    return markdown(head, rows)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.credit.law")
    parser.add_argument("--run", type=Path, default=Path("runs/credit-law"), metavar="DIR")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    c = Config()
    b = Results(args.run, c.model, c.reinforce)
    print(f"A step of the first policy is right with chance {chance_of_a_right_step():.3f}.\n")
    print("\n".join(tabulate(b, LAWS)))


if __name__ == "__main__":
    main()
