"""Reinforcement, step by step: sample, judge every step, give each its credit, update. One loss, like any stage.

The model first imitates solved problems for `reinforce.sft_steps` steps (a sub-stage with checkpoints of its own), since a
chat model does not know the form. What happens in an iteration is `credit/learn.py`; this file wires it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ramp.config import Config
from ramp.credit import audit, learn, page, process_head, rollouts
from ramp.credit.advantages import METHODS, MONTE_CARLO
from ramp.credit.rollouts import Rollouts
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.tasks import TASKS
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore, trainer
from ramp.train.preemption import Preemption
from ramp.train.state import State, eval_params

SHOWN = ("rloo", "step_local")  # beside the method in use, in pictures


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    t = c.reinforce
    if jax.process_count() > 1:
        raise UserError(
            "reinforcement runs in one process so far; use one host, with any number of devices"
        )
    if t.reward == "head" and not t.label_fraction:
        raise UserError(
            "reinforce.reward 'head' learns from the checker's labels: set reinforce.label_fraction above 0"
        )
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    measure = partial(learn.measure_accuracy, c.model, t, tokenizer)
    start = partial(restore.load_params, rundir, "finetune", c, tokenizer)
    if t.sft_steps:
        state, _ = run_sft(rundir, c, tokenizer, start, stop)
        params = eval_params(state)
        start = lambda: params  # noqa: E731
    learned = t.reward == "head" or t.method == "implicit"
    before, _ = measure(start())
    print_accuracy("before", before)

    def evaluate(params, step, board, stop) -> dict[str, float]:
        found, _ = measure(params)
        r, methods = sample_with_credit(c, tokenizer, params, groups=1)
        row = rank_rollouts(r)[0]
        board.figure(step, "credit/rollout", page.plot_rollout(tokenizer, r, methods, row))
        board.text(step, "credit/rollout", page.describe_rollout(tokenizer, r, methods, row))
        return {f"rl/{name}": value for name, value in found.items()} | {
            "rl/not_verified": 1 - found["verified"]
        }

    stage = trainer.Trainer(
        name="reinforce",
        c=c,
        t=t.train,
        loss=learn.make_loss(c.model, t),
        batches=row_numbers,
        tokenizer=tokenizer,
        wrap_step=partial(wrap_iteration, c, tokenizer),
        keep_ref=t.kl_coef > 0 or t.method == "implicit",
        add_params=(lambda params: params | {"process": process_head.init_head(c.model, params["lm"])})
        if learned
        else lambda p: p,
    )
    state, report = stage.train(rundir, start, evaluate, "rl/not_verified", stop)
    after, _ = measure(eval_params(state))
    print_accuracy("after", after)
    save_page(rundir, c, tokenizer, eval_params(state))
    result = report.to_dict() | {
        "task": t.task,
        "level": t.level,
        "method": t.method,
        "before": before,
        "after": after,
    }
    return result | {"seconds": time.perf_counter() - began}


def print_accuracy(when: str, found: dict[str, float]) -> None:
    shares = f"{found['right']:.1%} right, {found['verified']:.1%} verified, {found['steps']:.1%} of the steps right"
    print(f"reinforce: {when}: {shares}")


def row_numbers(step: int, lo: int, hi: int) -> dict[str, np.ndarray]:
    """In place of a batch: an iteration asks its own problems, from its step and seed."""
    return {"row": np.arange(lo, hi, dtype=np.int32)}


def wrap_iteration(c: Config, tokenizer: Tokenizer, update: Callable) -> Callable:
    """`update` of a batch, as a step that first samples its batch from the state it is given."""
    t = c.reinforce

    def step(state: State, asked: dict) -> tuple[State, dict]:
        at = int(state.step)
        got = learn.collect_batch(c.model, t, tokenizer, state.params, state.ref, at, c.seed)
        state, metrics = update(state, learn.shard_rows(got.batch))
        straw = audit.misassigned_credit(got.rollouts, got.advantage_bn)
        r = got.rollouts
        rl = {
            "reward": r.outcome_b.mean(),
            "train_verified": r.verified_b.mean(),
            "tokens": got.tokens,
        }
        rl |= {
            "labels": got.labels,
            "dropped_groups": got.dropped,
            "length": r.tokens / len(r.prompts),
        }
        return state, metrics | {f"rl/{k}": v for k, v in rl.items()} | {
            f"credit/{k}": v for k, v in straw.items()
        }

    return step


def run_sft(
    rundir: RunDir, c: Config, tokenizer: Tokenizer, start: Callable, stop: Preemption
) -> tuple[State, dict]:
    """Fine-tuning on solved problems, by the recipe of the section `finetune` but for its length and its rows."""
    t, task = c.reinforce, TASKS[c.reinforce.task]
    rows = {
        "steps": t.sft_steps,
        "batch_size": t.train.batch_size,
        "seq_len": t.train.seq_len,
        "eval_every": t.sft_steps,
        "save_every": t.sft_steps,
    }
    recipe = replace(c.finetune, lr_scale=c.finetune.lr_scale * t.sft_lr_scale, **rows)

    def batches(step: int, lo: int, hi: int) -> dict[str, np.ndarray]:
        rows = learn.make_sft_batch(
            tokenizer, task, t.level, t.train.batch_size, t.train.seq_len, step, c.seed
        )
        return {name: a[lo:hi] for name, a in rows.items()}

    stage = trainer.Trainer("imitate", c, recipe, next_token_loss(c.model, 0.0), batches, tokenizer)
    return stage.train(rundir, start, lambda *_: {}, "", stop)


def sample_with_credit(
    c: Config, tokenizer: Tokenizer, params: dict, groups: int, first: int = 0
) -> tuple[Rollouts, dict[str, np.ndarray]]:
    """Rollouts of a few held-out problems, and what methods that need no further sampling make of them."""
    t, task = c.reinforce, TASKS[c.reinforce.task]
    asked = learn.held_out_problems(task, t.level, groups, first)
    r = rollouts.sample_rollouts(
        c.model,
        params["lm"],
        tokenizer,
        task,
        asked,
        t.group_size,
        t.max_new_tokens,
        1,
        t.temperature,
    )
    names = dict.fromkeys(
        [*SHOWN, *([t.method] if t.method not in (*MONTE_CARLO, "implicit") else [])]
    )
    return r, {name: np.asarray(METHODS[name](learn.checker_credit(r))) for name in names}


def rank_rollouts(r: Rollouts) -> list[int]:
    """Rows, the most telling first: luck, then failures that did much right, then the rest."""
    partly = [-float(r.right_bs[b].sum()) for b in range(len(r.prompts))]
    return sorted(
        range(len(r.prompts)),
        key=lambda b: (not r.verdicts[b].lucky, r.verdicts[b].final_right, partly[b]),
    )


def show_credit(rundir: RunDir, c: Config, first: int, groups: int) -> str:
    """Print the most telling rollout of the trained policy with its credit, and write the page it is on; its path."""
    if first < 0 or groups < 1:
        raise UserError(
            f"--problem is at least 0 and --groups at least 1, not {first} and {groups}"
        )
    tokenizer = Tokenizer.load(rundir.tokenizer)
    params = restore.load_params(rundir, "reinforce", c, tokenizer)
    path, told = save_page(rundir, c, tokenizer, params, groups, first)
    print(told)
    return str(path)


def save_page(
    rundir: RunDir, c: Config, tokenizer: Tokenizer, params: dict, groups: int = 4, first: int = 0
) -> tuple[Path, str]:
    """Write credit.html into the run directory; its path, and its first rollout as text."""
    r, methods = sample_with_credit(c, tokenizer, params, groups, first)
    title, rows = f"Credit on {c.reinforce.task}, level {c.reinforce.level}", rank_rollouts(r)[:8]
    path = rundir.path / "credit.html"
    write_atomic(path, page.render_page(tokenizer, r, methods, rows, title))
    return path, page.describe_rollout(tokenizer, r, methods, rows[0])
