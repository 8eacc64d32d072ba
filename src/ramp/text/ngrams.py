"""Baselines that stand beside a model's bits per byte, fitted on the train split and scored on the validation split.

Three families, all in numpy: byte n-grams (orders 1-3), xz (what the validation text adds to the compressed train text)
and interpolated Kneser-Ney over the model's own tokens (orders 1-5), the one that is hard to beat. Every figure is in
bits per byte of validation text, so models with different tokenizers stand on one scale.

Token streams are flat: `bos doc bos doc ...`. A BOS resets the context: it may be the oldest token of a context, no
n-gram looks behind it, and it is never scored itself. Everything is held in memory: about 0.3 kB per train token.
"""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

BYTE_ALPHA = 0.01  # additive smoothing of the byte n-grams; with 16 MB of text it moves the figures by less than 0.1%
XZ_PRESET = 6  # plain `xz`, which looks back 8 MiB; on the default corpus a window over all of it gives 1.82, not 1.92
XZ_SLICE = 64  # compressed bytes fed at a time when looking for the end of the train text: the resolution of `xz_bits`


def baselines(
    train_texts: Sequence[bytes],
    val_texts: Sequence[bytes],
    train_tokens: np.ndarray,
    val_tokens: np.ndarray,
    vocab_size: int,
    bos: int,
    order: int = 5,
) -> dict[str, float]:
    """Bits per byte of the validation text under every baseline: `unigram bigram trigram xz kn1 .. kn{order}`.

    Args:
      train_texts, val_texts: the documents of each split, as bytes.
      train_tokens, val_tokens: the same documents as flat streams `bos doc bos doc ...` of token ids.
      vocab_size: number of ids that can be predicted, 0 .. vocab_size - 1.
      bos: id of the document separator; it may lie above the vocabulary and is not scored.
      order: highest order of the Kneser-Ney models; 0: none.
    """
    n_bytes = sum(map(len, val_texts))
    if n_bytes == 0:
        raise ValueError("the validation texts are empty: bits per byte need at least one byte")
    with ThreadPoolExecutor(1) as pool:  # xz takes longest and releases the interpreter lock
        xz = pool.submit(xz_bits, b"".join(train_texts), b"".join(val_texts))
        names = ("unigram", "bigram", "trigram")
        bits = {
            name: byte_ngram_bits(train_texts, val_texts, k)
            for k, name in enumerate(names, start=1)
        }
        kneser_ney = (
            KneserNey.fit(train_tokens, vocab_size, bos, order).score(val_tokens) if order else ()
        )
        bits["xz"] = xz.result()
    bits |= {f"kn{k}": float(-np.log2(probs).sum()) for k, probs in enumerate(kneser_ney, start=1)}
    return {name: value / n_bytes for name, value in bits.items()}


# ---- bytes ----------------------------------------------------------------------------------------------------------


def byte_ngram_bits(
    train: Sequence[bytes], val: Sequence[bytes], order: int, alpha: float = BYTE_ALPHA
) -> float:
    """Bits that a byte n-gram with additive smoothing spends on `val`: p(b | h) = (c(hb) + a) / (c(h) + 256 a).

    A context is the `order - 1` bytes before, padded at the start of a document with a 257th symbol.
    """
    counts = np.bincount(_byte_keys(train, order), minlength=256 * 257 ** (order - 1))
    totals = counts.reshape(-1, 256).sum(axis=1)
    keys = _byte_keys(val, order)
    probs = (counts[keys] + alpha) / (totals[keys // 256] + 256 * alpha)
    return float(-np.log2(probs).sum())


def _byte_keys(texts: Sequence[bytes], order: int) -> np.ndarray:
    """Index `context * 256 + byte` of every byte of every text; contexts are numbers in base 257, 256 pads."""
    sizes = np.array([len(t) for t in texts], np.int64)
    text = np.frombuffer(b"".join(texts), np.uint8)
    since_start = np.arange(len(text)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    context = np.zeros(len(text), np.int64)
    for back in range(order - 1, 0, -1):
        before = np.where(since_start >= back, np.roll(text, back), np.int64(256))
        context = context * 257 + before
    return context * 256 + text


def xz_bits(train: bytes, val: bytes) -> float:
    """Bits that `val` adds to the xz-compressed `train`: 8 (|xz(train + val)| - |xz(train)|), from one compression.

    The concatenation is compressed once and read back until the end of `train` appears: the compressed bytes left over
    are those that `val` cost. This gives the same figure as two compressions in half the time.
    """
    filters = [{"id": lzma.FILTER_LZMA1, "preset": XZ_PRESET}]
    packed = lzma.compress(train + val, format=lzma.FORMAT_RAW, filters=filters)
    reader = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters)
    read, seen = 0, 0
    while seen < len(train):
        seen += len(reader.decompress(packed[read : read + XZ_SLICE]))
        read += XZ_SLICE
    return 8.0 * max(len(packed) - read, 0)


# ---- tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """One order's share of the interpolation: p(w | h) = kept[hw] / total[h] + backoff[h] * p_lower(w | h').

    Each array ends with the entry of what training never saw, so that the index -1 stands for it.
    """

    kept: np.ndarray  # [n-grams + 1] discounted counts
    total: np.ndarray  # [contexts + 1] counts before the discount; 1 where there are none
    backoff: (
        np.ndarray
    )  # [contexts + 1] the mass that the discount freed; 1 where there are no counts

    @classmethod
    def of(cls, counts: np.ndarray, context: np.ndarray, n_contexts: int) -> "Level":
        """From the count and the context number of each n-gram, both [n-grams]."""
        discount = _discount(counts)
        total = np.bincount(context, weights=counts, minlength=n_contexts + 1)
        freed = discount * np.bincount(context[counts > 0], minlength=n_contexts + 1)
        seen = total > 0
        total = np.where(seen, total, 1.0)
        return cls(
            np.append(np.maximum(counts - discount, 0.0), 0.0),
            total,
            np.where(seen, freed / total, 1.0),
        )

    def interpolate(self, gram: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities [N] of the n-grams numbered `gram` in contexts numbered `context`, given the lower order's."""
        return self.kept[gram] / self.total[context] + self.backoff[context] * lower


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2) (Ney, Essen & Kneser 1994), with pseudo-counts that keep it inside (0, 1) on any data."""
    n1, n2 = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return (n1 + 1) / (n1 + 2 * n2 + 2)


@dataclass(frozen=True)
class KneserNey:
    """Interpolated Kneser-Ney models of orders 1 .. n over one token stream (Chen & Goodman 1999, section 3).

    The highest order of each model counts occurrences, the lower ones count distinct left neighbours (an n-gram that
    begins with BOS has none, so it keeps its occurrences). Order 1 is interpolated with the uniform distribution, a
    context never seen in training passes to the next lower order whole: every distribution sums to 1. One discount per
    order; the three of the "modified" variant gain 0.3% on the default corpus and are undefined on little data.
    """

    vocab_size: int
    bos: int
    grams: tuple[
        np.ndarray, ...
    ]  # per order: sorted keys `context number * base + token` of its n-grams
    highest: tuple[Level, ...]
    lower: tuple[Level, ...]  # one fewer: the highest order is never a lower one

    @classmethod
    def fit(cls, tokens: np.ndarray, vocab_size: int, bos: int, order: int = 5) -> "KneserNey":
        """Count `tokens` (flat, `bos doc bos doc ...`) into models of orders 1 .. `order`."""
        tokens, since_bos = _stream(tokens, vocab_size, bos)
        base = max(vocab_size, bos + 1)
        number, n_grams = (
            tokens,
            base,
        )  # of the k-gram that ends at each position; 1-grams are numbered by their token
        keys, context, n_contexts = np.arange(base), np.zeros(base, np.int64), 1
        raw = np.bincount(tokens[since_bos > 0], minlength=base)
        from_bos = keys == bos
        grams, highest, lower = [keys], [Level.of(raw, context, n_contexts)], []
        for k in range(2, order + 1):
            at = np.flatnonzero(since_bos >= k - 1)
            pairs = number[at - 1] * base + tokens[at]
            keys, first, inverse, count = np.unique(
                pairs, return_index=True, return_inverse=True, return_counts=True
            )
            left_neighbours = np.bincount(number[at[first]], minlength=n_grams)
            lower.append(Level.of(np.where(from_bos, raw, left_neighbours), context, n_contexts))
            context, n_contexts, n_grams, raw = keys // base, n_grams, len(keys), count
            from_bos = since_bos[at[first]] == k - 1
            number = np.full_like(tokens, -1)
            number[at] = inverse
            grams.append(keys)
            highest.append(Level.of(raw, context, n_contexts))
        return cls(vocab_size, bos, tuple(grams), tuple(highest), tuple(lower))

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """Probabilities [order, N] that the models of orders 1 .. n give to the N tokens that are not BOS."""
        tokens, since_bos = _stream(tokens, self.vocab_size, self.bos)
        base = max(self.vocab_size, self.bos + 1)
        below = np.full(len(tokens), 1.0 / self.vocab_size)
        number, rows = np.zeros_like(tokens), []
        for k, keys in enumerate(self.grams, start=1):
            at = np.flatnonzero(since_bos >= k - 1)
            context = number[at - 1] if k > 1 else number[at]
            gram = _find(keys, np.where(context >= 0, context * base + tokens[at], -1))
            probs = (
                below.copy()
            )  # a token nearer to BOS than the order reaches has its longest context already
            probs[at] = self.highest[k - 1].interpolate(gram, context, below[at])
            rows.append(probs[since_bos > 0])
            if k <= len(self.lower):
                below[at] = self.lower[k - 1].interpolate(gram, context, below[at])
            number = np.full_like(tokens, -1)
            number[at] = gram
        return np.stack(rows)


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each wanted key in the sorted `keys`, -1 where it is absent."""
    if len(keys) == 0:
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _stream(tokens: np.ndarray, vocab_size: int, bos: int) -> tuple[np.ndarray, np.ndarray]:
    """The stream as int64 [T] and the distance [T] of each token from the BOS of its document (0 at the BOS)."""
    tokens = np.asarray(tokens, np.int64)
    is_bos = tokens == bos
    if len(tokens) == 0 or not is_bos[0]:
        raise ValueError("a token stream begins with BOS: bos doc bos doc ...")
    if np.any((tokens < 0) | ((tokens >= vocab_size) & ~is_bos)):
        raise ValueError(f"a token lies outside the vocabulary of {vocab_size}")
    position = np.arange(len(tokens))
    return tokens, position - np.maximum.accumulate(np.where(is_bos, position, 0))
