"""Pretraining: the next-token loss on the corpus, rows in a shuffled order that is a function of (seed, step)."""

from dataclasses import asdict

import jax

from ramp.config import Config
from ramp.evals import bpb, samples
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.text.rows import Batches, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train import common
from ramp.train.preemption import Preemption
from ramp.train.state import eval_params


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    tokenizer = Tokenizer.load(rundir.tokenizer)
    train, val = (
        TokenRows(rundir.tokens(s), c.pretrain.seq_len, tokenizer.fingerprint)
        for s in ("train", "val")
    )
    bits = bpb.make_bits_per_byte(c, val, tokenizer, c.eval.num_rows)

    def figures(params, step, board, stop) -> dict[str, float]:
        values = {f"eval/{name}": value for name, value in asdict(bits(params, stop)).items()}
        texts = samples.continue_prompts(
            c, params, tokenizer, c.pretrain.num_samples, lambda: stop.check(step)
        )
        for name, text in texts.items():
            board.text(step, f"samples/{name}", text)
        return values

    stage = common.Trainer(
        name="pretrain",
        c=c,
        t=c.pretrain,
        loss=next_token_loss(c.model, c.pretrain.z_loss),
        batches=Batches(train, c.pretrain.batch_size, c.seed),
        tokenizer=tokenizer,
    )

    def start() -> dict:
        return {
            "lm": jax.jit(lambda: transformer.init_params(c.model, jax.random.PRNGKey(c.seed)))()
        }

    state, report = stage.train(rundir, start, figures, "eval/val_bpb", stop)
    with stop:
        final = bits(eval_params(state), stop)
    print(f"pretrain: {final.val_bpb:.4f} bits per byte after {report['tokens']:,} tokens")
    return (
        report
        | asdict(final)
        | {"epochs": report["tokens"] / max(len(train) * c.pretrain.seq_len, 1)}
    )
