"""A task from a file of questions: `reinforce.prompts`, with or without answers.

The fields are found by their usual names, or named. Nobody judges the steps here: a reward of your
own may. What the answer of a solution is depends on the right answers: where all are numbers, the
last number of the text, else its last line; or what `reinforce.answer` matches.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.tasks import calculator, gsm8k
from ramp.tasks.calculator import MINUS, NotArithmetic, parse_number
from ramp.tasks.protocol import Problem, Step, Task, Verdict
from ramp.tasks.split import make_sets, normalize
from ramp.text.corpus import list_parts, records
from ramp.text.encodings import Bad
from ramp.text.fields import text_of

# What people call them, the surest first.
PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input")
ANSWERS = (
    *("answer", "gold", "ground_truth", "final_answer", "target", "solution", "reference"),
    *("label", "output", "response", "completion"),
)
# ASCII digits: those of other scripts are no answer that anybody asked for.
NUMBER = re.compile(rf"(?<![\w.)])-?\$?(?:{calculator.NUMBER})")
# What stands before an answer in a line of its own.
LEAD = re.compile(r"^(?:####|A:|(?:the |so )*(?:final )?answer(?: is|:)|\\boxed\{)\s*", re.I)


@dataclass(frozen=True)
class Form:
    """Where the answer of a text is, and a sentence about it."""

    find: Callable[[str], str | None]
    about: str


def find_number(text: str) -> str | None:
    """The last number of a text."""
    found = NUMBER.findall(text.translate(MINUS))
    return found[-1].replace("$", "").replace(",", "") if found else None


def find_last_line(text: str) -> str | None:
    """The last line that says anything, without what announces it."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return LEAD.sub("", lines[-1]).strip(" .}*") or None if lines else None


def find_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match of a pattern: its first group where it has one."""
    matches = list(pattern.finditer(text))
    return matches[-1][1 if pattern.groups else 0] if matches else None


def is_same(stated: str, gold: str) -> bool:
    """Equal numbers, or equal words but for case and white space."""
    try:
        return parse_number(stated) == parse_number(gold)
    except NotArithmetic:
        return normalize(stated) == normalize(gold)


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """The answer alone: whether it is the right one, which nobody knows where the file has none."""
    unchecked = tuple(Step(None) for _ in steps)
    right = answer is not None and is_same(answer, problem.answer)
    return Verdict(unchecked, Step(None), right if problem.answer else None)


def load_prompts(path: str, prompt: str = "", answer: str = "", pattern: str = "") -> Task:
    """A task from a file of questions, or from a folder of such files.

    Files of a folder with "test" in their names are for tests. prompt, answer: the fields; empty:
    found. pattern: a regular expression for the answer of a text. Raises `UserError`.
    """
    files, tests = list_files(path)
    rows, test_rows = (
        [row for file in group for row in read_records(file)] for group in (files, tests)
    )
    if not rows:
        raise UserError(f"{path} is empty; give a JSONL file with a question in each line")
    for key, name in (("reinforce.prompt_field", prompt), ("reinforce.answer_field", answer)):
        require_field(path, rows, name, key)
    prompt = prompt or find_field(path, rows, PROMPTS, "reinforce.prompt_field")
    # A reward may need no answers.
    answer = answer or find_field(path, rows, ANSWERS)
    problems, test_problems = (
        [_read_problem(row, prompt, answer) for row in group] for group in (rows, test_rows)
    )
    form = choose_form([p.answer for p in problems + test_problems if p.answer], pattern)
    problems, test_problems = (
        [_clean_answer(form, p) for p in group] for group in (problems, test_problems)
    )
    sets = make_sets(problems, test_problems)
    kept = [*sets.train, *sets.selection, *sets.test]
    num_unanswered = sum(not p.answer for p in kept)
    num_repeated = len(rows) + len(test_rows) - len(kept)
    about = f"questions in the field {prompt!r} of {path}; " + (
        f"right answers in {answer!r}, and that of a solution is {form.about}"
        if answer
        else "no field of right answers"
    )
    if num_repeated:
        about += f"; {num_repeated} of {len(rows) + len(test_rows)} ask it again and are left out"
    if answer and num_unanswered:
        about += f"; {num_unanswered} of {len(kept)} have no answer"
    return Task(
        Path(path).name,
        sample=lambda seed, level: problems[seed % len(problems)],
        solution=lambda problem: list(problem.gold),
        judge=judge,
        find_answer=form.find,
        steps="newline",
        sets=sets,
        about=about,
    )


def load_gsm8k(path: str) -> Task:
    """GSM8K from its file or its folder, with a verdict on every line. Raises `UserError`."""
    files, tests = list_files(path, gsm8k.NAME)
    problems, test_problems = (
        [problem for file in group for problem in gsm8k.load_problems(file)]
        for group in (files, tests)
    )
    return Task(
        gsm8k.NAME,
        sample=lambda seed, level: problems[seed % len(problems)],
        solution=lambda problem: list(problem.gold),
        judge=gsm8k.judge,
        find_answer=find_number,
        steps="newline",
        sets=make_sets(problems, test_problems),
        about=f"GSM8K of {path}; the answer of a solution is its last number",
    )


def list_files(path: str, name: str = "") -> tuple[list[Path], list[Path]]:
    """(files, files of tests) of a path; of a folder those with `name` in theirs, where there are.

    Raises `UserError` where there is nothing to train on.
    """
    source = Path(path).expanduser()
    if source.is_file():
        return [source], []
    found = sorted(file for file in source.glob("*.jsonl*") if file.is_file())
    found = [file for file in found if name in file.name] or found
    files = [file for file in found if "test" not in file.name]
    if not files:
        raise UserError(
            f"reinforce.prompts: {path} is neither a file nor a folder of .jsonl files to train "
            "on; name one that is there"
        )
    return files, [file for file in found if file not in files]


@dataclass(frozen=True)
class Row:
    """A record and where it is."""

    where: str
    record: dict[str, Any]


def read_records(file: Path) -> Iterator[Row]:
    """The records of a file. Raises `UserError` at the first that is none."""
    parts = list_parts(f"file:{file}")
    for key, record in chain.from_iterable(map(records, parts)):
        if not isinstance(record, dict):
            raise UserError(f"{file}{key} is no JSON object; mend that line")
        yield Row(f"{file}{key}", record)


def find_field(path: str, rows: Sequence[Row], names: Sequence[str], key: str = "") -> str:
    """The first of the usual names that a field of every tenth row has; empty: none.

    key: the setting that names the field; with it, to find none is a `UserError`.
    """
    for name in names:
        if 10 * sum(row.record.get(name) not in (None, "") for row in rows) >= max(len(rows), 1):
            return name
    if key:
        raise UserError(
            f"{path} has no field that is called {', '.join(names)}; name the one of its questions "
            f"with --{key}; it has: {', '.join(list_fields(rows))}"
        )
    return ""


def require_field(path: str, rows: Sequence[Row], name: str, key: str) -> None:
    """Raise `UserError` where no record has a field that was named by a setting."""
    if name and not any(name in row.record for row in rows):
        fields = list_fields(rows)
        raise UserError(
            f"no record of {path} has the field {name!r} of --{key}; they have: "
            f"{', '.join(fields) or 'none'}"
        )


def list_fields(rows: Sequence[Row]) -> list[str]:
    """The fields of all records, as they come."""
    return list(dict.fromkeys(str(name) for row in rows for name in row.record))


def _read_problem(row: Row, prompt: str, answer: str) -> Problem:
    question = _read_text(row, prompt).strip() if prompt in row.record else ""
    if not question:
        raise UserError(
            f"{row.where} has no text in the field {prompt!r}; "
            "mend it, or name another field with --reinforce.prompt_field"
        )
    gold = _read_text(row, answer) if answer in row.record else ""
    # Solutions such as GSM8K's: lines, and the answer behind ####.
    steps, stated = gsm8k.split_solution(gold)
    lines = tuple(steps) if stated else ()
    return Problem("prompts", 0, 1, question, lines, stated or gold.strip())


def _read_text(row: Row, field: str) -> str:
    """The text of a field; of a conversation, its contents; a number as it is written."""
    value = row.record.get(field)
    if isinstance(value, int | float):
        return str(value)
    is_talk = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    try:
        return text_of(row.record, f"{field}.content" if is_talk else field)
    except Bad as bad:
        raise UserError(f"{row.where}: the field {field!r} is no text ({bad}); mend it") from None


def choose_form(golds: Sequence[str], pattern: str) -> Form:
    """How the answer of a text is found, by what the right answers are. Raises `UserError`."""
    if pattern:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"reinforce.answer {pattern!r} is no regular expression ({error}); mend it, such "
                r"as --reinforce.answer 'answer: (\d+)'"
            ) from None
        return Form(partial(find_match, compiled), f"what {pattern!r} matches last")
    if golds and all(NUMBER.fullmatch(gold.rstrip(".%").translate(MINUS)) for gold in golds):
        return Form(find_number, "its last number")
    return Form(find_last_line, "its last line")


def _clean_answer(form: Form, problem: Problem) -> Problem:
    """The problem with its answer as `form` would find it in a solution."""
    return replace(problem, answer=form.find(problem.answer) or problem.answer)
