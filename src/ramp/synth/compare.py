"""Are these samples as diverse as real text? Figures at equal tokens, a null, and the culprits.

Figures of a whole set are compared with resamples of real text that have as many documents with
the same lengths, so that length is a figure of its own and never passes for diversity. Where the
lengths differ, real texts are joined if the samples are several texts put together; else they are
cut, or those of the samples' length are taken, whichever is more like the samples.
What can be said of a single text (it is a copy, a variant, of another language) is counted over
all samples, beside the same count of real text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy import ndarray
from scipy import stats

from ramp.synth.docs import Docs, is_member
from ramp.synth.measure import (
    PHRASE,
    Comparison,
    find_common_tokens,
    find_ngrams,
    known_share,
    list_phrases,
    measure_panel,
    normal_deviate,
    order_gain,
    phrase_excess,
    rare_share,
    recurrence,
    seam_share,
    widen,
)
from ramp.synth.similar import (
    Copies,
    Families,
    find_common,
    find_copies,
    find_near_duplicates,
    find_repeats,
    group_variants,
)
from ramp.synth.texts import Texts, Vocabulary

NUM_RESAMPLES = 12  # of the null; of the samples themselves a third as many
LEAST_TEXTS = 8  # that are compared at all
SELECT_TEXTS, SELECT_RESAMPLES = 300, 6  # by which the way to match the lengths is chosen
# Samples with a real text of their length, before only those are compared; and of all compared.
LEAST_PARTNERS, PARTNER_SHARE = 30, 0.25
# Standard errors: texts put together differ so far from single ones, and samples are so much
# nearer to them, before samples are called several texts put together.
LEAST_SEAM, LEAST_NEARER = 4.0, 2.0
MOST_PHRASE = 0.1  # of the samples more than of real text may hold one phrase
LENGTHS_DIFFER = 1e-4  # the chance of such lengths, below which they are called different
BAND = 1.1  # texts of which the longer one has less than so many times the words are of a length
FREQUENT = 0.5  # the words that make up so much of real text are known to all who write it
FOREIGN = 0.15  # a text with a smaller share of them is of another language
FOREIGN_WORDS = 4  # fewer than these in a text tell nothing of its language
USUAL_END = 0.01  # of the real texts end so


@dataclass(frozen=True)
class Matching:
    """How texts of different lengths are compared."""

    join: int  # so many real texts are put together as one
    side: str  # the part that is kept of what is longer: begin, end or middle
    shortens: bool = False  # lengths differ so much that ends are lost
    is_nearest: bool = False  # only texts that have a partner of about their length are compared

    def describe(self) -> str:
        """In words."""
        if self.is_nearest:
            return "each is compared with a text of about its length, and left out without one"
        joined = f"{self.join} real texts joined as one; " if self.join > 1 else ""
        return f"{joined}of the longer one of each pair the {self.side} is kept"

    def match(self, real: Docs, sample: Docs, rng: np.random.Generator) -> tuple[Docs, Docs]:
        """As many documents of each, rank by rank of equal length."""
        real = real.join(self.join)
        # In order of length; equal ones as chance has it.
        by_length = [
            docs.take(np.lexsort((rng.random(len(docs)), docs.lengths))) for docs in (real, sample)
        ]
        lengths = np.minimum(*(docs.lengths for docs in by_length))
        cut_docs = []
        for docs in by_length:
            over = docs.lengths - lengths
            begins = {"begin": 0 * over, "end": over, "middle": rng.integers(0, over + 1)}
            cut_docs.append(docs.cut(begins[self.side], lengths))
        return cut_docs[0], cut_docs[1]


NEAREST = Matching(1, "begin", is_nearest=True)


@dataclass(frozen=True)
class Bands:
    """Real texts and samples in bands of about equal length, so that each can have a partner."""

    real: ndarray  # [R]: the band of each real text
    sample: ndarray  # [S]: of each sample
    partners: ndarray  # [bands]: how many pairs there are, of at most half of the real texts there

    @classmethod
    def from_lengths(cls, real: ndarray, sample: ndarray) -> "Bands":
        """Bands in which the longest text has at most a tenth more words than the shortest.

        real [R], sample [S]: words of each text.
        """
        bands = [
            (np.log(np.maximum(side, 1)) / np.log(BAND)).astype(np.int64) for side in (real, sample)
        ]
        size = int(max(band.max(initial=0) for band in bands)) + 1
        counts = [np.bincount(band, minlength=size) for band in bands]
        return cls(*bands, np.minimum(counts[0] // 2, counts[1]))

    @property
    def num_real(self) -> int:
        """Real texts in the bands that have pairs."""
        return int((self.partners[self.real] > 0).sum())

    def take_real(self, rng: np.random.Generator) -> ndarray:
        """Real texts, in order: of each band as many as there are samples, or all."""
        counts = np.bincount(self.sample, minlength=len(self.partners))
        return np.sort(pick_per_band(self.real, counts, rng)[0])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[ndarray, ndarray, ndarray]:
        """(n real texts, all other ones, n samples): of each band as many of both kinds."""
        pairs = np.repeat(np.arange(len(self.partners)), self.partners)
        wanted = np.bincount(rng.choice(pairs, n, replace=False), minlength=len(self.partners))
        real, rest = pick_per_band(self.real, wanted, rng)
        return real, rest, pick_per_band(self.sample, wanted, rng)[0]


def pick_per_band(
    band: ndarray, wanted: ndarray, rng: np.random.Generator
) -> tuple[ndarray, ndarray]:
    """(texts picked by chance, `wanted` of each band or all of it; all other texts).

    band [D]: of each text. wanted [bands].
    """
    order = rng.permutation(len(band))
    order = order[np.argsort(band[order], kind="stable")]
    # The place of each within its band, in an order that chance gives.
    first = np.searchsorted(band[order], band[order])
    is_picked = np.arange(len(order)) - first < wanted[band[order]]
    return order[is_picked], order[~is_picked]


@dataclass(frozen=True)
class Share:
    """How many of the samples something holds for, beside real text."""

    value: float
    null: float  # of real text
    z: float  # normal deviate of the difference
    rows: list[int]  # the samples it holds for, the worst first


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is made of."""

    num_real: int
    num_sample: int
    num_compared: int  # documents on each side of a comparison
    num_tokens: int  # words on each side of it
    num_partners: int  # samples that have a real text of about their length beside them
    matching: Matching
    lengths_differ: bool
    length_ratio: float
    panel: dict[str, Comparison]
    shares: dict[str, Share]
    families: Families
    bare: Families  # the same when phrases that yet more samples hold are not counted
    copies: Copies


@dataclass(frozen=True)
class Comparing:
    """Two sets of texts, and the text that the samples may have been copied from."""

    real: Texts
    sample: Texts
    train: Texts | None
    vocabulary: Vocabulary
    seed: int = 0

    def weigh(self) -> Evidence:
        """Take every figure."""
        real, sample = self.real.docs, self.sample.docs
        # By the geometric mean: one huge text would make all others short.
        logs = [np.log(np.maximum(side.lengths, 1)).mean() for side in (sample, real)]
        ratio = float(np.exp(logs[0] - logs[1]))
        matching = self._choose_matching(ratio) if self._lengths_differ else Matching(1, "begin")
        n = self.count_compared(matching)
        panel, tokens = self.measure(matching, n, NUM_RESAMPLES) if n >= LEAST_TEXTS else ({}, 0)
        families = group_variants(sample, find_common(real))
        copies = self._find_copies()
        shares = {
            "variants": self._share_variants(families),
            "repeats": self._share_twins(lambda docs: find_repeats(docs)[0]),
            "near_duplicates": self._share_twins(find_near_duplicates),
            "copied": copies[1],
            "foreign": self._share_foreign(),
            "cut_ends": self._share_cut_ends(),
        }
        return Evidence(
            len(real),
            len(sample),
            n,
            tokens,
            self.count_compared(NEAREST),
            matching,
            self._lengths_differ,
            ratio,
            panel,
            shares,
            families,
            self._group_bare(families, shares["variants"]),
            copies[0],
        )

    @property
    def rng(self) -> np.random.Generator:
        """A new generator, so that no figure depends on which were taken before."""
        return np.random.default_rng(self.seed)

    def count_compared(self, matching: Matching) -> int:
        """Documents of a comparison: at most half of the real ones, the rest is the reference."""
        if matching.is_nearest:
            return int(self._bands.partners.sum())
        return min(len(self.sample), len(self.real) // 2 // matching.join)

    @cached_property
    def _lengths_differ(self) -> bool:
        gap = stats.ks_2samp(self.real.docs.lengths, self.sample.docs.lengths)
        return bool(gap.pvalue < LENGTHS_DIFFER)

    @cached_property
    def _bands(self) -> "Bands":
        return Bands.from_lengths(self.real.docs.lengths, self.sample.docs.lengths)

    def draw(
        self, matching: Matching, n: int, rng: np.random.Generator
    ) -> tuple[ndarray, ndarray, ndarray]:
        """(the real texts of a comparison of n documents, all other real texts, n samples)."""
        if matching.is_nearest:
            return self._bands.draw(n, rng)
        drawn, rest = np.split(rng.permutation(len(self.real)), [n * matching.join])
        return drawn, rest, rng.choice(len(self.sample), n, replace=False)

    # --- figures of whole sets

    def measure(
        self, matching: Matching, n: int, num_resamples: int
    ) -> tuple[dict[str, Comparison], int]:
        """Every figure with its null, and the words it is of."""
        real, sample, rng = self.real.docs, self.sample.docs, self.rng
        null: list[dict[str, float]] = []
        own: list[dict[str, float]] = []
        tokens = 0
        for i in range(num_resamples):
            drawn, rest, rows = self.draw(matching, n, rng)
            reference = real.take(rest)
            whole = [real.take(drawn), sample.take(rows)]
            parts = matching.match(*whole, rng)
            tokens = len(parts[0].flat)
            # Of texts that are as long, a phrase at their end is not to be cut off.
            whole = parts if matching.shortens else [whole[0].join(matching.join), whole[1]]
            null.append(measure_texts(reference, parts[0], whole[0]))
            # The samples vary only by which of them are drawn, and how they are cut.
            if i < -(-num_resamples // 3):
                own.append(measure_texts(reference, parts[1], whole[1]))
        pool = self._bands.num_real if matching.is_nearest else len(real)
        widening = widen(n * matching.join / pool)
        return {
            name: compare_values(
                np.array([f[name] for f in own]), np.array([f[name] for f in null]), widening
            )
            for name in null[0]
        }, tokens

    def _choose_matching(self, ratio) -> Matching:
        """The way to match lengths under which samples and real text are most alike.

        Short texts may be another kind of text than beginnings of long ones: then they are
        compared with short ones.
        """
        real, sample = self.real.docs, self.sample.docs
        # By the mean: that of several texts put together is a multiple, no other average is.
        number = max(round(sample.lengths.mean() / real.lengths.mean()), 2)
        if round(ratio) > 1 and self._are_joined(number):
            return Matching(number, "begin")
        sides = [Matching(1, side, shortens=True) for side in ("begin", "end", "middle")]
        side = min(sides, key=self._compare_bounds) if ratio < 1 else sides[0]
        num_partners, num_cut = (self.count_compared(way) for way in (NEAREST, side))
        if num_partners < count_needed(num_cut):
            return side
        # At equal numbers: among few nothing is far from chance.
        n = min(num_partners, num_cut, SELECT_TEXTS)
        return min((side, NEAREST), key=lambda matching: self._compare_panels(matching, n))

    def _are_joined(self, number: int) -> bool:
        """Whether the samples are more like so many real texts put together than like single ones.

        Both stand beside them: how far apart a text repeats a word is a matter of its kind.
        """
        real = self.real.docs
        common = find_common_tokens(real)
        joined = real.take(self.rng.permutation(len(real))).join(number)
        one, one_error = seam_share(real, 1, common)
        several, several_error = seam_share(joined, number, common)
        # Texts put together share nothing from end to end, either.
        own, own_error = max(seam_share(self.sample.docs, k, common) for k in (number, 1))
        error = np.hypot(one_error, several_error)
        is_nearer = own + LEAST_NEARER * np.hypot(own_error, error / 2) < (one + several) / 2
        return bool(one - several > LEAST_SEAM * error and is_nearer)

    def _compare_bounds(self, matching: Matching) -> float:
        """How differently texts begin and end when they are matched in this way."""
        n, rng = self.count_compared(matching), self.rng
        real = self.real.docs.take(rng.permutation(len(self.real))[:n])
        sample = self.sample.docs.take(rng.permutation(len(self.sample))[:n])
        gap = 0.0
        for step in (0, 1):
            ends = []
            for docs in matching.match(real, sample, rng):
                filled = docs.take(np.flatnonzero(docs.lengths))
                ends.append(filled.flat[filled.starts + step * (filled.lengths - 1)])
            counts = [np.bincount(words, minlength=len(self.vocabulary.ids)) for words in ends]
            gap += float(np.abs(counts[0] - counts[1]).sum())
        return gap

    def _compare_panels(self, matching: Matching, n: int) -> float:
        """How far apart their figures are."""
        if n < LEAST_TEXTS:
            return np.inf
        panel, _ = self.measure(matching, n, SELECT_RESAMPLES)
        return float(np.mean([min(abs(np.nan_to_num(f.z)), 20) for f in panel.values()]))

    # --- figures of single texts

    @cached_property
    def _some_real(self) -> ndarray:
        """Real texts beside which shares of the samples stand: as many, or all.

        Where lengths differ, they are of the samples' lengths, as far as there are such and if
        these are enough: two texts of a few words are alike more easily than two long ones.
        """
        if self._lengths_differ:
            alike = self._bands.take_real(self.rng)
            if len(alike) >= count_needed(len(self.sample)):
                return alike
        count = min(len(self.real), len(self.sample))
        return np.sort(self.rng.permutation(len(self.real))[:count])

    def _share_variants(self, families: Families) -> Share:
        real = self.real.docs
        beside = group_variants(real.take(self._some_real), find_common(real))
        # The chance of a text to be there already grows with how many there are.
        more = len(self.sample) / len(self._some_real)
        rows = [int(row) for group in families.list_largest() for row in group[1:]]
        null = min(beside.repeated * more, 1)
        return compare_shares(rows, len(self.sample), null, len(self._some_real))

    def _group_bare(self, families: Families, variants: Share) -> Families:
        """The families of the samples without the words of phrases that more of them hold."""
        real, sample = self.real.docs, self.sample.docs
        phrases, excess = list_phrases(real, sample, LEAST_TEXTS)
        phrases = phrases[excess > MOST_PHRASE + max(variants.value - variants.null, 0)]
        if not len(phrases):
            return families
        at = find_ngrams(sample, PHRASE)[is_member(sample.hash_ngrams(PHRASE)[0], phrases)]
        is_kept = np.ones(len(sample.flat), bool)
        is_kept[(at[:, None] + np.arange(PHRASE)).ravel()] = False
        lengths = np.bincount(sample.owner[is_kept], minlength=len(sample))
        return group_variants(Docs(sample.flat[is_kept], lengths), find_common(real))

    def _share_twins(self, find: Callable[[Docs], ndarray]) -> Share:
        twins = find(self.sample.docs)
        beside = find(self.real.docs.take(self._some_real)) >= 0
        null = min(beside.mean() * len(self.sample) / len(beside), 1)
        return compare_shares(np.flatnonzero(twins >= 0), len(twins), null, len(beside))

    def _find_copies(self) -> tuple[Copies, Share]:
        pool = self.real.docs + self.train.docs if self.train else self.real.docs
        common = find_common(self.real.docs)
        copies = find_copies(self.sample.docs, pool, common=common)
        some_real = self.real.docs.take(self._some_real)
        beside = find_copies(some_real, pool, least=2, common=common)
        # Real texts that are all in the training text too find themselves there.
        if beside.copied.mean() > 0.5:
            beside = find_copies(some_real, pool, least=3, common=common)
        rows = np.flatnonzero(copies.copied)
        rows = rows[np.argsort(-copies.longest[rows], kind="stable")]
        share = compare_shares(rows, len(self.sample), beside.copied.mean(), len(some_real))
        return copies, share

    def _share_foreign(self) -> Share:
        words = np.array([word[0].isalpha() for word in self.vocabulary.ids])
        real = self.real.docs
        counts = np.bincount(real.flat[words[real.flat]], minlength=len(words))
        order = np.argsort(-counts, kind="stable")
        enough = np.searchsorted(np.cumsum(counts[order]), FREQUENT * counts.sum())
        is_frequent = np.isin(np.arange(len(words)), order[: enough + 1])

        def find_foreign(docs):
            is_word = words[docs.flat]
            total = np.bincount(docs.owner, is_word, len(docs))
            frequent = np.bincount(docs.owner, is_frequent[docs.flat], len(docs))
            return (total >= FOREIGN_WORDS) & (frequent < FOREIGN * total)

        rows = np.flatnonzero(find_foreign(self.sample.docs))
        null = find_foreign(real.take(self._some_real))
        return compare_shares(rows, len(self.sample), null.mean(), len(null))

    def _share_cut_ends(self) -> Share:
        real, sample = self.real.docs, self.sample.docs
        last = real.flat[(real.starts + real.lengths - 1)[real.lengths > 0]]
        ends, counts = np.unique(last, return_counts=True)
        usual = ends[counts >= USUAL_END * len(last)]
        is_other = ~is_member(sample.flat[sample.starts + sample.lengths - 1], usual)
        null = 1 - counts[counts >= USUAL_END * len(last)].sum() / max(len(last), 1)
        return compare_shares(np.flatnonzero(is_other), len(sample), null, len(real))


def count_needed(num_compared: int) -> int:
    """Samples with a real text of their length, from which on they can stand for all compared."""
    return max(LEAST_PARTNERS, int(np.ceil(PARTNER_SHARE * num_compared)))


def measure_texts(real: Docs, sample: Docs, whole: Docs) -> dict[str, float]:
    """The panel, and what tells text from strings of words; `whole`: the sample before it is cut.

    The figures by their names, see `ramp.synth.measure_report.FIGURES`.
    """
    return measure_panel(real, sample) | {
        "known_1": known_share(real, sample, 1),
        "known_2": known_share(real, sample, 2),
        "recurrence": recurrence(real, sample),
        "rare": rare_share(real, sample),
        "order": order_gain(real, sample),
        "phrase": phrase_excess(real, whole),
    }


def compare_values(own: ndarray, null: ndarray, widening: float) -> Comparison:
    """The mean of some values [J] with a null [K] whose spread is to be widened."""
    k = len(null)
    value, mean = own.mean(), null.mean()
    spread = null.std(ddof=1) * widening * np.sqrt(1 + 1 / k)
    # A figure that no resample ever changes is exact.
    t = (value - mean) / max(spread, 1e-9 * max(abs(mean), 1e-9))
    ratio = value / mean if mean else float("nan")
    return Comparison(float(value), float(mean), float(ratio), normal_deviate(t, k - 1))


def compare_shares(rows: Sequence[Any] | ndarray, n: int, null: float, num_null: int) -> Share:
    """A share of n samples with that of real texts, by the test of two proportions.

    One more is counted than was seen, so that none among few does not mean never.
    """
    value = len(rows) / n
    pooled = (len(rows) + null * num_null + 1) / (n + num_null + 2)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / num_null))
    return Share(value, float(null), float((value - null) / spread), [int(row) for row in rows])
