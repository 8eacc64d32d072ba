"""Which problems are for training, which choose a checkpoint, and which are tests: by content.

A hash of the question decides. So no question is in two sets, however many seeds ask it, in
whatever order a file holds it, and another run holds out the same ones.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Sets, Task

Part = Literal["train", "selection", "test"]
HELD_OUT = 0.1  # of all questions, for each of the two sets that are held out
MIN_PROBLEMS = 4  # different ones in each set: on fewer nothing is learned or measured
HELD_OUT_SEED = -1  # and downwards; training is on 0 and up
# A seed whose question is held out is replaced by the same one so much further on.
NEXT_SEED = 2**40
MAX_TRIES = 100


def normalize(question: str) -> str:
    """The question without what makes no other one of it: case and white space."""
    return " ".join(question.split()).casefold()


def choose_part(question: str) -> Part:
    """The set that a question belongs to."""
    data = normalize(question).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < HELD_OUT:
        return "test"
    return "selection" if place < 2 * HELD_OUT else "train"


def make_sets(problems: Iterable[Problem], tests: Sequence[Problem] = ()) -> Sets:
    """Problems by their set, each question once. tests: those that the source itself holds out."""
    seen = {normalize(problem.question): problem for problem in tests}
    parts: dict[str, list[Problem]] = {"train": [], "selection": [], "test": [*seen.values()]}
    for problem in problems:
        question = normalize(problem.question)
        if question in seen:
            continue
        seen[question] = problem
        part = choose_part(question)
        # With tests of its own, a source needs no others.
        parts["train" if tests and part == "test" else part].append(problem)
    return Sets(*(tuple(parts[name]) for name in ("train", "selection", "test")))


def make_problems(task: Task, level: int, first: int, n: int) -> list[Problem]:
    """The training problems number first .. first + n - 1; a list of its own begins again."""
    if task.sets is None:
        return [_sample_for_training(task, level, first + i) for i in range(n)]
    train = task.sets.train
    picked = []
    for number in range(first, first + n):
        epoch, place = divmod(number, len(train))
        picked.append(train[_shuffle(len(train), epoch)[place]])
    return picked


def _sample_for_training(task: Task, level: int, seed: int) -> Problem:
    for k in range(MAX_TRIES):
        problem = task.sample(seed + k * NEXT_SEED, level)
        if choose_part(problem.question) == "train":
            return problem
    raise UserError(
        f"{task.name} has no problems for training at level {level}: a hundred seeds ask nothing "
        "but questions that are held out; raise the level, or add questions"
    )


@lru_cache(maxsize=4)
def _shuffle(n: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([n, epoch % 2**63]).permutation(n)


def held_out_problems(
    task: Task, level: int, n: int, first: int = 0, part: Part = "test"
) -> list[Problem]:
    """Up to n different problems that no training sees, from number `first` on.

    Fewer where the task has no more.
    """
    if task.sets is not None:
        return list(getattr(task.sets, part)[first : first + n])
    return list(_find_held_out(task, level, first + n, part)[first:])


@lru_cache(maxsize=32)
def _find_held_out(task: Task, level: int, count: int, part: Part) -> tuple[Problem, ...]:
    found: dict[str, Problem] = {}
    # One question in ten is of the set; of a small level all are met several times over.
    for i in range(20 * count + 400):
        problem = task.sample(HELD_OUT_SEED - i, level)
        question = normalize(problem.question)
        if question not in found and choose_part(question) == part:
            found[question] = problem
            if len(found) == count:
                break
    return tuple(found.values())


def describe_sets(task: Task, level: int, wanted: int) -> str:
    """How many problems there are to train on and to measure with, `wanted` of these at most.

    Raises `UserError` where there are too few different ones to split.
    """
    if task.sets is None:
        trained = {normalize(p.question) for p in make_problems(task, level, 0, 64)}
        num_train, shown = len(trained), "as many as are asked for"
    else:
        num_train, shown = len(task.sets.train), str(len(task.sets.train))
    parts: tuple[Part, Part] = ("selection", "test")
    counts = [len(held_out_problems(task, level, wanted, part=part)) for part in parts]
    if min(num_train, *counts) < min(MIN_PROBLEMS, wanted):
        raise UserError(
            f"{task.name} has too few different questions: {num_train} for training, {counts[0]} "
            f"to choose a checkpoint with and {counts[1]} for tests, and it takes {MIN_PROBLEMS} "
            f"of each; add questions{', or raise the level' * (task.sets is None)}"
        )
    # Of a list of its own it is told what becomes of the others.
    held = [f" of {len(getattr(task.sets, part))}" if task.sets else "" for part in parts]
    why = ""
    if min(counts) < wanted:
        few = f"level {level} has few different questions"
        if task.sets:
            num_all = len(task.sets.train) + len(task.sets.selection) + len(task.sets.test)
            few = f"there are only {num_all:,} different questions"
        why = f" ({wanted} were asked for: {few}, split by their content)"
    return (
        f"{shown} problems to train on, {counts[0]}{held[0]} to choose with, "
        f"{counts[1]}{held[1]} for tests{why}"
    )
