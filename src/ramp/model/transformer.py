"""One decoder-only transformer, written as pure functions of a nested dict of arrays.

The default shape is Qwen3-dense (pre-RMSNorm with weight, half-split RoPE, grouped-query attention, QK-norm before
RoPE, SwiGLU, no biases), so that its weights open in ordinary tools. Every other trick is a switch of `config.Model`.

    params = init(c, key)                      {"embed": ..., "blocks": ... stacked over L, "head": ...}
    x_nd   = hidden(c, params, tokens_bt)      all but the last matrix; N = B*T rows
    logits = unembed(c, params, x_nd)          float32, [N, V]

How to read it:
* Flax Linen is used through three names: `nn.Module`, `@nn.compact`, `self.param`. A module here is a bundle of
  declared weights with one function; parameters are the nested dict it returns.
* Activations are two-dimensional, [N, D] with N = B*T, and become [B, T, H, h] only inside attention. XLA:CPU turns the
  gradient of a three-dimensional matmul into a transposed copy of the cotangent (20% of a step).
* The L blocks are stacked: `vmap(init)`, then `lax.scan` over `checkpoint(apply)`. Unrolled stacks compile L times slower.
* A block does not know about caches. It is handed `attend(q, k, v) -> (o, kept)`, and what is kept comes out stacked:
  nothing while training, the keys and values in prefill, the updated cache in decode.
* The rungs of the ladder are settings too: without `norm`, `residual` or `rope`, with `mix` for a fixed mixing of tokens
  in place of learned attention, or with no blocks at all, it is one of the models that came before.
* Explicit sharding: a weight's PartitionSpec stands where the weight is declared, `linear` does all the communication.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model.attention import ROWS, attention, platform

SHARP = 300.0  # of a fixed window: the token aimed at outweighs its neighbours by e^20 or more
Params = dict[str, Any]


# ---------------------------------------------------------------------------------------------------- matmuls
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x_nd: jax.Array, w_df: jax.Array, split: str, out_dtype: str | None = None) -> jax.Array:
    """`x @ w` with float32 accumulation; the only place where weights and their gradients travel between devices.

    x_nd: [N, D] in the compute dtype, N split over the batch axes. w_df: [D, F], the float32 master weight.
    split: which side of the matrix is split over the mesh axis "model": "out" (F; spec P("data", "model")),
    "in" (D; spec P("model", "data"), the partial sums are all-reduced). Returns [N, F] in x's dtype, or in `out_dtype`.

    The communication is written out, inside shard_map: the weight is cast and then gathered over "data", its gradient is
    scattered in float32. Left to the partitioner, TPU compilers turned the scatters into all-reduces of whole weights or
    into loops of small permutes. The derivative is ours as well: the stock one multiplies a float32 cotangent with a
    bfloat16 matrix, slower on every backend than bfloat16 in, float32 out.
    """
    return _linear_fwd(x_nd, w_df, split, out_dtype)[0]


def _specs(split: str) -> tuple[P, P]:
    """Of x and y."""
    return (P(ROWS), P(ROWS, "model")) if split == "out" else (P(ROWS, "model"), P(ROWS))


def gather_weight(w_df: jax.Array, spec: P, dtype: Any) -> jax.Array:
    """Inside shard_map: a device's part of a weight, cast (half the bytes), then whole along "data"."""
    w_df = w_df.astype(dtype)
    return (
        jax.lax.all_gather(w_df, "data", axis=spec.index("data"), tiled=True)
        if "data" in spec
        else w_df
    )


def scatter_grad(dw_df: jax.Array, spec: P, dtype: Any) -> jax.Array:
    """Inside shard_map: the sum over all devices of a weight's gradient, each device keeping its part."""
    if "data" in spec:
        for groups in scatter_groups(jax.lax.axis_size("data")):
            dw_df = jax.lax.psum_scatter(
                dw_df,
                "data",
                scatter_dimension=spec.index("data"),
                axis_index_groups=groups,
                tiled=True,
            )
    return jax.lax.psum(dw_df, "replica").astype(dtype)


def scatter_groups(n: int) -> list[list[list[int]] | None]:
    """Groups to scatter over, one list after the other. On TPUs n = a*b devices go first over a, then over b, for the same
    bytes received: on square tori (v5e:4x4, v4:2x2x4) libtpu 0.0.42 turns one scatter over all chips, of whatever shape,
    into an all-reduce of the whole, and leaves scatters over a part of them alone."""
    a = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    if platform() != "tpu" or n < 8 or a == 1:
        return [None]
    ids = [[i * (n // a) + j for j in range(n // a)] for i in range(a)]
    return [[list(column) for column in zip(*ids, strict=True)], ids]


def _linear_fwd(x_nd, w_df, split, out_dtype):
    x_spec, y_spec = _specs(split)
    w_spec = jax.typeof(w_df).sharding.spec

    def local(x_nd, w_df):
        y_nf = jnp.dot(
            x_nd, gather_weight(w_df, w_spec, x_nd.dtype), preferred_element_type=jnp.float32
        )
        y_nf = y_nf.astype(out_dtype or x_nd.dtype)
        return y_nf if split == "out" else jax.lax.psum(y_nf, "model")

    run = jax.shard_map(local, in_specs=(x_spec, w_spec), out_specs=y_spec, check_vma=False)
    return run(x_nd, w_df), (x_nd, w_df)


def _linear_bwd(split, out_dtype, saved, dy_nf):
    x_nd, w_df = saved
    x_spec, y_spec = _specs(split)
    w_spec = jax.typeof(w_df).sharding.spec
    dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

    def local(x_nd, w_df, dy_nf):
        w = gather_weight(w_df, w_spec, x_nd.dtype)
        dx_nd = dot(dy_nf, w, (((1,), (1,)), ((), ()))).astype(x_nd.dtype)
        dw_df = dot(transpose_for_product(x_nd), dy_nf, (((1,), (0,)), ((), ())))
        return jax.lax.psum(dx_nd, "model") if split == "out" else dx_nd, scatter_grad(
            dw_df, w_spec, w_df.dtype
        )

    run = jax.shard_map(
        local, in_specs=(x_spec, w_spec, y_spec), out_specs=(x_spec, w_spec), check_vma=False
    )
    return run(x_nd, w_df, dy_nf.astype(x_nd.dtype))


linear.defvjp(_linear_fwd, _linear_bwd)


def transpose_for_product(x_nd: jax.Array) -> jax.Array:
    """[D, N], for a product over N. XLA:CPU's bfloat16 products (YNNPACK) want it so in memory too: without a copy a weight's
    gradient takes twice as long. Elsewhere the product reads x as it lies."""
    if platform() != "cpu" or x_nd.dtype != jnp.bfloat16:
        return x_nd.T
    return with_layout_constraint(x_nd.T, Layout(major_to_minor=(0, 1)))


# ---------------------------------------------------------------------------------------------------- small parts
def normal_init(std: float, spec: P) -> Callable:
    """Initialiser: N(0, std²) in float32, made in place on the mesh."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32, out_sharding=spec)


def constant_init(value: float, spec: P | None = None) -> Callable:
    return lambda key, shape: jnp.full(shape, value, jnp.float32, out_sharding=spec or P())


def rms_norm(x: jax.Array, weight: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / rms(x) * weight over the last axis, in float32, back in x's dtype (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale * weight).astype(x.dtype)


def rope_angles(positions: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [..., h/2] float32, of position times frequency (Su et al. 2021, eq. 15)."""
    freq = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def rope(x_bthd: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the two halves of each head: the half-split order of Qwen and Llama. cos, sin: [T, h/2] or [B, T, h/2]."""
    x = x_bthd.astype(jnp.float32)
    x1, x2 = jnp.split(x, 2, axis=-1)
    cos, sin = (jnp.concatenate(pair, axis=-1)[..., None, :] for pair in ((cos, cos), (-sin, sin)))
    return (x * cos + jnp.concatenate([x2, x1], axis=-1) * sin).astype(
        x_bthd.dtype
    )  # whole heads: TPU lanes are full


def make_fixed_qk(
    c: Model, B: int, T: int, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys that nobody learns, so that attention, its cache and its kernels serve the models before it.

    "mean": all zero, so every token of the past weighs the same. "window": head j sees the token j places back and no
    other; its query is the key of that place, times SHARP. In a row's first tokens it sees the first one instead.
    """
    shape, spec = (B, T, 1, c.head_dim), P(ROWS, None, "model")
    if c.token_mixer == "mean":
        q_bthd = k_btkd = jnp.zeros(shape, jnp.dtype(c.dtype))
    elif c.token_mixer == "window":
        back = rope_angles(-jnp.arange(c.num_heads), c.head_dim, c.rope_theta)
        k_btkd = rope(jnp.ones(shape, jnp.dtype(c.dtype)), cos, sin)
        q_bthd = SHARP * rope(k_btkd[:, :, None], *back)[..., 0, :]
    whole = ((q_bthd, c.num_heads), (k_btkd, c.num_kv_heads))
    return tuple(jnp.broadcast_to(a, (B, T, n, c.head_dim), out_sharding=spec) for a, n in whole)


# ---------------------------------------------------------------------------------------------------- modules
class Embed(nn.Module):
    """Token embedding [V, D]; optionally `smear`: a gated share of the previous token's embedding is mixed in."""

    c: Model

    @nn.compact
    def __call__(
        self,
        tokens_bt: jax.Array,
        previous_b: jax.Array | None = None,
        segments_bt: jax.Array | None = None,
    ) -> jax.Array:
        c, dtype = self.c, jnp.dtype(self.c.dtype)
        table_vd = self.param(
            "table", normal_init(c.embed_std, P("model", "data")), (c.vocab_size, c.width)
        )
        x_btd = lookup_rows(table_vd, tokens_bt, dtype)
        if c.smear:
            gate = self.param("smear_gate", normal_init(0.02, P()), (24,))
            scale = self.param("smear_scale", constant_init(0.0), ())
            first = (
                jnp.zeros_like(x_btd[:, :1])
                if previous_b is None
                else lookup_rows(table_vd, previous_b[:, None], dtype)
            )
            before_btd = jnp.concatenate([first, x_btd[:, :-1]], axis=1)
            share = scale * jax.nn.sigmoid(x_btd[..., :24].astype(jnp.float32) @ gate)
            if segments_bt is not None:  # nothing comes over from the conversation before
                share *= segments_bt == jnp.concatenate(
                    [segments_bt[:, :1], segments_bt[:, :-1]], axis=1
                )
            x_btd = x_btd + share[..., None].astype(dtype) * before_btd
        return jax.lax.reshape(x_btd, (tokens_bt.size, c.width), out_sharding=P(ROWS))


def lookup_rows(table_vd: jax.Array, tokens_bt: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table split over both its axes, [B, T, D].

    The tokens travel, not the table: a device looks up its slice of D for all rows of its replica, and an all-to-all
    brings whole rows to the devices that own them. That moves B*T*D / devices numbers instead of V*D, forward and back,
    and the gradient is summed in float32 in its own place: no reduction of a whole table.
    """
    here_bt = jax.reshard(tokens_bt, P("replica"))
    x_btd = (
        jax.reshard(table_vd, P(None, "data"))
        .at[here_bt]
        .get(out_sharding=P("replica", None, "data"))
    )
    return jax.reshard(x_btd.astype(dtype), P(ROWS))


class Block(nn.Module):
    """Attention, then a gated feed-forward, each added to the residual stream.

    Without the stream each replaces what it read; then its last matrix cannot begin at zero.
    """

    c: Model

    @nn.compact
    def __call__(self, x_nd, cos, sin, attend, tokens_bt, x0_nd):
        c = self.c
        (B, T), (D, H, K, h, F) = (
            tokens_bt.shape,
            (c.width, c.num_heads, c.num_kv_heads, c.head_dim, c.mlp_dim),
        )
        out = P("data", "model")  # column-parallel: outputs split over "model"
        back = P("model", "data")  # row-parallel: inputs split over "model"
        std = D**-0.5

        def heads(y_nf, n):
            return jax.lax.reshape(y_nf, (B, T, n, h), out_sharding=P(ROWS, None, "model"))

        def norm(x_nd, name):
            return (
                rms_norm(x_nd, self.param(name, constant_init(1.0), (D,)), c.norm_eps)
                if c.norm
                else x_nd
            )

        def join(x_nd, o_nf, name):
            begin = (
                constant_init(0.0, back) if c.residual else normal_init(o_nf.shape[1] ** -0.5, back)
            )
            y_nd = linear(o_nf, self.param(name, begin, (o_nf.shape[1], D)), "in")
            return x_nd + y_nd if c.residual else y_nd

        if c.x0_scalars:
            x_nd = self.param("resid_scale", constant_init(1.0), ()).astype(x_nd.dtype) * x_nd
            x_nd += self.param("x0_scale", constant_init(0.1), ()).astype(x_nd.dtype) * x0_nd

        y_nd = norm(x_nd, "attn_norm")
        if c.token_mixer == "attention":
            q_bthd = heads(
                linear(y_nd, self.param("wq", normal_init(std, out), (D, H * h)), "out"), H
            )
            k_btkd = heads(
                linear(y_nd, self.param("wk", normal_init(std, out), (D, K * h)), "out"), K
            )
        else:
            q_bthd, k_btkd = make_fixed_qk(c, B, T, cos, sin)
        v_btkd = heads(linear(y_nd, self.param("wv", normal_init(std, out), (D, K * h)), "out"), K)
        if c.value_embeds:
            table = self.param(
                "value_table", normal_init(std, P("model", "data")), (c.vocab_size, K * h)
            )
            gate = self.param("value_gate", normal_init(0.02, P()), (12, K))
            share = 2 * jax.nn.sigmoid(y_nd[:, :12].astype(jnp.float32) @ gate)
            share_btk = jax.lax.reshape(share, (B, T, K), out_sharding=P(ROWS))
            value_btf = lookup_rows(table, tokens_bt, v_btkd.dtype)
            value_btkd = jax.lax.reshape(value_btf, (B, T, K, h), out_sharding=P(ROWS))
            v_btkd += jax.reshard(
                share_btk[..., None].astype(v_btkd.dtype) * value_btkd, P(ROWS, None, "model")
            )
        if c.qk_norm:
            q_bthd = rms_norm(q_bthd, self.param("q_norm", constant_init(1.0), (h,)), c.norm_eps)
            k_btkd = rms_norm(k_btkd, self.param("k_norm", constant_init(1.0), (h,)), c.norm_eps)
        if c.rope:
            q_bthd, k_btkd = rope(q_bthd, cos, sin), rope(k_btkd, cos, sin)
        o_bthd, kept = attend(q_bthd, k_btkd, v_btkd)
        o_nf = jax.lax.reshape(o_bthd, (B * T, H * h), out_sharding=P(ROWS, "model"))
        x_nd = join(x_nd, o_nf, "wo")

        if c.mlp != "none":
            y_nd = norm(x_nd, "mlp_norm")
            up_nf = linear(y_nd, self.param("w_up", normal_init(std, out), (D, F)), "out")
            if c.mlp == "swiglu":
                gate_nf = linear(y_nd, self.param("w_gate", normal_init(std, out), (D, F)), "out")
                act_nf = jax.nn.silu(gate_nf) * up_nf
            else:
                act_nf = jnp.square(jax.nn.relu(up_nf))
            x_nd = join(x_nd, act_nf, "w_down")
        return x_nd, kept


class Head(nn.Module):
    """Final norm and the matrix [D, V] to the logits, which are for the caller to multiply: the loss does so in pieces.
    Tied models use the embedding table as the matrix."""

    c: Model

    @nn.compact
    def __call__(self, x_nd: jax.Array, table_vd: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = self.c
        y_nd = (
            rms_norm(x_nd, self.param("norm", constant_init(1.0), (c.width,)), c.norm_eps)
            if c.norm
            else x_nd
        )
        if c.tie_embeddings:
            return y_nd, table_vd.T
        return y_nd, self.param(
            "weight", normal_init(c.head_std, P("data", "model")), (c.width, c.vocab_size)
        )


# ---------------------------------------------------------------------------------------------------- the model
def init_params(c: Model, key: jax.Array) -> Params:
    """Parameters, float32, each in its own sharding. Call it under `jax.jit` with a mesh set.

    Linen finds a module's weights by running it once; the one row per device that it runs on is dead code under jit.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    rows = mesh.get("replica", 1) * mesh.get("data", 1)
    tokens_bt = jnp.zeros((rows, 1), jnp.int32, out_sharding=P(ROWS))
    x_nd = jnp.zeros((rows, c.width), jnp.dtype(c.dtype), out_sharding=P(ROWS))
    cos, sin = rope_angles(jnp.zeros((1,)), c.head_dim, c.rope_theta)

    def init_block(key):
        return Block(c).init(key, x_nd, cos, sin, lambda q, k, v: (q, None), tokens_bt, x_nd)[
            "params"
        ]

    embed = Embed(c).init(jax.random.fold_in(key, 0), tokens_bt)["params"]
    head = Head(c).init(jax.random.fold_in(key, 1), x_nd, embed["table"])["params"]
    blocks = (
        jax.vmap(init_block)(jax.random.split(jax.random.fold_in(key, 2), c.depth))
        if c.depth
        else {}
    )
    return {"embed": embed, "blocks": blocks, "head": head}


def compute_hidden(
    c: Model, params: Params, tokens_bt: jax.Array, segments_bt: jax.Array | None = None
) -> jax.Array:
    """Hidden states before the head, [B*T, D], of whole rows of tokens; segments do not see each other."""
    cos, sin = rope_angles(jnp.arange(tokens_bt.shape[1]), c.head_dim, c.rope_theta)

    def attend(window):
        def run(q, k, v):
            return attention(
                q, k, v, window=window, segments_bt=segments_bt, backend=attention_backend(c)
            ), None

        return run

    x_nd, _ = run_blocks(c, params, tokens_bt, cos, sin, attend, segments_bt)
    return x_nd


def run_blocks(c: Model, params: Params, tokens_bt, cos, sin, attend, segments_bt=None):
    """Embed, then the blocks in turn. `attend(window)` makes the attention of a layer with that static window, or None.

    Returns the hidden states [B*T, D] and what `attend` kept, stacked over layers [L, ...].
    """
    x0_nd = Embed(c).apply({"params": params["embed"]}, tokens_bt, segments_bt=segments_bt)
    if c.depth == 0:
        return x0_nd, None

    def block(weights, attend_layer, x_nd):
        return Block(c).apply({"params": weights}, x_nd, cos, sin, attend_layer, tokens_bt, x0_nd)

    if c.unroll:
        x_nd, kept = x0_nd, []
        for i, weights in enumerate(split_blocks(c, params["blocks"])):
            attend_layer = attend(c.short_window if is_short_layer(c, i) else None)
            x_nd, layer_kept = remat(c, partial(block, weights, attend_layer))(x_nd)
            kept.append(layer_kept)
        return x_nd, jax.tree.map(lambda *a: jnp.stack(a), *kept)

    def body(x_nd, layer):
        weights, short = layer

        def attend_either(q, k, v):
            return jax.lax.cond(short, attend(c.short_window), attend(None), q, k, v)

        return block(weights, attend_either if "S" in c.window_pattern else attend(None), x_nd)

    short_l = jnp.array([is_short_layer(c, i) for i in range(c.depth)])
    return jax.lax.scan(remat(c, body), x0_nd, (params["blocks"], short_l))


def apply_head(c: Model, params: Params, x_nd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the logits are a product of: normalised hidden states [N, D] and the matrix [D, V]."""
    return Head(c).apply({"params": params["head"]}, x_nd, params["embed"]["table"])


def unembed(c: Model, params: Params, x_nd: jax.Array) -> jax.Array:
    """Logits [N, V], float32."""
    logits_nv = linear(*apply_head(c, params, x_nd), "out", "float32")
    return c.logit_softcap * jnp.tanh(logits_nv / c.logit_softcap) if c.logit_softcap else logits_nv


def split_blocks(c: Model, blocks: Params) -> tuple[dict, ...]:
    """The stacked blocks one by one. `lax.split`, because its gradient is one concatenation; that of indexing is L sums
    over the whole stack."""
    leaves, tree = jax.tree.flatten(blocks)
    parts = [jax.lax.split(w, (1,) * c.depth) for w in leaves]
    return tuple(
        jax.tree.unflatten(tree, [jnp.squeeze(w[i], 0) for w in parts]) for i in range(c.depth)
    )


def is_short_layer(c: Model, i: int) -> bool:
    """Whether layer i looks back over the short window; the last layer never does."""
    return c.window_pattern[i % len(c.window_pattern)] == "S" and i < c.depth - 1


def remat(c: Model, body: Callable) -> Callable:
    """What the backward pass computes again (Chen et al. 2016); "saved" keeps what attention names."""
    if c.remat == "none":
        return body
    attention = jax.checkpoint_policies.save_only_these_names("attn")
    return jax.checkpoint(body, policy=attention if c.remat == "saved" else None, prevent_cse=False)


def attention_backend(c: Model) -> str:
    """The attention kernel: the configured one, or by platform. cuDNN takes half precision only."""
    if c.attention != "auto":
        return c.attention
    if platform() == "tpu":
        return "splash"
    return "cudnn" if platform() == "gpu" and c.dtype == "bfloat16" else "xla"
