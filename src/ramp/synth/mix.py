"""What a generation is trained on: real documents, new samples, old samples; how many of each, and
in which order.

`compose` only says which documents, as (generation, index) with generation 0 for real text, so it
serves arrays, n-grams and neural models alike. No jax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

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
    rare: Sequence[int] | ndarray = (),
    rare_fraction: float = 1 / 6,
    weights: Sequence[ndarray] = (),
    age_decay: float = 0.5,
    max_passes: int = 1 << 30,
) -> Mix:
    """About n documents out of `sizes` = [real, generation 1, ..., newest].

    replace: the newest samples. accumulate: all there is, however much. subsample: n of all there
    is. anchored: a fraction m of real documents, the rest the newest samples. guarded: a fraction m
    of real documents, `rare_fraction` of them among the indices `rare`; the rest from all
    generations, each `age_decay` times as likely as the one after it, without those of weight 0,
    and with `weights[g-1]` in the loss. No document is taken twice unless there are too few; a
    sample of guarded at most `max_passes` times, and real documents take the places that are left.
    ValueError for an unknown policy, or without real documents.
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    if not sizes or not sizes[0]:
        raise ValueError("there is no real document to begin with")
    newest = len(sizes) - 1
    # All documents there are, in one list, so that a position tells the generation.
    generation = np.repeat(np.arange(len(sizes)), sizes)
    index = np.concatenate([np.arange(size) for size in sizes])
    weight = np.ones(len(index))
    everything = np.arange(len(index))
    real = everything[: sizes[0]]
    last = everything[len(index) - sizes[-1] :]
    num_real = round(m * n)
    # The first model is trained on real documents whatever the policy.
    if policy == "replace" or newest == 0:
        at = _draw(last, n, rng)
    elif policy == "accumulate":
        at = everything
    elif policy == "subsample":
        at = _draw(everything, n, rng)
    elif policy == "anchored":
        at = np.append(_draw(real, num_real, rng), _draw(last, n - num_real, rng))
    else:
        num_rare = round(rare_fraction * num_real) if len(rare) else 0
        common = _draw(real, num_real - num_rare, rng)
        rare = _draw(np.asarray(rare, int), num_rare, rng)
        if weights:
            weight[sizes[0] :] = np.concatenate(weights)
        # Of the samples alone, old ones and those without weight less likely.
        chance = age_decay ** (newest - generation) * (weight > 0)
        chance = chance[sizes[0] :]
        # A few samples that fill many places would be learned by heart.
        most = min(n - num_real, max_passes * int(np.count_nonzero(chance)))
        samples = sizes[0] + draw_weighted(chance, most, rng)
        if len(samples):
            weight[samples] /= weight[samples].mean()
        fill = _draw(real, n - num_real - len(samples), rng)
        at = np.concatenate([common, rare, samples, fill])
    return Mix(generation[at], index[at], weight[at])


def _draw(pool, n, rng):
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


def _shuffle_passes(rows, n, rng):
    """n rows: whole shuffled passes over them, the last one cut off."""
    if n and not len(rows):
        raise ValueError("there are no rows to train on")
    num_passes = -(-n // max(len(rows), 1))
    passes = [rng.permutation(rows) for _ in range(num_passes)]
    # The empty part is there to concatenate where n is 0.
    return np.concatenate([rows[:0], *passes])[:n]
