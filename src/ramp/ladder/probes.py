"""Small tasks that can be done with one ability and not without it.

A probe makes rows: tokens int32 [B, T], whose last Q ask a question each, and the answers int32 [B, Q]. `rows(rng, n, count)`
is pure: the same generator state gives the same rows. n is the probe's size; a scale of 1.5 makes it half as large again.
The ceiling is 1: every answer follows from its row. `chance` is the best that anyone can do without the ability.

A pair of a table is one token, so that a single layer can look up; many questions follow one table, so that every row
teaches as often. The logits of one head without norm and feed-forward are, up to a common factor, sums over the tokens of
(weight of the token for this question) x (what the token says for each answer). What such sums cannot do is asked for.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rows = tuple[np.ndarray, np.ndarray]
FILLERS, REACH = (
    8,
    8,
)  # symbols without meaning; how far the fixed window of rung 3 sees, the last token included
MARKS = ["·"] * FILLERS + ["a", "b"]
QUESTIONS = 16  # that follow a table
POPULAR = 16  # how much oftener than another a pair of `repeated` may stand in a row
ASKED = 3  # keys of a question of `lookups`
FEWEST = 5  # keys in a circle of `two_hops`


@dataclass(frozen=True)
class Probe:
    name: str
    asks: str  # one sentence
    rows: Callable[[np.random.Generator, int, int], Rows]
    size: int  # n
    names: Callable[
        [int], list[str]
    ]  # of n: what people call the first ids; the others are questions
    vocab: Callable[[int], int]  # of n: ids 0 .. vocab-1 in tokens and answers
    chance: Callable[[int], float]  # of n
    steps: int  # for `size`; for another n as its square
    batch: int = 32
    rate: float = 1.0  # times `learn.RATES`
    settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the model, for the rung and the one below alike


def shuffled(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """0 .. n-1 in random order, [count, n]."""
    return rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)


def distance(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Which symbol stood 3n/8 places before the last?"""
    back = 3 * n // 8
    tokens = rng.integers(0, n, (count, back + 4), dtype=np.int32)
    return tokens, tokens[:, [-1 - back]]


def occurred(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Did the mark occur anywhere before? It never stands where a window of REACH tokens can see it."""
    tokens = rng.integers(0, FILLERS, (count, n), dtype=np.int32)
    answer = rng.integers(0, 2, count, dtype=np.int32)
    place = rng.integers(0, n - REACH, count)
    tokens[np.arange(count), place] = np.where(
        answer == 1, FILLERS, tokens[np.arange(count), place]
    )
    tokens[:, -1] = FILLERS + 1
    return tokens, answer[:, None]


def recall(rng: np.random.Generator, n: int, count: int) -> Rows:
    """n keys have a value of 0 or 1. Which one does the key asked for have? A bag can tell which is commoner: chance."""
    values = rng.integers(0, 2, (count, n))
    asked = rng.integers(0, n, (count, QUESTIONS))
    tokens = np.concatenate(
        [rng.permuted(np.arange(n) * 2 + values, axis=1), 2 * n + asked], axis=1
    )
    return tokens.astype(np.int32), np.take_along_axis(values, asked, axis=1).astype(np.int32)


def commoner(n: int) -> float:
    """How often one of n fair coins shows the side that most of them show."""
    return sum(math.comb(n, heads) * max(heads, n - heads) for heads in range(n + 1)) / (n * 2**n)


def order(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Two marks stand among n - 1 tokens. Which came last? To a sum over tokens they are the same in any order."""
    tokens = rng.integers(0, FILLERS, (count, n), dtype=np.int32)
    places = np.sort(shuffled(rng, n - 1, count)[:, :2], axis=1)
    last = rng.integers(0, 2, count, dtype=np.int32)
    np.put_along_axis(tokens, places, FILLERS + np.stack([1 - last, last], axis=1), axis=1)
    tokens[:, -1] = FILLERS + 2
    return tokens, last[:, None]


def lookups(rng: np.random.Generator, n: int, count: int) -> Rows:
    """n keys have n values, each its own. Which ones have the key asked for and the two after it, in that order?

    One average says which three, and tells them apart only by their weights in it: first much, second less, third least.
    But pairs repeat, some POPULAR times as often as others, so the weights say nothing unless they differ by more than
    that twice over. A head for each key need not care. Chance: the three are known, their order is not.
    """
    values = shuffled(rng, n, count)
    table = repeated(rng, np.arange(n) * n + values, 6 * n)
    asked = rng.integers(0, n, (count, QUESTIONS))
    found = [np.take_along_axis(values, (asked + i) % n, axis=1) * n**i for i in range(ASKED)]
    return np.concatenate([table, n * n + asked], axis=1).astype(np.int32), sum(found).astype(
        np.int32
    )


def repeated(rng: np.random.Generator, pairs_bn: np.ndarray, length: int) -> np.ndarray:
    """Each pair of a row once, then drawn again by a popularity of its own, log-uniform, until there are `length`."""
    popular = np.cumsum(POPULAR ** rng.random(pairs_bn.shape), axis=1)
    drawn = popular[:, -1:] * rng.random((len(pairs_bn), length - pairs_bn.shape[1]))
    again = (drawn[..., None] >= popular[:, None]).sum(axis=-1)
    return rng.permuted(
        np.concatenate([pairs_bn, np.take_along_axis(pairs_bn, again, axis=1)], axis=1), axis=1
    )


def digits(rng: np.random.Generator, n: int, count: int) -> Rows:
    """What is the last digit, in base n, of the sum of three?

    A sum of what each digit says of the answer is no better than chance: what is right for one triple is wrong for those
    that differ by a rotation. Scores that compare digits can carry for two of them; for three they would have to add first.
    """
    tokens = np.insert(rng.integers(0, n, (count, 3), dtype=np.int32), 3, n, axis=1)
    return tokens, tokens[:, :3].sum(axis=1, keepdims=True, dtype=np.int32) % n


def two_hops(rng: np.random.Generator, n: int, count: int) -> Rows:
    """FEWEST to n keys point at each other in one circle. Half the questions: where does the key point? The others: and
    that one? Pairs repeat where there are fewer than n; in short circles the second hop is learned first.

    Chance: the first half is right, and of the others it is known that they are neither of the first two keys. A layer
    could average the whole table and leave the second hop to its feed-forward: that gets 16 units, enough for one hop.
    """
    circle, place = shuffled(rng, n, count), np.arange(n)
    size = rng.integers(min(FEWEST, n), n + 1, (count, 1))
    # Places in the circle: of the key of each pair of the table, and of each key asked for.
    stands = np.where(place < size, place, rng.integers(0, size, (count, n)))
    asked, twice = rng.integers(0, size, (count, QUESTIONS)), np.arange(QUESTIONS) >= QUESTIONS // 2
    key = lambda at: np.take_along_axis(circle, at % size, axis=1)  # noqa: E731
    table = rng.permuted(key(stands) * n + key(stands + 1), axis=1)
    tokens = np.concatenate([table, n * n + n * twice + key(asked)], axis=1)
    return tokens.astype(np.int32), key(asked + 1 + twice).astype(np.int32)


def two_hops_chance(n: int) -> float:
    """Half are right; of the rest one key in size - 2, for sizes as likely as each other."""
    return (1 + float(np.mean([1 / (size - 2) for size in range(min(FEWEST, n), n + 1)]))) / 2


def pairs(n: int, kinds: int) -> list[str]:
    return [f"{key}→{value}" for key in range(n) for value in range(kinds)]


ABLE = "which of two values belongs to a key"
PROBES = {
    p.name: p
    for p in (
        Probe("distance", "which symbol stood three places before the last", distance, 8,
              lambda n: [*map(str, range(n))], lambda n: n, lambda n: 1 / n, steps=100, batch=64),
        Probe("occurred", "whether a mark occurred anywhere before, out of a short window's sight", occurred, 24,
              lambda n: MARKS[:-1], lambda n: FILLERS + 2, lambda n: 1 / 2, steps=150, batch=64),
        Probe("recall", ABLE, recall, 12, lambda n: pairs(n, 2), lambda n: 3 * n, commoner, steps=400, rate=0.5),
        Probe("order", "which of two marks came last", order, 12,
              lambda n: MARKS, lambda n: FILLERS + 3, lambda n: 1 / 2, steps=600, batch=64),
        Probe("look-ups", "which values belong to three keys, in that order", lookups, 5,
              lambda n: pairs(n, n), lambda n: n**ASKED, lambda n: 1 / math.factorial(ASKED), steps=350),
        Probe("digits", "the last digit of the sum of three", digits, 10,
              lambda n: [*map(str, range(n))], lambda n: n + 1, lambda n: 1 / n, steps=600, batch=256, rate=2.0),
        Probe("two hops", "where that points to which a key points to", two_hops, 8,
              lambda n: pairs(n, n), lambda n: n * n + 2 * n, two_hops_chance, steps=1000,
              settings={"width": 32, "mlp_dim": 16}),
        Probe("deep", ABLE + ", with 12 blocks and 12 times the rates", recall, 12, lambda n: pairs(n, 2),
              lambda n: 3 * n, commoner, steps=150, rate=6.0, settings={"depth": 12, "width": 32}),
    )
}  # fmt: skip
