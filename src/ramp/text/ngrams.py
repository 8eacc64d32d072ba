"""Baselines to compare a model's bits per byte with: n-grams of bytes, xz, and Kneser-Ney.

They are fitted on the train split and scored on the validation split, all in numpy: byte n-grams
(orders 1-3), xz (what the validation text adds to the compressed train text) and interpolated
Kneser-Ney over the model's own tokens (orders 1-5), the one that is hard to beat. Every figure is
in bits per byte of validation text, so models with different tokenizers are on one scale.

Token streams are flat: `bos doc bos doc ...`. A BOS resets the context: it may be the oldest token
of a context, no n-gram looks behind it, and it is never scored itself. Everything is held in
memory, about 0.3 kB per train token: whoever calls bounds the tokens.
"""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

# Additive smoothing of the byte n-grams; with 16 MB of text it moves the figures by less than 0.1%.
BYTE_ALPHA = 0.01
# Plain `xz`, which looks back 8 MiB. On the default corpus a window over all of it gives 1.82
# bits per byte, not 1.92.
XZ_PRESET = 6
# Compressed bytes fed at a time when looking for the end of the train text: the resolution of
# `xz_bits`.
XZ_SLICE = 64


def baselines(
    train_texts: Sequence[bytes],
    val_texts: Sequence[bytes],
    train_tokens: np.ndarray,
    val_tokens: np.ndarray,
    vocab_size: int,
    bos: int,
    order: int = 5,
) -> dict[str, float]:
    """Bits per byte of the validation text by baseline: unigram bigram trigram xz kn1 .. kn{order}.

    Args:
      train_texts, val_texts: the documents of each split, as bytes.
      train_tokens, val_tokens: the same documents as flat streams `bos doc bos doc ...` of ids.
      vocab_size: number of ids that can be predicted, 0 .. vocab_size - 1.
      bos: id of the document separator; it may lie above the vocabulary and is not scored.
      order: highest order of the Kneser-Ney models; 0: none.
    """
    num_bytes = sum(map(len, val_texts))
    if num_bytes == 0:
        raise ValueError("the validation texts are empty: bits per byte need at least one byte")
    bits = {}
    with ThreadPoolExecutor(1) as pool:  # xz takes longest and releases the interpreter lock
        xz = pool.submit(xz_bits, b"".join(train_texts), b"".join(val_texts))
        for k, name in enumerate(("unigram", "bigram", "trigram"), start=1):
            bits[name] = byte_ngram_bits(train_texts, val_texts, k)
        kneser_ney = ()
        if order:
            kneser_ney = KneserNey.fit(train_tokens, vocab_size, bos, order).score(val_tokens)
        bits["xz"] = xz.result()
    for k, probs in enumerate(kneser_ney, start=1):
        bits[f"kn{k}"] = float(-np.log2(probs).sum())
    return {name: value / num_bytes for name, value in bits.items()}


# --- bytes


def byte_ngram_bits(
    train: Sequence[bytes], val: Sequence[bytes], order: int, alpha: float = BYTE_ALPHA
) -> float:
    """Bits that a byte n-gram spends on `val`: p(b | h) = (c(hb) + alpha) / (c(h) + 256 alpha).

    A context is the `order - 1` bytes before, padded at the start of a document with a 257th
    symbol.
    """
    counts = np.bincount(_byte_keys(train, order), minlength=256 * 257 ** (order - 1))
    totals = counts.reshape(-1, 256).sum(axis=1)
    keys = _byte_keys(val, order)
    probs = (counts[keys] + alpha) / (totals[keys // 256] + 256 * alpha)
    return float(-np.log2(probs).sum())


def _byte_keys(texts: Sequence[bytes], order):
    """`context * 256 + byte` of every byte; a context is a number in base 257, where 256 pads."""
    sizes = np.array([len(t) for t in texts], np.int64)
    text = np.frombuffer(b"".join(texts), np.uint8)
    since_start = np.arange(len(text)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    context = np.zeros(len(text), np.int64)
    for back in range(order - 1, 0, -1):
        before = np.where(since_start >= back, np.roll(text, back), np.int64(256))
        context = context * 257 + before
    return context * 256 + text


def xz_bits(train: bytes, val: bytes) -> float:
    """Bits that `val` adds to the xz-compressed `train`: 8 (|xz(train + val)| - |xz(train)|).

    The concatenation is compressed once and read back until the end of `train` appears: the
    compressed bytes left over are those that `val` cost. This gives the same figure as two
    compressions in half the time.
    """
    filters = [{"id": lzma.FILTER_LZMA1, "preset": XZ_PRESET}]
    packed = lzma.compress(train + val, format=lzma.FORMAT_RAW, filters=filters)
    reader = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters)
    consumed, unpacked = 0, 0
    while unpacked < len(train):
        unpacked += len(reader.decompress(packed[consumed : consumed + XZ_SLICE]))
        consumed += XZ_SLICE
    return 8.0 * max(len(packed) - consumed, 0)


# --- tokens


@dataclass(frozen=True)
class Level:
    """One order of the interpolation.

    p(w | h) = discounted[hw] / total[h] + backoff[h] * p_lower(w | h'), where h' is h without its
    oldest token. Each array ends with the entry of what training does not hold, so that the index
    -1 stands for it.
    """

    discounted: np.ndarray  # [n-grams + 1] counts less the discount
    total: np.ndarray  # [contexts + 1] counts before the discount; 1 where there are none
    backoff: np.ndarray  # [contexts + 1] mass freed by the discount; 1 where there are no counts

    @classmethod
    def fit(cls, counts: np.ndarray, context: np.ndarray, num_contexts: int) -> "Level":
        """From the count and the context number of each n-gram, both [n-grams]."""
        discount = _discount(counts)
        total = np.bincount(context, weights=counts, minlength=num_contexts + 1)
        freed = discount * np.bincount(context[counts > 0], minlength=num_contexts + 1)
        is_known = total > 0
        # A context without counts passes all its mass to the lower order: 0 / 1 + 1 * p_lower.
        total = np.where(is_known, total, 1.0)
        discounted = np.append(np.maximum(counts - discount, 0.0), 0.0)
        return cls(discounted, total, np.where(is_known, freed / total, 1.0))

    def interpolate(self, gram: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities [N] of numbered n-grams in numbered contexts, given the lower order's."""
        return self.discounted[gram] / self.total[context] + self.backoff[context] * lower


def _discount(counts):
    """n1 / (n1 + 2 n2) (Ney, Essen & Kneser 1994), with pseudo-counts to keep it inside (0, 1)."""
    n1 = np.count_nonzero(counts == 1)
    n2 = np.count_nonzero(counts == 2)
    return (n1 + 1) / (n1 + 2 * n2 + 2)


@dataclass(frozen=True)
class KneserNey:
    """Interpolated Kneser-Ney models of orders 1 .. n over one token stream.

    Chen & Goodman 1999, section 3. The highest order of each model counts occurrences, the lower
    ones count distinct left neighbours (an n-gram that begins with BOS has none, so it keeps its
    occurrences). Order 1 is interpolated with the uniform distribution, a context that training
    does not hold passes to the next lower order whole: every distribution sums to 1. One discount
    per order; the three of the "modified" variant gain 0.3% on the default corpus and are
    undefined on little data.
    """

    vocab_size: int
    bos: int
    # Per order: the sorted keys `context number * base + token` of its n-grams. The place of a key
    # is the number of its n-gram, and the number of a context of the next order.
    grams: tuple[np.ndarray, ...]
    highest: tuple[Level, ...]
    lower: tuple[Level, ...]  # one fewer: the highest order is never a lower one

    @classmethod
    def fit(cls, tokens: np.ndarray, vocab_size: int, bos: int, order: int = 5) -> "KneserNey":
        """Count `tokens` (flat, `bos doc bos doc ...`) into models of orders 1 .. `order`."""
        tokens, since_bos = _check_stream(tokens, vocab_size, bos)
        base = max(vocab_size, bos + 1)
        # 1-grams are numbered by their token and have one, empty context.
        number = tokens  # of the k-gram that ends at each position
        keys = np.arange(base)
        context, num_contexts, num_grams = np.zeros(base, np.int64), 1, base
        occurrences = np.bincount(tokens[since_bos > 0], minlength=base)
        begins_with_bos = keys == bos
        grams = [keys]
        highest = [Level.fit(occurrences, context, num_contexts)]
        lower = []
        for k in range(2, order + 1):
            at = np.flatnonzero(since_bos >= k - 1)
            keys, first, inverse, next_occurrences = np.unique(
                number[at - 1] * base + tokens[at],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            # Each different k-gram is one left neighbour of the (k-1)-gram that it ends in.
            left_neighbours = np.bincount(number[at[first]], minlength=num_grams)
            counts = np.where(begins_with_bos, occurrences, left_neighbours)
            lower.append(Level.fit(counts, context, num_contexts))
            context, num_contexts, num_grams = keys // base, num_grams, len(keys)
            occurrences = next_occurrences
            begins_with_bos = since_bos[at[first]] == k - 1
            number = np.full_like(tokens, -1)
            number[at] = inverse
            grams.append(keys)
            highest.append(Level.fit(occurrences, context, num_contexts))
        return cls(vocab_size, bos, tuple(grams), tuple(highest), tuple(lower))

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """Probabilities [order, N] by the models of orders 1 .. n of the N tokens but BOS."""
        tokens, since_bos = _check_stream(tokens, self.vocab_size, self.bos)
        base = max(self.vocab_size, self.bos + 1)
        below = np.full(len(tokens), 1.0 / self.vocab_size)  # the lower order's, first the uniform
        number = np.zeros_like(tokens)
        rows = []
        for k, keys in enumerate(self.grams, start=1):
            at = np.flatnonzero(since_bos >= k - 1)
            context = number[at - 1] if k > 1 else number[at]
            gram = _find(keys, np.where(context >= 0, context * base + tokens[at], -1))
            # A token nearer to BOS than the order reaches has its longest context already.
            probs = below.copy()
            probs[at] = self.highest[k - 1].interpolate(gram, context, below[at])
            rows.append(probs[since_bos > 0])
            if k <= len(self.lower):
                below[at] = self.lower[k - 1].interpolate(gram, context, below[at])
            number = np.full_like(tokens, -1)
            number[at] = gram
        return np.stack(rows)


def _find(keys, wanted):
    """Position of each wanted key in the sorted `keys`, -1 where it is absent."""
    if len(keys) == 0:
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _check_stream(tokens, vocab_size, bos) -> tuple[np.ndarray, np.ndarray]:
    """The stream as int64 [T], and how far each token is from the BOS of its document, [T].

    The distance is 0 at the BOS itself.
    """
    tokens = np.asarray(tokens, np.int64)
    is_bos = tokens == bos
    if len(tokens) == 0 or not is_bos[0]:
        raise ValueError("a token stream begins with BOS: bos doc bos doc ...")
    if np.any((tokens < 0) | ((tokens >= vocab_size) & ~is_bos)):
        raise ValueError(f"a token lies outside the vocabulary of {vocab_size}")
    position = np.arange(len(tokens))
    return tokens, position - np.maximum.accumulate(np.where(is_bos, position, 0))
