"""Real text and generated text as the stage needs them: openings to compare, rows to train on, bits to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ramp.config import Config
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.synth import generate, mix, select
from ramp.synth.measure import RARE, Docs
from ramp.text.rows import TokenRows
from ramp.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class RealCorpus:
    """Documents are compared by their openings, as long as a sample is."""

    c: Config
    tokenizer: Tokenizer
    rows: TokenRows
    train: list[np.ndarray]  # openings of training documents
    guard: list[np.ndarray]  # of validation documents, which judge every generation
    final: list[np.ndarray]  # of validation documents, opened once, at the end
    held: Docs  # all validation documents, whole: no sample may share a passage with them

    @classmethod
    def read(cls, rundir: RunDir, c: Config, tokenizer: Tokenizer) -> "RealCorpus":
        t = c.synthesize
        rows, val = (
            TokenRows(rundir.tokens(s), t.train.seq_len, tokenizer.fingerprint)
            for s in ("train", "val")
        )
        train, whole = (
            openings(r.stream, tokenizer.bos, n)
            for r, n in ((rows, t.max_new_tokens), (val, len(val.stream)))
        )
        held = [doc[: t.max_new_tokens] for doc in whole]
        for name, docs, least in (
            ("training", train, 2 * t.num_measured),
            ("validation", held, 16),
        ):
            if len(docs) < least:
                raise UserError(
                    f"synthesize needs {least} {name} documents and has {len(docs)}: give more text, cut it into more "
                    "documents, or lower synthesize.num_measured"
                )
        rng = np.random.default_rng(c.seed)
        train = [
            train[i] for i in rng.permutation(len(train))[: 8 * t.num_measured]
        ]  # nulls of an eighth overlap little
        held = [held[i] for i in rng.permutation(len(held))[: 2 * t.num_guard_documents]]
        return cls(c, tokenizer, rows, train, held[::2], held[1::2], Docs.of(whole))

    @cached_property
    def count_v(self) -> np.ndarray:
        """How often the training stream has each token."""
        return np.bincount(self.rows.stream, minlength=self.c.model.vocab_size)

    @cached_property
    def rare_rows(self) -> np.ndarray:
        """The tenth of the training rows with the rarest contexts, among at most 4096 spread over them."""
        among = np.unique(np.linspace(0, len(self.rows) - 1, 4096).astype(int))
        score = select.rarity(Docs.of(list(self.rows.take(among)["tokens"])), self.count_v)
        return among[np.argsort(score)[: max(1, len(among) // 10)]]

    def bits(self, params: dict, docs: Sequence[np.ndarray]) -> "Bits":
        lm, t, bos = params["lm"], self.c.synthesize, self.tokenizer.bos
        nats = generate.score_documents(
            self.c.model, lm, [[bos, *doc] for doc in docs], t.max_new_tokens
        )
        docs = [doc[: len(x)] for doc, x in zip(docs, nats, strict=True)]
        lengths = np.append(
            self.tokenizer.byte_lengths,
            np.zeros(self.c.model.vocab_size - self.tokenizer.vocab_size),
        )
        per_byte = [x.sum() / max(lengths[doc].sum(), 1) for x, doc in zip(nats, docs, strict=True)]
        rare = [x[self.count_v[doc] <= RARE] for x, doc in zip(nats, docs, strict=True)]
        per_token = [x.mean() if len(x) else np.inf for x in nats]
        return Bits(
            *(
                np.asarray(a, float) / np.log(2)
                for a in (per_byte, per_token, [x.mean() for x in rare if len(x)])
            )
        )


@dataclass(frozen=True)
class Bits:
    """Of documents under a model."""

    per_byte: np.ndarray
    per_token: np.ndarray  # infinite for an empty document
    rare: np.ndarray  # mean of the rare tokens of each document that has any


def openings(stream: np.ndarray, bos: int, longest: int) -> list[np.ndarray]:
    """The first tokens of each document of `bos doc bos doc ...`, without bos; empty documents are left out."""
    starts = np.flatnonzero(stream == bos)
    ends = np.append(starts[1:], len(stream))
    return [
        np.array(stream[a + 1 : min(b, a + 1 + longest)], np.int64)
        for a, b in zip(starts, ends, strict=True)
        if b > a + 1
    ]


# ---------------------------------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class PackedSamples:
    """Samples packed as pretraining packs documents, `bos doc bos doc ...`, with a weight on every target.

    The bos after a sample bears weight only where the sample ended by itself: the cut at the longest length is ours.
    """

    tokens: np.ndarray  # [N, T]
    targets: np.ndarray
    weights: np.ndarray
    owner: np.ndarray  # the sample each target is of; -1: none

    @classmethod
    def pack(
        cls, docs: Sequence[Sequence[int]], weights: Sequence[float], length: int, bos: int
    ) -> "PackedSamples":
        ids, weight, owner = [bos], [0.0], [-1]
        for i, (doc, w) in enumerate(zip(docs, weights, strict=True)):
            ended = len(doc) > 0 and doc[-1] == bos
            body = [t for t in doc if t != bos]
            ids += [*body, bos]
            weight += [w] * len(body) + [w if ended else 0.0]
            owner += [i] * (len(body) + 1)
        n = max(1, -(-(len(ids) - 1) // length))
        pad = n * length + 1 - len(ids)
        stream = np.array(ids + [0] * pad, np.int32)
        place = lambda a, fill, kind: np.array(a + [fill] * pad, kind)[1:].reshape(n, length)  # noqa: E731
        return cls(
            stream[:-1].reshape(n, length),
            stream[1:].reshape(n, length),
            place(weight, 0.0, np.float32),
            place(owner, -1, np.int64),
        )


@dataclass(frozen=True)
class TrainingPlan:
    """The rows of a generation's training in their order: `batches(step)` is a pure function, as every batch is here."""

    real: TokenRows
    made: list[PackedSamples]  # generation 1, 2, ...
    generation: np.ndarray  # [steps, batch], 0: real
    number: np.ndarray

    @classmethod
    def plan(
        cls,
        c: Config,
        real: RealCorpus,
        made: list[PackedSamples],
        live: Sequence[float],
        m: float,
        rare: float,
        seed: int,
    ) -> "TrainingPlan":
        """`live`: weight of each generation's samples, 0 for one that the guard dropped."""
        t = c.synthesize
        last = t.final_real_fraction if t.policy == "guarded" else 0.0
        slots = t.train.steps * t.train.batch_size
        first = slots - round(last * t.train.steps) * t.train.batch_size
        rng = np.random.default_rng([seed, len(made)])
        share = max(0.0, (m * slots - (slots - first)) / max(first, 1))
        held = [w * (x.weights.sum(axis=1) > 0) for w, x in zip(live, made, strict=True)]
        sizes = [len(real.rows), *(len(x.tokens) for x in made)]
        found = mix.compose(
            t.policy, sizes, first, rng, share, real.rare_rows, rare, held, t.age_decay
        )
        reals = rng.choice(sizes[0], slots - first)
        order = mix.order(
            len(found.number), len(reals), t.train.steps, t.train.batch_size, last, seed
        )
        generation = np.concatenate([found.generation, np.zeros_like(reals)])[order]
        return cls(real.rows, made, generation, np.concatenate([found.number, reals])[order])

    def __call__(self, step: int, lo: int, hi: int) -> dict[str, np.ndarray]:
        generation, number = self.generation[step, lo:hi], self.number[step, lo:hi]
        batch = self.real.take(np.where(generation == 0, number, 0))
        for g in np.unique(generation[generation > 0]):
            at, rows = generation == g, self.made[g - 1]
            for name in batch:
                batch[name][at] = getattr(rows, name)[number[at]]
        return batch

    def steps(self, g: int, samples: int) -> list[list[int]]:
        """In which steps each sample of generation g is used."""
        found: list[set[int]] = [set() for _ in range(samples)]
        for step, slot in zip(*np.nonzero(self.generation == g), strict=True):
            row = self.made[g - 1].owner[self.number[step, slot]]
            for i in np.unique(row[row >= 0]):
                found[i].add(int(step))
        return [sorted(s) for s in found]
