"""Loss falls on the assistant alone, nothing is lost in packing, and over-long conversations never stall it."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.text import chat
from ramp.text.chat import (
    best_fit,
    conversations,
    pack,
    render,
    render_all,
    render_prompt,
)
from ramp.text.corpus import content_id
from ramp.text.demo_chats import exchange
from ramp.text.tokenizer import SPECIALS, Tokenizer

TOK = Tokenizer.bytes_only()
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Farewell."},
]
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(chat.ROLES), "content": st.text(max_size=30)}),
    max_size=8,
)


def spoken(ids, weights) -> str:
    return TOK.decode([i for i, w in zip(ids, weights, strict=True) if w])


def test_a_conversation_as_tokens():
    ids, weights, cut = render(TOK, TALK, 1000)
    assert TOK.decode(ids) == (
        "<|bos|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"
        "<|user|>Bye<|end|><|assistant|>Farewell.<|end|>"
    )
    assert spoken(ids, weights) == "Hello!<|end|>Farewell.<|end|>"
    assert cut is False


def test_a_prompt_ends_where_the_assistant_speaks():
    ids, _, _ = render(TOK, TALK, 1000)
    prompt = render_prompt(TOK, TALK[:4])
    assert prompt == ids[: len(prompt)]
    assert TOK.decode(prompt[-1:]) == "<|assistant|>"
    assert render_prompt(TOK, []) == [TOK.bos, TOK.special("assistant")]


def test_cut_after_the_last_assistant_turn_that_fits():
    ids, _, _ = render(TOK, TALK, 1000)
    one_turn = len(render(TOK, TALK[:3], 1000)[0])
    for room in range(one_turn, len(ids)):
        kept, weights, cut = render(TOK, TALK, room)
        assert kept == ids[:one_turn]
        assert spoken(kept, weights) == "Hello!<|end|>"
        assert cut is True
    assert render(TOK, TALK, one_turn - 1) is None


@settings(max_examples=150, deadline=None)
@given(messages=turns, room=st.integers(1, 120))
def test_rendering_is_a_prefix_with_loss_on_the_assistant_only(messages, room):
    done = render(TOK, messages, room)
    whole = render_prompt(TOK, messages)[:-1]
    if done is None:
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), None)
        assert first is None or len(render_prompt(TOK, messages[: first + 1])) - 1 > room
        return
    ids, weights, cut = done
    assert len(ids) == len(weights) <= room
    assert ids == whole[: len(ids)]
    assert cut == (len(ids) < len(whole))
    n_turns = ids.count(TOK.end)
    said = [m["content"] + "<|end|>" for m in messages[:n_turns] if m["role"] == "assistant"]
    assert spoken(ids, weights).encode() == "".join(said).encode()
    assert messages[n_turns - 1]["role"] == "assistant"


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(SPECIALS), around=st.text(max_size=5))
def test_what_a_user_types_cannot_open_a_turn(name, around):
    ids, _, _ = render(TOK, exchange(around + name + around, "ok"), 1000)
    assert [i for i in ids if i >= 256] == [
        TOK.special(n) for n in ("bos", "user", "end", "assistant", "end")
    ]


rendered = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=16).filter(any).map(lambda w: [0, *w]),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(masks=rendered)
def test_packing_keeps_every_token_once_and_crosses_no_boundary(masks):
    length, number = 16, iter(range(10**6))
    held = [([next(number) for _ in mask], mask) for mask in masks]  # all ids distinct
    rows = pack(held, length, pad_id=-5)
    found = []
    for i in range(len(rows)):
        row = {name: array[0] for name, array in rows.take(np.array([i])).items()}
        assert row["weights"].any()
        padding = row["segments"] < 0
        assert not row["weights"][padding].any()
        assert (row["tokens"][padding] == -5).all()
        for segment in range(row["segments"].max() + 1):
            place = np.flatnonzero(row["segments"] == segment)
            assert (np.diff(place) == 1).all()
            ids = [*row["tokens"][place], row["targets"][place[-1]]]
            assert [*row["targets"][place]] == ids[1:]
            found.append((tuple(ids), (0, *row["weights"][place])))
    assert sorted(found) == sorted((tuple(ids), tuple(mask)) for ids, mask in held)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_is_tight_enough(sizes):
    bins = best_fit(sizes, 20)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in members) for members in bins]
    assert all(f <= 20 for f in filled)
    assert len(bins) <= 11 / 9 * -(-sum(sizes) // 20) + 1 + sum(
        s > 10 for s in sizes
    )  # Johnson 1973, a loose form
    assert sum(f <= 10 for f in filled) <= 1  # two half-empty bins would have been one


def test_over_long_conversations_never_stall_nor_starve():
    """The failure of a packer whose buffer fills with conversations that no row can hold."""
    long, mixed = (
        exchange("q" * 30, "a" * 500),
        [*exchange("q", "a"), *exchange("q" * 90, "a" * 90)],
    )
    counts = Counter()
    items = [("x", long)] * 500 + [("y", mixed)] * 3 + [("z", exchange("hi", "ho"))] * 40
    rows = pack(render_all(TOK, items, 65, counts), 64, TOK.pad)
    assert (counts["too_long"], counts["cut"], counts["rendered"]) == (500, 3, 43)
    assert rows.weights.any(axis=1).all()
    assert rows.weights.sum() == counts["loss_tokens"] == 3 * 2 + 40 * 3
    assert (rows.segments >= 0).sum() == counts["tokens"] - 43
    assert len(pack(render_all(TOK, items[:500], 65, Counter()), 64, TOK.pad)) == 0


def test_packing_refuses_what_cannot_be_packed():
    with pytest.raises(ValueError, match="18 tokens"):
        pack([([1] * 18, [1] * 18)], 16, 0)
    with pytest.raises(ValueError, match="0 with loss weight"):
        pack([([1, 2, 3], [1, 0, 0])], 16, 0)


def write(path, *lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return f"file:{path}"


def test_messages_from_a_file(tmp_path):
    source = write(
        tmp_path / "mine.jsonl",
        {"messages": TALK},
        "",
        {
            "messages": [
                {"role": "developer", "content": "x"},
                {"role": "assistant", "content": "y", "name": "z"},
            ]
        },
    )
    counts = Counter()
    read = list(conversations(source, counts))
    other = [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert read == [(content_id(messages), messages) for messages in (TALK, other)]
    assert counts == {"conversations": 2, "turns": 7}


BAD_LINES = {
    "bad_line": "{not json",
    "no_messages": {"messages": "hello"},
    "unknown_role": {"messages": [{"role": "robot", "content": "x"}, TALK[2]]},
    "content_not_text": {"messages": [{"role": "user", "content": None}, TALK[2]]},
    "no_assistant_turn": {"messages": TALK[:2]},
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_counted_and_too_many_are_refused(tmp_path, kind):
    good = {"messages": TALK}
    counts = Counter()
    source = write(tmp_path / "mine.jsonl", good, BAD_LINES[kind], *[good] * 120)
    assert len(list(conversations(source, counts))) == 121
    assert counts[kind] == 1
    source = write(tmp_path / "mine.jsonl", good, BAD_LINES[kind], *[good] * 20)
    with pytest.raises(UserError, match=rf"1 of 22 records .*mine\.jsonl:2 \({kind}\)"):
        list(conversations(source, Counter()))


def test_odd_records_are_bad_lines_too(tmp_path):
    source = write(
        tmp_path / "mine.jsonl", "[]", "3", "null", {"messages": [3]}, {}, {"messages": [{}]}
    )
    with pytest.raises(UserError, match="6 of 6"):
        list(conversations(source, Counter()))


def test_sources_without_conversations(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no"):
        list(conversations(f"file:{tmp_path}/empty.jsonl", Counter()))
    with pytest.raises(UserError, match="matches no file"):
        list(conversations(f"file:{tmp_path}/none.jsonl", Counter()))
    with pytest.raises(UserError, match="no conversations"):
        list(conversations("pip:numpy", Counter()))
