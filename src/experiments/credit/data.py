"""Real solutions with known faults: GSM8K's example model solutions, Big-Bench-Mistake.

Read from a directory, if given.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from statistics import fmean

from experiments.credit import mistakes
from experiments.credit.first_errors import first_error_f1
from ramp.errors import UserError
from ramp.tasks import Problem, gsm8k
from ramp.tasks.calculator import NotArithmetic, calculate, parse_number

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def records(path: Path) -> Iterator[dict]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}; give the directory that holds it with --data"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSONL: {error}") from None


def gsm8k_solutions(path: Path) -> dict[str, float | int]:
    """Lines with calculator notes.

    How many are parsed, how many can be recomputed (the rest hold variables), how often the verdict
    on the answer is the file's; and what outcome-only credit would do: per model, the fraction of
    right solutions with a value outside the published route, of wrong ones that begin with a value
    on it.
    """
    found = dict.fromkeys(
        ("annotated_lines", "parsed", "recomputed", "wrong_value", "solutions", "answer_agrees"), 0
    )
    off_route, begins_right = ({model: [] for model in MODELS} for _ in range(2))
    for record in records(path):
        gold, answer = gsm8k.split_solution(record["ground_truth"])
        problem = Problem("gsm8k", 0, len(gold), record["question"], tuple(gold), answer)
        for model in MODELS:
            steps, said = gsm8k.split_solution(record[model]["solution"])
            won = record[model]["is_correct"]
            verdict = gsm8k.judge(problem, steps, said)
            found["solutions"] += 1
            found["answer_agrees"] += verdict.final_right == won
            found["wrong_value"] += sum(step.why == "wrong value" for step in verdict.steps)
            for line in (line for line in steps if "<<" in line):
                parsed, computed = readable(line)
                found["annotated_lines"] += 1
                found["parsed"] += parsed
                found["recomputed"] += computed
            outside, begins = compare_with_route(problem, steps)
            (off_route if won else begins_right)[model].append(outside if won else begins)
    for model in MODELS:
        found[f"{model} right, value off the route"] = round(fmean(off_route[model]), 4)
        found[f"{model} wrong, first value right"] = round(fmean(begins_right[model]), 4)
    return found


def compare_with_route(problem: Problem, steps: list[str]) -> tuple[bool, bool]:
    """(a value outside the published route is used, the first value is on it).

    Outcome-only credit would call the first all right in a success, and the second all wrong in a
    failure. Other routes are right too, so the first is an upper bound.
    """
    route, used = set(note_values(problem.gold)), note_values(steps)
    return any(value not in route for value in used), bool(used) and used[0] in route


def note_values(steps: Iterable[str]) -> list[Fraction]:
    """The values of all calculator notes that can be read, in order."""
    values = []
    for line in steps:
        try:
            values += [parse_number(value) for _, value in gsm8k.read_notes(line)]
        except NotArithmetic:
            continue
    return values


def readable(line: str) -> tuple[bool, bool]:
    """(its notes have the form <<expression=value>>, both sides are numbers with operations)."""
    try:
        pairs = gsm8k.read_notes(line)
    except NotArithmetic:
        return False, False
    try:
        return True, bool([(calculate(a), parse_number(b)) for a, b in pairs])
    except NotArithmetic:
        return True, False


def big_bench_mistake(directory: Path) -> dict[str, dict]:
    """First-error F1 of the rule checkers, on all labels, and on those that do not call a trace
    with a wrong answer free of mistakes.
    """
    found = {}
    for name in mistakes.CHECKERS:
        traces = list(records(directory / f"bbmistake_{name}.jsonl"))
        verdicts = [mistakes.judge_trace(name, t["input"], t["steps"]) for t in traces]
        said = [mistakes.find_first_error(steps) for steps in verdicts]
        true = [t["mistake_index"] for t in traces]
        right = [t["answer"].replace(",", "").split() == t["target"].split() for t in traces]
        keep = [i for i, label in enumerate(true) if label is not None or right[i]]
        some = first_error_f1([said[i] for i in keep], [true[i] for i in keep])
        found[name] = {
            "all": asdict(first_error_f1(said, true)),
            "consistent": asdict(some),
            "traces": len(traces),
            "kept": len(keep),
            "abstained": said.count(-1),
        }
    return found
