"""What training takes in memory: the state exactly, a step by arithmetic or by the compiler."""

import math
from collections.abc import Sequence
from dataclasses import replace

import jax

from ramp.config import Config, Model, Train, get, replace_at
from ramp.errors import UserError
from ramp.model.cost import FLOAT32, compute_bytes, count_matrix_params, count_params
from ramp.model.linear import trace_shapes
from ramp.model.transformer import param_shapes
from ramp.stages import STAGES
from ramp.train.mesh import compiler_options
from ramp.train.optim import make_optimizer
from ramp.train.processes import is_writer
from ramp.train.state import State, init_state
from ramp.train.trainer import lower_train_step

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

    `full`: the block's input. `saved`: rows of value tables too, and attention's output and
    log-normaliser, its heads padded to whole lanes, once for each kind of window. `none`: what
    every derivative asks for; that of a norm wants two float32 copies of its input.
    """
    half = compute_bytes(c)
    padded_dim = -(-c.head_dim // LANES) * LANES
    heads = c.num_heads / model * padded_dim
    kv_heads = c.num_kv_heads / model * padded_dim
    if c.remat != "none":
        is_saved = c.remat == "saved"
        windows = len(set(c.window_pattern)) if is_saved else 0
        values = half * kv_heads if is_saved and c.value_embeds else 0
        return half * c.width + values + windows * (half * heads + FLOAT32 * c.num_heads / model)
    norms = 2 * (2 * FLOAT32 + half) * c.width
    norms += c.qk_norm * 2 * FLOAT32 * (heads + kv_heads)
    attention = half * (2 * heads + 2 * kv_heads + c.num_heads * c.head_dim / model)
    mlp_arrays = {"none": 0, "relu2": 3}.get(c.mlp, 6)
    return norms + attention + mlp_arrays * half * c.mlp_dim / model


# --- fitting a step to the machine

# What XLA:CPU's kernels hold beside the plan, measured: packed matrices and pages not yet returned.
CPU_FACTOR, CPU_BYTES = 1.08, 8e6
# By how much compilers were found to need more than `step_bytes` and the scores say.
CERTAIN = 1.5
# Rows of the model for a row of the batch, and copies of the weights beside the state.
ROWS_OF = {"dpo": 2}
COPIES_OF = {"dpo": 2, "reinforce": 1, "synthesize": 3}


def plan_step_bytes(c: Config, t: Train) -> float:
    """Return peak bytes of a training step on one device, by the compiler's plan for it.

    State, batch, gradients and activations. On a CPU within 15% of what becomes resident.
    """
    lowered = lower_train_step(c, t, jax.sharding.get_mesh())
    plan = lowered.compile(compiler_options=compiler_options(c.mesh)).memory_analysis()
    # What is written over an argument is counted once.
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes + outputs
    if jax.default_backend() != "cpu":
        return planned
    return CPU_FACTOR * planned + CPU_BYTES


def plan_stage_bytes(c: Config, name: str, t: Train) -> float:
    """Return peak bytes of a step of a stage on one device: `plan_step_bytes`, and its copies.

    Of preference tuning, reinforcement and synthesis it is an estimate: their losses are others.
    """
    rows = replace(t, batch_size=ROWS_OF.get(name, 1) * t.batch_size)
    return plan_step_bytes(c, rows) + COPIES_OF.get(name, 0) * FLOAT32 * count_params(c.model)


def fit_batch(asked: Config, c: Config, stages: Sequence[str], budget: float) -> Config:
    """Return `c` with so many microbatches that a step of each of these stages fits.

    asked: the configuration before it was resolved: where it leaves `grad_accum_steps` to the rule,
    the fewest that fit are taken, so that the global batch stays. Where it does not, or none fit,
    `UserError`. budget: bytes of one device. Compiles only what arithmetic leaves in doubt.
    """
    if jax.default_backend() == "cpu" and c.model.unroll and c.model.remat != "none":
        raise UserError(
            f"model.remat = '{c.model.remat}' frees little on a CPU with model.unroll = true; "
            "set model.unroll = false"
        )
    for name in stages:
        stage = STAGES.get(name)
        if stage is None or not stage.train:
            continue
        t = get(c, stage.train)
        accum = _count_microbatches(c, name, t, budget)
        if accum == t.grad_accum_steps:
            continue
        if accum and not get(asked, stage.train).grad_accum_steps:
            c = replace_at(c, f"{stage.train}.grad_accum_steps", accum)
            if is_writer():
                print(f"{name}: {accum} microbatches a step, the fewest that fit into memory here")
            continue
        size = f"{t.batch_size} rows of {t.seq_len} tokens in {t.grad_accum_steps} microbatches"
        remedy = f"set --{stage.train}.grad_accum_steps {accum}"
        if not accum:
            remedy = "lower model.depth or model.context_len, or take a machine with more"
        raise UserError(
            f"a step of {name}, {size}, does not fit into the {budget / 1e9:.1f} GB "
            f"that a device here has for it; {remedy}"
        )
    return c


def _count_microbatches(c: Config, name: str, t: Train, budget: float) -> int:
    """The fewest microbatches, from those of `t` up, with which a step fits; 0: none do."""
    mesh = jax.sharding.get_mesh().shape
    devices = mesh["replica"] * mesh["data"]
    rough = {}
    for k in range(t.grad_accum_steps, t.batch_size // devices + 1):
        if t.batch_size % (k * devices) == 0:
            rough[k] = _estimate_bytes(c, name, replace(t, grad_accum_steps=k))
    needed, first = 0.0, rough[t.grad_accum_steps]
    for k, estimate in rough.items():
        if CERTAIN * estimate <= budget:
            return k
        # What the first plan was above its estimate, the next ones will be too.
        ratio = needed / first if needed else 1 / CERTAIN
        if ratio * estimate > 1.1 * budget:
            continue
        planned = plan_stage_bytes(c, name, replace(t, grad_accum_steps=k))
        if planned <= budget:
            return k
        needed, first = planned, estimate
    return 0


def _estimate_bytes(c: Config, name: str, t: Train) -> float:
    """`plan_stage_bytes` by arithmetic, as if attention's scores were kept, which is the most."""
    mesh = jax.sharding.get_mesh().shape
    m = c.model
    t = replace(t, batch_size=ROWS_OF.get(name, 1) * t.batch_size)
    step = step_bytes(m, t, mesh["data"], mesh["model"], mesh["replica"])
    rows = t.batch_size / t.grad_accum_steps / (mesh["data"] * mesh["replica"])
    heads = m.num_heads / mesh["model"]
    layers = m.depth if m.remat == "none" else 1
    scores = layers * rows * heads * t.seq_len**2 * FLOAT32
    return step + scores + COPIES_OF.get(name, 0) * FLOAT32 * count_params(m)
