"""The one update: any optax transformation, any mesh, any number of microbatches; guarded, scheduled, able to learn."""

import itertools
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ramp.config import Config, Text, Train, resolve
from ramp.model.loss import next_token_loss
from ramp.train import mesh as meshes
from ramp.train import optim
from ramp.train.guard import init_guard, judge_gradient
from ramp.train.state import eval_params, init_state
from ramp.train.step import accumulate_grads, make_step


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def rates(c, **over) -> Train:
    """Settings of a stage with the rates that the rule gives this model."""
    train = Train(**({"batch_size": 16, "seq_len": 16, "steps": 20, "warmup_steps": 4} | over))
    return resolve(Config(text=Text(vocab_size=264), model=c, pretrain=train)).pretrain


def begin(c, t, seed=0):
    tx = optim.make_optimizer(t)

    def make():
        return init_state({"lm": tiny.init(c, seed)}, tx, seed, t.ema_decay > 0)

    step = make_step(next_token_loss(c, t.z_loss), tx, t, optim.make_schedule(t))
    return jax.jit(make)(), step


def put(batch):
    size = len(batch["tokens"])
    return meshes.shard_batch(
        jax.sharding.get_mesh(), lambda lo, hi: {k: a[lo:hi] for k, a in batch.items()}, size
    )


# ---------------------------------------------------------------------------------------------------- equivalences
def uneven(rows, length, seed=0):
    """Microbatches of very different weight: rows 0, 4, 8 ... bear 16 times the loss of the others, row 1 none."""
    batch = tiny.batch(rows, length, seed=seed)
    batch["weights"] = np.zeros_like(batch["weights"])
    batch["weights"][:, 0] = 1
    batch["weights"][::4] = 1
    batch["weights"][1] = 0
    return batch


def test_accumulation_equals_one_batch_whatever_the_weights():
    """Normalised by the weight of the whole batch. The classic mistake, a mean of means, would be seen here."""
    c = tiny.model()
    loss, params, batch = next_token_loss(c, 1e-3), {"lm": tiny.lively(c)}, uneven(16, 16)
    run = {
        k: jax.jit(partial(accumulate_grads, loss, k=k))(params, put(batch), jax.random.PRNGKey(0))
        for k in (1, 4)
    }
    tiny.assert_trees_close(run[4], run[1], 1e-4, 1e-4)
    total = jax.jit(lambda params, batch: loss(params, batch, None)[0])
    parts = [{name: a[i::4] for name, a in batch.items()} for i in range(4)]
    means = [total(params, put(part)) / max(part["weights"].sum(), 1) for part in parts]
    whole = run[1][1]["loss"] / batch["weights"].sum()
    assert abs(np.mean(means) - whole) > 0.01


def test_accumulated_training_equals_plain_training_on_a_mesh():
    c = tiny.model()
    losses = {}
    for k, dims in ((1, (1, 1, 1)), (4, (1, 2, 2))):
        with jax.set_mesh(tiny.mesh(*dims)):
            state, step = begin(c, rates(c, grad_accum_steps=k, optimizer="adamw"))
            seen = []
            for i in range(4):
                state, metrics = step(state, put(uneven(16, 16, seed=i)))
                seen.append([float(metrics["train/loss"]), float(metrics["train/grad_norm"])])
        losses[k] = seen
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5)
    assert losses[1][-1] != losses[1][0]


@cache
def twenty_steps(dims, optimizer):
    c = tiny.model(num_heads=8, num_kv_heads=8, head_dim=8)
    t = rates(c, optimizer=optimizer, ema_decay=0.9, lr_scale=10.0)
    with jax.set_mesh(tiny.mesh(*dims)):
        state, step = begin(c, t)
        before = jax.tree.map(lambda a: a.sharding, state)
        losses = []
        for i in range(t.steps):
            state, metrics = step(state, put(tiny.batch(16, 16, seed=i % 4)))
            losses.append(float(metrics["train/loss"]))
        moved = jax.tree.map(lambda a, s: not a.sharding.is_equivalent_to(s, a.ndim), state, before)
    assert losses[-1] < losses[0] - 0.5
    return np.array(losses), jax.tree.leaves(moved)


MESHES = [(1, 8, 1), (1, 1, 8), (1, 4, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    ("dims", "optimizer"),
    [
        pytest.param(
            dims, name, marks=() if (dims, name) == (MESHES[3], "muon") else pytest.mark.slow
        )
        for dims in MESHES
        for name in ("muon", "adamw")
    ],
)
def test_eight_devices_equal_one(dims, optimizer):
    """Losses of 20 steps within 1e-5, float32; and no step changes how anything in the state is split."""
    losses, moved = twenty_steps(dims, optimizer)
    np.testing.assert_allclose(losses, twenty_steps((1, 1, 1), optimizer)[0], atol=1e-5, rtol=0)
    assert not any(moved)


def test_gradients_are_split_like_their_weights():
    c = tiny.model(**tiny.ALL)
    with jax.set_mesh(tiny.mesh(2, 2, 2)):
        params = {"lm": tiny.init(c)}
        grads, _ = jax.jit(partial(accumulate_grads, next_token_loss(c, 0.0), k=1))(
            params, put(tiny.batch(8, 16)), jax.random.PRNGKey(0)
        )
        for path, weight in jax.tree_util.tree_leaves_with_path(params):
            grad = grads
            for part in path:
                grad = grad[part.key]
            assert grad.sharding.is_equivalent_to(weight.sharding, weight.ndim), path
            assert grad.dtype == jnp.float32


# ---------------------------------------------------------------------------------------------------- any optax
def toy_loss(params, batch, key):
    """Pulls w [3] towards the batch's targets; the batch's `flag` multiplies the loss."""
    distance = jnp.sum((params["w"] - batch["targets"]) ** 2, -1)
    return jnp.sum(batch["weights"] * distance * batch["flag"]), {}


OPTAX = {
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.02),
    "sgd with momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "clip, then adam": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "adam on a schedule": lambda: optax.adam(optax.cosine_decay_schedule(0.2, 10)),
}


def run_by_hand(tx, batches, ema_decay):
    """(w, average of w) after each batch, by optax alone."""
    w, history = {"w": jnp.ones(3)}, []
    opt, average = tx.init(w), w
    for batch in batches:
        grads = jax.grad(lambda w, batch=batch: toy_loss(w, batch, None)[0] / 4)(w)
        updates, opt = tx.update(grads, opt, w)
        w = optax.apply_updates(w, updates)
        average = optax.incremental_update(w, average, 1 - ema_decay)
        history.append((w["w"], average["w"]))
    return np.array(history)


@pytest.mark.parametrize("ema_decay", [0.0, 0.75])
@pytest.mark.parametrize("accum", [1, 4])
@pytest.mark.parametrize("name", OPTAX)
def test_any_optax_transformation_does_what_it_does_by_hand(name, accum, ema_decay):
    """Signs, rates and schedules of the transformation's own, in one batch or in microbatches, with or without average."""
    t = Train(grad_accum_steps=accum, skip_sigma=0.0, ema_decay=ema_decay)
    tx, batches = OPTAX[name](), [toy_batch(level=2.0, seed=i) for i in range(12)]
    state = jax.jit(lambda: init_state({"w": jnp.ones(3)}, tx, 0, ema_decay > 0))()
    step, history = make_step(toy_loss, tx, t), []
    for batch in batches:
        state, metrics = step(state, batch)
        assert "train/lr" not in metrics  # nobody said what it is
        history.append(np.array([state.params["w"], eval_params(state)["w"]]))
    want = run_by_hand(tx, batches, ema_decay)
    np.testing.assert_allclose(np.array(history), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", [False, True])
def test_adamw_goes_down(average):
    tx = optax.adamw(0.1)
    t = Train(ema_decay=0.5 * average)
    state = jax.jit(lambda: init_state({"w": jnp.zeros(())}, tx, 0, average))()
    step = make_step(lambda params, batch, key: ((params["w"] - 3) ** 2, {}), tx, t)
    losses = []
    for _ in range(30):
        state, metrics = step(state, {"weights": jnp.ones(())})
        losses.append(float(metrics["train/loss"]))
    assert losses[0] == 9.0 and losses[-1] < 0.5
    assert losses == sorted(losses, reverse=True)


def test_a_skipped_step_leaves_optimizer_and_schedule_where_they_were():
    """With a bad batch between them the updates are those of the good batches alone; `State.step` counts all batches."""
    t = Train(steps=8, warmup_steps=4, decay_fraction=0.5, ema_decay=0.5)
    schedule = optim.make_schedule(t)
    tx = optax.adam(schedule)
    step = make_step(toy_loss, tx, t, schedule)

    def run(flags):
        state = jax.jit(lambda: init_state({"w": jnp.ones(3)}, tx, 0, average=True))()
        rates, seed = [], 0
        for flag in flags:
            state, metrics = step(state, toy_batch(flag, seed=seed))
            if np.isfinite(flag):
                rates.append(float(metrics["train/lr"]))
                assert metrics["train/update_norm"] > 0
                seed += 1
            else:
                assert metrics["train/update_norm"] == 0
        return state, rates

    good, rates = run([1.0] * 6)
    torn, torn_rates = run([1.0, np.nan, 1.0, 1.0, np.nan, np.inf, 1.0, 1.0, 1.0])
    jax.tree.map(np.testing.assert_array_equal, (torn.params, torn.opt), (good.params, good.opt))
    assert torn_rates == rates == [float(schedule(i)) for i in range(6)]
    assert (int(good.step), int(torn.step), int(torn.guard.skipped)) == (6, 9, 3)


# ---------------------------------------------------------------------------------------------------- guard
def toy_step(**over):
    """Adam on `toy_loss`, with an average and a guard."""
    t = Train(
        **(
            {
                "steps": 200,
                "batch_size": 4,
                "warmup_steps": 1,
                "decay_fraction": 0.0,
                "skip_sigma": 6.0,
                "ema_decay": 0.5,
            }
            | over
        )
    )
    tx = optax.adam(0.01)
    state = jax.jit(lambda: init_state({"w": jnp.ones(3)}, tx, 0, average=True))()
    return state, make_step(toy_loss, tx, t)


def toy_batch(flag=1.0, level=0.0, seed=0):
    targets = level + 0.3 * np.random.default_rng(seed).normal(size=(4, 3))
    as_f32 = partial(jnp.asarray, dtype=jnp.float32)
    return {
        "targets": as_f32(targets),
        "weights": as_f32(np.ones(4)),
        "flag": as_f32(np.full(4, flag)),
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("sigma", [0.0, 6.0])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad, sigma):
    """1e38: the loss is finite or not, the gradient norm overflows."""
    state, step = toy_step(skip_sigma=sigma)
    state, _ = step(state, toy_batch())
    before = jax.tree.map(np.asarray, (state.params, state.opt))
    for i in (1, 2):
        state, metrics = step(state, toy_batch(flag=bad, seed=i))
        assert (int(metrics["guard/skipped"]), int(metrics["guard/streak"])) == (i, i)
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt))
    assert int(state.step) == 3
    state, metrics = step(state, toy_batch(seed=3))
    assert (int(metrics["guard/skipped"]), int(metrics["guard/streak"])) == (2, 0)
    assert np.abs(np.asarray(state.params["w"]) - before[0]["w"]).max() > 1e-3
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state))


def test_an_outlier_is_skipped_once_there_is_history():
    state, step = toy_step()
    state, metrics = step(state, toy_batch(flag=1e4))
    assert int(metrics["guard/skipped"]) == 0  # nothing to compare with
    state, step = toy_step()
    for i in range(40):
        state, metrics = step(state, toy_batch(seed=i))
    assert int(metrics["guard/skipped"]) == 0
    before = jax.tree.map(np.asarray, (state.params, state.opt))
    state, metrics = step(state, toy_batch(flag=1e4))
    assert int(metrics["guard/skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt))


def judged(values, sigma=6.0):
    """Which of (loss, gradient norm) pairs pass, and the guard after them."""
    run = jax.jit(partial(judge_gradient, sigma=sigma))
    guard, passed = init_guard(), []
    for value in values:
        ok, guard = run(guard, jnp.asarray(value, jnp.float32))
        passed.append(bool(ok))
    return passed, guard


def test_guard_figures_are_mean_and_variance():
    values = np.random.default_rng(0).normal([3.0, 1.0], [0.1, 0.3], (64, 2))
    passed, guard = judged(values)
    assert all(passed)
    np.testing.assert_allclose(guard.mean, values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(guard.var, values.var(0), rtol=1e-3)


def test_a_lasting_change_of_level_is_let_through_and_an_explosion_is_not():
    rng = np.random.default_rng(0)
    calm = rng.normal([3.0, 1.0], 0.05, (64, 2))
    level, _ = judged([*calm, *rng.normal([5.0, 1.0], 0.05, (20, 2))])
    assert not level[64] and not level[65] and all(level[-10:])
    assert 2 <= level[64:].count(False) <= 8
    explosion, guard = judged([*calm, *([3.0 * 4.0**i, 1.0] for i in range(1, 21))])
    assert explosion[64:].count(True) == 0 and int(guard.streak) == 20
    either, _ = judged([*calm, [3.0, 9.0], [9.0, 1.0], [0.1, 0.1]])
    assert either[64:] == [False, False, True]  # each of the two counts; a low value is no outlier
    unguarded, _ = judged([*calm, [1e6, 1.0], [np.nan, 1.0], [1.0, np.inf]], sigma=0.0)
    assert unguarded[64:] == [True, False, False]


# ---------------------------------------------------------------------------------------------------- optimizer
def test_schedule_at_its_corners():
    schedule = optim.make_schedule(
        Train(steps=100, warmup_steps=10, decay_fraction=0.4, final_lr_fraction=0.1)
    )
    rate = [float(schedule(jnp.asarray(i))) for i in range(100)]
    np.testing.assert_allclose(rate[:11], [*np.arange(1, 11) / 10, 1.0], rtol=1e-6)
    np.testing.assert_allclose(rate[10:61], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rate[80], 0.1 + 0.9 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(rate[99], 0.1 + 0.9 / 40, rtol=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rate[60:]))
    flat = optim.make_schedule(Train(steps=50, warmup_steps=0, decay_fraction=0.0))
    assert float(flat(jnp.asarray(49))) == 1.0


def test_the_schedule_is_part_of_the_optimizer():
    """Update i is `-schedule(i)` times that of an optimizer whose schedule is flat, bitwise: only the factor differs."""
    t = Train(steps=10, warmup_steps=4, decay_fraction=0.5, adam_lr=0.1, scalar_lr=0.3)
    flat = replace(t, warmup_steps=0, decay_fraction=0.0)
    params = {"norm": jnp.ones(4)}
    updates = []
    for settings in (t, flat):
        tx = optim.make_optimizer(settings)
        state, made = tx.init(params), []
        for i in range(10):
            grads = {"norm": jnp.full(4, 1.0 + i)}
            update, state = tx.update(grads, state, params)
            made.append(np.asarray(update["norm"]))
        updates.append(made)
    schedule = optim.make_schedule(t)
    for i, (scheduled, plain) in enumerate(zip(*updates, strict=True)):
        np.testing.assert_array_equal(scheduled, schedule(i) * plain)
        assert (scheduled < 0).all()


def matrices(L, D, F, seed=0, lowest=None):
    """Random matrices; with `lowest`, singular values spread evenly in log from 1 down to it."""
    x = np.random.default_rng(seed).normal(size=(L, D, F))
    if lowest is not None:
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        x = u * np.geomspace(1, lowest, min(D, F)) @ vt
    return x.astype(np.float32)


orthogonal = jax.jit(optim.orthogonalize)


@pytest.mark.parametrize(
    ("D", "F", "lowest"),
    [(64, 24, None), (24, 64, None), (32, 32, 0.05), (64, 24, 0.05), (24, 64, 0.05)],
)
def test_orthogonal_is_the_nearest_orthogonal_matrix(D, F, lowest):
    """U V^T of the SVD times sqrt(max(1, F/D)): every singular value near 1, whatever the scale of the gradient."""
    x = matrices(3, D, F, lowest=lowest)
    scale = max(1, F / D) ** 0.5
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    for size in (1.0, 1e-4, 1e4):
        got = np.asarray(orthogonal(size * x)) / scale
        values = np.linalg.svd(got, compute_uv=False)
        assert values.min() > 0.8 and values.max() < 1.2, (values.min(), values.max())
        assert np.linalg.norm(got - u @ vt) < 0.15 * np.linalg.norm(u @ vt)


def test_orthogonal_of_zero_is_zero_and_each_matrix_is_its_own():
    x = matrices(3, 16, 24)
    x[1] = 0
    got = np.asarray(orthogonal(x))
    assert np.isfinite(got).all() and not got[1].any()
    np.testing.assert_allclose(got[2], orthogonal(x[2:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("L", "dims", "spec"), [(3, (1, 4, 2), ("data", "model")), (8, (2, 2, 2), ("model", "data"))]
)
def test_orthogonal_is_the_same_on_a_mesh(L, dims, spec):
    x = matrices(L, 16, 32)
    want = orthogonal(x)
    with jax.set_mesh(tiny.mesh(*dims)):
        split = jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), jax.P(None, *spec)))
        got = orthogonal(split)
        assert got.sharding.is_equivalent_to(split.sharding, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_orthogonal_in_bfloat16_is_coarse_but_right():
    x = matrices(3, 32, 64, lowest=0.05)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    got = optim.orthogonalize(jnp.asarray(x), dtype="bfloat16")
    assert got.dtype == jnp.float32
    assert np.linalg.norm(got / 2**0.5 - u @ vt) < 0.2 * np.linalg.norm(u @ vt)


def test_muon_step_by_hand():
    """Nesterov momentum as Jordan et al. 2024 write it, from zero, for two steps."""
    tx, g = optim.scale_by_muon(0.9), [matrices(2, 8, 8, seed=i) for i in (1, 2)]
    state = tx.init(jnp.zeros((2, 8, 8)))
    m = 0
    for grad in g:
        update, state = tx.update(jnp.asarray(grad), state)
        m = 0.9 * m + 0.1 * grad
        np.testing.assert_allclose(update, orthogonal(0.9 * m + 0.1 * grad), rtol=1e-3, atol=1e-4)


def test_every_parameter_is_in_its_group():
    params = {"lm": jax.eval_shape(partial(tiny.init, tiny.model(**tiny.ALL)))}
    named = jax.tree_util.tree_leaves_with_path(optim.label_params(params))
    groups = {}
    for path, group in named:
        groups.setdefault(group, set()).add(path[-1].key)
    assert groups == {
        "matrix": {"wq", "wk", "wv", "wo", "w_up", "w_gate", "w_down"},
        "embed": {"table", "value_table"},
        "head": {"weight"},
        "scalar": {
            "attn_norm", "mlp_norm", "q_norm", "k_norm", "norm", "value_gate", "smear_gate", "smear_scale",
            "resid_scale", "x0_scale",
        },
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_each_group_moves_at_its_own_rate(optimizer):
    """The first Adam update is the rate itself, in size; Muon's has the rate as its singular values; decay is apart."""
    t = Train(
        optimizer=optimizer,
        muon_lr=0.5,
        adam_lr=0.1,
        embed_lr=0.2,
        head_lr=0.3,
        scalar_lr=0.4,
        grad_clip_norm=0,
        lr_scale=2,
        steps=10,
        warmup_steps=1,
        decay_fraction=0,
    )
    params = {
        "wq": jnp.ones((2, 8, 8)),
        "table": jnp.ones((16, 8)),
        "weight": jnp.ones((8, 16)),
        "norm": jnp.ones(8),
    }
    grads = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(0).normal(size=p.shape), jnp.float32), params
    )

    def first(t):
        tx = optim.make_optimizer(t)
        return jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])(grads)

    updates = first(t)
    for name, rate in (("table", 0.2), ("weight", 0.3), ("norm", 0.4)):
        np.testing.assert_allclose(updates[name], -2 * rate * np.sign(grads[name]), rtol=1e-4)
    if optimizer == "muon":
        np.testing.assert_allclose(
            np.linalg.norm(updates["wq"], axis=(1, 2)), 2 * 0.5 * np.sqrt(8), rtol=0.15
        )
    else:
        np.testing.assert_allclose(updates["wq"], -2 * 0.1 * np.sign(grads["wq"]), rtol=1e-4)
    decayed = first(replace(t, weight_decay=0.25))
    rate = 0.5 if optimizer == "muon" else 0.1
    np.testing.assert_allclose(decayed["wq"] - updates["wq"], -2 * rate * 0.25, rtol=1e-3)
    np.testing.assert_array_equal(decayed["table"], updates["table"])


def test_clipping_bounds_the_gradient_and_spares_small_ones():
    t = Train(
        optimizer="adamw", grad_clip_norm=1.0, adam_lr=1.0, embed_lr=1.0, head_lr=1.0, scalar_lr=1.0
    )
    params = {"norm": jnp.zeros(4)}

    def momentum(g):
        tx = optim.make_optimizer(t)
        return jax.tree.leaves(tx.update({"norm": jnp.full(4, g)}, tx.init(params), params)[1])

    assert any(
        np.shape(a) == (4,) and np.allclose(a, 0.1 * 0.5) for a in momentum(7.0)
    )  # norm 14 becomes 1
    assert any(
        np.shape(a) == (4,) and np.allclose(a, 0.1 * 0.2) for a in momentum(0.2)
    )  # norm .4 stays


def test_average_follows_its_formula():
    state, step = toy_step(ema_decay=0.75)
    want = np.asarray(state.params["w"])
    for i in range(5):
        state, _ = step(state, toy_batch(seed=i))
        want = 0.75 * want + 0.25 * np.asarray(state.params["w"])
    np.testing.assert_allclose(eval_params(state)["w"], want, rtol=1e-6)
    assert np.abs(want - np.asarray(state.params["w"])).max() > 1e-3


# ---------------------------------------------------------------------------------------------------- learning
def test_overfits_one_batch():
    c = tiny.model(**tiny.ALL)
    state, step = begin(c, rates(c, steps=120, batch_size=4, lr_scale=20.0, decay_fraction=0.3))
    batch = put(tiny.batch(4, 16))
    for _ in range(120):
        state, metrics = step(state, batch)
    assert metrics["train/loss"] < 0.05
    assert int(metrics["guard/skipped"]) == 0


def test_loss_on_a_known_source_comes_down_to_its_entropy_and_not_below():
    """Tokens of a first-order Markov chain: what the true chain says of each batch is a floor no causal model passes."""
    V, steps, rng = 16, 120, np.random.default_rng(0)
    chain = rng.dirichlet(np.full(V, 0.3), V)
    c = tiny.model()
    state, step = begin(c, rates(c, steps=steps, batch_size=16, seq_len=32, lr_scale=2.0))
    gaps = []
    for _ in range(steps):
        stream = np.zeros((16, 33), np.int32)
        stream[:, 0] = rng.integers(0, V, 16)
        for i in range(1, 33):
            stream[:, i] = (
                (chain[stream[:, i - 1]].cumsum(-1) < rng.random((16, 1))).sum(-1).clip(max=V - 1)
            )
        tokens, targets = stream[:, :-1], stream[:, 1:]
        floor = -np.log(chain[tokens, targets]).mean()
        state, metrics = step(
            state,
            put(
                {
                    "tokens": tokens,
                    "targets": targets,
                    "weights": np.ones(tokens.shape, np.float32),
                }
            ),
        )
        gaps.append(float(metrics["train/loss"]) - floor)
    gaps = np.array(gaps)
    assert gaps[0] > 3
    assert gaps.min() > -0.02 and gaps[-20:].mean() > 0
    assert gaps[-20:].mean() < 0.15
