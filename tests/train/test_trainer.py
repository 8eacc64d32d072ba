"""The host's side of training: metrics once a step and one step late, resuming, leaving, giving up."""

import json
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ramp.config import Config, Text, Train, resolve
from ramp.errors import UserError
from ramp.model.loss import next_token_loss
from ramp.reporting.metrics import MetricWriter, read_last_values
from ramp.rundir import RunDir
from ramp.text.rows import ArrayRows, Batches
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.checkpoint import Checkpoints
from ramp.train.clock import KINDS, Clock
from ramp.train.divergence import Diverged
from ramp.train.preemption import Preempted, Preemption
from ramp.train.restore import init_template
from ramp.train.state import abstract_state, init_state
from ramp.train.step import make_step
from ramp.train.trainer import LoopRun, Trainer, run_steps, train_loop

# Orbax leaves coroutines behind, which says nothing about us.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def rows(n=20, length=8):
    batch = tiny.batch(n, length, vocab=264)
    return ArrayRows(
        batch["tokens"],
        batch["targets"],
        np.ones_like(batch["weights"]),
        np.zeros_like(batch["tokens"]),
    )


TOY = Train(
    steps=12,
    batch_size=4,
    seq_len=8,
    warmup_steps=1,
    decay_fraction=0.0,
    eval_every=6,
    save_every=4,
    log_every=1,
    max_skipped_steps=3,
    skip_sigma=0.0,
)


def toy_loss(params, batch, key):
    """Pulls w towards the batch's tokens, with noise from the key, so that both belong to what a resume must repeat."""
    aim = batch["tokens"] / 264 + jax.random.normal(key, batch["tokens"].shape)
    return jnp.sum(batch["weights"] * (params["w"] - aim) ** 2), {}


def toy_state(tx):
    return jax.jit(lambda: init_state({"w": jnp.ones(8)}, tx, 3))()


ADAM = optax.adam(0.05)


def toy_fit(
    directory, t=TOY, loss=toy_loss, evaluate=lambda state, stop: {"eval/x": 1.0}, spy=None, tx=ADAM
):
    """`train_loop` from the newest checkpoint in `directory`, or from nothing; returns the final state."""
    checkpoints = Checkpoints(directory / "ckpt", keep=10)
    state = toy_state(tx)
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    found = checkpoints.restore(like)
    state, saved = (found[0], found[1]) if found else (state, {"clock": {}})
    clock = Clock()
    clock.add(saved["clock"], {})
    first = int(state.step)
    step = make_step(loss, tx, t)
    writer = MetricWriter(directory, "toy", first + 1 if first else 0)
    with writer, closing(checkpoints):
        run = LoopRun(
            label="toy",
            t=t,
            evaluate=evaluate,
            score="eval/x",
            meta={"mine": 1},
            writer=writer,
            checkpoints=checkpoints,
            clock=clock,
            stop=Preemption(),
        )
        return train_loop(run, state, spy(step) if spy else step, Batches(rows(), 4, seed=1))


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    return [(line["step"], line["train/loss"]) for line in lines(directory) if "train/loss" in line]


def assert_same(got, want):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want
    )


def test_every_step_is_logged_once_and_saved_and_evaluated_when_due(tmp_path):
    evaluated = []

    def evaluate(state, stop):
        evaluated.append(int(state.step))
        return {"eval/x": 10.0 - int(state.step)}

    state = toy_fit(tmp_path, evaluate=evaluate)
    assert int(state.step) == 12
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 13))
    assert evaluated == [6, 12]
    assert [(x["step"], x["eval/x"]) for x in lines(tmp_path) if "eval/x" in x] == [
        (6, 4.0),
        (12, -2.0),
    ]
    checkpoints = Checkpoints(tmp_path / "ckpt")
    assert checkpoints.steps() == [4, 8, 12] and checkpoints.best_step() == 12
    last = lines(tmp_path)[-2]
    assert last["train/tokens"] == 12 * 4 * 8 and last["time/compile"] > 0
    assert (
        sum(last[f"time/{kind}"] for kind in ("data", "compile", "step", "eval", "save", "other"))
        > 0
    )


def test_metrics_are_read_one_step_late(tmp_path):
    """Step k+1 is handed to the device before the metrics of step k are asked for."""
    events = []

    class Metric:
        def __init__(self, step, value):
            self.step, self.value = step, value

        def __array__(self, *args, **kwargs):
            events.append(f"read {self.step}")
            return np.asarray(self.value)

        def __float__(self):
            return float(np.asarray(self))

    def spy(step):
        def watched(state, batch):
            at = int(state.step) + 1
            events.append(f"step {at}")
            state, metrics = step(state, batch)
            return state, metrics | {"train/loss": Metric(at, metrics["train/loss"])}

        return watched

    toy_fit(tmp_path, replace(TOY, steps=3, save_every=9, eval_every=9), spy=spy)
    order = list(dict.fromkeys(events))
    assert order == ["step 1", "step 2", "read 1", "step 3", "read 2", "read 3"]


def test_sigterm_saves_and_the_rest_is_bitwise_what_it_would_have_been(tmp_path):
    whole = toy_fit(tmp_path / "whole")

    def leave_at(at):
        def spy(step):
            def watched(state, batch):
                if int(state.step) + 1 == at:
                    signal.raise_signal(signal.SIGTERM)
                return step(state, batch)

            return watched

        return spy

    before = signal.getsignal(signal.SIGTERM)
    for at in (3, 7, 9):
        with pytest.raises(Preempted, match=f"stopped at step {at} of 12"):
            toy_fit(tmp_path / "parts", spy=leave_at(at))
        assert signal.getsignal(signal.SIGTERM) is before
        assert Checkpoints(tmp_path / "parts" / "ckpt").steps()[-1] == at
    assert_same(toy_fit(tmp_path / "parts"), whole)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_step_that_samples_may_be_cut_short(tmp_path):
    """It raises with the state as it was: that of the step before is saved, and nothing is lost."""
    whole = toy_fit(tmp_path / "whole")

    def spy(step):
        def cut(state, batch):
            if int(state.step) == 6:
                signal.raise_signal(signal.SIGTERM)
                raise Preempted("while it sampled")
            return step(state, batch)

        return cut

    with pytest.raises(Preempted, match="stopped at step 6 of 12"):
        toy_fit(tmp_path / "parts", spy=spy)
    assert Checkpoints(tmp_path / "parts" / "ckpt").steps()[-1] == 6
    assert_same(toy_fit(tmp_path / "parts"), whole)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_sigterm_while_evaluating_saves_too(tmp_path):
    def evaluate(state, stop):
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested(0)
        return {}

    with pytest.raises(Preempted, match="stopped at step 6"):
        toy_fit(tmp_path, evaluate=evaluate)
    assert Checkpoints(tmp_path / "ckpt").steps() == [4, 6]


@pytest.mark.parametrize("cut", [6, 12])
def test_an_evaluation_that_a_stop_cuts_short_is_made_up_for(tmp_path, cut):
    """At the next start and before any step; so that the last step, evaluated late, can still be the best."""
    evaluated = []

    def evaluate(state, stop):
        evaluated.append(int(state.step))
        if evaluated.count(cut) == 1 and evaluated[-1] == cut:
            signal.raise_signal(signal.SIGTERM)
            stop.check(0)
        return {"eval/x": 10.0 - int(state.step)}

    with pytest.raises(Preempted, match=f"stopped at step {cut} of 12"):
        toy_fit(tmp_path, evaluate=evaluate)
    assert Checkpoints(tmp_path / "ckpt").scored(cut) is False
    toy_fit(tmp_path, evaluate=evaluate)
    toy_fit(tmp_path, evaluate=evaluate)  # now nothing is owed
    assert evaluated == sorted([6, 12, cut])
    assert [(x["step"], x["eval/x"]) for x in lines(tmp_path) if "eval/x" in x] == [
        (6, 4.0),
        (12, -2.0),
    ]
    checkpoints = Checkpoints(tmp_path / "ckpt")
    assert checkpoints.scored(cut) and checkpoints.best_step() == 12


def test_one_request_stops_every_stage_that_follows(tmp_path):
    stop = Preemption()
    # Also where nobody has polled since.
    with pytest.raises(Preempted), stop:
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Preempted):
        stop.check(0)


def test_a_fault_between_checkpoints_loses_nothing_but_time(tmp_path):
    """The process dies at step 7; the lines of steps 5 and 6 are taken back, and come again from the checkpoint of 4."""
    whole = toy_fit(tmp_path / "whole")

    def spy(step):
        def dies(state, batch):
            if int(state.step) == 7:
                raise OSError("power")
            return step(state, batch)

        return dies

    with pytest.raises(OSError, match="power"):
        toy_fit(tmp_path / "parts", spy=spy)
    assert [step for step, _ in losses(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    assert_same(toy_fit(tmp_path / "parts"), whole)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_of_bad_steps_stops_the_job_and_leaves_the_last_good_checkpoint(tmp_path):
    t = replace(TOY, steps=30, save_every=5)

    def spy(step):
        def bad_after_6(state, batch):
            weight = jnp.where(state.step >= 6, jnp.nan, 1.0)
            return step(state, batch | {"weights": batch["weights"] * weight})

        return bad_after_6

    with pytest.raises(
        Diverged, match=r"3 steps in a row, up to step 9, had a non-finite or outlying loss"
    ):
        toy_fit(tmp_path, t, spy=spy)
    assert Checkpoints(tmp_path / "ckpt").steps() == [5]
    good = toy_fit(tmp_path / "good", replace(t, steps=5))
    again = toy_fit(tmp_path, replace(t, steps=5))
    assert_same(again.params, good.params)
    assert int(again.guard.skipped) == 0


def test_a_state_that_an_update_has_spoiled_is_never_saved(tmp_path):
    """Loss and gradient from the sixth step on are good, the updates are not: no guard of gradients sees that."""
    spoils = optax.scale_by_schedule(lambda count: jnp.where(count >= 5, jnp.inf, -0.05))
    with pytest.raises(Diverged, match=r"3 steps in a row, up to step 8, had an update of norm"):
        toy_fit(tmp_path, replace(TOY, save_every=2), tx=spoils)
    assert Checkpoints(tmp_path / "ckpt").steps() == [2, 4, 6]  # of 6 nothing was added
    whole = toy_fit(tmp_path / "whole", replace(TOY, steps=5), tx=spoils)
    again = toy_fit(tmp_path, replace(TOY, steps=6), tx=spoils)
    assert_same(again.params, whole.params)


def test_nothing_is_left_to_do_for_a_finished_stage(tmp_path):
    state = toy_fit(tmp_path)

    def never(step):
        def watched(state, batch):
            raise AssertionError("a finished stage trains on")

        return watched

    assert_same(toy_fit(tmp_path, spy=never), state)


def test_the_clock_counts_what_a_killed_start_did_for_nothing():
    clock = Clock()
    clock.add(
        {"step": 60.0, "save": 20.0, "other": 10.0}, {"step": 69.0, "save": 20.0, "other": 11.0}
    )
    assert clock.split()["lost"] == 10.0 and clock.split()["step"] == 60.0
    assert clock.split()["other"] == pytest.approx(10.0, abs=0.1)
    assert clock.total == pytest.approx(100.0, abs=0.1) and clock.goodput == pytest.approx(
        0.6, abs=0.01
    )
    assert sum(clock.split().values()) == pytest.approx(clock.total, abs=0.1)
    stopped = Clock()  # saved as it left: what it logged last is older
    stopped.add({"step": 60.0}, {"step": 59.0})
    assert stopped.split()["lost"] == 0.0


def test_run_steps_is_the_bare_loop():
    tx = optax.adam(0.05)
    step, state = make_step(toy_loss, tx, TOY), toy_state(tx)
    batches = Batches(rows(), 4, seed=1)
    state, history = run_steps(step, state, (batches(i) for i in range(5)))
    assert int(state.step) == 5 and len(history) == 5
    again = toy_state(tx)
    for i in range(5):
        again, metrics = step(again, batches(i))
        assert float(metrics["train/loss"]) == float(history[i]["train/loss"])
    assert_same(state, again)


# ---------------------------------------------------------------------------------------------------- a real stage
def stage(optimizer="muon", **over):
    train = Train(
        steps=6,
        batch_size=4,
        seq_len=8,
        warmup_steps=2,
        eval_every=3,
        save_every=3,
        ema_decay=0.9,
        optimizer=optimizer,
        lr_scale=5.0,
    )
    model = tiny.model(depth=1, width=32, mlp_dim=64, num_heads=2, **over)
    c = resolve(Config(text=Text(tokenizer="bytes"), model=model, pretrain=train))
    return Trainer(
        name="pretrain",
        c=c,
        t=c.pretrain,
        loss=next_token_loss(c.model, 0.0),
        batches=Batches(rows(), 4, seed=1),
        tokenizer=Tokenizer.bytes_only(),
    )


def train(path, s, leave=None):
    def evaluate(params, step, board, stop):
        if step == leave:
            signal.raise_signal(signal.SIGTERM)
        return {"eval/x": float(jnp.sum(params["lm"]["embed"]["table"] ** 2))}

    return s.train(
        RunDir(path), lambda: {"lm": tiny.init(s.c.model)}, evaluate, "eval/x", Preemption()
    )


def test_a_stage_resumes_bitwise_and_reports(tmp_path):
    whole, report = train(tmp_path / "whole", stage())
    assert (report.steps, report.tokens, report.skipped_steps) == (6, 6 * 4 * 8, 0)
    assert report.to_dict()["best_step"] in (3, 6)
    with pytest.raises(Preempted):
        train(tmp_path / "parts", stage(), leave=3)
    parts, _ = train(tmp_path / "parts", stage())
    assert_same(parts, whole)
    with pytest.raises(UserError, match="another model"):
        train(tmp_path / "whole", stage(logit_softcap=3.0))


def test_a_stage_that_died_tells_what_it_lost(tmp_path, monkeypatch):
    t = replace(stage().t, log_every=1)

    def dies(*args):
        raise OSError("power")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies)
        with pytest.raises(OSError, match="power"):
            train(tmp_path, replace(stage(), t=t))
    seconds = sum(
        value
        for name, value in read_last_values(tmp_path / "metrics.jsonl", "pretrain", "time/").items()
        if name in KINDS
    )
    _, report = train(tmp_path, replace(stage(), t=t))
    assert report.time["lost"] == pytest.approx(seconds) and seconds > 0
    assert report.time["init"] > 0 and report.seconds == pytest.approx(
        sum(report.time.values()), abs=0.5
    )
    shares = [line["time/goodput"] for line in lines(tmp_path) if "time/goodput" in line]
    assert len(shares) == 6 and all(0 <= share < 1 for share in shares)


def test_an_evaluation_that_is_cut_short_is_neither_logged_nor_a_score(tmp_path):
    s = replace(stage(), t=replace(stage().t, eval_every=2, save_every=2))

    def evaluate(params, step, board, stop):
        if step == 2:
            return {"eval/x": 1.0}
        signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(Preempted):
        s.train(
            RunDir(tmp_path), lambda: {"lm": tiny.init(s.c.model)}, evaluate, "eval/x", Preemption()
        )
    assert [line["step"] for line in lines(tmp_path) if "eval/x" in line] == [2]
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "pretrain")
    assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2


def test_an_evaluation_that_is_made_up_for_is_logged_once(tmp_path, monkeypatch):
    """It is cut short after its text; the next start dies between its figures and the score of the checkpoint."""
    s, cut = stage(), []

    def evaluate(params, step, board, stop):
        board.text(step, "sample", f"of step {step}")
        if not cut:
            cut.append(step)
            signal.raise_signal(signal.SIGTERM)
            return {}
        return {"eval/x": float(step)}

    def run():
        start = lambda: {"lm": tiny.init(s.c.model)}  # noqa: E731
        s.train(RunDir(tmp_path), start, evaluate, "eval/x", Preemption())

    def dies(*args):
        raise OSError("power")

    with pytest.raises(Preempted):
        run()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(Checkpoints, "rescore", dies)
        run()
    run()
    assert cut == [3]
    texts = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in texts] == [3, 6]
    assert [line["step"] for line in lines(tmp_path) if "eval/x" in line] == [3, 6]


def test_template_is_the_state_it_stands_for():
    s = stage()
    with jax.set_mesh(tiny.mesh(1, 2, 2)):
        mesh = jax.sharding.get_mesh()
        make = partial(init_state, tx=optim.make_optimizer(s.t), seed=0, average=True)
        made = jax.jit(make)({"lm": tiny.init(s.c.model)})
        like = abstract_state(lambda: s.init_state(init_template(s.c.model)), mesh)
    assert jax.tree.structure(made) == jax.tree.structure(like)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(like), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and a.sharding.is_equivalent_to(
            b.sharding, a.ndim
        )


@pytest.mark.parametrize("steps", [3, 50])  # 50: more than there are
def test_a_trace_of_some_steps_is_where_tensorboard_looks_for_it(tmp_path, steps):
    plain = toy_fit(tmp_path / "plain")
    traced = toy_fit(tmp_path / "traced", replace(TOY, profile_steps=steps))
    assert_same(traced.params, plain.params)
    assert not list((tmp_path / "plain").rglob("*.xplane.pb"))
    (trace,) = (tmp_path / "traced/tb/toy/plugins/profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 1000
