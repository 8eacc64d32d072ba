"""Small models, meshes and batches that the tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from ramp.config import Model
from ramp.model import transformer
from ramp.train.mesh import AXES

# Every switch that changes what the model computes, at once.
ALL = {
    "tie_embeddings": False,
    "window_pattern": "SL",
    "short_window": 8,
    "logit_softcap": 5.0,
    "value_embeds": True,
    "x0_scalars": True,
    "smear": True,
}
# The models before attention, of the ladder.
WINDOW = {
    "token_mixer": "window",
    "rope": False,
    "qk_norm": False,
    "norm": False,
    "residual": False,
    "mlp": "relu2",
}
MEAN = {"token_mixer": "mean", "rope": False, "qk_norm": False, "mlp": "none"}


def model(**over) -> Model:
    """Two layers, width 64, grouped-query; every key that a rule would fill in is set."""
    shape = {
        "depth": 2,
        "width": 64,
        "head_dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mlp_dim": 128,
        "vocab_size": 320,
        "context_len": 64,
        "short_window": 8,
        "dtype": "float32",
        "attention": "xla",
    }
    return Model(**(shape | over))


def mesh(replica: int = 1, data: int = 1, model: int = 1) -> jax.sharding.Mesh:
    """Use it as `with jax.set_mesh(mesh(...))`, which leaves no trace for the next test."""
    devices = jax.devices()[: replica * data * model]
    return jax.make_mesh(
        (replica, data, model), AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices
    )


def init(c: Model, seed: int = 0) -> dict:
    return jax.jit(lambda: transformer.init_params(c, jax.random.PRNGKey(seed)))()


def lively(c: Model, seed: int = 0, noise: float = 0.1) -> dict:
    """Parameters with noise on every one: at initialisation many are 0 or 1, which would hide what they do."""

    def make():
        params = transformer.init_params(c, jax.random.PRNGKey(seed))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.PRNGKey(seed + 1), len(leaves))
        stirred = [
            w + noise * jax.random.normal(k, w.shape, out_sharding=jax.typeof(w).sharding.spec)
            for w, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, stirred)

    return jax.jit(make)()


def tokens(rows: int, length: int, vocab: int = 320, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, (rows, length)).astype(np.int32)


def batch(rows: int, length: int, vocab: int = 320, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens, the next one as the target, weights that differ from row to row and from token to token."""
    rng = np.random.default_rng(seed)
    stream = rng.integers(0, vocab, (rows, length + 1)).astype(np.int32)
    weights = rng.random((rows, length)) < rng.random((rows, 1))
    return {
        "tokens": stream[:, :-1],
        "targets": stream[:, 1:],
        "weights": weights.astype(np.float32),
    }


def logits(c: Model, params: dict, tokens_bt, segments_bt=None) -> jax.Array:
    """[B, T, V] on one device."""
    x_nd = transformer.compute_hidden(c, params, jnp.asarray(tokens_bt), segments_bt)
    return transformer.unembed(c, params, x_nd).reshape(*tokens_bt.shape, c.vocab_size)


def assert_trees_close(got, want, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, atol), got, want
    )
