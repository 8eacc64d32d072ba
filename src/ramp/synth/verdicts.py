"""What the figures of a comparison mean, in words, and the texts that show it.

One table, `RULES`: a rule holds when a share or a ratio is far enough off to matter and too far off
to be chance. Most limits were chosen on word problems; those of rare words, phrases, the order of
words and seams on stories, articles and a play too: see `experiments.collapse.constructions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ramp.synth.compare import LEAST_TEXTS, MOST_PHRASE, Comparing, Evidence, count_needed
from ramp.synth.docs import Docs, is_member
from ramp.synth.measure import PHRASE, find_ngrams
from ramp.synth.similar import Families, count_holders

LEAST_WORDS = 20  # of a text, on the average, before a panel of so few texts says anything
LEAST_Z = 4.0  # normal deviates, of every verdict
LEAST_COPIES_Z = 3.0  # copies have no other cause
MOST_REAL_REPEATS = 0.3  # of real texts; beside more, nothing can be found to repeat
MOST_UNSEEN = 0.2  # of the samples may be bad without an alarm, or it takes more texts
MOST_FOREIGN, MOST_REPEATED, MOST_COPIED, MOST_CUT = 0.1, 0.03, 0.02, 0.2  # over real text
NARROW = 0.93  # of what real text has: a lower ratio is less diverse
DRIFTED = 0.9  # of the word pairs that real text knows
SHUFFLED = 0.75  # of the same, with the words themselves known; of what their order adds to it
FEW_RARE = 0.85  # of the share of rare words
SMALL_VOCABULARY = 0.6  # of the words of held-out text that real text of this length uses
FEW_WORDS = 0.5  # of the different words of real text of this length
NO_SUBJECT, NO_SUBJECT_AT_ALL = 0.75, 0.5  # of the recurring words; whatever the length
OTHER_LENGTH = 0.05  # a smaller difference in length is not worth a word
COVERED = 0.95  # of the repeated texts are in the families that a verdict counts

NUM_CULPRITS = 5


@dataclass(frozen=True)
class Culprit:
    """A text that shows what a verdict says, and what about it."""

    what: str
    text: str


@dataclass(frozen=True)
class Finding:
    """One verdict."""

    name: str
    is_against: bool  # the samples are not as diverse as real text, or not of its kind
    sentence: str
    culprits: tuple[Culprit, ...]


@dataclass(frozen=True)
class Rule:
    """When a verdict holds, and how it is put."""

    name: str
    holds: Callable[[Evidence], bool]
    say: Callable[[Evidence], str]
    show: Callable[[Comparing, Evidence], list[Culprit]]
    is_against: bool = True
    explained_by: tuple[str, ...] = ()  # verdicts beside which this one says nothing new


def judge(comparing: Comparing, evidence: Evidence) -> list[Finding]:
    """Every verdict that holds, the gravest first; at least one."""
    findings: list[Finding] = []
    for rule in RULES:
        said = {finding.name for finding in findings}
        if said.isdisjoint(rule.explained_by) and rule.holds(evidence):
            culprits = tuple(rule.show(comparing, evidence))
            findings.append(Finding(rule.name, rule.is_against, rule.say(evidence), culprits))
    return findings


# --- when a rule holds


def exceeds(name: str, least: float, z: float = LEAST_Z) -> Callable[[Evidence], bool]:
    """Whether a share is so much larger than that of real text."""

    def holds(e):
        share = e.shares[name]
        return share.value - share.null > least and share.z > z

    return holds


def is_cut(e: Evidence) -> bool:
    """Whether many samples end where real texts do not."""
    return exceeds("cut_ends", MOST_CUT)(e)


def falls(e: Evidence, name: str, ratio: float) -> bool:
    """Whether a figure is below such a part of its null."""
    return not is_untold(e) and e.panel[name].ratio < ratio and e.panel[name].z < -LEAST_Z


def keeps(e: Evidence, name: str, ratio: float) -> bool:
    """Whether a figure is above such a part of its null."""
    return name in e.panel and e.panel[name].ratio > ratio


def is_untold(e: Evidence) -> bool:
    """Whether there is too little to compare."""
    names = ("coverage_2", "distinct_2", "kl_drift")
    is_short = e.num_tokens < LEAST_WORDS * LEAST_TEXTS
    return is_short or not all(np.isfinite(e.panel[name].z) for name in names)


def lacks_partners(e: Evidence) -> bool:
    """Whether the samples are of other lengths than real text, and nothing says why.

    Then they are compared with parts of real texts, and a short text may be another kind of text
    than a part of a long one: such a difference is no lack of diversity.
    """
    is_explained = e.matching.is_nearest or e.matching.join > 1 or is_cut(e)
    is_lonely = e.lengths_differ and e.num_partners < count_needed(e.num_compared)
    return is_lonely and not is_explained


def is_repetitive(e: Evidence) -> bool:
    """Whether real text repeats: half of it then knows the other half, and no fresh text."""
    return e.shares["variants"].null > MOST_REAL_REPEATS


def lacks_standard(e: Evidence) -> bool:
    """Whether there is no real text to hold the words of such samples against."""
    return lacks_partners(e) or is_repetitive(e)


def is_shuffled(e: Evidence) -> bool:
    """Whether the words are those of real text, and their order is not."""
    is_out_of_order = falls(e, "known_2", SHUFFLED) or falls(e, "order", SHUFFLED)
    keeps_words = keeps(e, "known_1", 0.9) and keeps(e, "coverage_1", SMALL_VOCABULARY)
    return is_out_of_order and keeps_words and keeps(e, "rare", FEW_RARE)


def has_few_words(e: Evidence) -> bool:
    """Whether most of the words of real text never occur."""
    is_few = falls(e, "coverage_1", SMALL_VOCABULARY) and falls(e, "distinct_1", FEW_WORDS)
    # Other words, or as many of another subject, are foreign rather than few.
    return is_few and keeps(e, "known_1", DRIFTED)


def is_salad(e: Evidence, ratio: float = NO_SUBJECT) -> bool:
    """Whether texts do not keep to a subject, though their pairs of words are real ones."""
    return falls(e, "recurrence", ratio) and keeps(e, "known_2", SHUFFLED)


def is_collapsed(e: Evidence) -> bool:
    """Whether many samples are variants of others, and not only by a phrase that all hold."""
    # Short texts that hold one phrase have most of their words in common.
    beyond = tell_families(e).repeated - e.shares["variants"].null
    return exceeds("variants", MOST_REPEATED)(e) and beyond > MOST_REPEATED


def tell_families(e: Evidence) -> Families:
    """The families of variants; without the words of a phrase where one is told of."""
    return e.bare if tells_phrase(e) else e.families


def tells_phrase(e: Evidence) -> bool:
    """Whether a phrase is worth a verdict; words in any order, or few words, make their own."""
    return has_phrase(e) and not (lacks_partners(e) or is_shuffled(e) or has_few_words(e))


def has_phrase(e: Evidence) -> bool:
    """Whether many samples hold one phrase that few real texts hold, and are no variants."""
    if is_untold(e):
        return False
    figure, variants = e.panel["phrase"], e.shares["variants"]
    least = MOST_PHRASE + max(variants.value - variants.null, 0)
    return figure.value - figure.null > least and figure.z > LEAST_Z


def is_narrower(e: Evidence) -> bool:
    """Whether less is said than in real text."""
    return any(falls(e, name, NARROW) for name in NARROWING)


def is_drifted(e: Evidence) -> bool:
    """Whether many pairs of words are not those of real text."""
    return falls(e, "known_2", DRIFTED)


def is_lonely(e: Evidence) -> bool:
    """Whether something is off that the other length may explain."""
    faults = (has_phrase, has_few_rare, is_salad, is_drifted, is_narrower)
    return lacks_partners(e) and any(holds(e) for holds in faults)


def has_few_rare(e: Evidence) -> bool:
    """Whether rare words are missing."""
    return falls(e, "rare", FEW_RARE)


def find_unseen(e: Evidence) -> float:
    """The largest share of copies or repeats among the samples that would raise no alarm."""
    n = min(e.num_sample, e.num_real)
    return max(LEAST_Z**2 / (n + LEAST_Z**2), MOST_COPIED)


def is_longer(e: Evidence, sign: int) -> bool:
    """Whether the samples are longer than real text, or shorter for a sign of -1."""
    return e.lengths_differ and sign * (e.length_ratio - 1) > OTHER_LENGTH


# --- how it is put


def percent(value: float) -> str:
    """A share for people: whole percents, one digit more below ten."""
    return f"{100 * value:.{int(value < 0.0995)}f}%"


def count_families(e: Evidence) -> tuple[int, int]:
    """(the families in which nearly all repeated texts are, the samples in them)."""
    sizes = np.sort(tell_families(e).sizes)[::-1]
    repeated = np.cumsum(sizes - 1)
    number = int(np.searchsorted(repeated, COVERED * repeated[-1])) + 1
    return number, int(sizes[:number].sum())


def _say_collapsed(e):
    number, members = count_families(e)
    texts = "one text" if number == 1 else f"{number:,} texts"
    null = percent(e.shares["variants"].null)
    share = percent(members / e.num_sample)
    return f"collapsed: {share} of the samples are variants of {texts} (of real text {null} repeat)"


def say_share(head: str, name: str, what: str) -> Callable[[Evidence], str]:
    """A verdict on a share."""

    def say(e):
        share = e.shares[name]
        ours, real = percent(share.value), percent(share.null)
        return f"{head}: {ours} of the samples {what} (of real text {real})"

    return say


def say_ratio(head: str, name: str, what: str) -> Callable[[Evidence], str]:
    """A verdict on a figure of the whole set."""

    def say(e):
        figure = e.panel[name]
        return f"{head}: {percent(figure.value)} {what} (of real text {percent(figure.null)})"

    return say


def _say_shuffled(e):
    figure = e.panel["order"]
    return (
        "shuffled, some or all: the order of the words makes "
        f"{percent(figure.value)} of their pairs known ones (of real text {percent(figure.null)})"
    )


def _say_narrower(e):
    name = min(NARROWING, key=lambda name: e.panel[name].ratio)
    figure = e.panel[name]
    what = NARROWING[name]
    return f"less diverse: {what} {figure.value:.3g}, of real text of this length {figure.null:.3g}"


def _say_longer(e):
    return f"only longer: {e.length_ratio:.2f} times the words of a real text"


def _say_joined(e):
    return f"joined: a sample reads like {e.matching.join} real texts put together"


def _say_few(e):
    least = int(np.ceil(LEAST_Z**2 * (1 / MOST_UNSEEN - 1)))
    return (
        f"too few texts to tell: copies or repeats in under {percent(find_unseen(e))} of the "
        f"samples would not be seen; give {least} samples and {least} real texts, or more"
    )


def _say_diverse(e):
    copies = find_unseen(e)
    other = percent(max(copies, MOST_FOREIGN))
    return (
        f"as diverse as real text (copies or repeats in under {percent(copies)} of the samples "
        f"would not be seen, nor another language in under {other}, nor wrong order in half)"
    )


# --- the texts that show it


def _show_families(comparing, e):
    found = []
    for rows in tell_families(e).list_largest()[:NUM_CULPRITS]:
        found.append(Culprit(f"{len(rows)} variants", comparing.sample.strings[rows[0]]))
    return found


def _show_copies(comparing, e):
    rows = e.shares["copied"].rows[:NUM_CULPRITS]
    strings = comparing.sample.strings
    found = []
    for row in rows:
        longest = e.copies.longest[row]
        what = f"{longest} words in a row" if longest else "most words in the order of one text"
        found.append(Culprit(what, strings[row]))
    return found


def show_rows(name: str, what: str) -> Callable[[Comparing, Evidence], list[Culprit]]:
    """The first of the samples that a share is made of."""

    def show(comparing, e):
        rows = e.shares[name].rows[:NUM_CULPRITS]
        return [Culprit(what, comparing.sample.strings[row]) for row in rows]

    return show


def _show_ends(comparing, e):
    rows = e.shares["cut_ends"].rows[:NUM_CULPRITS]
    return [Culprit("ends", "… " + comparing.sample.strings[row][-80:]) for row in rows]


def _show_strangest(comparing, e):
    """The samples with the fewest pairs of words that real text knows."""
    docs = comparing.sample.docs
    key, owner = docs.hash_ngrams(2)
    known = is_member(key, comparing.real.docs.ngram_counts[2][0])
    total = np.bincount(owner, minlength=len(docs))
    share = np.bincount(owner, known, len(docs)) / np.maximum(total, 1)
    rows = np.argsort(np.where(total > PHRASE, share, 2), kind="stable")[:NUM_CULPRITS]
    strings = comparing.sample.strings
    return [Culprit(f"{percent(share[row])} of its pairs known", strings[row]) for row in rows]


def _show_missing(comparing, e):
    """The most frequent words of real text that no sample has."""
    types, counts = comparing.real.docs.ngram_counts[1]
    is_gone = ~is_member(types, comparing.sample.docs.ngram_counts[1][0])
    order = np.argsort(-counts[is_gone], kind="stable")[:40]
    words = list(comparing.vocabulary.ids)
    gone = " ".join(words[int(i)] for i in types[is_gone][order])
    return [Culprit("never used", gone)] if gone else []


def _show_phrases(comparing, e):
    """The phrases that most more of the samples have than of the real texts."""
    (key, share), (real_key, real_share) = (
        share_holders(texts.docs) for texts in (comparing.sample, comparing.real)
    )
    place = np.minimum(np.searchsorted(real_key, key), max(len(real_key) - 1, 0))
    beside = np.zeros(len(key))
    if len(real_key):
        beside = np.where(real_key[place] == key, real_share[place], 0)
    docs = comparing.sample.docs
    hashes, places = docs.hash_ngrams(PHRASE)[0], find_ngrams(docs, PHRASE)
    found, used = [], set()
    for i in np.argsort(beside - share, kind="stable")[: 20 * NUM_CULPRITS].tolist():
        at = places[np.argmax(hashes == key[i])]
        words = docs.flat[at : at + PHRASE].tolist()
        # A phrase one word further on is no other phrase.
        if share[i] <= beside[i] or used & set(words):
            continue
        used |= set(words)
        names = list(comparing.vocabulary.ids)
        phrase = " ".join(names[word] for word in words)
        found.append(Culprit(f"in {percent(share[i])}, of real {percent(beside[i])}", phrase))
        if len(found) == NUM_CULPRITS:
            break
    return found


def share_holders(docs: Docs) -> tuple[np.ndarray, np.ndarray]:
    """(phrases as hashes, the share of the documents that has each)."""
    key, count = count_holders(*docs.hash_ngrams(PHRASE))
    return key, count / max(len(docs), 1)


def _show_nothing(comparing, e):
    return []


def _show_first(comparing, e):
    return [Culprit("a sample", text) for text in comparing.sample.strings[:3]]


# Figures that fall when less is said, and what they are.
NARROWING = {
    "coverage_2": "share of the word pairs of held-out text that occurs",
    "unseen_mass": "chance that the next pair of words is new",
    "distinct_2": "different pairs per pair",
}
SPECIFIC = (
    "foreign",
    "collapsed",
    "repeats",
    "shuffled",
    "vocabulary",
    "phrase",
    "rare",
    "salad",
    "copied",
)
BROKEN = ("foreign", "shuffled", "salad", "vocabulary")

RULES: Sequence[Rule] = (
    Rule(
        "foreign",
        lambda e: exceeds("foreign", MOST_FOREIGN)(e) and not is_repetitive(e),
        say_share("another language", "foreign", "hardly have the words that make up real text"),
        show_rows("foreign", "hardly a common word"),
    ),
    Rule(
        "collapsed",
        is_collapsed,
        _say_collapsed,
        _show_families,
    ),
    Rule(
        "phrase",
        tells_phrase,
        say_ratio("one phrase", "phrase", "more of the samples than of real text hold it"),
        _show_phrases,
        explained_by=("foreign",),
    ),
    Rule(
        "repeats",
        exceeds("repeats", MOST_COPIED, LEAST_COPIES_Z),
        say_share("repeats", "repeats", "are word for word another one"),
        show_rows("repeats", "stands there more than once"),
        explained_by=("collapsed",),
    ),
    Rule(
        "shuffled",
        is_shuffled,
        _say_shuffled,
        _show_strangest,
        explained_by=("foreign", "collapsed"),
    ),
    Rule(
        "vocabulary",
        has_few_words,
        say_ratio("a small vocabulary", "coverage_1", "of the words of held-out text occur"),
        _show_missing,
        explained_by=("foreign", "collapsed", "shuffled"),
    ),
    Rule(
        "rare",
        lambda e: has_few_rare(e) and not lacks_standard(e),
        say_ratio("less diverse", "rare", "of the words are rare ones"),
        _show_missing,
        explained_by=("foreign", "collapsed", "vocabulary", "shuffled", "repeats"),
    ),
    Rule(
        "salad",
        lambda e: is_salad(e, NO_SUBJECT_AT_ALL if lacks_partners(e) else NO_SUBJECT),
        say_ratio(
            "word salad, some or all", "recurrence", "of the uncommon words come again in a text"
        ),
        _show_first,
        # A phrase that all have holds uncommon words that come once.
        explained_by=("foreign", "collapsed", "vocabulary", "shuffled", "phrase", "rare"),
    ),
    Rule(
        "copied",
        exceeds("copied", MOST_COPIED, LEAST_COPIES_Z),
        say_share(
            "copied",
            "copied",
            "are for the most part in real or training text, word for word or with some changed",
        ),
        _show_copies,
        # Phrases of a training text, strung together, hold long runs of it by chance.
        explained_by=("salad",),
    ),
    Rule(
        "drifted",
        lambda e: is_drifted(e) and not lacks_standard(e),
        say_ratio("unlike real text", "known_2", "of the word pairs are known"),
        _show_strangest,
        explained_by=SPECIFIC,
    ),
    Rule(
        "narrower",
        lambda e: is_narrower(e) and not lacks_standard(e),
        _say_narrower,
        _show_phrases,
        explained_by=SPECIFIC,
    ),
    Rule(
        "joined",
        lambda e: e.matching.join > 1,
        _say_joined,
        _show_nothing,
        is_against=False,
        explained_by=BROKEN,
    ),
    Rule(
        "cut",
        is_cut,
        say_share("cut", "cut_ends", "end where real texts do not"),
        _show_ends,
        is_against=False,
        explained_by=BROKEN,
    ),
    Rule(
        "longer",
        lambda e: is_longer(e, 1),
        _say_longer,
        _show_nothing,
        is_against=False,
        explained_by=("joined",),
    ),
    Rule(
        "shorter",
        lambda e: is_longer(e, -1),
        lambda e: f"only shorter: {e.length_ratio:.2f} times the words of a real text",
        _show_nothing,
        is_against=False,
    ),
    Rule(
        "unknown",
        is_untold,
        lambda e: (
            f"cannot tell: {e.num_compared:,} texts of {e.num_tokens:,} words can be compared "
            f"with as many real ones, and it takes {LEAST_TEXTS} of {LEAST_WORDS} words"
        ),
        _show_nothing,
        explained_by=SPECIFIC,
    ),
    Rule(
        "repetitive",
        is_repetitive,
        lambda e: (
            f"cannot tell: {percent(e.shares['variants'].null)} of the real texts are variants of "
            "others there; give real texts without repetitions"
        ),
        _show_nothing,
        explained_by=SPECIFIC,
    ),
    Rule(
        "lonely",
        is_lonely,
        lambda e: (
            "cannot tell: unlike parts of real texts, as texts of another length can be; "
            f"{e.num_partners:,} samples have a real text of their length beside them, and it "
            f"takes {count_needed(e.num_compared):,}: give more real texts as long as the samples"
        ),
        _show_nothing,
        explained_by=(*SPECIFIC, "narrower", "drifted", "unknown", "repetitive"),
    ),
    Rule(
        "few",
        lambda e: find_unseen(e) > MOST_UNSEEN,
        _say_few,
        _show_nothing,
        explained_by=(*SPECIFIC, "narrower", "drifted", "unknown", "repetitive", "lonely"),
    ),
    Rule(
        "diverse",
        lambda e: True,
        _say_diverse,
        _show_nothing,
        is_against=False,
        explained_by=(
            *SPECIFIC,
            "narrower",
            "drifted",
            "unknown",
            "repetitive",
            "lonely",
            "few",
        ),
    ),
)
