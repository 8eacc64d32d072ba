"""Statistics of successes and failures that need no model: the one place for them in ramp.

Intervals for a success rate, pass@k and pass^k, correlation of repeated tries,
and how many trials demonstrate a reliability.

Failures are correlated within an item: an item that failed once tends to fail again. So k tries in
a row succeed more often than p^k predicts, and repeating the same items certifies nothing. What
counts is the number of distinct items (`effective_trials`).
"""

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import comb, expit, logit
from scipy.stats import beta, binom, nbinom, norm

from ramp.errors import UserError

Interval = tuple[float, float]  # its lower and upper end


def count_nines(reliability: float | ndarray) -> float | ndarray:
    """Reliability as a number of nines: .999 is 3. Fractions of a nine are allowed."""
    with np.errstate(divide="ignore"):
        return -np.log10(1 - np.asarray(reliability, float))


# Intervals for a success rate


def clopper_pearson(successes: float, trials: float, level: float = 0.95) -> Interval:
    """Two-sided interval that covers at least `level` whatever the truth is.

    Clopper & Pearson 1934. `successes` of `trials` independent trials succeeded.
    """
    return _beta_interval(successes, trials, level, 0)


def jeffreys(successes: float, trials: float, level: float = 0.95) -> Interval:
    """Equal-tailed interval under the prior Beta(1/2, 1/2) (Brown, Cai & DasGupta 2001).

    It ends at 0 where nothing succeeded and at 1 where everything did.
    """
    return _beta_interval(successes, trials, level, 0.5)


def _beta_interval(successes, trials, level, shift):
    """Quantiles of two beta distributions, each `shift` from the counts that it leans on."""
    tail = (1 - level) / 2
    failures = trials - successes
    low = 0.0
    high = 1.0
    if successes > 0:
        low = beta.ppf(tail, successes + shift, failures + 1 - shift)
    if failures > 0:
        high = beta.ppf(1 - tail, successes + 1 - shift, failures + shift)
    return float(low), float(high)


def lower_bound(successes: float, trials: float, level: float = 0.95) -> float:
    """One-sided lower bound of the success rate at confidence `level` (Clopper & Pearson 1934)."""
    # One tail of a two-sided interval that leaves as much in the other.
    return clopper_pearson(successes, trials, 2 * level - 1)[0]


# Several tries at one item


def all_of_k(k: ArrayLike, successes: ArrayLike, trials: ArrayLike) -> ndarray:
    """[I] the chance that k tries, drawn from the trials of an item, all succeed."""
    return np.asarray(comb(successes, k) / comb(trials, k))


def pass_hat_k(k: int, successes: ArrayLike, trials: ArrayLike) -> float:
    """pass^k: the chance that all of k tries at an item succeed, averaged over items.

    Unbiased: mean of C(s, k) / C(n, k) over items with s successes in n tries (Yao et al. 2024).
    successes, trials: [I]. Raises UserError where an item has fewer than k tries.
    """
    fewest = int(np.min(trials))
    if fewest < k:
        raise UserError(f"k = {k} needs {k} tries at every item; one has {fewest}")
    return float(np.mean(all_of_k(k, successes, trials)))


def pass_at_k(k: int, successes: ArrayLike, trials: ArrayLike) -> float:
    """pass@k: the chance that at least one of k tries succeeds, averaged over items.

    Unbiased: mean of 1 - C(n - s, k) / C(n, k) over items (Chen et al. 2021).
    successes, trials: [I]. Raises UserError where an item has fewer than k tries.
    """
    return 1 - pass_hat_k(k, np.asarray(trials) - successes, trials)


def intraclass_correlation(successes: ndarray, trials: ndarray) -> float:
    """Correlation of two tries at the same item, from one-way analysis of variance; in [0, 1].

    successes, trials: [I]. NaN where no item was tried twice.
    """
    items = len(trials)
    total = trials.sum()
    if items < 2 or total <= items:
        return np.nan
    # One-way analysis of variance: mean squares between and within items.
    mean = successes.sum() / total
    rate = successes / trials
    between = (trials * (rate - mean) ** 2).sum() / (items - 1)
    within = (successes * (1 - rate)).sum() / (total - items)
    # The number of tries at an item that counts where items have different numbers of them.
    tries = (total - (trials**2).sum() / total) / (items - 1)
    total_variance = between + (tries - 1) * within
    if total_variance <= 0:
        return 0.0
    return np.clip((between - within) / total_variance, 0, 1)


def beta_binomial_pass_hat_k(k: int, mean: float, correlation: float) -> float:
    """pass^k where success rates of items have a beta distribution.

    mean: of the rates; correlation: of two tries at the same item.
    """
    if correlation >= 1:
        return mean
    if correlation <= 0:
        return mean**k
    precision = 1 / correlation - 1
    earlier = np.arange(k)  # a + b of the beta distribution
    return np.prod((mean * precision + earlier) / (precision + earlier))


def logit_normal_pass_hat_k(k: int, pass_1: float, pass_2: float) -> float:
    """pass^k from pass^1 and pass^2 where the logit of an item's rate is normal.

    Both moments are matched. Compared with a beta distribution of the same moments, fewer items
    never fail.
    """
    correlation = (pass_2 - pass_1**2) / max(pass_1 * (1 - pass_1), 1e-12)
    if correlation <= 1e-3 or correlation >= 0.999 or not 0 < pass_1 < 1:
        return beta_binomial_pass_hat_k(k, pass_1, np.clip(correlation, 0, 1))
    # Quadrature over the normal distribution between -8 and 8 standard deviations.
    nodes, mass = np.polynomial.legendre.leggauss(200)
    z = 8 * nodes
    weights = 8 * mass * norm.pdf(z)

    def match_pass_1(sd):
        # The rates at the nodes, at the mean logit for which they average to pass^1.
        reach = 40 + 8 * sd
        center = brentq(lambda m: weights @ expit(m + sd * z) - pass_1, -reach, reach)
        return expit(center + sd * z)

    # Items that always or never fail are more extreme than the nodes can resolve.
    if weights @ match_pass_1(1e3) ** 2 <= pass_2:
        return beta_binomial_pass_hat_k(k, pass_1, correlation)
    sd = brentq(lambda s: weights @ match_pass_1(s) ** 2 - pass_2, 1e-3, 1e3, xtol=1e-6)
    return weights @ match_pass_1(sd) ** k


def predict_correlation(
    pass_1: ndarray,
    correlation: ndarray,
    group: ndarray,
    new_pass_1: float,
    new_group: str,
) -> float:
    """The intra-class correlation to expect of a system of which only pass^1 is known.

    A ridge regression over other systems, of the correlation on logit pass^1 and the group
    (benchmark, domain). The penalty pulls a group to the common line as one more system would.
    pass_1, correlation, group: [N] of the other systems.
    """
    x = logit(np.clip(np.append(pass_1, new_pass_1), 0.01, 0.99))
    names = np.unique(group)
    one_hot = np.append(group, new_group)[:, None] == names
    features = np.column_stack([np.ones(len(x)), x, one_hot])
    train = features[:-1]
    penalty = np.diag([1e-9, 1e-9] + [1.0] * len(names))
    weights = np.linalg.solve(train.T @ train + penalty, train.T @ correlation)
    return np.clip(features[-1] @ weights, 0.01, 0.95)


def effective_trials(items: int, tries: float, correlation: float) -> float:
    """Independent trials worth as much as `tries` at each of `items`.

    Kish's design effect, 1 + (tries - 1) correlation.
    """
    return items * tries / (1 + (tries - 1) * correlation)


# Demonstrations


def trials_to_demonstrate(reliability: float, failures: int = 0, confidence: float = 0.95) -> int:
    """The fewest distinct trials that demonstrate `reliability` with at most `failures` failing.

    Raises UserError where the plan is impossible.
    """
    if not (0 < reliability < 1 and 0 < confidence < 1) or failures < 0:
        raise UserError(
            "a demonstration needs 0 < reliability < 1, 0 < confidence < 1 and failures >= 0"
        )
    # Of a system just bad enough, one failure more happens within them with this confidence.
    successes = nbinom.ppf(confidence, failures + 1, 1 - reliability)
    return int(successes) + failures + 1


def pass_probability(trials: int, failures: int, reliability: float) -> float:
    """The chance that a system of this reliability passes a plan of `trials` with `failures`.

    Of a bad system this is the consumer's risk, of a good one 1 minus the producer's risk.
    """
    return binom.cdf(failures, trials, 1 - reliability)
