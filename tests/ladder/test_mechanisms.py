"""The few lines of NumPy of every rung against the model's own code: values, and gradients."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ramp.ladder import learn, mechanisms, sums
from ramp.ladder.exercises import draw_inputs, split_over_devices
from ramp.ladder.rungs import RUNGS
from ramp.model import attention, loss, transformer
from ramp.nines import sequential
from ramp.synth import guard
from ramp.train import optim

PLAIN = {
    "depth": 1,
    "width": 8,
    "rope": False,
    "qk_norm": False,
    "norm": False,
    "mlp": "none",
    "residual": False,
    "token_mixer": "attention",
}
ROW = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])


def make(heads=1, **over):
    """A model of one row with few parts; every matrix drawn at random, so that none is zero."""
    shape = {"num_heads": heads, "num_kv_heads": heads, "head_dim": 8 // heads, "mlp_dim": 12}
    c = tiny.model(**(PLAIN | shape | over))
    params = jax.jit(partial(transformer.init_params, c))(jax.random.PRNGKey(0))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    drawn = [jnp.asarray(rng.normal(size=leaf.shape) / 2, jnp.float32) for leaf in leaves]
    return c, jax.tree.unflatten(tree, drawn)


def run(c, params):
    """The embedded row and the hidden states of the model, [T, D] each."""
    table = np.asarray(params["embed"]["table"], float)
    hidden = jax.jit(partial(transformer.compute_hidden, c))(params, jnp.asarray(ROW))
    return table[ROW[0]], np.asarray(hidden)


def take(params, *names, block=0):
    """Matrices of a block."""
    return [np.asarray(params["blocks"][name][block], float) for name in names]


@pytest.fixture(autouse=True)
def on_a_mesh():
    with jax.set_mesh(tiny.mesh()):
        yield


def same(ours, models, tolerance=2e-5):
    np.testing.assert_allclose(ours, models, rtol=tolerance, atol=tolerance)


def test_what_the_docstrings_show_is_so():
    found = doctest.testmod(mechanisms)
    assert found.attempted > 30 and not found.failed


def test_counts():
    text = b"abracadabra, banana"
    counts = learn.count_bigrams(np.frombuffer(text, np.uint8).astype(np.int64))
    p = counts / counts.sum(axis=1, keepdims=True).clip(1)
    used = counts > 0
    bits = -(counts[used] * np.log2(p[used])).sum() / (len(text) - 1)
    same(mechanisms.bigram_bits(text), bits)
    single = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
    used = single > 0
    bits = -(single[used] * np.log2(single[used] / len(text))).sum() / len(text)
    same(mechanisms.unigram_bits(text), bits)


def test_the_gradient_of_a_table_is_that_of_the_loss():
    table, last, following = draw_inputs("learn_bigrams", 0)

    def mean_loss(table):
        nats, _ = loss.cross_entropy(table[last], jnp.asarray(following))
        return nats.mean()

    value, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(table, jnp.float32))
    ours, our_gradient = mechanisms.learn_bigrams(table, last, following)
    same(ours, value)
    same(our_gradient, gradient)


def test_window():
    c, params = make(4, token_mixer="window")
    x, hidden = run(c, params)
    wv, wo = take(params, "wv", "wo")
    w = [wv[:, 2 * j : 2 * j + 2] @ wo[2 * j : 2 * j + 2] for j in range(4)]
    same(mechanisms.mix_window(x, np.stack(w)), hidden)


def test_mean():
    c, params = make(token_mixer="mean")
    x, hidden = run(c, params)
    same(mechanisms.mean_of_past(x, *take(params, "wv", "wo")), hidden)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention(heads):
    c, params = make(heads)
    x, hidden = run(c, params)
    w = take(params, "wq", "wk", "wv", "wo")
    same(mechanisms.attend_heads(x, *w, heads), hidden)
    if heads == 1:
        same(mechanisms.attend(x, *w), hidden)


def test_rope():
    x, base = draw_inputs("rotate", 1)
    cos, sin = transformer.rope_angles(jnp.arange(len(x)), x.shape[1], base)
    turned = transformer.rope(jnp.asarray(x, jnp.float32)[None, :, None], cos, sin)
    same(mechanisms.rotate(x, base), turned[0, :, 0])


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_a_stack_of_blocks(mlp):
    """Feed-forward, residual and depth at once: two blocks of the model against ours."""
    c, params = make(2, depth=2, residual=True, mlp=mlp)
    x, hidden = run(c, params)
    if mlp == "relu2":
        blocks = []
        for i in range(2):
            heads = (*take(params, "wq", "wk", "wv", "wo", block=i), 2)
            blocks.append((heads, tuple(take(params, "w_up", "w_down", block=i))))
        same(mechanisms.run_blocks(x, blocks), hidden, 2e-4)
        return
    for i in range(2):
        x = x + mechanisms.attend_heads(x, *take(params, "wq", "wk", "wv", "wo", block=i), 2)
        x = x + mechanisms.swiglu(x, *take(params, "w_gate", "w_up", "w_down", block=i))
    same(x, hidden, 2e-4)


def test_norms():
    x, gain = draw_inputs("rms_norm", 0)
    same(mechanisms.rms_norm(x, gain), transformer.rms_norm(jnp.asarray(x), jnp.asarray(gain)))
    q, k, q_gain, k_gain = draw_inputs("score_normed", 0)
    normed = [transformer.rms_norm(*map(jnp.asarray, pair)) for pair in ((q, q_gain), (k, k_gain))]
    same(mechanisms.score_normed(q, k, q_gain, k_gain), normed[0] @ normed[1].T / q.shape[1] ** 0.5)


def test_groups_and_windows():
    q, k, v = draw_inputs("attend_groups", 1)
    models = attention.attention(*(jnp.asarray(a, jnp.float32)[None] for a in (q, k, v)))
    same(mechanisms.attend_groups(q, k, v), models[0])
    T, window = draw_inputs("near_mask", 0)
    seen = attention.visible_mask(np.arange(T)[:, None], np.arange(T)[None], window)
    assert (mechanisms.near_mask(T, window) == seen).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_muon(seed):
    """The model's five polynomials keep the directions, and make their sizes nearly equal."""
    (gradient,) = draw_inputs("orthogonalize", seed)
    models = np.asarray(optim.orthogonalize(jnp.asarray(gradient, jnp.float32)[None])[0], float)
    ours = mechanisms.orthogonalize(gradient)
    same(mechanisms.orthogonalize(models), ours, 2e-4)
    sizes = [np.linalg.svd(a, compute_uv=False) for a in (models, ours)]
    same(*sizes, 0.15)


def test_value_tables_and_scalars():
    c, params = make(2, value_embeds=True, x0_scalars=True)
    x, hidden = run(c, params)
    wq, wk, wv, wo = take(params, "wq", "wk", "wv", "wo")
    gate, table, keep, again = take(params, "value_gate", "value_table", "resid_scale", "x0_scale")
    x = mechanisms.mix_embedding(x, x, keep, again)
    values = (x @ wv).reshape(len(x), 2, 4)
    rows = table[ROW[0]].reshape(values.shape)
    values = mechanisms.add_values(x, values, rows, gate).reshape(len(x), 8)
    # A matrix that leaves them as they are makes values of values.
    found = []
    for i in range(2):
        q, k = (x @ w[:, 4 * i : 4 * i + 4] for w in (wq, wk))
        mask = mechanisms.near_mask(len(x), len(x))
        weights = mechanisms.softmax(np.where(mask, q @ k.T / 2, -np.inf))
        found.append(weights @ values[:, 4 * i : 4 * i + 4])
    same(np.concatenate(found, axis=1) @ wo, hidden)


def test_gradients_are_those_of_the_model():
    """A slope of ours along a random direction against the derivative of the model's own."""
    c, params = make(2, depth=2, residual=True, mlp="relu2")
    rng = np.random.default_rng(0)
    step = {name: rng.normal(size=w.shape) for name, w in params["blocks"].items()}
    weights = rng.normal(size=(len(ROW[0]), 8))

    def model(blocks):
        hidden = transformer.compute_hidden(c, params | {"blocks": blocks}, jnp.asarray(ROW))
        return jnp.sum(hidden * weights)

    def ours(size):
        moved = {k: np.asarray(w, float) + size * step[k] for k, w in params["blocks"].items()}
        blocks = []
        for i in range(2):
            heads = [moved[name][i] for name in ("wq", "wk", "wv", "wo")]
            blocks.append(((*heads, 2), (moved["w_up"][i], moved["w_down"][i])))
        x = np.asarray(params["embed"]["table"], float)[ROW[0]]
        return float(np.sum(mechanisms.run_blocks(x, blocks) * weights))

    gradient = jax.jit(jax.grad(model))(params["blocks"])
    slope = sum(float(jnp.sum(gradient[k] * step[k])) for k in step)
    assert (ours(1e-5) - ours(-1e-5)) / 2e-5 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_devices_that_share_the_weights_add_up(rung):
    args = draw_inputs(rung.lesson.mechanism, 1)
    function = getattr(mechanisms, rung.lesson.mechanism)
    parts = split_over_devices(rung.lesson.mechanism, args)
    assert not parts or np.allclose(sum(function(*part) for part in parts), function(*args))


# Beyond pretraining; advantages are compared in test_practices.py
def test_the_loss_of_an_answer_is_that_of_weighted_tokens():
    scores, tokens, asked = draw_inputs("answer_loss", 1)
    logits, targets = jnp.asarray(scores[:-1], jnp.float32), jnp.asarray(tokens[1:])
    nats, _ = loss.cross_entropy(logits, targets)
    weights = np.arange(1, len(tokens)) >= asked
    same(mechanisms.answer_loss(scores, tokens, asked), np.average(nats, weights=weights))


def test_what_is_kept_is_what_the_checker_passes():
    digits, steps = draw_inputs("keep_right", 0)
    passed = sums.judge_steps(digits, steps).all(axis=1)
    kept = mechanisms.keep_right(digits, steps)
    assert 0 < len(kept) < len(digits)
    assert np.array_equal(kept, np.concatenate([digits, steps], axis=1)[passed])


def test_evidence_is_that_of_the_guard():
    (worse,) = draw_inputs("weigh_evidence", 2)
    same(mechanisms.weigh_evidence(worse), guard.log_e_value(worse))


def test_proof_is_that_of_the_gate():
    passed, bar, _, _ = draw_inputs("prove", 0)
    ours = mechanisms.prove(passed, bar, 1 - sequential.BETTER, sequential.BETTER_SHARE)
    same(ours, sequential.log_capital_above(sequential.count_evidence(passed), bar))
