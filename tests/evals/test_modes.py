"""Texts that repeat a known one are recognized."""

from experiments.collapse import modes


def test_recognised_is_the_one_that_most_of_it_repeats():
    docs = modes.split_words(
        [
            "the cat sat on the mat and slept",
            "a dog ran off with my old hat",
            "the cat sat on the mat and ate",
        ]
    )
    assert modes.match_known(docs[2:] + docs[:1] + [[], [1, 2]], docs[:2]) == [0, 0, -1, -1]
