"""Small tasks that can be done with one ability and not without it.

A probe makes rows: tokens int32 [B, T], whose last Q ask a question each, and the answers int32 [B, Q]. `rows(rng, n, count)`
is pure: the same generator state gives the same rows. `chance` is the best anyone can do without the ability (it may know
which answers are possible), the ceiling is 1: every answer follows from its row. n is the probe's size; a scale of 1.5 makes
it half as large again. Tables are written as one token a pair, (key, value), so that a single layer can look up and nothing
but the ability in question is asked for; many questions follow one table, so that every row teaches as often.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rows = tuple[np.ndarray, np.ndarray]
FILLERS, REACH = 8, 8  # symbols without meaning; how far the fixed window of rung 3 sees, the last token included
MARKS = ["·"] * FILLERS + ["a", "b"]
QUESTIONS = 16  # that follow a table


@dataclass(frozen=True)
class Probe:
    name: str
    asks: str  # one sentence
    rows: Callable[[np.random.Generator, int, int], Rows]
    size: int  # n
    vocab: Callable[[int], int]  # of n: ids 0 .. vocab-1 in tokens and answers
    chance: Callable[[int], float]  # of n
    names: Callable[[int], list[str]]  # of n: what people call the first ids; the others are questions
    steps: int
    batch: int = 32
    rate: float = 1.0  # times `learn.RATES`
    settings: dict[str, Any] = field(default_factory=dict)  # of the model, for the rung and the one below alike


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
    tokens[np.arange(count), place] = np.where(answer == 1, FILLERS, tokens[np.arange(count), place])
    tokens[:, -1] = FILLERS + 1
    return tokens, answer[:, None]


def order(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Two marks stand among n - 1 tokens. Which came last?"""
    tokens = rng.integers(0, FILLERS, (count, n), dtype=np.int32)
    places = np.sort(shuffled(rng, n - 1, count)[:, :2], axis=1)
    last = rng.integers(0, 2, count, dtype=np.int32)
    np.put_along_axis(tokens, places, FILLERS + np.stack([1 - last, last], axis=1), axis=1)
    tokens[:, -1] = FILLERS + 2
    return tokens, last[:, None]


def ask(
    rng: np.random.Generator, values_bn: np.ndarray, kinds: int, keys_sk: np.ndarray, copies: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Tables of n keys with values below `kinds`, each with QUESTIONS questions; one asks for k keys, a row of `keys_sk`.

    Returns tokens [B, T] and the values found at the keys asked for, [B, QUESTIONS, k]. Pair tokens key * kinds + value stand
    in random order, each at least once; with copies, some again and again: an average whose weights tell pairs apart would
    have to know how often, a look-up need not care.
    """
    count, n = values_bn.shape
    pairs = rng.permuted(np.arange(n) * kinds + values_bn, axis=1)
    again = (n * rng.random((count, copies * n)) ** 4).astype(int)
    table = rng.permuted(np.concatenate([pairs, np.take_along_axis(pairs, again, axis=1)], axis=1), axis=1)
    asked = rng.integers(0, len(keys_sk), (count, QUESTIONS))
    tokens = np.concatenate([table, n * kinds + asked], axis=1).astype(np.int32)
    return tokens, values_bn[np.arange(count)[:, None, None], keys_sk[asked]].astype(np.int32)


def shuffled(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """0 .. n-1 in random order, [count, n]."""
    return rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)


def recall(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Half of n keys stand for one value, half for another. Which one belongs to the key asked for?"""
    tokens, found = ask(rng, shuffled(rng, n, count) % 2, 2, np.arange(n)[:, None])
    return tokens, found[..., 0]


def lookups(rng: np.random.Generator, n: int, count: int) -> Rows:
    """n keys have n values, each its own; three keys are asked for at once. Which values, in that order?"""
    every = np.array(list(itertools.permutations(range(n), 3)))
    tokens, found = ask(rng, shuffled(rng, n, count), n, every, copies=4)
    return tokens, (found * n ** np.arange(3)).sum(axis=-1).astype(np.int32)


def modular(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Two keys are asked for, out of n whose values are any of 0 .. n-1. What is the sum of the two values, modulo n?"""
    every = np.array(list(itertools.combinations(range(n), 2)))
    tokens, found = ask(rng, rng.integers(0, n, (count, n)), n, every, copies=4)
    return tokens, found.sum(axis=-1, dtype=np.int32) % n


def two_hops(rng: np.random.Generator, n: int, count: int) -> Rows:
    """n keys point at each other in one circle. Where does what the key points at point to?"""
    circle, target = shuffled(rng, n, count), np.empty((count, n), int)
    np.put_along_axis(target, circle, np.roll(circle, -1, axis=1), axis=1)
    tokens, first = ask(rng, target, n, np.arange(n)[:, None], copies=1)
    return tokens, np.take_along_axis(target, first[..., 0], axis=1).astype(np.int32)


def pairs(n: int, kinds: int) -> list[str]:
    return [f"{key}→{value}" for key in range(n) for value in range(kinds)]


PROBES = {
    p.name: p
    for p in (
        Probe("distance", "which symbol stood three places before the last", distance, 8,
              lambda n: n, lambda n: 1 / n, lambda n: [*map(str, range(n))], steps=100, batch=64),
        Probe("occurred", "whether a mark occurred anywhere before, out of a short window's sight", occurred, 24,
              lambda n: FILLERS + 2, lambda n: 1 / 2, lambda n: MARKS[:-1], steps=150, batch=64),
        Probe("recall", "which of two values belongs to a key", recall, 12,
              lambda n: 3 * n, lambda n: 1 / 2, lambda n: pairs(n, 2), steps=900, rate=0.3),
        Probe("order", "which of two marks came last", order, 12,
              lambda n: FILLERS + 3, lambda n: 1 / 2, lambda n: MARKS, steps=600, batch=64),
        Probe("look-ups", "which values belong to three keys, in that order", lookups, 5,
              lambda n: max(n**3, n * n + math.perm(n, 3)), lambda n: 1 / math.perm(n, 3), lambda n: pairs(n, n), steps=300),
        Probe("modular sum", "the sum of two keys' values, modulo n", modular, 5,
              lambda n: n * n + n * (n - 1) // 2, lambda n: 1 / n, lambda n: pairs(n, n), steps=400),
        Probe("two hops", "where that points to which a key points to", two_hops, 8,
              lambda n: n * n + n, lambda n: 1 / (n - 2), lambda n: pairs(n, n), steps=1600, settings={"width": 32}),
        Probe("deep", "which of two values belongs to a key, with 12 blocks and 10 times the rates", recall, 12,
              lambda n: 3 * n, lambda n: 1 / 2, lambda n: pairs(n, 2), steps=300, rate=3.0,
              settings={"depth": 12, "width": 32}),
    )
}  # fmt: skip
