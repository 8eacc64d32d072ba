"""GSM8K from a file: lines with calculator notes `<<48/2=24>>`, the answer after `####` (or `A:`).

Cobbe et al. 2021, arXiv:2110.14168. People solve a problem by many routes, so a line is judged by
what can be checked: its arithmetic, and whether its numbers were given or computed before.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

from ramp.errors import UserError
from ramp.tasks.calculator import NotArithmetic, calculate, list_operands, parse_number
from ramp.tasks.protocol import Problem, Step, Task, Verdict
from ramp.text.corpus import list_parts, records

NAME = "gsm8k"
NOTE = re.compile(r"<<([^<>]*)>>")
NUMBER = re.compile(r"\d[\d,]*\.?\d*|\.\d+")
# The question states these in words; smaller ones are in COMMON.
NUMBER_WORDS = {
    "eleven": 11,
    "fifteen": 15,
    "sixteen": 16,
    "eighteen": 18,
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "sixty": 60,
}
# Numbers that everybody knows and a question does not state: halves and dozens, minutes, hours,
# days, weeks, per cent.
COMMON = {*range(1, 9), 10, 12, 24, 28, 30, 31, 50, 52, 60, 100, 360, 365, 366, 1000}


def load_task(path: str | Path) -> Task:
    """The file as a task: seed i is its record i, again from the start at the end.

    Levels do not apply.
    """
    problems = load_problems(path)
    return Task(
        NAME,
        sample=lambda seed, level: problems[seed % len(problems)],
        solution=lambda problem: list(problem.gold),
        judge=judge,
    )


def load_problems(path: str | Path) -> list[Problem]:
    """Problems of a JSONL file with `question` and `answer` on every line."""
    problems = []
    parts = list_parts(f"file:{path}")
    for i, (key, record) in enumerate(chain.from_iterable(map(records, parts))):
        if not isinstance(record, dict) or not {"question", "answer"} <= record.keys():
            raise UserError(
                f"{path}, record {key}: a GSM8K record is an object with 'question' and 'answer'"
            )
        steps, answer = split_solution(record["answer"])
        if answer is None:
            # A problem without an answer cannot be judged.
            raise UserError(f"{path}, record {key}: the answer has no line that begins with '####'")
        problems.append(Problem(NAME, i, len(steps), record["question"], tuple(steps), answer))
    return problems


def split_solution(text: str) -> tuple[list[str], str | None]:
    """(lines, answer): the answer is what follows the last `####` or `A:`; None without these."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    ends = [i for i, line in enumerate(lines) if re.match(r"####|A:", line)]
    if not ends:
        return lines, None
    return lines[: ends[-1]], re.sub(r"^(####|A:)\s*", "", lines[ends[-1]])


def read_notes(line: str) -> list[tuple[str, str]]:
    """(expression, value) of each calculator note of a line; one without `=` is `NotArithmetic`."""
    notes = []
    for note in NOTE.findall(line):
        expression, equals, value = note.partition("=")
        if not (expression and equals and value):
            raise NotArithmetic(note)
        notes.append((expression, value.rsplit("=")[-1]))  # `4/2=2.0=2`
    return notes


def judge_line(line: str, known: set[Fraction]) -> Step:
    """The verdict on one line; all numbers that it states are added to `known`.

    Without a note nothing can be wrong.
    """
    try:
        for expression, stated in read_notes(line):
            # A number from nowhere is a wrong operand. Wrong arithmetic is the graver mistake.
            unknown = set(list_operands(expression)) - known - COMMON
            result, value = calculate(expression), parse_number(stated)
            # Later lines may use either: the stated value, or the one that is not rounded.
            known.update((result, value))
            if not is_same(result, value):
                return Step(False, "wrong value")
            if unknown:
                return Step(False, "wrong operand")
        # Numbers in the words of the line count as known too.
        known.update(parse_number(n) for n in NUMBER.findall(NOTE.sub("", line)))
    except NotArithmetic:
        return Step(False, "malformed")
    return Step(True)


def given_numbers(question: str) -> set[Fraction]:
    """The numbers of a question, in digits or as a word, and what people make of percentages.

    20% stands for .2, for the .8 that it leaves and for the 1.2 that it makes.
    """
    numbers = {parse_number(n) for n in NUMBER.findall(question)}
    numbers |= {Fraction(1, 2), Fraction(3, 2)}
    numbers |= {Fraction(n) for word, n in NUMBER_WORDS.items() if word in question.lower()}
    hundredths = {n / 100 for n in numbers}
    return numbers | hundredths | {1 - n for n in hundredths} | {1 + n for n in hundredths}


def is_same(exact: Fraction, stated: Fraction) -> bool:
    """Equal, or the stated one is the exact one rounded or cut to cents or better."""
    return abs(exact - stated) < Fraction(1, 100)


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Every line by its notes; the answer follows where it is any number stated before."""
    known = given_numbers(problem.question)
    verdicts = tuple(judge_line(line, known) for line in steps)
    try:
        stated = parse_number(answer or "")
    except NotArithmetic:
        return Verdict(verdicts, Step(False, "malformed"), False)
    # Routes differ, so the answer may be any value on the way, not only the last.
    follows = any(is_same(value, stated) for value in known)
    verdict = Step(True) if follows else Step(False, "wrong value")
    return Verdict(verdicts, verdict, is_same(parse_number(problem.answer), stated))
