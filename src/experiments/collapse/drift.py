"""The drift law in closed form: how much a loop of training on own samples loses, and how much
real data holds it.

A refit on N samples adds variance p(1-p)/N to the frequency p of every cell. With a fraction m of
every generation's tokens from the same real pool, and the rest from the latest model,

    V_g       = (1-m)^2 V_{g-1} + (1-m) V_1,     so
    V_g / V_1 = (1-m) [1 - (1-m)^{2g}] / [1 - (1-m)^2].

The excess loss goes with the variance. So one measured number, what a single generation on nothing
but own samples costs (d1), forecasts every real fraction and generation.

That assumes that a refit passes on all the error it was fed, and that `replace` costs d1 again in
every generation. Smoothed n-grams and neural models pass on a part of it, `gain`: replace costs
d1 gain^(g-1) in generation g, and (1-m)^2 becomes gain (1-m)^2 above. A few generations of replace
show both numbers (`estimate_drift` in experiments/collapse). With gain 1 the law is an upper bound.
"""

import numpy as np
from numpy import ndarray


def excess_loss(d1: float, m: float, g: int | ndarray, gain: float = 1.0) -> float | ndarray:
    """Loss above the first model's after g generations with real fraction m, in the unit of d1.

    ValueError unless 0 <= m <= 1 and 0 < gain <= 1.
    """
    check_fraction(m)
    if not 0 < gain <= 1:
        raise ValueError(f"a refit hands on between 0 and all of the error it was fed, not {gain}")
    kept = gain * (1 - m) ** 2  # of the excess variance, in one generation
    if kept == 1:  # replace, without gain: a sum of equal costs
        return d1 * (1 - m) * g
    return d1 * (1 - m) * (1 - kept ** np.asarray(g)) / (1 - kept)


def real_fraction_for(tolerance: float) -> float:
    """The least real fraction m whose excess never passes `tolerance` x d1.

    It solves (1-m) / (m(2-m)) = tolerance. ValueError unless tolerance > 0.
    """
    if not tolerance > 0:
        raise ValueError(f"the tolerated excess is more than 0 steps of replace, not {tolerance}")
    root = np.sqrt(4 * tolerance * tolerance + 1)
    return float((2 * tolerance + 1 - root) / (2 * tolerance))


def check_fraction(m: float) -> None:
    """ValueError for what is no fraction of real tokens."""
    if not 0 <= m <= 1:
        raise ValueError(f"a fraction of real tokens lies between 0 and 1, not {m}")
