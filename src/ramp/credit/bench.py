"""The benchmark: process credit beside outcome credit, same policy, same optimizer, same tokens counted.

`ramp audit credit configs/credit-bench.toml` does its parts in order and writes each result as one line of
`bench.jsonl` in the run directory; what is there is not done again, so it can be stopped and gone on with at any time.
The policy is a small transformer on the task `chain`, taught at last by solutions that slip now and then: it knows the
form and most facts, and is right as often as its teachers were.
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

from ramp.config import Config, Model, Reinforce
from ramp.credit import audit, data, exact, head, learn, rollouts, table
from ramp.credit.advantages import METHODS
from ramp.model import transformer
from ramp.rundir import write_atomic
from ramp.stages.common import next_token_loss
from ramp.tasks import TASKS, Problem, Task, chain, swaps
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.state import State, new_state
from ramp.train.step import make_step

TOKENIZER = Tokenizer.bytes_only()
RATES = (1e-4, 3e-4, 1e-3)
SEEDS = 5
SWEPT = ("rloo", "grpo", "step_local", "first_error")
SLIPS = {"half": 0.1, "mid": 0.17, "low": 0.8}  # share of steps at which the teachers state a random digit
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


def policy(
    b: Bench, name: str, solve: Callable | None, steps: int, start: dict | None = None, rate: float = 3e-3
) -> dict:
    """A policy that imitates `solve`, from nothing or from `start`; kept as .npz beside the results."""
    path = b.directory / f"policy-{name}.npz"
    leaves, tree = jax.tree.flatten(fresh(b.model))
    if not path.exists():
        t = replace(b.t, batch=64, lr_scale=rate, warmup=20, steps=steps, decay=0.2)
        tx = optim.make(t, b.model.dtype)
        state = jax.jit(lambda p: new_state(jax.tree.map(lambda a: a + 0, p), tx, 0))(start or tree.unflatten(leaves))
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
    found, r = measure(state.params, t.problems)
    figures, tokens, labels = [(0, found)], 0, 0
    for i in range(t.steps):
        got = learn.collect(b.model, t, TOKENIZER, task, state.params, None, i, seed + 1)
        state, _ = update(state, learn.put(got.batch))
        tokens, labels = tokens + got.tokens, labels + got.labels
        if (i + 1) % t.eval_every == 0 or i + 1 == t.steps:
            found, r = measure(state.params, t.problems, seed=7 + i)
            figures.append((tokens, found))
            if found["verified"] >= stop:
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
        "lucky": [
            f"{v.question} -> {TOKENIZER.decode(r.ids(j))}" for j, v in enumerate(r.problems) if r.verdicts[j].lucky
        ][:3],
    }


# ---------------------------------------------------------------------------------------------------- the parts
def gradients(b: Bench) -> None:
    """Estimators against the exact gradient, at three skills of the table policy."""
    asked = [chain.sample(i, 8) for i in range(4)]
    for skill in (0.25, 0.8, 0.95):
        logits = exact.skilled(0, skill)
        for method in ("rloo", "vine", "grpo", "prover", "oracle", "step_local"):

            def work(logits=logits, method=method) -> dict:
                found = audit.gradient(logits, asked, method, 8, 1500)
                return found | {"success": float(exact.success(logits, asked))}

            b.once({"part": "gradient", "skill": skill, "method": method}, work)


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
    """Every method at every rate once; then, on the other seeds, the best outcome method and the process methods."""

    def at(method: str, rate: float, seed: int) -> dict:
        t = replace(b.t, method=method, lr_scale=rate)
        key = {"part": "learn", "base": "mid", "method": method, "rate": rate, "seed": seed}
        return b.once(key, lambda: train(b, t, base, seed, GOAL + 0.02))

    best = {m: min((at(m, rate, 0) for rate in RATES), key=table.merit) for m in SWEPT}
    outcome = min((best["rloo"], best["grpo"]), key=table.merit)
    for seed in range(1, SEEDS):
        for found in (outcome, best["step_local"], best["first_error"]):
            at(found["key"]["method"], found["key"]["rate"], seed)


def low_skill(b: Bench, base: dict) -> None:
    """From a policy that is right mostly by luck: who learns the process?"""
    for method in ("rloo", "first_error", "step_local"):
        for rate in RATES[1:]:
            t = replace(b.t, method=method, lr_scale=rate)
            key = {"part": "learn", "base": "low", "method": method, "rate": rate, "seed": 0}
            b.once(key, lambda t=t: train(b, t, base, 0, GOAL + 0.02))


# ---------------------------------------------------------------------------------------------------- the learned head
def faulty(problem: Problem, kind: str, seed: int) -> tuple[list[str], str]:
    """A chain's steps with errors of one kind: "value" (a digit that no confusion explains) or "operation" (the value
    of another operation, never seen in training). Each step errs with a chance of its own solution, 0 to a half."""
    r = chain.rng(f"faulty-{kind}", seed, problem.level)
    share, value, steps = r.choice((0.0, 0.1, 0.2, 0.5)), problem.gold[0], []
    for label, op, n in problem.gold[1]:
        right = chain.apply(value, op, n)
        others = {chain.apply(value, o, n) for o in chain.OPS} - {right}
        pool = others if kind == "operation" else set(range(10)) - others - {right}
        value = r.choice(sorted(pool)) if pool and r.random() < share else right
        steps.append(f"{label}{value}")
    return steps, str(value)


def written(task: Task, said: list[tuple[Problem, list[int]]], places: int) -> rollouts.Rollouts:
    return audit.as_rollouts(TOKENIZER, task, [p for p, _ in said], [ids[:places] for _, ids in said], places)


def solved(kind: str, level: int, first: int, n: int, places: int) -> rollouts.Rollouts:
    """n faulty solutions of chains of `level` operations."""
    asked = [chain.sample(first + i, level) for i in range(n)]
    said = [(p, audit.solution_ids(TOKENIZER, *faulty(p, kind, p.seed))) for p in asked]
    return written(chain.TASK, said, places)


def tried(level: int, first: int, n: int, places: int) -> rollouts.Rollouts:
    """One attack on each of n problems, every kind in turn."""
    said = []
    for i in range(n):
        problem = chain.sample(first + i, level)
        found = list(audit.attacks(TOKENIZER, chain.TASK, problem, first + i).values())
        said.append((problem, found[i % len(found)]))
    return written(chain.TASK, said, places)


def train_head(
    b: Bench, start: dict, sources: list[Callable[[int], rollouts.Rollouts]], steps: int, rate: float
) -> tuple[dict, int]:
    """A head trained on batches drawn from the sources in turn: (params, labels used)."""
    t = replace(b.t, lr_scale=rate, warmup=20, steps=steps, decay=0.3)
    tx = optim.make(t, b.model.dtype)
    state = jax.jit(lambda p: new_state(p, tx, 0))({"process": jax.tree.map(lambda a: a + 0, start)})
    update, labels = make_step(head.process_loss(b.model), tx, t), 0
    for i in range(steps):
        r = sources[i % len(sources)](i)
        given = head.first_error_labels(r)
        labels += int((given >= 0).sum())
        state, _ = update(state, learn.put(head.rows(r, b.t.seq + 32, given)))
    return state.params["process"], labels


def heads(b: Bench, base: dict, rounds: int = 3) -> None:
    """Train a head on faulty solutions, measure it, attack it, and train it on what got through, round after round."""
    t, places, length, steps = b.t, 40, b.t.seq + 32, 500
    levels = range(2, t.level + 1)
    sources = [lambda i: solved("value", levels[i % len(levels)], 10**8 + 64 * i, 64, places)]
    process, adversary = jax.jit(lambda: head.init(b.model, base["lm"]))(), {}
    for number in range(rounds):
        process, labels = train_head(b, process, sources, steps, 1e-3)

        def work(process=process, labels=labels, number=number) -> dict:
            sets = {"iid": ("value", t.level), "longer": ("value", t.level + 2), "unseen": ("operation", t.level)}
            p = {
                k: (r := solved(kind, n, 2 * 10**9, 512, places), head.score(b.model, process, r, length))
                for k, (kind, n) in sets.items()
            }
            valid = solved("value", t.level, 3 * 10**9, 512, places)
            cut = head.choose_threshold(head.score(b.model, process, valid, length), valid)
            found = {k: {a: round(v, 4) for a, v in head.quality(score, r, cut).items()} for k, (r, score) in p.items()}
            rows = audit.hacks(
                lambda r: head.score(b.model, process, r, length), TOKENIZER, chain.TASK, t.level, 50, cut
            )
            wrong = [row["accepted"] for row in rows if row["attack"] != "right solutions"]
            figures = {f"f1_{k}": v["f1"] for k, v in found.items()} | {
                "false_positives": float(np.mean(wrong)),
                "worst": max(wrong),
            }
            return figures | {
                "labels": labels,
                "accepted_right": rows[0]["accepted"],
                "quality": found,
                "attacks": rows,
            }

        b.once({"part": "head", "round": number}, work)
        if number == 0:
            for method in ("grpo_process", "step_local", "min_form"):
                key = {"part": "adversary", "method": method}
                b.once(key, lambda process=process, m=method: hunt(b, base, process, m)[0])
        found = hunt(b, base, process, "grpo_process")[1] if number < rounds - 1 else []
        adversary[number] = found
        sources = [*sources[:1], lambda i: tried(levels[i % len(levels)], 4 * 10**8 + 64 * i, 64, places)]
        winners = [pair for kept in adversary.values() for pair in kept]
        if winners:
            sources.append(
                lambda i, w=tuple(winners): written(chain.TASK, [w[(64 * i + j) % len(w)] for j in range(64)], places)
            )


def hunt(b: Bench, base: dict, process: dict, method: str, steps: int = 40) -> tuple[dict, list]:
    """A policy trained against a frozen head: the curve of [tokens, proxy, gold, entropy], and rollouts that the head
    accepts and the checker does not."""
    t = replace(b.t, method=method, reward="head", lr_scale=1e-3, steps=steps)
    task = TASKS[t.task]
    first, update = updater(b.model, replace(t, method="rloo", reward="checker"))
    state, curve, winners, tokens = first(base), [], [], 0
    for i in range(steps):
        got = learn.collect(b.model, t, TOKENIZER, task, {"lm": state.params["lm"], "process": process}, None, i, 99)
        r, tokens = got.rollouts, tokens + got.tokens
        score = audit.whole(head.score(b.model, process, r, t.seq), r)
        winners += [(r.problems[j], r.ids(j)) for j in np.flatnonzero((score > 0.5) & (r.verified_b == 0))[:16]]
        if i % 5 == 0 or i == steps - 1:
            entropy = -float((r.logps_bn * r.mask_bn).sum() / r.mask_bn.sum())
            curve.append(
                [tokens, round(float((score > 0.5).mean()), 4), round(float(r.verified_b.mean()), 4), round(entropy, 4)]
            )
        state, _ = update(state, learn.put(got.batch))
    return {"proxy": curve[-1][1], "gold": curve[-1][2], "curve": curve}, winners[-512:]


# ---------------------------------------------------------------------------------------------------- diversity
def diverse(b: Bench) -> None:
    """Sorting by swaps, where many orders are right: what is left of them after process credit?"""
    t = replace(b.t, task="swaps", level=3, tokens=40, method="step_local", lr_scale=RATES[1], steps=40)
    b2 = Bench(b.directory, b.model, t)
    base = policy(b2, "swaps", swaps.wandering, 900)

    def work() -> dict:
        found = {}
        first, update = updater(b.model, t)
        state, asked = first(base), learn.held_out(swaps.TASK, t.level, 64)
        for when in ("before", "after"):
            r = rollouts.roll(b.model, state.params["lm"], TOKENIZER, swaps.TASK, asked, 16, t.tokens, 3)
            found |= {f"{k} {when}": round(v, 4) for k, v in audit.diversity(r).items()}
            for i in range(t.steps if when == "before" else 0):
                got = learn.collect(b.model, t, TOKENIZER, swaps.TASK, state.params, None, i, 5)
                state, _ = update(state, learn.put(got.batch))
        return found

    b.once({"part": "diversity", "task": "swaps"}, work)


# ---------------------------------------------------------------------------------------------------- the whole
def run(directory: Path, c: Config, shared: Path | None = None) -> str:
    """Do what is not done yet; the table as Markdown, also written to `bench.md`."""
    directory.mkdir(parents=True, exist_ok=True)
    b = Bench(directory, c.model, c.reinforce)
    if shared:
        b.once(
            {"part": "data", "set": "gsm8k"},
            lambda: data.gsm8k_solutions(shared / "process/gsm8k_example_model_solutions.jsonl"),
        )
        b.once({"part": "data", "set": "mistakes"}, lambda: data.big_bench_mistake(shared / "process"))
    expert, few = policy(b, "expert", None, c.reinforce.imitate), c.reinforce.imitate // 5
    base = {name: policy(b, name, slipping(share), few, expert) for name, share in SLIPS.items()}  # it unlearns
    straws(b, base["half"], "half")
    short = replace(b, t=replace(b.t, level=3))
    unbiased(b, policy(short, "short", slipping(0.3), few, expert))
    efficiency(b, base["mid"])
    low_skill(b, base["low"])
    heads(b, base["mid"])
    diverse(b)
    gradients(b)
    found = table.report(b.results())
    write_atomic(directory / "bench.md", found)
    return found
