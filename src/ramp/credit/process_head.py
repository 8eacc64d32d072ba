"""The process head: the learned chance that a step is right, read at the step's last token.

It has a trunk of its own, `params["process"] = {"lm": transformer, "out": {"weight", "bias"}}`, begun as a copy of the
policy's or from nothing, so that a head that learns does not pull at the policy. Besides the hidden state it weighs how
unlikely its trunk, still a language model, finds the step's last TAPS tokens. Labels are floats: 1 right, 0 wrong,
between them a Monte-Carlo share, -1 for no label. After a first error there are no labels (ProcessBench's convention):
what a step is worth on a wrong footing is nobody's business.
"""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Reinforce
from ramp.credit import rollouts
from ramp.credit.loss import token_logps
from ramp.credit.rollouts import Rollouts, check_values
from ramp.model import transformer
from ramp.model.loss import cross_entropy
from ramp.model.transformer import ROWS
from ramp.tasks.protocol import first_error_f1
from ramp.train.step import Loss

TAPS = 2  # tokens up to a step's end whose surprise the head weighs: what the step states, not which step it is. That a
# seventh step comes is a surprise to a trunk that has seen six, and says nothing about the step.
SPOKEN = 0.3  # weight of the words of right steps beside their verdicts


def init_head(c: Model, lm: dict) -> dict:
    """A head on a trunk that starts from `lm`. Call it under `jax.jit`."""
    out = {"weight": jnp.zeros((c.width, 1), jnp.float32), "bias": jnp.zeros((1, 1), jnp.float32)}
    out["surprise"] = jnp.full((TAPS,), 0.1, jnp.float32)
    return {"lm": jax.tree.map(lambda w: w + 0, lm), "out": out}


def read_head(c: Model, process: dict, tokens_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(log odds that the step which ends at each token is right, nats of the token after each), [B, T] float32."""
    out, hidden_nd = process["out"], transformer.compute_hidden(c, process["lm"], tokens_bt)
    x_nd = transformer.rms_norm(hidden_nd, jnp.ones(())).astype(jnp.float32)
    x_bt = jax.lax.reshape(
        jnp.sum(x_nd * out["weight"][:, 0], axis=-1), tokens_bt.shape, out_sharding=P(ROWS)
    )
    after_bt = jnp.concatenate([tokens_bt[:, 1:], tokens_bt[:, :1]], axis=1)
    nats_n, _ = cross_entropy(
        transformer.unembed(c, process["lm"], hidden_nd), after_bt.reshape(-1)
    )
    nats_bt = jax.lax.reshape(nats_n, tokens_bt.shape, out_sharding=P(ROWS))
    own_bt = jnp.pad(
        jnp.minimum(nats_bt[:, :-1], 12.0), ((0, 0), (TAPS, 0))
    )  # of the token itself, and those before
    late = [own_bt[:, TAPS - 1 - j : own_bt.shape[1] - j] for j in range(TAPS)]
    surprise_bt = sum(w * a for w, a in zip(out["surprise"], late, strict=True))
    return x_bt - surprise_bt + out["bias"][0, 0], nats_bt


def first_error_labels(r: Rollouts) -> np.ndarray:
    """float32 [B, S]: the checker's verdicts up to the first error, -1 after it and where there is no step."""
    wrong = (1 - r.right_bs) * r.exists_bs
    before = np.cumsum(wrong, axis=1) - wrong
    return np.where((r.exists_bs > 0) & (before == 0), r.right_bs, -1).astype(np.float32)


def limit_labels(labels_bs: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The same labels for a random `share` of the rows, -1 for the others; what is not -1 is what a label costs."""
    keep = np.random.default_rng(seed).random(len(labels_bs)) < share
    return np.where(keep[:, None], labels_bs, np.float32(-1))


def label_rows(r: Rollouts, length: int, labels_bs: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of the head's loss, each [B, length]: whole rollouts as `tokens`, `labels` and `weights` at the last
    token of each labelled step, `spoken` before each token of a step that is labelled right."""
    check_values("the labels of the process head", labels_bs, r.right_bs.shape)
    out = {"tokens": rollouts.make_rows(r, length)["tokens"]}
    out |= {k: np.zeros(out["tokens"].shape, np.float32) for k in ("labels", "weights", "spoken")}
    end_bs = step_ends(r)
    b, s = np.nonzero((labels_bs >= 0) & (end_bs >= 0))
    out["labels"][b, end_bs[b, s]], out["weights"][b, end_bs[b, s]] = labels_bs[b, s], 1
    b, n, t = r.places
    s = r.step_bn[b, n]
    out["spoken"][b, t] = (s >= 0) & (labels_bs[b, s] == 1)
    return out


def step_ends(r: Rollouts) -> np.ndarray:
    """int32 [B, S]: place of each step's last token in question + rollout; -1 where the step has no token."""
    end_bs = np.full(r.right_bs.shape, -1, np.int32)
    b, n, t = r.places
    s = r.step_bn[b, n]
    np.maximum.at(end_bs, (b[s >= 0], s[s >= 0]), t[s >= 0] + 1)
    return end_bs


def bce(logit: jax.Array, label: jax.Array) -> jax.Array:
    """Binary cross-entropy with a soft label, nats."""
    return jnp.maximum(logit, 0) - logit * label + jnp.log1p(jnp.exp(-jnp.abs(logit)))


def process_loss(c: Model) -> Loss:
    """The loss of a batch of `rows`: cross-entropy of the verdicts, and, so that the trunk goes on knowing what a right
    step looks like (errors of a kind never labelled are found by that alone), of the words of right steps."""

    def loss(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        logit, nats = read_head(c, params["process"], batch["tokens"])
        right = (logit > 0) == (batch["labels"] > 0.5)
        verdicts = jnp.sum(batch["weights"] * bce(logit, batch["labels"]))
        seen = {"process": verdicts, "process_right": jnp.sum(batch["weights"] * right)}
        return verdicts + SPOKEN * jnp.sum(batch["spoken"] * nats), seen

    return loss


def implicit_loss(c: Model, t: Reinforce) -> Loss:
    """The loss of an implicit reward: beta times the log-ratio of the trunk to the reference, summed over what was said, is
    the log odds of a right answer (Cui et al. 2025, PRIME). The batch: `rows` of the policy loss with `ref`, and `said`,
    1 at sampled tokens, and `outcome` [B, 1]."""

    def loss(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        logp, _ = token_logps(
            c, params["process"]["lm"], batch["tokens"], batch["targets"], t.temperature
        )
        odds_b = t.implicit_beta * jnp.sum(batch["said"] * (logp - batch["ref"]), axis=1)
        total = jnp.sum(bce(odds_b, batch["outcome"][:, 0]))
        return total, {"process": total}

    return loss


_probabilities = jax.jit(
    lambda c, process, tokens: jax.nn.sigmoid(read_head(c, process, tokens)[0]), static_argnums=0
)


def score_steps(c: Model, process: dict, r: Rollouts, length: int) -> np.ndarray:
    """float32 [B, S]: the head's chance that each step is right; 0 where there is no step."""
    batch = label_rows(r, length, np.full(r.right_bs.shape, -1, np.float32))
    place = jax.NamedSharding(jax.sharding.get_mesh(), P(ROWS))
    p_bt = np.asarray(_probabilities(c, process, jax.device_put(batch["tokens"], place)))
    end_bs = step_ends(r)
    p_bs = np.take_along_axis(p_bt, np.maximum(end_bs, 0), axis=1)
    return np.where((end_bs >= 0) & (r.exists_bs > 0), p_bs, np.float32(0))


# ---------------------------------------------------------------------------------------------------- how good it is
def predict_first_error(
    p_bs: np.ndarray, exists_bs: np.ndarray, threshold: float
) -> list[int | None]:
    """The first step of each row whose chance of being right is below the threshold."""
    wrong = (p_bs < threshold) & (exists_bs > 0)
    return [int(w.argmax()) if w.any() else None for w in wrong]


def choose_threshold(p_bs: np.ndarray, r: Rollouts) -> float:
    """The threshold with the best first-error F1 on validation rollouts."""
    true = [v.first_error for v in r.verdicts]
    grid = np.concatenate([np.linspace(0.02, 0.98, 49), [0.99, 0.995, 0.999]])
    return float(
        max(
            grid,
            key=lambda t: first_error_f1(predict_first_error(p_bs, r.exists_bs, t), true).f1,
        )
    )


def measure_quality(p_bs: np.ndarray, r: Rollouts, threshold: float) -> dict[str, float]:
    """First-error F1, and over the labelled steps: area under the ROC curve and calibration error."""
    true = [v.first_error for v in r.verdicts]
    labels = first_error_labels(r)
    p, y = p_bs[labels >= 0], labels[labels >= 0]
    found = first_error_f1(predict_first_error(p_bs, r.exists_bs, threshold), true)
    return asdict(found) | {
        "auc": auc(p, y),
        "calibration_error": calibration_error(p, y),
        "threshold": threshold,
    }


def auc(p: np.ndarray, y: np.ndarray) -> float:
    """The chance that a right step scores above a wrong one, ties half; NaN where one kind is missing."""
    right, wrong = np.sort(p[y > 0.5]), p[y <= 0.5]
    if not len(right) or not len(wrong):
        return float("nan")
    below, upto = np.searchsorted(right, wrong, "left"), np.searchsorted(right, wrong, "right")
    return float(np.mean(len(right) - (below + upto) / 2) / len(right))


def calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Mean gap of stated and found chance over equal bins, weighted by their size (ECE)."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [
        abs(p[which == i].mean() - y[which == i].mean()) * (which == i).mean()
        for i in set(which.tolist())
    ]
    return float(sum(gaps))
