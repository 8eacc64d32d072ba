"""Who gets the credit: from judged rollouts to an advantage for every sampled token.

    advantage_bn = METHODS["step_local"](batch)

A method is a pure function of the arrays of a `Credit`; it is chosen by name and feeds one loss (`credit/loss.py`). B =
P*G rows, the G of a group next to each other; S places for steps, the last step of a row being its answer; N tokens.
Two families: *outcome* methods estimate how each step changed the chance of a right final answer, and so praise a
wrong step that led to luck, as they should by their own lights; *process* methods ask whether the step was right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Credit:
    """What methods may look at; float32. What a method needs and is None is a mistake of the caller."""

    outcome_g: jax.Array  # [P, G] 1: right final answer
    right_bs: (
        jax.Array
    )  # [B, S] 1: right, 0: wrong (or a reward of any size); by a checker or a process head
    exists_bs: jax.Array  # [B, S]
    step_bn: jax.Array  # int32 [B, N], -1: none
    value_bs: jax.Array | None = (
        None  # [B, S] chance of a right answer before step s (Monte Carlo); [:, 0] unused
    )
    best_bs: jax.Array | None = None  # the same of a stronger prover: best of K
    implicit_bn: jax.Array | None = None  # beta * log(psi / ref) of each token

    @property
    def group(self) -> int:
        return self.outcome_g.shape[1]

    @property
    def outcome_b(self) -> jax.Array:
        return self.outcome_g.reshape(-1)

    @property
    def mask_bn(self) -> jax.Array:
        return (self.step_bn >= 0).astype(jnp.float32)


Method = Callable[[Credit], jax.Array]


def spread_to_tokens(c: Credit, advantage_bs: jax.Array) -> jax.Array:
    """Every token of step s gets the step's advantage."""
    return jnp.take_along_axis(advantage_bs, jnp.maximum(c.step_bn, 0), axis=1) * c.mask_bn


def group_by_prompt(c: Credit, a: jax.Array) -> jax.Array:
    return a.reshape(-1, c.group, *a.shape[1:])


def leave_one_out(a_pg: jax.Array, weight_pg: jax.Array | None = None) -> jax.Array:
    """a minus the mean of the others of its group (axis 1), where weight is 1; 0 where there is nobody else."""
    w = jnp.ones_like(a_pg) if weight_pg is None else weight_pg
    others = jnp.sum(w, axis=1, keepdims=True) - w
    mean = (jnp.sum(a_pg * w, axis=1, keepdims=True) - a_pg * w) / jnp.maximum(others, 1)
    return jnp.where((w > 0) & (others > 0), a_pg - mean, 0.0)


def subtract_step_mean(c: Credit, a_bs: jax.Array, weight_bs: jax.Array) -> jax.Array:
    """[B, N] a minus its mean over the same step of the others of the group that have it (weight 1)."""
    return spread_to_tokens(
        c,
        leave_one_out(group_by_prompt(c, a_bs), group_by_prompt(c, weight_bs)).reshape(a_bs.shape),
    )


def token_baseline(c: Credit, a_bn: jax.Array) -> jax.Array:
    """[B, 1] the others' mean of a per token, each rollout counting once, so that few long steps are not favoured."""
    mean_g = (jnp.sum(a_bn, axis=1) / jnp.maximum(jnp.sum(c.mask_bn, axis=1), 1)).reshape(
        -1, c.group
    )
    return (mean_g - leave_one_out(mean_g)).reshape(-1, 1)


def reward_to_go(a: jax.Array) -> jax.Array:
    """Sum of this and all later entries of a row."""
    return jnp.cumsum(a[:, ::-1], axis=1)[:, ::-1]


# ---------------------------------------------------------------------------------------------------- outcome only
def rloo(c: Credit) -> jax.Array:
    """M0. Ahmadian et al. 2024 (arXiv:2402.14740); up to G/(G-1) this is Dr. GRPO (arXiv:2503.20783)."""
    return leave_one_out(c.outcome_g).reshape(-1, 1) * c.mask_bn


def grpo(c: Credit) -> jax.Array:
    """M0 with the group's deviation as its unit (Shao et al. 2024, arXiv:2402.03300, 4.1.2). Weighs nearly solved and
    nearly hopeless problems up: not the gradient of the mean success."""
    centred = c.outcome_g - jnp.mean(c.outcome_g, axis=1, keepdims=True)
    unit = jnp.std(c.outcome_g, axis=1, keepdims=True) + 1e-4
    return (centred / unit).reshape(-1, 1) * c.mask_bn


def pass_at_k(c: Credit, k: int = 4) -> jax.Array:
    """The leave-one-out advantage of max of k samples, unbiased: what a sample adds to the chance that a random set of
    k-1 others (and it) holds a success (Tang et al. 2025, arXiv:2503.19595, in closed form)."""
    fails = c.group - jnp.sum(c.outcome_g, axis=1, keepdims=True)
    alone = all_fail(fails - (1 - c.outcome_g), c.group - 1, k - 1)
    return leave_one_out(c.outcome_g * alone).reshape(-1, 1) * c.mask_bn


def all_fail(fails: jax.Array, n: int, k: int) -> jax.Array:
    """The chance that k of n samples, `fails` of which are failures, all are: C(fails, k) / C(n, k)."""
    chance = jnp.ones_like(fails)
    for i in range(k):
        chance *= jnp.maximum(fails - i, 0) / (n - i)
    return chance


def value_changes(c: Credit, value_bs: jax.Array) -> jax.Array:
    """[B, S] what each step changed in the chance of success: from the group's mean of the others, over the values
    before each later step, to the outcome."""
    start_b = (c.outcome_g - leave_one_out(c.outcome_g)).reshape(-1, 1)
    before_bs = jnp.where(c.exists_bs > 0, jnp.nan_to_num(value_bs), c.outcome_b[:, None])
    return (
        jnp.diff(jnp.concatenate([start_b, before_bs[:, 1:], c.outcome_b[:, None]], axis=1), axis=1)
        * c.exists_bs
    )


def vine(c: Credit) -> jax.Array:
    """M2. What each step changed in the Monte-Carlo chance of success (Kazemnejad et al. 2024, arXiv:2410.01679)."""
    return spread_to_tokens(c, value_changes(c, c.value_bs))


def best_of(value_bs: jax.Array, n: int, k: int) -> jax.Array:
    """Unbiased chance that the best of k samples succeeds, from value * n successes of n."""
    return 1 - all_fail(n - jnp.round(value_bs * n), n, k)


def prover(c: Credit) -> jax.Array:
    """M2b. RLOO plus the progress of a prover, here best-of-K of the policy itself (Setlur et al. 2024, 2410.08146)."""
    return rloo(c) + spread_to_tokens(c, value_changes(c, c.best_bs).at[:, 0].set(0.0))


# ---------------------------------------------------------------------------------------------------- step by step
def grpo_process(c: Credit) -> jax.Array:
    """M1. DeepSeekMath 4.1.3: step rewards in units of the group's deviation, summed from the token's step on. More
    steps are more reward, and later luck flows back: hackable even with a perfect checker."""
    r, w = group_by_prompt(c, c.right_bs), group_by_prompt(c, c.exists_bs)
    count = jnp.maximum(jnp.sum(w, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(r * w, axis=(1, 2), keepdims=True) / count
    std = jnp.sqrt(jnp.sum(w * (r - mean) ** 2, axis=(1, 2), keepdims=True) / count)
    unit = ((r - mean) / (std + 1e-4) * w).reshape(c.right_bs.shape)
    return spread_to_tokens(c, reward_to_go(unit))


def step_local(c: Credit) -> jax.Array:
    """M1 without the sum (discount 0): is this step right, against the same step of the others of the group."""
    return subtract_step_mean(c, c.right_bs, c.exists_bs)


def first_error(c: Credit) -> jax.Array:
    """M6. Credit for the verified prefix, blame for the first error, nothing after it (as VPPO, arXiv:2601.18984)."""
    ok = c.right_bs * c.exists_bs
    clean = (
        jnp.cumprod(jnp.concatenate([jnp.ones_like(ok[:, :1]), ok[:, :-1]], axis=1), axis=1)
        * c.exists_bs
    )
    return subtract_step_mean(c, ok, clean)


def progress(c: Credit) -> jax.Array:
    """M3. What a step adds to a process head's chance that all is right so far: bounded, it telescopes (2410.15115)."""
    before = jnp.concatenate([jnp.ones_like(c.right_bs[:, :1]), c.right_bs[:, :-1]], axis=1)
    return subtract_step_mean(c, (c.right_bs - before) * c.exists_bs, c.exists_bs)


def min_form(c: Credit, temperature: float = 0.1) -> jax.Array:
    """M5. PURE (Cheng et al. 2025, arXiv:2504.15275): the return is about the least step reward to come; plus RLOO."""
    reward = c.right_bs - 1.0  # a wrong step costs
    w_bs = jax.nn.softmax(jnp.where(c.exists_bs > 0, -reward / temperature, -jnp.inf), axis=1)
    returns = spread_to_tokens(c, reward_to_go(jnp.nan_to_num(w_bs) * reward * c.exists_bs))
    return (returns - token_baseline(c, returns)) * c.mask_bn + rloo(c)


def implicit(c: Credit) -> jax.Array:
    """M4. PRIME (Cui et al. 2025, arXiv:2502.01456): beta log(psi/ref) of each token to go; plus RLOO."""
    r = c.implicit_bn * c.mask_bn
    return reward_to_go((r - token_baseline(c, r)) * c.mask_bn) * c.mask_bn + rloo(c)


OUTCOME = {
    "rloo": rloo,
    "grpo": grpo,
    "pass_at_k": pass_at_k,
    "vine": vine,
    "prover": prover,
    "implicit": implicit,
}
PROCESS = {
    "grpo_process": grpo_process,
    "step_local": step_local,
    "first_error": first_error,
    "progress": progress,
    "min_form": min_form,
}
METHODS: dict[str, Method] = OUTCOME | PROCESS
MONTE_CARLO = ("vine", "prover")  # they sample on from every step
