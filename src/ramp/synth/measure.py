"""Measures over a set of samples: each sample may look fine while the distribution is gone.

Plain arrays in, figures out, no jax. A set of samples is a `Docs`: token ids, flat, with lengths.
Every figure is taken at one fixed number of samples and compared with a null: the same figure on
resamples of real text of the same size. It is reported as a ratio to the null and as z, the normal
deviate with the tail probability of a t-test against the K resamples (K-1 degrees of freedom).

Read coverage together with divergence: an entropy that rises by leaving real text is no virtue.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import rensa
from numpy import ndarray
from scipy import stats

MAX_RARE_COUNT = 5  # a token that real text has this many times or fewer is in the tail
Ids = Sequence[int] | ndarray  # the tokens of a document
MAX_CELLS = 2**16  # largest hash table in which bigrams are counted for divergences

# Near-duplicates: MinHash of 3-grams in 12 bands of 5 rows, which compares 99% of the pairs with
# Jaccard similarity .8, and 3% of those with .3.
SHINGLE = 3
NUM_PERMUTATIONS = 60
BAND_ROWS = 5


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


# Coverage and divergence


def coverage(real: Docs, sample: Docs, n: int) -> float:
    """Fraction of the n-gram types of held-out real text that occur in the sample."""
    types, _ = real.ngram_counts[n]
    if not len(types):
        return float("nan")
    return np.isin(types, sample.ngram_counts[n][0], assume_unique=True).mean()


def unseen_mass(sample: Docs, n: int = 2) -> float:
    """Estimated probability of the n-grams that never occurred (Good-Turing): those seen once.

    It falls with collapse.
    """
    _, counts = sample.ngram_counts[n]
    return (counts == 1).sum() / max(counts.sum(), 1)


def distinct(sample: Docs, n: int) -> float:
    """Different n-grams per occurrence."""
    _, counts = sample.ngram_counts[n]
    return len(counts) / max(counts.sum(), 1)


def count_extinct(real: Docs, sample: Docs, min_count: int = 5) -> int:
    """Number of tokens that real text has `min_count` times or more and the sample never.

    A sample as long as the real text misses e^-5 of those by chance.
    """
    types, counts = real.ngram_counts[1]
    frequent = types[counts >= min_count]
    alive = np.isin(frequent, sample.ngram_counts[1][0], assume_unique=True)
    return int((~alive).sum())


def divergences(real: Docs, sample: Docs) -> tuple[float, float]:
    """(KL(real || sample), KL(sample || real)) in bits, of hashed bigrams, 1/2 added to every cell.

    The first is coverage that was lost, the second what the sample makes up.
    """
    # A quarter as many cells as bigrams, so that the halves do not drown the counts.
    fewest = min(docs.ngram_counts[2][1].sum() for docs in (real, sample))
    cells = min(2 ** int(np.log2(max(fewest // 4, 1))), MAX_CELLS)
    p = _bigram_probabilities(real, cells)
    q = _bigram_probabilities(sample, cells)
    return np.sum(p * np.log2(p / q)), np.sum(q * np.log2(q / p))


def _bigram_probabilities(docs: Docs, cells):
    types, counts = docs.ngram_counts[2]
    cell = (types & np.uint64(cells - 1)).astype(np.int64)
    smoothed = np.bincount(cell, counts, cells) + 0.5
    return smoothed / smoothed.sum()


# Redundancy


def compression_ratio(sample: Docs) -> float:
    """Bytes before and after zlib of the token ids, four bytes a token: more is more repetitive."""
    data = sample.flat.astype("<u4").tobytes()
    return len(data) / max(len(zlib.compress(data, 1)), 1)


def self_bleu(sample: Docs) -> float:
    """Mean BLEU-4 of each of the first 100 documents against the others (Zhu et al. 2018).

    A count of 0 becomes 1/2, in the spirit of NLTK's method 1, so that short documents count too.
    """
    docs = sample.take(np.arange(min(100, len(sample))))
    if len(docs) < 2:
        return float("nan")
    ids = [doc.tolist() for doc in docs.to_list()]
    log_precision = np.zeros(len(docs))
    for k in range(1, 5):
        counts = [Counter(zip(*(doc[i:] for i in range(k)), strict=False)) for doc in ids]
        # The two largest counts of each k-gram in any document.
        top = {}
        for count in counts:
            for gram, c in count.items():
                top[gram] = sorted((c, *top.get(gram, (0, 0))))[1:]
        for d, count in enumerate(counts):
            hits = 0
            for gram, c in count.items():
                # A k-gram matches as often as it occurs in the one other document that has it most.
                second, first = top[gram]
                hits += min(c, second if c == first else first)
            log_precision[d] += np.log(max(hits, 0.5) / max(count.total(), 1)) / 4
    # The brevity penalty compares with the other document closest in length.
    lengths = docs.lengths
    gap = np.abs(np.subtract.outer(lengths, lengths))
    np.fill_diagonal(gap, 1 + lengths.sum())
    closest = lengths[np.argmin(gap, axis=1)]
    brevity = np.minimum(0, 1 - closest / np.maximum(lengths, 1))
    return np.exp(log_precision + brevity).mean()


def find_near_duplicates(sample: Docs, threshold: float = 0.8) -> ndarray:
    """[D]: an earlier document that this one nearly repeats, or -1.

    threshold: of the Jaccard similarity of their sets of 3-grams, estimated by MinHash.
    """
    n = len(sample)
    earlier_twin = np.full(n, -1)
    if n < 2:
        return earlier_twin
    digests = _digest_shingles(sample)
    for band in np.split(digests.T, NUM_PERMUTATIONS // BAND_ROWS):
        code = np.zeros(n, np.uint64)
        for row in band:
            code = mix_bits(code + row + np.uint64(1))
        # `first` is the earliest document of each group that agrees in the whole band.
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
        candidate = first[group]
        open_rows = np.flatnonzero((candidate < np.arange(n)) & (earlier_twin < 0))
        twins = candidate[open_rows]
        similar = (digests[open_rows] == digests[twins]).mean(axis=1) >= threshold
        earlier_twin[open_rows[similar]] = twins[similar]
    return earlier_twin


def _digest_shingles(sample: Docs):
    """uint64 [D, NUM_PERMUTATIONS]: the MinHash of each document's 3-grams."""
    key, owner = sample.hash_ngrams(SHINGLE)
    token, token_owner = sample.hash_ngrams(1)
    # A document too short for a 3-gram is represented by its tokens.
    short = sample.lengths[token_owner] < SHINGLE
    key = np.concatenate([key, token[short]])
    owner = np.concatenate([owner, token_owner[short]])
    order = np.argsort(owner, kind="stable")
    key = np.ascontiguousarray(key[order])
    offsets = np.searchsorted(owner[order], np.arange(len(sample) + 1)).astype(np.uint64)
    # rensa is compiled and has no stub.
    minhash = rensa.RMinHash  # ty: ignore[missing-attribute]
    digests = minhash.digest_matrix_from_flat_token_hashes(key, offsets, NUM_PERMUTATIONS, 42)
    return np.array(digests.to_rows(), np.uint64)


# Surprisal, and what needs a model's figures


@dataclass(frozen=True)
class SurprisalShift:
    """How far the surprisal of samples is from that of real text, in bits per token."""

    w1: float  # Wasserstein-1 distance of the two distributions
    left: float  # the part of it where samples are less surprising than real text: collapse
    right: float  # the part where they are more surprising: a language of their own


def surprisal_shift(real: ndarray, sample: ndarray) -> SurprisalShift:
    """Compare surprisals of documents, bits per token under one frozen model.

    real, sample: one figure a document; their numbers may differ.
    """
    levels = (np.arange(200) + 0.5) / 200
    gap = np.quantile(sample, levels) - np.quantile(real, levels)
    parts = np.abs(gap), np.maximum(-gap, 0), np.maximum(gap, 0)
    return SurprisalShift(*(part.mean() for part in parts))


def hard_documents(first_bits_d: ndarray, bits_d: ndarray) -> float:
    """Mean bits per token now of the tenth of the documents that the first model found hardest."""
    hardest = first_bits_d >= np.quantile(first_bits_d, 0.9)
    return bits_d[hardest].mean()


def cross_information(alone_b: ndarray, given_b: ndarray, tokens_b: ndarray) -> float:
    """Bits per token that one sample tells about another for the same prompt.

    alone_b, given_b: log-probability in nats of a sample given its prompt, and given the prompt
    and another sample. 0: samples are independent. Much: the tenth sample is in the first.
    """
    return float((given_b - alone_b).sum() / max(tokens_b.sum(), 1) / np.log(2))


def vendi_score(features_nd: ndarray) -> float:
    """The effective number of different samples: exp of the entropy of the kernel's eigenvalues.

    The kernel is the cosine of feature vectors, over n (Friedman & Dieng 2022; on gradients:
    Prismatic Synthesis, arXiv:2505.20161). The score depends on n: keep n fixed.
    """
    norm = np.linalg.norm(features_nd, axis=1, keepdims=True)
    x = features_nd / np.maximum(norm, 1e-12)
    # Both products have the same nonzero eigenvalues; the smaller one is cheaper.
    gram = x.T @ x if x.shape[1] < x.shape[0] else x @ x.T
    p = np.linalg.eigvalsh(gram / len(x)).clip(0)
    p = p[p > 1e-12] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


# Figures compared with a null


def measure_sample(real: Docs, sample: Docs) -> dict[str, float]:
    """Every figure that needs only the two texts, by its name."""
    kl_lost, kl_drift = divergences(real, sample)
    figures = {
        "coverage_1": coverage(real, sample, 1),
        "coverage_2": coverage(real, sample, 2),
        "unseen_mass": unseen_mass(sample),
        "distinct_1": distinct(sample, 1),
        "distinct_2": distinct(sample, 2),
        "extinct": count_extinct(real, sample),
        "kl_lost": kl_lost,
        "kl_drift": kl_drift,
        "compression": compression_ratio(sample),
        "self_bleu": self_bleu(sample),
        "near_duplicates": (find_near_duplicates(sample) >= 0).mean(),
        "length": sample.lengths.mean(),
    }
    return {name: float(value) for name, value in figures.items()}


@dataclass(frozen=True)
class Comparison:
    """One figure of a sample compared with its null."""

    value: float
    null: float  # mean of the null
    ratio: float  # value over null; NaN where the null is 0
    z: float  # normal deviate


@dataclass(frozen=True)
class Null:
    """The values [K] of each figure on K resamples."""

    values: dict[str, ndarray]

    @classmethod
    def resample(
        cls,
        pool: Docs | ndarray,
        n: int,
        measure: Callable[[Any], dict[str, float]],
        k: int = 7,
        seed: int = 0,
    ) -> "Null":
        """The figures of k resamples of n documents of the pool.

        A pool of row numbers gives `measure` the numbers of the documents it is to measure.
        ValueError for fewer than 7 resamples, or fewer documents than n.
        """
        size = len(pool)
        if k < 7:
            raise ValueError(f"a null takes at least 7 resamples, not {k}")
        rng = np.random.default_rng(seed)
        # Without replacement: repeated documents would look like collapse.
        draws = [rng.choice(size, n, replace=False) for _ in range(k)]
        resamples = [measure(pool.take(rows)) for rows in draws]
        # Subsamples of one pool are more alike than fresh samples of the world: the spread is
        # widened by the known finite-population factor.
        widening = 1 / np.sqrt(max(1 - n / size, 1 / n))
        values = {}
        for name in resamples[0]:
            v = np.array([figures[name] for figures in resamples])
            values[name] = v.mean() + (v - v.mean()) * widening
        return cls(values)

    def compare(self, figures: dict[str, float]) -> dict[str, Comparison]:
        """Compare each figure of a sample that has a null with it."""
        comparisons = {}
        for name, null in self.values.items():
            value = figures[name]
            k = len(null)
            mean = null.mean()
            sd = null.std(ddof=1) * np.sqrt(1 + 1 / k)  # of a new value less the mean
            t = (value - mean) / max(sd, 1e-9 * max(abs(mean), 1e-9))
            ratio = value / mean if mean else float("nan")
            z = normal_deviate(t, k - 1)
            comparisons[name] = Comparison(value, mean, ratio, z)
        return comparisons


def normal_deviate(t: float, df: int) -> float:
    """The normal deviate that is as unlikely as `t` under Student's t, at most 37."""
    if not np.isfinite(t):
        return float("nan")
    tail = max(stats.t.sf(abs(t), df), 1e-300)
    return np.copysign(stats.norm.isf(tail), t)
