"""What is decided about candidates before any of them teaches: verdicts, figures, and the evidence
for the guard. No jax: models come in as scorers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy import ndarray

from ramp.nines.intervals import clopper_pearson
from ramp.synth import guard, measure, select, verify
from ramp.synth.corpus import RealCorpus, Scorer
from ramp.synth.docs import Docs
from ramp.synth.guard import RepeatCounts, SampleEvidence
from ramp.synth.measure import Comparison, Null, SurprisalShift
from ramp.synth.prompts import Sample
from ramp.synth.similar import find_near_duplicates
from ramp.synth.verify import VerifierReport, precision_bound

# function(texts), a result for each; see `train.processes`.
MapRows = Callable[[Callable[[Sequence[str]], list], Sequence[str]], list]

NUM_PAIRS = 32  # samples of which each is asked what it tells about the next
MIN_JUDGED = 8  # accepted samples, below which there is no figure


@dataclass(frozen=True)
class BaseModelReference:
    """The first model, frozen, and its samples; later samples are compared with them."""

    real: RealCorpus
    scorer: Scorer
    bits_d: ndarray  # per token, of the real training openings
    samples: Docs
    sketch_nd: ndarray  # features of the gradients of its samples
    repeats: int  # of its samples nearly repeat another
    nulls: dict[int, tuple[Null, Null]]  # by number of samples: of its samples, of real text

    @classmethod
    def measure(
        cls, real: RealCorpus, scorer: Scorer, samples: Sequence[Sample]
    ) -> "BaseModelReference":
        """samples: its own, begun from nothing, twice as many as are measured."""
        own = Docs.from_lists([s.document(real.tokenizer.bos) for s in samples])
        repeats = count_repeats(own, real.c.synthesize.dedup_threshold)
        bits_d = real.measure_bits(scorer, real.train).per_token
        sketch_nd = scorer.gradients(real.with_bos(own.to_list()))
        return cls(real, scorer, bits_d, own, sketch_nd, repeats, {})

    def compare(self, sample: Docs) -> dict[str, "PanelFigure"]:
        """Every figure of a sample, against as many of the model's, and as many real documents."""
        n = len(sample)
        if n < MIN_JUDGED:
            return {}
        if n not in self.nulls:
            self.nulls[n] = self._resample(n)
        sketch_nd = self.scorer.gradients(self.real.with_bos(sample.to_list()))
        figures = measure_with_gradients(self.guard_docs, sample, sketch_nd)
        own, of_real = (null.compare(figures) for null in self.nulls[n])
        panel = {name: PanelFigure(**vars(figure)) for name, figure in own.items()}
        for name, figure in of_real.items():
            panel[name] = replace(panel[name], real=figure.null, z_real=figure.z)
        return panel

    @cached_property
    def guard_docs(self) -> Docs:
        """Held-out real documents that figures refer to."""
        return Docs.from_lists(self.real.guard)

    def _resample(self, n):
        """The figures of as many samples of the first model, and of as many real documents."""
        k, seed = self.real.c.synthesize.num_null_resamples, self.real.c.seed

        def measure_own(rows):
            return measure_with_gradients(
                self.guard_docs, self.samples.take(rows), self.sketch_nd[rows]
            )

        def measure_real(docs):
            return measure.measure_sample(self.guard_docs, docs)

        own = Null.resample(np.arange(len(self.samples)), n, measure_own, k, seed)
        # Real text is only shown for orientation: half as many resamples do.
        pool = Docs.from_lists(self.real.train)
        return own, Null.resample(pool, n, measure_real, max(7, k // 2), seed)


@dataclass(frozen=True)
class PanelFigure(Comparison):
    """A figure compared with the first model's samples, and with real text."""

    real: float | None = None  # mean of the null of real text; None where it is not measured
    z_real: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Fractions of documents by surprisal under the first model, over the same edges."""

    edges: list[float]
    real: list[float]
    sample: list[float]


@dataclass(frozen=True)
class CellShare:
    """How much of a text a user's cell is."""

    real: float
    sampled: float
    accepted: float


@dataclass(frozen=True)
class SampleFigures:
    """The figures of a generation's samples that begin from nothing."""

    panel: dict[str, PanelFigure]  # of those that were accepted
    shift: SurprisalShift | None  # None where no sample has a finite surprisal
    histogram: Histogram
    acceptance: float  # fraction that passed the verifiers
    repeated: float  # fraction that nearly repeats another
    precision: float  # upper bound, from the audit
    cross: float  # bits per token that one sample tells about the next
    notes: dict[str, str]  # by verifier: what it does to real text
    cells: dict[str, CellShare]  # by the user's cells


@dataclass(frozen=True)
class SampleDecisions:
    """What was decided about N samples."""

    reasons: list[str]  # why a sample is dropped, empty where it is kept
    cell: list[str]  # the user's, empty where there is none
    first_bits: ndarray  # [N], per token under the first model
    figures: SampleFigures
    evidence: SampleEvidence  # for the guard

    @property
    def kept(self) -> ndarray:
        """[N]: whether a sample may teach."""
        return np.array(self.reasons) == ""


# Verifiers


@dataclass(frozen=True)
class Verifiers:
    """The verifiers of a run, and how they did on real documents."""

    base: BaseModelReference
    map_rows: MapRows = lambda function, texts: function(texts)  # in several processes they share

    @property
    def real(self) -> RealCorpus:
        """Real documents."""
        return self.base.real

    def judge(self, name: str, docs: Sequence[ndarray]) -> list[str]:
        """Why a verifier refuses each document, empty where it accepts."""
        t = self.real.c.synthesize
        if name != "typical":
            function = verify.load_function(name, "synthesize.verifiers")
            texts = self.real.decode(Docs.from_lists(docs))
            ask = partial(verify.list_refusals, name, function, t=t)
            return self.map_rows(ask, texts)
        bits_d = self.real.measure_bits(self.base.scorer, docs).per_token
        # One real document in a hundred fails.
        low, high = np.quantile(self.base.bits_d, (0.005, 0.995))
        expected = f"real text has {low:.2f} to {high:.2f}"
        return [
            "" if low <= bits <= high else f"typical says no: {bits:.2f} bits a token, {expected}"
            for bits in bits_d
        ]

    @cached_property
    def reports(self) -> list[VerifierReport]:
        """What each does to real documents."""
        return [report for report, _ in self._examined]

    @cached_property
    def passed(self) -> ndarray:
        """[3]: how many real documents all of them accept whole, cut and shuffled."""
        return np.all([accepted for _, accepted in self._examined], axis=0).sum(axis=1)

    @cached_property
    def _examined(self):
        t, docs = self.real.c.synthesize, self.real.whole
        labels = self.label(docs)
        names = sorted(set(labels))
        vocab_size = self.real.c.model.vocab_size
        # A document's cells are its tokens, and the user's cell with a number above theirs.
        cells = [
            np.append(doc, vocab_size + names.index(label))
            for doc, label in zip(docs, labels, strict=True)
        ]

        def word(cell):
            if cell >= vocab_size:
                return names[cell - vocab_size]
            return self.real.tokenizer.decode([cell])

        return [
            verify.examine(
                name,
                lambda docs, name=name: self.judge(name, docs),
                docs,
                Docs.from_lists(cells),
                word,
                t.guard,
            )
            for name in t.verifiers
        ]

    def label(self, docs: Sequence[ndarray]) -> list[str]:
        """The user's cell of each document, empty where there are no cells."""
        name = self.real.c.synthesize.cells
        if not name:
            return [""] * len(docs)
        function = verify.load_function(name, "synthesize.cells")
        texts = self.real.decode(Docs.from_lists(docs))
        return self.map_rows(lambda part: [str(function(text)) for text in part], texts)

    def bound_precision(self, docs: Docs, kept: ndarray, acceptance: float) -> float:
        """Upper bound of the fraction of what was accepted that is right.

        By the user's auditor, who is asked about accepted samples, or by real documents and the
        same shuffled.
        """
        t = self.real.c.synthesize
        if not t.auditor:
            right, _, wrong = self.passed.tolist()
            return precision_bound(acceptance, right, wrong, len(self.real.whole))
        auditor = verify.load_function(t.auditor, "synthesize.auditor")
        audited = docs.take(np.flatnonzero(kept)[: t.num_audited])
        ask = partial(verify.list_refusals, "auditor", auditor, t=t)
        refusals = self.map_rows(ask, self.real.decode(audited))
        _, most = clopper_pearson(sum(not r for r in refusals), max(len(refusals), 1), 0.9)
        return most


# All of it


def decide(
    verifiers: Verifiers, scorer: Scorer, samples: Sequence[Sample], pool: Docs, num_plain: int
) -> SampleDecisions:
    """Judge, filter and measure candidates; `scorer` is the model that wrote them.

    pool: kept samples of earlier generations. num_plain: the first so many samples begin from
    nothing; only those are measured.
    """
    base, real = verifiers.base, verifiers.real
    t = real.c.synthesize
    docs = Docs.from_lists([s.document(real.tokenizer.bos) for s in samples])
    # Compared are openings, as long as a sample; verifiers read everything.
    opened = Docs.from_lists([doc[: t.max_new_tokens] for doc in docs.to_list()])
    bits_d = real.measure_bits(base.scorer, docs.to_list()).per_token
    is_finite = np.isfinite(bits_d) & np.isfinite([s.logp for s in samples])
    reasons = ["" if ok else "its log-probability is not a number" for ok in is_finite]
    for name in t.verifiers:
        verdicts = verifiers.judge(name, docs.to_list())
        reasons = [old or new for old, new in zip(reasons, verdicts, strict=True)]
    acceptance = float((np.array(reasons) == "")[:num_plain].mean())
    reasons = filter_samples(reasons, real, docs, pool)
    if t.policy != "guarded":  # a baseline takes what comes
        reasons = [""] * len(docs)
    kept = np.array(reasons) == ""
    # Of what will teach, and not of what was sampled.
    measured = np.flatnonzero(kept[:num_plain])[: t.num_measured]
    panel = base.compare(opened.take(measured))
    plain = docs.take(np.arange(num_plain))
    repeats = count_repeats(plain, t.dedup_threshold)
    labels = verifiers.label(docs.to_list())
    cells = share_cells(verifiers, labels[:num_plain], kept[:num_plain]) if t.cells else {}
    plain_bits = bits_d[measured]
    figures = SampleFigures(
        panel=panel,
        shift=measure.surprisal_shift(base.bits_d, plain_bits) if len(plain_bits) else None,
        histogram=make_histogram(base.bits_d, plain_bits),
        acceptance=acceptance,
        repeated=repeats / max(len(plain), 1),
        precision=verifiers.bound_precision(docs, kept, acceptance),
        cross=measure_cross_information(real, scorer, samples[:num_plain]),
        notes={report.name: str(report) for report in verifiers.reports},
        cells=cells,
    )
    faults = [fault for report in verifiers.reports for fault in report.faults]
    faults += find_lost_cells(cells, int(kept[:num_plain].sum()), t.guard.max_imbalance)
    if 0 < len(measured) < MIN_JUDGED:
        faults.append(f"only {len(measured)} accepted samples begin from nothing: too few to judge")
    evidence = SampleEvidence(
        panel,
        RepeatCounts(repeats, len(plain), base.repeats, len(base.samples)),
        guard.find_lost_words(base.guard_docs, base.samples, opened.take(measured)),
        tuple(faults),
        figures.precision,
        int(kept.sum()),
    )
    return SampleDecisions(reasons, labels, bits_d, figures, evidence)


def filter_samples(reasons: list[str], real: RealCorpus, docs: Docs, pool: Docs) -> list[str]:
    """The reasons, and why a document that passed the verifiers must not teach all the same."""
    t = real.c.synthesize
    source = real.find_contaminated(docs)
    twin = select.find_repeats(docs, pool, t.dedup_threshold)
    filtered = []
    for reason, h, k in zip(reasons, source, twin, strict=True):
        if reason:
            pass  # the first reason is enough
        elif h >= 0:
            overlap = f"{t.contamination_tokens} tokens, or a whole document"
            reason = f"it shares {overlap}, with {real.name_held_out(h)}"
        elif k >= len(pool):
            reason = f"it nearly repeats sample {k - len(pool)}"
        elif k >= 0:
            reason = "it nearly repeats an earlier generation's"
        filtered.append(reason)
    return filtered


def count_repeats(docs: Docs, threshold: float) -> int:
    """How many documents nearly repeat an earlier one."""
    return int((find_near_duplicates(docs, threshold) >= 0).sum())


def share_cells(verifiers: Verifiers, labels: Sequence[str], kept: ndarray) -> dict[str, CellShare]:
    """By the user's cells: fractions of real documents, of samples, and of accepted samples."""
    real = np.array(verifiers.label(verifiers.real.whole))
    drawn = np.array(labels)
    cells = {}
    for cell in sorted({*real.tolist(), *drawn.tolist()}):
        parts = (real == cell, drawn == cell, (drawn == cell)[kept])
        cells[cell] = CellShare(*(part.mean() if len(part) else 0.0 for part in parts))
    return cells


def find_lost_cells(cells: dict[str, CellShare], accepted: int, max_imbalance: float) -> list[str]:
    """The user's cells that are lost among the accepted samples, in words."""
    lost = []
    for cell, share in cells.items():
        count = round(share.accepted * accepted)
        _, most = clopper_pearson(count, accepted, guard.SURE) if accepted else (0.0, 1.0)
        if most * max_imbalance < share.real:
            lost.append(
                f"cell {cell!r} is {share.accepted:.1%} of what was accepted "
                f"and {share.real:.1%} of real documents"
            )
    return lost


def measure_with_gradients(real: Docs, sample: Docs, sketch_nd: ndarray) -> dict[str, float]:
    """The figures of a sample, and its Vendi score by features [N, D] of its gradients."""
    # Weights that are not finite say nothing about gradients; 0 makes the guard act.
    is_finite = np.isfinite(sketch_nd).all()
    vendi = measure.vendi_score(sketch_nd) if is_finite else 0.0
    return measure.measure_sample(real, sample) | {"vendi": vendi}


def measure_cross_information(real: RealCorpus, scorer: Scorer, samples: Sequence[Sample]) -> float:
    """Bits per token that a sample tells about the next one begun alike; NaN without a pair."""
    bos = real.tokenizer.bos
    max_tokens = (real.c.synthesize.max_new_tokens - 2) // 2  # both, and two marks, fit a row
    docs = [s.document(bos)[:max_tokens] for s in samples[: 2 * NUM_PAIRS]]
    docs = [doc for doc in docs if doc]
    pairs = list(zip(docs[::2], docs[1::2], strict=False))
    if not pairs:
        return float("nan")
    alone = scorer.nats([[bos, *second] for _, second in pairs])
    given = scorer.nats([[bos, *first, bos, *second] for first, second in pairs])
    size = np.array([len(second) for _, second in pairs])
    alone_b = np.array([nats.sum() for nats in alone])
    # The second sample is at the end of its row.
    given_b = np.array([nats[-n:].sum() for nats, n in zip(given, size, strict=True)])
    return measure.cross_information(-alone_b, -given_b, size)


def make_histogram(real_bits: ndarray, sample_bits: ndarray) -> Histogram:
    """Real and sampled documents by surprisal; the outer bins hold what is beyond real text."""
    edges = np.linspace(real_bits.min(), real_bits.max() + 1e-6, 25)
    width = edges[1] - edges[0]
    edges = np.concatenate([[edges[0] - width], edges, [edges[-1] + width]])
    fractions = []
    for bits in (real_bits, sample_bits):
        counts, _ = np.histogram(np.clip(bits, edges[0], edges[-1]), edges)
        fractions.append((counts / max(len(bits), 1)).tolist())
    return Histogram(edges.tolist(), *fractions)
