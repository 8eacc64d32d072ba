"""The benchmark.

Process credit compared with outcome credit, same policy, same optimizer, same tokens counted.

`python -m experiments.credit configs/credit-bench.toml` does its parts in order and writes each
result as one line of `bench.jsonl` in the run directory; what is there is not done again, so it can
be stopped and resumed at any time. The policy is a small transformer on the task `chain`, taught at
last by solutions that slip now and then: it knows the form and most facts, and is right as often as
its teachers were.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.credit import (
    chain_values,
    data,
    estimators,
    heads,
    law,
    race,
    race_table,
    solvers,
    table,
    training,
)
from experiments.credit.training import TOKENIZER
from experiments.results import Results, init_lm, load_or_make
from ramp.config import Config, replace_train
from ramp.credit import audit, learn, rewards, rollouts
from ramp.credit.advantages import METHODS
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.model.loss import next_token_loss
from ramp.tasks import TASKS, chain, swaps

# Fraction of the steps at which the teachers state a random digit: set so that the policies succeed
# about as often as the bars on misassigned credit and on low skill ask for, by looking at their
# success alone.
SLIPS = {"half": 0.1, "mid": 0.17}
MIN_EXPERT = 0.9  # verified accuracy of the policy that the others start from


def policy(
    b: Results, name: str, solve: Callable | None, steps: int, start: dict | None = None
) -> dict:
    """A policy that imitates `solve`, from nothing or from `start`."""
    t = replace_train(
        b.t, batch_size=64, lr_scale=3e-3, warmup_steps=20, steps=steps, decay_fraction=0.2
    )
    rows = partial(
        learn.make_sft_batch, TOKENIZER, TASKS[t.task], t.level, 64, t.train.seq_len, solve=solve
    )
    begin = start or init_lm(b.model)
    return load_or_make(
        b,
        f"policy-{name}",
        begin,
        lambda: training.train_model(b.model, t, next_token_loss(b.model, 0.0), begin, rows),
    )


# The parts


def gradients(b: Results) -> None:
    """Estimators against the exact gradient, at three skills of the table policy."""
    asked = [chain.sample(i, 8) for i in range(4)]
    for skill in (0.25, 0.8, 0.95):
        logits = chain_values.skilled(0, skill)
        for method in ("rloo", "vine", "grpo", "prover", "oracle", "step_local"):

            def work(logits=logits, method=method) -> dict:
                found = estimators.audit_gradient(logits, asked, method, 8, 1500)
                return vars(found) | {"success": float(chain_values.success(logits, asked))}

            b.once({"part": "gradient", "skill": skill, "method": method}, work)


def misassigned(b: Results, base: dict, name: str) -> None:
    """Where each method's credit goes on the same rollouts of the base policy."""

    def work() -> dict:
        task = TASKS[b.t.task]
        asked = learn.make_problems(task, b.t.level, 0, 32)
        r = rollouts.sample_rollouts(
            b.model, base["lm"], TOKENIZER, task, asked, 16, b.t.max_new_tokens, 0
        )
        t = replace(b.t, method="vine", num_continuations=8)
        given = rewards.reward_answer(r, TOKENIZER)
        credit, cost = learn.build_credit(b.model, t, TOKENIZER, base, None, r, given, 0)
        named = (
            "rloo",
            "grpo",
            "vine",
            "prover",
            "grpo_process",
            "min_form",
            "step_local",
            "first_error",
        )
        found = {
            m: vars(audit.misassigned_credit(r, np.asarray(METHODS[m](credit)))) for m in named
        }
        return {
            "right": float(r.outcome_b.mean()),
            "tokens": r.num_tokens,
            "continuation_tokens": cost,
            "methods": found,
        }

    b.once({"part": "misassigned", "base": name}, work)


def flat(tree: dict) -> np.ndarray:
    """All numbers of a pytree in one float64 row.

    On the host, since a split array may not be reshaped at will.
    """
    return np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in jax.tree.leaves(tree)])


def unbiased(b: Results, base: dict) -> None:
    """RLOO's mean gradient on the transformer against the exact one, on short chains, where all
    ways can be summed.
    """

    def work() -> dict:
        asked, c = [chain.sample(i, 3) for i in range(4)], b.model
        chance = jax.jit(
            jax.value_and_grad(lambda lm, r: chain_values.transformer_success(c, lm, r))
        )
        found = [
            chance(base["lm"], learn.shard_batch(chain_values.every_success(TOKENIZER, p, 48)))
            for p in asked
        ]
        want = np.mean([flat(g) for _, g in found], axis=0)
        t = replace(b.t, level=3, num_prompts=4, group_size=64, max_new_tokens=16)
        t = replace_train(t, seq_len=48)
        total = jax.jit(
            jax.grad(lambda lm, batch: learn.make_loss(c, t)({"lm": lm}, batch, None)[0])
        )
        got, won = 0.0, []
        for i in range(120):
            r = rollouts.sample_rollouts(c, base["lm"], TOKENIZER, chain.TASK, asked, 64, 16, i)
            batch = learn.shard_batch(
                rollouts.make_rows(r, 48, np.asarray(METHODS["rloo"](learn.checker_credit(r))))
            )
            got = got - flat(total(base["lm"], batch))
            won.append(r.outcome_b.mean())
        cos = float(got @ want / np.linalg.norm(got) / np.linalg.norm(want))
        exact_success = float(np.mean([v for v, _ in found]))
        return {"cos": cos, "exact_success": exact_success, "sampled_success": float(np.mean(won))}

    b.once({"part": "unbiased", "policy": "transformer", "method": "rloo"}, work)


# Diversity


def diverse(b: Results) -> None:
    """Sorting by swaps, where many orders are right: what is left of them after process credit?"""
    t = replace(b.t, task="swaps", level=3, max_new_tokens=40, method="step_local")
    t = replace_train(t, lr_scale=3e-4, steps=40)
    base = policy(replace(b, t=t), "swaps", solvers.solve_by_random_swaps, 900)

    def work() -> dict:
        asked = learn.held_out_problems(swaps.TASK, t.level, 64)
        *_, (_, state, _) = training.run_reinforce(b, t, base, 5)
        found = {}
        for when, params in (("before", base), ("after", state.params)):
            r = rollouts.sample_rollouts(
                b.model, params["lm"], TOKENIZER, swaps.TASK, asked, 16, t.max_new_tokens, 3
            )
            diversity = audit.measure_diversity(r)
            figures = {f"pass@{k}": value for k, value in diversity.pass_at_k.items()}
            figures |= {"distinct": diversity.distinct, "entropy": diversity.entropy}
            found |= {f"{k} {when}": round(v, 4) for k, v in figures.items()}
        return found

    b.once({"part": "diversity", "task": "swaps"}, work)


# The whole


def run(directory: Path, c: Config, data_dir: Path | None = None) -> str:
    """Do what is not done yet; the table as Markdown, also written to `bench.md`."""
    if c.reinforce.task != "chain":
        raise UserError(
            f"the benchmark is of the task 'chain', not '{c.reinforce.task}'; "
            "use configs/credit-bench.toml"
        )
    directory.mkdir(parents=True, exist_ok=True)
    b = Results(directory, c.model, c.reinforce)
    if data_dir:
        process = data_dir / "process"
        solutions = process / "gsm8k_example_model_solutions.jsonl"
        b.once({"part": "data", "set": "gsm8k"}, lambda: data.gsm8k_solutions(solutions))
        b.once({"part": "data", "set": "mistakes"}, lambda: data.big_bench_mistake(process))
    steps = c.reinforce.sft_steps
    expert = policy(b, "expert", None, steps)
    accuracy, _ = learn.measure_accuracy(b.model, b.t, TOKENIZER, expert)
    if accuracy.verified < MIN_EXPERT:
        # Policies that slip start from this one: they could not reach the goal either.
        raise UserError(
            f"the expert solves {accuracy.verified:.0%} of the problems after "
            f"reinforce.sft_steps = {steps} steps; raise it"
        )
    # A tenth of the steps on solutions that slip, which the expert learns to imitate.
    base = {}
    for name, fraction in SLIPS.items():
        solve = partial(solvers.solve_with_slips, fraction=fraction)
        base[name] = policy(b, name, solve, steps // 10, expert)
    misassigned(b, base["half"], "half")
    short = replace(b, t=replace(b.t, level=3))
    solve = partial(solvers.solve_with_slips, fraction=0.3)
    unbiased(b, policy(short, "short", solve, steps // 10, expert))
    heads.run_heads(b, base["mid"])
    diverse(b)
    gradients(b)
    report = table.report(b.results())
    write_atomic(directory / "bench.md", report)
    return report


def run_races(directory: Path, c: Config) -> str:
    """Every method with every reward on policies that hold a wrong rule, as Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    b = Results(directory, c.model, c.reinforce)
    return race_table.report([(one.name, list(one.run(b))) for one in race.RACES])


def run_law(directory: Path, c: Config) -> str:
    """What longer chains cost, forecast from shorter ones, as Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    b = Results(directory, c.model, c.reinforce)
    forecasts = law.report([row for one in law.LAWS for row in law.judge(b, one)])
    return "\n".join([forecasts, *(law.tabulate(b, one) for one in law.LAWS)])
