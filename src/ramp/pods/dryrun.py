"""`--dry-run`: what a run would cost in parameters, memory, arithmetic and time, before anything is made.

Counts come from arithmetic (`model/cost.py`), the memory of a step from the compiler's own plan for this device, time
from a matrix product timed here. No array of the model is allocated and no file is written.
"""

import time

import jax
import jax.numpy as jnp

from ramp.config import Config, Train
from ramp.host import has_huge_pages, setup_devices
from ramp.model import cost
from ramp.train.mesh import compiler_options
from ramp.train.trainer import lower_train_step

UTILISATION = (
    0.4  # of the matrix-product rate, as measured for configs/cpu.toml; see the README's results
)


def describe(c: Config) -> str:
    """A table for a person; raises `UserError` for what could not run."""
    c = setup_devices(c)
    m, t, devices = c.model, c.pretrain, jax.device_count()
    rate = product_rate(m.dtype)
    lines = [
        f"devices      {devices} x {jax.devices()[0].device_kind}, mesh {dict(jax.sharding.get_mesh().shape)}",
        f"model        depth {m.depth}, width {m.width}, {m.num_heads} heads of {m.head_dim} over {m.num_kv_heads} kv, ff {m.mlp_dim}, "
        f"vocabulary {m.vocab_size}, context {m.context_len}, {m.dtype}",
        f"parameters   {cost.count_params(m):,} ({cost.count_matrix_params(m):,} in the matrices of the blocks)",
        f"state        {_mb(cost.state_bytes(m, t) / devices)} a device: weights and optimizer, float32",
        f"kv cache     {_mb(cost.cache_bytes(m, 1, m.context_len))} a row of {m.context_len} tokens",
        f"checkpoints  {_mb(cost.state_bytes(m, t))} each, {c.checkpoint.max_to_keep} kept and the best",
    ]
    for name, stage in (("pretrain", t), ("finetune", c.finetune)):
        if name in c.stages:
            lines += _stage(name, c, stage, rate * devices)
    return "\n".join(lines)


def _stage(name: str, c: Config, t: Train, rate: float) -> list[str]:
    tokens, flops = t.steps * t.batch_size * t.seq_len, cost.flops_per_token(c.model, t.seq_len)
    minutes = tokens * flops / (rate * UTILISATION) / 60
    holes = jax.default_backend() == "cpu" and not has_huge_pages()
    kept = "; up to twice that stays resident (see run.keep_memory)" if holes else ""
    return [
        f"{name:12} {t.steps:,} steps of {t.batch_size} x {t.seq_len} = {tokens:,} tokens; {flops / 1e6:.1f} MFLOP a token; about "
        f"{minutes:.1f} minutes, at {UTILISATION:.0%} of the {rate / 1e9:,.0f} GFLOP/s of a matrix product here",
        f"{'':12} {_mb(step_bytes(c, t))} a device for a step, by the compiler's plan{kept}",
    ]


def step_bytes(c: Config, t: Train) -> int:
    """Peak bytes of one training step on one device: the state, the batch, gradients and activations."""
    options = compiler_options(c.mesh)
    plan = (
        lower_train_step(c, t, jax.sharding.get_mesh())
        .compile(compiler_options=options)
        .memory_analysis()
    )
    return (
        plan.argument_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )


def product_rate(dtype: str, n: int = 1024) -> float:
    """FLOP/s of one device in a square matrix product, the best of five."""
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32).astype(a.dtype))
    product(a).block_until_ready()
    best = min(_seconds(lambda: product(a).block_until_ready()) for _ in range(5))
    return 2 * n**3 / best


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.2f} GB"
