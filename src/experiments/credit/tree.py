"""All rollouts of a tiny policy, and with them the exact mean of any method's gradient.

A rollout is up to K steps of one to `max_chars` letters; after each letter the policy may go on,
end the step, or end the rollout. So steps and rollouts have uneven lengths, and all M rollouts can
be listed: 258 with K = 3 and two letters a step, 510 with K = 8 and one. Which steps are right, and
what a rollout is worth, is drawn once for all.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ramp.credit.advantages import Assign
from ramp.credit.baselines import Credit

LETTERS = (0, 1)
STEP, END = 2, 3  # end the step; end the rollout
ROWS_AT_ONCE = 400_000


@dataclass(frozen=True)
class Tree:
    """M rollouts of N tokens and S steps at most; -1 and 0 beyond their ends."""

    token_mn: np.ndarray
    state_mn: np.ndarray  # number of the softmax that a token is drawn from
    step_mn: np.ndarray
    exists_ms: np.ndarray
    right_ms: np.ndarray  # rewards of steps
    reward_m: np.ndarray  # rewards of rollouts
    legal_xv: np.ndarray  # bool [states, 4], the tokens that a state allows
    # What else a Credit holds, by its field; [M, ...].
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def log_probs(self, logits_xv: jax.Array) -> jax.Array:
        """[states, 4]: the policy; hardly any chance for what is not legal."""
        return jax.nn.log_softmax(jnp.where(self.legal_xv, logits_xv, -1e4))

    def logps(self, logits_xv: jax.Array) -> jax.Array:
        """[M, N]: log-probability of each token; 0 beyond the end."""
        log_probs_xv = self.log_probs(logits_xv)
        at_mn = log_probs_xv[jnp.maximum(self.state_mn, 0), jnp.maximum(self.token_mn, 0)]
        return jnp.where(self.token_mn >= 0, at_mn, 0.0)

    def chances(self, logits_xv: jax.Array) -> jax.Array:
        """[M]: the chance of each rollout."""
        return jnp.exp(jnp.sum(self.logps(logits_xv), axis=1))

    def credit(self, index_pg: np.ndarray, **settings: Any) -> Credit:
        """The Credit of groups of these rollouts."""
        rows = index_pg.reshape(-1)
        extra = {name: values[rows] for name, values in self.extra.items()}
        return Credit(
            self.reward_m[index_pg],
            self.right_ms[rows],
            self.exists_ms[rows],
            self.step_mn[rows],
            **extra,
            **settings,
        )


def grow(num_steps: int, max_chars: int, seed: int, real: bool = False) -> Tree:
    """A tree of rollouts; rewards are 0 and 1, or any number where `real`."""
    rng = np.random.default_rng(seed)
    rollouts, states = [], {}

    def number(*state: int) -> int:
        return states.setdefault(state, len(states))

    def extend(tokens: tuple, places: tuple, steps: tuple, part: tuple) -> None:
        state = number(len(steps), len(part), tokens[-1] if tokens else -1)
        for token in list_legal(len(steps), len(part), num_steps, max_chars):
            said, at = (*tokens, token), (*places, state)
            if token == END:
                rollouts.append((said, at, (*steps, part)))
            elif token == STEP:
                extend(said, at, (*steps, part), ())
            else:
                extend(said, at, steps, (*part, token))

    extend((), (), (), ())
    # The worth of a step depends on it, on its place and on the step before.
    draw = rng.normal if real else lambda: float(rng.random() < 0.6)
    worth = defaultdict(draw)
    num_tokens = max(len(said) for said, _, _ in rollouts)
    token_mn, state_mn, step_mn = np.full((3, len(rollouts), num_tokens), -1, np.int32)
    exists_ms, right_ms = np.zeros((2, len(rollouts), num_steps), np.float32)
    reward_m = np.zeros(len(rollouts), np.float32)
    for m, (said, at, steps) in enumerate(rollouts):
        token_mn[m, : len(said)] = said
        state_mn[m, : len(said)] = at
        ends = np.cumsum([0] + [token in (STEP, END) for token in said])
        step_mn[m, : len(said)] = ends[:-1]
        exists_ms[m, : len(steps)] = 1
        right_ms[m, : len(steps)] = [
            worth[s, steps[s - 1] if s else (), step] for s, step in enumerate(steps)
        ]
        share = right_ms[m, : len(steps)].mean()
        reward_m[m] = share + rng.normal() if real else rng.random() < 0.1 + 0.7 * share
    legal_xv = np.zeros((len(states), 4), bool)
    for (step, part, _), x in states.items():
        legal_xv[x, list_legal(step, part, num_steps, max_chars)] = True
    return Tree(token_mn, state_mn, step_mn, exists_ms, right_ms, reward_m, legal_xv)


def list_legal(step: int, part: int, num_steps: int, max_chars: int) -> list[int]:
    """The tokens that may follow `part` letters of step number `step`."""
    letters = list(LETTERS) if part < max_chars else []
    if part == 0:
        return letters
    return [*letters, *([STEP] if step + 1 < num_steps else []), END]


def draw_logits(tree: Tree, seed: int) -> jax.Array:
    """[states, 4] of a policy."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=tree.legal_xv.shape), jnp.float32)


def with_values(tree: Tree, logits_xv: jax.Array, best_of: int, teacher: int) -> Tree:
    """The tree with all that any method may ask for.

    Exact values take the place of Monte Carlo estimates: methods are linear in them. teacher: seed
    of its logits.
    """
    p_m = np.asarray(tree.chances(logits_xv), np.float64)
    value_ms = np.full(tree.exists_ms.shape, np.nan, np.float32)
    best_ms = value_ms.copy()
    order = np.argsort(tree.reward_m)
    for m, s in zip(*np.nonzero(tree.exists_ms), strict=True):
        n = (tree.step_mn[m] == s).argmax()  # the first token of the step
        same = (tree.token_mn[:, :n] == tree.token_mn[m, :n]).all(1)
        chance_m = np.where(same, p_m, 0) / p_m[same].sum()
        value_ms[m, s] = chance_m @ tree.reward_m
        # The best of K is at most the value at place i of the order with the chance (sum to i)^K.
        at_most = np.cumsum(chance_m[order]) ** best_of
        best_ms[m, s] = np.diff(at_most, prepend=0) @ tree.reward_m[order]
    logp_mn = np.asarray(tree.logps(logits_xv))
    head_mn = np.asarray(tree.logps(draw_logits(tree, teacher + 1)))
    extra = {
        "value_bs": value_ms,
        "best_bs": best_ms,
        "implicit_bn": head_mn - logp_mn,
        "teacher_bn": np.asarray(tree.logps(draw_logits(tree, teacher))) - logp_mn,
    }
    return replace(tree, extra=extra)


# Means


def draw_others(p_m: np.ndarray, group_size: int, draws: int, seed: int) -> tuple:
    """(others [L, G - 1], their weights [L]): the siblings of one rollout.

    All of them where there is one sibling, else `draws` random ones.
    """
    p_m = np.asarray(p_m, np.float64)
    p_m = p_m / p_m.sum()
    if group_size == 2:
        return np.arange(len(p_m))[:, None], p_m
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(p_m), (draws, group_size - 1), p=p_m)
    return drawn, np.full(draws, 1 / draws)


def draw_by_reward(tree: Tree, p_m: np.ndarray, group_size: int) -> tuple:
    """The same for methods that look at rewards of 0 and 1 alone: all counts of successes."""
    p, n = float(p_m @ tree.reward_m), group_size - 1
    k = np.arange(n + 1)
    is_success_lg = np.arange(n) < k[:, None]
    others = np.where(is_success_lg, tree.reward_m.argmax(), tree.reward_m.argmin())
    weights = [comb(n, i) * p**i * (1 - p) ** (n - i) for i in k]
    return others, np.array(weights)


def advantages(tree: Tree, assign: Assign, others_lg: np.ndarray, **settings: Any) -> np.ndarray:
    """[M, L, N]: what a method gives to each rollout beside each set of siblings."""
    M, (L, num_others) = len(tree.reward_m), others_lg.shape
    own, beside = np.divmod(np.arange(M * L), L)
    index_pg = np.concatenate([own[:, None], others_lg[beside]], axis=1)
    at_once = ROWS_AT_ONCE // (num_others + 1)
    found = []
    for at in range(0, M * L, at_once):
        a_bn = np.asarray(assign(tree.credit(index_pg[at : at + at_once], **settings)))
        found.append(a_bn[:: num_others + 1])  # the rollout itself is the first of its group
    return np.concatenate(found).reshape(M, L, -1)


def mean_gradient(tree: Tree, logits_xv: jax.Array, advantage_mn: np.ndarray) -> np.ndarray:
    """The mean over rollouts of advantage times gradient of the log-probability, [states, 4]."""
    p_m1 = tree.chances(logits_xv)[:, None]
    weight_mn = jax.lax.stop_gradient(p_m1) * advantage_mn
    total = jax.grad(lambda logits: jnp.sum(weight_mn * tree.logps(logits)))
    return np.asarray(total(logits_xv))


# Objectives: functions of the logits whose gradient is what a method estimates


def whole(tree: Tree, worth_m: np.ndarray) -> Callable:
    """The mean worth of a rollout."""
    return lambda logits_xv: tree.chances(logits_xv) @ worth_m


def in_context(tree: Tree, worth_ms: np.ndarray) -> Callable:
    """The mean worth of each step, summed, with the chance of what comes before it held fixed."""

    def objective(logits_xv: jax.Array) -> jax.Array:
        logp_mn = tree.logps(logits_xv)
        total = jnp.zeros(())
        for s in range(worth_ms.shape[1]):
            before_mn = tree.step_mn < s
            fixed_mn = jnp.where(before_mn, jax.lax.stop_gradient(logp_mn), logp_mn)
            p_m = jnp.exp(jnp.sum(fixed_mn, axis=1))
            total += jnp.sum(p_m * tree.exists_ms[:, s] * worth_ms[:, s])
        return total

    return objective


def minus_kl(tree: Tree, logits_xv: jax.Array, teacher_xv: jax.Array) -> Callable:
    """Minus KL(policy || teacher) of the whole softmax at each token, in its context."""
    p_m = np.asarray(tree.chances(logits_xv))
    visits_x = np.zeros(len(tree.legal_xv))
    m, n = np.nonzero(tree.token_mn >= 0)
    np.add.at(visits_x, tree.state_mn[m, n], p_m[m])

    def objective(logits_xv: jax.Array) -> jax.Array:
        policy_xv = tree.log_probs(logits_xv)
        gap_xv = jnp.where(tree.legal_xv, tree.log_probs(teacher_xv) - policy_xv, 0.0)
        return jnp.sum(visits_x[:, None] * jnp.exp(policy_xv) * gap_xv)

    return objective


def measure_noise(
    tree: Tree, logits_xv: jax.Array, advantage_mln: np.ndarray, weight_l: np.ndarray
) -> float:
    """The variance of one rollout's part in the gradient, summed over the logits."""
    p_m = np.asarray(tree.chances(logits_xv), np.float64)
    score_mnd = np.asarray(jax.jacobian(tree.logps)(logits_xv))
    score_mnd = score_mnd.reshape(*tree.token_mn.shape, -1)
    mean, square = 0.0, 0.0
    for advantage_mn, weight in zip(advantage_mln.swapaxes(0, 1), weight_l, strict=True):
        part_md = np.einsum("mn,mnd->md", advantage_mn, score_mnd)
        mean = mean + weight * (p_m @ part_md)
        square += weight * (p_m @ (part_md**2).sum(axis=1))
    return float(square - (mean**2).sum())
