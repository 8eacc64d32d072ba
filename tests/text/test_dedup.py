"""MinHash against exact Jaccard, recall at the threshold by simulation, and what is compared with what."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.text import dedup
from ramp.text.dedup import EXACT, KEPT, NEAR, NEAR_VALIDATION, Fingerprinter, Judge, TestSet, Words


def text(rng, n: int) -> list[str]:
    """Words so many that two texts share no 5-gram by chance."""
    return [f"w{i}" for i in rng.integers(10**6, size=n).tolist()]


def shingles(words: list[str]) -> set:
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(a: list[str], b: list[str]) -> float:
    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


def pair(rng, similarity: float, n: int = 400) -> tuple[list[str], list[str]]:
    """Two texts whose sets of 5-grams have this similarity, but for rounding: an end is another."""
    shared = round((n - 4) * 2 * similarity / (1 + similarity)) + 4
    first = text(rng, n)
    return first, first[:shared] + text(rng, n - shared)


def fingerprint(texts, threshold=0.8, test=None):
    printer = Fingerprinter(threshold, test)
    for t in texts:
        printer.add(t)
    return printer.finish()


def judge(texts, is_val=None, threshold=0.8) -> np.ndarray:
    prints = fingerprint(texts, threshold)
    verdict = np.zeros(len(texts), np.uint8)
    found = Judge(np.array(is_val or [False] * len(texts)), verdict)
    found.drop_near(lambda i: [prints.bands[i]], prints.bytes, prints.is_hashed, threshold)
    return verdict


def oracle_words(data: str) -> list[str]:
    """Runs of ASCII letters and digits in small letters; a character from U+0800 up begins a word."""
    return re.findall(
        "[ࠀ-\U0010ffff][a-z0-9\x80-߿]*|[a-z0-9\x80-߿]+",
        re.sub("[A-Z]", lambda m: m[0].lower(), data),
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abAB12 .\n-éß中ｱ\u2019\U0001f600", max_size=30), min_size=1, max_size=5))
def test_words_are_hashed_alike_wherever_they_stand(texts):
    words = Words.split([t.encode() for t in texts])
    want = [(i, word) for i, t in enumerate(texts) for word in oracle_words(t)]
    assert words.owner.tolist() == [i for i, _ in want]
    seen = dict(zip((word for _, word in want), words.hashes.tolist(), strict=True))
    assert [seen[word] for _, word in want] == words.hashes.tolist()
    assert len(set(seen.values())) == len(seen)


def test_ngrams_do_not_cross_texts():
    words = Words.split([b"a b c d", b"c d e", b"x y c d"])
    gram, owner = words.ngrams(2)
    assert owner.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert gram[2] == gram[3] == gram[7] and len(set(gram.tolist())) == 6
    assert Words.split([b"b a"]).ngrams(2)[0] != Words.split([b"a b"]).ngrams(2)[0]


def test_the_estimate_is_the_similarity():
    rng = np.random.default_rng(0)
    pairs = [pair(rng, j) for j in np.linspace(0, 1, 60)]
    prints = fingerprint([" ".join(t) for both in pairs for t in both])
    match = (prints.bytes[::2] == prints.bytes[1::2]).mean(axis=1)
    estimate = (match - 1 / 256) / (1 - 1 / 256)
    error = estimate - [jaccard(*both) for both in pairs]
    assert np.abs(error).max() < 0.15 and np.abs(error.mean()) < 0.015


def test_recall_and_false_alarms():
    """At J = .8 more than 80% are found, at .9 all, at .65 almost none; 400 pairs each, 2 s."""
    rng = np.random.default_rng(1)
    for similarity, low, high in (
        (0.95, 0.995, 1),
        (0.85, 0.97, 1),
        (0.8, 0.8, 0.96),
        (0.65, 0, 0.02),
        (0.3, 0, 0),
    ):
        texts = [" ".join(t) for _ in range(400) for t in pair(rng, similarity)]
        found = judge(texts)
        assert not found[::2].any()  # the first of a pair stays
        assert low <= (found[1::2] == NEAR).mean() <= high, similarity


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_follow_the_threshold(threshold):
    bands, rows = dedup.choose_bands(threshold)
    assert bands * rows <= dedup.NUM_PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= dedup.BAND_RECALL
    rng = np.random.default_rng(2)
    texts = [" ".join(t) for _ in range(100) for t in pair(rng, min(threshold + 0.08, 1))]
    assert (judge(texts, threshold=threshold)[1::2] == NEAR).mean() > 0.97


def test_validation_stays_and_training_leaves():
    rng = np.random.default_rng(3)
    one = text(rng, 300)
    near = [*one[:-3], "other", "words", "here"]
    far = text(rng, 300)
    texts = [" ".join(t) for t in (near, far, one, near)]
    # The validation document stands behind one training document and before another.
    assert judge(texts, [False, False, True, False]).tolist() == [
        NEAR_VALIDATION,
        KEPT,
        KEPT,
        NEAR_VALIDATION,
    ]
    assert judge(texts, [True, False, True, False]).tolist() == [KEPT, KEPT, NEAR, NEAR_VALIDATION]
    # Case and marks make no difference, and texts of less than five words are no near duplicates.
    assert judge([" ".join(one), ". ".join(one).upper()]).tolist() == [KEPT, NEAR]
    assert judge(["yes, it is", "Yes! It is."]).tolist() == [KEPT, KEPT]
    assert judge(["", "!!", "", "."]).tolist() == [KEPT] * 4


def test_scripts_without_spaces_are_compared_by_characters():
    rng = np.random.default_rng(4)
    one = "".join(map(chr, rng.integers(0x4E00, 0x9000, 300)))
    assert judge([one, one[:280] + "。", one[::-1]]).tolist() == [KEPT, NEAR, KEPT]


def test_long_documents_are_hashed_in_chunks(monkeypatch):
    rng = np.random.default_rng(5)
    texts = [" ".join(text(rng, n)) for n in (3000, 20, 5000, 1, 4000)]
    whole = fingerprint(texts)
    monkeypatch.setattr(dedup, "CHUNK", 1 << 14)
    parts = fingerprint(texts)
    # Only shingles across a cut are lost.
    assert (whole.bytes == parts.bytes).mean() > 0.95
    assert np.array_equal(whole.is_hashed, parts.is_hashed)
    assert whole.is_hashed.tolist() == [True, True, True, False, True]


@settings(max_examples=50, deadline=None)
@given(
    docs=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    most=st.sampled_from([2, 5, 1 << 22]),
    cut=st.integers(0, 30),
)
def test_exact_duplicates(docs, most, cut):
    """The first of each stays; however many are sorted at once, and in whatever units they come."""
    before = dedup.MAX_SORTED
    dedup.MAX_SORTED = most
    try:
        # Equal documents are on one side: the split is a function of the text.
        content = np.array([c for c, _ in docs], np.uint64)
        is_val = content % np.uint64(3) == 0
        code = dedup.mix_bits(content)
        verdict = np.zeros(len(docs), np.uint8)
        Judge(is_val, verdict).drop_exact(
            lambda half: [code[:cut] + np.uint64(half), code[cut:] + np.uint64(half)]
        )
    finally:
        dedup.MAX_SORTED = before
    first = {c: i for i, c in reversed([*enumerate(content.tolist())])}
    want = [KEPT if first[c] == i else EXACT for i, c in enumerate(content.tolist())]
    assert verdict.tolist() == want


def test_documents_of_half_an_equal_hash_are_not_duplicates():
    verdict = np.zeros(2, np.uint8)
    halves = np.array([[7, 1], [7, 2]], np.uint64)
    Judge(np.zeros(2, bool), verdict).drop_exact(lambda half: [halves[:, half]])
    assert not verdict.any()


def test_texts_that_share_thirteen_words_with_a_test_set():
    rng = np.random.default_rng(6)
    test, short, tiny = text(rng, 40), text(rng, 9), text(rng, 5)
    found = TestSet.read([" ".join(test), " ".join(short), " ".join(tiny)])
    assert (found.num_documents, found.num_short) == (3, 1)
    other = text(rng, 50)
    docs = [
        [*other, *test[5:18], *other],  # thirteen
        [*other, *test[5:17], *other],  # twelve
        [*other[:20], *short, *other[:3]],  # a short one, whole
        [*other[:20], *short[1:], *other[:3]],
        [*tiny, *other],
        test[3:16],
    ]
    prints = fingerprint([" ".join(d).title() for d in docs], test=found)
    assert prints.is_contaminated.tolist() == [True, False, True, False, False, True]
    assert not fingerprint([" ".join(other)], test=TestSet.read([])).is_contaminated.any()
