"""One iteration of RL: roll, judge, credit, a batch for `make_step`. The recipe is the config's section `reinforce`.

A method is compared at the tokens it sampled, so everything that samples says what it cost: rollouts, Monte-Carlo
continuations, all of it.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Reinforce
from ramp.credit import process_head, rollouts
from ramp.credit.advantages import METHODS, MONTE_CARLO, PROCESS, Credit, best_of
from ramp.credit.loss import adapt_entropy_coef, policy_loss, token_logps
from ramp.credit.rollouts import Rollouts
from ramp.errors import UserError
from ramp.model.transformer import ROWS
from ramp.tasks import TASKS, Problem, Task
from ramp.tasks.protocol import render
from ramp.text.tokenizer import Tokenizer
from ramp.train.step import Loss

HELD_OUT = -1  # held-out problems have seeds -1, -2, ...; those of training are not negative
IMITATION = 10**12  # seeds from here on are shown solved


@dataclass(frozen=True)
class Collected:
    """What one iteration sampled and what came of it."""

    rollouts: Rollouts
    advantage_bn: np.ndarray
    batch: dict[str, np.ndarray]
    tokens: int  # sampled, continuations included
    labels: int  # verdicts on steps that the method looked at
    dropped: int  # groups without signal


def make_problems(task: Task, level: int, first: int, n: int) -> list[Problem]:
    return [task.sample(first + i, level) for i in range(n)]


def held_out_problems(task: Task, level: int, n: int, first: int = 0) -> list[Problem]:
    return [task.sample(HELD_OUT - first - i, level) for i in range(n)]


def make_loss(c: Model, t: Reinforce) -> Loss:
    """The policy loss; with a process head that is trained online, its loss on the same rows too."""
    policy, process, implicit = (
        policy_loss(c, t),
        process_head.process_loss(c),
        process_head.implicit_loss(c, t),
    )

    def both(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        total, seen = policy(params, batch, key)
        if "labels" in batch:
            rows = {"tokens": batch["tokens"], "labels": batch["labels"]}
            rows |= {name: batch[f"label_{name}"] for name in ("weights", "spoken")}
            more, shown = process(params, rows, key)
            total, seen = total + t.process_head_coef * more, seen | shown
        if "outcome" in batch:
            more, shown = implicit(params, batch, key)
            total, seen = total + t.process_head_coef * more, seen | shown
        return total, seen

    return both


def shard_rows(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    place = jax.NamedSharding(jax.sharding.get_mesh(), P(ROWS))
    return {name: jax.device_put(a, place) for name, a in batch.items()}


_logps = jax.jit(token_logps, static_argnums=(0, 4))


def logps(c: Model, t: Reinforce, lm: dict, r: Rollouts) -> np.ndarray:
    """float32 [B, t.seq]: log-probability of each target under another model, as the sampler would have drawn it."""
    batch = shard_rows(rollouts.make_rows(r, t.train.seq_len))
    return np.asarray(_logps(c, lm, batch["tokens"], batch["targets"], t.temperature)[0])


def collect_batch(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    ref: dict | None,
    step: int,
    seed: int,
) -> Collected:
    """Rollouts of iteration `step` under `params` and the batch they make. A pure function of its arguments."""
    first = (seed * 1_000_003 + step) * t.num_prompts
    task = TASKS[t.task]
    asked = make_problems(task, t.level, first, t.num_prompts)
    r = rollouts.sample_rollouts(
        c,
        params["lm"],
        tokenizer,
        task,
        asked,
        t.group_size,
        t.max_new_tokens,
        first,
        t.temperature,
    )
    ref_bt = (
        logps(c, t, ref["lm"], r)
        if ref is not None and (t.kl_coef or t.method == "implicit")
        else None
    )
    credit, cost = build_credit(c, t, tokenizer, params, ref_bt, r, first)
    advantage_bn = np.asarray(METHODS[t.method](credit))
    batch = rollouts.make_rows(r, t.train.seq_len, advantage_bn)
    keep_b = rollouts.signal_batch(r, advantage_bn)
    said, batch["weights"] = (
        batch["weights"],
        batch["weights"] * keep_b[:, None],
    )  # no update, no KL from the others
    if ref_bt is not None:
        batch["ref"] = ref_bt
    if t.entropy_target:
        seen = -float((r.logps_bn * r.mask_bn).sum() / max(r.tokens, 1))
        batch["bonus"] = np.full(
            (len(r.prompts), 1),
            adapt_entropy_coef(t.entropy_coef, seen, t.entropy_target),
            np.float32,
        )
    labels = int(r.exists_bs.sum()) if t.method in PROCESS and t.reward == "checker" else 0
    if t.reward == "head" and t.label_fraction:
        given = process_head.limit_labels(
            process_head.first_error_labels(r), t.label_fraction, first
        )
        more, labels = process_head.label_rows(r, t.train.seq_len, given), int((given >= 0).sum())
        batch |= {
            "labels": more["labels"],
            "label_weights": more["weights"],
            "label_spoken": more["spoken"],
        }
    if t.method == "implicit":
        batch |= {
            "said": said,
            "outcome": r.outcome_b[:, None],
        }  # groups without signal teach it too
    return Collected(
        r, advantage_bn, batch, r.tokens + cost, labels, int((keep_b == 0).sum()) // t.group_size
    )


def build_credit(
    c: Model,
    t: Reinforce,
    tokenizer: Tokenizer,
    params: dict,
    ref_bt: np.ndarray | None,
    r: Rollouts,
    seed: int,
) -> tuple[Credit, int]:
    """What the method needs to know, and the tokens that finding out cost. ref_bt: `logps` of the frozen policy."""
    cost, right_bs, more = 0, r.right_bs, {}
    if "process" not in params and (t.method == "implicit" or t.reward == "head"):
        raise UserError(
            "reinforce.method 'implicit' and reinforce.reward 'head' need a process head; these parameters have none"
        )
    if t.method in MONTE_CARLO:
        n, start = t.num_continuations, (c, params["lm"], tokenizer, TASKS[t.task])
        more["value_bs"], cost = rollouts.sample_continuations(*start, r, n, seed, t.temperature)
        more["best_bs"] = np.asarray(best_of(more["value_bs"], n, min(t.best_of, n)))
    if t.reward == "head":
        right_bs = process_head.score_steps(c, params["process"], r, t.train.seq_len)
    if t.method == "implicit":
        ratio_bt = logps(c, t, params["process"]["lm"], r) - ref_bt
        more["implicit_bn"] = rollouts.align_to_tokens(r, t.implicit_beta * ratio_bt)
    return replace(checker_credit(r), right_bs=right_bs, **more), cost


def checker_credit(r: Rollouts) -> Credit:
    """What the checker alone tells of rollouts."""
    return Credit(r.outcome_b.reshape(-1, r.group), r.right_bs, r.exists_bs, r.step_bn)


def measure_accuracy(
    c: Model, t: Reinforce, tokenizer: Tokenizer, params: dict, seed: int = 7
) -> tuple[dict[str, float], Rollouts]:
    """One sample of each of `t.problems` held-out problems: share right, share verified, share of right steps, of luck
    among what is right; entropy in nats a token."""
    task = TASKS[t.task]
    asked = held_out_problems(task, t.level, t.num_eval_problems)
    r = rollouts.sample_rollouts(
        c, params["lm"], tokenizer, task, asked, 1, t.max_new_tokens, seed, t.temperature
    )
    found = {"right": r.outcome_b.mean(), "verified": r.verified_b.mean()}
    found["steps"] = r.right_bs.sum() / max(float(r.exists_bs.sum()), 1.0)
    found["lucky"] = (r.outcome_b - r.verified_b).sum() / max(r.outcome_b.sum(), 1)
    found["entropy"] = -(r.logps_bn * r.mask_bn).sum() / max(r.tokens, 1)
    return {k: float(v) for k, v in found.items()}, r


def make_sft_batch(
    tokenizer: Tokenizer,
    task: Task,
    level: int,
    rows: int,
    seq: int,
    step: int,
    seed: int = 0,
    solve=None,
) -> dict[str, np.ndarray]:
    """A batch of solved problems for the next-token loss; solve(problem) -> (steps, answer), by default without fault."""
    solve = solve or (lambda problem: (task.solution(problem), problem.answer))
    asked = make_problems(task, level, IMITATION + (seed * 1_000_003 + step) * rows, rows)
    return rollouts.pack_conversations([render(tokenizer, p, *solve(p)) for p in asked], seq)
