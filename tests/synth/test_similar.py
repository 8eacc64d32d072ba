"""Near-duplicates, variants and copies against exact similarities and slow oracles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramp.synth import similar
from ramp.synth.docs import Docs, is_member, sort_unique
from ramp.synth.texts import Vocabulary

WORDS = st.lists(st.integers(0, 4), max_size=12)


def slow_order(a, b):
    best = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1, j + 1] = best[i, j] + 1 if x == y else max(best[i, j + 1], best[i + 1, j])
    return 2 * best[-1, -1] / max(len(a) + len(b), 1)


@given(WORDS, WORDS)
def test_order_is_the_longest_common_subsequence(a, b):
    likeness = similar.Likeness(Docs.from_lists([a, b]))
    assert likeness.order(0, 1) == pytest.approx(slow_order(a, b))


def change_run(rng, words, size):
    """One run of words changed to new ones."""
    words, at = words.copy(), rng.integers(1, len(words) - size)
    words[at : at + size] = rng.integers(10_000, 20_000, size)
    return words


@pytest.mark.parametrize("low, high, found", [(0.8, 0.86, 0.95), (0.3, 0.5, -0.01)])
def test_recall_of_near_duplicates_is_what_is_stated(low, high, found):
    """Found of pairs at J >= .8: at least .95; of pairs at J <= .5: at most .01."""
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 5000, rng.integers(40, 160)) for _ in range(1200)]
    docs += [change_run(rng, doc, int(len(doc) * rng.uniform(0.05, 0.4))) for doc in docs[:600]]
    sample = Docs.from_lists(docs)
    likeness = similar.Likeness(sample)
    similarity = np.array([likeness.jaccard(i, 1200 + i) for i in range(600)])
    is_asked = (low <= similarity) & (similarity <= high)
    is_found = similar.find_near_duplicates(sample)[1200:] >= 0
    assert is_asked.sum() > 50
    share = is_found[is_asked].mean()
    assert share >= found if found > 0 else share <= -found
    assert (similar.find_near_duplicates(sample)[:1200] < 0).all()


def test_short_texts_and_scripts_without_spaces():
    split = Vocabulary().split
    words = [f"w{i}" for i in range(20)]
    once, twice = words.copy(), words.copy()
    once[9] = "other"
    twice[4] = twice[14] = "other"
    chinese = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
    texts = [words, once, twice]
    docs = [split(" ".join(text)) for text in texts]
    docs += [split(chinese), split(chinese.replace("雨", "雪")), split(chinese[::-1])]
    assert similar.find_near_duplicates(Docs.from_lists(docs)).tolist() == [-1, 0, -1, -1, 3, -1]
    assert len(split(chinese)) == 20


def test_a_family_is_found_through_every_sixth_word():
    rng = np.random.default_rng(1)
    docs = [rng.integers(0, 3000, 60) for _ in range(300)]
    copies = [docs[i % 3].copy() for i in range(60)]
    for copy in copies:
        copy[5::6] = rng.integers(0, 3000, 10)
    families = similar.group_variants(Docs.from_lists(docs + copies), np.empty(0, np.uint64))
    assert sorted(families.sizes)[-4:] == [1, 21, 21, 21]
    assert families.repeated == pytest.approx(60 / 360)
    assert [len(rows) for rows in families.list_largest()] == [21, 21, 21]


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, min_size=1, max_size=6))
def test_copies_are_the_runs_that_the_pool_has(sample, pool):
    n = 3
    runs = {tuple(doc[i : i + n]) for doc in pool for i in range(len(doc) - n + 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar, "RUN", n)
        patch.setattr(similar, "SHORTEST_COPY", n)
        found = similar.find_copies(Docs.from_lists(sample), Docs.from_lists(pool))
    for d, doc in enumerate(sample):
        hits = [tuple(doc[i : i + n]) in runs for i in range(len(doc) - n + 1)]
        covered = {i + k for i, hit in enumerate(hits) if hit for k in range(n)}
        assert found.share[d] == pytest.approx(len(covered) / max(len(doc), 1))
        streaks = "".join("x" if hit else " " for hit in hits).split()
        assert found.longest[d] == max((len(s) + n - 1 for s in streaks), default=0)


def test_what_one_text_alone_has_is_no_copy():
    long, other = list(range(30)), list(range(100, 130))
    pool = Docs.from_lists([long, other, long])
    assert similar.find_copies(pool, pool, least=2).copied.tolist() == [True, False, True]
    # A text shorter than a run is looked for as a whole.
    short = Docs.from_lists([long[3:9], long[3:6], [7, 7, 7, 7, 7, 7]])
    assert similar.find_copies(short, pool).copied.tolist() == [True, False, False]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_sorted_sets(x, known):
    own = sort_unique(np.array(known, np.uint64))
    assert own.tolist() == sorted(set(known))
    assert is_member(np.array(x, np.uint64), own).tolist() == [v in known for v in x]
