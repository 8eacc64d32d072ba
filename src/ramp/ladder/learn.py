"""The models of the ladder, trained: on a probe, several seeds at once, and on the corpus.

Probes train SEEDS seeds at once (`vmap` over states through the one update of `train/step.py`) on
rows that are never repeated. On the corpus, read as bytes, every rung gets the same tokens, and
then the same floating-point operations: those that the last rung needs for these tokens.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from ramp.ladder.rungs import RUNGS, Rung, collect_settings
from ramp.model import cost, transformer
from ramp.model.attention import MASKED, attention, visible_mask
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.text.rows import Batches, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.mesh import shard_batch
from ramp.train.state import State, init_state
from ramp.train.step import make_step, make_update
from ramp.train.trainer import run_steps

SEEDS = 3  # of every probe
# Learning rates of probes.
RATES = {
    "adam_lr": 3e-3,
    "embed_lr": 1e-2,
    "head_lr": 1e-2,
    "scalar_lr": 3e-3,
    "muon_lr": 1e-2,
}
PROBE_MODEL = Model(width=64, context_len=64, dtype="float32", attention="xla")
EVALUATIONS = 10  # of a probe, over its training
HELD_OUT = 512  # rows of each evaluation
ATTENTION_ROWS = 64  # held-out rows whose attention scores are looked at
SAME_FLOPS = 0.1  # relative difference below which equal tokens are taken as equal FLOPs
TABLE_BYTES = 40  # the most frequent bytes, shown in the table of counts


@dataclass(frozen=True)
class ProbeResult:
    """What a rung made of a probe."""

    n: int  # size of the probe
    steps: list[int]  # of each evaluation
    accuracy: list[list[float]]  # [evaluation][seed], on fresh rows
    diverged: float  # fraction of the seeds
    score: list[float] | None = None  # largest attention score, [seed]; None without attention
    attention: list | None = None  # of the last question of `row`, [L][H][T]
    row: list[int] | None = None  # one held-out row of the first seed


@dataclass(frozen=True)
class CorpusResult:
    """What a rung made of the corpus."""

    bpb: float  # bits per byte of held-out text, at equal tokens
    bpb_equal: float  # the same at equal FLOPs
    sample: str  # what it writes
    params: int = 0
    flops: float = 0  # per token of training
    cache: float = 0  # bytes per token of context
    decode: float = 0  # tokens written per second
    batch: int = 0  # tokens in a step
    curve: list[float] | None = None  # training loss of each step, bits per byte
    bytes: list[int] | None = None  # of counted bigrams: the most frequent bytes
    table: list[list[int]] | None = None  # of counted bigrams: how often one follows the other


@dataclass(frozen=True)
class RungResult:
    """What is known of a rung; a part that was not asked for is None."""

    corpus: CorpusResult | None = None
    probe: ProbeResult | None = None


def make_rung_config(rung: Rung, c: Config, more: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a rung: `c` with the rung's settings, then `more`, resolved.

    A width of 0 is that of `c`. Raises `UserError` for what does not exist or cannot be.
    """
    wanted = collect_settings(rung) | dict(more or {})
    where = f"rung {rung.number} ({rung.name})"
    optimizer = wanted.pop("optimizer", c.pretrain.optimizer)
    unknown = wanted.keys() - vars(c.model)
    if unknown:
        problem = f"rung {rung.number} sets '{min(unknown)}', which the model does not have"
        raise UserError(f"{problem}; see config.Model")
    width = wanted.pop("width", 0) or c.model.width or config.resolve(c).model.width
    m = replace(c.model, width=width, **wanted)
    m = replace(m, head_dim=width // m.num_heads)
    c = replace(c, model=m, pretrain=replace(c.pretrain, optimizer=optimizer))
    return config.resolve(config.check_config(c, where), where)


# Probes


def make_probe_config(rung: Rung, probe: Probe, n: int) -> Config:
    """A small model for a probe of size n, and its training. Steps grow with n squared."""
    tokens, _ = probe.rows(np.random.default_rng(0), n, 1)
    rates = {name: probe.rate * rate for name, rate in RATES.items()}
    t = Train(
        steps=round(probe.steps * (n / probe.size) ** 2),
        batch_size=probe.batch,
        seq_len=tokens.shape[1],
        skip_sigma=0.0,  # a run that diverges is a result
        **rates,
    )
    model = replace(PROBE_MODEL, vocab_size=probe.vocab(n))
    text = replace(Config().text, tokenizer="bytes")
    return make_rung_config(rung, Config(model=model, pretrain=t, text=text), probe.settings)


def train_probe(rung: Rung, probe: Probe, n: int, seed: int) -> ProbeResult:
    """Train one rung's model on a probe with SEEDS seeds at once."""
    c = make_probe_config(rung, probe, n)
    m, t = c.model, c.pretrain
    seeds = SEEDS * seed + np.arange(SEEDS)
    tx = optim.make_optimizer(t, m.dtype)

    def make_state(seed: jax.Array) -> State:
        params = transformer.init_params(m, jax.random.PRNGKey(seed))
        return init_state({"lm": params}, tx, 0)

    # Replicated: `vmap` of the update's `cond` refuses arrays that are split over devices.
    state = jax.jit(lambda seeds: jax.reshard(jax.vmap(make_state)(seeds), P()))(seeds)
    update = make_update(next_token_loss(m, 0.0), tx, t)
    step = jax.jit(jax.vmap(update), donate_argnums=0)
    grade = jax.jit(jax.vmap(partial(grade_rows, m)))
    make_batch = partial(make_probe_batch, probe, n, seeds)
    held_out = make_batch(0, HELD_OUT)
    every = max(1, t.steps // EVALUATIONS)
    evaluated = range(every, t.steps + 1, every)
    accuracy, history = [], []
    for end in evaluated:
        batches = (make_batch(i, t.batch_size) for i in range(end - every + 1, end + 1))
        state, metrics = run_steps(step, state, batches)
        accuracy.append(grade(state.params["lm"], held_out))
        history += metrics
    # Twice the loss of a uniform guess at the end, or updates that are not finite.
    last_loss = np.mean([metrics["train/loss"] for metrics in history[-10:]], axis=0)
    is_good = last_loss < 2 * np.log(m.vocab_size)
    diverged = ~is_good | (np.asarray(state.guard["streak"]) > 0)
    result = ProbeResult(
        n=n,
        steps=list(evaluated),
        accuracy=np.array(accuracy).tolist(),
        diverged=float(np.mean(diverged)),
    )
    return add_attention(result, m, state.params["lm"], held_out["tokens"]) if m.depth else result


def make_probe_batch(
    probe: Probe, n: int, seeds: np.ndarray, step: int, count: int
) -> dict[str, np.ndarray]:
    """Rows of a step for each seed, [S, B, T]: a function of (seed, step) alone.

    Only the answers have a loss weight. Step 0 is held out.
    """
    rows = [probe.rows(np.random.default_rng([seed, step]), n, count) for seed in seeds]
    tokens = np.stack([row_tokens for row_tokens, _ in rows])
    answers = np.stack([row_answers for _, row_answers in rows])
    questions = answers.shape[-1]
    targets = np.zeros_like(tokens)
    targets[..., -questions:] = answers
    weights = np.zeros(tokens.shape, np.float32)
    weights[..., -questions:] = 1
    return {"tokens": tokens, "targets": targets, "weights": weights}


def add_attention(
    result: ProbeResult, m: Model, params: dict, tokens_sbt: np.ndarray
) -> ProbeResult:
    """The result with the largest attention scores, and where the last question looks."""
    compute = jax.jit(jax.vmap(partial(compute_scores, m)))
    scores_slbhtt = compute(params, tokens_sbt[:, :ATTENTION_ROWS])
    sizes = jnp.where(scores_slbhtt == MASKED, 0, jnp.abs(scores_slbhtt))
    largest_s = jnp.max(sizes, axis=(1, 2, 3, 4, 5))
    weights_lht = jax.nn.softmax(scores_slbhtt[0, :, 0, :, -1])
    return replace(
        result,
        # JSON has no infinity, and a diverged run has nothing else.
        score=np.nan_to_num(largest_s, nan=1e30, posinf=1e30).tolist(),
        attention=np.nan_to_num(weights_lht).round(3).tolist(),
        row=tokens_sbt[0, 0].tolist(),
    )


def grade_rows(m: Model, params: dict, batch: dict[str, jax.Array]) -> jax.Array:
    """The fraction of questions whose answer the model finds more likely than any other token."""
    x_nd = transformer.compute_hidden(m, params, batch["tokens"])
    best_n = jnp.argmax(transformer.unembed(m, params, x_nd), axis=-1)
    shape = batch["targets"].shape
    best_bt = jax.lax.reshape(best_n, shape, out_sharding=P(transformer.ROWS))
    is_right = best_bt == batch["targets"]
    return jnp.sum(is_right * batch["weights"]) / jnp.sum(batch["weights"])


def compute_scores(m: Model, params: dict, tokens_bt: jax.Array) -> jax.Array:
    """What enters the softmax of every block, [L, B, H, T, T]; MASKED where nothing is seen."""
    place = jnp.arange(tokens_bt.shape[1])

    def attend(window: int | None) -> Any:
        def run(q, k, v):
            q_bthd, k_btkd = (jax.reshard(a, P()) for a in (q, k))
            k_bthd = jnp.repeat(k_btkd, m.num_heads // m.num_kv_heads, axis=2, out_sharding=P())
            s_bhts = jnp.einsum("bthd,bshd->bhts", q_bthd, k_bthd) * m.head_dim**-0.5
            visible = visible_mask(place[:, None], place[None], window)
            return attention(q, k, v, window=window), jnp.where(visible, s_bhts, MASKED)

        return run

    cos, sin = transformer.rope_angles(place, m.head_dim, m.rope_theta)
    _, scores = transformer.run_blocks(m, params, tokens_bt, cos, sin, attend)
    return scores


# The corpus


def measure_corpus(rung: Rung, c: Config, rundir: RunDir) -> CorpusResult:
    """Train a rung on the text, at equal tokens and then at equal FLOPs."""
    last = [other for other in RUNGS if other.main][-1]
    rung_config = make_rung_config(rung, c)
    t = replace(rung_config.pretrain, **rung.train)
    rung_config = replace(rung_config, pretrain=t)
    flops = cost.flops_per_token(rung_config.model, t.seq_len)
    last_config = make_rung_config(last, c)
    most = cost.flops_per_token(last_config.model, last_config.pretrain.seq_len)
    result = train_on_corpus(rung_config, rundir)
    result = replace(
        result,
        params=cost.count_params(rung_config.model),
        flops=flops,
        cache=cost.cache_bytes(rung_config.model, 1, 1),
    )
    if abs(most / flops - 1) < SAME_FLOPS:
        return result
    longer = replace(t, steps=round(c.pretrain.steps * most / flops))
    equal = train_on_corpus(replace(rung_config, pretrain=longer), rundir)
    return replace(result, bpb_equal=equal.bpb)


def train_on_corpus(c: Config, rundir: RunDir) -> CorpusResult:
    """Train on the corpus; costs are left at 0.

    Held-out rows: `c.eval.num_rows`, but all of them for a model without blocks, which is compared
    with exact counts.
    """
    t, m = c.pretrain, c.model
    mesh = jax.sharding.get_mesh()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    train = TokenRows(rundir.tokens("train"), t.seq_len, tokenizer.fingerprint)
    val = TokenRows(rundir.tokens("val"), t.seq_len, tokenizer.fingerprint)
    tx = optim.make_optimizer(t, m.dtype)

    def make_state() -> State:
        params = transformer.init_params(m, jax.random.PRNGKey(c.seed))
        return init_state({"lm": params}, tx, c.seed)

    state = jax.jit(make_state)()
    step = make_step(next_token_loss(m, t.z_loss), tx, t)
    batches = Batches(train, t.batch_size, c.seed)
    rows = (shard_batch(mesh, partial(batches, i), t.batch_size) for i in range(t.steps))
    state, history = run_steps(step, state, rows)
    losses = np.array([metrics["train/loss"] for metrics in history], float)
    evaluate = bpb.make_bits_per_byte(c, val, tokenizer, c.eval.num_rows if m.depth else 0)
    bits = evaluate(state.params).val_bpb
    for _ in range(2):  # the first time it compiles
        began = time.perf_counter()
        written = samples.continue_prompts(c, state.params, tokenizer, 1, lambda: None)
        seconds = time.perf_counter() - began
    return CorpusResult(
        bpb=bits,
        bpb_equal=bits,
        decode=c.sample.max_new_tokens / seconds,
        sample="".join(written.values()),
        batch=t.batch_size * t.seq_len,
        curve=(losses / math.log(2)).round(4).tolist(),
    )


def count_corpus(
    rung: Rung, c: Config, rundir: RunDir, baselines: Mapping[str, float]
) -> CorpusResult:
    """A table of counts, of bytes (rung 0) or of pairs (rung 1), and text drawn from it."""
    counts = count_bigrams(TokenRows(rundir.tokens("train"), 2).stream)
    singles = counts.sum(axis=0)
    is_bigram = rung.number > 0
    rows = counts if is_bigram else np.tile(singles, (256, 1))
    rng = np.random.default_rng(c.seed)
    text = [int(singles.argmax())]
    for _ in range(c.sample.max_new_tokens):
        row = rows[text[-1]] + 1e-9  # a byte that nothing follows is followed by anything
        text.append(int(rng.choice(256, p=row / row.sum())))
    bits = baselines["bigram" if is_bigram else "unigram"]
    result = CorpusResult(
        bpb=bits,
        bpb_equal=bits,
        params=256 ** (rung.number + 1),
        sample=bytes(text).decode("utf-8", "replace"),
    )
    if not is_bigram:
        return result
    common = np.sort(np.argsort(-singles)[:TABLE_BYTES])
    table = counts[np.ix_(common, common)]
    return replace(result, bytes=common.tolist(), table=table.tolist())


def count_bigrams(stream: np.ndarray) -> np.ndarray:
    """How often byte b follows byte a within a document, [256, 256].

    Ids from 256 up are not bytes: every document begins with one.
    """
    ids = np.minimum(stream, 256).astype(np.int64)
    pairs = ids[:-1] * 257 + ids[1:]
    return np.bincount(pairs, minlength=257**2).reshape(257, 257)[:256, :256]
