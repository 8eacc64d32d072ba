"""Sampling: prefill, then decode in a `lax.while_loop` with a KV cache; all of it jitted, rows independent.

    weights = ready(c, params)                    once: laid out for decoding
    stream = start(c, params, prompts)            tokens of different lengths, run into a cache
    stream = decode(c, weights, stream, how, n)   up to n more tokens a row; call again to go on
    tokens, logps = stream.tokens_bn, stream.logps_bn

Rows have positions of their own, so prompts of any lengths share a batch, and the randomness of a row is keyed by its
own seed and position: a sample does not depend on its neighbours and can be made again alone.

The cache is a tuple of L pairs of arrays [B, K, h, S]. Time last: with [B, S, K, h] XLA transposes the whole cache at
every token. A tuple and not one stacked array, so that each layer's cache is updated in place. What is drawn goes into a
short tail first, [B, K, h, TAIL], at the same slot in every row; a full tail joins the cache, each row's at its own place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.errors import UserError
from ramp.model.attention import MASKED, attention
from ramp.model.transformer import (
    ROWS,
    Block,
    Embed,
    Params,
    attention_backend,
    is_short_layer,
    rope_angles,
    run_blocks,
    split_blocks,
    unembed,
)

LEAST_CACHE = 128  # tokens a cache has room for at first
TAIL = 32


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits. Static: another value compiles again."""

    temperature: float = 1.0  # 0: the most likely token
    top_k: int = 0  # only the k most likely; 0: all
    top_p: float = 1.0  # only the most likely that together hold this probability
    min_p: float = 0.0  # only those at least this share as likely as the most likely
    vocab: int = (
        0  # only the first so many ids: the model's table is padded, the tokenizer's is not; 0: all
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """B sequences being sampled."""

    cache: tuple  # L pairs (k, v) of [B, K, h, S]
    logits_bv: jax.Array  # of the next token, float32
    last_b: jax.Array  # the latest token in the cache (the smear switch mixes it in)
    length_b: jax.Array  # tokens in the cache: the position of the next one
    done_b: jax.Array  # a stop token was drawn, or the cache is full
    seed_b: jax.Array  # uint32: names the row's randomness
    tokens_bn: jax.Array  # what the latest `decode` drew; -1 after a row's end
    logps_bn: (
        jax.Array
    )  # log-probability of each under exactly the distribution it was drawn from; 0 after the end


@partial(jax.jit, static_argnames="c")
def prepare_decode_params(c: Model, params: Params) -> Params:
    """The weights as decoding wants them, made once: matrices in the compute dtype, the blocks one by one, nothing split
    over "data" but the tables that tokens are looked up in. A token reads every weight; it should not gather, cast and
    index them as well. (A tied head is still gathered at every token.)"""

    def lay_out(path: tuple, w: jax.Array) -> jax.Array:
        stacked = path[0].key == "blocks"
        if w.ndim - stacked < 2:
            return w
        spec = [None if axis == "data" else axis for axis in jax.typeof(w).sharding.spec]
        if path[-1].key.endswith("table"):
            spec = [None] * (w.ndim - 1) + ["data"]
        return jax.reshard(w.astype(c.dtype), P(*spec))

    params = jax.tree_util.tree_map_with_path(lay_out, params)
    return params | {"blocks": split_blocks(c, params["blocks"])}


# ---------------------------------------------------------------------------------------------------- one token
def sample_token(
    logits_bv: jax.Array, key_b: jax.Array, how: SamplingParams
) -> tuple[jax.Array, jax.Array]:
    """A token of each row and its log-probability under the distribution it was drawn from. logits_bv: float32 [B, V].

    The draw is the Gumbel-argmax over the candidates only: with top_k, a [B, k] problem instead of a [B, V] one.
    """
    logits_bv = logits_bv[:, : how.vocab] if how.vocab else logits_bv
    if how.temperature == 0:
        token_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
        return token_b, jnp.zeros(token_b.shape, jnp.float32)
    scaled = logits_bv / how.temperature
    ranked = how.top_k or (
        how.top_p < 1 and logits_bv.shape[1]
    )  # a nucleus needs an order; min_p does not
    ids = None
    if ranked:
        scaled, ids = jax.lax.top_k(scaled, min(ranked, logits_bv.shape[1]))
    logps = jax.nn.log_softmax(scaled, axis=-1)
    if how.top_p < 1:
        probs = jnp.exp(logps)
        before = (
            jnp.cumsum(probs, axis=-1) - probs
        )  # mass of the more likely ones: the first is always kept
        logps = jnp.where(before < how.top_p, logps, MASKED)
    if how.min_p > 0:
        logps = jnp.where(
            logps >= jnp.max(logps, axis=-1, keepdims=True) + np.log(how.min_p), logps, MASKED
        )
    logps = jax.nn.log_softmax(logps, axis=-1)
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logps.shape[1:]))(key_b)
    at_b = jnp.argmax(logps + gumbel, axis=-1)
    token_b = at_b if ids is None else take_per_row(ids, at_b)
    return token_b.astype(jnp.int32), take_per_row(logps, at_b)


def take_per_row(a_bn: jax.Array, at_b: jax.Array) -> jax.Array:
    """Entry at_b[b] of each row b."""
    return a_bn.at[jnp.arange(len(at_b)), at_b].get(out_sharding=P(ROWS))


def row_keys(seed_b: jax.Array, position_b: jax.Array) -> jax.Array:
    """One key a row and position, from the row's own seed."""
    return jax.vmap(lambda seed, at: jax.random.fold_in(jax.random.PRNGKey(seed), at))(
        seed_b, position_b
    )


# ---------------------------------------------------------------------------------------------------- prefill
@partial(jax.jit, static_argnames=("c", "size"))
def prefill(
    c: Model,
    params: Params,
    prompts_bp: jax.Array,
    length_b: jax.Array,
    seed_b: jax.Array,
    size: int,
) -> DecodeState:
    """Run the prompts [B, P], padded on the right to one length, into a cache for `size` tokens a row.

    The keys of the padding stay in the cache, never seen: a token sees positions up to its own, and those are written
    over as the row grows.
    """
    B, prompt = prompts_bp.shape
    cos, sin = rope_angles(jnp.arange(prompt), c.head_dim, c.rope_theta)

    def attend(window):
        def run(q, k, v):
            return attention(q, k, v, window=window, backend=attention_backend(c)), (k, v)

        return run

    x_nd, kept = run_blocks(c, params, prompts_bp, cos, sin, attend)
    x_bpd = jax.lax.reshape(x_nd, (B, prompt, c.width), out_sharding=P(ROWS))
    last_bd = take_per_row(x_bpd, length_b - 1)

    def lay_out(a_bpkh):
        a_bkhp = jnp.transpose(a_bpkh, (0, 2, 3, 1)).astype(c.dtype)
        return jnp.pad(a_bkhp, ((0, 0), (0, 0), (0, 0), (0, size - prompt)))

    cache = tuple((lay_out(kept[0][i]), lay_out(kept[1][i])) for i in range(c.depth))
    last_b = take_per_row(prompts_bp, length_b - 1)
    logits_bv = jax.reshard(unembed(c, params, last_bd), P(ROWS, None))
    empty = jnp.zeros((B, 0))
    return DecodeState(
        cache,
        logits_bv,
        last_b,
        length_b,
        length_b >= c.context_len,
        seed_b,
        empty.astype(jnp.int32),
        empty,
    )


# ---------------------------------------------------------------------------------------------------- decode
def decode(
    c: Model,
    weights: Params,
    stream: DecodeState,
    how: SamplingParams,
    n: int,
    stop: tuple[int, ...] = (),
    check: Callable[[], None] = lambda: None,
) -> DecodeState:
    """Draw up to n tokens a row; ends early when every row is done. A stop token ends its row and is part of it.

    A token costs the reading of the whole cache, so the cache is no longer than it has to be: it grows by buckets, each
    of which is compiled once. The host looks at the device once a bucket, and calls `check`, which may raise, as often.
    """
    longest, stream, drawn = int(stream.length_b.max()), _blank(stream, n), 0
    while drawn < n and not bool(stream.done_b.all()):
        check()
        size = _cache_size(c, stream)
        if longest + drawn >= size and size < c.context_len:
            stream = _grow(stream, min(round_to_bucket(size + 1, LEAST_CACHE), c.context_len))
            size = _cache_size(c, stream)
        until = (
            n if size == c.context_len else min(n, size - longest)
        )  # at the context's end full rows are done
        stream, drawn = _draw_until(c, weights, stream, how, drawn, until, stop), until
    return stream


def _cache_size(c: Model, stream: DecodeState) -> int:
    return stream.cache[0][0].shape[3] if c.depth else c.context_len


@partial(jax.jit, static_argnames="n", donate_argnames="stream")
def _blank(stream: DecodeState, n: int) -> DecodeState:
    """The same stream with room for n tokens in its output."""
    B = len(stream.length_b)
    tokens_bn = jnp.full((B, n), -1, jnp.int32, out_sharding=P(ROWS))
    return replace(
        stream, tokens_bn=tokens_bn, logps_bn=jnp.zeros((B, n), jnp.float32, out_sharding=P(ROWS))
    )


@partial(jax.jit, static_argnames="size")
def _grow(stream: DecodeState, size: int) -> DecodeState:
    """The same stream with room for `size` tokens a row in its cache."""
    more = ((0, 0), (0, 0), (0, 0), (0, size - stream.cache[0][0].shape[3]))
    return replace(stream, cache=jax.tree.map(lambda a: jnp.pad(a, more), stream.cache))


@partial(jax.jit, static_argnames=("c", "how", "stop"), donate_argnames=("stream",))
def _draw_until(
    c: Model, weights: Params, stream: DecodeState, how: SamplingParams, first, until, stop
) -> DecodeState:
    """Draw tokens number first .. until of each row into their places of `stream.tokens_bn`."""

    def fill_tail(carry: tuple) -> tuple:
        """Up to TAIL tokens, whose keys and values then join the cache."""
        first, s = carry
        start_b = s.length_b

        def going(carry: tuple) -> jax.Array:
            slot, _, s = carry
            return (
                (slot < min(TAIL, _cache_size(c, s))) & (first + slot < until) & ~jnp.all(s.done_b)
            )

        def body(carry: tuple) -> tuple:
            slot, tail, s = carry
            token_b, logp_b = sample_token(s.logits_bv, row_keys(s.seed_b, s.length_b), how)
            shown_b, logp_b = jnp.where(s.done_b, -1, token_b), jnp.where(s.done_b, 0.0, logp_b)
            ends_b = (
                jnp.isin(token_b, jnp.array(stop, jnp.int32)) if stop else jnp.zeros_like(s.done_b)
            )
            logits_bv, tail = decode_step(
                c, weights, s.cache, tail, slot, token_b, s.last_b, s.length_b
            )
            length_b = jnp.where(s.done_b, s.length_b, s.length_b + 1)
            s = replace(
                s,
                logits_bv=logits_bv,
                last_b=token_b,
                length_b=length_b,
                done_b=s.done_b | ends_b | (length_b >= c.context_len),
                tokens_bn=jax.lax.dynamic_update_slice(
                    s.tokens_bn, shown_b[:, None], (0, first + slot)
                ),
                logps_bn=jax.lax.dynamic_update_slice(
                    s.logps_bn, logp_b[:, None], (0, first + slot)
                ),
            )
            return slot + 1, tail, s

        slot, tail, s = jax.lax.while_loop(going, body, (0, init_tail(s.cache), s))
        return first + slot, replace(s, cache=merge_tail(s.cache, tail, start_b))

    def unfinished(carry: tuple) -> jax.Array:
        first, s = carry
        return (first < until) & ~jnp.all(s.done_b)

    return jax.lax.while_loop(unfinished, fill_tail, (first, stream))[1]


def init_tail(cache: tuple, n: int = TAIL) -> tuple:
    """Room for the keys and values of n tokens a row; of no more than the cache holds."""

    def room(a_bkhs: jax.Array) -> jax.Array:
        shape = (*a_bkhs.shape[:3], min(n, a_bkhs.shape[3]))
        return jnp.zeros(shape, a_bkhs.dtype, out_sharding=jax.typeof(a_bkhs).sharding.spec)

    return jax.tree.map(room, cache)


def merge_tail(cache: tuple, tail: tuple, start_b: jax.Array) -> tuple:
    """The cache with each row's tail behind its first `start_b` tokens. What stands in the tail beyond a row's end goes
    with it, never seen."""

    def merge(a_khs: jax.Array, late_khw: jax.Array, start: jax.Array) -> jax.Array:
        width = late_khw.shape[2]
        at = jnp.minimum(
            start, a_khs.shape[2] - width
        )  # the last window of a full cache begins before the tail does
        kept = jax.lax.dynamic_slice_in_dim(a_khs, at, width, axis=2)
        late = jnp.where(
            jnp.arange(width) < start - at, kept, jnp.roll(late_khw, start - at, axis=2)
        )
        return jax.lax.dynamic_update_slice_in_dim(a_khs, late, at, axis=2)

    return jax.tree.map(lambda a, late: jax.vmap(merge)(a, late, start_b), cache, tail)


def decode_step(
    c: Model, weights: Params, cache: tuple, tail: tuple, slot, token_b, previous_b, position_b
) -> tuple:
    """Append one token a row: (logits of the next [B, V] float32, the tail with it).

    cache, tail: L pairs (k, v) of [B, K, h, S] and [B, K, h, W]. token_b, previous_b, position_b: int32 [B], the token, the
    one before it, its place in the row. slot: its place in the tail, the same for all rows; the cache is seen up to
    `position_b - slot`.
    """
    tokens_bt = token_b[:, None]
    cos, sin = rope_angles(position_b[:, None], c.head_dim, c.rope_theta)
    x0_nd = x_nd = Embed(c).apply({"params": weights["embed"]}, tokens_bt, previous_b)
    grown = []
    for i, (block, kv, late) in enumerate(zip(weights["blocks"], cache, tail, strict=True)):
        attend = partial(
            attend_cached,
            kv,
            late,
            slot,
            position_b,
            c.short_window if is_short_layer(c, i) else None,
        )
        x_nd, late = Block(c).apply({"params": block}, x_nd, cos, sin, attend, tokens_bt, x0_nd)
        grown.append(late)
    return jax.reshard(unembed(c, weights, x_nd), P(ROWS, None)), tuple(grown)


def attend_cached(kv, late, slot, position_b, window, q_b1hd, k_b1kd, v_b1kd):
    """Attend to a row's cache, up to where its tail begins, and to the tail [B, K, h, W] up to `slot`, where the new key and
    value are written. o: [B, 1, H, h]. One softmax in two parts (Dao et al. 2022, section 3.1).

    Only the tail is written at a token: a cache that is read and written in the same step is copied or written back whole,
    on CPUs and on TPUs (1.64 times the bytes of a token at 16 rows of 2048).
    """
    (B, _, H, h), K = q_b1hd.shape, k_b1kd.shape[2]
    new = (jnp.transpose(a, (0, 2, 3, 1)).astype(late[0].dtype) for a in (k_b1kd, v_b1kd))
    late = tuple(
        jax.lax.dynamic_update_slice(a, one, (0, 0, 0, slot))
        for a, one in zip(late, new, strict=True)
    )
    q_bkgh = jax.lax.reshape(q_b1hd * h**-0.5, (B, K, H // K, h), out_sharding=P(ROWS, "model"))
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    start_b1, position_b1 = (position_b - slot)[:, None], position_b[:, None]

    def scores(k_bkhs, at_bs, end_b1):
        seen_bs = (
            at_bs < end_b1 if window is None else (at_bs < end_b1) & (position_b1 - at_bs < window)
        )
        return jnp.where(seen_bs[:, None, None, :], dot("bkgh,bkhs->bkgs", q_bkgh, k_bkhs), MASKED)

    old = scores(kv[0], jnp.arange(kv[0].shape[3])[None], start_b1)
    own = scores(late[0], start_b1 + jnp.arange(late[0].shape[3]), position_b1 + 1)
    top = jnp.maximum(jnp.max(old, axis=-1, keepdims=True), jnp.max(own, axis=-1, keepdims=True))
    old, own = jnp.exp(old - top), jnp.exp(own - top)
    o_bkgh = dot("bkgs,bkhs->bkgh", old.astype(kv[1].dtype), kv[1])
    o_bkgh += dot("bkgs,bkhs->bkgh", own.astype(late[1].dtype), late[1])
    o_bkgh /= jnp.sum(old, axis=-1, keepdims=True) + jnp.sum(own, axis=-1, keepdims=True)
    o_b1hd = jax.lax.reshape(
        o_bkgh.astype(q_b1hd.dtype), (B, 1, H, h), out_sharding=P(ROWS, None, "model")
    )
    return o_b1hd, late


# ---------------------------------------------------------------------------------------------------- for the host
def round_to_bucket(n: int, least: int = 32) -> int:
    """The next length of 32, 48, 64, 96, 128, 192, ...: few shapes to compile, at most a third too much to read."""
    size = least
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as one array [B, P] and their lengths [B]."""
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("every prompt needs at least one token; begin with <|bos|>")
    lengths = np.array([len(p) for p in prompts], np.int32)
    padded = np.zeros((len(prompts), round_to_bucket(int(lengths.max()))), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


def generate(
    c: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    n: int,
    how: SamplingParams,
    seed: int = 0,
    stop: tuple[int, ...] = (),
    check: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Up to n new tokens for each prompt, the stop token left out, in every process. Row i is seeded by seed + i.

    Any number of prompts fits any mesh: the batch is filled up with rows that are thrown away. `check`: see `decode`.
    """
    shape = jax.sharding.get_mesh().shape
    spare = -len(prompts) % (shape["replica"] * shape["data"])
    stream = prefill_prompts(c, params, [*prompts, *prompts[:1] * spare], seed)
    stream = decode(c, prepare_decode_params(c, params), stream, how, n, stop, check)
    rows = np.asarray(jax.reshard(stream.tokens_bn, P())).tolist()[: len(prompts)]
    return [[t for t in row if t >= 0 and t not in stop] for row in rows]


def prefill_prompts(
    c: Model, params: Params, prompts: Sequence[Sequence[int]], seed: int = 0
) -> DecodeState:
    """The prompts, run into a cache, ready for `decode`; row i is seeded by seed + i."""
    padded, lengths = pad_prompts(prompts)
    longest = int(lengths.max())
    if longest > c.context_len:
        raise UserError(
            f"a prompt of {longest} tokens is longer than the model's context of {c.context_len}; shorten it"
        )
    padded, size = (
        padded[:, : c.context_len],
        min(round_to_bucket(longest + 1, LEAST_CACHE), c.context_len),
    )
    size = max(size, padded.shape[1])
    place = jax.NamedSharding(jax.sharding.get_mesh(), P(ROWS))
    seeds = np.arange(seed, seed + len(prompts), dtype=np.uint32)
    tokens, lengths, seeds = (jax.device_put(a, place) for a in (padded, lengths, seeds))
    return prefill(c, params, tokens, lengths, seeds, size)
