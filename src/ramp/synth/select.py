"""Which samples may teach, and with what weight: verifiers, repeats, contamination, one convex projection, an audit.

Selection reweights; it cannot bring back what was never sampled, so seeds come first (`generate`). A verifier can cause
collapse itself: what it is blind to dies out. Hence the acceptance by cell, and precision audited by a second verifier.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ramp.synth.measure import Docs, near_duplicates

BANDS = 8  # of rarity and of surprisal: 64 cells, few enough that a thousand samples fill them
Verifier = Callable[[str], bool]


# ---------------------------------------------------------------------------------------------------- hard filters
def apply_verifier(texts: Sequence[str], name: str, verifier: Verifier) -> list[str]:
    """Why each text did not pass the verifier; nothing if it did. One that raises has not passed the text."""

    def why(text: str) -> str:
        try:
            return "" if verifier(text) else f"{name} says no"
        except Exception as error:
            return f"{name} raised {type(error).__name__}: {error}"[:200]

    return [why(text) for text in texts]


def find_contaminated(docs: Docs, held_out: Docs, n: int) -> np.ndarray:
    """[N] number of the held-out document that shares n tokens in a row with this one, or is contained whole; or -1."""
    found = np.full(len(docs), -1)
    for k in sorted(
        {n, *(int(x) for x in held_out.lengths if 3 <= x < n)}
    ):  # short documents are matched whole
        mine = held_out if k == n else held_out.take(np.flatnonzero(held_out.lengths == k))
        of = np.arange(len(held_out)) if k == n else np.flatnonzero(held_out.lengths == k)
        grams, where = np.unique(mine.grams(k)[0], return_index=True)
        owner = of[mine.grams(k)[1]]
        key, doc = docs.grams(k)
        hit = np.isin(key, grams)
        if hit.any():
            found[doc[hit]] = owner[where[np.searchsorted(grams, key[hit])]]
    return found


def find_repeats(docs: Docs, pool: Docs, threshold: float) -> np.ndarray:
    """[N] number of an earlier document, those of `pool` first, that this one nearly repeats; or -1."""
    return near_duplicates(Docs.concatenate([pool, docs]), threshold)[len(pool) :]


# ---------------------------------------------------------------------------------------------------- cells
@dataclass(frozen=True)
class Cells:
    """Coarse cells of documents, by the edges found on real text: how rare its rarest tokens are x how surprising it is.

    A lexical cell a bigram would be finer and useless: what is extinct in the candidates cannot be reweighted back.
    """

    count_v: np.ndarray  # how often real text has each token
    rare: np.ndarray  # inner edges of mean log count of a document's rarest quarter
    surprisal: np.ndarray  # inner edges of bits per token under the first model

    @classmethod
    def fit(cls, real: Docs, bits_d: np.ndarray, vocab: int) -> "Cells":
        """Edges that cut the real documents into `BANDS` equal parts; `bits_d`: their bits a token."""
        count_v = np.bincount(real.flat, minlength=vocab)
        at = np.arange(1, BANDS) / BANDS
        return cls(count_v, np.quantile(rarity(real, count_v), at), np.quantile(bits_d, at))

    def of(self, docs: Docs, bits_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(band of rarity, band of surprisal) of each document."""
        band = np.searchsorted(self.rare, rarity(docs, self.count_v), side="right")
        return band, np.searchsorted(self.surprisal, bits_d, side="right")


def rarity(docs: Docs, count_v: np.ndarray) -> np.ndarray:
    """Mean log count of the rarest quarter of a document's tokens, [N]: low is rare. All of them would tell of common
    words, the rarest alone of one accident."""
    logs = np.log(count_v[docs.flat] + 0.5)
    order = np.lexsort((logs, docs.owner))
    rank = np.arange(len(logs)) - docs.starts[docs.owner]
    keep = rank < np.maximum(1, docs.lengths // 4)[docs.owner]
    total = np.bincount(docs.owner, logs[order] * keep, len(docs))
    return total / np.maximum(np.bincount(docs.owner, keep, len(docs)), 1)


def smooth_counts(counts: np.ndarray) -> np.ndarray:
    """Masses of cells from their counts: those never seen share the Good-Turing mass of those seen once, half at most,
    which is what a handful of documents, all seen once, would otherwise give away whole."""
    counts = np.asarray(counts, float)
    n, empty = counts.sum(), counts == 0
    unseen = min((counts == 1).sum() / max(n, 1), 0.5) if empty.any() else 0.0
    p = (1 - unseen) * counts / max(n, 1)
    p[empty] = unseen / max(empty.sum(), 1)
    return p / p.sum()


# ---------------------------------------------------------------------------------------------------- the projection
@dataclass(frozen=True)
class Weights:
    w: np.ndarray  # [N], mean 1, at most the clip
    ess: float  # effective sample size as a share of N
    missed: np.ndarray  # target - reached, by moment: what the candidates could not give


def project(
    features_nk: np.ndarray,
    target_k: np.ndarray,
    base_n: np.ndarray,
    clip: float,
    least_ess: float,
    ridge: float = 1e-3,
) -> Weights:
    """argmin KL(pi || base) subject to E_pi[features] = target (Csiszar's I-projection): pi ~ base exp(features theta).

    theta by damped Newton on the dual log Z(theta) - theta target + ridge/2 |theta|^2, which is convex; the ridge keeps
    it finite where a cell has no candidate. Then the exponent is tempered until the effective sample size, weights
    clipped, is at least `least_ess`.
    """
    n = len(base_n)
    if not n:
        raise ValueError("there is nothing to weigh")
    f, log_base = np.asarray(features_nk, float), np.log(base_n / base_n.sum())

    def dual(theta: np.ndarray) -> tuple[float, np.ndarray]:
        s = log_base + f @ theta
        top = s.max()
        z = np.exp(s - top).sum()
        return top + np.log(z) - theta @ target_k + ridge / 2 * theta @ theta, np.exp(s - top) / z

    theta = np.zeros(f.shape[1])
    value, p = dual(theta)
    for _ in range(100):
        mean = p @ f
        slope = mean - target_k + ridge * theta
        if np.abs(slope).max() < 1e-9:
            break
        hessian = (f * p[:, None]).T @ f - np.outer(mean, mean) + ridge * np.eye(len(theta))
        move, size = np.linalg.solve(hessian, slope), 1.0
        while (found := dual(theta - size * move))[
            0
        ] > value - 1e-4 * size * slope @ move and size > 1e-6:
            size /= 2
        theta, (value, p) = theta - size * move, found
    w = clip_weights(p * n, clip)
    if ess(w) < least_ess:
        low, high = 0.0, 1.0
        for _ in range(30):
            share = (low + high) / 2
            low, high = (
                (share, high)
                if ess(clip_weights(dual(share * theta)[1] * n, clip)) >= least_ess
                else (low, share)
            )
        w = clip_weights(dual(low * theta)[1] * n, clip)
    return Weights(w, ess(w), target_k - w @ f / n)


def clip_weights(w: np.ndarray, most: float) -> np.ndarray:
    """Weights with mean 1 and none above `most`: what is cut off goes to the others in proportion."""
    w = w / w.mean()
    for _ in range(100):
        over = w >= most
        rest = len(w) - most * over.sum()
        if rest <= 0 or not (w[~over] > 0).any():
            return np.minimum(w, most)
        w = np.where(over, most, w * rest / w[~over].sum())
        if (w <= most * (1 + 1e-12)).all():
            return w
    return np.minimum(w, most)


def ess(w: np.ndarray) -> float:
    """(sum w)^2 / (n sum w^2)."""
    return float(w.sum() ** 2 / (len(w) * (w**2).sum()))


def one_hot(band: np.ndarray, n: int) -> np.ndarray:
    return (band[:, None] == np.arange(n)).astype(float)


def cap_duplicates(keys: Sequence, copies: int) -> np.ndarray:
    """Base weights by multiplicity: what was sampled k times counts `copies` times at most, shared among the k."""
    count = Counter(keys)
    return np.array([min(1.0, copies / count[key]) for key in keys])


# ---------------------------------------------------------------------------------------------------- the audit
def lower_bound(hits: int, n: int, level: float = 0.95) -> float:
    """One-sided lower bound of a share (Clopper & Pearson 1934)."""
    return float(stats.beta.ppf(1 - level, hits, n - hits + 1)) if hits else 0.0


def precision_bound(accepted: float, tp: int, positives: int, fp: int, negatives: int) -> float:
    """Lower bound of the share of right ones among what is accepted, from an audit of a verifier.

    accepted: its acceptance rate; tp of `positives` right samples passed it, fp of `negatives` wrong ones. The share pi
    of right samples follows from accepted = pi TPR + (1-pi) FPR; the bound takes the upper 95% bound of the FPR.
    """
    tpr, fpr = (
        tp / max(positives, 1),
        1 - lower_bound(negatives - fp, negatives) if negatives else 1.0,
    )
    if tpr <= fpr:
        return 0.0
    right = np.clip((accepted - fpr) / (tpr - fpr), 0, 1)
    passed = right * tpr + (1 - right) * fpr
    return float(right * tpr / passed) if passed else 0.0


def imbalance(accepted_n: np.ndarray, cell_n: np.ndarray, least: int = 20) -> float:
    """Median acceptance over the least, among cells with `least` candidates or more: a verifier blind to the tail accepts
    the head. The least is taken at its upper 95% bound, so that small cells do not cry wolf; with fewer than 20 candidates
    none accepted would still leave a bound above .14."""
    rates, upper = [], []
    for cell in np.unique(cell_n):
        mine = accepted_n[cell_n == cell]
        if len(mine) >= least:
            rates.append(mine.mean())
            upper.append(1 - lower_bound(int((~mine.astype(bool)).sum()), len(mine)))
    return float(np.median(rates) / max(min(upper), 1e-9)) if len(rates) > 1 else 1.0
