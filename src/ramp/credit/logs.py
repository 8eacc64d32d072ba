"""Rollouts that another trainer logged as JSONL: where did its credit go, and what did it pay for?

Each tool has its own names of fields. `read_log` finds them, and says which it took; a line of the
command can name others. What a log does not hold is not measured, and that is said too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

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
        notes.append(
            "no field says which problem a rollout belongs to, so that length, words and tokens "
            "are not judged"
        )
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
