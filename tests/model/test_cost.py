"""The arithmetic of `model.cost` against the arrays that `init`, the optimizer and the sampler really make."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ramp import config
from ramp.decode import sample
from ramp.model import cost, transformer
from ramp.train import memory, mesh, optim
from ramp.train.state import init_state

SMALL = config.Model(
    depth=3,
    width=64,
    head_dim=16,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=96,
    vocab_size=272,
    context_len=64,
    dtype="float32",
)
SWITCHES = [
    {},
    {"tie_embeddings": True},
    {"mlp": "relu2", "qk_norm": False},
    {"value_embeds": True},
    {"x0_scalars": True, "smear": True, "window_pattern": "SSL", "short_window": 16},
    {"depth": 0},
    {
        "token_mixer": "window",
        "rope": False,
        "qk_norm": False,
        "norm": False,
        "residual": False,
    },
    {"token_mixer": "mean", "rope": False, "qk_norm": False, "mlp": "none", "mlp_dim": 0},
]


def bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.fixture(autouse=True)
def one_device():
    mesh.make_mesh(config.Mesh(), jax.devices()[:1])


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_param_count_is_the_number_of_weights_made(switches):
    c = replace(SMALL, **switches)
    params = jax.eval_shape(lambda: transformer.init_params(c, jax.random.PRNGKey(0)))
    assert cost.count_params(c) == sum(leaf.size for leaf in jax.tree.leaves(params))
    matrices = [
        w.size for w in jax.tree.leaves(params["blocks"]) if w.ndim == 3 and min(w.shape[1:]) > 12
    ]
    if not c.value_embeds:
        assert cost.count_matrix_params(c) == sum(matrices)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("ema", [0.0, 0.99])
@pytest.mark.parametrize("switches", SWITCHES[:5], ids=str)
def test_state_bytes_are_those_of_a_state(optimizer, ema, switches):
    c = replace(SMALL, **switches)
    t = config.Train(optimizer=optimizer, ema_decay=ema, steps=10)

    def make():
        return init_state(
            {"lm": transformer.init_params(c, jax.random.PRNGKey(0))},
            optim.make_optimizer(t),
            0,
            ema > 0,
        )

    made = bytes_of(jax.eval_shape(make))
    assert 0 <= made - memory.state_bytes(c, t) < 128  # the key, the guard and the counters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_bytes_are_those_of_a_stream(dtype):
    c = replace(SMALL, dtype=dtype)
    params = transformer.init_params(c, jax.random.PRNGKey(0))
    stream = sample.prefill_prompts(c, params, [[1, 2, 3]] * 2, [5, 6])
    assert cost.cache_bytes(c, 2, stream.cache[0][0].shape[3]) == bytes_of(stream.cache)


@pytest.mark.parametrize("window_pattern", ["L", "SL", "SSSL"])
def test_flops_count_every_product_and_every_visible_pair(window_pattern):
    c, seq = replace(SMALL, window_pattern=window_pattern, short_window=16), 48
    D, h = c.width, c.num_heads * c.head_dim
    per_token = 2 * (D * h + 2 * D * c.num_kv_heads * c.head_dim + h * D + 3 * D * c.mlp_dim)
    forward = seq * (c.depth * per_token + 2 * D * c.vocab_size)
    t, s = np.indices((seq, seq))
    for i in range(c.depth):
        short = window_pattern[i % len(window_pattern)] == "S" and i < c.depth - 1
        visible = (s <= t) & (t - s < (16 if short else seq))
        forward += 2 * 2 * h * visible.sum()  # scores and the mean of the values
    assert cost.flops_per_token(c, seq) == round(3 * forward / seq)
