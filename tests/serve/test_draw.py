"""Drawing on the host compared with drawing on the device."""

from collections import Counter

import jax
import numpy as np
import pytest
import tiny

from ramp.decode import batch
from ramp.decode.batch import ALLOW_ALL, DrawSettings
from ramp.decode.sample import SamplingParams, shard_rows
from ramp.serve.draw import adjust_logits, describe_tokens, draw_token, weigh_tokens
from ramp.serve.jobs import Job

VOCAB = 500
SETTINGS = {
    "all": SamplingParams(1.0),
    "hot": SamplingParams(1.7),
    "few": SamplingParams(0.8, top_k=7),
    "more than there are": SamplingParams(0.8, top_k=10 * VOCAB),
    "nucleus": SamplingParams(1.0, top_p=0.6),
    "narrow nucleus": SamplingParams(1.0, top_p=1e-6),
    "least": SamplingParams(1.0, min_p=0.2),
    "nobody": SamplingParams(1.0, top_p=0.0),
    "together": SamplingParams(1.3, top_k=40, top_p=0.9, min_p=0.01),
}


def make_job(sampling=SETTINGS["all"], **settings) -> Job:
    return Job((1, 2), 9, sampling, settings.pop("seed", 3), lambda tokens, why: None, **settings)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(0).normal(size=(6, VOCAB)).astype(np.float32)


@pytest.mark.parametrize("name", SETTINGS)
def test_filters_are_those_of_the_device(logits, name):
    sampling = SETTINGS[name]
    rows = jax.tree.map(lambda value: np.full(len(logits), value, np.float32), sampling)
    shifted = logits - logits.max(axis=1, keepdims=True)
    kept = batch.filter_top(shifted / sampling.temperature, rows)
    kept = np.exp(np.asarray(kept))
    kept[kept < sampling.min_p] = 0
    ours = np.array([weigh_tokens(row, sampling) for row in logits])
    assert ((ours > 0) == (kept > 0)).all()
    np.testing.assert_allclose(ours, kept, rtol=1e-5)


def test_ties_share_their_fate():
    logits = np.zeros(8, np.float32)
    assert (weigh_tokens(logits, SamplingParams(1.0, top_k=1)) == 1).all()
    assert (weigh_tokens(logits, SamplingParams(1.0, top_p=0.1)) == 1).all()


def test_draws_follow_the_probabilities(logits):
    """Chi-square of 20,000 draws at 20,000 places, all with one seed."""
    job = make_job(SamplingParams(1.0, top_k=5))
    counts = Counter(draw_token(logits[0], place, job) for place in range(20_000))
    p_v = weigh_tokens(logits[0], job.sampling)
    p_v = p_v / p_v.sum()
    want = 20_000 * p_v[p_v > 0]
    got = np.array([counts[i] for i in np.flatnonzero(p_v)])
    assert sum(counts.values()) == got.sum()
    assert ((got - want) ** 2 / want).sum() < 18.5  # .999 of chi-square with 4 degrees


def test_seeds_numbers_and_places_have_draws_of_their_own():
    flat = np.zeros(100_000, np.float32)
    jobs = [make_job(seed=seed, number=number) for seed in (3, 4) for number in (0, 1)]
    jobs += [make_job(seed=seed) for seed in (-1, -2, 2**63, 2**63 + 1)]
    drawn = [draw_token(flat, place, job) for job in jobs for place in range(50)]
    assert len(set(drawn)) > 390
    assert drawn == [draw_token(flat, place, job) for job in jobs for place in range(50)]


def test_tiny_temperatures_are_greedy(logits):
    for temperature in (0.0, 1e-30, 1e-5):
        job = make_job(SamplingParams(temperature))
        assert draw_token(logits[0], 5, job) == logits[0].argmax()


def test_adjusting_is_that_of_the_device(logits):
    class Even:
        """Lets even tokens follow."""

        num_tokens = None
        failed_after = None

        def fill(self, allowed_w):
            allowed_w &= np.int32(0x55555555)

    bias = {3: 2.0, 8: -100.0, 11: 100.0}
    job = make_job(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=bias, constraint=Even())
    job.answer = [8, 8, 10, 4]
    words = -(-VOCAB // 32)
    counts = np.bincount(job.answer, minlength=VOCAB).astype(np.float32)
    bias_v = np.zeros(VOCAB, np.float32)
    bias_v[list(bias)] = list(bias.values())
    allowed = np.full((1, words), ALLOW_ALL, np.int32)
    job.constraint.fill(allowed[0])
    settings = DrawSettings(
        seed=None,
        sampling=None,
        logprobs=None,
        is_adjusted=None,
        presence_penalty=np.float32([0.5]),
        frequency_penalty=np.float32([0.25]),
        bias_v=bias_v[None],
        counts_v=counts[None],
    )
    want = np.asarray(batch.adjust_logits(logits[:1], settings, allowed))[0]
    np.testing.assert_allclose(adjust_logits(logits[0], job), want, rtol=1e-6)
    # The caller's logits are left as they were.
    assert np.isfinite(logits).all()


def test_figures_are_those_of_the_device(logits):
    ids = np.array([0, 5, 9, 499, 3, 3])
    with jax.set_mesh(tiny.mesh()):
        want = batch.describe_tokens(*shard_rows(logits, ids), np.array(True))
    ours = describe_tokens(logits, ids, 20)
    for name, value in vars(ours).items():
        np.testing.assert_allclose(value, np.asarray(getattr(want, name)), atol=1e-5)


def test_numbers_that_are_not_finite_end_nothing():
    logits = np.full(VOCAB, np.nan, np.float32)
    for sampling in SETTINGS.values():
        assert 0 <= draw_token(logits, 1, make_job(sampling)) < VOCAB
    assert np.isnan(describe_tokens(logits[None], np.array([0]), 3).entropy_bn[0])
