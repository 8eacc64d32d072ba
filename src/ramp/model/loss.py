"""Next-token cross-entropy whose logits need never exist all at once."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model.linear import CONTRACT_F, ROWS, gather_weight, scatter_grad
from ramp.model.transformer import Params, apply_head, compute_hidden, unembed


def cross_entropy(logits_nv: jax.Array, targets_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return cross-entropy and log-normaliser of each row, nats, [N] float32."""
    log_z_n = jax.nn.logsumexp(logits_nv, axis=-1)
    # The target's logit is picked by comparing with an iota, not by indexing: that also works when
    # V is split over devices, and its gradient stays split.
    ids = jax.lax.broadcasted_iota(jnp.int32, (1, logits_nv.shape[1]), 1)
    hit_nv = ids == targets_n[:, None]
    target_n = jnp.sum(jnp.where(hit_nv, logits_nv, 0.0), axis=-1)
    return log_z_n - target_n, log_z_n


def token_cross_entropy(
    c: Model, params: Params, x_nd: jax.Array, targets_bt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cross-entropy and log-normaliser, [B, T] float32, from hidden states [B*T, D].

    With `c.loss_chunk` = t, a device's rows are cut into T/t pieces whose logits are made, used and
    forgotten one after the other, in the backward pass too: peak memory falls by T/t for one more
    product with the head.
    """
    B, T = targets_bt.shape
    targets_n = jax.lax.reshape(targets_bt, (B * T,), out_sharding=P(ROWS))
    if not c.loss_chunk or c.loss_chunk >= T:
        nats_n, log_z_n = cross_entropy(unembed(c, params, x_nd), targets_n)
    elif T % c.loss_chunk:
        raise ValueError(f"a row of {T} tokens does not divide into loss chunks of {c.loss_chunk}")
    else:
        y_nd, w_dv = apply_head(c, params, x_nd)
        pieces = T // c.loss_chunk
        nats_n, log_z_n = chunked_cross_entropy(y_nd, w_dv, targets_n, pieces, c.logit_softcap)
    nats_bt = jax.lax.reshape(nats_n, (B, T), out_sharding=P(ROWS))
    log_z_bt = jax.lax.reshape(log_z_n, (B, T), out_sharding=P(ROWS))
    return nats_bt, log_z_bt


def chance_loss(c: Model) -> float:
    """Return the loss of a model that knows nothing: every token is as likely, nats."""
    return math.log(c.vocab_size)


def next_token_loss(
    c: Model, z_loss: float
) -> Callable[[Params, dict, jax.Array], tuple[jax.Array, dict]]:
    """Return the loss of the next token, weighted by `batch["weights"]`, in nats.

    A batch has "tokens" and "targets", int32 [B, T], "weights", float32 [B, T], and where rows hold
    several documents "segments", int32 [B, T]. With z_loss, z_loss * log²Z is added (Chowdhery et
    al. 2022, section 5).
    """

    def loss(params: Params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        x_nd = compute_hidden(c, params["lm"], batch["tokens"], batch.get("segments"))
        nats_bt, log_z_bt = token_cross_entropy(c, params["lm"], x_nd, batch["targets"])
        nats = jnp.sum(nats_bt * batch["weights"])
        if not z_loss:
            return nats, {}
        z = jnp.sum(jnp.square(log_z_bt) * batch["weights"])
        return nats + z_loss * z, {"nats": nats, "z": z}

    return loss


# --------------------------------------------------------------------------------------- in pieces
SPECS = P(ROWS), P("data", "model"), P(ROWS)  # y, w, targets
CONTRACT_ROWS = (((0,), (0,)), ((), ()))  # y^T @ d: both contract N


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def chunked_cross_entropy(
    y_nd: jax.Array, w_dv: jax.Array, targets_n: jax.Array, pieces: int, cap: float
) -> tuple[jax.Array, jax.Array]:
    """Return `cross_entropy(cap tanh(y @ w / cap))` without its logits, [N, V].

    One call per device, so that the matrix is gathered once and its gradient, float32, is summed
    over the pieces before it is scattered once; a loop of Explicit products would do both for every
    piece. Devices along "model" hold a slice of V each and exchange maxima and sums of a row.
    """
    return _forward(y_nd, w_dv, targets_n, pieces, cap)[0]


def _forward(y_nd, w_dv, targets_n, pieces, cap):
    def run(y_nd, w_dv, targets_n):
        w_dv = gather_weight(w_dv, SPECS[1], y_nd.dtype)

        def piece(_, xs):
            y_nd, targets_n = xs
            logits_nv, hit_nv = _compute_logits(y_nd, w_dv, targets_n, cap)
            # logsumexp over all of V, of which this device has a slice.
            top_n = jax.lax.pmax(jnp.max(logits_nv, axis=1), "model")
            mass_n = jnp.sum(jnp.exp(logits_nv - top_n[:, None]), axis=1)
            target_n = jnp.sum(jnp.where(hit_nv, logits_nv, 0), axis=1)
            mass_n, target_n = jax.lax.psum((mass_n, target_n), "model")
            log_z_n = top_n + jnp.log(mass_n)
            return None, (log_z_n - target_n, log_z_n)

        _, (nats, log_z) = jax.lax.scan(piece, None, _cut(pieces, y_nd, targets_n))
        return nats.reshape(-1), log_z.reshape(-1)

    rows = P(ROWS)
    sharded = jax.shard_map(run, in_specs=SPECS, out_specs=(rows, rows), check_vma=False)
    nats_n, log_z_n = sharded(y_nd, w_dv, targets_n)
    return (nats_n, log_z_n), (y_nd, w_dv, targets_n, log_z_n)


def _backward(pieces, cap, saved, cotangents):
    dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

    def run(y_nd, w_dv, targets_n, log_z_n, by_nats_n, by_log_z_n):
        gathered_dv = gather_weight(w_dv, SPECS[1], y_nd.dtype)

        def piece(dw_dv, xs):
            y_nd, targets_n, log_z_n, by_nats_n, by_log_z_n = xs
            logits_nv, hit_nv = _compute_logits(y_nd, gathered_dv, targets_n, cap)
            # d log_z is the softmax; d nats is the softmax less one at the target.
            probs_nv = jnp.exp(logits_nv - log_z_n[:, None])
            by_probs_n = (by_nats_n + by_log_z_n)[:, None]
            d_nv = probs_nv * by_probs_n - jnp.where(hit_nv, by_nats_n[:, None], 0.0)
            if cap:
                d_nv = d_nv * (1 - jnp.square(logits_nv / cap))  # of cap tanh(x / cap)
            d_nv = d_nv.astype(y_nd.dtype)
            dy_nd = dot(d_nv, gathered_dv, CONTRACT_F)
            return dw_dv + dot(y_nd, d_nv, CONTRACT_ROWS), dy_nd

        xs = _cut(pieces, y_nd, targets_n, log_z_n, by_nats_n, by_log_z_n)
        dw_dv, dy = jax.lax.scan(piece, jnp.zeros(gathered_dv.shape, jnp.float32), xs)
        # Cast before the sum over "model": half the bytes travel.
        dy_nd = jax.lax.psum(dy.reshape(y_nd.shape).astype(y_nd.dtype), "model")
        return dy_nd, scatter_grad(dw_dv, SPECS[1], w_dv.dtype)

    rows = P(ROWS)
    in_specs = (*SPECS, rows, rows, rows)
    sharded = jax.shard_map(run, in_specs=in_specs, out_specs=SPECS[:2], check_vma=False)
    dy_nd, dw_dv = sharded(*saved, *cotangents)
    return dy_nd, dw_dv, None  # targets have no gradient


chunked_cross_entropy.defvjp(_forward, _backward)


def _compute_logits(
    y_nd: jax.Array, w_dv: jax.Array, targets_n: jax.Array, cap: float
) -> tuple[jax.Array, jax.Array]:
    """Return this device's slice of the logits, and where the targets are in it."""
    logits_nv = jnp.dot(y_nd, w_dv, preferred_element_type=jnp.float32)
    if cap:
        logits_nv = cap * jnp.tanh(logits_nv / cap)
    first_id = jax.lax.axis_index("model") * w_dv.shape[1]
    ids = jax.lax.broadcasted_iota(jnp.int32, (1, w_dv.shape[1]), 1) + first_id
    return logits_nv, ids == targets_n[:, None]


def _cut(pieces: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(a.reshape(pieces, -1, *a.shape[1:]) for a in arrays)
