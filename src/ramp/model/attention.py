"""Causal attention behind one signature: a reference in plain XLA, and kernels where they run.

    attention(q_bthd, k_btkd, v_btkd, window=..., segments_bt=..., backend=...) -> o_bthd

H query heads share K key and value heads in groups of G = H / K. Token t attends to token s when
s <= t, t - s < window and both belong to the same segment. Scores and softmax are float32 whatever
the inputs are (Vaswani et al. 2017, eq. 1).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from ramp.model.linear import ROWS, platform

BLOCK = 128  # queries at a time in the reference; on two CPU cores it beat 32, 64 and rows of 256
MASKED = -1e30  # finite, so that a row with every key masked gives a mean instead of NaN
PLACE_BITS = 15  # of a query's place; its window is in the bits above
MAX_WINDOWED = 1 << PLACE_BITS  # tokens of a row
KERNEL_BLOCK = 128  # the kernels take rows of a multiple of so many tokens


def attention(q_bthd, k_btkd, v_btkd, *, window=None, segments_bt=None, backend="xla"):
    """Return [B, T, H, h] in q's dtype; q_bthd: [B, T, H, h]; k_btkd, v_btkd: [B, T, K, h].

    window: how far back a token attends, itself included, or None for all. It is static, but where
    `runs_splash` it may be traced, as in a loop over layers that differ.
    segments_bt: int32; tokens of different segments do not attend to each other.
    backend: "xla" anywhere, "splash" on TPU, "cudnn" on GPU. These two want T in blocks of 128, so
    shorter prompts and rollouts take the plain way on any device.
    """
    T = q_bthd.shape[1]
    fits = T % KERNEL_BLOCK == 0
    if runs_splash(backend, T, window):
        # Splash itself names what its own derivative needs, its output included.
        return _splash(q_bthd, k_btkd, v_btkd, window, segments_bt)
    attend = _cudnn if backend == "cudnn" and fits else _xla
    # The name is what `remat` refers to when it saves attention for the backward pass.
    return checkpoint_name(attend(q_bthd, k_btkd, v_btkd, window, segments_bt), "attn")


def runs_splash(backend: str, T: int, window: object = None) -> bool:
    """Whether rows of T tokens go through the TPU's kernel."""
    return backend == "splash" and T % KERNEL_BLOCK == 0 and (window is None or T <= MAX_WINDOWED)


# ---------------------------------------------------------------------------------------- reference
def _xla(q_bthd, k_btkd, v_btkd, window, segments_bt):
    """Queries in blocks, each with the keys it attends to.

    A causal row needs half of the square, and a block's scores fit in a CPU's cache. The blocks are
    unrolled: their shapes differ.
    """
    T = q_bthd.shape[1]
    q_bkgth, k_bkth, v_bkth = _heads_first(q_bthd, k_btkd, v_btkd)

    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def attend(start, end):
        first = max(0, start - window + 1) if isinstance(window, int) else 0
        t = slice(start, end)
        s = slice(first, end)
        q = q_bkgth[:, :, :, t]
        k = k_bkth[:, :, s]
        v = v_bkth[:, :, s]
        scores = dot("bkgth,bksh->bkgts", q, k)
        query_places = jnp.arange(start, end)[:, None]
        key_places = jnp.arange(first, end)[None, :]
        visible = visible_mask(query_places, key_places, window)
        if segments_bt is not None:
            query_segments = segments_bt[:, None, None, t, None]
            key_segments = segments_bt[:, None, None, None, s]
            visible = visible & (query_segments == key_segments)
        scores = jnp.where(visible, scores, MASKED)
        # The maximum cancels out, so it takes no part in the gradient.
        highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - highest)
        o = dot("bkgts,bksh->bkgth", weights.astype(v.dtype), v)
        # Normalised after the product with the values: h divisions a query instead of T.
        return (o / jnp.sum(weights, axis=-1, keepdims=True)).astype(q.dtype)

    outs = [attend(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]
    return _heads_last(jnp.concatenate(outs, axis=3))


def _heads_first(q_bthd, k_btkd, v_btkd):
    """Scaled queries [B, K, G, T, h], keys and values [B, K, T, h]."""
    B, T, H, h = q_bthd.shape
    K = k_btkd.shape[2]
    grouped = (B, T, K, H // K, h)
    q_btkgh = jax.lax.reshape(q_bthd * h**-0.5, grouped, out_sharding=P(ROWS, None, "model"))
    q_bkgth = jnp.transpose(q_btkgh, (0, 2, 3, 1, 4))
    k_bkth = jnp.transpose(k_btkd, (0, 2, 1, 3))
    v_bkth = jnp.transpose(v_btkd, (0, 2, 1, 3))
    return q_bkgth, k_bkth, v_bkth


def _heads_last(o_bkgth):
    B, K, G, T, h = o_bkgth.shape
    o_btkgh = jnp.transpose(o_bkgth, (0, 3, 1, 2, 4))
    return jax.lax.reshape(o_btkgh, (B, T, K * G, h), out_sharding=P(ROWS, None, "model"))


def visible_mask(t, s, window):
    """Return whether the query at position t attends to the key at position s; broadcasts."""
    visible = s <= t
    return visible if window is None else visible & (t - s < window)


# --------------------------------------------------------------------------------------- TPU kernel
def _splash(q_bthd, k_btkd, v_btkd, window, segments_bt, interpret=None):
    """The Pallas splash kernel, one call per device; off a TPU it runs interpreted, for tests."""
    # Imported here: on machines without a TPU it takes a second and may not be there.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T = q_bthd.shape[1]
    if interpret is None:
        interpret = platform() == "cpu"
    block = next(b for b in (1024, 512, 256, 128) if T % b == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.CausalMask((T, T))

    def look_back(causal, reach):
        """The causal kernel for a window, whose size comes with the places of its queries."""
        rows, columns = jnp.indices((T // block, T // block))
        # The nearest key of the block's is not too far from its query.
        is_near = (rows - columns - 1) * block + 1 < reach
        places = (reach << PLACE_BITS) + jnp.arange(T)

        def limit(info):
            block_mask = jnp.where(is_near, info.block_mask, 0)
            return info._replace(block_mask=block_mask, q_sequence=places)

        def is_visible(t, s):
            return visible_mask(t & (MAX_WINDOWED - 1), s, t >> PLACE_BITS)

        infos, settings = causal.tree_flatten()
        settings = settings | {"mask_function": is_visible}
        return kernel.SplashAttentionKernel(*map(limit, infos), **settings)

    def run(q, k, v, segments, reach):
        # One device's part: q [b, k, g, T, h], k and v [b, k, T, h], segments [b, T] or None.
        call = kernel.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=sizes,
            interpret=interpret,
            residual_checkpoint_name="attn",
        )
        if reach is not None:
            call = look_back(call, reach)
        ids = None
        if segments is not None:
            ids = kernel.SegmentIds(q=segments, kv=segments)
        over_heads = jax.vmap(call, in_axes=(0, 0, 0, None))
        over_rows = jax.vmap(over_heads, in_axes=(0, 0, 0, None if ids is None else 0))
        return over_rows(q, k, v, ids)

    heads = P(ROWS, "model")
    reach = None if window is None else jnp.minimum(window, T)
    segment_spec = None if segments_bt is None else P(ROWS)
    in_specs = (heads, heads, heads, segment_spec, None if reach is None else P())
    sharded = jax.shard_map(run, in_specs=in_specs, out_specs=heads, check_vma=False)
    o_bkgth = sharded(*_heads_first(q_bthd, k_btkd, v_btkd), segments_bt, reach)
    return _heads_last(o_bkgth).astype(q_bthd.dtype)


# --------------------------------------------------------------------------------------- GPU kernel
def _cudnn(q_bthd, k_btkd, v_btkd, window, segments_bt):
    """cuDNN's fused attention (bfloat16 only), one call per device; segments become a mask."""

    def run(q, k, v, segments):
        mask = None
        if segments is not None:
            mask = segments[:, None, :, None] == segments[:, None, None, :]
        size = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=True, local_window_size=size, implementation="cudnn"
        )

    heads = P(ROWS, None, "model")
    segment_spec = None if segments_bt is None else P(ROWS)
    in_specs = (heads, heads, heads, segment_spec)
    sharded = jax.shard_map(run, in_specs=in_specs, out_specs=heads, check_vma=False)
    return sharded(q_bthd, k_btkd, v_btkd, segments_bt)
