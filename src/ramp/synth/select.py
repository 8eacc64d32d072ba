"""Which samples may teach, and with what weight.

Verifiers, near-duplicates, contamination, one convex projection, an audit. Selection reweights; it
cannot bring back what was never sampled, so prompts come first (`prompts`). A verifier can cause
collapse itself: what it is blind to dies out. Hence acceptance is compared by cell, and precision
is audited by a second verifier. No jax.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import logsumexp, softmax

from ramp.nines.intervals import lower_bound
from ramp.synth.measure import Docs, find_near_duplicates

NUM_BANDS = 8  # of rarity and of surprisal: 64 cells, few enough for a thousand samples to fill
Verifier = Callable[[str], bool]


# Hard filters


def apply_verifier(texts: Sequence[str], name: str, verifier: Verifier) -> list[str]:
    """Why each text failed the verifier, empty where it passed. One that raises has failed it."""

    def explain(text):
        try:
            return "" if verifier(text) else f"{name} says no"
        except Exception as error:
            return f"{name} raised {type(error).__name__}: {error}"[:200]

    return [explain(text) for text in texts]


def find_contaminated(docs: Docs, held_out: Docs, n: int) -> ndarray:
    """[D]: the held-out document that has n tokens in a row in common with this one, or -1.

    A held-out document of 3 to n - 1 tokens counts where it is contained as a whole.
    """
    source = np.full(len(docs), -1)
    short_lengths = {int(length) for length in held_out.lengths if 3 <= length < n}
    for k in sorted({n, *short_lengths}):
        rows = np.flatnonzero((held_out.lengths == k) | (k == n))
        key, owner = held_out.take(rows).hash_ngrams(k)
        known, first = np.unique(key, return_index=True)
        key, doc = docs.hash_ngrams(k)
        hit = np.isin(key, known)
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


# Cells


@dataclass(frozen=True)
class Cells:
    """Coarse cells of documents: how rare their rarest tokens are, and how surprising they are.

    A lexical cell for every bigram would be finer and useless: what is extinct among the candidates
    cannot be reweighted back.
    """

    count_v: ndarray  # how often real text has each token
    rarity_edges: ndarray  # inner edges, of `rarity`
    surprisal_edges: ndarray  # inner edges, of bits per token under the first model

    @classmethod
    def fit(cls, real: Docs, bits_d: ndarray, vocab_size: int) -> "Cells":
        """Edges that cut real documents, with these bits per token, into equal parts."""
        count_v = np.bincount(real.flat, minlength=vocab_size)
        levels = np.arange(1, NUM_BANDS) / NUM_BANDS
        rarity_edges = np.quantile(rarity(real, count_v), levels)
        return cls(count_v, rarity_edges, np.quantile(bits_d, levels))

    def assign(self, docs: Docs, bits_d: ndarray) -> tuple[ndarray, ndarray]:
        """(band of rarity, band of surprisal) of each document."""
        by_rarity = np.searchsorted(self.rarity_edges, rarity(docs, self.count_v), side="right")
        return by_rarity, np.searchsorted(self.surprisal_edges, bits_d, side="right")


def rarity(docs: Docs, count_v: ndarray) -> ndarray:
    """[D]: mean log count of the rarest quarter of a document's tokens. Low is rare.

    All tokens would tell of common words, the rarest alone of one accident.
    """
    log_count = np.log(count_v[docs.flat] + 0.5)
    order = np.lexsort((log_count, docs.owner))  # within each document, the rarest first
    rank = np.arange(len(log_count)) - docs.starts[docs.owner]
    quarter = np.maximum(1, docs.lengths // 4)
    is_rarest = rank < quarter[docs.owner]
    total = np.bincount(docs.owner, log_count[order] * is_rarest, len(docs))
    count = np.bincount(docs.owner, is_rarest, len(docs))
    return total / np.maximum(count, 1)


def smooth_counts(counts: ndarray) -> ndarray:
    """Probabilities of cells from their counts.

    Cells never seen divide the Good-Turing mass of those seen once, at most half: a handful of
    documents, all of them seen once, would otherwise give everything away.
    """
    counts = np.asarray(counts, float)
    n = counts.sum()
    empty = counts == 0
    unseen = min((counts == 1).sum() / max(n, 1), 0.5) if empty.any() else 0.0
    p = (1 - unseen) * counts / max(n, 1)
    p[empty] = unseen / max(empty.sum(), 1)
    return p / p.sum()


# The projection


@dataclass(frozen=True)
class Weights:
    """Weights of N samples."""

    w: ndarray  # [N], mean 1, at most the clip
    ess: float  # effective sample size, as a fraction of N
    missed: ndarray  # target less what was reached, by moment: what no candidate could give


def project_weights(
    features_nk: ndarray,
    target_k: ndarray,
    base_n: ndarray,
    max_weight: float,
    min_ess: float,
    ridge: float = 1e-3,
) -> Weights:
    """argmin KL(pi || base) subject to E_pi[features] = target: pi ~ base exp(features theta).

    This is Csiszar's I-projection. theta minimizes the dual log Z(theta) - theta target +
    ridge/2 |theta|^2, which is convex, by damped Newton steps; the ridge keeps theta finite where a
    cell has no candidate. Then the exponent is tempered until the effective sample size, of clipped
    weights, is at least `min_ess`. ValueError where there are no samples.
    """
    n = len(base_n)
    if not n:
        raise ValueError("there is nothing to weigh")
    log_base = np.log(base_n / base_n.sum())

    def dual(theta):
        """Value of the dual, and pi."""
        score = log_base + features_nk @ theta
        value = logsumexp(score) - theta @ target_k + ridge / 2 * theta @ theta
        return value, softmax(score)

    def temper(scale):
        return clip_weights(dual(scale * theta)[1] * n, max_weight)

    theta = np.zeros(len(target_k))
    value, p = dual(theta)
    for _ in range(100):
        mean = p @ features_nk
        slope = mean - target_k + ridge * theta
        if np.abs(slope).max() < 1e-9:
            break
        covariance = (features_nk * p[:, None]).T @ features_nk - np.outer(mean, mean)
        step = np.linalg.solve(covariance + ridge * np.eye(len(theta)), slope)
        # Halve the step until it decreases the dual enough (Armijo).
        size = 1.0
        new_value, p = dual(theta - step)
        while new_value > value - 1e-4 * size * slope @ step and size > 1e-6:
            size /= 2
            new_value, p = dual(theta - size * step)
        theta = theta - size * step
        value = new_value
    w = clip_weights(p * n, max_weight)
    if effective_sample_size(w) < min_ess:
        # Bisect for the largest exponent that keeps the effective sample size; 0 is the base.
        low, high = 0.0, 1.0
        for _ in range(30):
            scale = (low + high) / 2
            if effective_sample_size(temper(scale)) >= min_ess:
                low = scale
            else:
                high = scale
        w = temper(low)
    return Weights(w, effective_sample_size(w), target_k - w @ features_nk / n)


def clip_weights(w: ndarray, max_weight: float) -> ndarray:
    """Weights with mean 1 and none above `max_weight`.

    What is cut off goes to the others in proportion.
    """
    w = w / w.mean()
    for _ in range(100):
        over = w >= max_weight
        rest = len(w) - max_weight * over.sum()  # what is left for the others
        if rest <= 0 or not (w[~over] > 0).any():
            break
        w = np.where(over, max_weight, w * rest / w[~over].sum())
        if (w <= max_weight * (1 + 1e-12)).all():
            return w
    return np.minimum(w, max_weight)


def effective_sample_size(w: ndarray) -> float:
    """(sum w)^2 / (n sum w^2): a fraction of the samples."""
    return w.sum() ** 2 / (len(w) * (w**2).sum())


def cap_duplicates(keys: Sequence[Hashable], max_duplicates: int) -> ndarray:
    """Base weights by multiplicity: all samples with the same key together count as at most
    `max_duplicates`.
    """
    count = Counter(keys)
    return np.array([min(1.0, max_duplicates / count[key]) for key in keys])


# The audit


def precision_bound(accepted: float, tp: int, fp: int, n: int) -> float:
    """Lower bound of the precision of what is accepted, from an audit of the verifier.

    accepted: its acceptance rate. tp of n right samples passed it, and fp of n wrong ones.
    The fraction pi of right samples follows from accepted = pi TPR + (1-pi) FPR; the
    bound takes the upper 95% bound of the FPR.
    """
    tpr = tp / max(n, 1)
    fpr = 1 - lower_bound(n - fp, n)
    if tpr <= fpr:
        return 0.0
    right = np.clip((accepted - fpr) / (tpr - fpr), 0, 1)
    passed = right * tpr + (1 - right) * fpr
    return right * tpr / passed if passed else 0.0


def acceptance_imbalance(accepted_n: ndarray, cell_n: ndarray) -> float:
    """Median acceptance over the least, among cells with 20 candidates or more.

    A verifier that is blind to the tail accepts the head. The least is taken at its upper 95%
    bound, so that small cells raise no false alarm. Below 20 candidates, even a cell with none
    accepted would have a bound above .14.
    """
    rates, upper = [], []
    for cell in np.unique(cell_n):
        accepted = accepted_n[cell_n == cell].astype(bool)
        if len(accepted) >= 20:
            rates.append(accepted.mean())
            upper.append(1 - lower_bound(int((~accepted).sum()), len(accepted)))
    if len(rates) < 2:
        return 1.0
    return np.median(rates) / max(min(upper), 1e-9)
