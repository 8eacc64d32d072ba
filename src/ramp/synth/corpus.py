"""Real and generated text as the stage needs it, without jax: openings of documents to compare,
rows to train on, bits to judge by.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy import ndarray

from ramp.config import Config
from ramp.errors import UserError
from ramp.synth import mix, select
from ramp.synth.docs import Docs, Ids
from ramp.synth.measure import MAX_RARE_COUNT
from ramp.text.corpus import documents
from ramp.text.rows import TokenRows
from ramp.text.tokenizer import Tokenizer

MAX_RARITY_ROWS = 4096  # training rows whose rarity is measured, spread over all of them


class Scorer(Protocol):
    """A model that scores rows of tokens, each of which begins with bos; `scores.ModelScorer`."""

    def nats(self, docs: Sequence[Ids]) -> list[ndarray]:
        """-log p of each token after the first, for each row."""
        ...

    def gradients(self, docs: Sequence[Ids]) -> ndarray:
        """[N, K]: features of each row's gradient."""
        ...


@dataclass(frozen=True)
class DocumentBits:
    """Bits of documents under a model."""

    per_byte: ndarray
    per_token: ndarray  # infinite for an empty document
    rare: ndarray  # mean over the rare tokens, of the documents that have any


@dataclass(frozen=True)
class RealCorpus:
    """Real documents. They are compared by their openings, which are as long as a sample is."""

    c: Config
    tokenizer: Tokenizer
    rows: TokenRows
    train: list[ndarray]  # openings of training documents
    guard: list[ndarray]  # openings of validation documents, which judge every generation
    final: list[ndarray]  # openings of validation documents that are read once, at the end
    whole: list[ndarray]  # some training documents, uncut, that verifiers are tried on
    held_out: list[ndarray]  # all validation documents, whole, to find contaminated samples

    @classmethod
    def read(
        cls, tokens_path: Callable[[str], Path], c: Config, tokenizer: Tokenizer
    ) -> "RealCorpus":
        """Read the tokens of the splits "train" and "val".

        tokens_path: the file of a split. UserError where there are too few documents.
        """
        t = c.synthesize
        rows, val = (
            TokenRows(tokens_path(split), t.train.seq_len, tokenizer.fingerprint)
            for split in ("train", "val")
        )
        train = find_documents(rows.stream, tokenizer.bos)
        held_out = find_documents(val.stream, tokenizer.bos)
        _require_documents("training", len(train), 2 * t.num_measured)
        _require_documents("validation", len(held_out), 16)
        rng = np.random.default_rng(c.seed)
        # Eight times as many as are measured at once: resamples of an eighth overlap little.
        train = train[rng.permutation(len(train))[: 8 * t.num_measured]]
        # Every other validation document guards, the rest are kept for the end.
        judges = held_out[rng.permutation(len(held_out))[: 2 * t.num_guard_documents]]
        opened = cut_documents(val.stream, judges, t.max_new_tokens)
        return cls(
            c,
            tokenizer,
            rows,
            cut_documents(rows.stream, train, t.max_new_tokens),
            opened[::2],
            opened[1::2],
            cut_documents(rows.stream, train[: t.num_audited]),
            cut_documents(val.stream, held_out),
        )

    def find_contaminated(self, docs: Docs) -> ndarray:
        """[D]: the held-out document, or that of `decontaminate`, that each shares text with; -1.

        Line breaks and runs of spaces do not count.
        """
        n = self.c.synthesize.contamination_tokens
        normal = self._normalize(self.decode(docs))
        return select.find_contaminated(normal, self._forbidden, n)

    def name_held_out(self, h: int) -> str:
        """A document that `find_contaminated` found, for people."""
        k = h - len(self.held_out)
        if k < 0:
            return f"held-out document {h}"
        return f"document {k} of synthesize.decontaminate"

    @cached_property
    def _forbidden(self) -> Docs:
        texts = self.decode(Docs.from_lists(self.held_out))
        for source in self.c.synthesize.decontaminate:
            texts += [document.text for document in documents(source, Counter())]
        return self._normalize(texts)

    def _normalize(self, texts):
        return Docs.from_lists([self.tokenizer.encode(" ".join(text.split())) for text in texts])

    @cached_property
    def count_v(self) -> ndarray:
        """[V]: how often the training stream has each token."""
        return np.bincount(self.rows.stream, minlength=self.c.model.vocab_size)

    @cached_property
    def rare_rows(self) -> ndarray:
        """The tenth of the training rows with the rarest contexts, among `MAX_RARITY_ROWS`."""
        spread = np.linspace(0, len(self.rows) - 1, MAX_RARITY_ROWS)
        candidates = np.unique(spread.astype(int))
        docs = Docs.from_lists(list(self.rows.take(candidates)["tokens"]))
        order = np.argsort(select.rarity(docs, self.count_v))
        return candidates[order[: max(1, len(candidates) // 10)]]

    def measure_bits(self, scorer: Scorer, docs: Sequence[ndarray]) -> DocumentBits:
        """Bits of documents under a model; a document counts as far as the scorer reads it."""
        padding = self.c.model.vocab_size - self.tokenizer.vocab_size
        # The model's table is padded; ids beyond the tokenizer's have no bytes.
        byte_lengths = np.pad(self.tokenizer.byte_lengths, (0, padding))
        per_byte, per_token, rare = [], [], []
        for doc, nats in zip(docs, scorer.nats(self.with_bos(docs)), strict=True):
            doc = doc[: len(nats)]  # the scorer cuts long documents
            per_byte.append(nats.sum() / max(byte_lengths[doc].sum(), 1))
            per_token.append(nats.mean() if len(nats) else np.inf)
            is_rare = self.count_v[doc] <= MAX_RARE_COUNT
            if is_rare.any():
                rare.append(nats[is_rare].mean())
        bits = (np.asarray(nats, float) / np.log(2) for nats in (per_byte, per_token, rare))
        return DocumentBits(*bits)

    def with_bos(self, docs: Sequence[Ids]) -> list[list[int]]:
        """The documents as rows that a `Scorer` reads."""
        return [[self.tokenizer.bos, *doc] for doc in docs]

    def decode(self, docs: Docs) -> list[str]:
        """The documents as texts."""
        return [self.tokenizer.decode(doc) for doc in docs.to_list()]


def find_documents(stream: ndarray, bos: int) -> ndarray:
    """[D, 2]: where each document of `bos doc bos doc ...` starts and ends, without empty ones."""
    starts = np.flatnonzero(stream == bos) + 1
    ends = np.append(starts[1:] - 1, len(stream))  # the next bos ends a document
    return np.stack([starts, ends], axis=1)[ends > starts]


def cut_documents(stream: ndarray, places: ndarray, max_tokens: int | None = None) -> list[ndarray]:
    """The documents at these places, or their first tokens."""
    return [np.array(stream[start:end][:max_tokens], np.int64) for start, end in places]


def _require_documents(split, count, needed):
    if count < needed:
        raise UserError(
            f"synthesize needs {needed} {split} documents and has {count}: give more text, "
            "cut it into more documents, or lower synthesize.num_measured"
        )


# Rows to train on


@dataclass(frozen=True)
class PackedSamples:
    """Samples packed as pretraining packs documents, `bos doc bos doc ...`, with a loss weight on
    every target. All arrays are [N, T].

    The bos after a sample has a weight only where the sample ended by itself: where it was cut at
    the longest length, its end is not the model's.
    """

    tokens: ndarray
    targets: ndarray
    weights: ndarray
    owner: ndarray  # the sample that each target belongs to; -1: none

    @classmethod
    def pack(
        cls, docs: Sequence[Sequence[int]], weights: Sequence[float], length: int, bos: int
    ) -> "PackedSamples":
        """Rows of `length` targets; a sample that ended by itself has its bos at the end."""
        ids, weight, owner = [bos], [0.0], [-1]
        for i, (doc, w) in enumerate(zip(docs, weights, strict=True)):
            body = [token for token in doc if token != bos]  # a prompt's bos too
            ended = bos in doc[-1:]
            ids += [*body, bos]
            weight += [w] * len(body) + [w * ended]
            owner += [i] * (len(body) + 1)
        num_rows = max(1, -(-(len(ids) - 1) // length))
        padding = 0, num_rows * length + 1 - len(ids)
        stream = np.pad(np.array(ids, np.int32), padding)
        weight_n = np.pad(np.array(weight, np.float32), padding)
        owner_n = np.pad(owner, padding, constant_values=-1)
        # Weights and owners belong to targets, which are one token ahead.
        columns = (stream[:-1], stream[1:], weight_n[1:], owner_n[1:])
        return cls(*(column.reshape(num_rows, length) for column in columns))


@dataclass(frozen=True)
class TrainingPlan:
    """The rows of a generation's training in their order.

    `plan(step, lo, hi)` is a pure function, as every batch is in ramp.
    """

    real: TokenRows
    samples: list[PackedSamples]  # of generation 1, 2, ...
    generation: ndarray  # [steps, batch], 0: real
    index: ndarray  # [steps, batch], of the row within its generation

    @classmethod
    def build(
        cls,
        c: Config,
        real: RealCorpus,
        samples: list[PackedSamples],
        weights: Sequence[float],
        real_fraction: float,
        rare_fraction: float,
    ) -> "TrainingPlan":
        """Choose the rows by the policy of the configuration.

        weights: of each generation's samples, 0 for one that the guard dropped. real_fraction: of
        all rows; rare_fraction: of the real ones.
        """
        t = c.synthesize
        steps, batch_size = t.train.steps, t.train.batch_size
        final = t.final_real_fraction if t.policy == "guarded" else 0.0
        num_final = round(final * steps) * batch_size
        num_mixed = steps * batch_size - num_final
        rng = np.random.default_rng([c.seed, len(samples)])  # another draw in every generation
        # The real rows at the end count towards the fraction.
        mixed_fraction = (real_fraction * steps * batch_size - num_final) / max(num_mixed, 1)
        # A row without any weight would be a wasted slot: it is never drawn.
        row_weights = [
            np.where(packed.weights.any(axis=1), w, 0.0)
            for w, packed in zip(weights, samples, strict=True)
        ]
        sizes = [len(real.rows), *(len(packed.tokens) for packed in samples)]
        mixed = mix.compose(
            t.policy,
            sizes,
            num_mixed,
            rng,
            max(0.0, mixed_fraction),
            real.rare_rows,
            rare_fraction,
            row_weights,
            t.age_decay,
            t.max_passes,
        )
        generation = np.append(mixed.generation, np.zeros(num_final, int))
        index = np.append(mixed.index, rng.choice(sizes[0], num_final))
        order = mix.order_rows(len(mixed.index), num_final, steps, batch_size, final, c.seed)
        return cls(real.rows, samples, generation[order], index[order])

    def __call__(self, step: int, lo: int, hi: int) -> dict[str, ndarray]:
        """Rows lo .. hi of the batch of a step; past the last one it begins anew."""
        step %= len(self.generation)  # a recovery passes over batches
        generation = self.generation[step, lo:hi]
        index = self.index[step, lo:hi]
        # Every row is read as a real one first; the rows of samples are then written over.
        batch = self.real.take(np.where(generation == 0, index, 0))
        for g in np.unique(generation[generation > 0]):
            at = generation == g
            for name in batch:
                batch[name][at] = getattr(self.samples[g - 1], name)[index[at]]
        return batch

    def find_steps(self, g: int, num_samples: int) -> list[list[int]]:
        """The steps in which each sample of generation g is used."""
        steps = [set() for _ in range(num_samples)]
        for step, slot in np.argwhere(self.generation == g).tolist():
            owner = self.samples[g - 1].owner[self.index[step, slot]]
            for i in set(owner.tolist()) - {-1}:
                steps[i].add(step)
        return [sorted(s) for s in steps]
