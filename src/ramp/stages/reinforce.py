"""Reinforcement with credit for each step: sample, judge every step, assign credit, update.

The model first learns from solved problems for `reinforce.sft_steps` steps, a sub-stage "sft" with
checkpoints of its own, because a chat model does not know the format. What happens in an iteration
is in `credit/learn.py`; this file wires it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Config, Reinforce
from ramp.credit import audit, fit, learn, page, rewards, rollouts
from ramp.credit.advantages import METHODS
from ramp.credit.learn import Accuracy, Iteration
from ramp.credit.rewards import Rewards
from ramp.credit.rollouts import Rollouts
from ramp.errors import NothingToLearn, UserError
from ramp.files import warn_once, write_atomic
from ramp.model.loss import chance_loss, next_token_loss
from ramp.rundir import RunDir
from ramp.stages.checks import check_reinforce
from ramp.tasks import Problem, Task, open_task
from ramp.tasks.split import held_out_problems, make_problems
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.checkpoint import Checkpoints
from ramp.train.preemption import Preemption
from ramp.train.processes import on_writer
from ramp.train.state import State, eval_params
from ramp.train.trainer import Trainer
from ramp.user_code import is_user_code

SHOWN_METHODS = ("rloo", "step_local")  # in pictures, next to the method in use
SHOWN_ROLLOUTS = 8  # on the page
NUM_TRIED = 256  # problems whose lengths are looked at before anything is trained


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where problems and solutions do not fit the rows or the context."""
    t = c.reinforce
    task = open_task(t)
    problems = make_problems(task, t.level, 0, NUM_TRIED)
    if task.sets is not None:
        problems = [*task.sets.train, *task.sets.selection, *task.sets.test]
    longest = rollouts.require_room(c.model, tokenizer, problems, t.max_new_tokens)
    if longest + t.max_new_tokens > t.train.seq_len:
        raise UserError(
            f"a problem of {longest} tokens and {t.max_new_tokens} to solve it do not fit "
            f"reinforce.train.seq_len {t.train.seq_len}; raise it, or lower "
            "reinforce.max_new_tokens or the level"
        )
    if task.sets is None:
        warn_of_long_solutions(tokenizer, task, problems, t.max_new_tokens)
    if t.sft_steps:
        learn.make_sft_batch(tokenizer, task, t.level, NUM_TRIED, t.train.seq_len, 0, c.seed)


def warn_of_long_solutions(
    tokenizer: Tokenizer, task: Task, problems: Sequence[Problem], room: int
) -> None:
    """Say so where most right solutions are longer than a rollout: they could not be verified."""
    lengths = []
    for problem in problems:
        steps, answer = task.solution(problem), problem.answer
        lengths.append(len(learn.write_solution(tokenizer, task, steps, answer)))
    if np.median(lengths) > room:
        print(
            f"reinforce: right solutions of {task.name} take {np.median(lengths):.0f} tokens, the "
            f"longest {max(lengths)}, and rollouts are cut at {room}: "
            "raise reinforce.max_new_tokens, or lower the level"
        )


def hash_own_files(c: Config) -> str:
    """Of reward, task and questions."""
    return fit.hash_sources(c.reinforce)


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Train the fine-tuned policy of a run; returns the report."""
    check_reinforce(c)  # also for callers that do not go through `ramp run`
    t = c.reinforce
    print(f"reinforce: {fit.require_fit(t)}")
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    base = rundir.find_base("reinforce")
    if base is not None:  # it goes on with the whole state of another run
        start = partial(restore.load_params, rundir, "reinforce", c, tokenizer, base)
    else:
        start = partial(restore.load_start, rundir, "finetune", c, tokenizer)
        # The sub-stage resumes on its own checkpoints; when it is done it only restores.
        if t.sft_steps:
            start = run_sft(rundir, c, tokenizer, start, stop)
    check = partial(stop.check, 0)
    with stop.together():
        before, _ = learn.measure_accuracy(c.model, t, tokenizer, start(), check=check)
    # A run that goes on has said it.
    if Checkpoints(rundir.checkpoints("reinforce")).steps() in ([], [base]):
        print_accuracy("before on tests", before)
    trainer = Trainer(
        name="reinforce",
        c=c,
        t=t.train,
        loss=learn.make_loss(c.model, t),
        batches=number_rows,  # rollouts come from the state: see `wrap_iteration`
        tokenizer=tokenizer,
        wrap_step=partial(wrap_iteration, c, tokenizer, stop),
        keep_ref=learn.needs_ref(t),
        add_params=partial(learn.add_head, c.model, t),
        data=hash_own_files(c),
        updates=t.epochs * t.minibatches,
        score_start=True,
    )
    # Chosen by verified solutions: answers alone can rise while the working gets worse. Where
    # nobody can verify, or a reward of your own says what is wanted, by the reward.
    own = any(is_user_code(term.name) for term in rewards.parse_reward(t.reward))
    score = "rl/not_verified" if fit.is_verifiable(t) and not own else "rl/lost_reward"
    evaluate = partial(evaluate_policy, c, tokenizer)
    state, report = trainer.train(rundir, start, evaluate, score, stop)
    params = eval_params(state)
    if report.best_step not in (None, t.train.steps):
        # What is handed on, and so what is measured, is the best checkpoint.
        print(f"reinforce: step {report.best_step} was the best on problems to choose with")
        params |= restore.load_params(rundir, "reinforce", c, tokenizer)
    with stop.together():
        after, _ = learn.measure_accuracy(c.model, t, tokenizer, params, check=check)
        print_accuracy("after on tests", after)
        save_page(rundir, c, tokenizer, params, check=check)
    # Questions from a file take the place of a task and have no level.
    asked = {"prompts": t.prompts} if t.prompts else {"task": open_task(t).name, "level": t.level}
    count = len(held_out_problems(open_task(t), t.level, t.num_eval_problems))
    settings = asked | {"method": t.method, "reward": t.reward, "problems": count}
    accuracies = {"before": list_known(before), "after": list_known(after)}
    return report.to_dict() | settings | accuracies | {"seconds": time.perf_counter() - began}


def list_known(accuracy: Accuracy) -> dict[str, float]:
    """The figures of an accuracy that somebody could tell, by name."""
    return {name: x for name, x in asdict(accuracy).items() if not math.isnan(x)}


def print_accuracy(when: str, accuracy: Accuracy) -> None:
    """One line for the terminal."""
    names = {"right": "right", "verified": "verified", "steps": "of the steps right"}
    known = list_known(accuracy)
    figures = [f"{known[name]:.1%} {words}" for name, words in names.items() if name in known]
    if "reward" in known:
        error = f" ± {1.96 * known['reward_error']:.3f}" if "reward_error" in known else ""
        figures.append(f"mean reward {known['reward']:.3f}{error}")
    print(f"reinforce: {when}: {', '.join(figures)}")


def evaluate_policy(
    c: Config, tokenizer: Tokenizer, params: dict, step: int, board: Any, stop: Preemption
) -> dict[str, float]:
    """Accuracy on held-out problems by tag, and a picture of one rollout on the board."""
    check = partial(stop.check, step)
    accuracy, _ = learn.measure_accuracy(
        c.model, c.reinforce, tokenizer, params, check=check, part="selection"
    )
    # The same problem each time, so that the pictures of a run can be compared.
    r, methods = sample_with_credit(c, tokenizer, params, 1, check=check)
    row = rank_rollouts(r)[0]
    board.figure(step, "credit/rollout", page.plot_rollouts(tokenizer, r, methods, [row]))
    board.text(step, "credit/rollout", page.describe_rollout(tokenizer, r, methods, row))
    metrics = {f"rl/{name}": value for name, value in list_known(accuracy).items()}
    # The best checkpoint is the one with the lowest score.
    if fit.is_verifiable(c.reinforce):
        metrics["rl/not_verified"] = 1 - metrics.get("rl/verified", 0.0)
    metrics["rl/lost_reward"] = -metrics.get("rl/reward", 0.0)
    return metrics


def number_rows(step: int, lo: int, hi: int) -> dict[str, np.ndarray]:
    """In place of a batch: an iteration samples its own problems, from its step and seed."""
    return {"row": np.arange(lo, hi, dtype=np.int32)}


def wrap_iteration(c: Config, tokenizer: Tokenizer, stop: Preemption, update: Callable) -> Callable:
    """A step that first samples its batch from the state it is given, then does `update`.

    It raises `Preempted` while it samples, which leaves the state as it was.
    """
    t = c.reinforce
    num_updates = t.epochs * t.minibatches
    without_signal = 0  # iterations on end

    def step(state: State, row_numbers: dict) -> tuple[State, dict]:
        nonlocal without_signal
        # Seeded by (seed, step): a resumed run samples what it would have sampled.
        check = partial(stop.check, int(state.step))
        at = int(state.step + state.guard.offset)  # past what a recovery passed over
        i = learn.collect_batch(c.model, t, tokenizer, state.params, state.ref, at, c.seed, check)
        without_signal = without_signal + 1 if i.num_dropped_groups == t.num_prompts else 0
        limit = min(t.max_iterations_without_signal, t.train.steps)
        if without_signal >= limit and not t.keep_all_groups:
            raise NothingToLearn(explain_no_signal(t, i, limit))
        # The optimizer counts updates, the run iterations.
        state = replace(state, step=state.step * num_updates)
        for rows in split_rows(t):
            part = {name: values[rows] for name, values in i.batch.items()}
            state, metrics = update(state, learn.shard_batch(part))
        state = replace(state, step=state.step // num_updates)
        # Logged with the training metrics of the same step.
        r = i.rollouts
        share = learn.share_abstained(i.rewards, r)
        metrics["rl/abstained"] = share
        if share > 0:
            warn_once(f"reinforce: {t.reward!r} abstains (None or NaN) from some: rl/abstained")
        if t.steps and not (r.exists_bs.sum(axis=1) > 1).any():
            warn_once(f"reinforce: reinforce.steps {t.steps!r} ended no step in a whole iteration")
        metrics["rl/train_reward"] = learn.mean_reward(i.rewards, r)
        metrics["rl/tokens"] = i.num_tokens
        metrics["rl/labels"] = i.num_labels
        metrics["rl/dropped_groups"] = i.num_dropped_groups
        metrics["rl/truncated"] = 1 - r.ended_b.mean()
        metrics["rl/length"] = r.num_tokens / len(r.prompts)
        if r.is_judged:
            metrics["rl/train_verified"] = r.verified_b.mean()
            misassigned = audit.misassigned_credit(r, i.advantage_bn)
            metrics |= {f"credit/{name}": value for name, value in asdict(misassigned).items()}
        return state, metrics

    return step


def split_rows(t: Reinforce) -> list[np.ndarray]:
    """The rows of each update of an iteration: whole groups, every one once a pass."""
    rows = np.arange(t.num_prompts * t.group_size)
    return np.split(rows, t.minibatches) * t.epochs


def explain_no_signal(t: Reinforce, i: Iteration, count: int) -> str:
    """Why no group of an iteration could teach anything, and what to do."""
    r = i.rollouts
    found = f"reinforce: no reward told one rollout of a group from another in {count} iterations: "
    need = fit.NEEDS.get(METHODS[t.method].family)
    # Of what the method reads: numbers of rollouts come first, where there are both.
    mean = learn.mean_reward(Rewards(None, i.rewards.step_bs) if need == "steps" else i.rewards, r)
    # On request all that were cut off abstain: then the reward is not the reason.
    if need and math.isnan(mean) and (r.ended_b.any() or not t.mask_truncated):
        return found + (
            f"reinforce.reward {t.reward!r} abstained from all; let it give a number to some"
        )
    if not r.ended_b.any():
        return found + (
            f"none ended within reinforce.max_new_tokens {t.max_new_tokens}; raise it, or teach "
            "the model to end with reinforce.sft_steps"
        )
    has_steps = (r.exists_bs.sum(axis=1) > 1).any()
    if need == "steps" and not has_steps:
        return found + (
            f"none has steps, which end at: {open_task(t).steps}; set reinforce.steps to what the "
            "model writes, such as newline, or teach it with reinforce.sft_steps"
        )
    # Questions of a file have no level.
    by_level = "" if t.prompts else "reinforce.level or "
    if mean > 0 and r.verified_b.all():
        harder = "take harder ones" if t.prompts else "raise reinforce.level"
        return found + f"all are right; the problems are too easy: {harder}"
    # Of the kind that `mean` is of.
    by_steps = need == "steps" or i.rewards.rollout_b is None
    values = i.rewards.step_bs if by_steps else i.rewards.rollout_b
    is_own = any(is_user_code(term.name) for term in rewards.parse_reward(t.reward))
    if is_own and values is not None and len(set(values[~np.isnan(values)].tolist())) == 1:
        return found + (
            f"reinforce.reward {t.reward!r} is {mean:.3g} for all of them; let it tell better "
            "solutions from worse ones, and begin again with --force"
        )
    return found + (
        f"the mean reward is {mean:.3g}; make it easier with {by_level}more reinforce.sft_steps "
        f"(now {t.sft_steps}), sample more widely with reinforce.group_size, or set another "
        "reinforce.reward"
    )


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
    task = open_task(t)
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
    c: Config,
    tokenizer: Tokenizer,
    params: dict,
    num_problems: int,
    first: int = 0,
    check: Callable[[], None] = lambda: None,
) -> tuple[Rollouts, dict[str, np.ndarray]]:
    """Rollouts of held-out problems, and the advantages [B, N] of the methods that are shown."""
    t = c.reinforce
    task = open_task(t)
    problems = held_out_problems(task, t.level, num_problems, first)
    if not problems:
        num_tests = len(held_out_problems(task, t.level, first))
        raise UserError(f"there are {num_tests} problems for tests; --problem {first} is beyond")
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
        check,
    )
    # In a run whose rewards come from a head the checker judges here.
    given = rewards.judge(t.reward, r, tokenizer, t.reward_seconds)
    credit = learn.make_credit(r, given)
    shown = list_shown_methods(t, fit.find_kinds(t))
    return r, {name: np.asarray(METHODS[name](credit)) for name in shown}


def list_shown_methods(t: Reinforce, kinds: set[str]) -> list[str]:
    """SHOWN_METHODS and the one in use, where rewards of these kinds are all that they need."""
    names = dict.fromkeys((*SHOWN_METHODS, t.method))
    # Monte Carlo and implicit credit would need more than rewards.
    families = {"outcome", "process"}
    return [
        name
        for name in names
        if METHODS[name].family in families and fit.NEEDS[METHODS[name].family] in kinds
    ]


def rank_rollouts(r: Rollouts) -> list[int]:
    """Rows, the most telling first: luck, then failures with many right steps, then the rest."""

    def key(b: int) -> tuple[bool, bool, float]:
        verdict = r.verdicts[b]
        # False sorts first.
        num_right = float(np.nansum(r.right_bs[b]))
        return not verdict.lucky, bool(verdict.final_right), -num_right

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
    check: Callable[[], None] = lambda: None,
) -> tuple[Path, str]:
    """Write credit.html into the run directory; (its path, its first rollout as text)."""
    r, methods = sample_with_credit(c, tokenizer, params, num_problems, first, check)
    rows = rank_rollouts(r)[:SHOWN_ROLLOUTS]
    task = open_task(c.reinforce)
    level = f", level {c.reinforce.level}" if task.sets is None else ""
    title = f"Credit on {task.name}{level}"
    path = rundir.path / "credit.html"
    render = partial(page.render_page, tokenizer, r, methods, rows, title)
    on_writer(lambda: write_atomic(path, render()))
    return path, page.describe_rollout(tokenizer, r, methods, rows[0])
