"""Bits per byte on validation text, beside the n-gram and xz figures of the same text."""

import math
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ramp.config import Config
from ramp.model import loss as model_loss
from ramp.model import transformer
from ramp.reporting.figure import COLORS, FONT, GREY, blank
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.text.ngrams import baselines
from ramp.text.rows import ArrayRows, Batches, SubsampledRows, TokenRows, read_tokens
from ramp.text.tokenizer import Tokenizer
from ramp.train.common import load_params
from ramp.train.mesh import shard_batch
from ramp.train.preemption import Preemption

Evaluate = Callable[[dict, Preemption | None], dict[str, float]]


def make_bits_per_byte(
    c: Config, rows: TokenRows | ArrayRows, tokenizer: Tokenizer, limit: int = 0
) -> Evaluate:
    """A function (params, stop) -> {"val_bpb", "val_nats"} over `limit` rows spread over all, 0: all; `Preempted` if asked
    to stop.

    val_bpb: bits of the tokens that stand for text, divided by the bytes they stand for; specials count in neither. The
    same quantity whatever the tokenizer is, and the one the baselines give. val_nats: nats per token that bears loss.
    """
    mesh, m = jax.sharding.get_mesh(), c.model
    batches = Batches(
        SubsampledRows(rows, limit) if limit else rows, c.eval.batch_size, shuffle=False
    )
    lengths_v = np.zeros(m.vocab_size, np.float32)
    lengths_v[: tokenizer.vocab_size] = tokenizer.byte_lengths

    @jax.jit
    def sums(params: dict, batch: dict, lengths_v: jax.Array) -> jax.Array:
        x_nd = transformer.compute_hidden(m, params["lm"], batch["tokens"], batch.get("segments"))
        nats_bt, _ = model_loss.token_cross_entropy(m, params["lm"], x_nd, batch["targets"])
        bytes_bt = lengths_v.at[batch["targets"]].get(
            out_sharding=jax.typeof(batch["targets"]).sharding
        )
        weights, text = batch["weights"], batch["weights"] * (bytes_bt > 0)
        return jnp.stack(
            [jnp.sum(a) for a in (nats_bt * text, bytes_bt * text, nats_bt * weights, weights)]
        )

    def evaluate(params: dict, stop: Preemption | None = None) -> dict[str, float]:
        total = np.zeros(4)
        waiting = None
        for i in range(batches.num_batches):
            batch = shard_batch(mesh, partial(batches, i), c.eval.batch_size)
            current = sums(params, batch, jnp.asarray(lengths_v))
            total += 0 if waiting is None else np.asarray(waiting, np.float64)
            waiting = current
            if stop is not None:
                stop.check(i)
        nats, n_bytes, loss, weight = total + np.asarray(waiting, np.float64)
        return {"val_bpb": nats / math.log(2) / max(n_bytes, 1), "val_nats": loss / max(weight, 1)}

    return evaluate


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    """The figure that the run is judged by, over all of validation, and what stands beside it."""
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    rows = TokenRows(rundir.tokens("val"), c.pretrain.seq_len, tokenizer.fingerprint)
    params = load_params(rundir, "pretrain", c, tokenizer)
    with stop:
        result = make_bits_per_byte(c, rows, tokenizer)(params, stop)
    result["baselines"] = fit_baselines(rundir, tokenizer) if c.eval.baselines else {}
    result["seconds"] = time.perf_counter() - began
    with MetricWriter(rundir.path, "eval", 0, jax.process_index() == 0) as board:
        named = {f"eval/baseline_{name}": bits for name, bits in result["baselines"].items()}
        board.scalars(c.pretrain.steps, {"eval/val_bpb": result["val_bpb"]} | named)
        board.figure(
            c.pretrain.steps, "eval/beside", plot_baselines(result["val_bpb"], result["baselines"])
        )
    beside = "  ".join(f"{name} {bits:.3f}" for name, bits in result["baselines"].items())
    print(
        f"eval: {result['val_bpb']:.4f} bits per byte on validation; beside it: {beside or 'no baselines asked for'}"
    )
    return result


def plot_baselines(val_bpb: float, others: dict[str, float]) -> Figure:
    """Bars of bits per byte: the model's among the baselines'."""
    bars = dict(sorted((others | {"this model": val_bpb}).items(), key=lambda item: -item[1]))
    figure, axes = blank(6, 0.4 * len(bars) + 1)
    colors = [COLORS["main" if name == "this model" else "grey"] for name in bars]
    axes.bar_label(
        axes.barh(list(bars), list(bars.values()), color=colors),
        fmt="%.3f",
        padding=3,
        color=GREY,
        size=FONT,
    )
    axes.grid(False)
    axes.set_xlabel("bits per byte of validation text (lower is better)")
    return figure


def fit_baselines(rundir: RunDir, tokenizer: Tokenizer, order: int = 5) -> dict[str, float]:
    """Byte n-grams, xz and Kneser-Ney up to `order` over the model's own tokens, fitted on the same training split."""
    train, val = (read_tokens(rundir.tokens(split))[0] for split in ("train", "val"))
    texts = [_texts(stream, tokenizer) for stream in (train, val)]
    return baselines(
        *texts, np.asarray(train), np.asarray(val), tokenizer.vocab_size, tokenizer.bos, order
    )


def _texts(stream: np.ndarray, tokenizer: Tokenizer) -> list[bytes]:
    """The documents of a stream, decoded again: exactly the bytes that were tokenized."""
    starts = np.flatnonzero(stream == tokenizer.bos)
    return [
        tokenizer.decode_bytes(doc.tolist()) for doc in np.split(np.asarray(stream), starts)[1:]
    ]
