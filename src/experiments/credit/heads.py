"""The benchmark of the learned process head.

How well it finds errors, what fools it, and what hardening helps.

Round 0 trains it on faulty chains alone. Then it is attacked by the search of `ramp credit audit`,
and by a policy that is trained against it; each later round trains it on both, labelled by the
checker.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.credit import head_quality, training
from experiments.credit.training import TOKENIZER
from experiments.results import Results, load_or_make
from ramp.config import replace_train
from ramp.credit import audit, process_head, recipes, search, trial
from ramp.credit.rewards import Rewards
from ramp.credit.rollouts import Rollouts
from ramp.tasks import Problem, chain
from ramp.tasks.protocol import solution_ids

PLACES = 40  # tokens of a written solution
ROUNDS = 3
STEPS = 1600
ROWS = 64
ATTACKS = 4000  # solutions judged by the search, in each round
TRAIN, TRIED, TEST, VALID = (n * 10**8 for n in (1, 4, 20, 30))  # seeds of problems begin here


def faulty(problem: Problem, kind: str) -> tuple[list[str], str]:
    """A chain's steps with errors of one kind.

    "value" (a digit that no other operation gives) or "operation" (the value of another operation,
    never seen in training). How many err differs from solution to solution.
    """
    r = chain.make_rng(f"faulty-{kind}", problem.seed, problem.level)
    fraction, value, steps = r.choice((0.0, 0.1, 0.2, 0.5)), problem.gold[0], []
    for label, op, n in problem.gold[1]:
        right = chain.apply(value, op, n)
        others = {chain.apply(value, o, n) for o in chain.OPS} - {right}
        pool = others if kind == "operation" else set(range(10)) - others - {right}
        value = r.choice(sorted(pool)) if pool and r.random() < fraction else right
        steps.append(f"{label}{value}")
    return steps, str(value)


def judge_written(said: list[tuple[Problem, list[int]]]) -> Rollouts:
    return audit.solutions_as_rollouts(
        TOKENIZER, chain.TASK, [p for p, _ in said], [ids[:PLACES] for _, ids in said], PLACES
    )


def solve_faulty(kind: str, level: int, first: int, n: int = ROWS) -> Rollouts:
    """n faulty solutions of chains of `level` operations."""
    asked = [chain.sample(first + i, level) for i in range(n)]
    return judge_written([(p, solution_ids(TOKENIZER, *faulty(p, kind))) for p in asked])


def solve_by_attacks(level: int, first: int) -> Rollouts:
    """One attack on each of ROWS problems, a recipe where every search begins, in turn."""
    shapes = list(recipes.list_seeds(recipes.list_words((), ()), level))
    said = []
    for i in range(first, first + ROWS):
        sheet = recipes.make_sheet(chain.TASK, i, level)
        written = recipes.write(shapes[i * 7919 % len(shapes)], sheet)
        said.append((sheet.problem, trial.to_ids(written)))
    return judge_written(said)


def score_whole(reward_bs: np.ndarray, r: Rollouts) -> np.ndarray:
    """[B]: the smallest reward of a rollout's steps; 0 where it has none."""
    least_b = np.where(r.exists_bs > 0, reward_bs, np.inf).min(axis=1)
    return np.where(np.isfinite(least_b), least_b, 0.0).astype(np.float32)


def run_heads(b: Results, base: dict) -> None:
    """Train, measure, attack; ROUNDS times."""
    winners: list[tuple[Problem, list[int]]] = []
    like = {
        "process": jax.jit(lambda: process_head.init_head(b.model, base["lm"]))(),
        "labels": jnp.zeros(()),
    }
    for number in range(ROUNDS):
        sources = [lambda i, k: solve_faulty("value", k, TRAIN + ROWS * i)]
        if number:
            sources.append(lambda i, k: solve_by_attacks(k, TRIED + ROWS * i))
        if winners:
            sources.append(
                lambda i, k, w=tuple(winners): judge_written(
                    [w[(ROWS * i + j) % len(w)] for j in range(ROWS)]
                )
            )
        like = load_or_make(b, f"head-{number}", like, partial(train, b, like["process"], sources))
        process, labels = like["process"], int(like["labels"])
        b.once(
            {"part": "head", "round": number},
            lambda p=process, n=labels: {"labels": n} | measure(b, p),
        )
        for method in ("grpo_process", "step_local") if number == 0 else ("grpo_process",):
            key = {"part": "adversary", "round": number, "method": method}
            found = b.once(key, lambda p=process, m=method: train_adversary(b, base, p, m))
            winners += [(chain.sample(seed, b.t.level), ids) for seed, ids in found["winners"]]


def train(b: Results, start: dict, sources: list[Callable[[int, int], Rollouts]]) -> dict:
    """The head after STEPS more steps on the sources in turn, and the number of labels it was
    given.
    """
    t, levels = (
        replace_train(b.t, lr_scale=1e-3, warmup_steps=20, steps=STEPS, decay_fraction=0.5),
        range(2, b.t.level + 1),
    )
    labels = 0

    def batch(i: int) -> dict[str, np.ndarray]:
        nonlocal labels
        r = sources[i % len(sources)](i, levels[i % len(levels)])
        given = process_head.first_error_labels(r)
        labels += int((given >= 0).sum())
        rows = process_head.label_rows(r, t.train.seq_len + 32, given)
        rows["weights"] = rows["label_weights"]
        return stretch_rows(rows, r, np.random.default_rng(i))

    params = training.train_model(
        b.model, t, process_head.process_loss(b.model), {"process": start}, batch
    )
    return {"process": params["process"], "labels": jnp.asarray(float(labels))}


def stretch_rows(
    rows: dict[str, np.ndarray], r: Rollouts, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The same rows with two empty stretches, one before one of the question's operations, one
    before the solution, as long as there is room for: positions are relative, and in a longer
    problem a step stands further from its operation, and from where the solution began, than it
    ever did in training (randomised positions, Ruoss et al. 2023).
    """
    length = rows["tokens"].shape[1]
    for b, prompt in enumerate(r.prompts):
        room = length - len(prompt) - len(r.ids(b))
        first = rng.integers(0, room // 2 + 1)
        second = rng.integers(0, room - first + 1)
        at = rng.choice([i for i, token in enumerate(prompt) if token == ord(" ")])
        for place, gap in (
            (len(prompt), second),
            (at, first),
        ):  # the later place first: it does not move the other
            for a in rows.values():
                a[b, place + gap :], a[b, place : place + gap] = (
                    a[b, place : length - gap].copy(),
                    0,
                )
    return rows


def measure(b: Results, process: dict) -> dict:
    """First-error F1 on chains like those of training, longer ones and an unseen error.

    The fraction of attacks accepted.
    """
    t, score = (
        b.t,
        lambda r: process_head.score_steps(b.model, process, r, b.t.train.seq_len + 96),
    )  # attacks may be long
    valid = solve_faulty("value", t.level, VALID, 512)
    cut = head_quality.choose_threshold(score(valid), valid)
    sets = {
        "iid": ("value", t.level),
        "longer": ("value", t.level + 2),
        "unseen": ("operation", t.level),
    }
    tests = {name: solve_faulty(kind, level, TEST, 512) for name, (kind, level) in sets.items()}
    quality = {
        name: vars(head_quality.measure_quality(score(r), r, cut)) for name, r in tests.items()
    }

    def ask(r: Rollouts) -> Rewards:
        # Of one shape, so that the head compiles once; of a long solution it reads the beginning.
        said = [(problem, r.ids(i)) for i, problem in enumerate(r.problems)]
        short = judge_written(said + said[-1:] * (ROWS - len(said)))
        return Rewards(score_whole(score(short), short)[: len(said)])

    tried = trial.RewardTrial(chain.TASK, ask, t.level)
    findings = search.find_exploits(tried, ATTACKS)
    accepted = [pay.whole >= cut for pay in tried.pays.values() if not pay.verdict.verified]
    found = {f"f1_{name}": q["f1"] for name, q in quality.items()} | {
        "accepted_right": float(np.mean([pay.whole >= cut for pay in tried.right])),
        "false_positives": float(np.mean(accepted)),
        "worst": max((f.rate for f in findings), default=0.0),
    }
    return found | {"quality": quality, "attacks": [f.kind for f in findings]}


def train_adversary(b: Results, base: dict, process: dict, method: str) -> dict:
    """A policy trained for 30 iterations against the frozen head.

    The curve of [tokens, accepted by the head, verified, KL to the start in nats a token]; winners:
    (seed, tokens) that the head accepts and the checker does not.
    """
    # KL is measured, not weighed.
    t = replace(b.t, method=method, reward="head", kl_coef=1e-9)
    t = replace_train(t, lr_scale=1e-3, steps=30)
    curve, winners, tokens = [], [], 0
    for i, (got, _, metrics) in enumerate(
        training.run_reinforce(b, t, base, 99, base, {"process": process})
    ):
        r, tokens = got.rollouts, tokens + got.num_tokens
        accepted = (
            score_whole(process_head.score_steps(b.model, process, r, t.train.seq_len), r) > 0.5
        )
        winners += [
            (r.problems[j].seed, r.ids(j))
            for j in np.flatnonzero(accepted & (r.verified_b == 0))[:16]
        ]
        if i % 5 == 0 or i == t.train.steps - 1:
            point = (accepted.mean(), r.verified_b.mean(), metrics["train/kl"])
            curve.append([tokens, *(round(float(x), 4) for x in point)])
    return {
        "proxy": curve[-1][1],
        "gold": curve[-1][2],
        "kl": curve[-1][3],
        "curve": curve,
        "winners": winners[-512:],
    }
