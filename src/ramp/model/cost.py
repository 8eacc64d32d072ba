"""What a configuration costs, by arithmetic: parameters, floating-point operations, bytes.

No jax here, so that `--dry-run` and tables are free. The tests hold these figures against the arrays `init` makes.
"""

from dataclasses import replace

from ramp.config import Model, Train, count_matrix_params

FLOAT32 = 4


def count_params(c: Model) -> int:
    """All weights of the model."""
    block = (
        c.width * c.norm * (1 if c.mlp == "none" else 2)
        + 2 * c.head_dim * c.qk_norm
        + 2 * c.x0_scalars
    )
    block += (c.vocab_size * c.num_kv_heads * c.head_dim + 12 * c.num_kv_heads) * c.value_embeds
    embed = c.vocab_size * c.width + 25 * c.smear
    head = c.width * c.norm + c.vocab_size * c.width * (not c.tie_embeddings)
    return count_matrix_params(c) + c.depth * block + embed + head


def flops_per_token(c: Model, seq: int) -> int:
    """Of training, forward and backward: 6 N for the N weights a token is multiplied with (Kaplan et al. 2020, 2.1), the
    head included and tables left out, plus 12 H h for each key a token sees in each layer. Causal: what a mask hides is
    not counted. Recomputation (remat) is not counted either: utilisation is of the useful work."""
    matrices = count_matrix_params(c) + c.width * c.vocab_size
    return 6 * matrices + attention_flops_per_token(c, seq)


def attention_flops_per_token(c: Model, seq: int) -> int:
    """The part of `flops_per_token` that is scores and their products with the values."""
    seen = sum(_mean_seen(seq, c.short_window if _is_short(c, i) else seq) for i in range(c.depth))
    return round(12 * c.num_heads * c.head_dim * seen)


def _is_short(c: Model, i: int) -> bool:
    return c.window_pattern[i % len(c.window_pattern)] == "S" and i < c.depth - 1


def _mean_seen(seq: int, window: int) -> float:
    """Keys that a token of a causal row sees on average: position t sees min(t + 1, window)."""
    w = min(window, seq)
    return (w * (w + 1) / 2 + (seq - w) * w) / seq


def state_bytes(c: Model, t: Train) -> int:
    """What stays on the devices between steps, all of them together: float32 weights, the optimizer's moments, the
    average. Muon keeps one moment of a matrix, Adam two. (Keys, counters and the guard: some 60 bytes, left out.)"""
    params = count_params(c)
    moments = 2 * params - (count_matrix_params(c) if t.optimizer == "muon" else 0)
    return FLOAT32 * (params + moments + (params if t.ema_decay else 0))


def cache_bytes(c: Model, batch: int, size: int) -> int:
    """Keys and values of `batch` rows with room for `size` tokens, in the compute dtype."""
    return (
        2
        * c.depth
        * batch
        * c.num_kv_heads
        * c.head_dim
        * size
        * (2 if c.dtype == "bfloat16" else 4)
    )


def step_bytes(c: Model, t: Train, data: int, model: int, replica: int = 1) -> float:
    """Peak bytes of one training step on one TPU of a mesh, by arithmetic: what `ramp plan --search` ranks by before
    anything is compiled. State, gradients, what blocks keep for the backward pass, and the work of head and block. Each
    term was read off compiled programs, which the tests hold it to.
    """
    half = 2 if c.dtype == "bfloat16" else FLOAT32
    rows, split = t.batch_size / t.grad_accum_steps / (data * replica), data * model
    tokens, params, head_count = rows * t.seq_len, count_params(c), c.width * c.vocab_size / model
    gradients = FLOAT32 * params / split
    if (
        t.grad_accum_steps > 1
    ):  # their sum, and cast weights: the compiler moves them out of the loop
        gradients += (FLOAT32 + half) * params / split
    logits = (c.loss_chunk or t.seq_len) * rows * c.vocab_size / model
    # The head: logits forward, their gradient backward (a place each), the matrix gathered, its gradient before and after
    # a piece (or a microbatch) is added, the hidden states and their gradient.
    head = (
        (FLOAT32 + half) * logits
        + (half + 2 * FLOAT32) * head_count
        + (FLOAT32 + 2 * half) * tokens * c.width
    )
    # A block: its weights gathered, their gradient before it is scattered, and all that remat makes again or, without it,
    # cotangents of about half that. What fits takes the place of the logits.
    work = (
        tokens * activation_bytes(replace(c, remat="none"), model) / (2 if c.remat == "none" else 1)
    )
    block = (half + FLOAT32) * count_matrix_params(c) / max(c.depth, 1) / model + work
    kept = tokens * c.depth * activation_bytes(c, model)
    return state_bytes(c, t) / split + gradients + kept + head + max(0, block - FLOAT32 * logits)


def activation_bytes(c: Model, model: int) -> float:
    """What the backward pass finds of one block, bytes a token of a device. `full`: the block's input. `saved`: attention's
    output and log-normaliser too, its heads padded to 128 lanes, once for each kind of window. `none`: what every
    derivative asks for; that of a norm wants two float32 copies of what came in."""
    half = 2 if c.dtype == "bfloat16" else FLOAT32
    lanes = -(-c.head_dim // 128) * 128
    heads, kv_heads = c.num_heads / model * lanes, c.num_kv_heads / model * lanes
    if c.remat != "none":
        kernels = len(set(c.window_pattern)) if c.remat == "saved" else 0
        return half * c.width + kernels * (half * heads + FLOAT32 * c.num_heads / model)
    norms = 2 * (2 * FLOAT32 + half) * c.width + c.qk_norm * 2 * FLOAT32 * (heads + kv_heads)
    attention = half * (2 * heads + 2 * kv_heads + c.num_heads * c.head_dim / model)
    return (
        norms + attention + {"none": 0, "relu2": 3, "swiglu": 6}[c.mlp] * half * c.mlp_dim / model
    )
