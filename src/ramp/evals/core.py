"""CORE (Li et al. 2024, arXiv:2406.11794): 22 kinds of questions for a pretrained model.

The model only continues text. Of several pairs, the one with the fewest nats per judged token is
its answer; a single pair counts as answered when every judged token is the most likely one. A
task's accuracy is centred, (accuracy - chance) / (1 - chance), and CORE is the mean over the tasks.
`questions` says what a pair is and which of its tokens are judged.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config
from ramp.evals.questions import CONTINUE, Row, Task, make_rows
from ramp.model import transformer
from ramp.model.loss import cross_entropy
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train.mesh import ROWS, shard_batch
from ramp.train.preemption import Preemption
from ramp.train.processes import is_writer
from ramp.train.restore import load_params

HEADER = (
    f"{'core':32} {'accuracy':>16} {'chance':>7} {'guess':>7} {'centred':>8} "
    f"{'items':>6} {'rows':>6} {'cropped':>7}"
)
MIN_LENGTH = 128  # tokens of the shortest rows
PIECE = 32  # judged tokens of a row whose logits exist at once: most answers are shorter


# --- scores of rows


def score_rows(
    c: Config, params: dict, rows: Sequence[Row], poll: Callable[[int], object] = lambda n: None
) -> np.ndarray:
    """[rows, 2]: nats of each row's judged tokens, and how many of them the model held most likely.

    Every batch has one of a few lengths, 128, 256, ... context, the shorter the more rows: one
    program each. Its rows are split over the mesh. `poll(n)` is called while batch n runs.
    """
    mesh = jax.sharding.get_mesh()
    batches = list(_plan_batches(c, rows))
    sums = []
    for n, (numbers, length, size) in enumerate(batches):
        arrays = _pad_rows([rows[i] for i in numbers], length, size)
        batch = shard_batch(mesh, partial(_slice, arrays), size)
        sums.append(_sum_judged(c.model, params, batch))
        poll(n)
        jax.block_until_ready(sums[n - 1 : n])  # the device has one batch waiting, not all of them
    result = np.zeros((len(rows), 2))
    for (numbers, _, _), sums_b2 in zip(batches, sums, strict=True):
        result[numbers] = np.asarray(sums_b2)[: len(numbers)]
    return result


def _plan_batches(c, rows: Sequence[Row]) -> Iterator[tuple[list[int], int, int]]:
    """(numbers of rows that go together, length they are padded to, number they are padded to)."""
    context_len = c.model.context_len

    def padded_length(i):
        power_of_two = 1 << (len(rows[i].ids) - 2).bit_length()  # that holds all but the last id
        return min(max(power_of_two, MIN_LENGTH), context_len)

    by_length = sorted(range(len(rows)), key=padded_length)
    for length, numbers in groupby(by_length, key=padded_length):
        # About as many tokens in every batch.
        size = c.eval.batch_size * (context_len // length)
        while part := list(islice(numbers, size)):
            yield part, length, size


def _pad_rows(rows: Sequence[Row], length, size) -> dict[str, np.ndarray]:
    """`tokens`, `targets` [size, length]; where each row's judged targets begin and end, [size]."""
    tokens, targets = np.zeros((2, size, length), np.int32)
    first, end = np.zeros((2, size), np.int32)
    for i, row in enumerate(rows):
        n = len(row.ids) - 1
        tokens[i, :n] = row.ids[:-1]
        targets[i, :n] = row.ids[1:]
        first[i], end[i] = n - row.num_judged, n
    names = ("tokens", "targets", "first", "end")
    return dict(zip(names, (tokens, targets, first, end), strict=True))


def _slice(arrays: dict[str, np.ndarray], lo, hi) -> dict[str, np.ndarray]:
    return {name: array[lo:hi] for name, array in arrays.items()}


@partial(jax.jit, static_argnums=0)
def _sum_judged(m, params, batch):
    """[B, 2], on every device: nats of the judged targets, and how many of them are the argmax.

    S = PIECE judged tokens of each row at a time: the logits of all would not fit.
    """
    B, T = batch["tokens"].shape
    first_b1, end_b1 = batch["first"][:, None], batch["end"][:, None]
    x_nd = transformer.compute_hidden(m, params["lm"], batch["tokens"])
    x_btd = jax.lax.reshape(x_nd, (B, T, m.width), out_sharding=P(ROWS))

    def add_piece(i, sums_b2):
        at_bs = first_b1 + PIECE * i + jnp.arange(PIECE)
        # The last piece of a row may go past its end: masked below.
        inside_bs = jnp.minimum(at_bs, T - 1)
        x_bsd = _take_per_row(x_btd, inside_bs[..., None])
        x_nd = jax.lax.reshape(x_bsd, (B * PIECE, m.width), out_sharding=P(ROWS))
        targets_bs = _take_per_row(batch["targets"], inside_bs)
        targets_n = jax.lax.reshape(targets_bs, (B * PIECE,), out_sharding=P(ROWS))
        logits_nv = transformer.unembed(m, params["lm"], x_nd)
        nats_n, _ = cross_entropy(logits_nv, targets_n)
        is_top_n = jnp.argmax(logits_nv, axis=-1) == targets_n
        both_n2 = jnp.stack([nats_n, is_top_n], axis=-1)
        both_bs2 = jax.lax.reshape(both_n2, (B, PIECE, 2), out_sharding=P(ROWS))
        is_judged_bs1 = (at_bs < end_b1)[..., None]
        return sums_b2 + jnp.sum(jnp.where(is_judged_bs1, both_bs2, 0), axis=1)

    # As many as the row with the most judged tokens needs; for the others the rest is masked.
    num_pieces = (jnp.max(end_b1 - first_b1) + PIECE - 1) // PIECE
    zeros_b2 = jnp.zeros((B, 2), out_sharding=P(ROWS))
    return jax.reshard(jax.lax.fori_loop(0, num_pieces, add_piece, zeros_b2), P())


def _take_per_row(a, at):
    """`take_along_axis` over axis 1 where the rows are: each device in its own."""
    take = partial(jnp.take_along_axis, axis=1)
    take = jax.shard_map(take, in_specs=(P(ROWS), P(ROWS)), out_specs=P(ROWS), check_vma=False)
    return take(a, at)


# --- scores of tasks


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on one task; the names are those of report.json."""

    accuracy: float
    se: float  # standard error of the accuracy
    chance: float
    guess: float  # expected accuracy of any choice, which for some files is not `chance`
    centred: float
    centred_se: float
    centred_guess: float
    items: int
    rows: int
    cropped: int  # rows that were too long for the context


@dataclass(frozen=True)
class CoreReport:
    """CORE, the mean of the centred accuracies; the names are those of report.json."""

    core: float
    se: float  # standard error, tasks taken as independent
    chance: float  # 0, which is what centred means
    guess: float  # CORE of any choice
    tasks: dict[str, TaskScore]
    limit: int  # questions of each task; 0: all
    seconds: float


def grade_rows(task: Task, rows: Sequence[Row], sums: np.ndarray) -> np.ndarray:
    """Whether each question was answered rightly, bool [items]. The first of equal choices wins.

    sums: [rows, 2] of `score_rows`.
    """
    # Rows of one question follow each other.
    starts = np.flatnonzero(np.diff([row.item for row in rows], prepend=-1))
    num_judged = np.array([row.num_judged for row in rows])
    if task.kind == CONTINUE:
        return sums[:, 1] == num_judged
    # Per token, or a long answer would never be chosen.
    nats_of_items = np.split(sums[:, 0] / num_judged, starts[1:])
    chosen = np.array([np.argmin(nats) for nats in nats_of_items])
    return chosen == [item.gold for item in task.items[: len(starts)]]


def score_task(task: Task, rows: Sequence[Row], right: np.ndarray) -> TaskScore:
    """The score from whether each question was answered rightly, `right`: bool [items]."""
    n = len(right)
    accuracy = float(right.mean())
    se = math.sqrt(accuracy * (1 - accuracy) / n)
    # With a limit, fewer questions than the task has. A single pair cannot be guessed.
    num_pairs = [len(item.pairs) for item in task.items[:n]]
    guess = float(np.mean([1 / k if k > 1 else 0 for k in num_pairs]))
    scale = 1 - task.chance
    return TaskScore(
        accuracy=accuracy,
        se=se,
        chance=task.chance,
        guess=guess,
        centred=(accuracy - task.chance) / scale,
        centred_se=se / scale,
        centred_guess=(guess - task.chance) / scale,
        items=n,
        rows=len(rows),
        cropped=sum(row.cropped for row in rows),
    )


def summarize(tasks: dict[str, TaskScore], limit: int = 0, seconds: float = 0.0) -> CoreReport:
    """CORE of the scores by label."""
    scores = tasks.values()
    core = float(np.mean([score.centred for score in scores]))
    guess = float(np.mean([score.centred_guess for score in scores]))
    se = math.hypot(*(score.centred_se for score in scores)) / len(tasks)
    return CoreReport(core, se, 0.0, guess, tasks, limit, seconds)


def run(
    rundir: RunDir, c: Config, stop: Preemption, tasks: Sequence[Task], limit: int = 0
) -> dict[str, Any]:
    """Ask the pretrained model `limit` questions of each task (0: all); prints as it goes."""
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    params = load_params(rundir, "pretrain", c, tokenizer)
    # In several processes the first one speaks for all.
    show = partial(print, flush=True) if is_writer() else lambda line: None
    scores = {}
    with stop.together():
        show(HEADER)
        for task in tasks:
            rows = make_rows(task, tokenizer, c.model.context_len, limit)
            right = grade_rows(task, rows, score_rows(c, params, rows, stop.check))
            score = scores[task.label] = score_task(task, rows, right)
            show(_format_score(task.label, score))
    report = summarize(scores, limit, time.perf_counter() - began)
    show(
        f"CORE {report.core:.4f} ± {report.se:.4f}, "
        f"compared with 0 by chance and {report.guess:.4f} for any choice"
    )
    with MetricWriter(rundir.path, "core", 0, is_writer()) as board:
        scalars = {f"eval/core/{label}": score.centred for label, score in scores.items()}
        scalars |= {"eval/core": report.core, "eval/core_guess": report.guess}
        board.scalars(c.pretrain.steps, scalars)
    return asdict(report)


def _format_score(label, score):
    return (
        f"{label:32} {score.accuracy:8.3f} ± {score.se:.3f} {score.chance:7.3f} "
        f"{score.guess:7.3f} {score.centred:8.3f} "
        f"{score.items:6} {score.rows:6} {score.cropped:7}"
    )
