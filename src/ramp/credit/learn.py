"""One iteration of RL: roll, judge, credit, a batch for `make_step`. The recipe is the config's section `reinforce`.

A method is compared at the tokens it sampled, so everything that samples says what it cost: rollouts, Monte-Carlo
continuations, all of it.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model, Reinforce
from ramp.credit import head, rollouts
from ramp.credit.advantages import METHODS, Credit, best_of
from ramp.credit.loss import adapted, policy_loss, token_logps
from ramp.credit.rollouts import Rollouts, check_values
from ramp.errors import UserError
from ramp.model.transformer import ROWS
from ramp.tasks import Problem, Task
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


def problems(task: Task, level: int, first: int, n: int) -> list[Problem]:
    return [task.sample(first + i, level) for i in range(n)]


def held_out(task: Task, level: int, n: int) -> list[Problem]:
    return [task.sample(HELD_OUT - i, level) for i in range(n)]


def loss(c: Model, t: Reinforce) -> Loss:
    """The policy loss; with a process head that is trained online, its loss on the same rows too."""
    policy, process, implicit = policy_loss(c, t), head.process_loss(c), head.implicit_loss(c, t.implicit_beta)

    def both(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        total, seen = policy(params, batch, key)
        if "labels" in batch:
            rows = {"tokens": batch["tokens"], "labels": batch["labels"]}
            rows |= {name: batch[f"label_{name}"] for name in ("weights", "spoken")}
            more, shown = process(params, rows, key)
            total, seen = total + t.head_weight * more, seen | shown
        if "outcome" in batch:
            more, shown = implicit(params, batch, key)
            total, seen = total + t.head_weight * more, seen | shown
        return total, seen

    return both


def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    place = jax.NamedSharding(jax.sharding.get_mesh(), P(ROWS))
    return {name: jax.device_put(a, place) for name, a in batch.items()}


_logps = jax.jit(token_logps, static_argnums=(0, 4))


def collect(
    c: Model, t: Reinforce, tokenizer: Tokenizer, task: Task, params: dict, ref: dict | None, step: int, seed: int
) -> Collected:
    """Rollouts of iteration `step` under `params` and the batch they make. A pure function of its arguments."""
    first = (seed * 1_000_003 + step) * t.prompts
    asked = problems(task, t.level, first, t.prompts)
    r = rollouts.roll(c, params["lm"], tokenizer, task, asked, t.group, t.tokens, first, t.temperature)
    credit, cost = evidence(c, t, tokenizer, task, params, ref, r, first)
    advantage_bn = check_values("the advantage", np.asarray(METHODS[t.method](credit)), r.tokens_bn.shape)
    keep_b = rollouts.signal(r, advantage_bn)
    batch = rollouts.rows(r, t.seq, advantage_bn, keep_b)
    if ref is not None and (t.kl or t.method == "implicit"):
        batch["ref"] = np.asarray(
            _logps(c, ref["lm"], *(put(batch)[k] for k in ("tokens", "targets")), t.temperature)[0]
        )
    if t.entropy_target:
        seen = -float((r.logps_bn * r.mask_bn).sum() / max(r.tokens, 1))
        batch["bonus"] = np.full((len(r.prompts), 1), adapted(t.entropy, seen, t.entropy_target), np.float32)
    labels = int(r.exists_bs.sum()) if t.method not in ("rloo", "grpo", "pass_at_k", "vine", "prover") else 0
    if t.reward == "head" and t.label_share:
        given = head.budget(head.first_error_labels(r), t.label_share, first)
        more, labels = head.rows(r, t.seq, given), int((given >= 0).sum())
        batch |= {"labels": more["labels"], "label_weights": more["weights"], "label_spoken": more["spoken"]}
    if t.method == "implicit":
        batch["said"] = rollouts.rows(r, t.seq, advantage_bn)["weights"]  # groups without signal teach it too
        batch["outcome"] = r.outcome_b[:, None]
    return Collected(r, advantage_bn, batch, r.tokens + cost, labels, int((keep_b == 0).sum()) // t.group)


def evidence(
    c: Model, t: Reinforce, tokenizer: Tokenizer, task: Task, params: dict, ref: dict | None, r: Rollouts, seed: int
) -> tuple[Credit, int]:
    """What the method needs to know, and the tokens that finding out cost."""
    cost, more = 0, {}
    if "process" not in params and (t.method == "implicit" or t.reward == "head"):
        raise UserError(
            "reinforce.method 'implicit' and reinforce.reward 'head' need a process head; these parameters have none"
        )
    if t.method in ("vine", "prover"):
        value_bs, cost = rollouts.continuations(c, params["lm"], tokenizer, task, r, t.continuations, seed)
        more["value_bs"] = value_bs
        more["best_bs"] = np.asarray(best_of(value_bs, t.continuations, min(t.best_of, t.continuations)))
    right_bs = r.right_bs
    if t.reward == "head":
        right_bs = head.score(c, params["process"], r, t.seq)
    if t.method == "implicit":
        batch = put(rollouts.rows(r, t.seq, np.zeros_like(r.logps_bn)))
        both = [_logps(c, p, batch["tokens"], batch["targets"], 1.0)[0] for p in (params["process"]["lm"], ref["lm"])]
        more["implicit_bn"] = spoken(r, t.implicit_beta * np.asarray(both[0] - both[1]))
    return (
        Credit(r.outcome_b.reshape(-1, r.group), right_bs, r.exists_bs, r.step_bn, **more),
        cost,
    )


def spoken(r: Rollouts, values_bt: np.ndarray) -> np.ndarray:
    """Values of the loss's places [B, T], at the sampled tokens [B, N]."""
    out = np.zeros(r.tokens_bn.shape, np.float32)
    for b, prompt in enumerate(r.prompts):
        n = len(r.ids(b))
        out[b, :n] = values_bt[b, len(prompt) - 1 : len(prompt) - 1 + n]
    return out


def accuracy(
    c: Model, t: Reinforce, tokenizer: Tokenizer, task: Task, params: dict, n: int, level: int = 0, seed: int = 7
) -> tuple[dict[str, float], Rollouts]:
    """One sample of each of n held-out problems: share right, share verified, share of right steps, of luck."""
    asked = held_out(task, level or t.level, n)
    r = rollouts.roll(c, params["lm"], tokenizer, task, asked, 1, t.tokens, seed, t.temperature)
    exists = max(float(r.exists_bs.sum()), 1.0)
    found = {"right": r.outcome_b.mean(), "verified": r.verified_b.mean(), "steps": r.right_bs.sum() / exists}
    found["lucky"] = (r.outcome_b - r.verified_b).sum() / max(r.outcome_b.sum(), 1)
    found["entropy"] = -(r.logps_bn * r.mask_bn).sum() / max(r.mask_bn.sum(), 1)
    return {k: float(v) for k, v in found.items()}, r


def imitation(
    tokenizer: Tokenizer, task: Task, level: int, rows: int, seq: int, step: int, seed: int = 0, solve=None
) -> dict:
    """A batch of solved problems for the next-token loss; solve(problem) -> (steps, answer), by default without fault."""
    solve = solve or (lambda problem: (task.solution(problem), problem.answer))
    out = {k: np.zeros((rows, seq), np.int32) for k in ("tokens", "targets")}
    out["weights"] = np.zeros((rows, seq), np.float32)
    for b in range(rows):
        problem = task.sample(IMITATION + (seed * 1_000_003 + step) * rows + b, level)
        ids, weights = render(tokenizer, problem, *solve(problem))
        n = len(ids) - 1
        if n > seq:
            raise UserError(
                f"a solved problem of {task.name} at level {level} has {n} tokens; raise reinforce.seq ({seq})"
            )
        out["tokens"][b, :n], out["targets"][b, :n], out["weights"][b, :n] = ids[:-1], ids[1:], weights[1:]
    return out
