"""What a system will do on one task from what it does on others: observational scaling.

Systems are described by what they do, not by what they cost (Ruan, Maddison & Hashimoto 2024,
arXiv:2405.10938). Where they take principal components and a sigmoid, this is a Gaussian process
over the standardised logits z of the other tasks, so that a system far from every known one is
uncertain:

    logit of the task = level + w·z + g(z) + family + noise     w ~ N(0, a²)   g: radial basis
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray
from scipy.special import expit

from ramp.errors import UserError
from ramp.nines import gaussian_process
from ramp.nines.backtest import coverage, crps, pit
from ramp.nines.baselines import DRAWS, accuracy_logits, observe_accuracy
from ramp.nines.notes import list_some
from ramp.nines.trials import Columns, Trials, accuracy_curves, checkpoint_progress

# Prior means of the log scales, each normal with standard deviation 1: the standard deviations of
# w, g, family and noise, and the length scale of g.
PRIOR_LOG_SCALE = np.array([0.0, -0.5, -0.5, -0.5, 0.5])
LEVEL_SD = 3.0  # of the level around the mean of the known systems
MIN_SYSTEMS = 5  # that a forecast learns from


@dataclass(frozen=True)
class Systems(Columns):
    """Systems that tried the same other tasks."""

    name: ndarray  # [N]
    family: ndarray  # [N]
    x: ndarray  # [N] log10 of compute
    z: ndarray  # [N, K] logits on the other tasks
    y: ndarray  # [N] logit on the task; NaN where it was not tried
    value: ndarray  # [N] accuracy on the task
    error: ndarray  # [N] standard error of y
    n: ndarray  # [N] trials that would have that error


@dataclass(frozen=True)
class Scores:
    """How forecasts of larger systems from smaller ones did."""

    systems: int
    squared_error: float  # of the mean
    coverage: float  # of 90% intervals
    crps: float


def build_systems(
    t: Trials, task: str, predictors: list[str] | None = None, never: Sequence[str] = ()
) -> Systems:
    """Collect the systems that tried all the predictor tasks, at their last checkpoint.

    predictors: tasks to predict from; by default all others that nine tenths of the systems tried,
    except those in `never`. Raises UserError for tasks that are not in the table.
    """
    x = checkpoint_progress(t)
    run_names, run = np.unique(t.run, return_inverse=True)
    # Of several checkpoints of a system the last one counts.
    last = np.full(len(run_names), -np.inf)
    np.maximum.at(last, run, x)
    t = t[x >= last[run] - 1e-9]
    # Curves want a place on an axis: without compute, all systems stand at the same one.
    if not np.isfinite(t.compute).all():
        t = replace(t, compute=np.ones(len(t)))
    curves = accuracy_curves(t)
    names, task_of = np.unique(curves.task, return_inverse=True)
    runs, run_of = np.unique(curves.run, return_inverse=True)
    tasks = names.tolist()
    if task not in tasks:
        raise UserError(f"no trial is of the task {task!r}; there are {', '.join(tasks)}")

    def tabulate(column):
        # [systems, tasks], NaN where a system did not try a task.
        table = np.full((len(runs), len(tasks)), np.nan)
        table[run_of, task_of] = column
        return table

    y, error = map(tabulate, accuracy_logits(curves))
    if predictors is None:
        common = names[np.isfinite(y).mean(0) >= 0.9].tolist()
        predictors = [name for name in common if name not in (task, *never)]
    others = [name for name in tasks if name != task]
    if not predictors:
        # Those help most that were tried where the task was: from there it learns.
        both = np.isfinite(y[np.isfinite(y[:, tasks.index(task)])]).sum(0)
        most = sorted(others, key=lambda name: -both[tasks.index(name)])
        tried = [f"{name} ({both[tasks.index(name)]})" for name in most]
        raise UserError(
            f"{task} is predicted from other tasks, and nine tenths of the {len(runs)} systems "
            f"tried none; name some with --predictors; beside {task} were tried, by so many "
            f"systems: {list_some(tried) or 'none'}"
        )
    for name in predictors:
        if name not in others:
            raise UserError(
                f"{task} is predicted from other tasks, not from {name!r}; "
                f"there are {', '.join(tasks)}"
            )
    z = y[:, [tasks.index(name) for name in predictors]]
    # A family that is not named is the system itself.
    family = dict(zip(t.run, np.where(t.family == "", t.run, t.family), strict=True))
    place = tasks.index(task)
    systems = Systems(
        name=runs,
        family=np.array([family[name] for name in runs]),
        x=np.nanmax(tabulate(curves.x), axis=1),
        z=z,
        y=y[:, place],
        value=tabulate(curves.value)[:, place],
        error=error[:, place],
        n=tabulate(curves.n)[:, place],
    )
    return systems[np.isfinite(z).all(1)]


def predict(s: Systems, known: ndarray, wanted: ndarray) -> ndarray:
    """[DRAWS, W] accuracies that the wanted systems will show, from the known ones.

    known, wanted: [N] bool. Raises UserError where fewer than `MIN_SYSTEMS` are known.
    """
    known = known & np.isfinite(s.y)
    if known.sum() < MIN_SYSTEMS:
        raise UserError(
            f"{known.sum()} systems are known on the task; "
            f"{MIN_SYSTEMS} are the least to learn from"
        )
    # Standardised by the known systems only: the wanted ones must not leak in.
    spread = s.z[known].std(0)
    z = (s.z - s.z[known].mean(0)) / np.where(spread > 0, spread, 1.0)
    linear = z @ z.T
    distance = ((z[:, None] - z) ** 2).sum(-1)
    same_family = (s.family[:, None] == s.family).astype(float)
    stated = np.diag(s.error[known] ** 2)
    identity = np.eye(known.sum())

    def components(length, rows, columns):
        # [3, R, C] the linear, the radial and the family part, with variance 1 each.
        at = np.ix_(rows, columns)
        return np.stack([linear[at], np.exp(-distance[at] / (2 * length**2)), same_family[at]])

    def covariance(log_scales):
        scales = np.exp(log_scales)
        parts = components(scales[4], known, known) * scales[:3, None, None] ** 2
        noise = scales[3] ** 2 * identity
        matrix = LEVEL_SD**2 + parts.sum(0) + stated + noise + 1e-6 * identity
        by_length = parts[1] * distance[np.ix_(known, known)] / scales[4] ** 2
        return matrix, np.stack([*(2 * parts), 2 * noise, by_length])

    prior = PRIOR_LOG_SCALE, np.ones(len(PRIOR_LOG_SCALE))
    posterior = gaussian_process.fit_map(covariance, s.y[known], *prior, (-5, 3), 15_000)
    scales = posterior.scales

    def kernel(rows):
        return LEVEL_SD**2 + np.tensordot(scales[:3] ** 2, components(scales[4], rows, wanted), 1)

    mean, cov = posterior.predict(kernel(known), kernel(wanted))
    # Nothing is known of the wanted systems, not even their number of trials.
    n = np.median(s.n[known])
    sampling = 1 / (n * expit(mean) * expit(-mean) + 0.5)  # variance of an observed logit
    variance = np.diag(cov) + scales[3] ** 2 + sampling
    noise = np.random.default_rng(0).standard_normal((DRAWS, wanted.sum()))
    return observe_accuracy(expit(mean + np.sqrt(np.maximum(variance, 1e-9)) * noise), n)


def score_above(s: Systems, compute: float) -> Scores:
    """Forecast systems of more than `compute` FLOP from those of at most that, and score it.

    Raises UserError where the systems have no compute, or none above it tried the task.
    """
    if (s.x == 0).all():
        raise UserError("these systems have no compute; --score-above needs that column")
    known = s.x <= np.log10(compute) + 1e-9
    wanted = ~known & np.isfinite(s.y)
    if not wanted.any():
        raise UserError(
            f"no system above {compute:g} FLOP tried the task; there is nothing to score"
        )
    draws = predict(s, known, wanted)
    truth = s.value[wanted]
    squared_error = ((draws.mean(0) - truth) ** 2).mean()
    pairs = list(zip(draws.T, truth, strict=True))
    covered = np.mean([coverage(*pit(d, v), 0.9) for d, v in pairs])
    return Scores(len(truth), squared_error, covered, np.mean([crps(d, v) for d, v in pairs]))
