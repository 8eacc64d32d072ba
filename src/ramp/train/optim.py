"""Optimizers: Muon for the matrices of the blocks, AdamW for the rest, on one schedule.

`make_optimizer` returns an ordinary optax transformation: its updates are what is added to the
parameters, with the learning rate, its schedule and the minus sign inside.
"""

import math
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ramp.config import Train
from ramp.train.lora import label_targets, scale_by_lora


def make_schedule(t: Train) -> optax.Schedule:
    """Return the fraction of the peak rate as a function of the number of updates so far.

    Warmup-stable-decay (Hu et al. 2024, MiniCPM): up in a straight line, level, down in a straight
    line to `final_lr_fraction`.
    """
    warmup_steps = max(t.warmup_steps, 1)
    decay_steps = max(t.decay_fraction * t.steps, 1)

    def schedule(count: Any) -> jax.Array:
        warmup = (count + 1) / warmup_steps
        left = jnp.clip((t.steps - count) / decay_steps, 0.0, 1.0)
        decay = t.final_lr_fraction + (1 - t.final_lr_fraction) * left
        return jnp.minimum(jnp.minimum(warmup, 1.0), decay)

    return schedule


def make_optimizer(t: Train, dtype: str = "float32") -> optax.GradientTransformation:
    """Return the transformation of one stage. What a parameter is, is read off its path.

    dtype: what Muon's products are computed in, the model's own: at 2,048 tokens a step they are a
    third of its work.
    """
    full = make_full_optimizer(t, dtype)
    if not t.lora_rank:
        return full
    pairs = optax.chain(
        optax.clip_by_global_norm(t.grad_clip_norm) if t.grad_clip_norm else optax.identity(),
        optax.scale_by_adam(t.beta1, t.beta2, eps=1e-10),
        optax.scale(t.adam_lr * t.lr_scale),
        optax.scale_by_learning_rate(make_schedule(t)),
    )
    groups: dict[Hashable, optax.GradientTransformation] = {
        "lora": scale_by_lora(pairs, t.lora_rank, t.lora_alpha),
        "frozen": optax.set_to_zero(),
        "full": full,
    }
    return optax.partition(groups, partial(label_targets, targets=t.lora_targets))


def make_full_optimizer(t: Train, dtype: str) -> optax.GradientTransformation:
    """Return the transformation by which every parameter learns."""
    adam = optax.scale_by_adam(t.beta1, t.beta2, eps=1e-10)
    decay = optax.add_decayed_weights(t.weight_decay)
    if t.optimizer == "adamw":
        matrix = optax.chain(adam, decay, optax.scale(t.adam_lr))
    else:
        matrix = optax.chain(scale_by_muon(t.momentum, dtype), decay, optax.scale(t.muon_lr))
    # Decay is for the matrices alone: tables, gains and gates have no scale to spare.
    groups: dict[Hashable, optax.GradientTransformation] = {
        "matrix": matrix,
        "embed": optax.chain(adam, optax.scale(t.embed_lr)),
        "head": optax.chain(adam, optax.scale(t.head_lr)),
        "scalar": optax.chain(adam, optax.scale(t.scalar_lr)),
    }
    return optax.chain(
        optax.clip_by_global_norm(t.grad_clip_norm) if t.grad_clip_norm else optax.identity(),
        optax.partition(groups, label_params),
        optax.scale(t.lr_scale),
        # The peak rates are in the groups; the schedule is the fraction of them, and the sign.
        optax.scale_by_learning_rate(make_schedule(t)),
    )


def label_params(params: Any) -> Any:
    """Return the group of every parameter.

    "matrix": stacked [L, D, F] weights of the blocks. "embed": tables. "head": the matrix to the
    logits. "scalar": gains and gates.
    """

    def label(path: tuple, leaf: jax.Array) -> str:
        name = path[-1].key
        if name.endswith("table"):
            return "embed"
        # The gate is a matrix by shape, but too narrow to be orthogonalised.
        if leaf.ndim == 3 and name != "value_gate":
            return "matrix"
        return "head" if leaf.ndim == 2 and name == "weight" else "scalar"

    return jax.tree_util.tree_map_with_path(label, params)


# --------------------------------------------------------------------------------------------- Muon
class MuonState(NamedTuple):
    """Momentum of every matrix, in the shape of the parameters."""

    momentum: Any


def scale_by_muon(beta: float, dtype: str = "float32") -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised matrix by matrix, for stacked weights [L, D, F].

    Jordan et al. 2024. Scaled by sqrt(max(1, F/D)), for weights stored as (in, out).
    optax.contrib.muon would serve on one device; under Explicit sharding its products contract a
    split axis with itself and are refused.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        def average(m: jax.Array, g: jax.Array) -> jax.Array:
            return beta * m + (1 - beta) * g

        momentum = jax.tree.map(average, state.momentum, grads)
        # Nesterov: look one step ahead along the gradient.
        ahead = jax.tree.map(average, momentum, grads)
        return jax.tree.map(partial(orthogonalize, dtype=dtype), ahead), MuonState(momentum)

    return optax.GradientTransformation(init, cast(Any, update))


# Five odd polynomials a x + b x³ + c x⁵ that together send singular values in [1e-3, 1] to about 1:
# Polar Express, Amsel et al. 2025 (arXiv:2505.16932), table of the greedy minimax solution.
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(g_ldf: jax.Array, dtype: str = "float32") -> jax.Array:
    """Return the nearest (semi-)orthogonal matrix of each of the L, times sqrt(max(1, F/D)).

    The sharding is kept. A matrix is orthogonalised whole by one device, so that a slice of n
    devices does 1/n of the work instead of n times the same. An all-to-all brings each device the
    pieces of its matrices (the stack is padded to a multiple of the devices), a second one takes
    them back. Replicas repeat each other's work: nothing but gradients crosses slices.
    """
    spec = jax.typeof(g_ldf).sharding.spec
    mesh = jax.sharding.get_abstract_mesh()
    split = []
    for dim, axis in enumerate(spec):
        if axis is not None and mesh.shape[axis] > 1:
            split.append((dim, axis))

    def run(x: jax.Array) -> jax.Array:
        # Each exchange trades a split of the matrix for a split of the stack.
        for dim, axis in split:
            x = jax.lax.all_to_all(x, axis, split_axis=0, concat_axis=dim, tiled=True)
        x = polar_factor(x, dtype)
        for dim, axis in reversed(split):
            x = jax.lax.all_to_all(x, axis, split_axis=dim, concat_axis=0, tiled=True)
        return x

    devices = math.prod(mesh.shape[axis] for _, axis in split)
    padded = jnp.pad(g_ldf.astype(dtype), ((0, -len(g_ldf) % devices), (0, 0), (0, 0)))
    result = jax.shard_map(run, in_specs=spec, out_specs=spec, check_vma=False)(padded)
    return result[: len(g_ldf)].astype(jnp.float32)


def polar_factor(g_ldf: jax.Array, dtype: str) -> jax.Array:
    """`orthogonalize` for matrices that this device holds whole; products in `dtype`."""
    _, D, F = g_ldf.shape
    x = g_ldf.astype(jnp.float32)
    # The smaller side comes first, so that x x^T is as small as it can be.
    x = x if D <= F else x.swapaxes(1, 2)
    # The Frobenius norm is no less than the largest singular value; 1.01 allows for rounding.
    x /= 1.01 * jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + 1e-7
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    # XLA:CPU would push the transpose into slow products.
    x = jax.lax.optimization_barrier(x.astype(dtype))
    for a, b, c in POLAR:
        # a x + b (x x^T) x + c (x x^T)² x
        s = dot("lij,lkj->lik", x, x).astype(dtype)
        s = b * s + c * dot("lij,ljk->lik", s, s).astype(dtype)
        x = a * x + dot("lij,ljk->lik", s, x).astype(dtype)
    x = x if D <= F else x.swapaxes(1, 2)
    return x.astype(g_ldf.dtype) * max(1.0, F / D) ** 0.5
