"""How many modes a set of texts has: known ones that it repeats, an estimate of those not seen."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike

NGRAM = 4  # words in a row by which a text is recognized
WORD = r"\s?\w+|\s?[^\w\s]|\s"  # words keep the space before them


@dataclass(frozen=True)
class ModeCounts:
    """Counts over recognized modes."""

    distinct: float = 0.0
    chao1: float = 0.0  # estimated number of modes, with those never seen
    entropy: float = 0.0  # bits
    effective: float = 0.0  # 1 over the sum of squared frequencies
    recognised: float = 0.0  # fraction of the texts that repeat a mode


def split_words(texts: Sequence[str]) -> list[list[int]]:
    """Documents as word ids, numbered from 0 as they come."""
    ids: dict[str, int] = {}
    return [[ids.setdefault(word, len(ids)) for word in re.findall(WORD, text)] for text in texts]


def match_known(docs: Sequence[Sequence[int]], known: Sequence[Sequence[int]]) -> list[int]:
    """For each document, the known one with which it has most 4-grams in common.

    -1 where those are less than half of its own.
    """
    holders = defaultdict(set)
    for i, doc in enumerate(known):
        for gram in _list_ngrams(doc):
            holders[gram].add(i)
    matches = []
    for doc in docs:
        grams = _list_ngrams(doc)
        hits = Counter(i for gram in grams for i in holders.get(gram, ()))
        # A text shorter than a 4-gram has none, and so no hit.
        best, count = max(hits.items(), key=itemgetter(1), default=(-1, 0))
        matches.append(best if count * 2 >= len(grams) else -1)
    return matches


def _list_ngrams(doc: Sequence[int]) -> list[tuple]:
    return list(zip(*(doc[k:] for k in range(NGRAM)), strict=False))


def count_modes(modes: ArrayLike) -> ModeCounts:
    """Counts over the modes that texts were recognized as; -1: not recognized.

    Chao1 (1984), bias-corrected: distinct + f1 (f1-1) / (2 (f2+1)). Entropy after Chao & Shen
    (2003): each mode's frequency is deflated by the coverage 1 - f1/n, and its term is inflated by
    the chance of having been seen at all.
    """
    all_modes = np.asarray(modes)
    known = all_modes[all_modes >= 0]
    if not len(known):
        return ModeCounts()
    _, counts = np.unique(known, return_counts=True)
    n = counts.sum()
    f1, f2 = (counts == 1).sum(), (counts == 2).sum()
    coverage = 1 - f1 / n if f1 < n else 1 / n
    p = coverage * counts / n
    entropy = -(p * np.log2(p) / (1 - (1 - p) ** n)).sum()
    return ModeCounts(
        distinct=float(len(counts)),
        chao1=float(len(counts) + f1 * (f1 - 1) / (2 * (f2 + 1))),
        entropy=float(entropy),
        effective=float(1 / ((counts / n) ** 2).sum()),
        recognised=float(len(known) / len(all_modes)),
    )
