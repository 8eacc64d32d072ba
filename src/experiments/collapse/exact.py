"""The smallest world that collapses: modes with Zipf weights, refitted by counting."""

import numpy as np

from experiments.collapse.drift import check_fraction


def zipf(k: int, a: float = 1.0) -> np.ndarray:
    """Probabilities of k modes, [k], the r-th in proportion to r^-a."""
    w = np.arange(1, k + 1, dtype=float) ** -a
    return w / w.sum()


def coverage(p_gk: np.ndarray) -> np.ndarray:
    """[g]: fraction of the modes that the model of each generation can still produce."""
    return (p_gk > 0).mean(axis=1)


def simpson(p_gk: np.ndarray) -> np.ndarray:
    """[g]: chance that two samples differ; it hardly moves, and most diversity scores follow it."""
    return 1 - (p_gk**2).sum(axis=1)


def simulate_generations(
    truth_k: np.ndarray, n: int, policy: str, g: int, rng: np.random.Generator, m: float = 0.0
) -> np.ndarray:
    """Frequencies of the modes [1 + g, K] after counting n samples g times; generation 0 counts n
    samples of the truth.

    replace: the newest model's samples alone. accumulate: all of them and the real ones, every
    sample counted. subsample: n of those. anchored: (1 - m) n of the newest samples, the rest the
    real pool. Any other is a ValueError.
    """
    check_fraction(m)
    real = rng.multinomial(n, truth_k) / n
    p, total, pools = [real], real.copy(), 1
    for _ in range(g):
        num_new = round((1 - m) * n) if policy == "anchored" else n
        new = rng.multinomial(num_new, p[-1] / p[-1].sum()) / max(num_new, 1)
        total, pools = total + new, pools + 1
        if policy == "replace":
            p.append(new)
        elif policy == "accumulate":
            p.append(total / pools)
        elif policy == "subsample":
            p.append(rng.multinomial(n, total / total.sum()) / n)
        elif policy == "anchored":
            p.append(m * real + (1 - m) * new)
        else:
            raise ValueError(
                f"there is no policy {policy!r}; there are replace, accumulate, subsample, anchored"
            )
    return np.array(p)
