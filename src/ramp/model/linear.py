"""Matrix products with weights: the only place where weights and their gradients cross devices.

The communication is written out, inside shard_map: the weight is cast and then gathered over
"data", its gradient is scattered in float32. Left to the partitioner, TPU compilers turned the
scatters into all-reduces of whole weights or into loops of small permutes.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

AXES = ("replica", "data", "model")
ROWS = ("replica", "data")  # the mesh axes that split the batch
# To trace shapes and specs on, where no device is wanted.
TRACE_MESH = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Explicit,) * 3)

# x @ w contracts D; the two products of the backward pass contract F and N.
CONTRACT_F = (((1,), (1,)), ((), ()))
CONTRACT_N = (((1,), (0,)), ((), ()))


def trace_shapes(make: Callable, *args: Any) -> Any:
    """Return shapes, dtypes and specs of what `make(*args)` would return; no device is needed."""

    def trace() -> Any:
        with jax.sharding.use_abstract_mesh(TRACE_MESH):
            return jax.eval_shape(make, *args)

    # In a thread of its own: the current mesh belongs to the thread, and jax refuses a mesh of
    # another size inside it.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(trace).result()


def platform() -> str:
    """Return "tpu", "gpu" or "cpu": of the devices that are traced for.

    In a plan these are not the devices of this process.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x_nd: jax.Array, w_df: jax.Array, split: str, out_dtype: str | None = None) -> jax.Array:
    """Return x @ w, [N, F], with float32 accumulation, in x's dtype or in `out_dtype`.

    x_nd: [N, D] in the compute dtype, N split over the batch axes.
    w_df: [D, F], the float32 master weight.
    split: which side of the matrix is split over the mesh axis "model": "out" (F; the spec is
    P("data", "model")) or "in" (D; P("model", "data"), and the partial sums are all-reduced).

    The derivative is ours as well: the stock one multiplies a float32 cotangent with a bfloat16
    matrix, slower on every backend than bfloat16 in, float32 out.
    """
    return _linear_forward(x_nd, w_df, split, out_dtype)[0]


def _linear_forward(x_nd, w_df, split, out_dtype):
    x_spec, y_spec = _activation_specs(split)
    w_spec = jax.typeof(w_df).sharding.spec

    def multiply(x_nd, w_df):
        w_df = gather_weight(w_df, w_spec, x_nd.dtype)
        y_nf = jnp.dot(x_nd, w_df, preferred_element_type=jnp.float32)
        # Cast before the sum over "model": half the bytes travel.
        y_nf = y_nf.astype(out_dtype or x_nd.dtype)
        return y_nf if split == "out" else jax.lax.psum(y_nf, "model")

    run = jax.shard_map(multiply, in_specs=(x_spec, w_spec), out_specs=y_spec, check_vma=False)
    return run(x_nd, w_df), (x_nd, w_df)


def _linear_backward(split, out_dtype, saved, dy_nf):
    x_nd, w_df = saved
    x_spec, y_spec = _activation_specs(split)
    w_spec = jax.typeof(w_df).sharding.spec
    dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

    def multiply(x_nd, w_df, dy_nf):
        gathered_df = gather_weight(w_df, w_spec, x_nd.dtype)
        dx_nd = dot(dy_nf, gathered_df, CONTRACT_F).astype(x_nd.dtype)
        dw_df = dot(transpose_for_product(x_nd), dy_nf, CONTRACT_N)
        if split == "out":
            dx_nd = jax.lax.psum(dx_nd, "model")
        return dx_nd, scatter_grad(dw_df, w_spec, w_df.dtype)

    in_specs = (x_spec, w_spec, y_spec)
    run = jax.shard_map(multiply, in_specs=in_specs, out_specs=(x_spec, w_spec), check_vma=False)
    return run(x_nd, w_df, dy_nf.astype(x_nd.dtype))


linear.defvjp(_linear_forward, _linear_backward)


def _activation_specs(split: str) -> tuple[P, P]:
    """Specs of x and y."""
    if split == "out":
        return P(ROWS), P(ROWS, "model")
    return P(ROWS, "model"), P(ROWS)


def gather_weight(w_df: jax.Array, spec: P, dtype: Any) -> jax.Array:
    """Inside shard_map: return a device's part of a weight, cast, then whole along "data"."""
    w_df = w_df.astype(dtype)  # first, for half the bytes
    if "data" not in spec:
        return w_df
    return jax.lax.all_gather(w_df, "data", axis=spec.index("data"), tiled=True)


def scatter_grad(dw_df: jax.Array, spec: P, dtype: Any) -> jax.Array:
    """Inside shard_map: sum a weight's gradient over all devices; each keeps its part."""
    if "data" in spec:
        stages = scatter_groups(jax.lax.axis_size("data"))
        # libtpu leaves a second stage a scatter only along rows; the product is written turned.
        is_turned = len(stages) > 1 and spec.index("data") == 1
        dw_df = dw_df.T if is_turned else dw_df
        axis = 0 if is_turned else spec.index("data")
        for groups in stages:
            if len(stages) > 1:
                # Rows first in memory too: of one that lies otherwise the second stage became an
                # all-reduce (v6e:4x4, libtpu 0.0.42).
                dw_df = with_layout_constraint(dw_df, Layout(major_to_minor=(0, 1)))
            dw_df = jax.lax.psum_scatter(
                dw_df, "data", scatter_dimension=axis, axis_index_groups=groups, tiled=True
            )
        # Without the barrier the compiler turns it before the scatter again.
        dw_df = jax.lax.optimization_barrier(dw_df).T if is_turned else dw_df
    return jax.lax.psum(dw_df, "replica").astype(dtype)


def scatter_groups(n: int) -> list[list[list[int]] | None]:
    """Return groups of the n devices to scatter over, one list after the other.

    On TPUs n = a*b devices go first over a, then over b, for the same bytes received: on square
    tori (v5e:4x4, v4:2x2x4) libtpu 0.0.42 turns one scatter over all chips, of whatever shape, into
    an all-reduce of the whole, and leaves scatters over a part of them alone. On planes that are no
    squares (v6e:2x4, v6e:4x8) one scatter stays one.
    """
    a = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    is_oblong = lie_in_plane() and math.isqrt(n) ** 2 != n
    if platform() != "tpu" or n < 8 or a == 1 or is_oblong:
        return [None]
    b = n // a
    along = [[i * b + j for j in range(b)] for i in range(a)]
    across = [list(column) for column in zip(*along, strict=True)]
    return [across, along]


def lie_in_plane() -> bool:
    """Whether the chips that are traced for have two axes (v5e, v6e) and not three."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and "lite" in device.device_kind


def transpose_for_product(x_nd: jax.Array) -> jax.Array:
    """Return [D, N], for a product over N.

    XLA:CPU's bfloat16 products (YNNPACK) want it so in memory too: without a copy a weight's
    gradient takes twice as long. Elsewhere the product reads x where it is.
    """
    if platform() != "cpu" or x_nd.dtype != jnp.bfloat16:
        return x_nd.T
    return with_layout_constraint(x_nd.T, Layout(major_to_minor=(0, 1)))
