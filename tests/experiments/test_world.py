"""The world of programs: an interpreter that another one agrees with, and tests that nothing leaks into."""

import numpy as np
import pytest

from experiments.collapse import world
from experiments.collapse.world import BOS, DIGITS, END, World

W = World()


def test_every_operator_is_a_permutation_and_the_tail_is_rare():
    assert all(sorted(row) == list(range(DIGITS)) for row in W.table.tolist())
    assert 0.1 < W.use[W.tail].sum() <= 0.15 and len(np.unique(W.table, axis=0)) == world.OPERATORS


def by_hand(ops, digit):
    said = []
    for op in ops:
        digit = W.table[op][digit]
        said += [op + DIGITS, int(digit)]
    return said


@pytest.mark.parametrize("ops", [(3,), (3, 17), (39, 0, 5)])
def test_the_interpreter(ops):
    doc = W.solve(ops, 4)
    assert doc == [BOS, 4, *by_hand(ops, 4), END]
    assert W.right(doc) and world.parse(doc) == (ops, 4) and world.cell(doc) == max(ops)
    for at in range(3, 2 * len(ops) + 2, 2):
        wrong = list(doc)
        wrong[at] = (wrong[at] + 1) % DIGITS
        assert not W.right(wrong)
    for wrong in (
        doc[:-1],
        [],
        [BOS, END],
        [BOS, 4, END],
        doc[1:],
        [BOS, 4, 5, 6, END],
        [*doc, END],
    ):
        assert not W.right(wrong)


def test_nothing_that_is_tested_is_shown():
    shown = {world.parse(d)[0] for d in W.corpus(3000, 0)}
    tests = W.tests(200)
    assert not shown & {ops for ops, _ in tests["pair"]} and not shown & {
        ops for ops, _ in tests["deep"]
    }
    assert all(len(ops) <= 2 and W.allowed(ops) for ops in shown)
    assert not any(W.allowed(ops) for kind in ("pair", "deep") for ops, _ in tests[kind])
    assert all(set(ops) <= set(W.tail.tolist()) for ops, _ in tests["tail"])


def test_use_is_zipf_and_the_grid_is_even():
    used = np.bincount([o for d in W.corpus(4000, 2) for o in world.parse(d)[0]], minlength=40)
    assert used[0] > 5 * used[10] > 0
    asked = np.bincount([world.cell(q) for q in W.grid(1000, 2)], minlength=40)
    assert asked.min() > 0.8 * asked.mean()


def test_the_grid_asks_in_second_place_only_what_real_text_shows_and_never_what_is_tested():
    shown = W.corpus(1500, 0)
    first = {tuple(d[:4]) for d in shown}
    asked = W.grid(1000, 3, shown)
    behind = [q for q in asked if len(q) == 5]
    assert 300 < len(behind) < 500 and all(tuple(q[:4]) in first for q in behind)
    assert not {(q[2] - DIGITS, q[4] - DIGITS) for q in behind} & W.unseen
    assert np.bincount([q[-1] - DIGITS for q in asked], minlength=40).min() >= 20


def test_rivals_without_a_model_write_right_programs_from_facts():
    """Real text shows most facts; the verifier gives away the others in a few calls each."""
    w = World(3)
    shown = world.read_facts(w.corpus(1500, 0))
    assert 300 < len(shown) < 400 and all(w.table[op, d] == r for (op, d), r in shown.items())
    facts, calls = w.ask_facts(shown)
    assert len(facts) == 400 and 0 < calls <= 10 * (400 - len(shown))
    made = w.recombine(shown, 400, 0)
    assert all(w.right(doc) and w.allowed(world.parse(doc)[0]) for doc in made)
    assert set(world.read_facts(made)) <= set(shown)
