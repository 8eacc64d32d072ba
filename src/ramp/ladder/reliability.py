"""The rung of reliability: which of two systems keeps what it promises?

Half of the systems succeed .999 of the time and half .98; .99 was asked for. None needs a model: a
success is a coin here, so that it is known which verdicts are right.
"""

import math

import numpy as np

from ramp.ladder.learn import SEEDS, ProbeResult
from ramp.nines.sequential import count_evidence, log_capital_above

BAR = 0.99
GOOD, BAD = 0.999, 0.98  # success rates
NUM_SYSTEMS = 100  # of each
DEMO = 10  # trials of a demonstration
CONFIDENCE = 0.95
LOOKS = 10


def judge_demo(passed: np.ndarray) -> bool:
    """Ship what does not fail in a demonstration."""
    return bool(passed[:DEMO].all())


def judge_proof(passed: np.ndarray) -> bool:
    """Ship what is shown to be above the bar, as `ramp nines gate` does."""
    evidence = count_evidence(passed.astype(float))
    return log_capital_above(evidence, BAR) >= -math.log(1 - CONFIDENCE)


def judge_systems(judge, n: int, seed: int) -> ProbeResult:
    """The fraction of systems that are judged rightly, after more and more of n trials."""
    looks = np.linspace(n / LOOKS, n, LOOKS).round().astype(int)
    accuracy = np.zeros((LOOKS, SEEDS))
    for s in range(SEEDS):
        rng = np.random.default_rng([seed, s])
        for rate in (GOOD, BAD):
            trials = rng.random((NUM_SYSTEMS, n)) < rate
            for i, look in enumerate(looks):
                shipped = sum(judge(passed[:look]) for passed in trials)
                right = shipped if rate == GOOD else NUM_SYSTEMS - shipped
                accuracy[i, s] += right / (2 * NUM_SYSTEMS)
    return ProbeResult(n=n, steps=looks.tolist(), accuracy=accuracy.tolist())
