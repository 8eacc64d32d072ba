"""The process head: a learned probability that a step is right, read at the step's last token.

    params["process"] = {"lm": transformer, "out": {"weight", "bias", "surprise"}}

It has a trunk of its own that starts as a copy of the policy, so that a learning head does not pull
at the policy. Besides the hidden state it weighs how unlikely its trunk, still a language model,
finds the last TAPS tokens of the step.

Labels are floats: 1 right, 0 wrong, in between a Monte Carlo fraction, -1 no label. There are none
after a first error (the convention of ProcessBench, arXiv:2412.06559): whether a step is right that
builds on a wrong one is not well defined.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Reinforce
from ramp.credit import rollouts
from ramp.credit.loss import token_logps
from ramp.credit.rollouts import Rollouts, check_values
from ramp.decode.sample import shard_rows
from ramp.model import transformer
from ramp.model.loss import cross_entropy
from ramp.model.transformer import ROWS
from ramp.train.processes import to_host
from ramp.train.step import Loss

# Tokens up to a step's end whose surprise the head weighs: what the step states, not which step it
# is. That a seventh step comes surprises a trunk that has seen six, and says nothing about it.
TAPS = 2
MAX_SURPRISE = 12.0  # nats
LM_COEF = 0.3  # weight of the next-token loss on right steps, relative to that of the verdicts


def init_head(c: Model, lm: dict) -> dict:
    """A head whose trunk starts from `lm`. Call it under `jax.jit`."""
    out = {
        "weight": jnp.zeros((c.width, 1), jnp.float32),
        "bias": jnp.zeros((1, 1), jnp.float32),
        "surprise": jnp.full((TAPS,), 0.1, jnp.float32),
    }
    copied = jax.tree.map(lambda w: w + 0, lm)
    return {"lm": copied, "out": out}


def read_head(c: Model, process: dict, tokens_bt: Array) -> tuple[Array, Array]:
    """(log odds that the step ending at each token is right, nats of the next token).

    Both float32 [B, T].
    """
    out = process["out"]
    shape = tokens_bt.shape
    hidden_nd = transformer.compute_hidden(c, process["lm"], tokens_bt)
    x_nd = transformer.rms_norm(hidden_nd, jnp.ones(())).astype(jnp.float32)
    x_n = jnp.sum(x_nd * out["weight"][:, 0], axis=-1)
    x_bt = jax.lax.reshape(x_n, shape, out_sharding=P(ROWS))
    # The last column's next token is any token: nothing reads it.
    filler_b1 = tokens_bt[:, :1]
    next_bt = jnp.concatenate([tokens_bt[:, 1:], filler_b1], axis=1)
    logits_nv = transformer.unembed(c, process["lm"], hidden_nd)
    nats_n, _ = cross_entropy(logits_nv, next_bt.reshape(-1))
    nats_bt = jax.lax.reshape(nats_n, shape, out_sharding=P(ROWS))
    # Column t + TAPS - 1 - j of the padded array is the surprise of the token j places before t.
    own_bt = jnp.minimum(nats_bt[:, :-1], MAX_SURPRISE)
    own_bt = jnp.pad(own_bt, ((0, 0), (TAPS, 0)))
    width = own_bt.shape[1]
    surprise_bt = 0
    for j in range(TAPS):
        tap_bt = own_bt[:, TAPS - 1 - j : width - j]
        surprise_bt += out["surprise"][j] * tap_bt
    logit_bt = x_bt - surprise_bt + out["bias"][0, 0]
    return logit_bt, nats_bt


# Labels


def first_error_labels(r: Rollouts) -> np.ndarray:
    """Float32 [B, S]: the checker's verdicts up to the first error; -1 after it and elsewhere."""
    wrong_bs = (r.right_bs == 0) * r.exists_bs
    errors_before_bs = np.cumsum(wrong_bs, axis=1) - wrong_bs
    # A step that the checker cannot judge has no label either.
    has_label_bs = (r.exists_bs > 0) & (errors_before_bs == 0) & ~np.isnan(r.right_bs)
    return np.where(has_label_bs, r.right_bs, -1).astype(np.float32)


def limit_labels(labels_bs: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The same labels for a random `fraction` of the rows, -1 for the others."""
    rng = np.random.default_rng(seed)
    keep_b = rng.random(len(labels_bs)) < fraction
    return np.where(keep_b[:, None], labels_bs, np.float32(-1))


def label_rows(r: Rollouts, length: int, labels_bs: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of `process_loss`, each [B, length].

    tokens: problem and rollout. labels, label_weights: at the last token of each labelled step.
    lm_weights: 1 before each token of a step that is labelled right. To train a head alone, give
    `make_step` the label weights as "weights".
    """
    check_values("the labels of the process head", labels_bs, r.right_bs.shape)
    tokens = rollouts.make_rows(r, length)["tokens"]
    labels, label_weights, lm_weights = np.zeros((3, *tokens.shape), np.float32)
    end_bs = step_ends(r)
    b, s = np.nonzero((labels_bs >= 0) & (end_bs >= 0))
    t = end_bs[b, s]
    labels[b, t] = labels_bs[b, s]
    label_weights[b, t] = 1
    b, n, t = r.places
    s = r.step_bn[b, n]
    lm_weights[b, t] = (s >= 0) & (labels_bs[b, s] == 1)
    return {
        "tokens": tokens,
        "labels": labels,
        "label_weights": label_weights,
        "lm_weights": lm_weights,
    }


def step_ends(r: Rollouts) -> np.ndarray:
    """Int32 [B, S]: place of each step's last token in problem + rollout; -1 without token."""
    end_bs = np.full(r.right_bs.shape, -1, np.int32)
    b, n, t = r.places
    s = r.step_bn[b, n]
    in_step = s >= 0
    # t is where the token is a target; one later it is an input.
    b, s, t = b[in_step], s[in_step], t[in_step]
    np.maximum.at(end_bs, (b, s), t + 1)
    return end_bs


# Losses


def bce(logit: Array, label: Array) -> Array:
    """Binary cross-entropy with a soft label, nats."""
    # In this form nothing overflows, however large the logit.
    small = jnp.log1p(jnp.exp(-jnp.abs(logit)))
    return jnp.maximum(logit, 0) - logit * label + small


def process_loss(c: Model) -> Loss:
    """The loss of a batch of `label_rows`: cross-entropy of the verdicts plus a next-token loss.

    The next-token loss on right steps keeps the trunk a language model of right steps. Errors of a
    kind that was never labelled are found by that alone.
    """

    def loss(params: dict, batch: dict, key: Array) -> tuple[Array, dict]:
        logit, nats = read_head(c, params["process"], batch["tokens"])
        verdicts = jnp.sum(batch["label_weights"] * bce(logit, batch["labels"]))
        is_correct = (logit > 0) == (batch["labels"] > 0.5)
        num_correct = jnp.sum(batch["label_weights"] * is_correct)
        total = verdicts + LM_COEF * jnp.sum(batch["lm_weights"] * nats)
        return total, {"process": verdicts, "process_right": num_correct}

    return loss


def implicit_loss(c: Model, t: Reinforce) -> Loss:
    """The loss of an implicit reward: PRIME (Cui et al. 2025, arXiv:2502.01456).

    The log odds of a right answer are beta times the log ratio of the trunk to the reference,
    summed over the sampled tokens. The batch is that of the policy loss with `ref`, `sampled` (1 at
    sampled tokens) and `outcome` [B, 1].
    """

    def loss(params: dict, batch: dict, key: Array) -> tuple[Array, dict]:
        trunk = params["process"]["lm"]
        logp, _ = token_logps(c, trunk, batch["tokens"], batch["targets"], t.temperature)
        log_ratio_b = jnp.sum(batch["sampled"] * (logp - batch["ref"]), axis=1)
        logit_b = t.implicit_beta * log_ratio_b
        total = jnp.sum(bce(logit_b, batch["outcome"][:, 0]))
        return total, {"process": total}

    return loss


# Scores


def _read_probabilities(c: Model, process: dict, tokens_bt: Array) -> Array:
    logit_bt, _ = read_head(c, process, tokens_bt)
    return jax.nn.sigmoid(logit_bt)


_jit_probabilities = jax.jit(_read_probabilities, static_argnums=0)


def score_steps(c: Model, process: dict, r: Rollouts, length: int) -> np.ndarray:
    """Float32 [B, S]: the head's probability that each step is right; 0 where there is no step.

    length: of the rows that are read; a problem with its rollout must fit.
    """
    (tokens_bt,) = shard_rows(rollouts.make_rows(r, length)["tokens"])
    p_bt = to_host(_jit_probabilities(c, process, tokens_bt))[: len(r.prompts)]
    end_bs = step_ends(r)
    p_bs = np.take_along_axis(p_bt, np.maximum(end_bs, 0), axis=1)
    has_end_bs = (end_bs >= 0) & (r.exists_bs > 0)
    return np.where(has_end_bs, p_bs, np.float32(0))
