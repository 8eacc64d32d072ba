"""Exact statistics of trials, without a model: intervals, pass^k, correlation inside items, comparisons, demonstration plans.

Failures are correlated inside an item: an item that failed once fails again. So k tries in a row succeed more often than
p^k says, and repeats of the same items certify nothing; what counts is distinct items (`effective_trials`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import comb, expit, logit
from scipy.stats import beta, binom, norm

from ramp.errors import UserError


def nines(p: float | np.ndarray) -> float | np.ndarray:
    """Reliability .999 -> 3 nines; fractions of a nine are allowed."""
    with np.errstate(divide="ignore"):
        return -np.log10(1 - np.asarray(p, float))


def clopper_pearson(wins: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval that covers at least `level` whatever the truth (Clopper & Pearson 1934)."""
    tail, k = (1 - level) / 2, wins
    low = beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    return float(low), float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0


def jeffreys(wins: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Equal-tailed under Beta(1/2, 1/2); an end at 0 or 1 where none or all succeed (Brown, Cai & DasGupta 2001)."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, wins + 0.5, n - wins + 0.5) if wins > 0 else 0.0
    return float(low), float(beta.ppf(1 - tail, wins + 0.5, n - wins + 0.5)) if wins < n else 1.0


def wilson(wins: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval (Wilson 1927): never ±0."""
    z, p = norm.ppf(0.5 + level / 2), wins / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return float(low) if wins > 0 else 0.0, float(high) if wins < n else 1.0


def pass_hat(k: int, wins: np.ndarray, n: np.ndarray) -> float:
    """pass^k: all of k tries at an item succeed; mean over items of C(s, k) / C(n, k), unbiased (Yao et al. 2024)."""
    if np.min(n) < k:
        raise UserError(f"k = {k} needs {k} tries at every item; one has {int(np.min(n))}")
    return float(np.mean(comb(wins, k) / comb(n, k)))


def pass_at(k: int, wins: np.ndarray, n: np.ndarray) -> float:
    """pass@k: one of k tries succeeds; 1 - C(n - s, k) / C(n, k), unbiased (Chen et al. 2021)."""
    return 1 - pass_hat(k, np.asarray(n) - wins, n)


def icc(wins: np.ndarray, n: np.ndarray) -> float:
    """Intra-class correlation of tries at one item, by analysis of variance (Fleiss 1981), clipped to [0, 1]; nan where
    no item was tried twice."""
    wins, n = np.asarray(wins, float), np.asarray(n, float)
    items, total = len(n), n.sum()
    if items < 2 or total <= items:
        return float("nan")
    p = wins.sum() / total
    between = (n * (wins / n - p) ** 2).sum() / (items - 1)
    within = (wins * (1 - wins / n)).sum() / (total - items)
    size = (total - (n**2).sum() / total) / (items - 1)
    below = between + (size - 1) * within
    return float(np.clip((between - within) / below, 0, 1)) if below > 0 else 0.0


def beta_binomial_pass(k: int, p: float, rho: float) -> float:
    """pass^k where items differ by a beta distribution with mean p and intra-class correlation rho."""
    if rho >= 1:
        return p
    if rho <= 0:
        return p**k
    phi, j = 1 / rho - 1, np.arange(k)
    return float(np.prod((p * phi + j) / (phi + j)))


def pass_from_two(k: int, one: float, two: float) -> float:
    """pass^k from pass^1 and pass^2, where the logit of an item's rate is normal: both moments are matched.

    The logit-normal puts less weight on items that never fail than the beta distribution of the same moments does.
    """
    rho = (two - one**2) / max(one * (1 - one), 1e-12)
    if rho <= 1e-3 or rho >= 0.999 or not 0 < one < 1:
        return beta_binomial_pass(k, one, float(np.clip(rho, 0, 1)))
    nodes, mass = np.polynomial.legendre.leggauss(200)
    z, w = 8 * nodes, 8 * mass * norm.pdf(8 * nodes)  # the normal distribution between -8 and 8

    def rates(sd: float) -> np.ndarray:
        middle = brentq(lambda m: w @ expit(m + sd * z) - one, -40 - 8 * sd, 40 + 8 * sd)
        return expit(middle + sd * z)

    if w @ rates(1e3) ** 2 <= two:  # items that always or never fail, finer than the nodes can tell
        return beta_binomial_pass(k, one, rho)
    sd = brentq(lambda s: w @ rates(s) ** 2 - two, 1e-3, 1e3, xtol=1e-6)
    return float(w @ rates(sd) ** k)


def expected_icc(
    one: np.ndarray, rho: np.ndarray, group: np.ndarray, at: float, at_group: str
) -> float:
    """The correlation to expect of a system of which only pass^1 is known, from others: a ridge regression of rho on
    logit pass^1 and the group (benchmark, domain); a group weighs as if one more system stood at the common line."""
    x, names = logit(np.clip(np.append(one, at), 0.01, 0.99)), np.unique(group)
    rows = np.column_stack([np.ones(len(x)), x, np.append(group, at_group)[:, None] == names])
    seen, penalty = rows[:-1], np.diag([1e-9, 1e-9] + [1.0] * len(names))
    weights = np.linalg.solve(seen.T @ seen + penalty, seen.T @ rho)
    return float(np.clip(rows[-1] @ weights, 0.01, 0.95))


def effective_trials(items: int, tries: float, rho: float) -> float:
    """Independent trials that tell as much as `tries` at each of `items` (Kish's design effect, 1 + (tries - 1) rho)."""
    return items * tries / (1 + (tries - 1) * rho)


@dataclass(frozen=True)
class Comparison:
    difference: float
    stderr: float
    interval: tuple[float, float]  # 95%
    p_value: float
    detectable: float  # the difference found with 80% power at 5%
    items: int


def compare(a: dict[Any, float], b: dict[Any, float]) -> Comparison:
    """Mean success by item of two systems, b - a, over the items that both tried; UserError if these are fewer than two."""
    d = np.array([b[i] - a[i] for i in sorted(a.keys() & b.keys())])
    n = len(d)
    if n < 2:
        raise UserError(
            f"a comparison needs two items or more that both systems tried; there are {n}"
        )
    # A half-sized discordant pair on each side: agreement on a few items is not certainty.
    error = float(np.sqrt((((d - d.mean()) ** 2).sum() + 0.5) / (n - 1) / n))
    half, p = norm.ppf(0.975) * error, float(2 * norm.sf(abs(d.mean()) / error))
    interval = (d.mean() - half, d.mean() + half)
    return Comparison(d.mean(), error, interval, p, (norm.ppf(0.975) + norm.ppf(0.8)) * error, n)


def trials_to_demonstrate(reliability: float, failures: int = 0, confidence: float = 0.95) -> int:
    """The least n such that n distinct trials with at most `failures` failing show `reliability` at `confidence`."""
    if not (0 < reliability < 1 and 0 < confidence < 1) or failures < 0:
        raise UserError(
            "a demonstration needs 0 < reliability < 1, 0 < confidence < 1 and failures >= 0"
        )
    low, high = failures, max(failures + 1, 16)
    while binom.cdf(failures, high, 1 - reliability) > 1 - confidence:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high)
            if binom.cdf(failures, middle, 1 - reliability) > 1 - confidence
            else (low, middle)
        )
    return high


def pass_probability(n: int, failures: int, truth: float) -> float:
    """That a system of reliability `truth` passes the plan: consumer's risk of a bad one, 1 - producer's of a good one."""
    return float(binom.cdf(failures, n, 1 - truth))
