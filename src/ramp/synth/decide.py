"""What is made of a generation's samples, before any of them teaches: verdicts, weights, figures, the guard's first look."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ramp.config import Synthesize
from ramp.errors import UserError
from ramp.synth import generate, measure, select
from ramp.synth.generate import Sample
from ramp.synth.measure import Docs, Null
from ramp.synth.select import Cells, Verifier
from ramp.synth.text import Real

AUDITED = 200


@dataclass(frozen=True)
class First:
    """The first model, frozen, and what is known of it and of real text beside it: all later figures are held against it."""

    params: dict
    bits_d: np.ndarray  # per token of the real training openings
    cells: Cells
    by_real: Null
    by_first: Null

    @classmethod
    def look(cls, real: Real, params: dict, plain: Sequence[Sample]) -> "First":
        """`plain`: its own samples, begun from nothing, twice as many as are measured."""
        t, pool = real.c.synthesize, Docs.of(real.train)
        bits_d, held = real.bits(params, real.train).per_token, Docs.of(real.guard)
        own = Docs.of([body(s, real.tokenizer.bos) for s in plain])
        rows = generate.gradients(real.c.model, params["lm"], [[real.tokenizer.bos, *d] for d in own.list()], t.tokens)
        figures = lambda d: measure.panel(held, d)  # noqa: E731
        by_first = Null.draw(own, t.measured, figures, t.nulls, real.c.seed)
        rng = np.random.default_rng(real.c.seed)
        picks = [rng.choice(len(own), t.measured, replace=False) for _ in range(t.nulls)]
        by_first.values["vendi"] = np.array([measure.vendi(rows[p]) for p in picks])
        by_real = Null.draw(pool, t.measured, figures, max(7, t.nulls // 2), real.c.seed)
        return cls(params, bits_d, Cells.fit(pool, bits_d, real.c.model.vocab), by_real, by_first)


def body(s: Sample, bos: int) -> list[int]:
    """The document: prompt and continuation, without the marks of beginning and end."""
    return [i for i in (*s.prompt.ids, *s.ids) if i != bos]


@dataclass(frozen=True)
class Decided:
    """Of N samples."""

    kept: np.ndarray
    reasons: list[str]
    weight: np.ndarray  # mean 1 among those kept
    cell: np.ndarray
    first_bits: np.ndarray  # per token under the first model
    figures: dict  # by figure: value, null, ratio, z against the first model's samples; and single numbers
    seen: dict  # what the guard is told


# ---------------------------------------------------------------------------------------------------- verifiers
def verifiers(real: Real, first_bits_d: np.ndarray) -> dict[str, Verifier]:
    """The verifiers of the configuration by name. They judge text; "typical" looks its surprisal up by the text."""
    named: dict[str, Verifier] = {}
    for name in real.c.synthesize.verifiers:
        if name == "clean":
            named[name] = lambda text: bool(text.strip()) and "\ufffd" not in text.rstrip("\ufffd")
        elif name != "typical":
            named[name] = loaded(name)
    return named


def loaded(name: str) -> Verifier:
    """PATH.py:FUNCTION, a verifier of the user's."""
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(
            f"synthesize.verifiers: {name!r} is neither clean, typical nor PATH.py:FUNCTION of a file that is there"
        )
    spec = importlib.util.spec_from_file_location(f"ramp_verifier_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the verifier {path} cannot be imported ({type(error).__name__}: {error})") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{path} has no function {function!r}; name one that takes a text and says whether it is right")
    return found


def tried(real: Real, named: dict[str, Verifier], typical: Callable[[list[np.ndarray]], np.ndarray] | None) -> tuple[int, int, int, dict]:  # fmt: skip
    """(right texts, how many pass all, how many shuffled ones pass all, notes): the verifiers on real text and on the same
    tokens shuffled. One that raises on every real text is a mistake of its author; one that takes everything is noted."""
    rng = np.random.default_rng(0)
    good = real.guard[:AUDITED]
    bad = [rng.permutation(d) for d in good]
    passed = []
    notes = {}
    texts = [[real.tokenizer.decode(d) for d in docs] for docs in (good, bad)]
    for name, verifier in named.items():
        (right, why), (wrong, _) = (select.verified(t, {name: verifier}) for t in texts)
        if all("raised" in w for w in why):
            raise UserError(f"the verifier {name} fails on every real document, first: {why[0]}; mend it")
        if wrong.mean() >= 0.95:
            notes[name] = f"takes {wrong.mean():.0%} of shuffled text: it tells nothing of order or sense"
        passed.append((right, wrong))
    if typical is not None:
        passed.append((typical(good), typical(bad)))
    right, wrong = (np.all([p[i] for p in passed], axis=0) if passed else np.ones(len(good), bool) for i in (0, 1))
    return len(good), int(right.sum()), int(wrong.sum()), notes


# ---------------------------------------------------------------------------------------------------- all of it
def decide(real: Real, first: First, params: dict, made: Sequence[Sample], pool: Docs, plain: int, novelty: bool) -> Decided:  # fmt: skip
    """Judge, filter, weigh and measure. `pool`: kept samples of earlier generations; `plain`: how many of the samples, the
    first ones, begin from nothing: those are measured."""
    c, t, bos = real.c, real.c.synthesize, real.tokenizer.bos
    docs = Docs.of([body(s, bos) for s in made])
    low, high = np.quantile(first.bits_d, (0.005, 0.995))
    bits_of = lambda ds: np.array([x.mean() / np.log(2) if len(x) else np.inf for x in generate.nats(c.model, first.params["lm"], [[bos, *d] for d in ds], t.tokens)])  # noqa: E731  # fmt: skip
    first_bits = bits_of(docs.list())
    typical = (lambda ds: (lambda b: (b >= low) & (b <= high))(bits_of(ds))) if "typical" in t.verifiers else None
    named = verifiers(real, first.bits_d)
    audit_n, audit_right, audit_wrong, notes = tried(real, named, typical)

    passed, reasons = select.verified([real.tokenizer.decode(d) for d in docs.list()], named)
    finite = np.array([np.isfinite(s.logp) for s in made]) & np.isfinite(first_bits)
    held = Docs.of([*real.guard, *real.final])
    dirty, twin = select.contaminated(docs, held, t.overlap), select.repeats(docs, pool, t.near)
    for i in range(len(made)):
        if not finite[i]:
            reasons[i] = "its log-probability is not a number"
        elif not reasons[i] and typical is not None and not low <= first_bits[i] <= high:
            reasons[i] = f"typical says no: {first_bits[i]:.2f} bits a token, real text has {low:.2f} to {high:.2f}"
        elif not reasons[i] and dirty[i] >= 0:
            reasons[i] = f"it shares {t.overlap} tokens or a whole document with held-out document {dirty[i]}"
        elif not reasons[i] and twin[i] >= 0:
            of = (
                f"sample {twin[i] - len(pool)} of this generation"
                if twin[i] >= len(pool)
                else "an earlier generation's"
            )
            reasons[i] = f"it nearly repeats {of}"
    kept = np.array([not r for r in reasons])
    judged = np.array([not r or "repeats" in r or "shares" in r for r in reasons])  # the verifiers had no objection

    rare, surprise = first.cells.of(docs, np.where(finite, first_bits, 0.0))
    cell = rare * 8 + surprise
    weight, ess, missed = np.zeros(len(made)), 0.0, np.zeros(16)
    if kept.any():
        r_rare, r_surprise = first.cells.of(Docs.of(real.train), first.bits_d)
        even = 0.3 if novelty else 0.0  # towards the rare: rewarded only while precision holds
        target = [(1 - e) * select.smoothed(np.bincount(b, minlength=8)) + e / 8 for b, e in ((r_rare, even), (r_surprise, 0.0))]  # fmt: skip
        features = np.concatenate(
            [select.one_hot(rare[kept], 8)[:, 1:], select.one_hot(surprise[kept], 8)[:, 1:]], axis=1
        )
        base = select.capped([tuple(d) for d, k in zip(docs.list(), kept, strict=True) if k], t.copies)
        found = select.project(features, np.concatenate([target[0][1:], target[1][1:]]), base, t.clip, t.least_ess)
        weight[kept], ess, missed = found.w, found.ess, found.missed
    accepted = float(judged.mean())
    precision = audited(real, t, docs, kept) if t.auditor else select.precision_bound(accepted, audit_right, audit_n, audit_wrong, audit_n)  # fmt: skip

    sample = docs.take(np.arange(min(plain, t.measured)))
    found = measure.panel(Docs.of(real.guard), sample)
    rows = generate.gradients(c.model, first.params["lm"], [[bos, *d] for d in sample.list()], t.tokens)
    found["vendi"] = measure.vendi(rows) if np.isfinite(rows).all() else 0.0
    against = first.by_first.against(found)
    beside = first.by_real.against({k: v for k, v in found.items() if k in first.by_real.values})
    for name, figure in beside.items():
        against[name] |= {"real": figure["null"], "z_real": figure["z"]}
    uneven = select.imbalance(judged[:plain], cell[:plain] // 8)
    moved = (
        measure.shift(first.bits_d, first_bits[:plain][np.isfinite(first_bits[:plain])]) if finite[:plain].any() else {}
    )
    figures = {
        "panel": against,
        "shift": moved,
        "histogram": histogram(first.bits_d, first_bits[:plain]),
        "acceptance": accepted,
        "imbalance": uneven,
        "precision": precision,
        "ess": ess,
        "missed": float(np.abs(missed).max()),
        "cross": cross_information(real, params, made[:plain]),
        "notes": notes,
    }
    seen = {
        "z": {k: v["z"] for k, v in against.items()},
        "ratio": {k: v["ratio"] for k, v in against.items()},
        "imbalance": uneven,
        "precision": precision,
        "accepted": int(kept.sum()),
    }
    return Decided(kept, reasons, weight, cell, first_bits, figures, seen)


def audited(real: Real, t: Synthesize, docs: Docs, kept: np.ndarray) -> float:
    """Lower bound of the share of kept samples that the auditor calls right."""
    at = np.flatnonzero(kept)[:AUDITED]
    right, _ = select.verified([real.tokenizer.decode(d) for d in docs.take(at).list()], {"auditor": loaded(t.auditor)})
    return select.lower_bound(int(right.sum()), len(at)) if len(at) else 0.0


def cross_information(real: Real, params: dict, made: Sequence[Sample], pairs: int = 32) -> float:
    """Chapter-x10 on samples begun alike: bits a token that one tells about the next."""
    bos, t = real.tokenizer.bos, real.c.synthesize
    docs = [body(s, bos) for s in made[: 2 * pairs]]
    docs = [d[: (t.seq - 2) // 2] for d in docs if d]
    two = [(a, b) for a, b in zip(docs[::2], docs[1::2], strict=False)]
    if not two:
        return float("nan")
    lm, m = params["lm"], real.c.model
    alone = generate.nats(m, lm, [[bos, *b] for _, b in two], t.seq)
    beside = generate.nats(m, lm, [[bos, *a, bos, *b] for a, b in two], t.seq)
    size = np.array([len(b) for _, b in two])
    ends = np.array([x[-k:].sum() for x, k in zip(beside, size, strict=True)])
    return measure.cross_information(-np.array([x.sum() for x in alone]), -ends, size)


def histogram(real_bits: np.ndarray, bits: np.ndarray, bins: int = 24) -> dict[str, list[float]]:
    """Shares of documents by surprisal under the first model, real and sampled, over the same edges."""
    edges = np.linspace(*np.quantile(real_bits, (0.0, 1.0)), bins - 1)
    edges = np.concatenate([[edges[0] - (edges[-1] - edges[0]) / bins], edges, [edges[-1] * 1.3 + 1e-9]])
    share = lambda x: (np.histogram(np.clip(x[np.isfinite(x)], edges[0], edges[-1]), edges)[0] / max(len(x), 1)).tolist()  # noqa: E731  # fmt: skip
    return {"edges": edges.tolist(), "real": share(real_bits), "sample": share(bits)}
