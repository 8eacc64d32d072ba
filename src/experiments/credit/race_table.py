"""The races as tables: who arrives after how many sampled tokens, and how many times fewer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from experiments.credit.race import ARMS, GOAL, Outcome, Result
from experiments.results import markdown

SHARPENED = 0.05  # a control that gains more shows that the policy was only sharpened


@dataclass(frozen=True)
class Ratio:
    """A geometric mean over bases, and its 95% interval."""

    mean: float
    low: float
    high: float
    is_bound: bool  # a run of the slow arm never arrived and counts as its whole budget

    def __str__(self) -> str:
        sign = "≥ " if self.is_bound else ""
        return f"{sign}{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def compare(slow: Sequence[Outcome], fast: Sequence[Outcome]) -> Ratio:
    """Sampled tokens of one arm over those of another, paired by base.

    The seeds of a base are averaged first: they share the base and are no independent evidence. The
    interval is Student's, of the mean logarithm over bases.
    """
    bases = sorted({run.base for run in slow} & {run.base for run in fast})

    def cost(runs: Sequence[Outcome], base: int) -> float:
        return float(np.mean([run.cost for run in runs if run.base == base]))

    logs = np.log([cost(slow, base) / cost(fast, base) for base in bases])
    half = np.inf
    if len(logs) > 1:
        error = logs.std(ddof=1) / np.sqrt(len(logs))
        half = student.ppf(0.975, len(logs) - 1) * error
    low, mean, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half]).tolist()
    return Ratio(mean, low, high, any(run.to_goal is None for run in slow))


def describe_tokens(runs: Sequence[Outcome]) -> str:
    """Median and range of the sampled tokens to the goal, and how many runs arrived."""
    arrived = [run.to_goal for run in runs if run.to_goal is not None]
    if not arrived:
        return f"none of {len(runs)} in {max(run.spent for run in runs) / 1e3:.0f}k"
    low, mid, high = (x / 1e3 for x in (min(arrived), np.median(arrived), max(arrived)))
    return f"{mid:.0f}k ({low:.0f}k to {high:.0f}k), {len(arrived)} of {len(runs)}"


def report(races: Sequence[tuple[str, Sequence[Result]]]) -> str:
    """All races as Markdown, (name, results) of each."""
    return "".join(f"\n### {name}\n\n{race_table(results)}" for name, results in races)


def race_table(results: Sequence[Result]) -> str:
    """One race as Markdown: an arm a row, then the ratios and what the controls say."""
    rows = []
    for result in results:
        plan, runs = result.setting.plan, result.runs
        decay = ", decay" if plan.decay else ""
        bonus = f", entropy {plan.entropy_coef:g}" if plan.entropy_coef else ""
        end = np.mean([run.end for run in runs])
        rows.append(
            (
                result.name,
                ARMS[result.name].kind,
                f"{result.setting.rate:g}, {plan.num_rollouts}{decay}{bonus}",
                describe_tokens(runs),
                f"{end:.0%} ({100 * points_gained(result):+.0f})",
            )
        )
    head = (
        "arm",
        "kind",
        "rate, rollouts an update",
        f"sampled tokens to {GOAL:.0%} verified and held",
        "verified at the end (points gained)",
    )
    lines = [*markdown(head, rows), "", *compare_kinds(results), *judge_controls(results)]
    return "\n".join(lines) + "\n"


def points_gained(result: Result) -> float:
    """Verified accuracy at the end minus that at the start, mean over the runs."""
    return float(np.mean([run.end - run.start for run in result.runs]))


def compare_kinds(results: Sequence[Result]) -> list[str]:
    """The best dense arm against the best arm of each reward on whole solutions.

    The dense arm is the one that was best where settings were chosen, and its rivals are the best
    on the judging bases: what luck there is in the choice is theirs.
    """
    dense = [r for r in results if ARMS[r.name].kind == "dense"]
    if not dense:
        return []
    ours = min(dense, key=lambda r: r.tuned)
    lines = []
    for reward in dict.fromkeys(a.reward for a in ARMS.values() if a.kind == "outcome"):
        rivals = [
            r for r in results if ARMS[r.name].kind == "outcome" and ARMS[r.name].reward == reward
        ]
        if rivals:
            rival = min(rivals, key=lambda r: np.mean([run.cost for run in r.runs]))
            lines.append(f"* {rival.name} / {ours.name}: {compare(rival.runs, ours.runs)}")
    return lines


def judge_controls(results: Sequence[Result]) -> list[str]:
    """What the arms without a reward gained."""
    controls = [r for r in results if ARMS[r.name].kind == "control"]
    lines = [f"* {r.name}: {100 * points_gained(r):+.1f} points" for r in controls]
    if any(points_gained(r) > SHARPENED for r in controls):
        lines.append("* A control gained: this race measures sharpening, not credit.")
    return lines
