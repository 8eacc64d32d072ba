"""The kernels before and behind a TPU's attention, interpreted: the same heads as by norm, RoPE and transposes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from ramp.model import heads, transformer
from ramp.model.linear import ROWS

B, T, H, h = 2, 256, 4, 128


def inputs():
    """Rows of all heads, a norm's weight, angles, and a cotangent of heads, on the mesh in use."""
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    x_nf = jax.random.normal(keys[0], (B * T, H * h), out_sharding=P(ROWS, "model"))
    dy_bhtd = jax.random.normal(keys[1], (B, H, T, h), out_sharding=P(ROWS, "model"))
    weight_h = jax.random.normal(keys[2], (h,), out_sharding=P())
    return x_nf, weight_h, transformer.rope_angles(jnp.arange(T), h, 1e4), dy_bhtd


def plain(x_nf, weight_h, turn):
    x_bthd = jax.lax.reshape(x_nf, (B, T, H, h), out_sharding=P(ROWS, None, "model"))
    x_bthd = x_bthd if weight_h is None else transformer.rms_norm(x_bthd, weight_h)
    return jnp.swapaxes(transformer.rope(x_bthd, *turn) if turn else x_bthd, 1, 2)


@pytest.mark.parametrize(
    ("parts", "shape"),
    [("norm and turn", (1, 2, 2)), ("norm", (1, 1, 1)), ("turn", (1, 1, 1)), ("", (1, 1, 1))],
)
def test_entering_is_norm_rope_and_a_transpose_and_so_is_its_gradient(parts, shape):
    with jax.set_mesh(tiny.mesh(*shape)):
        x_nf, weight_h, turn, dy_bhtd = inputs()
        weight_h, turn = (
            (weight_h if "norm" in parts else None),
            (turn if "turn" in parts else None),
        )

        def kernel(x_nf, weight_h):
            whole = turn and transformer.whole_angles(*turn)
            return heads.enter_heads(x_nf, weight_h, whole, (T, h), 1e-6)

        def run(function):
            y, backward = jax.vjp(function, x_nf, weight_h)
            return y, backward(dy_bhtd)

        want = jax.jit(lambda: run(lambda x, w: plain(x, w, turn)))()
        tiny.assert_trees_close(jax.jit(lambda: run(kernel))(), want, 1e-4, 1e-5)


def test_leaving_undoes_entering_and_its_gradient_too():
    with jax.set_mesh(tiny.mesh(1, 2, 2)):
        x_nf, _, _, dy_bhtd = inputs()
        y_bhtd, enter_back = jax.vjp(lambda x: heads.enter_heads(x, None, None, (T, h), 0.0), x_nf)
        back_nf, leave_back = jax.vjp(lambda y: heads.leave_heads(y, (T, h)), y_bhtd)
        np.testing.assert_array_equal(back_nf, x_nf)
        np.testing.assert_array_equal(leave_back(enter_back(dy_bhtd)[0])[0], dy_bhtd)


def test_a_model_for_tpus_computes_what_it_computes_elsewhere():
    """Grouped queries, value tables, windows: hidden states and every gradient, all kernels interpreted."""
    shape = {"head_dim": 128, "num_heads": 2, "num_kv_heads": 1, "context_len": 128}
    c = tiny.model(**(tiny.ALL | shape | {"short_window": 48}))
    tokens_bt = jnp.asarray(tiny.tokens(1, 128))

    def run(backend, params):
        def loss(params):
            x_nd = transformer.compute_hidden(replace(c, attention=backend), params, tokens_bt)
            return jnp.sum(jnp.sin(x_nd)), x_nd

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    with jax.set_mesh(tiny.mesh()):
        params = tiny.lively(c)
        tiny.assert_trees_close(run("splash", params), run("xla", params), 1e-3, 1e-3)
