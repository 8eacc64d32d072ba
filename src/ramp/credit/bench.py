"""The benchmark: process credit beside outcome credit, same policy, same optimizer, same tokens counted.

`ramp audit credit configs/credit-bench.toml` does its parts in order and writes each result as one line of
`bench.jsonl` in the run directory; what is there is not done again, so it can be stopped and gone on with at any time.
The policy is a small transformer on the task `chain`, taught by solutions that slip now and then: it knows the form and
most facts, and is right as often as its teachers were.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.credit import audit, learn
from ramp.model import transformer
from ramp.stages.common import next_token_loss
from ramp.tasks import TASKS, chain
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.state import State, new_state
from ramp.train.step import make_step

TOKENIZER = Tokenizer.bytes_only()
RATES = (1e-4, 3e-4, 1e-3)
SEEDS = 5
SWEPT = ("rloo", "grpo", "step_local", "first_error")
SLIPS = {"mid": 0.17, "low": 0.8}  # share of steps at which the teachers state a random digit
GOAL = 0.9  # verified accuracy that the tokens are counted to


@dataclass(frozen=True)
class Bench:
    """Where results are, and what they are of."""

    directory: Path
    model: Model
    t: Reinforce

    @property
    def path(self) -> Path:
        return self.directory / "bench.jsonl"

    def results(self) -> list[dict]:
        """Lines of the file; one torn by a kill is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def once(self, key: dict, work: Callable[[], dict]) -> dict:
        """The result stored under `key`, or that of work(), stored."""
        for found in self.results():
            if found["key"] == key:
                return found
        began = time.perf_counter()
        result = {"key": key} | work() | {"seconds": round(time.perf_counter() - began, 1)}
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = {k: v for k, v in result.items() if not isinstance(v, list | dict)}
        print(" ".join(map(str, key.values())), shown, flush=True)
        return result


# ---------------------------------------------------------------------------------------------------- policies
def fresh(c: Model, seed: int = 0) -> dict:
    return {"lm": jax.jit(lambda: transformer.init(c, jax.random.PRNGKey(seed)))()}


@lru_cache(maxsize=16)
def updater(c: Model, t: Reinforce):
    """(first state, update) of the policy loss; the method plays no part in either."""
    tx = optim.make(t, c.dtype)
    first = jax.jit(lambda params: new_state(jax.tree.map(lambda a: a + 0, params), tx, 0))
    return first, make_step(learn.loss(c, t), tx, t)


def policy(b: Bench, name: str, solve: Callable | None, steps: int, rate: float = 3e-3) -> dict:
    """A policy that imitates `solve`; kept as .npz beside the results."""
    path = b.directory / f"policy-{name}.npz"
    leaves, tree = jax.tree.flatten(fresh(b.model))
    if not path.exists():
        t = replace(b.t, batch=64, lr_scale=rate, warmup=20, steps=steps, decay=0.2)
        tx = optim.make(t, b.model.dtype)
        state = jax.jit(lambda p: new_state(p, tx, 0))(jax.tree.unflatten(tree, leaves))
        update = make_step(next_token_loss(b.model, 0.0), tx, t)
        for i in range(steps):
            rows = learn.imitation(TOKENIZER, TASKS[t.task], t.level, 64, t.seq, i, solve=solve)
            state, _ = update(state, learn.put(rows))
        leaves = jax.tree.leaves(state.params)
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **{str(i): np.asarray(a) for i, a in enumerate(leaves)})
        path.with_suffix(".tmp").replace(path)
    with np.load(path, allow_pickle=False) as held:
        leaves = [jax.device_put(held[str(i)], a.sharding) for i, a in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves)


def slipping(share: float) -> Callable:
    return partial(chain.slipping, share=share)


# ---------------------------------------------------------------------------------------------------- learning
def train(b: Bench, t: Reinforce, base: dict, seed: int, stop: float = 2.0) -> dict:
    """Train one policy; the curve of [tokens, right, verified, steps, entropy] on held-out problems. Ends early once
    `stop` of them are verified."""
    task, began = TASKS[t.task], time.perf_counter()
    first, update = updater(b.model, replace(t, method="rloo", continuations=1))
    state: State = first(base)
    measure = partial(learn.accuracy, b.model, t, TOKENIZER, task)
    figures = [(0, measure(state.params, t.problems)[0])]
    tokens = labels = 0
    for i in range(t.steps):
        got = learn.collect(b.model, t, TOKENIZER, task, state.params, None, i, seed + 1)
        state, _ = update(state, learn.put(got.batch))
        tokens, labels = tokens + got.tokens, labels + got.labels
        if (i + 1) % t.eval_every == 0 or i + 1 == t.steps:
            figures.append((tokens, measure(state.params, t.problems, seed=7 + i)[0]))
            if figures[-1][1]["verified"] >= stop:
                break
    names = ("right", "verified", "steps", "entropy")
    curve = [[n, *(round(found[k], 4) for k in names)] for n, found in figures]
    to = audit.tokens_to([(p[0], p[2]) for p in curve], GOAL)
    last = dict(zip(names, curve[-1][1:], strict=True))
    forward = 2 * sum(a.size for a in jax.tree.leaves(base))
    return {
        "to_goal": to if np.isfinite(to) else None,
        "tokens": tokens,
        "labels": labels,
        "flops": forward * 4 * tokens,  # once to sample, three times to learn
        "train_seconds": round(time.perf_counter() - began, 1),
        **last,
        "curve": curve,
    }


# ---------------------------------------------------------------------------------------------------- the parts
def gradients(b: Bench) -> None:
    """Estimators against the exact gradient, at three skills of the table policy."""
    asked = [chain.sample(i, 8) for i in range(4)]
    for skill in (0.25, 0.8, 0.95):
        table = exact.skilled(0, skill)
        for method in ("rloo", "pass_at_k", "grpo", "vine", "prover", "oracle", "step_local", "first_error"):
            key = {"part": "gradient", "skill": skill, "method": method}
            b.once(
                key,
                lambda t=table, m=method: (
                    audit.gradient(t, asked, m, 8, 2000) | {"success": float(exact.success(t, asked))}
                ),
            )


def straws(b: Bench, base: dict, name: str) -> None:
    """Where each method's credit goes on the same rollouts of the base policy."""

    def work() -> dict:
        task = TASKS[b.t.task]
        asked = learn.problems(task, b.t.level, 0, 32)
        r = rollouts.roll(b.model, base["lm"], TOKENIZER, task, asked, 16, b.t.tokens, 0)
        t = replace(b.t, method="vine", continuations=8)
        credit, cost = learn.evidence(b.model, t, TOKENIZER, task, base, None, r, 0)
        named = ("rloo", "grpo", "vine", "prover", "grpo_process", "min_form", "step_local", "first_error")
        table = {m: audit.straw(r, np.asarray(METHODS[m](credit))) for m in named}
        return {"right": float(r.outcome_b.mean()), "tokens": r.tokens, "continuation_tokens": cost, "methods": table}

    b.once({"part": "straw", "base": name}, work)


def unbiased(b: Bench, base: dict) -> None:
    """RLOO's mean gradient on the transformer against the exact one, on short chains, where all ways can be summed."""

    def work() -> dict:
        asked, c = [chain.sample(i, 3) for i in range(4)], b.model
        rows = [learn.put(exact.every_success(TOKENIZER, p, 48)) for p in asked]
        chance = jax.jit(jax.value_and_grad(lambda lm, r: exact.transformer_success(c, lm, r)))
        found = [chance(base["lm"], r) for r in rows]
        want = np.concatenate(
            [
                np.ravel(np.mean(x, axis=0))
                for x in zip(*(map(np.asarray, jax.tree.leaves(g)) for _, g in found), strict=True)
            ]
        )
        t = replace(b.t, level=3, prompts=4, group=64, seq=48, tokens=16)
        total = jax.jit(jax.grad(lambda lm, batch: learn.loss(c, t)({"lm": lm}, batch, None)[0]))
        got, won = 0.0, []
        for i in range(120):
            r = rollouts.roll(c, base["lm"], TOKENIZER, chain.TASK, asked, 64, 16, i)
            credit = learn.Credit(r.outcome_b.reshape(-1, r.group), r.right_bs, r.exists_bs, r.step_bn)
            batch = learn.put(rollouts.rows(r, 48, np.asarray(METHODS["rloo"](credit))))
            got = got - np.concatenate(
                [np.ravel(np.asarray(g, np.float64)) for g in jax.tree.leaves(total(base["lm"], batch))]
            )
            won.append(r.outcome_b.mean())
        cos = float(got @ want / np.linalg.norm(got) / np.linalg.norm(want))
        return {
            "cos": cos,
            "exact_success": float(np.mean([v for v, _ in found])),
            "sampled_success": float(np.mean(won)),
        }

    b.once({"part": "unbiased", "policy": "transformer", "method": "rloo"}, work)


def efficiency(b: Bench, base: dict) -> None:
    """Every method at every rate once, then its best rate on the other seeds."""
    for method in SWEPT:
        best = None
        for rate in RATES:
            t = replace(b.t, method=method, lr_scale=rate)
            key = {"part": "learn", "base": "mid", "method": method, "rate": rate, "seed": 0}
            found = b.once(key, lambda t=t: train(b, t, base, 0, GOAL + 0.02))
            score = (found["to_goal"] or float("inf"), -found["verified"])
            best = min(best, (score, rate)) if best else (score, rate)
        for seed in range(1, SEEDS):
            t = replace(b.t, method=method, lr_scale=best[1])
            key = {"part": "learn", "base": "mid", "method": method, "rate": best[1], "seed": seed}
            b.once(key, lambda t=t, s=seed: train(b, t, base, s, GOAL + 0.02))
