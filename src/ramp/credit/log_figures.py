"""What a log of rollouts shows: misassigned credit, luck, and what was paid for besides answers.

The rollouts of one problem hang together: they share its words, its difficulty and a judge's taste.
So the unit of chance is the problem. Intervals are those of a sample of clusters, and tests flip
the sign of a problem's whole sum: without an effect either sign is as likely, whatever hangs
together within a problem, how unequal lengths are, or how often a rollout is logged.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from ramp.credit.audit import ZERO
from ramp.credit.logs import Log, LoggedRollout
from ramp.nines.intervals import clopper_pearson

MIN_CASES = 8  # of a word, and of rollouts without it
MIN_PROBLEMS = 6  # that say anything: five signs are alike by chance in more than 5 of 100 cases
NUM_FLIPS = 1999


@dataclass(frozen=True)
class Share:
    """A fraction of cases, with a 95% interval over problems."""

    value: float
    low: float
    high: float
    num_cases: int

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}] of {self.num_cases:,}"


@dataclass(frozen=True)
class LengthBias:
    """Reward against length among a problem's rollouts that are equally right, if that is known."""

    correlation: float
    p_value: float  # of no relation, by flipping signs of problems
    per_100_chars: float  # reward
    num_rollouts: int
    num_problems: int  # that say something: with rollouts that differ in both


@dataclass(frozen=True)
class PaidWord:
    """A word, or a token, and what rollouts or places with it got more than others."""

    word: str
    more: float
    p_value: float  # corrected for the number of words
    num_with: int


@dataclass(frozen=True)
class LogAudit:
    """The figures of a log; None where it does not hold what they need."""

    num_rollouts: int
    num_groups: int
    wrong_up: Share | None  # wrong steps of right answers that are pushed up
    right_down: Share | None  # right steps of wrong answers that are pushed down
    lucky: Share | None  # right answers behind a wrong step
    length: LengthBias | None
    words: tuple[PaidWord, ...]  # in the reward, among the same rollouts
    tokens: tuple[PaidWord, ...]  # in the advantages, among tokens of a rollout
    knows_right: bool  # else right and wrong answers are taken together


def audit_log(log: Log, seed: int = 0) -> LogAudit:
    """The figures that a log has the fields for."""
    rollouts = log.rollouts
    judged = [r for r in rollouts if r.step_right and r.right is not None]
    placed = [
        r for r in judged if r.step_advantages and len(r.step_advantages) == len(r.step_right or ())
    ]
    steps = [
        (r, advantage, right)
        for r in placed
        for advantage, right in zip(r.step_advantages or (), r.step_right or (), strict=True)
        if right is not None
    ]
    rng = np.random.default_rng(seed)
    return LogAudit(
        num_rollouts=len(rollouts),
        num_groups=len({r.group for r in rollouts}),
        wrong_up=estimate_share(
            (r.group, advantage > ZERO) for r, advantage, right in steps if r.right and not right
        ),
        right_down=estimate_share(
            (r.group, advantage < -ZERO) for r, advantage, right in steps if right and not r.right
        ),
        lucky=estimate_share((r.group, False in (r.step_right or ())) for r in judged if r.right),
        length=measure_length_bias(rollouts, rng),
        words=find_paid_words(rollouts, rng),
        tokens=find_paid_tokens(rollouts, rng),
        knows_right=any(r.right is not None for r in rollouts),
    )


# Intervals


def estimate_share(cases: Iterable[tuple[str, bool]]) -> Share | None:
    """The fraction of (problem, hit) that hit; None without a case.

    The interval is Clopper and Pearson's of as many independent cases as these are worth (Korn &
    Graubard 1998, Survey Methodology 24).
    """
    cases = list(cases)
    if not cases:
        return None
    problems, hits = zip(*cases, strict=True)
    names, number = np.unique(problems, return_inverse=True)
    hit = np.array(hits, float)
    n, p = len(hit), float(hit.mean())
    if len(names) < 2:
        # One problem says nothing about others.
        return Share(p, 0.0, 1.0, n)
    part = np.bincount(number) / n
    # Problems of equal size that are worth as much: Kish's count.
    num_problems = 1 / float((part**2).sum())
    # The mean is drawn towards a large problem; its jackknife is not misled by that.
    excess = np.bincount(number, hit - p) / n / (1 - part)
    variance = (1 - 1 / len(names)) * float((excess**2).sum())
    # Where all agree nothing shows how much they hang together: each problem counts as one case.
    worth = num_problems
    if variance > 0:
        few, many = stats.t.ppf(0.975, [num_problems - 1, max(n - 1, num_problems - 1)])
        worth = min(p * (1 - p) / variance * (many / few) ** 2, n)
    low, high = clopper_pearson(p * worth, worth)
    return Share(p, low, high, n)


# Tests


def _center(values: np.ndarray, strata: Sequence) -> np.ndarray:
    """Values less the mean of their stratum."""
    _, number = np.unique(np.array(strata, str), return_inverse=True)
    means = np.bincount(number, values) / np.bincount(number)
    return values - means[number]


def _take_comparable(rollouts: Sequence[LoggedRollout]) -> list[LoggedRollout]:
    """Those that have a reward; where any answer is known to be right or wrong, those alone."""
    knows_right = any(r.right is not None for r in rollouts)
    return [r for r in rollouts if r.reward is not None and (r.right is not None) == knows_right]


def _list_strata(rollouts: Sequence[LoggedRollout]) -> list[str]:
    """The right or the wrong answers of one problem are a stratum; all, where nobody knows."""
    return [f"{r.right} {r.group}" for r in rollouts]


def _flip(rng: np.random.Generator, num_problems: int) -> Iterator[np.ndarray]:
    """Signs of problems, [some, problems] at a time, NUM_FLIPS in all."""
    for first in range(0, NUM_FLIPS, 200):
        shape = (min(200, NUM_FLIPS - first), num_problems)
        yield rng.integers(0, 2, shape) * 2.0 - 1


def measure_length_bias(
    rollouts: Sequence[LoggedRollout], rng: np.random.Generator
) -> LengthBias | None:
    """Correlation of reward and length at equal correctness."""
    rollouts = _take_comparable(rollouts)
    if len(rollouts) < 3:
        return None
    strata = _list_strata(rollouts)
    reward = _center(np.array([r.reward for r in rollouts], float), strata)
    length = _center(np.array([len(r.text) for r in rollouts], float), strata)
    product = reward * length
    spread = float(np.sqrt((reward**2).sum() * (length**2).sum()))
    if spread < 1e-9:
        # Equally right ones are paid alike, or are equally long.
        return LengthBias(0.0, 1.0, 0.0, len(rollouts), 0)
    _, number = np.unique([r.group for r in rollouts], return_inverse=True)
    sums = np.bincount(number, product)
    sums = sums[np.abs(sums) > 1e-12]
    total = abs(sums.sum()) - 1e-12
    count = sum(int((abs(signs @ sums) >= total).sum()) for signs in _flip(rng, len(sums)))
    return LengthBias(
        correlation=float(product.sum()) / spread,
        p_value=(count + 1) / (NUM_FLIPS + 1),
        per_100_chars=100 * float(product.sum()) / float((length**2).sum()),
        num_rollouts=len(rollouts),
        num_problems=len(sums),
    )


def find_paid_words(
    rollouts: Sequence[LoggedRollout], rng: np.random.Generator, most: int = 10
) -> tuple[PaidWord, ...]:
    """Words whose rollouts are paid more than others of the problem that are equally right."""
    rollouts = _take_comparable(rollouts)
    places = [(word, i) for i, r in enumerate(rollouts) for word in sorted(set(r.text.split()))]
    reward = np.array([r.reward for r in rollouts], float)
    problems = [r.group for r in rollouts]
    return _compare(places, reward, _list_strata(rollouts), problems, rng, most)


def find_paid_tokens(
    rollouts: Sequence[LoggedRollout], rng: np.random.Generator, most: int = 10
) -> tuple[PaidWord, ...]:
    """Tokens whose own advantages are above those of the other tokens of their rollout."""
    rollouts = [r for r in rollouts if r.token_advantages]
    tokens = [(token, k, r.group) for k, r in enumerate(rollouts) for token in r.tokens]
    advantage = np.array([value for r in rollouts for value in r.token_advantages], float)
    places = [(token, i) for i, (token, _, _) in enumerate(tokens)]
    # What a whole rollout got is no token's own.
    strata = [str(k) for _, k, _ in tokens]
    return _compare(places, advantage, strata, [group for *_, group in tokens], rng, most)


def _compare(
    places: Sequence[tuple[str, int]],
    values: np.ndarray,
    strata: Sequence[str],
    problems: Sequence[str],
    rng: np.random.Generator,
    most: int,
) -> tuple[PaidWord, ...]:
    """Words at whose places values are higher than elsewhere in the stratum.

    places: (word, number of a value). Of all words at once: a word has to beat the best of all
    under flipped signs (the maximum statistic of Westfall & Young 1993).
    """
    at = defaultdict(list)
    for word, i in places:
        at[word].append(i)
    at = {w: i for w, i in at.items() if MIN_CASES <= len(i) <= len(values) - MIN_CASES}
    if not at:
        return ()
    values = _center(values, strata)
    number = np.unique(np.array(strata, str), return_inverse=True)[1]
    cluster = np.unique(np.array(problems, str), return_inverse=True)[1]
    rows = np.concatenate([cluster[i] for i in at.values()])
    columns = np.repeat(np.arange(len(at)), [len(i) for i in at.values()])
    gains = np.concatenate([values[i] for i in at.values()])
    shape = (int(cluster.max()) + 1, len(at))
    # [problems, words]; numbers in the same place are added up.
    sums_pw = sparse.coo_array((gains, (rows, columns)), shape).tocsc()
    norm_w = np.sqrt((sums_pw**2).sum(axis=0))
    is_told_w = norm_w > 1e-9
    score_w = np.where(is_told_w, sums_pw.sum(axis=0) / np.where(is_told_w, norm_w, 1), 0)
    beaten_w = np.ones(len(at))
    for signs in _flip(rng, shape[0]):
        flipped = (sums_pw.T @ signs.T) / np.where(is_told_w, norm_w, 1)[:, None]
        best = np.sort(np.where(is_told_w[:, None], flipped, 0).max(axis=0))
        beaten_w += len(best) - np.searchsorted(best, score_w - 1e-9)
    sizes = np.bincount(number)
    found = []
    for (word, members), p in zip(at.items(), beaten_w / (NUM_FLIPS + 1), strict=True):
        inside = np.bincount(number[members], minlength=len(sizes))
        # Least squares with a mean for each stratum.
        spread = float((inside - inside**2 / sizes).sum())
        more = float(values[members].sum()) / spread if spread > 1e-9 else 0.0
        if more > 0 and p < 0.05:
            found.append(PaidWord(word, more, float(p), len(members)))
    return tuple(sorted(found, key=lambda w: -w.more)[:most])
