"""The rung of the guard: models that learn from what the model before them wrote.

A text has n kinds of rows, some rarer than others. A model learns it, writes as many rows, and the
next generation learns from these. They are drawn at TEMPERATURE, below 1, as is usual: that makes
likely rows likelier, and rare kinds rarer.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Thresholds
from ramp.ladder.learn import SEEDS, ProbeResult
from ramp.ladder.post_training import (
    build_step,
    draw_for_seeds,
    imitation_loss,
    init,
    make_batch,
    make_config,
)
from ramp.model import transformer
from ramp.model.transformer import Params
from ramp.synth.guard import CollapseGuard, TrainingEvidence, compare_bits, judge_model
from ramp.train.trainer import run_steps

TEMPERATURE = 0.7
NUM_ROWS = 1024  # of real text, and of each generation
NUM_HELD_OUT = 2048  # real rows that no model learns from
GENERATIONS = 8
FIRST_STEPS = 200  # of learning real text
STEPS = 60  # of each generation
BATCH = 64
RATE = 1.0  # times `PROBE_TRAIN`
SPREAD = 3.0  # how much more often the most common kind occurs than the rarest
KEPT = 1 / 3  # a kind is kept that has this fraction of its real probability
WIDTH = 8  # a kind is two tokens: k // WIDTH, and k % WIDTH behind all of those


def list_probabilities(n: int) -> np.ndarray:
    """The real probabilities of the kinds, [n]."""
    weight = np.linspace(1, SPREAD, n)
    return weight / weight.sum()


def count_firsts(n: int) -> int:
    """How many tokens a row of n kinds may begin with."""
    return math.ceil(n / WIDTH)


def write_rows(n: int, kinds: np.ndarray) -> np.ndarray:
    """Rows of these kinds, [..., 3]: a token that begins them all, and two."""
    firsts = count_firsts(n)
    begin = np.full(kinds.shape, firsts + WIDTH)
    return np.stack([begin, kinds // WIDTH, firsts + kinds % WIDTH], axis=-1)


@partial(jax.jit, static_argnums=(0, 1))
def measure_kinds(m: Model, n: int, lm: Params) -> jax.Array:
    """The probability that each model gives to each kind, [S, n]."""
    rows_nt = jnp.asarray(write_rows(n, np.arange(n)))

    def measure(lm):
        x_nd = transformer.compute_hidden(m, lm, rows_nt[:, :-1])
        logits_nv = jax.reshard(transformer.unembed(m, lm, x_nd), P())
        logps_ntv = jax.nn.log_softmax(logits_nv).reshape(n, 2, -1)
        chosen_nt = jnp.take_along_axis(logps_ntv, rows_nt[:, 1:, None], axis=2)[..., 0]
        return jnp.exp(chosen_nt.sum(axis=1))

    return jax.vmap(measure)(lm)


def draw_kinds(seed: int, step: int, probability_sn: np.ndarray, count: int) -> np.ndarray:
    """Kinds by their probabilities, [S, count]: a function of (seed, step)."""
    p_sn = probability_sn / probability_sn.sum(axis=1, keepdims=True)
    uniform = draw_for_seeds(seed, step, lambda rng: rng.random(count))
    # The last sum may be a little less than 1.
    sums = np.cumsum(p_sn, axis=1)[:, :-1]
    return np.stack([np.searchsorted(c, u) for c, u in zip(sums, uniform, strict=True)])


def learn(lm: Params, n: int, kinds: np.ndarray, steps: int, key: tuple[int, int]) -> Params:
    """The models after learning rows of these kinds, [S, N]; key: of the order of the rows."""
    start, step = build_step(make_config(steps, RATE, count_tokens(n)), imitation_loss)
    rng = np.random.default_rng(key)
    rows = write_rows(n, kinds)

    def make(i):
        return make_batch(rows[:, rng.integers(0, rows.shape[1], BATCH)], first=1)

    state, _ = run_steps(step, start(lm), map(make, range(steps)))
    return state.params["lm"]


def count_tokens(n: int) -> int:
    """The vocabulary of n kinds."""
    return count_firsts(n) + WIDTH + 1


def find_kept(n: int, probability_sn: np.ndarray) -> list[float]:
    """The fraction of the kinds that each model keeps, [S]."""
    return (probability_sn >= KEPT * list_probabilities(n)).mean(axis=1).tolist()


def run_generations(real_fraction: float, is_guarded: bool, n: int, seed: int) -> ProbeResult:
    """Train GENERATIONS, each on the rows of the one before it and on real rows.

    real_fraction: of the rows of a generation, at first: the guard may ask for more.
    is_guarded: the guard of `ramp synthesize` decides whether a model is kept.
    """
    m = make_config(1, 1.0, count_tokens(n)).model
    real_sn = np.tile(list_probabilities(n), (SEEDS, 1))
    real = draw_kinds(seed, 1, real_sn, NUM_ROWS)
    held_out = draw_kinds(seed, 2, real_sn, NUM_HELD_OUT)

    def measure(lm):
        probability_sn = np.asarray(measure_kinds(m, n, lm), float)
        bits = -np.log2(np.take_along_axis(probability_sn, held_out, axis=1))
        return probability_sn, bits

    lm = learn(init(seed, count_tokens(n)), n, real, FIRST_STEPS, (seed, 0))
    probability_sn, bits = measure(lm)
    first_bits = bits
    guards = [CollapseGuard(real_fraction)] * SEEDS
    stopped = np.zeros(SEEDS, bool)
    # Of each model, for the page: how often it was dropped, and real rows that it read again.
    dropped, reread = np.zeros((2, SEEDS), int)
    kept = [find_kept(n, probability_sn)]
    for g in range(1, GENERATIONS + 1):
        own = draw_kinds(seed, 2 + g, probability_sn ** (1 / TEMPERATURE), NUM_ROWS)
        num_real = np.array([round(guard.real_fraction * NUM_ROWS) for guard in guards])
        rows = np.where(np.arange(NUM_ROWS) < num_real[:, None], real, own)
        new = learn(lm, n, rows, STEPS, (seed, g))
        new_sn, new_bits = measure(new)
        goes_back = stopped.copy()
        reread += num_real * ~stopped
        if is_guarded:
            for s in np.flatnonzero(~stopped):
                evidence = {
                    **_compare("first", new_bits[s], first_bits[s]),
                    **_compare("last good", new_bits[s], bits[s]),
                }
                guards[s], decision = judge_model(
                    guards[s], Thresholds(), TrainingEvidence(evidence), g
                )
                goes_back[s] = decision.action in ("roll back", "stop")
                stopped[s] = decision.action == "stop"
                dropped[s] += goes_back[s]
        # A model that got worse is dropped, and the one before it goes on.
        choose = partial(_choose, goes_back)
        lm = jax.tree.map(choose, lm, new)
        probability_sn, bits = choose(probability_sn, new_sn), choose(bits, new_bits)
        kept.append(find_kept(n, probability_sn))
    notes = (
        f"The guard dropped {_list(dropped)} models and ended {stopped.sum()} of {SEEDS} loops; "
        f"after the first model they read {_list(reread)} real rows."
    )
    return ProbeResult(
        n=n,
        steps=list(range(GENERATIONS + 1)),
        accuracy=kept,
        notes=notes if is_guarded else "",
    )


def _list(counts):
    """Counts, one of each loop, in words."""
    return ", ".join(f"{count:,}" for count in counts)


def _compare(name, new, good):
    """Evidence that a model is worse than another by more than the guard lets pass."""
    return compare_bits(f"bits against the {name} model", new, good, Thresholds().max_loss_rise)


def _choose(goes_back, old, new):
    """The old array of the models that go back, and the new one of the others."""
    mask = goes_back.reshape(-1, *[1] * (np.ndim(old) - 1))
    where = np.where if isinstance(old, np.ndarray) else jnp.where
    return where(mask, old, new)
