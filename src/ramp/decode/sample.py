"""Sampling from prompts: prefill, then decode in a `lax.while_loop` with a key-value cache.

    result = generate(c, params, prompts, seeds, SamplingParams(0.8, top_k=50), max_new_tokens=64)
    result.rows()                                    # new tokens of each prompt

or, for callers that look at tokens while they are drawn:

    weights = prepare_decode_params(c, params)       # once
    state = prefill_prompts(c, params, prompts, seeds)
    state = decode(c, weights, state, sampling, n)   # up to n more tokens a row; and again
    state.tokens_bn, state.logps_bn

Rows have their own positions, so prompts of any lengths share a batch. The randomness of a row
depends on its own seed and position only: a sample does not depend on the rows around it, and can
be made again alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.decode.cache import (
    TAIL,
    cache_size,
    decode_step,
    grow_cache,
    init_tail,
    merge_tail,
    round_to_bucket,
)
from ramp.decode.params import prepare_decode_params
from ramp.errors import UserError
from ramp.model.attention import MASKED, attention
from ramp.model.transformer import ROWS, Params, attention_backend, run_blocks, unembed
from ramp.train.processes import to_host, to_mesh

MIN_CACHE = 128  # tokens that a cache has room for at first


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits; filters apply in the order of the fields.

    With plain numbers it is hashable, and `decode` compiles once for each value. The server holds
    arrays [B] in it instead: every row has its own settings, and no value compiles anything.
    """

    temperature: float | Array = 1.0  # 0: always the most likely token
    top_k: float | Array = 0  # keep the k most likely tokens; 0: all
    top_p: float | Array = 1.0  # keep the most likely that together hold this probability
    min_p: float | Array = 0.0  # keep those at least this fraction as likely as the top one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """B sequences that are being sampled."""

    cache: tuple  # see `ramp.decode.cache`
    logits_bv: Array  # of the next token, float32
    last_b: Array  # the newest token in the cache (the smear switch mixes it in)
    length_b: Array  # tokens in the cache, which is the position of the next one
    done_b: Array  # a stop token was drawn, or the context is full
    seed_b: Array  # uint32
    tokens_bn: Array  # what the latest `decode` drew; -1 after a row's end
    logps_bn: Array  # of each token, as `sample_token` gives it; 0 after a row's end


@dataclass(frozen=True)
class Generation:
    """New tokens of each prompt, on the host of every process."""

    tokens_bn: np.ndarray  # int32; a stop token is part of its row; -1 after a row's end
    logps_bn: np.ndarray  # float32, nats; 0 after a row's end

    def rows(self, without: Sequence[int] = ()) -> list[list[int]]:
        """The tokens of each row as a list, those in `without` (the stop tokens, say) left out."""
        dropped = {-1, *without}
        rows = self.tokens_bn.tolist()
        return [[token for token in row if token not in dropped] for row in rows]


def generate(
    c: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingParams,
    max_new_tokens: int,
    *,
    stop: tuple[int, ...] = (),
    vocab_size: int | None = None,
    batch_size: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Generation:
    """Up to `max_new_tokens` after each prompt; a row ends at a stop token or with the context.

    seeds: one for each prompt. vocab_size: see `sample_token`. batch_size: prompts that are decoded
    at once, all by default; it is raised to a multiple of the devices, and a batch that is not full
    is filled up with rows that are thrown away, so every batch compiles the same program.
    check: called now and then while tokens are drawn; it may raise to end the call.
    """
    weights = prepare_decode_params(c, params)
    mesh = jax.sharding.get_mesh()
    # Rows are split over these devices, so their number must divide the batch.
    num_devices = mesh.shape["replica"] * mesh.shape["data"]
    batch_size = batch_size or max(1, len(prompts))
    batch_size += -batch_size % num_devices
    # Spare rows repeat the first prompt: they need some prompt, and are cut off below.
    spare = -len(prompts) % batch_size
    rows = [*prompts, *[prompts[0]] * spare] if spare else prompts
    row_seeds = [*seeds, *[0] * spare]
    tokens = [np.zeros((0, max_new_tokens), np.int32)]
    logps = [np.zeros((0, max_new_tokens), np.float32)]
    batches = [slice(i, i + batch_size) for i in range(0, len(prompts), batch_size)]
    # Of all batches, which are one program.
    times = math.gcd(*(count_repeats(rows[batch]) for batch in batches))
    for batch in batches:
        state = prefill_prompts(c, params, rows[batch], row_seeds[batch], times)
        state = decode(c, weights, state, sampling, max_new_tokens, stop, vocab_size, check)
        # All rows, in every process.
        tokens.append(to_host(state.tokens_bn))
        logps.append(to_host(state.logps_bn))
    tokens_bn = np.concatenate(tokens)[: len(prompts)]
    logps_bn = np.concatenate(logps)[: len(prompts)]
    return Generation(tokens_bn, logps_bn)


# One token


def sample_token(
    logits_bv: Array,
    key_b: Array,
    sampling: SamplingParams,
    vocab_size: int | None = None,
) -> tuple[Array, Array]:
    """A token of each row, and its log-probability under the very distribution it was drawn from.

    logits_bv: float32 [B, V]. sampling: plain numbers, for all rows. vocab_size: only the first so
    many ids are drawn, because the model's table is padded and the tokenizer's is not.

    With top_k the draw is over [B, k] and not [B, V].
    """
    logits_bv = logits_bv[:, :vocab_size]
    # All of the probability is on one token, so its log-probability is 0.
    if sampling.temperature == 0:
        token_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
        return token_b, jnp.zeros(token_b.shape, jnp.float32)
    scaled = logits_bv / sampling.temperature if sampling.temperature != 1 else logits_bv
    num_ids = logits_bv.shape[1]
    ids = None
    if sampling.top_k or sampling.top_p < 1:  # a nucleus needs the order; min_p does not
        num_candidates = min(int(sampling.top_k) or num_ids, num_ids)
        scaled, ids = jax.lax.top_k(scaled, num_candidates)
    logps = scaled
    if sampling.top_p < 1 or sampling.min_p > 0:
        logps = jax.nn.log_softmax(scaled, axis=-1)
    if sampling.top_p < 1:
        probs = jnp.exp(logps)
        before = jnp.cumsum(probs, axis=-1) - probs  # 0 for the first, which is always kept
        logps = jnp.where(before < sampling.top_p, logps, MASKED)
    if sampling.min_p > 0:
        # The likeliest token always passes, whatever min_p is.
        top = jnp.max(logps, axis=-1, keepdims=True)
        least = top + np.log(sampling.min_p)
        logps = jnp.where(logps >= least, logps, MASKED)
    # Over what is left: these are the probabilities of the draw.
    at_b, logp_b = draw_entries(key_b, logps)
    token_b = at_b if ids is None else take_per_row(ids, at_b)
    return token_b.astype(jnp.int32), logp_b


def draw_entries(key_b: Array, x_bv: Array) -> tuple[Array, Array]:
    """An entry of each row, by chances in proportion to exp(x_bv), and the log of its chance.

    The sums of blocks are searched first, then the block: two random numbers a row. The argmax of
    x plus Gumbel noise, which draws the same way, needs one for every entry: with 49,000 ids a
    fifth to a third of what a model of 135M takes. Where the largest x is infinite it is drawn.
    """
    num_rows, num_entries = x_bv.shape
    width = math.isqrt(num_entries - 1) + 1
    top_b1 = jnp.max(x_bv, axis=-1, keepdims=True)
    # Infinite minus infinite is no number.
    mass_bv = jnp.where(x_bv == top_b1, 1, jnp.exp(x_bv - top_b1))
    spare = -num_entries % width
    mass_bnw = jnp.pad(mass_bv, ((0, 0), (0, spare))).reshape(num_rows, -1, width)
    mass_bn = jnp.sum(mass_bnw, axis=-1)
    # One call per key, so that a row draws the same in any batch.
    uniform_b2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(key_b)
    block_b = find_fraction(mass_bn, uniform_b2[:, 0])
    within_b = find_fraction(take_per_row(mass_bnw, block_b), uniform_b2[:, 1])
    at_b = block_b * width + within_b
    logp_b = take_per_row(x_bv, at_b) - top_b1[:, 0] - jnp.log(jnp.sum(mass_bn, axis=-1))
    return at_b, logp_b


def find_fraction(mass_bn: Array, fraction_b: Array) -> Array:
    """The first entry of each row up to which at least 1 - a fraction [0, 1) of its mass lies."""
    sum_bn = jnp.cumsum(mass_bn, axis=-1)
    # Sums of one row may round apart, and an entry without mass is never the one.
    sum_bn = jnp.where(mass_bn > 0, sum_bn, 0)
    # A fraction may be 0 exactly, and 1 - 0 is all: nothing is drawn because it comes first.
    wanted_b = (1 - fraction_b) * jnp.max(sum_bn, axis=-1)
    return jnp.argmax((sum_bn >= wanted_b[:, None]) & (mass_bn > 0), axis=-1)


def take_per_row(a_bn: Array, at_b: Array) -> Array:
    """Entry at_b[b] of each row b."""
    row_b = jnp.arange(len(at_b))
    return a_bn.at[row_b, at_b].get(out_sharding=P(ROWS))


def row_keys(seed_b: Array, position_b: Array) -> Array:
    """One key for each row and position, from the row's own seed."""

    def make_key(seed, position):
        return jax.random.fold_in(jax.random.PRNGKey(seed), position)

    return jax.vmap(make_key)(seed_b, position_b)


# Prefill


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one array int32 [B, P], padded on the right to a bucket, and their lengths [B]."""
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("every prompt needs at least one token; begin with <|bos|>")
    lengths = np.array([len(p) for p in prompts], np.int32)
    width = round_to_bucket(int(lengths.max()))
    padded = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


def shard_rows(*arrays: np.ndarray) -> tuple[Array, ...]:
    """Host arrays on the current mesh, their rows split over its devices.

    Rows of zeros fill them up where they do not divide. Every process gives the same arrays.
    """
    mesh = jax.sharding.get_mesh()
    sharding = jax.NamedSharding(mesh, P(ROWS))
    num_devices = mesh.shape["replica"] * mesh.shape["data"]

    def place(a: np.ndarray) -> Array:
        spare = np.zeros((-len(a) % num_devices, *a.shape[1:]), a.dtype)
        return to_mesh(np.concatenate([a, spare]) if len(spare) else a, sharding)

    return tuple(map(place, arrays))


def prefill_prompts(
    c: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    times: int = 1,
) -> DecodeState:
    """Run prompts into a cache, ready for `decode`; `seeds` has one for each.

    times: each prompt stands so often in a row, and is read once; see `count_repeats`.
    UserError when a prompt is longer than the model's context.
    """
    padded, lengths = pad_prompts(prompts)
    longest = int(lengths.max())
    if longest > c.context_len:
        raise UserError(
            f"a prompt of {longest} tokens is longer than the model's context of {c.context_len}; "
            "shorten it"
        )
    padded = padded[:, : c.context_len]
    # Room for one token at least, or `decode` would have to grow it at once.
    size = max(MIN_CACHE, round_to_bucket(longest + 1))
    size = min(size, c.context_len)
    all_seeds = np.array(seeds, np.uint32)
    rows = shard_rows(padded[::times], lengths[::times], all_seeds[::times])
    state = prefill(c, params, *rows, size)
    return state if times == 1 else repeat_rows(state, *shard_rows(all_seeds), times)


def count_repeats(prompts: Sequence[Sequence[int]]) -> int:
    """How often each prompt stands behind itself, where all do so equally often.

    Each device has whole groups: what it has read it need not send.
    """
    mesh = jax.sharding.get_mesh()
    num_devices = mesh.shape["replica"] * mesh.shape["data"]
    if len(prompts) % num_devices:
        return 1
    lengths_of_runs = [len(list(run)) for _, run in groupby(prompts)]
    return math.gcd(*lengths_of_runs, len(prompts) // num_devices)


@partial(jax.jit, static_argnames="times")
def repeat_rows(state: DecodeState, seed_b: Array, times: int) -> DecodeState:
    """Every row so many times, with new seeds."""

    def repeat(a):
        return jnp.repeat(a, times, axis=0, out_sharding=jax.typeof(a).sharding.spec)

    return replace(jax.tree.map(repeat, state), seed_b=seed_b)


@partial(jax.jit, static_argnames=("c", "size"))
def prefill(
    c: Model,
    params: Params,
    prompts_bp: Array,
    length_b: Array,
    seed_b: Array,
    size: int,
) -> DecodeState:
    """Run the prompts [B, P], padded on the right to one length, into a cache of `size` tokens.

    Keys of the padding stay in the cache and are never seen: a token sees positions up to its own,
    and those are overwritten as the row grows.
    """
    B, P_len = prompts_bp.shape
    backend = attention_backend(c)

    def make_attend(window):
        def attend(q, k, v):
            o = attention(q, k, v, window=window, backend=backend)
            return o, (k, v)

        return attend

    x_nd, kv_lbpkh = run_blocks(c, params, prompts_bp, make_attend)
    x_bpd = jax.lax.reshape(x_nd, (B, P_len, c.width), out_sharding=P(ROWS))
    last_bd = take_per_row(x_bpd, length_b - 1)

    def layer_cache(layer):
        # Time goes last, see `ramp.decode.cache`.
        return tuple(jnp.einsum("bpkh->bkhp", a[layer]).astype(c.dtype) for a in kv_lbpkh)

    cache = tuple(layer_cache(layer) for layer in range(c.depth))
    logits_bv = unembed(c, params, last_bd)
    return DecodeState(
        cache=grow_cache(cache, size),
        logits_bv=jax.reshard(logits_bv, P(ROWS, None)),
        last_b=take_per_row(prompts_bp, length_b - 1),
        length_b=length_b,
        done_b=length_b >= c.context_len,
        seed_b=seed_b,
        # Nothing has been drawn yet.
        tokens_bn=jnp.zeros((B, 0), jnp.int32),
        logps_bn=jnp.zeros((B, 0)),
    )


# Decode


def decode(
    c: Model,
    weights: Params,
    state: DecodeState,
    sampling: SamplingParams,
    n: int,
    stop: tuple[int, ...] = (),
    vocab_size: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> DecodeState:
    """Draw up to n tokens for each row; returns early when every row is done.

    A stop token ends its row and is part of it. weights: from `prepare_decode_params`. The state
    that is given in is used up (donated).

    A token costs reading the whole cache, so the cache is no longer than it has to be: it grows by
    buckets, each of which compiles once. The host looks at the device, and calls `check`, once a
    bucket.
    """
    # Read once: after this the host knows how full the cache is by counting.
    longest = int(state.length_b.max())
    state = init_output(state, n)
    drawn = 0
    while drawn < n and not bool(state.done_b.all()):
        check()
        size = cache_size(c, state.cache)
        if longest + drawn >= size and size < c.context_len:
            size = min(round_to_bucket(size + 1), c.context_len)
            state = replace(state, cache=grow_cache(state.cache, size))
        # A cache as long as the context cannot overflow: rows are done when they fill it.
        end = n if size == c.context_len else min(n, size - longest)
        state = decode_until(c, weights, state, sampling, drawn, end, stop, vocab_size)
        drawn = end
    return state


@partial(jax.jit, static_argnames="n", donate_argnames="state")
def init_output(state: DecodeState, n: int) -> DecodeState:
    """The same state with room for n tokens in its output."""
    shape = len(state.length_b), n
    # -1: not drawn yet.
    tokens_bn = jnp.full(shape, -1, jnp.int32, out_sharding=P(ROWS))
    logps_bn = jnp.zeros(shape, jnp.float32, out_sharding=P(ROWS))
    return replace(state, tokens_bn=tokens_bn, logps_bn=logps_bn)


@partial(
    jax.jit,
    static_argnames=("c", "sampling", "stop", "vocab_size"),
    donate_argnames="state",
)
def decode_until(
    c: Model,
    weights: Params,
    state: DecodeState,
    sampling: SamplingParams,
    first: Array | int,
    end: Array | int,
    stop: tuple[int, ...] = (),
    vocab_size: int | None = None,
) -> DecodeState:
    """Draw tokens number first .. end of each row into `tokens_bn`; the cache must have room."""
    tail_size = min(TAIL, cache_size(c, state.cache))

    def draw(carry):
        first, slot, tail, s = carry
        # Keyed by the position that the new token will have.
        keys_b = row_keys(s.seed_b, s.length_b)
        token_b, logp_b = sample_token(s.logits_bv, keys_b, sampling, vocab_size)
        rows = token_b, s.last_b, s.length_b
        logits_bv, tail = decode_step(c, weights, s.cache, tail, slot, *rows)
        # A row that is done is computed like the others; nothing of it is kept.
        shown_b = jnp.where(s.done_b, -1, token_b)
        logp_b = jnp.where(s.done_b, 0.0, logp_b)
        length_b = jnp.where(s.done_b, s.length_b, s.length_b + 1)
        done_b = s.done_b | (length_b >= c.context_len)
        # Static: without stop tokens the comparison is not compiled.
        if stop:
            done_b |= jnp.isin(token_b, jnp.array(stop, jnp.int32))
        at = (0, first + slot)
        s = replace(
            s,
            logits_bv=logits_bv,
            last_b=token_b,
            length_b=length_b,
            done_b=done_b,
            tokens_bn=jax.lax.dynamic_update_slice(s.tokens_bn, shown_b[:, None], at),
            logps_bn=jax.lax.dynamic_update_slice(s.logps_bn, logp_b[:, None], at),
        )
        return first, slot + 1, tail, s

    def unfinished(carry):
        first, s = carry
        return (first < end) & ~jnp.all(s.done_b)

    def tail_has_room(carry):
        first, slot, _, s = carry
        return (slot < tail_size) & unfinished((first + slot, s))

    def fill_tail(carry):
        """Draw up to TAIL tokens, then merge their keys and values into the cache."""
        first, s = carry
        start_b = s.length_b
        carry = (first, 0, init_tail(s.cache), s)
        first, slot, tail, s = jax.lax.while_loop(tail_has_room, draw, carry)
        cache = merge_tail(s.cache, tail, start_b)
        return first + slot, replace(s, cache=cache)

    _, state = jax.lax.while_loop(unfinished, fill_tail, (first, state))
    return state
