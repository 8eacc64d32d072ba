"""Rule checkers for tasks of Big-Bench-Mistake: where is a trace's first error?

Tyen et al. 2024, arXiv:2311.08516.

The traces are a language model's, in a fixed manner of speaking, with the first wrong step marked
by people (0-based, null: none). Multistep arithmetic: every `=` must join equal values, with
letters standing for what was stated of them. Word sorting: every letter that is quoted must be the
word's, every order that is claimed must hold and be complete. Dyck words: every stack must be the
one before it after the next symbol, and the end must close what is open. A trace in another manner
is none of theirs, so they abstain on all of it.
"""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

from ramp.tasks.calculator import NotArithmetic, calculate
from ramp.tasks.protocol import UNCHECKED, Step

PLACES = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
)
QUOTED = re.compile(r'"([^"]+)": "([a-z])" \(([0-9]+)\)')
CLOSES = {"(": ")", "[": "]", "{": "}", "<": ">"}
BRACKET = re.compile(r"[][(){}<>]")


class ForeignTrace(ValueError):
    """A trace that does not speak in the manner that a checker reads."""


def judge_trace(task: str, question: str, steps: Sequence[str]) -> list[Step]:
    """A verdict on every step of a trace of a task in `CHECKERS`.

    After the first error the checker abstains, since what builds on it is neither right nor wrong;
    on a trace in another manner it abstains from the start.
    """
    try:
        error = CHECKERS[task](question, steps)
    except ForeignTrace:
        return [UNCHECKED] * len(steps)
    if error is None:
        return [Step(True)] * len(steps)
    return [Step(True)] * error + [Step(False, "wrong value")] + [UNCHECKED] * len(steps[error:-1])


def find_first_error(verdicts: Sequence[Step]) -> int | None:
    """Number of the first wrong step; None where none is; -1 where the checker abstains."""
    if verdicts and verdicts[0] == UNCHECKED:
        return -1
    return next((i for i, step in enumerate(verdicts) if step.right is False), None)


def arithmetic_error(question: str, steps: Sequence[str]) -> int | None:
    """The first step with a wrong value in a trace of multistep arithmetic.

    The split into A, B, ... (step 0) is taken as given: people marked errors of calculation only.
    """
    meaning: dict[str, str] = {}
    value: dict[str, Fraction] = {}
    opening = steps[0] if steps else ""
    for name, expression in re.findall(
        r"\b([A-Z]) = (.+?)(?=,? and [A-Z] =|, [A-Z] =|\.?$)", opening
    ):
        meaning[name] = expression.rstrip(".,")
    if not meaning:
        raise ForeignTrace
    for i, step in enumerate(steps[1:], 1):
        text = re.split(r"\. So the answer is", step)[0]
        text = re.sub(r"^.*?(?:calculate|equation is)\s+", "", text).strip().rstrip(".")
        parts = [part.strip() for part in text.split("=")]
        named = re.fullmatch(r"[A-Z]", parts[0])
        if named and parts[0] in meaning and len(parts) > 2:
            parts[0] = meaning[parts[0]]
        elif named:
            parts = parts[1:]
        try:
            found = [
                calculate(re.sub(r"\b[A-Z]\b", lambda m: f"({value[m[0]]})", part))
                for part in parts
            ]
        except (NotArithmetic, KeyError):
            return i
        if named:
            value[named[0]] = found[-1]
        said = re.search(r"So the answer is (-?[0-9]+)", step)
        if any(a != b for a, b in itertools.pairwise(found)) or (
            said and int(said[1]) != found[-1]
        ):
            return i
    return None


def sorting_error(question: str, steps: Sequence[str]) -> int | None:
    """The first wrong step of a trace of word sorting.

    `order` is what the trace has established: groups of words, each group still to be sorted. A
    group is taken up letter by letter and must be replaced by what its letters say; a claim about
    the whole order must repeat the rest. A word that the first step misspells is taken as it is
    spelled there, as people did.
    """
    order: list[frozenset] = []
    place, part = 0, frozenset(question.split())
    if not steps or not QUOTED.search(steps[0]):
        raise ForeignTrace
    for i, step in enumerate(steps):
        spoken = re.search(rf"\b({'|'.join(PLACES)}) letter", step)
        if spoken and QUOTED.search(step):
            listed = re.search(r"subpart \[(.*?)\]", step)
            letters = {word: (letter, int(n)) for word, letter, n in QUOTED.findall(step)}
            place = PLACES.index(spoken[1])
            if listed and frozenset(_words(listed[1])) != next(
                (g for g in order if len(g) > 1), None
            ):
                return i  # the first group that is not sorted yet comes next
            if (listed or i == 0) and len(letters) != (
                len(_words(listed[1])) if listed else len(part)
            ):
                return i
            part = frozenset(_words(listed[1]) if listed else letters)
            order = order or [part]
            if any(
                word[place : place + 1] != a or ord(a) - 96 != n for word, (a, n) in letters.items()
            ):
                return i
        elif "We now have" in step:
            claim, _, whole = step.partition("Hence, we have")
            found = _groups(claim)
            if found != _by_letter(part, place) or part not in order:
                return i
            at = order.index(part)
            order[at : at + 1] = found
            if whole and _groups(whole) != order:
                return i
        elif "answer is" in step:
            said = re.split(r"[ ,]+", step.split("answer is")[1].strip(" .:"))
            if [frozenset([word]) for word in said] != order:
                return i
    return None


def _words(text: str) -> list[str]:
    return re.findall(r'"([^"]+)"', text)


def _groups(claim: str) -> list[frozenset]:
    """`(2) ["b.." ? "b.."] < (3) "c.."` as sets of words, in the order claimed."""
    return [frozenset(_words(group)) for group in claim.split("<")]


def _by_letter(part: frozenset, place: int) -> list[frozenset]:
    letters = sorted({word[place : place + 1] for word in part})
    return [
        frozenset(word for word in part if word[place : place + 1] == letter) for letter in letters
    ]


def dyck_error(question: str, steps: Sequence[str]) -> int | None:
    """The first wrong step of a trace that reads brackets onto a stack and closes what is open."""
    symbols = iter(question.split())
    stack: list[str] = []
    if not any("; stack:" in step for step in steps):
        raise ForeignTrace
    for i, step in enumerate(steps):
        if "; stack:" in step:
            read, said = (BRACKET.findall(part) for part in step.split(";", 1))
            symbol = next(symbols, None)
            if read != [symbol]:
                return i
            if symbol in CLOSES:
                stack = [*stack, symbol]
            elif stack and CLOSES[stack[-1]] == symbol:
                stack = stack[:-1]
            else:
                return i  # it closes what is not open
            if said != stack:
                return i
            continue
        reversed_stack = stack[::-1]
        closing = [CLOSES[symbol] for symbol in reversed_stack]
        # What each manner of speaking must be followed by.
        for words, expected in (
            ("final stack is", stack),
            ("pop out", reversed_stack),
            ("we need", closing),
            ("answer is", closing),
        ):
            # The end is reached when every symbol has been read.
            said = _claim(step, words)
            if said is not None and (said != expected or next(symbols, None)):
                return i
    return None


def _claim(step: str, words: str) -> list[str] | None:
    """The brackets behind certain words, to the end of the sentence; None without the words."""
    _, found, rest = step.partition(words)
    if not found:
        return None
    return BRACKET.findall(re.split(r"\. So the|one by one", rest)[0])


CHECKERS = {
    "multistep_arithmetic": arithmetic_error,
    "word_sorting": sorting_error,
    "dyck_languages": dyck_error,
}
