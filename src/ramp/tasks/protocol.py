"""What a model is asked, and verdicts step by step.

A task is three functions: `sample(seed, level)` gives a problem, `solution(problem)` its right steps, and
`judge(problem, steps, answer)` says of every step of anybody's solution whether it is right and, if not, why. As tokens
a solution is

    step <|step|> step <|step|> ... step <|step|> answer <|end|>

`<|step|>` is one reserved token outside the BPE, so a boundary is never inside a token and is found on ids, not on
characters. A step is judged on its own terms: given what the solution itself stated before, is this a right move?
The answer is judged as the last step: does it follow from the steps? Whether it is the right answer is a third thing,
and a right answer over wrong steps is what this package calls luck.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ramp.text.chat import render_prompt
from ramp.text.tokenizer import Tokenizer

Why = Literal["", "wrong value", "wrong operand", "wrong operation", "irrelevant", "malformed"]


@dataclass(frozen=True)
class Problem:
    """One question. `gold` is the task's own data (tuples), `answer` the right final answer as text."""

    task: str
    seed: int
    level: int
    question: str
    gold: Any
    answer: str


@dataclass(frozen=True)
class Step:
    """The verdict on one step; `why` is empty where it is right."""

    right: bool
    why: Why = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a whole solution of n steps."""

    steps: tuple[Step, ...]
    answer: Step  # does the answer follow from the steps?
    final_right: bool  # is it the right answer?

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps and then the answer: n + 1 of them."""
        return (*self.steps, self.answer)

    @property
    def first_error(self) -> int | None:
        """Number of the first wrong step; n means the answer; None: nothing is wrong."""
        return next((i for i, step in enumerate(self.all_steps) if not step.right), None)

    @property
    def verified(self) -> bool:
        """The right answer, and every step towards it right."""
        return self.final_right and self.first_error is None

    @property
    def lucky(self) -> bool:
        return self.final_right and not self.verified


@dataclass(frozen=True)
class Task:
    """The three functions of a task, and its name."""

    name: str
    sample: Callable[[int, int], Problem]
    solution: Callable[[Problem], list[str]]
    judge: Callable[[Problem, Sequence[str], str | None], Verdict]
    reword: Callable[[Problem], Problem] | None = (
        None  # the same problem in words kept out of training
    )


def make_rng(task: str, seed: int, level: int) -> random.Random:
    """The randomness of a problem: its own, whatever was sampled before."""
    return random.Random(f"{task}:{seed}:{level}")


def close_steps(
    steps: Sequence[Step], stated: str | None, follows: str | None, gold: str
) -> Verdict:
    """A verdict whose answer is right when it is what the steps lead to; `follows` is None where they lead nowhere."""
    if stated is None or not stated:
        return Verdict(tuple(steps), Step(False, "malformed"), False)
    answer = Step(True) if stated == follows else Step(False, "wrong value")
    return Verdict(tuple(steps), answer, stated == gold)


# ---------------------------------------------------------------------------------------------------- to tokens
def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    return render_prompt(tokenizer, [{"role": "user", "content": question}])


def solution_ids(tokenizer: Tokenizer, steps: Sequence[str], answer: str) -> list[int]:
    ids: list[int] = []
    for step in steps:
        ids += [*tokenizer.encode(step), tokenizer.step]
    return [*ids, *tokenizer.encode(answer), tokenizer.end]


def render(
    tokenizer: Tokenizer, problem: Problem, steps: Sequence[str], answer: str
) -> tuple[list[int], list[int]]:
    """(ids, weights) of the whole conversation for fine-tuning; the weight is 1 where ids[i] is the assistant's."""
    prompt = prompt_ids(tokenizer, problem.question)
    said = solution_ids(tokenizer, steps, answer)
    return prompt + said, [0] * len(prompt) + [1] * len(said)


# ---------------------------------------------------------------------------------------------------- from tokens
@dataclass(frozen=True)
class Parsed:
    """A rollout cut at its separators."""

    steps: tuple[str, ...]
    answer: str | None  # None: it never ended
    step_of_token: tuple[
        int, ...
    ]  # which step each token belongs to, its separator included; the answer is number n


def parse(tokenizer: Tokenizer, ids: Sequence[int]) -> Parsed:
    """Steps of generated ids. Tokens after the first `<|end|>` belong to nothing (-1).

    Without an `<|end|>` there is no answer, and what follows the last separator is the (unfinished) answer's tokens.
    """
    steps, at, part = [], [], []
    for i, token in enumerate(ids):
        at.append(len(steps))
        if token == tokenizer.end:
            return Parsed(tuple(steps), _text(tokenizer, part), (*at, *[-1] * (len(ids) - i - 1)))
        if token == tokenizer.step:
            steps.append(_text(tokenizer, part))
            part = []
        else:
            part.append(token)
    return Parsed(tuple(steps), None, tuple(at))


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """A model's table may be padded beyond the tokenizer's ids; such an id is as good as a broken character."""
    return tokenizer.decode([i if i < tokenizer.vocab_size else 255 for i in ids]).strip()


# ---------------------------------------------------------------------------------------------------- first errors
def first_error_f1(said: Sequence[int | None], true: Sequence[int | None]) -> dict[str, float]:
    """ProcessBench's score (Zheng et al. 2024, arXiv:2412.06559): accuracy on solutions with an error (exactly the
    first one must be named), accuracy on those without, and their harmonic mean; 0 where either kind is missing."""
    if len(said) != len(true):
        raise ValueError(f"{len(said)} predictions for {len(true)} labels")
    wrong = [a == b for a, b in zip(said, true, strict=True) if b is not None]
    clean = [a == b for a, b in zip(said, true, strict=True) if b is None]
    on_wrong, on_clean = (sum(x) / len(x) if x else 0.0 for x in (wrong, clean))
    both = on_wrong + on_clean
    return {
        "wrong": on_wrong,
        "clean": on_clean,
        "f1": 2 * on_wrong * on_clean / both if both else 0.0,
    }


# ---------------------------------------------------------------------------------------------------- slices
def make_slices(task: Task, seed: int, level: int) -> dict[str, Problem]:
    """One problem, as it is ("base"), in words kept out of training and mistyped, where the task has words; and one that
    is longer by half, another problem altogether."""
    plain = task.sample(seed, level)
    found = {"base": plain, "longer": task.sample(seed - 10**9, level + max(1, level // 2))}
    if task.reword:
        found["reworded"] = task.reword(plain)
    if (question := add_typos(plain.question, seed)) != plain.question:
        found["typos"] = replace(plain, question=question)
    return found


def add_typos(text: str, seed: int, share: float = 0.2) -> str:
    """In a `share` of the words of five letters or more, and in one at least, two inner letters that differ change places;
    numbers stay."""
    r, words = random.Random(f"typos:{seed}"), text.split(" ")
    inner = {
        i: [j for j in range(1, len(w) - 2) if w[j] != w[j + 1]]
        for i, w in enumerate(words)
        if w.isalpha()
    }
    can = [i for i, places in inner.items() if places and len(words[i]) >= 5]
    for i in r.sample(can, min(len(can), max(1, round(share * len(can))))):
        word, j = words[i], r.choice(inner[i])
        words[i] = word[:j] + word[j + 1] + word[j] + word[j + 2 :]
    return " ".join(words)
