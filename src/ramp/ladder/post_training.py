"""How the rungs beyond pretraining teach the same model further, on the task of `sums`.

SEEDS models at once, as in `learn`: parameters have a leading axis S, rows are [S, B, T]. A model
first reads text in which problems are solved. What a question is it learns afterwards, and from
whom is what the rungs differ in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.config import Config, Model, Reinforce, Text
from ramp.credit.advantages import METHODS
from ramp.credit.baselines import Credit
from ramp.credit.loss import policy_loss, token_logps
from ramp.ladder import sums
from ramp.ladder.learn import PROBE_MODEL, PROBE_TRAIN, SEEDS, Batch, weigh_tokens
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.model.transformer import Params
from ramp.train import optim
from ramp.train.mesh import ROWS
from ramp.train.state import init_state
from ramp.train.step import Loss, make_update
from ramp.train.trainer import run_steps

MODEL = replace(PROBE_MODEL, depth=2, num_heads=4, num_kv_heads=4, head_dim=16)
REINFORCE = Reinforce(clip_low=0.2, clip_high=0.28)

USUAL = 8  # digits of a problem; of more, all courses have more steps
READ_STEPS = 400  # of pretraining, and of a model that begins anew
READ_ROWS = 32  # of each sort in a step
ANSWER_STEPS = 240  # of fine-tuning on solved problems
ANSWER_RATE = 0.5  # of that: faster, the first step of a solution is learned by heart
SLIP_STEPS = 240  # on what somebody writes who slips, until the model slips as often
ANSWER_ROWS = 32  # of each
RATE = 1.0  # of the others, times `PROBE_TRAIN`
SLIPS = 0.8  # chance of a slip in each step of somebody who adds one too many
REINFORCE_RATE = 0.5
UPDATES = 45  # of reinforcement
SHARPEN = 0.1  # loss per nat of entropy, where it is minimised
NUM_PROMPTS = 32
GROUP = 4  # rollouts of each
EVERY = 15  # updates between evaluations
HELD_OUT = 256  # problems of each evaluation


def grow(steps: int, n: int) -> int:
    """Steps for problems of n digits: beyond USUAL they grow with the square, as of probes."""
    return round(steps * max(1, n / USUAL) ** 2)


@cache
def make_config(steps: int, rate: float, vocab: int = sums.VOCAB) -> Config:
    """The model and its training for so many steps."""
    t = replace(PROBE_TRAIN, optimizer="adamw", steps=steps, lr_scale=rate)
    model = replace(MODEL, vocab_size=vocab)
    return config.resolve(Config(model=model, pretrain=t, text=Text(tokenizer="bytes")))


def init(seed: int, vocab: int = sums.VOCAB) -> Params:
    """SEEDS models that know nothing."""
    m = make_config(1, 1.0, vocab).model
    make = jax.vmap(lambda seed: transformer.init_params(m, jax.random.PRNGKey(seed)))
    seeds = SEEDS * seed + np.arange(SEEDS)
    return jax.jit(lambda seeds: jax.reshard(make(seeds), P()))(seeds)


@cache
def build_step(c: Config, make_loss: Callable[[Model], Loss]) -> tuple[Callable, Callable]:
    """(start, step): a state of parameters with a fresh optimizer, and one update of it."""
    tx = optim.make_optimizer(c.pretrain, c.model.dtype)
    start = jax.vmap(lambda lm: init_state({"lm": lm}, tx, 0))
    update = make_update(make_loss(c.model), tx, c.pretrain)
    # A copy: a step donates its state, and whoever gave the parameters keeps them.
    copy = jax.jit(lambda lm: jax.reshard(start(jax.tree.map(jnp.copy, lm)), P()))
    return copy, jax.jit(jax.vmap(update), donate_argnums=0)


def imitation_loss(m: Model) -> Loss:
    """The loss of the next token."""
    return next_token_loss(m, 0.0)


def reward_loss(m: Model) -> Loss:
    """The loss of `ramp reinforce`."""
    return policy_loss(m, REINFORCE)


def sharpen_loss(m: Model) -> Loss:
    """The same where entropy is minimised, and nothing rewarded: a control."""
    return policy_loss(m, replace(REINFORCE, entropy_coef=-SHARPEN))


def make_batch(rows_sbt: np.ndarray, first: int) -> Batch:
    """Rows as a batch in which the tokens from place `first` on bear the loss."""
    rows = rows_sbt.astype(np.int32)
    bears_loss = np.arange(1, rows.shape[-1]) >= first
    return weigh_tokens(rows[..., :-1], rows[..., 1:], bears_loss)


def make_sums_batch(rows_sbt: np.ndarray) -> Batch:
    """Rows of `sums` as a batch. The steps bear the loss: nothing could tell the digits."""
    return make_batch(rows_sbt, rows_sbt.shape[-1] // 2 + 1)


# What a generator is for, besides the steps of training, which count from 1.
HELD_OUT_STREAM = 0
SOLVED_STREAM = 1_000_000
OWN_STREAM = 1_000_001


def draw_for_seeds(seed: int, step: int, draw: Callable) -> np.ndarray:
    """What `draw` makes of a generator of each model, a function of (seed, step) alone."""
    seeds = SEEDS * seed + np.arange(SEEDS)
    return np.stack([draw(np.random.default_rng([s, step])) for s in seeds])


# Asking


@partial(jax.jit, static_argnums=0)
def answer(m: Model, lm: Params, digits_sbn: jax.Array, key: jax.Array, temperature: float):
    """What the models answer to problems: steps [S, B, K]; at temperature 0 the most likely."""
    n = digits_sbn.shape[-1]

    def answer_one(lm, digits_bn, key):
        signs = jnp.full((len(digits_bn), 1), sums.ASK)
        blank = jnp.zeros((len(digits_bn), n - 1), jnp.int32)
        tokens_bt = jnp.concatenate([digits_bn, signs, blank], axis=1)

        def state_step(tokens_bt, i):
            x_nd = transformer.compute_hidden(m, lm, tokens_bt)
            logits_nv = jax.reshard(transformer.unembed(m, lm, x_nd), P())
            logits_btv = logits_nv.reshape(*tokens_bt.shape, -1)
            logits_bv = jax.lax.dynamic_index_in_dim(logits_btv, n + i, 1, keepdims=False)
            noise_bv = jax.random.gumbel(jax.random.fold_in(key, i), logits_bv.shape)
            step_b = jax.reshard(jnp.argmax(logits_bv + temperature * noise_bv, axis=-1), P())
            return jax.lax.dynamic_update_index_in_dim(tokens_bt, step_b, n + 1 + i, 1), None

        tokens_bt, _ = jax.lax.scan(state_step, tokens_bt, jnp.arange(n - 1))
        return tokens_bt[:, n + 1 :]

    return jax.vmap(answer_one)(lm, digits_sbn, jax.random.split(key, len(digits_sbn)))


def draw_held_out(seed: int, n: int) -> np.ndarray:
    """Problems to be graded on, the same for all ways of teaching."""
    return draw_for_seeds(seed, HELD_OUT_STREAM, lambda rng: sums.draw_digits(rng, n, HELD_OUT))


def sample(lm: Params, digits: np.ndarray, seed: int, step: int, temperature: float) -> np.ndarray:
    """Answers to problems, as `answer` has them, on the host."""
    key = jax.random.fold_in(jax.random.PRNGKey(seed), step)
    return np.asarray(answer(make_config(1, 1.0).model, lm, digits, key, temperature))


def grade(lm: Params, held_out: np.ndarray) -> list[float]:
    """The fraction of problems of which the most likely answer is right in every step, [S]."""
    steps = sample(lm, held_out, 0, 0, temperature=0.0)
    return sums.judge_steps(held_out, steps).all(axis=-1).mean(axis=-1).tolist()


# Teaching


@dataclass(frozen=True)
class Course:
    """How models are taught: what they see in each step, and the loss of it."""

    steps: int
    rate: float
    make_loss: Callable[[Model], Loss]
    make_batch: Callable[[int, Params], Batch]  # of the number of the step and of the models
    every: int = EVERY  # steps between evaluations


@dataclass(frozen=True)
class Taught:
    """Models after a course, and how they did on the way."""

    lm: Params
    steps: list[int]
    accuracy: list[list[float]]  # [evaluation][S]


def teach(lm: Params, course: Course, held_out: np.ndarray) -> Taught:
    """Take the course, and grade the models before it and on the way."""
    start, step = build_step(make_config(course.steps, course.rate), course.make_loss)
    state = start(lm)
    graded = {0: grade(lm, held_out)}
    for i in range(1, course.steps + 1):
        state, _ = step(state, course.make_batch(i, state.params["lm"]))
        if i % course.every == 0 or i == course.steps:
            graded[i] = grade(state.params["lm"], held_out)
    return Taught(state.params["lm"], list(graded), list(graded.values()))


def imitate(draw: Callable[[np.random.Generator], np.ndarray], seed: int, steps: int) -> Course:
    """Training on new rows in each step, as `draw` gives them."""

    def make(i, lm):
        return make_sums_batch(draw_for_seeds(seed, i, draw))

    return Course(steps, RATE, imitation_loss, make)


def repeat(rows_snt: np.ndarray, seed: int, steps: int, rate: float = RATE) -> Course:
    """Training on ANSWER_ROWS of these rows in each step, drawn again and again."""

    def make(i, lm):
        rng = np.random.default_rng([seed, i])
        return make_sums_batch(rows_snt[:, rng.integers(0, rows_snt.shape[1], ANSWER_ROWS)])

    return Course(steps, rate, imitation_loss, make)


@cache
def read_text(seed: int, n: int) -> Params:
    """Models that have read text: solved problems, and as many questions that nobody answers."""
    steps = grow(READ_STEPS, n)
    start, step = build_step(make_config(steps, RATE), imitation_loss)

    def draw(rng):
        solved, asked = sums.draw_digits(rng, n, 2 * READ_ROWS).reshape(2, READ_ROWS, n)
        # A question is followed by the next one.
        following = sums.draw_digits(rng, n - 1, READ_ROWS)
        return np.concatenate(
            [
                sums.write_rows(solved, sums.IS, sums.solve(solved)),
                sums.write_rows(asked, sums.ASK, following),
            ]
        )

    batches = (make_sums_batch(draw_for_seeds(seed, i, draw)) for i in range(1, steps + 1))
    state, _ = run_steps(step, start(init(seed)), batches)
    return state.params["lm"]


@partial(jax.jit, static_argnums=0)
def measure_logps(m: Model, lm: Params, batch: Batch) -> jax.Array:
    """Log-probabilities of the targets under the models, [S, B, T]."""

    def measure(lm, tokens_bt, targets_bt):
        return token_logps(m, lm, tokens_bt, targets_bt)[0]

    return jax.vmap(measure)(lm, batch["tokens"], batch["targets"])


@partial(jax.jit, static_argnums=0)
def assign_credit(method: str, reward_sb: jax.Array, right_sbk: jax.Array) -> jax.Array:
    """Advantages of the targets of rollouts, [S, B, 2n - 1], by a method of `ramp.credit`.

    reward_sb: of whole rollouts; right_sbk: of their steps. GROUP adjacent rows have one problem.
    """
    _, B, K = right_sbk.shape
    # K steps stand behind n = K + 1 digits, the first of which is no target.
    step_n = np.concatenate([np.full(K + 1, -1), np.arange(K)])

    def assign(reward_b, right_bk):
        credit = Credit(
            reward_pg=reward_b.reshape(-1, GROUP),
            right_bs=right_bk,
            exists_bs=jnp.ones((B, K)),
            step_bn=jnp.broadcast_to(step_n, (B, len(step_n))),
        )
        return METHODS[method](credit)

    return jax.vmap(assign)(reward_sb, right_sbk)


def reward_whole(right_sbk: np.ndarray) -> np.ndarray:
    """One bit for a solution: every step is right."""
    return np.all(right_sbk, axis=-1).astype(np.float32)


def reward_share(right_sbk: np.ndarray) -> np.ndarray:
    """The fraction of the steps that are right."""
    return right_sbk.mean(axis=-1, dtype=np.float32)


def reward_nothing(right_sbk: np.ndarray) -> np.ndarray:
    """The same for all, from which nothing can be learned."""
    return np.zeros(right_sbk.shape[:-1], np.float32)


def reinforce(
    method: str,
    reward: Callable[[np.ndarray], np.ndarray],
    seed: int,
    n: int,
    make_loss: Callable[[Model], Loss] = reward_loss,
) -> Course:
    """Reinforcement: models answer NUM_PROMPTS problems GROUP times and hear how good that was."""
    m = make_config(1, 1.0).model

    def draw(rng):
        return np.repeat(sums.draw_digits(rng, n, NUM_PROMPTS), GROUP, axis=0)

    def make(i, lm):
        digits = draw_for_seeds(seed, i, draw)
        steps = sample(lm, digits, seed, i, temperature=1.0)
        right = sums.judge_steps(digits, steps)
        batch = make_sums_batch(sums.write_rows(digits, sums.ASK, steps))
        advantage = assign_credit(method, reward(right), right.astype(np.float32))
        batch |= {"advantage": advantage, "old": measure_logps(m, lm, batch)}
        # The loss chooses between clipped and not, for which both must be split alike.
        return {name: jax.reshard(a, P(None, ROWS)) for name, a in batch.items()}

    return Course(grow(UPDATES, n), REINFORCE_RATE, make_loss, make)
