"""The device's side of continuous batching: B slots that always advance together.

    slots = init_slots(c, B, size)
    slots, x = prefill_chunk(c, weights, slots, tokens, at, start, count, settings)
    scores = score_chunk(c, weights, x, targets, vocab_size)   # of the prompt's own tokens
    slots = copy_slot(slots, source, at, settings)    # the same prompt, for another answer
    slots, drawn = decode_slots(c, weights, slots, first, count, allowed, vocab_size)
    slots = finish_round(slots)

All shapes are fixed by B, size and the length of a chunk, and how a row is drawn from is data,
so a new request compiles nothing. Every call has the same width whoever is in it, and a row's
randomness is keyed by its own seed and position: the same request gives the same text alone or in
company.

The device does not know which slots are in use. An idle slot computes what nobody reads, at no cost
beyond that of the shape. What `decode_slots` writes into a slot whose prompt is still being read
lies after what was read, where the next chunk goes.

A round of `ROUND_TOKENS` may be drawn in several calls, so that the host can say before each token
which ones a grammar allows. The sums are the same in however many calls.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.decode.cache import decode_step, init_tail, layer_window, merge_tail
from ramp.decode.sample import SamplingParams, draw_entries, take_per_row
from ramp.model.attention import MASKED, visible_mask
from ramp.model.transformer import (
    ROWS,
    Params,
    apply_block,
    apply_head,
    embed,
    layer_angles,
    rope_kind,
    unembed,
)

ROUND_TOKENS = 4  # drawn of each slot before newcomers are admitted
ALLOW_ALL = -1  # a word of `allowed_bw` in which every bit is set
MAX_LOGPROBS = 20  # most likely tokens that can be reported with each token
LOG_RANGE = 104.0  # nats below the top at which float32 has no probability left
BISECTIONS = 32
Values = Any  # arrays of jax on a device, numpy's on the host
# Below this a draw is the most likely token: 1e-4 makes a lead of a hundredth of a nat 100 nats,
# and much smaller ones divide to infinity.
MIN_TEMPERATURE = 1e-4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DrawSettings:
    """How the tokens of one slot are drawn, and what is reported of them.

    A `SlotState` holds the settings of all slots: arrays with one more axis, B, in front.
    """

    seed: Values  # uint32 [3], see `slot_keys`
    sampling: SamplingParams
    logprobs: Values  # most likely tokens to report
    is_adjusted: Values  # 1 where a field below is not zero: rows that need none of it save time
    presence_penalty: Values  # taken off the logits of tokens that are in the answer
    frequency_penalty: Values  # the same, for each time
    bias_v: Values  # float32 [V], added to the logits
    counts_v: Values  # float32 [V], how often each token is in the answer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotState:
    """As `sample.DecodeState`, for rows that come and go, with how each is drawn from."""

    cache: tuple  # see `ramp.decode.cache`
    tail: tuple  # the round's tokens, until `finish_round` puts them into the cache
    logits_bv: Array
    last_b: Array
    length_b: Array
    settings: DrawSettings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DrawnTokens:
    """n tokens of each slot, and the model's own figures: over all tokens, at temperature 1.

    Zeros where nothing was drawn.
    """

    token_bn: Values
    logp_bn: Values
    entropy_bn: Values  # nats
    top_bnk: Values  # ids, the most likely first; zeros where no row asked
    top_logp_bnk: Values


@partial(jax.jit, static_argnames=("c", "B", "size"))
def init_slots(c: Model, B: int, size: int) -> SlotState:
    """B empty slots with room for `size` tokens each."""

    def zeros(dtype, *shape):
        # Heads are split as well, where there are any.
        spec = P(ROWS, "model") if len(shape) == 3 else P(ROWS)
        return jnp.zeros((B, *shape), dtype, out_sharding=spec)

    def zero_keys(_):
        return zeros(c.dtype, c.num_kv_heads, c.head_dim, size)

    cache = jax.tree.map(zero_keys, ((0, 0),) * c.depth)
    return SlotState(
        cache=cache,
        tail=init_tail(cache, ROUND_TOKENS),
        logits_bv=zeros(jnp.float32, c.vocab_size),
        last_b=zeros(jnp.int32),
        length_b=zeros(jnp.int32),
        settings=DrawSettings(
            seed=zeros(jnp.uint32, 3),
            sampling=jax.tree.map(lambda _: zeros(jnp.float32), SamplingParams()),
            logprobs=zeros(jnp.float32),
            is_adjusted=zeros(jnp.float32),
            presence_penalty=zeros(jnp.float32),
            frequency_penalty=zeros(jnp.float32),
            bias_v=zeros(jnp.float32, c.vocab_size),
            counts_v=zeros(jnp.float32, c.vocab_size),
        ),
    )


def count_words(vocab_size: int) -> int:
    """Words of 32 bits that have one for each token."""
    return -(-vocab_size // 32)


# Reading prompts


@partial(jax.jit, static_argnames="c", donate_argnames="slots")
def prefill_chunk(
    c: Model,
    weights: Params,
    slots: SlotState,
    tokens_rq: Array,
    at: Array,
    start: Array,
    count: Array,
    settings: DrawSettings,
) -> tuple[SlotState, Array]:
    """Read `count` tokens of a prompt into slot `at`, after the `start` tokens that it holds.

    Returns the slots and the chunk's hidden states [R, P, D], from which `score_chunk` and
    `sum_hidden` tell more of the prompt.

    tokens_rq: int32 [R, 1 + P], the same in each row: the token before, then P of the prompt,
    padded on the right. There is one row a device, of which the one that owns the slot counts.
    weights: from `prepare_decode_params`. start + P must fit the cache. Keys of the padding stay in
    it and are never seen: they are overwritten as the row grows.
    """
    # Q = 1 + P: the token before the chunk, then the chunk.
    R, Q = tokens_rq.shape
    tokens_rp = tokens_rq[:, 1:]
    positions_p = start + jnp.arange(Q - 1)
    angles = layer_angles(c, positions_p)
    # Nothing is smeared into a prompt's first token: what comes before it is another segment.
    in_prompt_q = (jnp.arange(Q) > 0) | (start > 0)
    segments_rq = jnp.broadcast_to(in_prompt_q, (R, Q), out_sharding=P(ROWS))
    x_nd = embed(c, weights, tokens_rq, segments_bt=segments_rq)
    shape_rqd = R, Q, c.width
    x_rqd = jax.lax.reshape(x_nd, shape_rqd, out_sharding=P(ROWS))
    # The token before was needed for the smear only.
    x_rpd = x_rqd[:, 1:]
    x0_nd = jax.lax.reshape(x_rpd, (tokens_rp.size, c.width), out_sharding=P(ROWS))
    x_nd = x0_nd
    cache = []
    for layer, block in enumerate(weights["blocks"]):
        window = layer_window(c, layer)
        attend = partial(attend_chunk, slots.cache[layer], at, start, window)
        turn = angles[rope_kind(c, layer)]
        x_nd, kv = apply_block(c, block, x_nd, *turn, attend, tokens_rp, x0_nd)
        cache.append(kv)
    x_rpd = jax.lax.reshape(x_nd, x_rpd.shape, out_sharding=P(ROWS))
    # Logits behind the last real token; those behind the padding mean nothing.
    last_rd = jax.lax.dynamic_index_in_dim(x_rpd, count - 1, axis=1, keepdims=False)
    logits_rv = unembed(c, weights, last_rd)
    logits_rv = jax.reshard(logits_rv, P(ROWS, None))
    last_r = jax.lax.dynamic_index_in_dim(tokens_rq, count, axis=1, keepdims=False)
    slots = replace(slots, cache=tuple(cache))
    # Each slot gets what its own device computed.
    num_slots = len(slots.last_b) // R
    logits_bv = jnp.repeat(logits_rv, num_slots, axis=0, out_sharding=P(ROWS))
    last_b = jnp.repeat(last_r, num_slots, out_sharding=P(ROWS))
    return write_slot(slots, at, logits_bv, last_b, start + count, settings), x_rpd


def write_slot(slots: SlotState, at, logits_bv, last_b, length, settings) -> SlotState:
    """Write all but the cache of slot `at`: row `at` of arrays that have one for every slot."""
    # A mask, because a write at a computed row of a split array is not local.
    is_slot_b = jnp.arange(len(last_b)) == at
    is_slot_b = jax.reshard(is_slot_b, P(ROWS))

    def choose(new, old):
        mask = is_slot_b[:, None] if old.ndim == 2 else is_slot_b
        return jnp.where(mask, new, old)

    new = SlotState((), (), logits_bv, last_b, length, settings)
    merged = jax.tree.map(choose, new, replace(slots, cache=(), tail=()))
    return replace(merged, cache=slots.cache, tail=slots.tail)


def attend_chunk(kv, at, start, window, q_rphd, k_rpkd, v_rpkd):
    """Attention of P tokens of slot `at` to each other and to the `start` tokens before them.

    Returns (o [R, P, H, h], the cache with their keys and values in it). Keys come in blocks of P,
    as many as are visible, with a running softmax (Milakov & Gimelshein 2018, algorithm 3): a chunk
    costs what it sees, and sums in the same order whatever the size of the cache.
    """
    cached = P(ROWS, "model")
    run = jax.shard_map(
        partial(_attend_chunk_on_device, window),
        out_specs=(P(ROWS, None, "model"), (cached, cached)),
        check_vma=False,
    )
    return run(*kv, q_rphd, k_rpkd, v_rpkd, at, start)


def _attend_chunk_on_device(window, keys_bkhs, values_bkhs, q_1phd, k_1pkd, v_1pkd, at, start):
    """One device's part of `attend_chunk`: its slots, its heads and its one row of the chunk."""
    _, P_len, H, h = q_1phd.shape
    K = k_1pkd.shape[2]
    slot, is_mine = locate_slot(at, len(keys_bkhs))
    # H query heads are K groups of G that share keys and values.
    q_phd = q_1phd[0] * h**-0.5
    q_pkgh = q_phd.reshape(P_len, K, H // K, h)
    q_kgph = jnp.einsum("pkgh->kgph", q_pkgh)
    dtype = keys_bkhs.dtype
    new_k_khp = jnp.einsum("pkh->khp", k_1pkd[0]).astype(dtype)
    new_v_khp = jnp.einsum("pkh->khp", v_1pkd[0]).astype(dtype)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    positions_p = start + jnp.arange(P_len)

    def read_block(a_bkhs, first):
        return jax.lax.dynamic_slice(a_bkhs, (slot, 0, 0, first), (1, K, h, P_len))[0]

    def add_block(carry, first, end, k_khs, v_khs):
        """Fold the keys at first .. first + P into the softmax; those before `end` count."""
        top, total, o_kgph = carry
        s = first + jnp.arange(P_len)
        visible_ps = visible_mask(positions_p[:, None], s, window) & (s < end)
        scores = dot("kgph,khs->kgps", q_kgph, k_khs)
        scores = jnp.where(visible_ps, scores, MASKED)
        block_top = jnp.max(scores, axis=-1, keepdims=True)
        new_top = jnp.maximum(top, block_top)
        # What was summed so far was relative to the old maximum.
        scale = jnp.exp(top - new_top)
        p_kgps = jnp.exp(scores - new_top)
        block_total = jnp.sum(p_kgps, axis=-1, keepdims=True)
        block_o = dot("kgps,khs->kgph", p_kgps.astype(dtype), v_khs)
        return new_top, scale * total + block_total, scale * o_kgph + block_o

    def add_cached_block(i, carry):
        first = i * P_len
        k_khs = read_block(keys_bkhs, first)
        v_khs = read_block(values_bkhs, first)
        return add_block(carry, first, start, k_khs, v_khs)

    o_kgph = jnp.zeros(q_kgph.shape, jnp.float32)
    total = o_kgph[..., :1]
    top = total + MASKED
    carry = top, total, o_kgph
    # The chunk itself comes first: each of its tokens sees at least one key, its own.
    carry = add_block(carry, start, start + P_len, new_k_khp, new_v_khp)
    first_block = 0
    # Blocks that lie wholly behind the window are skipped.
    if window is not None:
        first_block = jnp.maximum(0, start - window + 1) // P_len
    num_blocks = -(-start // P_len)
    carry = jax.lax.fori_loop(first_block, num_blocks, add_cached_block, carry)
    _, total, o_kgph = carry
    o_pkgh = jnp.einsum("kgph->pkgh", o_kgph / total)
    o_1phd = o_pkgh.reshape(1, P_len, H, h).astype(q_1phd.dtype)

    def write(a_bkhs, new_khp):
        # A device that does not own the slot writes back what it read.
        block_khp = jnp.where(is_mine, new_khp, read_block(a_bkhs, start))
        return jax.lax.dynamic_update_slice(a_bkhs, block_khp[None], (slot, 0, 0, start))

    return o_1phd, (write(keys_bkhs, new_k_khp), write(values_bkhs, new_v_khp))


def locate_slot(at: Array, rows: int) -> tuple[Array, Array]:
    """Inside shard_map: (index of slot `at` on this device, whether it is here)."""
    at -= jax.lax.axis_index(ROWS) * rows
    nearest = jnp.clip(at, 0, rows - 1)
    return nearest, nearest == at


@partial(jax.jit, donate_argnames="slots")
def copy_slot(
    slots: SlotState,
    source: Array,
    at: Array,
    settings: DrawSettings,
) -> SlotState:
    """Copy what slot `source` has read to slot `at`, before either has drawn a token."""

    def copy_on_device(a_b, source, at):
        slot, is_mine = locate_slot(source, len(a_b))
        row = jax.lax.dynamic_index_in_dim(a_b, slot)
        # Only the owner adds something, so the sum sends its row to all devices.
        row = jnp.where(is_mine, row, 0)
        row = jax.lax.psum(row, ROWS)
        slot, is_mine = locate_slot(at, len(a_b))
        old_row = jax.lax.dynamic_index_in_dim(a_b, slot)
        row = jnp.where(is_mine, row, old_row)
        return jax.lax.dynamic_update_index_in_dim(a_b, row, slot, 0)

    def copy(a_b):
        sharding = jax.typeof(a_b).sharding
        run = jax.shard_map(copy_on_device, out_specs=sharding.spec, check_vma=False)
        return run(a_b, source, at)

    slots = jax.tree.map(copy, slots)
    copied = slots.logits_bv, slots.last_b, slots.length_b
    return write_slot(slots, at, *copied, settings)


@partial(jax.jit, static_argnames=("c", "vocab_size"))
def score_chunk(
    c: Model, weights: Params, x_rpd: Array, targets_rp: Array, vocab_size: int
) -> DrawnTokens:
    """The figures of the tokens [R, P] that follow each place of a chunk, in one row R * P long."""
    x_nd = jax.lax.reshape(x_rpd, (targets_rp.size, c.width), out_sharding=P(ROWS))
    target_n = jax.lax.reshape(targets_rp, (targets_rp.size,), out_sharding=P(ROWS))
    logits_nv = jax.reshard(unembed(c, weights, x_nd), P(ROWS, None))
    return describe_tokens(logits_nv[:, :vocab_size], target_n, jnp.array(True))


@partial(jax.jit, static_argnames="c")
def sum_hidden(c: Model, weights: Params, x_rpd: Array, first: Array, end: Array) -> Array:
    """The sum [R, D] of a chunk's last hidden states at the places first .. end."""
    R, P_len, width = x_rpd.shape
    x_nd = jax.lax.reshape(x_rpd, (R * P_len, width), out_sharding=P(ROWS))
    y_nd, _ = apply_head(c, weights, x_nd)
    y_rpd = jax.lax.reshape(y_nd, x_rpd.shape, out_sharding=P(ROWS))
    place_p = jnp.arange(P_len)
    is_counted_p = (place_p >= first) & (place_p < end)
    return jnp.sum(y_rpd.astype(jnp.float32), axis=1, where=is_counted_p[:, None])


# Drawing tokens


def describe_tokens(logits_bv: Array, token_b: Array, with_top: Array) -> DrawnTokens:
    """The model's own figures of one token a row, from the logits it was drawn from.

    with_top: whether any row wants its most likely tokens; sorting them out costs time.
    """
    num_top = min(MAX_LOGPROBS, logits_bv.shape[1])

    def skip_top(logp_bv):
        some_bk = logp_bv[:, :num_top]
        return [some_bk, jnp.zeros_like(some_bk, jnp.int32)]

    logp_bv = jax.nn.log_softmax(logits_bv, axis=-1)
    find_top = partial(jax.lax.top_k, k=num_top)
    top_logp_bk, top_bk = jax.lax.cond(with_top, find_top, skip_top, logp_bv)
    entropy_b = -jnp.sum(jnp.exp(logp_bv) * logp_bv, axis=-1)
    return DrawnTokens(token_b, take_per_row(logp_bv, token_b), entropy_b, top_bk, top_logp_bk)


def slot_keys(seed_bk: Array, position_b: Array) -> Array:
    """One key for each row and position.

    seed_bk: uint32 [B, 3], the two words of a request's seed and the number of the answer. Each is
    folded in by itself, so the answers of one seed are never those of the next.
    """

    def make_key(seed_k, position):
        key = jax.random.PRNGKey(seed_k[0])
        for word in (seed_k[1], seed_k[2], position):
            key = jax.random.fold_in(key, word)
        return key

    return jax.vmap(make_key)(seed_bk, position_b)


def adjust_logits(logits_bv: Array, settings: DrawSettings, allowed_bw: Array) -> Array:
    """The logits with the bias and without what the penalties take (OpenAI's formula).

    Those of tokens that are not allowed are minus infinity; see `decode_slots`.
    """
    vocab_size = logits_bv.shape[1]
    counts_bv = settings.counts_v[:, :vocab_size]
    bias_bv = settings.bias_v[:, :vocab_size]
    penalty_bv = settings.frequency_penalty[:, None] * counts_bv
    penalty_bv += settings.presence_penalty[:, None] * (counts_bv > 0)
    words_bv = jnp.repeat(allowed_bw, 32, axis=1)[:, :vocab_size]
    is_allowed_bv = (words_bv >> (jnp.arange(vocab_size) % 32)) & 1
    return jnp.where(is_allowed_bv > 0, logits_bv + bias_bv - penalty_bv, -jnp.inf)


@partial(jax.jit, static_argnames=("c", "vocab_size"), donate_argnames="slots")
def decode_slots(
    c: Model,
    weights: Params,
    slots: SlotState,
    first: Array,
    count: Array,
    allowed_bw: Array,
    vocab_size: int,
) -> tuple[SlotState, DrawnTokens]:
    """Draw `count` tokens of every slot, from the first `vocab_size` ids.

    first: how many of the round's `ROUND_TOKENS` have been drawn before. allowed_bw: int32, a bit
    for each token, the lowest first: whether it may be drawn. It counts where a row is adjusted.
    """
    settings = slots.settings
    is_adjusted = jnp.any(settings.is_adjusted > 0)
    with_top = jnp.any(settings.logprobs > 0)

    def leave(a_bv, *rest):
        return a_bv

    def count_token(counts_bv, token_b):
        is_token_bv = jnp.arange(c.vocab_size) == token_b[:, None]
        return counts_bv + is_token_bv

    def draw(s):
        logits_bv = s.logits_bv[:, :vocab_size]
        rules = s.settings, allowed_bw
        adjusted_bv = jax.lax.cond(is_adjusted, adjust_logits, leave, logits_bv, *rules)
        keys_b = slot_keys(settings.seed, s.length_b)
        token_b = sample_tokens(adjusted_bv, keys_b, settings.sampling)
        return describe_tokens(logits_bv, token_b, with_top)

    def advance(slot, carry):
        s, drawn_bn = carry
        drawn = draw(s)
        token_b = drawn.token_bn
        drawn_bn = jax.tree.map(
            lambda all_bn, new_b: all_bn.at[:, slot].set(new_b), drawn_bn, drawn
        )
        counts_bv = jax.lax.cond(is_adjusted, count_token, leave, s.settings.counts_v, token_b)
        rows = token_b, s.last_b, s.length_b
        logits_bv, tail = decode_step(c, weights, s.cache, s.tail, slot, *rows)
        s = replace(s, tail=tail, logits_bv=logits_bv, last_b=token_b, length_b=s.length_b + 1)
        return replace(s, settings=replace(s.settings, counts_v=counts_bv)), drawn_bn

    # What the round before left is masked, but a number that is not finite would come through.
    tail = jax.tree.map(lambda a: jnp.where(first == 0, 0, a), slots.tail)
    slots = replace(slots, tail=tail)

    def make_room(like_b):
        shape = len(like_b), ROUND_TOKENS, *like_b.shape[1:]
        return jnp.zeros(shape, like_b.dtype, out_sharding=P(ROWS))

    drawn_bn = jax.tree.map(make_room, jax.eval_shape(draw, slots))
    return jax.lax.fori_loop(first, first + count, advance, (slots, drawn_bn))


@partial(jax.jit, donate_argnames="slots")
def finish_round(slots: SlotState) -> SlotState:
    """Put a round's tokens, of which all have been drawn, into the cache."""
    start_b = slots.length_b - ROUND_TOKENS
    # A job that met such a number knows it by its logits; who comes next must not.
    tail = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0), slots.tail)
    return replace(slots, cache=merge_tail(slots.cache, tail, start_b))


@partial(jax.jit, donate_argnames="slots")
def clear_slot(slots: SlotState, at: Array) -> SlotState:
    """Zero the cache of slot `at`."""
    is_slot_b = jax.reshard(jnp.arange(len(slots.last_b)) == at, P(ROWS))
    is_slot_b111 = is_slot_b[:, None, None, None]
    cache = jax.tree.map(lambda a: jnp.where(is_slot_b111, 0, a), slots.cache)
    return replace(slots, cache=cache)


def sample_tokens(
    logits_bv: Array,
    key_b: Array,
    sampling: SamplingParams,
) -> Array:
    """A token of each row, as `sample.sample_token`, where each row has its own settings.

    There are two samplers because settings that are known when the program is compiled save work:
    with top_k=50 of 8192 ids on a CPU, `sample_token` takes .03 ms for one row and .3 ms for 16,
    this one .2 and 1.5 ms.
    """
    # Without a temperature the argmax is taken below; 1 stands in to divide by.
    is_random_b = sampling.temperature >= MIN_TEMPERATURE
    temperature_b = jnp.where(is_random_b, sampling.temperature, 1.0)
    scaled = logits_bv / temperature_b[:, None]
    top_b1 = jnp.max(scaled, axis=-1, keepdims=True)
    x_bv = scaled - top_b1
    # The bisections run only when a row filters.
    is_filtered_b = (sampling.top_k > 0) | (sampling.top_p < 1)
    is_filtered = jnp.any(is_filtered_b)
    x_bv = jax.lax.cond(is_filtered, filter_top, lambda x, sampling: x, x_bv, sampling)
    least_b = jnp.log(sampling.min_p)  # log 0: all pass
    x_bv = jnp.where(x_bv >= least_b[:, None], x_bv, -jnp.inf)
    drawn_b, _ = draw_entries(key_b, x_bv)
    top_b = jnp.argmax(logits_bv, axis=-1)
    token_b = jnp.where(is_random_b, drawn_b, top_b)
    return token_b.astype(jnp.int32)


def filter_top(x_bv: Array, sampling: SamplingParams) -> Array:
    """Set what top_k and then top_p leave out to minus infinity.

    x_bv: log-weights, 0 for the most likely.
    """
    max_count_b = jnp.where(sampling.top_k > 0, sampling.top_k, x_bv.shape[1])
    is_kept = find_above(x_bv, jnp.ones_like(x_bv), max_count_b)
    x_bv = jnp.where(is_kept, x_bv, -jnp.inf)
    # 2 is more than all probability there is: nothing is filtered.
    max_mass_b = jnp.where(sampling.top_p < 1, sampling.top_p, 2.0)
    probs_bv = jax.nn.softmax(x_bv, axis=-1)
    is_kept = find_above(x_bv, probs_bv, max_mass_b)
    return jnp.where(is_kept, x_bv, -jnp.inf)


def find_above(
    x_bv: Array,
    mass_bv: Array,
    limit_b: Array,
) -> Array:
    """Which entries have less than `limit_b` of mass at strictly greater ones.

    Ties share their fate. The threshold is found by bisection, which costs a tenth of sorting.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        is_above = x_bv > middle[:, None]
        mass_b = jnp.sum(mass_bv, axis=-1, where=is_above)
        is_enough = mass_b >= limit_b
        low = jnp.where(is_enough, middle, low)
        high = jnp.where(is_enough, high, middle)
        return low, high

    high = jnp.zeros_like(limit_b)
    low = high - LOG_RANGE
    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    return x_bv > low[:, None]
