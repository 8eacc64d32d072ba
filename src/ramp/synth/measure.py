"""Measures over a set of samples: each sample may look fine while the distribution is gone.

Plain arrays in, figures out, no jax. A set of samples is a `Docs`: token ids, flat, with lengths.
Every figure is taken at one fixed number of samples and compared with a null: the same figure on
resamples of real text of the same size. It is reported as a ratio to the null and as z, the normal
deviate with the tail probability of a t-test against the K resamples (K-1 degrees of freedom).

Read coverage together with divergence: an entropy that rises by leaving real text is no virtue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy import ndarray
from scipy import stats

from ramp.synth.docs import Docs, is_member, sort_unique
from ramp.synth.similar import count_holders, find_near_duplicates

MAX_RARE_COUNT = 5  # a token that real text has this many times or fewer is in the tail
PHRASE = 4  # tokens
NUM_PARTS = 3  # of a stretch of text, of which the first and the last are compared
MAX_CELLS = 2**16  # largest hash table in which bigrams are counted for divergences

# A figure that counts things can differ by one of them by chance, even where no resample has any.
COUNTED = ("near_duplicates", "extinct")


# Coverage and divergence


def coverage(real: Docs, sample: Docs, n: int) -> float:
    """Fraction of the n-gram types of held-out real text that occur in the sample."""
    types, _ = real.ngram_counts[n]
    if not len(types):
        return float("nan")
    return np.isin(types, sample.ngram_counts[n][0], assume_unique=True).mean()


def known_share(real: Docs, sample: Docs, n: int) -> float:
    """Share of the n-grams of the sample, as often as they occur, that real text has too."""
    types, counts = sample.ngram_counts[n]
    if not len(counts):
        return float("nan")
    return counts[is_member(types, real.ngram_counts[n][0])].sum() / counts.sum()


def recurrence(real: Docs, sample: Docs) -> float:
    """Share of the uncommon tokens of the sample that their own document has had before.

    A text keeps to its subject; one that is written word after word from short phrases does not.
    Uncommon: less than a thousandth of real text.
    """
    is_rare = ~is_member(sample.flat.astype(np.uint64), find_common_tokens(real))
    token, owner = sample.flat[is_rare], sample.owner[is_rare]
    if not len(token):
        return float("nan")
    different = sort_unique(token * len(sample) + owner)
    return 1 - len(different) / len(token)


def rare_share(real: Docs, sample: Docs) -> float:
    """Share of the tokens of the sample that real text has `MAX_RARE_COUNT` times or fewer."""
    if not len(sample.flat):
        return float("nan")
    types, counts = real.ngram_counts[1]
    usual = types[counts > MAX_RARE_COUNT]
    return 1 - is_member(sample.flat.astype(np.uint64), usual).mean()


def order_gain(real: Docs, sample: Docs, seed: int = 0) -> float:
    """By how much more of its bigrams real text knows than of its own tokens in another order.

    Each document is its own control, so that rare words do not hide the order. 0: no order is left.
    """
    mixed = np.random.default_rng(seed).random(len(sample.flat)) + sample.owner
    shuffled = Docs(sample.flat[np.argsort(mixed)], sample.lengths)
    return known_share(real, sample, 2) - known_share(real, shuffled, 2)


def phrase_excess(real: Docs, sample: Docs) -> float:
    """The most by which more documents of the sample than of real text hold a phrase.

    A phrase is a 4-gram that at least three documents, and a hundredth of them, hold. A sentence
    that all samples begin with gives 1.
    """
    often, excess = list_phrases(real, sample, max(3, len(sample) / 100))
    return float(excess.max()) if len(often) else 0.0


def list_phrases(real: Docs, sample: Docs, least: float) -> tuple[ndarray, ndarray]:
    """(the phrases that so many documents of the sample hold, by how many more than of real text).

    As hashes, sorted, and as shares of the documents.
    """
    key, count = count_holders(*sample.hash_ngrams(PHRASE))
    often, share = key[count >= least], count[count >= least] / max(len(sample), 1)
    grams, holders = real.hash_ngrams(PHRASE)
    is_often = is_member(grams, often)
    held, count = count_holders(grams[is_often], holders[is_often])
    share[np.searchsorted(often, held)] -= count / max(len(real), 1)
    return often, share


def seam_share(docs: Docs, number: int, common: ndarray) -> tuple[float, float]:
    """(share of the uncommon tokens that come again across a seam, its standard error).

    Of each document a stretch as long as one of `number` texts in it is taken, about where the
    first would end. Counted is what its last third shares with its first, beyond other documents:
    of texts put together nothing, while one text takes up its words there as anywhere. For a
    `number` of 1 the stretch is the document.
    """
    span = docs.lengths // number
    stretch = docs.cut((span - span // 2) * (number > 1), span)
    size = span // NUM_PARTS
    first, last = (
        _list_uncommon(stretch.cut(start, size), common) for start in (0 * size, span - size)
    )
    shared, total = _count_shared(first, last, len(docs))
    share = shared / max(total.mean(), 1e-9)
    return float(share.mean()), float(share.std() / np.sqrt(len(docs)))


def find_ngrams(docs: Docs, n: int) -> ndarray:
    """The place in `flat` where each n-gram begins, in the order of `Docs.hash_ngrams`."""
    ends = (docs.starts + docs.lengths)[docs.owner]
    return np.flatnonzero(np.arange(len(docs.flat)) + n <= ends)


def find_common_tokens(real: Docs) -> ndarray:
    """The tokens that make up a thousandth of real text or more, sorted."""
    types, counts = real.ngram_counts[1]
    return types[counts >= counts.sum() / 1000]


def _list_uncommon(docs: Docs, common):
    """(the uncommon tokens of the documents, each once a document; the document of each)."""
    is_rare = ~is_member(docs.flat.astype(np.uint64), common)
    key = sort_unique(docs.flat[is_rare] * len(docs) + docs.owner[is_rare])
    return key // len(docs), key % len(docs)


def _count_shared(part, other, size):
    """[D] each: (tokens of `other` that `part` has, less those of other documents; all tokens)."""
    known = part[0] * size + part[1]
    token, owner = other
    own = is_member(token * size + owner, known)
    # Of one document alone there is no other.
    others = range(1, min(11, max(size, 2)))
    strange = [is_member(token * size + (owner + k) % size, known) for k in others]
    return (
        np.bincount(owner, own - np.mean(strange, axis=0), size),
        np.bincount(owner, minlength=size),
    )


def unseen_mass(sample: Docs, n: int = 2) -> float:
    """Estimated probability of the n-grams that never occurred (Good-Turing): those seen once.

    It falls with collapse.
    """
    _, counts = sample.ngram_counts[n]
    return (counts == 1).sum() / counts.sum() if len(counts) else float("nan")


def distinct(sample: Docs, n: int) -> float:
    """Different n-grams per occurrence."""
    _, counts = sample.ngram_counts[n]
    return len(counts) / counts.sum() if len(counts) else float("nan")


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

    The first is coverage that was lost, the second what the sample makes up; NaN without bigrams.
    """
    # A quarter as many cells as bigrams, so that the halves do not drown the counts.
    fewest = min(docs.ngram_counts[2][1].sum() for docs in (real, sample))
    if not fewest:
        return float("nan"), float("nan")
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
    """Bytes before and after Zstandard of the token ids: more is more repetitive.

    A repetition is seen over the last 2 MB, about a million tokens.
    """
    if not len(sample.flat):
        return float("nan")
    # Numbered anew by frequency: the figure must not depend on how large the ids are.
    _, rank, counts = np.unique(sample.flat, return_inverse=True, return_counts=True)
    place = np.argsort(np.argsort(-counts, kind="stable"))
    data = place[rank].astype("<u2" if len(counts) <= 2**16 else "<u4").tobytes()
    return len(data) / pa.Codec("zstd", compression_level=3).compress(data).size


def self_bleu(sample: Docs) -> float:
    """Mean BLEU-4 of each document against all others (Zhu et al. 2018); NaN for fewer than two.

    A count of 0 becomes 1/2, in the spirit of NLTK's method 1, so that short documents count too.
    """
    if len(sample) < 2 or not len(sample.flat):
        return float("nan")
    log_precision = np.zeros(len(sample))
    for k in range(1, 5):
        hits, total = count_matches(sample, k)
        log_precision += np.log(np.maximum(hits, 0.5) / np.maximum(total, 1)) / 4
    # The brevity penalty compares with the other document closest in length, the shorter of two.
    order = np.argsort(sample.lengths, kind="stable")
    sizes = np.concatenate([[-np.inf], sample.lengths[order], [np.inf]])
    shorter, own, longer = sizes[:-2], sizes[1:-1], sizes[2:]
    closest = np.empty(len(sample))
    closest[order] = np.where(own - shorter <= longer - own, shorter, longer)
    brevity = np.minimum(0, 1 - closest / np.maximum(sample.lengths, 1))
    return np.exp(log_precision + brevity).mean()


def count_matches(sample: Docs, k: int) -> tuple[ndarray, ndarray]:
    """Of each document: its k-grams that some other document has as often, and all of its k-grams.

    A k-gram matches as often as it occurs in the one other document that has it most.
    """
    size = len(sample)
    key, owner = sample.hash_ngrams(k)
    if not len(key):
        return np.zeros(size), np.zeros(size)
    _, gram = np.unique(key, return_inverse=True)
    # Sorted by k-gram, then by document.
    pair, count = np.unique(gram * size + owner, return_counts=True)
    gram, owner = pair // size, pair % size
    begins = np.flatnonzero(np.diff(gram, prepend=-1))
    # The two largest counts of each k-gram.
    first = np.maximum.reduceat(count, begins)
    is_first = count == first[gram]
    num_first = np.add.reduceat(is_first, begins, dtype=np.int64)
    below = np.maximum.reduceat(np.where(is_first, 0, count), begins)
    second = np.where(num_first > 1, first, below)
    hits = np.minimum(count, np.where(is_first, second[gram], first[gram]))
    return np.bincount(owner, hits, size), np.bincount(owner, count, size)


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


def measure_panel(real: Docs, sample: Docs) -> dict[str, float]:
    """The figures that a null of resamples is made of, by name; NaN where there is too little."""
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
    }
    return {name: float(value) for name, value in figures.items()}


def measure_sample(real: Docs, sample: Docs) -> dict[str, float]:
    """Every figure that needs only the two texts, by its name."""
    figures = measure_panel(real, sample)
    figures["near_duplicates"] = float((find_near_duplicates(sample) >= 0).mean())
    figures["length"] = float(sample.lengths.mean())
    return figures


@dataclass(frozen=True)
class Comparison:
    """One figure of a sample compared with its null."""

    value: float
    null: float  # mean of the null
    ratio: float  # value over null; NaN where the null is 0
    z: float  # normal deviate


MOST_OF_POOL = 0.9  # in a resample: of the whole pool each would be the same


@dataclass(frozen=True)
class Null:
    """The values [K] of each figure on K resamples of n documents."""

    values: dict[str, ndarray]
    n: int

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
        ValueError for fewer than 7 resamples, or where n is nearly all of the pool.
        """
        size = len(pool)
        if k < 7:
            raise ValueError(f"a null takes at least 7 resamples, not {k}")
        if n > MOST_OF_POOL * size:
            raise ValueError(f"resamples of {n} of {size} documents are all alike; give more")
        rng = np.random.default_rng(seed)
        # Without replacement: repeated documents would look like collapse.
        draws = [rng.choice(size, n, replace=False) for _ in range(k)]
        resamples = [measure(pool.take(rows)) for rows in draws]
        values = {}
        for name in resamples[0]:
            v = np.array([figures[name] for figures in resamples])
            values[name] = v.mean() + (v - v.mean()) * widen(n / size)
        return cls(values, n)

    def compare(self, figures: dict[str, float]) -> dict[str, Comparison]:
        """Compare each figure of a sample that has a null with it."""
        comparisons = {}
        for name, null in self.values.items():
            value = figures[name]
            k = len(null)
            mean = null.mean()
            spread = null.std(ddof=1)
            if name in COUNTED:
                # As a Poisson count has that was expected once more than it was seen.
                one = 1.0 if name == "extinct" else 1 / self.n
                spread = max(spread, np.sqrt(one * (mean + one)))
            sd = spread * np.sqrt(1 + 1 / k)  # of a new value less the mean
            t = (value - mean) / max(sd, 1e-9 * max(abs(mean), 1e-9))
            ratio = value / mean if mean else float("nan")
            z = normal_deviate(t, k - 1)
            comparisons[name] = Comparison(value, mean, ratio, z)
        return comparisons


def widen(fraction: float) -> float:
    """How much wider than resamples of this fraction of a pool fresh samples of the world spread.

    Resamples without replacement are more alike by 1 - f of the variance, and the pool itself is
    a sample: of a mean over n, a fresh one differs from the pool's by 1 + f. At most 1,000.
    """
    return np.sqrt((1 + fraction) / max(1 - fraction, 2e-6))


def normal_deviate(t: float, df: int) -> float:
    """The normal deviate that is as unlikely as `t` under Student's t, at most 37."""
    if not np.isfinite(t):
        return float("nan")
    tail = max(stats.t.sf(abs(t), df), 1e-300)
    return np.copysign(stats.norm.isf(tail), t)
