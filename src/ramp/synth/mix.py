"""What a generation is trained on: real documents, new samples, old samples; how many of each, and
in which order.

`compose` only says which documents, as (generation, index) with generation 0 for real text, so it
serves arrays, n-grams and neural models alike. No jax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ramp.synth.drift import real_fraction_for

POLICIES = ("guarded", "replace", "accumulate", "subsample", "anchored")


@dataclass(frozen=True)
class Mix:
    """N documents to train on."""

    generation: ndarray  # [N], 0: real text
    index: ndarray  # [N], within its generation
    weight: ndarray  # [N], in the loss; mean 1 among the samples, 1 for real text


def compose(
    policy: str,
    sizes: Sequence[int],
    n: int,
    rng: np.random.Generator,
    m: float = 0.0,
    rare: ndarray | None = None,
    rare_fraction: float = 1 / 6,
    weights: Sequence[ndarray] | None = None,
    age_decay: float = 0.5,
) -> Mix:
    """About n documents out of `sizes` = [real, generation 1, ..., newest].

    replace: the newest samples. accumulate: all there is, however much. subsample: n of all there
    is. anchored: a fraction m of real documents, the rest the newest samples. guarded: a fraction m
    of real documents, `rare_fraction` of them among the indices `rare`; the rest from all
    generations, each `age_decay` times as likely as the one after it, without those of weight 0,
    and with `weights[g-1]` in the loss. No document is taken twice unless there are too few.
    ValueError for an unknown policy, or without real documents.
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    if not sizes or not sizes[0]:
        raise ValueError("there is no real document to begin with")
    newest = len(sizes) - 1
    # All documents there are, in one list.
    generation = np.repeat(np.arange(len(sizes)), sizes)
    index = np.concatenate([np.arange(size) for size in sizes])
    real_index = np.arange(sizes[0])
    # The first model is trained on real documents whatever the policy.
    if newest == 0:
        return _take(0, _draw(real_index, n, rng))
    if policy == "replace":
        return _take(newest, _draw(np.arange(sizes[newest]), n, rng))
    if policy == "accumulate":
        return Mix(generation, index, np.ones(len(index)))
    if policy == "subsample":
        at = _draw(np.arange(len(index)), n, rng)
        return Mix(generation[at], index[at], np.ones(len(at)))
    num_real = round(m * n)
    if policy == "anchored":
        real = _take(0, _draw(real_index, num_real, rng))
        return _join(real, _take(newest, _draw(np.arange(sizes[newest]), n - num_real, rng)))
    # Guarded: what is left of the policies.
    num_rare = round(rare_fraction * num_real) if rare is not None and len(rare) else 0
    real = [_draw(real_index, num_real - num_rare, rng)]
    if num_rare:
        real.append(_draw(rare, num_rare, rng))
    if weights is None:
        weights = [np.ones(size) for size in sizes[1:]]
    weight = np.concatenate([np.asarray(w, float) for w in weights])
    # Of the samples alone, old ones and those without weight less likely.
    generation, index = generation[sizes[0] :], index[sizes[0] :]
    chance = age_decay ** (newest - generation) * (weight > 0)
    at = draw_weighted(chance, n - num_real, rng)
    if not len(at):  # no sample may teach: real documents take their places
        return _take(0, np.concatenate([*real, _draw(real_index, n - num_real, rng)]))
    samples = Mix(generation[at], index[at], weight[at] / weight[at].mean())
    return _join(_take(0, np.concatenate(real)), samples)


def _take(generation: int, index: ndarray) -> Mix:
    """Documents of one generation, all of weight 1."""
    return Mix(np.full(len(index), generation), index, np.ones(len(index)))


def _join(a: Mix, b: Mix) -> Mix:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return Mix(*(np.concatenate(pair) for pair in pairs))


def _draw(pool: ndarray, n: int, rng: np.random.Generator) -> ndarray:
    """n of the pool: all of it as often as it fits into n, the rest without repetition."""
    if not len(pool) or n <= 0:
        return pool[:0]
    passes, rest = divmod(n, len(pool))
    return np.concatenate([np.tile(pool, passes), rng.choice(pool, rest, replace=False)])


def draw_weighted(chance: ndarray, n: int, rng: np.random.Generator) -> ndarray:
    """n indices, one after the other in proportion to `chance` (Gumbel top-k).

    None is drawn again before all with a chance above 0 were.
    """
    possible = np.flatnonzero(chance > 0)
    if not len(possible):
        return np.zeros(0, np.int64)
    passes, rest = divmod(n, len(possible))  # more than there are: whole passes first
    # A chance of 0 has the score -inf and comes last.
    with np.errstate(divide="ignore"):
        score = np.log(chance) + rng.gumbel(size=len(chance))
    return np.concatenate([np.tile(possible, passes), np.argsort(-score)[:rest]])


def choose_real_fraction(d1: float, tolerance: float, min_fraction: float) -> float:
    """The real fraction that the drift law asks for, at least `min_fraction`.

    d1: what one generation on own samples alone costs. tolerance: the excess to allow, in the same
    unit. Without drift it is `min_fraction`.
    """
    if d1 <= 0:
        return min_fraction
    return max(min_fraction, real_fraction_for(tolerance / d1))


def order_rows(
    num_mixed: int, num_real: int, steps: int, batch_size: int, final_real: float, seed: int
) -> ndarray:
    """Row numbers [steps, batch_size]: the mixed rows in shuffled passes, then real rows alone.

    The real rows have the numbers after the mixed ones, and the fraction `final_real` of the steps.
    Synthetic first and real last escapes the floor that any fixed mixture has (Dohmatob et al., two
    stages). ValueError where a part that is asked for has no rows.
    """
    rng = np.random.default_rng(seed)
    num_final = round(final_real * steps) * batch_size
    mixed = _shuffle_passes(np.arange(num_mixed), steps * batch_size - num_final, rng)
    final = _shuffle_passes(num_mixed + np.arange(num_real), num_final, rng)
    return np.concatenate([mixed, final]).reshape(steps, batch_size)


def _shuffle_passes(rows: ndarray, n: int, rng: np.random.Generator) -> ndarray:
    """n rows: whole shuffled passes over them, the last one cut off."""
    if n and not len(rows):
        raise ValueError("there are no rows to train on")
    passes = [rows[:0]]  # so that there is something to concatenate where n is 0
    if n:
        passes += [rng.permutation(rows) for _ in range(-(-n // len(rows)))]
    return np.concatenate(passes)[:n]
