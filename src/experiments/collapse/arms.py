"""The neural tier: small transformers in the world of programs, by generation and arm.

All arms of a seed start from the same model, take the same number of steps on the same number of
rows, and sample the same number of documents. A program has one right answer, so pass@1 at
temperature 1 is exactly the probability of its digits, and pass@k is 1 - (1 - p)^k: no sampling
noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from experiments.collapse import drift, world
from experiments.results import Results, init_lm, load_or_make
from ramp.config import Model, Synthesize, replace_train
from ramp.decode.sample import SamplingParams
from ramp.model.loss import next_token_loss
from ramp.model.transformer import ROWS
from ramp.nines.intervals import clopper_pearson
from ramp.synth import generate, guard, measure, mix, prompts, scores, verify
from ramp.synth.guard import CollapseGuard, RepeatCounts, SampleEvidence, TrainingEvidence
from ramp.synth.measure import Docs, Null
from ramp.synth.prompts import Prompt
from ramp.train import optim
from ramp.train.state import init_state
from ramp.train.step import make_step

SEEDS, GENERATIONS, LENGTH = 3, 5, world.LONGEST
REAL, HELD, PROBLEMS = 1500, 800, 400
M = round(
    drift.real_fraction_for(1.0), 2
)  # .38: the law's real share where drift may cost what a generation of replace does
# Steps of a first model, and of every model that is trained anew: 17 passes over real documents.
FIRST = 400


@dataclass(frozen=True)
class Lab:
    b: Results
    w: world.World = field(default_factory=world.World)

    @cached_property
    def real(self) -> list[list[int]]:
        return self.w.corpus(REAL, 0)

    @cached_property
    def held(self) -> list[list[int]]:
        return self.w.corpus(HELD, 1)

    @cached_property
    def problems(self) -> dict[str, list]:
        return self.w.tests(PROBLEMS)

    def teach(
        self, params: dict, pools: list, got: mix.Mix, steps: int, seed: int, last: float = 0.0
    ) -> dict:
        """Train on what a mix takes from the pools, a document a row.

        last: fraction of the steps, at the end, on real documents alone.
        """
        docs = [pools[k][i] for k, i in zip(got.generation, got.index, strict=True)]
        rest = self.real if last else []
        rows = scores.pack_documents([*docs, *rest], LENGTH)
        loss_weight = np.append(got.weight, np.ones(len(rest))).astype(np.float32)
        rows = replace(rows, weights=rows.weights * loss_weight[:, None])
        order = mix.order_rows(len(docs), len(rest), steps, self.b.t.train.batch_size, last, seed)
        place = jax.NamedSharding(jax.sharding.get_mesh(), P(None, ROWS))
        batches = {k: jax.device_put(a[order], place) for k, a in vars(rows).items()}
        return updates(self.b.model, replace_train(self.b.t, steps=steps))(params, batches)

    def first(self, seed: int) -> dict:
        """The model of real documents that all arms of a seed start from; a file keeps it."""
        start, got = (
            init_lm(self.b.model, seed),
            mix.compose("replace", [REAL], REAL, np.random.default_rng(seed)),
        )
        make = lambda: self.teach(start, [self.real], got, FIRST, seed)  # noqa: E731
        return load_or_make(self.b, f"first-{self.w.seed}-{seed}-{FIRST}", start, make)

    def sample(
        self, params: dict, prompts: list[list[int]], key: int, how: SamplingParams | None = None
    ) -> list[list[int]]:
        how, asked = how or SamplingParams(), [Prompt(tuple(p)) for p in prompts]
        made = generate.generate_samples(
            self.b.model, params["lm"], asked, key, LENGTH, how, (world.END,), world.END + 1, 512
        )
        return [[*s.prompt.ids, *s.ids] for s in made]

    def nats(self, params: dict, docs: list[list[int]]) -> list[np.ndarray]:
        return scores.ModelScorer(self.b.model, params["lm"], LENGTH, 400).nats(docs)

    def bits(self, params: dict) -> np.ndarray:
        """Bits a token of each held-out document."""
        return np.array([x.mean() for x in self.nats(params, self.held)]) / np.log(2)

    def right(self, params: dict) -> dict[str, np.ndarray]:
        """By kind of problem: the probability of the right answer to each."""
        out = {}
        for kind, asked in self.problems.items():
            nats = self.nats(params, [self.w.solve(*p) for p in asked])
            said = [
                x[2 : 2 * len(p[0]) + 1 : 2].sum() for x, p in zip(nats, asked, strict=True)
            ]  # the digits alone
            out[kind] = np.exp(-np.array(said))
        return out

    def score(self, params: dict) -> dict:
        p = self.right(params)
        found = {"bits": float(self.bits(params).mean())} | {
            k: float(v.mean()) for k, v in p.items()
        }
        novel = np.concatenate([p["pair"], p["deep"]])
        return found | {
            "novel": float(novel.mean()),
            "novel_16": float((1 - (1 - novel) ** 16).mean()),
        }


@lru_cache(maxsize=8)
def updates(c: Model, t: Synthesize) -> Callable[[dict, dict], dict]:
    """All steps of a training as one program: the project's update, scanned over its batches."""
    tx = optim.make_optimizer(t.train, c.dtype)
    step = make_step(next_token_loss(c, 0.0), tx, t.train)

    @jax.jit
    def run(params: dict, batches: dict) -> dict:
        state = init_state(jax.tree.map(lambda a: a + jnp.zeros_like(a), params), tx, 0)
        return jax.lax.scan(step, state, batches)[0].params

    return run


# Reproduction


def refit(lab: Lab, policy: str, m: float, seed: int, generations: int) -> dict:
    """Bits of held-out text by generation, each trained anew from one initialization."""
    pools, params, start = [lab.real], lab.first(seed), init_lm(lab.b.model, seed)
    bits = [float(lab.bits(params).mean())]
    for g in range(1, generations + 1):
        pools.append(lab.sample(params, [[world.BOS]] * REAL, prompts.first_key(seed, g)))
        got = mix.compose(
            policy, [len(p) for p in pools], REAL, np.random.default_rng([seed, g]), m
        )
        params = lab.teach(start, pools, got, FIRST, seed)
        bits.append(float(lab.bits(params).mean()))
    return {"bits": bits}


def gate(lab: Lab) -> None:
    for seed in range(SEEDS):
        for policy in ("replace", "accumulate"):
            key = {"part": "gate", "policy": policy, "seed": seed}
            lab.b.once(key, partial(refit, lab, policy, 0.0, seed, 4))


def law(lab: Lab) -> None:
    """Anchored refits, to compare with the law's forecast from replace alone (`table.law`)."""
    for seed in range(SEEDS):
        for m in (0.2, 0.4):
            key = {"part": "law", "policy": "anchored", "m": m, "seed": seed}
            lab.b.once(key, partial(refit, lab, "anchored", m, seed, 10))


# The claim


@dataclass(frozen=True)
class Arm:
    """What an arm does with a generation's samples."""

    policy: str = "guarded"  # of mix.compose; "real": trains on real documents alone
    m: float = M
    verify: bool = True
    filtered: bool = False  # quality and diversity, without a verifier: likely ones, no two alike
    seeds: bool = True  # samples begin with an operator of the grid: they do not choose it
    second: bool = True  # half of them behind a first step of real text
    # Rivals without a model: programs written from the facts of real text, or from all facts, which
    # the verifier gives away.
    source: Literal["model", "facts", "asked facts"] = "model"
    last: float = (
        Synthesize.final_real_fraction
    )  # share of the steps, at the end, on real documents alone


GUARDED = Arm()
PLAIN = Arm("replace", 0.3, verify=False, seeds=False, last=0.0)
ARMS = {
    "real": replace(PLAIN, policy="real"),
    "replace": PLAIN,
    "accumulate": replace(PLAIN, policy="accumulate"),
    "accumulate + verify": replace(PLAIN, policy="accumulate", verify=True),
    "anchored 30% + verify": replace(PLAIN, policy="anchored", verify=True),
    "anchored 30% + filter": replace(PLAIN, policy="anchored", filtered=True),
    "guarded": GUARDED,
    "guarded - seeds": replace(GUARDED, seeds=False),
    "guarded - second steps": replace(GUARDED, second=False),
    "guarded - verifier": replace(GUARDED, verify=False),
    "guarded - real last": replace(GUARDED, last=0.0),
    "guarded - real text": replace(GUARDED, m=0.0, last=0.0),
    "accumulate + verify + seeds": replace(PLAIN, policy="accumulate", verify=True, seeds=True),
    "real facts recombined": replace(PLAIN, policy="accumulate", source="facts"),
    "all facts, asked of the verifier": replace(PLAIN, policy="accumulate", source="asked facts"),
}


def run_arm(lab: Lab, arm: Arm, seed: int) -> dict:
    t, params = lab.b.t, lab.first(seed)
    curve, pools, weights, kept_share = [lab.score(params)], [lab.real], [], []
    for g in range(1, GENERATIONS + 1):
        rng = np.random.default_rng([seed, g])
        if arm.policy == "real":
            got = mix.compose("replace", [REAL], t.train.steps * t.train.batch_size, rng)
        else:
            shown = lab.real if arm.second else ()
            openings = (
                lab.w.grid(t.num_documents, seed * 100 + g, shown)
                if arm.seeds
                else [[world.BOS]] * t.num_documents
            )
            if arm.source == "model":
                made = lab.sample(params, openings, prompts.first_key(seed, g))
            else:
                made = write_programs(lab, arm, seed * 100 + g)
            good = keep(lab, arm, made, params)
            pools.append([made[i] for i in good])
            weights.append(np.ones(len(good)))
            kept_share.append(len(good) / len(made))
            sizes, slots = (
                [len(p) for p in pools],
                round((1 - arm.last) * t.train.steps) * t.train.batch_size,
            )
            share = (
                max(0.0, (arm.m - arm.last) / (1 - arm.last)) if arm.policy == "guarded" else arm.m
            )
            got = mix.compose(arm.policy, sizes, slots, rng, share, weights=weights, age_decay=1.0)
        params = lab.teach(params, pools, got, t.train.steps, seed * 100 + g, arm.last)
        curve.append(lab.score(params))
    last = {k: curve[-1][k] for k in ("bits", "novel", "novel_16", "tail", "head")}
    return {"curve": curve, "kept": kept_share} | last


def write_programs(lab: Lab, arm: Arm, seed: int) -> list[list[int]]:
    """As many programs as the other arms sample, written from facts."""
    facts = world.read_facts(lab.real)
    if arm.source == "asked facts":
        facts, calls = lab.w.ask_facts(facts)
        print(f"the verifier gave away {len(facts)} facts in {calls} calls")
    return lab.w.recombine(facts, lab.b.t.num_documents, seed)


def keep(lab: Lab, arm: Arm, made: list[list[int]], params: dict) -> np.ndarray:
    """Numbers of the samples that may teach; none of them is of what is tested at the end."""
    ok = [i for i, d in enumerate(made) if (p := world.parse(d)) is None or lab.w.allowed(p[0])]
    if arm.verify:
        ok = [i for i in ok if lab.w.right(made[i])]
    if arm.filtered:
        nats = lab.nats(params, [made[i] for i in ok])
        likely = np.argsort([x.mean() for x in nats])
        seen: set[tuple] = set()
        alone = [
            ok[k] for k in likely if (key := tuple(made[ok[k]])) not in seen and not seen.add(key)
        ]
        ok = alone[: len(made) // 2]
    return np.array(sorted(ok), np.int64)


# Worlds 0 and 1 were looked at while the arms were being written.
WORLDS = (2, 5, 7)
SHORT = (
    "real",
    "accumulate",
    "accumulate + verify",
    "guarded",
    "accumulate + verify + seeds",
    "real facts recombined",
    "all facts, asked of the verifier",
)


def claim(lab: Lab) -> None:
    """The arms in several worlds; what a part of guarded gives, in one."""
    for seed in range(SEEDS):
        for number in WORLDS:
            for name in SHORT:
                run_claim(replace(lab, w=world.World(number)), name, seed)
    for seed in range(SEEDS):
        for name in ARMS:
            run_claim(replace(lab, w=world.World(WORLDS[0])), name, seed)


def run_claim(lab: Lab, name: str, seed: int) -> None:
    """One arm in one world, unless it is done."""
    key = {"part": "claim", "arm": name, "seed": seed, "world": lab.w.seed}
    lab.b.once(key, partial(run_arm, lab, ARMS[name], seed))


# The guard

HOW = {
    "top-k 5": SamplingParams(top_k=5),
    "temperature 0.5": SamplingParams(0.5),
}
INJECTED = ("none", *HOW, "tail-blind verifier", "noisy verifier", "ten documents")


def corruptions(lab: Lab) -> None:
    for seed in range(SEEDS):
        for kind in INJECTED:
            for guarded in (True, False):
                key = {"part": "guard", "kind": kind, "guarded": guarded, "seed": seed}
                lab.b.once(key, partial(run_corruption, lab, kind, guarded, seed))


def run_corruption(lab: Lab, kind: str, guarded: bool, seed: int) -> dict:
    """Three generations of a loop that anchors 30% and verifies, with one thing broken.

    Does the guard see it, and what does the tail lose? Unguarded, the guard's decisions are
    recorded and not carried out.
    """
    t, start = lab.b.t, lab.first(seed)
    drawn = lab.sample(start, [[world.BOS]] * (2 * t.num_measured), prompts.first_key(seed, 0))
    own = Docs.from_lists(drawn)
    models, at, pools, said = [start], CollapseGuard(0.3), [lab.real], []
    tail = [float(lab.right(start)["tail"].mean())]
    for g in range(1, 4):
        parent = models[at.good_generation if guarded else -1]
        docs, passed, seen = corrupt_samples(
            lab, kind, parent, own, np.random.default_rng([seed, g]), prompts.first_key(seed, g)
        )
        now, first_look = guard.judge_samples(at, t.guard, seen)
        now = now if guarded else replace(at, weight=1.0)
        pools.append([d for d, ok in zip(docs, passed, strict=True) if ok and now.weight])
        policy, sizes = ("anchored", [len(p) for p in pools]) if pools[-1] else ("replace", [REAL])
        got = mix.compose(
            policy,
            sizes,
            t.train.steps * t.train.batch_size,
            np.random.default_rng([seed, g, 1]),
            now.real_fraction,
        )
        models.append(lab.teach(parent, pools, got, t.train.steps, seed * 100 + g))
        now_bits, rise = lab.bits(models[-1]), t.guard.max_loss_rise
        differences = guard.compare_bits("first", now_bits, lab.bits(start), rise)
        if parent is not start:
            differences |= guard.compare_bits("good", now_bits, lab.bits(parent), rise)
        new, good = (np.asarray(lab.right(p)["deep"], float) for p in (models[-1], parent))
        fall = np.mean(good) - np.mean(new)
        # Already within [-1, 1]: no scale, no tolerance.
        differences[f"right answers to novel problems fell by {fall:.1%}"] = good - new
        judged, second = guard.judge_model(now, t.guard, TrainingEvidence(differences), g)
        at = judged if guarded else at
        tail.append(float(lab.right(models[at.good_generation if guarded else -1])["tail"].mean()))
        said.append(
            [
                first_look.action,
                "; ".join(first_look.reasons),
                second.action,
                "; ".join(second.reasons),
            ]
        )
        if guarded and second.action == "stop":
            break
    acted = [i + 1 for i, s in enumerate(said) if s[0] == "repair" or s[2] in ("roll back", "stop")]
    return {
        "detected": acted[0] if acted else None,
        "tail": tail,
        "fell": tail[0] - min(tail),
        "said": said,
    }


def corrupt_samples(
    lab: Lab, kind: str, params: dict, own: Docs, rng: np.random.Generator, key: int
) -> tuple[list[list[int]], np.ndarray, SampleEvidence]:
    """(samples, which passed the verifier, the guard's evidence), with this kind of corruption.

    own: samples of the first model.
    """
    t = lab.b.t
    docs = lab.sample(params, [[world.BOS]] * t.num_documents, key, HOW.get(kind))
    docs = (docs[:10] * len(docs))[: len(docs)] if kind == "ten documents" else docs
    truth, passed = (verify_docs(lab, which, docs, rng) for which in ("none", kind))
    audited = np.flatnonzero(passed)[: t.num_audited]  # by the interpreter, the second verifier
    _, precision = clopper_pearson(int(truth[audited].sum()), max(len(audited), 1), 0.9)
    kept = Docs.from_lists([docs[i] for i in np.flatnonzero(passed)[: t.num_measured]])
    held = Docs.from_lists(lab.held)
    figures = partial(measure.measure_sample, held)
    null = Null.resample(own, len(kept), figures, t.num_null_resamples)
    repeats = RepeatCounts(count_repeats(docs), len(docs), count_repeats(own.to_list()), len(own))
    real = lab.real[: t.num_audited]
    of_real = verify_docs(lab, kind, real, rng)
    faults = verify.find_faults(kind, Docs.from_lists(real), of_real, str, t.guard)
    found = null.compare(figures(kept))
    return docs, passed, SampleEvidence(found, repeats, faults, precision, len(kept))


def verify_docs(lab: Lab, kind: str, docs: list, rng: np.random.Generator) -> np.ndarray:
    """Which programs a verifier with this fault accepts."""
    right = np.array([lab.w.right(d) for d in docs])
    if kind == "tail-blind verifier":
        return right & (np.array([world.cell(d) for d in docs]) < lab.w.tail[0])
    return right ^ (rng.random(len(docs)) < 0.2) if kind == "noisy verifier" else right


def count_repeats(docs: list) -> int:
    """Programs that repeat an earlier one."""
    return len(docs) - len({tuple(doc) for doc in docs})
