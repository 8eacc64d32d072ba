"""Which texts repeat each other: near-duplicates, variants of one text, copies of another source.

Words in, as `Docs`. A pair is looked at when it agrees in a band of a MinHash (Broder 1997) of its
n-grams, and then compared exactly: by the Jaccard similarity of its sets of 3-grams, or by the
words that both have in the same order (the longest common subsequence, by bits as in Hyyrö 2004).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import rensa
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ramp.synth.docs import Docs, is_member, mix_bits, sort_unique

SHINGLE = 3  # words, of near-duplicates
# 20 bands of 3 permutations show 99.99% of the pairs with Jaccard similarity .7.
NEAR_BANDS, NEAR_ROWS = 20, 3
# One word changed in 20 leaves a Jaccard similarity of .71, and .95 of the words in their order.
NEAR_ORDER = 0.92

# Variants of one text have more than half of their words in the same order; of 4,000 pairs of four
# corpora (questions, stories, articles, a play) none had more than .4.
VARIANT_ORDER = 0.55
VARIANT_BANDS = 32  # of one permutation each: they show 99.99% of the pairs that share a quarter
VARIANT_SHINGLE = 2
VARIANT_AGREE = 0.08  # of the permutations, before a pair is compared word by word
COMMON = 0.005  # a pair of words in more of the real texts than this is nobody's own

RUN = 12  # words in a row by which a copy is known
SHORTEST_COPY = 5  # words of a text that is looked for as a whole
COPIED = 0.5  # of the words of a text that is called a copy
# 32 bands of 2 permutations show 99.99% of the texts with each sixth word changed.
COPY_ROWS = 2
COPY_PARTNERS = 4  # documents of the pool that are looked at in a band

NO_GRAMS = np.empty(0, np.uint64)


class Likeness:
    """Compares documents of a set pair by pair, and remembers what it has prepared of each."""

    def __init__(self, docs: Docs) -> None:
        self.words = [doc.tolist() for doc in docs.to_list()]
        self._places: dict[int, dict[int, int]] = {}
        self._grams: dict[int, frozenset] = {}

    def order(self, a: int, b: int) -> float:
        """Words that both have in the same order: twice their number over the words of both."""
        if a not in self._places:
            places: dict[int, int] = {}
            for i, word in enumerate(self.words[a]):
                places[word] = places.get(word, 0) | 1 << i
            self._places[a] = places
        places, length = self._places[a], len(self.words[a])
        # A bit that is 0 ends a common subsequence one longer than the bits below it.
        free = full = (1 << length) - 1
        for word in self.words[b]:
            hit = free & places.get(word, 0)
            free = ((free + hit) | (free - hit)) & full
        common = length - free.bit_count()
        return 2 * common / max(length + len(self.words[b]), 1)

    def jaccard(self, a: int, b: int) -> float:
        """Of the sets of 3-grams; of the words, where a document is shorter."""
        x, y = self._list_grams(a), self._list_grams(b)
        return len(x & y) / max(len(x | y), 1)

    def _list_grams(self, a) -> frozenset:
        if a not in self._grams:
            words = self.words[a]
            runs = zip(*(words[k:] for k in range(SHINGLE)), strict=False)
            self._grams[a] = frozenset(runs if len(words) >= SHINGLE else words)
        return self._grams[a]


def find_near_duplicates(sample: Docs, threshold: float = 0.8) -> ndarray:
    """[D]: an earlier document that this one nearly repeats, or -1.

    threshold: of the Jaccard similarity of their sets of 3-grams. A pair with 92% of its words in
    the same order counts too, so that a short text with one word changed is found.
    """
    twin, kept = find_repeats(sample)
    if len(kept) < 2:
        return twin
    docs = sample.take(kept)
    digests = digest_shingles(docs, SHINGLE, NEAR_BANDS * NEAR_ROWS)
    later, earlier = pair_bands(digests, NEAR_ROWS)
    likeness = Likeness(docs)
    for a, b in zip(later.tolist(), earlier.tolist(), strict=True):
        if twin[kept[a]] >= 0:
            continue
        if likeness.jaccard(a, b) >= threshold or likeness.order(a, b) >= NEAR_ORDER:
            twin[kept[a]] = kept[b]
    return twin


def find_repeats(sample: Docs) -> tuple[ndarray, ndarray]:
    """([D] the first document with the same words, or -1, the documents that are such a first one).

    A document without words is like no other.
    """
    place = np.arange(len(sample.flat)) - sample.starts[sample.owner]
    word = mix_bits(sample.flat.astype(np.uint64) + mix_bits(place.astype(np.uint64)))
    code = np.zeros(len(sample), np.uint64)
    np.add.at(code, sample.owner, word)
    _, first, group = np.unique(code, return_index=True, return_inverse=True)
    number = np.arange(len(sample))
    twin = np.where((first[group] < number) & (sample.lengths > 0), first[group], -1)
    return twin, number[(twin < 0) & (sample.lengths > 0)]


def digest_shingles(
    docs: Docs, shingle: int, num_permutations: int, ignored: ndarray | None = None
) -> ndarray:
    """uint64 [D, num_permutations]: the MinHash of each document's n-grams but the ignored ones.

    A document without any is represented by its words.
    """
    key, owner = docs.hash_ngrams(shingle)
    if ignored is not None and len(ignored):
        own = ~is_member(key, ignored)
        key, owner = key[own], owner[own]
    word, word_owner = docs.hash_ngrams(1)
    is_bare = np.bincount(owner, minlength=len(docs))[word_owner] == 0
    key = np.concatenate([key, word[is_bare]])
    owner = np.concatenate([owner, word_owner[is_bare]])
    order = np.argsort(owner, kind="stable")
    key = np.ascontiguousarray(key[order])
    offsets = np.searchsorted(owner[order], np.arange(len(docs) + 1)).astype(np.uint64)
    # rensa is compiled and has no stub.
    minhash = rensa.RMinHash  # ty: ignore[missing-attribute]
    digests = minhash.digest_matrix_from_flat_token_hashes(key, offsets, num_permutations, 42)
    return np.array(digests.to_rows(), np.uint64)


def pair_bands(digests: ndarray, rows: int) -> tuple[ndarray, ndarray]:
    """(later, earlier) documents that agree in all permutations of a band, each pair once."""
    n = len(digests)
    pairs = [np.empty(0, np.int64)]
    for code in code_bands(digests, rows):
        order = np.argsort(code, kind="stable")
        begins = np.diff(code[order], prepend=code[order[:1]] + np.uint64(1)) != 0
        place = np.arange(n)
        first = np.maximum.accumulate(np.where(begins, place, 0))
        # With the first of a group and the two before: in a large group few are alike in pairs.
        for other in (first, place - 1, place - 2):
            is_pair = (other >= first) & (other < place)
            pairs.append(order[is_pair] * n + order[other[is_pair]])
    found = sort_unique(np.concatenate(pairs))
    return found // n, found % n


def code_bands(digests: ndarray, rows: int) -> Iterator[ndarray]:
    """[D] of each band: equal where documents agree in all its permutations."""
    for band in np.split(digests.T, digests.shape[1] // rows):
        code = np.zeros(len(digests), np.uint64)
        for row in band:
            code = mix_bits(code + row + np.uint64(1))
        yield code


# --- variants


@dataclass(frozen=True)
class Families:
    """Documents in groups of variants of one text."""

    group: ndarray  # [D] the number of each document's group
    sizes: ndarray  # [groups]

    @property
    def repeated(self) -> float:
        """Share of the documents that are one more variant of a text that is there already."""
        return 1 - len(self.sizes) / max(len(self.group), 1)

    def list_largest(self, least: int = 2) -> list[ndarray]:
        """The documents of each group of so many or more, the largest group first."""
        order = np.argsort(-self.sizes, kind="stable")
        return [np.flatnonzero(self.group == g) for g in order if self.sizes[g] >= least]


def find_common(real: Docs) -> ndarray:
    """The pairs of words that so many real texts have that they tell nothing of a single one."""
    key, count = count_holders(*real.hash_ngrams(VARIANT_SHINGLE))
    return key[count > max(3, COMMON * len(real))]


def count_holders(key: ndarray, owner: ndarray) -> tuple[ndarray, ndarray]:
    """(the different keys, the number of documents that hold each)."""
    order = np.lexsort((owner, key))
    key, owner = key[order], owner[order]
    is_new = np.diff(key, prepend=key[:1] + np.uint64(1)) != 0
    is_new |= np.diff(owner, prepend=-1) != 0
    return np.unique(key[is_new], return_counts=True)


def group_variants(sample: Docs, common: ndarray) -> Families:
    """Group the documents that have most of their words in the same order as another one.

    common: pairs of words that are no sign of it, see `find_common`.
    """
    twin, kept = find_repeats(sample)
    links = [(i, int(twin[i])) for i in np.flatnonzero(twin >= 0)]
    if len(kept) > 1:
        docs = sample.take(kept)
        digests = digest_shingles(docs, VARIANT_SHINGLE, 2 * VARIANT_BANDS, common)
        later, earlier = pair_bands(digests[:, :VARIANT_BANDS], 1)
        is_open = agreement(digests, later, earlier) >= VARIANT_AGREE
        likeness = Likeness(docs)
        parent = np.arange(len(docs))
        pairs = zip(later[is_open].tolist(), earlier[is_open].tolist(), strict=True)
        for a, b in pairs:
            # Two of one group already need no comparing.
            root_a, root_b = _find_root(parent, a), _find_root(parent, b)
            if root_a != root_b and likeness.order(a, b) >= VARIANT_ORDER:
                parent[root_a] = root_b
                links.append((kept[a], kept[b]))
    n = len(sample)
    ends = np.array(links, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    return Families(group, np.bincount(group, minlength=1))


def _find_root(parent, a) -> int:
    while parent[a] != a:
        parent[a] = parent[parent[a]]
        a = parent[a]
    return int(a)


def agreement(digests: ndarray, later: ndarray, earlier: ndarray) -> ndarray:
    """[pairs]: the fraction of the permutations in which the two agree."""
    found = np.empty(len(later))
    # In slices: each row is some hundred bytes.
    for at in range(0, len(later), 1 << 16):
        rows = slice(at, at + (1 << 16))
        found[rows] = (digests[later[rows]] == digests[earlier[rows]]).mean(axis=1)
    return found


# --- copies


@dataclass(frozen=True)
class Copies:
    """What each of D documents has in common with a pool."""

    share: ndarray  # [D] of its words that lie in runs of `RUN` or more that the pool has too
    longest: ndarray  # [D] words of its longest such run
    is_variant: ndarray  # [D] whether most of its words stand in the same order in one of the pool

    @property
    def copied(self) -> ndarray:
        """[D]: whether a document is a copy for the most part."""
        return (self.share >= COPIED) | self.is_variant


def find_copies(sample: Docs, pool: Docs, least: int = 1, common: ndarray = NO_GRAMS) -> Copies:
    """Look for the runs of words of the sample in the pool, and for variants of its documents.

    least: documents of the pool that must hold what counts; 2 where the sample is a part of the
    pool, so that each finds itself. A document shorter than a run is looked for as a whole, and
    has no variants. common: see `find_common`.
    """
    in_run = np.zeros(len(sample.flat) + 1, np.int64)
    longest = np.zeros(len(sample), np.int64)
    short = [n for n in range(SHORTEST_COPY, RUN) if (sample.lengths == n).any()]
    for n in [*short, RUN]:
        key, owner = sample.hash_ngrams(n)
        is_wanted = (n == RUN) | (sample.lengths[owner] == n)
        known = find_held(sort_unique(key[is_wanted]), pool, n, least)
        # The places of the n-grams, in the order of `hash_ngrams`.
        last = sample.starts + sample.lengths - n
        start = np.flatnonzero(np.arange(len(sample.flat)) <= last[sample.owner])
        is_wanted &= is_member(key, known)
        start, owner = start[is_wanted], owner[is_wanted]
        np.add.at(in_run, start, 1)
        np.add.at(in_run, start + n, -1)
        # A hit behind a hit makes the run one word longer.
        place = np.arange(len(start))
        follows = np.diff(start, prepend=-2) == 1
        follows &= np.diff(owner, prepend=-1) == 0
        begin = np.maximum.accumulate(np.where(follows, 0, place))
        np.maximum.at(longest, owner, place - begin + n)
    covered = np.cumsum(in_run)[:-1] > 0
    share = np.bincount(sample.owner, covered, len(sample)) / np.maximum(sample.lengths, 1)
    is_variant = (count_originals(sample, pool, common) >= least) & (sample.lengths >= RUN)
    return Copies(share, longest, is_variant)


def count_originals(sample: Docs, pool: Docs, common: ndarray) -> ndarray:
    """[D]: documents of the pool that share most words in the same order, of those looked at."""
    size = len(sample)
    both = sample + pool
    digests = digest_shingles(both, VARIANT_SHINGLE, COPY_ROWS * VARIANT_BANDS, common)
    ours, theirs = pair_across(digests, size)
    is_open = agreement(digests, ours, theirs) >= VARIANT_AGREE
    ours, theirs = ours[is_open], theirs[is_open]
    # Only the words of what is compared are unpacked.
    used = sort_unique(np.concatenate([ours, theirs]))
    likeness = Likeness(both.take(used))
    pairs = zip(np.searchsorted(used, ours), np.searchsorted(used, theirs), strict=True)
    is_alike = [likeness.order(int(a), int(b)) >= VARIANT_ORDER for a, b in pairs]
    return np.bincount(ours, is_alike, size)


def pair_across(digests: ndarray, size: int) -> tuple[ndarray, ndarray]:
    """(one of the first `size` documents, one of the others) that agree in a band, each pair once.

    Of the others in a band only the first few: where many agree, any of them will do.
    """
    n = len(digests)
    pairs = [np.empty(0, np.int64)]
    for code in code_bands(digests, COPY_ROWS):
        order = np.argsort(code[size:], kind="stable")
        others = code[size:][order]
        begin, end = (np.searchsorted(others, code[:size], side) for side in ("left", "right"))
        for k in range(COPY_PARTNERS):
            ours = np.flatnonzero(begin + k < end)
            pairs.append(ours * n + size + order[begin[ours] + k])
    found = sort_unique(np.concatenate(pairs))
    return found // n, found % n


def find_held(wanted: ndarray, pool: Docs, n: int, least: int) -> ndarray:
    """Those of the n-grams `wanted`, sorted, that so many documents of the pool have."""
    key, owner = pool.hash_ngrams(n)
    is_hit = is_member(key, wanted)
    found, count = count_holders(key[is_hit], owner[is_hit])
    return found[count >= least]
