"""Each probe against a solver written from its sentence; its chance against guessers."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from ramp.ladder import probes
from ramp.ladder.probes import PROBES

SIZES = (1.0, 1.5)


def pairs(row, n, kinds=None):
    """The table that a row spells."""
    kinds = kinds or n
    return {t // kinds: t % kinds for t in row if t < n * kinds}


def solve(name, row, question, n):
    """The answer to one question after a row of context."""
    if name == "distance":
        return (*row, question)[-1 - 3 * n // 8]
    if name == "occurred":
        return probes.FILLERS in row
    if name == "order":
        return [t - probes.FILLERS for t in row if t >= probes.FILLERS][-1]
    if name in ("recall", "deep"):
        return pairs(row, n, 2)[question - 2 * n]
    if name == "digits":
        return sum(row) % n
    table, question = pairs(row, n), question - n * n
    if name == "two hops":
        return table[question] if question < n else table[table[question - n]]
    return sum(table[(question + i) % n] * n**i for i in range(3))


@pytest.mark.parametrize("scale", SIZES)
@pytest.mark.parametrize("name", PROBES)
def test_every_answer_follows_from_its_row(name, scale):
    """The ceiling is 1."""
    probe = PROBES[name]
    n = round(probe.size * scale)
    tokens, answers = probe.rows(np.random.default_rng(3), n, 100)
    assert tokens.dtype == answers.dtype == np.int32
    assert tokens.min() >= 0 and max(tokens.max(), answers.max()) < probe.vocab(n)
    Q = 1 if name in ("distance", "occurred", "order", "digits") else probes.QUESTIONS
    assert answers.shape == (100, Q) and len(tokens) == 100
    for row, told in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert told == [solve(name, row[:-Q], question, n) for question in row[-Q:]]


def knows(name, row, question, n):
    """What a guesser without the ability may see of a row."""
    if name == "occurred":
        return tuple(row[-1:])
    if name == "order":  # which tokens there are, not where
        return sum(t >= probes.FILLERS for t in row)
    if name == "digits":  # two of the three
        return tuple(row[:2])
    if name in ("recall", "deep"):  # which value is the commoner
        values = list(pairs(row, n, 2).values())
        return 2 * sum(values) > n
    if name == "look-ups":  # which three values, not whose each is
        return frozenset(pairs(row, n)[(question - n * n + i) % n] for i in range(3))
    if (
        name == "two hops" and question >= n * n + n
    ):  # how many keys there are besides the key and what it points to
        return len(pairs(row, n)) - 2
    if name == "two hops":
        return "one hop", pairs(row, n)[question - n * n]
    return question  # not what the table says of it


def named(name, row, question, answer, n):
    """An answer as a guesser may name it: of two hops, its place among the keys that it may be."""
    if name != "two hops" or question < n * n + n:
        return answer
    table, key = pairs(row, n), question - n * n - n
    return sorted(table.keys() - {key, table[key]}).index(answer)


@pytest.mark.parametrize("scale", SIZES)
@pytest.mark.parametrize("name", PROBES)
def test_chance_is_the_best_guess_without_the_ability(name, scale):
    """The most frequent answer, learned on one half, is right as often as chance on the other."""
    probe = PROBES[name]
    n = round(probe.size * scale)
    tokens, answers = probe.rows(np.random.default_rng(4), n, 40_000)
    Q = answers.shape[1]
    asked = np.random.default_rng(5).integers(0, Q, len(answers))[:, None]
    table, asking = (
        tokens[:, : tokens.shape[1] - Q],
        np.take_along_axis(tokens[:, -Q:], asked, axis=1),
    )
    rows, answers = (
        np.concatenate([table, asking], axis=1).tolist(),
        np.take_along_axis(answers, asked, axis=1)[:, 0],
    )
    answers = np.array(
        [
            named(name, row[:-1], row[-1], a, n)
            for row, a in zip(rows, answers.tolist(), strict=True)
        ]
    )
    seen = [knows(name, row[:-1], row[-1], n) for row in rows]
    best = defaultdict(Counter)
    for k, a in zip(seen[:20_000], answers[:20_000].tolist(), strict=True):
        best[k][a] += 1
    guesses = [best[k].most_common(1)[0][0] if best[k] else 0 for k in seen[20_000:]]
    right = np.mean(np.array(guesses) == answers[20_000:])
    assert (
        abs(right - probe.chance(n)) < 0.015 and type(probe.chance(n)) is float
    )  # a verdict goes into JSON


def test_the_mark_is_out_of_the_windows_sight_and_both_answers_come():
    tokens, answers = probes.occurred(np.random.default_rng(0), 24, 2000)
    assert not (tokens[:, -probes.REACH : -1] == probes.FILLERS).any()
    assert 0.45 < np.mean(answers == answers.max()) < 0.55


def test_rows_are_a_function_of_the_generator():
    for probe in PROBES.values():
        a, b, other = (probe.rows(np.random.default_rng(s), probe.size, 16) for s in (5, 5, 6))
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        assert (a[0] != other[0]).any()


def test_a_circle_is_one_circle_of_any_size():
    tokens, _ = probes.two_hops(np.random.default_rng(1), 7, 100)
    sizes = Counter()
    for row in tokens.tolist():
        table, seen = pairs(row[: -probes.QUESTIONS], 7), set()
        at = next(iter(table))
        while at not in seen:
            seen.add(at)
            at = table[at]
        assert seen == table.keys()
        sizes[len(seen)] += 1
    assert sizes.keys() == {5, 6, 7} and min(sizes.values()) > 20


def test_every_pair_of_look_ups_is_there_and_how_often_says_nothing():
    """The pair asked for first is as likely to be the rarer one as the second, often by far."""
    tokens, _ = probes.lookups(np.random.default_rng(1), 5, 4000)
    keys = tokens[:, :30] // 5
    often = np.stack([(keys == k).sum(axis=1) for k in range(5)], axis=1)
    assert often.min() == 1 and (often.sum(axis=1) == 30).all()
    ratio = np.log(often[:, 0] / often[:, 1])
    assert abs(np.mean(ratio)) < 0.1 and np.std(ratio) > np.log(2)
