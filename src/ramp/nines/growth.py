"""How a capability grows: Gaussian processes over log10 of compute or steps.

A curve y_r(x) of a run r, the logit of an accuracy or an ability, is a level, a shape and a random
walk. Each has a part that runs of like size share and a part of its own:

    y_r(x) = a + b·φ(x) + w(x) + a_r + b_r·φ(x) + w_r(x) + noise

φ(x) = x is linear growth in log compute, φ(x) = 10^(-q x) a saturating power law, and "local"
replaces φ by an integrated random walk, a trend that may turn. All are linear in Gaussian unknowns,
so a fit is a sum of variance components with a closed-form likelihood, and a forecast is a
conditional Gaussian. Evidence cannot tell the shapes apart: they are weighted by how well their
past forecasts scored, and widened by how often the truth fell outside (`learn_stacking`).
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.stats import chi2, norm

from ramp.errors import UserError
from ramp.nines import gaussian_process
from ramp.nines.intervals import Interval
from ramp.nines.trials import Columns

SHAPES = ("linear", "power 0.2", "power 0.5", "power 1.0", "local")
# Decades of size over which runs are alike: correlation exp(-|log10 ratio| / SIZE_DECADES).
SIZE_DECADES = 0.5
# Prior medians of the standard deviations, in logits per unit of their component; each is
# log-normal with standard deviation 1. Wide, since a decade of steps moves a finished curriculum by
# tenths of a logit, and a model that has just got the point by ten.
PRIOR_SD = np.array([
    0.6,  # level, shared by size
    1.8,  # shape, shared by size
    0.6,  # walk, shared by size
    0.3,  # level of a run
    0.6,  # shape of a run
    0.6,  # walk of a run
    0.18,  # noise of a checkpoint
    0.3,  # multiple of the stated standard error
])  # fmt: skip
NOISE, STATED = 6, 7  # places of the last two
# Standard deviations of what all curves have in common: level, slope of a line, other shapes.
LEVEL_SD, SLOPE_SD, SHAPE_SD = 2.0, 6.0, 3.0


@dataclass(frozen=True)
class Points(Columns):
    """Where curves are known or wanted."""

    x: ndarray  # log10 of compute or steps, minus that of the last known checkpoint
    size: ndarray  # log10 of parameters
    run: ndarray


@dataclass(frozen=True)
class Fit:
    """One shape of growth, fitted to known points."""

    shape: str
    known: Points
    start: float  # where the walks begin
    posterior: gaussian_process.Posterior

    @property
    def variances(self) -> ndarray:
        """[8] of the components, in the order of `PRIOR_SD`."""
        return self.posterior.scales**2

    def predict(self, to: Points) -> tuple[ndarray, ndarray]:
        """Mean [T] and covariance [T, T] of the curve, without noise."""
        cross, prior = (
            _kernel(self.shape, known, to, self.start, self.variances) for known in (self.known, to)
        )
        return self.posterior.predict(cross, prior)

    def noise_sd(self, stderr: float) -> float:
        """Standard deviation of a checkpoint around the curve.

        Only a part of its stated standard error is new each time: the same items are tried again.
        """
        return np.sqrt(self.variances[NOISE] + self.variances[STATED] * stderr**2)

    def predict_observation(self, to: Points, stderr: float) -> tuple[float, float]:
        """Mean and standard deviation of the logit that one checkpoint will show."""
        mean, cov = self.predict(to)
        return mean[0], np.sqrt(cov[0, 0] + self.noise_sd(stderr) ** 2)


def _components(shape, a, b, start):
    """Covariance of what all curves share, and of each component with variance 1; [A, B] each."""
    like_size = np.exp(-np.abs(a.size[:, None] - b.size) / SIZE_DECADES)
    same_run = (a.run[:, None] == b.run).astype(float)
    product = a.x[:, None] * b.x
    walk = np.minimum(a.x[:, None], b.x) - start  # a Wiener process
    if shape == "linear":
        phi = product
        common = SLOPE_SD**2 * product
    elif shape == "local":
        # Wahba's integrated Wiener process, and a slope.
        later = np.maximum(a.x[:, None], b.x) - start
        integrated = walk**2 * (3 * later - walk) / 6
        phi = integrated + 0.25 * product
        common = integrated + SHAPE_SD**2 * product
    else:
        rate = float(shape.removeprefix("power "))
        phi = 10.0 ** (-rate * (a.x[:, None] + b.x))
        common = SHAPE_SD**2 * phi
    parts = [alike * part for alike in (like_size, same_run) for part in (1, phi, walk)]
    return LEVEL_SD**2 + common, parts


def _kernel(shape, a, b, start, variances):
    common, parts = _components(shape, a, b, start)
    return common + sum(v * part for v, part in zip(variances, parts, strict=False))


def fit(shape: str, known: Points, y: ndarray, error: ndarray, independent: bool = False) -> Fit:
    """Fit the variance components of one shape by maximum a posteriori.

    y: [N] logits; error: [N] their standard errors, or [N, N] their covariance.
    independent: the errors are independent draws and count in full. If not, a part of them is
    fitted, since the same items are tried at every checkpoint.
    Raises UserError where there are fewer than two points.
    """
    n = len(y)
    if n < 2:
        raise UserError(
            f"{n} checkpoint cannot show growth; "
            "two are the least, and five make a forecast worth reading"
        )
    start = known.x.min()
    common, parts = _components(shape, known, known, start)
    stated = np.diag(error**2) if error.ndim == 1 else error
    parts = np.stack([*parts, np.eye(n), stated])
    fixed = common + 1e-9 * np.eye(n)
    prior_mean = np.log(PRIOR_SD)
    prior_sd = np.ones(len(PRIOR_SD))
    if independent:
        prior_mean[STATED] = 0
        prior_sd[STATED] = 0.01

    def covariance(log_sd):
        variances = np.exp(2 * log_sd)
        matrix = fixed + np.tensordot(variances, parts, 1)
        return matrix, 2 * variances[:, None, None] * parts

    posterior = gaussian_process.fit_map(covariance, y, prior_mean, prior_sd, (-9, 3), 60)
    return Fit(shape, known, start, posterior)


def sample_curves(
    fits: list[Fit], weights: ndarray, to: Points, n: int, rng: np.random.Generator
) -> ndarray:
    """[n, T] whole curves without noise, each from one of the shapes by their weights."""
    counts = rng.multinomial(n, weights / weights.sum())
    curves = []
    for fitted, count in zip(fits, counts, strict=True):
        mean, cov = fitted.predict(to)
        # Eigenvalues rather than Cholesky: curves at close places are nearly singular.
        values, vectors = np.linalg.eigh(cov)
        root = vectors * np.sqrt(np.maximum(values, 0))
        curves.append(mean + rng.standard_normal((count, len(mean))) @ root.T)
    return rng.permutation(np.concatenate(curves))


# Learning from past forecasts


@dataclass(frozen=True)
class Stacking:
    """What past forecasts taught: how much to trust each shape, and how far to widen."""

    weights: ndarray  # [K] of SHAPES
    widening: float  # factor on the spread, at least 1


def learn_stacking(scores: list[ndarray], pits: list[float]) -> Stacking:
    """Weights and widening from past forecasts.

    scores: [K] log densities of what happened, by shape, of each forecast.
    pits: probability integral transform of each forecast before any widening.
    """
    weights = stacking_weights(np.reshape(scores, (-1, len(SHAPES))))
    return Stacking(weights, widening_factor(np.array(pits)))


def stacking_weights(scores: ndarray) -> ndarray:
    """Weights [K] that maximise the mean log score of the mixture (Yao et al. 2018), by EM.

    scores: [N, K] log densities of what happened, by forecast and shape.
    """
    k = scores.shape[1]
    weights = np.full(k, 1 / k)
    likelihood = np.exp(scores - scores.max(1, keepdims=True))
    for _ in range(200):
        joint = weights * likelihood
        responsibility = joint / joint.sum(1, keepdims=True)
        # Each shape starts with one forecast's worth, so that few forecasts exclude none.
        weights = 1 + responsibility.sum(0)
        weights /= weights.sum()
    return weights


def widening_factor(pits: ndarray) -> float:
    """Factor of at least 1 on the spread under which past central 90% intervals would have covered.

    Split conformal prediction with one factor for all levels.
    """
    n = len(pits)
    if not n:
        return 1.0
    z = np.abs(norm.ppf(np.clip(pits, 1e-6, 1 - 1e-6)))
    factor = np.quantile(z, min(1.0, 0.9 * (1 + 1 / n))) / norm.ppf(0.95)
    # Few outcomes are little evidence: shrunk to 1 until some 20 forecasts have been scored.
    return max(1.0, factor) ** (n / (n + 20))


def widen(draws: ndarray, factor: float) -> ndarray:
    """[S, T] draws spread around their median by `factor`."""
    middle = np.median(draws, axis=0)
    return middle + factor * (draws - middle)


# Growth by repair


@dataclass(frozen=True)
class RepairGrowth:
    """Failures over rounds of repair. They thin out where the exponent is below 1."""

    exponent: float  # Crow-AMSAA's beta; 1 - beta is Duane's slope (hardware: .3 to .5)
    interval: Interval  # of the exponent, each end at the confidence asked for
    next_failures: float  # in as many trials again


def fit_repair(failures: ndarray, trials: float, confidence: float = 0.95) -> RepairGrowth:
    """Fit Crow-AMSAA, m(t) = λ t^β (MIL-HDBK-189C).

    failures: cumulative trials at each failure, 0 < t_i <= trials, time-truncated.
    Raises UserError where there are fewer than three.
    """
    times = np.sort(np.asarray(failures, float))
    n = len(times)
    if n < 3 or times[0] <= 0 or times[-1] > trials:
        raise UserError(
            f"reliability growth needs 3 or more failures at trials in (0, {trials:g}]; "
            f"there are {n}"
        )
    exponent = n / np.log(trials / times).sum() if times[0] < trials else 1.0
    low, high = (
        exponent * chi2.ppf(tail, 2 * n) / (2 * n) for tail in (1 - confidence, confidence)
    )
    return RepairGrowth(exponent, (low, high), n * (2**exponent - 1))
