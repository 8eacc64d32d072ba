"""Simulated worlds whose true reliability is known: what forecasts and audits are judged by."""

import numpy as np
from scipy.special import expit

from ramp.nines import trials

NODES, MASS = np.polynomial.hermite_e.hermegauss(41)


def world(
    seed: int, items: int = 60, checkpoints: int = 8, tries: int = 4, ahead: float = 2.0
) -> tuple:
    """A run of which `checkpoints` have been tried, over 1.4 decades: (trials, grid [T], true reliability [T]).

    Growth is linear, saturating or a walk; failures are correlated inside items and inside cells; a part of them lapses.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1.4, checkpoints)
    grid = np.concatenate([x[:-1], np.linspace(1.4, 1.4 + ahead, 61)])
    start, gain = rng.normal(-1, 1), rng.uniform(1, 4)
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
    truth = (1 - lapse) * (expit(theta[:, None] + spread * NODES) @ (MASS / MASS.sum()))
    hard = rng.normal(0, spread, items)
    p = (1 - lapse[:checkpoints, None]) * expit(theta[:checkpoints, None] - hard)
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
