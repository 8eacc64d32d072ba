"""Trials beside training: what is written at each evaluation, what a resumed run repeats, what the end says."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from ramp import config
from ramp.config import Chat, Config, Text, Train
from ramp.errors import UserError
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.stages import finetune, trials
from ramp.tasks.protocol import parse, prompt_ids
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption

TOKENIZER = Tokenizer.bytes_only()


def settings(**over) -> Config:
    c = Config(
        text=Text(tokenizer="bytes"),
        model=tiny.model(vocab_size=264, context_len=192),
        finetune=Train(steps=80, batch_size=8, eval_every=10),
        chat=Chat(tasks=("addition/1", "words/1"), problems_per_task=20),
        trials=config.Trials(items_per_task=12, tries_per_item=2, max_new_tokens=40),
    )
    return config.resolve(replace(c, **over))


@pytest.fixture
def rundir(tmp_path):
    made = RunDir(tmp_path / "run")
    made.path.mkdir()
    return made


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluated(
    run: trials.TrialRunner, steps: list[int], params: dict | None = None
) -> dict[str, float]:
    with MetricWriter(run.rundir.path, "finetune", steps[0]) as board:
        return [run(params or {"lm": None}, step, board, Preemption()) for step in steps][-1]


def test_without_conversations_problems_are_split():
    c = settings()
    c = replace(c, chat=replace(c.chat, sources=(), val_fraction=0.2))
    rows, counts = finetune.pack_rows(c, TOKENIZER)
    assert counts["problems"] == 40 and counts["rendered"] == 0
    tokens = {split: int(np.sum(packed.weights > 0)) for split, packed in rows.items()}
    assert 0.05 < tokens["val"] / sum(tokens.values()) < 0.5
    assert finetune.pack_rows(c, TOKENIZER)[0]["val"].tokens.tolist() == rows["val"].tokens.tolist()


def growing(c, params, tokenizer, task, problems, group, tokens, step, temperature, poll):
    """Solutions that are right more and more often."""
    right = np.random.default_rng(step).random(len(problems) * group) < 1 / (
        1 + np.exp(-2 * np.log(step / 30))
    )
    return SimpleNamespace(verified_b=right)


def test_a_model_is_tried_in_every_slice_on_problems_kept_out_of_training(rundir):
    c = settings()
    run = trials.TrialRunner(rundir, c, TOKENIZER)
    with jax.set_mesh(tiny.mesh()):
        found = evaluated(run, [10], {"lm": tiny.lively(c.model)})
    rows = lines(rundir.path / "trials.jsonl")
    kinds = {"addition/1": {"base", "longer"}, "words/1": {"base", "longer", "reworded", "typos"}}
    assert {t: {r["slice"] for r in rows if r["task"] == t} for t in kinds} == kinds
    # Of the hundred questions of addition/1 one in ten is a test.
    held_out = len(run.problems["addition/1"]["base"])
    assert 4 <= held_out < 12
    assert sum(r["task"] == "addition/1" for r in rows) == 2 * held_out * 2
    assert sum(r["task"] == "words/1" and r["slice"] == "base" for r in rows) == 12 * 2
    assert {r["item"] for r in rows} == {f"{k}{i}" for k in ("", "longer ") for i in range(1, 13)}
    assert found["nines/addition/1"] == np.mean(
        [r["success"] for r in rows if r["task"] == "addition/1" and r["slice"] == "base"]
    )
    assert not (rundir.path / "forecasts.jsonl").exists()  # one checkpoint foretells nothing


def test_forecasts_come_before_what_they_are_scored_by_and_a_resumed_run_repeats_none(
    rundir, monkeypatch, capsys
):
    monkeypatch.setattr(trials, "sample_rollouts", growing)
    monkeypatch.setattr(trials.headline, "DRAWS", 40)  # what is written matters, not how sure it is
    c = settings(finetune=Train(steps=80, batch_size=8, eval_every=16))
    evaluated(trials.TrialRunner(rundir, c, TOKENIZER), [16, 32, 48, 64, 80])
    whole = [(rundir.path / name).read_bytes() for name in ("trials.jsonl", "forecasts.jsonl")]
    for line in lines(rundir.path / "forecasts.jsonl"):
        assert 10 ** line["places"][0] == pytest.approx(line["step"])
        assert line["usage"]["slices"] == {"base": 1.0}
    assert {line["step"] for line in lines(rundir.path / "forecasts.jsonl")} == {48, 64}
    again = trials.TrialRunner(rundir, c, TOKENIZER)  # from a checkpoint at 32, another process
    evaluated(again, [48, 64, 80])
    assert [
        (rundir.path / name).read_bytes() for name in ("trials.jsonl", "forecasts.jsonl")
    ] == whole
    report = again.end()
    assert set(report["forecast"]) == {"addition/1", "words/1"}
    assert "today" in report["forecast"]["addition/1"]
    # Two tasks, from 48 on and from 64 on.
    assert report["record"]["count"] == 2 * (2 + 1)
    assert report["record"]["open"] == 0
    assert "80% intervals cover" in capsys.readouterr().out
    page = (rundir.path / "nines.html").read_text()
    assert page.count("<svg") == 2  # two tasks
    assert "<script" not in page


def test_nothing_that_is_asked_is_taught():
    c = settings(chat=Chat(tasks=("addition/1", "swaps/3"), problems_per_task=2000))
    taught = {
        tuple(ids[: len(ids) - sum(weights)])
        for ids, weights in trials.render_solved_problems(c, TOKENIZER)
    }
    asked = [
        p for name in c.chat.tasks for of in trials.choose_problems(c, name).values() for p in of
    ]
    assert not taught & {tuple(prompt_ids(TOKENIZER, p.question)) for p in asked}
    # In place of a question that is held out another one is taught.
    assert len(list(trials.render_solved_problems(c, TOKENIZER))) == 2 * 2000


def test_a_mistake_is_taught_where_it_is_asked_for(capsys):
    tasks = ("addition/2", "addition/3")
    c = settings(chat=Chat(tasks=tasks, problems_per_task=300, mistakes=(("addition/3", 1.0),)))
    wrong = Counter()
    for ids, weights in trials.render_solved_problems(c, TOKENIZER):
        # A solution that states two columns is of two digits.
        steps = parse(TOKENIZER, ids[len(ids) - sum(weights) :]).steps
        wrong[len(steps)] += not any(step.count("+") == 2 for step in steps)
    # Two digits carry in about half of the problems; with three no carry is remembered.
    assert wrong[3] == 300 and 60 < wrong[2] < 240
    assert trials.require_mistakes(c) == ["addition/3: a carry is forgotten 100% of the time"]


def test_what_an_older_run_left_goes_with_the_first_evaluation(rundir, monkeypatch):
    monkeypatch.setattr(trials, "sample_rollouts", growing)
    for name in ("trials.jsonl", "forecasts.jsonl"):
        (rundir.path / name).write_text('{"stage": "finetune", "step": 3, "task": "gone"}\n')
    evaluated(trials.TrialRunner(rundir, settings(), TOKENIZER), [10])
    assert {r["step"] for r in lines(rundir.path / "trials.jsonl")} == {10}


def test_a_single_evaluation_foretells_nothing_and_says_so(rundir, monkeypatch, capsys):
    monkeypatch.setattr(trials, "sample_rollouts", growing)
    c = settings(finetune=Train(steps=10, batch_size=8, eval_every=10))
    run = trials.TrialRunner(rundir, c, TOKENIZER)
    evaluated(run, [10])
    assert "one checkpoint" in run.end()["forecast"]["addition/1"]
    assert "no forecast" in capsys.readouterr().out
    assert (rundir.path / "nines.html").exists()


def test_other_processes_write_nothing(rundir, monkeypatch):
    monkeypatch.setattr(trials, "sample_rollouts", growing)
    monkeypatch.setattr(trials, "on_writer", lambda action: None)
    with MetricWriter(rundir.path, "finetune", 0, enabled=False) as board:
        assert (
            trials.TrialRunner(rundir, settings(), TOKENIZER)({"lm": None}, 10, board, Preemption())
            == {}
        )
    assert not (rundir.path / "trials.jsonl").exists()


def test_without_tasks_or_items_nothing_is_written(rundir):
    for over in ({"chat": Chat()}, {"trials": config.Trials(items_per_task=0)}):
        run = trials.TrialRunner(rundir, settings(**over), TOKENIZER)
        assert evaluated(run, [10]) == {}
        assert run.end() == {}
    assert not (rundir.path / "trials.jsonl").exists()


@pytest.mark.parametrize(
    "name", ["addition", "addition/", "addition/0", "additon/2", "addition/two"]
)
def test_a_task_that_is_none_is_named(name):
    with pytest.raises(UserError, match="NAME/LEVEL"):
        list(trials.render_solved_problems(settings(chat=Chat(tasks=(name,))), TOKENIZER))


def test_a_problem_too_long_for_a_row_is_refused():
    c = settings(
        chat=Chat(tasks=("words/8",), problems_per_task=5), trials=config.Trials(items_per_task=0)
    )
    with pytest.raises(UserError, match=r"finetune\.seq"):
        list(trials.render_solved_problems(c, TOKENIZER))


def test_a_context_too_short_for_a_question_is_refused_before_training(rundir):
    with pytest.raises(UserError, match=r"model\.context_len"):
        trials.TrialRunner(
            rundir, settings(trials=config.Trials(items_per_task=9, max_new_tokens=180)), TOKENIZER
        )


def test_no_room_for_a_right_solution_is_refused_before_training(rundir):
    with pytest.raises(UserError, match=r"trials\.max_new_tokens"):
        trials.TrialRunner(
            rundir, settings(trials=config.Trials(items_per_task=9, max_new_tokens=8)), TOKENIZER
        )


def test_a_slice_beyond_the_task_is_named(rundir):
    with pytest.raises(UserError, match=r"swaps/9 of chat\.tasks"):
        trials.TrialRunner(rundir, settings(chat=Chat(tasks=("swaps/9",))), TOKENIZER)


def test_solved_problems_are_rows_of_fine_tuning(tmp_path):
    talks = tmp_path / "talks.jsonl"
    answer = {"role": "assistant", "content": "Ho"}
    # Different ones: which split a conversation is in follows from what it says.
    said = [[{"role": "user", "content": f"Hi {i}"}, answer] for i in range(200)]
    talks.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in said))
    chat = Chat(sources=(f"file:{talks}",), val_fraction=0.2)
    plain, mixed = (
        finetune.pack_rows(settings(chat=c), TOKENIZER)[0]
        for c in (chat, replace(chat, tasks=("chain/2",)))
    )
    assert len(mixed["train"]) > len(plain["train"])
    assert len(mixed["val"]) == len(plain["val"])
