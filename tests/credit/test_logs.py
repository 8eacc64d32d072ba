"""Logs of other trainers: their fields are found and said, and known faults have known figures."""

import json
import random
import re

import pytest

from ramp import cli
from ramp.credit import log_figures, logs
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
    assert "reward and length, among equally right ones: not measured: no field for right" in said
    assert "not measured" in page.read_text("utf-8")


def test_rewards_of_0_and_1_are_measured_against_the_right_answer_or_not_at_all(tmp_path, capsys):
    """A reward that is taken for the truth is paid for nothing else, whatever it pays for."""
    rows = make_rows(400, 2)
    for row in rows:
        right = row.pop("correct")
        row["reward"] = float(right or "well" in row["completion"])
        row["completion"] += f"\nThe answer is {7 if right else 8}."
    path = write(tmp_path / "a.jsonl", rows)
    assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
    said = capsys.readouterr().out
    assert "correlation" not in said and "paid more" not in said
    for gold in (7, "7.0", "3+4=7\n#### 7"):
        write(path, [row | {"gold": gold} for row in rows])
        assert cli.main(["credit", "audit", "--rollouts", str(path)]) == 0
        said = capsys.readouterr().out
        assert "an answer is right where its last number is the gold one" in said
        assert "'well' +0." in said
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
