"""NUTS as the oracle of the marginal Laplace; numpyro comes with the extra `oracle`."""

import time

import jax
import numpy as np
import pytest
from scipy.special import expit

from ramp.nines import items


def suite(seed: int, count: int, models: int, tries: int, families: int) -> items.Cells:
    """Cells of a suite simulated from the item model itself."""
    rng = np.random.default_rng(seed)
    family, hard = rng.integers(0, families, count), rng.normal(0, 1.5, count)
    effect, of_family = rng.normal(0, 1.5, count), rng.normal(0, 1, families)
    progress = np.linspace(-2, 0, models)
    m, i = (a.ravel() for a in np.meshgrid(np.arange(models), np.arange(count), indexing="ij"))
    eta = 1.5 + 1.5 * progress[m] - 0.5 * hard[i] - of_family[family[i]] - effect[i]
    p = (1 - 0.02) * expit(eta)
    wins = rng.binomial(tries, rng.beta(p * 6, (1 - p) * 6)).astype(float)
    names = [str(k) for k in range(count)]
    return items.Cells(
        m, i, np.zeros(len(m), int), wins, np.full(len(m), float(tries)), np.zeros(len(m)),
        np.full(models, "run"), progress, names, ["base"], family, hard - hard.mean(), names[:families],
    )  # fmt: skip


def nuts(c: items.Cells, warmup: int, samples: int) -> dict[str, np.ndarray]:
    """The same posterior, written apart: non-centred effects, numpyro's own beta-binomial."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    def model():
        sd_item = jnp.exp(numpyro.sample("log_item", dist.Normal(*_prior(0))))
        sd_family = jnp.exp(numpyro.sample("log_family", dist.Normal(*_prior(1))))
        phi = jnp.exp(numpyro.sample("log_phi", dist.Normal(*_prior(2))))
        theta = numpyro.sample("theta", dist.Normal(0, 5).expand([len(c.runs)]))
        beta = numpyro.sample("beta", dist.Normal(0, 1))
        family = sd_family * numpyro.sample("family", dist.Normal(0, 1).expand([len(c.families)]))
        effect = sd_item * numpyro.sample("effect", dist.Normal(0, 1).expand([len(c.items)]))
        level = numpyro.sample("level", dist.Normal(*items.LAPSE))
        trend = numpyro.sample("trend", dist.Normal(*items.TREND))
        hard = beta * c.difficulty + family[c.family] + effect
        lapse = jax.nn.sigmoid(level + trend * c.x)[c.model]
        p = jnp.clip((1 - lapse) * jax.nn.sigmoid(theta[c.model] - hard[c.item]), 1e-6, 1 - 1e-6)
        numpyro.sample("wins", dist.BetaBinomial(p * phi, (1 - p) * phi, c.count), obs=c.successes)

    mcmc = MCMC(
        NUTS(model, max_tree_depth=7), num_warmup=warmup, num_samples=samples, progress_bar=False
    )
    mcmc.run(jax.random.PRNGKey(0))
    s = mcmc.get_samples()
    return {k: np.asarray(s[k]) for k in ("log_item", "log_family", "log_phi", "theta", "beta")}


def _prior(k: int) -> tuple[float, float]:
    return float(items.HYPER_MEAN[k]), float(items.HYPER_SD[k])


def agreement(c: items.Cells, warmup: int, samples: int) -> tuple[np.ndarray, float, float]:
    """Ratio of the scales (item, family, φ), and the seconds of Laplace and of NUTS, compilation included in both."""
    start = time.perf_counter()
    fit = items.fit(c)
    middle = time.perf_counter()
    oracle = nuts(c, warmup, samples)
    end = time.perf_counter()
    scales = np.exp([oracle[k].mean() for k in ("log_item", "log_family", "log_phi")])
    print(
        "laplace",
        np.exp(np.log(fit.hyper).mean(0)),
        "nuts",
        scales,
        f"{middle - start:.0f} s, {end - middle:.0f} s",
    )
    print(
        "abilities",
        np.abs(fit.mean[: len(c.runs)] - oracle["theta"].mean(0)).max(),
        oracle["theta"].std(0).max(),
    )
    return np.exp(np.log(fit.hyper).mean(0)) / scales, middle - start, end - middle


def test_scales_agree_on_a_small_suite():
    pytest.importorskip("numpyro", reason="the extra `oracle` is not installed")
    ratio, _, _ = agreement(suite(0, 150, 4, 4, 8), 200, 300)
    assert np.all(np.abs(ratio - 1) < 0.2), ratio


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_scales_agree_on_two_thousand_items_ten_times_as_fast():
    pytest.importorskip("numpyro", reason="the extra `oracle` is not installed")
    ratio, laplace, sampling = agreement(suite(1, 2000, 8, 4, 20), 300, 300)
    assert np.all(np.abs(ratio - 1) < 0.1), ratio
    assert sampling > 10 * laplace
