"""Preference tuning, DPO (arXiv:2305.18290): raise preferred answers over rejected ones."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Model
from ramp.model.attention import ROWS
from ramp.model.loss import token_cross_entropy
from ramp.model.transformer import compute_hidden
from ramp.rundir import RunDir
from ramp.stages.finetune import hash_sources
from ramp.text.preferences import read_pairs, require_pairs
from ramp.text.rows import Batches
from ramp.text.tokenizer import Tokenizer
from ramp.train.mesh import shard_batch
from ramp.train.preemption import Preemption
from ramp.train.restore import hash_arrays, load_start
from ramp.train.state import eval_params
from ramp.train.step import Loss
from ramp.train.trainer import Trainer


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where no pair of a split fits into the rows."""
    require_pairs(c.dpo.sources, tokenizer, c.dpo.train.seq_len, c.dpo.val_fraction)


def hash_own_files(c: Config) -> str:
    """Of the pairs."""
    return hash_sources(c.dpo.sources)


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    """Train from the fine-tuned model, which stays the reference, and score held-out pairs."""
    tokenizer, t = Tokenizer.load(rundir.tokenizer), c.dpo.train
    train, val = (
        read_pairs(c.dpo.sources, tokenizer, t.seq_len, split, c.dpo.val_fraction)
        for split in ("train", "val")
    )
    # In order, and every pair once: the score is of the same pairs at every evaluation.
    held_out = Batches(val, t.batch_size, shuffle=False)
    reference = load_start(rundir, "finetune", c, tokenizer)
    loss = jax.jit(make_loss(c.model, c.dpo.beta))
    # Computed as each batch comes: one more forward pass, but nothing to keep for every pair.
    add_reference = jax.jit(lambda ref, b: b | {"ref_logps": sum_logps(c.model, ref, b)})

    def evaluate(params: dict, step: int, writer: object, stop: Preemption) -> dict[str, float]:
        totals = np.zeros(2)
        for i in range(held_out.num_batches):
            batch = shard_batch(jax.sharding.get_mesh(), partial(held_out, i), t.batch_size)
            total, sums = loss(params, add_reference(reference, batch), jax.random.PRNGKey(0))
            totals += [float(total), float(sums["accuracy"])]
            stop.check(step)
        return {"eval/loss": totals[0] / len(val), "eval/accuracy": totals[1] / len(val)}

    # The reference is part of the state, so that a resumed run has the one it began with.
    def wrap_step(step: Callable) -> Callable:
        return lambda state, batch: step(state, add_reference(state.ref, batch))

    batches = Batches(train, t.batch_size, c.seed)
    trainer = Trainer(
        name="dpo",
        c=c,
        t=t,
        loss=loss,
        batches=batches,
        tokenizer=tokenizer,
        wrap_step=wrap_step,
        keep_ref=True,
        chance=math.log(2),  # of a guess which answer is preferred
        data=hash_arrays(vars(train)),
    )
    start = partial(jax.tree.map, jnp.copy, reference)  # steps donate what they start from
    state, report = trainer.train(rundir, start, evaluate, "eval/loss", stop)
    # Of the averaged parameters, where there are any, as everything after training.
    final = evaluate(eval_params(state), t.steps, None, stop)
    print(f"dpo: the preferred answer wins in {final['eval/accuracy']:.1%} of {len(val)} pairs")
    return report.to_dict() | final


def make_loss(m: Model, beta: float) -> Loss:
    """-log sigmoid(beta (log-ratio preferred - log-ratio rejected)), eq. 7, summed over pairs."""

    def loss(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        # How much likelier each answer has become than it was to the reference.
        log_ratio_b2 = sum_logps(m, params, batch) - batch["ref_logps"]
        margin_b = beta * (log_ratio_b2[:, 0] - log_ratio_b2[:, 1])
        total = jnp.sum(-jax.nn.log_sigmoid(margin_b) * batch["weights"])
        return total, {"accuracy": jnp.sum((margin_b > 0) * batch["weights"])}

    return loss


def sum_logps(m: Model, params: dict, batch: dict) -> jax.Array:
    """Log-probability of each answer given its prompt, nats, [B, 2]."""
    B, _, T = batch["tokens"].shape
    # Both answers of a pair are rows of one batch: the model knows no pairs.
    flatten = partial(jax.lax.reshape, new_sizes=(2 * B, T), out_sharding=P(ROWS))
    x_nd = compute_hidden(m, params["lm"], flatten(batch["tokens"]))
    nats_bt, _ = token_cross_entropy(m, params["lm"], x_nd, flatten(batch["targets"]))
    answer_b = -jnp.sum(nats_bt * flatten(batch["mask"]), axis=1)
    return jax.lax.reshape(answer_b, (B, 2), out_sharding=P(ROWS))
