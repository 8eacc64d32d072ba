"""What ends well although something goes wrong: faults are put into tiny runs, at random steps of random seeds.

The whole harness, 60 faults and 200 healthy runs, takes about ten minutes:
`pytest -n 0 -m slow -s tests/train/test_divergence.py`.
"""

import math
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Text, Train, resolve
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.checkpoint import Checkpoints
from ramp.train.divergence import Diverged, slow_down
from ramp.train.preemption import Preemption
from ramp.train.restore import init_template
from ramp.train.state import abstract_state, init_state
from ramp.train.step import make_update
from ramp.train.trainer import Trainer, make_stage_step

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)

VOCAB, LENGTH, STEPS = 64, 32, 120
CHANCE = math.log(VOCAB)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


# ---------------------------------------------------------------------------------------------------- tiny runs
@cache
def chain(language=0):
    """Cumulative probabilities [V, V] of the next letter: about 2 nats a letter where a guess has 4.2."""
    rng = np.random.default_rng(100 + language)
    p = rng.dirichlet(np.full(VOCAB, 0.1), VOCAB)
    return np.cumsum(p, axis=1)


def text(rng, rows, language=0):
    """int32 [rows, LENGTH + 1]"""
    letters = rng.integers(0, VOCAB, (rows, 1))
    draws = rng.random((rows, LENGTH))
    for i in range(LENGTH):
        after = chain(language)[letters[:, -1]]
        letters = np.c_[letters, np.minimum((after < draws[:, i, None]).sum(1), VOCAB - 1)]
    return letters.astype(np.int32)


def as_batch(letters, gain=1.0):
    ones = np.ones(letters[:, 1:].shape, np.float32)
    return {
        "tokens": letters[:, :-1],
        "targets": letters[:, 1:],
        "weights": ones,
        "gain": gain * ones[:, 0],
    }


@dataclass(frozen=True)
class Fault:
    """What is put in: `kind` from step `at` on, for `length` steps."""

    kind: str = "none"
    at: int = 10**9
    length: int = 1

    def during(self, batch_number):
        return self.at <= batch_number < self.at + self.length


# What happens to the batch: (letters, gain) of a generator.
BATCHES = {
    "garbage": lambda rng, n: (rng.integers(0, VOCAB, (n, LENGTH + 1)).astype(np.int32), 1.0),
    "huge gradient": lambda rng, n: (text(rng, n), 1e8),
    "another language": lambda rng, n: (text(rng, n, 1), 1.0),
}


def spoil(tree, value):
    """A tree with one number of every array changed."""

    def change(x):
        if x.dtype != jnp.float32 or not x.ndim:
            return x
        numbers = np.array(x)
        numbers.flat[0] = value
        return jax.device_put(numbers, x.sharding)

    return jax.tree.map(change, tree)


# What happens to the state, once.
STATES = {
    "NaN weight": lambda s: replace(s, params=spoil(s.params, jnp.nan)),
    "Inf weight": lambda s: replace(s, params=spoil(s.params, jnp.inf)),
    "large weight": lambda s: replace(s, params=spoil(s.params, 1e5)),
    "noisy weights": lambda s: replace(s, params=jax.tree.map(lambda x: 30 * x, s.params)),
    "Inf moment": lambda s: replace(s, opt=spoil(s.opt, jnp.inf)),
    "NaN moment": lambda s: replace(s, opt=spoil(s.opt, jnp.nan)),
}
KINDS = (*STATES, "garbage", "huge gradient", "rate")


@dataclass
class Run:
    """A tiny run of one seed with a fault in it."""

    seed: int = 0
    fault: Fault = Fault()
    batch_size: int = 8
    train: dict = field(default_factory=dict)
    happened: list = field(default_factory=list)  # a fault in the state happens once

    @property
    def c(self):
        t = {"steps": STEPS, "batch_size": self.batch_size, "seq_len": LENGTH, "warmup_steps": 10}
        t |= {"lr_scale": 30.0, "eval_every": 10, "save_every": 10, "max_skipped_steps": 8}
        m = tiny.model(
            depth=1,
            width=32,
            mlp_dim=64,
            num_heads=2,
            num_kv_heads=2,
            vocab_size=VOCAB,
            context_len=LENGTH,
        )
        return Config(
            text=Text(vocab_size=264), seed=self.seed, model=m, pretrain=Train(**(t | self.train))
        )

    def make_batch(self, number, lo, hi):
        rng = np.random.default_rng([self.seed, number])
        letters, gain = text(rng, self.batch_size), 1.0
        if self.fault.kind in BATCHES and self.fault.during(number):
            letters, gain = BATCHES[self.fault.kind](rng, self.batch_size)
        return {name: x[lo:hi] for name, x in as_batch(letters, gain).items()}

    def wrap_step(self, _):
        """The step with the fault in it, from a cache: every run of these shapes compiles the same two."""

        def step(state, batch):
            t = slow_down(resolved(self.c).pretrain, int(state.guard.recoveries))
            at = int(state.step)
            if self.fault.kind in STATES and at == self.fault.at and not self.happened:
                self.happened.append(at)
                state = STATES[self.fault.kind](state)
            if self.fault.kind == "rate" and self.fault.during(at + int(state.guard.offset)):
                t = replace(t, lr_scale=1000 * t.lr_scale)
            return compiled(t)(state, batch)

        return step

    def trainer(self):
        c = resolved(self.c)
        return Trainer(
            name="pretrain",
            c=c,
            t=c.pretrain,
            loss=loss(),
            batches=self.make_batch,
            tokenizer=Tokenizer.bytes_only(),
            wrap_step=self.wrap_step,
            chance=CHANCE,
        )

    def go(self, path, evaluate=None):
        """The report and the scores by step; raises `Diverged`."""
        scores = {}

        def measure(params, step, board, stop):
            scores[step] = held_out(params)
            return {"eval/x": scores[step]}

        start = partial(tiny.init, resolved(self.c).model, self.seed)
        trainer = self.trainer()
        _, report = trainer.train(
            RunDir(path), lambda: {"lm": start()}, evaluate or measure, "eval/x", Preemption()
        )
        return report, scores


def resolved(c):
    # Past the check of the vocabulary, which a tokenizer of bytes would ask for.
    return replace(resolve(replace(c, model=replace(c.model, vocab_size=264))), model=c.model)


@cache
def loss():
    m = Run().c.model
    plain = next_token_loss(m, 0.0)

    def with_gain(params, batch, key):
        total, sums = plain(params, batch, key)
        return total * jnp.mean(batch["gain"]), sums

    return with_gain


@cache
def compiled(t):
    t = replace(t, eval_every=1, save_every=1)
    return make_stage_step(loss(), t, "float32", None, CHANCE)


@cache
def scorer():
    rng = np.random.default_rng(5)
    batch = {name: jnp.asarray(x) for name, x in as_batch(text(rng, 64)).items()}
    return jax.jit(lambda params: loss()(params, batch, None)[0] / (64 * LENGTH))


def held_out(params):
    """Nats a letter on letters that no run trains on."""
    return float(scorer()(params))


def saved_score(path):
    """(step, nats a letter) of the checkpoint that `chat` would use, read from the disk."""
    like = {"params": abstract_state(lambda: init_template(Run().c.model), jax.sharding.get_mesh())}
    found = Checkpoints(path / "checkpoints" / "pretrain").restore_best(like)
    return (found[2], held_out(found[0]["params"])) if found else (0, None)


# ---------------------------------------------------------------------------------------------------- faults
def suffer(run, path):
    """(whether it stopped, report, step and score of what is on the disk) of a run with a fault."""
    try:
        report, _ = run.go(path)
    except Diverged as stopped:
        assert "--pretrain.lr_scale" in str(stopped)
        return True, None, *saved_score(path)
    return False, report, *saved_score(path)


@cache
def healthy_scores(seed):
    with tempfile.TemporaryDirectory() as path:
        return Run(seed=seed).go(Path(path))[1]


def check_fault(tmp_path, number, mode=None):
    """Whatever the fault is, what is on the disk scores as the healthy run does at that step, or at its end."""
    rng = np.random.default_rng(number)
    kind, seed = KINDS[number % len(KINDS)], number % 3
    length = int(rng.choice([1, 2, 5, 10, 20, 40])) if kind not in STATES else 1
    # From the first step on that a checkpoint has proven.
    at = int(rng.integers(30, 105))
    mode = mode or ("stop", "recover")[number // len(KINDS) % 2]
    run = Run(seed, Fault(kind, at, length), train={"on_divergence": mode})
    stopped, _, step, score = suffer(run, tmp_path / f"fault-{number}")
    healthy = healthy_scores(seed)
    said = f"{kind} x{length} at {at}, seed {seed}, {mode}: stopped {stopped}, {step} {score}"
    print(said, healthy[step], flush=True)
    assert score is not None and score <= healthy[step] + 0.05, said
    if stopped:
        assert step <= at + length, said


def test_a_changed_weight_stops_the_run_at_a_good_checkpoint(tmp_path):
    run = Run(fault=Fault("large weight", 22), train={"steps": 40})
    stopped, _, step, score = suffer(run, tmp_path)
    assert stopped and step in (10, 20) and score < 0.9 * CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_faults_end_well(tmp_path, number):
    check_fault(tmp_path, number)


# ---------------------------------------------------------------------------------------------------- false alarms
def count_alarms(batch_size, lr_scale, seeds=10, change=None, optimizer="muon"):
    """(runs that the guard called diverged, updates refused, mean last loss) of so many healthy runs at once."""
    run = Run(batch_size=batch_size, train={"lr_scale": lr_scale, "optimizer": optimizer})
    c = resolved(run.c)
    tx = optim.make_optimizer(c.pretrain)

    def begin(seed):
        params = {"lm": transformer.init_params(c.model, jax.random.PRNGKey(seed))}
        return init_state(params, tx, 0)

    state = jax.jit(lambda seeds: jax.reshard(jax.vmap(begin)(seeds), P()))(jnp.arange(seeds))
    update = jax.jit(jax.vmap(make_update(loss(), tx, c.pretrain, None, CHANCE)), donate_argnums=0)
    alarms, losses = np.zeros(seeds, bool), []
    rng = np.random.default_rng(batch_size)
    for number in range(STEPS):
        language = int(change is not None and number >= change)
        letters = text(rng, seeds * batch_size, language).reshape(seeds, batch_size, -1)
        batch = jax.tree.map(lambda *x: np.stack(x), *(as_batch(rows) for rows in letters))
        state, metrics = update(state, batch)
        alarms |= np.asarray(metrics["guard/diverged"])
        losses.append(float(metrics["train/loss"].mean()))
    return int(alarms.sum()), int(metrics["guard/refused"].sum()), losses


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 8, 16])
@pytest.mark.parametrize("lr_scale", [3.0, 10.0, 30.0, 100.0, 200.0])
def test_healthy_runs_raise_no_alarm(batch_size, lr_scale):
    """200 runs of ten seeds, four sizes of batch, five rates."""
    assert count_alarms(batch_size, lr_scale)[0] == 0


@pytest.mark.slow
def test_other_text_from_one_step_to_the_next_raises_no_alarm():
    assert count_alarms(8, 30.0, change=60)[0] == 0


@pytest.mark.slow
def test_rates_that_are_far_too_high_do():
    assert count_alarms(8, 3000.0)[0] == 10
