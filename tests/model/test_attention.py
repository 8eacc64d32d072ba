"""Every attention backend that this machine can run, against a slow numpy one, forward and backward."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ramp.model.attention import BLOCK, attention

CASES = {"causal": (None, False), "window": (5, False), "segments": (None, True), "both": (5, True)}


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def inputs(B=2, T=24, H=4, K=2, h=8, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v, do = (rng.normal(size=(B, T, n, h)).astype(np.float32) for n in (H, K, K, H))
    segments = np.sort(rng.integers(0, 3, (B, T)), axis=1).astype(np.int32)
    return q, k, v, do, segments


def np_attention(q, k, v, window, segments):
    """One query, one head at a time."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    (B, T, H, h), group = q.shape, q.shape[2] // k.shape[2]
    o = np.zeros_like(q)
    for b, t, head in np.ndindex(B, T, H):
        seen = [s for s in range(t + 1) if window is None or t - s < window]
        seen = [s for s in seen if segments is None or segments[b, s] == segments[b, t]]
        scores = k[b, seen, head // group] @ q[b, t, head] / np.sqrt(h)
        probs = np.exp(scores - scores.max())
        o[b, t, head] = probs / probs.sum() @ v[b, seen, head // group]
    return o


@cache
def forward_and_backward(backend, window):
    def run(q, k, v, do, segments):
        o, pull = jax.vjp(
            lambda *qkv: attention(*qkv, window=window, segments_bt=segments, backend=backend),
            q,
            k,
            v,
        )
        return o, pull(do)

    return jax.jit(run)


def call(backend, arrays, window, packed):
    *qkvd, segments = (jnp.asarray(a) for a in arrays)
    rows = jax.device_put(
        segments, jax.NamedSharding(jax.sharding.get_mesh(), jax.P(("replica", "data")))
    )
    return forward_and_backward(backend, window)(*on_rows(qkvd), rows if packed else None)


def on_rows(arrays):
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), jax.P(("replica", "data"), None, "model"))
    return [jax.device_put(a, sharding) for a in arrays]


@pytest.mark.parametrize("case", CASES)
def test_xla_equals_numpy(case):
    window, packed = CASES[case]
    q, k, v, do, segments = inputs()
    got, _ = call("xla", (q, k, v, do, segments), window, packed)
    np.testing.assert_allclose(
        got, np_attention(q, k, v, window, segments if packed else None), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("window", "packed"), [(None, False), (40, False), (150, True)])
def test_xla_equals_numpy_over_several_blocks_of_queries(window, packed):
    q, k, v, do, segments = inputs(B=1, T=2 * BLOCK + 44, H=2, K=1)
    got, _ = call("xla", (q, k, v, do, segments), window, packed)
    np.testing.assert_allclose(
        got, np_attention(q, k, v, window, segments if packed else None), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", ["causal", "both"])
def test_splash_equals_xla(case):
    """The TPU kernel, interpreted."""
    window, packed = CASES[case]
    arrays = inputs(B=1, T=128, H=2, K=1, h=64)
    want, got = (call(backend, arrays, window, packed) for backend in ("xla", "splash"))
    tiny.assert_trees_close(got, want, 1e-4, 1e-4)


@pytest.mark.parametrize("window", [100, 257, 384])
def test_splash_takes_a_window_that_is_not_known_when_it_is_compiled(window):
    """Three blocks of 128, of which a window of 100 leaves two a row."""
    arrays = inputs(B=1, T=384, H=1, K=1, h=64)
    want = call("xla", arrays, window, True)
    got = call("splash", arrays, np.int32(window), True)
    tiny.assert_trees_close(got, want, 1e-4, 1e-4)


def test_xla_is_the_same_split_over_devices():
    q, k, v, do, segments = inputs(B=4)
    want = call("xla", (q, k, v, do, segments), 5, True)
    with jax.set_mesh(tiny.mesh(2, 2, 2)):
        got = call("xla", (q, k, v, do, segments), 5, True)
        assert got[0].sharding.shard_shape(got[0].shape) == (
            1,
            24,
            2,
            8,
        )  # rows over 4, heads over 2
    tiny.assert_trees_close(got, want, 1e-5, 1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_cudnn_equals_xla(case):
    window, packed = CASES[case]
    *qkvd, segments = inputs(T=128, h=64)
    arrays = (*(a.astype(jnp.bfloat16) for a in qkvd), segments)
    want, got = (call(backend, arrays, window, packed) for backend in ("xla", "cudnn"))
    tiny.assert_trees_close(got, want, 3e-2, 3e-2)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_a_huge_key_that_is_masked_does_nothing(backend):
    """The last key would win every score, and its value is enormous; only the last query may see it."""
    q, k, v, do, segments = inputs(B=1, T=128, H=2, K=1, h=64)
    q, k = np.abs(q), np.abs(k)
    plain, _ = call(backend, (q, k, v, do, segments), None, False)
    k[:, -1], v[:, -1] = 1e4, 1e6
    got, _ = call(backend, (q, k, v, do, segments), None, False)
    np.testing.assert_array_equal(got[:, :-1], plain[:, :-1])
    np.testing.assert_allclose(got[:, -1], 1e6, rtol=1e-3)


def test_padding_that_sees_only_itself_stays_finite():
    """Segment -1 is padding: rows of it alone give numbers, not NaN, forward and backward."""
    q, k, v, do, segments = inputs()
    out = call("xla", (q, k, v, do, np.full_like(segments, -1)), None, True)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))
