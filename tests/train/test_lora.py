"""LoRA by the optimizer is LoRA as it is written down: the same two factors, found by autodiff."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ramp.config import Train
from ramp.decode.sample import shard_rows
from ramp.errors import UserError
from ramp.model.loss import next_token_loss
from ramp.train import optim
from ramp.train.lora import is_pair
from ramp.train.state import init_state
from ramp.train.step import make_step

T = Train(
    steps=10,
    batch_size=8,
    seq_len=16,
    optimizer="adamw",
    adam_lr=1e-2,
    embed_lr=1e-2,
    head_lr=1e-2,
    scalar_lr=1e-2,
    warmup_steps=2,
    decay_fraction=0.0,
    skip_sigma=0.0,
    lora_rank=3,
    lora_targets=("wq", "w_down"),
)


def test_the_factors_are_those_of_autodiff():
    rng = np.random.default_rng(0)
    w0, x, y = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 4, 6), (8, 2, 4), (8, 2, 6))
    )

    def loss(w):
        return jnp.mean((jnp.einsum("nld,ldf->nlf", x, w) - y) ** 2)

    with jax.set_mesh(tiny.mesh()):
        t = replace(T, lora_targets=("wq",))
        params = {"lm": {"blocks": {"wq": w0, "wk": w0}}}
        tx = optim.make_optimizer(t)
        state = tx.init(params)
        pair = jax.tree.leaves(state, is_leaf=is_pair)
        (pair,) = [node for node in pair if is_pair(node) and np.asarray(node.b).max() == 0][:1]
        plain = optax.chain(
            optax.clip_by_global_norm(t.grad_clip_norm),
            optax.adam(
                lambda n: t.adam_lr * optim.make_schedule(t)(n), t.beta1, t.beta2, eps=1e-10
            ),
        )
        factors = (pair.a, pair.b)
        plain_state = plain.init(factors)
        merge = lambda f: w0 + t.lora_alpha / t.lora_rank * jnp.einsum("ldr,lrf->ldf", *f)  # noqa: E731
        for _ in range(6):
            grads = jax.grad(
                lambda p: loss(p["lm"]["blocks"]["wq"]) + loss(p["lm"]["blocks"]["wk"])
            )
            updates, state = tx.update(grads(params), state, params)
            params = optax.apply_updates(params, updates)
            updates, plain_state = plain.update(
                jax.grad(lambda f: loss(merge(f)))(factors), plain_state
            )
            factors = optax.apply_updates(factors, updates)
    np.testing.assert_allclose(params["lm"]["blocks"]["wq"], merge(factors), rtol=1e-4, atol=1e-5)
    assert (params["lm"]["blocks"]["wk"] == w0).all()  # frozen
    assert float(loss(merge(factors))) < float(loss(w0))


def test_a_model_learns_within_the_rank_on_every_mesh():
    c = tiny.model(depth=1)
    batch = tiny.batch(8, 16)
    found = []
    for shape in ((1, 1, 1), (1, 2, 2)):
        with jax.set_mesh(tiny.mesh(*shape)):
            lm = tiny.lively(c)
            before = jax.tree.map(np.asarray, lm)
            tx = optim.make_optimizer(T)
            state = jax.jit(lambda p, tx=tx: init_state({"lm": p}, tx, 0))(lm)
            step = make_step(next_token_loss(c, 0.0), tx, T)
            rows = dict(zip(batch, shard_rows(*batch.values()), strict=True))
            losses = []
            for _ in range(4):
                state, metrics = step(state, rows)
                losses.append(float(metrics["train/loss"]))
        assert losses[-1] < losses[0]
        changes = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params["lm"], before)
        found.append(changes)
        moved = {
            path[-1].key
            for path, change in jax.tree_util.tree_leaves_with_path(changes)
            if np.abs(change).max() > 0
        }
        assert moved == set(T.lora_targets)
        rank = np.linalg.matrix_rank(changes["blocks"]["wq"], tol=1e-4)
        assert (rank <= T.lora_rank).all()
    tiny.assert_trees_close(found[1], found[0], 1e-3, 1e-5)


def test_unknown_targets_are_named():
    with jax.set_mesh(tiny.mesh()):
        tx = optim.make_optimizer(replace(T, lora_targets=("wx",)))
        with pytest.raises(UserError, match=r"no wx; it has .*wq"):
            tx.init({"lm": tiny.init(tiny.model(depth=1))})
