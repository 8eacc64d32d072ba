"""Rollouts that another trainer logged as JSONL: where did its credit go, and what did it pay for?

Each tool has its own names of fields. `read_log` finds them, and says which it took; a line of the
command can name others. A line is a rollout, or a problem with a list of rollouts; steps are texts,
or objects with verdicts. What a log does not hold is not measured, and that is said too, as is each
value that does not fit.
"""

import json
import re
from collections import Counter
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
    "gold": "gold ground_truth gts gold_answer reference_answer reference target answer",
    "verdicts": "step_verdicts verdicts step_labels step_correct ratings step_ratings",
    "first_error": "mistake_index first_error first_error_index error_step",
    "advantages": "advantages advantage token_advantages step_advantages",
    "tokens": "tokens token_texts response_tokens completion_tokens",
}
# Other names that may mean it.
ENDINGS = {
    "reward": re.compile(r"(?:^|_)(?:rewards?|score)$|^rewards?_"),
    "gold": re.compile(r"(?:^|_)(?:solution|answer|truth|gold|target|reference|expected)$"),
}
# One that is the only one is taken without being asked for; a score may be of anything.
PAYS = re.compile(r"(?:^|_)rewards?$")
# What lists of rollouts are usually called.
NESTED = {
    *("rollouts", "samples", "responses", "completions"),
    *("generations", "outputs", "candidates"),
}
# What a step's object may call its text, its verdict and its advantage, the surest first. A reward
# does not say what is right, so that it is a verdict only where it is named.
STEP_TEXT = ("text", "step", "content", "statement", "completion", "response", "output")
STEP_PARTS = {
    "verdicts": ("verdict", "label", "correct", "is_correct", "right", "rating"),
    "advantages": ("advantage", "advantages"),
}
# What turns of a conversation have, and rollouts have not.
SPEAKERS = {"role", "from"}
LINE = "(line)"  # a field of our own: the number of the line
# One field that does as well as another, where that is none of the log's.
STANDS_FOR = {"first_error": "verdicts", "gold": "right"}
# Where both are, one line may lack the first if it has the second. No table of the same pairs:
# a gold answer is not read beside what says itself what is right.
ANSWERED_BY = {"verdicts": "first_error", "gold": "right"}


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


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'s' * (number != 1)}"


@dataclass(frozen=True)
class Fault:
    """Values that were left out for one reason."""

    what: str  # of `FIELDS`
    reason: str  # of the first one, with its place
    count: int  # rollouts

    def __str__(self) -> str:
        return f"{self.what} of {_count(self.count, 'rollout')} left out: {self.reason}"


@dataclass(frozen=True)
class Log:
    """The rollouts of a file, and what was made of its fields."""

    rollouts: tuple[LoggedRollout, ...]
    fields: dict[str, str]  # what is looked for -> name in the file
    notes: tuple[str, ...]  # what was taken for granted, and what no field says
    faults: tuple[Fault, ...] = ()
    proposed: tuple[tuple[str, str], ...] = ()  # (what no field is found for, what may be one)


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
    if not records:
        raise UserError(f"{path} is empty; give a JSONL file with a rollout in each line")
    names = _resolve(named or {})
    # Blank lines are counted too, as editors do.
    numbers = [n for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    records = [record | {LINE: n} for record, n in zip(records, numbers, strict=True)]
    records, names, shapes = _flatten(records, names, path)
    fields, notes = find_fields(records, names, path)
    proposed = tuple(propose_fields(records, fields))
    notes = [*shapes, *notes]
    faults: Faults = []
    found = []
    for record in records:
        got = {what: record[name] for what, name in fields.items() if name in record}
        got[LINE] = record[LINE]
        if _find_text(got.get("text")) is not None or isinstance(got.get("steps"), list | str):
            found.append(got)
    if not found:
        raise UserError(
            f"no line of {path} has a text in {fields.get('text') or fields['steps']!r}; it has "
            f"{_list_fields(records)}; name a text with --field text=NAME"
        )
    rollouts = [_read_rollout(got, fields, faults) for got in found]
    if len(rollouts) < len(records):
        unit = "rollouts" if shapes else "lines"
        notes.append(f"{len(records) - len(rollouts)} of {len(records)} {unit} have no text")
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
    return Log(tuple(rollouts), fields, tuple(notes), _sum_up(faults), proposed)


Faults = list[tuple[str, str, str]]  # of each value: what it is of, the kind, the first's reason


def _sum_up(faults: Faults) -> tuple[Fault, ...]:
    """A fault for each kind."""
    counts = Counter((what, kind) for what, kind, _ in faults)
    # Of equal keys the last one stands, so that the first reason is put last.
    first = {(what, kind): reason for what, kind, reason in reversed(faults)}
    return tuple(Fault(key[0], first[key], count) for key, count in counts.items())


def _resolve(named: Mapping[str, str]) -> dict[str, str]:
    """What is looked for -> its name, by whatever usual name that was said."""
    words = {word: what for what in FIELDS for word in (*FIELDS[what].split(), what)}
    if unknown := [word for word in named if word not in words]:
        raise UserError(f"--field {unknown[0]}=... is not known; it can be {', '.join(FIELDS)}")
    return {words[word]: name for word, name in named.items()}


def _list_fields(records: Sequence[dict]) -> str:
    """The names of fields, and of those of objects in their lists, which can be named too."""
    objects = [(n, v) for record in records for n, v in record.items() if _is_objects(v)]
    inner = {f"{name}.{key}" for name, value in objects for part in value for key in part}
    return ", ".join(sorted(inner | {name for record in records for name in record} - {LINE}))


# Shapes


def _flatten(
    records: list[dict], names: dict[str, str], path: Path
) -> tuple[list[dict], dict[str, str], list[str]]:
    """(a record a rollout, names, notes): lists of rollouts and objects of steps are spread out."""
    notes = []
    nested = _find_nested(records, names)
    if nested:
        items = names.items()
        names = {what: n.removeprefix(f"{nested}.") for what, n in items if n != nested}
        records, notes, names = _spread_rollouts(records, nested, names)
        outer = {name for record in records for name in record}
        if not outer & {*FIELDS["group"].split(), names.get("group", "group")}:
            records = [record | {"group": record[LINE]} for record in records]
            notes.append("each line is a group")
    steps = [names["steps"]] if "steps" in names else FIELDS["steps"].split()
    for name in steps:
        if any(_is_objects(record.get(name)) for record in records):
            records, parts = _spread_steps(records, name, path)
            # What is named by hand goes before what is found.
            names = parts | names
            read = [n for n in names.values() if n.startswith(f"{name}.")]
            said = ", ".join(read) or "nothing but their text"
            notes.append(f"steps are objects; read {said}; a number above one half is right")
    return records, names, notes


def _is_objects(value: Any) -> bool:
    """Whether it is a list of objects that are no turns of a conversation."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(v, dict) and not SPEAKERS & v.keys() for v in value)


def _find_nested(records: Sequence[dict], names: Mapping[str, str]) -> str:
    """The field that holds a list of rollouts: objects with a text; empty: none.

    It is named, or has a usual name, or no line has a text or steps of its own: what tools and
    searches gave has texts too.
    """
    parts = {*FIELDS["steps"].split(), *FIELDS["tokens"].split()}
    parts |= {names[what] for what in ("steps", "tokens") if what in names}
    said = [names[what] for what in ("text", "steps") if what in names]
    texts = {*FIELDS["text"].split(), *FIELDS["steps"].split()}
    texts |= {*said, *(name.rpartition(".")[2] for name in said)}
    lists = [(n, v) for r in records for n, v in r.items() if n not in parts and _is_objects(v)]
    own = {n for record in records for n, v in record.items() if v not in (None, [])}
    own -= {name for name, _ in lists}
    has_own = bool(own & texts)
    if names.get("text") in own:
        texts = {names["text"]}
    found = [name for name, value in lists if any(texts & v.keys() for v in value)]
    named = [n for n in found if any(f"{s}.".startswith(f"{n}.") for s in names.values())]
    usual = [n for n in found if n in NESTED]
    return next(iter([*named, *usual, *([] if has_own else found)]), "")


def _spread_rollouts(
    records: Sequence[dict], nested: str, names: dict[str, str]
) -> tuple[list[dict], list[str], dict[str, str]]:
    """(a record a rollout with the fields of its line, notes, names with that of their text)."""
    spread, num_empty, inner, odd = [], 0, set(), []
    golds = {*FIELDS["gold"].split()} - {names.get("gold")}
    # Where rollouts have a text, that of their line is none of theirs.
    texts = [name for name in FIELDS["text"].split() if name not in names.values()]
    own = {*texts, *FIELDS["steps"].split(), names.get("text"), names.get("steps")}
    for record in records:
        values = record.get(nested)
        outer = {k: v for k, v in record.items() if k != nested and k not in texts}
        num_empty += values == []
        if not values or not isinstance(values, list):
            # It may have a text of its own.
            if values != [] or own & record.keys():
                spread.append(record)
            continue
        # A rollout's own answer is no right one.
        drop = golds & {"answer", *outer}
        for value in values:
            if isinstance(value, dict):
                inner |= value.keys()
                spread.append(outer | {k: v for k, v in value.items() if k not in drop})
            else:
                odd.append(f"{value!r:.40} in line {record[LINE]} is no object")
    notes = [
        f"a line has a list of rollouts in {nested!r}, which share its other fields; an 'answer' "
        "of theirs is not the right one unless it is named so"
    ]
    if num_empty:
        notes.append(f"{num_empty} of {len(records)} lines have no rollout in {nested!r}")
    if odd:
        notes.append(f"{_count(len(odd), 'rollout')} of {nested!r} left out: {odd[0]}")
    found = [name for name in texts if name in inner]
    return spread, notes, dict(zip(["text"], found, strict=False)) | names


def _spread_steps(
    records: Sequence[dict], name: str, path: Path
) -> tuple[list[dict], dict[str, str]]:
    """(records with texts as steps and lists of what the objects say, what -> its name)."""
    objects = [step for r in records if _is_objects(r.get(name)) for step in r[name]]
    present = {key for step in objects for key in step}
    text = next((key for key in STEP_TEXT if key in present), None)
    if text is None:
        raise UserError(
            f"{path}: the objects of {name!r} have no text among {', '.join(sorted(present))}; "
            f"call it 'text'"
        )
    # The surest name comes last, and so stands.
    keys = {what: k for what, ks in STEP_PARTS.items() for k in reversed(ks) if k in present}
    spread = []
    for record in records:
        steps = record.get(name)
        if steps and _is_objects(steps):
            # The others can be named.
            keys_here = present - {text}
            parts = {f"{name}.{key}": [step.get(key) for step in steps] for key in keys_here}
            record = record | parts | {name: [step.get(text) for step in steps]}
        spread.append(record)
    return spread, {what: f"{name}.{key}" for what, key in keys.items()}


def find_fields(
    records: Sequence[dict], named: Mapping[str, str], path: Path
) -> tuple[dict[str, str], list[str]]:
    """(what is looked for -> its name, notes on names of which there are several)."""
    present = {name for record in records for name in record if name != LINE}
    fields, notes = {}, []
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
            f"{path} has no text of rollouts among {_list_fields(records) or 'its fields'}; "
            "name it with --field text=NAME"
        )
    proposed = propose_fields(records, fields)
    paid = [(what, name) for what, name in proposed if what == "reward" and PAYS.search(name)]
    if len(paid) == 1:
        fields.update(paid)
        notes.append(f"reward is {paid[0][1]!r}, the only name like one")
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


def propose_fields(records: Sequence[dict], fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """(what, name) for names that may mean what no field is found for."""
    group = fields.get("group", LINE)
    names = sorted({name for record in records for name in record} - {LINE, *fields.values()})
    found = []
    for name in names:
        values = [(str(r.get(group)), r[name]) for r in records if r.get(name) is not None]
        kinds = {type(value) for _, value in values}
        if not values or not kinds <= {str, int, float}:
            continue
        # A right answer is that of its problem; what was said differs within one.
        is_shared = len(set(values)) == len({problem for problem, _ in values})
        is_shared &= "group" in fields
        for what, fits in (("reward", str not in kinds), ("gold", is_shared)):
            is_missing = not {what, STANDS_FOR.get(what)} & fields.keys()
            if is_missing and fits and ENDINGS[what].search(name):
                found.append((what, name))
    return found


def _read_rollout(
    got: Mapping[str, Any], fields: Mapping[str, str], faults: Faults
) -> LoggedRollout:
    here = f"in line {got[LINE]}"
    for what in ("group", "reward", "right", "gold", "verdicts", "advantages"):
        if what in fields and got.get(what) is None and ANSWERED_BY.get(what) not in got:
            faults.append((what, "none", f"there is none {here}"))
    steps = got.get("steps") or ()
    if isinstance(steps, str):
        steps = steps.split("\n")
    elif not isinstance(steps, list | tuple):
        faults.append(("steps", "no list", f"{steps!r:.40} {here} is no list"))
        steps = ()
    steps = tuple(map(_read_text, steps))
    text = _find_text(got.get("text"))
    is_alone = "group" in fields and got.get("group") is None
    reward, right = _read_number(got.get("reward")), _read_truth(got.get("right"))
    for what, value, said in (("reward", reward, "number"), ("right", right, "yes or no")):
        if value is None and got.get(what) is not None:
            faults.append((what, "unread", f"{got[what]!r:.40} {here} is no {said}"))
    step_right = _read_verdicts(got, steps, faults)
    tokens = got.get("tokens")
    tokens = tuple(map(_read_text, tokens)) if isinstance(tokens, list) else ()
    step_advantages, token_advantages = _read_advantages(
        got, steps, len(step_right or steps), tokens, faults
    )
    return LoggedRollout(
        # Without one it is alone, where others have one.
        group=f"{LINE} {got[LINE]}" if is_alone else _read_group(got.get("group", "")),
        text="\n".join(steps) if text is None else text,
        reward=reward,
        right=right,
        steps=steps,
        step_right=step_right,
        step_advantages=step_advantages,
        tokens=tokens,
        token_advantages=token_advantages,
    )


def _read_verdicts(
    got: Mapping[str, Any], steps: Sequence[str], faults: Faults
) -> tuple[bool | None, ...] | None:
    """A verdict a step; None where there are none, or they do not fit."""
    verdicts, count, here = got.get("verdicts"), len(steps), f"in line {got[LINE]}"
    first = _read_whole(got.get("first_error", ""))
    if verdicts is None and first != "":
        if not steps or not isinstance(first, int | None) or (first or 0) >= count:
            said = f"{first!r:.40} {here} is no number of a step" if steps else f"no steps {here}"
            faults.append(("first_error", "unfit", said))
            return None
        # None or -1: no error. What comes after the first one is not known.
        is_clean = first is None or first < 0
        verdicts = [1] * count if is_clean else ([1] * first + [0] + [None] * count)[:count]
    if verdicts is None:
        return None
    if not isinstance(verdicts, list):
        faults.append(("verdicts", "no list", f"{verdicts!r:.40} {here} is no list"))
        return None
    if steps and len(verdicts) != count:
        said = f"{_count(len(verdicts), 'verdict')} for {_count(count, 'step')} {here}"
        faults.append(("verdicts", "unfit", said))
        return None
    read = tuple(map(_read_truth, verdicts))
    for value, truth in zip(verdicts, read, strict=True):
        if truth is None and value is not None and value != "":
            said = f"the verdict {value!r:.40} {here} is not known"
            faults.append(("verdicts", "unread", said))
            break
    return read


def _read_advantages(
    got: Mapping[str, Any],
    steps: Sequence[str],
    num_steps: int,
    tokens: Sequence[str],
    faults: Faults,
) -> tuple[tuple[float, ...] | None, tuple[float, ...]]:
    """(advantages of steps, of tokens), as far as they fit."""
    advantages, here = got.get("advantages"), f"in line {got[LINE]}"
    if (one := _read_number(advantages)) is not None and not isinstance(advantages, list | dict):
        # One for the whole rollout: every step and token has it.
        return (one,) * num_steps, ()
    if advantages is None or advantages == []:
        return None, ()
    given = advantages if isinstance(advantages, list) else [None]
    values = [value for value in map(_read_number, given) if value is not None]
    if len(values) < len(given):
        faults.append(("advantages", "unread", f"{advantages!r:.40} {here} are no numbers"))
        return None, ()
    if len(values) == num_steps:
        return tuple(values), ()
    if len(values) == len(tokens):
        at_ends = _advantages_at_ends(steps, tokens, values)
        if steps and at_ends is None:
            said = f"the tokens {here} are fewer than the letters of the steps"
            faults.append(("advantages", "letters", f"{said}, so no step has its own"))
        return at_ends, tuple(values)
    places = f"{_count(num_steps, 'step')} and {_count(len(tokens), 'token')} {here}"
    said = f"{_count(len(values), 'advantage')} for {places}"
    if not tokens:
        said += (
            "; if they are of tokens, log the text of each token too, as a list in a field "
            "'tokens', or name that field with --field tokens=NAME"
        )
    faults.append(("advantages", "unfit", said))
    return None, ()


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


def _find_text(value: Any) -> str | None:
    """A text, of a conversation the last turn's; None where it is none."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1]
    if isinstance(value, dict):
        # Contents may be parts in turn.
        return _find_text(next((value[k] for k in ("content", "text", "value") if k in value), 0))
    return value if isinstance(value, str) else None


def _read_text(value: Any) -> str:
    """A text; what is none as it is written."""
    text = _find_text(value)
    return ("" if value is None else str(value)) if text is None else text


def _read_whole(value: Any) -> Any:
    """Whole numbers without a point, which pandas writes beside nulls; all else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_group(value: Any) -> str:
    """The name of a problem; a conversation whole, since its last turn may begin every answer."""
    return json.dumps(value) if isinstance(value, list) else _read_text(_read_whole(value))


def _read_number(value: Any) -> float | None:
    # Several rewards of one rollout are added up, as trainers do.
    if isinstance(value, list | dict):
        parts = [_read_number(v) for v in (value.values() if isinstance(value, dict) else value)]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


TRUE, FALSE = ("true", "+", "correct", "right", "yes"), ("false", "-", "incorrect", "wrong", "no")


def _read_truth(value: Any) -> bool | None:
    """True for what is above one half; PRM800K rates from -1 to 1, where 0 is neutral."""
    if isinstance(value, list | dict):
        return None
    word = str(value).strip().lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    number = _read_number(value)
    return None if number is None else number > 0.5
