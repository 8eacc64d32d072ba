"""The drift law in closed form, and the smallest world that shows it: modes with Zipf weights, refitted by counting.

A refit on N samples adds variance p(1-p)/N to the frequency p of every cell. With a share m of every generation's tokens
from the same real pool, and the rest from the latest model,

    V_g = (1-m)^2 V_{g-1} + (1-m) V_1,     so     V_g / V_1 = (1-m) [1 - (1-m)^{2g}] / [1 - (1-m)^2].

The excess loss goes with the variance: one measured number, what a single generation on nothing but own samples costs
(d1), forecasts every anchor share and generation.

That takes a refit to hand on all the error it was fed, and replace to cost d1 again in every generation. Smoothed n-grams
and neural models hand on a part of it, `gain`: replace costs d1 gain^(g-1) in generation g, and (1-m)^2 becomes gain (1-m)^2
above. A few generations of replace show both numbers (`drift`); with gain 1 the law is an upper bound.
"""

import numpy as np


# ---------------------------------------------------------------------------------------------------- the law
def excess_loss(d1: float, m: float, g: int | np.ndarray, gain: float = 1.0) -> float | np.ndarray:
    """Loss above the first model's after g generations with real share m, in the unit of d1; `gain`: see above, in (0, 1]."""
    _check_share(m)
    if not 0 < gain <= 1:
        raise ValueError(f"a refit hands on between 0 and all of the error it was fed, not {gain}")
    keep = gain * (1 - m) ** 2
    return d1 * (1 - m) * (g if keep == 1 else (1 - keep ** np.asarray(g)) / (1 - keep))


def estimate_drift(replaced: np.ndarray) -> tuple[float, float]:
    """(d1, gain) from replace's loss above the first model's after generations 1, 2, ...: costs a generation as a geometric
    series, by least squares on their logarithms; one generation, or one that costs nothing, tells d1 alone."""
    costs = np.diff(replaced, prepend=0.0)
    if len(costs) < 2 or not np.all(costs > 0):
        return float(costs[0]), 1.0
    slope, start = np.polyfit(np.arange(len(costs)), np.log(costs), 1)
    return (float(np.exp(start)), float(np.exp(slope))) if slope < 0 else (float(costs.mean()), 1.0)


def real_fraction_for(tolerance: float) -> float:
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
            raise ValueError(
                f"there is no policy {policy!r}; there are replace, accumulate, subsample, anchored"
            )
    return np.array(p)
