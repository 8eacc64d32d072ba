"""The models of the ladder, trained: on a probe, several seeds at once, and on the corpus.

Probes train SEEDS seeds at once (`vmap` over states through the one update of `train/step.py`) on
rows that are never repeated. On the corpus, read as bytes, every rung gets the same tokens, and
then the same floating-point operations: those that the last rung needs for these tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.config import Config, Model, Text, Train
from ramp.errors import UserError
from ramp.evals import bpb, samples
from ramp.ladder.probes import Probe
from ramp.ladder.rungs import Rung, collect_settings, find_top
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
from ramp.train.trainer import run_steps

Batch = dict[str, Any]  # rows as `make_step` takes them

SEEDS = 3  # of every probe
PROBE_MODEL = Model(width=64, context_len=64, dtype="float32", attention="xla")
PROBE_TRAIN = Train(
    adam_lr=3e-3,
    embed_lr=1e-2,
    head_lr=1e-2,
    scalar_lr=3e-3,
    muon_lr=1e-2,
    skip_sigma=0.0,  # a run that diverges is a result
)
EVALUATIONS = 10  # of a probe, over its training
HELD_OUT = 512  # rows of each evaluation
ATTENTION_ROWS = 64  # held-out rows whose attention scores are looked at
EXAMPLES = 12  # held-out rows that are kept, with what the model says of each
SAME_FLOPS = 0.1  # relative difference below which equal tokens are taken as equal FLOPs
TABLE_BYTES = 40  # the most frequent bytes, shown in the table of counts


@dataclass(frozen=True)
class ProbeResult:
    """What a rung made of a probe; nothing if it was not asked."""

    n: int = 0  # size of the probe
    steps: Sequence[int] = ()  # of each evaluation
    accuracy: Sequence[Sequence[float]] = ()  # [evaluation][seed], on fresh rows
    diverged: float = 0  # fraction of the seeds
    score: Sequence[float] = ()  # largest attention score, [seed]; of models with attention
    # Of the first seed and EXAMPLES held-out rows, which are the same for all rungs:
    rows: Sequence[Sequence[int]] = ()  # [row][T]
    asked: Sequence[int] = ()  # the right answer to the last question of each
    said: Sequence[int] = ()  # what the model says to it
    attention: Sequence = ()  # where it looks, [row][L][H][T]; of models with attention
    notes: str = ""  # what else there is to tell, in sentences


@dataclass(frozen=True)
class CorpusResult:
    """What a rung made of the corpus; without `params` it was not asked."""

    bpb: float = 0  # bits per byte of held-out text, at equal tokens
    bpb_equal: float = 0  # the same at equal FLOPs
    sample: str = ""  # what it writes
    params: int = 0
    flops: float = 0  # per token of training
    cache: float = 0  # bytes per token of context
    batch: int = 0  # tokens in a step
    curve: Sequence[float] = ()  # training loss of each step, bits per byte
    bytes: Sequence[int] = ()  # of counted bigrams: the most frequent bytes
    table: Sequence[Sequence[int]] = ()  # of counted bigrams: how often one follows the other


@dataclass(frozen=True)
class RungResult:
    """What is known of a rung."""

    corpus: CorpusResult = CorpusResult()
    probe: ProbeResult = ProbeResult()


def make_rung_config(rung: Rung, c: Config, **more: Any) -> Config:
    """The configuration of a rung: `c` with the rung's settings, then `more`, resolved.

    A width of 0 is that of `c`. Raises `UserError` for what does not exist or cannot be.
    """
    wanted = collect_settings(rung) | more
    where = f"rung {rung.number} ({rung.name})"
    optimizer = wanted.pop("optimizer", c.pretrain.optimizer)
    unknown = wanted.keys() - vars(c.model)
    if unknown:
        raise UserError(
            f"rung {rung.number} sets '{min(unknown)}', which the model does not have; "
            "see config.Model"
        )
    width = wanted.pop("width", 0) or config.resolve(c).model.width
    m = replace(c.model, width=width, **wanted)
    m = replace(m, head_dim=width // m.num_heads)
    c = replace(c, model=m, pretrain=replace(c.pretrain, optimizer=optimizer))
    return config.resolve(config.check_config(c, where), where)


# Probes


def make_probe_config(rung: Rung, probe: Probe, n: int, **more: Any) -> Config:
    """A small model for a probe of size n, and its training; steps grow with n."""
    tokens, _ = probe.rows(np.random.default_rng(0), n, 1)
    t = replace(
        PROBE_TRAIN,
        steps=round(probe.steps * (n / probe.size) ** probe.growth),
        batch_size=probe.batch,
        seq_len=tokens.shape[1],
        lr_scale=probe.rate,
    )
    model = replace(PROBE_MODEL, vocab_size=probe.vocab(n))
    c = Config(model=model, pretrain=t, text=Text(tokenizer="bytes"))
    return make_rung_config(rung, c, **{**probe.settings, **more})


def train_probe(rung: Rung, probe: Probe, n: int, seed: int, **more: Any) -> ProbeResult:
    """Train one rung's model on a probe with SEEDS seeds at once; `more`: settings of its own."""
    c = make_probe_config(rung, probe, n, **more)
    m, t = c.model, c.pretrain
    seeds = SEEDS * seed + np.arange(SEEDS)
    tx = optim.make_optimizer(t, m.dtype)
    make_states = jax.vmap(partial(_make_state, m, tx))
    # Replicated: `vmap` of the update's `cond` refuses arrays that are split over devices.
    state = jax.jit(lambda seeds: jax.reshard(make_states(seeds), P()))(seeds)
    update = make_update(next_token_loss(m, 0.0), tx, t)
    step = jax.jit(jax.vmap(update), donate_argnums=0)
    grade = jax.jit(jax.vmap(partial(_grade_rows, m)))
    make_batch = partial(_make_probe_batch, probe, n, seeds)
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
    is_good = (last_loss < 2 * np.log(m.vocab_size)) & (state.guard.streak == 0)
    result = ProbeResult(
        n=n,
        steps=list(evaluated),
        accuracy=np.array(accuracy).tolist(),
        diverged=float(1 - is_good.mean()),
    )
    params, tokens_sbt = state.params["lm"], held_out["tokens"]
    said_sbt = jax.jit(jax.vmap(partial(_answer_rows, m)))(params, tokens_sbt)
    result = replace(
        result,
        rows=tokens_sbt[0, :EXAMPLES].tolist(),
        asked=held_out["targets"][0, :EXAMPLES, -1].tolist(),
        said=said_sbt[0, :EXAMPLES, -1].tolist(),
    )
    return _add_attention(result, m, params, tokens_sbt) if m.depth else result


def _make_state(m: Model, tx, seed):
    """The state before the first step."""
    params = transformer.init_params(m, jax.random.PRNGKey(seed))
    return init_state({"lm": params}, tx, 0)


def _make_probe_batch(probe: Probe, n, seeds, step, count):
    """Rows of a step for each seed, [S, B, T]: a function of (seed, step) alone.

    Only the answers have a loss weight. Step 0 is held out.
    """
    rows = [probe.rows(np.random.default_rng([seed, step]), n, count) for seed in seeds]
    tokens, answers = map(np.stack, zip(*rows, strict=True))
    # The questions come last.
    asked = np.arange(tokens.shape[-1]) >= tokens.shape[-1] - answers.shape[-1]
    targets = np.zeros_like(tokens)
    targets[..., asked] = answers
    return weigh_tokens(tokens, targets, asked)


def weigh_tokens(tokens: np.ndarray, targets: np.ndarray, bears_loss: np.ndarray) -> Batch:
    """A batch of rows [..., T] in which the targets at some places, [T] booleans, bear the loss."""
    weights = np.broadcast_to(bears_loss.astype(np.float32), tokens.shape)
    return {"tokens": tokens, "targets": targets, "weights": weights}


def _add_attention(result: ProbeResult, m: Model, params, tokens_sbt):
    """The result with the largest attention scores, and where the last questions look."""
    compute = jax.jit(jax.vmap(partial(_compute_scores, m)))
    scores_slbhtt = compute(params, tokens_sbt[:, :ATTENTION_ROWS])
    sizes = jnp.where(scores_slbhtt == MASKED, 0, jnp.abs(scores_slbhtt))
    largest_s = sizes.reshape(SEEDS, -1).max(axis=1)
    weights_lbht = jax.nn.softmax(scores_slbhtt[0, :, :EXAMPLES, :, -1])
    weights_blht = jnp.swapaxes(weights_lbht, 0, 1)
    return replace(
        result,
        # JSON has no infinity, and a diverged run has nothing else.
        score=np.nan_to_num(largest_s, nan=1e30, posinf=1e30).tolist(),
        attention=np.nan_to_num(weights_blht).round(3).tolist(),
    )


def _answer_rows(m: Model, params, tokens_bt):
    """The token that the model finds most likely at each place, [B, T]."""
    x_nd = transformer.compute_hidden(m, params, tokens_bt)
    best_n = jnp.argmax(transformer.unembed(m, params, x_nd), axis=-1)
    return jax.lax.reshape(best_n, tokens_bt.shape, out_sharding=P(transformer.ROWS))


def _grade_rows(m: Model, params, batch):
    """The fraction of questions whose answer the model finds more likely than any other token."""
    is_right = _answer_rows(m, params, batch["tokens"]) == batch["targets"]
    return jnp.average(is_right, weights=batch["weights"])


def _compute_scores(m: Model, params, tokens_bt):
    """What enters the softmax of every block, [L, B, H, T, T]; MASKED where nothing is seen."""
    place = jnp.arange(tokens_bt.shape[1])

    def attend(window):
        def run(q, k, v):
            q_bthd, k_btkd = (jax.reshard(a, P()) for a in (q, k))
            k_bthd = jnp.repeat(k_btkd, m.num_heads // m.num_kv_heads, axis=2, out_sharding=P())
            s_bhts = jnp.einsum("bthd,bshd->bhts", q_bthd, k_bthd) * m.head_dim**-0.5
            visible = visible_mask(place[:, None], place[None], window)
            return attention(q, k, v, window=window), jnp.where(visible, s_bhts, MASKED)

        return run

    _, scores = transformer.run_blocks(m, params, tokens_bt, attend)
    return scores


# The corpus


def measure_corpus(rung: Rung, c: Config, rundir: RunDir) -> CorpusResult:
    """Train a rung on the text, at equal tokens and then at equal FLOPs."""
    last = find_top()
    last_model = make_rung_config(last, c).model
    c = make_rung_config(rung, c)
    t = replace(c.pretrain, **rung.train)
    c = replace(c, pretrain=t)
    result = _train_on_corpus(c, rundir)
    ratio = cost.flops_per_token(last_model, t.seq_len) / result.flops
    if abs(ratio - 1) < SAME_FLOPS:
        return result
    longer = replace(t, steps=round(t.steps * ratio))
    equal = _train_on_corpus(replace(c, pretrain=longer), rundir)
    return replace(result, bpb_equal=equal.bpb)


def _train_on_corpus(c: Config, rundir: RunDir):
    """Train on the corpus, and measure what it costs.

    Held-out rows: `c.eval.num_rows`, but all of them for a model without blocks, which is compared
    with exact counts.
    """
    t, m = c.pretrain, c.model
    mesh = jax.sharding.get_mesh()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    train, val = (
        TokenRows(rundir.tokens(split), t.seq_len, tokenizer.fingerprint)
        for split in ("train", "val")
    )
    tx = optim.make_optimizer(t, m.dtype)
    state = jax.jit(partial(_make_state, m, tx, c.seed))()
    step = make_step(next_token_loss(m, t.z_loss), tx, t)
    batches = Batches(train, t.batch_size, c.seed)
    rows = (shard_batch(mesh, partial(batches, i), t.batch_size) for i in range(t.steps))
    state, history = run_steps(step, state, rows)
    losses = np.array([metrics["train/loss"] for metrics in history], float)
    evaluate = bpb.make_bits_per_byte(c, val, tokenizer, c.eval.num_rows if m.depth else 0)
    bits = evaluate(state.params, None).val_bpb
    written = samples.continue_prompts(c, state.params, tokenizer, 1, lambda: None)
    return CorpusResult(
        bpb=bits,
        bpb_equal=bits,
        sample="".join(written.values()),
        params=cost.count_params(m),
        flops=cost.flops_per_token(m, t.seq_len),
        cache=cost.cache_bytes(m, 1, 1),
        batch=t.batch_size * t.seq_len,
        curve=(losses / math.log(2)).round(4).tolist(),
    )


def count_corpus(rung: Rung, c: Config, rundir: RunDir, baselines: dict) -> CorpusResult:
    """A table of counts, of bytes (rung 0) or of pairs (rung 1), and text drawn from it."""
    counts = count_bigrams(TokenRows(rundir.tokens("train"), 2).stream)
    singles = counts.sum(axis=0)
    is_bigram = rung.number > 0
    rows = counts if is_bigram else [singles] * 256
    rng = np.random.default_rng(c.seed)
    text = [int(singles.argmax())]
    for _ in range(c.sample.max_new_tokens):
        row = rows[text[-1]] + 1e-9  # a byte that nothing follows is followed by anything
        following = rng.choice(256, p=row / row.sum())
        text.append(int(following))
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
