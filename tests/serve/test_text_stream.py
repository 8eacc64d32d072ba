"""What a client sees does not depend on how tokens came in pieces, and never holds half a character."""

import codecs

from hypothesis import given
from hypothesis import strategies as st

from ramp.serve.jobs import Token
from ramp.serve.text_stream import TextStream
from ramp.text.tokenizer import Tokenizer

T = Tokenizer.bytes_only()
BYTES = st.lists(
    st.one_of(st.sampled_from(list("aé€😀ab".encode())), st.integers(0, 255)), max_size=40
)
STOPS = st.lists(st.text(alphabet="abé😀", min_size=1, max_size=4), max_size=3)


@given(BYTES, STOPS, st.lists(st.integers(1, 5), min_size=1))
def test_any_cutting_shows_the_same(ids, stops, sizes):
    """Against the text decoded at once and cut at the first stop string that was complete first."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    want, stopped = "", False
    for id in ids:  # a stop string ends the answer as soon as it is whole
        want += decoder.decode(bytes([id]))
        if found := [want.index(stop) for stop in stops if stop in want]:
            want, stopped = want[: min(found)], True
            break
    speech, text, shown, at = TextStream(T, stops), "", [], 0
    for size in sizes * 40:
        more, tokens = speech.push(
            [Token(id, 0.0, 0.0) for id in ids[at : at + size]], ended=at + size >= len(ids)
        )
        at += size
        assert want.startswith(text + more)
        text, shown = text + more, shown + tokens
        if speech.stopped or at >= len(ids):
            break
    assert text == want and speech.stopped == stopped
    assert [t.id for t in shown] == ids[: len(shown)]
    if not stopped:
        assert len(shown) == len(ids)


def test_special_tokens_a_model_may_say():
    ids = [
        *b"b7",
        T.step,
        *b"is ",
        T.special("tool"),
        *b"2*3",
        T.special("tool"),
        *b"6",
        T.special("tool"),
        T.pad,
        *b".",
    ]
    assert TextStream(T).push([Token(i, 0.0, 0.0) for i in ids])[0] == "b7\nis 2*3=6."


def test_what_might_begin_a_stop_string_waits():
    speech = TextStream(T, ["END"])
    said = [speech.push([Token(i, 0.0, 0.0)])[0] for i in b"an E, an EN, an END."]
    assert "".join(said) == "an E, an EN, an " and said[3:5] == ["", "E,"] and speech.stopped
