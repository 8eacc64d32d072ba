"""Methods of credit assignment: from verdicts on the steps of rollouts to an advantage a token.

    advantage_bn = METHODS["step_local"](credit)

A method is a pure function of the arrays of a `Credit`. All of them feed the same policy loss
(`credit/loss.py`), and `reinforce.method` names the one that a run uses. To add one, write a
function here under `@method(family)`; nothing else changes.

The family says what a method assigns credit for, and so what it needs to know:

| family        | credit for                                | needs                                |
|---------------|-------------------------------------------|--------------------------------------|
| `outcome`     | the right final answer                    | verdicts on final answers            |
| `monte_carlo` | the right final answer, step by step      | samples continued from every step    |
| `implicit`    | the right final answer, token by token    | a process head trained on outcomes   |
| `process`     | right steps                               | verdicts on steps                    |

The first three estimate how much a step changed the chance of a right answer. They praise a wrong
step that led to a right answer by luck, as they should by that measure. Process methods ask whether
the step itself was right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray  # the host makes a Credit, and it may be handed to jitted code


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Credit:
    """What a method may look at: the verdicts on a batch of rollouts.

    Sizes: P problems; G rollouts of each, the group, in adjacent rows; B = P * G rows; N tokens a
    row at most; S places for steps, as many as the longest row could need.

    A rollout is steps and then an answer. The answer counts as a step, the last one of its row:
    a rollout of 2 steps has `exists_bs` = 1, 1, 1, 0, 0, ... and its answer at s = 2. `right_bs` of
    the answer says whether it follows from the steps; `reward_pg` is what the whole rollout is
    worth, by default whether it is the right answer to the problem. A separator token belongs to
    the step that it ends.

    Two rollouts of `3 a+4 b*2`, whose solution is `a7|b4|4`. Row 1 slips at its first step, and its
    second step, right given the first, comes to the same value by luck:

        row 0   a7 | b4 | 4         row 1   a2 | b4 | 4
        reward_pg   [[1, 1]]                          both answers are right
        right_bs    [[1, 1, 1], [0, 1, 1]]
        exists_bs   [[1, 1, 1], [1, 1, 1]]            S = 3
        step_bn     [[0, 0, 0, 1, 1, 1, 2, 2],        a 7 <|step|> b 4 <|step|> 4 <|end|>
                     [0, 0, 0, 1, 1, 1, 2, 2]]        N = 8

    What two methods make of it, float32 [B, N]:

        rloo        [[0, 0, 0, 0, 0, 0, 0, 0],        both were right: nothing to learn
                     [0, 0, 0, 0, 0, 0, 0, 0]]
        step_local  [[1, 1, 1, 0, 0, 0, 0, 0],        the first step is better than the other's
                     [-1, -1, -1, 0, 0, 0, 0, 0]]

    A method returns float32 [B, N], 0 where `step_bn` is -1. Usually it computes an advantage for
    every step, [B, S], and ends with `spread_to_tokens(credit, advantage_bs)`.
    """

    reward_pg: Array  # float32 [P, G], any number; NaN: the reward abstains
    right_bs: Array  # float32 [B, S], any number, 1: right, 0: wrong; NaN: the reward abstains
    exists_bs: Array  # float32 [B, S], 1: the row has such a step
    step_bn: Array  # int32 [B, N], the step that a token belongs to; -1: none

    # What only some families need; None for the others.
    value_bs: Any = None  # [B, S] chance of a right answer before step s; s = 0 unused
    best_bs: Any = None  # [B, S] the same for the best of K continuations
    implicit_bn: Any = None  # [B, N] beta * log(head / reference) of each token

    @property
    def group_size(self) -> int:
        """G, rollouts of a problem."""
        return self.reward_pg.shape[1]

    @property
    def reward_b(self) -> Array:
        """Float32 [B], the reward of each rollout."""
        return self.reward_pg.reshape(-1)

    @property
    def mask_bn(self) -> Array:
        """Float32 [B, N], 1 where a token belongs to a step."""
        return (self.step_bn >= 0).astype(jnp.float32)


Assign = Callable[[Credit], Array]
Family = Literal["outcome", "monte_carlo", "implicit", "process"]


@dataclass(frozen=True)
class Method:
    """An entry of `METHODS`; call it like its function."""

    assign: Assign
    family: Family

    def __call__(self, credit: Credit) -> Array:
        """Float32 [B, N], one advantage a token."""
        return self.assign(credit)


METHODS: dict[str, Method] = {}


def method(family: Family) -> Callable[[Assign], Assign]:
    """Enter the decorated function into `METHODS` under its own name."""

    def register(assign: Assign) -> Assign:
        METHODS[getattr(assign, "__name__")] = Method(assign, family)  # noqa: B009
        return assign

    return register


# Building blocks


def spread_to_tokens(c: Credit, advantage_bs: Array) -> Array:
    """[B, N]: every token of step s gets the advantage of the step."""
    step_bn = jnp.maximum(c.step_bn, 0)
    return jnp.take_along_axis(advantage_bs, step_bn, axis=1) * c.mask_bn


def spread_to_rows(c: Credit, advantage_pg: Array) -> Array:
    """[B, N]: every token of a rollout gets the advantage of the rollout."""
    return advantage_pg.reshape(-1, 1) * c.mask_bn


def group_by_problem(c: Credit, a: Array) -> Array:
    """[B, ...] as [P, G, ...]."""
    return a.reshape(-1, c.group_size, *a.shape[1:])


def leave_one_out(a_pg: Array, weight_pg: Array | None = None) -> Array:
    """The values minus the mean of the others of their group (axis 1).

    weight_pg: 1 for the entries that count, all by default. 0 where an entry does not count, or
    where no other one does.
    """
    w = jnp.ones_like(a_pg) if weight_pg is None else weight_pg
    num_others = jnp.sum(w, axis=1, keepdims=True) - w
    total = jnp.sum(a_pg * w, axis=1, keepdims=True)
    mean_of_others = (total - a_pg * w) / jnp.maximum(num_others, 1)
    counts = (w > 0) & (num_others > 0)
    return jnp.where(counts, a_pg - mean_of_others, 0.0)


def subtract_step_mean(c: Credit, a_bs: Array, weight_bs: Array) -> Array:
    """[B, N]: values of steps minus the mean of the same step in the others of the group.

    weight_bs: 1 for the steps that count.
    """
    a_pgs = group_by_problem(c, a_bs)
    weight_pgs = group_by_problem(c, weight_bs)
    centered_pgs = leave_one_out(a_pgs, weight_pgs)
    return spread_to_tokens(c, centered_pgs.reshape(a_bs.shape))


def token_baseline(c: Credit, a_bn: Array) -> Array:
    """[B, 1]: mean value of a token in the others of the group.

    Each rollout counts once, however many tokens it has, so that few long steps are not favoured.
    """
    num_tokens_b = jnp.maximum(jnp.sum(c.mask_bn, axis=1), 1)
    mean_b = jnp.sum(a_bn, axis=1) / num_tokens_b
    mean_pg = group_by_problem(c, mean_b)
    baseline_pg = mean_pg - leave_one_out(mean_pg)
    return baseline_pg.reshape(-1, 1)


def reward_to_go(a: Array) -> Array:
    """Sum of this and all later entries of a row."""
    backwards = jnp.cumsum(a[:, ::-1], axis=1)
    return backwards[:, ::-1]


def shift_steps(a_bs: Array) -> Array:
    """[B, S]: the value of the step before; 1 at the first step."""
    first_b1 = jnp.ones_like(a_bs[:, :1])
    return jnp.concatenate([first_b1, a_bs[:, :-1]], axis=1)


def all_fail(failures: Array, n: int, k: int) -> Array:
    """Chance that k of n samples, `failures` of which failed, all did: C(failures, k) / C(n, k)."""
    chance = jnp.ones_like(failures)
    for i in range(k):
        chance *= jnp.maximum(failures - i, 0) / (n - i)
    return chance


def best_of(value_bs: Array, n: int, k: int) -> Array:
    """Unbiased chance that the best of k samples succeeds, where value * n of n samples did."""
    failures_bs = n - jnp.round(value_bs * n)
    return 1 - all_fail(failures_bs, n, k)


def value_changes(c: Credit, value_bs: Array) -> Array:
    """[B, S]: how much each step changed the chance of a right answer.

    The chance before the first step is the mean outcome of the others of the group, the chance
    after the last one is the outcome itself, so a row sums to its leave-one-out advantage.
    """
    start_pg = c.reward_pg - leave_one_out(c.reward_pg)
    start_b1 = start_pg.reshape(-1, 1)
    outcome_b1 = c.reward_b[:, None]
    # Places after a row's last step hold the outcome: nothing changes there.
    before_bs = jnp.where(c.exists_bs > 0, jnp.nan_to_num(value_bs), outcome_b1)
    chances = jnp.concatenate([start_b1, before_bs[:, 1:], outcome_b1], axis=1)
    return jnp.diff(chances, axis=1) * c.exists_bs


# Credit for the right final answer


@method("outcome")
def rloo(c: Credit) -> Array:
    """Outcome minus the mean outcome of the others: RLOO (Ahmadian et al. 2024, arXiv:2402.14740).

    Up to the factor G / (G - 1) this is Dr. GRPO (Liu et al. 2025, arXiv:2503.20783).
    """
    return spread_to_rows(c, leave_one_out(c.reward_pg))


@method("outcome")
def grpo(c: Credit) -> Array:
    """Outcome in units of the group's standard deviation: GRPO (Shao et al. 2024, 4.1.2).

    arXiv:2402.03300. The unit weighs nearly solved and nearly hopeless problems up, so this is not
    the gradient of the mean success.
    """
    mean_p1 = jnp.mean(c.reward_pg, axis=1, keepdims=True)
    centered_pg = c.reward_pg - mean_p1
    unit_p1 = jnp.std(c.reward_pg, axis=1, keepdims=True) + 1e-4
    return spread_to_rows(c, centered_pg / unit_p1)


@method("outcome")
def pass_at_k(c: Credit, k: int = 4) -> Array:
    """Leave-one-out advantage of the best of k samples, unbiased.

    What a sample adds to the chance that a random set of k - 1 others and itself holds a success
    (Tang et al. 2025, arXiv:2503.19595), in closed form.
    """
    successes_p1 = jnp.sum(c.reward_pg, axis=1, keepdims=True)
    failures_p1 = c.group_size - successes_p1
    failures_of_others = failures_p1 - (1 - c.reward_pg)
    alone_pg = all_fail(failures_of_others, c.group_size - 1, k - 1)
    return spread_to_rows(c, leave_one_out(c.reward_pg * alone_pg))


@method("monte_carlo")
def vine(c: Credit) -> Array:
    """Change of the Monte Carlo chance of success: VinePPO (Kazemnejad et al. 2024).

    arXiv:2410.01679.
    """
    return spread_to_tokens(c, value_changes(c, c.value_bs))


@method("monte_carlo")
def prover(c: Credit) -> Array:
    """RLOO plus the progress of a prover policy (Setlur et al. 2024, arXiv:2410.08146).

    The prover is best-of-K of the policy itself.
    """
    # The first step's change starts from the policy's value, not the prover's: leave it out.
    progress_bs = jnp.asarray(value_changes(c, c.best_bs)).at[:, 0].set(0.0)
    return rloo(c) + spread_to_tokens(c, progress_bs)


@method("implicit")
def implicit(c: Credit) -> Array:
    """Implicit token rewards to go, plus RLOO: PRIME (Cui et al. 2025, arXiv:2502.01456)."""
    reward_bn = c.implicit_bn * c.mask_bn
    centered_bn = (reward_bn - token_baseline(c, reward_bn)) * c.mask_bn
    return reward_to_go(centered_bn) * c.mask_bn + rloo(c)


# Credit for right steps


@method("process")
def grpo_process(c: Credit) -> Array:
    """GRPO with process supervision (DeepSeekMath, arXiv:2402.03300, 4.1.3).

    Step rewards in units of the group's standard deviation, summed from the token's step on. More
    steps are more reward, and later luck flows back: it can be hacked even with a perfect checker.
    """
    right_pgs = group_by_problem(c, c.right_bs)
    exists_pgs = group_by_problem(c, c.exists_bs)
    sum_group = partial(jnp.sum, axis=(1, 2), keepdims=True)
    count = jnp.maximum(sum_group(exists_pgs), 1)
    mean = sum_group(right_pgs * exists_pgs) / count
    variance = sum_group(exists_pgs * (right_pgs - mean) ** 2) / count
    reward_pgs = (right_pgs - mean) / (jnp.sqrt(variance) + 1e-4) * exists_pgs
    reward_bs = reward_pgs.reshape(c.right_bs.shape)
    return spread_to_tokens(c, reward_to_go(reward_bs))


@method("process")
def step_local(c: Credit) -> Array:
    """Is this step right, compared with the same step of the others of the group?

    `grpo_process` without its sum over later steps (discount 0) and without its unit.
    """
    return subtract_step_mean(c, c.right_bs, c.exists_bs)


@method("process")
def first_error(c: Credit) -> Array:
    """Credit for the verified prefix, blame for the first error, nothing after it.

    As in VPPO (arXiv:2601.18984).
    """
    right_bs = c.right_bs * c.exists_bs
    # 1 up to and including the first wrong step.
    clean_bs = jnp.cumprod(shift_steps(right_bs), axis=1) * c.exists_bs
    return subtract_step_mean(c, right_bs, clean_bs)


@method("process")
def progress(c: Credit) -> Array:
    """What a step adds to the head's probability that all is right so far (arXiv:2410.15115).

    The sum over a rollout telescopes, so it is bounded however many steps there are.
    """
    gain_bs = (c.right_bs - shift_steps(c.right_bs)) * c.exists_bs
    return subtract_step_mean(c, gain_bs, c.exists_bs)


@method("process")
def min_form(c: Credit, temperature: float = 0.1) -> Array:
    """The return is about the smallest step reward to come, plus RLOO: PURE.

    Cheng et al. 2025, arXiv:2504.15275.
    """
    reward_bs = c.right_bs - 1.0  # a wrong step costs
    scores_bs = jnp.where(c.exists_bs > 0, -reward_bs / temperature, -jnp.inf)
    # A softmax over a row without steps is NaN; such a row gets nothing.
    weight_bs = jnp.nan_to_num(jax.nn.softmax(scores_bs, axis=1))
    return_bs = reward_to_go(weight_bs * reward_bs * c.exists_bs)
    return_bn = spread_to_tokens(c, return_bs)
    centered_bn = return_bn - token_baseline(c, return_bn)
    return centered_bn * c.mask_bn + rloo(c)
