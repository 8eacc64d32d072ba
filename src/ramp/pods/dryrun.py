"""`--dry-run`: what a run would cost in parameters, memory, arithmetic and time.

Counts come from arithmetic (`model/cost.py`), the memory of a step from the compiler's own plan for
this device, time from a matrix product timed here. No array of the model is allocated and no file
is written.
"""

import timeit

import jax
import jax.numpy as jnp

from ramp.config import Config, Train, get
from ramp.credit import fit
from ramp.host import has_huge_pages, measure_budget, setup_devices
from ramp.model import cost
from ramp.stages import STAGES
from ramp.train import memory

UTILIZATION = 0.4  # of the matrix-product rate, as measured for configs/cpu.toml
PRODUCT = 1024  # rows and columns of the matrices of that product
INDENT = " " * 12
SAMPLES = ("reinforce", "synthesize")  # they sample as well as train


def describe(c: Config) -> str:
    """A table for a person; raises `UserError` for what could not run."""
    asked, c = c, setup_devices(c)
    budget = measure_budget()
    c = memory.fit_batch(asked, c, c.stages, budget)
    m, t, devices = c.model, c.pretrain, jax.device_count()
    mesh = dict(jax.sharding.get_mesh().shape)
    rate = _measure_flops(m.dtype) * devices
    matrices = cost.count_matrix_params(m)
    state = memory.state_bytes(m, t)
    cache = cost.cache_bytes(m, 1, m.context_len)
    lines = [
        f"devices      {devices} x {jax.devices()[0].device_kind}, mesh {mesh}",
        f"model        depth {m.depth}, width {m.width}, {m.num_heads} heads of {m.head_dim} over "
        f"{m.num_kv_heads} kv, mlp {m.mlp_dim}, vocabulary {m.vocab_size}, "
        f"context {m.context_len}, {m.dtype}",
        f"parameters   {cost.count_params(m):,} ({matrices:,} in the matrices of the blocks)",
        f"state        {_mb(state / devices)} a device: weights and optimizer, float32",
        f"kv cache     {_mb(cache)} a row of {m.context_len} tokens",
        f"checkpoints  {_mb(state)} each, {c.checkpoint.max_to_keep} kept and the best",
    ]
    for name in c.stages:
        if STAGES[name].train:
            lines += _describe_stage(name, c, get(c, STAGES[name].train), rate, budget)
        if name == "reinforce":
            lines.append(f"{INDENT} {fit.require_fit(c.reinforce)}")
    return "\n".join(lines)


def _describe_stage(name, c: Config, t: Train, rate, budget):
    """Two lines: steps and time at `rate` FLOP/s, and memory."""
    # Preference tuning has two answers in a row, and asks the reference too.
    rows = memory.ROWS_OF.get(name, 1) * t.batch_size
    tokens = t.steps * rows * t.seq_len
    flops = cost.flops_per_token(c.model, t.seq_len)
    minutes = tokens * flops / (rate * UTILIZATION) / 60
    # glibc leaves holes in the heap unless pages are huge; see `host.keep_memory`.
    has_holes = jax.default_backend() == "cpu" and not has_huge_pages()
    resident = "; up to three times that stays resident (see host.keep_memory)" if has_holes else ""
    also = "; sampling and measuring come on top" if name in SAMPLES else ""
    accum = f" in {t.grad_accum_steps} microbatches" if t.grad_accum_steps > 1 else ""
    needed = memory.plan_stage_bytes(c, name, t)
    return [
        f"{name:12} {t.steps:,} steps of {rows} x {t.seq_len} = {tokens:,} tokens{accum}; "
        f"{flops / 1e6:.1f} MFLOP a token; about {minutes:.1f} minutes, at {UTILIZATION:.0%} of "
        f"the {rate / 1e9:,.0f} GFLOP/s of a matrix product here{also}",
        f"{INDENT} {_mb(needed)} of the {_mb(budget)} that a device here has for a step, by the "
        f"compiler's plan{resident}",
    ]


def _measure_flops(dtype):
    """FLOP/s of one device in a square matrix product, the best of five."""
    a = jnp.ones((PRODUCT, PRODUCT), dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32).astype(a.dtype))
    product(a).block_until_ready()  # the first time it compiles
    seconds = timeit.repeat(lambda: product(a).block_until_ready(), repeat=5, number=1)
    return 2 * PRODUCT**3 / min(seconds)


def _mb(n):
    """Bytes as MB or GB."""
    return f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.2f} GB"
