"""Tasks of the package reasoning-gym, by name: `reasoning_gym:chain_sum`.

It judges answers, not steps. Levels do not apply: its own defaults do.
"""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict
from ramp.tasks.questions import find_last_line

PREFIX = "reasoning_gym:"


def load_gym(spec: str) -> Task:
    """The task of `reasoning_gym:NAME`. Raises `UserError` where there is none such."""
    try:
        # Not a dependency: few need it.
        reasoning_gym = importlib.import_module("reasoning_gym")
    except ImportError:
        raise UserError(
            f"reinforce.task {spec} needs the package reasoning-gym: pip install 'ramp-lm[gym]'"
        ) from None
    name = spec.removeprefix(PREFIX)
    known = reasoning_gym.factory.DATASETS
    if name not in known:
        listed = ", ".join(sorted(known)[:8])
        raise UserError(f"reinforce.task: reasoning_gym has no {name}; it has {listed}, ...")
    scorer = reasoning_gym.create_dataset(name, seed=0, size=1)

    def sample(seed: int, level: int) -> Problem:
        """A data set of one: some of them look at how many there are."""
        # It takes 32 bits. Their remainder would be the same for every retry of a training problem.
        digest = hashlib.blake2b(str(seed).encode(), digest_size=4).digest()
        short = int.from_bytes(digest, "big")
        entry: dict[str, Any] = reasoning_gym.create_dataset(name, seed=short, size=1)[0]
        return Problem(spec, seed, level, entry["question"], entry, str(entry["answer"]))

    def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
        """The package's own score of the answer; only a full one is right."""
        unchecked = tuple(Step(None) for _ in steps)
        right = answer is not None and scorer.score_answer(answer, problem.gold) > 0.999
        return Verdict(unchecked, Step(None), right)

    return Task(
        spec,
        sample,
        solution=lambda problem: [],
        judge=judge,
        find_answer=find_last_line,
        steps="newline",
        about=f"{name} of reasoning-gym; the answer of a solution is its last line",
    )
