"""Tokens until a wrong rule is unlearned: every method with every reward, each at its own best.

What makes the comparison fair:

* One checker. A method on answers is tried with the checker's verdicts too, as one bit
  (`verified`), as one number (`share` of right steps), and mixed.
* Controls: no reward, a random reward, the majority's answer. Where one of them gains, the policy
  was only sharpened, and the table says so.
* Rate, rollouts an update and decay are chosen for each arm by itself, on a base and seeds that the
  comparison does not use.
* All sampled steps count. The goal counts as reached where three evaluations in a row hold it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from experiments.credit.tabular import GROUP, Arm, Curves, make_table, run_lanes
from experiments.results import Results

GOAL = 0.9  # verified accuracy that the sampled steps are counted to
HELD = 3  # evaluations in a row that have to hold it
TUNED_ON = 0  # the base that settings are chosen on; the others judge
BASES = tuple(range(1, 11))
SEEDS = (0, 1, 2)
NUM_LANES = 32  # of every program: another number would be compiled again

# The name is the one of the table.
ARMS = {
    "no reward, entropy minimised": Arm("control", "rloo", "none", -0.2),
    "random reward, entropy minimised": Arm("control", "rloo", "random", -0.2),
    "majority of the group": Arm("control", "rloo", "majority"),
    "RLOO, answer": Arm("outcome", "rloo", "answer"),
    "GRPO, answer": Arm("outcome", "grpo", "answer"),
    "RLOO, verified": Arm("outcome", "rloo", "verified"),
    "GRPO, verified": Arm("outcome", "grpo", "verified"),
    "RLOO, share of right steps": Arm("outcome", "rloo", "share"),
    "GRPO, share of right steps": Arm("outcome", "grpo", "share"),
    "RLOO, verified + share": Arm("outcome", "rloo", "verified + share"),
    "step-local": Arm("dense", "step_local", "answer"),
    "first error": Arm("dense", "first_error", "answer"),
    "process supervision": Arm("dense", "grpo_process", "answer"),
    "min-form": Arm("dense", "min_form", "verified"),
}

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
NUM_ROLLOUTS = (16, 64, 256)  # and beyond, down to one group of 8, where the best is at an end
MAX_ROLLOUTS = 1024
TUNING_SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Setting:
    """What is chosen for each arm by itself."""

    rate: float
    num_rollouts: int  # an update
    decay: bool  # of the rate, linearly to 0 over the second half of the budget


@dataclass(frozen=True)
class Outcome:
    """One run."""

    base: int
    to_goal: float | None  # sampled steps; None: never
    spent: int  # sampled steps of the run
    start: float  # verified accuracy
    end: float
    area: float  # mean verified accuracy over the run

    @property
    def cost(self) -> float:
        """Sampled steps to the goal; the whole budget where it was never reached."""
        return self.spent if self.to_goal is None else self.to_goal

    @property
    def merit(self) -> tuple[float, float]:
        """Smaller is better: the steps to the goal, then the area under the curve."""
        return float("inf") if self.to_goal is None else self.to_goal, -self.area


@dataclass(frozen=True)
class Result:
    """What became of an arm."""

    name: str
    setting: Setting
    tuned: tuple[float, float]  # merit of the setting on the base that it was chosen on
    runs: list[Outcome]  # on the judging bases


def steps_to_hold(steps: Sequence[float], verified: Sequence[float]) -> float | None:
    """Sampled steps at which a curve first crosses the goal and then holds it; None: never.

    Linear between two evaluations. It holds where HELD evaluations in a row are at the goal.
    """
    for i in range(len(verified) - HELD + 1):
        if min(verified[i : i + HELD]) >= GOAL:
            if i == 0:
                return 0.0
            part = (GOAL - verified[i - 1]) / (verified[i] - verified[i - 1])
            return float(steps[i - 1] + part * (steps[i] - steps[i - 1]))
    return None


def read_lane(curves: Curves, lane: int, base: int) -> Outcome:
    """One lane of `run_lanes`."""
    steps, verified = curves.steps_e.tolist(), curves.verified_le[lane].tolist()
    parts = zip(pairwise(steps), pairwise(verified), strict=True)
    area = sum((t1 - t0) * (v0 + v1) / 2 for (t0, t1), (v0, v1) in parts)
    return Outcome(
        base=base,
        to_goal=steps_to_hold(steps, verified),
        spent=steps[-1],
        start=verified[0],
        end=verified[-1],
        area=area / steps[-1],
    )


@dataclass(frozen=True)
class Race:
    """One comparison: a wrong rule, a number of operations, and what may be spent."""

    rule: str
    num_steps: int
    budget: int  # sampled steps of a run
    arms: Sequence[str] = tuple(ARMS)

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.rule}, {self.num_steps} operations"

    def run(self, b: Results) -> Iterator[Result]:
        """Every arm: choose its setting, then judge it."""
        for name in self.arms:
            setting, tuned = self.choose_setting(b, name)
            lanes = [(setting.rate, base, seed) for base in BASES for seed in SEEDS]
            runs = self.once(b, name, setting.num_rollouts, setting.decay, lanes)
            yield Result(name, setting, tuned, runs)

    def choose_setting(self, b: Results, name: str) -> tuple[Setting, tuple[float, float]]:
        """The best setting of an arm on the base that settings are chosen on, and its merit.

        A merit is the mean over seeds: a setting with which one of them never arrives is worse than
        any with which all do. A decaying rate is tried with the best number of rollouts.
        """
        merits = {}
        waiting = list(NUM_ROLLOUTS)
        while waiting:
            merits |= self.rank_rates(b, name, waiting.pop(0), False)
            if waiting:
                continue
            best = min(merits, key=merits.__getitem__)
            tried = sorted({setting.num_rollouts for setting in merits})
            if best.num_rollouts == tried[0] > GROUP:
                waiting = [tried[0] // 2]
            elif best.num_rollouts == tried[-1] < MAX_ROLLOUTS:
                waiting = [tried[-1] * 2]
        merits |= self.rank_rates(b, name, best.num_rollouts, True)
        best = min(merits, key=merits.__getitem__)
        return best, merits[best]

    def rank_rates(
        self, b: Results, name: str, num_rollouts: int, decay: bool
    ) -> dict[Setting, tuple[float, float]]:
        """The merit of every rate; see `choose_setting`."""
        lanes = [(rate, TUNED_ON, seed) for rate in RATES for seed in TUNING_SEEDS]
        runs = self.once(b, name, num_rollouts, decay, lanes)
        merits = {}
        for i, rate in enumerate(RATES):
            mine = runs[i * len(TUNING_SEEDS) : (i + 1) * len(TUNING_SEEDS)]
            mean = np.mean([run.merit for run in mine], axis=0)
            merits[Setting(rate, num_rollouts, decay)] = tuple(mean.tolist())
        return merits

    def once(
        self,
        b: Results,
        name: str,
        num_rollouts: int,
        decay: bool,
        lanes: Sequence[tuple[float, int, int]],
    ) -> list[Outcome]:
        """The runs of lanes (rate, base, seed), from `b` if they are there."""
        key = {"part": "race", "rule": self.rule, "num_steps": self.num_steps, "arm": name}
        key |= {"num_rollouts": num_rollouts, "decay": decay, "budget": self.budget}
        rates, bases, seeds = (sorted(set(values)) for values in zip(*lanes, strict=True))
        key |= {"rates": rates, "bases": bases, "seeds": seeds}

        def work() -> dict:
            began = time.perf_counter()
            # Programs are compiled for one number of lanes: the last lane stands in for the rest.
            padded = [*lanes, *[lanes[-1]] * (NUM_LANES - len(lanes))]
            curves = run_lanes(
                ARMS[name],
                num_rollouts,
                tables=np.stack([make_table(self.rule, base) for _, base, _ in padded]),
                rates=np.array([rate for rate, _, _ in padded]),
                # Two lanes with one base and one seed see the same problems.
                seeds=np.array([1000 * base + seed for _, base, seed in padded]),
                num_steps=self.num_steps,
                budget=self.budget,
                decay=decay,
            )
            runs = [read_lane(curves, i, base) for i, (_, base, _) in enumerate(lanes)]
            return {
                "runs": [asdict(run) for run in runs],
                "run_seconds": round(time.perf_counter() - began, 1),
            }

        return [Outcome(**run) for run in b.once(key, work)["runs"]]


# From short chains, where one bit is enough, to long ones; and other wrong rules.
RACES = (
    *(Race("products", k, 50_000 * k) for k in (4, 6, 8, 12, 16, 24)),
    Race("products, loosely", 12, 600_000),
    Race("minus for plus", 12, 600_000),
)
