"""`python -m experiments.credit.baselines`: which baseline leaves the least noise in a gradient?

On policies whose rollouts are all listed (`tree`): cosine and ratio of the mean gradient to that
without any baseline, which is exact, and the noise of one rollout's part, as a multiple of the
noise without a baseline. First for steps, where a sibling may have no such step at that place; then
a baseline for each token that should be the quietest, against `rloo`. Four minutes on one core.
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from experiments.credit import tree as T
from ramp.credit import advantages
from ramp.credit.baselines import (
    Array,
    Credit,
    group_by_problem,
    spread_to_rows,
    spread_to_tokens,
    subtract_step_mean,
    sum_of_others,
)

WORLDS = ((3, 2, 11), (3, 2, 23), (8, 1, 11), (8, 1, 28))  # steps, letters a step, seed
DRAWS = 60  # sets of siblings

# Of (c, a_bs, weight_bs) and keywords by which a method chooses; a rule is the same for all.
Subtract = Callable[..., Array]


def subtract_siblings(lone: str) -> Subtract:
    """The mean of the same step in the siblings; where none has it, `lone` says what is done."""

    def subtract(c: Credit, a_bs: Array, weight_bs: Array, **_: bool) -> Array:
        w_pgs, a_pgs = group_by_problem(c, weight_bs), group_by_problem(c, a_bs)
        weight, total = sum_of_others(w_pgs), sum_of_others(w_pgs * a_pgs)
        has_sibling = weight > 1e-6
        mean = jnp.where(has_sibling, total / jnp.maximum(weight, 1e-6), 0.0)
        if lone == "any":
            anywhere = jnp.sum(total, axis=-1, keepdims=True)
            anywhere /= jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1e-6)
            mean = jnp.where(has_sibling, mean, anywhere)
        counts = has_sibling if lone == "drop" else 1.0
        return spread_to_tokens(c, (w_pgs * (a_pgs - mean) * counts).reshape(a_bs.shape))

    return subtract


def subtract_nothing(c: Credit, a_bs: Array, weight_bs: Array, **_: bool) -> Array:
    """No baseline: exact in the mean, and loud."""
    return spread_to_tokens(c, a_bs * weight_bs)


def subtract_pooled(c: Credit, a_bs: Array, weight_bs: Array, **_: bool) -> Array:
    """The rule of `step_local` and `first_error`, for any method."""
    return subtract_step_mean(c, a_bs, weight_bs)


# Where no sibling has the step.
RULES: dict[str, Subtract] = {
    "it gets nothing (as before)": subtract_siblings("drop"),
    "no baseline": subtract_siblings("none"),
    "the mean of all their steps": subtract_siblings("any"),
    "that mean is one more sibling everywhere": subtract_pooled,
}


def measure(world: tuple, method: str, group_size: int, subtract: Subtract | None = None) -> tuple:
    """(mean gradient, noise) of a method, with another baseline for steps if one is given."""
    steps, letters, seed = world
    tree = T.grow(steps, letters, seed)
    logits = T.draw_logits(tree, seed)
    tree = replace(tree, extra={"implicit_bn": np.asarray(tree.logps(logits))})
    others, weight = T.draw_others(tree.chances(logits), group_size, DRAWS, seed=group_size)
    assign = RIVALS.get(method) or advantages.METHODS[method]
    kept = advantages.subtract_step_mean
    advantages.subtract_step_mean = subtract or kept
    try:
        a_mln = T.advantages(tree, assign, others)
    finally:
        advantages.subtract_step_mean = kept
    mean = T.mean_gradient(tree, logits, np.einsum("mln,l->mn", a_mln, weight))
    return mean, T.measure_noise(tree, logits, a_mln, weight)


def no_baseline(c: Credit) -> Array:
    """The reward itself."""
    return spread_to_rows(c, c.reward_pg)


def optimal_baseline(c: Credit) -> Array:
    """The others count by the squared size of their gradient up to this token, as in verl.

    Its mean at a token of probability p is that of 1 - p. Here `implicit_bn` holds log p.
    """
    size_bn = jnp.cumsum((1 - jnp.exp(c.implicit_bn)) * c.mask_bn, axis=1) + 1e-6
    size_pgn = group_by_problem(c, size_bn)
    reward_pg1 = jnp.asarray(c.reward_pg)[..., None]
    baseline_pgn = sum_of_others(size_pgn * reward_pg1) / sum_of_others(size_pgn)
    return (reward_pg1 - baseline_pgn).reshape(size_bn.shape) * c.mask_bn


RIVALS = {"rloo": advantages.rloo, "optimal_baseline": optimal_baseline, "none": no_baseline}


def compare(got: tuple, plain: tuple) -> str:
    """Cosine, ratio of norms and ratio of noise, as cells of a table."""
    norms = np.linalg.norm(got[0]), np.linalg.norm(plain[0])
    cos = (got[0] * plain[0]).sum() / np.prod(norms)
    return f"{cos:.3f} | {norms[0] / norms[1]:.3f} | {got[1] / plain[1]:.2f}"


def main() -> None:
    """Print both tables."""
    print("| K | seed | G | method | lone steps | cosine | norm | noise |")
    print("|---|---|---|---|---|---|---|---|")
    for world in WORLDS:
        for size in (2, 8):
            for method in ("step_local", "first_error", "step_return"):
                plain = measure(world, method, size, subtract_nothing)
                for name, subtract in RULES.items():
                    cells = compare(measure(world, method, size, subtract), plain)
                    print(f"| {world[0]} | {world[2]} | {size} | {method} | {name} | {cells} |")
    print("\n| K | seed | G | method | cosine | norm | noise |\n|---|---|---|---|---|---|---|")
    for world in WORLDS:
        for size in (2, 8):
            plain = measure(world, "none", size)
            for method in ("rloo", "optimal_baseline"):
                cells = compare(measure(world, method, size), plain)
                print(f"| {world[0]} | {world[2]} | {size} | {method} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
