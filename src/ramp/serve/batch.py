"""The device's side of continuous batching: B slots that always advance together, each row with settings of its own.

    slots = blank(c, B, size)                       no row means anything yet
    slots = insert(slots, row, at, way, seed)       a prefilled prompt (`sample.prefill`) takes slot `at`
    slots, drawn = advance(c, weights, slots, n)    n more tokens of every slot

All shapes are fixed by (B, size, n), and how a row is drawn from is data, so a new request compiles nothing. Every call
has the same width whoever is in it, and a row's randomness is keyed by its own seed and position: the same request gives
the same text alone or in company. The device does not know which slots are in use; an idle one computes what nobody
reads, at no cost beyond what the shape costs anyway.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model import sample
from ramp.model.sample import Stream, pick, row_keys
from ramp.model.transformer import ROWS, Params

TOPS = 20  # most likely tokens reported with each token
SPAN = 104.0  # nats below the top at which float32 has no probability left


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Way:
    """How tokens are drawn, as `sample.How`, but as data: a number for one request, [B] inside `Slots`."""

    temperature: float | jax.Array = 1.0  # 0: the most likely token
    top_k: float | jax.Array = 0.0
    top_p: float | jax.Array = 1.0
    min_p: float | jax.Array = 0.0
    tops: float | jax.Array = 0.0  # how many of the most likely tokens are asked for


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """As `sample.Stream`, for rows that come and go; and how each of them is drawn from."""

    cache: tuple  # L pairs (k, v) of [B, K, h, S]
    logits_bv: jax.Array
    last_b: jax.Array
    length_b: jax.Array
    seed_b: jax.Array
    way: Way


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """n tokens of each slot, with what the model itself thought of them: of all tokens, at temperature 1."""

    token_bn: jax.Array
    logp_bn: jax.Array
    entropy_bn: jax.Array  # nats
    top_bnk: jax.Array  # ids, the most likely first; zeros where no row asked
    top_logp_bnk: jax.Array


@partial(jax.jit, static_argnames=("c", "B", "size"))
def blank(c: Model, B: int, size: int) -> Slots:
    """B slots with room for `size` tokens each, and nothing in them."""

    def zeros(shape, dtype, *spec):
        return jnp.zeros(shape, dtype, out_sharding=P(ROWS, *spec))

    one = (B, c.kv_heads, c.head_dim, size), c.dtype, "model"
    cache = tuple((zeros(*one), zeros(*one)) for _ in range(c.depth))
    logits_bv, seed_b = zeros((B, c.vocab), jnp.float32), zeros(B, jnp.uint32)
    way = jax.tree.map(lambda _: zeros(B, jnp.float32), Way())
    return Slots(cache, logits_bv, zeros(B, jnp.int32), zeros(B, jnp.int32), seed_b, way)


@partial(jax.jit, donate_argnames="slots")
def insert(slots: Slots, row: Stream, at: jax.Array, way: Way, seed: jax.Array) -> Slots:
    """Row 0 of `row` in slot `at`. What the slot's cache holds beyond the prompt is never seen: see `sample.prefill`."""

    def put(all_b, one_b):
        """A row may be shorter than its slot."""
        spec = jax.typeof(all_b).sharding.spec
        one = jax.reshard(one_b, P(None, *spec[1:]))[:1] if one_b.ndim else one_b[None]

        def local(all_b, one, at):
            first = jax.lax.axis_index(ROWS) * len(all_b)
            here = jnp.clip(at - first, 0, len(all_b) - 1)
            start = (here, *[0] * (all_b.ndim - 1))
            old = jax.lax.dynamic_slice(all_b, start, one.shape)
            mine = (at >= first) & (at < first + len(all_b))
            return jax.lax.dynamic_update_slice(all_b, jnp.where(mine, one.astype(all_b.dtype), old), start)

        run = jax.shard_map(local, in_specs=(spec, P(None, *spec[1:]), P()), out_specs=spec, check_vma=False)
        return run(all_b, one, at)

    return jax.tree.map(put, slots, Slots(row.cache, row.logits_bv, row.last_b, row.length_b, seed, way))


@partial(jax.jit, static_argnames="size")
def grow(slots: Slots, size: int) -> Slots:
    """The same slots with room for `size` tokens in each."""

    def longer(a_bkhs: jax.Array) -> jax.Array:
        return jnp.pad(a_bkhs, ((0, 0), (0, 0), (0, 0), (0, size - a_bkhs.shape[3])))

    return replace(slots, cache=jax.tree.map(longer, slots.cache))


@partial(jax.jit, static_argnames=("c", "n", "vocab"), donate_argnames="slots")
def advance(c: Model, weights: Params, slots: Slots, n: int, vocab: int) -> tuple[Slots, Drawn]:
    """n tokens of every slot, drawn from the first `vocab` ids."""

    def one(carry: tuple, slot: jax.Array) -> tuple[tuple, tuple]:
        s, tail = carry
        raw_bv = s.logits_bv[:, :vocab]
        token_b = choose(raw_bv, row_keys(s.seed_b, s.length_b), s.way)
        logp_bv = jax.nn.log_softmax(raw_bv, axis=-1)
        entropy_b = -jnp.sum(jnp.exp(logp_bv) * logp_bv, axis=-1)
        count = min(TOPS, vocab)
        top_logp_bk, top_bk = jax.lax.cond(
            jnp.any(s.way.tops > 0),
            lambda x: tuple(jax.lax.top_k(x, count)),
            lambda x: (x[:, :count], jnp.zeros_like(x[:, :count], jnp.int32)),
            logp_bv,
        )
        logits_bv, tail = sample.advance(c, weights, s.cache, tail, slot, token_b, s.last_b, s.length_b)
        s = replace(s, logits_bv=logits_bv, last_b=token_b, length_b=s.length_b + 1)
        return (s, tail), (token_b, pick(logp_bv, token_b), entropy_b, top_bk, top_logp_bk)

    (after, tail), found = jax.lax.scan(one, (slots, sample.blank_tail(slots.cache, n)), jnp.arange(n))
    slots = replace(after, cache=sample.merged(slots.cache, tail, slots.length_b))
    return slots, Drawn(*(jnp.swapaxes(a, 0, 1) for a in found))


def choose(logits_bv: jax.Array, key_b: jax.Array, way: Way) -> jax.Array:
    """A token of each row: the Gumbel-argmax over what top_k, then top_p, then min_p leave, as in `sample.draw`."""
    scaled = logits_bv / jnp.where(way.temperature > 0, way.temperature, 1.0)[:, None]
    x_bv = scaled - jnp.max(scaled, axis=-1, keepdims=True)
    ranked = jnp.any((way.top_k > 0) | (way.top_p < 1))
    x_bv = jax.lax.cond(ranked, narrowed, lambda x, way: x, x_bv, way)
    x_bv = jnp.where(x_bv >= jnp.log(way.min_p)[:, None], x_bv, -jnp.inf)  # log 0: all
    gumbel_bv = jax.vmap(lambda key: jax.random.gumbel(key, x_bv.shape[1:]))(key_b)
    drawn_b = jnp.argmax(x_bv + gumbel_bv, axis=-1)
    return jnp.where(way.temperature > 0, drawn_b, jnp.argmax(logits_bv, axis=-1)).astype(jnp.int32)


def narrowed(x_bv: jax.Array, way: Way) -> jax.Array:
    """x with what top_k and then top_p leave out at minus infinity. x: log-weights, 0 for the most likely."""
    count_b = jnp.where(way.top_k > 0, way.top_k, x_bv.shape[1])
    x_bv = jnp.where(above(x_bv, jnp.ones_like(x_bv), count_b), x_bv, -jnp.inf)
    share_b = jnp.where(way.top_p < 1, way.top_p, 2.0)
    return jnp.where(above(x_bv, jax.nn.softmax(x_bv, axis=-1), share_b), x_bv, -jnp.inf)


def above(x_bv: jax.Array, mass_bv: jax.Array, limit_b: jax.Array) -> jax.Array:
    """Which entries have less than `limit_b` of mass at strictly greater ones. The threshold is found by halving an
    interval, 32 passes over the row, which is a tenth of the price of sorting it. Equal entries share their fate."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(x_bv > middle[:, None], mass_bv, 0), axis=-1) >= limit_b
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    high = jnp.zeros_like(limit_b)
    low, _ = jax.lax.fori_loop(0, 32, halve, (high - SPAN, high))
    return x_bv > low[:, None]
