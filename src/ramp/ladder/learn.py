"""The ladder's models, trained: on a probe, several seeds at once, and on the corpus.

Probes train SEEDS seeds at once (`vmap` over states through the one update of `train/step.py`) on rows that are never
repeated. On the corpus, read as bytes, every rung gets the same tokens, and then the same floating-point operations: those
of the last rung's tokens.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.config import Config, Model, Train
from ramp.errors import UserError
from ramp.evals import bpb, samples
from ramp.ladder.probes import Probe
from ramp.ladder.rungs import RUNGS, Rung, settings
from ramp.model import cost, transformer
from ramp.model.attention import MASKED, attention, visible_mask
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.text.rows import Batches, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.mesh import shard_batch
from ramp.train.state import init_state
from ramp.train.step import make_step, make_update

SEEDS = 3
RATES = {
    "adam_lr": 3e-3,
    "embed_lr": 1e-2,
    "head_lr": 1e-2,
    "scalar_lr": 3e-3,
    "muon_lr": 1e-2,
}  # of probes
PROBE_MODEL = Model(width=64, context_len=64, dtype="float32", attention="xla")
EVALUATIONS, HELD_OUT = 10, 512
ENOUGH = 0.1  # two runs whose FLOPs differ by less are not both done


def rung_model(rung: Rung, c: Config, more: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a rung: `c` with the rung's settings, checked and resolved. A width of 0 is that of `c`."""
    wanted, where = settings(rung) | dict(more or {}), f"rung {rung.number} ({rung.name})"
    optimizer = wanted.pop("optimizer", c.pretrain.optimizer)
    if unknown := wanted.keys() - vars(c.model):
        raise UserError(
            f"rung {rung.number} sets '{min(unknown)}', which the model does not have; see config.Model"
        )
    width = wanted.pop("width", 0) or c.model.width or config.resolve(c).model.width
    m = replace(c.model, width=width, **wanted)
    m = replace(m, head_dim=width // m.num_heads)
    c = replace(c, model=m, pretrain=replace(c.pretrain, optimizer=optimizer))
    return config.resolve(config.check_config(c, where), where)


def probe_config(rung: Rung, probe: Probe, n: int) -> Config:
    """A small model for a probe of size n, and how it is trained: for as many steps more as n² is larger."""
    T = probe.rows(np.random.default_rng(0), n, 1)[0].shape[1]
    rates = {name: probe.rate * rate for name, rate in RATES.items()}
    steps = round(probe.steps * (n / probe.size) ** 2)
    t = Train(steps=steps, batch_size=probe.batch, seq_len=T, skip_sigma=0.0, **rates)
    c = Config(model=replace(PROBE_MODEL, vocab_size=probe.vocab(n)), pretrain=t)
    return rung_model(rung, replace(c, text=replace(c.text, tokenizer="bytes")), probe.settings)


def train_probe(rung: Rung, probe: Probe, n: int, seed: int) -> dict[str, Any]:
    """Train one rung's model on a probe with SEEDS seeds at once.

    Returns accuracy on fresh rows [evaluation][seed], steps of each evaluation, the share of diverged runs, the largest
    attention score [seed], one held-out row of the first seed and the attention of its last question, [L][H][T].
    """
    c = probe_config(rung, probe, n)
    m, t = c.model, c.pretrain
    tx = optim.make_optimizer(t, m.dtype)
    seeds = SEEDS * seed + np.arange(SEEDS)
    make = jax.vmap(
        lambda s: init_state({"lm": transformer.init_params(m, jax.random.PRNGKey(s))}, tx, 0)
    )
    state = jax.jit(lambda s: jax.reshard(make(s), P()))(
        seeds
    )  # whole: `vmap` of a `cond` refuses split arrays
    step = jax.jit(jax.vmap(make_update(next_token_loss(m, 0.0), tx, t)), donate_argnums=0)
    judge = jax.jit(jax.vmap(partial(grade_rows, m)))

    def batch(i: int, count: int) -> dict[str, jax.Array]:
        """Rows of a step, a function of (seed, step) alone, that bear loss on the answers; those of step 0 are held out."""
        made = (probe.rows(np.random.default_rng([s, i]), n, count) for s in seeds)
        tokens, answers = map(np.stack, zip(*made, strict=True))
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        targets[..., -answers.shape[-1] :], weights[..., -answers.shape[-1] :] = answers, 1
        return {
            "tokens": jnp.asarray(tokens),
            "targets": jnp.asarray(targets),
            "weights": jnp.asarray(weights),
        }

    held, steps, accuracy, losses = batch(0, HELD_OUT), [], [], []
    for i in range(1, t.steps + 1):
        state, metrics = step(state, batch(i, t.batch_size))
        losses.append(metrics["train/loss"])
        if i % max(1, t.steps // EVALUATIONS) == 0:
            steps.append(i)
            accuracy.append(judge(state.params["lm"], held))
    last = np.mean(losses[-10:], axis=0)
    diverged = ~(last < 2 * np.log(m.vocab_size)) | (np.asarray(state.guard["streak"]) > 0)
    found = {
        "n": n,
        "steps": steps,
        "accuracy": np.array(accuracy).tolist(),
        "diverged": float(np.mean(diverged)),
    }
    if m.depth == 0:
        return found
    s = jax.jit(jax.vmap(partial(scores, m)))(state.params["lm"], held["tokens"][:, :64])
    largest = jnp.max(jnp.where(s == MASKED, 0, jnp.abs(s)), axis=(1, 2, 3, 4, 5))
    found["score"] = np.nan_to_num(largest, nan=1e30, posinf=1e30).tolist()
    found["attention"] = np.nan_to_num(jax.nn.softmax(s[0, :, 0, :, -1])).round(3).tolist()
    return found | {"row": held["tokens"][0, 0].tolist()}


def grade_rows(m: Model, params: dict, batch: dict[str, jax.Array]) -> jax.Array:
    """The share of questions whose answer the model finds likelier than any other token."""
    logits_nv = transformer.unembed(
        m, params, transformer.compute_hidden(m, params, batch["tokens"])
    )
    best = jax.lax.reshape(
        jnp.argmax(logits_nv, axis=-1), batch["targets"].shape, out_sharding=P(transformer.ROWS)
    )
    return jnp.sum((best == batch["targets"]) * batch["weights"]) / jnp.sum(batch["weights"])


def scores(m: Model, params: dict, tokens_bt: jax.Array) -> jax.Array:
    """What goes into the softmax of every block, [L, B, H, T, T]; MASKED where a token does not look."""
    place = jnp.arange(tokens_bt.shape[1])

    def attend(window: int | None) -> Callable:
        def run(q, k, v):
            q_bthd, k_btkd = (jax.reshard(a, P()) for a in (q, k))
            k_bthd = jnp.repeat(k_btkd, m.num_heads // m.num_kv_heads, axis=2, out_sharding=P())
            s_bhts = jnp.einsum("bthd,bshd->bhts", q_bthd, k_bthd) * m.head_dim**-0.5
            seen = visible_mask(place[:, None], place[None], window)
            return attention(q, k, v, window=window), jnp.where(seen, s_bhts, MASKED)

        return run

    cos, sin = transformer.rope_angles(place, m.head_dim, m.rope_theta)
    return transformer.run_blocks(m, params, tokens_bt, cos, sin, attend)[1]


def train_corpus(rung: Rung, c: Config, rundir: RunDir) -> dict[str, Any]:
    """What a rung makes of the text: bits per byte at equal tokens and at equal FLOPs, what it costs, what it writes."""
    rc, top = (rung_model(r, c) for r in (rung, [r for r in RUNGS if r.main][-1]))
    rc = replace(rc, pretrain=replace(rc.pretrain, **rung.train))
    flops, most = (cost.flops_per_token(x.model, x.pretrain.seq_len) for x in (rc, top))
    found = train_bigram(rc, rundir)
    found |= {
        "params": cost.count_params(rc.model),
        "flops": flops,
        "cache": cost.cache_bytes(rc.model, 1, 1),
    }
    if abs(most / flops - 1) < ENOUGH:
        return found | {"bpb_equal": found["bpb"]}
    longer = replace(rc.pretrain, steps=round(c.pretrain.steps * most / flops))
    return found | {"bpb_equal": train_bigram(replace(rc, pretrain=longer), rundir)["bpb"]}


def train_bigram(c: Config, rundir: RunDir) -> dict[str, Any]:
    """Train on the corpus; bits per byte of held-out text, the training curve, a sample and how fast it was written.

    Held-out rows: `c.eval.num_rows`; all of them for a model without blocks, which is held against exact counts.
    """
    t, m, mesh, tokenizer = (
        c.pretrain,
        c.model,
        jax.sharding.get_mesh(),
        Tokenizer.load(rundir.tokenizer),
    )
    train, val = (
        TokenRows(rundir.tokens(s), t.seq_len, tokenizer.fingerprint) for s in ("train", "val")
    )
    tx = optim.make_optimizer(t, m.dtype)
    state = jax.jit(
        lambda: init_state(
            {"lm": transformer.init_params(m, jax.random.PRNGKey(c.seed))}, tx, c.seed
        )
    )()
    step, batches, losses = (
        make_step(next_token_loss(m, t.z_loss), tx, t),
        Batches(train, t.batch_size, c.seed),
        [],
    )
    for i in range(t.steps):
        state, metrics = step(state, shard_batch(mesh, partial(batches, i), t.batch_size))
        losses.append(metrics["train/loss"])
    found = bpb.make_bits_per_byte(c, val, tokenizer, c.eval.num_rows if m.depth else 0)(
        state.params
    )
    for _ in range(2):  # the first time it compiles
        began = time.perf_counter()
        written = samples.continue_prompts(c, state.params, tokenizer, 1, lambda: None)
        seconds = time.perf_counter() - began
    return {
        "bpb": found.val_bpb,
        "batch": t.batch_size * t.seq_len,
        "curve": (np.array(losses, float) / math.log(2)).round(4).tolist(),
        "sample": "".join(written.values()),
        "decode": c.sample.max_new_tokens / seconds,
    }


def count_bigrams(
    rung: Rung, c: Config, rundir: RunDir, beside: Mapping[str, float]
) -> dict[str, Any]:
    """A table of counts, of bytes (rung 0) or of pairs: its bits per byte, a sample, and what is drawn of pairs."""
    pairs = bigrams(TokenRows(rundir.tokens("train"), 2).stream)
    singles = pairs.sum(axis=0)
    table, bits = (
        (pairs, beside["bigram"])
        if rung.number
        else (np.tile(singles, (256, 1)), beside["unigram"])
    )
    rng, text = np.random.default_rng(c.seed), [int(singles.argmax())]
    for _ in range(c.sample.max_new_tokens):
        row = table[text[-1]] + 1e-9
        text.append(int(rng.choice(256, p=row / row.sum())))
    found = {
        "bpb": bits,
        "bpb_equal": bits,
        "params": 256 ** (rung.number + 1),
        "flops": 0,
        "cache": 0,
        "decode": 0,
    }
    common = np.sort(np.argsort(-singles)[:40])
    shown = (
        {"bytes": common.tolist(), "table": pairs[np.ix_(common, common)].tolist()}
        if rung.number
        else {}
    )
    return found | shown | {"sample": bytes(text).decode("utf-8", "replace")}


def bigrams(stream: np.ndarray) -> np.ndarray:
    """How often byte b follows byte a in a document, [256, 256]. Ids from 256 up are no bytes: documents begin with one."""
    ids = np.minimum(stream, 256).astype(np.int64)
    return np.bincount(ids[:-1] * 257 + ids[1:], minlength=257**2).reshape(257, 257)[:256, :256]
