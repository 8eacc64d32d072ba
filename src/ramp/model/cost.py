"""What a model costs: parameters, floating-point operations, bytes of its cache."""

import math

import jax

from ramp.config import Model, count_matrix_params
from ramp.model.transformer import is_short_layer, param_shapes

__all__ = ["count_matrix_params"]

FLOAT32 = 4  # bytes


def count_params(c: Model) -> int:
    """Return the number of weights of the model, as its modules declare them."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(c)))


def compute_bytes(c: Model) -> int:
    """Return the bytes of one number in the compute dtype."""
    return 2 if c.dtype == "bfloat16" else FLOAT32


def flops_per_token(c: Model, seq: int) -> int:
    """Return the operations of training, forward and backward, per token of a row of `seq`.

    6 N for the N weights a token is multiplied with (Kaplan et al. 2020, 2.1), the head included
    and tables left out, plus 12 H h for each key a token attends to in each layer. Causal: what a
    mask hides is not counted. Recomputation (remat) is not counted either: utilisation is of the
    useful work.
    """
    matrices = count_matrix_params(c) + c.width * c.vocab_size
    return 6 * matrices + attention_flops_per_token(c, seq)


def attention_flops_per_token(c: Model, seq: int) -> int:
    """Return the part of `flops_per_token` that is scores and their products with the values."""
    keys = 0.0
    for i in range(c.depth):
        keys += _mean_visible(seq, c.short_window if is_short_layer(c, i) else seq)
    return round(12 * c.num_heads * c.head_dim * keys)


def _mean_visible(seq: int, window: int) -> float:
    """Keys that a token of a causal row attends to on average: position t has min(t + 1, w)."""
    w = min(window, seq)
    return (w * (w + 1) / 2 + (seq - w) * w) / seq


def cache_bytes(c: Model, batch: int, size: int) -> int:
    """Return the bytes of keys and values of `batch` rows with room for `size` tokens."""
    numbers = 2 * c.depth * batch * size * c.num_kv_heads * c.head_dim
    return numbers * compute_bytes(c)
