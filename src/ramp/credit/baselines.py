"""What methods of credit are made of: the verdicts on a batch, and baselines from the siblings.

A baseline may depend on the other rollouts of the group and on what a rollout said before a token,
never on the token itself or what follows it. Then it changes the noise of a gradient and not its
mean: what a method estimates does not depend on its baseline.
"""

from dataclasses import dataclass, field
from typing import Any

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

    A reward may abstain (NaN). What abstains counts in no baseline and gets advantage 0.

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
        step_local  [[.67, .67, .67, .17, .17, .17, .17, .17],    better than the other's steps
                     [-1, -1, -1, 0, 0, 0, 0, 0]]

    A method returns float32 [B, N], 0 where `step_bn` is -1. Usually it computes an advantage for
    every step, [B, S], and ends with `spread_to_tokens(credit, advantage_bs)`.
    """

    reward_pg: Array  # float32 [P, G], any number; NaN: the reward abstains
    right_bs: Array  # float32 [B, S], any number, 1: right, 0: wrong; NaN: the reward abstains
    exists_bs: Array  # float32 [B, S], 1: the row has such a step
    step_bn: Array  # int32 [B, N], the step that a token belongs to; -1: none

    # What only some methods need; None for the others.
    value_bs: Any = None  # [B, S] mean reward of continuations from before step s; s = 0 unused
    best_bs: Any = None  # [B, S] the same for the best of K continuations
    implicit_bn: Any = None  # [B, N] beta * log(head / reference) of each token
    teacher_bn: Any = None  # [B, N] log(teacher / sampler) of each token; NaN: no teacher here

    # Settings: keys of [reinforce] with the same names.
    pass_k: int = field(default=4, metadata={"static": True})
    outcome_coef: float = field(default=1.0, metadata={"static": True})

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

    @property
    def judged_bs(self) -> Array:
        """Float32 [B, S], 1 for the steps that there are and that the reward has judged."""
        return self.exists_bs * reports(self.right_bs)


# Places


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


def reward_to_go(a: Array) -> Array:
    """Sum of this and all later entries of a row."""
    backwards = jnp.cumsum(a[:, ::-1], axis=1)
    return backwards[:, ::-1]


# Abstention


def reports(a: Array) -> Array:
    """1 where there is a number, 0 where the reward abstains."""
    return 1.0 - jnp.isnan(a)


def zero_abstained(a: Array) -> Array:
    """The same numbers, 0 where the reward abstains."""
    return jnp.where(jnp.isnan(a), 0.0, a)


# Differences

ROUNDING = 1e-6  # of the size of the values


def differ(a: Array, axis: int | tuple[int, ...]) -> Array:
    """Whether values differ along axes by more than rounding; those that abstain do not count.

    Alike values minus their own mean are rounding, and no advantage.
    """
    size = jnp.nanmax(jnp.abs(a), axis=axis, keepdims=True)
    spread = jnp.nanmax(a, axis=axis, keepdims=True) - jnp.nanmin(a, axis=axis, keepdims=True)
    return spread > ROUNDING * size


def differ_by_place(c: Credit, a_bs: Array, weight_bs: Array) -> Array:
    """[B, 1]: whether rollouts of the group differ at any place, in values or in having a step."""
    known_bs = jnp.where(weight_bs > 0, a_bs, 0.0)
    both_pgs = group_by_problem(c, jnp.concatenate([known_bs, weight_bs], axis=1))
    any_p1 = jnp.any(differ(both_pgs, 1), axis=2)
    return jnp.repeat(any_p1, c.group_size, axis=0)


# Baselines


def take_others(a_pg: Array) -> Array:
    """[P, G, G - 1]: for each entry, the other ones of its group."""
    size = a_pg.shape[1]
    _, others = np.nonzero(~np.eye(size, dtype=bool))
    return a_pg[:, others.reshape(size, size - 1)]


def sum_of_others(a: Array) -> Array:
    """The sum over the other entries of axis 1, the group; the same shape."""
    return jnp.sum(a, axis=1, keepdims=True) - a


def leave_one_out(a_pg: Array) -> Array:
    """The values minus the mean of the others of their group (axis 1).

    0 where a value abstains (NaN), or where no other one reports: there is nothing to compare with.
    """
    w, is_mixed = reports(a_pg), differ(a_pg, 1)
    a_pg = zero_abstained(a_pg)
    num_others = sum_of_others(w)
    mean_of_others = sum_of_others(a_pg) / jnp.maximum(num_others, 1)
    counts = (w > 0) & (num_others > 0) & is_mixed
    return jnp.where(counts, a_pg - mean_of_others, 0.0)


def subtract_step_mean(
    c: Credit, a_bs: Array, weight_bs: Array, *, pools_always: bool = True
) -> Array:
    """[B, N]: values of steps minus the mean of the same step in the others of the group.

    weight_bs: from 0 to 1, how much a step counts: in the baseline, and what its advantage is
    multiplied by. It must not depend on the step or on what follows it.
    pools_always: the mean takes in one more entry everywhere, the mean of all steps of the others
    wherever they stand. One or two siblings are then not the whole standard, and where all slip at
    the same place the slip is below it. False: only where no sibling has a step at that place,
    which so keeps its signal; for values that fall from place to place, such as returns.

    No standard at all, and 0, where the others have no step that counts, or values are all alike.
    """
    w_pgs = group_by_problem(c, weight_bs)
    a_pgs = group_by_problem(c, a_bs)
    weight, total = sum_of_others(w_pgs), sum_of_others(w_pgs * a_pgs)
    all_weight = jnp.sum(weight, axis=-1, keepdims=True)
    mean = jnp.sum(total, axis=-1, keepdims=True) / jnp.maximum(all_weight, 1e-3)
    is_lone = weight < 1e-6
    known_pgs = jnp.where(w_pgs > 0, a_pgs, jnp.nan)
    if pools_always:
        baseline_pgs = (total + mean) / (weight + 1)
        is_mixed = differ(known_pgs, (1, 2))
    else:
        baseline_pgs = jnp.where(is_lone, mean, total / jnp.maximum(weight, 1e-6))
        is_mixed = differ(known_pgs, 1) | (is_lone & differ(known_pgs, (1, 2)))
    centered_pgs = jnp.where((all_weight > 0) & is_mixed, w_pgs * (a_pgs - baseline_pgs), 0.0)
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


# The best of k


def all_fail(failures: Array, n: Array | int, k: Array | int, most: int) -> Array:
    """Chance that k of n samples, `failures` of which failed, all did: C(failures, k) / C(n, k).

    most: k at most; k itself may be an array.
    """
    chance = jnp.ones_like(failures)
    for i in range(most):
        factor = jnp.maximum(failures - i, 0) / jnp.maximum(n - i, 1)
        chance *= jnp.where(i < k, factor, 1.0)
    return chance


def mean_best(a: Array, k: int) -> Array:
    """The mean, over all subsets of k that report, of their best value (last axis).

    Where fewer than k report, of as many as there are; 0 where none does.
    """
    n = jnp.sum(reports(a), axis=-1, keepdims=True)
    k_ = jnp.minimum(k, n)
    # Sorted from the worst, those that abstain last: the best of a subset is entry m with the
    # chance that its k - 1 others are among the m before.
    a = jnp.sort(a, axis=-1)
    m = jnp.arange(a.shape[-1], dtype=jnp.float32)
    at_most = jnp.where(m < n, 1.0, 0.0) * all_fail(jnp.broadcast_to(m + 1, a.shape), n, k_, k)
    below = jnp.where(m < n, 1.0, 0.0) * all_fail(jnp.broadcast_to(m, a.shape), n, k_, k)
    return jnp.sum(zero_abstained(a) * (at_most - below), axis=-1)
