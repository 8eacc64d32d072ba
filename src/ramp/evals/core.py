"""CORE (Li et al. 2024, arXiv:2406.11794): how well a pretrained model continues 22 kinds of questions.

Of several pairs, the one with the fewest nats per judged token is the model's answer; a single pair counts as answered
when every judged token is the most likely one. A task's accuracy is centred, (accuracy - chance) / (1 - chance), and
CORE is the mean over the tasks. `ramp.text.questions` says what a pair is and which of its tokens are judged.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Config, Model
from ramp.evals.questions import CONTINUE, Row, Task, make_rows
from ramp.model import transformer
from ramp.model.loss import cross_entropy
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train.common import load_params
from ramp.train.mesh import ROWS, shard_batch
from ramp.train.preemption import Preemption

PIECE = 32  # judged tokens of a row whose logits exist at once: most answers are shorter
HEAD = f"{'core':32} {'accuracy':>16} {'chance':>7} {'guess':>7} {'centred':>8} {'items':>6} {'rows':>6} {'cropped':>7}"
LINE = "{:32} {accuracy:8.3f} ± {se:.3f} {chance:7.3f} {guess:7.3f} {centred:8.3f} {items:6} {rows:6} {cropped:7}"


def score_rows(
    c: Config, params: dict, rows: Sequence[Row], poll: Callable[[int], object] = lambda _: None
) -> np.ndarray:
    """[rows, 2]: nats of each row's judged tokens, and how many of them the model held most likely.

    Every batch has one of a few lengths, 128, 256, ... context, the shorter the more rows: one program each. Its rows are
    split over the mesh. `poll(n)` is called while batch n is under way.
    """
    mesh, batches, done = jax.sharding.get_mesh(), list(_batches(c, rows)), []
    for n, (numbers, length, size) in enumerate(batches):
        held = _padded([rows[i] for i in numbers], length, size)
        batch = shard_batch(
            mesh, lambda lo, hi, held=held: {k: a[lo:hi] for k, a in held.items()}, size
        )
        done.append(_sums(c.model, params, batch))
        poll(n)
        jax.block_until_ready(done[n - 1 : n])  # the device has one batch waiting, not all of them
    found = np.zeros((len(rows), 2))
    for (numbers, _, _), sums in zip(batches, done, strict=True):
        found[numbers] = np.asarray(sums)[: len(numbers)]
    return found


def _batches(c: Config, rows: Sequence[Row]) -> Iterator[tuple[list[int], int, int]]:
    """Numbers of rows that go together, the length they are padded to, and to how many rows."""
    lengths = [n for n in (128 << k for k in range(24)) if n < c.model.context_len] + [
        c.model.context_len
    ]
    fit = [next(n for n in lengths if n >= len(row.ids) - 1) for row in rows]
    for length, numbers in groupby(
        sorted(range(len(rows)), key=fit.__getitem__), key=fit.__getitem__
    ):
        size = c.eval.batch_size * (c.model.context_len // length)
        while part := list(islice(numbers, size)):
            yield part, length, size


def _padded(rows: Sequence[Row], length: int, size: int) -> dict[str, np.ndarray]:
    """A batch: `tokens` and `targets` [size, length], and where the judged targets of each row begin and end, [size]."""
    held = {name: np.zeros((size, length), np.int32) for name in ("tokens", "targets")}
    held |= {name: np.zeros(size, np.int32) for name in ("first", "end")}
    for i, row in enumerate(rows):
        end = len(row.ids) - 1
        held["tokens"][i, :end], held["targets"][i, :end] = row.ids[:-1], row.ids[1:]
        held["first"][i], held["end"][i] = end - row.judged, end
    return held


@partial(jax.jit, static_argnums=0)
def _sums(m: Model, params: dict, batch: dict) -> jax.Array:
    """[B, 2], on every device: nats of the judged targets, and how many of them are the argmax."""
    B, T = batch["tokens"].shape
    first_b1, end_b1 = batch["first"][:, None], batch["end"][:, None]
    x_nd = transformer.compute_hidden(m, params["lm"], batch["tokens"])
    x_btd = jax.lax.reshape(x_nd, (B, T, m.width), out_sharding=P(ROWS))

    def piece(i: jax.Array, sums_b2: jax.Array) -> jax.Array:
        at_bs = first_b1 + PIECE * i + jnp.arange(PIECE)
        here_bs = jnp.minimum(at_bs, T - 1)
        x_nd = jax.lax.reshape(
            _pick(x_btd, here_bs[..., None]), (B * PIECE, m.width), out_sharding=P(ROWS)
        )
        targets_n = jax.lax.reshape(
            _pick(batch["targets"], here_bs), (B * PIECE,), out_sharding=P(ROWS)
        )
        logits_nv = transformer.unembed(m, params["lm"], x_nd)
        nats_n, _ = cross_entropy(logits_nv, targets_n)
        both_n2 = jnp.stack([nats_n, jnp.argmax(logits_nv, axis=-1) == targets_n], axis=-1)
        both_bs2 = jax.lax.reshape(both_n2, (B, PIECE, 2), out_sharding=P(ROWS))
        return sums_b2 + jnp.sum(jnp.where((at_bs < end_b1)[..., None], both_bs2, 0), axis=1)

    pieces = (jnp.max(end_b1 - first_b1) + PIECE - 1) // PIECE
    return jax.reshard(
        jax.lax.fori_loop(0, pieces, piece, jnp.zeros((B, 2), out_sharding=P(ROWS))), P()
    )


def _pick(a: jax.Array, at: jax.Array) -> jax.Array:
    """`take_along_axis` over axis 1 where the rows lie: each device in its own."""
    take = partial(jnp.take_along_axis, axis=1)
    return jax.shard_map(take, in_specs=(P(ROWS), P(ROWS)), out_specs=P(ROWS), check_vma=False)(
        a, at
    )


def grade_rows(task: Task, rows: Sequence[Row], found: np.ndarray) -> np.ndarray:
    """Whether each question was answered rightly, bool [items]. The first of equal choices is taken."""
    starts = np.flatnonzero(np.diff([row.item for row in rows], prepend=-1))
    judged = np.array([row.judged for row in rows])
    if task.kind == CONTINUE:
        return found[:, 1] == judged
    picked = [int(np.argmin(nats)) for nats in np.split(found[:, 0] / judged, starts[1:])]
    return np.array(picked) == [item.gold for item in task.items[: len(starts)]]


def score_task(task: Task, rows: Sequence[Row], right: np.ndarray) -> dict[str, Any]:
    """Figures of a task. `guess`: the expected accuracy of taking any choice, which for some files is not `chance`."""
    n, span = len(right), 1 - task.chance
    accuracy, asked = float(np.mean(right)), task.items[: len(right)]
    guess = float(np.mean([1 / len(i.pairs) if len(i.pairs) > 1 else 0 for i in asked]))
    se = math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "accuracy": accuracy, "se": se, "chance": task.chance, "guess": guess,
        "centred": (accuracy - task.chance) / span, "centred_se": se / span, "centred_guess": (guess - task.chance) / span,
        "items": n, "rows": len(rows), "cropped": sum(row.cropped for row in rows),
    }  # fmt: skip


def summarize(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """CORE, the mean of the centred accuracies, with its standard error (tasks taken as independent), beside guessing."""
    mean, guess = (
        float(np.mean([t[key] for t in tasks.values()])) for key in ("centred", "centred_guess")
    )
    se = math.hypot(*(t["centred_se"] for t in tasks.values())) / len(tasks)
    return {"core": mean, "se": se, "chance": 0.0, "guess": guess, "tasks": tasks}


def run(
    rundir: RunDir, c: Config, stop: Preemption, tasks: Sequence[Task], limit: int = 0
) -> dict[str, Any]:
    """Put `limit` questions of each task (0: all) to the pretrained model; the table is printed as it grows."""
    began, figures = time.perf_counter(), {}
    tokenizer = Tokenizer.load(rundir.tokenizer)
    params = load_params(rundir, "pretrain", c, tokenizer)
    say = partial(print, flush=True) if jax.process_index() == 0 else lambda _: None
    with stop:
        say(HEAD)
        for task in tasks:
            rows = make_rows(task, tokenizer, c.model.context_len, limit)
            figures[task.label] = score_task(
                task, rows, grade_rows(task, rows, score_rows(c, params, rows, stop.check))
            )
            say(LINE.format(task.label, **figures[task.label]))
    result = summarize(figures) | {"limit": limit, "seconds": time.perf_counter() - began}
    say(
        f"CORE {result['core']:.4f} ± {result['se']:.4f}; beside it: chance 0, any choice {result['guess']:.4f}"
    )
    with MetricWriter(rundir.path, "core", 0, jax.process_index() == 0) as board:
        tags = {f"eval/core/{label}": f["centred"] for label, f in figures.items()}
        board.scalars(
            c.pretrain.steps,
            tags | {"eval/core": result["core"], "eval/core_guess": result["guess"]},
        )
    return result
