"""The world of programs: an interpreter that another one agrees with, and tests that nothing leaks into."""

import numpy as np
import pytest

from ramp.synth import world
from ramp.synth.world import BOS, COLON, DIGITS, END, World

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
    assert doc == [BOS, *(o + DIGITS for o in ops), 4, COLON, *by_hand(ops, 4), END]
    assert W.right(doc) and world.parse(doc) == (ops, 4) and world.cell(doc) == max(ops)
    for i in range(len(ops) * 2):
        wrong = list(doc)
        at = len(ops) + 3 + i
        wrong[at] = (wrong[at] + 1) % DIGITS
        assert not W.right(wrong)
    assert not W.right(doc[:-1]) and not W.right([]) and not W.right([BOS, COLON])
    assert not W.right(doc, known=np.array([ops[0] + 1])) and W.right(doc, known=np.array(ops))


def test_nothing_that_is_tested_is_shown():
    shown = {world.parse(d)[0] for d in W.corpus(3000, 0)} | {world.parse([*q, END])[0] for q in W.grid(3000, 0)}
    tests = W.tests(200)
    assert not shown & {ops for ops, _ in tests["pair"]} and not shown & {ops for ops, _ in tests["deep"]}
    assert all(len(ops) <= 2 for ops in shown)
    assert all(set(ops) <= set(W.tail.tolist()) for ops, _ in tests["tail"])


def test_use_is_zipf_and_the_grid_is_even():
    used = np.bincount([o for d in W.corpus(4000, 2) for o in world.parse(d)[0]], minlength=40)
    assert used[0] > 5 * used[10] > 0
    asked = np.bincount([o for q in W.grid(2000, 2) for o in world.parse([*q, END])[0]], minlength=40)
    assert asked.min() > 0.6 * asked.mean()
