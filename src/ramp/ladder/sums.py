"""The task of the rungs beyond pretraining: add digits one after the other and state every sum.

`3 4 1 ?` is solved by `2 3`: 3 + 4, then 2 + 1, each modulo BASE. A problem of n digits takes
K = n - 1 steps, and the last one is its answer. A step is right if it follows from what was stated
before it, so a solution with one slip has one wrong step.

Arrays: digits [..., n], steps [..., K], int. A row is digits, a sign and steps, [..., 2n].
"""

import numpy as np
from numpy.random import Generator

BASE = 5  # digits are 0 to 4
IS = BASE  # between digits and steps in text that the model reads first
ASK = BASE + 1  # in a question to it, which such text never has
VOCAB = BASE + 2
LABELS = [*map(str, range(BASE)), "is", "?"]


def draw_digits(rng: Generator, n: int, count: int) -> np.ndarray:
    """Problems of n digits, [count, n]."""
    return rng.integers(0, BASE, (count, n))


def number(tokens: np.ndarray) -> np.ndarray:
    """Digits or steps [..., n] read as one number each, in base VOCAB, [...]."""
    return tokens @ VOCAB ** np.arange(tokens.shape[-1])


def draw_apart(rng: Generator, n: int, count: int, others: np.ndarray) -> np.ndarray:
    """Problems that are none of the `others`, [M, n]; [count, n].

    Raises ValueError where there are no problems of n digits but these.
    """
    taken = np.unique(number(others))
    if len(taken) == BASE**n:
        raise ValueError(f"every problem of {n} digits is among the others; take more digits")
    digits = draw_digits(rng, n, count)
    while (again := np.isin(number(digits), taken)).any():
        digits[again] = draw_digits(rng, n, int(again.sum()))
    return digits


def solve(digits: np.ndarray) -> np.ndarray:
    """The right steps."""
    return np.cumsum(digits, axis=-1)[..., 1:] % BASE


def slip(rng: Generator, digits: np.ndarray, chance: float) -> np.ndarray:
    """Steps by somebody who adds one too many with this chance, and goes on from there."""
    slips = rng.random((*digits.shape[:-1], digits.shape[-1] - 1)) < chance
    return (solve(digits) + np.cumsum(slips, axis=-1)) % BASE


def judge_steps(digits: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Whether each step follows from what was stated before it, bool [..., K]."""
    before = np.concatenate([digits[..., :1], steps[..., :-1]], axis=-1)
    # A sign is no number: what stands in for one is wrong, and so is what follows from it.
    return (before < BASE) & (steps == (before + digits[..., 1:]) % BASE)


def write_rows(digits: np.ndarray, sign: int, steps: np.ndarray) -> np.ndarray:
    """Digits, the sign and the steps in one row."""
    signs = np.full((*digits.shape[:-1], 1), sign)
    return np.concatenate([digits, signs, steps], axis=-1)
