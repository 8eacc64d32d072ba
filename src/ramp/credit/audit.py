"""Where did the credit go, for any method?

`misassigned_credit` asks of an advantage whether it pushes wrong steps up and right ones down.
`measure_diversity` counts what is left of the variety of solutions. What fools a reward is searched
for in `search`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ramp.credit.rollouts import Rollouts, score_rollouts
from ramp.nines.intervals import pass_at_k
from ramp.tasks import Problem, Task
from ramp.tasks.protocol import prompt_ids
from ramp.text.tokenizer import Tokenizer

ZERO = 1e-6  # advantages closer to 0 than this count as none


# Misassigned credit


@dataclass(frozen=True)
class SignErrors:
    """Advantages whose sign contradicts the verdict on their step; NaN where there is no case."""

    wrong_up: float  # fraction of the wrong steps of successes that are pushed up
    right_down: float  # fraction of the right steps of failures that are pushed down
    mass_on_wrong: float  # fraction of the praise in successes that goes to wrong steps


@dataclass(frozen=True)
class CreditAudit:
    """Where an advantage went; the first three as in `SignErrors`."""

    wrong_up: float
    right_down: float
    mass_on_wrong: float
    lucky: float  # fraction of the right answers that a wrong step led to
    bits: float  # of supervision a rollout, see `credit_bits`


def misassigned_credit(r: Rollouts, advantage_bn: np.ndarray) -> CreditAudit:
    """Judge each step by the advantage of its last token, [B, N] as `METHODS` give it."""
    advantage_bn = np.asarray(advantage_bn)
    step_changes = r.step_bn[:, 1:] != r.step_bn[:, :-1]
    last_column = np.ones((len(r.step_bn), 1), bool)
    is_end_bn = np.concatenate([step_changes, last_column], axis=1) & (r.step_bn >= 0)
    b, n = np.nonzero(is_end_bn)
    s = r.step_bn[b, n]
    # Tokens after the last separator of a row that was cut off belong to no step.
    # What no checker can tell, the step or the answer, is no error of the credit.
    is_known = ~np.isnan(r.right_bs[b, s]) & ~np.isnan(r.outcome_b[b])
    counts = (r.exists_bs[b, s] > 0) & is_known
    b, n, s = b[counts], n[counts], s[counts]
    right = r.right_bs[b, s] > 0
    won = r.outcome_b[b] > 0
    errors = find_sign_errors(advantage_bn[b, n], right, won)
    num_lucky = sum(verdict.lucky for verdict in r.verdicts)
    num_right = max(sum(bool(verdict.final_right) for verdict in r.verdicts), 1)
    bits = credit_bits(r, advantage_bn)
    return CreditAudit(**vars(errors), lucky=num_lucky / num_right, bits=bits)


def find_sign_errors(advantage: np.ndarray, right: np.ndarray, won: np.ndarray) -> SignErrors:
    """Compare advantages of steps with the verdicts on them.

    All have the same shape. right: the step is right; won: its rollout has the right answer.
    """
    wrong_in_success = ~right & won
    right_in_failure = right & ~won
    praise = np.maximum(advantage, 0)
    total = praise[won].sum()
    return SignErrors(
        wrong_up=_fraction(advantage > ZERO, wrong_in_success),
        right_down=_fraction(advantage < -ZERO, right_in_failure),
        mass_on_wrong=float(praise[wrong_in_success].sum() / total) if total > 0 else 0.0,
    )


def _fraction(hit: np.ndarray, among: np.ndarray) -> float:
    if not among.any():
        return float("nan")
    num_hits = (hit & among).sum()
    return float(num_hits / among.sum())


def credit_bits(r: Rollouts, advantage_bn: np.ndarray) -> float:
    """Upper bound on the bits that the advantages of a rollout carry.

    The entropy of the sign (down, none, up) of each step, at its place in the rollout, summed over
    the distinct values that a rollout carries: one value for outcome credit, one a step otherwise.
    """
    differs = np.abs(np.diff(advantage_bn, axis=1)) > ZERO
    is_dense = (differs & (r.step_bn[:, 1:] >= 0)).any()
    num_places = int(r.step_bn.max()) + 1 if is_dense else 1
    total = 0.0
    for s in range(num_places):
        at_bn = r.step_bn == s
        has_step_b = at_bn.any(axis=1)
        if not has_step_b.any():
            continue
        sums = np.where(at_bn, advantage_bn, 0).sum(axis=1)[has_step_b]
        signs = np.sign(np.round(sums, 6))
        _, counts = np.unique(signs, return_counts=True)
        p = counts / counts.sum()
        entropy = -(p * np.log2(p)).sum()
        total += float(has_step_b.mean() * entropy)
    return total


# Written solutions


def solutions_as_rollouts(
    tokenizer: Tokenizer,
    task: Task,
    problems: list[Problem],
    solutions: Sequence[Sequence[int]],
    n: int = 0,
    group_size: int = 1,
) -> Rollouts:
    """Judge written solutions (token ids) as if they had been sampled.

    n: the least number of token places, so that batches share a shape.
    """
    num_places = max(n, *map(len, solutions), 1)
    tokens_bn = np.full((len(solutions), num_places), -1, np.int32)
    for row, ids in zip(tokens_bn, solutions, strict=True):
        row[: len(ids)] = ids
    prompts = [prompt_ids(tokenizer, problem.question) for problem in problems]
    logps_bn = np.zeros(tokens_bn.shape, np.float32)
    return score_rollouts(tokenizer, task, problems, group_size, prompts, tokens_bn, logps_bn)


# Diversity


@dataclass(frozen=True)
class Diversity:
    """The variety of groups of rollouts."""

    pass_at_k: dict[int, float]  # k -> chance that one of k samples is verified, unbiased
    distinct: float  # different verified solutions of a problem, mean
    entropy: float  # nats a token, from the sampled log-probabilities


def measure_diversity(r: Rollouts, ks: Iterable[int] = (1, 4, 16)) -> Diversity:
    """The diversity of rollouts; a k above the size of a group is left out."""
    verified_pg = r.verified_b.reshape(-1, r.group_size)
    num_verified = verified_pg.sum(axis=1)
    tries = np.full(len(num_verified), r.group_size)
    solutions = [set() for _ in num_verified]
    for b in np.flatnonzero(r.verified_b):
        solutions[b // r.group_size].add(tuple(r.ids(b)))
    ks = [k for k in ks if k <= r.group_size]
    num_distinct = [len(group) for group in solutions]
    return Diversity(
        pass_at_k={k: pass_at_k(k, num_verified, tries) for k in ks},
        distinct=float(np.mean(num_distinct)),
        entropy=r.entropy,
    )
