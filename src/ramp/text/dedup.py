"""Which documents are duplicates, of each other or of a test set: word n-grams and MinHash.

Words are runs of letters and digits in any case; a character of a script that puts no spaces
between words is a word of its own. Two documents are near duplicates when the Jaccard similarity of
their sets of 5-grams of words is at least a threshold. It is estimated by MinHash (Broder 1997) on
pairs that agree in a band of it (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4),
of which one byte a permutation is kept (Li & König 2010, arXiv:0910.3349).

All arithmetic is of whole arrays of bytes: 20 to 40 MB/s on one core.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import rensa
from numpy import ndarray

SHINGLE = 5  # words
TEST_NGRAM = 13  # words that a training document may not share with a test set (GPT-3, app. C)
NUM_PERMUTATIONS = 128
MIN_TEST_WORDS = 8
# Bytes hashed at once. A longer document is cut, which loses the shingles across the cut.
CHUNK = 1 << 20
# Recall wanted of the bands alone, at the threshold.
BAND_RECALL = 0.995
# Documents that are sorted at once when bands are compared: about 40 bytes each.
MAX_SORTED = 1 << 22
BYTE_MATCH = 1 / 256  # the chance that the bytes of different hashes agree
EMPTY = np.uint32(2**32 - 1)  # every hash of a document without shingles


# --- words


@cache
def _byte_table() -> ndarray:
    """uint64 [256]: a random number for each byte of a word, alike for both cases; 0: no word."""
    table = np.random.default_rng(5).integers(1, 2**63, 256, np.uint64)
    is_word = [bytes([b]).isalnum() or b >= 0x80 for b in range(256)]
    table[~np.array(is_word)] = 0
    table[ord("A") : ord("Z") + 1] = table[ord("a") : ord("z") + 1]
    return table


@cache
def _powers() -> tuple[ndarray, ndarray]:
    """uint64 [CHUNK] each: powers of an odd number modulo 2**64, and those of its inverse."""
    base = 0x9E3779B97F4A7C15
    ones = np.ones(CHUNK + 4, np.uint64)
    powers = []
    for factor in (base, pow(base, -1, 2**64)):
        ones[1:] = factor
        powers.append(np.cumprod(ones))
    return powers[0], powers[1]


def mix_bits(x: ndarray) -> ndarray:
    """Hashes of uint64 numbers (the finalizer of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Words:
    """The words of some chunks of text, as hashes."""

    hashes: ndarray  # uint64 [W]
    owner: ndarray  # int64 [W] number of the chunk, ascending
    num_chunks: int

    @staticmethod
    def split(chunks: Sequence[bytes]) -> "Words":
        """The words of each chunk; together the chunks hold at most `CHUNK` bytes."""
        # Joined by what is no part of a word.
        text = np.frombuffer(b"\n".join(chunks), np.uint8)
        value = _byte_table()[text]
        is_word = value > 0
        # Scripts without spaces begin at U+0800, where a character has three bytes or four.
        begins = is_word & (text >= 0xE0)
        begins[1:] |= is_word[1:] & ~is_word[:-1]
        if len(text):
            begins[0] = is_word[0]
        starts = np.flatnonzero(begins)
        power, inverse = _powers()
        # The same word has the same sum, but for a power that depends on where it begins.
        sums = np.add.reduceat(value * power[: len(text)], starts) if len(starts) else value[:0]
        ends = np.cumsum([len(chunk) + 1 for chunk in chunks])
        owner = np.searchsorted(ends, starts, side="right")
        return Words(mix_bits(sums * inverse[starts]), owner, len(chunks))

    def ngrams(self, n: int) -> tuple[ndarray, ndarray]:
        """Hashes uint64 [N] of the n-grams within a chunk, and the chunk of each."""
        count = max(len(self.hashes) - n + 1, 0)
        total = np.zeros(count, np.uint64)
        for k in range(n):
            # Another odd factor for each place: the order of words matters.
            total = total * np.uint64(0xD1342543DE82EF95) + self.hashes[k : count + k]
        owner = self.owner[:count]
        inside = owner == self.owner[len(self.owner) - count :]
        return mix_bits(total[inside]), owner[inside]

    def count(self) -> ndarray:
        """[chunks] the words of each."""
        return np.bincount(self.owner, minlength=self.num_chunks)


# --- fingerprints of documents


def choose_bands(threshold: float) -> tuple[int, int]:
    """(bands, permutations a band): as few bands as find `BAND_RECALL` of pairs at the threshold.

    A pair of similarity J agrees in one of b bands of r with the chance 1 - (1 - J^r)^b.
    """

    def recall(rows):
        return 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows)

    rows = max(r for r in range(1, NUM_PERMUTATIONS + 1) if r == 1 or recall(r) >= BAND_RECALL)
    return NUM_PERMUTATIONS // rows, rows


@dataclass(frozen=True)
class Fingerprints:
    """What is compared of N documents in place of their text."""

    bands: ndarray  # uint64 [bands, N]
    bytes: ndarray  # uint8 [N, NUM_PERMUTATIONS] the lowest byte of each hash
    is_hashed: ndarray  # bool [N] false: too short for one shingle
    is_contaminated: ndarray  # bool [N] shares an n-gram with a test set


class Fingerprinter:
    """Takes documents one by one, hashes many at once.

    threshold: of near duplicates; None: none are looked for. test: what may not be shared.
    """

    def __init__(self, threshold: float | None, test: "TestSet | None" = None):
        self.threshold = threshold
        self.test = test
        self._chunks: list[bytes] = []
        self._owner: list[int] = []  # the document of each chunk
        self._size = 0
        self._num_docs = 0
        self._digests = [np.empty((0, NUM_PERMUTATIONS), np.uint32)]
        self._digest_owner = [np.empty(0, np.int64)]
        self._contaminated = [np.empty(0, np.int64)]

    def add(self, text: str) -> None:
        """The next document."""
        for chunk in cut_chunks(text.encode()):
            if self._size + len(chunk) >= CHUNK:
                self._hash()
            self._chunks.append(chunk)
            self._owner.append(self._num_docs)
            self._size += len(chunk) + 1
        self._num_docs += 1

    def finish(self) -> Fingerprints:
        """Of all documents that were added."""
        self._hash()
        digests = np.concatenate(self._digests)
        owner = np.concatenate(self._digest_owner)
        whole = np.full((self._num_docs, NUM_PERMUTATIONS), EMPTY)
        # The hash of a union of sets is the smaller of theirs: chunks become documents.
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        if len(first):
            whole[owner[first]] = np.minimum.reduceat(digests, first)
        is_contaminated = np.zeros(self._num_docs, bool)
        is_contaminated[np.concatenate(self._contaminated)] = True
        bands = whole[:, :0].T.astype(np.uint64)
        if self.threshold is not None:
            bands = _join_bands(whole, *choose_bands(self.threshold))
        is_hashed = whole[:, 0] != EMPTY
        return Fingerprints(bands, whole.astype(np.uint8), is_hashed, is_contaminated)

    def _hash(self):
        words, owner = Words.split(self._chunks), np.array(self._owner, np.int64)
        if self.threshold is not None and len(owner):
            self._digests.append(_minhash(*words.ngrams(SHINGLE), len(owner)))
            self._digest_owner.append(owner)
        if self.test is not None and len(owner):
            self._contaminated.append(owner[self.test.find(words)])
        self._chunks, self._owner, self._size = [], [], 0


def cut_chunks(data: bytes) -> Iterator[bytes]:
    """A text in pieces that can be hashed at once. Shingles across a cut are lost."""
    for start in range(0, max(len(data), 1), CHUNK // 2):
        yield data[start : start + CHUNK // 2]


def _minhash(gram: ndarray, owner: ndarray, count: int) -> ndarray:
    """uint32 [count, NUM_PERMUTATIONS] of sets of n-grams that stand one after the other."""
    offsets = np.searchsorted(owner, np.arange(count + 1)).astype(np.uint64)
    # rensa is compiled and has no stub.
    minhash = rensa.RMinHash  # ty: ignore[missing-attribute]
    digests = minhash.digest_matrix_from_flat_token_hashes(gram, offsets, NUM_PERMUTATIONS, 42)
    return np.array(digests.to_rows(), np.uint32)


def _join_bands(digests: ndarray, bands: int, rows: int) -> ndarray:
    """uint64 [bands, N]: one hash for the rows of each band."""
    codes = np.zeros((bands, len(digests)), np.uint64)
    for band in range(bands):
        for row in digests[:, band * rows : (band + 1) * rows].T:
            codes[band] = mix_bits(codes[band] + row + np.uint64(1))
    return codes


# --- test sets


@dataclass(frozen=True)
class TestSet:
    """The n-grams of words of test documents, by n.

    A document of 8 to 12 words counts as a whole; shorter ones are too common to look for.
    """

    __test__ = False  # for pytest, which collects classes of such names

    grams: dict[int, ndarray]  # sorted
    num_documents: int
    num_short: int

    @staticmethod
    def read(texts: Iterable[str]) -> "TestSet":
        """Of these documents."""
        found: dict[int, list[ndarray]] = {n: [] for n in range(MIN_TEST_WORDS, TEST_NGRAM + 1)}
        num_documents = num_short = 0
        for text in texts:
            num_documents += 1
            chunks = [Words.split([chunk]) for chunk in cut_chunks(text.encode())]
            length = min(len(chunks[0].hashes), TEST_NGRAM)
            if length < MIN_TEST_WORDS:
                num_short += 1
                continue
            found[length] += [words.ngrams(length)[0] for words in chunks]
        grams = {n: np.unique(np.concatenate(own)) for n, own in found.items() if own}
        return TestSet(grams, num_documents, num_short)

    def find(self, words: Words) -> ndarray:
        """The chunks that hold an n-gram of the set, each as often as it does."""
        hits = [np.empty(0, np.int64)]
        for n, known in self.grams.items():
            gram, owner = words.ngrams(n)
            place = np.minimum(np.searchsorted(known, gram), len(known) - 1)
            hits.append(owner[known[place] == gram])
        return np.concatenate(hits)


# --- comparing

# What becomes of a document.
KEPT, CONTAMINATED, EXACT, NEAR, NEAR_VALIDATION = range(5)
# Their names in reports, from the second on.
REASONS = (
    "contaminated",
    "exact_duplicates",
    "near_duplicates",
    "near_duplicates_of_validation",
)


@dataclass(frozen=True)
class Judge:
    """Finds duplicates among N documents that stand in a fixed order.

    Validation comes first, then training, each in order; of documents that are alike the first
    stays. A document that is like one that left for being like a third leaves too.
    """

    is_val: ndarray  # bool [N]
    verdict: ndarray  # uint8 [N], changed in place

    def drop_exact(self, ids: Callable[[int], Iterable[ndarray]]) -> None:
        """`ids(0)` and `ids(1)` give the two halves, uint64, of the ids of ever more documents."""
        high = np.concatenate([*ids(1)])
        for later, earlier in self._pair(partial(ids, 0), self.verdict == KEPT):
            same = high[later] == high[earlier]
            self.verdict[later[same]] = EXACT

    def drop_near(
        self,
        bands: Callable[[int], Iterable[ndarray]],
        digests: ndarray,
        is_hashed: ndarray,
        threshold: float,
    ) -> None:
        """`bands(i)` gives band i of ever more documents; the rest is of all, `Fingerprints`."""
        # Those that leave here are still compared with: their twins leave too.
        compared = is_hashed & (self.verdict == KEPT)
        # The estimate of a pair at the threshold is below it half of the time: a standard
        # deviation lower, five of six such pairs are found.
        spread = np.sqrt(threshold * (1 - threshold) / NUM_PERMUTATIONS)
        least = (threshold - spread) * (1 - BYTE_MATCH) + BYTE_MATCH
        for band in range(choose_bands(threshold)[0]):
            for later, earlier in self._pair(partial(bands, band), compared):
                # In slices: each row is 128 bytes.
                for at in range(0, len(later), 1 << 18):
                    a, b = later[at : at + (1 << 18)], earlier[at : at + (1 << 18)]
                    similar = (digests[a] == digests[b]).mean(axis=1) >= least
                    a, b = a[similar], b[similar]
                    leaks = self.is_val[b] & ~self.is_val[a]
                    self.verdict[a] = np.where(leaks, NEAR_VALIDATION, NEAR)

    def _pair(
        self, codes: Callable[[], Iterable[ndarray]], compared: ndarray
    ) -> Iterator[tuple[ndarray, ndarray]]:
        """(later, earlier) documents of one code: each that is still open with some before it."""
        num_docs = len(self.verdict)
        num_slices = -(-num_docs // MAX_SORTED)
        # Codes are random numbers, so their ranges hold about as many documents each.
        width = -(-(2**64) // max(num_slices, 1))
        for low in range(0, 2**64, width):
            numbers, code = _gather(codes, compared, low, min(low + width, 2**64) - 1)
            order = np.lexsort((numbers + num_docs * ~self.is_val[numbers], code))
            numbers, code = numbers[order], code[order]
            begins = np.diff(code, prepend=code[:1] + np.uint64(1)) != 0
            place = np.arange(len(code))
            first = np.maximum.accumulate(np.where(begins, place, 0))
            # With the first of the group and with the two before it: in a large group documents
            # may be alike in pairs only.
            for earlier in (first, place - 1, place - 2):
                is_pair = (earlier >= first) & (earlier < place)
                is_pair &= self._is_open(numbers, numbers[np.maximum(earlier, 0)])
                yield numbers[is_pair], numbers[earlier[is_pair]]

    def _is_open(self, later: ndarray, earlier: ndarray) -> ndarray:
        """Whether the verdict on the later document of each pair may change."""
        verdict = self.verdict[later]
        # Likeness to a validation document is the reason that counts.
        may_leak = self.is_val[earlier] & ~self.is_val[later]
        return (verdict == KEPT) | ((verdict == NEAR) & may_leak)


def _gather(codes, compared, low, high) -> tuple[ndarray, ndarray]:
    """The compared documents whose code is in a range, and their codes."""
    numbers, found, start = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for code in codes():
        is_chosen = (code >= np.uint64(low)) & (code <= np.uint64(high))
        at = np.flatnonzero(is_chosen & compared[start : start + len(code)])
        numbers.append(at + start)
        found.append(code[at])
        start += len(code)
    return np.concatenate(numbers), np.concatenate(found)
