"""Samples that can be made again, log-probabilities that agree, gradients against jax.grad, prompts with outside entropy."""

import jax
import numpy as np
import pytest
import tiny

from experiments.collapse.world import sobol_grid
from ramp.decode.sample import SamplingParams
from ramp.model.loss import next_token_loss
from ramp.synth import generate, prompts
from ramp.synth.prompts import Prompt
from ramp.synth.scores import ModelScorer

C = tiny.model(context_len=32, vocab_size=96)
BOS, N, BATCH = 90, 12, 8


@pytest.fixture(scope="module")
def params():
    with jax.set_mesh(tiny.mesh()):
        yield tiny.lively(C, noise=0.3)


@pytest.fixture(scope="module")
def made(params):
    prompts = [Prompt((BOS,) + (i,) * (i % 3)) for i in range(11)]
    return generate.generate_samples(
        C, params, prompts, 1000, N, SamplingParams(), (BOS,), 95, BATCH
    )


def test_a_row_makes_its_sample_again(params, made):
    def again(s, key):
        settings = N, SamplingParams(), (BOS,), 95, BATCH
        (sample,) = generate.generate_samples(C, params, [s.prompt], key, *settings)
        return sample.ids

    assert len(made) == 11 and len({s.ids for s in made}) > 8
    for s in (made[0], made[4], made[10]):
        assert again(s, s.key) == s.ids
    assert again(made[4], made[4].key + 1) != made[4].ids


def test_scored_log_probabilities_are_those_of_the_sampler(params, made):
    """The sampler draws from the first 95 ids; with a table of which the 96th is unlikely the two agree."""
    docs = [[*s.prompt.ids, *s.ids] for s in made]
    nats = ModelScorer(C, params, 24, 4).nats(docs)
    padded = np.zeros((len(docs), 24), np.int32)
    for row, doc in zip(padded, docs, strict=True):
        row[: len(doc)] = doc
    logits = tiny.logits(C, params, padded)
    full, cut = (np.asarray(jax.nn.log_softmax(z, -1)) for z in (logits, logits[..., :95]))
    for i, (s, doc) in enumerate(zip(made, docs, strict=True)):
        k, n = len(s.prompt.ids), len(doc) - 1
        np.testing.assert_allclose(nats[i], -full[i, np.arange(n), doc[1:]], rtol=1e-4, atol=1e-4)
        assert s.logp == pytest.approx(cut[i, np.arange(k - 1, n), doc[k:]].sum(), rel=1e-4)


def test_keys_of_generations_do_not_meet():
    keys = [prompts.first_key(0, g) for g in range(50)] + [
        prompts.first_key(1, g) for g in range(50)
    ]
    assert min(np.diff(sorted(keys))) > 10_000 and max(keys) < 2**31


def test_projected_gradients_are_projections_of_the_gradient(params):
    docs = [[BOS, 3, 4, 5, 6], [BOS, 80, 2, 80, 7]]
    got = ModelScorer(C, params, 8, 2).gradients(docs, 4)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    left, right = (
        np.asarray(jax.random.rademacher(k, (n, 4), float))
        for k, n in zip(keys, (C.width, C.vocab_size), strict=True)
    )
    grad = jax.jit(jax.grad(lambda p, batch: next_token_loss(C, 0.0)({"lm": p}, batch, None)[0]))
    for doc, sketch in zip(docs, got, strict=True):
        batch = {
            "tokens": np.array([doc[:-1]]),
            "targets": np.array([doc[1:]]),
            "weights": np.ones((1, len(doc) - 1)),
        }
        want = left.T @ np.asarray(grad(params, batch)["head"]["weight"]) @ right
        np.testing.assert_allclose(sketch.reshape(4, 4), want, rtol=2e-3, atol=1e-3)


def test_rare_contexts_end_in_rare_tokens_of_their_parents():
    docs = [np.array([1, 1, 2, 7, 1]), np.array([1, 2, 1, 2, 1]), np.array([1])]
    count = np.bincount(np.concatenate(docs), minlength=9)
    found = prompts.rare_contexts(docs, count, 200, np.random.default_rng(0), BOS)
    assert len(found) == 200 and {p.parents[0] for p in found} == {"real-0", "real-1"}
    assert np.mean([p.ids[-1] == 7 for p in found]) > 0.6
    for p in found:
        body, doc = list(p.ids[1:]), docs[int(p.parents[0][-1])].tolist()
        assert p.ids[0] == BOS and any(doc[i : i + len(body)] == body for i in range(len(doc)))
    assert prompts.rare_contexts(docs[2:], count, 3, np.random.default_rng(0), BOS) == []


def test_pairs_are_of_different_documents():
    texts = ["He saw Alice Munro in town.", "Then, Mount Etna, near it.", "nothing here"]
    found = prompts.entity_pairs(texts, 6, np.random.default_rng(0))
    assert {t for t, _ in found} == {"Alice Munro and Mount Etna", "Mount Etna and Alice Munro"}
    assert all(len(set(parents)) == 2 for _, parents in found)
    assert prompts.entity_pairs(texts[:1], 3, np.random.default_rng(0)) == []


def test_the_grid_covers_pairs_more_evenly_than_chance():
    names = [str(i) for i in range(8)]
    found = sobol_grid({"a": names, "b": names}, 256, 0)
    pairs = np.unique([int(x["a"]) * 8 + int(x["b"]) for x in found], return_counts=True)[1]
    assert len(pairs) == 64 and pairs.max() <= 8
    drawn = np.bincount(np.random.default_rng(0).integers(0, 64, 256), minlength=64)
    assert pairs.std() < drawn.std() / 1.5
