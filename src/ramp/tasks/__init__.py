"""What the model is asked, with verdicts step by step: see `protocol`."""

from ramp.tasks import addition, chain, paths, swaps, words
from ramp.tasks.protocol import Problem, Step, Task, Verdict

TASKS: dict[str, Task] = {
    t.name: t for t in (chain.TASK, addition.TASK, words.TASK, paths.TASK, swaps.TASK)
}

__all__ = ["TASKS", "Problem", "Step", "Task", "Verdict"]
