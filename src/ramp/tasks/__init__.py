"""What the model is asked, with verdicts step by step: `protocol` says how to add a task.

Some tasks need more than a name: a file of questions, GSM8K's among them, the package
reasoning-gym, or your own file. `open_task` opens them all.
"""

import re
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ramp.config import Reinforce
from ramp.errors import UserError
from ramp.tasks import addition, chain, gsm8k, gym, paths, questions, swaps, words
from ramp.tasks.protocol import Problem, Step, Task, Verdict
from ramp.user_code import describe_failure, is_user_code, load_object, require_own_or

NUM_TRIED = 4  # problems of a user's task
# A new task is its file and one entry here.
TASKS: dict[str, Task] = {
    module.NAME: module.TASK for module in (chain, addition, words, paths, swaps)
}


def open_task(t: Reinforce) -> Task:
    """The task of a run. Raises `UserError` where it is not there, or its file does not do."""
    task = _open(t.task, t.level, t.prompts, t.prompt_field, t.answer_field, t.answer)
    return replace(task, steps=t.steps) if t.steps else task


# Files are read once: every iteration asks for the task.
@lru_cache(maxsize=8)
def _open(name: str, level: int, prompts: str, prompt: str, answer: str, pattern: str) -> Task:
    if name == gsm8k.NAME:
        if not prompts:
            raise UserError(
                "reinforce.task gsm8k needs its files: set reinforce.prompts to the folder or the "
                ".jsonl file"
            )
        return questions.load_gsm8k(prompts)
    if name and prompts:
        raise UserError(
            f"the task {name} and the prompts {prompts} both say what is asked; leave one out, "
            "or take back what a file says with --reinforce.task='' or --reinforce.prompts=''"
        )
    if prompts:
        return questions.load_prompts(prompts, prompt, answer, pattern)
    if name.startswith(gym.PREFIX):
        return gym.load_gym(name)
    if is_user_code(name):
        try:
            task = load_object(name, "reinforce.task", Task)
        except UserError as error:
            raise UserError(point_to_example(str(error))) from None
        if not isinstance(task, Task):
            needed = [f.name for f in fields(Task) if f.default is MISSING]
            lacks = [key for key in needed if not hasattr(task, key)]
            raise UserError(
                f"reinforce.task {name} is a {type(task).__name__}"
                f"{' without ' * bool(lacks)}{', '.join(lacks)}; make it a "
                f"ramp.tasks.protocol.Task({', '.join(needed)}); {EXAMPLE}"
            )
        task = guard_task(name, task)
        require_consistent(name, task, level)
        return task
    name = name or words.NAME
    require_own_or("task", name, [*TASKS, gsm8k.NAME, "FILE.py:TASK"], Task)
    return TASKS[name]


EXAMPLE = "`python -m pydoc ramp.tasks.protocol` prints an example"


def point_to_example(said: str) -> str:
    """What was said, and where to look where a task or what it returns is built wrongly."""
    return f"{said}; {EXAMPLE}" if re.search(r"\bTask\b|__init__\(\)", said) else said


def guard_task(spec: str, task: Task) -> Task:
    """A task of a user's file whose failures and odd results are one sentence with the line."""
    path = Path(spec.rpartition(":")[0]).expanduser().resolve()

    def guard(name: str, kind: type, function: Callable[..., Any]) -> Callable[..., Any]:
        what = f"{name} of the task {spec}"
        if not callable(function):
            found = type(function).__name__
            raise UserError(f"{what} is a {found}; it must be a function; {EXAMPLE}")

        def guarded(*args: Any) -> Any:
            try:
                result = function(*args)
            except UserError:
                raise
            except Exception as error:
                said = f"{what} fails: {describe_failure(error, path)}; mend it"
                if name == "sample":
                    said += f", or choose another --reinforce.level than {args[1]}"
                raise UserError(point_to_example(said)) from None
            if not isinstance(result, kind):
                found, wanted = type(result).__name__, kind.__name__
                raise UserError(f"{what} returned a {found}; it must return a {wanted}")
            # The steps of a solution and the verdicts on them go side by side.
            if isinstance(result, Verdict) and len(result.steps) != len(args[1]):
                raise UserError(
                    f"{what} returned {len(result.steps)} verdicts on {len(args[1])} steps; "
                    "return one for each"
                )
            return result

        return guarded

    return replace(
        task,
        sample=guard("sample", Problem, task.sample),
        solution=guard("solution", list, task.solution),
        judge=guard("judge", Verdict, task.judge),
    )


def require_consistent(spec: str, task: Task, level: int) -> None:
    """Raise `UserError` where a task contradicts itself on one of its first problems."""
    for seed in range(NUM_TRIED):
        problem, again = task.sample(seed, level), task.sample(seed, level)
        if (problem.question, problem.answer) != (again.question, again.answer):
            raise UserError(
                f"sample({seed}, {level}) of the task {spec} is another problem at each call; take "
                "what is random from ramp.tasks.protocol.make_rng(NAME, seed, level)"
            )
        # Some problems have no answer that anybody knows.
        verdict = task.judge(problem, task.solution(problem), problem.answer or None)
        wrong = [step.why or "wrong" for step in verdict.steps if step.right is False]
        if problem.answer and verdict.final_right is False:
            wrong.append("a wrong answer")
        if wrong:
            raise UserError(
                f"judge of the task {spec} finds fault with its own solution of "
                f"{problem.question!r}: {wrong[0]}; mend judge, solution or answer"
            )


__all__ = ["TASKS", "Problem", "Step", "Task", "Verdict", "open_task"]
