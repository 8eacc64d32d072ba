"""The trigram model: it sums to one, samples what it says, and collapses as published on GSM8K's questions."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.collapse import bench
from experiments.collapse.trigram import Trigram
from ramp.synth.measure import Docs

RNG = np.random.default_rng


def toy():
    return Docs.from_lists(
        [RNG(i).choice(5, RNG(i).integers(0, 7), p=[0.4, 0.3, 0.15, 0.1, 0.05]) for i in range(60)]
    )


def test_probabilities_sum_to_one_in_every_context():
    model = Trigram.fit(toy(), 6)
    for start in ([], [0], [1, 3], [4, 4], [2, 0, 1]):
        # each word after `start`, then the end: the bits of that word alone, by difference of documents
        probs = []
        for word in range(5):
            probs.append(2.0 ** -model.bits(Docs.from_lists([[*start, word]]))[len(start)])
        probs.append(2.0 ** -model.bits(Docs.from_lists([start]))[len(start)])
        assert sum(probs) == pytest.approx(1)


def test_sampling_follows_the_probabilities():
    model = Trigram.fit(toy(), 6)
    docs = model.sample(40_000, 30, RNG(0))
    first = np.array([d[0] if len(d) else 5 for d in docs.to_list()])
    want = [2.0 ** -model.bits(Docs.from_lists([[w]]))[0] for w in range(5)] + [
        2.0 ** -model.bits(Docs.from_lists([[]]))[0]
    ]
    np.testing.assert_allclose(np.bincount(first, minlength=6) / 40_000, want, atol=0.01)
    after = [
        d[2] if len(d) > 2 else 5 for d in docs.to_list() if len(d) > 1 and d[0] == 0 and d[1] == 1
    ]
    want = [2.0 ** -model.bits(Docs.from_lists([[0, 1, w]]))[2] for w in range(5)]
    np.testing.assert_allclose(np.bincount(after, minlength=6)[:5] / len(after), want, atol=0.03)


def test_bits_of_rare_tokens():
    assert bench.tail_bits(np.array([1.0, 9.0, 11.0]), np.array([100, 5, 1])) == 10.0
    assert np.isnan(bench.tail_bits(np.array([1.0]), np.array([100])))


def test_the_same_seed_gives_the_same_documents():
    a, b = (Trigram.fit(toy(), 6).sample(50, 20, RNG(9)) for _ in range(2))
    assert np.array_equal(a.flat, b.flat)


@pytest.mark.slow
def test_collapse_on_gsm8k_questions():
    shared = os.environ.get("RAMP_SHARED_DATA")
    if not shared:
        pytest.skip("RAMP_SHARED_DATA names no directory with math/gsm8k_train.jsonl")
    texts = bench.questions(Path(shared) / "math/gsm8k_train.jsonl")
    found = {p: bench.trigram_curve(texts, p, 5, 0) for p in ("replace", "accumulate", "subsample")}
    steps = np.diff(found["replace"]["bpb"])
    assert 0.12 <= round(steps.mean(), 2) <= 0.16
    excess = {p: c["bpb"][-1] - c["bpb"][0] for p, c in found.items()}
    assert (
        excess["accumulate"] <= 0.35 * excess["replace"]
        and excess["subsample"] <= 0.35 * excess["replace"]
    )
