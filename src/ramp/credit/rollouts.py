"""Groups of rollouts with a verdict on every step, as arrays of one shape.

P problems x G samples = B rows, N sampled tokens at most, S = N + 1 places for steps (the answer is the last step of a
row). Log-probabilities are the sampler's own, under exactly the distribution that the loss uses: the softmax at the
rollouts' temperature, nothing cut off. `continuations` samples on from any step boundary by repeating the KV cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.decode import sample
from ramp.decode.sample import DecodeState, SamplingParams
from ramp.errors import UserError
from ramp.model.transformer import ROWS, Params
from ramp.tasks import Problem, Task, Verdict
from ramp.tasks.protocol import parse, prompt_ids
from ramp.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rollouts:
    """B = P * G sampled solutions; rows g*G .. g*G+G-1 answer one problem. Host arrays."""

    problems: list[Problem]  # B, one a row
    verdicts: list[Verdict]
    group: int
    prompts: list[list[int]]  # B
    tokens_bn: np.ndarray  # int32, -1 after a row's end
    logps_bn: np.ndarray  # float32, of each under the distribution it was drawn from
    step_bn: np.ndarray  # int32, the step a token belongs to; -1: none
    right_bs: np.ndarray  # float32, 1: right, 0: wrong or no such step
    exists_bs: np.ndarray  # float32

    @cached_property
    def outcome_b(self) -> np.ndarray:
        """float32, 1: the final answer is right."""
        return np.array([v.final_right for v in self.verdicts], np.float32)

    @cached_property
    def verified_b(self) -> np.ndarray:
        """float32, 1: and every step is."""
        return np.array([v.verified for v in self.verdicts], np.float32)

    @property
    def mask_bn(self) -> np.ndarray:
        return (self.tokens_bn >= 0).astype(np.float32)

    @property
    def tokens(self) -> int:
        """Sampled tokens, all of them: the currency of every comparison."""
        return int((self.tokens_bn >= 0).sum())

    def ids(self, row: int) -> list[int]:
        return self.tokens_bn[row][self.tokens_bn[row] >= 0].tolist()

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(b, n, t): token n of row b, for every sampled one, is the target at place t of question + rollout."""
        b, n = np.nonzero(self.tokens_bn >= 0)
        return b, n, n + np.array([len(p) - 1 for p in self.prompts])[b]


def sample_rollouts(
    c: Model,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    group: int,
    n: int,
    seed: int,
    temperature: float = 1.0,
) -> Rollouts:
    """`group` solutions of each problem, of up to n tokens; row i is seeded by (seed, i)."""
    if not problems or group < 1:
        raise UserError(
            f"a rollout needs problems and a group of at least one, not {len(problems)} and {group}"
        )
    prompts = [
        p for p in (prompt_ids(tokenizer, q.question) for q in problems) for _ in range(group)
    ]
    longest = max(map(len, prompts))
    if longest + n > c.context_len:
        raise UserError(
            f"a question of {longest} tokens and {n} to answer it do not fit the model's context of {c.context_len}; "
            "lower the level or the tokens of a rollout"
        )
    first_seed = seed * len(prompts) % 2**31
    result = sample.generate(
        c,
        params,
        prompts,
        range(first_seed, first_seed + len(prompts)),
        SamplingParams(temperature),
        n,
        stop=(tokenizer.end,),
    )
    return score_rollouts(
        tokenizer,
        task,
        [q for q in problems for _ in range(group)],
        group,
        prompts,
        result.tokens_bn,
        result.logps_bn,
    )


def score_rollouts(
    tokenizer: Tokenizer,
    task: Task,
    problems: list[Problem],
    group: int,
    prompts: list[list[int]],
    tokens_bn: np.ndarray,
    logps_bn: np.ndarray,
) -> Rollouts:
    """Verdicts on sampled tokens. A row that was cut off has no answer: its last piece is a wrong, unfinished step."""
    B, N = tokens_bn.shape
    step_bn = np.full((B, N), -1, np.int32)
    right_bs, exists_bs = np.zeros((2, B, N + 1), np.float32)
    verdicts = []
    for b, problem in enumerate(problems):
        ids = tokens_bn[b][tokens_bn[b] >= 0].tolist()
        parsed = parse(tokenizer, ids)
        verdict = task.judge(problem, parsed.steps, parsed.answer)
        step_bn[b, : len(ids)] = parsed.step_of_token
        count = len(verdict.all_steps)
        right_bs[b, :count], exists_bs[b, :count] = [s.right for s in verdict.all_steps], 1
        verdicts.append(verdict)
    return Rollouts(
        problems, verdicts, group, prompts, tokens_bn, logps_bn, step_bn, right_bs, exists_bs
    )


def pack_conversations(
    said: Sequence[tuple[Sequence[int], Sequence[float]]], length: int
) -> dict[str, np.ndarray]:
    """Rows of a next-token loss, each [B, length]: `tokens`, `targets`, and as `weights` what each target counts.
    said: (ids, weights) of every row, the question's with weight 0."""
    whole = np.zeros((len(said), length + 1), np.int32)
    weights = np.zeros(whole.shape, np.float32)
    for b, (ids, counts) in enumerate(said):
        if len(ids) > length:
            raise UserError(
                f"a solution and its question, {len(ids)} tokens, are too long: raise reinforce.train.seq_len ({length})"
            )
        whole[b, : len(ids)], weights[b, : len(ids)] = ids, counts
    return {"tokens": whole[:, :-1], "targets": whole[:, 1:], "weights": weights[:, 1:]}


def make_rows(
    r: Rollouts, length: int, advantage_bn: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The batch of the policy loss, each [B, length]: the question and what was said, as inputs and next-token targets;
    `weights`, `old` (the sampler's log-probabilities) and `advantage` stand where the sampled tokens are targets."""
    said = [(p, r.ids(b)) for b, p in enumerate(r.prompts)]
    out = pack_conversations([(p + ids, [0] * len(p) + [1] * len(ids)) for p, ids in said], length)
    given = (
        {"old": r.logps_bn}
        if advantage_bn is None
        else {"old": r.logps_bn, "advantage": advantage_bn}
    )
    b, n, t = r.places
    for name, values_bn in given.items():
        check_values(f"the {name}", values_bn, r.tokens_bn.shape)
        out[name] = np.zeros((len(said), length), np.float32)
        out[name][b, t] = values_bn[b, n]
    return out


def align_to_tokens(r: Rollouts, values_bt: np.ndarray) -> np.ndarray:
    """Values at the loss's places [B, length], at the sampled tokens [B, N]: the way back from `rows`."""
    out = np.zeros(r.tokens_bn.shape, np.float32)
    b, n, t = r.places
    out[b, n] = values_bt[b, t]
    return out


def check_values(what: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rewards and advantages as they must be: floating, finite, of the right shape. Nothing is cast in silence."""
    values = np.asarray(values)
    if values.shape != shape:
        raise UserError(f"{what} has the shape {values.shape}; it must be {shape}")
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(
            f"{what} is of type {values.dtype}; give floats, so that nothing is rounded or cast in silence"
        )
    if not np.isfinite(values).all():
        raise UserError(
            f"{what} holds {int((~np.isfinite(values)).sum())} values that are not finite numbers"
        )
    return values


def signal_batch(r: Rollouts, advantage_bn: np.ndarray) -> np.ndarray:
    """float32 [B]: 1 for rows of groups in which any advantage is not zero (DAPO's dynamic sampling)."""
    any_g = (
        np.abs(advantage_bn * r.mask_bn).reshape(-1, r.group * advantage_bn.shape[1]) > 1e-9
    ).any(axis=1)
    return np.repeat(any_g, r.group).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- continuations
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
) -> tuple[np.ndarray, int]:
    """(value_bs, tokens): the share of n samples from before step s of row b that end in the right answer, and what
    they cost in sampled tokens; value_bs[:, 0] and places without a step are NaN. One prefill serves all boundaries.
    temperature: of the rollouts, or the values are another policy's.
    """
    B, N = r.tokens_bn.shape
    padded, lengths = sample.pad_prompts([p + r.ids(b) for b, p in enumerate(r.prompts)])
    size = max(padded.shape[1], max(map(len, r.prompts)) + N)
    place = jax.NamedSharding(jax.sharding.get_mesh(), P(ROWS))
    padded, lengths = jax.device_put(padded, place), jax.device_put(lengths, place)
    cache = sample.prefill(
        c, params, padded, lengths, jnp.zeros_like(lengths, jnp.uint32), size
    ).cache
    weights = sample.prepare_decode_params(c, params)
    begins = (np.diff(r.step_bn, axis=1, prepend=0) > 0).nonzero()  # of steps but the first
    forks = np.repeat(
        np.stack(begins, axis=1), n, axis=0
    )  # [F, 2]: row, and tokens of it that are kept
    won_bs, cost = np.zeros((B, N + 1)), 0
    for first in range(0, len(forks), chunk):
        part = forks[first : first + chunk]
        row, kept = np.resize(part, (chunk, 2)).astype(np.int32).T  # one shape to compile
        length = kept + np.array([len(p) for p in r.prompts], np.int32)[row]
        seeds = ((seed * 1_000_003 + first + np.arange(chunk)) % 2**31).astype(np.uint32)
        row, length, seeds = (jax.device_put(a, place) for a in (row, length, seeds))
        stream = fork_prefixes(c, weights, cache, padded, row, length, seeds)
        stream = sample.decode(c, weights, stream, SamplingParams(temperature), N, (tokenizer.end,))
        for (b, k), more in zip(part, np.asarray(stream.tokens_bn), strict=False):
            more = more[: N - k]  # no longer than the row itself might have been
            ids = more[more >= 0].tolist()
            cost += len(ids)
            parsed = parse(tokenizer, r.ids(b)[:k] + ids)
            won_bs[b, r.step_bn[b, k]] += task.judge(
                r.problems[b], parsed.steps, parsed.answer
            ).final_right
    value_bs = np.full((B, N + 1), np.nan, np.float32)
    at = (begins[0], r.step_bn[begins])
    value_bs[at] = won_bs[at] / n
    return value_bs, cost


@partial(jax.jit, static_argnames="c")
def fork_prefixes(
    c: Model, weights: Params, cache: tuple, tokens_bt, row_f, length_f, seed_f
) -> DecodeState:
    """Row row_f[i] of a cache, cut after its first length_f[i] tokens, ready to be sampled on.

    What the cache holds after the cut is not seen and is written over. The logits come from stepping once more over the
    last token that is kept.
    """
    length_f, seed_f = jax.reshard(length_f, P(ROWS)), jax.reshard(seed_f, P(ROWS))
    cache = jax.tree.map(lambda a: a.at[row_f].get(out_sharding=P(ROWS, "model")), cache)
    tokens_ft = tokens_bt.at[row_f].get(out_sharding=P(ROWS))
    last_f, before_f = (
        sample.take_per_row(tokens_ft, length_f - 1),
        sample.take_per_row(tokens_ft, jnp.maximum(length_f - 2, 0)),
    )
    logits_fv, _ = sample.decode_step(
        c, weights, cache, sample.init_tail(cache), 0, last_f, before_f, length_f - 1
    )
    return sample.start_state(c, cache, logits_fv, last_f, length_f, seed_f)
