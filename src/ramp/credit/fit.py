"""Whether task, reward and method fit together: asked before anything is trained.

A reward is tried on a few written solutions, right ones and wrong ones. So a function of your own
that fails, or that gives rewards of another kind than the method needs, is found at once.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from ramp.config import Reinforce
from ramp.credit import rewards
from ramp.credit.advantages import METHODS
from ramp.credit.audit import solutions_as_rollouts
from ramp.credit.rollouts import Rollouts
from ramp.errors import UserError
from ramp.tasks import open_task
from ramp.tasks.cutting import write_solution
from ramp.tasks.questions import list_files
from ramp.tasks.split import describe_sets, make_problems
from ramp.text.tokenizer import Tokenizer
from ramp.user_code import is_user_code

# What a method of a family reads. A teacher needs no reward.
NEEDS = {
    "outcome": "rollouts",
    "monte_carlo": "rollouts",
    "implicit": "rollouts",
    "process": "steps",
}
ONE_OF = {"rollouts": "rollout", "steps": "step"}


def write_rollouts(t: Reinforce) -> tuple[Rollouts, Tokenizer]:
    """A right and a broken solution of each of two problems, written as bytes, in groups of two."""
    task = open_task(t)
    tokenizer = Tokenizer.bytes_only()
    problems, solutions = [], []
    for problem in make_problems(task, t.level, 0, 2):
        steps = task.solution(problem)
        right = write_solution(tokenizer, task, steps, problem.answer or "?")
        wrong = write_solution(tokenizer, task, ["?", *steps[1:]], "?")
        problems += [problem, problem]
        solutions += [right, wrong]
    return solutions_as_rollouts(tokenizer, task, problems, solutions, group_size=2), tokenizer


def find_kinds(t: Reinforce) -> set[str]:
    """What `reinforce.reward` gives on the task: "rollouts", "steps" or both."""
    r, tokenizer = write_rollouts(t)
    given = rewards.judge(t.reward, r, tokenizer, t.reward_seconds)
    rollout_b = given.rollout_b
    family = METHODS[t.method].family
    if family == "implicit" and rollout_b is not None and ((rollout_b < 0) | (rollout_b > 1)).any():
        raise UserError(
            f"reinforce.method {t.method} learns chances, and reinforce.reward {t.reward!r} is "
            "below 0 or above 1; scale it"
        )
    # A function of one's own may have reason to abstain from these few. A checker that can tell
    # anything can tell it of right solutions, which are every second one.
    is_own = any(is_user_code(term.name) for term in rewards.parse_reward(t.reward))
    kinds = set()
    if rollout_b is not None and (is_own or not np.isnan(rollout_b[::2]).all()):
        kinds.add("rollouts")
    step_bs, exists_bs = given.step_bs, r.exists_bs[::2] > 0
    if step_bs is not None and (is_own or not np.isnan(step_bs[::2][exists_bs]).all()):
        kinds.add("steps")
    return kinds


def list_fitting_methods(t: Reinforce, kinds: set[str]) -> list[str]:
    """Names of the methods that need no more than this, and no more rollouts a group."""
    too_few = ["pass_at_k"] if t.group_size < t.pass_k else []
    fits = (name for name, m in METHODS.items() if NEEDS.get(m.family) in kinds)
    return [name for name in fits if name not in too_few]


def require_fit(t: Reinforce) -> str:
    """A sentence on what a run will train on. Raises `UserError` where it cannot work."""
    task = open_task(t)
    sets = describe_sets(task, t.level, t.num_eval_problems)
    kinds = find_kinds(t)
    family = METHODS[t.method].family
    need = NEEDS.get(family)
    if need and need not in kinds:
        has = " and ".join(f"per {ONE_OF[kind]}" for kind in sorted(kinds)) or "of no kind here"
        fitting = ", ".join(list_fitting_methods(t, kinds))
        raise UserError(
            f"reinforce.method {t.method} needs numbers per {ONE_OF[need]}, and reinforce.reward "
            f"{t.reward!r} gives numbers {has} on {task.name}; "
            + (f"methods that fit: {fitting}" if fitting else "set a reward of your own")
        )
    terms = [term.name for term in rewards.parse_reward(t.reward)]
    if "verified" in terms and not is_verifiable(t):
        raise UserError(
            f"reinforce.reward {t.reward!r} has 'verified', which no solution on {task.name} can "
            "be: nobody judges its steps; take 'answer' instead, or a reward of your own"
        )
    # A part of a sum that says nothing of steps has no effect on a method that reads steps.
    idle = []
    if need == "steps":
        idle = [name for name in terms if need not in find_kinds(replace(t, reward=name))]
    if family == "monte_carlo" and rewards.uses(t.reward, "majority"):
        raise UserError(
            f"reinforce.method {t.method} judges continuations one by one, and the reward majority "
            "judges whole groups; methods that fit: rloo, grpo"
        )
    about = f"{task.about}; " if task.about else ""
    unread = f", of which {t.method} does not read {', '.join(idle)}" if idle else ""
    return f"{about}steps end at: {task.steps}; {sets}; reward: {t.reward}{unread}"


def hash_sources(t: Reinforce) -> str:
    """A hash of the questions and of your own code that a run trains on; empty: it has neither.

    Of the files that are named, not of what these import.
    """
    specs = [t.task, *(term.name for term in rewards.parse_reward(t.reward))]
    files = [Path(spec.rpartition(":")[0]).expanduser() for spec in specs if is_user_code(spec)]
    if t.prompts:
        trained, tests = list_files(t.prompts)
        files += [*trained, *tests]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def is_verifiable(t: Reinforce) -> bool:
    """Whether the task can call a right solution verified."""
    r, _ = write_rollouts(t)
    return bool(r.verified_b.any())
