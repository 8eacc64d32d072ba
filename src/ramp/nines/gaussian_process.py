"""Gaussian-process regression whose scales are fitted at the mode of their posterior.

Growth over compute and observational scaling share it; they differ in their covariance only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

# log scales [P] -> ([N, N] covariance, [P, N, N] its derivatives by each log scale)
Covariance = Callable[[ndarray], tuple[ndarray, ndarray]]


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process conditioned on N values."""

    scales: ndarray  # [P] the fitted scales
    mean: float  # of the process before it is conditioned
    chol: ndarray  # [N, N] lower factor of the covariance of the values
    alpha: ndarray  # [N] its inverse times the values, less the mean

    def predict(self, cross: ndarray, prior: ndarray) -> tuple[ndarray, ndarray]:
        """Mean [T] and covariance [T, T] at new points, without noise.

        cross: [N, T] covariance of known and new points; prior: [T, T] of the new points.
        """
        mean = self.mean + cross.T @ self.alpha
        return mean, prior - cross.T @ cho_solve((self.chol, True), cross)


def fit_map(
    covariance: Covariance,
    y: ndarray,
    prior_mean: ndarray,
    prior_sd: ndarray,
    bounds: tuple[float, float],
    max_iterations: int,
) -> Posterior:
    """Fit the log scales by maximum a posteriori, then condition on the values.

    y: [N] values, whose average is taken as the mean of the process.
    prior_mean, prior_sd: [P] of the log scales, normal; bounds: of every log scale.
    """
    mean = y.mean()
    centered = y - mean

    def loss(log_scales):
        # Negative log posterior up to a constant, and its exact gradient.
        matrix, derivatives = covariance(log_scales)
        try:
            chol = cholesky(matrix, lower=True)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(len(log_scales))
        alpha = cho_solve((chol, True), centered)
        off = (log_scales - prior_mean) / prior_sd
        value = 0.5 * centered @ alpha + np.log(np.diag(chol)).sum() + 0.5 * off @ off
        slope = cho_solve((chol, True), np.eye(len(y))) - np.outer(alpha, alpha)
        gradient = 0.5 * np.tensordot(derivatives, slope, 2) + off / prior_sd
        return value, gradient

    fitted = minimize(
        loss,
        prior_mean,
        jac=True,
        method="L-BFGS-B",
        bounds=[bounds] * len(prior_mean),
        options={"maxiter": max_iterations},
    )
    chol = cholesky(covariance(fitted.x)[0], lower=True)
    return Posterior(np.exp(fitted.x), mean, chol, cho_solve((chol, True), centered))
