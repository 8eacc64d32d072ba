"""The drift law in closed form, and the smallest world that shows it: modes with Zipf weights, refitted by counting.

A refit on N samples adds variance p(1-p)/N to the frequency p of every cell. With a share m of every generation's tokens
from the same real pool, and the rest from the latest model,

    V_g = (1-m)^2 V_{g-1} + (1-m) V_1,     so     V_g / V_1 = (1-m) [1 - (1-m)^{2g}] / [1 - (1-m)^2].

The excess loss goes with the variance: one measured number, what a single generation on nothing but own samples costs
(d1), forecasts every anchor share and generation.
"""

import numpy as np


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


def coverage(p_gk: np.ndarray) -> np.ndarray:
    """[g]: share of the modes that the model of each generation can still give."""
    return (p_gk > 0).mean(axis=1)


def simpson(p_gk: np.ndarray) -> np.ndarray:
    """[g]: chance that two samples differ: what a diversity score mostly sees, and hardly moves."""
    return 1 - (p_gk**2).sum(axis=1)


def generations(
    truth_k: np.ndarray, n: int, policy: str, g: int, rng: np.random.Generator, m: float = 0.0
) -> np.ndarray:
    """Frequencies of the modes [1 + g, K] after counting n samples g times; generation 0 counts n samples of the truth.

    replace: the newest model's samples alone; accumulate: all of them and the real ones, every sample counted;
    subsample: n of those; anchored: the real pool with weight m, the newest samples with 1 - m. Any other is a ValueError.
    """
    _check_share(m)
    real = rng.multinomial(n, truth_k) / n
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
        elif policy == "anchored":
            p.append(m * real + (1 - m) * new)
        else:
            raise ValueError(f"there is no policy {policy!r}; there are replace, accumulate, subsample, anchored")
    return np.array(p)
