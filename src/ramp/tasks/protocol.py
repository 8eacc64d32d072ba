'''What a task is, its solutions as tokens, and verdicts step by step.

A task is a name and three functions:

* `sample(seed, level)` gives a `Problem`, always the same one for the same two integers. A level
  of 1 is the easiest; usually it is the number of steps. UserError: a level that the task lacks.
* `solution(problem)` gives its right steps as a list of texts, without the answer.
* `judge(problem, steps, answer)` gives a `Verdict` on anybody's solution. It must not raise,
  whatever the texts are; an answer of None means that the solution broke off before one. What it
  cannot check it must not call right or wrong: it abstains.

Three more are optional. `reword(problem)` gives the same problem in words that `sample` never uses.
`find_answer(text)` finds the answer in the whole text of a solution, None where there is none;
without it the last piece of the text is the answer. `mistake` says how somebody would solve it who
makes the task's typical mistake.

A step is judged on its own terms: given what the solution itself stated before, is this a right
move? The answer is judged as the last step: does it follow from the steps? Whether it is the right
answer is a third thing, and a right answer over wrong steps is what this package calls luck.

A task needs its own file, which `--reinforce.task mine.py:TASK` names; one of ramp's has an entry
in `ramp/tasks/__init__.py` too. A complete example, `ramp/tasks/doubling.py`:

    import re

    from ramp.errors import UserError
    from ramp.tasks.protocol import Problem, Step, Task, close_steps, make_rng

    NAME = "doubling"

    def sample(seed, level):
        """A number that is to be doubled `level` times."""
        if not 1 <= level <= 9:
            raise UserError(f"a number is doubled 1 to 9 times, not {level}")
        start = make_rng(NAME, seed, level).randint(1, 999)
        question = f"Double {start} {level} times."
        return Problem(NAME, seed, level, question, gold=start, answer=str(start * 2**level))

    def solution(problem):
        """The number after each doubling."""
        return [str(problem.gold * 2**k) for k in range(1, problem.level + 1)]

    def judge(problem, steps, answer):
        """Step k is right when it is twice the number stated last."""
        value, verdicts = problem.gold, []
        for k, text in enumerate(steps):
            if not re.fullmatch("[0-9]{1,9}", text):
                verdicts.append(Step(False, "malformed"))
                continue
            stated = int(text)
            if k >= problem.level:
                verdicts.append(Step(False, "irrelevant"))
            elif stated != 2 * value:
                verdicts.append(Step(False, "wrong value"))
            else:
                verdicts.append(Step(True))
            value = stated  # the next step is judged by what this one stated
        follows = str(value) if len(steps) == problem.level else None
        return close_steps(verdicts, answer, follows, problem.answer)

    TASK = Task(NAME, sample, solution, judge)

As tokens a solution is

    step <|step|> step <|step|> ... step <|step|> answer <|end|>

`<|step|>` is one reserved token outside the BPE, so a boundary is never inside a token and is found
on ids, not on characters.
'''

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ramp.text.chat import render_prompt
from ramp.text.tokenizer import Tokenizer

# Why a step is wrong. Irrelevant: true, perhaps, but no step towards the answer.
# The last two are of a checker that abstains: a claim that it cannot check, or no claim at all.
Why = Literal[
    "",
    "wrong value",
    "wrong operand",
    "wrong operation",
    "irrelevant",
    "malformed",
    "unchecked",
    "no claim",
]


@dataclass(frozen=True)
class Problem:
    """One question, and all that its task needs to judge a solution."""

    task: str  # name of its task
    seed: int
    level: int
    question: str  # what the model reads
    gold: Any  # the task's own data, for its `solution` and `judge`; hashable
    answer: str  # the right final answer


@dataclass(frozen=True)
class Step:
    """The verdict on one step; `why` is empty where it is right."""

    right: bool | None  # None: the checker abstains
    why: Why = ""


# What a solution may say without having to show it, such as "Let us begin."
NO_CLAIM = Step(None, "no claim")
# A claim that stays open, so nothing that holds one is verified.
UNCHECKED = Step(None, "unchecked")


@dataclass(frozen=True)
class Verdict:
    """The verdict on a whole solution of n steps."""

    steps: tuple[Step, ...]
    answer: Step  # does the answer follow from the steps?
    final_right: bool | None  # is it the right answer? None: nobody knows the right one

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps and then the answer: n + 1 of them."""
        return (*self.steps, self.answer)

    @property
    def first_error(self) -> int | None:
        """Number of the first wrong step; n means the answer; None: nothing is known wrong."""
        return next((i for i, step in enumerate(self.all_steps) if step.right is False), None)

    @property
    def verified(self) -> bool:
        """The right answer, and every step towards it right: one that nobody checked is not."""
        return bool(self.final_right) and all(s.right or s == NO_CLAIM for s in self.all_steps)

    @property
    def lucky(self) -> bool:
        """The right answer, and something wrong on the way to it."""
        return bool(self.final_right) and self.first_error is not None


@dataclass(frozen=True)
class Sets:
    """Problems of a list that is all there is, no question twice: see `split.make_sets`."""

    train: tuple[Problem, ...]
    selection: tuple[Problem, ...]  # choose a checkpoint
    test: tuple[Problem, ...]


@dataclass(frozen=True)
class Mistake:
    """What goes wrong in a task again and again, for models that are to begin wrong."""

    about: str  # in words
    # Steps and answer of a problem, with the chance of the mistake wherever it can be made. What
    # follows it is right by what was stated, and the same arguments give the same solution.
    solve: Callable[[Problem, float], tuple[list[str], str]]


@dataclass(frozen=True)
class Task:
    """The functions of a task, and its name: see the head of this file."""

    name: str
    sample: Callable[[int, int], Problem]
    solution: Callable[[Problem], list[str]]
    judge: Callable[[Problem, Sequence[str], str | None], Verdict]
    reword: Callable[[Problem], Problem] | None = None
    find_answer: Callable[[str], str | None] | None = None
    steps: str = "token"  # what ends a step in tokens: see `cutting`
    sets: Sets | None = None  # all problems; None: `sample` makes new ones without end
    mistake: Mistake | None = None
    about: str = ""  # what was found in its file and chosen, for whoever starts a run


def make_rng(task: str, seed: int, level: int) -> random.Random:
    """The random numbers of one problem: its own, whatever was sampled before."""
    return random.Random(f"{task}:{seed}:{level}")


def close_steps(
    steps: Sequence[Step], stated: str | None, follows: str | None, gold: str
) -> Verdict:
    """The verdict on a solution, from the verdicts on its steps.

    Args:
      steps: the verdict on each step.
      stated: the answer that the solution gives; None or empty where it gives none.
      follows: the answer that its steps lead to, right or wrong; None where they lead to none.
      gold: the right answer.
    """
    if not stated:
        return Verdict(tuple(steps), Step(False, "malformed"), False)
    answer = Step(True) if stated == follows else Step(False, "wrong value")
    return Verdict(tuple(steps), answer, stated == gold)


# --- solutions to tokens


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """A conversation that asks the question, up to where the assistant speaks."""
    return render_prompt(tokenizer, [{"role": "user", "content": question}])


def solution_ids(tokenizer: Tokenizer, steps: Sequence[str], answer: str) -> list[int]:
    """The assistant's turn that gives these steps and this answer."""
    ids = []
    for step in steps:
        ids += [*tokenizer.encode(step), tokenizer.step]
    return [*ids, *tokenizer.encode(answer), tokenizer.end]


def render(
    tokenizer: Tokenizer, problem: Problem, steps: Sequence[str], answer: str
) -> tuple[list[int], list[int]]:
    """(ids, loss weights) of the whole conversation: weight 1 where ids[i] is the assistant's."""
    prompt = prompt_ids(tokenizer, problem.question)
    reply = solution_ids(tokenizer, steps, answer)
    return prompt + reply, [0] * len(prompt) + [1] * len(reply)


# --- tokens to solutions


@dataclass(frozen=True)
class Parsed:
    """Generated ids cut at their separators."""

    steps: tuple[str, ...]
    answer: str | None  # None: it never ended
    # The step each token belongs to, its separator included. The answer is number n.
    step_of_token: tuple[int, ...]


def parse(tokenizer: Tokenizer, ids: Sequence[int]) -> Parsed:
    """Steps of generated ids. Tokens after the first `<|end|>` belong to nothing (-1).

    Without an `<|end|>` there is no answer, and the tokens after the last separator are those of
    the unfinished answer.
    """
    steps, step_of_token, part = [], [], []
    for i, token in enumerate(ids):
        step_of_token.append(len(steps))
        if token == tokenizer.end:
            step_of_token += [-1] * (len(ids) - i - 1)
            return Parsed(tuple(steps), _decode(tokenizer, part), tuple(step_of_token))
        if token == tokenizer.step:
            steps.append(_decode(tokenizer, part))
            part = []
        else:
            part.append(token)
    return Parsed(tuple(steps), None, tuple(step_of_token))


def _decode(tokenizer, ids: Sequence[int]):
    # A model's table may be padded beyond the tokenizer's ids. Byte 255 is never part of UTF-8.
    known = [i if i < tokenizer.vocab_size else 255 for i in ids]
    return tokenizer.decode(known).strip()


# --- slices


def make_slices(task: Task, seed: int, level: int) -> list[tuple[str, Problem]]:
    """(name, problem): one problem as it is ("base"), and variants of it where the task has them.

    "longer" is another problem, longer by half; "reworded" uses words kept out of training; "typos"
    is mistyped. A task whose questions have no words lacks the last two.
    """
    base = task.sample(seed, level)
    # Far from the seeds of training, which begin at 0.
    longer = task.sample(seed - 10**9, level + max(1, level // 2))
    slices = [("base", base), ("longer", longer)]
    if task.reword:
        slices.append(("reworded", task.reword(base)))
    mistyped = add_typos(base.question, seed)
    if mistyped != base.question:
        slices.append(("typos", replace(base, question=mistyped)))
    return slices


def add_typos(text: str, seed: int, fraction: float = 0.2) -> str:
    """Swap two inner letters that differ in a `fraction` of the long words, and in one at least.

    Long is five letters or more. Numbers stay as they are.
    """
    rng = random.Random(f"typos:{seed}")
    words = text.split(" ")
    swaps = {}  # word number -> places whose letter can change places with the next one
    for i, word in enumerate(words):
        places = [j for j in range(1, len(word) - 2) if word[j] != word[j + 1]]
        if word.isalpha() and len(word) >= 5 and places:
            swaps[i] = places
    count = min(len(swaps), max(1, round(fraction * len(swaps))))
    for i in rng.sample(list(swaps), count):
        word, j = words[i], rng.choice(swaps[i])
        words[i] = word[:j] + word[j + 1] + word[j] + word[j + 2 :]
    return " ".join(words)
