import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from ramp.errors import UserError
from ramp.nines import growth
from ramp.nines.growth import SHAPES, Points


def points(x, run="a", size=0.0):
    x = np.asarray(x, float)
    return Points(x, np.full(len(x), size), np.array([run] * len(x)))


@pytest.mark.parametrize("shape", SHAPES)
def test_prediction_is_the_conditional_gaussian(shape):
    """Against a joint covariance inverted as a whole."""
    rng = np.random.default_rng(0)
    at, to = points(np.linspace(-1, 0, 6)), points([0.2, 0.7])
    y = rng.normal(size=6)
    f = growth.fit(shape, at, y, np.full(6, 0.1))
    both = points(np.concatenate([at.x, to.x]))
    k = growth._kernel(shape, both, both, f.start, f.variances)
    k[:6, :6] += np.diag(np.full(6, f.noise_sd(0.1) ** 2))
    inverse = np.linalg.inv(k + 1e-9 * np.eye(8))
    cov = np.linalg.inv(inverse[6:, 6:])
    mean = f.posterior.mean - cov @ inverse[6:, :6] @ (y - f.posterior.mean)
    assert np.allclose(f.predict(to)[0], mean, atol=1e-4)
    assert np.allclose(f.predict(to)[1], cov, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_fit_is_a_maximum(shape):
    """The gradient is right: no nearby variances are likelier, by scipy's own density."""
    rng = np.random.default_rng(1)
    at, y = points(np.linspace(-1, 0, 12)), np.linspace(-1, 1, 12) + rng.normal(0, 0.1, 12)
    error = np.full(12, 0.2)
    f = growth.fit(shape, at, y, error)

    def posterior(h):
        v = np.exp(2 * h)
        k = growth._kernel(shape, at, at, f.start, v) + np.diag(v[6] + v[7] * error**2)
        prior = norm.logpdf(h, np.log(growth.PRIOR_SD), 1).sum()
        return multivariate_normal.logpdf(y - f.posterior.mean, cov=k + 1e-9 * np.eye(12)) + prior

    h = np.log(f.variances) / 2
    best = posterior(h)
    assert all(posterior(h + 0.05 * rng.normal(size=8)) < best + 1e-4 for _ in range(40))


def test_linear_growth_is_found_and_its_interval_widens():
    x = np.linspace(-1, 0, 10)
    f = growth.fit("linear", points(x), 2 * x, np.full(10, 0.05))
    mean, cov = f.predict(points([0.5, 1.0]))
    assert mean == pytest.approx([1, 2], abs=0.25)
    assert cov[1, 1] > cov[0, 0] > 0


def test_a_finished_run_teaches_an_unfinished_one():
    x = np.linspace(-1, 1, 13)
    curve = -1.0 * 10 ** (-0.5 * x)
    at = points(np.concatenate([x, x[:7]]), size=0.0)
    at = Points(at.x, np.r_[np.zeros(13), np.full(7, 0.3)], np.array(["a"] * 13 + ["b"] * 7))
    y = np.concatenate([curve, curve[:7] + 0.5])
    to = Points(np.array([1.0]), np.array([0.3]), np.array(["b"]))
    f = growth.fit("linear", at, y, np.full(20, 0.02))
    alone = growth.fit("linear", at[np.arange(13, 20)], y[13:], np.full(7, 0.02))
    assert abs(f.predict(to)[0][0] - (curve[-1] + 0.5)) < abs(
        alone.predict(to)[0][0] - (curve[-1] + 0.5)
    )


def test_stacking_prefers_what_scored_better_and_starts_even():
    assert growth.stacking_weights(np.zeros((0, 3))) == pytest.approx([1 / 3] * 3)
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)
    w = growth.stacking_weights(
        np.stack([norm.logpdf(y), norm.logpdf(y, 3), norm.logpdf(y, 0, 5)], 1)
    )
    assert w[0] > 0.9


def test_widening_restores_coverage_and_never_narrows():
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=4000)  # the truth scatters twice as far as was said
    assert growth.widening_factor(norm.cdf(z)) == pytest.approx(2, rel=0.1)
    assert growth.widening_factor(norm.cdf(z / 4)) == 1
    assert growth.widening_factor(np.zeros(0)) == 1
    assert (
        1 < growth.widening_factor(norm.cdf(np.full(5, 5.0))) < 1.5
    )  # few outcomes are little evidence


@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_crow_amsaa_interval_covers(beta):
    rng, inside, ahead = np.random.default_rng(0), 0, []
    for _ in range(200):
        n = rng.poisson(60)
        r = growth.fit_repair(1000 * rng.random(n) ** (1 / beta), 1000.0)
        inside += r.interval[0] <= beta <= r.interval[1]
        ahead.append(r.next_failures)
    assert 0.84 < inside / 200 < 0.96
    assert np.median(ahead) == pytest.approx(60 * (2**beta - 1), rel=0.12)


def test_two_failures_show_no_growth():
    with pytest.raises(UserError, match="3 or more"):
        growth.fit_repair(np.array([1.0, 2.0]), 10)


def test_one_checkpoint_is_no_growth():
    with pytest.raises(UserError, match="1 checkpoint"):
        growth.fit("linear", points([0.0]), np.zeros(1), np.ones(1))
