"""The benchmark of expert iteration: its programs, what its arms train on, and its tables."""

import json
import math

import numpy as np
import pytest

from experiments.collapse import expert, expert_table
from experiments.collapse.expert import Figures, Solution
from experiments.collapse.expert_table import Point
from experiments.collapse.solvers import SOLVERS
from ramp.tasks import TASKS


@pytest.mark.parametrize("name", SOLVERS)
def test_programs_solve_in_many_ways(name):
    task = TASKS[name]
    rng = np.random.default_rng(0)
    for seed in range(8):
        problem = task.sample(seed, 5)
        found = {tuple(SOLVERS[name](problem, rng)) for _ in range(20)}
        for *steps, answer in found:
            assert task.judge(problem, steps, answer).verified
        assert len(found) > 3


def make_solutions():
    """Three of one problem, two of them alike, and one of another."""
    easy, hard = (TASKS["swaps"].sample(seed, 4) for seed in (1, 2))
    words = [(easy, "a"), (easy, "a"), (easy, "b"), (hard, "c")]
    return [Solution(problem, (word,)) for problem, word in words]


def test_the_likeliest_solutions_are_left_out():
    easy, hard = (TASKS["swaps"].sample(seed, 4) for seed in (1, 2))
    own = [
        Solution(easy, (word,), logp) for word, logp in zip("abcd", (-3, -1, -4, -2), strict=True)
    ]
    kept, weights = expert.leave_likeliest([*own, own[0], Solution(hard, ("e",), -0.1)])
    # The only one of a problem stays, however likely it is.
    assert [solution.words for solution in kept] == [("c",), ("a",), ("d",), ("e",)]
    np.testing.assert_allclose(weights, 1)


def test_no_problem_has_more_than_its_cap():
    kept, _ = expert.cap_solutions(make_solutions(), most=2)
    assert [solution.words for solution in kept] == [("a",), ("a",), ("c",)]


def test_routes_are_those_of_so_many_right_solutions():
    a, _, b, _ = make_solutions()
    n = 16
    assert expert.count_routes([a] * (n - 1), n) is None
    assert expert.count_routes([a] * n, n) == pytest.approx(1)
    assert expert.count_routes([a, b] * (n // 2), n) == pytest.approx(2)
    # Half of all hold the single one every other time.
    assert expert.count_routes([a] * (2 * n - 1) + [b], n) == pytest.approx(1.5)


def test_a_curve_is_read_where_it_reaches_a_rate():
    start, end = Point(0.2, 1, 1, 1, 0), Point(0.6, 0.8, 0.5, 1, 4)
    found = expert_table.find_point([start, end], 0.4)
    assert vars(found) == pytest.approx(vars(Point(0.4, 0.9, 0.75, 1, 2)))
    assert expert_table.find_point([start, end], 0.7) is None
    # A rival that only got worse is compared as it was, and not left out.
    assert len(expert_table.compare({1: [start, end]}, {1: [start, Point(0.1, 0, 0, 0, 9)]})) == 1
    # Better by .1 in pass@64 where both are right as often as the first arm ever is.
    ours = {1: [start, Point(0.4, 1, 1, 1, 0)]}
    gap = expert_table.compare(ours, {1: [start, end], 2: [start]})
    assert len(gap) == 1
    assert gap[0].found == pytest.approx(0.1)
    assert gap[0].right == pytest.approx(0)


def test_tables_are_relative_to_the_first_model(tmp_path):
    def figures(right, routes, bits):
        return vars(Figures(64, [right, right], [routes, None], bits, 8.0))

    records = [
        {"key": {"part": "first", "seed": 1, "temperature": 1.0}, "generations": [(16, 4, 1.0)]},
        {"key": {"part": "first", "seed": 1, "temperature": 0.4}, "generations": [(32, 2, 1.0)]},
        {"key": {"part": "arm", "seed": 1, "arm": "naive"}, "generations": [(32, 3, 1.1)]},
        {"key": {"part": "arm", "seed": 1, "arm": "guarded"}, "generations": [(32, 4, 1.0)]},
    ]
    for record in records:
        record["generations"] = [figures(*g) for g in record["generations"]]
    lines = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "bench.jsonl").write_text(lines + "\n")
    curves = expert_table.read_curves(tmp_path)
    assert curves["naive"][1][-1].routes == 0.75
    assert math.isclose(curves["naive"][1][-1].bits, 10)
    assert curves[expert_table.COOLED][1][-1].right == 0.5
    table = "\n".join(expert_table.tabulate(tmp_path))
    assert "| naive | 0.000 | 0.250 | 0.000 | -10.000 | 1 |" in table
