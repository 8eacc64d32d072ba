"""Small tasks that can be done with one ability and not without it.

A probe makes rows of tokens whose last token asks a question, and the answer. `rows(rng, n, count)` is pure: the same
generator state gives the same rows. `chance` is the best anyone can do without the ability (it may know which answers are
possible), the ceiling is 1: every answer follows from its row. n is the probe's size; a scale of 1.5 makes it half as large
again. Tables are written as one token a pair, (key, value), so that a single layer can look up and nothing but the ability
in question is asked for.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rows = tuple[np.ndarray, np.ndarray]  # tokens int32 [B, T], answers int32 [B]


@dataclass(frozen=True)
class Probe:
    name: str
    asks: str  # one sentence
    rows: Callable[[np.random.Generator, int, int], Rows]
    size: int  # n
    vocab: Callable[[int], int]  # of n: ids 0 .. vocab-1 in tokens and answers
    length: Callable[[int], int]  # of n: T
    chance: Callable[[int], float]  # of n
    steps: int = 400
    batch: int = 64
    rate: float = 1.0  # times the rates of `run.RATES`
    settings: dict[str, Any] = field(default_factory=dict)  # of the model, for the rung and the one below alike

    def show(self, n: int, token: int) -> str:
        """A token of a row, for people."""
        if self.rows in (recall, lookups, modular, two_hops):
            kinds = 2 if self.rows is recall else n
            return f"{token // kinds}→{token % kinds}" if token < n * kinds else "?"
        return str(token) if self.rows is distance else "·" if token < FILLERS else "ab?"[min(token - FILLERS, 2)]

    def scaled(self, scale: float) -> int:
        return round(self.size * scale)


def way(accuracy: float, chance: float) -> float:
    """How far from chance (0) to the ceiling (1)."""
    return (accuracy - chance) / (1 - chance)


# ---------------------------------------------------------------------------------------------------- the tasks
def back(n: int) -> int:
    """Of `distance`: 3 at its default size of 8 symbols."""
    return 3 * n // 8


def distance(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Which symbol stood `back(n)` places before the last?"""
    tokens = rng.integers(0, n, (count, back(n) + 4))
    return tokens.astype(np.int32), tokens[:, -1 - back(n)].astype(np.int32)


FILLERS, REACH = 8, 8  # symbols without meaning; how far the fixed window of rung 3 sees, the last token included


def occurred(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Did the mark occur anywhere before? It never stands where a window of REACH tokens can see it."""
    tokens = rng.integers(0, FILLERS, (count, n))
    answer = rng.integers(0, 2, count)
    place = rng.integers(0, n - REACH, count)
    tokens[np.arange(count), place] = np.where(answer == 1, FILLERS, tokens[np.arange(count), place])
    tokens[:, -1] = FILLERS + 1
    return tokens.astype(np.int32), (FILLERS + 2 + answer).astype(np.int32)


def table(rng: np.random.Generator, values_bn: np.ndarray, kinds: int, copies: int = 0) -> np.ndarray:
    """Pair tokens key * kinds + value in random order, [B, n + copies * n]. Each is there at least once; with copies, some are
    there again and again: an average whose weights tell pairs apart would have to know how often, a look-up need not care."""
    n = values_bn.shape[1]
    pairs = rng.permuted(np.arange(n) * kinds + values_bn, axis=1)
    again = (n * rng.random((len(pairs), copies * n)) ** 4).astype(int)
    return rng.permuted(np.concatenate([pairs, np.take_along_axis(pairs, again, axis=1)], axis=1), axis=1)


def recall(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Half of n keys stand for one value, half for another. Which one belongs to the key asked for?"""
    values = rng.permuted(np.tile(np.arange(n) % 2, (count, 1)), axis=1)
    key = rng.integers(0, n, count)
    tokens = np.column_stack([table(rng, values, 2), 2 * n + key])
    return tokens.astype(np.int32), (3 * n + values[np.arange(count), key]).astype(np.int32)


def order(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Two marks stand among n - 1 tokens. Which came last?"""
    tokens = rng.integers(0, FILLERS, (count, n))
    places = np.sort(rng.permuted(np.tile(np.arange(n - 1), (count, 1)), axis=1)[:, :2], axis=1)
    last = rng.integers(0, 2, count)
    tokens[np.arange(count), places[:, 0]] = FILLERS + 1 - last
    tokens[np.arange(count), places[:, 1]] = FILLERS + last
    tokens[:, -1] = FILLERS + 2
    return tokens.astype(np.int32), (FILLERS + 3 + last).astype(np.int32)


LOOKUPS = 3


def triples(n: int) -> np.ndarray:
    """All ordered choices of LOOKUPS out of n, [n!/(n-3)!, 3]."""
    return np.array(list(itertools.permutations(range(n), LOOKUPS)))


def lookups(rng: np.random.Generator, n: int, count: int) -> Rows:
    """As `recall`, but three keys are asked for at once: which values, in that order?"""
    every = triples(n)
    values = rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
    asked = rng.integers(0, len(every), count)
    found = np.take_along_axis(values, every[asked], axis=1)
    number = {tuple(t): i for i, t in enumerate(every.tolist())}
    answer = np.array([number[tuple(f)] for f in found.tolist()])
    tokens = np.column_stack([table(rng, values, n, copies=4), n * n + asked])
    return tokens.astype(np.int32), (n * n + len(every) + answer).astype(np.int32)


def modular(rng: np.random.Generator, n: int, count: int) -> Rows:
    """Two keys are asked for, out of n whose values are any of 0 .. n-1. What is the sum of the two values, modulo n?"""
    every = np.array(list(itertools.combinations(range(n), 2)))
    values = rng.integers(0, n, (count, n))
    asked = rng.integers(0, len(every), count)
    answer = np.take_along_axis(values, every[asked], axis=1).sum(axis=1) % n
    tokens = np.column_stack([table(rng, values, n, copies=4), n * n + asked])
    return tokens.astype(np.int32), (n * n + len(every) + answer).astype(np.int32)


def two_hops(rng: np.random.Generator, n: int, count: int) -> Rows:
    """n keys point at each other in one circle. Where does what the key points at point to?"""
    circle = rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
    target = np.empty_like(circle)
    np.put_along_axis(target, circle, np.roll(circle, -1, axis=1), axis=1)
    key = rng.integers(0, n, count)
    first = target[np.arange(count), key]
    tokens = np.column_stack([table(rng, target, n, copies=1), n * n + key])
    return tokens.astype(np.int32), (n * n + n + target[np.arange(count), first]).astype(np.int32)


def permutations(n: int) -> int:
    return n * (n - 1) * (n - 2)


PROBES = {
    p.name: p
    for p in (
        Probe("distance", "which symbol stood three places before the last", distance, 8,
              lambda n: n, lambda n: back(n) + 4, lambda n: 1 / n, steps=100),
        Probe("occurred", "whether a mark occurred anywhere before, out of a short window's sight", occurred, 24,
              lambda n: FILLERS + 4, lambda n: n, lambda n: 1 / 2, steps=150),
        Probe("recall", "which of two values belongs to a key", recall, 12,
              lambda n: 3 * n + 2, lambda n: n + 1, lambda n: 1 / 2, steps=600, rate=0.3),
        Probe("order", "which of two marks came last", order, 12,
              lambda n: FILLERS + 5, lambda n: n, lambda n: 1 / 2, steps=600),
        Probe("look-ups", "which values belong to three keys, in that order", lookups, 5,
              lambda n: n * n + 2 * permutations(n), lambda n: 5 * n + 1, lambda n: 1 / permutations(n), steps=500),
        Probe("modular sum", "the sum of two keys' values, modulo n", modular, 5,
              lambda n: n * n + n * (n - 1) // 2 + n, lambda n: 5 * n + 1, lambda n: 1 / n, steps=500),
        Probe("two hops", "where that points to which a key points to", two_hops, 8,
              lambda n: n * n + 2 * n, lambda n: 2 * n + 1, lambda n: 1 / (n - 2), steps=800, settings={"width": 32}),
        Probe("deep", "which of two values belongs to a key, with 12 blocks and 10 times the rates", recall, 12,
              lambda n: 3 * n + 2, lambda n: n + 1, lambda n: 1 / 2, steps=300, batch=32, rate=3.0,
              settings={"depth": 12, "width": 32}),
    )
}  # fmt: skip
