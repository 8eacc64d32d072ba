"""The drift law in closed form, and the smallest world that shows it: modes with Zipf weights, refitted by counting.

A refit on N samples adds variance p(1-p)/N to the frequency p of every cell. With a share m of every generation's tokens
from the same real pool, and the rest from the latest model,

    V_g = (1-m)^2 V_{g-1} + (1-m) V_1,     so     V_g / V_1 = (1-m) [1 - (1-m)^{2g}] / [1 - (1-m)^2].

The excess loss goes with the variance: one measured number, what a single generation on nothing but own samples costs
(d1), forecasts every anchor share and generation.
"""

from dataclasses import dataclass

import numpy as np

POLICIES = ("replace", "accumulate", "subsample", "anchored")


# ---------------------------------------------------------------------------------------------------- the law
def excess(d1: float, m: float, g: int | np.ndarray) -> float | np.ndarray:
    """Loss above the first model's after g generations with real share m, in the unit of d1; g d1 where m is 0."""
    _check_share(m)
    if m == 0:
        return d1 * g
    keep = 1.0 - m
    return d1 * keep * (1 - keep ** (2 * np.asarray(g))) / (1 - keep**2)


def share_for(tolerance: float) -> float:
    """The least real share m whose excess never passes `tolerance` x d1: (1-m) / (m(2-m)) = tolerance."""
    if not tolerance > 0:
        raise ValueError(f"the tolerated excess is more than 0 steps of replace, not {tolerance}")
    r = tolerance
    return float((2 * r + 1 - np.sqrt(4 * r * r + 1)) / (2 * r))


def _check_share(m: float) -> None:
    if not 0 <= m <= 1:
        raise ValueError(f"a share of real tokens lies between 0 and 1, not {m}")


# ---------------------------------------------------------------------------------------------------- the world
def zipf(k: int, a: float = 1.0) -> np.ndarray:
    """Probabilities of k modes, [k], the r-th in proportion to r^-a."""
    w = np.arange(1, k + 1, dtype=float) ** -a
    return w / w.sum()


@dataclass(frozen=True)
class Trace:
    """What became of the modes: p_gk[g] is the model of generation g, p_gk[0] fitted on real samples."""

    truth_k: np.ndarray
    p_gk: np.ndarray

    @property
    def coverage_g(self) -> np.ndarray:
        """Share of the modes that the model can still give."""
        return (self.p_gk > 0).mean(axis=1)

    @property
    def simpson_g(self) -> np.ndarray:
        """Chance that two samples differ: what a diversity score mostly sees, and hardly moves."""
        return 1 - (self.p_gk**2).sum(axis=1)

    def variance_g(self, about_k: np.ndarray) -> np.ndarray:
        """Squared distance from `about_k`, summed over the modes."""
        return ((self.p_gk - about_k) ** 2).sum(axis=1)


def generations(
    truth_k: np.ndarray, n: int, policy: str, g: int, rng: np.random.Generator, m: float = 0.0, pool_k=None
) -> Trace:
    """g generations of counting n samples; generation 0 counts `pool_k`, or n samples of the truth.

    replace: the newest model's samples alone; accumulate: all of them and the real ones, every sample counted;
    subsample: n of those; anchored: the real pool with weight m, the newest samples with 1 - m.
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    _check_share(m)
    real = rng.multinomial(n, truth_k) / n if pool_k is None else np.asarray(pool_k, float)
    p, total, kept = [real], real.copy(), 1
    for _ in range(g):
        new = rng.multinomial(n, p[-1] / p[-1].sum()) / n
        total, kept = total + new, kept + 1
        if policy == "replace":
            p.append(new)
        elif policy == "accumulate":
            p.append(total / kept)
        elif policy == "subsample":
            p.append(rng.multinomial(n, total / total.sum()) / n)
        else:
            p.append(m * real + (1 - m) * new)
    return Trace(truth_k, np.array(p))
