"""Any text and any bytes survive the tokenizer, and nothing a user writes is a special token."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.text.tokenizer import SPECIALS, StreamDecoder, Tokenizer

TEXTS = [
    "The people of the United States, in 1790 and in 2026, held 12,345.67 dollars; they're the people's.\r\n\r\n",
    "A hat is a head covering which is worn for various reasons, including protection against weather conditions.\n",
    "Über café naïve façade — “quoted” … 東京は日本の首都です。 😀😃👩‍👩‍👧 the the the   spaces\t\ttabs  \n",
    "def f(x):\n    return x + 1  # 100 200 300\n",
] * 3
TRAINED = Tokenizer.train(TEXTS, 400)
BYTES = Tokenizer.bytes_only()
GOLDEN = "27d2cba534b3de41b1bed4cd1d75caccdb6501ba40565981952c0f39bf7aa95f"  # from before long words were cut
both = pytest.mark.parametrize("tok", [TRAINED, BYTES], ids=["trained", "bytes"])
any_text = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates too


def expected(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@both
@settings(max_examples=150, deadline=None)
@given(text=any_text)
def test_any_text_survives(tok, text):
    ids = tok.encode(text)
    assert tok.decode_bytes(ids) == expected(text)
    assert tok.decode(ids) == expected(text).decode("utf-8", "replace")


@both
@settings(max_examples=150, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=60), any_text.map(lambda s: s.encode("utf-16-le", "surrogatepass"))
    )
)
def test_any_bytes_survive(tok, data):
    assert tok.decode_bytes(tok.encode_bytes(data)) == data


@both
def test_bytes_that_are_text_get_the_ids_of_that_text(tok):
    for text in TEXTS:
        assert tok.encode_bytes(text.encode()) == tok.encode(text)


def test_bytes_only_is_the_identity_on_bytes():
    data = bytes(range(256)) + "naïve 😀".encode()
    assert BYTES.encode_bytes(data) == list(data)
    assert BYTES.vocab_size == 256 + 8


@both
@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(
        st.one_of(st.sampled_from(SPECIALS), st.text(max_size=5), st.just("<|")), max_size=8
    )
)
def test_text_never_becomes_a_special_token(tok, parts):
    text = "".join(parts)
    ids = tok.encode(text)
    assert all(i < tok.special("bos") for i in ids)
    assert tok.decode(ids) == text


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(st.one_of(st.sampled_from("0123456789 .,-+=$()\na"), st.characters()), max_size=40)
)
def test_every_digit_is_a_token_of_its_own(text):
    pieces = [TRAINED.pieces[i] for i in TRAINED.encode(text)]
    held = [piece for piece in pieces if any(48 <= byte <= 57 for byte in piece)]
    assert all(len(piece) == 1 for piece in held)
    assert b"".join(held).decode() == "".join(c for c in text if c in "0123456789")


def test_training_learns_words_and_compresses():
    text = TEXTS[0] + TEXTS[1]
    assert len(TRAINED.encode(text)) < 0.6 * len(text.encode())
    assert b" the" in TRAINED.pieces


def test_training_is_the_same_in_every_process(tmp_path):
    code = "import json,sys; from ramp.text.tokenizer import Tokenizer as T; "
    code += "print(T.train(json.load(open(sys.argv[1])), 400).fingerprint)"
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    for hash_seed, threads in (("1", "1"), ("2", "4")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "texts.json")],
            env={"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == TRAINED.fingerprint


def test_vocabulary_counts_bytes_merges_and_specials():
    assert TRAINED.vocab_size == 400 == len(TRAINED.pieces) + len(SPECIALS)
    assert [TRAINED.special(name) for name in SPECIALS] == list(range(392, 400))
    assert (TRAINED.bos, TRAINED.end, TRAINED.step, TRAINED.pad) == (392, 397, 398, 399)
    assert TRAINED.special("user") == TRAINED.special("<|user|>") == 394
    assert len(set(TRAINED.pieces)) == len(TRAINED.pieces)
    with pytest.raises(UserError, match="at least 264"):
        Tokenizer.train(TEXTS, 263)


def test_too_little_text_gives_a_smaller_vocabulary():
    tok = Tokenizer.train(["ab ab"], 5000)
    assert tok.vocab_size == len(tok.pieces) + 8 < 300
    assert tok.decode(tok.encode("ab abc")) == "ab abc"


@pytest.mark.parametrize("unit", ["qx", " ", "\n", "e\u0301", "=", "東京", "\t\n"])
def test_a_word_of_a_megabyte_is_trained_on_and_encoded_in_linear_time(unit):
    """Uncut, 200,000 letters took 26 CPU-seconds of training, and twice as many 117."""
    text = unit * (10**6 // len(unit))
    began = time.process_time()
    tok = Tokenizer.train([text, *TEXTS], 400)
    assert tok.decode_bytes(tok.encode(text)) == text.encode()
    assert time.process_time() - began < 20  # about 3


def test_words_of_usual_length_give_the_merges_they_gave():
    long = ["Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft " * 9]
    assert Tokenizer.train(TEXTS + long, 500).fingerprint == GOLDEN


def test_surrogates_in_training_text_do_no_harm():
    assert Tokenizer.train(["the cat \ud800 sat"] * 3, 270).vocab_size == 270


@both
def test_byte_lengths_add_up_to_the_text(tok):
    for text in TEXTS:
        assert tok.byte_lengths[tok.encode(text)].sum() == len(text.encode())
    assert tok.byte_lengths.shape == (tok.vocab_size,)
    assert tok.byte_lengths.dtype == np.int32
    assert not tok.byte_lengths[-8:].any()


@both
def test_a_batch_is_the_texts_one_by_one(tok):
    for texts in (TEXTS, [*TEXTS, "", "\ud800 odd"]):
        batch = tok.encode_batch(texts)
        assert [list(ids) for ids in batch] == [tok.encode(text) for text in texts]
        assert all(ids.dtype == np.int32 for ids in batch)
        assert [list(a) for a in tok.encode_stream(iter(texts), chunk=5)] == [
            list(ids) for ids in batch
        ]


def test_decode_names_specials_and_decode_bytes_omits_them():
    ids = [TRAINED.bos, *TRAINED.encode("hi"), TRAINED.end]
    assert TRAINED.decode(ids) == "<|bos|>hi<|end|>"
    assert TRAINED.decode(np.array(ids)) == "<|bos|>hi<|end|>"
    assert TRAINED.decode_bytes(ids) == b"hi"
    for bad in (-1, TRAINED.vocab_size):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            TRAINED.decode([bad])


@both
def test_save_and_load(tok, tmp_path):
    path = tmp_path / "tokenizer.json"
    tok.save(path)
    again = Tokenizer.load(path)
    assert again == tok
    assert again.fingerprint == tok.fingerprint
    assert all(again.encode(text) == tok.encode(text) for text in TEXTS)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["tokenizer.json"]
    assert TRAINED.fingerprint != BYTES.fingerprint


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"format": "other"}', "truncated", "changed"],
)
def test_a_bad_file_is_said_in_one_sentence(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    TRAINED.save(path)
    whole = path.read_text()
    found = json.loads(whole)
    found["merges"][3] = [97, 98]
    changes = {"truncated": whole[:-40], "changed": json.dumps(found)}
    path.write_text(changes.get(content, content))
    assert Tokenizer.load(path) == TRAINED  # from its copy
    (tmp_path / ".tokenizer.json.copy").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(path)
    with pytest.raises(UserError, match="no tokenizer"):
        Tokenizer.load(tmp_path / "missing.json")


@both
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_stream_joins_to_the_decoded_text(tok, data):
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), max_size=30))
    ids += tok.encode(data.draw(st.text(max_size=10)))
    stream = StreamDecoder(tok)
    assert "".join([*map(stream.push, ids), stream.flush()]) == tok.decode(ids)


def test_a_stream_never_shows_half_a_character():
    stream = StreamDecoder(BYTES)
    shown = [stream.push(i) for i in BYTES.encode("a😀é")]
    assert shown == ["a", "", "", "", "😀", "", "é"]
    assert [stream.push(i) for i in "😀".encode()[:3]] == ["", "", ""]
    assert stream.push(BYTES.end) == "\ufffd<|end|>"
    stream.push(0xF0)
    assert stream.flush() == "\ufffd"
