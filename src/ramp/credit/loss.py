"""One clipped policy loss for every method of credit, run by `make_step` like that of any stage.

A sum over sampled tokens, which `make_step` divides by the global number of tokens with weight.
There is no mean per rollout, so long rollouts are neither favoured nor spared. The batch is that of
`rollouts.make_rows`, with `ref` (log-probabilities of the frozen policy) where there is a KL term,
and `covariant` (see `most_covariant`) where there is an entropy control.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Reinforce
from ramp.model import transformer
from ramp.model.loss import cross_entropy
from ramp.model.transformer import ROWS
from ramp.train.step import Loss

MAX_LOG_RATIO = 20.0  # beyond it, exp would overflow float32 in the backward pass


def token_logps(
    c: Model, lm: dict, tokens_bt: Array, targets_bt: Array, temperature: float = 1.0
) -> tuple[Array, Array]:
    """(log-probability of each target, entropy), float32 [B, T], nats.

    Of the softmax at `temperature`: the distribution that rollouts are sampled from.
    """
    # The temperature belongs to the policy: without it the first ratio would not be 1.
    x_nd = transformer.compute_hidden(c, lm, tokens_bt)
    logits_nv = transformer.unembed(c, lm, x_nd) / temperature
    nats_n, log_z_n = cross_entropy(logits_nv, targets_bt.reshape(-1))
    probs_nv = jax.nn.softmax(logits_nv, axis=-1)
    mean_logit_n = jnp.sum(probs_nv * logits_nv, axis=-1)
    shape = targets_bt.shape
    logp_bt = jax.lax.reshape(-nats_n, shape, out_sharding=P(ROWS))
    entropy_bt = jax.lax.reshape(log_z_n - mean_logit_n, shape, out_sharding=P(ROWS))
    return logp_bt, entropy_bt


def compute_ratio(logp: Array, old: Array) -> Array:
    """Probability of each token under the policy over that under the sampler."""
    log_ratio = jnp.clip(logp - old, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.exp(log_ratio)


def surrogate(logp: Array, old: Array, advantage: Array, t: Reinforce) -> Array:
    """The clipped loss of each token: -min(ratio A, clip(ratio) A).

    PPO (Schulman et al. 2017) with the asymmetric clip of DAPO (arXiv:2503.14476). Where A < 0 it
    is bounded by `dual_clip` times -A (Ye et al. 2020, arXiv:1912.09729).
    """
    ratio = compute_ratio(logp, old)
    clipped = jnp.clip(ratio, 1 - t.clip_low, 1 + t.clip_high)
    loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    # A bad token that became likely would otherwise have an unbounded loss.
    bounded = jnp.minimum(loss, -t.dual_clip * advantage)
    return jnp.where(advantage < 0, bounded, loss)


def kl(logp: Array, ref: Array, form: str) -> Array:
    """An estimate of KL(policy || ref) of each token whose gradient is that of the KL.

    k2 = (log ratio)² / 2 has that gradient in expectation. The other usual forms do not: k1 inside
    a loss has mean gradient 0, k3 the gradient of the opposite KL. So "k3" here is the value of k3
    (unbiased, never negative) with the gradient of k2.
    """
    k2 = 0.5 * jnp.square(logp - ref)
    if form == "k2":
        return k2
    log_ratio = jnp.clip(ref - logp, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3 = jnp.exp(log_ratio) - 1 - log_ratio
    return k2 + jax.lax.stop_gradient(k3 - k2)


def most_covariant(batch: dict[str, np.ndarray], fraction: float) -> np.ndarray:
    """Float32 [B, T], 1 for the tokens of a batch that lower the entropy most, else 0.

    They are the `fraction` of the tokens with weight, at least one, with the largest part in the
    covariance of log-probability and advantage (Cui et al. 2025, arXiv:2505.22617). None where
    nothing varies.
    """
    # Chosen on the host, among all tokens: a microbatch or a device would see a part of them.
    weights, logp, advantage = batch["weights"], batch["old"], batch["advantage"]
    count = max(weights.sum(), 1.0)
    mean_logp = (logp * weights).sum() / count
    mean_advantage = (advantage * weights).sum() / count
    cov_bt = (logp - mean_logp) * (advantage - mean_advantage) * weights
    rank = max(int(fraction * count), 1)
    # Tokens without weight have covariance 0 and are never chosen.
    threshold = max(np.sort(cov_bt, axis=None)[-rank], 1e-12)
    return (cov_bt >= threshold).astype(np.float32)


def policy_loss(c: Model, t: Reinforce) -> Loss:
    """The loss of a batch of `rollouts.make_rows`.

    Metrics: `entropy` in nats, `clipped` the tokens beyond the clip, `kl` where there is a `ref`.
    """

    def loss(params: dict, batch: dict, key: Array) -> tuple[Array, dict]:
        weights, advantage, old = batch["weights"], batch["advantage"], batch["old"]
        logp, entropy = token_logps(
            c, params["lm"], batch["tokens"], batch["targets"], t.temperature
        )
        per_token = surrogate(logp, old, advantage, t)
        if t.entropy_control == "clip_cov":
            per_token *= 1 - batch["covariant"]  # they do not learn in this step
        elif t.entropy_control == "kl_cov":
            # They are held at the sampler. Not by |log ratio|, as in the paper's code: while the
            # two agree, its gradient is the sign of the rounding.
            per_token += batch["covariant"] * kl(logp, old, "k2")
        entropy_coef = batch.get("entropy_coef", t.entropy_coef)  # [B, 1] where it adapts
        per_token -= entropy_coef * entropy
        # On-policy the ratio is 1 up to rounding; what is clipped shows how far it moved.
        ratio = compute_ratio(logp, old)
        is_clipped = (ratio < 1 - t.clip_low) | (ratio > 1 + t.clip_high)
        metrics = {
            "entropy": jnp.sum(weights * entropy),
            "clipped": jnp.sum(weights * is_clipped),
        }
        if "ref" in batch:
            per_token += t.kl_coef * kl(logp, batch["ref"], t.kl_form)
            metrics["kl"] = jnp.sum(weights * kl(logp, batch["ref"], "k3"))
        return jnp.sum(weights * per_token), metrics

    return loss


def adapt_entropy_coef(entropy_coef: float, entropy: float, target: float) -> float:
    """The entropy bonus for rollouts of this entropy, nats a token.

    `entropy_coef` at the target, up to ten times that below it, towards 0 above it. It depends on
    the rollouts alone, so a run that is resumed stays the same run.
    """
    gap = (target - entropy) / target
    return entropy_coef * min(10.0, math.exp(4 * gap))
