"""Fingerprints of arrays that do not depend on the mesh: they verify a checkpoint in any sharding.

A fingerprint is two uint32 numbers a leaf, computed where the array is in one pass over its bits
(any dtype of 1, 2, 4 or 8 bytes). It detects one flipped bit and two swapped rows. It guards
against accidents, not against an adversary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return leaf path -> leaf.

    `None` is no leaf, so a field that a stage does not use takes no place in a checkpoint.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {}
    for path, leaf in pairs:
        named[jax.tree_util.keystr(path, simple=True, separator="/") or "."] = leaf
    if not named or len(named) != len(pairs):
        paths = [path for path, _ in pairs]
        raise ValueError(f"a state needs leaves, with paths that differ; this one has {paths}")
    return named


def _mix(x: jax.Array) -> jax.Array:
    # A bijection of uint32 in which every input bit moves about half of the output bits:
    # `lowbias32` of C. Wellons.
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _leaf_fingerprint(x: jax.Array) -> jax.Array:
    """Return [sum u, sum mix(u + c)] mod 2**32 with u = mix(word ^ mix(flat index)), uint32 [2].

    Sums modulo 2**32 commute, so that no split over devices changes them; `_mix` being a bijection,
    one changed word always changes the first sum; the index makes a swap visible.
    """
    # bitcast does not take booleans, and gives a second axis to words of 8 bytes.
    word = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(word.dtype.itemsize, jnp.uint32)
    word = jax.lax.bitcast_convert_type(word, unsigned).astype(jnp.uint32)
    index = jnp.uint32(0)
    for axis in range(word.ndim):
        stride = math.prod(word.shape[axis + 1 :]) & 0xFFFFFFFF
        index += jax.lax.broadcasted_iota(jnp.uint32, word.shape, axis) * jnp.uint32(stride)
    u = _mix(word ^ _mix(index))
    second = _mix(u + jnp.uint32(0x9E3779B9))  # any odd constant; this is 2**32 / golden ratio
    return jnp.stack([u.sum(dtype=jnp.uint32), second.sum(dtype=jnp.uint32)])


@jax.jit
def fingerprints(leaves: list) -> jax.Array:
    """Return uint32 [leaf, 2], computed on the device in one call; does not wait for it."""
    return jnp.stack([_leaf_fingerprint(x) for x in leaves])


def fingerprint(state: Any) -> dict[str, list[int]]:
    """Return leaf path -> two uint32 numbers, the same on every mesh. Waits for the device."""
    leaves = named_leaves(state)
    numbers = np.asarray(fingerprints(list(leaves.values()))).tolist()
    return dict(zip(leaves, numbers, strict=True))
