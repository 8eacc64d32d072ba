"""Tokens until a wrong rule is unlearned: every method with every reward, each at its own best.

What makes the comparison fair:

* One checker. A method on answers is tried with the checker's verdicts too, as one bit
  (`verified`), as one number (`share` of right steps), and mixed.
* Controls: no reward, a random reward, the majority's answer. Where one of them gains, the policy
  was only sharpened, and the table says so.
* Rate, rollouts an update and decay are chosen for each arm by itself, on a base and seeds that the
  comparison does not use.
* All sampled tokens count. The goal counts as reached where three evaluations in a row hold it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from experiments.credit.tabular import GROUP, POLICIES, Arm, Curves, make_table, run_lanes
from experiments.results import Results

GOAL = 0.9  # verified accuracy that the sampled tokens are counted to
HELD = 3  # evaluations in a row that have to hold it
TUNED_ON = 0  # the base that settings are chosen on; the others judge
NUM_LANES = 8  # a program has a multiple of these: every other number is compiled again

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
    "imitation of verified rollouts": Arm("outcome", "imitate_rollouts", "verified"),
    "imitation of right steps": Arm("dense", "imitate_steps", "answer"),
    "step-local": Arm("dense", "step_local", "answer"),
    "first error": Arm("dense", "first_error", "answer"),
    "process supervision": Arm("dense", "grpo_process", "answer"),
    "min-form": Arm("dense", "min_form", "verified"),
}

MAX_ROLLOUTS = 1024


@dataclass(frozen=True)
class Plan:
    """What is chosen for each arm by itself, but for its rate."""

    num_rollouts: int  # an update
    decay: bool = False  # of the rate, linearly to 0 over the second half of the budget
    entropy_coef: float = 0.0  # a bonus per nat, against a collapse onto what is wrong


@dataclass(frozen=True)
class Setting:
    """What is chosen for each arm by itself."""

    rate: float
    plan: Plan


@dataclass(frozen=True)
class Outcome:
    """One run."""

    base: int
    to_goal: float | None  # sampled tokens; None: never
    spent: int  # sampled tokens of the run
    start: float  # verified accuracy
    end: float
    area: float  # mean verified accuracy over the run

    @property
    def cost(self) -> float:
        """Sampled tokens to the goal; the whole budget where it was never reached."""
        return self.spent if self.to_goal is None else self.to_goal

    @property
    def merit(self) -> tuple[float, float]:
        """Smaller is better: the tokens to the goal, then the area under the curve."""
        return float("inf") if self.to_goal is None else self.to_goal, -self.area


@dataclass(frozen=True)
class Result:
    """What became of an arm."""

    name: str
    setting: Setting
    tuned: tuple[float, float]  # merit of the setting on the base that it was chosen on
    runs: list[Outcome]  # on the judging bases


def tokens_to_hold(
    tokens: Sequence[float], curve: Sequence[float], goal: float = GOAL
) -> float | None:
    """Sampled tokens at which a curve first crosses the goal and then holds it; None: never.

    Linear between two evaluations. It holds where HELD evaluations in a row are at the goal.
    """
    for i in range(len(curve) - HELD + 1):
        if min(curve[i : i + HELD]) >= goal:
            if i == 0:
                return 0.0
            part = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
            return float(tokens[i - 1] + part * (tokens[i] - tokens[i - 1]))
    return None


def read_lane(curves: Curves, lane: int, base: int) -> Outcome:
    """One lane of `run_lanes`."""
    return sum_up(base, curves.steps_e.tolist(), curves.verified_le[lane].tolist())


def sum_up(base: int, tokens: Sequence[float], verified: Sequence[float]) -> Outcome:
    """The outcome of one curve: sampled tokens at its evaluations, and verified accuracy there."""
    parts = zip(pairwise(tokens), pairwise(verified), strict=True)
    area = sum((t1 - t0) * (v0 + v1) / 2 for (t0, t1), (v0, v1) in parts)
    return Outcome(
        base=base,
        to_goal=tokens_to_hold(tokens, verified),
        spent=int(tokens[-1]),
        start=verified[0],
        end=verified[-1],
        area=area / tokens[-1],
    )


@dataclass(frozen=True)
class Race:
    """One comparison: a wrong rule, a number of operations, what may be spent, what is tried."""

    rule: str
    num_steps: int
    budget: int  # sampled tokens of a run; a table's step is one token
    arms: Sequence[str] = tuple(ARMS)
    policy: str = "table"  # a name of POLICIES
    rates: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    entropy_coefs: Sequence[float] = (0.0,)
    # And beyond, down to one group, where the best is at an end.
    num_rollouts: Sequence[int] = (16, 64, 256)
    tuning_seeds: Sequence[int] = (0, 1, 2, 3)
    bases: Sequence[int] = tuple(range(1, 11))  # TUNED_ON is none of them
    seeds: Sequence[int] = (0, 1, 2)

    @property
    def name(self) -> str:
        """For tables."""
        return f"a {self.policy}, {self.rule}, {self.num_steps} operations"

    def run(self, b: Results) -> Iterator[Result]:
        """Every arm: choose its setting, then judge it."""
        for name in self.arms:
            setting, tuned = self.choose_setting(b, name)
            lanes = [(setting.rate, base, seed) for base in self.bases for seed in self.seeds]
            yield Result(name, setting, tuned, self.once(b, name, setting.plan, lanes))

    def choose_setting(self, b: Results, name: str) -> tuple[Setting, tuple[float, float]]:
        """The best setting of an arm on the base that settings are chosen on, and its merit.

        A merit is the mean over seeds: a setting with which one of them never arrives is worse than
        any with which all do. A decaying rate is tried with the best of the rest.
        """
        merits = {}
        # What a control does to the entropy is what it is.
        coefs = (0.0,) if ARMS[name].kind == "control" else self.entropy_coefs
        waiting = list(self.num_rollouts)
        while waiting:
            num_rollouts = waiting.pop(0)
            for coef in coefs:
                merits |= self.rank_rates(b, name, Plan(num_rollouts, False, coef))
            if waiting:
                continue
            best = min(merits, key=merits.__getitem__).plan
            tried = sorted({setting.plan.num_rollouts for setting in merits})
            if best.num_rollouts == tried[0] > GROUP:
                waiting = [tried[0] // 2]
            elif best.num_rollouts == tried[-1] < MAX_ROLLOUTS:
                waiting = [tried[-1] * 2]
        merits |= self.rank_rates(b, name, replace(best, decay=True))
        best = min(merits, key=merits.__getitem__)
        return best, merits[best]

    def rank_rates(self, b: Results, name: str, plan: Plan) -> dict[Setting, tuple[float, float]]:
        """The merit of every rate; see `choose_setting`."""
        lanes = [(rate, TUNED_ON, seed) for rate in self.rates for seed in self.tuning_seeds]
        runs = self.once(b, name, plan, lanes)
        merits = {}
        num_seeds = len(self.tuning_seeds)
        for i, rate in enumerate(self.rates):
            mine = runs[i * num_seeds : (i + 1) * num_seeds]
            mean = np.mean([run.merit for run in mine], axis=0)
            merits[Setting(rate, plan)] = tuple(mean.tolist())
        return merits

    def once(
        self, b: Results, name: str, plan: Plan, lanes: Sequence[tuple[float, int, int]]
    ) -> list[Outcome]:
        """The runs of lanes (rate, base, seed), from `b` if they are there."""
        # The version: since the second one, chains hold their own steps only, and draws differ.
        key = {
            "part": "race",
            "version": 2,
            "rule": self.rule,
            "num_steps": self.num_steps,
            "arm": name,
        }
        key |= asdict(plan) | {"budget": self.budget, "policy": self.policy}
        rates, bases, seeds = (sorted(set(values)) for values in zip(*lanes, strict=True))
        key |= {"rates": rates, "bases": bases, "seeds": seeds}

        def work() -> dict:
            began = time.perf_counter()
            # Programs are compiled for one number of lanes: the last lane stands in for the rest.
            padded = [*lanes, *[lanes[-1]] * (-len(lanes) % NUM_LANES)]
            arm = ARMS[name]
            tables = np.stack([make_table(self.rule, base) for _, base, _ in padded])
            weights = POLICIES[self.policy].make(tables, np.array([base for _, base, _ in padded]))
            curves = run_lanes(
                replace(arm, entropy_coef=arm.entropy_coef + plan.entropy_coef),
                plan.num_rollouts,
                self.policy,
                weights,
                rates=np.array([rate for rate, _, _ in padded]),
                # Two lanes with one base and one seed see the same problems.
                seeds=np.array([1000 * base + seed for _, base, seed in padded]),
                num_steps=self.num_steps,
                budget=self.budget,
                decay=plan.decay,
                problems=int(bases == [TUNED_ON]),  # settings are chosen on others
            )
            runs = [read_lane(curves, i, base) for i, (_, base, _) in enumerate(lanes)]
            return {
                "runs": [asdict(run) for run in runs],
                "run_seconds": round(time.perf_counter() - began, 1),
            }

        return [Outcome(**run) for run in b.once(key, work)["runs"]]


# From short chains, where one bit is enough, to long ones; and other wrong rules.
TABLES = (
    *(Race("products", k, 50_000 * k) for k in (4, 6, 8, 12, 16, 24)),
    Race("products, loosely", 12, 600_000),
    Race("minus for plus", 12, 600_000),
)
# A network's weights want smaller steps than a table's logits, and it settles on what is wrong.
NETWORKS = tuple(
    Race(
        "products",
        num_steps,
        25_000 * num_steps,
        policy="network",
        rates=(1e-3, 2e-3, 4e-3, 8e-3),
        num_rollouts=(16, 64),
        entropy_coefs=(0.0, 0.03),
        tuning_seeds=(0, 1),
        bases=tuple(range(1, 9)),
        seeds=(0,),
    )
    for num_steps in (4, 12, 24)
)
RACES = (*TABLES, *NETWORKS)
