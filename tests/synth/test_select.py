"""Filters against brute force; what must not count as contamination."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.synth import select
from ramp.synth.docs import Docs


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=10), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 3), max_size=10), min_size=1, max_size=5),
    st.integers(3, 6),
)
def test_contamination_by_brute_force(docs, held, n):
    def shares(doc, other, k):
        parts = {tuple(other[i : i + k]) for i in range(len(other) - k + 1)}
        return any(tuple(doc[i : i + k]) in parts for i in range(len(doc) - k + 1))

    found = select.find_contaminated(Docs.from_lists(docs), Docs.from_lists(held), n)
    for doc, hit in zip(docs, found, strict=True):
        guilty = [
            j
            for j, h in enumerate(held)
            if shares(doc, h, n)
            or (3 <= len(h) < n and shares(doc, h, len(h)) and (2 * len(h) >= n or doc == h))
        ]
        assert (hit in guilty) if guilty else hit == -1


def test_repeats_look_at_the_pool_first():
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 1000, 40) for _ in range(5)]
    new = [rng.integers(0, 1000, 40), pool[3]]
    assert select.find_repeats(
        Docs.from_lists([*new, new[0]]), Docs.from_lists(pool), 0.8
    ).tolist() == [-1, 3, 5]


def test_rarity_by_hand():
    count = np.array([100, 10, 1])
    docs = [[0, 0, 0, 2, 0, 0, 0, 1], [1], []]
    logs = np.log(count + 0.5)
    want = [(logs[2] + logs[1]) / 2, logs[1], 0]
    np.testing.assert_allclose(select.rarity(Docs.from_lists(docs), count), want)


def test_a_tiny_held_out_document_does_not_refuse_real_text():
    """Three tokens that stand in any text are contamination only where they are all of it."""
    held = Docs.from_lists([[7, 8, 9], list(range(100, 112))])
    docs = Docs.from_lists([[1, 7, 8, 9, 2], [7, 8, 9], [5, *range(100, 112), 6]])
    assert select.find_contaminated(docs, held, 24).tolist() == [-1, 0, 1]
