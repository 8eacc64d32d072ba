"""GSM8K from a file: lines with calculator notes `<<48/2=24>>`, the answer after `####` (or `A:`).

Cobbe et al. 2021, arXiv:2110.14168. People solve a problem by many routes, so a line is judged by
what can be checked: its arithmetic, in notes or in plain equations such as `48/2 = 24 clips`;
whether its numbers were given or computed before; and whether its value is one of the published
solution or leads to the right answer. Where that leaves it open the verdict abstains.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path

from ramp.errors import UserError
from ramp.tasks.calculator import (
    MAX_LENGTH,
    NUMBER,
    NotArithmetic,
    calculate,
    count_decimals,
    list_operands,
    parse_answer,
    parse_number,
)
from ramp.tasks.protocol import NO_CLAIM, UNCHECKED, Problem, Step, Task, Verdict, Why
from ramp.text.corpus import list_parts, records

NAME = "gsm8k"
NOTE = re.compile(r"<<([^<>]*)>>")
# A plain expression in a line whose words have become `~`: numbers with units, joined by signs.
TERM = rf"\(*\s*[$€£]?(?:{NUMBER})%?\s*(?:~\s*)*\)*\s*"
EXPRESSION = rf"-?{TERM}(?:[+\-*/]\s*{TERM})*"
# The question states these in words; smaller ones are in COMMON.
WORDS = "nine eleven thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty"
VALUES = (9, 11, 13, 14, 15, 16, 17, 18, 19, 20, 30, 40, 50, 60, 70, 80, 90)
NUMBER_WORDS = dict(
    zip(f"{WORDS} forty fifty sixty seventy eighty ninety".split(), VALUES, strict=True)
)
# Numbers that everybody knows and a question does not state: halves and dozens, minutes, hours,
# days, weeks, per cent, coins.
PARTS = {Fraction(n, 100) for n in (1, 5, 10, 20, 25, 50, 75, 150)}
COMMON = {*range(9), 10, 12, 14, 24, 25, 28, 30, 31, 50, 52, 60, 100, 360, 365, 366, 1000, *PARTS}
# Minus sign, dash, times, division, dot and a curly apostrophe, as people type them.
SIGNS = str.maketrans("\u2212\u2013\u00d7\u00f7\u22c5\u2019[]", "--*/*'()")


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
        if expression != value:  # `<<55=55>>` computes nothing
            notes.append((expression, value.rsplit("=")[-1]))  # `4/2=2.0=2`
    return notes


def read_equations(line: str) -> list[tuple[str, str]]:
    """(expression, value) of each plain equation of a line: `She has 5 eggs - 3 eggs = 2 eggs`."""
    text = line.translate(SIGNS)
    text = re.sub(r"(?<=[0-9)%])\s*x\s*(?=[$(0-9.])", "*", text)
    text = re.sub(r"(?<=[0-9)])\(", "*(", text)  # 86(2)
    text = re.sub(r"\b([0-9]+) ([0-9]+/[0-9]+)\b", r"(\1+\2)", text)  # 1 1/2
    text = re.sub("[0-9)][A-Za-z]+", "?", text)  # 2A: algebra is not read
    text = re.sub("/? *[A-Za-z']+(?:[/-][A-Za-z']+)*", "~", text)
    found = []
    for before, after in pairwise(text.split("=")):
        left = re.search(rf"(?<![~?+*/-])\s*({EXPRESSION})$", before)
        right = re.match(rf"\s*(?:~\s*)*({EXPRESSION})(?![~?+*/-])", after)
        if not left or not right or re.search(r"[?+*/-]\s*$", before[: left.start(1)]):
            continue
        sides = [re.sub(r"[~\s]", "", side) for side in (left[1], right[1])]
        # Either side may be the value; a number that is set equal to a number is no computation.
        plain = [side.strip("()") for side in sides]
        is_value = [bool(re.fullmatch(rf"-?[$€£]?(?:{NUMBER})%?", side)) for side in plain]
        with suppress(NotArithmetic):  # prose may look like an equation
            if is_value == [True, False]:
                sides, plain = sides[::-1], plain[::-1]
            if is_value == [False, False]:
                plain[1] = str(calculate(sides[1]))
            calculate(sides[0])
            if is_value != [True, True]:
                found.append((sides[0], plain[1]))
    return found


@dataclass(frozen=True)
class Computation:
    """One calculation of a line; numbers as they would be without the errors before it."""

    line: int
    operands: tuple[Fraction, ...]  # sorted
    value: Fraction
    stated: tuple[Fraction, ...]  # what the line says it is, rounded and not
    why: Why  # a fault that shows in the line itself; empty: none


class Reading:
    """The lines of a solution, read one after the other."""

    def __init__(self, question: str) -> None:
        # Number -> what it would be without the errors before it: itself at first.
        self.known = {n: n for n in given_numbers(question)}
        self.computations: list[Computation] = []
        self.verdicts: list[Step] = []

    def read_line(self, line: str) -> None:
        """Add a line's computations, and its verdict as far as it can be told from the line."""
        words = NOTE.sub("", line)
        try:
            pairs = read_notes(line) or read_equations(words)
            found = [self._compute(expression, stated) for expression, stated in pairs]
        except NotArithmetic:
            self.verdicts.append(Step(False, "malformed"))
            return
        faults = [computation.why for computation in found if computation.why]
        # Numbers in the words of the line count as known from here on.
        numbers = find_numbers(words)
        is_open = bool(numbers - self.known.keys())
        self.known.update({n: n for n in numbers - self.known.keys()})
        if faults:
            # Wrong arithmetic is the graver mistake.
            self.verdicts.append(Step(False, max(faults)))
        elif found:
            self.verdicts.append(Step(True))
        else:
            self.verdicts.append(UNCHECKED if is_open else NO_CLAIM)

    def _compute(self, expression: str, stated: str) -> Computation:
        used = list_operands(expression)
        result, value = calculate(expression), parse_number(stated)
        meant = calculate(expression, self.known)
        unknown = set(used) - self.known.keys() - COMMON
        why = "wrong operand" if unknown else ""
        if not is_same(result, stated):
            why = "wrong value"
        # Later lines may use either: the stated value, or the one that is not rounded.
        self.known.update({result: meant, value: meant})
        operands = tuple(sorted(self.known.get(n, n) for n in used))
        made = Computation(len(self.verdicts), operands, meant, (result, value), why)
        self.computations.append(made)
        return made


def find_numbers(text: str) -> set[Fraction]:
    """The numbers in a text; what has more characters than an expression may have is none."""
    return {parse_number(n) for n in re.findall(NUMBER, text) if len(n) <= MAX_LENGTH}


def given_numbers(question: str) -> set[Fraction]:
    """The numbers of a question, in digits or as a word, and what people make of percentages.

    20% stands for .2, for the .8 that it leaves and for the 1.2 that it makes.
    """
    numbers = find_numbers(question)
    numbers |= {Fraction(1, 2), Fraction(3, 2)}
    numbers |= {Fraction(n) for word, n in NUMBER_WORDS.items() if word in question.lower()}
    hundredths = {n / 100 for n in numbers}
    return numbers | hundredths | {1 - n for n in hundredths} | {1 + n for n in hundredths}


def is_same(exact: Fraction, stated: str) -> bool:
    """Equal, or the stated one is the exact one rounded or cut to cents or better."""
    decimals = count_decimals(stated)
    tolerance = Fraction(1, 10**decimals) if decimals >= 2 else 0
    difference = abs(exact - parse_number(stated))
    return difference == 0 or difference < tolerance


def is_right_answer(problem: Problem, stated: str) -> bool:
    """Whether an answer has the value of the right one; more digits of it do as well."""
    try:
        value = parse_answer(stated, problem.question)
        gold = parse_answer(problem.answer, problem.question)
    except NotArithmetic:
        return stated == problem.answer  # an answer in words
    is_rounded = gold.denominator > 1 and count_decimals(stated) > count_decimals(problem.answer)
    return value == gold or (is_rounded and is_same(value, problem.answer))


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """Every line by its computations; the answer follows where it is the value of one of them."""
    route = read_route(problem)
    reading = read_solution(problem.question, steps)
    verdicts, made = list(reading.verdicts), reading.computations
    stated = None
    with suppress(NotArithmetic):
        stated = parse_answer(answer or "", problem.question)
    final_right = is_right_answer(problem, answer or "")
    # Routes differ, so the answer may be any value on the way, not only the last.
    follows = any(stated in computation.stated for computation in made)
    helps = find_lines(made, stated) if stated is not None and final_right and follows else set()
    for computation in made:
        k = computation.line
        if verdicts[k].right and k not in helps:
            verdicts[k] = judge_by_route(computation, route)
    if stated is None:
        return Verdict(tuple(verdicts), Step(False, "malformed"), final_right)
    # A number that was stated without its computation may follow or not.
    verdict = Step(True) if follows else Step(False, "wrong value")
    if not follows and (not made or UNCHECKED in verdicts):
        verdict = UNCHECKED
    return Verdict(tuple(verdicts), verdict, final_right)


@lru_cache(maxsize=4096)
def read_route(problem: Problem) -> tuple[Computation, ...]:
    """The computations of the published solution; many solutions of a problem are judged by it."""
    return tuple(read_solution(problem.question, problem.gold).computations)


def read_solution(question: str, lines: Iterable[str]) -> Reading:
    """All lines of a solution, read in order."""
    reading = Reading(question)
    for line in lines:
        reading.read_line(line)
    return reading


def find_lines(made: Sequence[Computation], answer: Fraction) -> set[int]:
    """The lines whose values lead to an answer, from the last backwards."""
    needed, lines = {answer}, set()
    for computation in reversed(made):
        if needed & {computation.value, *computation.stated}:
            lines.add(computation.line)
            needed |= set(computation.operands)
    return lines


def judge_by_route(computation: Computation, route: Sequence[Computation]) -> Step:
    """The verdict on right arithmetic that does not lead to the right answer.

    The published numbers under another sign are a wrong operation. A value that the published
    solution has too is right. Of others nobody can say whether they would have led anywhere.
    """
    same = [other.value for other in route if other.operands == computation.operands]
    if same:
        return Step(True) if computation.value in same else Step(False, "wrong operation")
    return Step(True) if computation.value in {other.value for other in route} else UNCHECKED
