"""What training takes in memory: the state exactly, a step by arithmetic."""

import math
from dataclasses import replace

import jax

from ramp.config import Model, Train
from ramp.model.cost import FLOAT32, compute_bytes, count_matrix_params, count_params
from ramp.model.linear import trace_shapes
from ramp.model.transformer import param_shapes
from ramp.train.optim import make_optimizer
from ramp.train.state import State, init_state

LANES = 128  # the last axis of an array on a TPU is padded to so many numbers


def state_bytes(c: Model, t: Train) -> int:
    """Return what stays on the devices between steps, all of them together.

    Weights, the optimizer's moments and the average, as they are declared; nothing is allocated.
    """

    def make(params: dict) -> State:
        return init_state({"lm": params}, make_optimizer(t), seed=0, average=t.ema_decay > 0)

    state = trace_shapes(make, param_shapes(c))
    leaves = jax.tree.leaves(state)  # sizes are global: devices share them
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def step_bytes(c: Model, t: Train, data: int, model: int, replica: int = 1) -> float:
    """Return peak bytes of one training step on one TPU of a mesh, by arithmetic.

    `ramp plan --search` ranks by it before anything is compiled. State, gradients, what blocks keep
    for the backward pass, and the work of head and block. Each term was read off compiled programs,
    which the tests hold it to.
    """
    half = compute_bytes(c)
    split = data * model  # of weights and optimizer; replicas hold copies
    rows = t.batch_size / t.grad_accum_steps / (data * replica)
    tokens = rows * t.seq_len
    params = count_params(c)
    head_params = c.width * c.vocab_size / model
    gradients = FLOAT32 * params / split
    if t.grad_accum_steps > 1:
        # Their sum, and cast weights: the compiler moves them out of the loop.
        gradients += (FLOAT32 + half) * params / split
    logits = (c.loss_chunk or t.seq_len) * rows * c.vocab_size / model
    # The head: logits forward, their gradient backward (a place each), the matrix gathered, its
    # gradient before and after a piece (or a microbatch) is added, the hidden states and their
    # gradient.
    head = (FLOAT32 + half) * logits
    head += (half + 2 * FLOAT32) * head_params
    head += (FLOAT32 + 2 * half) * tokens * c.width
    # A block: its weights gathered, their gradient before it is scattered, and all that remat makes
    # again or, without it, cotangents of about half that. What fits takes the place of the logits.
    work = tokens * activation_bytes(replace(c, remat="none"), model)
    if c.remat == "none":
        work /= 2
    matrix_params = count_matrix_params(c) / max(c.depth, 1) / model
    block = (half + FLOAT32) * matrix_params + work
    kept = tokens * c.depth * activation_bytes(c, model)
    return state_bytes(c, t) / split + gradients + kept + head + max(0, block - FLOAT32 * logits)


def activation_bytes(c: Model, model: int) -> float:
    """Return what a block keeps for the backward pass, bytes a token of a device.

    `full`: the block's input. `saved`: attention's output and log-normaliser too, its heads padded
    to whole lanes, once for each kind of window. `none`: what every derivative asks for; that of a
    norm wants two float32 copies of its input.
    """
    half = compute_bytes(c)
    padded_dim = -(-c.head_dim // LANES) * LANES
    heads = c.num_heads / model * padded_dim
    kv_heads = c.num_kv_heads / model * padded_dim
    if c.remat != "none":
        windows = len(set(c.window_pattern)) if c.remat == "saved" else 0
        return half * c.width + windows * (half * heads + FLOAT32 * c.num_heads / model)
    norms = 2 * (2 * FLOAT32 + half) * c.width
    norms += c.qk_norm * 2 * FLOAT32 * (heads + kv_heads)
    attention = half * (2 * heads + 2 * kv_heads + c.num_heads * c.head_dim / model)
    mlp_arrays = {"none": 0, "relu2": 3, "swiglu": 6}[c.mlp]
    return norms + attention + mlp_arrays * half * c.mlp_dim / model
