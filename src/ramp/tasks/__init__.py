"""What the model is asked, with verdicts step by step: `protocol` says how to add a task.

`gsm8k` is no entry of `TASKS`: it needs a file of problems, so it is made by `gsm8k.load_task`.
"""

from ramp.tasks import addition, chain, paths, swaps, words
from ramp.tasks.protocol import Problem, Step, Task, Verdict

# A new task is its file and one entry here.
TASKS: dict[str, Task] = {
    module.NAME: module.TASK for module in (chain, addition, words, paths, swaps)
}

__all__ = ["TASKS", "Problem", "Step", "Task", "Verdict"]
