"""The picture of the README: two solutions of one problem, and the credit that methods give them.

    figure = draw_example()          a matplotlib figure
    write_example(path)              as SVG, about 30 kB

Nothing is trained or sampled: the solutions are written here and judged by the task's checker, so
the picture is the same every time.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ramp.credit import page
from ramp.credit.advantages import METHODS
from ramp.credit.audit import solutions_as_rollouts
from ramp.credit.learn import checker_credit
from ramp.credit.rollouts import Rollouts
from ramp.tasks import chain
from ramp.tasks.protocol import solution_ids
from ramp.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()
QUESTION = (3, (("a", "+", 4), ("b", "*", 5), ("c", "-", 2)))  # 3 a+4 b*5 c-2
# A group of four. 7 * 5 and 9 * 5 end in the same digit, so the wrong first step of the second
# solution leads to the right answer by luck.
SOLUTIONS = (("a7", "b5", "c3"), ("a9", "b5", "c3"), ("a7", "b2", "c0"), ("a6", "b0", "c8"))
SHOWN = (1, 2)  # the lucky one, and a wrong one with a right step
SHOWN_METHODS = ("rloo", "step_local", "first_error")


def make_example() -> tuple[Rollouts, dict[str, np.ndarray]]:
    """The group of rollouts, and the advantages [B, N] of each method."""
    problem = chain.make(*QUESTION)
    solutions = [solution_ids(TOKENIZER, steps, steps[-1][1:]) for steps in SOLUTIONS]
    problems = [problem] * len(solutions)
    r = solutions_as_rollouts(TOKENIZER, chain.TASK, problems, solutions)
    r = replace(r, group_size=len(solutions))
    credit = checker_credit(r)
    return r, {name: np.asarray(METHODS[name](credit)) for name in SHOWN_METHODS}


def draw_example() -> Figure:
    """The rollouts SHOWN in colour, one panel each."""
    r, methods = make_example()
    return page.plot_rollouts(TOKENIZER, r, methods, SHOWN)


def write_example(path: Path) -> None:
    """The figure as an SVG file, the same bytes every time."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ramp"}):
        draw_example().savefig(path, format="svg", metadata={"Date": None, "Creator": None})
