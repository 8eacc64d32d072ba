"""Measures ACROSS samples: each sample may look fine while the distribution is gone. Plain arrays in, figures out.

A sample set is a `Docs`: token ids, flat, with lengths. Every figure is taken at one fixed number of samples, beside a
null: the same figure on resamples of real text of the same size. It is reported as a ratio to real and as z, the normal
deviate with the tail probability of a t-test against the K resamples (K-1 degrees of freedom), so that 4 means 4.

Coverage is always read together with drift: an entropy that rises is no virtue where it leaves the real text behind.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import rensa
from scipy import stats

RARE = 5  # a token that real text has this many times or fewer is of the tail
CELLS = 2**16  # most places of the hash table that bigrams are counted in for divergences
SHINGLE, PERMS, BAND = (
    3,
    60,
    5,
)  # near-duplicates: 3-grams, 12 bands of 5 rows: 99% of pairs at .8, 3% of those at .3


@dataclass(frozen=True)
class Docs:
    """Documents as token ids: `flat`, [N] in order, and their `lengths`."""

    flat: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, docs: Sequence[Sequence[int]]) -> "Docs":
        lengths = np.array([len(d) for d in docs], np.int64)
        flat = (
            np.concatenate([np.asarray(d, np.int64) for d in docs])
            if len(docs)
            else np.empty(0, np.int64)
        )
        return cls(flat.astype(np.int64), lengths)

    @classmethod
    def concatenate(cls, parts: Sequence["Docs"]) -> "Docs":
        return cls(
            np.concatenate([p.flat for p in parts]), np.concatenate([p.lengths for p in parts])
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def owner(self) -> np.ndarray:
        """Which document each token is of."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: np.ndarray) -> "Docs":
        rows = np.asarray(rows, np.int64)
        lengths = self.lengths[rows]
        at = np.repeat(self.starts[rows] - (np.cumsum(lengths) - lengths), lengths) + np.arange(
            lengths.sum()
        )
        return Docs(self.flat[at], lengths)

    def list(self) -> list[np.ndarray]:
        return np.split(self.flat, self.starts[1:]) if len(self) else []

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(hash of each n-gram inside a document, uint64; which document it is of)."""
        if n == 1:
            return self.flat.astype(np.uint64), self.owner
        ends = max(len(self.flat) - n + 1, 0)
        key = np.zeros(ends, np.uint64)
        for i in range(n):
            key = mix(key + self.flat[i : i + ends].astype(np.uint64) + np.uint64(1))
        inside = self.owner[:ends] == self.owner[n - 1 :] if ends else np.zeros(0, bool)
        return key[inside], self.owner[:ends][inside]

    @cached_property
    def types(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """For n = 1, 2: sorted hashes of the n-grams and how often each occurs."""
        return {n: np.unique(self.grams(n)[0], return_counts=True) for n in (1, 2)}


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ---------------------------------------------------------------------------------------------------- coverage, drift
def coverage(real: Docs, sample: Docs, n: int) -> float:
    """Share of the n-gram types of held-out real text that the sample has."""
    types = real.types[n][0]
    return (
        float(np.isin(types, sample.types[n][0], assume_unique=True).mean())
        if len(types)
        else float("nan")
    )


def unseen_mass(sample: Docs, n: int = 2) -> float:
    """Good-Turing: the share of n-grams that occur once estimates the mass of those that never did. It falls with collapse."""
    counts = sample.types[n][1]
    return float((counts == 1).sum() / max(counts.sum(), 1))


def distinct(sample: Docs, n: int) -> float:
    """Types per occurrence of n-grams."""
    counts = sample.types[n][1]
    return float(len(counts) / max(counts.sum(), 1))


def extinct(real: Docs, sample: Docs, least: int = 5) -> int:
    """Tokens that real text has `least` times or more and the sample never: as long a one misses e^-5 of those by chance."""
    types, counts = real.types[1]
    return int((~np.isin(types[counts >= least], sample.types[1][0], assume_unique=True)).sum())


def divergences(real: Docs, sample: Docs) -> tuple[float, float]:
    """(KL(real || sample), KL(sample || real)), bits, of hashed bigrams with 1/2 added to every cell.

    The first is coverage lost, the second what the sample makes up. As many cells as a quarter of the shorter text, 2^16
    at most, so that the halves added do not drown the counts.
    """
    n = max(min(docs.types[2][1].sum() for docs in (real, sample)) // 4, 1)
    cells = min(2 ** int(np.log2(n)), CELLS)
    p, q = (_cells(docs, cells) for docs in (real, sample))
    return float(np.sum(p * np.log2(p / q))), float(np.sum(q * np.log2(q / p)))


def _cells(docs: Docs, cells: int) -> np.ndarray:
    types, counts = docs.types[2]
    found = np.bincount((types & np.uint64(cells - 1)).astype(np.int64), counts, cells) + 0.5
    return found / found.sum()


# ---------------------------------------------------------------------------------------------------- redundancy
def compression(sample: Docs) -> float:
    """Bytes before and after zlib of the token ids, four bytes a token: more is more repetitive."""
    data = sample.flat.astype("<u4").tobytes()
    return len(data) / max(len(zlib.compress(data, 1)), 1)


def self_bleu(sample: Docs, most: int = 100, n: int = 4) -> float:
    """Mean BLEU-4 of each of the first `most` documents against the others (Zhu et al. 2018), in closed form.

    A gram's clip is its largest count in any other document: the largest of all, or the second for who holds it. Counts
    that are 0 become 1/2 (as NLTK's method 1 does in spirit), so that a short document does not vanish.
    """
    docs = sample.take(np.arange(min(most, len(sample))))
    logs, lengths = np.zeros(len(docs)), docs.lengths
    if len(docs) < 2:
        return float("nan")
    for k in range(1, n + 1):
        key, owner = docs.grams(k)
        pair, count = np.unique(
            np.stack([key, owner.astype(np.uint64)]), axis=1, return_counts=True
        )
        order = np.lexsort((-count, pair[0]))
        gram, holder, count = pair[0][order], pair[1][order].astype(int), count[order]
        head = np.r_[True, gram[1:] != gram[:-1]] if len(gram) else np.zeros(0, bool)
        group = np.cumsum(head) - 1
        first = np.flatnonzero(head)
        second = np.where(
            np.r_[first[1:], len(gram)] - first > 1, count[np.minimum(first + 1, len(gram) - 1)], 0
        )
        others = np.where(head, second[group], count[first][group])
        hits = np.bincount(holder, np.minimum(count, others), len(docs))
        total = np.bincount(holder, count, len(docs))
        logs += np.log(np.maximum(hits, 0.5) / np.maximum(total, 1)) / n
    gap = np.abs(lengths[:, None] - lengths[None]) + np.where(np.eye(len(docs)), 1e9, 0)
    closest = lengths[np.argmin(gap, axis=1)]
    short = np.minimum(0, 1 - closest / np.maximum(lengths, 1))
    return float(np.exp(logs + short).mean())


def near_duplicates(sample: Docs, threshold: float = 0.8) -> np.ndarray:
    """[N]: an earlier document that this one nearly repeats (Jaccard of 3-gram sets, by MinHash), or -1."""
    n = len(sample)
    found = np.full(n, -1)
    if n < 2:
        return found
    key, owner = sample.grams(SHINGLE)
    word, of = sample.grams(1)
    short = sample.lengths[of] < SHINGLE  # too short for a 3-gram: its tokens stand for it
    key, owner = np.concatenate([key, word[short]]), np.concatenate([owner, of[short]])
    order = np.argsort(owner, kind="stable")
    key, owner = key[order], owner[order]
    offsets = np.searchsorted(owner, np.arange(n + 1)).astype(np.uint64)
    digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(key), offsets, PERMS, 42
    )
    digest = np.array(digests.to_rows(), np.uint64)
    for band in range(0, PERMS, BAND):
        code = np.zeros(n, np.uint64)
        for column in range(band, band + BAND):
            code = mix(code + digest[:, column] + np.uint64(1))
        _, first, group = np.unique(
            code, return_index=True, return_inverse=True
        )  # the first: the earliest document
        earlier = first[group]
        ask = (earlier < np.arange(n)) & (found < 0)
        alike = (digest[ask] == digest[earlier[ask]]).mean(axis=1) >= threshold
        found[np.flatnonzero(ask)[alike]] = earlier[ask][alike]
    return found


# ---------------------------------------------------------------------------------------------------- surprisal
def shift(real: np.ndarray, sample: np.ndarray) -> dict[str, float]:
    """Surprisals (bits per token of a document under the frozen first model), sample against real.

    w1: distance between the two quantile functions (Wasserstein-1); left and right: the parts of it where the sample is
    less surprising than real text (collapse) and more (a language of its own).
    """
    at = (np.arange(200) + 0.5) / 200
    gap = np.quantile(sample, at) - np.quantile(real, at)
    return {
        "w1": float(np.abs(gap).mean()),
        "left": float(-gap.clip(max=0).mean()),
        "right": float(gap.clip(0).mean()),
    }


def tail_bits(bits_n: np.ndarray, real_count_n: np.ndarray) -> float:
    """Mean bits of the held-out tokens that the real training text has `RARE` times or fewer; nan if there are none."""
    tail = bits_n[real_count_n <= RARE]
    return float(tail.mean()) if len(tail) else float("nan")


def hard_documents(first_bits_d: np.ndarray, bits_d: np.ndarray) -> float:
    """Mean bits per token now of the documents in the top decile of surprisal under the first model."""
    return float(bits_d[first_bits_d >= np.quantile(first_bits_d, 0.9)].mean())


def cross_information(alone_b: np.ndarray, beside_b: np.ndarray, tokens_b: np.ndarray) -> float:
    """The chapter-x10 test: bits a token that one sample tells about another for the same prompt.

    alone_b, beside_b: log-probabilities (nats) of a sample given its prompt, and given the prompt and another sample. 0:
    ten samples are ten thoughts; much: the tenth is in the first.
    """
    return float((beside_b - alone_b).sum() / max(tokens_b.sum(), 1) / np.log(2))


def vendi(features_nd: np.ndarray) -> float:
    """The effective number of different samples: exp of the entropy of the eigenvalues of the cosine kernel / n
    (Friedman & Dieng 2022; on gradients: Prismatic Synthesis, arXiv:2505.20161). It depends on n: keep n fixed."""
    x = features_nd / np.maximum(np.linalg.norm(features_nd, axis=1, keepdims=True), 1e-12)
    gram = x.T @ x if x.shape[1] < x.shape[0] else x @ x.T
    p = np.linalg.eigvalsh(gram / len(x)).clip(0)
    p = p[p > 1e-12] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


# ---------------------------------------------------------------------------------------------------- known support
def words(texts: Sequence[str]) -> tuple[list[list[int]], int, list[int]]:
    """(documents as word ids, vocabulary with the end, bytes of each document): words keep the space before them."""
    ids: dict[str, int] = {}
    docs = [
        [ids.setdefault(w, len(ids)) for w in re.findall(r"\s?\w+|\s?[^\w\s]|\s", text)]
        for text in texts
    ]
    return docs, len(ids) + 1, [len(t.encode()) for t in texts]


def recognize(docs: Sequence[Sequence[int]], known: Sequence[Sequence[int]]) -> list[int]:
    """Of each document the known one that it shares most 4-grams with, if those are half of its own; else -1."""
    of: dict[tuple, set[int]] = {}
    for i, doc in enumerate(known):
        for k in range(len(doc) - 3):
            of.setdefault(tuple(doc[k : k + 4]), set()).add(i)
    found = []
    for doc in docs:
        hits = Counter(i for k in range(len(doc) - 3) for i in of.get(tuple(doc[k : k + 4]), ()))
        best, count = hits.most_common(1)[0] if hits else (-1, 0)
        found.append(best if count * 2 >= max(len(doc) - 3, 1) else -1)
    return found


def modes(seen: Sequence[int], tail: Sequence[int] = ()) -> dict[str, float]:
    """Counts over recognised modes (-1: not recognised): distinct, Chao1, entropy, effective number, tail recall.

    Chao1 (1984), bias-corrected: distinct + f1 (f1-1) / (2 (f2+1)). Entropy in bits after Chao & Shen (2003): each mode's
    frequency is deflated by the coverage 1 - f1/n and its term inflated by the chance of having been seen at all.
    """
    seen = np.asarray(seen, np.int64)
    known = seen[seen >= 0]
    _, counts = np.unique(known, return_counts=True)
    n, f1, f2 = counts.sum(), (counts == 1).sum(), (counts == 2).sum()
    if not n:
        return {
            "distinct": 0.0,
            "chao1": 0.0,
            "entropy": 0.0,
            "effective": 0.0,
            "recognised": 0.0,
            "tail_recall": 0.0,
        }
    cover = 1 - f1 / n if f1 < n else 1 / n
    p = cover * counts / n
    entropy = -(p * np.log2(p) / (1 - (1 - p) ** n)).sum()
    recall = len(np.intersect1d(known, tail)) / len(tail) if len(tail) else float("nan")
    return {
        "distinct": float(len(counts)),
        "chao1": float(len(counts) + f1 * (f1 - 1) / (2 * (f2 + 1))),
        "entropy": float(entropy),
        "effective": float(1 / ((counts / n) ** 2).sum()),
        "recognised": float(len(known) / max(len(seen), 1)),
        "tail_recall": float(recall),
    }


# ---------------------------------------------------------------------------------------------------- beside a null
def panel(real: Docs, sample: Docs) -> dict[str, float]:
    """Every figure that needs the two texts alone."""
    lost, made_up = divergences(real, sample)
    return {
        "coverage_1": coverage(real, sample, 1),
        "coverage_2": coverage(real, sample, 2),
        "unseen_mass": unseen_mass(sample),
        "distinct_1": distinct(sample, 1),
        "distinct_2": distinct(sample, 2),
        "extinct": float(extinct(real, sample)),
        "kl_lost": lost,
        "kl_drift": made_up,
        "compression": compression(sample),
        "self_bleu": self_bleu(sample),
        "near_duplicates": float((near_duplicates(sample) >= 0).mean()),
        "length": float(sample.lengths.mean()),
    }


@dataclass(frozen=True)
class Null:
    """K values of each figure on resamples."""

    values: dict[str, np.ndarray]

    @classmethod
    def draw(
        cls,
        pool: Docs,
        n: int,
        figures: Callable[[Docs], dict[str, float]],
        k: int = 7,
        seed: int = 0,
    ) -> "Null":
        """`figures` of k resamples of n documents, without replacement: repeats would be taken for collapse."""
        return cls.resampled(len(pool), n, lambda rows: figures(pool.take(rows)), k, seed)

    @classmethod
    def resampled(
        cls,
        size: int,
        n: int,
        figures: Callable[[np.ndarray], dict[str, float]],
        k: int = 7,
        seed: int = 0,
    ) -> "Null":
        """The same, of figures that want the numbers of the documents, n out of `size`.

        Subsamples of one pool are more alike than fresh samples of the world: their spread is widened by what is known
        exactly, the share n / size. ValueError for fewer than 7 resamples or documents than n.
        """
        if k < 7:
            raise ValueError(f"a null takes at least 7 resamples, not {k}")
        if n > size:
            raise ValueError(f"{n} documents cannot be drawn from {size}")
        rng = np.random.default_rng(seed)
        found = [figures(rng.choice(size, n, replace=False)) for _ in range(k)]
        values = {name: np.array([row[name] for row in found]) for name in found[0]}
        wide = 1 / np.sqrt(max(1 - n / size, 1 / n))
        return cls({name: v.mean() + (v - v.mean()) * wide for name, v in values.items()})

    def against(self, found: dict[str, float]) -> dict[str, dict[str, float]]:
        """By figure: its value, the mean of the null, the ratio of the two, z."""
        out = {}
        for name, x in found.items():
            v = self.values[name]
            mean, sd, k = float(v.mean()), float(v.std(ddof=1)), len(v)
            t = (x - mean) / max(sd * np.sqrt(1 + 1 / k), 1e-9 * max(abs(mean), 1e-9))
            ratio = x / mean if mean else float("nan")
            out[name] = {
                "value": float(x),
                "null": mean,
                "ratio": ratio,
                "z": normal_deviate(t, k - 1),
            }
        return out


def normal_deviate(t: float, df: int) -> float:
    """The normal deviate as unlikely as `t` under Student's t; at most 37."""
    if not np.isfinite(t):
        return float("nan")
    return float(np.copysign(stats.norm.isf(max(stats.t.sf(abs(t), df), 1e-300)), t))
