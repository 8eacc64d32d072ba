"""Own answers among the lessons of fine-tuning: whose they are, and what of them is kept."""

from collections import Counter
from dataclasses import replace

import jax
import pytest
import tiny

from ramp import config
from ramp.config import Chat, Config, Text, Train
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.stages import finetune, rehearsal
from ramp.text import chat
from ramp.text.demo_chats import exchange
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption

TOKENIZER = Tokenizer.bytes_only()


@pytest.fixture
def c(tmp_path) -> Config:
    talks = [
        {"messages": exchange(f"What is {word}?", "A word.", "And then?", "Nothing.")}
        for word in ("up", "down", "left", "right", "north", "south", "east", "west", "hot", "big")
    ]
    talks.append({"messages": exchange("What is " + "very " * 50 + "long?", "This.")})
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(map(rehearsal.to_line, talks)))
    return config.resolve(
        Config(
            text=Text(tokenizer="bytes"),
            model=tiny.model(vocab_size=264, context_len=192),
            finetune=Train(steps=8, batch_size=8, seq_len=96),
            chat=Chat(
                sources=(f"file:{file}",),
                own_answers=10,
                tasks=("addition/1",),
                problems_per_task=40,
                val_fraction=0.2,
            ),
        )
    )


@pytest.fixture
def rundir(tmp_path):
    made = RunDir(tmp_path / "run")
    made.data.mkdir(parents=True)
    return made


def make(rundir, c, monkeypatch):
    with jax.set_mesh(tiny.mesh()):
        lively = {"lm": tiny.lively(c.model)}
        monkeypatch.setattr(rehearsal, "load_start", lambda *_: lively)
        return rehearsal.make_rehearsal(rundir, c, TOKENIZER, Preemption())


def test_answers_are_the_models_own_and_whole(rundir, c, monkeypatch, capsys):
    own = make(rundir, c, monkeypatch)
    assert 0 < len(own) <= 10
    assert (
        f"rehearses {len(own)} own answers; {10 - len(own)} did not end" in capsys.readouterr().out
    )
    for _, messages in own:
        assert [m["role"] for m in messages] == ["user", "assistant"]
        assert messages[0]["content"].startswith("What is ")
        assert messages[1]["content"] != "A word."
    # What is kept is a source of conversations as any other.
    file = rundir.data / "own_answers.jsonl"
    kept = [messages for _, messages in chat.conversations(f"file:{file}", Counter())]
    assert kept == [messages for _, messages in own]


def test_a_resumed_stage_rehearses_the_same(rundir, c, monkeypatch):
    own = make(rundir, c, monkeypatch)
    rundir.checkpoints("finetune").mkdir(parents=True)
    fewer = replace(c, chat=replace(c.chat, own_answers=5))
    assert len(make(rundir, fewer, monkeypatch)) <= 5
    make(rundir, c, monkeypatch)
    (rundir.checkpoints("finetune") / "4").mkdir()
    monkeypatch.setattr(rehearsal, "generate", None)
    again = make(rundir, c, monkeypatch)
    assert [tuple(pair) for pair in again] == own


def test_own_answers_take_the_place_of_the_sources_and_problems_are_held_out_too(
    rundir, c, monkeypatch
):
    own = make(rundir, c, monkeypatch)
    rows, counts = finetune.pack_rows(c, TOKENIZER, own)
    # What is no text takes more tokens when it is written again.
    assert counts["rendered"] + counts["too_long"] == len(own)
    assert counts["rendered"] > 0
    assert counts["problems"] == 40
    shown = TOKENIZER.decode(rows["train"].tokens.ravel()) + TOKENIZER.decode(
        rows["val"].tokens.ravel()
    )
    assert "A word." not in shown
    assert "+" in TOKENIZER.decode(rows["val"].tokens.ravel())


def test_nothing_to_answer_is_refused_before_anything_is_paid_for(rundir, c):
    none = replace(c, chat=replace(c.chat, sources=()))
    with pytest.raises(UserError, match=r"'chat\.own_answers' needs questions"):
        config.check_config(none)
    with pytest.raises(UserError, match=r"chat\.own_answers has no question .* chat\.sources"):
        finetune.check_lengths(rundir, none, TOKENIZER)
    short = replace(c, finetune=replace(c.finetune, seq_len=24))
    with pytest.raises(UserError, match="at most 8 tokens"):
        rehearsal.choose_prompts(short, TOKENIZER)


def test_of_one_question_in_two_files_the_same_is_answered_in_any_order(c, tmp_path):
    other = tmp_path / "other.jsonl"
    talks = [{"messages": exchange(f"What is {word}?", "Else.")} for word in ("up", "down")]
    other.write_text("".join(map(rehearsal.to_line, talks)))
    sources = (*c.chat.sources, f"file:{other}")
    first, second = (
        rehearsal.choose_prompts(replace(c, chat=replace(c.chat, sources=s)), TOKENIZER)
        for s in (sources, sources[::-1])
    )
    assert first == second


def test_a_model_that_ends_no_answer_cannot_rehearse(rundir, c, monkeypatch):
    monkeypatch.setattr(rehearsal, "MAX_NEW_TOKENS", 1)
    with pytest.raises(UserError, match=r"none of 10 own answers .* set chat\.own_answers to 0"):
        make(rundir, c, monkeypatch)
