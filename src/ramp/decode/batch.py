"""The device's side of continuous batching: B slots that always advance together, each row with settings of its own.

    slots = blank(c, B, size)                                    no row means anything yet
    slots = read(c, weights, slots, tokens, at, start, count, way, seed)   a piece of a prompt into slot `at`
    slots = copy(slots, source, at, way, seed)                   the same prompt again, for another answer
    slots, drawn = advance(c, weights, slots, n)                 n more tokens of every slot

All shapes are fixed by (B, size, n) and the length of a piece, and how a row is drawn from is data, so a new request
compiles nothing. Every call has the same width whoever is in it, and a row's randomness is keyed by its own seed and
position: the same request gives the same text alone or in company. The device does not know which slots are in use; an
idle one computes what nobody reads, at no cost beyond what the shape costs anyway. What `advance` writes into a slot whose
prompt is still being read lies behind what was read, where the next piece goes.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.decode import sample
from ramp.decode.sample import row_keys, take_per_row
from ramp.model.attention import MASKED, visible_mask
from ramp.model.transformer import ROWS, Block, Embed, Params, is_short_layer, rope_angles, unembed

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
class SlotState:
    """As `sample.Stream`, for rows that come and go; and how each of them is drawn from."""

    cache: tuple  # L pairs (k, v) of [B, K, h, S]
    logits_bv: jax.Array
    last_b: jax.Array
    length_b: jax.Array
    seed_b: jax.Array
    way: Way


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DrawnTokens:
    """n tokens of each slot, with what the model itself thought of them: of all tokens, at temperature 1."""

    token_bn: jax.Array
    logp_bn: jax.Array
    entropy_bn: jax.Array  # nats
    top_bnk: jax.Array  # ids, the most likely first; zeros where no row asked
    top_logp_bnk: jax.Array


@partial(jax.jit, static_argnames=("c", "B", "size"))
def init_slots(c: Model, B: int, size: int) -> SlotState:
    """B slots with room for `size` tokens each, and nothing in them."""

    def zeros(shape, dtype, *spec):
        return jnp.zeros(shape, dtype, out_sharding=P(ROWS, *spec))

    one = (B, c.num_kv_heads, c.head_dim, size), c.dtype, "model"
    cache = tuple((zeros(*one), zeros(*one)) for _ in range(c.depth))
    logits_bv, seed_b = zeros((B, c.vocab_size), jnp.float32), zeros(B, jnp.uint32)
    way = jax.tree.map(lambda _: zeros(B, jnp.float32), Way())
    return SlotState(cache, logits_bv, zeros(B, jnp.int32), zeros(B, jnp.int32), seed_b, way)


@partial(jax.jit, static_argnames="c", donate_argnames="slots")
def prefill_chunk(
    c: Model, weights: Params, slots: SlotState, tokens_rq, at, start, count, way: Way, seed
) -> SlotState:
    """`count` tokens of a prompt into slot `at`, behind the `start` tokens that it holds; then the slot is at their end.

    tokens_rq: int32 [R, 1 + P], the same in each row: the token before, then P of the prompt, padded on the right. One row
    a device, of which the one that owns the slot counts. weights: of `sample.ready`. start + P must fit the cache; the keys
    of the padding stay in it, never seen: they are written over as the row grows.
    """
    (R, Q), B = tokens_rq.shape, len(slots.last_b)
    cos, sin = rope_angles(start + jnp.arange(Q - 1), c.head_dim, c.rope_theta)
    # Nothing is smeared into a prompt's first token: the one before it is of another segment.
    segments_rq = jnp.broadcast_to((jnp.arange(Q) > 0) | (start > 0), (R, Q), out_sharding=P(ROWS))
    x_nd = Embed(c).apply({"params": weights["embed"]}, tokens_rq, segments_bt=segments_rq)
    x_rqd = jax.lax.reshape(x_nd, (R, Q, c.width), out_sharding=P(ROWS))
    x0_nd = x_nd = jax.lax.reshape(x_rqd[:, 1:], (R * (Q - 1), c.width), out_sharding=P(ROWS))
    cache = []
    for i, (block, kv) in enumerate(zip(weights["blocks"], slots.cache, strict=True)):
        attend = partial(
            attend_chunk, kv, at, start, c.short_window if is_short_layer(c, i) else None
        )
        x_nd, kv = Block(c).apply(
            {"params": block}, x_nd, cos, sin, attend, tokens_rq[:, 1:], x0_nd
        )
        cache.append(kv)
    x_rpd = jax.lax.reshape(x_nd, (R, Q - 1, c.width), out_sharding=P(ROWS))
    last_rd = jax.lax.dynamic_index_in_dim(x_rpd, count - 1, axis=1, keepdims=False)
    logits_rv = jax.reshard(unembed(c, weights, last_rd), P(ROWS, None))
    last_r = jax.lax.dynamic_index_in_dim(tokens_rq, count, axis=1, keepdims=False)

    def spread(a_r):
        """To each slot what its own device computed."""
        each = jnp.broadcast_to(a_r[:, None], (R, B // R, *a_r.shape[1:]), out_sharding=P(ROWS))
        return jax.lax.reshape(each, (B, *a_r.shape[1:]), out_sharding=P(ROWS))

    slots = replace(slots, cache=tuple(cache))
    return write_slot(slots, at, spread(logits_rv), spread(last_r), start + count, seed, way)


def write_slot(slots: SlotState, at, logits_bv, last_b, length, seed, way: Way) -> SlotState:
    """All but the cache of slot `at`, from row `at` of what is given for every slot."""
    here_b = jax.reshard(jnp.arange(len(last_b)) == at, P(ROWS))

    def chosen(new, old):
        return jnp.where(here_b.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    new = SlotState(slots.cache, logits_bv, last_b, length, seed, way)
    return replace(
        jax.tree.map(chosen, replace(new, cache=()), replace(slots, cache=())), cache=slots.cache
    )


def attend_chunk(kv, at, start, window, q_rphd, k_rpkd, v_rpkd):
    """Attend from P tokens of slot `at` to each other and to the `start` tokens before them: (o [R, P, H, h], the cache
    with their keys and values in it).

    Keys come in blocks of P, as many as there are to see, with a running softmax (Milakov & Gimelshein 2018, algorithm 3).
    So a piece costs what it sees, and sums in the same order whatever the size of the cache.
    """

    def local(keys_bkhs, values_bkhs, q_rphd, k_rpkd, v_rpkd, at, start):
        (_, P, H, h), K = q_rphd.shape, k_rpkd.shape[2]
        slot, mine = locate_slot(at, len(keys_bkhs))
        q_kgph = jnp.transpose((q_rphd[0] * h**-0.5).reshape(P, K, H // K, h), (1, 2, 0, 3))
        own = tuple(
            jnp.transpose(a[0], (1, 2, 0)).astype(keys_bkhs.dtype) for a in (k_rpkd, v_rpkd)
        )
        dot = partial(jnp.einsum, preferred_element_type=jnp.float32)

        def block(all_bkhs, first):
            return jax.lax.dynamic_slice(all_bkhs, (slot, 0, 0, first), (1, K, h, P))

        def join(carry, first, end, k_khs, v_khs):
            """Softmax and sum so far, with keys first .. first + P of which those before `end` count."""
            top, total, o_kgph = carry
            s = first + jnp.arange(P)
            seen_ps = visible_mask((start + jnp.arange(P))[:, None], s, window) & (s < end)
            scores = jnp.where(seen_ps, dot("kgph,khs->kgps", q_kgph, k_khs), MASKED)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            shrink, scores = jnp.exp(top - higher), jnp.exp(scores - higher)
            o_kgph = shrink * o_kgph + dot("kgps,khs->kgph", scores.astype(v_khs.dtype), v_khs)
            return higher, shrink * total + jnp.sum(scores, axis=-1, keepdims=True), o_kgph

        def earlier(i, carry):
            return join(
                carry, i * P, start, block(keys_bkhs, i * P)[0], block(values_bkhs, i * P)[0]
            )

        none = jnp.zeros((*q_kgph.shape[:3], 1), jnp.float32)
        carry = join(
            (none + MASKED, none, jnp.zeros(q_kgph.shape, jnp.float32)), start, start + P, *own
        )  # sees itself
        oldest = 0 if window is None else jnp.maximum(0, start - window + 1) // P
        _, total, o_kgph = jax.lax.fori_loop(oldest, -(-start // P), earlier, carry)
        o_rphd = (
            jnp.transpose(o_kgph / total, (2, 0, 1, 3)).reshape(1, P, H, h).astype(q_rphd.dtype)
        )
        kept = (
            jax.lax.dynamic_update_slice(
                a, jnp.where(mine, new, block(a, start)), (slot, 0, 0, start)
            )
            for a, new in zip((keys_bkhs, values_bkhs), own, strict=True)
        )
        return o_rphd, *kept

    cached, fresh = P(ROWS, "model"), P(ROWS, None, "model")
    specs = (cached, cached, fresh, fresh, fresh, P(), P())
    run = jax.shard_map(local, in_specs=specs, out_specs=(fresh, cached, cached), check_vma=False)
    o_rphd, keys, values = run(*kv, q_rphd, k_rpkd, v_rpkd, at, start)
    return o_rphd, (keys, values)


def locate_slot(at: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Inside shard_map: (slot `at` among this device's, whether it is one of them; if not, any)."""
    at -= jax.lax.axis_index(ROWS) * rows
    return jnp.clip(at, 0, rows - 1), (at >= 0) & (at < rows)


@partial(jax.jit, donate_argnames="slots")
def copy_slot(
    slots: SlotState, source: jax.Array, at: jax.Array, way: Way, seed: jax.Array
) -> SlotState:
    """What slot `source` has read in slot `at` too, before either has drawn a token."""

    def local(all_b, source, at):
        slot, mine = locate_slot(source, len(all_b))
        row = jax.lax.dynamic_index_in_dim(all_b, slot)
        row = jax.lax.psum(jnp.where(mine, row, 0), ROWS)
        slot, mine = locate_slot(at, len(all_b))
        row = jnp.where(mine, row, jax.lax.dynamic_index_in_dim(all_b, slot))
        return jax.lax.dynamic_update_index_in_dim(all_b, row, slot, 0)

    def copied(all_b):
        spec = jax.typeof(all_b).sharding.spec
        run = jax.shard_map(local, in_specs=(spec, P(), P()), out_specs=spec, check_vma=False)
        return run(all_b, source, at)

    slots = jax.tree.map(copied, slots)
    return write_slot(slots, at, slots.logits_bv, slots.last_b, slots.length_b, seed, way)


@partial(jax.jit, static_argnames="size")
def grow_slots(slots: SlotState, size: int) -> SlotState:
    """The same slots with room for `size` tokens in each."""

    def longer(a_bkhs: jax.Array) -> jax.Array:
        return jnp.pad(a_bkhs, ((0, 0), (0, 0), (0, 0), (0, size - a_bkhs.shape[3])))

    return replace(slots, cache=jax.tree.map(longer, slots.cache))


@partial(jax.jit, static_argnames=("c", "n", "vocab"), donate_argnames="slots")
def decode_slots(
    c: Model, weights: Params, slots: SlotState, n: int, vocab: int
) -> tuple[SlotState, DrawnTokens]:
    """n tokens of every slot, drawn from the first `vocab` ids."""

    def one(carry: tuple, slot: jax.Array) -> tuple[tuple, tuple]:
        s, tail = carry
        raw_bv = s.logits_bv[:, :vocab]
        token_b = sample_tokens(raw_bv, row_keys(s.seed_b, s.length_b), s.way)
        logp_bv = jax.nn.log_softmax(raw_bv, axis=-1)
        entropy_b = -jnp.sum(jnp.exp(logp_bv) * logp_bv, axis=-1)
        count = min(TOPS, vocab)
        top_logp_bk, top_bk = jax.lax.cond(
            jnp.any(s.way.tops > 0),
            lambda x: tuple(jax.lax.top_k(x, count)),
            lambda x: (x[:, :count], jnp.zeros_like(x[:, :count], jnp.int32)),
            logp_bv,
        )
        logits_bv, tail = sample.decode_step(
            c, weights, s.cache, tail, slot, token_b, s.last_b, s.length_b
        )
        s = replace(s, logits_bv=logits_bv, last_b=token_b, length_b=s.length_b + 1)
        return (s, tail), (token_b, take_per_row(logp_bv, token_b), entropy_b, top_bk, top_logp_bk)

    (after, tail), found = jax.lax.scan(
        one, (slots, sample.init_tail(slots.cache, n)), jnp.arange(n)
    )
    slots = replace(after, cache=sample.merge_tail(slots.cache, tail, slots.length_b))
    return slots, DrawnTokens(*(jnp.swapaxes(a, 0, 1) for a in found))


def sample_tokens(logits_bv: jax.Array, key_b: jax.Array, way: Way) -> jax.Array:
    """A token of each row: the Gumbel-argmax over what top_k, then top_p, then min_p leave, as in `sample.draw`."""
    scaled = logits_bv / jnp.where(way.temperature > 0, way.temperature, 1.0)[:, None]
    x_bv = scaled - jnp.max(scaled, axis=-1, keepdims=True)
    ranked = jnp.any((way.top_k > 0) | (way.top_p < 1))
    x_bv = jax.lax.cond(ranked, filter_top, lambda x, way: x, x_bv, way)
    x_bv = jnp.where(x_bv >= jnp.log(way.min_p)[:, None], x_bv, -jnp.inf)  # log 0: all
    gumbel_bv = jax.vmap(lambda key: jax.random.gumbel(key, x_bv.shape[1:]))(key_b)
    drawn_b = jnp.argmax(x_bv + gumbel_bv, axis=-1)
    return jnp.where(way.temperature > 0, drawn_b, jnp.argmax(logits_bv, axis=-1)).astype(jnp.int32)


def filter_top(x_bv: jax.Array, way: Way) -> jax.Array:
    """x with what top_k and then top_p leave out at minus infinity. x: log-weights, 0 for the most likely."""
    count_b = jnp.where(way.top_k > 0, way.top_k, x_bv.shape[1])
    x_bv = jnp.where(find_above(x_bv, jnp.ones_like(x_bv), count_b), x_bv, -jnp.inf)
    share_b = jnp.where(way.top_p < 1, way.top_p, 2.0)
    return jnp.where(find_above(x_bv, jax.nn.softmax(x_bv, axis=-1), share_b), x_bv, -jnp.inf)


def find_above(x_bv: jax.Array, mass_bv: jax.Array, limit_b: jax.Array) -> jax.Array:
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
