"""Policies that the parts of the benchmark train."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import jax

from experiments.results import Results
from ramp.config import Model, Reinforce
from ramp.credit import learn
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.state import State, init_state
from ramp.train.step import Loss, make_step
from ramp.train.trainer import run_steps

TOKENIZER = Tokenizer.bytes_only()


def make_trainer(c: Model, t: Reinforce, loss: Loss) -> tuple[Callable[[dict], State], Callable]:
    """(first state of a copy of the parameters, update)."""
    tx = optim.make_optimizer(t.train, c.dtype)
    first = jax.jit(lambda params: init_state(jax.tree.map(lambda a: a + 0, params), tx, 0))
    return first, make_step(loss, tx, t.train)


def train_model(
    c: Model, t: Reinforce, loss: Loss, params: dict, batches: Callable[[int], dict]
) -> dict:
    """`t.steps` updates of a copy of the parameters."""
    first, update = make_trainer(c, t, loss)
    rows = (learn.shard_batch(batches(i)) for i in range(t.train.steps))
    state, _ = run_steps(update, first(params), rows)
    return state.params


@lru_cache(maxsize=16)
def make_policy_trainer(c: Model, t: Reinforce) -> tuple[Callable[[dict], State], Callable]:
    return make_trainer(c, t, learn.make_loss(c, t))


def run_reinforce(
    b: Results,
    t: Reinforce,
    base: dict,
    seed: int,
    ref: dict | None = None,
    frozen: dict | None = None,
) -> Iterator[tuple[learn.Iteration, State, dict]]:
    """Iterations of RL from `base`.

    (what was collected, the state after it, metrics of the update). frozen: parameters that credit
    looks at and that do not learn, a process head.
    """
    same = replace(
        t, method="rloo", reward="answer", num_continuations=1
    )  # who gets credit is no part of the program
    first, update = make_policy_trainer(b.model, same)
    state = first(base)
    for i in range(t.train.steps):
        params = state.params | (frozen or {})
        got = learn.collect_batch(b.model, t, TOKENIZER, params, ref, i, seed)
        state, metrics = update(state, learn.shard_batch(got.batch))
        yield got, state, metrics
