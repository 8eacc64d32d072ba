"""One clipped policy loss for every method of credit; it runs through `make_step` like any other stage.

Sums over sampled tokens, divided by `make_step` through the global count of tokens with weight: no mean per rollout, so
that long rollouts are neither favoured nor spared. The batch is `rollouts.rows`, plus `ref` (log-probabilities of the
frozen policy) where there is a KL term.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Reinforce
from ramp.model import transformer
from ramp.model.loss import cross_entropy
from ramp.model.transformer import ROWS
from ramp.train.step import Loss


def token_logps(
    c: Model, lm: dict, tokens_bt, targets_bt, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(log-probability of each target, entropy), [B, T] float32, of the softmax at `temperature`: what was sampled."""
    x_nd = transformer.compute_hidden(c, lm, tokens_bt)
    logits_nv = transformer.unembed(c, lm, x_nd) / temperature
    nats_n, log_z_n = cross_entropy(logits_nv, targets_bt.reshape(-1))
    logp_n, entropy_n = (
        -nats_n,
        log_z_n - jnp.sum(jax.nn.softmax(logits_nv, axis=-1) * logits_nv, axis=-1),
    )
    shape = targets_bt.shape
    return tuple(jax.lax.reshape(a, shape, out_sharding=P(ROWS)) for a in (logp_n, entropy_n))


def surrogate(logp, old, advantage, t: Reinforce) -> jax.Array:
    """The clipped loss of each token: -min(ratio A, clip(ratio) A), bounded by dual_clip where A < 0."""
    ratio = jnp.exp(jnp.clip(logp - old, -20, 20))
    clipped = jnp.clip(ratio, 1 - t.clip_low, 1 + t.clip_high)
    loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    return jnp.where(advantage < 0, jnp.minimum(loss, -t.dual_clip * advantage), loss)


def kl(logp, ref, form: str) -> jax.Array:
    """An estimate of KL(policy || ref) per token whose gradient is that of the KL.

    k2 = (log ratio)²/2 has it in expectation; the other two do not: k1 inside a loss has mean gradient 0, k3 that of
    the opposite KL. "k3" is its value (unbiased, never negative) with the gradient of k2.
    """
    k2 = 0.5 * jnp.square(logp - ref)
    if form == "k2":
        return k2
    log = jnp.clip(ref - logp, -20, 20)
    return k2 + jax.lax.stop_gradient(jnp.exp(log) - 1 - log - k2)


def most_covariant(logp, advantage, weights, share: float) -> jax.Array:
    """1 for the `share` of the tokens with weight (at least one of them) that have the largest part in the covariance of
    log-probability and advantage, which is what lowers the entropy (Cui et al. 2025, arXiv:2505.22617); else 0."""
    n = jnp.maximum(jnp.sum(weights), 1)
    dl, da = (a - jnp.sum(a * weights) / n for a in (jax.lax.stop_gradient(logp), advantage))
    cov = jax.reshard((dl * da * weights).reshape(-1), P())
    rank = jnp.maximum(jnp.floor(share * n), 1).astype(jnp.int32)
    least = jax.lax.dynamic_index_in_dim(jnp.sort(cov, descending=True), rank - 1, keepdims=False)
    return (jax.reshard(cov, P(ROWS)).reshape(logp.shape) >= jnp.maximum(least, 1e-12)).astype(
        jnp.float32
    )


def policy_loss(c: Model, t: Reinforce) -> Loss:
    """The loss of a batch of `rollouts.rows`. Metrics: kl, entropy, clipped (share of tokens beyond the clip)."""

    def loss(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        w, advantage, old = batch["weights"], batch["advantage"], batch["old"]
        logp, entropy = token_logps(
            c, params["lm"], batch["tokens"], batch["targets"], t.temperature
        )
        per_token = surrogate(logp, old, advantage, t)
        if t.entropy_control == "clip_cov":
            per_token *= 1 - most_covariant(logp, advantage, w, t.entropy_control_fraction)
        if t.entropy_control == "kl_cov":
            per_token += most_covariant(logp, advantage, w, t.entropy_control_fraction) * jnp.abs(
                logp - old
            )
        bonus = batch.get("bonus", t.entropy_coef)  # [B, 1] where it is adapted
        per_token -= bonus * entropy
        seen = {"entropy": jnp.sum(w * entropy)}
        ratio = jnp.exp(jnp.clip(logp - old, -20, 20))
        seen["clipped"] = jnp.sum(w * ((ratio < 1 - t.clip_low) | (ratio > 1 + t.clip_high)))
        if "ref" in batch:
            per_token += t.kl_coef * kl(logp, batch["ref"], t.kl_form)
            seen["kl"] = jnp.sum(w * kl(logp, batch["ref"], "k3"))
        return jnp.sum(w * per_token), seen

    return loss


def adapt_entropy_coef(bonus: float, entropy: float, target: float) -> float:
    """The entropy bonus for rollouts of this entropy: `bonus` at the target, up to ten times that below it, towards
    none above. It depends on nothing but the rollouts, so a run that is gone on with stays the same run."""
    return bonus * min(10.0, math.exp(4 * (target - entropy) / target))
