"""One iteration of RL: sample rollouts, judge, assign credit, make a batch for `make_step`.

The recipe is the section `reinforce` of the configuration. Methods are compared at the tokens that
they sampled, so everything that samples reports its cost: rollouts and Monte Carlo continuations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.credit import process_head, rollouts
from ramp.credit.advantages import METHODS, Credit, best_of
from ramp.credit.loss import adapt_entropy_coef, policy_loss, token_logps
from ramp.credit.rollouts import Rollouts
from ramp.decode import sample
from ramp.errors import UserError
from ramp.tasks import TASKS, Problem, Task
from ramp.tasks.protocol import render
from ramp.text.tokenizer import Tokenizer
from ramp.train.step import Loss

# Seeds of problems. RL trains on 0 and up, so the three sets do not meet.
HELD_OUT_SEED = -1  # and downwards
SFT_SEED = 10**12  # and upwards

Solve = Callable[[Problem], tuple[list[str], str]]  # steps and answer


@dataclass(frozen=True)
class Iteration:
    """What one iteration sampled and what came of it."""

    rollouts: Rollouts
    advantage_bn: np.ndarray
    batch: dict[str, np.ndarray]  # of `make_loss`
    num_tokens: int  # sampled, continuations included
    num_labels: int  # verdicts on steps that the method looked at
    num_dropped_groups: int  # groups without signal


@dataclass(frozen=True)
class Accuracy:
    """Fractions over held-out problems, one sample of each."""

    right: float  # the final answer is right
    verified: float  # and so is every step
    steps: float  # of all steps, those that are right
    lucky: float  # of the right answers, those that a wrong step led to
    entropy: float  # nats a token


# Problems


def make_problems(task: Task, level: int, first: int, n: int) -> list[Problem]:
    """Problems with the seeds first .. first + n - 1."""
    return [task.sample(first + i, level) for i in range(n)]


def held_out_problems(task: Task, level: int, n: int, first: int = 0) -> list[Problem]:
    """Problems that no training sees, from number `first` on."""
    return [task.sample(HELD_OUT_SEED - first - i, level) for i in range(n)]


def make_sft_batch(
    tokenizer: Tokenizer,
    task: Task,
    level: int,
    num_rows: int,
    seq_len: int,
    step: int,
    seed: int = 0,
    solve: Solve | None = None,
) -> dict[str, np.ndarray]:
    """A batch of solved problems for the next-token loss; a pure function of (seed, step).

    solve: the solution that is shown, by default the right one.
    """
    first = SFT_SEED + (seed * 1_000_003 + step) * num_rows
    conversations = []
    for problem in make_problems(task, level, first, num_rows):
        steps, answer = solve(problem) if solve else (task.solution(problem), problem.answer)
        conversations.append(render(tokenizer, problem, steps, answer))
    return rollouts.pack_conversations(conversations, seq_len)


# Loss


def trains_head(t: Reinforce) -> bool:
    """Whether a process head learns beside the policy."""
    return t.reward == "head" or METHODS[t.method].family == "implicit"


def needs_ref(t: Reinforce) -> bool:
    """Whether the frozen starting policy is read: by the KL term or by an implicit reward."""
    return t.kl_coef > 0 or METHODS[t.method].family == "implicit"


def make_loss(c: Model, t: Reinforce) -> Loss:
    """The policy loss, plus that of a process head where the batch has what it learns from."""
    policy = policy_loss(c, t)
    process = process_head.process_loss(c)
    implicit = process_head.implicit_loss(c, t)

    def loss(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        total, metrics = policy(params, batch, key)
        # At most one of the two is there: see `collect_batch`.
        for name, head_loss in (("labels", process), ("outcome", implicit)):
            if name in batch:
                head_total, head_metrics = head_loss(params, batch, key)
                total += t.process_head_coef * head_total
                metrics |= head_metrics
        return total, metrics

    return loss


def shard_batch(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch on the current mesh, rows split over its devices."""
    arrays = sample.shard_rows(*batch.values())
    return dict(zip(batch, arrays, strict=True))


_jit_logps = jax.jit(token_logps, static_argnums=(0, 4))


def compute_logps(c: Model, t: Reinforce, lm: dict, r: Rollouts) -> np.ndarray:
    """Float32 [B, seq_len]: log-probability of each target under another model.

    At the rollouts' temperature, as the sampler would have drawn it.
    """
    batch = shard_batch(rollouts.make_rows(r, t.train.seq_len))
    logps_bt, _ = _jit_logps(c, lm, batch["tokens"], batch["targets"], t.temperature)
    return np.asarray(logps_bt)


# An iteration


def collect_batch(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    ref: dict | None,
    step: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Iteration:
    """Rollouts of iteration `step` under `params`, and the batch that they make.

    A pure function of its arguments. ref: the parameters of the frozen policy, see `needs_ref`.
    check: called now and then while tokens are drawn; it may raise to end the call.
    """
    first = (seed * 1_000_003 + step) * t.num_prompts
    task = TASKS[t.task]
    r = rollouts.sample_rollouts(
        c,
        params["lm"],
        tokenizer,
        task,
        make_problems(task, t.level, first, t.num_prompts),
        t.group_size,
        t.max_new_tokens,
        first,
        t.temperature,
        check,
    )
    ref_bt = None
    if ref is not None and needs_ref(t):
        ref_bt = compute_logps(c, t, ref["lm"], r)
    credit, cost = build_credit(c, t, tokenizer, params, ref_bt, r, first, check)
    advantage_bn = np.asarray(METHODS[t.method](credit))
    batch = rollouts.make_rows(r, t.train.seq_len, advantage_bn)
    sampled_bt = batch["weights"]
    # Groups without signal take no part: no update, no KL.
    has_signal_b = rollouts.rows_with_signal(r, advantage_bn)
    batch["weights"] = sampled_bt * has_signal_b[:, None]
    if ref_bt is not None:
        batch["ref"] = ref_bt
    if t.entropy_target:
        coef = adapt_entropy_coef(t.entropy_coef, r.entropy, t.entropy_target)
        batch["entropy_coef"] = np.full((len(r.prompts), 1), coef, np.float32)
    family = METHODS[t.method].family
    num_labels = int(r.exists_bs.sum()) if family == "process" and t.reward == "checker" else 0
    if t.reward == "head" and t.label_fraction:
        all_labels = process_head.first_error_labels(r)
        labels_bs = process_head.limit_labels(all_labels, t.label_fraction, first)
        num_labels = int((labels_bs >= 0).sum())
        # The rows hold the same tokens as those of the policy.
        batch |= process_head.label_rows(r, t.train.seq_len, labels_bs)
    if family == "implicit":
        # Groups without signal for the policy teach the head too.
        batch["sampled"] = sampled_bt
        batch["outcome"] = r.outcome_b[:, None]
    num_dropped = int((has_signal_b == 0).sum()) // t.group_size
    return Iteration(
        rollouts=r,
        advantage_bn=advantage_bn,
        batch=batch,
        num_tokens=r.num_tokens + cost,
        num_labels=num_labels,
        num_dropped_groups=num_dropped,
    )


def build_credit(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    ref_bt: np.ndarray | None,
    r: Rollouts,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Credit, int]:
    """(what the method needs to know, sampled tokens that it cost beyond the rollouts).

    ref_bt: `compute_logps` of the frozen policy. check: as of `collect_batch`.
    """
    family = METHODS[t.method].family
    credit = checker_credit(r)
    cost = 0
    if trains_head(t) and "process" not in params:
        raise UserError(
            "reinforce.method 'implicit' and reinforce.reward 'head' need a process head; "
            "these parameters have none"
        )
    if family == "monte_carlo":
        n = t.num_continuations
        value_bs, cost = rollouts.sample_continuations(
            c, params["lm"], tokenizer, TASKS[t.task], r, n, seed, t.temperature, check=check
        )
        best_bs = np.asarray(best_of(value_bs, n, min(t.best_of, n)))
        credit = replace(credit, value_bs=value_bs, best_bs=best_bs)
    if t.reward == "head":
        right_bs = process_head.score_steps(c, params["process"], r, t.train.seq_len)
        credit = replace(credit, right_bs=right_bs)
    if family == "implicit":
        log_ratio_bt = compute_logps(c, t, params["process"]["lm"], r) - ref_bt
        implicit_bn = rollouts.align_to_tokens(r, t.implicit_beta * log_ratio_bt)
        credit = replace(credit, implicit_bn=implicit_bn)
    return credit, cost


def checker_credit(r: Rollouts) -> Credit:
    """What the checker alone says of rollouts."""
    reward_pg = r.outcome_b.reshape(-1, r.group_size)
    return Credit(reward_pg, r.right_bs, r.exists_bs, r.step_bn)


# Evaluation


def measure_accuracy(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    seed: int = 7,
    check: Callable[[], None] = lambda: None,
) -> tuple[Accuracy, Rollouts]:
    """One sample of each of `t.num_eval_problems` held-out problems.

    check: as of `collect_batch`.
    """
    task = TASKS[t.task]
    problems = held_out_problems(task, t.level, t.num_eval_problems)
    r = rollouts.sample_rollouts(
        c, params["lm"], tokenizer, task, problems, 1, t.max_new_tokens, seed, t.temperature, check
    )
    num_steps = max(float(r.exists_bs.sum()), 1.0)
    num_lucky = (r.outcome_b - r.verified_b).sum()
    accuracy = Accuracy(
        right=float(r.outcome_b.mean()),
        verified=float(r.verified_b.mean()),
        steps=float(r.right_bs.sum() / num_steps),
        lucky=float(num_lucky / max(r.outcome_b.sum(), 1)),
        entropy=r.entropy,
    )
    return accuracy, r
