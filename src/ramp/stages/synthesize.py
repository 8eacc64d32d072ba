"""Generations: sample, decide, measure, mix, train, judge. One loss, the next token's, weighted by what was decided.

Each generation trains as a sub-stage `synthesize-G` with checkpoints of its own, so a roll-back is a load of the last good
one, and a killed run goes on inside the generation it was in. What happened to a sample is in its ledger row; what the
guard did, and why, in `synth/history.json`. The ideas are in `ramp.synth`; this file wires them.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from ramp import config
from ramp.config import Config, Synthesize
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.model.loss import next_token_loss
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.synth import decide, drift, generate, guard, ledger, measure, mix, page
from ramp.synth.corpus import Bits, PackedSamples, RealCorpus, TrainingPlan
from ramp.synth.generate import Prompt, Sample
from ramp.synth.guard import CollapseGuard, Trained
from ramp.synth.measure import Docs
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore, trainer
from ramp.train.fingerprint import fingerprint
from ramp.train.preemption import Preemption
from ramp.train.state import eval_params


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    began, t = time.perf_counter(), c.synthesize
    require(c)
    tokenizer = Tokenizer.load(rundir.tokenizer)
    loop = Loop(rundir, c, tokenizer, RealCorpus.read(rundir, c, tokenizer), stop)
    history = loop.history()
    for g in range(len(history) + 1, t.generations + 1):
        if history and history[-1]["decision"] == "stop":
            break
        history = [*history, loop.generation(g, history)]
        write_atomic(loop.directory / "history.json", json.dumps(history, indent=1) + "\n")
        loop.show(history)
    last = history[-1]["guard"]["good"]
    first, now = (
        float(loop.real.bits(loop.params(g), loop.real.final).per_byte.mean()) for g in (0, last)
    )
    at_end = f"{now:.4f} bits per byte on documents kept for the end, {first:.4f} before"
    print(f"synthesize: model of generation {last}: {at_end}")
    found = {
        "policy": t.policy,
        "generation": last,
        "first_bpb": first,
        "final_bpb": now,
        "generations": history,
    }
    return found | {"seconds": time.perf_counter() - began}


def require(c: Config) -> None:
    t = c.synthesize
    if jax.process_count() > 1:
        raise UserError(
            "synthesize runs in one process so far; use one host, with any number of devices"
        )
    if t.num_documents * (1 - t.seeded_fraction) < t.num_measured:
        raise UserError(
            f"synthesize.num_measured is {t.num_measured}, but only documents x (1 - seeded) = {t.num_documents * (1 - t.seeded_fraction):g} "
            "samples begin from nothing; raise synthesize.num_documents"
        )
    if t.policy == "guarded" and len(t.verifiers) < 2:
        raise UserError(
            f"synthesize.verifiers names {len(t.verifiers)}; it takes two that differ, since each is blind somewhere"
        )
    if t.max_new_tokens + generate.LONGEST_SEED >= c.model.context_len:
        raise UserError(
            f"synthesize.max_new_tokens {t.max_new_tokens} and a seed do not fit into model.context_len {c.model.context_len}"
        )
    rows = int(np.prod([jax.sharding.get_mesh().shape[axis] for axis in ("replica", "data")]))
    if t.train.batch_size % (rows * t.train.grad_accum_steps):
        raise UserError(
            f"synthesize.train.batch_size {t.train.batch_size} does not divide over {rows} devices x {t.train.grad_accum_steps} microbatches"
        )


@dataclass(frozen=True)
class Loop:
    rundir: RunDir
    c: Config
    tokenizer: Tokenizer
    real: RealCorpus
    stop: Preemption

    @property
    def t(self) -> Synthesize:
        return self.c.synthesize

    @property
    def directory(self) -> Path:
        return self.rundir.path / "synth"

    @property
    def name(self) -> str:
        """What a ledger must agree with to be of this run."""
        t = config.identity(self.t)
        del t["generations"]  # more of them go on with the same run
        return config.fingerprint(
            self.c.seed, t, restore.model_identity(self.c.model), self.tokenizer.fingerprint
        )

    @property
    def how(self) -> SamplingParams:
        return SamplingParams(self.t.temperature, self.t.top_k, min_p=self.t.min_p)

    def history(self) -> list[dict]:
        path = self.directory / "history.json"
        try:
            return json.loads(path.read_text()) if path.exists() else []
        except ValueError as error:
            said = f"{path} is not JSON ({error}); delete {self.directory} to begin the generations again"
            raise UserError(said) from None

    def params(self, g: int) -> dict:
        """The model of a generation; 0: the one that the stage starts from."""
        stage = self.t.start_stage if g == 0 else f"synthesize-{g}"
        return restore.load_params(self.rundir, stage, self.c, self.tokenizer)

    def draw(
        self, params: dict, prompts: list[Prompt], g: int, how: SamplingParams
    ) -> list[Sample]:
        key = generate.first_key(self.c.seed, g)
        return generate.generate_samples(
            self.c.model,
            params["lm"],
            prompts,
            key,
            self.t.max_new_tokens,
            how,
            (self.tokenizer.bos,),
            self.tokenizer.vocab_size,
        )

    @cached_property
    def first(self) -> decide.BaseModelReference:
        """The first model with its own samples, twice as many as are measured, always at temperature 1 and uncut."""
        params = self.params(0)
        made = self.draw(
            params,
            [Prompt((self.tokenizer.bos,))] * (2 * self.t.num_measured),
            0,
            SamplingParams(),
        )
        return decide.BaseModelReference.look(self.real, params, made)

    @cached_property
    def first_bits(self) -> Bits:
        return self.real.bits(self.first.params, self.real.guard)

    # ---- one generation
    def generation(self, g: int, history: list[dict]) -> dict:
        """All that is known of generation g, and the guard as it leaves it."""
        t = self.t
        begin = (
            CollapseGuard(**history[-1]["guard"])
            if history
            else CollapseGuard(t.real_fraction or self.anchor(), t.rare_fraction)
        )
        model = self.params(begin.good)
        if not ledger.path(self.directory, g).exists():
            self.sample(g, begin, model, history)
        rows, facts = ledger.read(self.directory, g, self.name)
        now, figures, said = (
            CollapseGuard(**json.loads(facts["guard"])),
            json.loads(facts["figures"]),
            facts["decision"],
        )
        new = self.fit(f"synthesize-{g}", self.c, self.lesson(now, history, rows), model)
        new_bits, first_bits = self.real.bits(new, self.real.guard), self.first_bits
        old_bits = self.real.bits(model, self.real.guard) if begin.good else first_bits
        kept, used = [r for r in rows if r["decision"] == "kept"], now.weight > 0
        rise = float(new_bits.per_token.mean() - old_bits.per_token.mean())
        tokens = sum(len(r["tokens"]) for r in kept) * used
        known = (
            -np.log2(max(len(kept), 1) / max(len(rows), 1))
            * figures["precision"]
            * len(kept)
            * used
        )
        accounts = {
            "verifier": float(known),
            "real": max(0.0, -rise) * tokens,
            "lost": max(0.0, rise) * tokens,
        }
        after, verdict = (
            replace(now, good=g),
            guard.Decision("go", ()),
        )  # a baseline goes on, whatever comes
        if t.policy == "guarded":
            pairs = [(getattr(new_bits, k), getattr(old_bits, k)) for k in ("per_byte", "rare")]
            bits_in = (
                accounts["verifier"] + accounts["real"] if used else 1.0
            )  # real text alone is no poverty
            after, verdict = guard.judge_model(
                now, t, Trained(*pairs, bits_in=bits_in, bits_lost=accounts["lost"]), g
            )
            excess = float(new_bits.per_byte.mean() - first_bits.per_byte.mean())
            drifted = verdict.action == "go" and excess > 0 and now.m < 1
            if drifted and not t.real_fraction:  # the law again, from what was seen
                d1 = excess / drift.excess_loss(1.0, now.m, g)
                after = replace(
                    after,
                    m=max(after.m, mix.real_fraction(d1, t.drift_tolerance, t.min_real_fraction)),
                )
        found = {
            "generation": g,
            "parent": begin.good,
            "bpb": float(new_bits.per_byte.mean()),
            "first_bpb": float(first_bits.per_byte.mean()),
            "rare_bits": float(new_bits.rare.mean()) if len(new_bits.rare) else None,
            "first_rare_bits": float(first_bits.rare.mean()) if len(first_bits.rare) else None,
            "hard_bits": measure.hard_documents(first_bits.per_token, new_bits.per_token),
            "m": now.m,
            "kept": len(kept),
            "sampled": len(rows),
            "before": said,
            "decision": verdict.action,
            "reasons": list(verdict.reasons),
            "accounts": accounts,
            "figures": figures,
            "guard": asdict(after),
        }
        print(
            f"synthesize: generation {g}: {found['bpb']:.4f} bits per byte ({found['first_bpb']:.4f} at first), kept "
            f"{len(kept)} of {len(rows)}, real share {now.m:.2f}; {said}; then {verdict.action} {'; '.join(verdict.reasons)}"
        )
        return finite(found)

    def anchor(self) -> float:
        """The real share by the drift law; its constant, what a generation on own samples alone costs, from two branches."""
        t = self.t
        if t.policy != "guarded" or not t.drift_probe_steps:
            return mix.real_fraction(t.drift_tolerance, t.drift_tolerance, t.min_real_fraction)
        start = self.params(0)
        docs = [
            decide.body(s, self.tokenizer.bos)
            for s in self.draw(start, self.prompts(1), 1, self.how)
        ]
        made = [PackedSamples.pack(docs, [1.0] * len(docs), t.train.seq_len, self.tokenizer.bos)]
        cost = {}
        for name, m in (("own", 0.0), ("real", 1.0)):
            short = replace(
                self.c,
                synthesize=config.replace_train(
                    replace(t, policy="anchored"), steps=t.drift_probe_steps
                ),
            )
            lesson = TrainingPlan.plan(short, self.real, made, [1.0], m, 0.0, self.c.seed)
            trained = self.fit(f"synthesize-probe-{name}", short, lesson, start)
            cost[name] = float(self.real.bits(trained, self.real.guard).per_byte.mean())
        d1 = cost["own"] - cost["real"]
        m = mix.real_fraction(d1, t.drift_tolerance, t.min_real_fraction)
        print(
            f"synthesize: {t.drift_probe_steps} steps on own samples cost {d1:+.4f} bits per byte; real share {m:.2f}"
        )
        return m

    def prompts(self, g: int) -> list[Prompt]:
        """Those that begin from nothing first, then rare passages and pairs of names."""
        t, bos = self.t, self.tokenizer.bos
        rng = np.random.default_rng([self.c.seed, g])
        seeded = round(t.seeded_fraction * t.num_documents) if t.policy == "guarded" else 0
        texts = [self.tokenizer.decode(d) for d in self.real.train] if seeded > 1 else []
        named = generate.entity_pairs(texts, seeded // 2, rng)
        pairs = [
            Prompt((bos, *self.tokenizer.encode(text)[: generate.LONGEST_SEED]), of)
            for text, of in named
        ]
        rare = generate.rare_contexts(
            self.real.train, self.real.count_v, seeded - len(pairs), rng, bos
        )
        return [Prompt((bos,))] * (t.num_documents - len(pairs) - len(rare)) + rare + pairs

    def sample(self, g: int, begin: CollapseGuard, model: dict, history: list[dict]) -> None:
        """Draw, decide, let the guard have its first look, and write it all down."""
        t, bos = self.t, self.tokenizer.bos
        prompts = self.prompts(g)
        made = self.draw(model, prompts, g, self.how)
        plain = sum(len(p.ids) == 1 for p in prompts)
        taught = [r for rows in self.rows(history) for r in rows if r["weight"] > 0]
        pool = Docs.of([[i for i in (*r["prompt"], *r["tokens"]) if i != bos] for r in taught])
        found = decide.decide(self.real, self.first, model, made, pool, plain)
        if t.policy == "guarded":
            now, said = guard.judge_samples(begin, t, found.seen)
        else:  # a baseline takes what comes
            found = replace(
                found,
                weight=np.ones(len(made)),
                kept=np.ones(len(made), bool),
                reasons=[""] * len(made),
            )
            now, said = replace(begin, weight=1.0), guard.Decision("go", ())
        writer = config.fingerprint(fingerprint(model))
        rows = [
            {
                "id": f"g{g}-{i:05d}",
                "generation": g,
                "parents": list(s.prompt.parents),
                "generator": writer,
                "prompt": list(s.prompt.ids),
                "key": s.key,
                "temperature": t.temperature,
                "top_k": t.top_k,
                "min_p": t.min_p,
                "tokens": list(s.ids),
                "text": self.tokenizer.decode(decide.body(s, bos)),
                "logp": s.logp,
                "logp_first": -float(found.first_bits[i]) * np.log(2) * len(decide.body(s, bos)),
                "verdict": not found.reasons[i],
                "cell": int(found.cell[i]),
                "weight": float(found.weight[i] * now.weight),
                "decision": "kept" if found.kept[i] else "dropped",
                "reason": found.reasons[i]
                or ("" if now.weight else "the guard dropped its generation's weight"),
                "steps": [],
            }
            for i, s in enumerate(made)
        ]
        lesson = self.lesson(now, history, rows)
        for row, steps in zip(rows, lesson.steps(g, len(rows)), strict=True):
            row["steps"] = steps if row["weight"] > 0 else []
        told = f"{said.action} {'; '.join(said.reasons)}".strip()
        facts = {
            "guard": json.dumps(asdict(now)),
            "figures": json.dumps(finite(found.figures)),
            "decision": told,
        }
        ledger.write(self.directory, g, rows, self.name, facts)

    def rows(self, history: list[dict]) -> list[list[dict]]:
        """The ledgers of the generations that are done."""
        return [ledger.read(self.directory, h["generation"], self.name)[0] for h in history]

    def lesson(self, now: CollapseGuard, history: list[dict], newest: list[dict]) -> TrainingPlan:
        """The rows that the newest generation learns from: real ones and every generation's samples with their weights."""
        made = []
        for rows in [*self.rows(history), newest]:
            docs = [[*r["prompt"][1:], *r["tokens"]] for r in rows]
            made.append(
                PackedSamples.pack(
                    docs, [r["weight"] for r in rows], self.t.train.seq_len, self.tokenizer.bos
                )
            )
        live = [
            float(h["decision"] != "roll back") for h in history
        ]  # what spoiled a generation teaches nobody again
        return TrainingPlan.plan(
            self.c, self.real, made, [*live, now.weight], now.m, now.rare, self.c.seed
        )

    def fit(self, name: str, c: Config, lesson: TrainingPlan, start: dict) -> dict:
        """Train on a lesson from the weights `start`, or go on from the last checkpoint of the sub-stage `name`."""
        s = c.synthesize
        t = replace(
            s.train, eval_every=s.train.steps, save_every=min(s.train.save_every, s.train.steps)
        )
        stage = trainer.Trainer(
            name, c, t, next_token_loss(c.model, t.z_loss), lesson, self.tokenizer
        )
        copy = lambda: jax.tree.map(lambda a: a + 0, start)  # noqa: E731  the stage donates what it starts from
        state, _ = stage.train(self.rundir, copy, lambda *_: {}, "", self.stop)
        return eval_params(state)

    # ---- what is seen
    def show(self, history: list[dict]) -> None:
        h, f = history[-1], history[-1]["figures"]
        with MetricWriter(self.rundir.path, "synthesize", h["generation"], True) as board:
            values = {k: h[k] for k in ("bpb", "first_bpb", "rare_bits", "hard_bits", "kept")} | {
                "real_share": h["m"]
            }
            values |= {k: f[k] for k in ("acceptance", "imbalance", "precision", "ess", "cross")}
            values |= {f"bits_{k}": v for k, v in h["accounts"].items()}
            values |= {
                f"{kind}/{k}": v[kind] for k, v in f["panel"].items() for kind in ("z", "ratio")
            }
            board.scalars(
                h["generation"], {f"synth/{k}": v for k, v in values.items() if v is not None}
            )
            board.text(
                h["generation"],
                "synth/guard",
                f"{h['before']}; then {h['decision']} {'; '.join(h['reasons'])}",
            )
            board.figure(h["generation"], "synth/surprisal", page.surprisal(f["histogram"]))
        page.write(self.rundir.path, history)


def finite(value):
    """JSON has no nan: such a figure is null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
