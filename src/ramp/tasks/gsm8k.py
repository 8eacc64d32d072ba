"""GSM8K from a file: lines with calculator notes `<<48/2=24>>`, the answer after `####` (or `A:`).

Cobbe et al. 2021, arXiv:2110.14168. People solve a problem by many routes, so a line is judged by what can be checked:
its arithmetic, and whether its numbers were given or found before. `straw` compares with the one published route.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from ramp.errors import UserError
from ramp.tasks.calculator import NotArithmetic, calculate, number, operands
from ramp.tasks.protocol import Problem, Step, Task, Verdict
from ramp.text.corpus import Bad, records

NOTE = re.compile(r"<<([^<>]*)>>")
NUMBER = re.compile(r"\d[\d,]*\.?\d*|\.\d+")
WORDS = {"eleven": 11, "fifteen": 15, "sixteen": 16, "eighteen": 18}
WORDS |= {"twenty": 20, "thirty": 30, "forty": 40, "sixty": 60}
# Numbers of common knowledge that a question does not state: halves and dozens, minutes, hours, days, weeks, per cent.
COMMON = frozenset(
    map(
        Fraction,
        (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 24, 28, 30, 31, 50, 52, 60, 100, 360, 365, 366, 1000),
    )
)


def load(path: str | Path) -> list[Problem]:
    """Problems of a JSONL file with `question` and `answer` on every line."""
    found = []
    for i, (key, record) in enumerate(records(Path(path))):
        if (
            isinstance(record, Bad)
            or not isinstance(record, dict)
            or not {"question", "answer"} <= record.keys()
        ):
            raise UserError(
                f"{path}, record {key}: a GSM8K record is an object with 'question' and 'answer'"
            )
        steps, answer = split(record["answer"])
        if answer is None:
            raise UserError(f"{path}, record {key}: the answer has no line that begins with '####'")
        found.append(Problem("gsm8k", i, len(steps), record["question"], tuple(steps), answer))
    return found


def split(text: str) -> tuple[list[str], str | None]:
    """Lines, and what stands after the last `####` or `A:`."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    ends = [i for i, line in enumerate(lines) if re.match(r"####|A:", line)]
    if not ends:
        return lines, None
    return lines[: ends[-1]], re.sub(r"^(####|A:)\s*", "", lines[ends[-1]])


def notes(line: str) -> list[tuple[str, str]]:
    """(expression, value) of every calculator note of a line; one without an `=` is `NotArithmetic`."""
    found = []
    for note in NOTE.findall(line):
        expression, equals, value = note.partition("=")
        if not (expression and equals and value):
            raise NotArithmetic(note)
        found.append((expression, value.rsplit("=")[-1]))  # `4/2=2.0=2`
    return found


def check(line: str, known: set[Fraction]) -> Step:
    """The verdict on one line; all numbers it states are added to `known`. Without a note nothing can be wrong."""
    try:
        for expression, stated in notes(line):
            used, result, value = operands(expression), calculate(expression), number(stated)
            strange = set(used) - known - COMMON
            known.update((result, value))
            if not same(result, value):
                return Step(False, "wrong value")
            if strange:
                return Step(False, "wrong operand")
        known.update(number(n) for n in NUMBER.findall(NOTE.sub("", line)))
    except NotArithmetic:
        return Step(False, "malformed")
    return Step(True)


def given(question: str) -> set[Fraction]:
    """The numbers of a question, in digits or as a word; each also as a share of a hundred and what that leaves."""
    found = {number(n) for n in NUMBER.findall(question)} | {Fraction(1, 2), Fraction(3, 2)}
    found |= {Fraction(n) for word, n in WORDS.items() if word in question.lower()}
    return (
        found
        | {n / 100 for n in found}
        | {1 - n / 100 for n in found}
        | {1 + n / 100 for n in found}
    )


def same(exact: Fraction, stated: Fraction) -> bool:
    """Equal, or the stated one is the exact one rounded or cut to cents or better."""
    return abs(exact - stated) < Fraction(1, 100)


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    known = given(problem.question)
    verdicts = tuple(check(line, known) for line in steps)
    try:
        stated = number(answer or "")
    except NotArithmetic:
        return Verdict(verdicts, Step(False, "malformed"), False)
    follows = any(same(value, stated) for value in known)
    return Verdict(
        verdicts,
        Step(True) if follows else Step(False, "wrong value"),
        same(number(problem.answer), stated),
    )


def values(steps: Iterable[str]) -> list[Fraction]:
    """The values of all notes that can be read, in order."""
    found = []
    for line in steps:
        try:
            found += [number(value) for _, value in notes(line)]
        except NotArithmetic:
            continue
    return found


def straw(problem: Problem, steps: Sequence[str]) -> tuple[bool, bool]:
    """(a value outside the published route is used, the first value is on it): what outcome-only credit would call
    all right in a success and all wrong in a failure. Other routes are right too, so the first is an upper bound."""
    gold, said = set(values(problem.gold)), values(steps)
    return any(v not in gold for v in said), bool(said) and said[0] in gold


def task(path: str | Path) -> Task:
    """The file as a task: seed i is its record i, again from the start at the end; levels do not apply."""
    problems = load(path)
    return Task(
        "gsm8k", lambda seed, level: problems[seed % len(problems)], lambda p: list(p.gold), judge
    )
