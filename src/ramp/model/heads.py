"""Queries, keys and values on their way into a TPU's attention kernel, and its output back.

A product gives rows of all heads, [N, H*h]; the kernel takes [B, H, T, h]. Left to XLA, norm and
RoPE over heads put tokens into the lanes of all arrays around them, and copies between layouts took
40% of a step. Kernels of ours read the one and write the other, norm and turn in between, and do
the same backward. Off a TPU they run interpreted, for tests.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ramp.model.linear import AXES, ROWS, platform

BLOCK = 128  # tokens at once, of all heads
LANES = 128
Shape = tuple[int, int]  # tokens of a row T, channels of a head h


def fits(head_dim: int, length: int) -> bool:
    """Whether a head fills whole lanes, and a row of tokens whole blocks."""
    return head_dim % LANES == 0 and length % BLOCK == 0


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def enter_heads(x_nf, weight_h, turn, shape: Shape, eps: float) -> jax.Array:
    """Return [B, H, T, h] of rows [B*T, H*h]: each head by its rms, times weight, turned by RoPE.

    weight_h: float32, or None for no norm. turn: cos and sin of whole heads, each [T, h] float32,
    the first half of the sines negative; or None for no RoPE.
    """
    return _enter(x_nf, weight_h, turn, shape, eps)[0]


def _enter(x_nf, weight_h, turn, shape, eps):
    kernel = partial(_enter_kernel, eps)
    (y_bhtd,) = _call(kernel, shape, (x_nf,), weight_h, turn, ["heads"])
    return y_bhtd, (x_nf, weight_h, turn)


def _enter_backward(shape, eps, saved, dy_bhtd):
    x_nf, weight_h, turn = saved
    kernel = partial(_enter_backward_kernel, eps)
    if weight_h is None:
        (dx_nf,) = _call(kernel, shape, (dy_bhtd,), None, turn, ["rows"])
        return dx_nf, None, None
    dx_nf, dw_h = _call(kernel, shape, (dy_bhtd, x_nf), weight_h, turn, ["rows", "sum"])
    return dx_nf, dw_h, None


enter_heads.defvjp(_enter, _enter_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def leave_heads(o_bhtd: jax.Array, shape: Shape) -> jax.Array:
    """Return rows of all heads, [B*T, H*h], of [B, H, T, h]."""
    # It is what the backward pass of `enter_heads` does without norm and RoPE.
    return _enter_backward(shape, 0.0, (None, None, None), o_bhtd)[0]


leave_heads.defvjp(
    lambda o_bhtd, shape: (leave_heads(o_bhtd, shape), None),
    lambda shape, _, do_nf: (enter_heads(do_nf, None, None, shape, 0.0),),
)


def _call(kernel: Callable, shape: Shape, arrays, weight_h, turn, results):
    """Run a kernel over blocks of tokens on each device.

    The kernel is given references to `arrays`, the values of the weight and of cos and sin, and
    references to `results`: "rows" [N, F], "heads" [B, H, T, h] or "sum", a [h] over all blocks.
    """
    # Imported here: where there are no TPUs it takes a second.
    from jax.experimental import pallas as pl

    T, h = shape
    small = [] if weight_h is None else [weight_h[None]]
    small += turn or []

    def run(*args):
        first = args[0]
        tokens = first.shape[0] * (1 if first.ndim == 2 else T)
        width = first.shape[1] * (1 if first.ndim == 2 else h)
        a_row = T // BLOCK  # blocks
        by_head = (tokens // T, width // h, T, h)
        whole = pl.BlockSpec((1, h), lambda i: (0, 0))
        places = pl.BlockSpec((BLOCK, h), lambda i: (i % a_row, 0))
        kinds = {
            "rows": ((tokens, width), pl.BlockSpec((BLOCK, width), lambda i: (i, 0))),
            "heads": (
                by_head,
                pl.BlockSpec((None, width // h, BLOCK, h), lambda i: (i // a_row, 0, i % a_row, 0)),
            ),
            "sum": ((1, h), whole),
        }
        types = {"rows": first.dtype, "heads": first.dtype, "sum": jnp.float32}
        specs = [kinds["rows" if a.ndim == 2 else "heads"][1] for a in args[: len(arrays)]]
        specs += [whole if a.shape[0] == 1 else places for a in args[len(arrays) :]]

        def body(*refs):
            ins, rest = refs[: len(arrays)], refs[len(arrays) :]
            values = [ref[...] for ref in rest[: len(small)]]
            w = None if weight_h is None else values.pop(0)
            kernel(ins, w, values or None, rest[len(small) :])

        out = pl.pallas_call(
            body,
            grid=(tokens // BLOCK,),
            in_specs=specs,
            out_specs=[kinds[name][1] for name in results],
            out_shape=[jax.ShapeDtypeStruct(kinds[name][0], types[name]) for name in results],
            interpret=platform() == "cpu",
        )(*args)
        named = zip(results, out, strict=True)
        return [jax.lax.psum(a[0], AXES) if name == "sum" else a for name, a in named]

    split = P(ROWS, "model")
    in_specs = (split,) * len(arrays) + (P(),) * len(small)
    out_specs = [P() if name == "sum" else split for name in results]
    sharded = jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return sharded(*arrays, *small)


def _divide_by_rms(x, eps):
    """x / rms(x), and 1 / rms(x)."""
    scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * scale, scale


def _swap_halves(x):
    from jax.experimental.pallas import tpu

    return tpu.roll(x, x.shape[-1] // 2, 1)


def _enter_kernel(eps, ins, weight, turn, outs):
    (x_ref,), (y_ref,) = ins, outs
    h = y_ref.shape[-1]
    for i in range(y_ref.shape[0]):
        y = x_ref[:, i * h : (i + 1) * h].astype(jnp.float32)
        if weight is not None:
            y = _divide_by_rms(y, eps)[0] * weight
        if turn:
            y = y * turn[0] + _swap_halves(y) * turn[1]
        y_ref[i] = y.astype(y_ref.dtype)


def _enter_backward_kernel(eps, ins, weight, turn, outs):
    from jax.experimental import pallas as pl

    dy_ref, dx_ref = ins[0], outs[0]
    h = dy_ref.shape[-1]
    sums = jnp.zeros((1, h), jnp.float32)
    for i in range(dy_ref.shape[0]):
        part = slice(i * h, (i + 1) * h)
        d = dy_ref[i].astype(jnp.float32)
        if turn:
            # The transpose of a turn turns back.
            d = d * turn[0] + _swap_halves(d * turn[1])
        if weight is not None:
            x, scale = _divide_by_rms(ins[1][:, part].astype(jnp.float32), eps)
            sums += jnp.sum(d * x, axis=0, keepdims=True)
            d = d * weight
            d = scale * (d - x * jnp.mean(d * x, axis=-1, keepdims=True))
        dx_ref[:, part] = d.astype(dx_ref.dtype)
    if weight is not None:
        # Blocks come one after the other, and all add to the same place.
        before = jnp.where(pl.program_id(0) == 0, 0.0, outs[1][...])
        outs[1][...] = before + sums
