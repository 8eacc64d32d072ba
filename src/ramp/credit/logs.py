"""Rollouts that another trainer logged as JSONL: where did its credit go, and what did it pay for?

Each tool has its own names of fields. `read_log` finds them, and says which it took; a line of the
command can name others. What a log does not hold is not measured, and that is said too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ramp.credit.audit import SignErrors, find_sign_errors
from ramp.errors import UserError
from ramp.files import read_whole_jsonl
from ramp.tasks.gsm8k import split_solution
from ramp.tasks.questions import choose_form, is_same

# What is looked for, and the names that it has in logs of TRL, verl, OpenRLHF, prime-rl and others.
FIELDS = {
    "group": "group group_id prompt_id problem_id uid example_id "
    "prompt question problem input query",
    "text": "response completion output text solution generation answer_text generated_text",
    "steps": "steps response_steps completion_steps",
    "reward": "reward score rewards return total_reward outcome_reward",
    "right": "correct is_correct success acc accuracy passed right label",
    "gold": "gold ground_truth gold_answer reference_answer reference target answer",
    "verdicts": "step_verdicts verdicts step_labels step_correct ratings step_ratings",
    "first_error": "mistake_index first_error first_error_index error_step",
    "advantages": "advantages advantage token_advantages step_advantages",
    "tokens": "tokens token_texts response_tokens completion_tokens",
}
# One field that does as well as another.
STANDS_FOR = {"first_error": "verdicts", "gold": "right"}
MIN_CASES = 8  # of a word, and of rollouts without it
NUM_SHUFFLES = 1999


@dataclass(frozen=True)
class LoggedRollout:
    """One rollout of a log; None: the log does not say."""

    group: str
    text: str
    reward: float | None
    right: bool | None  # the final answer
    steps: tuple[str, ...]
    step_right: tuple[bool | None, ...] | None
    step_advantages: tuple[float, ...] | None
    tokens: tuple[str, ...]  # the pieces that have advantages of their own
    token_advantages: tuple[float, ...]


@dataclass(frozen=True)
class Log:
    """The rollouts of a file, and what was made of its fields."""

    rollouts: tuple[LoggedRollout, ...]
    fields: dict[str, str]  # what is looked for -> name in the file
    notes: tuple[str, ...]  # what was left out or taken for granted, and what no field says


@dataclass(frozen=True)
class LengthBias:
    """Reward against length among rollouts that are equally right."""

    correlation: float
    p_value: float  # of no correlation, by shuffling within the strata
    per_100_chars: float  # reward
    num_rollouts: int


@dataclass(frozen=True)
class PaidWord:
    """A word, or a token, and what rollouts or places with it got more than others."""

    word: str
    more: float
    p_value: float  # corrected for the number of words
    num_with: int


@dataclass(frozen=True)
class LogAudit:
    """The figures of a log; None where it does not hold what they need."""

    num_rollouts: int
    num_groups: int
    signs: SignErrors | None
    lucky: float | None  # fraction of the right answers behind a wrong step
    length: LengthBias | None
    words: tuple[PaidWord, ...]  # in the reward, among rollouts that are equally right
    tokens: tuple[PaidWord, ...]  # in the advantages


# Reading


def read_log(path: Path, named: Mapping[str, str] | None = None) -> Log:
    """The rollouts of a JSONL file.

    named: names of fields that are not to be guessed, by a word of `FIELDS` or a usual name of it.
    Raises UserError where the file is not there, is no JSONL, or has no text of rollouts.
    """
    try:
        records = read_whole_jsonl(path)
    except OSError:
        raise UserError(f"there is no file {path}; give a JSONL file of rollouts") from None
    except ValueError as error:
        raise UserError(f"{path}, {error}") from None
    fields, notes = find_fields(records, named or {}, path)
    found = [
        {what: record[name] for what, name in fields.items() if name in record}
        for record in records
    ]
    found = [got for got in found if "text" in got or "steps" in got]
    rollouts = [_read_rollout(got) for got in found]
    if len(rollouts) < len(records):
        notes.append(f"{len(records) - len(rollouts)} of {len(records)} lines have no text")
    # Steps alone may lack the answer.
    if "right" not in fields and {"gold", "text"} <= fields.keys():
        golds = [_read_text(got.get("gold", "")).strip() for got in found]
        golds = [split_solution(gold)[1] or gold for gold in golds]
        form = choose_form([gold for gold in golds if gold], "")
        notes.append(f"an answer is right where {form.about} is the gold one")
        rollouts = [
            replace(r, right=is_same(form.find(r.text) or "", form.find(gold) or gold))
            if gold
            else r
            for r, gold in zip(rollouts, golds, strict=True)
        ]
    return Log(tuple(rollouts), fields, tuple(notes))


def find_fields(
    records: Sequence[dict], named: Mapping[str, str], path: Path
) -> tuple[dict[str, str], list[str]]:
    """(what is looked for -> its name, notes on names of which there are several)."""
    present = {name for record in records for name in record}
    fields, notes = {}, []
    words = {word: what for what in FIELDS for word in (*FIELDS[what].split(), what)}
    if unknown := [word for word in named if word not in words]:
        raise UserError(f"--field {unknown[0]}=... is not known; it can be {', '.join(FIELDS)}")
    named = {words[word]: name for word, name in named.items()}
    for what, names in FIELDS.items():
        # What is named for one thing is no other.
        found = [name for name in names.split() if name in present - set(named.values())]
        if what in named:
            found = [named[what]]
            if named[what] not in present:
                raise UserError(
                    f"{path} has no field {named[what]!r}; it has {', '.join(sorted(present))}"
                )
        if found:
            fields[what] = found[0]
        if len(found) > 1 and what != "group":
            notes.append(f"{what} is {found[0]!r}, and not {', '.join(found[1:])}")
    if not {"text", "steps"} & fields.keys():
        raise UserError(
            f"{path} has no text of rollouts among {', '.join(sorted(present)) or 'its fields'}; "
            "name it with --field text=NAME"
        )
    if "group" not in fields:
        notes.append("no field says which problem a rollout belongs to")
    # A reward cannot say it: whether it pays for more than right answers is the question.
    if not {"right", "gold"} & fields.keys():
        notes.append("no field says which answers are right, or what the right one (gold) is")
    if unread := sorted(present.difference(fields.values())):
        notes.append(
            f"not read: {', '.join(unread)}; --field WHAT=NAME reads one as {', '.join(FIELDS)}"
        )
    return fields, notes


def _read_rollout(got: dict[str, Any]) -> LoggedRollout:
    steps = tuple(map(_read_text, got.get("steps") or ()))
    text = _read_text(got["text"]) if "text" in got else "\n".join(steps)
    verdicts = got.get("verdicts")
    if verdicts is None and "first_error" in got and steps:
        # None or -1: no error. What comes after the first one is not known.
        first = got["first_error"]
        count = len(steps)
        clean = first is None or first < 0
        verdicts = [1] * count if clean else ([1] * first + [0] + [None] * count)[:count]
    step_right = None if verdicts is None else tuple(map(_read_truth, verdicts))
    advantages = got.get("advantages")
    tokens = tuple(map(_read_text, got.get("tokens") or ()))
    token_advantages: tuple[float, ...] = ()
    step_advantages = None
    num_steps = len(step_right or steps)
    if isinstance(advantages, int | float):
        # One for the whole rollout: every step and token has it.
        step_advantages = (float(advantages),) * num_steps
    elif isinstance(advantages, list) and advantages:
        values = tuple(float(a) for a in advantages)
        if len(values) == num_steps:
            step_advantages = values
        elif len(values) == len(tokens):
            token_advantages = values
            step_advantages = _advantages_at_ends(steps, tokens, values)
    return LoggedRollout(
        group=_read_text(got.get("group", "")),
        text=text,
        reward=_read_number(got.get("reward")),
        right=_read_truth(got.get("right")),
        steps=steps,
        step_right=step_right,
        step_advantages=step_advantages,
        tokens=tokens,
        token_advantages=token_advantages,
    )


def _advantages_at_ends(
    steps: Sequence[str], tokens: Sequence[str], values: Sequence[float]
) -> tuple[float, ...] | None:
    """The advantage of each step's last token, found by the letters that both are written in."""
    # Marks of tokenizers for a space, and spaces themselves, are no letters.
    ends, length = [], 0
    for step in steps:
        length += len("".join(step.split()))
        ends.append(length)
    letters = np.cumsum([len(token.strip("\u0120\u2581\u010a \n\t")) for token in tokens])
    if not steps or not len(letters) or letters[-1] < ends[-1]:
        return None
    return tuple(values[int(np.searchsorted(letters, end))] for end in ends)


def _read_text(value: Any) -> str:
    """A text; of a conversation its last turn."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", value[-1].get("text", ""))
    return "" if value is None else str(value)


def _read_number(value: Any) -> float | None:
    # Several rewards of one rollout are added up, as trainers do.
    if isinstance(value, list | dict):
        parts = [_read_number(v) for v in (value.values() if isinstance(value, dict) else value)]
        return sum((p for p in parts if p is not None), 0.0)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _read_truth(value: Any) -> bool | None:
    """True for what is above one half; PRM800K rates from -1 to 1, where 0 is neutral."""
    if isinstance(value, str):
        return {"true": True, "+": True, "correct": True, "false": False, "-": False}.get(
            value.strip().lower()
        )
    return None if value is None else float(value) > 0.5


# Figures


def audit_log(log: Log, seed: int = 0) -> LogAudit:
    """The figures that a log has the fields for."""
    rollouts = log.rollouts
    judged = [r for r in rollouts if r.step_right and r.right is not None]
    lucky = [False in (r.step_right or ()) for r in judged if r.right]
    placed = [
        r for r in judged if r.step_advantages and len(r.step_advantages) == len(r.step_right or ())
    ]
    cells = [
        (advantage, right, r.right)
        for r in placed
        for advantage, right in zip(r.step_advantages or (), r.step_right or (), strict=True)
        if right is not None
    ]
    signs = None
    if cells:
        advantage, right, won = map(np.array, zip(*cells, strict=True))
        signs = find_sign_errors(advantage, right, won)
    rng = np.random.default_rng(seed)
    return LogAudit(
        num_rollouts=len(rollouts),
        num_groups=len({r.group for r in rollouts}),
        signs=signs,
        lucky=float(np.mean(lucky)) if lucky else None,
        length=measure_length_bias(rollouts, rng),
        words=find_paid_words(rollouts),
        tokens=find_paid_tokens(rollouts),
    )


def _residuals(rollouts: Sequence[LoggedRollout]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(stratum, reward, length) of each, less the means of those that are equally right.

    A stratum is the right or the wrong answers of one group; those of one rollout say nothing.
    """
    strata = defaultdict(list)
    for i, r in enumerate(rollouts):
        strata[r.group, r.right].append(i)
    reward = np.array([r.reward for r in rollouts], float)
    length = np.array([len(r.text) for r in rollouts], float)
    number = np.zeros(len(rollouts), int)
    for k, members in enumerate(strata.values()):
        number[members] = k
        reward[members] -= reward[members].mean()
        length[members] -= length[members].mean()
    return number, reward, length


def _take_comparable(rollouts: Sequence[LoggedRollout]) -> list[LoggedRollout]:
    """Those that have a reward, and whose answer is known to be right or wrong."""
    return [r for r in rollouts if r.reward is not None and r.right is not None]


def measure_length_bias(
    rollouts: Sequence[LoggedRollout], rng: np.random.Generator, num_shuffles: int = NUM_SHUFFLES
) -> LengthBias | None:
    """Correlation of reward and length at equal correctness, with an exact test's p-value."""
    rollouts = _take_comparable(rollouts)
    if len(rollouts) < 3:
        return None
    number, reward, length = _residuals(rollouts)
    spread = float(np.sqrt((reward**2).sum() * (length**2).sum()))
    if spread < 1e-9:
        # Equally right ones are paid alike, or are equally long.
        return LengthBias(0.0, 1.0, 0.0, len(rollouts))
    product = float((reward * length).sum())
    order = np.argsort(number, kind="stable")
    count = 0
    for _ in range(num_shuffles):
        # Shuffled within each stratum: sorted by stratum first, then at random.
        shuffled = order[np.lexsort((rng.random(len(order)), number[order]))]
        count += abs((reward[order] * length[shuffled]).sum()) >= abs(product) - 1e-12
    return LengthBias(
        correlation=product / spread,
        p_value=(count + 1) / (num_shuffles + 1),
        per_100_chars=100 * product / float((length**2).sum()),
        num_rollouts=len(rollouts),
    )


def find_paid_words(rollouts: Sequence[LoggedRollout], most: int = 10) -> tuple[PaidWord, ...]:
    """Words whose rollouts are paid more than others that are equally right."""
    rollouts = _take_comparable(rollouts)
    if not rollouts:
        return ()
    _, reward, _ = _residuals(rollouts)
    words = [set(r.text.split()) for r in rollouts]
    return _compare(((w, i) for i, found in enumerate(words) for w in found), reward, most)


def find_paid_tokens(rollouts: Sequence[LoggedRollout], most: int = 10) -> tuple[PaidWord, ...]:
    """Tokens whose own advantages are above those of the other tokens."""
    tokens = [token for r in rollouts if r.token_advantages for token in r.tokens]
    values = [value for r in rollouts for value in r.token_advantages]
    if not tokens:
        return ()
    advantage = np.array(values) - np.mean(values)
    return _compare(((token, i) for i, token in enumerate(tokens)), advantage, most)


def _compare(
    places: Iterable[tuple[str, int]], values: np.ndarray, most: int
) -> tuple[PaidWord, ...]:
    """Words at whose places values are higher than elsewhere, by Welch's t-test."""
    from scipy import stats

    at = defaultdict(list)
    for word, i in places:
        at[word].append(i)
    enough = {w: i for w, i in at.items() if MIN_CASES <= len(i) <= len(values) - MIN_CASES}
    found = []
    for word, members in enough.items():
        inside = np.zeros(len(values), bool)
        inside[members] = True
        more = float(values[inside].mean() - values[~inside].mean())
        if more > 1e-9:
            p = stats.ttest_ind(values[inside], values[~inside], equal_var=False).pvalue
            # No spread at all on both sides: as sure as can be.
            p = 0.0 if np.isnan(p) else float(p)
            found.append(PaidWord(word, more, min(1.0, p * len(enough)), len(members)))
    found = [word for word in found if word.p_value < 0.05]
    return tuple(sorted(found, key=lambda w: -w.more)[:most])
