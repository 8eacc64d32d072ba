"""The races on a transformer: facts share weights, and steps are text that has to be found.

A base imitates the solutions of somebody who holds the wrong rule, from random weights; every
base has weights and problems of its own. Then the product's own RL runs on it, arm by arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax

from experiments.credit import training
from experiments.credit.bases import MISCONCEPTIONS, solve_with_misconception
from experiments.credit.imitation import IMITATION
from experiments.credit.race import ARMS, GROUP, TUNED_ON, Outcome, Race, sum_up, tokens_to_hold
from experiments.credit.training import TOKENIZER
from experiments.results import Results, init_lm, load_or_make
from ramp.config import Reinforce, replace_train
from ramp.credit import advantages, learn, rewards
from ramp.model.loss import next_token_loss
from ramp.tasks import TASKS
from ramp.tasks.split import Part

NUM_POINTS = 50  # evaluations of a run that spends its whole budget
SFT_STEPS = 2000
# What an arm's reward is called in a configuration, where that differs.
REWARDS = {"verified + share": "0.5 verified + 0.5 share"}


@dataclass(frozen=True)
class TransformerRace(Race):
    """One comparison of policies that are transformers; smaller grids than with tables."""

    rates: Sequence[float] = (3e-4, 1e-3, 3e-3)
    num_rollouts: Sequence[int] = (32, 128)
    tuning_seeds: Sequence[int] = (0,)
    bases: Sequence[int] = (1, 2, 3)
    seeds: Sequence[int] = (0,)

    @property
    def name(self) -> str:
        """For tables."""
        return f"a transformer, {self.rule}, {self.num_steps} operations"

    def once(
        self,
        b: Results,
        name: str,
        num_rollouts: int,
        decay: bool,
        lanes: Sequence[tuple[float, int, int]],
    ) -> list[Outcome]:
        """The runs of lanes (rate, base, seed) one after the other, each kept in `b`."""
        b = fit_length(b, self.num_steps)
        outcomes = []
        for rate, base, seed in lanes:
            key = {"part": "transformer race", "rule": self.rule, "num_steps": self.num_steps}
            key |= {"arm": name, "rate": rate, "num_rollouts": num_rollouts, "decay": decay}
            key |= {"base": base, "seed": seed, "budget": self.budget}

            def work(rate=rate, base=base, seed=seed) -> dict:
                params = make_base(b, self.rule, base)
                part: Part = "selection" if base == TUNED_ON else "test"
                recipe = fit_recipe(b.t, name, rate, num_rollouts, decay, self.budget)
                return run_curve(b, recipe, params, seed, self.budget, part)

            curve = b.once(key, work)
            outcomes.append(sum_up(base, curve["tokens"], curve["verified"]))
        return outcomes


def fit_length(b: Results, num_steps: int) -> Results:
    """The model's context and the rows as long as chains of `num_steps` operations need."""
    solution = 3 * num_steps + 6
    length = 8 * num_steps + 16  # five bytes an operation in the question, three in the solution
    t = replace(b.t, task="chain", level=num_steps, max_new_tokens=solution)
    model = replace(b.model, context_len=length)
    return replace(b, model=model, t=replace_train(t, seq_len=length))


def make_base(b: Results, rule: str, seed: int) -> dict:
    """A policy that imitates the solutions of somebody who holds the wrong rule."""
    t = replace_train(
        b.t, batch_size=64, lr_scale=3e-3, warmup_steps=20, decay_fraction=0.3, steps=SFT_STEPS
    )
    rows = partial(
        learn.make_sft_batch,
        TOKENIZER,
        TASKS["chain"],
        t.level,
        64,
        t.train.seq_len,
        seed=seed,
        solve=partial(solve_with_misconception, rule=MISCONCEPTIONS[rule]),
    )
    begin = init_lm(b.model, seed)
    loss = next_token_loss(b.model, 0.0)
    return load_or_make(
        b,
        f"base-{rule}-{t.level}-{seed}",
        begin,
        lambda: training.train_model(b.model, t, loss, begin, rows),
    )


def fit_recipe(
    t: Reinforce, name: str, rate: float, num_rollouts: int, decay: bool, budget: int
) -> Reinforce:
    """The recipe of a run: as many updates as the budget pays for."""
    arm = ARMS[name]
    num_prompts = num_rollouts // GROUP
    tokens_an_update = num_prompts * GROUP * (3 * t.level + 2)  # of right solutions
    t = replace(
        t,
        method=arm.method,
        reward=REWARDS.get(arm.reward, arm.reward),
        entropy_coef=arm.entropy_coef,
        keep_all_groups=arm.kind == "control",  # entropy is minimised where nothing is rewarded
        num_prompts=num_prompts,
        group_size=GROUP,
    )
    rewards.parse_reward(t.reward)
    steps = round(budget / tokens_an_update)
    return replace_train(t, lr_scale=rate, steps=steps, decay_fraction=0.5 if decay else 0.0)


def run_curve(
    b: Results, t: Reinforce, base: dict, seed: int, budget: int, part: Part
) -> dict[str, list[float]]:
    """Verified accuracy after how many sampled tokens; it ends early where the goal is held."""
    advantages.METHODS.update(IMITATION)
    tokens, spent = [0], 0
    verified = [measure_verified(b, t, base, part, 0)]
    for i, (iteration, state, _) in enumerate(training.run_reinforce(b, t, base, seed + 1)):
        spent += iteration.num_tokens
        is_last = i + 1 == t.train.steps
        # Half of the evaluations lie in the first tenth, so that an early goal has points before.
        gap = budget / NUM_POINTS / (5 if spent < budget / 10 else 1)
        if spent >= tokens[-1] + gap or is_last:
            tokens.append(spent)
            verified.append(measure_verified(b, t, state.params, part, i + 1))
        if tokens_to_hold(tokens, verified) is not None:
            break
    return {"tokens": tokens, "verified": verified}


def measure_verified(b: Results, t: Reinforce, params: dict, part: Part, seed: int) -> float:
    """Verified accuracy, one sample of each held-out problem."""
    found, _ = learn.measure_accuracy(b.model, t, TOKENIZER, params, 7 + seed, part=part)
    return round(found.verified, 4)


def measure_base(b: Results, rule: str, num_steps: int, seed: int) -> dict[str, float]:
    """How right a base is on steps with the misunderstood operation, and on the others."""
    b = fit_length(b, num_steps)
    found, r = learn.measure_accuracy(
        b.model, b.t, TOKENIZER, make_base(b, rule, seed), part="selection"
    )
    op = MISCONCEPTIONS[rule].op
    rights = {True: [], False: []}
    for problem, right_s in zip(r.problems, r.right_bs, strict=True):
        for (_, this_op, _), right in zip(problem.gold[1], right_s, strict=False):
            rights[this_op == op].append(float(right))
    return {
        "verified": found.verified,
        "wrong rule": sum(rights[True]) / len(rights[True]),
        "other steps": sum(rights[False]) / len(rights[False]),
        "entropy": found.entropy,
        "weights": float(sum(a.size for a in jax.tree.leaves(init_lm(b.model)))),
    }


# The arms that say most: a run takes minutes, not seconds.
RACES = (
    TransformerRace(
        "products",
        6,
        400_000,
        (
            "no reward, entropy minimised",
            "RLOO, verified",
            "RLOO, share of right steps",
            "imitation of right steps",
            "step-local",
        ),
    ),
)
