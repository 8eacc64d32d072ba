"""The ladder, climbed: each rung and the one below on the same probe and on the same text.

What a rung found is one JSON file, written when it is done: a second start skips it. Probes train several seeds at once
(`vmap` over states through the one update of `train/step.py`) on rows that are never repeated. On the corpus, read as
bytes, every rung gets the same tokens, and then the same floating-point operations: those of the deepest rung's tokens.
"""

import dataclasses
import math
import time
from collections.abc import Callable
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
from ramp.ladder.probes import Probe
from ramp.ladder.rungs import RUNGS, Rung, settings
from ramp.model import cost, transformer
from ramp.model.attention import MASKED, visible_mask
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.stages import converse, evaluate
from ramp.text.ngrams import byte_ngram_bits
from ramp.text.rows import Batches, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.mesh import put_batch
from ramp.train.state import new_state
from ramp.train.step import make_step, make_update

SEEDS = 3
RATES = {"adam_lr": 3e-3, "embed_lr": 1e-2, "head_lr": 1e-2, "scalar_lr": 3e-3, "muon_lr": 1e-2}  # of probes
PROBE_MODEL = Model(width=64, context=64, dtype="float32", attention="xla")
EVALUATIONS, HELD_OUT = 10, 1024
ENOUGH = 0.1  # two runs whose FLOPs differ by less are not both done


# ---------------------------------------------------------------------------------------------------- settings
def shaped(rung: Rung, c: Config, more: dict[str, Any] | None = None) -> Config:
    """The configuration of a rung: `c` with the rung's settings, checked and resolved. A width of 0 is that of `c`."""
    wanted = settings(rung) | (more or {})
    known = {f.name for f in dataclasses.fields(Model)}
    for key in wanted:
        if key not in known | {"optimizer"}:
            raise UserError(f"rung {rung.number} sets '{key}', which the model does not have; see config.Model")
    m = replace(c.model, **{k: v for k, v in wanted.items() if k in known})
    m = replace(m, width=m.width or c.model.width)
    m = replace(m, head_dim=m.width // (m.heads or 1), heads=m.heads or 1)
    where = f"rung {rung.number} ({rung.name})"
    optimizer = wanted.get("optimizer", c.pretrain.optimizer)
    return config.resolve(
        config.check(replace(c, model=m, pretrain=replace(c.pretrain, optimizer=optimizer)), where), where
    )


def probe_config(rung: Rung, probe: Probe, n: int) -> Config:
    """A small model for a probe of size n, and how it is trained."""
    if probe.length(n) > PROBE_MODEL.context:
        raise UserError(
            f"the probe '{probe.name}' of size {n} has rows of {probe.length(n)} tokens, and the model a context of "
            f"{PROBE_MODEL.context}; ask for a smaller --scale"
        )
    rates = {name: probe.rate * rate for name, rate in RATES.items()}
    t = Train(steps=probe.steps, batch=probe.batch, seq=probe.length(n), guard_sigma=0.0, **rates)
    c = Config(model=replace(PROBE_MODEL, vocab=probe.vocab(n)), pretrain=t)
    return shaped(rung, replace(c, text=replace(c.text, tokenizer="bytes")), probe.settings)


# ---------------------------------------------------------------------------------------------------- probes
def climb(rung: Rung, probe: Probe, n: int, seed: int) -> dict[str, Any]:
    """Train one rung's model on a probe with SEEDS seeds at once.

    Returns accuracy on fresh rows [evaluation][seed], steps of each evaluation, the share of diverged runs, the largest
    attention score [seed], and the attention of the first seed to the first held-out row [L][H][T][T].
    """
    c = probe_config(rung, probe, n)
    m, t = c.model, c.pretrain
    tx = optim.make(t, m.dtype)
    seeds = jnp.arange(SEEDS) + SEEDS * seed
    make = jax.vmap(lambda s: new_state({"lm": transformer.init(m, jax.random.PRNGKey(s))}, tx, 0))
    state = jax.jit(lambda s: jax.reshard(make(s), P()))(seeds)  # whole: `vmap` of a `cond` refuses split arrays
    step = jax.jit(jax.vmap(make_update(next_token_loss(m, 0.0), tx, t)), donate_argnums=0)
    answer = jax.jit(jax.vmap(partial(answers, m)))
    tokens, wanted = (np.stack(a) for a in zip(*(fresh(probe, n, int(s), 0, HELD_OUT) for s in seeds), strict=True))
    steps, accuracy, losses = [], [], []
    for i in range(t.steps):
        rows = [asked(*fresh(probe, n, int(s), i + 1, t.batch)) for s in seeds]
        state, metrics = step(state, {k: jnp.asarray(np.stack([r[k] for r in rows])) for k in rows[0]})
        losses.append(metrics["train/loss"])
        if (i + 1) % max(1, t.steps // EVALUATIONS) == 0:
            steps.append(i + 1)
            accuracy.append(np.mean(np.asarray(answer(state.params["lm"], tokens)) == wanted, axis=1).tolist())
    last = np.asarray(jnp.stack(losses[-10:])).mean(0)
    look = jax.jit(jax.vmap(partial(scores, m)))(state.params["lm"], tokens[:, :64]) if m.depth else None
    return {
        "n": n,
        "steps": steps,
        "accuracy": accuracy,
        "diverged": float(np.mean(~(last < 2 * np.log(m.vocab)) | (np.asarray(state.guard["streak"]) > 0))),
        "score": [] if look is None else np.nan_to_num(look[1], nan=1e30, posinf=1e30).tolist(),
        "attention": [] if look is None else np.nan_to_num(look[0][0, :, 0]).round(3).tolist(),
        "row": tokens[0, 0].tolist(),
    }


def fresh(probe: Probe, n: int, seed: int, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a step, a function of (seed, step) alone; step 0 is held out."""
    return probe.rows(np.random.default_rng([seed, step]), n, count)


def asked(tokens: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as a batch that bears loss on the answer alone."""
    targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
    targets[:, -1], weights[:, -1] = answer, 1
    return {"tokens": tokens, "targets": targets, "weights": weights}


def answers(m: Model, params: dict, tokens_bt: jax.Array) -> jax.Array:
    """The most likely token after each row, [B]."""
    B, T = tokens_bt.shape
    x_nd = transformer.hidden(m, params, tokens_bt)
    return jnp.argmax(transformer.unembed(m, params, x_nd).reshape(B, T, -1)[:, -1], axis=-1)


def scores(m: Model, params: dict, tokens_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention [L, B, H, T, T] of every block, and the largest score that goes into any of them."""
    T = tokens_bt.shape[1]
    place = jnp.arange(T)

    def attend(window: int | None) -> Callable:
        def run(q, k, v):
            q, k, v = (jax.reshard(a, P()) for a in (q, k, v))
            k, v = (jnp.repeat(a, m.heads // m.kv_heads, axis=2, out_sharding=P()) for a in (k, v))
            s = jnp.einsum("bthd,bshd->bhts", q, k) * m.head_dim**-0.5
            s = jnp.where(visible_mask(place[:, None], place[None], window), s, MASKED)
            weights = jax.nn.softmax(s, axis=-1)
            o = jax.reshard(jnp.einsum("bhts,bshd->bthd", weights, v), P(transformer.ROWS, None, "model"))
            return o, (weights, jnp.max(jnp.where(s > MASKED, jnp.abs(s), 0)))

        return run

    cos, sin = transformer.rope_angles(place, m.head_dim, m.rope_base)
    _, (weights, largest) = transformer.run_blocks(m, params, tokens_bt, cos, sin, attend)
    return weights, jnp.max(largest)


# ---------------------------------------------------------------------------------------------------- the corpus
def corpus(rung: Rung, c: Config, rundir: RunDir) -> dict[str, Any]:
    """What a rung makes of the text: bits per byte at equal tokens and at equal FLOPs, what it costs, what it writes."""
    tokenizer = Tokenizer.load(rundir.tokenizer)
    if rung.number < 2:
        return counted(rung.number + 1, c, rundir, tokenizer)
    rc = shaped(rung, c)
    top = shaped([r for r in RUNGS if r.main][-1], c)
    flops, most = (cost.flops_per_token(x.model, x.pretrain.seq) for x in (rc, top))
    steps = round(c.pretrain.steps * most / flops)
    found = {
        "params": cost.param_count(rc.model),
        "flops": flops,
        "cache": cost.cache_bytes(rc.model, 1, 1),
        "tokens": learned(rc, rundir, tokenizer, whole=rc.model.depth == 0),
    }
    same = abs(steps / c.pretrain.steps - 1) < ENOUGH
    longer = replace(rc, pretrain=replace(rc.pretrain, steps=steps))
    return found | {"equal": found["tokens"] if same else learned(longer, rundir, tokenizer, whole=rc.model.depth == 0)}


def learned(c: Config, rundir: RunDir, tokenizer: Tokenizer, whole: bool) -> dict[str, Any]:
    """Train on the corpus; bits per byte over `c.eval.rows` held-out rows (`whole`: over all of them), curve and sample."""
    t, m, mesh = c.pretrain, c.model, jax.sharding.get_mesh()
    train, val = (TokenRows(rundir.tokens(s), t.seq, tokenizer.fingerprint) for s in ("train", "val"))
    tx = optim.make(t, m.dtype)
    state = jax.jit(lambda: new_state({"lm": transformer.init(m, jax.random.PRNGKey(c.seed))}, tx, c.seed))()
    step, batches, losses = make_step(next_token_loss(m, t.z_loss), tx, t), Batches(train, t.batch, c.seed), []
    began = time.perf_counter()
    for i in range(t.steps):
        state, metrics = step(state, put_batch(mesh, partial(batches, i), t.batch))
        losses.append(metrics["train/loss"])
        if i % 16 == 0:
            jax.block_until_ready(losses[-1])  # the host stays near the device
    bits = np.asarray(jnp.stack(losses), np.float64) / math.log(2)
    seconds = time.perf_counter() - began
    found = evaluate.bits_per_byte(c, val, tokenizer, 0 if whole else c.eval.rows)(state.params)
    write(c, state.params, tokenizer)  # compiles
    text, speed = write(c, state.params, tokenizer)
    return {
        "bpb": found["val_bpb"],
        "tokens": t.steps * t.batch * t.seq,
        "batch": t.batch * t.seq,
        "curve": np.round(bits, 4).tolist(),
        "diverged": bool(not np.isfinite(bits[-10:]).all()),
        "seconds": seconds,
        "sample": text,
        "decode": speed,
    }


def write(c: Config, params: dict, tokenizer: Tokenizer) -> tuple[str, float]:
    """A continuation of the first prompt, and the tokens a second that it was written at."""
    began = time.perf_counter()
    text = next(iter(converse.continuations(c, params, tokenizer, 1, lambda: None).values()), "")
    return text, c.sample.tokens / (time.perf_counter() - began)


def counted(order: int, c: Config, rundir: RunDir, tokenizer: Tokenizer) -> dict[str, Any]:
    """The table of counts of an order, in closed form: its bits per byte, a sample, and the part of it that is drawn."""
    train, val = (documents(TokenRows(rundir.tokens(s), 2).stream, tokenizer) for s in ("train", "val"))
    bits = byte_ngram_bits(train, val, order) / sum(map(len, val))
    table = bigrams(train)
    rng, text = np.random.default_rng(c.seed), [int(table.sum(axis=1).argmax())]
    for _ in range(c.sample.tokens):
        row = (table[text[-1]] if order == 2 else table.sum(axis=0)) + 1e-9
        text.append(int(rng.choice(256, p=row / row.sum())))
    run = {"bpb": bits, "tokens": sum(map(len, train)), "sample": bytes(text).decode("utf-8", "replace")}
    common = np.sort(np.argsort(-table.sum(axis=0))[:40])
    return {
        "params": 256**order, "flops": 0, "cache": 0, "tokens": run, "equal": run,
        "bytes": common.tolist(), "table": table[np.ix_(common, common)].tolist(),
    }  # fmt: skip


def documents(stream: np.ndarray, tokenizer: Tokenizer) -> list[bytes]:
    """The texts of a stream of bytes."""
    starts = np.flatnonzero(stream == tokenizer.bos)
    return [doc[1:].astype(np.uint8).tobytes() for doc in np.split(np.asarray(stream), starts)[1:]]


def bigrams(texts: list[bytes]) -> np.ndarray:
    """How often byte b follows byte a, [256, 256]; documents do not follow each other."""
    table = np.zeros(256 * 256, np.int64)
    for text in texts:
        at = np.frombuffer(text, np.uint8).astype(np.int64)
        table += np.bincount(at[:-1] * 256 + at[1:], minlength=256 * 256)
    return table.reshape(256, 256)
