"""The policy loss: clips, the KL whose gradient is right, guards; and the sampler's numbers are the loss's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.config import Reinforce, Train
from ramp.credit import learn, process_head, rollouts
from ramp.credit import loss as L
from ramp.tasks import chain
from ramp.text.tokenizer import Tokenizer
from ramp.train.state import init_state
from ramp.train.step import make_step

TOKENIZER = Tokenizer.bytes_only()


def closed_forms(logits, ref):
    """Gradients of KL(p||q) and KL(q||p) with respect to the logits of p."""
    forward = jax.grad(
        lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - jax.nn.log_softmax(ref)))
    )
    back = jax.grad(
        lambda x: jnp.sum(jax.nn.softmax(ref) * (jax.nn.log_softmax(ref) - jax.nn.log_softmax(x)))
    )
    return forward(logits), back(logits)


def expected_gradient(value, logits, ref):
    """The mean over samples of p of the gradient of `value(logp, ref_logp)`, the sample held fixed, exactly."""
    p = jax.nn.softmax(logits)

    def of(token):
        return jax.grad(
            lambda x: value(jax.nn.log_softmax(x)[token], jax.nn.log_softmax(ref)[token])
        )(logits)

    return sum(p[t] * of(t) for t in range(len(logits)))


def test_the_kl_term_has_the_gradient_of_the_kl():
    logits, ref = jnp.array([0.3, -1.0, 0.8, 0.1]), jnp.array([-0.5, 0.2, 0.4, 1.0])
    right, opposite = closed_forms(logits, ref)
    for form in ("k2", "k3"):
        got = expected_gradient(lambda a, b, form=form: L.kl(a, b, form), logits, ref)
        np.testing.assert_allclose(got, right, atol=1e-6)
    k1 = expected_gradient(lambda a, b: a - b, logits, ref)
    np.testing.assert_allclose(k1, 0, atol=1e-6)  # why k1 has no place in a loss
    k3 = expected_gradient(lambda a, b: jnp.exp(b - a) - 1 - (b - a), logits, ref)
    np.testing.assert_allclose(k3, opposite, atol=1e-6)  # nor has plain k3
    assert np.abs(np.asarray(right - opposite)).max() > 0.01


def test_k3_reports_the_kl():
    logits, ref = jnp.array([0.3, -1.0, 0.8]), jnp.array([-0.5, 0.2, 0.4])
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
    assert jnp.sum(jnp.exp(p) * L.kl(p, q, "k3")) == pytest.approx(
        float(jnp.sum(jnp.exp(p) * (p - q))), abs=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(st.floats(-30, 30), st.floats(-2, 2))
def test_the_clip_holds_and_nothing_overflows(gap, advantage):
    terms = Reinforce()
    value, slope = jax.value_and_grad(lambda x: L.surrogate(x, 0.0, advantage, terms))(gap)
    assert np.isfinite(value) and np.isfinite(slope)
    ratio = np.exp(np.clip(gap, -20, 20))
    if advantage > 0 and ratio > 1 + terms.clip_high + 1e-3:
        assert slope == 0
    if advantage < 0 and (ratio < 1 - terms.clip_low - 1e-3 or ratio > terms.dual_clip + 1e-3):
        assert slope == 0
    assert value <= terms.dual_clip * max(-advantage, 0) + 1e-5


def test_most_covariant_finds_the_tokens_that_cost_entropy():
    batch = {
        "old": np.array([[-0.1, -3.0, -0.2, -0.3]], np.float32),
        "advantage": np.array([[2.0, 0.0, 0.0, 0.0]], np.float32),
        "weights": np.ones((1, 4), np.float32),
    }
    for padding in (0, 12):  # what bears no weight is no token
        padded = {name: np.pad(a, ((0, 0), (0, padding))) for name, a in batch.items()}
        hit = L.most_covariant(padded, 0.25)
        assert hit.tolist() == [[1, 0, 0, 0, *[0] * padding]]
    same = batch | {"advantage": np.ones((1, 4), np.float32)}
    assert L.most_covariant(same, 0.5).sum() == 0


def test_the_bonus_adapts_towards_its_target():
    assert (
        L.adapt_entropy_coef(0.01, 0.1, 0.5)
        > L.adapt_entropy_coef(0.01, 0.5, 0.5)
        == 0.01
        > L.adapt_entropy_coef(0.01, 0.9, 0.5)
        > 0
    )
    assert L.adapt_entropy_coef(0.1, 0.0, 1.0) <= 1.0


def test_sampler_and_loss_agree_on_every_token(temperature=0.7):
    """Sampled log-probabilities are those the loss computes: the first ratio is 1."""
    c = tiny.model(vocab_size=264, context_len=96)
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c)
        asked = [chain.sample(i, 3) for i in range(4)]
        r = rollouts.sample_rollouts(c, lm, TOKENIZER, chain.TASK, asked, 2, 20, 5, temperature)
        batch = rollouts.make_rows(r, 64, np.zeros_like(r.logps_bn))
        logps = jax.jit(L.token_logps, static_argnums=(0, 4))
        logp, entropy = logps(c, lm, batch["tokens"], batch["targets"], temperature)
    said = batch["weights"] > 0
    assert said.sum() == r.num_tokens > 50
    np.testing.assert_allclose(np.asarray(logp)[said], batch["old"][said], atol=2e-4)
    assert (np.asarray(entropy) >= 0).all()


def test_rows_without_signal_change_nothing():
    """A group whose advantages are all zero bears no weight: no gradient, no KL, however far the reference is."""
    c = tiny.model(vocab_size=264, context_len=96)
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c)
        r = rollouts.sample_rollouts(c, lm, TOKENIZER, chain.TASK, [chain.sample(0, 2)], 2, 8, 5)
        none = np.zeros_like(r.logps_bn)
        keep_b = rollouts.rows_with_signal(r, none)
        assert keep_b.sum() == 0
        batch = rollouts.make_rows(r, 48, none)
        batch["weights"] = batch["weights"] * keep_b[:, None]
        batch["ref"] = batch["old"] - 5
        loss = L.policy_loss(c, Reinforce(kl_coef=1.0))
        grads = jax.jit(jax.grad(lambda p: loss({"lm": p}, batch, None)[0]))(lm)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) == 0


def random_batch(c, rows=8, length=24):
    """Sampled tokens with advantages, a sampler and a reference that are not the policy."""
    rng = np.random.default_rng(0)
    said = np.arange(length) < rng.integers(4, length, (rows, 1))
    batch = {
        "tokens": tiny.tokens(rows, length, c.vocab_size),
        "targets": tiny.tokens(rows, length, c.vocab_size, seed=1),
        "weights": said.astype(np.float32),
        "advantage": np.where(said, rng.normal(size=said.shape), 0).astype(np.float32),
        "entropy_coef": rng.random((rows, 1)).astype(np.float32),
    }
    for name in ("old", "ref"):
        batch[name] = rng.normal(-5, 0.5, said.shape).astype(np.float32)
    return batch


# All options of the loss, several at once: its terms are summed.
OPTIONS = [
    {"entropy_control": "clip_cov", "kl_coef": 0.1, "kl_form": "k2", "entropy_coef": 0.01},
    {
        "entropy_control": "kl_cov",
        "kl_coef": 0.1,
        "kl_form": "k3",
        "temperature": 0.7,
        "clip_low": 0.1,
        "clip_high": 0.1,
        "dual_clip": 1.5,
    },
]


def updated(c, t, batch, k, where):
    """The parameters after one plain update in k microbatches on a mesh."""
    step = make_step(learn.make_loss(c, t), optax.sgd(0.5), Train(grad_accum_steps=k, skip_sigma=0))
    with jax.set_mesh(where):
        params = {"lm": tiny.lively(c)}
        if {"labels", "outcome"} & batch.keys():
            params["process"] = process_head.init_head(c, tiny.lively(c, seed=1))
        state = jax.jit(lambda p: init_state(p, optax.sgd(0.5), 0))(params)
        state, metrics = step(state, learn.shard_batch(batch))
        return jax.tree.map(np.asarray, state.params), float(metrics["train/loss"])


@pytest.mark.parametrize("option", OPTIONS, ids=["clip_cov", "kl_cov"])
def test_every_option_is_the_same_update_in_microbatches_and_on_meshes(option):
    c = tiny.model(vocab_size=64, context_len=24, depth=1)
    t = Reinforce(**({"entropy_control_fraction": 0.1} | option))
    batch = random_batch(c)
    if not t.entropy_coef:
        del batch["entropy_coef"]
    if not t.kl_coef:
        del batch["ref"]
    if t.entropy_control != "none":
        batch["covariant"] = L.most_covariant(batch, t.entropy_control_fraction)
    want, loss = updated(c, t, batch, 1, tiny.mesh())
    got, other = updated(c, t, batch, 4, tiny.mesh(data=2, model=2))
    tiny.assert_trees_close(got, want, 1e-5, 1e-5)
    assert other == pytest.approx(loss, rel=1e-5)


def test_the_losses_of_heads_are_the_same_update_in_microbatches_and_on_meshes():
    """Of the process head and of the implicit reward, where some rows have no label at all."""
    c = tiny.model(vocab_size=64, context_len=24, depth=1)
    batch, rng = random_batch(c), np.random.default_rng(2)
    labelled = (rng.random((8, 24)) < 0.2) * (np.arange(8) % 3 > 0)[:, None]
    right = rng.random((8, 24)) < 0.5
    heads = {"labels": right, "label_weights": labelled, "lm_weights": labelled & right}
    heads |= {"sampled": batch["weights"], "outcome": rng.random((8, 1)) < 0.5}
    batch |= {name: np.asarray(a, np.float32) for name, a in heads.items()}
    t = Reinforce(process_head_coef=0.7)
    want, loss = updated(c, t, batch, 1, tiny.mesh())
    got, other = updated(c, t, batch, 4, tiny.mesh(data=2, model=2))
    tiny.assert_trees_close(got, want, 1e-5, 1e-5)
    assert other == pytest.approx(loss, rel=1e-5)
    assert np.abs(want["process"]["out"]["surprise"] - 0.1).max() > 1e-4  # it learned


def test_kl_cov_adds_nothing_on_policy():
    """Up to rounding, which |log ratio| would have turned into a sign."""
    c = tiny.model(vocab_size=64, context_len=24, depth=1)
    batch = random_batch(c)
    with jax.set_mesh(tiny.mesh()):
        params = {"lm": tiny.lively(c)}
        logps = jax.jit(L.token_logps, static_argnums=0)
        logp, _ = logps(c, params["lm"], batch["tokens"], batch["targets"])
        noise = np.random.default_rng(1).normal(0, 1e-6, logp.shape)
        batch["old"] = np.asarray(logp + noise, np.float32)
        batch["covariant"] = L.most_covariant(batch, 0.3)
        assert batch["covariant"].sum() > 5
        plain, held = (
            L.policy_loss(c, Reinforce(entropy_control=name)) for name in ("none", "kl_cov")
        )

        @jax.jit
        def gradients(params):
            of_plain = jax.grad(lambda p: plain(p, batch, None)[0])(params)
            of_held = jax.grad(lambda p: held(p, batch, None)[0])(params)
            gap = jax.tree.map(lambda a, b: a - b, of_plain, of_held)
            return optax.tree.norm(gap), optax.tree.norm(of_plain)

        gap, size = gradients(params)
    assert gap < 1e-5 * size
