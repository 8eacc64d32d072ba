"""How often the first wrong step of a solution is named."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FirstErrorScore:
    """How often the first wrong step is named."""

    wrong: float  # accuracy on solutions with an error, of which exactly the first must be named
    clean: float  # accuracy on solutions without one
    f1: float  # harmonic mean of the two


def first_error_f1(predicted: Sequence[int | None], true: Sequence[int | None]) -> FirstErrorScore:
    """ProcessBench's score (Zheng et al. 2024, arXiv:2412.06559).

    Numbers of first wrong steps, None where nothing is wrong. An accuracy over no solutions is 0.
    """
    pairs = list(zip(predicted, true, strict=True))
    on_wrong = _mean([a == b for a, b in pairs if b is not None])
    on_clean = _mean([a == b for a, b in pairs if b is None])
    total = on_wrong + on_clean
    return FirstErrorScore(on_wrong, on_clean, 2 * on_wrong * on_clean / total if total else 0.0)


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
