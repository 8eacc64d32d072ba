"""Reinforcement with credit for each step: sample, judge every step, assign credit, update.

The model first learns from solved problems for `reinforce.sft_steps` steps, a sub-stage "sft" with
checkpoints of its own, because a chat model does not know the format. What happens in an iteration
is in `credit/learn.py`; this file wires it.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Config, Reinforce
from ramp.credit import audit, learn, page, process_head, rollouts
from ramp.credit.advantages import METHODS
from ramp.credit.learn import Accuracy
from ramp.credit.rollouts import Rollouts
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.model.loss import chance_loss, next_token_loss
from ramp.rundir import RunDir
from ramp.stages.checks import check_reinforce
from ramp.tasks import TASKS
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.preemption import Preemption
from ramp.train.state import State, eval_params
from ramp.train.trainer import Trainer

SHOWN_METHODS = ("rloo", "step_local")  # in pictures, next to the method in use
SHOWN_ROLLOUTS = 8  # on the page
NUM_TRIED = 256  # problems whose lengths are looked at before anything is trained


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where problems and solutions do not fit the rows or the context."""
    t = c.reinforce
    task = TASKS[t.task]
    problems = learn.make_problems(task, t.level, 0, NUM_TRIED)
    longest = rollouts.require_room(c.model, tokenizer, problems, t.max_new_tokens)
    if longest + t.max_new_tokens > t.train.seq_len:
        raise UserError(
            f"a problem of {longest} tokens and {t.max_new_tokens} to solve it do not fit "
            f"reinforce.train.seq_len {t.train.seq_len}; raise it, or lower "
            "reinforce.max_new_tokens or the level"
        )
    if t.sft_steps:
        learn.make_sft_batch(tokenizer, task, t.level, NUM_TRIED, t.train.seq_len, 0, c.seed)


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Train the fine-tuned policy of a run; returns the report."""
    check_reinforce(c)  # also for callers that do not go through `ramp run`
    t = c.reinforce
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    start = partial(restore.load_start, rundir, "finetune", c, tokenizer)
    # The sub-stage resumes on its own checkpoints; when it is done it only restores.
    if t.sft_steps:
        start = run_sft(rundir, c, tokenizer, start, stop)
    before, _ = learn.measure_accuracy(c.model, t, tokenizer, start())
    print_accuracy("before", before)
    trainer = Trainer(
        name="reinforce",
        c=c,
        t=t.train,
        loss=learn.make_loss(c.model, t),
        batches=number_rows,  # rollouts come from the state: see `wrap_iteration`
        tokenizer=tokenizer,
        wrap_step=partial(wrap_iteration, c, tokenizer, stop),
        keep_ref=learn.needs_ref(t),
        add_params=partial(add_head, c),
    )
    # Judged on verified solutions: answers alone can rise while the working gets worse.
    evaluate = partial(evaluate_policy, c, tokenizer)
    state, report = trainer.train(rundir, start, evaluate, "rl/not_verified", stop)
    params = eval_params(state)
    after, _ = learn.measure_accuracy(c.model, t, tokenizer, params)
    print_accuracy("after", after)
    save_page(rundir, c, tokenizer, params)
    settings = {key: getattr(t, key) for key in ("task", "level", "method")}
    accuracies = {"before": asdict(before), "after": asdict(after)}
    return report.to_dict() | settings | accuracies | {"seconds": time.perf_counter() - began}


def print_accuracy(when: str, accuracy: Accuracy) -> None:
    """One line for the terminal."""
    print(
        f"reinforce: {when}: {accuracy.right:.1%} right, {accuracy.verified:.1%} verified, "
        f"{accuracy.steps:.1%} of the steps right"
    )


def add_head(c: Config, params: dict) -> dict:
    """The parameters with a new process head, where one is trained."""
    if not learn.trains_head(c.reinforce):
        return params
    return params | {"process": process_head.init_head(c.model, params["lm"])}


def evaluate_policy(
    c: Config, tokenizer: Tokenizer, params: dict, step: int, board: Any, stop: Preemption
) -> dict[str, float]:
    """Accuracy on held-out problems by tag, and a picture of one rollout on the board."""
    check = partial(stop.check, step)
    accuracy, _ = learn.measure_accuracy(c.model, c.reinforce, tokenizer, params, check=check)
    # The same problem each time, so that the pictures of a run can be compared.
    r, methods = sample_with_credit(c, tokenizer, params, num_problems=1)
    row = rank_rollouts(r)[0]
    board.figure(step, "credit/rollout", page.plot_rollouts(tokenizer, r, methods, [row]))
    board.text(step, "credit/rollout", page.describe_rollout(tokenizer, r, methods, row))
    metrics = {f"rl/{name}": value for name, value in asdict(accuracy).items()}
    # The best checkpoint is the one with the lowest score.
    metrics["rl/not_verified"] = 1 - accuracy.verified
    return metrics


def number_rows(step: int, lo: int, hi: int) -> dict[str, np.ndarray]:
    """In place of a batch: an iteration samples its own problems, from its step and seed."""
    return {"row": np.arange(lo, hi, dtype=np.int32)}


def wrap_iteration(c: Config, tokenizer: Tokenizer, stop: Preemption, update: Callable) -> Callable:
    """A step that first samples its batch from the state it is given, then does `update`.

    It raises `Preempted` while it samples, which leaves the state as it was.
    """
    t = c.reinforce

    def step(state: State, row_numbers: dict) -> tuple[State, dict]:
        # Seeded by (seed, step): a resumed run samples what it would have sampled.
        check = partial(stop.check, int(state.step))
        at = int(state.step + state.guard.offset)  # past what a recovery passed over
        i = learn.collect_batch(c.model, t, tokenizer, state.params, state.ref, at, c.seed, check)
        state, metrics = update(state, learn.shard_batch(i.batch))
        # Logged with the training metrics of the same step.
        r = i.rollouts
        metrics["rl/reward"] = r.outcome_b.mean()
        metrics["rl/train_verified"] = r.verified_b.mean()
        metrics["rl/tokens"] = i.num_tokens
        metrics["rl/labels"] = i.num_labels
        metrics["rl/dropped_groups"] = i.num_dropped_groups
        metrics["rl/length"] = r.num_tokens / len(r.prompts)
        misassigned = audit.misassigned_credit(r, i.advantage_bn)
        metrics |= {f"credit/{name}": value for name, value in asdict(misassigned).items()}
        return state, metrics

    return step


def run_sft(
    rundir: RunDir,
    c: Config,
    tokenizer: Tokenizer,
    start: Callable[[], dict],
    stop: Preemption,
) -> Callable[[], dict]:
    """Fine-tune on solved problems; returns a function that gives the resulting parameters.

    By the recipe of the section `finetune`, but for its length, its rows and its rates.
    """
    t = c.reinforce
    task = TASKS[t.task]
    batch_size, seq_len = t.train.batch_size, t.train.seq_len
    # Evaluated and saved once, at the end: it is short and has no score of its own.
    recipe = replace(
        c.finetune,
        steps=t.sft_steps,
        batch_size=batch_size,
        seq_len=seq_len,
        lr_scale=c.finetune.lr_scale * t.sft_lr_scale,
        eval_every=t.sft_steps,
        save_every=t.sft_steps,
    )

    # Every process makes the whole batch and keeps its rows.
    def make_batch(step: int, lo: int, hi: int) -> dict[str, np.ndarray]:
        rows = learn.make_sft_batch(tokenizer, task, t.level, batch_size, seq_len, step, c.seed)
        return {name: a[lo:hi] for name, a in rows.items()}

    trainer = Trainer(
        name="sft",
        c=c,
        t=recipe,
        loss=next_token_loss(c.model, 0.0),
        batches=make_batch,
        tokenizer=tokenizer,
        chance=chance_loss(c.model),
    )
    state, _ = trainer.train(rundir, start, lambda *_: {}, "", stop)
    params = eval_params(state)
    return lambda: params


# Pictures of credit


def sample_with_credit(
    c: Config, tokenizer: Tokenizer, params: dict, num_problems: int, first: int = 0
) -> tuple[Rollouts, dict[str, np.ndarray]]:
    """Rollouts of held-out problems, and the advantages [B, N] of the methods that are shown."""
    t = c.reinforce
    task = TASKS[t.task]
    problems = learn.held_out_problems(task, t.level, num_problems, first)
    r = rollouts.sample_rollouts(
        c.model,
        params["lm"],
        tokenizer,
        task,
        problems,
        t.group_size,
        t.max_new_tokens,
        1,
        t.temperature,
    )
    # The checker judges here, also in a run whose rewards come from a head.
    credit = learn.checker_credit(r)
    return r, {name: np.asarray(METHODS[name](credit)) for name in list_shown_methods(t)}


def list_shown_methods(t: Reinforce) -> list[str]:
    """SHOWN_METHODS and the one in use, if it needs no samples or head beyond the rollouts."""
    names = list(SHOWN_METHODS)
    # Monte Carlo and implicit credit would need more than the verdicts.
    if METHODS[t.method].family in ("outcome", "process") and t.method not in names:
        names.append(t.method)
    return names


def rank_rollouts(r: Rollouts) -> list[int]:
    """Rows, the most telling first: luck, then failures with many right steps, then the rest."""

    def key(b: int) -> tuple[bool, bool, float]:
        verdict = r.verdicts[b]
        # False sorts first.
        return not verdict.lucky, verdict.final_right, -float(r.right_bs[b].sum())

    return sorted(range(len(r.prompts)), key=key)


def show_credit(rundir: RunDir, c: Config, first: int, num_problems: int) -> str:
    """Print the most telling rollout of a trained policy with its credit; write its page.

    first: number of the first held-out problem. Returns the path of the page.
    """
    if first < 0 or num_problems < 1:
        raise UserError(
            f"--problem is at least 0 and --groups at least 1, not {first} and {num_problems}"
        )
    check_reinforce(c)
    tokenizer = Tokenizer.load(rundir.tokenizer)
    params = restore.load_params(rundir, "reinforce", c, tokenizer)
    path, text = save_page(rundir, c, tokenizer, params, num_problems, first)
    print(text)
    return str(path)


def save_page(
    rundir: RunDir,
    c: Config,
    tokenizer: Tokenizer,
    params: dict,
    num_problems: int = 4,
    first: int = 0,
) -> tuple[Path, str]:
    """Write credit.html into the run directory; (its path, its first rollout as text)."""
    r, methods = sample_with_credit(c, tokenizer, params, num_problems, first)
    rows = rank_rollouts(r)[:SHOWN_ROLLOUTS]
    title = f"Credit on {c.reinforce.task}, level {c.reinforce.level}"
    path = rundir.path / "credit.html"
    write_atomic(path, page.render_page(tokenizer, r, methods, rows, title))
    return path, page.describe_rollout(tokenizer, r, methods, rows[0])
