"""Causal attention behind one signature, with a reference in plain XLA and the kernels that are faster where they run.

    attention(q_bthd, k_btkd, v_btkd, window=..., segments_bt=..., backend=...) -> o_bthd

H query heads share K key and value heads in groups of G = H / K. Token t sees token s when s <= t, t - s < window and
both belong to the same segment. Scores and softmax are float32 whatever the inputs are (Vaswani et al. 2017, eq. 1).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

ROWS = (
    "replica",
    "data",
)  # the mesh axes that split the batch; weights are split over "data" and "model"
BLOCK = 128  # queries at a time in the reference; on two CPU cores 128 beat 32, 64 and whole rows of 256
MASKED = -1e30  # finite, so that a row with every key masked gives a mean instead of NaN


def attention(q_bthd, k_btkd, v_btkd, *, window=None, segments_bt=None, backend="xla"):
    """q_bthd: [B, T, H, h]; k_btkd, v_btkd: [B, T, K, h]; returns [B, T, H, h] in q's dtype.

    window: how far back a token sees, itself included (static), or None. segments_bt: int32, tokens of different
    segments do not see each other. backend: "xla" anywhere, "splash" on TPU, "cudnn" on GPU; these two want T in blocks of
    128, so that shorter prompts and rollouts go the plain way on any device.

    What a backward pass should keep is named "attn". Splash names what its own derivative needs, its output included.
    """
    whole = q_bthd.shape[1] % 128 == 0
    if backend == "splash" and whole:
        return _splash(q_bthd, k_btkd, v_btkd, window, segments_bt)
    attend = _cudnn if backend == "cudnn" and whole else _xla
    return checkpoint_name(attend(q_bthd, k_btkd, v_btkd, window, segments_bt), "attn")


def platform() -> str:
    """ "tpu", "gpu" or "cpu": of the devices that are traced for, which in a plan are not those of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


# ---------------------------------------------------------------------------------------------------- reference
def _xla(q_bthd, k_btkd, v_btkd, window, segments_bt):
    """Queries in blocks, each against the keys it can see: a causal row needs half of the square, and a block's scores
    fit in a CPU's cache. Blocks are unrolled: their shapes differ."""
    T = q_bthd.shape[1]
    q_bkgth, k_bkth, v_bkth = _heads_first(q_bthd, k_btkd, v_btkd)

    def attend(start, end):
        first = 0 if window is None else max(0, start - window + 1)
        t, s = slice(start, end), slice(first, end)
        q, k, v = q_bkgth[:, :, :, t], k_bkth[:, :, s], v_bkth[:, :, s]
        scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
        visible = visible_mask(
            jnp.arange(start, end)[:, None], jnp.arange(first, end)[None, :], window
        )
        if segments_bt is not None:
            visible = visible & (
                segments_bt[:, None, None, t, None] == segments_bt[:, None, None, None, s]
            )
        scores = jnp.where(visible, scores, MASKED)
        # Normalised after the product with the values: h divisions a query instead of T.
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        o = jnp.einsum(
            "bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return (o / jnp.sum(weights, axis=-1, keepdims=True)).astype(q.dtype)

    outs = [attend(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]
    return _heads_last(jnp.concatenate(outs, axis=3))


def _heads_first(q_bthd, k_btkd, v_btkd):
    """Scaled queries [B, K, G, T, h], keys and values [B, K, T, h]."""
    (B, T, H, h), K = q_bthd.shape, k_btkd.shape[2]
    q_btkgh = jax.lax.reshape(
        q_bthd * h**-0.5, (B, T, K, H // K, h), out_sharding=P(ROWS, None, "model")
    )
    k_bkth, v_bkth = (jnp.transpose(a, (0, 2, 1, 3)) for a in (k_btkd, v_btkd))
    return jnp.transpose(q_btkgh, (0, 2, 3, 1, 4)), k_bkth, v_bkth


def _heads_last(o_bkgth):
    B, K, G, T, h = o_bkgth.shape
    o_btkgh = jnp.transpose(o_bkgth, (0, 3, 1, 2, 4))
    return jax.lax.reshape(o_btkgh, (B, T, K * G, h), out_sharding=P(ROWS, None, "model"))


def visible_mask(t, s, window):
    """Whether the query at position t sees the key at position s; broadcasts."""
    visible = s <= t
    return visible if window is None else visible & (t - s < window)


# ---------------------------------------------------------------------------------------------------- TPU kernel
def _splash(q_bthd, k_btkd, v_btkd, window, segments_bt, interpret=None):
    """The Pallas splash kernel, one call per device inside shard_map; off a TPU it runs interpreted, for tests."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T = q_bthd.shape[1]
    if interpret is None:
        interpret = platform() == "cpu"
    block = next(b for b in (1024, 512, 256, 128) if T % b == 0)
    sizes = kernel.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip

    def run(mask, q, k, v, segments):
        """One device's share: q [b, k, g, T, h], k and v [b, k, T, h], segments [b, T] or None."""
        group = q.shape[2]
        call = kernel.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * group),
            block_sizes=sizes,
            interpret=interpret,
            residual_checkpoint_name="attn",
        )
        ids = None if segments is None else kernel.SegmentIds(q=segments, kv=segments)
        over_heads = jax.vmap(call, in_axes=(0, 0, 0, None))
        return jax.vmap(over_heads, in_axes=(0, 0, 0, None if ids is None else 0))(q, k, v, ids)

    full = masks.CausalMask((T, T))

    def local(q, k, v, segments, window):
        if window is None:
            return run(full, q, k, v, segments)
        narrow = masks.LocalMask((T, T), window_size=(window - 1, 0), offset=0)
        return run(masks.LogicalAnd(full, narrow), q, k, v, segments)

    specs = (
        P(ROWS, "model"),
        P(ROWS, "model"),
        P(ROWS, "model"),
        None if segments_bt is None else P(ROWS),
    )
    sharded = jax.shard_map(
        partial(local, window=window), in_specs=specs, out_specs=P(ROWS, "model"), check_vma=False
    )
    return _heads_last(sharded(*_heads_first(q_bthd, k_btkd, v_btkd), segments_bt)).astype(
        q_bthd.dtype
    )


# ---------------------------------------------------------------------------------------------------- GPU kernel
def _cudnn(q_bthd, k_btkd, v_btkd, window, segments_bt):
    """cuDNN's fused attention (bfloat16 only), one call per device; segments become a boolean mask."""

    def local(q, k, v, segments):
        mask = (
            None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
        )
        size = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=True, local_window_size=size, implementation="cudnn"
        )

    spec = P(ROWS, None, "model")
    specs = (spec, spec, spec, None if segments_bt is None else P(ROWS))
    return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(
        q_bthd, k_btkd, v_btkd, segments_bt
    )
