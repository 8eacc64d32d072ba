"""Logs of other trainers: their fields are found and said, and known faults have known figures."""

import json
import random
import re

import pytest

from ramp import cli
from ramp.credit import log_figures, logs, report
from ramp.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def make_rows(n, seed, per_char=0.0, word=0.0):
    """Groups of eight as TRL logs them; reward is right or wrong, plus what is planted."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        right = rng.random() < 0.5
        words = ["step", "by", "step"] * rng.randint(1, 12) + ["well"] * (rng.random() < 0.4)
        text = " ".join(words)
        reward = right + per_char * len(text) + word * ("well" in words) + 0.05 * rng.random()
        rows.append(
            {"prompt": f"question {i // 8}", "completion": text, "reward": reward, "correct": right}
        )
    return rows


def test_steps_verdicts_and_advantages_per_step_and_per_token(tmp_path):
    rows = [
        # A lucky success: its wrong step is praised. A failure: its right step is blamed.
        {"id": 1, "prompt": "q", "steps": ["a7", "b4"], "step_labels": [0, 1], "correct": True, "advantages": [1, 1]},
        {"id": 2, "prompt": "q", "steps": ["a7", "b5"], "step_labels": [1, 0], "correct": False, "advantages": [-1, -1]},
    ]  # fmt: skip
    found = log_figures.audit_log(logs.read_log(write(tmp_path / "a.jsonl", rows)))
    assert [x.value for x in (found.wrong_up, found.right_down, found.lucky)] == [1, 1, 1]
    tokens = [
        {"prompt": "q", "response": "a7 b4", "steps": ["a7", "b4"], "mistake_index": 1, "acc": 1,
         "tokens": ["a", "7", " b", "4"], "advantages": [0.5, 0.5, -1, -1]},
    ]  # fmt: skip
    (rollout,) = logs.read_log(write(tmp_path / "b.jsonl", tokens)).rollouts
    assert rollout.step_right == (True, False) and rollout.step_advantages == (0.5, -1)


def test_what_a_log_lacks_is_said(tmp_path, capsys):
    path = write(
        tmp_path / "a.jsonl", [{"prompt": "q", "output": "x", "score": 1}, {"prompt": "q"}]
    )
    page = tmp_path / "log.html"
    assert cli.main(["credit", "audit", "--rollouts", str(path), "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "text from 'output', reward from 'score'" in said
    assert "1 of 2 lines have no text" in said and "not measured" in said
    assert "no field says which answers are right" in said
    assert "reward and length, within a problem: not measured: there is no such case" in said
    assert "not measured" in page.read_text("utf-8")


def test_rewards_of_0_and_1_are_measured_against_the_right_answer_or_with_a_caveat(
    tmp_path, capsys
):
    """A reward that is taken for the truth is paid for nothing else, whatever it pays for."""
    rows = make_rows(400, 2)
    for row in rows:
        right = row.pop("correct")
        row["reward"] = float(right or "well" in row["completion"])
        row["completion"] += f"\nThe answer is {7 if right else 8}."
    path = write(tmp_path / "a.jsonl", rows)
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    said = capsys.readouterr().out
    # What goes with right answers cannot be told from what is paid beside them.
    assert "reward and length, within a problem: correlation" in said
    (line,) = re.findall("words that are paid more: (.*)", said)
    assert "'well' +0." in line and "'7.' +0." in line and report.UNTOLD in line
    for gold in (7, "7.0", "3+4=7\n#### 7"):
        write(path, [row | {"gold": gold} for row in rows])
        assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
        said = capsys.readouterr().out
        assert "an answer is right where its last number is the gold one" in said
        (line,) = re.findall("words that are paid more: (.*)", said)
        assert "'well' +0." in line and "'7.'" not in line and report.UNTOLD not in said
    # None of an answer is none, and none is right then; where all are paid alike, that is said.
    log = logs.read_log(write(path, [row | {"gold": None} for row in rows]))
    assert all(r.right is None for r in log.rollouts)
    write(path, [row | {"gold": 7, "reward": 1} for row in rows])
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    assert "paid alike" in capsys.readouterr().out


def test_names_that_nobody_knows_are_listed_and_what_is_missing_is_said(tmp_path, capsys):
    rows = [
        {"frage": f"q{i % 2}", "said": "x y", "steps": ["x", "y"], "pay": i, "a": [1, 0], "ok": 1}
        for i in range(4)
    ]
    path = str(write(tmp_path / "a.jsonl", rows))
    assert cli.main(["credit", "audit", "--rollouts", path]) == 0
    said = capsys.readouterr().out
    assert "4 rollouts\n" in said and "no field says which problem a rollout belongs to" in said
    assert "not read: a, frage, ok, pay, said; --field WHAT=NAME reads one as group, text" in said
    named = "--field prompt=frage --field completion=said --field score=pay --field advantages=a"
    assert cli.main(["credit", "audit", "--rollouts", path, *named.split()]) == 0
    said = capsys.readouterr().out
    assert "4 rollouts of 2 problems" in said
    assert "pushed up: not measured: no field for verdicts, right\n" in said
    more = ["--field", "right=ok", "--field", "verdicts=a"]
    assert cli.main(["credit", "audit", "--rollouts", path, *named.split(), *more]) == 0
    assert (
        "wrong steps of right answers that are pushed up: 0% [0%, 84%] of 4"
        in capsys.readouterr().out
    )


def test_the_help_of_the_command_is_its_own_and_lists_every_word(capsys):
    with pytest.raises(SystemExit):
        cli.main(["credit", "audit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    (words,) = re.findall("which field of the log is WHAT: (.*?); repeatable", said)
    assert re.sub(r" \(.*?\)| or", ",", words).replace(",,", ",").split(", ") == [*logs.FIELDS]
    assert "--groups" not in said and "usage: ramp credit audit " in said


def test_fields_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "said": "x", "r1": 1, "r2": 0}])
    with pytest.raises(UserError, match="--field text=NAME"):
        logs.read_log(path)
    log = logs.read_log(path, {"text": "said", "reward": "r2"})
    assert log.rollouts[0].text == "x" and log.rollouts[0].reward == 0
    for named, said in (
        ({"text": "nope"}, "no field 'nope'"),
        ({"words": "said"}, "--field words"),
    ):
        with pytest.raises(UserError, match=said):
            logs.read_log(path, named)


@pytest.mark.parametrize("text", ["[1]\n", "{\n", '"x"\n', ""])
def test_a_damaged_log_is_one_sentence(text, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 2
    assert "a.jsonl" in capsys.readouterr().err


GROUPS = [
    {"question": f"q{i}", "answer": "7", "rollouts": [
        {"text": "3+4=7", "score": 1.0, "answer": "7", "step_labels": [1]},
        {"text": "3+4=8", "score": 0.0, "answer": "8", "step_labels": [0]},
    ]}
    for i in range(3)
]  # fmt: skip


def test_a_line_may_hold_the_rollouts_of_a_problem(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [*GROUPS, {"question": "q9", "rollouts": []}])
    for named in ({}, {"text": "rollouts"}, {"text": "text", "reward": "score"}):
        log = logs.read_log(path, named)
        assert [r.text for r in log.rollouts[:2]] == ["3+4=7", "3+4=8"]
        assert [r.group for r in log.rollouts] == ["q0", "q0", "q1", "q1", "q2", "q2"]
        # A rollout's own answer is not taken for the right one.
        assert [r.right for r in log.rollouts[:2]] == [True, False]
        assert [r.reward for r in log.rollouts[:2]] == [1, 0]
        assert log.rollouts[1].step_right == (False,)
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    said = capsys.readouterr().out
    assert "6 rollouts of 3 problems" in said
    assert "a line has a list of rollouts in 'rollouts', which share its other fields" in said
    assert "an 'answer' of theirs is not the right one" in said
    assert "1 of 4 lines have no rollout in 'rollouts'" in said
    # Without a field of the problem the line is the problem.
    rows = [{"rollouts": row["rollouts"]} for row in GROUPS]
    log = logs.read_log(write(path, rows))
    assert len({r.group for r in log.rollouts}) == 3
    assert "gold" not in log.fields


def test_a_list_of_rollouts_is_never_one_text(tmp_path):
    rows = [{"question": "q", "rollouts": [{"said": "x"}, {"said": "y"}]}]
    path = write(tmp_path / "a.jsonl", rows)
    for named in ({}, {"text": "rollouts"}):
        with pytest.raises(UserError, match=r"rollouts.said.*name.*--field text="):
            logs.read_log(path, named)
    assert [r.text for r in logs.read_log(path, {"text": "said"}).rollouts] == ["x", "y"]
    # Nor is a list of texts.
    with pytest.raises(UserError, match=r"no line of .* has a text in 'completions'"):
        row = {"prompt": "q", "completions": ["x", "y"]}
        logs.read_log(write(path, [row]), {"text": "completions"})
    # A conversation is one rollout: its last turn.
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    (one,) = logs.read_log(write(path, [{"prompt": "q", "completion": turns}])).rollouts
    assert one.text == "x"


@pytest.mark.parametrize("key", logs.STEP_PARTS["verdicts"])
def test_steps_may_be_objects_with_verdicts_and_advantages(key, tmp_path, capsys):
    steps = [{"text": "a7", key: 1, "advantage": 0.5}, {"text": "b4", key: 0, "advantage": -1}]
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "steps": steps, "acc": 1}])
    (one,) = logs.read_log(path).rollouts
    assert one.steps == ("a7", "b4") and one.text == "a7\nb4"
    assert one.step_right == (True, False) and one.step_advantages == (0.5, -1)
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    assert (
        f"steps are objects; read steps.{key}, steps.advantage; a number above"
        in capsys.readouterr().out
    )
    # Within a list of rollouts as well.
    (inner,) = logs.read_log(write(path, [{"prompt": "q", "samples": [{"steps": steps}]}])).rollouts
    assert inner.step_right == (True, False)
    with pytest.raises(UserError, match=f"no text among {key}"):
        logs.read_log(write(path, [{"steps": [{key: 1}]}]))


def test_gts_of_verl_are_right_answers(tmp_path):
    row = {"input": "3+4", "output": "it is 7", "gts": "7", "score": 1.0, "step": 3}
    log = logs.read_log(write(tmp_path / "a.jsonl", [row, row | {"output": "it is 8"}]))
    assert log.fields["gold"] == "gts" and [r.right for r in log.rollouts] == [True, False]


def read(path, *rows, **named):
    return logs.read_log(write(path / "a.jsonl", rows), named)


def test_what_tools_gave_is_no_rollout(tmp_path):
    """Only named, usual or sole lists of texts are rollouts, and theirs is the text then."""
    row = {"prompt": "q", "response": "3", "reward": 1}
    documents = row | {"documents": [{"text": "a"}, {"text": "b"}]}
    assert [r.text for r in read(tmp_path, documents).rollouts] == ["3"]
    none = documents | {"response": None}
    assert [r.text for r in read(tmp_path, none, documents).rollouts] == ["3"]
    called = row | {"tool_calls": [{"name": "calc", "output": "8"}]}
    log = read(tmp_path, row | {"tool_calls": []}, called)
    assert [r.text for r in log.rollouts] == ["3", "3"]
    # A named list is one, and one beside a text that is named is none.
    assert [r.text for r in read(tmp_path, documents, text="documents").rollouts] == ["a", "b"]
    usual = row | {"samples": [{"text": "a"}, {"text": "b"}]}
    assert [r.text for r in read(tmp_path, usual).rollouts] == ["a", "b"]
    assert [r.text for r in read(tmp_path, usual, text="response").rollouts] == ["3"]
    alone = {"prompt": "q", "tries": [{"text": "a"}, {"text": "b"}]}
    assert [r.text for r in read(tmp_path, alone).rollouts] == ["a", "b"]


@pytest.mark.parametrize("inner", [{"solution": "7"}, {"text": "7"}, {"steps": ["7"]}])
def test_the_text_of_nested_rollouts_is_their_own(inner, tmp_path):
    asked = {"text": "What is 3+4?", "samples": [inner]}
    assert [r.text for r in read(tmp_path, asked).rollouts] == ["7"]
    # A line with an empty list stays for a text of its own.
    log = read(tmp_path, asked, {"solution": "8", "samples": []})
    assert [r.text for r in log.rollouts if r.text != "8"] == ["7"]
    assert ("8" in [r.text for r in log.rollouts]) == ("text" not in inner)


def test_a_reward_of_a_step_is_a_verdict_only_where_it_is_named(tmp_path, capsys):
    steps = [{"text": "a7", "reward": 1, "score": 1}, {"text": "b4", "reward": 0, "score": 1}]
    row = {"prompt": "q", "steps": steps, "acc": 1}
    log = read(tmp_path, row)
    assert log.rollouts[0].step_right is None and "read nothing but their text" in log.notes[0]
    assert any("not read: steps.reward, steps.score" in note for note in log.notes)
    for rows, name in ((row, "steps.reward"), ({"samples": [row]}, "samples.steps.reward")):
        log = read(tmp_path, rows, verdicts=name)
        assert log.rollouts[0].step_right == (True, False)
        assert any("steps are objects; read steps.reward; a" in note for note in log.notes)


def test_rollouts_that_are_no_objects_are_counted(tmp_path):
    rows = [{"rollouts": [{"text": "x"}]}, {"rollouts": ["y"]}, {"rollouts": [None]}]
    log = read(tmp_path, *rows)
    assert [r.text for r in log.rollouts] == ["x"]
    assert "2 rollouts of 'rollouts' left out: 'y' in line 2 is no object" in log.notes


def test_a_printed_name_can_be_given(tmp_path):
    row = {"prompt": "q", "tries": [{"said": "x", "pay": 1}, {"said": "y", "pay": 0}]}
    with pytest.raises(UserError) as error:
        read(tmp_path, row)
    pay, said = re.findall(r"tries\.\w+", str(error.value))
    log = read(tmp_path, row, text=said, reward=pay)
    assert [(r.text, r.reward) for r in log.rollouts] == [("x", 1), ("y", 0)]


def test_a_line_without_a_group_is_alone(tmp_path):
    rows = [{"prompt": "q", "text": "a"}, {"prompt": None, "text": "b"}, {"text": "c"}]
    assert len({r.group for r in read(tmp_path, *rows).rollouts}) == 3


def test_first_errors_that_are_no_step_and_verdicts_that_they_stand_for(tmp_path):
    row = {"prompt": "q", "steps": ["a", "b"], "correct": 1}
    for first in (2, 9):
        log = read(tmp_path, row | {"first_error": first})
        assert log.rollouts[0].step_right is None
        assert f"{first} in line 1 is no number of a step" in str(log.faults[0])
    log = read(tmp_path, row | {"verdicts": None, "first_error": 0})
    assert log.rollouts[0].step_right == (False, None) and not log.faults
    log = read(tmp_path, row | {"verdicts": None})
    assert "verdicts of 1 rollout left out" in str(log.faults[0])


def test_whole_numbers_with_a_point_are_whole_numbers(tmp_path):
    """As pandas writes integers that stand beside nulls."""
    row = {"steps": ["a", "b"], "correct": 1}
    log = read(
        tmp_path,
        row | {"group": 1, "first_error": 1.0},
        row | {"group": 1.0, "first_error": None},
        row | {"group": 1.5, "first_error": -1.0},
    )
    assert [r.step_right for r in log.rollouts] == [(True, False), (True, True), (True, True)]
    assert [r.group for r in log.rollouts] == ["1", "1", "1.5"] and not log.faults


def test_a_conversation_is_a_problem_as_a_whole(tmp_path):
    """Its last turn may be the beginning of every answer."""
    rows = []
    for i in range(12):
        turns = [{"role": "user", "content": f"{i // 2}?"}, {"role": "assistant", "content": "<"}]
        rows.append({"prompt": turns, "response": "x", "reward": i % 2})
    assert len({r.group for r in read(tmp_path, *rows).rollouts}) == 6


def test_what_does_not_fit_is_counted_and_said(tmp_path, capsys):
    good = {"prompt": "q", "text": "a b", "steps": ["a", "b"], "reward": 1, "correct": True,
            "verdicts": [1, 0], "advantages": [1, 1]}  # fmt: skip
    changes = [
        {"verdicts": [1]}, {"verdicts": [1] * 12}, {"reward": "high"}, {"correct": "perhaps"},
        {"verdicts": 1}, {"verdicts": [1, "maybe"]}, {"advantages": ["much", 1]},
        {"advantages": [1, 2, 3]}, {"reward": None},
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", [good | change for change in changes])
    path.write_text("\n" + path.read_text())
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    said = capsys.readouterr().out
    for line in (
        "verdicts of 2 rollouts left out: 1 verdict for 2 steps in line 2",
        "reward of 1 rollout left out: 'high' in line 4 is no number",
        "right of 1 rollout left out: 'perhaps' in line 5 is no yes or no",
        "verdicts of 1 rollout left out: 1 in line 6 is no list",
        "verdicts of 1 rollout left out: the verdict 'maybe' in line 7 is not known",
        "advantages of 1 rollout left out: ['much', 1] in line 8 are no numbers",
        "advantages of 1 rollout left out: 3 advantages for 2 steps and 0 tokens in line 9",
        "reward of 1 rollout left out: there is none in line 10",
    ):
        assert line in said
    # A figure that is not measured says which of its fields does not fit.
    write(path, [good | {"verdicts": [1] * 12}])
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    said = capsys.readouterr().out
    assert (
        "pushed up: not measured: verdicts of 1 rollout left out: 12 verdicts for 2 steps in line 1"
        in said
    )
    for odd in ({"steps": 3}, {"first_error": "x"}, {"verdicts": None, "first_error": 1.5}):
        assert logs.read_log(write(path, [good | odd])).rollouts


def test_advantages_of_tokens_need_the_tokens(tmp_path, capsys):
    row = {"prompt": "q", "text": "a7 b4", "steps": ["a7", "b4"], "correct": 1,
           "step_labels": [0, 1], "advantages": [0.5, 0.5, -1, -1]}  # fmt: skip
    path = write(tmp_path / "a.jsonl", [row])
    command = ["credit", "audit", "--rollouts", str(path)]
    assert cli.main(command) == 0
    assert "4 advantages for 2 steps and 0 tokens in line 1; if they" in capsys.readouterr().out
    # The remedy works.
    write(path, [row | {"pieces": ["a", "7", " b", "4"]}])
    assert cli.main([*command, "--field", "tokens=pieces"]) == 0
    said = capsys.readouterr().out
    assert "left out" not in said and "pushed up: 100%" in said


def test_an_empty_log_is_called_empty(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 2
    assert "a.jsonl is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        ({"reward": "accuracy_reward"}, "reward is 'accuracy_reward', the only name like one"),
        ({"correct": "solution"}, "perhaps --field gold=solution"),
        ({"correct": "expected_answer"}, "perhaps --field gold=expected_answer"),
        (
            {"reward": "format_reward", "id": "accuracy_reward"},
            "perhaps --field reward=accuracy_reward or --field reward=format_reward",
        ),
    ],
)
def test_other_names_are_read_or_proposed_and_what_is_proposed_works(
    renamed, said, tmp_path, capsys
):
    rows = [row | {"id": i % 2} for i, row in enumerate(make_rows(400, 2, word=0.5))]
    for row in rows:
        right = row["correct"]
        row["completion"] += f"\nThe answer is {7 if right else 8}."
        row["correct"] = "7" if "correct" in renamed else right
    rows = [{renamed.get(name, name): value for name, value in row.items()} for row in rows]
    command = ["credit", "audit", "--rollouts", str(write(tmp_path / "a.jsonl", rows))]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert said in told
    # What a model said is no right answer, and a name that is read is not proposed.
    proposed = set(re.findall(r"--field \w+=\w+", told)) - {"--field WHAT=NAME"}
    assert len(proposed) == said.count("--field")
    for option in proposed:
        assert cli.main([*command, *option.split()]) == 0
        told = capsys.readouterr().out
        assert option.split("=")[1] in told.split("not read")[0] and "perhaps" not in told
        assert re.search("paid more: ('well'|none)", told) and report.UNTOLD not in told


def test_what_differs_within_a_problem_is_no_right_answer(tmp_path):
    rows = [{"prompt": "q", "text": "x", "model_answer": str(i)} for i in range(3)]
    assert not read(tmp_path, *rows).proposed
    rows = [row | {"solution": "7", "reward_note": "high"} for row in rows]
    assert read(tmp_path, *rows).proposed == (("gold", "solution"),)
    # Without problems any answer is one of its own; and a score need not be what was paid.
    rows = [{"text": str(i), "final_answer": i, "confidence_score": i / 9} for i in range(3)]
    log = read(tmp_path, *rows)
    assert log.proposed == (("reward", "confidence_score"),) and "reward" not in log.fields


def test_a_few_problems_prove_nothing_of_words(tmp_path, capsys):
    rows = [
        {"prompt": f"q{i // 3}", "completion": "x" * (1 + i % 3), "reward": i % 3} for i in range(9)
    ]
    assert cli.main(["credit", "audit", "--rollouts", str(write(tmp_path / "a.jsonl", rows))]) == 0
    said = capsys.readouterr().out
    assert f"words that are paid more: {report.TOO_FEW}" in said and "none found" not in said
