"""A tokenizer.json of another model cuts text as its own library does; other kinds are refused by name."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ramp.config import Config, Text
from ramp.errors import UserError
from ramp.rundir import fit_vocabulary
from ramp.text.huggingface import PATTERNS, open_tokenizer
from ramp.text.prepare import prepare_tokens
from ramp.text.tokenizer import SPECIALS, Tokenizer

TEXTS = [
    "The people's café, in 1790 and 2026; they've held 12,345.67 dollars.\r\n\r\n  東京は 😀 ok\t\t",
    "def f(x):\n    return x + 1  # 100 200\n\n\nthe the the other people of the States",
] * 5


def make_bpe(kind: str) -> tokenizers.Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "qwen2")
    parts = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level]),
        "qwen2": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PATTERNS["qwen2"]), "isolated"),
                byte_level,
            ]
        ),
    }
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = parts[kind]
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return bpe


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "qwen2"])
def pair(request, tmp_path_factory):
    theirs = make_bpe(request.param)
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    theirs.save(str(path))
    return theirs, open_tokenizer(path), path


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.sampled_from(TEXTS)))
def test_the_same_cuts(pair, text):
    theirs, ours, _ = pair
    pieces = [ours.pieces[i] for i in ours.encode(text)]
    letters = pre_tokenizers.ByteLevel.alphabet()
    assert len(letters) == 256
    expected = theirs.encode(text, add_special_tokens=False).tokens
    shown = [ours.vocabulary[i] for i in ours.encode(text)]
    assert shown == expected
    assert b"".join(pieces) == text.encode()


def test_the_vocabulary_is_counted_with_our_special_tokens(pair, tmp_path):
    theirs, ours, path = pair
    for tokenizer in (path, path.parent):
        c = fit_vocabulary(Config(text=Text(tokenizer=str(tokenizer))))
        assert c.text.vocab_size == ours.vocab_size
    # Ours has no <|endoftext|>, but the eight.
    assert ours.vocab_size == theirs.get_vocab_size() - 1 + len(SPECIALS)
    ours.save(tmp_path / "ours.json")
    assert open_tokenizer(tmp_path / "ours.json") == ours


def other_kinds() -> dict[str, tokenizers.Tokenizer]:
    piece = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    llama = tokenizers.Tokenizer(models.BPE({"a": 0, "<0x0A>": 1}, [], byte_fallback=True))
    llama.normalizer = normalizers.Prepend("▁")
    return {"WordPiece": piece, "Unigram": unigram, "BPE": llama}


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "BPE"])
def test_other_kinds_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "tokenizer.json"
    other_kinds()[kind].save(str(path))
    with pytest.raises(UserError, match=rf"not plain byte-level BPE \({kind}.*tokenizer = 'bpe'"):
        open_tokenizer(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"model": 3}', "merges", "pattern"])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    data = json.loads(make_bpe("qwen2").to_str())
    if content == "merges":
        data["model"]["merges"].insert(0, ["no", "such"])
    elif content == "pattern":
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"
    is_whole = content in ("merges", "pattern")
    path.write_text(json.dumps(data) if is_whole else content)
    with pytest.raises(UserError) as caught:
        open_tokenizer(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        open_tokenizer(tmp_path / "missing.json")


def test_text_is_prepared_with_it(pair, tmp_path):
    _, ours, path = pair
    (tmp_path / "a.txt").write_text("\n\n".join(f"{TEXTS[0]} number {i} " * 30 for i in range(40)))
    text = Text(sources=(str(tmp_path / "a.txt"),), tokenizer=str(path), dedup="off", workers=1)
    made = prepare_tokens(text, tmp_path / "data", tmp_path / "data" / "tokenizer.json")
    assert made.tokenizer == ours
    assert Tokenizer.load(tmp_path / "data" / "tokenizer.json") == ours
