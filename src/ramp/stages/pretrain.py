"""Pretraining: the next-token loss on the corpus.

Rows come in a shuffled order that is a function of (seed, step).
"""

from dataclasses import asdict
from typing import Any

import jax

from ramp.config import Config
from ramp.evals import bpb, samples
from ramp.model import transformer
from ramp.model.loss import chance_loss, next_token_loss
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.text.rows import Batches, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.restore import load_params
from ramp.train.state import eval_params
from ramp.train.trainer import Trainer


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where a prompt that is continued while training is too long."""
    for prompt in c.sample.prompts[: c.pretrain.num_samples]:
        num_tokens = 1 + len(tokenizer.encode(prompt))  # bos comes first
        samples.require_room(c, "sample.prompts", prompt, num_tokens)


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Train from random weights, or resume; return what the report shows."""
    t = c.pretrain
    tokenizer = Tokenizer.load(rundir.tokenizer)
    train_rows, val_rows = (
        TokenRows(rundir.tokens(split), t.seq_len, tokenizer.fingerprint, c.text.mask_documents)
        for split in ("train", "val")
    )
    measure = bpb.make_bits_per_byte(c, val_rows, tokenizer, c.eval.num_rows)

    def start() -> dict:
        # Pretraining that goes on from another run's weights, such as an imported model's.
        if rundir.origin_weights.exists():
            return load_params(rundir, rundir.origin_weights.name, c, tokenizer)
        key = jax.random.PRNGKey(c.seed)
        return {"lm": jax.jit(lambda: transformer.init_params(c.model, key))()}

    def evaluate(
        params: dict, step: int, writer: MetricWriter, stop: Preemption
    ) -> dict[str, float]:
        values = {f"eval/{name}": value for name, value in asdict(measure(params, stop)).items()}
        texts = samples.continue_prompts(
            c, params, tokenizer, t.num_samples, lambda: stop.check(step)
        )
        for name, text in texts.items():
            writer.text(step, f"samples/{name}", text)
        return values

    trainer = Trainer(
        name="pretrain",
        c=c,
        t=t,
        loss=next_token_loss(c.model, t.z_loss),
        batches=Batches(train_rows, t.batch_size, c.seed, mix=train_rows.mix),
        tokenizer=tokenizer,
        data=train_rows.reader.manifest.sha256,
        chance=chance_loss(c.model),
    )
    state, report = trainer.train(rundir, start, evaluate, "eval/val_bpb", stop)
    with stop.together():
        final = measure(eval_params(state), stop)
    print(f"pretrain: {final.val_bpb:.4f} bits per byte after {report.tokens:,} tokens")
    epochs = report.tokens / max(len(train_rows) * t.seq_len, 1)
    by_source = train_rows.count_epochs(report.tokens // t.seq_len) if train_rows.mix else {}
    for source, times in by_source.items():
        print(f"pretrain: {times:.2f} epochs of {source}")
    return report.to_dict() | asdict(final) | {"epochs": epochs, "epochs_by_source": by_source}
