"""Bits per byte on validation text, compared with n-grams and xz on the same text."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

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
from ramp.text.rows import Batches, Rows, SubsampledRows, TokenRows
from ramp.text.shards import TokenReader
from ramp.text.tokenizer import Tokenizer
from ramp.train.mesh import shard_batch
from ramp.train.preemption import Preemption
from ramp.train.processes import is_writer, share
from ramp.train.restore import load_params


@dataclass(frozen=True)
class TextLoss:
    """How well a model predicts the tokens of some rows; the names are those of report.json."""

    # Bits of the tokens that stand for text over the bytes they stand for; special tokens count in
    # neither. The same quantity for every tokenizer, and the one that the baselines give.
    val_bpb: float
    val_nats: float  # per token, by loss weight


# What the baselines read of training, and a third of it of validation: with Kneser-Ney 0.3 kB of
# memory a token; without it tokens are as good as bytes, at 40 bytes each.
MAX_TOKENS = 6_000_000
MAX_BYTES = 48_000_000

Evaluate = Callable[[dict, Preemption | None], TextLoss]


@dataclass(frozen=True)
class BpbReport(TextLoss):
    """What report.json says of an evaluation."""

    baselines: dict[str, float]  # bits per byte by name; empty where none are wanted
    # Much text gives the baselines a sample, of whole documents that are evenly spread.
    baseline_tokens: int  # of training that they were fitted to
    baseline_of_tokens: int  # of training in all
    baseline_val_tokens: int  # of validation that they were scored on
    baseline_of_val_tokens: int  # of validation in all
    seconds: float


@dataclass(frozen=True)
class Baselines:
    """Bits per byte of validation text by other means, and the tokens they were fitted to."""

    bits: dict[str, float]
    tokens: int
    of_tokens: int
    val_tokens: int
    of_val_tokens: int

    def describe_sample(self) -> str:
        """What people are told of a sample; nothing where all was read."""
        words = []
        if self.tokens < self.of_tokens:
            words.append(f"fitted on {self.tokens:,} of {self.of_tokens:,} tokens")
        if self.val_tokens < self.of_val_tokens:
            words.append(f"scored on {self.val_tokens:,} of {self.of_val_tokens:,}")
        return f" ({', '.join(words)})" if words else ""


def make_bits_per_byte(c: Config, rows: Rows, tokenizer: Tokenizer, limit: int = 0) -> Evaluate:
    """A function (params, stop) -> `TextLoss` over `limit` rows spread over all; 0: all rows.

    It raises `Preempted` where `stop` asks for it.
    """
    mesh = jax.sharding.get_mesh()
    source = SubsampledRows(rows, limit) if limit else rows
    batches = Batches(source, c.eval.batch_size, shuffle=False)
    # The model's table is padded beyond the tokenizer's ids; those stand for no bytes.
    lengths_v = np.zeros(c.model.vocab_size, np.float32)
    lengths_v[: tokenizer.vocab_size] = tokenizer.byte_lengths

    def evaluate(params, stop: Preemption | None = None) -> TextLoss:
        total = np.zeros(4)
        pending = None
        for i in range(batches.num_batches):
            batch = shard_batch(mesh, partial(batches, i), c.eval.batch_size)
            sums = _sum_losses(c.model, params, batch, jnp.asarray(lengths_v))
            # Wait for the batch before, so that the device always has one and never many.
            if pending is not None:
                total += np.asarray(pending, np.float64)
            pending = sums
            if stop is not None:
                stop.check(i)
        total += np.asarray(pending, np.float64)
        text_nats, num_bytes, nats, weight = total
        bits = text_nats / math.log(2)
        return TextLoss(bits / max(num_bytes, 1), nats / max(weight, 1))

    return evaluate


@partial(jax.jit, static_argnums=0)
def _sum_losses(m, params, batch, lengths_v):
    """[4]: nats and bytes of the tokens that stand for text, nats and weight of all tokens."""
    x_nd = transformer.compute_hidden(m, params["lm"], batch["tokens"], batch.get("segments"))
    targets_bt, weights_bt = batch["targets"], batch["weights"]
    nats_bt, _ = model_loss.token_cross_entropy(m, params["lm"], x_nd, targets_bt)
    # A row of the table for each target, where that target is.
    sharding = jax.typeof(targets_bt).sharding
    bytes_bt = lengths_v.at[targets_bt].get(out_sharding=sharding)
    # Only text has bytes: special tokens drop out of both sums.
    text_bt = weights_bt * (bytes_bt > 0)
    terms = (nats_bt * text_bt, bytes_bt * text_bt, nats_bt * weights_bt, weights_bt)
    return jnp.stack([jnp.sum(term_bt) for term_bt in terms])


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Bits per byte of the pretrained model over all of validation, and the baselines'."""
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    path, is_masked = rundir.tokens("val"), c.text.mask_documents
    rows = TokenRows(path, c.pretrain.seq_len, tokenizer.fingerprint, is_masked)
    params = load_params(rundir, "pretrain", c, tokenizer)
    with stop.together():
        loss = make_bits_per_byte(c, rows, tokenizer)(params, stop)
    fitted = Baselines({}, 0, 0, 0, 0)
    if c.eval.baselines:
        fitted = share(lambda: fit_baselines(rundir, tokenizer))
    others = fitted.bits
    report = BpbReport(
        **vars(loss),
        baselines=others,
        baseline_tokens=fitted.tokens,
        baseline_of_tokens=fitted.of_tokens,
        baseline_val_tokens=fitted.val_tokens,
        baseline_of_val_tokens=fitted.of_val_tokens,
        seconds=time.perf_counter() - began,
    )
    # At the step of the model that was evaluated, so that it stands at the end of its curve.
    with MetricWriter(rundir.path, "eval", 0, is_writer()) as board:
        scalars = {f"eval/baseline_{name}": bits for name, bits in others.items()}
        # From the beginning, too: a line that the model's curve goes down to.
        board.scalars(0, scalars)
        board.scalars(c.pretrain.steps, {"eval/val_bpb": loss.val_bpb} | scalars)
        board.figure(c.pretrain.steps, "eval/baselines", plot_baselines(loss.val_bpb, others))
    listed = ", ".join(f"{name} {bits:.3f}" for name, bits in others.items())
    comparison = f"; baselines{fitted.describe_sample()}: {listed}" if others else ""
    print(f"eval: {loss.val_bpb:.4f} bits per byte on validation{comparison}")
    return asdict(report)


def plot_baselines(val_bpb: float, others: dict[str, float]) -> Figure:
    """Bars of bits per byte, worst first: the model's among the baselines'."""
    bits = others | {"this model": val_bpb}
    names = sorted(bits, key=lambda name: -bits[name])
    figure, axes = blank(6, 0.4 * len(names) + 1)
    colors = [COLORS["main" if name == "this model" else "grey"] for name in names]
    bars = axes.barh(names, [bits[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="%.3f", padding=3, color=GREY, size=FONT)
    axes.grid(False)
    axes.set_xlabel("bits per byte of validation text (lower is better)")
    return figure


def fit_baselines(rundir: RunDir, tokenizer: Tokenizer, order: int = 5) -> Baselines:
    """Bits per byte of byte n-grams, xz and Kneser-Ney, fitted on the model's own training split.

    Kneser-Ney is over the model's own tokens, up to `order`. Of long splits they read a sample.
    """
    train, val = (TokenReader(rundir.tokens(split)) for split in ("train", "val"))
    most = MAX_TOKENS if order else MAX_BYTES
    train_tokens, val_tokens = (
        reader.read_documents(limit) for reader, limit in ((train, most), (val, most // 3))
    )
    bits = baselines(
        _decode_documents(train_tokens, tokenizer),
        _decode_documents(val_tokens, tokenizer),
        train_tokens,
        val_tokens,
        tokenizer.vocab_size,
        tokenizer.bos,
        order,
    )
    return Baselines(bits, len(train_tokens), len(train), len(val_tokens), len(val))


def _decode_documents(stream, tokenizer) -> list[bytes]:
    """The documents of a stream: exactly the bytes that were tokenized."""
    starts = np.flatnonzero(stream == tokenizer.bos)
    # Decoded rather than read again: the sources may be gone or changed.
    documents = np.split(stream, starts)[1:]  # nothing comes before the first bos
    return [tokenizer.decode_bytes(document.tolist()) for document in documents]
