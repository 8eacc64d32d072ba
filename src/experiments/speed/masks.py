"""What document masks cost and gain: one model with and without them, step by step in turns.

python -m experiments.speed.masks RUN --steps 300 --seeds 3

RUN: a prepared run (`ramp prepare cpu --run RUN`). Time is the ratio of the two steps in one
process, interleaved, on all its CPUs: a busy machine disturbs that less than the clock. Gain is
bits per byte of validation after equal steps, each model read as it was trained, and the masked
model read without masks too.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ramp.evals import bpb
from ramp.host import setup_devices
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.rundir import open_run
from ramp.text.rows import Batches, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train.mesh import shard_batch
from ramp.train.optim import make_optimizer
from ramp.train.state import init_state
from ramp.train.step import make_step


def main() -> None:
    """Train both in turns, print ratios and bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=192, help="of validation")
    args = parser.parse_args()
    rundir, c = open_run(args.run)
    c = setup_devices(c)
    c = replace(c, pretrain=replace(c.pretrain, steps=args.steps))
    t, mesh = c.pretrain, jax.sharding.get_mesh()
    tokenizer = Tokenizer.load(rundir.tokenizer)

    def rows(split, is_masked):
        return TokenRows(rundir.tokens(split), t.seq_len, tokenizer.fingerprint, is_masked)

    def make_state(seed):
        params = {"lm": transformer.init_params(c.model, jax.random.PRNGKey(seed))}
        return init_state(params, make_optimizer(t, c.model.dtype), seed=0)

    for seed in range(args.seeds):
        arms, seconds = {}, {False: [], True: []}
        for is_masked in seconds:
            tx = make_optimizer(t, c.model.dtype)
            step = make_step(next_token_loss(c.model, t.z_loss), tx, t)
            batches = Batches(rows("train", is_masked), t.batch_size, seed)
            arms[is_masked] = [step, jax.jit(make_state)(seed), batches]
        for i in range(args.steps):
            # Who goes first changes, and with it who finds the caches warm.
            for is_masked in (False, True) if i % 2 else (True, False):
                step, state, batches = arms[is_masked]
                batch = shard_batch(mesh, partial(batches, i), t.batch_size)
                began = time.process_time()
                state, _ = step(state, batch)
                jax.block_until_ready(state)
                seconds[is_masked].append(time.process_time() - began)
                arms[is_masked][1] = state
        # The first ones compile.
        ratio = np.array(seconds[True][5:]) / np.array(seconds[False][5:])
        bits = {
            f"{name}, read {'with' if reads else 'without'} masks": bpb.make_bits_per_byte(
                c, rows("val", reads), tokenizer, args.rows
            )(arms[name == "masked"][1].params, None).val_bpb
            for name, reads in (("plain", False), ("masked", True), ("masked", False))
        }
        listed = "; ".join(f"{name}: {value:.4f}" for name, value in bits.items())
        low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
        print(
            f"seed {seed}: time {middle:.3f} of the plain step (quartiles {low:.3f}, {high:.3f}); "
            f"bits per byte {listed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
