"""Simulated worlds whose true reliability is known: what forecasts and audits are judged by."""

import numpy as np
from scipy.special import expit

from ramp.nines import trials

NODES, MASS = np.polynomial.hermite_e.hermegauss(41)


# What makes a world hard to fit; a third of a mixed set of worlds has one of them.
ODD = ("equal items", "never", "all pass", "one try")


def odd_kind(seed: int) -> str:
    """The oddity of a world in a mixed set; "" of two thirds."""
    return "" if seed % 3 else ODD[seed // 3 % len(ODD)]


def world(
    seed: int,
    items: int = 60,
    checkpoints: int = 8,
    tries: int = 4,
    ahead: float = 2.0,
    odd: str = "",
) -> tuple:
    """A run of which `checkpoints` have been tried, over 1.4 decades: (trials, grid [T], true reliability [T]).

    Growth is linear, saturating or a walk; failures are correlated inside items and inside cells; a part of them lapses.
    odd: one of ODD. Of "never", 1% to 8% of the items are solved by no ability.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1.4, checkpoints)
    grid = np.concatenate([x[:-1], np.linspace(1.4, 1.4 + ahead, 61)])
    start, gain = rng.normal(-1, 1), rng.uniform(1, 4)
    if odd == "all pass":
        start += 5
    if odd == "one try":
        tries = 1
    kind = rng.integers(3)
    if kind == 0:
        theta = start + gain * grid
    elif kind == 1:
        q = rng.choice([0.3, 0.7])
        theta = start + gain * (1 - 10 ** (-q * grid)) / q
    else:
        slope = gain + np.cumsum(rng.normal(0, 1.0, len(grid)) * np.sqrt(np.diff(grid, prepend=0)))
        theta = start + np.cumsum(slope * np.diff(grid, prepend=0))
    theta = theta + np.cumsum(rng.normal(0, 0.15, len(grid)) * np.sqrt(np.diff(grid, prepend=0)))
    lapse = expit(rng.normal(-4.5, 1.5) + rng.normal(-0.5, 0.5) * (grid - 1.4))
    spread, phi = rng.uniform(0.5, 2.0), rng.uniform(3, 15)
    if odd == "equal items":
        spread = 0.0
    never = rng.uniform(0.01, 0.08) if odd == "never" else 0.0
    solved = expit(theta[:, None] + spread * NODES) @ (MASS / MASS.sum())
    truth = (1 - never) * (1 - lapse) * solved
    hard = rng.normal(0, spread, items)
    if never:
        hard[rng.random(items) < never] = np.inf
    p = (1 - lapse[:checkpoints, None]) * expit(theta[:checkpoints, None] - hard)
    p = np.maximum(p, 1e-9)  # of a beta distribution
    wins = rng.binomial(tries, rng.beta(p * phi, (1 - p) * phi))
    passed = rng.permuted(np.arange(tries) < wins[..., None], axis=2)
    m, i, k = (
        a.ravel()
        for a in np.meshgrid(
            np.arange(checkpoints), np.arange(items), np.arange(tries), indexing="ij"
        )
    )
    rows = [
        {
            "run": "world",
            "compute": 10.0 ** x[a],
            "item": str(b),
            "seed": str(c),
            "success": int(passed[a, b, c]),
        }
        for a, b, c in zip(m, i, k, strict=True)
    ]
    return trials.from_rows(rows), grid, truth
