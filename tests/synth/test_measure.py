"""Every measure against a slow, obvious re-implementation or a closed form."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.collapse import bench, exact
from experiments.results import Results
from ramp.synth import measure
from ramp.synth.measure import Docs

DOCS = st.lists(st.lists(st.integers(0, 6), min_size=0, max_size=12), min_size=1, max_size=12)


def grams(docs, n):
    return Counter(tuple(d[i : i + n]) for d in docs for i in range(len(d) - n + 1))


@given(DOCS, DOCS)
def test_counts_of_grams(real, sample):
    a, b = Docs.from_lists(real), Docs.from_lists(sample)
    for n in (1, 2):
        ga, gb = grams(real, n), grams(sample, n)
        total = sum(gb.values())
        share = len(gb) / total if total else math.nan
        seldom = sum(c == 1 for c in gb.values()) / total if total else math.nan
        assert measure.distinct(b, n) == pytest.approx(share, nan_ok=True)
        assert measure.unseen_mass(b, n) == pytest.approx(seldom, nan_ok=True)
        if ga:
            assert measure.coverage(a, b, n) == pytest.approx(len(ga.keys() & gb.keys()) / len(ga))
    least = 2
    gone = [g for g, c in grams(real, 1).items() if c >= least and g not in grams(sample, 1)]
    assert measure.count_extinct(a, b, least) == len(gone)


@given(DOCS, st.data())
def test_documents_come_apart_and_together(docs, data):
    d = Docs.from_lists(docs)
    assert [list(x) for x in d.to_list()] == docs
    rows = data.draw(st.lists(st.integers(0, len(docs) - 1), max_size=5))
    assert [list(x) for x in d.take(np.array(rows, int)).to_list()] == [docs[i] for i in rows]


@given(DOCS, DOCS)
def test_rare_words_and_phrases(real, sample):
    a, b = Docs.from_lists(real), Docs.from_lists(sample)
    words = Counter(word for doc in real for word in doc)
    flat = [word for doc in sample for word in doc]
    rare = sum(words[word] <= measure.MAX_RARE_COUNT for word in flat)
    share = rare / len(flat) if flat else math.nan
    assert measure.rare_share(a, b) == pytest.approx(share, nan_ok=True)
    holders = [
        Counter(gram for doc in docs for gram in grams([doc], measure.PHRASE))
        for docs in (real, sample)
    ]
    often = [gram for gram, n in holders[1].items() if n >= 3]
    excess = [holders[1][g] / len(sample) - holders[0][g] / len(real) for g in often]
    assert measure.phrase_excess(a, b) == pytest.approx(max(excess, default=0))


def test_what_one_document_repeats_is_no_phrase():
    docs = [[1, 2, 3, 4] * 3, *([10 * i + k for k in range(5)] for i in range(1, 11))]
    assert measure.phrase_excess(Docs.from_lists([[5]]), Docs.from_lists(docs)) == 0


def test_order_adds_nothing_to_words_in_any_order():
    rng = np.random.default_rng(0)
    chain = [np.cumsum(rng.integers(1, 3, 60)) % 50 for _ in range(200)]
    real, sample = Docs.from_lists(chain[:100]), Docs.from_lists(chain[100:])
    mixed = Docs.from_lists([rng.permutation(doc) for doc in chain[100:]])
    assert measure.order_gain(real, sample) > 0.8
    assert abs(measure.order_gain(real, mixed)) < 0.03


def test_joined_texts_share_nothing_across_their_seam():
    rng = np.random.default_rng(0)
    subjects = rng.integers(100, 9000, (200, 4))
    docs = [
        np.where(rng.random(60) < 0.2, rng.choice(s, 60), rng.integers(0, 99, 60)) for s in subjects
    ]
    joined = [np.concatenate(pair) for pair in zip(docs[::2], docs[1::2], strict=True)]
    common = np.arange(99, dtype=np.uint64)
    whole, error = measure.seam_share(Docs.from_lists(docs), 1, common)
    assert whole > 0.5 and error < 0.1
    assert abs(measure.seam_share(Docs.from_lists(joined), 2, common)[0]) < 0.1
    assert measure.seam_share(Docs.from_lists([[], [1, 2]]), 2, common) == (0, 0)
    # Among few documents none is taken for another one: [200] is shared in each, and in no other.
    for size in (2, 10, 11, 12):
        few = Docs.from_lists([[200 + i] * 3 for i in range(size)])
        assert measure.seam_share(few, 1, common) == (1, 0)


def slow_self_bleu(docs, n=4):
    scores = []
    for i, doc in enumerate(docs):
        logs = 0.0
        for k in range(1, n + 1):
            mine = grams([doc], k)
            hits = sum(
                min(c, max(grams([o], k)[g] for j, o in enumerate(docs) if j != i))
                for g, c in mine.items()
            )
            logs += math.log(max(hits, 0.5) / max(sum(mine.values()), 1)) / n
        closest = min((abs(len(o) - len(doc)), len(o)) for j, o in enumerate(docs) if j != i)[1]
        scores.append(math.exp(logs + min(0, 1 - closest / max(len(doc), 1))))
    return sum(scores) / len(scores)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=2, max_size=7))
def test_self_bleu(docs):
    assert measure.self_bleu(Docs.from_lists(docs)) == pytest.approx(slow_self_bleu(docs))


def test_divergences_are_two_sided():
    rng = np.random.default_rng(0)
    real = Docs.from_lists([rng.integers(0, 40, 60) for _ in range(100)])
    narrow = Docs.from_lists([rng.integers(0, 10, 60) for _ in range(100)])
    wide = Docs.from_lists([rng.integers(0, 80, 60) for _ in range(100)])
    same = Docs.from_lists([rng.integers(0, 40, 60) for _ in range(100)])
    (base_lost, base_drift), collapsed, wild = (
        measure.divergences(real, x) for x in (same, narrow, wide)
    )
    assert collapsed[0] > 3 * base_lost and wild[1] > 1.5 * base_drift
    assert measure.divergences(real, real) == (0.0, 0.0)


@pytest.mark.parametrize("changed, alike", [(2, True), (30, False)])
def test_near_duplicates(changed, alike):
    rng = np.random.default_rng(3)
    docs = [rng.integers(0, 5000, 100) for _ in range(50)]
    copy = docs[7].copy()
    copy[rng.choice(100, changed, replace=False)] = 9999
    found = measure.find_near_duplicates(
        Docs.from_lists([*docs, copy, docs[3], [1, 2], [1, 2], [5], [], []])
    )
    assert found[50] == (7 if alike else -1)
    assert found[51] == 3 and found[53] == 52 and (found[:50] == -1).all() and found[54] == -1


def test_surprisal_shift_has_a_side():
    x = np.random.default_rng(0).normal(5, 1, 4000)
    left, right = measure.surprisal_shift(x, x - 0.7), measure.surprisal_shift(x, x + 0.7)
    assert left.left == pytest.approx(0.7) and left.right == 0
    assert right.right == pytest.approx(0.7) and right.left == 0 and right.w1 == pytest.approx(0.7)


def test_vendi_counts_what_is_different():
    eye = np.repeat(np.eye(5), 4, axis=0)
    assert measure.vendi_score(eye) == pytest.approx(5)
    assert measure.vendi_score(eye[:4]) == pytest.approx(1)
    x = np.random.default_rng(0).normal(size=(12, 30))
    p = np.linalg.eigvalsh(x @ x.T / np.outer(*(np.linalg.norm(x, axis=1),) * 2) / 12)
    assert measure.vendi_score(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert measure.vendi_score(x[:, :6]) == pytest.approx(
        measure.vendi_score(np.pad(x[:, :6], ((0, 0), (0, 40))))
    )


def test_z_is_calibrated_on_seven_resamples():
    """Of fresh samples of the same world, |z| > 2 in about 4.6%, though seven resamples tell little about spread."""
    rng = np.random.default_rng(0)
    zs = []
    for i in range(300):
        pool = Docs.from_lists(rng.choice(60, (400, 8), p=exact.zipf(60)))
        null = measure.Null.resample(pool, 80, lambda d: {"distinct": measure.distinct(d, 2)}, 7, i)
        fresh = Docs.from_lists(rng.choice(60, (80, 8), p=exact.zipf(60)))
        zs.append(null.compare({"distinct": measure.distinct(fresh, 2)})["distinct"].z)
    assert 0.01 < np.mean(np.abs(zs) > 2) < 0.11
    assert abs(np.median(zs)) < 0.4


def test_null_refuses_what_it_cannot_do():
    pool = Docs.from_lists([[1, 2]] * 5)
    with pytest.raises(ValueError, match="at least 7"):
        measure.Null.resample(pool, 2, lambda d: {}, 3)
    for n in (5, 6):
        with pytest.raises(ValueError, match=f"{n} of 5 documents are all alike"):
            measure.Null.resample(pool, n, lambda d: {})


def test_cross_information_and_hard_documents():
    alone, beside = np.array([-20.0, -30.0]), np.array([-10.0, -30.0])
    assert measure.cross_information(alone, beside, np.array([10, 10])) == pytest.approx(
        0.5 / math.log(2)
    )
    assert measure.hard_documents(np.arange(20.0), np.arange(20.0) * 2) == pytest.approx(37.0)


@pytest.mark.slow
def test_ten_thousand_samples_in_twenty_seconds(tmp_path):
    b = Results(tmp_path, None, None)
    bench.timing(b)
    assert b.results()[0]["cpu_seconds"] < 20
