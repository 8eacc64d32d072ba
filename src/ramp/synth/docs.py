"""Documents as numbers of words or tokens, flat, and the hashes of their n-grams."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

Ids = Sequence[int] | ndarray  # the tokens of a document


@dataclass(frozen=True)
class Docs:
    """D documents as token ids, one after the other."""

    flat: ndarray  # int64 [N]: the tokens of all documents
    lengths: ndarray  # int64 [D]: the number of tokens in each document

    @classmethod
    def from_lists(cls, docs: Sequence[Ids]) -> "Docs":
        """Documents that are given one by one."""
        lengths = np.array([len(doc) for doc in docs], np.int64)
        flat = np.concatenate([np.empty(0, np.int64), *docs])
        return cls(flat.astype(np.int64), lengths)  # an empty list came in as floats

    def __len__(self) -> int:
        return len(self.lengths)

    def __add__(self, other: "Docs") -> "Docs":
        """The documents of both."""
        flat = np.concatenate([self.flat, other.flat])
        return Docs(flat, np.concatenate([self.lengths, other.lengths]))

    @cached_property
    def starts(self) -> ndarray:
        """[D]: position in `flat` of the first token of each document."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def owner(self) -> ndarray:
        """[N]: the document that each token belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: ndarray) -> "Docs":
        """The documents with these numbers, in this order."""
        rows = np.asarray(rows, np.int64)
        lengths = self.lengths[rows]
        # Each new position is shifted from where the document stands here.
        new_starts = np.cumsum(lengths) - lengths
        shift = np.repeat(self.starts[rows] - new_starts, lengths)
        return Docs(self.flat[shift + np.arange(lengths.sum())], lengths)

    def cut(self, begin: ndarray, lengths: ndarray) -> "Docs":
        """Of each document so many tokens, [D] each, from such a place on."""
        new_starts = np.cumsum(lengths) - lengths
        shift = np.repeat(self.starts + begin - new_starts, lengths)
        return Docs(self.flat[shift + np.arange(lengths.sum())], lengths)

    def join(self, number: int) -> "Docs":
        """So many documents in a row as one, and what is left over dropped."""
        lengths = self.lengths[: len(self) // number * number].reshape(-1, number).sum(axis=1)
        return Docs(self.flat[: lengths.sum()], lengths)

    def to_list(self) -> list[ndarray]:
        """The documents one by one."""
        return np.split(self.flat, self.starts[1:]) if len(self) else []

    def hash_ngrams(self, n: int) -> tuple[ndarray, ndarray]:
        """(uint64 hash of each n-gram inside a document, the document it belongs to)."""
        if n == 1:
            return self.flat.astype(np.uint64), self.owner
        count = max(len(self.flat) - n + 1, 0)
        key = np.zeros(count, np.uint64)
        for i in range(n):
            # The 1 keeps token 0 apart from nothing.
            key = mix_bits(key + self.flat[i : i + count].astype(np.uint64) + np.uint64(1))
        first_owner = self.owner[:count]
        inside = first_owner == self.owner[n - 1 :][:count]
        return key[inside], first_owner[inside]

    @cached_property
    def ngram_counts(self) -> dict[int, tuple[ndarray, ndarray]]:
        """For n = 1 and 2: the sorted hashes of the n-grams, and how often each occurs."""
        return {n: np.unique(self.hash_ngrams(n)[0], return_counts=True) for n in (1, 2)}


def mix_bits(x: ndarray) -> ndarray:
    """Scatter uint64 one-to-one (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sort_unique(x: ndarray) -> ndarray:
    """The different values, sorted. `np.unique` hashes them, which takes ten times as long here."""
    x = np.sort(x)
    return x[np.diff(x, prepend=x[:1] - x.dtype.type(1)) != 0]


def is_member(x: ndarray, known: ndarray) -> ndarray:
    """[N]: whether each value is among the `known` ones, which are sorted."""
    if not len(known):
        return np.zeros(len(x), bool)
    return known[np.minimum(np.searchsorted(known, x), len(known) - 1)] == x
