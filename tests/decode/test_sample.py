"""Sampling: the cache changes nothing, rows are independent, and tokens come from the distribution that was asked for."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ramp.decode import sample
from ramp.decode.sample import SamplingParams, round_to_bucket, sample_token
from ramp.errors import UserError
from ramp.pods import hlo

GREEDY, HOT = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.3, top_k=40, top_p=0.95, min_p=0.01),
)
PROMPTS = [[5, 9, 200], [7] * 11, list(range(30, 50)), [1]]
NEW = 20


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


@cache
def weights(c):
    params = tiny.lively(c)
    return params, sample.prepare_decode_params(c, params)


@cache
def logits(c):
    return jax.jit(partial(tiny.logits, c))


def begin(c, prompts=PROMPTS, seed=0):
    seeds = range(seed, seed + len(prompts))
    return sample.prefill_prompts(c, weights(c)[0], prompts, seeds)


def generate(c, params, prompts, n, sampling, **more):
    return sample.generate(c, params, prompts, range(len(prompts)), sampling, n, **more)


def go_on(c, stream, how, n, stop=()):
    return sample.decode(c, weights(c)[1], stream, how, n, stop)


# ---------------------------------------------------------------------------------------------------- the cache
@pytest.mark.parametrize(
    "switches",
    [{}, tiny.ALL, {"depth": 0}, tiny.WINDOW, tiny.MEAN],
    ids=["qwen3", "all", "no blocks", "window", "mean"],
)
def test_prefill_and_decode_equal_the_full_forward(switches):
    """Greedy, from prompts of four lengths: each token is the likeliest one of a forward pass without a cache."""
    c = tiny.model(**switches)
    stream = go_on(c, begin(c), GREEDY, NEW)
    rows = [
        prompt + new
        for prompt, new in zip(PROMPTS, np.asarray(stream.tokens_bn).tolist(), strict=True)
    ]
    padded, lengths = sample.pad_prompts(rows)
    full = np.asarray(logits(c)(weights(c)[0], padded))
    for b, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        assert row[len(prompt) :] == full[b, len(prompt) - 1 : len(row) - 1].argmax(-1).tolist()
        np.testing.assert_allclose(stream.logits_bv[b], full[b, len(row) - 1], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(stream.length_b, lengths)
    assert len({tuple(row[-8:]) for row in rows}) > 1


@pytest.mark.parametrize("switches", [tiny.ALL, {"tie_embeddings": True}], ids=["all", "tied"])
def test_same_tokens_on_a_mesh(switches):
    c = tiny.model(**switches)
    want = go_on(c, begin(c), GREEDY, NEW).tokens_bn
    with jax.set_mesh(tiny.mesh(2, 2, 2)):
        params = tiny.lively(c)
        ready = sample.prepare_decode_params(c, params)
        stream = sample.prefill_prompts(c, params, PROMPTS, range(len(PROMPTS)))
        got = sample.decode(c, ready, stream, GREEDY, NEW).tokens_bn
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_gathers_no_weight(tied):
    """Also not the table of a model whose head is that table."""
    c = tiny.model(tie_embeddings=tied)
    with jax.set_mesh(tiny.mesh(1, 4, 2)):
        params = tiny.lively(c)
        ready = sample.prepare_decode_params(c, params)
        stream = sample.init_output(
            sample.prefill_prompts(c, params, PROMPTS, range(len(PROMPTS))), n=NEW
        )
        program = sample.decode_until.lower(c, ready, stream, GREEDY, 0, NEW, ()).compile()
    gathered = [k for k in hlo.list_collectives(program.as_text(), 8, 8) if k.kind == "all-gather"]
    # What is gathered are rows: of activations, logits and tokens.
    rows = len(PROMPTS) * max(c.vocab_size, 4 * c.width) * 4
    assert all(k.bytes <= rows for k in gathered), gathered


def test_decoding_in_pieces_equals_decoding_at_once():
    c = tiny.model(**tiny.ALL)
    whole = go_on(c, begin(c), HOT, 20)
    stream, tokens, logps = begin(c), [], []
    for _ in range(4):
        stream = go_on(c, stream, HOT, 5)
        tokens.append(stream.tokens_bn)
        logps.append(stream.logps_bn)
    np.testing.assert_array_equal(np.concatenate(tokens, axis=1), whole.tokens_bn)
    np.testing.assert_allclose(np.concatenate(logps, axis=1), whole.logps_bn, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours():
    """Row i of a batch seeded by s is the row alone seeded by s + i: the same tokens, and of the same probability."""
    c = tiny.model(**tiny.ALL)
    together = go_on(c, begin(c, seed=40), HOT, NEW)
    for i in (0, 2):
        alone = go_on(c, begin(c, [PROMPTS[i]], seed=40 + i), HOT, NEW)
        np.testing.assert_array_equal(alone.tokens_bn[0], together.tokens_bn[i])
        np.testing.assert_allclose(alone.logps_bn[0], together.logps_bn[i], rtol=1e-3, atol=1e-4)
    twins = go_on(c, begin(c, [PROMPTS[0]] * 4, seed=40), HOT, NEW)
    assert len({tuple(row) for row in np.asarray(twins.tokens_bn).tolist()}) == 4


# ---------------------------------------------------------------------------------------------------- ends
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (1, 4, 1)])
def test_a_prompt_that_is_repeated_is_read_once(shape, monkeypatch):
    """The tokens of a group are those of rows that each read their prompt."""
    c = tiny.model(**tiny.ALL)
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(8)]
    with jax.set_mesh(tiny.mesh(*shape)):
        params = tiny.lively(c)
        read = []
        prefill = sample.prefill
        monkeypatch.setattr(sample, "prefill", lambda *a: read.append(len(a[2])) or prefill(*a))
        got = sample.generate(c, params, prompts, range(16), HOT, NEW)
        groups, read_before = [[1]] * 4 + [[2]] * 4 + [[3]] * 2, len(read)
        sample.generate(c, params, groups, range(10), HOT, NEW, batch_size=4)
        # A batch that is filled up is the program of the others.
        assert len(set(read[read_before:])) == 1
        del read[read_before:]
        monkeypatch.setattr(sample, "count_repeats", lambda prompts: 1)
        want = sample.generate(c, params, prompts, range(16), HOT, NEW)
    # Two of four devices share a prompt, and each reads it.
    assert read == [max(2, shape[1]), 16]
    np.testing.assert_array_equal(got.tokens_bn, want.tokens_bn)
    np.testing.assert_allclose(got.logps_bn, want.logps_bn, rtol=1e-4, atol=1e-5)


def test_repeats_are_those_that_all_prompts_have():
    with jax.set_mesh(tiny.mesh(1, 1, 1)):
        assert sample.count_repeats([[1], [1], [2], [2], [2], [2]]) == 2
        assert sample.count_repeats([[1], [2], [2]]) == 1
        assert sample.count_repeats([[1], [2], [1], [2]]) == 1
    with jax.set_mesh(tiny.mesh(1, 2, 1)):
        assert sample.count_repeats([[1]] * 6) == 3
        assert sample.count_repeats([[1]] * 3) == 1


def test_stop_tokens_end_their_own_row_only():
    c = tiny.model(**tiny.ALL)
    free = np.asarray(go_on(c, begin(c), GREEDY, NEW).tokens_bn)
    stop = int(free[0, 4])
    stream = go_on(c, begin(c), GREEDY, NEW, stop=(stop, 319))
    for got, logps, want in zip(
        *(np.asarray(a) for a in (stream.tokens_bn, stream.logps_bn, free)), strict=True
    ):
        hits = np.flatnonzero((want == stop) | (want == 319))
        end = hits[0] + 1 if len(hits) else NEW
        np.testing.assert_array_equal(got[:end], want[:end])
        assert (got[end:] == -1).all() and (logps[end:] == 0).all()
    assert np.asarray(stream.done_b)[0]
    again = go_on(c, stream, GREEDY, NEW, stop=(stop, 319))
    assert (np.asarray(again.tokens_bn)[0] == -1).all()  # an ended row stays ended


def test_generate_keeps_or_leaves_out_the_stop_token():
    c = tiny.model(**tiny.ALL)
    free = np.asarray(go_on(c, begin(c), GREEDY, NEW).tokens_bn).tolist()
    stop = free[0][4]
    got = generate(c, weights(c)[0], PROMPTS, NEW, GREEDY, stop=(stop, 319))
    first = min(i for i, token in enumerate(free[0]) if token in (stop, 319))
    assert got.rows(without=(stop, 319))[0] == free[0][:first]
    assert got.rows()[0] == free[0][: first + 1]


def test_generate_in_batches_is_generate_at_once():
    """Rows are those of one large batch, each with its own seed; no prompts give no rows."""
    c = tiny.model(**tiny.ALL)
    params, seeds = weights(c)[0], [5, 2, 9, 40]
    whole = sample.generate(c, params, PROMPTS, seeds, HOT, NEW)
    parts = sample.generate(c, params, PROMPTS, seeds, HOT, NEW, batch_size=3)
    np.testing.assert_array_equal(parts.tokens_bn, whole.tokens_bn)
    np.testing.assert_allclose(parts.logps_bn, whole.logps_bn, rtol=1e-3, atol=1e-4)
    last = go_on(c, begin(c, PROMPTS[3:], seed=40), HOT, NEW)
    np.testing.assert_array_equal(whole.tokens_bn[3], last.tokens_bn[0])
    assert sample.generate(c, params, [], [], HOT, NEW).tokens_bn.shape == (0, NEW)


def test_decoding_ends_when_every_row_has():
    """Had the loop run on to its 20 tokens, the cache and the logits would have changed after the 4th."""
    c = tiny.model(**tiny.ALL)
    stop = tuple(range(c.vocab_size))
    once = go_on(c, begin(c), HOT, 20, stop=stop)
    assert np.asarray(once.done_b).all()
    logits, cache = np.asarray(once.logits_bv), np.asarray(once.cache[0][0])
    more = go_on(c, once, HOT, 20, stop=stop)
    np.testing.assert_array_equal(more.logits_bv, logits)
    np.testing.assert_array_equal(more.cache[0][0], cache)
    tokens = np.asarray(more.tokens_bn)
    assert (tokens == -1).all()


def test_the_context_is_the_limit():
    """A row stops where the context does, what it drew up to there is right, and a row that is full draws nothing."""
    c = tiny.model(context_len=40)
    prompts = [list(range(10, 45)), list(range(10, 50)), [3, 4]]
    stream = go_on(c, begin(c, prompts), GREEDY, 60)
    assert stream.cache[0][0].shape[3] == 40
    tokens = np.asarray(stream.tokens_bn)
    assert (tokens >= 0).sum(axis=1).tolist() == [5, 0, 38]
    assert np.asarray(stream.length_b).tolist() == [40, 40, 40] and np.asarray(stream.done_b).all()
    for row, prompt in zip(tokens.tolist(), prompts, strict=True):
        text = (prompt + row)[:40]
        full = np.asarray(logits(c)(weights(c)[0], np.array([text] * 3, np.int32)))[0]
        assert full[len(prompt) - 1 : 39].argmax(-1).tolist() == text[len(prompt) :]


def test_bad_prompts():
    c = tiny.model(context_len=40)
    with pytest.raises(UserError, match="41 tokens is longer than the model's context of 40"):
        begin(c, [[1] * 41])
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            sample.pad_prompts(prompts)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_buckets(n, m):
    assert round_to_bucket(n) >= n and (n < 32 or round_to_bucket(n) < 1.5 * n)
    assert round_to_bucket(min(n, m)) <= round_to_bucket(max(n, m))
    assert round_to_bucket(round_to_bucket(n)) == round_to_bucket(n)


# ---------------------------------------------------------------------------------------------------- one token
def np_distribution(logits_v, how):
    """The documented order: temperature, the k likeliest, of those the nucleus, of those the ones not too unlikely."""
    p = np.exp((logits_v - logits_v.max()) / how.temperature)
    order = np.argsort(-p)
    keep = order[: how.top_k] if how.top_k else order
    p_kept, mass, nucleus = p[keep] / p[keep].sum(), 0.0, []
    for token, share in zip(keep, p_kept, strict=True):
        if mass < how.top_p:
            nucleus.append(token)
        mass += share
    final = np.zeros_like(p)
    for token in nucleus:
        if p[token] >= how.min_p * p.max():
            final[token] = p[token]
    return final / final.sum()


HOWS = {
    "plain": SamplingParams(),
    "cold": SamplingParams(temperature=0.5),
    "top-k": SamplingParams(top_k=4),
    "top-p": SamplingParams(top_p=0.8),
    "min-p": SamplingParams(min_p=0.1),
    "top-k beyond the vocabulary": SamplingParams(top_k=1000),
    "all": SamplingParams(temperature=1.4, top_k=9, top_p=0.9, min_p=0.05),
}
jitted_draw = jax.jit(sample_token, static_argnames="sampling")


@pytest.mark.parametrize("name", HOWS)
def test_draw_is_from_the_truncated_distribution(name):
    """20,000 draws against exact probabilities (chi-square), and the log-probability of each under them."""
    how, n, V = HOWS[name], 20_000, 16
    logits_v = np.random.default_rng(1).normal(size=V).astype(np.float32) * 1.5
    keys = sample.row_keys(jnp.arange(n, dtype=jnp.uint32), jnp.full(n, 7))
    tokens, logps = jitted_draw(jnp.broadcast_to(logits_v, (n, V)), keys, sampling=how)
    tokens, logps = np.asarray(tokens), np.asarray(logps)
    want = np_distribution(logits_v.astype(np.float64), how)
    assert (logps <= 0).all()
    assert not np.setdiff1d(tokens, np.flatnonzero(want)).size
    np.testing.assert_allclose(logps, np.log(want[tokens]), rtol=1e-4, atol=1e-5)
    counts, live = np.bincount(tokens, minlength=V), want > 0
    chi2 = np.sum((counts - n * want)[live] ** 2 / (n * want[live]))
    degrees = live.sum() - 1
    assert (
        chi2 < degrees + 4 * np.sqrt(2 * degrees) + 4
    )  # about 4 standard deviations; the seed is fixed


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 384, 49179])
def test_entries_without_mass_are_never_drawn_and_others_by_their_mass(size):
    """Blocks are empty, half empty or short; chances differ by orders of magnitude."""
    rng = np.random.default_rng(size)
    x_v = rng.normal(size=size).astype(np.float32) * 4 + 100
    x_v[rng.random(size) < 0.4] = -np.inf
    x_v[size // 2] = 101.0  # something is left
    n = 4000
    keys = sample.row_keys(jnp.arange(n, dtype=jnp.uint32), jnp.full(n, 3))
    draw = jax.jit(lambda keys: sample.draw_entries(keys, jnp.broadcast_to(x_v, (len(keys), size))))
    drawn = [draw(keys[i : i + 500]) for i in range(0, n, 500)]
    at, logp = (np.concatenate([np.asarray(part[k]) for part in drawn]) for k in (0, 1))
    want = np.exp(x_v.astype(np.float64) - 101)
    want /= want.sum()
    assert (want[at] > 0).all()
    np.testing.assert_allclose(logp, np.log(want[at]), rtol=1e-4, atol=1e-5)
    # Uniform in [0, 1] if the draws follow the masses; by entries in order of their place.
    middle = np.cumsum(want)[at] - want[at] * rng.random(n)
    assert scipy.stats.kstest(middle, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("fraction", [0.0, 2.0**-23, 0.5, 1 - 2.0**-23])
def test_what_float32_cannot_add_up_is_not_drawn(fraction):
    """A mass far below the smallest step of a random number, in front, behind and alone."""
    mass = [[1e-30, 1.0, 0.0], [0.0, 1.0, 1e-30], [0.0, 1e-30, 0.0], [1.0, 0.0, 0.0]]
    found = sample.find_fraction(jnp.array(mass), jnp.full(4, fraction, jnp.float32))
    assert found.tolist() == [1, 1, 1, 0]


def test_fractions_are_of_the_mass():
    mass = jnp.array([[1.0, 0.0, 2.0, 1.0]] * 4)
    found = sample.find_fraction(mass, jnp.array([0.1, 0.3, 0.7, 0.9], jnp.float32))
    # From its end: a fraction of 0 is the last.
    assert found.tolist() == [3, 2, 2, 0]


def test_an_infinite_logit_is_drawn():
    keys = sample.row_keys(jnp.arange(8, dtype=jnp.uint32), jnp.full(8, 3))
    logits = jnp.broadcast_to(jnp.array([1.0, 2.0, jnp.inf, 0.0, 5.0]), (8, 5))
    assert np.asarray(sample_token(logits, keys, SamplingParams())[0]).tolist() == [2] * 8


def test_draws_differ_by_seed_and_by_position():
    logits = jnp.zeros((64, 512))
    at = {
        "here": sample.row_keys(jnp.arange(64, dtype=jnp.uint32), jnp.full(64, 7)),
        "next position": sample.row_keys(jnp.arange(64, dtype=jnp.uint32), jnp.full(64, 8)),
        "next seed": sample.row_keys(1 + jnp.arange(64, dtype=jnp.uint32), jnp.full(64, 7)),
    }
    drawn = {
        name: np.asarray(jitted_draw(logits, keys, sampling=SamplingParams())[0])
        for name, keys in at.items()
    }
    assert (drawn["here"] != drawn["next position"]).sum() > 56
    np.testing.assert_array_equal(drawn["here"][1:], drawn["next seed"][:-1])


def test_temperature_0_is_the_likeliest_token_of_probability_1():
    logits = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    tokens, logps = jitted_draw(
        jnp.asarray(logits), sample.row_keys(jnp.arange(8), jnp.arange(8)), sampling=GREEDY
    )
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    assert not np.asarray(logps).any()


def test_logps_of_a_sample_equal_those_of_the_full_forward():
    c = tiny.model(**tiny.ALL)
    stream = go_on(c, begin(c), HOT, NEW)
    rows = [
        prompt + new
        for prompt, new in zip(PROMPTS, np.asarray(stream.tokens_bn).tolist(), strict=True)
    ]
    full = np.asarray(logits(c)(weights(c)[0], sample.pad_prompts(rows)[0]), np.float64)
    for b, prompt in enumerate(PROMPTS):
        for i in range(NEW):
            probs = np_distribution(full[b, len(prompt) - 1 + i], HOT)
            np.testing.assert_allclose(
                stream.logps_bn[b, i], np.log(probs[rows[b][len(prompt) + i]]), atol=2e-3
            )


def test_a_cache_that_grows_changes_nothing(monkeypatch):
    """Tokens are the same whether the cache has room from the start or grows, twice, while they are drawn."""
    c = tiny.model(**tiny.ALL)
    monkeypatch.setattr(sample, "MIN_CACHE", 64)
    roomy = begin(c)
    assert roomy.cache[0][0].shape[3] == 64
    want = np.asarray(go_on(c, roomy, HOT, 40).tokens_bn)
    monkeypatch.setattr(sample, "MIN_CACHE", 32)
    stream = begin(c)
    assert stream.cache[0][0].shape[3] == 32
    stream = go_on(c, stream, HOT, 40)
    assert stream.cache[0][0].shape[3] == 64
    np.testing.assert_array_equal(stream.tokens_bn, want)


def test_any_number_of_prompts_fits_a_mesh_and_the_caller_is_asked_once_a_bucket(monkeypatch):
    c, asked = tiny.model(depth=1), []
    monkeypatch.setattr(sample, "MIN_CACHE", 32)
    want = generate(c, tiny.lively(c), PROMPTS[:3], 24, GREEDY).rows()
    with jax.set_mesh(tiny.mesh(data=2)):
        params = tiny.lively(c)
        got = generate(c, params, PROMPTS[:3], 24, GREEDY, check=lambda: asked.append(1))
        assert got.rows() == want
        assert len(asked) == 2  # 11 tokens and 21 fill the first bucket

        def stop():
            raise InterruptedError

        with pytest.raises(InterruptedError):
            generate(c, params, PROMPTS[:3], 24, GREEDY, check=stop)


def test_ids_that_only_pad_the_table_are_never_drawn():
    """The distribution is that of the real ids alone, renormalised, whatever the padding's logits are."""
    logits = jnp.tile(jnp.array([0.0, 1.0, 2.0, 50.0, 50.0]), (4000, 1))
    keys = jax.random.split(jax.random.PRNGKey(0), 4000)
    for how in (SamplingParams(), SamplingParams(top_k=4), SamplingParams(temperature=0)):
        tokens, logps = map(np.asarray, sample_token(logits, keys, how, vocab_size=3))
        assert tokens.max() <= 2
        if how.temperature:
            want = np.asarray(jax.nn.log_softmax(jnp.arange(3.0)))
            np.testing.assert_allclose(logps, want[tokens], rtol=1e-5)
            np.testing.assert_allclose(
                np.bincount(tokens, minlength=3) / 4000, np.exp(want), atol=0.03
            )
