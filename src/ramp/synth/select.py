"""What may not teach although a verifier let it pass: text of held-out documents, and repeats.

Selection cannot bring back what was never sampled, so prompts come first (`prompts`). No jax.
"""

import numpy as np
from numpy import ndarray

from ramp.synth.docs import Docs
from ramp.synth.similar import find_near_duplicates

MIN_SHARED = 3  # tokens of a document that is compared at all


def find_contaminated(docs: Docs, held_out: Docs, n: int) -> ndarray:
    """[D]: the held-out document that has n tokens in a row in common with this one, or -1.

    A held-out document of n/2 to n - 1 tokens counts where it is contained as a whole. A shorter
    one counts where it is the whole document: a few tokens stand in any text.
    """
    source = np.full(len(docs), -1)
    short_lengths = {int(k) for k in held_out.lengths if MIN_SHARED <= k < n}
    for k in sorted({n, *short_lengths}):
        rows = np.flatnonzero((held_out.lengths == k) | (k == n))
        key, owner = held_out.take(rows).hash_ngrams(k)
        known, first = np.unique(key, return_index=True)
        key, doc = docs.hash_ngrams(k)
        hit = np.isin(key, known)
        if 2 * k < n:
            hit &= docs.lengths[doc] == k
        if hit.any():
            at = first[np.searchsorted(known, key[hit])]
            source[doc[hit]] = rows[owner[at]]
    return source


def find_repeats(docs: Docs, pool: Docs, threshold: float) -> ndarray:
    """[D]: an earlier document that this one nearly repeats, or -1.

    The documents of `pool` count as earlier: they have the numbers 0 .. len(pool) - 1.
    """
    together = Docs.from_lists([*pool.to_list(), *docs.to_list()])
    return find_near_duplicates(together, threshold)[len(pool) :]


def rarity(docs: Docs, count_v: ndarray) -> ndarray:
    """[D]: mean log count of the rarest quarter of a document's tokens. Low is rare.

    count_v: how often real text has each token. All tokens would tell of common words, the rarest
    alone of one accident.
    """
    log_count = np.log(count_v[docs.flat] + 0.5)
    order = np.lexsort((log_count, docs.owner))  # within each document, the rarest first
    rank = np.arange(len(log_count)) - docs.starts[docs.owner]
    quarter = np.maximum(1, docs.lengths // 4)
    is_rarest = rank < quarter[docs.owner]
    total = np.bincount(docs.owner, log_count[order] * is_rarest, len(docs))
    count = np.bincount(docs.owner, is_rarest, len(docs))
    return total / np.maximum(count, 1)
