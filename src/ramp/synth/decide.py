"""What is made of a generation's samples, before any of them teaches: verdicts, weights, figures, the guard's first look."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ramp.errors import UserError
from ramp.synth import generate, measure, select
from ramp.synth.corpus import RealCorpus
from ramp.synth.generate import Sample
from ramp.synth.guard import Sampled
from ramp.synth.measure import Docs, Null
from ramp.synth.select import BANDS, Cells, Verifier

AUDITED = 200  # 200 of 200 right is a lower 95% bound of .985, 195 one of .949: enough to tell .95
EVEN = 0.3  # share of the target that is even over the bands of rarity, so that the rare is made more of; a choice, not swept


@dataclass(frozen=True)
class BaseModelReference:
    """The first model, frozen, and what is known of it and of real text beside it: all later figures are held against it."""

    params: dict
    bits_d: np.ndarray  # per token of the real training openings
    cells: Cells
    by_real: Null
    by_first: Null

    @classmethod
    def look(cls, real: RealCorpus, params: dict, plain: Sequence[Sample]) -> "BaseModelReference":
        """`plain`: its own samples, begun from nothing, twice as many as are measured."""
        t, pool = real.c.synthesize, Docs.of(real.train)
        bits_d, held = real.bits(params, real.train).per_token, Docs.of(real.guard)
        own = Docs.of([body(s, real.tokenizer.bos) for s in plain])
        sketch_nd = sketch_gradients(real, params, own)
        figures = lambda rows: (
            measure.panel(held, own.take(rows)) | {"vendi": measure.vendi(sketch_nd[rows])}
        )  # noqa: E731
        by_first = Null.resampled(
            len(own), t.num_measured, figures, t.num_null_resamples, real.c.seed
        )
        by_real = Null.draw(
            pool,
            t.num_measured,
            partial(measure.panel, held),
            max(7, t.num_null_resamples // 2),
            real.c.seed,
        )
        return cls(
            params, bits_d, Cells.fit(pool, bits_d, real.c.model.vocab_size), by_real, by_first
        )


def body(s: Sample, bos: int) -> list[int]:
    """The document: prompt and continuation, without the marks of beginning and end."""
    return [i for i in (*s.prompt.ids, *s.ids) if i != bos]


@dataclass(frozen=True)
class Decision:
    """Of N samples."""

    kept: np.ndarray
    reasons: list[str]
    weight: np.ndarray  # mean 1 among those kept
    cell: np.ndarray
    first_bits: np.ndarray  # per token under the first model
    figures: dict  # by figure: value, null, ratio, z against the first model's samples; and single numbers
    seen: Sampled  # what the guard is told


# ---------------------------------------------------------------------------------------------------- verifiers
def clean(text: str) -> bool:
    """Something to read, in whole characters; a cut at the end may halve the last."""
    return bool(text.strip()) and "\ufffd" not in text.rstrip("\ufffd")


def load_verifier(name: str) -> Verifier:
    """PATH.py:FUNCTION, a verifier of the user's."""
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(
            f"synthesize: {name!r} is neither clean, typical nor PATH.py:FUNCTION of a file that is there"
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"the verifier {path} cannot be imported ({type(error).__name__}: {error})"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(
            f"{path} has no function {function!r}; name one that takes a text and says whether it is right"
        )
    return found


def run_verifier(
    real: RealCorpus,
    first: BaseModelReference,
    docs: Sequence[np.ndarray],
    bits: np.ndarray,
    name: str,
) -> list[str]:
    """What one verifier says of each document, of so many bits a token under the first model: nothing, or why not."""
    if name == "typical":
        low, high = np.quantile(
            first.bits_d, (0.005, 0.995)
        )  # refuses one real document in a hundred
        far = f"real text has {low:.2f} to {high:.2f}"
        return [
            "" if low <= b <= high else f"typical says no: {b:.2f} bits a token, {far}"
            for b in bits
        ]
    verifier = clean if name == "clean" else load_verifier(name)
    return select.apply_verifier([real.tokenizer.decode(d) for d in docs], name, verifier)


def test_verifier(
    real: RealCorpus, first: BaseModelReference, accepted: float
) -> tuple[float, dict[str, str]]:
    """The verifiers together on real documents and on the same tokens shuffled: (lower bound of the precision of what
    they accept, a share `accepted` of the samples; a note on each that takes nearly everything).

    UserError for one that raises on every real document: that is its author's mistake.
    """
    good = real.guard[:AUDITED]
    bad = [np.random.default_rng(i).permutation(d) for i, d in enumerate(good)]
    both = [(docs, real.bits(first.params, docs).per_token) for docs in (good, bad)]
    passed, notes, n = np.ones((2, len(good)), bool), {}, len(good)
    for name in real.c.synthesize.verifiers:
        why = [run_verifier(real, first, docs, bits, name) for docs, bits in both]
        if all("raised" in w for w in why[0]):
            raise UserError(
                f"the verifier {name} fails on every real document, first: {why[0][0]}; mend it"
            )
        mine = np.array([[not w for w in ws] for ws in why])
        passed &= mine
        if mine[1].mean() >= 0.95:
            notes[name] = (
                f"takes {mine[1].mean():.0%} of shuffled text: alone it would tell nothing"
            )
    right, wrong = (int(p.sum()) for p in passed)
    return select.precision_bound(accepted, right, n, wrong, n), notes


# ---------------------------------------------------------------------------------------------------- all of it
def decide(
    real: RealCorpus,
    first: BaseModelReference,
    params: dict,
    made: Sequence[Sample],
    pool: Docs,
    plain: int,
) -> Decision:
    """Judge, filter, weigh and measure. `pool`: kept samples of earlier generations; `plain`: how many of the samples, the
    first ones, begin from nothing: those are measured. The rare is made more of only while the precision holds."""
    t, bos = real.c.synthesize, real.tokenizer.bos
    docs = Docs.of([body(s, bos) for s in made])
    bits = real.bits(first.params, docs.list()).per_token
    finite = np.isfinite(bits) & np.isfinite([s.logp for s in made])
    reasons = ["" if ok else "its log-probability is not a number" for ok in finite]
    for name in t.verifiers:
        said = run_verifier(real, first, docs.list(), bits, name)
        reasons = [old or new for old, new in zip(reasons, said, strict=True)]
    passed = np.array([not r for r in reasons])
    reasons = filter_samples(reasons, real, docs, pool)
    kept = np.array([not r for r in reasons])
    band = first.cells.of(docs, np.where(finite, bits, 0.0))
    precision, notes = test_verifier(real, first, float(passed.mean()))
    if t.auditor:
        precision = audit_accepted(real, docs, kept)
    weight, ess, missed = weigh_samples(
        real, first, docs, band, kept, precision >= t.guard.min_precision
    )
    against = panel(real, first, docs.take(np.arange(min(plain, t.num_measured))))
    uneven = select.imbalance(passed[:plain], band[0][:plain])
    shown = bits[:plain][np.isfinite(bits[:plain])]
    figures = {
        "panel": against,
        "shift": measure.shift(first.bits_d, shown) if len(shown) else {},
        "histogram": histogram(first.bits_d, shown),
        "acceptance": float(passed.mean()),
        "imbalance": uneven,
        "precision": precision,
        "ess": ess,
        "missed": missed,
        "cross": cross_information(real, params, made[:plain]),
        "notes": notes,
    }
    seen = Sampled(against, uneven, precision, int(kept.sum()))
    return Decision(kept, reasons, weight, band[0] * BANDS + band[1], bits, figures, seen)


def filter_samples(reasons: list[str], real: RealCorpus, docs: Docs, pool: Docs) -> list[str]:
    """The reasons, and why a document that passed must not teach all the same."""
    t = real.c.synthesize
    dirty, twin = (
        select.find_contaminated(docs, real.held, t.contamination_tokens),
        select.find_repeats(docs, pool, t.dedup_threshold),
    )
    out = []
    for reason, h, k in zip(reasons, dirty, twin, strict=True):
        if not reason and h >= 0:
            reason = f"it shares {t.contamination_tokens} tokens, or a whole document, with held-out document {h}"
        elif not reason and k >= 0:
            reason = "it nearly repeats " + (
                f"sample {k - len(pool)}" if k >= len(pool) else "an earlier generation's"
            )
        out.append(reason)
    return out


def weigh_samples(
    real: RealCorpus,
    first: BaseModelReference,
    docs: Docs,
    band: tuple,
    kept: np.ndarray,
    novelty: bool,
) -> tuple[np.ndarray, float, float]:
    """(weights, effective sample size, largest mass that no candidate could give): rarity and surprisal as in real text,
    with `EVEN` of the rarity evened out while novelty is allowed."""
    weight, t = np.zeros(len(docs)), real.c.synthesize
    if not kept.any():
        return weight, 0.0, 1.0
    features, target = [], []
    for mine, theirs, even in zip(
        band, first.cells.of(Docs.of(real.train), first.bits_d), (EVEN * novelty, 0), strict=True
    ):
        mass = (1 - even) * select.smooth_counts(
            np.bincount(theirs, minlength=BANDS)
        ) + even / BANDS
        features.append(
            select.one_hot(mine[kept], BANDS)[:, 1:]
        )  # the first follows from the others
        target.append(mass[1:])
    keys = [tuple(d) for d, k in zip(docs.list(), kept, strict=True) if k]
    base = select.cap_duplicates(keys, t.max_duplicates)
    found = select.project(
        np.concatenate(features, axis=1), np.concatenate(target), base, t.max_weight, t.min_ess
    )
    weight[kept] = found.w
    return weight, found.ess, float(np.abs(found.missed).max())


def panel(real: RealCorpus, first: BaseModelReference, sample: Docs) -> dict[str, dict[str, float]]:
    """Every figure beside the first model's own samples and beside real text."""
    found = measure.panel(Docs.of(real.guard), sample)
    rows = sketch_gradients(real, first.params, sample)
    found["vendi"] = measure.vendi(rows) if np.isfinite(rows).all() else 0.0
    against = first.by_first.against(found)
    for name, figure in first.by_real.against(
        {k: v for k, v in found.items() if k != "vendi"}
    ).items():
        against[name] |= {"real": figure["null"], "z_real": figure["z"]}
    return against


def sketch_gradients(real: RealCorpus, params: dict, docs: Docs) -> np.ndarray:
    rows = [[real.tokenizer.bos, *d] for d in docs.list()]
    return generate.gradients(real.c.model, params["lm"], rows, real.c.synthesize.max_new_tokens)


def audit_accepted(real: RealCorpus, docs: Docs, kept: np.ndarray) -> float:
    """Lower bound of the share of kept samples that the auditor calls right."""
    at, auditor = np.flatnonzero(kept)[:AUDITED], load_verifier(real.c.synthesize.auditor)
    why = select.apply_verifier(
        [real.tokenizer.decode(d) for d in docs.take(at).list()], "auditor", auditor
    )
    return select.lower_bound(sum(not w for w in why), len(at))


def cross_information(
    real: RealCorpus, params: dict, made: Sequence[Sample], pairs: int = 32
) -> float:
    """Chapter-x10 on samples begun alike: bits a token that one tells about the next."""
    bos, length, lm = real.tokenizer.bos, real.c.synthesize.max_new_tokens, params["lm"]
    docs = [d[: (length - 2) // 2] for s in made[: 2 * pairs] if (d := body(s, bos))]
    two = list(zip(docs[::2], docs[1::2], strict=False))
    if not two:
        return float("nan")
    alone = generate.score_documents(real.c.model, lm, [[bos, *b] for _, b in two], length)
    beside = generate.score_documents(
        real.c.model, lm, [[bos, *a, bos, *b] for a, b in two], length
    )
    size = np.array([len(b) for _, b in two])
    ends = np.array([x[-k:].sum() for x, k in zip(beside, size, strict=True)])
    return measure.cross_information(-np.array([x.sum() for x in alone]), -ends, size)


def histogram(real_bits: np.ndarray, bits: np.ndarray, bins: int = 24) -> dict[str, list[float]]:
    """Shares of documents by surprisal under the first model, real and sampled, over the same edges; the outer bins take
    what lies beyond real text."""
    edges = np.linspace(real_bits.min(), real_bits.max() + 1e-6, bins + 1)
    wide = edges[1] - edges[0]
    edges = np.concatenate([[edges[0] - wide], edges, [edges[-1] + wide]])
    counts = [
        np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / max(len(x), 1)
        for x in (real_bits, bits)
    ]
    return {"edges": edges.tolist(), "real": counts[0].tolist(), "sample": counts[1].tolist()}
