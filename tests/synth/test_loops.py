"""Error rates of the guard over whole loops. `python -m experiments.collapse.loops` prints the table
of 500 loops of each kind; this is a short form of it, on seeds of its own."""

import numpy as np
import pytest

from experiments.collapse.loops import FAULTY, HEALTHY, run_loop


def test_healthy_loops_are_left_alone():
    seeds = np.random.default_rng(1).integers(1 << 20, 1 << 30, 3)
    for name, scenario in HEALTHY.items():
        assert not any(run_loop(scenario, int(seed)).acted for seed in seeds), name


@pytest.mark.parametrize(
    "name, by",
    [
        ("+.4% a generation, noise 1%", 3),
        ("5% of documents x10, the rest -.3%", 1),
        ("20% of samples are ten texts", 1),
        ("topic-only verifier", 1),
        ("verifier blind to 12%", 1),
        ("behind the control by 1% a generation", 3),
    ],
)
def test_faults_are_acted_on_in_time(name, by):
    for seed in range(1 << 20, (1 << 20) + 4):
        outcome = run_loop(FAULTY[name], seed, by)
        assert outcome.acted and outcome.acted <= by
        assert outcome.rise <= 0.01
