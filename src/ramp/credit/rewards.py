"""What a solution is worth: `reinforce.reward`, a name, your own function, or a weighted sum.

A reward gives numbers per rollout, per step, or both; any real numbers. NaN: it abstains, and that
rollout or step has no part in any baseline and gets no advantage. Your own is a function of a file,
`mine.py:reward`, from a list of `Record`, all at once, to

* a list of one number a record;
* or a list of one list a record, with one number for each of its steps;
* or both, as `{"rollouts": [...], "steps": [...]}`.

None is NaN. Three names are controls: what improves with them too is not due to a reward.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import signature
from types import FunctionType
from typing import Any

import numpy as np

from ramp.credit.rollouts import Rollouts
from ramp.errors import UserError
from ramp.tasks.protocol import Problem
from ramp.text.tokenizer import Tokenizer
from ramp.train import processes
from ramp.user_code import call, is_user_code, load_object, require_own_or


@dataclass(frozen=True)
class Record:
    """One rollout as a user's reward sees it."""

    prompt: str
    steps: tuple[str, ...]  # the last one holds the answer, if the solution came to its end
    answer: str | None  # None: it did not
    text: str
    gold: str  # the right answer; empty: not known
    problem: Problem


@dataclass(frozen=True)
class Rewards:
    """What B rollouts are worth; None: the reward says nothing of that kind. NaN: it abstains."""

    rollout_b: np.ndarray | None = None  # float32 [B]
    step_bs: np.ndarray | None = None  # float32 [B, S]


Reward = Callable[[Rollouts, Tokenizer], Rewards]


# Built in


def reward_answer(r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """The right final answer; the steps by the task's checker."""
    return Rewards(r.outcome_b, r.right_bs)


def reward_verified(r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """The right final answer with every step right; the steps by the task's checker."""
    return Rewards(r.verified_b, r.right_bs)


def reward_share(r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """The fraction of the steps that are right, of those that the checker can judge."""
    judged_bs = (r.exists_bs > 0) & ~np.isnan(r.right_bs)
    num_right_b = np.where(judged_bs, r.right_bs, 0).sum(axis=1)
    share_b = num_right_b / np.maximum(judged_bs.sum(axis=1), 1)
    share_b = np.where(judged_bs.any(axis=1), share_b, np.nan)
    return Rewards(share_b.astype(np.float32), r.right_bs)


def reward_none(r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """Nothing, to everybody: what a bonus for entropy does alone."""
    return Rewards(np.zeros_like(r.outcome_b), np.zeros_like(r.right_bs))


def reward_random(r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """0 or 1, whatever was written; the same for the same tokens."""
    rng = np.random.default_rng(np.abs(r.tokens_bn.astype(np.int64)).sum(axis=1) + 1)
    rollout_b = rng.integers(0, 2, len(r.prompts))
    step_bs = rng.integers(0, 2, r.exists_bs.shape) * r.exists_bs
    return Rewards(rollout_b.astype(np.float32), step_bs.astype(np.float32))


def reward_majority(r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """The answer that most of the group give, right or wrong: TTRL (arXiv:2504.16084)."""
    rewards = np.full(len(r.prompts), np.nan, np.float32)
    for first in range(0, len(r.prompts), r.group_size):
        group = slice(first, first + r.group_size)
        answers = [answer for answer in r.answers[group] if answer is not None]
        if answers:  # where nobody has one, there is no majority
            (common, _) = Counter(answers).most_common(1)[0]
            rewards[group] = [answer == common for answer in r.answers[group]]
    return Rewards(rewards)


# A new reward is its function and one entry here. `head` reads the parameters: see `learn`.
REWARDS: dict[str, Reward] = {
    "answer": reward_answer,
    "verified": reward_verified,
    "share": reward_share,
    "head": reward_answer,
    "none": reward_none,
    "random": reward_random,
    "majority": reward_majority,
}


# Yours


def make_records(r: Rollouts, tokenizer: Tokenizer) -> list[Record]:
    """What a user's reward sees of rollouts."""
    records = []
    for b, problem in enumerate(r.problems):
        ids = np.array(r.ids(b), np.int64)
        # A padded table has ids that the tokenizer has no name for. Byte 255 is no character.
        ids = np.where(ids < tokenizer.vocab_size, ids, 255)
        step = r.step_bn[b, : len(ids)]
        marks = np.isin(ids, (tokenizer.step, tokenizer.end))
        steps = (
            tokenizer.decode(ids[(step == s) & ~marks].tolist()).strip()
            for s in range(int(r.exists_bs[b].sum()))
        )
        # Pieces that a token ended are lines of the text.
        lines = np.where(ids == tokenizer.step, ord("\n"), ids)
        text = tokenizer.decode(lines[ids != tokenizer.end].tolist())
        record = Record(problem.question, tuple(steps), r.answers[b], text, problem.answer, problem)
        records.append(record)
    return records


def run_user_reward(spec: str, seconds: float, r: Rollouts, tokenizer: Tokenizer) -> Rewards:
    """The rewards of `PATH.py:NAME`. Raises `UserError` where they are not as they should be."""
    function = load_object(spec, "reinforce.reward", FunctionType)
    if not callable(function):
        raise UserError(f"reinforce.reward {spec} is no function; name one that takes records")
    records = make_records(r, tokenizer)
    what = f"the reward {spec}, called with the list of all records,"
    if not takes_one(function):
        raise UserError(
            f"the reward {spec} takes {signature(function)}, and gets one list of records: write "
            "it as reward(records)"
        )
    setting = "reinforce.reward_seconds"
    returned = call(function, records, seconds=seconds, what=what, setting=setting)
    return read_rewards(spec, returned, r)


def takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with one argument, as far as can be told."""
    try:
        signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # one in C, that does not tell
        return True
    return True


def read_rewards(spec: str, returned: Any, r: Rollouts) -> Rewards:
    """What a user's function returned as arrays. Raises `UserError` where it does not fit."""
    if isinstance(returned, Mapping):
        if not returned or not set(returned) <= {"rollouts", "steps"}:
            found = ", ".join(map(str, returned)) or "nothing"
            raise UserError(
                f"the reward {spec} returned a table with {found}; "
                'it can have "rollouts" and "steps"'
            )
        whole, steps = returned.get("rollouts"), returned.get("steps")
    else:
        values = _read_list(spec, returned, len(r.prompts), "records")
        is_nested = any(
            isinstance(value, Sequence | np.ndarray) and np.ndim(value) for value in values
        )
        whole, steps = (None, values) if is_nested else (values, None)
    rollout_b = step_bs = None
    if whole is not None:
        whole = _read_list(spec, whole, len(r.prompts), "records")
        rollout_b = np.array([_read_number(spec, value) for value in whole], np.float32)
    if steps is not None:
        step_bs = np.full(r.exists_bs.shape, np.nan, np.float32)
        rows = _read_list(spec, steps, len(r.prompts), "records")
        for b, row in enumerate(rows):
            count = int(r.exists_bs[b].sum())
            # None for a whole rollout: it abstains from all of its steps.
            numbers = [None] * count if row is None else _read_list(spec, row, count, "steps")
            step_bs[b, :count] = [_read_number(spec, value) for value in numbers]
    return Rewards(rollout_b, step_bs)


def _read_list(spec: str, values: Any, count: int, of: str) -> list[Any]:
    if hasattr(values, "__array__"):  # of numpy, jax or torch
        values = np.asarray(values)
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
        raise UserError(
            f"the reward {spec} returned a {type(values).__name__}; return a list with a number or "
            "a list of numbers for each record"
        )
    if len(values) != count:
        raise UserError(
            f"the reward {spec} returned {len(values)} values for {count} {of}; return one for "
            "each, None where it abstains"
        )
    return list(values)


def _read_number(spec: str, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        # A text that looks like a number is a slip, as any other text is.
        number = float("" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        raise UserError(
            f"the reward {spec} returned {value!r}; return numbers, or None to abstain"
        ) from None
    if is_too_large(number):
        raise UserError(f"the reward {spec} returned {number:g}; return finite numbers, up to 3e38")
    return number


def is_too_large(number: float) -> bool:
    """Whether it is infinite as a float32, which rewards are."""
    return abs(number) > float(np.finfo(np.float32).max)


# Sums

TIMES = re.compile(r"[-+]?[0-9.]+\s*\*")  # as a formula would have it
WEIGHTED = re.compile(r"^(?:([-+]?[0-9.]+(?:e-?[0-9]+)?)\s+)?(.*)$")


@dataclass(frozen=True)
class Term:
    """One reward of a sum."""

    weight: float
    name: str  # of REWARDS, or PATH.py:NAME


@lru_cache(maxsize=32)
def parse_reward(text: str) -> tuple[Term, ...]:
    """The terms of `reinforce.reward`, such as `"0.5 verified + 0.5 mine.py:fn"`.

    Raises `UserError` for a name that there is not.
    """
    terms = []
    for part in re.split(r"\s+\+\s+", text.strip()):
        weight, name = WEIGHTED.findall(part)[0]
        if TIMES.match(part):
            raise UserError(
                f"reinforce.reward {part!r}: a weight stands before its reward with a space, such "
                "as '0.5 verified + 0.5 mine.py:fn'"
            )
        if re.fullmatch(r"[-+]?[0-9.]+", part):
            raise UserError(
                f"reinforce.reward {text!r}: {part} is a weight without a reward; write "
                f"'{part} NAME', such as '{part} answer'"
            )
        if name == "checker":
            raise UserError("reinforce.reward 'checker' is now 'answer': --reinforce.reward answer")
        if not is_user_code(name):
            known = [*REWARDS, "PATH.py:FUNCTION", "a sum such as '0.5 verified + 0.5 mine.py:fn'"]
            require_own_or("reinforce.reward", name, known, FunctionType)
        try:
            term = Term(float(weight or 1), name)
        except ValueError:
            raise UserError(f"reinforce.reward: the weight {weight!r} is no number") from None
        if is_too_large(term.weight):
            raise UserError(f"reinforce.reward: the weight {weight!r} is too large")
        terms.append(term)
    return tuple(terms)


def uses(text: str, name: str) -> bool:
    """Whether a reward is a term of `reinforce.reward`."""
    return any(term.name == name for term in parse_reward(text))


def judge(
    text: str, r: Rollouts, tokenizer: Tokenizer, seconds: float, head_bs: np.ndarray | None = None
) -> Rewards:
    """What `reinforce.reward` says of rollouts.

    A sum adds up what its terms say of rollouts, and what they say of steps; where one abstains, so
    does the sum. seconds: for a user's function. head_bs: a process head's scores of steps.
    """
    rollout_b = step_bs = None
    for term in parse_reward(text):
        if is_user_code(term.name):
            # In one process: it sees all records at once, and may not say the same twice.
            ask = partial(run_user_reward, term.name, seconds, r, tokenizer)
            rewards = processes.share(ask)
        else:
            rewards = REWARDS[term.name](r, tokenizer)
        if term.name == "head" and head_bs is not None:
            rewards = replace(rewards, step_bs=head_bs)
        rollout_b = _add(rollout_b, term.weight, rewards.rollout_b)
        step_bs = _add(step_bs, term.weight, rewards.step_bs)
    return Rewards(rollout_b, step_bs)


def _add(total: np.ndarray | None, weight: float, values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return total
    # In float64, so that what is too large is refused and not only warned of.
    weighted = weight * values.astype(np.float64)
    summed = weighted if total is None else total + weighted
    if is_too_large(np.nanmax(np.abs(summed), initial=0)):
        raise UserError("reinforce.reward: the weighted sum is too large; lower its weights")
    return summed.astype(np.float32)
