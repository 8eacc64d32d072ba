"""What a configuration costs, by arithmetic: parameters, floating-point operations, bytes.

No jax here, so that `--dry-run` and tables are free. The tests hold these figures against the arrays `init` makes.
"""

from ramp.config import Model, Train, matrix_count

FLOAT32 = 4


def param_count(c: Model) -> int:
    """All weights of the model."""
    block = c.width * c.norm * (1 if c.mlp == "none" else 2) + 2 * c.head_dim * c.qk_norm + 2 * c.x0_scalars
    block += (c.vocab * c.kv_heads * c.head_dim + 12 * c.kv_heads) * c.value_embeds
    embed = c.vocab * c.width + 25 * c.smear
    head = c.width * c.norm + c.vocab * c.width * (not c.tied)
    return matrix_count(c) + c.depth * block + embed + head


def flops_per_token(c: Model, seq: int) -> int:
    """Of training, forward and backward: 6 N for the N weights a token is multiplied with (Kaplan et al. 2020, 2.1), the
    head included and tables left out, plus 12 H h for each key a token sees in each layer. Causal: what a mask hides is
    not counted. Recomputation (remat) is not counted either: utilisation is of the useful work."""
    matrices = matrix_count(c) + c.width * c.vocab
    return 6 * matrices + attention_flops_per_token(c, seq)


def attention_flops_per_token(c: Model, seq: int) -> int:
    """The part of `flops_per_token` that is scores and their products with the values."""
    seen = sum(_mean_seen(seq, c.short_window if _is_short(c, i) else seq) for i in range(c.depth))
    return round(12 * c.heads * c.head_dim * seen)


def _is_short(c: Model, i: int) -> bool:
    return c.window[i % len(c.window)] == "S" and i < c.depth - 1


def _mean_seen(seq: int, window: int) -> float:
    """Keys that a token of a causal row sees on average: position t sees min(t + 1, window)."""
    w = min(window, seq)
    return (w * (w + 1) / 2 + (seq - w) * w) / seq


def state_bytes(c: Model, t: Train) -> int:
    """What stays on the devices between steps, all of them together: float32 weights, the optimizer's moments, the
    average. Muon keeps one moment of a matrix, Adam two. (Keys, counters and the guard: some 60 bytes, left out.)"""
    params = param_count(c)
    moments = 2 * params - (matrix_count(c) if t.optimizer == "muon" else 0)
    return FLOAT32 * (params + moments + (params if t.ema else 0))


def cache_bytes(c: Model, batch: int, size: int) -> int:
    """Keys and values of `batch` rows with room for `size` tokens, in the compute dtype."""
    return 2 * c.depth * batch * c.kv_heads * c.head_dim * size * (2 if c.dtype == "bfloat16" else 4)


def step_bytes(c: Model, t: Train, data: int, model: int, replica: int = 1) -> float:
    """Peak bytes of one training step on one device of a mesh, by arithmetic: what `ramp plan --search` ranks by before
    anything is compiled. State and gradients, the activations that the backward pass finds saved, the weights of two
    blocks gathered, and the larger of what one block and the head need while they are worked on."""
    half = 2 if c.dtype == "bfloat16" else FLOAT32
    params, split = param_count(c), data * model
    tokens = t.batch * t.seq / t.accum / (data * replica)
    attention, hidden = (c.heads + 2 * c.kv_heads) * c.head_dim / model, c.ff / model
    mlp = (2 if c.mlp == "swiglu" else 1) * hidden
    inside = 3 * c.width + 2 * attention + mlp + hidden  # of one block, a token
    saved = {"none": inside, "full": c.width, "saved": c.width + c.heads * c.head_dim / model}[c.remat]
    gathered = 2 * half * matrix_count(c) / max(c.depth, 1) / model
    block = tokens * 2 * half * inside if c.remat != "none" else 0
    chunk = tokens * (c.loss_chunk or t.seq) / t.seq
    head = chunk * c.vocab / model * (FLOAT32 + half) + c.width * c.vocab / model * (FLOAT32 + half)
    gradients = FLOAT32 * params / split * (2 if t.accum > 1 else 1)
    return state_bytes(c, t) / split + gradients + tokens * half * c.depth * saved + gathered + max(block, head)
