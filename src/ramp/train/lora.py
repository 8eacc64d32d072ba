"""LoRA: matrices move within a low rank (Hu et al. 2021, arXiv:2106.09685).

    W = W0 + alpha / rank * a @ b

Only `a` and `b` learn, and only they have moments. They live in the optimizer, and the parameters
hold W itself, merged after every update. So sampling, evaluation, checkpoints, export and runs that
begin from this one know nothing of it. Their gradients follow from that of W by the chain rule.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec as P

from ramp.errors import UserError


class Pair(NamedTuple):
    """The two factors of the change of one stack of matrices [L, D, F]."""

    a: Array  # float32 [L, D, rank]
    b: Array  # float32 [L, rank, F], zero at first: W begins as W0


class LoraState(NamedTuple):
    """A `Pair` in place of every matrix, and the state of the optimizer that moves them."""

    pairs: Any
    inner: Any


def is_pair(node: Any) -> bool:
    """Whether a node of a tree is a `Pair`."""
    return isinstance(node, Pair)


def scale_by_lora(
    inner: optax.GradientTransformation, rank: int, alpha: float
) -> optax.GradientTransformation:
    """Move every matrix by what `inner` does to its two factors.

    inner: a whole optimizer, learning rate and sign included.
    """
    scale = alpha / rank

    def make_pair(path: tuple, w_ldf: Array) -> Pair:
        """Random `a`, from the name of the matrix; the parts of a split matrix stay where it is."""
        _, rows, columns = jax.typeof(w_ldf).sharding.spec
        depth, width, out = w_ldf.shape
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        key = jax.random.PRNGKey(zlib.crc32(name.encode()))
        a = jax.random.normal(key, (depth, width, rank), out_sharding=P(None, rows, None))
        b = jnp.zeros((depth, rank, out), out_sharding=P(None, None, columns))
        return Pair(a / width**0.5, b)

    def init(params: Any) -> LoraState:
        pairs = jax.tree_util.tree_map_with_path(make_pair, params)
        return LoraState(pairs, inner.init(pairs))

    def project(g_ldf: Array, pair: Pair) -> Pair:
        """The gradients of the factors from that of the matrix."""
        _, rows, columns = jax.typeof(g_ldf).sharding.spec
        a = jnp.einsum("ldf,lrf->ldr", g_ldf, pair.b, out_sharding=P(None, rows, None))
        b = jnp.einsum("ldr,ldf->lrf", pair.a, g_ldf, out_sharding=P(None, None, columns))
        return Pair(scale * a, scale * b)

    def multiply(pair: Pair, g_ldf: Array) -> Array:
        spec = jax.typeof(g_ldf).sharding.spec
        return scale * jnp.einsum("ldr,lrf->ldf", pair.a, pair.b, out_sharding=spec)

    def update(grads: Any, state: LoraState, params: Any = None) -> tuple[Any, LoraState]:
        pair_grads = jax.tree.map(project, grads, state.pairs)
        updates, inner_state = inner.update(pair_grads, state.inner, state.pairs)
        pairs = cast(Any, optax.apply_updates(state.pairs, updates))

        def change(g_ldf: Array, new: Pair, old: Pair) -> Array:
            return multiply(new, g_ldf) - multiply(old, g_ldf)

        changes = jax.tree.map(change, grads, pairs, state.pairs)
        return changes, LoraState(pairs, inner_state)

    return optax.GradientTransformation(init, cast(Any, update))


def label_targets(params: Any, targets: Sequence[str]) -> Any:
    """The group of every parameter: lora, frozen, or full for what is no part of the model.

    targets: names of matrices of the blocks; none: all of them. UserError for an unknown name.
    """
    known = {
        path[-1].key
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[0].key == "lm" and leaf.ndim == 3 and path[-1].key.startswith("w")
    }
    if unknown := set(targets) - known:
        raise UserError(
            f"lora_targets: the model has no {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(known))}"
        )

    def label(path: tuple, leaf: Array) -> str:
        # A process head is new and learns as a whole.
        if path[0].key != "lm":
            return "full"
        return "lora" if path[-1].key in (targets or known) else "frozen"

    return jax.tree_util.tree_map_with_path(label, params)
