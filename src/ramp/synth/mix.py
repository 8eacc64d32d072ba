"""What a generation is trained on: real documents, the newest samples, older ones, in which share and in which order.

`compose` only says which documents, as (generation, number) with generation 0 for real text, so it serves arrays,
n-grams and neural models alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramp.synth.drift import real_fraction_for

POLICIES = ("guarded", "replace", "accumulate", "subsample", "anchored")


@dataclass(frozen=True)
class Mix:
    """N documents to train on, those of real text marked by generation 0; `weight`, mean 1 among the samples."""

    generation: np.ndarray
    number: np.ndarray
    weight: np.ndarray


def compose(
    policy: str,
    sizes: Sequence[int],
    n: int,
    rng: np.random.Generator,
    m: float = 0.0,
    rare: np.ndarray | None = None,
    rare_share: float = 1 / 6,
    weights: Sequence[np.ndarray] | None = None,
    age: float = 0.5,
) -> Mix:
    """About n documents out of `sizes` = [real, generation 1, ..., newest].

    replace: the newest. accumulate: all there is, however much. subsample: n of all there is. anchored: a share m of real
    ones, the rest the newest. ours: a share m of real ones, `rare_share` of them among the numbers `rare`; the rest from
    all generations, each `age` times as likely as the one after it, without those of weight 0, `weights[g-1]` in the loss.
    A document is never taken twice unless there are too few.
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    if not sizes or not sizes[0]:
        raise ValueError("there is no real document to begin with")
    newest = len(sizes) - 1
    everything = np.concatenate([np.full(size, g) for g, size in enumerate(sizes)])
    numbers = np.concatenate([np.arange(size) for size in sizes])
    if newest == 0:
        return _plain(0, _draw(np.arange(sizes[0]), n, rng))
    if policy == "replace":
        return _plain(newest, _draw(np.arange(sizes[newest]), n, rng))
    if policy == "accumulate":
        return Mix(everything, numbers, np.ones(len(numbers)))
    if policy == "subsample":
        at = _draw(np.arange(len(numbers)), n, rng)
        return Mix(everything[at], numbers[at], np.ones(len(at)))
    real = round(m * n)
    if policy == "anchored":
        return _joined(
            _plain(0, _draw(np.arange(sizes[0]), real, rng)),
            _plain(newest, _draw(np.arange(sizes[newest]), n - real, rng)),
        )
    few = round(rare_share * real) if rare is not None and len(rare) else 0
    taken = [_draw(np.arange(sizes[0]), real - few, rng)] + ([_draw(rare, few, rng)] if few else [])
    w = (
        [np.ones(size) for size in sizes[1:]]
        if weights is None
        else [np.asarray(x, float) for x in weights]
    )
    w_all, of = np.concatenate(w), everything[sizes[0] :]
    chance = age ** (newest - of) * (w_all > 0)
    at = weighted_draw(chance, n - real, rng)
    if not len(at):  # nothing may teach but real text
        return _plain(0, np.concatenate([*taken, _draw(np.arange(sizes[0]), n - real, rng)]))
    made = Mix(of[at], numbers[sizes[0] :][at], w_all[at] / w_all[at].mean())
    return _joined(_plain(0, np.concatenate(taken)), made)


def _plain(g: int, numbers: np.ndarray) -> Mix:
    return Mix(np.full(len(numbers), g), numbers, np.ones(len(numbers)))


def _joined(*parts: Mix) -> Mix:
    return Mix(
        *(
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("generation", "number", "weight")
        )
    )


def _draw(pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of the pool, all of it as often as it goes whole into n, the rest without repetition."""
    if not len(pool) or n <= 0:
        return pool[:0]
    whole, rest = divmod(n, len(pool))
    return np.concatenate([np.tile(pool, whole), rng.choice(pool, rest, replace=False)])


def weighted_draw(chance: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n numbers, successively in proportion to `chance` (Gumbel top-k), none again before all above 0 were taken."""
    held = int((chance > 0).sum())
    if not held:
        return np.zeros(0, np.int64)
    whole, rest = divmod(n, held)
    with np.errstate(divide="ignore"):
        score = np.log(chance) + rng.gumbel(size=len(chance))
    return np.concatenate([np.tile(np.flatnonzero(chance), whole), np.argsort(-score)[:rest]])


def real_fraction(d1: float, tolerance: float, least: float) -> float:
    """The real share of the drift law for a tolerated excess, at least `least`; with no drift to be seen, `least`."""
    return max(least, real_fraction_for(tolerance / d1)) if d1 > 0 else least


def order(mixed: int, real: int, steps: int, batch: int, real_last: float, seed: int) -> np.ndarray:
    """Row numbers [steps, batch]: the first `mixed` rows in shuffled passes, then for the share `real_last` of the steps
    the `real` rows after them alone. ValueError where a part that is asked for has no rows.

    Synthetic first and real last escapes the floor that any fixed mixture has (Dohmatob et al., two stages)."""
    rng = np.random.default_rng(seed)
    last = round(real_last * steps) * batch
    rows = [
        _passes(np.arange(mixed), steps * batch - last, rng),
        _passes(mixed + np.arange(real), last, rng),
    ]
    return np.concatenate(rows).reshape(steps, batch)


def _passes(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    if n and not len(rows):
        raise ValueError("there are no rows to train on")
    passes = [rng.permutation(rows) for _ in range(-(-n // len(rows)))] if n else []
    return np.concatenate([*passes, rows[:0]])[:n]
