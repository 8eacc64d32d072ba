"""Groups of rollouts with a verdict on every step, as arrays of one shape.

P problems x G samples = B rows; N sampled tokens at most; S = N + 1 places for steps, the answer
being the last step of a row. Log-probabilities are the sampler's own, under exactly the
distribution that the loss uses: the softmax at the rollouts' temperature, nothing cut off.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ramp.config import Model
from ramp.decode import sample
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.model.transformer import Params
from ramp.tasks import Problem, Task, Verdict
from ramp.tasks.cutting import cut_solution
from ramp.tasks.protocol import Parsed, prompt_ids
from ramp.text.tokenizer import Tokenizer
from ramp.train import processes


@dataclass(frozen=True)
class Rollouts:
    """B = P * G sampled solutions; rows g*G .. g*G+G-1 solve one problem. Arrays on the host."""

    problems: list[Problem]  # B, one a row
    verdicts: list[Verdict]  # B
    group_size: int  # G
    prompts: list[list[int]]  # B
    tokens_bn: np.ndarray  # int32, -1 after a row's end
    logps_bn: np.ndarray  # float32, of each under the distribution that it was drawn from
    step_bn: np.ndarray  # int32, the step that a token belongs to; -1: none
    right_bs: np.ndarray  # float32, 1: right, 0: wrong or no such step, NaN: nobody can tell
    exists_bs: np.ndarray  # float32
    answers: list[str | None]  # B; None: there is none
    ended_b: np.ndarray  # bool, False: the rollout was cut off

    @cached_property
    def outcome_b(self) -> np.ndarray:
        """Float32 [B], 1: the final answer is right; NaN where the right one is not known."""
        return np.array([v.final_right for v in self.verdicts], np.float32)

    @cached_property
    def verified_b(self) -> np.ndarray:
        """Float32 [B], 1: the final answer is right and so is every step."""
        return np.array([v.verified for v in self.verdicts], np.float32)

    @property
    def is_judged(self) -> bool:
        """Whether anybody judged a step, or the answer as one; else no solution can be verified."""
        return not np.isnan(self.right_bs[self.exists_bs > 0]).all()

    @property
    def mask_bn(self) -> np.ndarray:
        """Float32 [B, N], 1: a sampled token."""
        return (self.tokens_bn >= 0).astype(np.float32)

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, the unit that methods are compared at."""
        return int((self.tokens_bn >= 0).sum())

    @property
    def entropy(self) -> float:
        """Nats a token, estimated from the sampled log-probabilities."""
        total = (self.logps_bn * self.mask_bn).sum()
        return -float(total / max(self.num_tokens, 1))

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(b, n, t) of every sampled token: number n of row b, target at t of problem + rollout."""
        b, n = np.nonzero(self.tokens_bn >= 0)
        first_t = np.array([len(prompt) - 1 for prompt in self.prompts])
        return b, n, n + first_t[b]

    def ids(self, row: int) -> list[int]:
        """The sampled tokens of a row."""
        tokens_n = self.tokens_bn[row]
        return tokens_n[tokens_n >= 0].tolist()


def sample_rollouts(
    c: Model,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    group_size: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    check: Callable[[], None] = lambda: None,
) -> Rollouts:
    """`group_size` solutions of each problem; row i is seeded by (seed, i).

    params: of the language model. check: called now and then, and may raise to end the call. Raises
    UserError where a problem and `max_new_tokens` do not fit the model's context.
    """
    if not problems or group_size < 1:
        raise UserError(
            f"rollouts need problems and a group of at least one, "
            f"not {len(problems)} problems and {group_size}"
        )
    # A user's task may not make the same problem twice.
    problems = processes.share(lambda: list(problems))
    rows = [problem for problem in problems for _ in range(group_size)]
    prompts = [prompt_ids(tokenizer, problem.question) for problem in rows]
    require_room(c, tokenizer, problems, max_new_tokens)
    # Seeds of different calls do not overlap, so that no two rows repeat each other.
    first_seed = seed * len(rows) % 2**31
    result = sample.generate(
        c,
        params,
        prompts,
        range(first_seed, first_seed + len(rows)),
        SamplingParams(temperature),
        max_new_tokens,
        stop=(tokenizer.end,),
        check=check,
    )
    return score_rollouts(
        tokenizer, task, rows, group_size, prompts, result.tokens_bn, result.logps_bn
    )


def require_room(
    c: Model, tokenizer: Tokenizer, problems: Sequence[Problem], max_new_tokens: int
) -> int:
    """Tokens of the longest problem.

    Raises UserError where it and `max_new_tokens` do not fit the model's context.
    """
    longest = max(len(prompt_ids(tokenizer, problem.question)) for problem in problems)
    if longest + max_new_tokens > c.context_len:
        raise UserError(
            f"a problem of {longest} tokens and {max_new_tokens} to solve it do not fit the "
            f"model's context of {c.context_len}; lower reinforce.max_new_tokens or "
            "reinforce.level, or leave long questions out"
        )
    return longest


def score_rollouts(
    tokenizer: Tokenizer,
    task: Task,
    problems: list[Problem],
    group_size: int,
    prompts: list[list[int]],
    tokens_bn: np.ndarray,
    logps_bn: np.ndarray,
) -> Rollouts:
    """Let the task's checker judge every step of sampled tokens.

    problems, prompts: one for each row. A row that was cut off has no answer: its last piece is a
    wrong, unfinished step.
    """
    B, N = tokens_bn.shape

    def judge(rows: Sequence[int]) -> list[tuple[Parsed, Verdict]]:
        judged = []
        for b in rows:
            # Boundaries are found on ids, so a step never begins inside a token.
            parsed = cut_solution(tokenizer, task, tokens_bn[b][tokens_bn[b] >= 0].tolist())
            verdict = task.judge(problems[b], parsed.steps, parsed.answer)
            judged.append((parsed, verdict))
        return judged

    step_bn = np.full((B, N), -1, np.int32)
    right_bs, exists_bs = np.zeros((2, B, N + 1), np.float32)
    verdicts, answers = [], []
    # A checker may be slow, or a user's own: each row is judged in one process.
    for b, (parsed, verdict) in enumerate(processes.map_rows(judge, range(B))):
        count = len(verdict.all_steps)
        step_bn[b, : len(parsed.step_of_token)] = parsed.step_of_token
        right_bs[b, :count] = [step.right for step in verdict.all_steps]
        exists_bs[b, :count] = 1
        verdicts.append(verdict)
        answers.append(parsed.answer)
    return Rollouts(
        problems=problems,
        verdicts=verdicts,
        group_size=group_size,
        prompts=prompts,
        tokens_bn=tokens_bn,
        logps_bn=logps_bn,
        step_bn=step_bn,
        right_bs=right_bs,
        exists_bs=exists_bs,
        answers=answers,
        ended_b=(tokens_bn == tokenizer.end).any(axis=1),
    )


def take_groups(parts: Sequence[Rollouts], groups: np.ndarray) -> Rollouts:
    """The groups with these numbers, counted through all parts, which are of one shape."""
    G = parts[0].group_size
    rows = (np.asarray(groups)[:, None] * G + np.arange(G)).reshape(-1)
    taken: dict[str, Any] = {}
    for field in fields(Rollouts):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            taken[field.name] = np.concatenate(values)[rows]
        elif isinstance(values[0], list):
            joined = [item for value in values for item in value]
            taken[field.name] = [joined[row] for row in rows]
        else:
            taken[field.name] = values[0]
    return Rollouts(**taken)


def check_values(what: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Require rewards and advantages to be floating, finite and of the right shape.

    UserError otherwise: nothing is cast silently. `what` begins its sentence.
    """
    values = np.asarray(values)
    if values.shape != shape:
        raise UserError(f"{what} has the shape {values.shape}; it must be {shape}")
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(
            f"{what} is of type {values.dtype}; give floats, so that nothing is rounded silently"
        )
    count = int((~np.isfinite(values)).sum())
    if count:
        raise UserError(f"{what} holds {count} values that are not finite numbers")
    return values


# Batches


def pack_conversations(
    conversations: Sequence[tuple[Sequence[int], Sequence[float]]], length: int
) -> dict[str, np.ndarray]:
    """Rows of a next-token loss, each [B, length]: `tokens`, `targets` and `weights`.

    conversations: (ids, weights) of each row; the weight is 0 for tokens of the problem. Raises
    UserError where one is longer than `length`.
    """
    # One longer: inputs and targets are the same row, one place apart.
    ids_bt = np.zeros((len(conversations), length + 1), np.int32)
    weights_bt = np.zeros(ids_bt.shape, np.float32)
    for b, (ids, weights) in enumerate(conversations):
        if len(ids) > length:
            raise UserError(
                f"a solution and its problem, {len(ids)} tokens, are too long: "
                f"raise reinforce.train.seq_len ({length})"
            )
        ids_bt[b, : len(ids)] = ids
        weights_bt[b, : len(ids)] = weights
    return {
        "tokens": ids_bt[:, :-1],
        "targets": ids_bt[:, 1:],
        "weights": weights_bt[:, 1:],
    }


def make_rows(
    r: Rollouts, length: int, advantage_bn: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The batch of the policy loss, each [B, length].

    tokens, targets: problem and rollout. weights, old (the sampler's log-probabilities) and
    advantage, if given: where the sampled tokens are targets.
    """
    conversations = []
    for b, prompt in enumerate(r.prompts):
        ids = r.ids(b)
        weights = [0] * len(prompt) + [1] * len(ids)
        conversations.append((prompt + ids, weights))
    batch = pack_conversations(conversations, length)
    # A token sampled at n is the target of the input one place before it.
    given = {"old": r.logps_bn}
    if advantage_bn is not None:
        given["advantage"] = advantage_bn
    b, n, t = r.places
    for name, values_bn in given.items():
        check_values(f"the {name}", values_bn, r.tokens_bn.shape)
        values_bt = np.zeros((len(r.prompts), length), np.float32)
        values_bt[b, t] = values_bn[b, n]
        batch[name] = values_bt
    return batch


def align_to_tokens(r: Rollouts, values_bt: np.ndarray) -> np.ndarray:
    """Values [B, length] at the places of the loss, moved to the sampled tokens [B, N].

    The way back from `make_rows`.
    """
    values_bn = np.zeros(r.tokens_bn.shape, np.float32)
    b, n, t = r.places
    values_bn[b, n] = values_bt[b, t]
    return values_bn


def rows_with_signal(r: Rollouts, advantage_bn: np.ndarray) -> np.ndarray:
    """Float32 [B]: 1 for the rows of groups in which any advantage is not zero.

    Dynamic sampling of DAPO (arXiv:2503.14476).
    """
    has_signal_bn = np.abs(advantage_bn * r.mask_bn) > 1e-6  # more than rounding
    has_signal_b = has_signal_bn.any(axis=1)
    has_signal_pg = has_signal_b.reshape(-1, r.group_size)
    has_signal_p = has_signal_pg.any(axis=1)
    return np.repeat(has_signal_p, r.group_size).astype(np.float32)


# Continuations


@dataclass(frozen=True)
class Continuations:
    """Samples from the beginning of every step but the first, and what they are worth."""

    reward_bsn: np.ndarray  # float32 [B, S, n]; NaN at s = 0, where there is no step, or abstained
    num_tokens: int  # that they cost

    @property
    def value_bs(self) -> np.ndarray:
        """Float32 [B, S]: the mean reward from before each step on; NaN where it is not known."""
        known_bs = ~np.isnan(self.reward_bsn)
        total_bs = np.where(known_bs, self.reward_bsn, 0).sum(axis=2)
        count_bs = known_bs.sum(axis=2)
        value_bs = np.where(count_bs > 0, total_bs / np.maximum(count_bs, 1), np.nan)
        return value_bs.astype(np.float32)

    def best_of(self, k: int) -> np.ndarray:
        """Float32 [B, S]: the mean of the largest reward of k of the samples, unbiased."""
        n = self.reward_bsn.shape[2]
        # The i-th smallest is the largest of k where the other k - 1 are among the i below it.
        chance = np.array([math.comb(i, k - 1) for i in range(n)]) / math.comb(n, k)
        return (np.sort(self.reward_bsn, axis=2) @ chance).astype(np.float32)


def sample_continuations(
    c: Model,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    r: Rollouts,
    n: int,
    seed: int,
    temperature: float = 1.0,
    chunk: int = 1024,
    check: Callable[[], None] = lambda: None,
    reward: Callable[[Rollouts], np.ndarray] = lambda r: r.outcome_b,
) -> Continuations:
    """n samples from the beginning of every step but the first.

    temperature: that of the rollouts, or the values are those of another policy. chunk:
    continuations sampled at once. check: called now and then, and may raise to end it. reward: of
    whole rollouts, float32 [B]; it gets the continuations of a step as a group.
    """
    B, N = r.tokens_bn.shape
    # The first token of every step but the first: (row, tokens of it that are kept).
    is_start_bn = np.diff(r.step_bn, axis=1, prepend=0) > 0
    starts = is_start_bn.nonzero()
    reward_bsn = np.full((B, N + 1, n), np.nan, np.float32)
    if not len(starts[0]):
        return Continuations(reward_bsn, 0)
    forks = np.repeat(np.stack(starts, axis=1), n, axis=0).tolist()
    prefixes = [r.prompts[b] + r.ids(b)[:k] for b, k in forks]
    seeds = [(seed * 1_000_003 + i) % 2**31 for i in range(len(forks))]
    result = sample.generate(
        c,
        params,
        prefixes,
        seeds,
        SamplingParams(temperature),
        N,
        stop=(tokenizer.end,),
        batch_size=chunk,
        check=check,
    )
    # Judged as a whole: the prefix belongs to the solution.
    tokens_fn = np.full((len(forks), N), -1, np.int32)
    num_tokens = 0
    for row, (b, k), ids in zip(tokens_fn, forks, result.rows(), strict=True):
        # Cut to what the row itself could have been, or values would be those of longer rows.
        ids = ids[: N - k]
        num_tokens += len(ids)
        row[:k], row[k : k + len(ids)] = r.tokens_bn[b, :k], ids
    problems, prompts = [r.problems[b] for b, _ in forks], [r.prompts[b] for b, _ in forks]
    unknown = np.zeros(tokens_fn.shape, np.float32)
    whole = score_rollouts(tokenizer, task, problems, n, prompts, tokens_fn, unknown)
    reward_bsn[starts[0], r.step_bn[starts]] = reward(whole).reshape(-1, n)
    return Continuations(reward_bsn, num_tokens)
