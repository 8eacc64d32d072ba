"""Training, selection and test problems share no question, however few there are."""

import json

import pytest

from ramp.config import Reinforce
from ramp.errors import UserError
from ramp.tasks import TASKS, open_task
from ramp.tasks.split import (
    choose_part,
    describe_sets,
    held_out_problems,
    make_problems,
    normalize,
)


def questions(problems):
    return {normalize(problem.question) for problem in problems}


@pytest.mark.parametrize(
    ("name", "level"), [("addition", 2), ("swaps", 3), ("chain", 1), ("paths", 2)]
)
def test_no_question_is_in_two_sets(name, level):
    """Today's figures were 14.5% of addition/2 and 100% of swaps/3."""
    task = TASKS[name]
    trained = make_problems(task, level, 0, 1500) + make_problems(task, level, 10**12, 500)
    tests = held_out_problems(task, level, 128)
    chosen = held_out_problems(task, level, 128, part="selection")
    assert len(questions(tests)) == len(tests)  # and none is asked twice
    for one, other in ((trained, tests), (trained, chosen), (tests, chosen)):
        assert not questions(one) & questions(other)
    assert held_out_problems(task, level, 5, first=3) == tests[3:8]
    assert make_problems(task, level, 7, 3) == make_problems(task, level, 0, 10)[7:]


def test_case_and_white_space_make_no_other_question():
    assert all(choose_part(f"  What \n IS {i}") == choose_part(f"what is {i}") for i in range(50))
    parts = [choose_part(str(i)) for i in range(4000)]
    assert (
        abs(parts.count("test") / 400 - 1) < 0.2 and abs(parts.count("selection") / 400 - 1) < 0.2
    )


def write_questions(path, n, **more):
    path.write_text(
        "".join(
            json.dumps({"question": f"What is {i}?", "answer": i} | more) + "\n" for i in range(n)
        )
    )
    return str(path)


def test_a_file_is_split_by_content_and_begins_again(tmp_path):
    path = tmp_path / "q.jsonl"
    write_questions(path, 100)
    path.write_text(path.read_text() * 3)  # and repeats are no further questions
    task = open_task(Reinforce(prompts=str(path)))
    sets = (task.sets.train, task.sets.selection, task.sets.test)
    assert sum(map(len, sets)) == 100 == len(set().union(*map(questions, sets)))
    n = len(task.sets.train)
    first, second = make_problems(task, 1, 0, n), make_problems(task, 1, n, n)
    assert questions(first) == questions(second) == questions(task.sets.train) and first != second
    assert len(held_out_problems(task, 1, 1000)) == len(task.sets.test)


def test_tests_of_the_source_are_the_tests(tmp_path):
    write_questions(tmp_path / "a_train.jsonl", 60)
    write_questions(tmp_path / "a_test.jsonl", 7)  # and their questions are not trained on
    task = open_task(Reinforce(prompts=str(tmp_path)))
    assert questions(task.sets.test) == {f"what is {i}?" for i in range(7)}
    assert not questions(task.sets.train) & questions(task.sets.test)
    assert len(task.sets.train) + len(task.sets.selection) == 53


def test_too_few_are_refused(tmp_path):
    task = open_task(Reinforce(prompts=write_questions(tmp_path / "few.jsonl", 12)))
    with pytest.raises(UserError, match=r"too few different questions: .* add questions$"):
        describe_sets(task, 1, 64)
    with pytest.raises(UserError, match="raise the level"):
        describe_sets(TASKS["swaps"], 1, 64)
    # As the remedy says.
    assert "64 for tests" in describe_sets(TASKS["swaps"], 3, 64)


def test_fewer_than_were_asked_for_is_said_with_the_reason(tmp_path):
    task = open_task(Reinforce(prompts=write_questions(tmp_path / "few.jsonl", 100)))
    said = describe_sets(task, 1, 32)
    counts = [len(task.sets.selection), len(task.sets.test)]
    assert (
        f"{counts[0]} of {counts[0]} to choose with, {counts[1]} of {counts[1]} for tests" in said
    )
    assert "32 were asked for: there are only 100 different questions" in said
    # Nothing is missing, and nothing is said.
    assert "asked for" not in describe_sets(task, 1, min(counts))
    # A small level says it too.
    assert "256 were asked for: level 1 has few" in describe_sets(TASKS["addition"], 1, 256)
    assert "asked for:" not in describe_sets(TASKS["swaps"], 3, 64)
