"""Generations of training on own samples: sample, decide, measure, mix, train, judge.

The loss is that of the next token, weighted by what was decided. Each generation trains as a
sub-stage `synthesize-G` with checkpoints of its own, so a roll-back loads the last good one, and a
killed run goes on inside the generation it was in; so does its control, `synthesize-control-G`, on
real text alone. What happened to a sample is in its ledger row; what the guard did, and why, in
`synth/history.json`. The ideas are in `ramp.synth`; this file wires them.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from ramp import config
from ramp.config import Config, Synthesize
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.files import quote_path, to_json
from ramp.model.loss import chance_loss, next_token_loss
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.synth import decide, ledger, measure, page, prompts, verify
from ramp.synth import guard as guard_rules
from ramp.synth.corpus import DocumentBits, PackedSamples, RealCorpus, TrainingPlan
from ramp.synth.decide import (
    BaseModelReference,
    PanelFigure,
    SampleDecisions,
    SampleFigures,
    Verifiers,
)
from ramp.synth.docs import Docs
from ramp.synth.generate import generate_samples
from ramp.synth.guard import (
    CollapseGuard,
    Decision,
    TrainingEvidence,
    choose_generation,
    compare_bits,
)
from ramp.synth.history import (
    GenerationResult,
    choose_shown,
    count_refusals,
    from_record,
    read_history,
    to_record,
    write_history,
)
from ramp.synth.ledger import LedgerRow
from ramp.synth.prompts import MAX_PROMPT_TOKENS, Prompt, Sample
from ramp.synth.scores import ModelScorer
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.fingerprint import fingerprint
from ramp.train.preemption import Preemption
from ramp.train.processes import map_rows, on_writer
from ramp.train.state import eval_params
from ramp.train.trainer import Trainer
from ramp.user_code import is_user_code


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where there are too few documents."""
    RealCorpus.read(rundir.tokens, c, tokenizer)


def hash_own_files(c: Config) -> str:
    """Of the verifiers and what else is code of the user's."""
    t = c.synthesize
    names = [name for name in (*t.verifiers, t.auditor, t.cells) if is_user_code(name)]
    return verify.hash_files(names) if names else ""


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    """Do the generations that are not done yet; what the report shows of all of them."""
    with stop.together():
        return run_generations(rundir, c, stop)


def run_generations(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    """`run`, while nothing but a poll of `stop` ends it where there are several processes."""
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    real = RealCorpus.read(rundir.tokens, c, tokenizer)
    loop = GenerationLoop(rundir, c, tokenizer, real, stop)
    history = read_history(loop.directory)
    loop.check_code(len(history) + 1)
    # A run that was stopped stays so when it is started again.
    is_stopped = bool(history) and history[-1].decision == "stop"
    if loop.is_guarded and not is_stopped and len(history) < c.synthesize.generations:
        loop.report_verifiers()
    for g in range(len(history) + 1, c.synthesize.generations + 1):
        if history and history[-1].decision == "stop":
            break
        history.append(loop.run_generation(g, history))
        on_writer(partial(loop.record, history))
    # The guard may have gone back behind the newest generation.
    last = choose_model(c.synthesize, history)
    first, final = (loop.measure_bits(loop.load_params(g), real.final) for g in (0, last))
    first_bpb, final_bpb = first.per_byte.mean(), final.per_byte.mean()
    # The guard's documents have chosen it; these have not.
    dearest = (1 + c.synthesize.guard.max_loss_rise) * first_bpb
    if loop.is_guarded and not final_bpb <= dearest:
        print(
            f"synthesize: the model of generation {last} has {final_bpb:.4f} bits per byte on "
            f"documents kept for the end, which is more than {dearest:.4f}: it is not handed back"
        )
        last, final_bpb = 0, first_bpb
    name = f"the model of generation {last}" if last else "the first model"
    print(
        f"synthesize: {name} is handed back: {final_bpb:.4f} bits per byte "
        f"on documents kept for the end, {first_bpb:.4f} before"
    )
    if not last:
        print("synthesize: no generation was better, and none is worth keeping")
    own = loop.compare_samples(last) if last else {}
    if pairs := own.get("distinct_2"):
        print(
            f"synthesize: of the pairs of tokens in samples of its own {pairs.value:.0%} differ, "
            f"{pairs.null:.0%} in those of the first model (z {pairs.z:+.1f})"
        )
    report = SynthesizeReport(
        policy=c.synthesize.policy,
        generation=last,
        first_bpb=first_bpb,
        final_bpb=final_bpb,
        own_samples=own,
        generations=[to_record(result) for result in history],
        seconds=time.perf_counter() - began,
    )
    return asdict(report)


def choose_model(t: Synthesize, history: Sequence[GenerationResult]) -> int:
    """The generation that is handed back; 0: the first model. A baseline's is its last."""
    if t.policy != "guarded":
        return history[-1].generation
    good = history[-1].guard.good_generation
    bits = {0: history[-1].first_bpb}
    bits |= {h.generation: h.bpb for h in history if h.guard.good_generation == h.generation}
    stopped = history[-1].decision == "stop"
    return choose_generation(stopped, good, bits, t.guard.max_loss_rise)


@dataclass(frozen=True)
class SynthesizeReport:
    """What the report of a run shows of the stage."""

    policy: str
    generation: int  # whose model is handed back; 0: the first
    first_bpb: float  # of the first model, on the documents kept for the end
    final_bpb: float
    own_samples: dict[str, PanelFigure]  # its own, against the first model's; of the first: nothing
    generations: list[dict]  # records of history.json
    seconds: float


@dataclass(frozen=True)
class GenerationLoop:
    """Generations of one run."""

    rundir: RunDir
    c: Config
    tokenizer: Tokenizer
    real: RealCorpus
    stop: Preemption

    @property
    def t(self) -> Synthesize:
        """The settings of the stage."""
        return self.c.synthesize

    @property
    def is_guarded(self) -> bool:
        """Whether samples are selected, weighed and guarded; the baselines take what comes."""
        return self.t.policy == "guarded"

    @property
    def directory(self) -> Path:
        """Where ledgers and history are."""
        return self.rundir.path / "synth"

    @cached_property
    def identity(self) -> str:
        """What a ledger must agree with to be of this run."""
        settings = config.identity(self.t)  # without the number of generations
        model = restore.model_identity(self.c.model)
        return config.fingerprint(self.c.seed, settings, model, self.tokenizer.fingerprint)

    # Models

    def load_params(self, g: int) -> dict:
        """The model of a generation; 0: the one that the stage starts from."""
        if g == 0:
            return restore.load_start(self.rundir, self.t.start_stage, self.c, self.tokenizer)
        return restore.load_params(self.rundir, f"synthesize-{g}", self.c, self.tokenizer)

    def make_scorer(self, params: dict) -> ModelScorer:
        """A model that scores documents as long as samples."""
        return ModelScorer(self.c.model, params["lm"], self.t.max_new_tokens)

    def measure_bits(self, params: dict, docs: list[np.ndarray]) -> DocumentBits:
        """Bits of documents under a model."""
        return self.real.measure_bits(self.make_scorer(params), docs)

    @cached_property
    def base(self) -> BaseModelReference:
        """The first model with its own samples, which are never truncated, at temperature 1."""
        params = self.load_params(0)
        empty = [Prompt((self.tokenizer.bos,))] * (2 * self.t.num_measured)
        samples = self.sample(params, empty, 0, SamplingParams())
        return BaseModelReference.measure(self.real, self.make_scorer(params), samples)

    @cached_property
    def verifiers(self) -> Verifiers:
        """The verifiers, and how they do on real documents."""
        return Verifiers(self.base, map_rows)

    def report_verifiers(self) -> None:
        """Say what they do to real documents, before anything is learned from them."""
        for report in self.verifiers.reports:
            print(f"synthesize: {report}; {report.milliseconds:.1f} ms a text")
            if report.refusal:
                print(f"synthesize: the first refusal of a real document: {report.refusal}")

    @cached_property
    def code(self) -> str:
        """A fingerprint of the user's own files."""
        t = self.t
        return verify.hash_files((*t.verifiers, t.auditor, t.cells))

    def check_code(self, generations: int) -> None:
        """Raise `UserError` where a user's file has changed since a ledger was written."""
        for g in range(1, generations + 1):
            if not ledger.ledger_path(self.directory, g).exists():
                continue
            _, facts = ledger.read_ledger(self.directory, g, self.identity)
            if facts.get("code", self.code) != self.code:
                raise UserError(
                    f"the verifiers, auditor or cells were edited after generation {g} was "
                    "decided with them: put the old files back, or begin the generations again "
                    f"with `ramp synthesize {quote_path(self.rundir.path)} --force`"
                )

    @cached_property
    def base_bits(self) -> DocumentBits:
        """Of the guard's documents, under the first model."""
        return self.real.measure_bits(self.base.scorer, self.real.guard)

    # One generation

    def run_generation(self, g: int, history: list[GenerationResult]) -> GenerationResult:
        """Sample, unless the ledger is there; train on it, and judge the model."""
        t = self.t
        guard = CollapseGuard(t.real_fraction, t.rare_fraction)
        if history:
            guard = history[-1].guard
        # Before other models are in memory.
        control_bits = self.measure_control(guard.depth + 1)
        # After a roll-back, the newest generation is not the one to start from.
        parent = guard.good_generation
        parent_params = self.load_params(parent)
        if not ledger.ledger_path(self.directory, g).exists():
            self.write_samples(g, guard, parent_params, history)
        # A run that was killed after this point goes on from the ledger.
        rows, facts = ledger.read_ledger(self.directory, g, self.identity)
        # It holds the guard as the samples left it, with their repair.
        guard = from_record(CollapseGuard, json.loads(facts["guard"]))
        figures = from_record(SampleFigures, json.loads(facts["figures"]))

        plan = self.build_plan(guard, history, rows)
        params = self.train(f"synthesize-{g}", self.c, plan, parent_params)
        # All models are compared on the same documents, paired.
        bits = self.measure_bits(params, self.real.guard)
        parent_bits = None
        if parent:
            parent_bits = self.measure_bits(parent_params, self.real.guard)
        after, decision = self.judge(g, guard, bits, parent_bits, control_bits)
        result = GenerationResult(
            generation=g,
            parent=parent,
            bpb=bits.per_byte.mean(),
            first_bpb=self.base_bits.per_byte.mean(),
            control_bpb=control_bits.per_byte.mean() if control_bits else None,
            rare_bits=mean_or_none(bits.rare),
            first_rare_bits=mean_or_none(self.base_bits.rare),
            hard_bits=measure.hard_documents(self.base_bits.per_token, bits.per_token),
            real_fraction=float((plan.generation == 0).mean()),
            kept=sum(row.decision == "kept" for row in rows),
            sampled=len(rows),
            before=facts["decision"],
            decision=decision.action,
            reasons=list(decision.reasons),
            refusals=count_refusals(rows),
            shown=choose_shown(rows),
            figures=figures,
            guard=after,
        )
        print(f"synthesize: {result}")
        return result

    def judge(
        self,
        g: int,
        guard: CollapseGuard,
        bits: DocumentBits,
        parent: DocumentBits | None,
        control: DocumentBits | None,
    ) -> tuple[CollapseGuard, Decision]:
        """The guard after training, and its decision; a baseline goes on, whatever comes."""
        if not self.is_guarded:
            return replace(guard, good_generation=g), Decision("go")
        limits, first = self.t.guard, self.base_bits
        rise = limits.max_loss_rise
        worse = compare_bits("bits against the first model", bits.per_byte, first.per_byte, rise)
        worse |= compare_bits(
            "bits of rare tokens against the first model",
            bits.rare,
            first.rare,
            limits.max_tail_loss_rise,
        )
        if parent:
            worse |= compare_bits(
                "bits against the last good model", bits.per_byte, parent.per_byte, rise
            )
        behind = {}
        if control:
            behind = compare_bits(
                "bits against real text alone",
                bits.per_byte,
                control.per_byte,
                limits.max_control_rise,
            )
        return guard_rules.judge_model(guard, limits, TrainingEvidence(worse, behind), g)

    def measure_control(self, depth: int) -> DocumentBits | None:
        """Bits under a model that saw real text alone in so many generations; None: no control."""
        if not (self.is_guarded and self.t.control):
            return None
        start = self.load_params(0)
        if depth > 1:
            name = f"synthesize-control-{depth - 1}"
            start = restore.load_params(self.rundir, name, self.c, self.tokenizer)
        c = replace(self.c, synthesize=replace(self.t, policy="anchored"))
        plan = TrainingPlan.build(c, self.real, [self.pack([], [])], [0.0], 1.0, 0.0)
        params = self.train(f"synthesize-control-{depth}", c, plan, start)
        return self.measure_bits(params, self.real.guard)

    # Samples

    @property
    def sampling(self) -> SamplingParams:
        """How samples to train on are drawn."""
        t = self.t
        return SamplingParams(t.temperature, t.top_k, min_p=t.min_p)

    def make_prompts(self, g: int) -> list[Prompt]:
        """Those that begin from nothing first, then rare passages and pairs of names."""
        t, bos = self.t, self.tokenizer.bos
        rng = np.random.default_rng([self.c.seed, g])  # a killed run makes the same prompts again
        num_seeded = round(t.seeded_fraction * t.num_documents) if self.is_guarded else 0
        texts = [self.tokenizer.decode(d) for d in self.real.train]
        # Half are pairs of names; where the text has no names, rare passages take their places.
        pairs = []
        for text, parents in prompts.entity_pairs(texts, num_seeded // 2, rng):
            ids = self.tokenizer.encode(text)[:MAX_PROMPT_TOKENS]
            pairs.append(Prompt((bos, *ids), parents))
        rare = prompts.rare_contexts(
            self.real.train, self.real.count_v, num_seeded - len(pairs), rng, bos
        )
        num_plain = t.num_documents - len(pairs) - len(rare)
        return [Prompt((bos,))] * num_plain + rare + pairs

    def sample(
        self, params: dict, prompts_: list[Prompt], g: int, sampling: SamplingParams
    ) -> list[Sample]:
        """Samples of a generation, with its keys."""
        return generate_samples(
            self.c.model,
            params["lm"],
            prompts_,
            prompts.first_key(self.c.seed, g),
            self.t.max_new_tokens,
            sampling,
            (self.tokenizer.bos,),
            self.tokenizer.vocab_size,
            check=partial(self.stop.check, 0),
        )

    def compare_samples(self, g: int) -> dict[str, PanelFigure]:
        """The figures of what a model says by itself, at temperature 1, against the first model.

        The samples of a generation are those of the model before it, at the temperature that was
        asked for: neither tells what became of the last model.
        """
        prompts_ = [Prompt((self.tokenizer.bos,))] * self.t.num_measured
        fresh = self.t.generations + 1  # keys that no generation has had
        samples = self.sample(self.load_params(g), prompts_, fresh, SamplingParams())
        return self.base.compare(Docs.from_lists([s.document(self.tokenizer.bos) for s in samples]))

    def write_samples(
        self, g: int, guard: CollapseGuard, params: dict, history: list[GenerationResult]
    ) -> None:
        """Sample, decide, let the guard judge, and write it all into the ledger."""
        prompts_ = self.make_prompts(g)
        samples = self.sample(params, prompts_, g, self.sampling)
        # They come first, and only they are measured.
        num_plain = sum(len(prompt.ids) == 1 for prompt in prompts_)
        scorer = self.make_scorer(params)
        pool = self.collect_pool(history)
        decisions = decide.decide(self.verifiers, scorer, samples, pool, num_plain)
        if self.is_guarded:
            guard, decision = guard_rules.judge_samples(guard, self.t.guard, decisions.evidence)
        else:
            guard, decision = replace(guard, weight=1.0), Decision("go")
        writer = config.fingerprint(fingerprint(params))  # names the weights in the ledger
        rows = self.make_rows(g, guard, samples, decisions, writer)
        # The plan depends on the rows' weights alone, so it can tell them where they are used.
        plan = self.build_plan(guard, history, rows)
        for i, steps in enumerate(plan.find_steps(g, len(rows))):
            if rows[i].weight > 0:
                rows[i] = replace(rows[i], steps=steps)
        facts = {
            "guard": to_json(to_record(guard)),
            "figures": to_json(to_record(decisions.figures)),
            "decision": str(decision),
            "code": self.code,
        }
        on_writer(lambda: ledger.write_ledger(self.directory, g, rows, self.identity, facts))

    def collect_pool(self, history: list[GenerationResult]) -> Docs:
        """The documents of earlier generations that were trained on."""
        bos = self.tokenizer.bos
        docs = []
        for rows in self.read_ledgers(history):
            for row in rows:
                if row.weight > 0:
                    docs.append([i for i in (*row.prompt, *row.tokens) if i != bos])
        return Docs.from_lists(docs)

    def make_rows(
        self,
        g: int,
        guard: CollapseGuard,
        samples: list[Sample],
        decisions: SampleDecisions,
        writer: str,
    ) -> list[LedgerRow]:
        """The ledger rows of a generation; the steps that use them are not known yet."""
        rows = []
        for i, sample in enumerate(samples):
            document = sample.document(self.tokenizer.bos)
            # Bits per token become nats of the whole document.
            first_nats = decisions.first_bits[i] * math.log(2) * len(document)
            reason = decisions.reasons[i]
            verdict = not reason  # of the sample itself, whatever the guard decided
            if not reason and not guard.weight:
                reason = "the guard dropped its generation's weight"
            row = LedgerRow(
                id=f"g{g}-{i:05d}",
                generation=g,
                parents=list(sample.prompt.parents),
                generator=writer,
                prompt=list(sample.prompt.ids),
                key=sample.key,
                temperature=self.t.temperature,
                top_k=self.t.top_k,
                min_p=self.t.min_p,
                tokens=list(sample.ids),
                text=self.tokenizer.decode(document),
                logp=sample.logp,
                logp_first=-first_nats,
                verdict=verdict,
                cell=decisions.cell[i],
                weight=guard.weight if verdict else 0.0,
                decision="kept" if verdict else "dropped",
                reason=reason,
                steps=[],
            )
            rows.append(row)
        return rows

    # Training

    def read_ledgers(self, history: list[GenerationResult]) -> list[list[LedgerRow]]:
        """The ledgers of the generations that are done."""
        return [ledger.read_ledger(self.directory, h.generation, self.identity)[0] for h in history]

    def pack(self, docs: list[list[int]], weights: list[float]) -> PackedSamples:
        """Documents as rows to train on."""
        return PackedSamples.pack(docs, weights, self.t.train.seq_len, self.tokenizer.bos)

    def build_plan(
        self, guard: CollapseGuard, history: list[GenerationResult], newest: list[LedgerRow]
    ) -> TrainingPlan:
        """What the newest generation is trained on: real rows, and weighted samples of all."""
        packed = []
        for rows in [*self.read_ledgers(history), newest]:
            # Without the bos of the prompt: packing puts one between documents.
            docs = [[*row.prompt[1:], *row.tokens] for row in rows]
            packed.append(self.pack(docs, [row.weight for row in rows]))
        # The samples of a generation that was rolled back are not used again.
        weights = [0.0 if h.decision == "roll back" else 1.0 for h in history]
        weights.append(guard.weight)
        return TrainingPlan.build(
            self.c, self.real, packed, weights, guard.real_fraction, guard.rare_fraction
        )

    def train(self, name: str, c: Config, plan: TrainingPlan, start: dict) -> dict:
        """Train by a plan from the weights `start`, or from the sub-stage's last checkpoint."""
        t = c.synthesize.train
        # A generation is judged at its end, by the guard, and not while it trains.
        t = replace(t, eval_every=t.steps, save_every=min(t.save_every, t.steps))
        loss = next_token_loss(c.model, t.z_loss)
        chance = chance_loss(c.model)
        trainer = Trainer(name, c, t, loss, plan, self.tokenizer, chance=chance)

        def copy_start():
            # Training donates the arrays that it starts from, and `start` is still needed.
            return jax.tree.map(lambda a: a + 0, start)

        state, _ = trainer.train(self.rundir, copy_start, lambda *_: {}, "", self.stop)
        return eval_params(state)

    # Logs

    def record(self, history: list[GenerationResult]) -> None:
        """Log the newest generation, and write the page and the history."""
        self.log(history[-1])
        page.write(self.rundir.path, history)
        # Last: killed before this, the generation is judged and logged again.
        write_history(self.directory, history)

    def log(self, result: GenerationResult) -> None:
        """Figures of a generation for TensorBoard."""
        figures = result.figures
        values = vars(result) | vars(figures)
        for name, figure in figures.panel.items():
            values[f"z/{name}"] = figure.z
            values[f"ratio/{name}"] = figure.ratio
        # What was not finite in the ledger is None, and no number.
        scalars = {f"synth/{name}": x for name, x in values.items() if isinstance(x, int | float)}
        g = result.generation
        with MetricWriter(self.rundir.path, "synthesize", g, True) as writer:
            writer.scalars(g, scalars)
            writer.text(g, "synth/guard", f"{result.before}; then {result.after}")
            writer.figure(g, "synth/surprisal", page.plot_surprisal(figures.histogram))


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean; None where there are no values."""
    return values.mean() if len(values) else None
