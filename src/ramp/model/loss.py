"""Next-token cross-entropy whose logits need never exist all at once."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model.transformer import ROWS, Params, unembed


def token_losses(logits_nv: jax.Array, targets_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and log-normaliser of each row, nats, [N] float32.

    The target's logit is picked by comparing with an iota, not by indexing: that also works when V is split over
    devices, and its gradient stays split.
    """
    log_z_n = jax.nn.logsumexp(logits_nv, axis=-1)
    hit_nv = jax.lax.broadcasted_iota(jnp.int32, (1, logits_nv.shape[1]), 1) == targets_n[:, None]
    return log_z_n - jnp.sum(jnp.where(hit_nv, logits_nv, 0.0), axis=-1), log_z_n


def head_losses(c: Model, params: Params, x_nd: jax.Array, targets_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and log-normaliser, [B, T] float32, from hidden states [B*T, D].

    With `c.loss_chunk` = t, the rows are cut into T/t pieces whose logits, [B*t, V], are made, used and forgotten one
    after the other, in the backward pass too: peak memory falls by T/t for one more product with the head.
    """
    (B, T), D = targets_bt.shape, x_nd.shape[1]
    chunk = c.loss_chunk or T
    if T % chunk:
        raise ValueError(f"a row of {T} tokens does not divide into loss chunks of {chunk}")

    def piece(x_btd, targets_bt):
        flat = jax.lax.reshape(x_btd, (targets_bt.size, D), out_sharding=P(ROWS))
        return token_losses(unembed(c, params, flat), jax.lax.reshape(targets_bt, (targets_bt.size,)))

    if chunk == T:
        losses, log_z = piece(x_nd, targets_bt)
        return losses.reshape(B, T), log_z.reshape(B, T)

    def pieces(a, *rest):
        return jnp.moveaxis(jax.lax.reshape(a, (B, T // chunk, chunk, *rest), out_sharding=P(ROWS)), 1, 0)

    both = jax.lax.map(lambda xs: jax.checkpoint(piece)(*xs), (pieces(x_nd, D), pieces(targets_bt)))
    return tuple(jax.lax.reshape(jnp.moveaxis(a.reshape(T // chunk, B, chunk), 0, 1), (B, T)) for a in both)
