"""How many answers do these replies hold? Classes that say the same, and what n replies can show.

Replies are of one class when they share most of their words that carry meaning, whatever the words
around them: a sentence that stands before or behind different answers belongs to none of them. It
sees paraphrases that keep the main words, and no others. Figures come with what n replies can show:
32 different ones prove at least 177 answers, and nothing about how many more there are.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.special import gammaln

from ramp.synth.texts import Vocabulary

# Twice the words that two replies share, over the words of both. Chosen on 24 paraphrases of five
# jokes and 26 different ones; judged on other jokes.
SAME = 0.33
STEM = 5  # letters of a word that count: crossed and crossing are cross
FRAME = re.compile(r"(?<=[.!?:。！？])\s+|\n+")  # noqa: RUF001
K = 10  # of distinct_k, as NoveltyBench has it
CONFIDENCE = 0.95
NORMAL_95 = 1.96  # standard errors on each side of an interval of 95%
MOST_ANSWERS = 10**7  # that a lower bound looks for

# Words of English that are in any reply; those of other languages weigh as much as they occur.
EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the and or but if of to in on at for with as by from into about up out over "
        "than is are was were be been being am do does did doing have has had having get gets "
        "got i you he she it we they me him her us them my your his its our their this that "
        "these those what which who whom whose why how when where not no so then there here "
        "can could will would shall should may might must just because too very some any all "
        "ll re ve don s t m d",
    )
)


@dataclass(frozen=True)
class AnswerFigures:
    """What n replies to one question show."""

    n: int  # replies that could be read
    distinct: int  # classes among them
    distinct_k: float  # classes among K of them, on the average; NaN for fewer than K
    distinct_k_error: float  # its standard error
    at_least: int  # answers there are, with 95% confidence
    seen: float  # estimated chance that the next reply is of a class that was seen (Good-Turing)
    seen_low: float  # its interval, 95% (93% or more by simulation from 32 replies on)
    seen_high: float
    largest: float  # share of the largest class


# --- classes


def classify(replies: Sequence[str]) -> ndarray:
    """[N]: the number of the class of each reply; classes are numbered as they come."""
    if len(replies) < 2:
        return np.zeros(len(replies), int)
    similarity = compare_words(strip_frames(replies))
    distance = np.clip(1 - similarity, 0, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    labels = fcluster(tree, 1 - SAME, "distance")
    # In the order in which they come first.
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group]


def compare_words(replies: Sequence[str]) -> ndarray:
    """[N, N]: twice the stems that two replies share, over the stems of both."""
    vocabulary = Vocabulary()
    docs = [vocabulary.split(reply) for reply in replies]
    names = list(vocabulary.ids)
    stems: dict[str, int] = {}
    stem_of = [stems.setdefault(n[:STEM] if n.isalpha() else n, len(stems)) for n in names]
    is_word = np.array([n[0].isalnum() and n not in EMPTY_WORDS for n in names] or [False])
    has = np.zeros((len(docs), len(stems) + 1))
    bare = np.zeros_like(has)
    for row, doc in enumerate(docs):
        bare[row, [stem_of[i] for i in doc]] = 1
        has[row, [stem_of[i] for i in doc if is_word[i]]] = 1
    # What most replies say beside something else is the question's and no answer.
    alone = has[has.sum(axis=1) == 1].any(axis=0)
    has[:, (has.mean(axis=0) > 0.5) & ~alone] = 0
    # A reply of nothing else is what it says; one that says nothing is like its equals.
    is_bare = has.sum(axis=1) == 0
    has[is_bare] = bare[is_bare]
    has[bare.sum(axis=1) == 0, -1] = 1
    size = has.sum(axis=1)
    return 2 * has @ has.T / (size[:, None] + size)


def strip_frames(replies: Sequence[str]) -> list[str]:
    """Replies without the first and last sentences that stand beside different answers."""
    pieces = [[p for p in FRAME.split(reply.strip()) if p] for reply in replies]
    for at in (0, -1):
        holders = defaultdict(list)
        for row, sentences in enumerate(pieces):
            if len(sentences) > 1:
                holders[" ".join(sentences[at].casefold().split())].append(row)
        for rows in holders.values():
            rests = [pieces[row][1:] if at == 0 else pieces[row][:-1] for row in rows]
            if len(rows) > 1 and _differ([" ".join(rest) for rest in rests]):
                for row, rest in zip(rows, rests, strict=True):
                    pieces[row] = rest
    return [" ".join(sentences) for sentences in pieces]


def _differ(rests) -> bool:
    """Whether these are not all variants of one text."""
    # Beside the first: where all are alike, all are like it.
    return bool((compare_words([*rests, ""])[0, :-1] < SAME).any())


# --- figures


def measure_answers(classes: ndarray) -> AnswerFigures:
    """The figures of the classes of n replies, n at least 1."""
    _, counts = np.unique(classes, return_counts=True)
    n, distinct = int(counts.sum()), len(counts)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # Good-Turing: the chance of something new is the share of what came once. Its spread after Esty
    # (1983), with one more of each, so that none does not mean never.
    spread = np.sqrt((once + 1) * (1 - once / (n + 1)) + 2 * (twice + 1)) / n
    seen = 1 - once / n
    value, error = rarefy(counts, K)
    return AnswerFigures(
        n,
        distinct,
        value,
        error,
        count_at_least(distinct, n),
        seen,
        max(seen - NORMAL_95 * spread, 0.0),
        min(seen + NORMAL_95 * spread, 1.0),
        float(counts.max() / n),
    )


def rarefy(counts: ndarray, k: int) -> tuple[float, float]:
    """(classes that k of the replies hold on the average, its jackknife standard error).

    Hurlbert (1971). NaN for fewer replies than k, and no error for k itself.
    """
    n = int(counts.sum())
    if n < k:
        return float("nan"), float("nan")
    value = _expect_distinct(counts, k)
    if n == k:
        return value, float("nan")
    # One reply left out: of each class as often as it has replies.
    without = []
    for i in range(len(counts)):
        fewer = counts.copy()
        fewer[i] -= 1
        without.append(_expect_distinct(fewer, k))
    gaps = np.array(without) - np.average(without, weights=counts)
    return value, float(np.sqrt((n - 1) / n * (counts * gaps**2).sum()))


def _expect_distinct(counts, k) -> float:
    n = int(counts.sum())
    rest = n - counts
    possible = rest >= k
    log_missed = (
        gammaln(rest[possible] + 1)
        - gammaln(rest[possible] - k + 1)
        - gammaln(n + 1)
        + gammaln(n - k + 1)
    )
    return float(len(counts) - np.exp(log_missed).sum())


@lru_cache(maxsize=4096)
def count_at_least(distinct: int, n: int, confidence: float = CONFIDENCE) -> int:
    """The fewest answers from which n replies hold so many different ones in 5% of cases.

    As likely ones are the most diverse that a number of answers can be, so this bounds any other.
    """
    low, high = distinct, distinct
    while _chance_of_distinct(high, distinct, n) < 1 - confidence and high < MOST_ANSWERS:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _chance_of_distinct(middle, distinct, n) < 1 - confidence:
            low = middle + 1
        else:
            high = middle
    return high


def _chance_of_distinct(total, least, n) -> float:
    """The chance that n draws from so many equal answers hold at least so many different ones."""
    # By the number of different ones so far; all from `least` on are one state.
    chance = np.zeros(least + 1)
    chance[0] = 1
    new = 1 - np.arange(least + 1) / total
    new[-1] = 0
    for _ in range(n):
        moved = chance * new
        chance -= moved
        chance[1:] += moved[:-1]
    return float(chance[-1])


def describe_figures(f: AnswerFigures) -> str:
    """What n replies show, in words."""
    if f.distinct == f.n:
        return (
            f"{f.n} replies, all different: at least {f.at_least:,} answers, and how many in all "
            "cannot be told from so few"
        )
    chance = f"{100 * f.seen_low:.0f} to {100 * f.seen_high:.0f}%"
    ten = f"; {K} replies hold {f.distinct_k:.1f}" if np.isfinite(f.distinct_k) else ""
    return (
        f"{f.n} replies, {f.distinct} different{ten}; at least {f.at_least:,} answers; "
        f"{chance} of further replies would be one of these; the most frequent is "
        f"{100 * f.largest:.0f}%"
    )
