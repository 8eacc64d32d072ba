"""The key-value cache, and the step that reads it, writes it and gives the next logits.

The cache is a tuple of L pairs (k, v) of arrays [B, K, h, S]. Time is last because XLA would
transpose all of [B, S, K, h] at every token. It is a tuple and not one stacked array so that each
layer is updated in place.

New tokens go into a short tail [B, K, h, W] first, at the same slot in every row, and a full tail
is merged into the cache, each row's at its own position.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model.attention import MASKED
from ramp.model.transformer import (
    ROWS,
    Params,
    apply_block,
    embed,
    is_short_layer,
    layer_angles,
    rope_kind,
    unembed,
)

TAIL = 32  # tokens that a tail holds


def round_to_bucket(n: int) -> int:
    """The next length of 32, 48, 64, 96, 128, 192, ...: few shapes to compile.

    Beyond the first bucket at most a third of one is padding.
    """
    size = 32
    while size < n:
        # From 32 to 48 is times 3/2, from 48 to 64 is times 4/3.
        is_power_of_two = size & (size - 1) == 0
        size = size * 3 // 2 if is_power_of_two else size * 4 // 3
    return size


def cache_size(c: Model, cache: tuple) -> int:
    """Tokens that each row has room for; a model without layers has no cache to fill."""
    return cache[0][0].shape[3] if c.depth else c.context_len


@partial(jax.jit, static_argnames="size")
def grow_cache(cache: tuple, size: int) -> tuple:
    """The same cache with room for `size` tokens a row."""

    def pad(a_bkhs):
        more = size - a_bkhs.shape[3]
        return jnp.pad(a_bkhs, [(0, 0)] * 3 + [(0, more)])

    return jax.tree.map(pad, cache)


def init_tail(cache: tuple, n: int = TAIL) -> tuple:
    """Room for the keys and values of n tokens a row, or of the whole cache if that is less."""
    return jax.tree.map(lambda a_bkhs: jnp.zeros_like(a_bkhs[..., :n]), cache)


def merge_tail(
    cache: tuple,
    tail: tuple,
    start_b: Array,
) -> tuple:
    """The cache with each row's tail after its first `start_b` tokens.

    What the tail holds beyond a row's end is copied too; no token sees it.
    """

    def merge(a_khs, tail_khw, start):
        width = tail_khw.shape[2]
        # The last window of a full cache begins before the tail does.
        at = jnp.minimum(start, a_khs.shape[2] - width)
        num_old = start - at
        old_khw = jax.lax.dynamic_slice_in_dim(a_khs, at, width, axis=2)
        # The tail begins that many places into this window.
        new_khw = jnp.roll(tail_khw, num_old, axis=2)
        is_old_w = jnp.arange(width) < num_old
        window_khw = jnp.where(is_old_w, old_khw, new_khw)
        return jax.lax.dynamic_update_slice_in_dim(a_khs, window_khw, at, axis=2)

    def merge_rows(a_bkhs, tail_bkhw):
        return jax.vmap(merge)(a_bkhs, tail_bkhw, start_b)

    return jax.tree.map(merge_rows, cache, tail)


def layer_window(c: Model, layer: int) -> int | None:
    """How far back a layer's attention sees; None: to the start of the row."""
    return c.short_window if is_short_layer(c, layer) else None


def decode_step(
    c: Model,
    weights: Params,
    cache: tuple,
    tail: tuple,
    slot: Array | int,
    token_b: Array,
    previous_b: Array,
    position_b: Array,
) -> tuple[Array, tuple]:
    """Append one token to each row: (logits of the next one [B, V] float32, the tail with it).

    weights: from `prepare_decode_params`. token_b, previous_b, position_b: int32 [B], the token,
    the one before it, and its position in the row. slot: its place in the tail, the same for all
    rows. A row sees the first `position_b - slot` tokens of its cache and the tail up to `slot`.
    """
    # The blocks are those of training, called with one token a row.
    tokens_bt = token_b[:, None]
    angles = layer_angles(c, position_b[:, None])
    # The x0 switch mixes the embedding into every block.
    x0_nd = embed(c, weights, tokens_bt, previous_b)
    x_nd = x0_nd
    new_tail = []
    for layer, block in enumerate(weights["blocks"]):
        window = layer_window(c, layer)
        attend = partial(attend_cached, cache[layer], tail[layer], slot, position_b, window)
        turn = angles[rope_kind(c, layer)]
        x_nd, tail_kv = apply_block(c, block, x_nd, *turn, attend, tokens_bt, x0_nd)
        new_tail.append(tail_kv)
    logits_bv = unembed(c, weights, x_nd)
    logits_bv = jax.reshard(logits_bv, P(ROWS, None))
    return logits_bv, tuple(new_tail)


def attend_cached(kv, tail_kv, slot, position_b, window, q_b1hd, k_b1kd, v_b1kd):
    """Attention of one new token a row: (o [B, 1, H, h], the tail with its key and value).

    One softmax in two parts, over the cache and over the tail (Dao et al. 2022, section 3.1). Only
    the tail is written: a cache that is read and written in the same step is copied or written back
    whole, on CPUs and on TPUs (1.64 times the bytes of a token at 16 rows of 2048).
    """
    B, _, H, h = q_b1hd.shape
    K = k_b1kd.shape[2]

    def write(tail_bkhw, new_b1kd):
        new_bkh1 = jnp.einsum("btkh->bkht", new_b1kd).astype(tail_bkhw.dtype)
        return jax.lax.dynamic_update_slice_in_dim(tail_bkhw, new_bkh1, slot, axis=3)

    # Each row's new token goes to the same place of its tail.
    k_bkhs, v_bkhs = kv
    k_tail_bkhw, v_tail_bkhw = tail_kv
    k_bkhw = write(k_tail_bkhw, k_b1kd)
    v_bkhw = write(v_tail_bkhw, v_b1kd)
    # H query heads are K groups of G that share keys and values.
    q_b1hd = q_b1hd * h**-0.5
    shape_bkgh = B, K, H // K, h
    q_bkgh = jax.lax.reshape(q_b1hd, shape_bkgh, out_sharding=P(ROWS, "model"))
    # Products are in the compute dtype; sums, scores and softmax in float32.
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    position_b1 = position_b[:, None]
    start_b1 = (position_b - slot)[:, None]  # of the tail

    def scores(keys_bkhs, first_b1, end_b1):
        key_position_bs = first_b1 + jnp.arange(keys_bkhs.shape[3])
        visible_bs = key_position_bs < end_b1
        if window is not None:
            visible_bs &= position_b1 - key_position_bs < window
        scores_bkgs = dot("bkgh,bkhs->bkgs", q_bkgh, keys_bkhs)
        visible_b11s = visible_bs[:, None, None, :]
        return jnp.where(visible_b11s, scores_bkgs, MASKED)

    scores_bkgs = scores(k_bkhs, 0, start_b1)
    # The tail follows on each row at its own position.
    scores_bkgw = scores(k_bkhw, start_b1, position_b1 + 1)
    # The maximum over both parts keeps exp from overflowing in either.
    top_cache_bkg1 = jnp.max(scores_bkgs, axis=-1, keepdims=True)
    top_tail_bkg1 = jnp.max(scores_bkgw, axis=-1, keepdims=True)
    top_bkg1 = jnp.maximum(top_cache_bkg1, top_tail_bkg1)
    p_bkgs = jnp.exp(scores_bkgs - top_bkg1)
    p_bkgw = jnp.exp(scores_bkgw - top_bkg1)
    o_bkgh = dot("bkgs,bkhs->bkgh", p_bkgs.astype(v_bkhs.dtype), v_bkhs)
    o_bkgh += dot("bkgs,bkhs->bkgh", p_bkgw.astype(v_bkhw.dtype), v_bkhw)
    total_cache_bkg1 = jnp.sum(p_bkgs, axis=-1, keepdims=True)
    total_tail_bkg1 = jnp.sum(p_bkgw, axis=-1, keepdims=True)
    o_bkgh /= total_cache_bkg1 + total_tail_bkg1
    o_bkgh = o_bkgh.astype(q_b1hd.dtype)
    shape_b1hd = B, 1, H, h
    o_b1hd = jax.lax.reshape(o_bkgh, shape_b1hd, out_sharding=P(ROWS, None, "model"))
    return o_b1hd, (k_bkhw, v_bkhw)
