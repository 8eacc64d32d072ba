"""The ids of the library, whatever the text, the pattern and the window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.text import encode
from ramp.text.encode import FastEncoder
from ramp.text.huggingface import PATTERNS
from ramp.text.tokenizer import Tokenizer

TEXTS = [
    "The 12th of May, it's Ted's; we'll see 3.14159 §5 -- and\r\n\r\n  café naïve Ünïcode\t\tx =  y;\n",
    "東京は日本の首都。 привет мир! नमस्ते e\u0301 1\u0300 ½ Ⅷ \u017f '\u017f 'LL\x85\x1c\u2028\u3000 _a_ \u200b",
] * 3
# The letters that patterns treat apart, and some of every kind.
LETTERS = (
    " \n\r\t'sS\u017f1²½Ⅷé\uff41中\u0301\u0300\u1680\u3000\x1c\x85-!—_́ltLRE\u200b\U0001f600x\0"
)
texts = st.lists(st.text(LETTERS, max_size=30) | st.text(max_size=30), max_size=6)
GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+$|\s*[\r\n]|\s+(?!\S)|\s"
)
# What `re` cannot say, or says with another meaning.
STRANGE = (r"\p{Lu}?\p{Ll}+|\P{L}", r"(\p{L}+)|.", r"\w+|\W", r"[\p{L}&&[^a]]+|.|\n", r"\p{L}+")
TRAINED = Tokenizer.train(TEXTS, 400)
FOREIGN = [Tokenizer(TRAINED.merges, pattern) for pattern in (GPT4, *PATTERNS.values(), *STRANGE)]


def same(tokenizer, batch):
    got = [ids.tolist() for ids in FastEncoder(tokenizer).encode_all(batch)]
    assert got == [tokenizer.encode(text) for text in batch]


@pytest.mark.parametrize("tokenizer", [TRAINED, Tokenizer()], ids=["ours", "bytes"])
@settings(max_examples=200, deadline=None)
@given(batch=texts)
def test_the_ids_are_those_of_the_library(tokenizer, batch):
    same(tokenizer, batch)


@pytest.mark.parametrize(
    "encoder", [*map(FastEncoder, FOREIGN)], ids=lambda e: e.tokenizer.pattern[:12]
)
@settings(max_examples=30, deadline=None)
@given(batch=texts)
def test_patterns_of_other_models(encoder, batch):
    got = [ids.tolist() for ids in encoder.encode_all(batch)]
    assert got == [encoder.tokenizer.encode(text) for text in batch]
    # Quick where it matters.
    assert (encoder._findall is None) == (encoder.tokenizer.pattern in STRANGE)


@settings(max_examples=200, deadline=None)
@given(batch=texts, window=st.integers(3, 12))
def test_a_long_text_is_encoded_in_windows(batch, window):
    before = encode.WINDOW
    encode.WINDOW = window
    try:
        same(TRAINED, [*batch, TEXTS[0], "x" * 50, " " * 30 + "y"])
    finally:
        encode.WINDOW = before


def test_every_character_of_the_basic_plane():
    plane = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    same(TRAINED, ["a".join(plane[at : at + 500]) for at in range(0, len(plane), 500)])


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(encode, "MAX_CACHED", 100)
    encoder = FastEncoder(TRAINED)
    for text in np.array_split(np.arange(500), 50):
        batch = [" ".join(f"w{i}" for i in text)]
        assert encoder.encode_batch(batch)[0].tolist() == TRAINED.encode(batch[0])
    assert encoder._num_cached < 300
