"""Modes that texts are recognized as, against closed forms."""

import numpy as np
import pytest

from experiments.collapse import exact
from ramp.evals.modes import count_modes, match_known, split_words


def test_modes_against_a_known_support():
    truth = exact.zipf(300)
    rng = np.random.default_rng(0)
    found = [count_modes(rng.choice(300, 600, p=truth)) for _ in range(40)]
    mean = {k: np.mean([vars(f)[k] for f in found]) for k in vars(found[0])}
    expected = (1 - (1 - truth) ** 600).sum()
    assert mean["distinct"] == pytest.approx(expected, rel=0.02)
    assert expected < mean["chao1"] < 330
    h = -(truth * np.log2(truth)).sum()
    plug_in = np.mean(
        [
            -(p * np.log2(p)).sum()
            for _ in range(40)
            for p in [plugged(rng.choice(300, 600, p=truth))]
        ]
    )
    assert abs(mean["entropy"] - h) < abs(plug_in - h) / 2
    assert count_modes([-1, -1]).distinct == 0 and count_modes([4]).chao1 == 1


def plugged(x):
    _, c = np.unique(x, return_counts=True)
    return c / c.sum()


def test_texts_are_recognized_by_what_they_repeat():
    known = ["why did the chicken cross the road?", "knock knock, who is there?"]
    texts = ["why did the chicken cross the road? twice", "knock knock, nobody", "else"]
    docs = split_words([*known, *texts])
    assert match_known(docs[2:], docs[:2]) == [0, -1, -1]
    words = {word for doc in docs for word in doc}
    assert words == set(range(len(words)))
