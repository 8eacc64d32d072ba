"""What a longer solution costs, forecast from shorter ones.

A chain of K steps is verified with chance q^K, where q is the mean chance of a step. So 90% asks
q = .9^(1/K) of every step: .974 of 4 steps, .996 of 24. How many tokens, one a step, are sampled
until a policy has that q depends on what a step hears of itself:

* Verdicts on steps. A step is paid for itself, whatever stands around it, so that length matters
  little: a + b / K. (b: the rollouts of a problem begin alike, and tell the same of the same fact.)
* Sums over solutions. A step hears its own verdict among K - 1 others. Its signal stays, and the
  variance of the rest grows with K: a + b K.

Both are fitted to chains of FITTED steps, at the q that a longer one asks for, and held against
chains of FORECAST steps, which nothing was fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.credit.race import ARMS, HELD, tokens_to_hold
from experiments.credit.tabular import POLICIES, make_table, run_lanes
from experiments.results import Results, markdown

RULE = "products"
FITTED, FORECAST = (4, 6, 8), (12, 24)
GOAL = 0.9  # verified
TOKENS = 384  # an update, whatever the length: a multiple of GROUP rollouts for all of them
CHOSEN_ON = (0, 11, 12)  # the bases that rates are chosen on
BASES = (6, 7, 8, 9, 10)  # these judge; on 1 to 5 the forms of the law were looked at


@dataclass(frozen=True)
class Law:
    """How the tokens to a chance per step depend on the length."""

    arm: str
    power: int  # of K in a + b K^power: -1 for verdicts on steps, 1 for sums
    rates: tuple[float, ...]
    budget: int  # sampled tokens of a run


LAWS = (
    Law("step-local", -1, (0.2, 0.4, 0.8, 1.6), 120_000),
    Law("RLOO, share of right steps", 1, (0.025, 0.05, 0.1, 0.2), 600_000),
)


@dataclass(frozen=True)
class Row:
    """One length that nothing was fitted to."""

    arm: str
    num_steps: int
    forecast: float  # sampled tokens
    measured: float  # geometric mean over bases; not a number: some base never arrived
    low: float  # of the bases
    high: float

    @property
    def error(self) -> float:
        """The forecast over what was measured, less one."""
        return self.forecast / self.measured - 1


def goal_per_step(num_steps: int) -> float:
    """The mean chance of a step with which GOAL of all chains are verified."""
    return GOAL ** (1 / num_steps)


def forecast_tokens(
    lengths: Sequence[int], tokens: Sequence[float], power: int, num_steps: int
) -> float:
    """a + b K^power at `num_steps`, fitted to shorter lengths by relative squares.

    A length that never arrived is not left out: then there is no forecast, not a number.
    """
    if np.isnan(tokens).any():
        return float("nan")
    line = np.polyfit(np.power(lengths, float(power)), tokens, 1, w=1 / np.asarray(tokens))
    return float(np.polyval(line, float(num_steps) ** power))


def measure_tokens(b: Results, law: Law, num_steps: int) -> dict[int, np.ndarray]:
    """Sampled tokens to each goal per step on each judging base; not a number: never.

    By the length whose goal it is. The rate is the one that was fastest on the bases CHOSEN_ON, all
    of which it brought there, for each goal by itself.
    """
    lanes = [(rate, base) for rate in law.rates for base in (*CHOSEN_ON, *BASES)]

    def work() -> dict:
        tables = np.stack([make_table(RULE, base) for _, base in lanes])
        curves = run_lanes(
            ARMS[law.arm],
            TOKENS // num_steps,
            "table",
            POLICIES["table"].make(tables, np.array([base for _, base in lanes])),
            rates=np.array([rate for rate, _ in lanes]),
            seeds=np.array([1000 * base for _, base in lanes]),
            num_steps=num_steps,
            budget=law.budget,
            problems=1,
        )
        chances = curves.verified_le ** (1 / num_steps)
        tokens = curves.steps_e.tolist()
        lengths = (*FITTED, *FORECAST)
        reached = {
            str(k): [tokens_to_hold(tokens, one.tolist(), goal_per_step(k)) for one in chances]
            for k in lengths
        }
        return {"reached": reached}

    key = {"part": "law", "arm": law.arm, "num_steps": num_steps, "rates": list(law.rates)}
    key |= {"budget": law.budget, "bases": [*CHOSEN_ON, *BASES], "held": HELD}
    found = {}
    for k, reached in b.once(key, work)["reached"].items():
        by_rate = np.array(reached, float).reshape(len(law.rates), -1)  # None becomes nan
        tried = [mean_tokens(row[: len(CHOSEN_ON)]) for row in by_rate]
        # Where no rate brought all of them there, none is chosen, and nothing arrives.
        nowhere = np.full(len(lanes), np.nan)
        chosen = nowhere if np.isnan(tried).all() else by_rate[np.nanargmin(tried)]
        found[int(k)] = chosen[-len(BASES) :]
    return found


def mean_tokens(reached: Sequence[float] | np.ndarray) -> float:
    """Geometric mean over bases; not a number where one never arrived."""
    return float(np.exp(np.mean(np.log(reached))))


def judge(b: Results, law: Law) -> list[Row]:
    """Forecasts and measurements of one arm."""
    short = {k: measure_tokens(b, law, k) for k in FITTED}
    rows = []
    for k in FORECAST:
        means = [mean_tokens(short[n][k]) for n in FITTED]
        forecast = forecast_tokens(FITTED, means, law.power, k)
        reached = measure_tokens(b, law, k)[k]
        ends = reached.min().item(), reached.max().item()
        rows.append(Row(law.arm, k, forecast, mean_tokens(reached), *ends))
    return rows


def tabulate(b: Results, law: Law) -> str:
    """What was measured: a length a row, and the goals per step of all lengths."""
    lengths = (*FITTED, *FORECAST)
    rows = []
    for n in lengths:
        reached = measure_tokens(b, law, n)
        means = [mean_tokens(reached[k]) for k in lengths]
        cells = ["not all" if np.isnan(x) else f"{x / 1e3:.1f}k" for x in means]
        rows.append((str(n), *cells))
    head = (f"{law.arm}, steps of a chain", *(f"to {goal_per_step(k):.4f} a step" for k in lengths))
    return "\n".join(markdown(head, rows)) + "\n"


def describe_tokens(row: Row) -> str:
    """What was measured, and its range over bases."""
    if np.isnan(row.measured):
        return "never on some base"
    return f"{row.measured / 1e3:.1f}k ({row.low / 1e3:.1f} to {row.high / 1e3:.1f})"


def report(rows: Sequence[Row]) -> str:
    """The table."""
    lines = markdown(
        ("arm", "steps", "goal per step", "forecast", "measured (range over bases)", "error"),
        [
            (
                row.arm,
                str(row.num_steps),
                f"{goal_per_step(row.num_steps):.4f}",
                "none" if np.isnan(row.forecast) else f"{row.forecast / 1e3:.1f}k",
                describe_tokens(row),
                "" if np.isnan(row.error) else f"{row.error:+.0%}",
            )
            for row in rows
        ],
    )
    return "\n".join(lines) + "\n"
