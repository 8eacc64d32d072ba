"""One decoder-only transformer, written as pure functions of a nested dict of arrays.

The default shape is Qwen3-dense (pre-RMSNorm with weight, half-split RoPE, grouped-query attention,
QK-norm before RoPE, SwiGLU, no biases), so that its weights open in ordinary tools. Every other
trick is a switch of `config.Model`.

    params = init_params(c, key)                {"embed", "blocks" stacked over L, "head"}
    x_nd   = compute_hidden(c, params, tokens)  all but the last matrix; N = B*T rows
    logits = unembed(c, params, x_nd)           float32, [N, V]

How to read it:
* Flax Linen is used through three names: `nn.Module`, `@nn.compact`, `self.param`. A module here is
  a bundle of declared weights with one function; parameters are the nested dict it returns.
* Activations are two-dimensional, [N, D] with N = B*T, and become [B, T, H, h] only inside
  attention. XLA:CPU turns the gradient of a three-dimensional matmul into a transposed copy of the
  cotangent (20% of a step).
* The L blocks are stacked: `vmap(init)`, then `lax.scan` over `checkpoint(apply)`. Unrolled stacks
  compile L times slower.
* A block does not know about caches. It is given `attend(q, k, v) -> (o, kept)`, and what is kept
  comes out stacked: nothing while training, the keys and values in prefill, the updated cache in
  decode.
* The rungs of the ladder are settings too: without `norm`, `residual` or `rope`, with a fixed
  `token_mixer` in place of learned attention, or with no blocks at all, it is one of the models
  that came before.
* Explicit sharding: a weight's PartitionSpec stands where the weight is declared; `linear` does all
  the communication.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model.attention import attention, runs_splash
from ramp.model.heads import enter_heads, fits, leave_heads
from ramp.model.linear import ROWS, linear, platform, trace_shapes

SHARP = 300.0  # of a fixed window: the token aimed at outweighs its neighbours by e^20 or more
SMEAR_DIM = 24  # leading channels of the embedding that the smear gate reads (nanochat)
VALUE_GATE_DIM = 12  # leading channels that the gate of value embeddings reads (nanochat)
Params = dict[str, Any]


# -------------------------------------------------------------------------------------- small parts
def normal_init(std: float, spec: P) -> Callable:
    """Return an initialiser of N(0, std²) in float32, made in place on the mesh."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32, out_sharding=spec)


def constant_init(value: float, spec: P | None = None) -> Callable:
    """Return an initialiser of one value in float32; without a spec it is whole everywhere."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32, out_sharding=spec or P())


def rms_norm(x: jax.Array, weight: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Return x / rms(x) * weight over the last axis, computed in float32, in x's dtype.

    Zhang & Sennrich 2019, eq. 4.
    """
    x32 = x.astype(jnp.float32)  # squares of bfloat16 lose the small channels
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale * weight).astype(x.dtype)


def rope_angles(positions: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin, [..., h/2] float32, of position times frequency.

    Su et al. 2021, eq. 15.
    """
    freq = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    # In float32 whatever the model computes in: positions beyond 256 are not exact in bfloat16.
    angle = positions[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def rope_kind(c: Model, i: int) -> str:
    """Return the angles of layer i: "L", "S" (a short layer with its own base), "N" (none)."""
    if c.window_pattern[i % len(c.window_pattern)] == "N":
        return "N"
    return "S" if is_short_layer(c, i) and c.rope_theta_short else "L"


def layer_angles(c: Model, positions: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return cos and sin, [..., h/2], for each `rope_kind` that the model has."""
    angles = {}
    for kind in sorted({rope_kind(c, i) for i in range(c.depth)}):
        if kind == "L" and c.rope_scaling != "none":
            freq, magnitude = scale_frequencies(c)
            angle = positions[..., None].astype(jnp.float32) * freq
            angles[kind] = magnitude * jnp.cos(angle), magnitude * jnp.sin(angle)
            continue
        base = c.rope_theta_short if kind == "S" else c.rope_theta
        # Position 0 for all tokens turns nothing.
        places = positions * 0 if kind == "N" else positions
        angles[kind] = rope_angles(places, c.head_dim, base)
    return angles


def scale_frequencies(c: Model) -> tuple[np.ndarray, float]:
    """Return RoPE's frequencies [h/2] for a context longer than the first, and a factor of both.

    Fast pairs stay, slow ones turn `rope_factor` times as slowly ("linear": all do); in between it
    is a mixture. "llama3": by wavelength, from 1/4 of `rope_original_len` to the whole (Llama 3.1).
    "yarn": by turns within it, from 32 to 1, and longer vectors (Peng et al. 2023, 3.2 to 3.4).
    """
    place = np.arange(0, c.head_dim, 2) / c.head_dim
    freq = c.rope_theta**-place
    turns = c.rope_original_len * freq / (2 * np.pi)
    slow, magnitude = np.ones_like(freq), 1.0
    if c.rope_scaling == "llama3":
        slow = 1 - np.clip((turns - 1) / (4 - 1), 0, 1)
    elif c.rope_scaling == "yarn":
        # The pairs that turn 32 times and once; between them by number, not by turns.
        pair = c.head_dim * np.log(c.rope_original_len / (np.array([32, 1]) * 2 * np.pi))
        low, high = pair / (2 * np.log(c.rope_theta))
        low, high = max(np.floor(low), 0), min(np.ceil(high), c.head_dim - 1)
        slow = np.clip((np.arange(len(freq)) - low) / max(high - low, 1e-3), 0, 1)
        magnitude = 0.1 * np.log(c.rope_factor) + 1
    scaled = freq * (slow / c.rope_factor + 1 - slow)
    return scaled.astype(np.float32), float(magnitude)


def whole_angles(cos: jax.Array, sin: jax.Array) -> list[jax.Array]:
    """Return cos and sin of both halves of a head, [..., h]: the lanes of a TPU are full."""
    return [jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)]


def rope(x_bthd: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the two halves of each head: the half-split order of Qwen and Llama.

    cos, sin: [T, h/2] or [B, T, h/2].
    """
    x = x_bthd.astype(jnp.float32)
    x1, x2 = jnp.split(x, 2, axis=-1)
    cos, sin = (a[..., None, :] for a in whole_angles(cos, sin))
    return (x * cos + jnp.concatenate([x2, x1], axis=-1) * sin).astype(x_bthd.dtype)


def make_fixed_qk(
    c: Model, B: int, T: int, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return queries and keys that are not learned, [B, T, H, h] and [B, T, K, h].

    So attention, its cache and its kernels serve the models that came before it.
    "mean": all zero, so every earlier token has the same weight.
    "window": head j attends to the token j places back and to no other; its query is the key of
    that place, times SHARP. In a row's first tokens it attends to the first one instead.
    """
    shape, spec = (B, T, 1, c.head_dim), P(ROWS, None, "model")
    if c.token_mixer == "mean":
        q_bthd = k_btkd = jnp.zeros(shape, jnp.dtype(c.dtype))
    elif c.token_mixer == "window":
        back = rope_angles(-jnp.arange(c.num_heads), c.head_dim, c.rope_theta)
        k_btkd = rope(jnp.ones(shape, jnp.dtype(c.dtype)), cos, sin)
        q_bthd = SHARP * rope(k_btkd[:, :, None], *back)[..., 0, :]
    q_bthd = jnp.broadcast_to(q_bthd, (B, T, c.num_heads, c.head_dim), out_sharding=spec)
    k_btkd = jnp.broadcast_to(k_btkd, (B, T, c.num_kv_heads, c.head_dim), out_sharding=spec)
    return q_bthd, k_btkd


def lookup_rows(table_vd: jax.Array, tokens_bt: jax.Array, dtype: Any) -> jax.Array:
    """Return rows of a table split over both its axes, [B, T, D].

    The tokens travel, not the table: a device looks up its slice of D for all rows of its replica,
    and an all-to-all brings whole rows to the devices that own them. That moves B*T*D / devices
    numbers instead of V*D, forward and back, and the gradient is summed in float32 where it stays:
    no reduction of a whole table.
    """
    local_bt = jax.reshard(tokens_bt, P("replica"))
    rows_vd = jax.reshard(table_vd, P(None, "data"))
    x_btd = rows_vd.at[local_bt].get(out_sharding=P("replica", None, "data"))
    return jax.reshard(x_btd.astype(dtype), P(ROWS))


# ------------------------------------------------------------------------------------------ modules
class Embed(nn.Module):
    """Token embedding, a table [V, D].

    With `smear` a gated fraction of the previous token's embedding is added.
    """

    c: Model

    @nn.compact
    def __call__(
        self,
        tokens_bt: jax.Array,
        previous_b: jax.Array | None = None,
        segments_bt: jax.Array | None = None,
    ) -> jax.Array:
        """Return [B*T, D]; `previous_b` is the token before each row's first, if there is one."""
        c, dtype = self.c, jnp.dtype(self.c.dtype)
        table_init = normal_init(c.embed_std, P("model", "data"))
        table_vd = self.param("table", table_init, (c.vocab_size, c.width))
        x_btd = lookup_rows(table_vd, tokens_bt, dtype)
        if c.smear:
            gate = self.param("smear_gate", normal_init(0.02, P()), (min(SMEAR_DIM, c.width),))
            scale = self.param("smear_scale", constant_init(0.0), ())
            if previous_b is None:
                first = jnp.zeros_like(x_btd[:, :1])
            else:
                first = lookup_rows(table_vd, previous_b[:, None], dtype)
            previous_btd = jnp.concatenate([first, x_btd[:, :-1]], axis=1)
            logit_bt = x_btd[..., :SMEAR_DIM].astype(jnp.float32) @ gate
            fraction_bt = scale * jax.nn.sigmoid(logit_bt)
            if segments_bt is not None:
                # Nothing comes over from the conversation before.
                previous_bt = jnp.concatenate([segments_bt[:, :1], segments_bt[:, :-1]], axis=1)
                fraction_bt *= segments_bt == previous_bt
            x_btd = x_btd + fraction_bt[..., None].astype(dtype) * previous_btd
        if c.embed_scale:
            x_btd = x_btd * jnp.asarray(c.width**0.5, dtype)
        return jax.lax.reshape(x_btd, (tokens_bt.size, c.width), out_sharding=P(ROWS))


def add_bias(block: nn.Module, name: str, y_nf: jax.Array) -> jax.Array:
    """Return queries, keys or values with their learned vector, where the model has one."""
    if not (block.c.qkv_bias and name in ("wq", "wk", "wv")):
        return y_nf
    bias_f = block.param(f"b{name[1]}", constant_init(0.0, P("model")), y_nf.shape[1:])
    return y_nf + bias_f.astype(y_nf.dtype)


def split_heads(c: Model, T: int, x: jax.Array, weight=None, turn=None) -> jax.Array:
    """Return [B, T, H, h] of rows of all heads [B*T, H*h], normed with weight [h] and turned.

    turn: cos and sin, or None. Queries and keys that are not learned come as [B, T, H, h].
    """
    h = c.head_dim
    if x.ndim == 2 and enters_kernel(c, T) and (turn is None or turn[0].ndim == 2):
        whole = turn and whole_angles(*turn)
        return jnp.swapaxes(enter_heads(x, weight, whole, (T, h), c.norm_eps), 1, 2)
    if x.ndim == 2:
        shape = (x.shape[0] // T, T, x.shape[1] // h, h)
        x = jax.lax.reshape(x, shape, out_sharding=P(ROWS, None, "model"))
    x = x if weight is None else rms_norm(x, weight, c.norm_eps)
    return rope(x, *turn) if turn else x


def join_heads(c: Model, o_bthd: jax.Array) -> jax.Array:
    """Return rows of all heads, [B*T, H*h], of attention's output."""
    B, T, H, h = o_bthd.shape
    if enters_kernel(c, T):
        return leave_heads(jnp.swapaxes(o_bthd, 1, 2), (T, h))
    return jax.lax.reshape(o_bthd, (B * T, H * h), out_sharding=P(ROWS, "model"))


def enters_kernel(c: Model, T: int) -> bool:
    """Whether heads go in and out of a TPU's attention kernel by kernels of their own."""
    return attention_backend(c) == "splash" and fits(c.head_dim, T)


def look_up_values(block: nn.Module, y_nd: jax.Array, tokens_bt: jax.Array) -> jax.Array:
    """Return what values gain, [N, K*h]: a gated row of the layer's own table for each token.

    ResFormer (Zhou et al. 2024). y_nd: the input of attention, which opens the gates.
    """
    c = block.c
    K, h = c.num_kv_heads, c.head_dim
    table_init = normal_init(c.width**-0.5, P("model", "data"))
    table = block.param("value_table", table_init, (c.vocab_size, K * h))
    read = min(VALUE_GATE_DIM, c.width)
    gate = block.param("value_gate", normal_init(0.02, P()), (read, K))
    fraction_nk = 2 * jax.nn.sigmoid(y_nd[:, :read].astype(jnp.float32) @ gate)
    # A head's gate opens each of its channels. Spread by a product with ones and zeros, rows of all
    # heads keep their layout, and devices exchange a gradient of K columns instead of K*h.
    channels_kf = jnp.repeat(jnp.eye(K, dtype=y_nd.dtype), h, axis=1)
    fraction_nf = fraction_nk.astype(y_nd.dtype) @ channels_kf
    rows_btf = lookup_rows(table, tokens_bt, y_nd.dtype)
    rows_nf = jax.lax.reshape(rows_btf, fraction_nf.shape, out_sharding=P(ROWS))
    # What travels between devices is not asked for again by the backward pass.
    rows_nf = checkpoint_name(rows_nf, "values")
    return jax.reshard(fraction_nf * rows_nf, P(ROWS, "model"))


class Block(nn.Module):
    """Attention, then a feed-forward network, each added to the residual stream.

    Without the stream each replaces its input; then its last matrix cannot begin at zero.
    """

    c: Model

    @nn.compact
    def __call__(self, x_nd, cos, sin, attend, tokens_bt, x0_nd):
        """Return [N, D] and what `attend` kept.

        x_nd: the stream, [N, D]; x0_nd: the embedding it began with; tokens_bt: for value tables.
        """
        c = self.c
        B, T = tokens_bt.shape
        D, H, K, h, F = c.width, c.num_heads, c.num_kv_heads, c.head_dim, c.mlp_dim
        column = P("data", "model")  # outputs split over "model"
        row = P("model", "data")  # inputs split over "model"

        def norm(x_nd, name, wanted=True):
            if not (c.norm and wanted):
                return x_nd
            return rms_norm(x_nd, self.param(name, constant_init(1.0), (D,)), c.norm_eps)

        def project(y_nd, name, width):
            w_df = self.param(name, normal_init(D**-0.5, column), (D, width))
            return add_bias(self, name, linear(y_nd, w_df, "out"))

        def head_norm(name):
            return self.param(name, constant_init(1.0), (h,)) if c.qk_norm else None

        def add_output(x_nd, y_nf, name, norm_name):
            # From zero, so that a new block changes nothing: the stream begins as the embedding.
            zero_or_not = constant_init(0.0, row)
            if not c.residual:
                zero_or_not = normal_init(y_nf.shape[1] ** -0.5, row)
            w_fd = self.param(name, zero_or_not, (y_nf.shape[1], D))
            y_nd = linear(y_nf, w_fd, "in")
            y_nd = norm(y_nd, norm_name, c.post_norm)
            return x_nd + y_nd if c.residual else y_nd

        if c.x0_scalars:
            x_nd = self.param("resid_scale", constant_init(1.0), ()).astype(x_nd.dtype) * x_nd
            x_nd += self.param("x0_scale", constant_init(0.1), ()).astype(x_nd.dtype) * x0_nd

        # Attention.
        y_nd = norm(x_nd, "attn_norm")
        if c.token_mixer == "attention":
            q = project(y_nd, "wq", H * h)
            k = project(y_nd, "wk", K * h)
        else:
            q, k = make_fixed_qk(c, B, T, cos, sin)
        v_nf = project(y_nd, "wv", K * h)
        if c.value_embeds:
            v_nf += look_up_values(self, y_nd, tokens_bt)
        turn = (cos, sin) if c.rope else None
        q_bthd = split_heads(c, T, q, head_norm("q_norm"), turn)
        k_btkd = split_heads(c, T, k, head_norm("k_norm"), turn)
        o_bthd, kept = attend(q_bthd, k_btkd, split_heads(c, T, v_nf))
        o_nf = join_heads(c, o_bthd)
        x_nd = add_output(x_nd, o_nf, "wo", "attn_post_norm")

        # Feed-forward.
        if c.mlp != "none":
            y_nd = norm(x_nd, "mlp_norm")
            up_nf = project(y_nd, "w_up", F)
            if c.mlp in ("swiglu", "geglu"):  # Shazeer 2020
                # GELU by tanh, as Gemma has it.
                gate = jax.nn.silu if c.mlp == "swiglu" else jax.nn.gelu
                act_nf = gate(project(y_nd, "w_gate", F)) * up_nf
            else:  # squared ReLU: So et al. 2021
                act_nf = jnp.square(jax.nn.relu(up_nf))
            x_nd = add_output(x_nd, act_nf, "w_down", "mlp_post_norm")
        return x_nd, kept


class Head(nn.Module):
    """Final norm, and the matrix [D, V] to the logits.

    The caller multiplies them: the loss does so in pieces. Models with tied embeddings use the
    embedding table as the matrix.
    """

    c: Model

    @nn.compact
    def __call__(self, x_nd: jax.Array, table_vd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return normalised hidden states [N, D] and the matrix [D, V]."""
        c = self.c
        if c.norm:
            x_nd = rms_norm(x_nd, self.param("norm", constant_init(1.0), (c.width,)), c.norm_eps)
        # Weights laid out for decoding over several devices have a matrix of their own.
        if c.tie_embeddings and not self.has_variable("params", "weight"):
            return x_nd, table_vd.T
        weight_init = normal_init(c.head_std, P("data", "model"))
        return x_nd, self.param("weight", weight_init, (c.width, c.vocab_size))


# ---------------------------------------------------------------------------------------- the model
def init_params(c: Model, key: jax.Array) -> Params:
    """Return parameters, float32, each in its own sharding. Call it under `jax.jit` on a mesh.

    Linen finds a module's weights by running it once; the one row per device that it runs on is
    dead code under jit.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    rows = mesh.get("replica", 1) * mesh.get("data", 1)
    tokens_bt = jnp.zeros((rows, 1), jnp.int32, out_sharding=P(ROWS))
    x_nd = jnp.zeros((rows, c.width), jnp.dtype(c.dtype), out_sharding=P(ROWS))
    cos, sin = rope_angles(jnp.zeros((1,)), c.head_dim, c.rope_theta)

    def init_block(key: jax.Array) -> Params:
        args = (x_nd, cos, sin, lambda q, k, v: (q, None), tokens_bt, x_nd)
        return Block(c).init(key, *args)["params"]

    # Keys are folded in by place, so that a switch of one part leaves the others as they were.
    embed = Embed(c).init(jax.random.fold_in(key, 0), tokens_bt)["params"]
    head = Head(c).init(jax.random.fold_in(key, 1), x_nd, embed["table"])["params"]
    blocks = {}
    if c.depth:
        blocks = jax.vmap(init_block)(jax.random.split(jax.random.fold_in(key, 2), c.depth))
    return {"embed": embed, "blocks": blocks, "head": head}


@cache
def param_shapes(c: Model) -> Params:
    """Return shapes, dtypes and specs of the parameters; no array is made, no device is needed.

    Counts of parameters and bytes, and what a mesh must divide, follow from this alone.
    """
    c = replace(c, dtype="float32")  # weights are; "auto" may not be resolved yet
    return trace_shapes(lambda: init_params(c, jax.random.PRNGKey(0)))


def compute_hidden(
    c: Model, params: Params, tokens_bt: jax.Array, segments_bt: jax.Array | None = None
) -> jax.Array:
    """Return hidden states before the head, [B*T, D]; segments do not attend to each other."""
    backend = attention_backend(c)

    def attend(window: int | None) -> Callable:
        def run(q, k, v):
            o = attention(q, k, v, window=window, segments_bt=segments_bt, backend=backend)
            return o, None  # nothing is kept

        return run

    x_nd, _ = run_blocks(c, params, tokens_bt, attend, segments_bt)
    return x_nd


def embed(
    c: Model,
    params: Params,
    tokens_bt: jax.Array,
    previous_b: jax.Array | None = None,
    segments_bt: jax.Array | None = None,
) -> Any:
    """Return the embedded tokens, [B*T, D]; see `Embed`."""
    return Embed(c).apply({"params": params["embed"]}, tokens_bt, previous_b, segments_bt)


def apply_block(c: Model, weights: Params, *args: Any) -> Any:
    """Apply one block to the arguments of `Block`: return [N, D] and what `attend` kept."""
    return Block(c).apply({"params": weights}, *args)


def run_blocks(c: Model, params: Params, tokens_bt, attend, segments_bt=None):
    """Embed, then apply the blocks in turn.

    `attend(window)` returns the attention of a layer with that static window, or None for all.
    Returns the hidden states [B*T, D] and what `attend` kept, stacked over layers [L, ...].
    """
    x0_nd = embed(c, params, tokens_bt, segments_bt=segments_bt)
    if c.depth == 0:
        return x0_nd, None

    T = tokens_bt.shape[1]
    angles = layer_angles(c, jnp.arange(T))

    def block(weights, attend_layer, cos_sin, x_nd):
        return apply_block(c, weights, x_nd, *cos_sin, attend_layer, tokens_bt, x0_nd)

    if c.unroll:
        x_nd, kept = x0_nd, []
        for i, weights in enumerate(split_blocks(c, params["blocks"])):
            attend_layer = attend(c.short_window if is_short_layer(c, i) else None)
            turn = angles[rope_kind(c, i)]
            x_nd, layer_kept = remat(c, partial(block, weights, attend_layer, turn))(x_nd)
            kept.append(layer_kept)
        return x_nd, jax.tree.map(lambda *a: jnp.stack(a), *kept)

    def body(x_nd, layer):
        weights, short, kind = layer
        turn = (
            cos_sin[0]
            if len(cos_sin) == 1
            else jax.tree.map(lambda *a: jnp.stack(a)[kind], *cos_sin)
        )

        # Where the window is static, a loop over both kinds of layers compiles both and chooses.
        def attend_either(q, k, v):
            if runs_splash(attention_backend(c), T, c.short_window):
                return attend(jnp.where(short, c.short_window, T))(q, k, v)
            return jax.lax.cond(short, attend(c.short_window), attend(None), q, k, v)

        attend_layer = attend_either if "S" in c.window_pattern else attend(None)
        return block(weights, attend_layer, turn, x_nd)

    kinds, cos_sin = list(angles), list(angles.values())
    short_l = jnp.array([is_short_layer(c, i) for i in range(c.depth)])
    kind_l = jnp.array([kinds.index(rope_kind(c, i)) for i in range(c.depth)])
    return jax.lax.scan(remat(c, body), x0_nd, (params["blocks"], short_l, kind_l))


def apply_head(c: Model, params: Params, x_nd: jax.Array) -> Any:
    """Return what the logits are a product of: (normalized hidden states [N, D], matrix [D, V])."""
    return Head(c).apply({"params": params["head"]}, x_nd, params["embed"]["table"])


def unembed(c: Model, params: Params, x_nd: jax.Array) -> jax.Array:
    """Return logits, [N, V] float32."""
    y_nd, w_dv = apply_head(c, params, x_nd)
    logits_nv = linear(y_nd, w_dv, "out", "float32")
    if not c.logit_softcap:
        return logits_nv
    return c.logit_softcap * jnp.tanh(logits_nv / c.logit_softcap)


def split_blocks(c: Model, blocks: Params) -> tuple[dict, ...]:
    """Return the stacked blocks one by one."""
    leaves, tree = jax.tree.flatten(blocks)
    # `lax.split`, because its gradient is one concatenation; that of indexing is L sums over the
    # whole stack.
    parts = [jax.lax.split(w, (1,) * c.depth) for w in leaves]
    layers = []
    for i in range(c.depth):
        layers.append(jax.tree.unflatten(tree, [jnp.squeeze(w[i], 0) for w in parts]))
    return tuple(layers)


def is_short_layer(c: Model, i: int) -> bool:
    """Whether layer i attends over the short window; the last layer never does."""
    return c.window_pattern[i % len(c.window_pattern)] == "S" and i < c.depth - 1


def remat(c: Model, body: Callable) -> Callable:
    """Wrap a block so that the backward pass recomputes it (Chen et al. 2016), or leave it.

    "saved" keeps what attention names, and rows of value tables.
    """
    if c.remat == "none":
        return body
    policy = None
    if c.remat == "saved":
        policy = jax.checkpoint_policies.save_only_these_names("attn", "values")
    # Inside scan nothing is merged with what it recomputes, and preventing it would cost speed.
    return jax.checkpoint(body, policy=policy, prevent_cse=c.unroll)


def attention_backend(c: Model) -> str:
    """Return the attention kernel: the configured one, or by platform."""
    if c.attention != "auto":
        return c.attention
    if platform() == "tpu":
        return "splash"
    # cuDNN takes half precision only.
    return "cudnn" if platform() == "gpu" and c.dtype == "bfloat16" else "xla"
