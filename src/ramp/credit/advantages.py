"""Methods of credit assignment: from verdicts on the steps of rollouts to an advantage a token.

    advantage_bn = METHODS["step_local"](credit)

A method is a pure function of the arrays of a `Credit`. All of them feed the same policy loss
(`credit/loss.py`), and `reinforce.method` names the one that a run uses. To add one, write a
function here under `@method(family)`; nothing else changes.

The family says what a method assigns credit for, and so what it needs to know:

| family        | credit for                                | needs                                |
|---------------|-------------------------------------------|--------------------------------------|
| `outcome`     | the reward of the whole rollout           | rewards of rollouts                  |
| `monte_carlo` | the same, step by step                    | samples continued from every step    |
| `implicit`    | the same, token by token                  | a process head trained on outcomes   |
| `process`     | right steps                               | verdicts on steps                    |
| `teacher`     | what a teacher would have said            | a teacher's log-probabilities        |

The first three estimate how much a step changed the reward to come. They praise a wrong step that
led to a right answer by luck, as they should by that measure. Process methods ask whether the step
itself was right.

Each docstring says what the method estimates: the mean over rollouts of the advantage times the
gradient of the token's log-probability. "In its context" means that what came before a step is
held fixed, so that no credit flows back to earlier steps. `tests/credit/test_estimators.py`
compares each with the exact gradient of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from ramp.credit.baselines import (
    Array,
    Credit,
    differ,
    differ_by_place,
    group_by_problem,
    leave_one_out,
    mean_best,
    reports,
    reward_to_go,
    spread_to_rows,
    spread_to_tokens,
    subtract_step_mean,
    take_others,
    token_baseline,
    zero_abstained,
)
from ramp.errors import UserError

Assign = Callable[[Credit], Array]
Family = Literal["outcome", "monte_carlo", "implicit", "process", "teacher"]


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


# Credit for the reward of the whole rollout


@method("outcome")
def rloo(c: Credit) -> Array:
    """Reward minus the mean reward of the others: RLOO (Ahmadian et al. 2024, arXiv:2402.14740).

    Estimates the gradient of the mean reward. Up to the factor G / (G - 1) this is Dr. GRPO (Liu et
    al. 2025, arXiv:2503.20783).
    """
    return spread_to_rows(c, leave_one_out(c.reward_pg))


@method("outcome")
def grpo(c: Credit) -> Array:
    """Reward in units of the group's standard deviation: GRPO (Shao et al. 2024, 4.1.2).

    arXiv:2402.03300. With rewards of 0 and 1 it estimates, for each problem, the gradient of its
    success p times E[sqrt((n - k) / (k + 1)) + sqrt(k / (n + 1 - k))], where k of the n = G - 1
    others succeed. In large groups that is 1 / sqrt(p (1 - p)), so it is the gradient of
    2 arcsin(sqrt(p)): nearly solved and nearly hopeless problems weigh more. With other rewards it
    is the gradient of nothing in particular.
    """
    mean_p1 = jnp.nanmean(c.reward_pg, axis=1, keepdims=True)
    unit_p1 = jnp.nanstd(c.reward_pg, axis=1, keepdims=True) + 1e-4
    unit_pg = zero_abstained((c.reward_pg - mean_p1) / unit_p1)
    return spread_to_rows(c, unit_pg * differ(c.reward_pg, 1))


@method("outcome")
def pass_at_k(c: Credit) -> Array:
    """What a rollout adds to the best of k: PKPO (Walder and Karkhanis 2025, arXiv:2505.15201).

    Estimates the gradient of the mean best reward of k = `reinforce.pass_k` rollouts; with rewards
    of 0 and 1, of pass@k. It averages over all sets of k in the group, minus those without the
    rollout. k = 1 would be `rloo`. Of a group in which fewer than k report it takes as many as do.
    Raises UserError where a group is smaller than k.
    """
    k = c.pass_k
    if c.group_size < k:
        raise UserError(
            f"reinforce.method 'pass_at_k' takes the best of reinforce.pass_k = {k}, but a group "
            f"has {c.group_size} rollouts; raise reinforce.group_size, or lower reinforce.pass_k"
        )
    others = take_others(c.reward_pg)
    best_with_it = mean_best(jnp.maximum(others, c.reward_pg[..., None]), k - 1)
    # Where the others are just k - 1, the best of those is a baseline as well; and where fewer than
    # k report, the best of as many as do.
    size_p1 = jnp.minimum(k, jnp.sum(reports(c.reward_pg), axis=1, keepdims=True))
    gain_pg = size_p1 * (best_with_it - mean_best(others, k))
    return spread_to_rows(c, gain_pg * reports(c.reward_pg) * differ(c.reward_pg, 1))


def value_changes(c: Credit, value_bs: Array) -> Array:
    """[B, S]: how much each step changed a value.

    value_bs: estimates of it before each step but the first. After the last step it is the reward
    itself. Before the first it is the mean over the others of their value after it, so that a row
    sums to its reward minus that.
    """
    reward_b1 = c.reward_b[:, None]
    # Places after a row's last step hold the reward: nothing changes there.
    after_bs = jnp.where(c.exists_bs[:, 1:] > 0, value_bs[:, 1:], reward_b1)
    after_bs += 0 * reward_b1  # NaN in a row that abstains
    first_pg = group_by_problem(c, after_bs[:, 0])
    start_pg = first_pg - leave_one_out(first_pg)
    values = jnp.concatenate([start_pg.reshape(-1, 1), after_bs, reward_b1], axis=1)
    is_mixed = differ(group_by_problem(c, values), (1, 2)).reshape(-1, 1)
    is_mixed = jnp.repeat(is_mixed, c.group_size, axis=0)
    return zero_abstained(jnp.diff(values, axis=1)) * c.exists_bs * is_mixed


@method("monte_carlo")
def vine(c: Credit) -> Array:
    """Change of the Monte Carlo value: VinePPO (Kazemnejad et al. 2024, arXiv:2410.01679).

    Estimates the gradient of the mean reward.
    """
    return spread_to_tokens(c, value_changes(c, c.value_bs))


@method("monte_carlo")
def prover(c: Credit) -> Array:
    """The progress of a prover policy, plus RLOO (Setlur et al. 2024, arXiv:2410.08146).

    The prover is best-of-K of the policy itself, held fixed. Estimates the gradient of the mean
    reward (times `reinforce.outcome_coef`) plus, for each step in its context, that of the prover's
    value after the step.
    """
    return spread_to_tokens(c, value_changes(c, c.best_bs)) + c.outcome_coef * rloo(c)


@method("implicit")
def implicit(c: Credit) -> Array:
    """Implicit token rewards to go, plus RLOO: PRIME (Cui et al. 2025, arXiv:2502.01456).

    Estimates the gradient of the mean reward (times `reinforce.outcome_coef`) plus that of the mean
    sum of the implicit rewards, each counted from the mean token reward of the others. That mean is
    held fixed, so length is neither paid nor fined in the mean.
    """
    reward_bn = c.implicit_bn * c.mask_bn
    centered_bn = (reward_bn - token_baseline(c, reward_bn)) * c.mask_bn
    return reward_to_go(centered_bn) * c.mask_bn + c.outcome_coef * rloo(c)


# Credit for right steps


@method("process")
def grpo_process(c: Credit) -> Array:
    """GRPO with process supervision (DeepSeekMath, arXiv:2402.03300, 4.1.3).

    Step rewards in units of the group's standard deviation, summed from the token's step on. In
    large groups it estimates the gradient of the mean sum of (reward - mean) / deviation over the
    steps, both held fixed; in small ones that of nothing, since a rollout is part of its own
    standard. More right steps are more reward, and later luck flows back: it can be hacked even
    with a perfect checker.
    """
    judged_pgs = group_by_problem(c, c.judged_bs)
    right_pgs = zero_abstained(group_by_problem(c, c.right_bs))

    def mean_p11(a_pgs: Array) -> Array:
        count = jnp.maximum(jnp.sum(judged_pgs, axis=(1, 2), keepdims=True), 1)
        return jnp.sum(a_pgs * judged_pgs, axis=(1, 2), keepdims=True) / count

    mean = mean_p11(right_pgs)
    unit = jnp.sqrt(mean_p11((right_pgs - mean) ** 2)) + 1e-4
    is_mixed = differ(jnp.where(judged_pgs > 0, right_pgs, jnp.nan), (1, 2))
    reward_pgs = (right_pgs - mean) / unit * judged_pgs * is_mixed
    reward_bs = reward_pgs.reshape(c.right_bs.shape)
    return spread_to_tokens(c, reward_to_go(reward_bs) * c.judged_bs)


@method("process")
def step_return(c: Credit) -> Array:
    """Step rewards summed from the token's step on, minus the same of the others from that place.

    Estimates the gradient of the mean sum of step rewards. A baseline for each later step instead
    would have as many terms as this rollout has steps, and so would fine every further step by its
    mean reward (verl#7244).
    """
    return_bs = reward_to_go(zero_abstained(c.right_bs) * c.exists_bs)
    # Returns from other places differ by how many steps are left: only where there is no other.
    return subtract_step_mean(c, return_bs, c.judged_bs, pools_always=False)


@method("process")
def step_local(c: Credit) -> Array:
    """Reward of the step minus that of the same step of the others of the group.

    Estimates, for each step in its context, the gradient of its mean reward: `step_return` with
    discount 0.
    """
    return subtract_step_mean(c, zero_abstained(c.right_bs), c.judged_bs)


@method("process")
def outcome_and_step(c: Credit) -> Array:
    """`step_local` plus `reinforce.outcome_coef` times `rloo`: right steps and a right answer.

    Estimates the sum of what the two estimate.
    """
    return step_local(c) + c.outcome_coef * rloo(c)


@method("process")
def first_error(c: Credit) -> Array:
    """Credit for the verified prefix, blame for the first error, nothing after it.

    As in VPPO (arXiv:2601.18984). Estimates, for each step in its context, the gradient of its mean
    reward, times the chance that all steps before it are right.
    """
    right_bs = zero_abstained(c.right_bs)
    # A step that nobody has judged ends no prefix.
    chance_bs = jnp.where(c.judged_bs > 0, jnp.clip(right_bs, 0, 1), 1.0)
    before_bs = jnp.pad(chance_bs[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
    clean_bs = jnp.cumprod(before_bs, axis=1)
    return subtract_step_mean(c, right_bs, clean_bs * c.judged_bs)


@method("process")
def min_form(c: Credit, temperature: float = 0.1) -> Array:
    """The return is about the smallest step reward to come, plus RLOO: PURE.

    Cheng et al. 2025, arXiv:2504.15275. Besides the gradient of the mean reward (times
    `reinforce.outcome_coef`) it is the gradient of nothing: that of the mean soft minimum would
    charge what follows the worst step as well.
    """
    reward_bs = zero_abstained(c.right_bs) - 1.0  # a wrong step costs
    scores_bs = jnp.where(c.judged_bs > 0, -reward_bs / temperature, -jnp.inf)
    # A softmax over a row without steps is NaN; such a row gets nothing.
    weight_bs = zero_abstained(jax.nn.softmax(scores_bs, axis=1))
    return_bs = reward_to_go(weight_bs * reward_bs)
    judged_bn = spread_to_tokens(c, c.judged_bs * differ_by_place(c, c.right_bs, c.judged_bs))
    return_bn = spread_to_tokens(c, return_bs)
    centered_bn = return_bn - token_baseline(c, return_bn)
    return centered_bn * judged_bn + c.outcome_coef * rloo(c)


# Credit for what a teacher would have said


@method("teacher")
def teacher(c: Credit) -> Array:
    """How much likelier a stronger model finds each token: on-policy distillation.

    Agarwal et al. 2023, arXiv:2306.13649. Estimates minus the gradient of KL(policy || teacher) at
    each token in its context.
    """
    return zero_abstained(c.teacher_bn) * c.mask_bn


@method("teacher")
def self_teacher(c: Credit) -> Array:
    """`teacher`, where the teacher is the model itself, shown how a rollout of the group went.

    SDPO (arXiv:2601.20802). What is shown comes from the others where one of them is right; then
    it estimates minus the gradient of KL(policy || policy that was shown it) at each token in its
    context.
    """
    return teacher(c)
