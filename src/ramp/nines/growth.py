"""How a capability grows: Gaussian processes over log10 of compute or steps, pooled over runs, stacked by past scores.

A curve y_run(x), the logit of an accuracy or an ability, is a level, a shape and a random walk; each has a part shared by
runs of like size and a part of its own:

    y_r(x) = a + b·φ(x) + w(x) + a_r + b_r·φ(x) + w_r(x) + noise

φ(x) = x is linear growth in log-compute; 10^(-q x) a saturating power law; "local" replaces φ by an integrated random
walk, a trend that may turn. All are linear in Gaussian unknowns, so fitting is a sum of variance components with a
closed-form likelihood, and a forecast is a conditional Gaussian. Evidence cannot separate the shapes: they are weighted
by how well their past forecasts scored (`stack`), and widened by how often the truth fell outside (`widening`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import brentq, minimize
from scipy.stats import chi2, norm

from ramp.errors import UserError

SHAPES = ("linear", "power 0.2", "power 0.5", "power 1.0", "local")
NEAR = 0.5  # decades of size over which runs are alike: correlation exp(-|log10 ratio| / NEAR)
# Prior medians of the standard deviations, logits per unit of their component; each log-normal with sd 1: level, shape and
# walk shared by size; level, shape and walk of a run; checkpoint noise; the multiple of the stated standard error. Wide,
# since a decade of steps moves a finished curriculum by tenths of a logit and a model that just got the point by ten.
PRIOR = np.array([0.6, 1.8, 0.6, 0.3, 0.6, 0.6, 0.18, 0.3])
LEVEL, SLOPE, BEND = (
    2.0,
    6.0,
    3.0,
)  # of what all curves have in common: its level, a line's slope, other shapes' scale


@dataclass(frozen=True)
class Points:
    """Where curves are known or asked for. x: log10 compute or step minus that of now; size: log10 parameters; run: labels."""

    x: np.ndarray
    size: np.ndarray
    run: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Points":
        return Points(self.x[rows], self.size[rows], self.run[rows])


@dataclass(frozen=True)
class Fit:
    shape: str
    at: Points
    start: float  # where the walks begin
    mean: float
    variances: np.ndarray  # of the 8 components
    chol: np.ndarray
    alpha: np.ndarray

    def predict(self, to: Points) -> tuple[np.ndarray, np.ndarray]:
        """Mean [T] and covariance [T, T] of the noiseless curve."""
        ks = _kernel(self.shape, self.at, to, self.start, self.variances)
        kt = _kernel(self.shape, to, to, self.start, self.variances)
        return self.mean + ks.T @ self.alpha, kt - ks.T @ cho_solve((self.chol, True), ks)

    def noise(self, error: float) -> float:
        """Standard deviation of a checkpoint beside the curve. Of its stated standard error only a part is fresh each
        time: the same items are asked again."""
        return float(np.sqrt(self.variances[6] + self.variances[7] * error**2))

    def shown(self, to: Points, error: float) -> tuple[float, float]:
        """Mean and standard deviation of the logit that one checkpoint will show, its stated error included."""
        mean, cov = self.predict(to)
        return mean[0], np.sqrt(cov[0, 0] + self.noise(error) ** 2)


def _parts(shape: str, a: Points, b: Points, start: float) -> tuple[np.ndarray, list[np.ndarray]]:
    near = np.exp(-np.abs(a.size[:, None] - b.size) / NEAR)
    same = (a.run[:, None] == b.run).astype(float)
    low = np.minimum(a.x[:, None], b.x) - start  # covariance of a Wiener process
    if shape == "linear":
        phi, vague = a.x[:, None] * b.x, SLOPE**2 * a.x[:, None] * b.x
    elif shape == "local":  # Wahba's integrated Wiener process, and a slope
        high = np.maximum(a.x[:, None], b.x) - start
        phi = low**2 * (3 * high - low) / 6 + 0.25 * a.x[:, None] * b.x
        vague = low**2 * (3 * high - low) / 6 + BEND**2 * a.x[:, None] * b.x
    else:
        q = float(shape.split()[1])
        phi = 10.0 ** (-q * (a.x[:, None] + b.x))
        vague = BEND**2 * phi
    return LEVEL**2 + vague, [near, phi * near, low * near, same, phi * same, low * same]


def _kernel(shape: str, a: Points, b: Points, start: float, variances: np.ndarray) -> np.ndarray:
    vague, parts = _parts(shape, a, b, start)
    return vague + sum(v * p for v, p in zip(variances, parts, strict=False))


def fit(shape: str, at: Points, y: np.ndarray, error: np.ndarray, fresh: bool = False) -> Fit:
    """Variance components by maximum a posteriori (type II), with exact gradients.

    y: [N] logits; error: [N] their standard errors, or [N, N] their covariance; fresh: the errors are independent draws
    and count in full, not what the same items asked again leave of them.
    """
    n = len(y)
    if n < 2:
        raise UserError(
            f"{n} checkpoint cannot show growth; two are the least, and five make a forecast worth reading"
        )
    start, mean = float(at.x.min()), float(y.mean())
    vague, parts = _parts(shape, at, at, start)
    stated = np.diag(error**2) if error.ndim == 1 else error
    pieces = np.stack([*parts, np.eye(n), stated])
    center, spread = np.log(PRIOR), np.ones(8)
    if fresh:
        center[7], spread[7] = 0, 0.01

    def loss(h: np.ndarray) -> tuple[float, np.ndarray]:
        v = np.exp(2 * h)
        try:
            chol = cholesky(vague + np.tensordot(v, pieces, 1) + 1e-9 * np.eye(n), lower=True)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(8)
        alpha = cho_solve((chol, True), y - mean)
        outer = cho_solve((chol, True), np.eye(n)) - np.outer(alpha, alpha)
        off = (h - center) / spread
        value = 0.5 * (y - mean) @ alpha + np.log(np.diag(chol)).sum() + 0.5 * off @ off
        return value, v * np.tensordot(pieces, outer, 2) + off / spread

    found = minimize(
        loss, center, jac=True, method="L-BFGS-B", bounds=[(-9, 3)] * 8, options={"maxiter": 60}
    )
    v = np.exp(2 * found.x)
    chol = cholesky(vague + np.tensordot(v, pieces, 1) + 1e-9 * np.eye(n), lower=True)
    return Fit(shape, at, start, mean, v, chol, cho_solve((chol, True), y - mean))


def draw(
    fits: list[Fit], weights: np.ndarray, to: Points, n: int, rng: np.random.Generator
) -> np.ndarray:
    """[n, T] whole curves, without noise, each from one of the shapes."""
    counts = rng.multinomial(n, weights / weights.sum())
    curves = []
    for f, count in zip(fits, counts, strict=True):
        mean, cov = f.predict(to)
        values, vectors = np.linalg.eigh(cov)
        root = vectors * np.sqrt(np.maximum(values, 0))
        curves.append(mean + rng.standard_normal((count, len(mean))) @ root.T)
    return rng.permutation(np.concatenate(curves))


def stack(scores: np.ndarray) -> np.ndarray:
    """Weights [K] that maximise the mean log score of the mixture over past forecasts (Yao et al. 2018), by EM.

    scores: [N, K] log densities of what happened, by forecast and shape. Each shape starts with one forecast's worth.
    """
    k = scores.shape[1]
    w = np.full(k, 1 / k)
    likelihood = np.exp(scores - scores.max(1, keepdims=True)) if len(scores) else np.ones((0, k))
    for _ in range(200):
        share = w * likelihood
        w = 1 + (share / share.sum(1, keepdims=True)).sum(0)
        w /= w.sum()
    return w


def learn_weights(scores: list[np.ndarray], pits: list[float]) -> tuple[np.ndarray, float]:
    """Weights of the shapes and widening of the intervals, from past forecasts: log densities by shape, and PIT as they were
    before any widening."""
    return stack(np.reshape(scores, (-1, len(SHAPES)))), widening(np.array(pits))


def widening(pit: np.ndarray) -> float:
    """Factor >= 1 on the spread under which past central 90% intervals would have covered (split conformal, one
    factor for all levels); shrunk to 1 while fewer than about 20 forecasts have been scored."""
    if len(pit) == 0:
        return 1.0
    z = np.abs(norm.ppf(np.clip(pit, 1e-6, 1 - 1e-6)))
    factor = np.quantile(z, min(1.0, 0.9 * (1 + 1 / len(z)))) / norm.ppf(0.95)
    return float(max(1.0, factor) ** (len(z) / (len(z) + 20)))


def widen(draws: np.ndarray, factor: float) -> np.ndarray:
    middle = np.median(draws, axis=0)
    return middle + factor * (draws - middle)


@dataclass(frozen=True)
class RepairModel:
    """Failures over rounds of repair. beta < 1: they thin out. alpha = 1 - beta is Duane's slope (hardware: .3-.5)."""

    beta: float
    interval: tuple[float, float]  # of beta, 90%
    intensity: float  # failures per trial now
    remaining: float | None  # failures left, by Goel-Okumoto; None: it sees no end
    next_failures: tuple[float, float]  # in as many trials again: Crow-AMSAA, Goel-Okumoto


def repair(failures: np.ndarray, trials: float) -> RepairModel:
    """Crow-AMSAA power law, m(t) = λ t^β (MIL-HDBK-189C), and Goel-Okumoto, m(t) = a (1 - exp(-b t)).

    failures: cumulative trials at each failure, 0 < t_i <= trials: time-truncated.
    """
    t = np.sort(np.asarray(failures, float))
    n = len(t)
    if n < 3 or t[0] <= 0 or t[-1] > trials:
        raise UserError(
            f"reliability growth needs 3 or more failures at trials in (0, {trials:g}]; there are {n}"
        )
    beta = n / np.log(trials / t).sum() if t[0] < trials else 1.0
    low, high = (beta * chi2.ppf(p, 2 * n) / (2 * n) for p in (0.05, 0.95))
    mean = (
        t.mean() / trials
    )  # Goel-Okumoto has a finite end only if failures came early: mean time < T / 2
    remaining, goel = None, n
    if mean < 0.5 - 1e-9:
        b = brentq(lambda b: 1 / b - 1 / np.expm1(b) - mean, 1e-6, 500)
        a = n / -np.expm1(-b)
        remaining, goel = a - n, a * (np.exp(-b) - np.exp(-2 * b))
    return RepairModel(
        beta, (low, high), n * beta / trials, remaining, (n * (2**beta - 1), float(goel))
    )
