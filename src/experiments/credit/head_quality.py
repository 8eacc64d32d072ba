"""How good a process head is: first errors found, ranking of steps, calibration."""

from dataclasses import dataclass

import numpy as np

from experiments.credit.first_errors import first_error_f1
from ramp.credit.process_head import first_error_labels
from ramp.credit.rollouts import Rollouts


@dataclass(frozen=True)
class HeadQuality:
    """Scores of step probabilities on labelled rollouts."""

    wrong: float  # first errors found, among solutions with one; as `FirstErrorScore`
    clean: float
    f1: float
    auc: float  # of the labelled steps
    calibration_error: float
    threshold: float  # a step less probable than this is called wrong


def predict_first_error(
    p_bs: np.ndarray, exists_bs: np.ndarray, threshold: float
) -> list[int | None]:
    """The first step of each row whose probability of being right is below the threshold."""
    wrong = (p_bs < threshold) & (exists_bs > 0)
    return [int(w.argmax()) if w.any() else None for w in wrong]


def choose_threshold(p_bs: np.ndarray, r: Rollouts) -> float:
    """The threshold with the best first-error F1 on validation rollouts."""
    true = [v.first_error for v in r.verdicts]
    grid = np.concatenate([np.linspace(0.02, 0.98, 49), [0.99, 0.995, 0.999]])

    def score(threshold: float) -> float:
        return first_error_f1(predict_first_error(p_bs, r.exists_bs, threshold), true).f1

    return float(max(grid, key=score))


def measure_quality(p_bs: np.ndarray, r: Rollouts, threshold: float) -> HeadQuality:
    """First-error scores, and over the labelled steps ROC area and calibration error."""
    true = [v.first_error for v in r.verdicts]
    labels = first_error_labels(r)
    p, y = p_bs[labels >= 0], labels[labels >= 0]
    errors = first_error_f1(predict_first_error(p_bs, r.exists_bs, threshold), true)
    return HeadQuality(
        **vars(errors),
        auc=auc(p, y),
        calibration_error=calibration_error(p, y),
        threshold=threshold,
    )


def auc(p: np.ndarray, y: np.ndarray) -> float:
    """The chance that a right step scores above a wrong one, ties half; NaN without both kinds."""
    right, wrong = np.sort(p[y > 0.5]), p[y <= 0.5]
    if not len(right) or not len(wrong):
        return float("nan")
    below, upto = np.searchsorted(right, wrong, "left"), np.searchsorted(right, wrong, "right")
    return float(np.mean(len(right) - (below + upto) / 2) / len(right))


def calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Mean gap of stated and found chance over equal bins, weighted by their size (ECE)."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [
        abs(p[which == i].mean() - y[which == i].mean()) * (which == i).mean()
        for i in set(which.tolist())
    ]
    return float(sum(gaps))
