"""Forecasts of later systems in a wide table by date, of which nobody has a curve."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from ramp.cli import main
from ramp.errors import UserError
from ramp.nines import backtest, releases, trials

TASKS = ("a", "b", "c")


def wide(systems: int = 60, seed: int = 0, growth: float = 0.5) -> list[dict]:
    """Systems of four years, monthly; better by date and by compute, families alike."""
    rng = np.random.default_rng(seed)
    of_family = rng.normal(0, 0.4, 8)
    rows = []
    for k in range(systems):
        month, compute, family = k * 48 // systems, rng.uniform(20, 24), rng.integers(8)
        able = growth * month / 12 + 0.8 * (compute - 22) + of_family[family]
        row = {
            "Model": f"s{k}",
            "released": f"{2021 + month // 12}-{month % 12 + 1:02d}",
            "family": f"f{family}",
            "compute": 10**compute,
        }
        scores = {
            task: expit(able - 1 - j + rng.normal(0, 0.3)).round(4) for j, task in enumerate(TASKS)
        }
        rows.append(row | scores)
    return rows


def write(path, rows):
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    return path


def read(rows, **less):
    return trials.from_rows({k: v for k, v in r.items() if k not in less} for r in rows)


def test_later_systems_are_forecast_better_than_by_each_simple_method():
    s = backtest.summarize(releases.backtest(read(wide())))
    assert s.forecasts > 100
    others = {name: m for name, m in s.methods.items() if name != "nines"}
    assert others.keys() == {"persistence", "log-linear", "power law", "analog"}
    assert s.methods["nines"].crps < 1.1 * min(m.crps for m in others.values())
    assert others["persistence"].behind > 3 * others["persistence"].behind_stderr > 0
    assert all(0.8 <= m.coverage <= 1 for m in s.methods.values()), s.methods


def test_nothing_later_than_its_origin_is_known_to_a_forecast():
    t = read(wide(40))
    before = releases.backtest(t)
    first = min(p.origin for p in before)
    years = t.date.astype("datetime64[D]").astype(float) / 365.25
    changed = replace(t, success=np.where(years > first, 0.5, t.success))
    again = releases.backtest(changed)
    at = [[p.median for p in each if p.origin == first] for each in (before, again)]
    assert at[0] == at[1]
    assert len(at[0]) > 3
    assert all(p.origin < p.target <= p.origin + releases.HORIZON for p in before)


def test_a_wide_table_by_date_is_one_command(tmp_path, capsys):
    """Dates of months, some without compute, one without a date, a score that is missing."""
    rows = wide(36)
    for row in rows[::5]:
        row["compute"] = ""
    rows[3]["released"] = ""
    rows[4]["b"] = ""
    path = write(tmp_path / "wide.csv", rows)
    page = tmp_path / "page.html"
    words = ["--map", "released=date", "--threshold", "0.5", "--page", str(page), "--json"]
    assert main(["nines", "backtest", str(path), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["systems"] > 20
    assert 4 < found["origins"] <= releases.ORIGINS
    assert found["methods"]["analog"]["behind_stderr"] > 0
    assert found["events"]["count"] == found["forecasts"]
    assert any("without a date: s3" in note["text"] for note in found["notes"])
    assert "Later systems" in page.read_text()
    # Without compute there are dates still, which --releases may name.
    dates = [{"run": r["Model"], "date": r["released"]} for r in rows if r["released"]]
    joined = ["--releases", str(write(tmp_path / "releases.csv", dates))]
    words = ["--ignore", "released,compute", *joined, "--json"]
    assert main(["nines", "backtest", str(path), *words]) == 0
    assert json.loads(capsys.readouterr().out)["forecasts"] == found["forecasts"]


def test_systems_without_dates_are_refused_with_a_remedy_that_works(tmp_path, capsys):
    rows = wide(30)
    path = write(
        tmp_path / "wide.csv", [{k: v for k, v in r.items() if k != "released"} for r in rows]
    )
    assert main(["nines", "backtest", str(path)]) == 2
    assert "--releases CSV" in capsys.readouterr().err
    dates = [{"run": r["Model"], "date": r["released"]} for r in rows]
    joined = ["--releases", str(write(tmp_path / "releases.csv", dates))]
    assert main(["nines", "backtest", str(path), *joined]) == 0
    with pytest.raises(UserError, match="8 have a date, of 8 in all; add systems"):
        releases.backtest(read(wide(8)))


def test_one_run_of_many_checkpoints_is_no_table_of_releases():
    rows = [{"run": "a", "step": s, "item": "x", "success": 1} for s in (1, 2, 3)]
    assert not releases.are_finished(trials.from_rows(rows))
    assert releases.are_finished(read(wide(12)))


def test_missing_compute_is_what_the_others_suggest():
    x = np.arange(12.0)
    t = read(wide(12))[:12]
    compute = np.where(np.arange(12) == 11, np.nan, 10 ** (20 + 0.1 * x))
    t = replace(t, compute=compute, size=np.full(12, np.nan))
    z = releases._find_covariates(t, x, x < 9)
    assert z.shape == (12, 2)
    assert z[11, 1] == pytest.approx(21.1)
