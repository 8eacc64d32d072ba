"""Small tasks that can be done with one ability and not without it.

A probe makes rows: tokens int32 [B, T], whose last Q ask a question each, and the answers int32
[B, Q]. `rows(rng, n, count)` is pure: the same generator state gives the same rows. n is the size
of the probe. The functions below draw the rows, of any integer type.

The ceiling is 1: every answer follows from its row. `chance` is the best that is possible without
the ability.

A pair of a table is one token, so that a single layer can look it up; many questions follow one
table, so that every row teaches as often. The logits of one head without norm and feed-forward are,
up to a common factor, sums over the tokens of (weight of the token for this question) x (what the
token says for each answer). The probes ask for what such sums cannot do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import Generator

Rows = tuple[np.ndarray, np.ndarray]  # tokens, answers

FILLERS = 8  # symbols without meaning
REACH = 8  # tokens that the fixed window of rung 3 sees, the last one included
MARKS = ["·"] * FILLERS + ["a", "b"]
QUESTIONS = 16  # that follow a table
MAX_REPEATS = 16  # how much more often than another a pair of `repeat_pairs` may occur
KEYS_ASKED = 3  # in a question of `lookups`
MIN_CIRCLE = 5  # keys in a circle of `two_hops`


@dataclass(frozen=True)
class Probe:
    """A task, its chance level, and how a model is trained on it."""

    name: str
    asks: str  # half a sentence: "The probe asks ..."
    draw: Callable[[Generator, int, int], Rows]  # (generator, n, count)
    size: int  # n by default
    names: Callable[[int], list[str]]  # of n: labels of the ids
    vocab: Callable[[int], int]  # of n: ids 0 .. vocab-1 in tokens and answers
    steps: int  # for `size`; they grow as n to the power of `growth`
    chance: Callable[[int], float] = lambda n: 1 / 2  # of n
    batch: int = 32
    rate: float = 1.0  # multiplies `learn.RATES`
    growth: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)  # of both models that it compares
    name_answer: Callable[[int, int], str] = lambda n, answer: str(answer)
    questions: int = 1  # at the end of a row
    labels: tuple[str, str] = (
        "step of training",
        "share of answers right",
    )  # of the axes of its curve

    def rows(self, rng: Generator, n: int, count: int) -> Rows:
        """`count` rows of size n: tokens [count, T] and answers [count, Q], int32."""
        tokens, answers = self.draw(rng, n, count)
        return tokens.astype(np.int32), answers.astype(np.int32)


def shuffle(rng, n, count):
    """0 .. n-1 in random order, [count, n]."""
    return rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)


def distance(rng, n, count):
    """Which symbol stood 3n/8 places before the last?"""
    back = 3 * n // 8
    tokens = rng.integers(0, n, (count, back + 4))
    return tokens, tokens[:, [-1 - back]]


def occurred(rng, n, count):
    """Did the mark occur anywhere before? It is never within a window of REACH tokens."""
    tokens = rng.integers(0, FILLERS, (count, n))
    answer = rng.integers(0, 2, count)
    place = rng.integers(0, n - REACH, count)
    marked = np.flatnonzero(answer)
    tokens[marked, place[marked]] = FILLERS
    tokens[:, -1] = FILLERS + 1  # the question
    return tokens, answer[:, None]


def recall(rng, n, count):
    """Each of n keys has the value 0 or 1. Which one does the key in the question have?

    A bag of tokens can tell which value is more frequent: that is chance.
    """
    values = rng.integers(0, 2, (count, n))
    asked = rng.integers(0, n, (count, QUESTIONS))
    table = rng.permuted(np.arange(n) * 2 + values, axis=1)
    tokens = np.concatenate([table, 2 * n + asked], axis=1)
    answers = np.take_along_axis(values, asked, axis=1)
    return tokens, answers


def recall_chance(n):
    """How often one of n fair coins shows the side that most of them show."""
    total = sum(math.comb(n, heads) * max(heads, n - heads) for heads in range(n + 1))
    return total / (n * 2**n)


def order(rng, n, count):
    """Two marks stand among n - 1 tokens. Which came last? A sum over tokens ignores order."""
    tokens = rng.integers(0, FILLERS, (count, n))
    places = np.sort(shuffle(rng, n - 1, count)[:, :2], axis=1)
    last = rng.integers(0, 2, count)
    marks = FILLERS + np.stack([1 - last, last], axis=1)
    np.put_along_axis(tokens, places, marks, axis=1)
    tokens[:, -1] = FILLERS + 2  # the question
    return tokens, last[:, None]


def lookups(rng, n, count):
    """n keys have n values, each its own. Which have the key in the question and the next two?

    One average tells which three values, and tells them apart only by their weights in it: first
    much, second less, third least. But pairs repeat, some MAX_REPEATS times as often as others, so
    the weights say nothing unless they differ by more than that twice over. A head for each key
    need not care. Chance: the three are known, their order is not.
    """
    values = shuffle(rng, n, count)
    table = repeat_pairs(rng, np.arange(n) * n + values, 6 * n)
    asked = rng.integers(0, n, (count, QUESTIONS))
    answers = np.zeros_like(asked)
    for i in range(KEYS_ASKED):  # one number in base n
        answers += np.take_along_axis(values, (asked + i) % n, axis=1) * n**i
    tokens = np.concatenate([table, n * n + asked], axis=1)
    return tokens, answers


def repeat_pairs(rng, pairs_bn, length):
    """Each pair of a row once, then more draws until there are `length`.

    Each pair is drawn with a frequency of its own, log-uniform within MAX_REPEATS.
    """
    count, n = pairs_bn.shape
    cumulative = np.cumsum(MAX_REPEATS ** rng.random((count, n)), axis=1)
    drawn = cumulative[:, -1:] * rng.random((count, length - n))
    index = (drawn[..., None] >= cumulative[:, None]).sum(axis=-1)
    repeats = np.take_along_axis(pairs_bn, index, axis=1)
    return rng.permuted(np.concatenate([pairs_bn, repeats], axis=1), axis=1)


def digits(rng, n, count):
    """What is the last digit, in base n, of the sum of three?

    A sum of what each digit says of the answer is no better than chance: what is right for one
    triple is wrong for those that differ by a rotation. Scores that compare digits can carry for
    two of them; for three they would have to add first.
    """
    summands = rng.integers(0, n, (count, 3))
    tokens = np.insert(summands, 3, n, axis=1)
    return tokens, summands.sum(axis=1, keepdims=True) % n


def two_hops(rng, n, count):
    """MIN_CIRCLE to n keys point at each other in one circle.

    Half the questions: where does the key point? The others: and that one? Pairs repeat where there
    are fewer than n keys; in short circles the second hop is learned first.

    Chance: the first half is right, and of the others it is known that the answer is neither of the
    first two keys. A layer could average the whole table and leave the second hop to its
    feed-forward: that gets 16 units, enough for one hop.
    """
    circle = shuffle(rng, n, count)
    place = np.arange(n)
    size = rng.integers(min(MIN_CIRCLE, n), n + 1, (count, 1))
    # Places in the circle: of the key of each pair of the table, and of each key asked for.
    starts = np.where(place < size, place, rng.integers(0, size, (count, n)))
    asked = rng.integers(0, size, (count, QUESTIONS))
    twice = np.arange(QUESTIONS) >= QUESTIONS // 2

    def key_at(place):
        return np.take_along_axis(circle, place % size, axis=1)

    table = rng.permuted(key_at(starts) * n + key_at(starts + 1), axis=1)
    questions = n * n + n * twice + key_at(asked)
    tokens = np.concatenate([table, questions], axis=1)
    return tokens, key_at(asked + 1 + twice)


def two_hops_chance(n):
    """Half are right; of the rest one key in size - 2, for sizes as likely as each other."""
    sizes = np.arange(min(MIN_CIRCLE, n), n + 1)
    return (1 + float(np.mean(1 / (sizes - 2)))) / 2


def name_pairs(n, kinds, *questions):
    """Labels of a table, n keys, each with one of `kinds` values, and of questions for each key."""
    pairs = [f"{key}→{value}" for key in range(n) for value in range(kinds)]
    return pairs + [question.format(key) for question in questions for key in range(n)]


def name_digits(n):
    """Labels of n symbols."""
    return [str(digit) for digit in range(n)]


def name_lookups(n):
    """Labels of a table and of questions for three keys, one after the other."""
    keys = [[str((key + i) % n) for i in range(KEYS_ASKED)] for key in range(n)]
    return [*name_pairs(n, n), *(",".join(asked) + "?" for asked in keys)]


def name_values(n, answer):
    """The values that one number in base n stands for; see `lookups`."""
    return ",".join(str(answer // n**i % n) for i in range(KEYS_ASKED))


RECALL = Probe(
    "recall",
    "which of two values belongs to a key",
    recall,
    size=12,
    names=lambda n: name_pairs(n, 2, "{}?"),
    vocab=lambda n: 3 * n,
    chance=recall_chance,
    questions=QUESTIONS,
    steps=400,
    rate=0.5,
)
PROBES = {
    probe.name: probe
    for probe in (
        Probe(
            "distance",
            "which symbol stood three places before the last",
            distance,
            size=8,
            names=name_digits,
            vocab=lambda n: n,
            chance=lambda n: 1 / n,
            steps=100,
            batch=64,
        ),
        Probe(
            "occurred",
            "whether a mark occurred anywhere before, out of sight of a short window",
            occurred,
            size=24,
            names=lambda n: [*MARKS[:-1], "a?"],
            name_answer=lambda n, answer: ("no", "yes")[answer] if answer < 2 else str(answer),
            vocab=lambda n: FILLERS + 2,
            steps=150,
            batch=64,
        ),
        RECALL,
        Probe(
            "order",
            "which of two marks came last",
            order,
            size=12,
            names=lambda n: [*MARKS, "last?"],
            name_answer=lambda n, answer: "ab"[answer] if answer < 2 else str(answer),
            vocab=lambda n: FILLERS + 3,
            steps=600,
            batch=64,
        ),
        Probe(
            "look-ups",
            "which values belong to three keys, in that order",
            lookups,
            size=5,
            names=name_lookups,
            name_answer=name_values,
            vocab=lambda n: n**KEYS_ASKED,
            chance=lambda n: 1 / math.factorial(KEYS_ASKED),
            questions=QUESTIONS,
            steps=350,
        ),
        Probe(
            "digits",
            "the last digit of the sum of three",
            digits,
            size=10,
            names=lambda n: [*name_digits(n), "sum?"],
            vocab=lambda n: n + 1,
            chance=lambda n: 1 / n,
            steps=600,
            batch=256,
            rate=2.0,
        ),
        Probe(
            "two hops",
            "where a key points, and for half of the questions where THAT key points",
            two_hops,
            size=8,
            names=lambda n: name_pairs(n, n, "{}?", "{}??"),
            vocab=lambda n: n * n + 2 * n,
            chance=two_hops_chance,
            questions=QUESTIONS,
            steps=1000,
            # With the square, some seeds began to rise when the rates had begun to fall.
            growth=3,
            settings={"width": 32, "mlp_dim": 16},
        ),
        replace(
            RECALL,
            name="deep",
            asks=f"{RECALL.asks}, with 12 blocks and 12 times the learning rates of rung 5",
            steps=150,
            rate=6.0,
            settings={"depth": 12, "width": 32},
        ),
    )
}
