"""What is decided about a generation's samples before any of them teaches: verdicts, weights,
figures, and the evidence for the guard. No jax: models come in as scorers.
"""

import runpy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy import ndarray

from ramp.errors import UserError
from ramp.nines.intervals import lower_bound
from ramp.synth import measure, select
from ramp.synth.corpus import RealCorpus, Scorer
from ramp.synth.guard import SampleEvidence
from ramp.synth.measure import Comparison, Docs, Null, SurprisalShift
from ramp.synth.prompts import Sample
from ramp.synth.select import NUM_BANDS, Cells, Verifier

# 200 of 200 right has a lower 95% bound of .985, and 195 one of .949: enough to tell .95.
NUM_AUDITED = 200

# Fraction of the target that is even over the bands of rarity, so that more is made of what is
# rare. A choice; it was not tuned.
EVEN_FRACTION = 0.3

NUM_PAIRS = 32  # samples of which each is asked what it tells about the next

# A verifier that accepts this much of shuffled text tells nothing.
MAX_NOISE_ACCEPTANCE = 0.95


@dataclass(frozen=True)
class BaseModelReference:
    """The first model, frozen, and its figures; later figures are compared with them."""

    scorer: Scorer
    bits_d: ndarray  # per token, of the real training openings
    cells: Cells
    real_null: Null  # of real text
    model_null: Null  # of the model's own samples

    @classmethod
    def measure(
        cls, real: RealCorpus, scorer: Scorer, samples: Sequence[Sample]
    ) -> "BaseModelReference":
        """samples: its own, begun from nothing, twice as many as are measured."""
        t, seed = real.c.synthesize, real.c.seed
        pool = Docs.from_lists(real.train)
        guard_docs = Docs.from_lists(real.guard)
        own = Docs.from_lists([s.document(real.tokenizer.bos) for s in samples])
        sketch_nd = scorer.gradients(real.with_bos(own.to_list()))

        def measure_own(rows):
            return measure_with_gradients(guard_docs, own.take(rows), sketch_nd[rows])

        def measure_real(docs):
            return measure.measure_sample(guard_docs, docs)

        k = t.num_null_resamples
        model_null = Null.resample(np.arange(len(own)), t.num_measured, measure_own, k, seed)
        # Real text is only shown for orientation: half as many resamples do.
        real_null = Null.resample(pool, t.num_measured, measure_real, max(7, k // 2), seed)
        bits_d = real.measure_bits(scorer, real.train).per_token
        cells = Cells.fit(pool, bits_d, real.c.model.vocab_size)
        return cls(scorer, bits_d, cells, real_null, model_null)


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
class SampleFigures:
    """The figures of a generation's samples."""

    panel: dict[str, PanelFigure]
    shift: SurprisalShift | None  # None where no sample has a finite surprisal
    histogram: Histogram
    acceptance: float  # fraction that passed the verifiers
    imbalance: float  # median over the least acceptance among cells
    precision: float  # lower bound, from the audit
    ess: float  # effective sample size of the weights, as a fraction
    missed: float  # largest mass of a band that no candidate could give
    cross: float  # bits per token that one sample tells about the next
    notes: dict[str, str]  # by verifier: what is wrong with it


@dataclass(frozen=True)
class SampleDecisions:
    """What was decided about N samples."""

    reasons: list[str]  # why a sample is dropped, empty where it is kept
    weight: ndarray  # [N], mean 1 among those kept
    cell: ndarray  # [N]
    first_bits: ndarray  # [N], per token under the first model
    figures: SampleFigures
    evidence: SampleEvidence  # for the guard


# Verifiers


def is_clean(text: str) -> bool:
    """Whether there is something to read, in whole characters.

    A cut at the end may halve the last character.
    """
    return bool(text.strip()) and "\ufffd" not in text.rstrip("\ufffd")


def load_verifier(name: str) -> Verifier:
    """A user's function from a text to true or false, named PATH.py:FUNCTION.

    UserError where there is no such file or function, or where it cannot be imported.
    """
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(
            f"synthesize: {name!r} is neither clean, typical nor PATH.py:FUNCTION "
            "of a file that is there"
        )
    try:
        module = runpy.run_path(path)
    except Exception as error:
        raise UserError(
            f"the verifier {path} cannot be imported ({type(error).__name__}: {error})"
        ) from None
    verifier = module.get(function)
    if not callable(verifier):
        raise UserError(
            f"{path} has no function {function!r}; "
            "name one that takes a text and says whether it is right"
        )
    return verifier


def run_verifier(
    name: str, real: RealCorpus, base: BaseModelReference, docs: Docs, bits_d: ndarray
) -> list[str]:
    """Why a verifier refuses each document, empty where it accepts.

    bits_d: their bits per token under the first model.
    """
    if name != "typical":
        verifier = is_clean if name == "clean" else load_verifier(name)
        return select.apply_verifier(real.decode(docs), name, verifier)
    low, high = np.quantile(base.bits_d, (0.005, 0.995))  # one real document in a hundred fails
    expected = f"real text has {low:.2f} to {high:.2f}"
    return [
        "" if low <= bits <= high else f"typical says no: {bits:.2f} bits a token, {expected}"
        for bits in bits_d
    ]


def audit_verifiers(
    real: RealCorpus, base: BaseModelReference, acceptance: float
) -> tuple[float, dict[str, str]]:
    """Try the verifiers together on real documents, and on the same tokens shuffled.

    acceptance: the fraction of the samples that they accept. Returns the lower bound of the
    precision of what they accept, and a note on each that accepts nearly everything. UserError for
    one that raises on every real document: that is its author's mistake.
    """
    good = real.guard[:NUM_AUDITED]
    bad = [np.random.default_rng(i).permutation(doc) for i, doc in enumerate(good)]
    audits = []
    for docs in (good, bad):
        bits_d = real.measure_bits(base.scorer, docs).per_token
        audits.append((Docs.from_lists(docs), bits_d))
    passed = np.ones((2, len(good)), bool)
    notes = {}
    for name in real.c.synthesize.verifiers:
        reasons = np.array([run_verifier(name, real, base, *audit) for audit in audits])
        if all("raised" in reason for reason in reasons[0]):
            raise UserError(
                f"the verifier {name} fails on every real document, first: {reasons[0, 0]}; mend it"
            )
        accepted = reasons == ""
        passed &= accepted
        noise = accepted[1].mean()
        if noise >= MAX_NOISE_ACCEPTANCE:
            notes[name] = f"takes {noise:.0%} of shuffled text: alone it would tell nothing"
    tp, fp = passed.sum(axis=1)
    return select.precision_bound(acceptance, tp, fp, len(good)), notes


# All of it


def decide(
    real: RealCorpus,
    base: BaseModelReference,
    scorer: Scorer,
    samples: Sequence[Sample],
    pool: Docs,
    num_plain: int,
) -> SampleDecisions:
    """Judge, filter, weigh and measure the samples that the model of `scorer` has written.

    pool: kept samples of earlier generations. num_plain: the first so many samples begin from
    nothing; only those are measured. More is made of what is rare only while the precision holds.
    """
    t = real.c.synthesize
    docs = Docs.from_lists([s.document(real.tokenizer.bos) for s in samples])
    bits_d = real.measure_bits(base.scorer, docs.to_list()).per_token
    is_finite = np.isfinite(bits_d) & np.isfinite([s.logp for s in samples])
    reasons = ["" if ok else "its log-probability is not a number" for ok in is_finite]
    for name in t.verifiers:
        verdicts = run_verifier(name, real, base, docs, bits_d)
        reasons = [old or new for old, new in zip(reasons, verdicts, strict=True)]
    passed = np.array(reasons) == ""
    acceptance = float(passed.mean())
    reasons = filter_samples(reasons, real, docs, pool)
    kept = np.array(reasons) == ""

    bands = base.cells.assign(docs, np.where(is_finite, bits_d, 0.0))
    precision, notes = audit_verifiers(real, base, acceptance)
    if t.auditor:
        precision = audit_accepted(real, docs, kept)
    reward_novelty = precision >= t.guard.min_precision
    weight, ess, missed = weigh_samples(real, base, docs, bands, kept, reward_novelty)

    measured = docs.take(np.arange(min(num_plain, t.num_measured)))
    panel = measure_panel(real, base, measured)
    imbalance = select.acceptance_imbalance(passed[:num_plain], bands[0][:num_plain])
    plain_bits = bits_d[:num_plain]
    plain_bits = plain_bits[np.isfinite(plain_bits)]
    shift = measure.surprisal_shift(base.bits_d, plain_bits) if len(plain_bits) else None
    figures = SampleFigures(
        panel=panel,
        shift=shift,
        histogram=make_histogram(base.bits_d, plain_bits),
        acceptance=acceptance,
        imbalance=imbalance,
        precision=precision,
        ess=ess,
        missed=missed,
        cross=measure_cross_information(real, scorer, samples[:num_plain]),
        notes=notes,
    )
    # The guard judges the same figures that the page shows.
    evidence = SampleEvidence(panel, imbalance, precision, int(kept.sum()))
    cell = bands[0] * NUM_BANDS + bands[1]
    return SampleDecisions(reasons, weight, cell, bits_d, figures, evidence)


def filter_samples(reasons: list[str], real: RealCorpus, docs: Docs, pool: Docs) -> list[str]:
    """The reasons, and why a document that passed the verifiers must not teach all the same."""
    t = real.c.synthesize
    source = select.find_contaminated(docs, real.held_out, t.contamination_tokens)
    twin = select.find_repeats(docs, pool, t.dedup_threshold)
    filtered = []
    for reason, h, k in zip(reasons, source, twin, strict=True):
        if reason:
            pass  # the first reason is enough
        elif h >= 0:
            overlap = f"{t.contamination_tokens} tokens, or a whole document"
            reason = f"it shares {overlap}, with held-out document {h}"
        elif k >= len(pool):
            reason = f"it nearly repeats sample {k - len(pool)}"
        elif k >= 0:
            reason = "it nearly repeats an earlier generation's"
        filtered.append(reason)
    return filtered


def weigh_samples(
    real: RealCorpus,
    base: BaseModelReference,
    docs: Docs,
    bands: tuple[ndarray, ndarray],
    kept: ndarray,
    reward_novelty: bool,
) -> tuple[ndarray, float, float]:
    """Weights [N] that give rarity and surprisal the masses they have in real text.

    `EVEN_FRACTION` of the rarity is evened out where novelty is rewarded. Also returns the
    effective sample size, and the largest mass that no candidate could give.
    """
    t = real.c.synthesize
    weight = np.zeros(len(docs))
    if not kept.any():
        return weight, 0.0, 1.0
    real_bands = base.cells.assign(Docs.from_lists(real.train), base.bits_d)
    even_fractions = (EVEN_FRACTION * reward_novelty, 0)
    features, target = [], []
    for band, real_band, even in zip(bands, real_bands, even_fractions, strict=True):
        mass = select.smooth_counts(np.bincount(real_band, minlength=NUM_BANDS))
        mass = (1 - even) * mass + even / NUM_BANDS
        # The first band follows from the others, since masses sum to one.
        features.append(np.eye(NUM_BANDS)[band[kept]][:, 1:])
        target.append(mass[1:])
    # The same text sampled many times counts as a few.
    keys = [tuple(doc) for doc in docs.take(np.flatnonzero(kept)).to_list()]
    weights = select.project_weights(
        np.concatenate(features, axis=1),
        np.concatenate(target),
        select.cap_duplicates(keys, t.max_duplicates),
        t.max_weight,
        t.min_ess,
    )
    weight[kept] = weights.w
    return weight, weights.ess, float(np.abs(weights.missed).max())


def measure_panel(
    real: RealCorpus, base: BaseModelReference, sample: Docs
) -> dict[str, PanelFigure]:
    """Every figure compared with the first model's own samples, and with real text."""
    sketch_nd = base.scorer.gradients(real.with_bos(sample.to_list()))
    figures = measure_with_gradients(Docs.from_lists(real.guard), sample, sketch_nd)
    panel = {}
    for name, figure in base.model_null.compare(figures).items():
        panel[name] = PanelFigure(**vars(figure))
    for name, figure in base.real_null.compare(figures).items():
        panel[name] = replace(panel[name], real=figure.null, z_real=figure.z)
    return panel


def measure_with_gradients(real: Docs, sample: Docs, sketch_nd: ndarray) -> dict[str, float]:
    """The figures of a sample, and its Vendi score by features [N, D] of its gradients."""
    # Weights that are not finite say nothing about gradients; 0 makes the guard act.
    is_finite = np.isfinite(sketch_nd).all()
    vendi = measure.vendi_score(sketch_nd) if is_finite else 0.0
    return measure.measure_sample(real, sample) | {"vendi": vendi}


def audit_accepted(real: RealCorpus, docs: Docs, kept: ndarray) -> float:
    """Lower bound of the fraction of kept samples that the user's auditor calls right."""
    auditor = load_verifier(real.c.synthesize.auditor)
    audited = docs.take(np.flatnonzero(kept)[:NUM_AUDITED])
    reasons = select.apply_verifier(real.decode(audited), "auditor", auditor)
    return lower_bound(sum(not reason for reason in reasons), len(audited))


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
