"""What the model is asked, with verdicts step by step: `protocol` says how to add a task.

Some tasks need more than a name: a file of questions, GSM8K's among them, the package
reasoning-gym, or your own file. `open_task` opens them all.
"""

from dataclasses import replace
from functools import lru_cache

from ramp.config import Reinforce
from ramp.errors import UserError
from ramp.tasks import addition, chain, gsm8k, gym, paths, questions, swaps, words
from ramp.tasks.protocol import Problem, Step, Task, Verdict
from ramp.user_code import is_user_code, load_object

# A new task is its file and one entry here.
TASKS: dict[str, Task] = {
    module.NAME: module.TASK for module in (chain, addition, words, paths, swaps)
}


def open_task(t: Reinforce) -> Task:
    """The task of a run. Raises `UserError` where it is not there, or its file does not do."""
    task = _open(t.task, t.prompts, t.prompt_field, t.answer_field, t.answer)
    return replace(task, steps=t.steps) if t.steps else task


# Files are read once: every iteration asks for the task.
@lru_cache(maxsize=8)
def _open(name: str, prompts: str, prompt: str, answer: str, pattern: str) -> Task:
    if name == gsm8k.NAME:
        if not prompts:
            raise UserError(
                "reinforce.task gsm8k needs its files: set reinforce.prompts to the folder or the "
                ".jsonl file"
            )
        return questions.load_gsm8k(prompts)
    if prompts:
        return questions.load_prompts(prompts, prompt, answer, pattern)
    if name.startswith(gym.PREFIX):
        return gym.load_gym(name)
    if is_user_code(name):
        task = load_object(name, "reinforce.task")
        if not isinstance(task, Task):
            raise UserError(
                f"reinforce.task {name} is a {type(task).__name__}; it must be a "
                "ramp.tasks.protocol.Task"
            )
        return task
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; it can be {', '.join(TASKS)} or FILE.py:TASK")
    return TASKS[name]


__all__ = ["TASKS", "Problem", "Step", "Task", "Verdict", "open_task"]
