"""The law of length: goals per step, fits, and a forecast that is held against what it was not fitted to."""

import numpy as np
import pytest

from experiments.credit import law
from experiments.results import Results
from ramp.config import Model, Reinforce


def test_the_goal_of_a_step_is_that_of_its_chain():
    for k in (1, 4, 24):
        assert law.goal_per_step(k) ** k == pytest.approx(0.9)


@pytest.mark.parametrize("power", [-1, 1])
def test_a_fit_finds_what_made_the_figures(power):
    def tokens(k):
        return 5000 + 300 * k**power

    made = [tokens(k) for k in law.FITTED]
    assert law.forecast_tokens(law.FITTED, made, power, 24) == pytest.approx(tokens(24))
    assert np.isnan(law.forecast_tokens(law.FITTED, [*made[:2], np.nan], power, 24))


def test_one_base_that_never_arrives_leaves_no_mean():
    assert law.mean_tokens([100.0, 400.0]) == pytest.approx(200)
    assert np.isnan(law.mean_tokens([100.0, np.nan]))


def test_a_law_is_judged_on_other_lengths_and_kept(tmp_path, monkeypatch):
    """Small: two bases, few tokens; what never arrives is said."""
    monkeypatch.setattr(law, "FITTED", (2, 4))
    monkeypatch.setattr(law, "FORECAST", (6,))
    monkeypatch.setattr(law, "CHOSEN_ON", (0,))
    monkeypatch.setattr(law, "BASES", (1, 2))
    monkeypatch.setattr(law, "TOKENS", 96)
    b = Results(tmp_path, Model(), Reinforce())
    fast = law.Law("step-local", -1, (0.4, 0.8), 40_000)
    [row] = law.judge(b, fast)
    assert 0 < row.low <= row.measured <= row.high < 40_000
    assert row.error == pytest.approx(row.forecast / row.measured - 1)
    kept = b.path.read_bytes()
    assert law.judge(b, fast) == [row] and b.path.read_bytes() == kept
    assert "k |" in law.tabulate(b, fast) and b.path.read_bytes() == kept
    [never] = law.judge(b, law.Law("step-local", -1, (1e-4,), 2_000))
    assert np.isnan(never.measured) and "never" in law.report([never])
