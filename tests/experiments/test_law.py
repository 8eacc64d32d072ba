"""The law of credit by length: its forecasts, held against points that follow it."""

import math

import pytest

from experiments.credit import law
from experiments.credit.race import Outcome, Plan, Result, Setting


@pytest.mark.parametrize("one", law.LAWS, ids=lambda one: one.arm)
def test_points_that_follow_a_law_are_forecast_by_it(one):
    points = [law.Point(k, 700 * one.tokens(k), 0.0, False) for k in law.FITTED]
    for k in law.FORECAST:
        assert law.forecast(one, points, k) == pytest.approx(700 * one.tokens(k))


def test_first_policies_are_right_but_for_products():
    """A third of the operations are products, right 3 times in 100 or where the rule happens to be."""
    p = law.chance_of_a_right_step()
    assert 2 / 3 * 0.98 < p < 2 / 3 + 1 / 3 * 0.1
    last = law.LAWS[-1]
    assert last.tokens(12) / last.tokens(8) == pytest.approx(p**-4)


def test_each_base_counts_once_and_what_never_arrived_is_a_bound():
    runs = [Outcome(1, 100.0, 900, 0, 1, 0.5), Outcome(1, 300.0, 900, 0, 1, 0.5)]
    runs.append(Outcome(2, None, 800, 0, 0.5, 0.2))
    point = law.summarize(6, Result("step-local", Setting(0.1, Plan(64)), (0, 0), runs))
    assert point.tokens == pytest.approx(math.sqrt(200 * 800))
    assert point.is_bound and str(point).startswith("≥ 0.4k")
