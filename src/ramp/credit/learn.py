"""One iteration of RL: sample rollouts, judge, assign credit, make a batch for `make_step`.

The recipe is the section `reinforce` of the configuration. Methods are compared at the tokens that
they sampled, so everything that samples reports its cost: rollouts and Monte Carlo continuations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.credit import process_head, rewards, rollouts
from ramp.credit.advantages import METHODS
from ramp.credit.baselines import Credit
from ramp.credit.loss import adapt_entropy_coef, most_covariant, policy_loss
from ramp.credit.rewards import Rewards
from ramp.credit.rollouts import Rollouts
from ramp.credit.teacher import ask_shown_model, ask_teacher, compute_logps
from ramp.decode import sample
from ramp.errors import UserError
from ramp.tasks import Problem, Task, open_task
from ramp.tasks.cutting import write_solution
from ramp.tasks.protocol import prompt_ids
from ramp.tasks.split import Part, held_out_problems, make_problems
from ramp.text.tokenizer import Tokenizer
from ramp.train.step import Loss

SFT_SEED = 10**12  # and upwards: RL trains on problems from 0 up
REFILL = 10**9 + 7  # further on in the problems, for each refill of an iteration

Solve = Callable[[Problem], tuple[list[str], str]]  # steps and answer


@dataclass(frozen=True)
class Iteration:
    """What one iteration sampled and what came of it."""

    rollouts: Rollouts
    rewards: Rewards
    advantage_bn: np.ndarray
    batch: dict[str, np.ndarray]  # of `make_loss`
    num_tokens: int  # sampled, continuations and refills included
    num_labels: int  # verdicts on steps that the method looked at
    num_dropped_groups: int  # groups without signal


@dataclass(frozen=True)
class Accuracy:
    """Fractions over held-out problems, one sample of each; NaN where nobody can tell."""

    right: float  # the final answer is right
    verified: float  # and so is every step
    steps: float  # of all steps, those that are right
    lucky: float  # of the right answers, those that a wrong step led to
    entropy: float  # nats a token
    reward: float  # mean of `reinforce.reward`, of rollouts, or of steps where it gives only these
    reward_error: float  # its standard error; NaN of steps, which are not independent


# Problems


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
        prompt = prompt_ids(tokenizer, problem.question)
        reply = write_solution(tokenizer, task, steps, answer)
        conversations.append((prompt + reply, [0] * len(prompt) + [1] * len(reply)))
    return rollouts.pack_conversations(conversations, seq_len)


# Loss


def trains_head(t: Reinforce) -> bool:
    """Whether a process head learns beside the policy."""
    return rewards.uses(t.reward, "head") or METHODS[t.method].family == "implicit"


def add_head(c: Model, t: Reinforce, params: dict) -> dict:
    """The parameters with a new process head, where one is trained."""
    if not trains_head(t):
        return params
    return params | {"process": process_head.init_head(c, params["lm"])}


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


# An iteration


@dataclass(frozen=True)
class Judged:
    """Rollouts with their rewards and what a method makes of them."""

    rollouts: Rollouts
    rewards: Rewards
    advantage_bn: np.ndarray
    ref_bt: np.ndarray | None  # `compute_logps` of the frozen policy
    num_tokens: int  # sampled

    @property
    def signal_p(self) -> np.ndarray:
        """Bool [P]: the groups in which any advantage is not zero."""
        rows_b = rollouts.rows_with_signal(self.rollouts, self.advantage_bn)
        return rows_b[:: self.rollouts.group_size] > 0


def sample_judged(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    ref: dict | None,
    first: int,
    check: Callable[[], None] = lambda: None,
) -> Judged:
    """Rollouts of the training problems from number `first` on, judged; see `collect_batch`."""
    task = open_task(t)
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
        ref_bt = compute_logps(c, ref["lm"], r, t.train.seq_len, t.temperature)
    given = judge_rollouts(c, t, tokenizer, params, r)
    credit, cost = build_credit(c, t, tokenizer, params, ref_bt, r, given, first, check)
    advantage_bn = np.asarray(METHODS[t.method](credit))
    return Judged(r, given, advantage_bn, ref_bt, r.num_tokens + cost)


def judge_rollouts(
    c: Model, t: Reinforce, tokenizer: Tokenizer, params: dict, r: Rollouts
) -> Rewards:
    """What `reinforce.reward` says of rollouts."""
    head_bs = None
    if rewards.uses(t.reward, "head"):
        require_head(params)
        head_bs = process_head.score_steps(c, params["process"], r, t.train.seq_len)
    given = rewards.judge(t.reward, r, tokenizer, t.reward_seconds, head_bs)
    if not t.mask_truncated:
        return given
    # A rollout that was cut off abstains: DAPO's over-long filtering (arXiv:2503.14476).
    cut_b = ~r.ended_b
    rollout_b, step_bs = given.rollout_b, given.step_bs
    return Rewards(
        None if rollout_b is None else np.where(cut_b, np.float32(np.nan), rollout_b),
        None if step_bs is None else np.where(cut_b[:, None], np.float32(np.nan), step_bs),
    )


def require_head(params: dict) -> None:
    """Raise `UserError` where there is no process head."""
    if "process" not in params:
        raise UserError(
            "reinforce.method 'implicit' and reinforce.reward 'head' need a process head; "
            "these parameters have none"
        )


def fill_groups(parts: list[Judged], num_groups: int) -> Judged:
    """The first groups with signal of all parts, and others where these are too few."""
    if len(parts) == 1:
        return parts[0]
    signal_p = np.concatenate([part.signal_p for part in parts])
    # A stable sort: those with signal first, each kind in its order.
    groups = np.argsort(~signal_p, kind="stable")[:num_groups]
    r = rollouts.take_groups([part.rollouts for part in parts], groups)
    G = r.group_size
    rows = (groups[:, None] * G + np.arange(G)).reshape(-1)

    def take(arrays: list) -> np.ndarray | None:
        return None if arrays[0] is None else np.concatenate(arrays)[rows]

    return Judged(
        r,
        Rewards(
            take([part.rewards.rollout_b for part in parts]),
            take([part.rewards.step_bs for part in parts]),
        ),
        np.concatenate([part.advantage_bn for part in parts])[rows],
        take([part.ref_bt for part in parts]),
        sum(part.num_tokens for part in parts),
    )


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
    parts = []
    # Dynamic sampling of DAPO: the size of the update shall not depend on who had no signal.
    for refill in range(1 + t.max_refills):
        number = first + refill * REFILL
        parts.append(sample_judged(c, t, tokenizer, params, ref, number, check))
        if sum(part.signal_p.sum() for part in parts) >= t.num_prompts:
            break
    judged = fill_groups(parts, t.num_prompts)
    r = judged.rollouts
    batch, num_labels = make_batch(t, judged, first)
    return Iteration(
        rollouts=r,
        rewards=judged.rewards,
        advantage_bn=judged.advantage_bn,
        batch=batch,
        num_tokens=judged.num_tokens,
        num_labels=num_labels,
        num_dropped_groups=int((~judged.signal_p).sum()),
    )


def make_batch(t: Reinforce, judged: Judged, seed: int) -> tuple[dict[str, np.ndarray], int]:
    """(the batch of `make_loss`, verdicts on steps that the method looked at).

    seed: of which rollouts the process head is told.
    """
    r = judged.rollouts
    batch = rollouts.make_rows(r, t.train.seq_len, judged.advantage_bn)
    sampled_bt = batch["weights"]
    # Groups without signal take no part: no update, no KL.
    has_signal_b = np.repeat(judged.signal_p, t.group_size).astype(np.float32)
    weight_b = np.ones_like(has_signal_b) if t.keep_all_groups else has_signal_b
    if t.mask_truncated:
        weight_b = weight_b * r.ended_b
    batch["weights"] = sampled_bt * weight_b[:, None]
    if t.entropy_control != "none":
        batch["covariant"] = most_covariant(batch, t.entropy_control_fraction)
    if judged.ref_bt is not None:
        batch["ref"] = judged.ref_bt
    if t.entropy_target:
        coef = adapt_entropy_coef(t.entropy_coef, r.entropy, t.entropy_target)
        batch["entropy_coef"] = np.full((len(r.prompts), 1), coef, np.float32)
    family = METHODS[t.method].family
    is_labelled = family == "process" and not rewards.uses(t.reward, "head")
    num_labels = int(r.exists_bs.sum()) if is_labelled else 0
    if rewards.uses(t.reward, "head") and t.label_fraction:
        all_labels = process_head.first_error_labels(r)
        labels_bs = process_head.limit_labels(all_labels, t.label_fraction, seed)
        num_labels = int((labels_bs >= 0).sum())
        # The rows hold the same tokens as those of the policy.
        batch |= process_head.label_rows(r, t.train.seq_len, labels_bs)
    if family == "implicit":
        # Groups without signal for the policy teach the head too, abstaining rollouts do not.
        outcome_b = judged.rewards.rollout_b
        assert outcome_b is not None  # `require_fit` has seen to it
        batch["sampled"] = sampled_bt * ~np.isnan(outcome_b)[:, None]
        batch["outcome"] = np.nan_to_num(outcome_b)[:, None]
    return batch, num_labels


def build_credit(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    ref_bt: np.ndarray | None,
    r: Rollouts,
    given: Rewards,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Credit, int]:
    """(what the method needs to know, sampled tokens that it cost beyond the rollouts).

    ref_bt: `compute_logps` of the frozen policy. given: of the rollouts. check: as of
    `collect_batch`.
    """
    family = METHODS[t.method].family
    credit = replace(make_credit(r, given), pass_k=t.pass_k, outcome_coef=t.outcome_coef)
    cost = 0
    if family == "monte_carlo":

        def reward(whole: Rollouts) -> np.ndarray:
            """The same reward that the rollouts get; a method of this family needs it."""
            rollout_b = judge_rollouts(c, t, tokenizer, params, whole).rollout_b
            assert rollout_b is not None  # `require_fit` has seen to it
            return rollout_b

        n = t.num_continuations
        got = rollouts.sample_continuations(
            c,
            params["lm"],
            tokenizer,
            open_task(t),
            r,
            n,
            seed,
            t.temperature,
            check=check,
            reward=reward,
        )
        cost = got.num_tokens
        best_bs = got.best_of(min(t.best_of, n))
        credit = replace(credit, value_bs=got.value_bs, best_bs=best_bs)
    if family == "implicit":
        require_head(params)
        trunk = params["process"]["lm"]
        log_ratio_bt = compute_logps(c, trunk, r, t.train.seq_len, t.temperature) - ref_bt
        implicit_bn = rollouts.align_to_tokens(r, t.implicit_beta * log_ratio_bt)
        credit = replace(credit, implicit_bn=implicit_bn)
    if t.method == "teacher":
        credit = replace(credit, teacher_bn=ask_teacher(t, tokenizer, r))
    if t.method == "self_teacher":
        teacher_bn = ask_shown_model(c, params["lm"], t, tokenizer, r, np.asarray(credit.reward_pg))
        credit = replace(credit, teacher_bn=teacher_bn)
    return credit, cost


def make_credit(r: Rollouts, given: Rewards) -> Credit:
    """Rewards as a method sees them; what a reward says nothing about abstains."""
    nan_b = np.full(len(r.prompts), np.nan, np.float32)
    rollout_b = nan_b if given.rollout_b is None else given.rollout_b
    nan_bs = np.full(r.exists_bs.shape, np.nan, np.float32)
    step_bs = nan_bs if given.step_bs is None else given.step_bs
    reward_pg = rollout_b.reshape(-1, r.group_size)
    return Credit(reward_pg, step_bs, r.exists_bs, r.step_bn)


def checker_credit(r: Rollouts) -> Credit:
    """What the checker alone says of rollouts."""
    return make_credit(r, Rewards(r.outcome_b, r.right_bs))


# Evaluation


def measure_accuracy(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    seed: int = 7,
    check: Callable[[], None] = lambda: None,
    part: Part = "test",
) -> tuple[Accuracy, Rollouts]:
    """One sample of each of `t.num_eval_problems` held-out problems, or of as many as there are.

    part: of the two held-out sets. check: as of `collect_batch`.
    """
    task = open_task(t)
    problems = held_out_problems(task, t.level, t.num_eval_problems, part=part)
    r = rollouts.sample_rollouts(
        c, params["lm"], tokenizer, task, problems, 1, t.max_new_tokens, seed, t.temperature, check
    )
    lucky_b = np.array([verdict.lucky for verdict in r.verdicts])
    is_right_b = r.outcome_b == 1
    known = 1.0 if r.is_judged else math.nan
    # Before the first update there is no head.
    has_rewards = "process" in params or not rewards.uses(t.reward, "head")
    given = judge_rollouts(c, t, tokenizer, params, r) if has_rewards else Rewards()
    accuracy = Accuracy(
        right=mean_known(r.outcome_b),
        verified=known * float(r.verified_b.mean()),
        steps=mean_known(r.right_bs[r.exists_bs > 0]),
        lucky=known * float(lucky_b.sum() / max(is_right_b.sum(), 1)),
        entropy=r.entropy,
        reward=mean_reward(given, r),
        reward_error=error_of_mean(given),
    )
    return accuracy, r


def mean_known(values: np.ndarray) -> float:
    """The mean of the values that are numbers; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def share_abstained(given: Rewards, r: Rollouts) -> float:
    """The share of the rollouts, or else of the steps, that a reward says nothing of."""
    if given.rollout_b is not None:
        return float(np.isnan(given.rollout_b).mean())
    if given.step_bs is None:
        return 1.0
    return float(np.isnan(given.step_bs[r.exists_bs > 0]).mean())


def error_of_mean(given: Rewards) -> float:
    """The standard error of the mean reward of rollouts; NaN where there are fewer than two."""
    values = np.array([]) if given.rollout_b is None else given.rollout_b
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else math.nan


def mean_reward(given: Rewards, r: Rollouts) -> float:
    """The mean reward of rollouts, or of steps where there is none of rollouts."""
    if given.rollout_b is not None:
        return mean_known(given.rollout_b)
    return float("nan") if given.step_bs is None else mean_known(given.step_bs[r.exists_bs > 0])
