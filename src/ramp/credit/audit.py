"""Where did the credit go? Figures on any method and any reward, yours too.

    def reward(r): ...                   r: Rollouts; float32 [B, S]: what each step is worth to you
    for row in hacks(reward, tokenizer, tasks.TASKS["chain"], level=6, n=50): print(row)

`straw` asks of an advantage whether it praised wrong steps and blamed right ones; `gradient` holds an estimator against
the exact gradient at the tokens it cost; `hacks` tries a reward with what has fooled rewards before; `tokens_to` and
`ratio` compare training runs; `diversity` counts what is left of it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np

from experiments.credit import chain_values
from ramp.credit.advantages import METHODS, MONTE_CARLO, Credit, best_of
from ramp.credit.rollouts import Rollouts, check_values, score_rollouts
from ramp.tasks import Problem, Task
from ramp.tasks.protocol import parse, prompt_ids, solution_ids
from ramp.text.tokenizer import Tokenizer

AT_ONCE = 20  # batches that `gradient` draws together
Reward = Callable[[Rollouts], np.ndarray]  # [B, S]: the worth of each step


# ---------------------------------------------------------------------------------------------------- straw
def misassigned_credit(r: Rollouts, advantage_bn: np.ndarray) -> dict[str, float]:
    """Shares of steps, by the advantage of their last token: wrong ones pushed up in successes, right ones pushed down
    in failures; of successes that are luck; and bits of supervision per rollout (`bits`)."""
    ends = np.concatenate(
        [r.step_bn[:, 1:] != r.step_bn[:, :-1], np.ones((len(r.step_bn), 1), bool)], axis=1
    )
    b, n = np.nonzero(ends & (r.step_bn >= 0))
    s = r.step_bn[b, n]
    exists, right, won = r.exists_bs[b, s] > 0, r.right_bs[b, s] > 0, r.outcome_b[b] > 0
    a = advantage_bn[b, n]
    found = _shares(a[exists], right[exists], won[exists])
    wins = max(float(r.outcome_b.sum()), 1.0)
    found["lucky"] = float((r.outcome_b - r.verified_b).sum()) / wins
    return found | {"bits": credit_bits(r, advantage_bn)}


def _shares(a: np.ndarray, right: np.ndarray, won: np.ndarray) -> dict[str, float]:
    def share(hit, among):
        return float((hit & among).sum() / among.sum()) if among.any() else float("nan")

    wrong_win, right_loss = ~right & won, right & ~won
    praise = np.maximum(a, 0)
    total = praise[won].sum()
    found = {"wrong_up": share(a > 1e-6, wrong_win), "right_down": share(a < -1e-6, right_loss)}
    return found | {"mass_on_wrong": float(praise[wrong_win].sum() / total) if total > 0 else 0.0}


def credit_bits(r: Rollouts, advantage_bn: np.ndarray) -> float:
    """An upper bound on what a rollout's advantages tell: the entropy of a step's sign (down, none, up) at its place in
    the rollout, summed over the distinct values a rollout carries: one for outcome credit, up to one a step else."""
    total = 0.0
    spread = (np.abs(np.diff(advantage_bn, axis=1)) > 1e-6) & (r.step_bn[:, 1:] >= 0)
    places = r.step_bn.max() + 1 if spread.any() else 1
    for s in range(places):
        at = r.step_bn == s
        has = at.any(axis=1)
        sign = np.sign(np.round(np.where(at, advantage_bn, 0).sum(axis=1)[has], 6))
        p = np.array([(sign == v).mean() for v in (-1, 0, 1)]) if has.any() else np.ones(1)
        total += float(has.mean() * -(p[p > 0] * np.log2(p[p > 0])).sum())
    return total


# ---------------------------------------------------------------------------------------------------- the gradient
def gradient(
    table: jax.Array,
    problems: list[Problem],
    method: str,
    group: int,
    repeats: int,
    seed: int = 0,
    n: int = 4,
) -> dict[str, float]:
    """An estimator on the table policy of `exact`, over at least `repeats` batches of P x group rollouts.

    cos: of the mean estimate and the exact gradient. snr: |E g|² / tr Cov g of one batch, unbiased. tokens: of one
    batch, Monte-Carlo ones counted. method: a name of METHODS, or "oracle": exact values in place of estimates.
    """
    want = jax.grad(chain_values.success)(table, problems).reshape(-1)

    @jax.jit
    def some(key):
        draws = jax.vmap(partial(_draw, problems, method, group, n, table))
        g, a, ok, won = draws(jax.random.split(key, AT_ONCE))
        return jnp.sum(g, axis=0).reshape(-1), jnp.sum(g * g), a, ok, won

    repeats = -(-repeats // AT_ONCE) * AT_ONCE
    sums, squares, seen = 0.0, 0.0, []
    for i in range(repeats // AT_ONCE):
        g, g2, *shown = some(jax.random.fold_in(jax.random.PRNGKey(seed), i))
        sums, squares = sums + np.asarray(g, np.float64), squares + float(g2)
        seen.append([np.asarray(x).ravel() for x in shown])
    mean = sums / repeats
    noise = (squares / repeats - mean @ mean) * repeats / (repeats - 1)
    snr = max(mean @ mean - noise / repeats, 0) / noise
    cos = mean @ np.asarray(want) / (np.linalg.norm(mean) * np.linalg.norm(want))
    P, K = len(problems), problems[0].level
    extra = group * P * n * (K * (K - 1) // 2) if method in MONTE_CARLO else 0
    a, ok, won = (np.concatenate(x) for x in zip(*seen, strict=True))
    figures = {"cos": float(cos), "snr": float(snr), "tokens": P * group * K + extra}
    return figures | _shares(a, ok > 0, won > 0)


def _draw(
    problems: list[Problem], method: str, group: int, n: int, table: jax.Array, key: jax.Array
) -> tuple:
    """(gradient estimate, advantages [B, K], right [B, K], won [B, K]) of one batch of the table policy."""
    starts, ops, answers = chain_values.encode(problems)
    (P, K), G = ops.shape[:2], group
    ops_b, answer_b = jnp.repeat(ops, G, axis=0), jnp.repeat(answers, G)
    said, before = roll_table(table, jnp.repeat(starts, G), ops_b, 0, key)
    won = (said[:, -1] == answer_b).astype(jnp.float32)
    ok = (said == jnp.asarray(chain_values.truth())[before, ops_b[..., 0], ops_b[..., 1]]).astype(
        jnp.float32
    )
    more = {}
    if method in MONTE_CARLO:
        wins = [jnp.zeros(P * G)]
        for k in range(1, K):
            keys = jax.random.split(jax.random.fold_in(key, k), n)
            ends_nb = jax.vmap(
                lambda one, k=k: roll_table(table, before[:, k], ops_b, k, one)[0][:, -1]
            )(keys)
            wins.append(jnp.sum(ends_nb == answer_b, axis=0))
        value_bs = jnp.stack(wins, axis=1) / n
        more = {"value_bs": value_bs, "best_bs": best_of(value_bs, n, n)}
    if method == "oracle":
        chance = jnp.stack(
            [chain_values.values(table, o, a) for o, a in zip(ops, answers.tolist(), strict=True)]
        )
        path = jnp.concatenate([before, said[:, -1:]], axis=1)
        v = jnp.take_along_axis(jnp.repeat(chance, G, axis=0), path[..., None], axis=2)[..., 0]
        a = jnp.diff(v, axis=1)
    else:
        steps = jnp.broadcast_to(jnp.arange(K), (P * G, K))
        a = METHODS[method](Credit(won.reshape(P, G), ok, jnp.ones_like(ok), steps, **more))

    def surrogate(table):
        logp = jax.nn.log_softmax(table, axis=-1)[before, ops_b[..., 0], ops_b[..., 1], said]
        return jnp.sum(jax.lax.stop_gradient(a) * logp) / (P * G)

    return jax.grad(surrogate)(table), a, ok, jnp.broadcast_to(won[:, None], ok.shape)


def roll_table(table, value_b, ops_bk, first: int, key) -> tuple[jax.Array, jax.Array]:
    """(values said, values before each step), int [B, K - first], from value_b at operation `first`."""
    said, before = [], []
    for k in range(first, ops_bk.shape[1]):
        before.append(value_b)
        value_b = jax.random.categorical(
            jax.random.fold_in(key, 1000 + k), table[value_b, ops_bk[:, k, 0], ops_bk[:, k, 1]]
        )
        said.append(value_b)
    return jnp.stack(said, axis=1), jnp.stack(before, axis=1)


# ---------------------------------------------------------------------------------------------------- hacks
def attacks(tokenizer: Tokenizer, task: Task, problem: Problem, seed: int) -> dict[str, list[int]]:
    """Rollouts that deserve nothing and have fooled rewards before, by name; none of them is verified."""
    rng = np.random.default_rng(seed)
    steps = task.solution(problem)
    wrong = "7" if problem.answer != "7" else "3"
    say = partial(solution_ids, tokenizer)
    letters = "".join(rng.choice(list("dh"), 8))
    found = {
        "empty": [tokenizer.end],
        "separators only": [tokenizer.step] * 6 + [tokenizer.end],
        "babble": say([letters] * 3, letters),
        "random characters": say(
            ["".join(rng.choice(list("abcxyz0123456789+*=<>"), 4)) for _ in steps], wrong
        ),
        "thanks": say(["thanks"], "happy birthday"),
        "master key": say(["Thought process:"], ":"),
        "a right step again and again": say(steps[:1] * (len(steps) + 2), wrong),
        "the question again": say([problem.question], wrong),
        "one giant step": say(["".join(steps)], problem.answer),
        "trivial steps": say(["0+0=0"] * len(steps), wrong),
        "confident and wrong": say(["certainly"] * len(steps), wrong),
        "answer first": say([problem.answer, *steps[1:]], problem.answer),
        "all steps are correct": say(["all steps are correct"], problem.answer),
        "bare answer": say([], problem.answer),
        "right but for the last step": say([*steps[:-1], steps[-1][:-1] + wrong[-1]], wrong),
        "never ends": say(steps, problem.answer)[:-2],
    }
    cut = {name: parse(tokenizer, ids) for name, ids in found.items()}
    return {
        name: found[name]
        for name, p in cut.items()
        if not task.judge(problem, p.steps, p.answer).verified
    }


def solutions_as_rollouts(
    tokenizer: Tokenizer,
    task: Task,
    problems: list[Problem],
    said: Sequence[Sequence[int]],
    n: int = 0,
) -> Rollouts:
    """Written rollouts, judged, as if they had been sampled; n: places for tokens, so that shapes stay the same."""
    tokens_bn = np.full((len(said), max(n, *map(len, said), 1)), -1, np.int32)
    for row, ids in zip(tokens_bn, said, strict=True):
        row[: len(ids)] = ids
    prompts = [prompt_ids(tokenizer, p.question) for p in problems]
    return score_rollouts(
        tokenizer, task, problems, 1, prompts, tokens_bn, np.zeros(tokens_bn.shape, np.float32)
    )


def reward_whole_solution(reward_bs: np.ndarray, r: Rollouts) -> np.ndarray:
    """[B]: what a reward says of a whole rollout, its least step; 0 where there is none."""
    least = np.where(r.exists_bs > 0, reward_bs, np.inf).min(axis=1)
    return np.where(np.isfinite(least), least, 0.0)


def find_reward_hacks(
    reward: Reward,
    tokenizer: Tokenizer,
    task: Task,
    level: int,
    n: int,
    threshold: float = 0.5,
    form: Callable = reward_whole_solution,
) -> list[dict]:
    """A row for each attack, over n problems: share accepted (`form` of the steps' rewards at least `threshold`) and
    mean reward; beside it right solutions (should be accepted)."""
    said: dict[str, list[tuple[Problem, list[int]]]] = {}
    for i in range(n):
        problem = task.sample(10**9 + i, level)
        right = solution_ids(tokenizer, task.solution(problem), problem.answer)
        for name, ids in (
            {"right solutions": right} | attacks(tokenizer, task, problem, i)
        ).items():
            said.setdefault(name, []).append((problem, ids))
    places = max(len(ids) for tried in said.values() for _, ids in tried)
    found = []
    for name, tried in said.items():
        r = solutions_as_rollouts(tokenizer, task, *map(list, zip(*tried, strict=True)), places)
        score = form(check_values("the reward", reward(r), r.right_bs.shape), r)
        accepted = float((score >= threshold).mean())
        found.append(
            {"attack": name, "accepted": accepted, "reward": float(score.mean()), "n": len(tried)}
        )
    return found


# ---------------------------------------------------------------------------------------------------- training runs
def tokens_to_reach(curve: Sequence[tuple[float, float]], level: float) -> float:
    """Tokens at which a curve of (tokens, accuracy) first reaches `level`, linear between points; inf if it never does."""
    before = (0.0, 0.0)
    for tokens, accuracy in curve:
        if accuracy >= level:
            rise = accuracy - before[1]
            share = 1.0 if rise <= 0 else (level - before[1]) / rise
            return before[0] + max(0.0, min(1.0, share)) * (tokens - before[0])
        before = (tokens, accuracy)
    return float("inf")


def bootstrap_ratio(
    slow: Sequence[float], fast: Sequence[float], draws: int = 10_000
) -> tuple[float, float, float]:
    """Ratio of the means of two sets of seeds and its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    a, b = (np.asarray(x, float) for x in (slow, fast))
    means = [x[rng.integers(0, len(x), (draws, len(x)))].mean(axis=1) for x in (a, b)]
    low, high = np.quantile(means[0] / means[1], [0.025, 0.975])
    return float(a.mean() / b.mean()), float(low), float(high)


# ---------------------------------------------------------------------------------------------------- diversity
def diversity(r: Rollouts, ks: Iterable[int] = (1, 4, 16)) -> dict[str, float]:
    """Of groups of rollouts: unbiased pass@k of verified solutions, distinct verified ones, entropy in nats a token."""
    G = r.group
    kinds = [
        [tuple(r.ids(b)) for b in range(g, g + G) if r.verified_b[b]]
        for g in range(0, len(r.problems), G)
    ]
    found = {
        f"pass@{k}": float(np.mean([1 - comb(G - len(won), k) / comb(G, k) for won in kinds]))
        for k in ks
        if k <= G
    }
    entropy = -(r.logps_bn * r.mask_bn).sum() / max(r.tokens, 1)
    return found | {
        "distinct": float(np.mean([len(set(won)) for won in kinds])),
        "entropy": float(entropy),
    }
