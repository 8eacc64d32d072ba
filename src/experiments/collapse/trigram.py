"""A trigram model that can be sampled: the cheapest language model that collapses.

All in NumPy, all documents at once. Interpolated absolute discounting:
p(w | h) = (c(hw) - D) / c(h) + D types(h) / c(h) p(w | h'), one D an order, down to uniform. To
sample, throw that mixture's coin at every order: the discounted counts of the context, or one order
lower.
"""

from dataclasses import dataclass

import numpy as np

from ramp.synth.docs import Docs


@dataclass(frozen=True)
class Order:
    """n-grams of one order, by sorted keys context * V + word."""

    keys: np.ndarray
    kept: np.ndarray
    upto: np.ndarray  # [n-grams + 1]
    contexts: np.ndarray  # sorted
    total: np.ndarray  # of each context
    freed: np.ndarray  # share of a context's mass that goes to the order below


@dataclass(frozen=True)
class Trigram:
    vocab: int  # words 0 .. V-1; V-1 ends a document
    orders: tuple[Order, ...]

    @classmethod
    def fit(cls, docs: Docs, vocab: int) -> "Trigram":
        """Count documents of words 0 .. V-2; each gets its end."""
        words, context = _contexts(docs, vocab)
        keys = [
            words,
            context[0] * vocab + words,
            (context[1] * (vocab + 1) + context[0]) * vocab + words,
        ]
        return cls(vocab, tuple(_order(k, vocab) for k in keys))

    def bits(self, docs: Docs) -> np.ndarray:
        """-log2 p of each word of each document and of its end, in order."""
        words, context = _contexts(docs, self.vocab)
        p = np.full(len(words), 1 / self.vocab)
        for n, order in enumerate(self.orders):
            h = _context(context, n, self.vocab)
            at, ctx = _find(order.keys, h * self.vocab + words), _find(order.contexts, h)
            seen = ctx >= 0
            kept = np.where(at >= 0, order.kept[at], 0.0)
            p = np.where(seen, kept / order.total[ctx] + order.freed[ctx] * p, p)
        return -np.log2(p)

    def sample(self, n: int, longest: int, rng: np.random.Generator) -> Docs:
        """n documents of at most `longest` words."""
        out = np.full((n, longest), -1)
        context, live = np.full((2, n), self.vocab), np.ones(n, bool)  # V: before the beginning
        for t in range(longest):
            word = self._next(context[:, live], rng)
            at = np.flatnonzero(live)
            out[at, t] = word
            context[:, live] = np.stack([word, context[0, live]])
            live[at[word == self.vocab - 1]] = False
            if not live.any():
                break
        held = (out >= 0) & (out < self.vocab - 1)
        return Docs(out[held], held.sum(axis=1))

    def _next(self, context: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        word = np.full(context.shape[1], -1)
        for n in (2, 1, 0):
            order, h = self.orders[n], _context(context, n, self.vocab)
            ctx = _find(order.contexts, h)
            stay = (
                (word < 0)
                & (ctx >= 0)
                & (rng.random(len(word)) >= np.where(ctx >= 0, order.freed[ctx], 1.0))
            )
            low = order.upto[np.searchsorted(order.keys, h[stay] * self.vocab)]
            high = order.upto[np.searchsorted(order.keys, (h[stay] + 1) * self.vocab)]
            at = (
                np.searchsorted(order.upto, low + rng.random(len(low)) * (high - low), side="right")
                - 1
            )
            word[stay] = order.keys[np.clip(at, 0, len(order.keys) - 1)] % self.vocab
        return np.where(word < 0, rng.integers(0, self.vocab, len(word)), word)


def _contexts(docs: Docs, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(words with the end of each document, [2, N] the two words before each).

    V stands for a word before the beginning.
    """
    ends = np.cumsum(docs.lengths)
    words = np.insert(docs.flat, ends, vocab - 1)
    starts = ends - docs.lengths + np.arange(len(docs))
    since = np.arange(len(words)) - np.repeat(starts, docs.lengths + 1)
    back = [np.where(since >= k, np.roll(words, k), vocab) for k in (1, 2)]
    return words, np.stack(back)


def _context(context: np.ndarray, n: int, vocab: int) -> np.ndarray:
    """The number of the context of n words."""
    if n == 0:
        return np.zeros(context.shape[1], np.int64)
    return context[0] if n == 1 else context[1] * (vocab + 1) + context[0]


def _order(keys: np.ndarray, vocab: int) -> Order:
    grams, counts = np.unique(keys, return_counts=True)
    n1, n2 = (counts == 1).sum(), (counts == 2).sum()
    discount = (n1 + 1) / (n1 + 2 * n2 + 2)  # inside (0, 1) on any data
    contexts, at = np.unique(grams // vocab, return_inverse=True)
    total = np.bincount(at, counts).astype(float)
    kept = counts - discount
    return Order(
        grams,
        kept,
        np.concatenate([[0.0], np.cumsum(kept)]),
        contexts,
        total,
        discount * np.bincount(at) / total,
    )


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each wanted key in sorted `keys`, -1 where it is absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
