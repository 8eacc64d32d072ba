"""The transformer against a plain numpy one, and against itself computed in other ways."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from ramp.model import linear as linear_module
from ramp.model import transformer
from ramp.model.attention import attention
from ramp.model.linear import linear
from ramp.model.loss import next_token_loss, token_cross_entropy
from ramp.model.transformer import Block


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


# ---------------------------------------------------------------------------------------------------- the oracle
def np_norm(x, weight):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * weight


def np_rope(x_thd, base):
    """Pairs (i, i + h/2) as complex numbers, turned by the angle t base^(-2i/h)."""
    T, _, h = x_thd.shape
    turn = np.exp(1j * np.arange(T)[:, None] * base ** (-2 * np.arange(h // 2) / h))[:, None, :]
    z = (x_thd[..., : h // 2] + 1j * x_thd[..., h // 2 :]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


def np_sigmoid(x):
    return 1 / (1 + np.exp(-x))


def np_forward(c, params, tokens_t, segments_t=None):
    """Logits [T, V] of one row, float64, head by head and token by token, from the published equations."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    T, group = len(tokens_t), c.num_heads // c.num_kv_heads
    table = p["embed"]["table"]
    x = table[tokens_t]
    if c.smear:
        for t in range(1, T):
            gate = np_sigmoid(table[tokens_t[t]][:24] @ p["embed"]["smear_gate"])
            x[t] = table[tokens_t[t]] + p["embed"]["smear_scale"] * gate * table[tokens_t[t - 1]]
    x0 = x.copy()

    def norm(x, weights, name):
        return np_norm(x, weights[name]) if c.norm else x

    for i in range(c.depth):
        w = {name: a[i] for name, a in p["blocks"].items()}
        if c.x0_scalars:
            x = w["resid_scale"] * x + w["x0_scale"] * x0
        y = norm(x, w, "attn_norm")
        q = k = np.zeros((T, c.num_heads, c.head_dim))  # of a fixed mixing, which does not score
        if c.token_mixer == "attention":
            q = (y @ w["wq"]).reshape(T, c.num_heads, c.head_dim)
            k = (y @ w["wk"]).reshape(T, c.num_kv_heads, c.head_dim)
        v = (y @ w["wv"]).reshape(T, c.num_kv_heads, c.head_dim)
        if c.value_embeds:
            share = 2 * np_sigmoid(y[:, :12] @ w["value_gate"])
            v = v + share[..., None] * w["value_table"][tokens_t].reshape(v.shape)
        if c.qk_norm:
            q, k = np_norm(q, w["q_norm"]), np_norm(k, w["k_norm"])
        if c.rope:
            q, k = np_rope(q, c.rope_theta), np_rope(k, c.rope_theta)
        short = c.window_pattern[i % len(c.window_pattern)] == "S" and i != c.depth - 1
        o = np.zeros_like(q)
        for t in range(T):
            seen = [s for s in range(t + 1) if not short or s > t - c.short_window]
            seen = [s for s in seen if segments_t is None or segments_t[s] == segments_t[t]]
            for head in range(c.num_heads):
                if c.token_mixer == "window":
                    o[t, head] = v[max(t - head, 0), head // group]
                    continue
                scores = k[seen, head // group] @ q[t, head] / np.sqrt(c.head_dim)
                probs = np.exp(scores - scores.max())
                o[t, head] = probs / probs.sum() @ v[seen, head // group]
        x = o.reshape(T, -1) @ w["wo"] + (x if c.residual else 0)
        y = norm(x, w, "mlp_norm") if c.mlp != "none" else x
        if c.mlp == "swiglu":
            gate = y @ w["w_gate"]
            x = (gate * np_sigmoid(gate) * (y @ w["w_up"])) @ w["w_down"] + (x if c.residual else 0)
        elif c.mlp == "relu2":
            x = np.maximum(y @ w["w_up"], 0) ** 2 @ w["w_down"] + (x if c.residual else 0)
    y = norm(x, p["head"], "norm")
    logits = y @ (table.T if c.tie_embeddings else p["head"]["weight"])
    return c.logit_softcap * np.tanh(logits / c.logit_softcap) if c.logit_softcap else logits


SWITCHES = {
    "qwen3": {},
    "tied, windows, softcap": {
        "tie_embeddings": True,
        "window_pattern": "S",
        "logit_softcap": 2.0,
        "num_kv_heads": 1,
        "rope_theta": 500.0,
    },
    "multi-head, no qk-norm, relu2": {"num_kv_heads": 4, "qk_norm": False, "mlp": "relu2"},
    "all": tiny.ALL,
    "no blocks": {"depth": 0},
    "no blocks, no norm": {"depth": 0, "norm": False},
    "window": tiny.WINDOW,
    "mean": tiny.MEAN,
    "bare attention": {
        "norm": False,
        "rope": False,
        "qk_norm": False,
        "mlp": "none",
        "residual": False,
    },
}


@cache
def forward(c):
    return jax.jit(partial(tiny.logits, c))


@pytest.mark.parametrize("name", SWITCHES)
def test_forward_equals_numpy(name):
    c = tiny.model(**SWITCHES[name])
    params, tokens = tiny.lively(c), tiny.tokens(2, 20)
    got = forward(c)(params, tokens)
    assert got.dtype == jnp.float32
    want = np.stack([np_forward(c, params, row) for row in tokens])
    assert want.std() > 0.3
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_every_weight_matters():
    """No parameter is declared and forgotten: the loss has a gradient in each, in the model with every switch."""
    c = tiny.model(**tiny.ALL)
    _, grads = loss_and_grads(c)(tiny.lively(c), BATCH)
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(g)
    ]
    assert not dead


def test_causality():
    """A token that changes at t changes the logits at t and, bit for bit, none before it. Row b changes token 3b."""
    c = tiny.model(**tiny.ALL)
    params = tiny.lively(c)
    base = np.repeat(tiny.tokens(1, 24), 8, axis=0)
    other = base.copy()
    at = 3 * np.arange(8)
    other[np.arange(8), at] += 1
    a, b = forward(c)(params, base), forward(c)(params, other)
    for row, t in enumerate(at):
        np.testing.assert_array_equal(a[row, :t], b[row, :t])
        assert np.abs(a[row, t] - b[row, t]).max() > 1e-3


@pytest.mark.parametrize("switches", [{}, tiny.ALL], ids=["qwen3", "all"])
def test_packed_conversations_equal_separate_ones(switches):
    """What a token predicts does not depend on which conversation shares its row (window and smear included)."""
    c = tiny.model(**switches)
    params, tokens = tiny.lively(c), tiny.tokens(2, 24)
    segments = np.repeat(np.array([[0, 1, 2], [5, 3, -1]], np.int32), 8, axis=1)
    packed = forward(c)(params, tokens, jnp.asarray(segments))
    apart = np.asarray(forward(c)(params, tokens.reshape(6, 8))).reshape(packed.shape)
    np.testing.assert_allclose(packed, apart, rtol=1e-4, atol=1e-4)
    unpacked = forward(c)(params, tokens)
    assert np.abs(unpacked - apart)[:, 8:].max() > 0.05  # and the segments are what does it


def test_depth_0_is_a_bigram_table():
    c = tiny.model(depth=0)
    got = np.asarray(forward(c)(tiny.lively(c), np.array([[7, 3, 7, 9, 3]], np.int32)))[0]
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(got[1], got[4])
    assert np.abs(got[0] - got[1]).max() > 0.1


# ---------------------------------------------------------------------------------------------------- other ways
BATCH = tiny.batch(4, 32)


@cache
def loss_and_grads(c):
    loss = next_token_loss(c, 1e-3)
    return jax.jit(jax.value_and_grad(lambda params, batch: loss({"lm": params}, batch, None)[0]))


@pytest.mark.parametrize(
    "over",
    [{"remat": "full"}, {"remat": "saved"}, {"unroll": True}, {"loss_chunk": 8}],
    ids=str,
)
def test_how_it_is_computed_does_not_change_loss_or_gradient(over):
    params = tiny.lively(tiny.model())
    want = loss_and_grads(tiny.model())(params, BATCH)
    tiny.assert_trees_close(loss_and_grads(tiny.model(**over))(params, BATCH), want, 1e-4, 1e-4)


def test_scan_equals_a_loop_over_blocks():
    c = tiny.model(**tiny.ALL)
    params, tokens = tiny.lively(c), jnp.asarray(tiny.tokens(2, 24))

    @jax.jit
    def loop(params):
        cos, sin = transformer.rope_angles(jnp.arange(24), c.head_dim, c.rope_theta)
        x0 = x = transformer.Embed(c).apply({"params": params["embed"]}, tokens)
        for i, window in enumerate((c.short_window, None)):
            weights = jax.tree.map(lambda w, i=i: w[i], params["blocks"])

            def attend(q, k, v, window=window):
                return attention(q, k, v, window=window), None

            x, _ = Block(c).apply({"params": weights}, x, cos, sin, attend, tokens, x0)
        return x

    got = jax.jit(partial(transformer.compute_hidden, c))(params, tokens)
    np.testing.assert_allclose(got, loop(params), rtol=1e-5, atol=1e-5)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def largest_logits(c):
    """Rows of the largest float32 array [..., V] anywhere in a training step's forward and backward pass."""
    loss = next_token_loss(c, 1e-3)
    params = tiny.init(c)
    traced = jax.make_jaxpr(jax.value_and_grad(lambda p: loss({"lm": p}, BATCH, None)[0]))(params)
    shapes = [
        v.aval.shape
        for e in equations(traced.jaxpr)
        for v in e.outvars
        if v.aval.dtype == jnp.float32
    ]
    return max(int(np.prod(s[:-1])) for s in shapes if s and s[-1] == c.vocab_size)


def test_chunked_loss_never_holds_all_logits():
    rows = BATCH["tokens"].size
    assert largest_logits(tiny.model()) == rows
    assert largest_logits(tiny.model(loss_chunk=8)) == max(
        rows // 4, tiny.model().width
    )  # [D, V] is the head itself


def test_a_chunk_that_does_not_divide_is_refused():
    c = tiny.model(loss_chunk=7)
    with pytest.raises(ValueError, match="32 tokens does not divide into loss chunks of 7"):
        jax.eval_shape(
            lambda: token_cross_entropy(
                c, tiny.init(c), jnp.zeros((128, c.width)), jnp.asarray(BATCH["targets"])
            )
        )


# ---------------------------------------------------------------------------------------------------- linear
@pytest.mark.parametrize("split", ["out", "in"])
@pytest.mark.parametrize("dims", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_gradient_equals_algebra(split, dims, dtype):
    """In value (whole numbers, exact in either dtype), in dtype, and in the sharding of the weight's gradient."""
    x_spec, y_spec = linear_module._activation_specs(split)
    stored = P("data", "model") if split == "out" else P("model", "data")
    rng = np.random.default_rng(0)
    x, w, dy = (rng.integers(-2, 3, s).astype(np.float32) for s in ((8, 16), (16, 24), (8, 24)))
    with jax.set_mesh(tiny.mesh(*dims)) as _:
        mesh = jax.sharding.get_mesh()
        put = [
            jax.device_put(a, jax.NamedSharding(mesh, s))
            for a, s in ((x, x_spec), (w, stored), (dy, y_spec))
        ]
        put[0], put[2] = put[0].astype(dtype), put[2].astype(dtype)
        y, (dx, dw) = jax.jit(
            lambda x, w, dy: (lambda y, pull: (y, pull(dy)))(
                *jax.vjp(lambda x, w: linear(x, w, split), x, w)
            )
        )(*put)
        assert dw.sharding.is_equivalent_to(put[1].sharding, 2) and dx.sharding.is_equivalent_to(
            put[0].sharding, 2
        )
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, "float32")
    for got, want in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        np.testing.assert_array_equal(np.asarray(got, np.float32), want)


def test_linear_dtypes_in_bfloat16():
    """bfloat16 in and out, float32 master weight and gradient; the sum over D is kept in float32."""
    D = 1024
    x = jnp.ones((2, D), jnp.bfloat16, out_sharding=P(transformer.ROWS))
    w = jnp.full((D, 4), 1.0 + 2**-7, out_sharding=P("data", "model"))
    y, pull = jax.vjp(jax.jit(lambda x, w: linear(x, w, "out")), x, w)
    dx, dw = pull(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert linear(x, w, "out", "float32").dtype == jnp.float32
    assert float(linear(x, w, "out", "float32")[0, 0]) == D * (1.0 + 2**-7)
    np.testing.assert_array_equal(dw, np.full((D, 4), 2.0))


def test_bfloat16_model_keeps_masters_and_logits_in_float32():
    c = tiny.model(dtype="bfloat16", **tiny.ALL)
    params = tiny.lively(c)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    loss, grads = jax.eval_shape(loss_and_grads(c), params, BATCH)
    assert loss.dtype == jnp.float32 and {g.dtype for g in jax.tree.leaves(grads)} == {
        jnp.dtype("float32")
    }
    x = jax.eval_shape(partial(transformer.compute_hidden, c), params, jnp.asarray(BATCH["tokens"]))
    assert x.dtype == jnp.bfloat16
    got, want = (
        forward(c)(params, BATCH["tokens"]),
        forward(tiny.model(**tiny.ALL))(params, BATCH["tokens"]),
    )
    assert got.dtype == jnp.float32
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).mean() + 0.02


# ---------------------------------------------------------------------------------------------------- init
def test_init_shapes_and_shardings():
    """Written out by hand: what a reader, an exporter and a checkpoint of this model rely on."""
    c = tiny.model(**tiny.ALL)
    out, back, table = P(None, "data", "model"), P(None, "model", "data"), P("model", "data")
    want = {
        "embed/table": ((320, 64), table), "embed/smear_gate": ((24,), P()), "embed/smear_scale": ((), P()),
        "head/norm": ((64,), P()), "head/weight": ((64, 320), P("data", "model")),
        "blocks/attn_norm": ((2, 64), P()), "blocks/mlp_norm": ((2, 64), P()),
        "blocks/q_norm": ((2, 16), P()), "blocks/k_norm": ((2, 16), P()),
        "blocks/wq": ((2, 64, 64), out), "blocks/wk": ((2, 64, 32), out), "blocks/wv": ((2, 64, 32), out),
        "blocks/wo": ((2, 64, 64), back),
        "blocks/w_up": ((2, 64, 128), out), "blocks/w_gate": ((2, 64, 128), out), "blocks/w_down": ((2, 128, 64), back),
        "blocks/value_table": ((2, 320, 32), P(None, "model", "data")), "blocks/value_gate": ((2, 12, 2), P()),
        "blocks/resid_scale": ((2,), P()), "blocks/x0_scale": ((2,), P()),
    }  # fmt: skip
    with jax.set_mesh(tiny.mesh(2, 2, 2)):
        made = tiny.init(c)
        mesh = jax.sharding.get_mesh()
    named = {
        jax.tree_util.keystr(p, simple=True, separator="/"): a
        for p, a in jax.tree_util.tree_leaves_with_path(made)
    }
    assert {name: a.shape for name, a in named.items()} == {
        name: shape for name, (shape, _) in want.items()
    }
    for name, (shape, spec) in want.items():
        assert named[name].sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), len(shape)), (
            name
        )
        assert named[name].dtype == jnp.float32


def test_init_is_the_same_on_every_mesh_and_its_blocks_differ():
    c = tiny.model()
    one = tiny.init(c)
    with jax.set_mesh(tiny.mesh(1, 4, 2)):
        many = tiny.init(c)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert np.abs(one["blocks"]["wq"][0] - one["blocks"]["wq"][1]).max() > 0.1
    np.testing.assert_allclose(one["embed"]["table"].std(), c.embed_std, rtol=0.05)
    np.testing.assert_allclose(one["blocks"]["wq"].std(), c.width**-0.5, rtol=0.05)
    assert not one["blocks"]["wo"].any() and not one["blocks"]["w_down"].any()


def test_untrained_model_is_near_uniform():
    c = tiny.model()
    loss = next_token_loss(c, 0.0)({"lm": tiny.init(c)}, BATCH, None)[0] / BATCH["weights"].sum()
    np.testing.assert_allclose(loss, np.log(c.vocab_size), atol=0.01)
