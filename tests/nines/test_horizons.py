"""How fast horizons grow: intervals that cover, by systems that scatter and by tries."""

import csv
import json

import numpy as np
import pytest
from scipy.special import expit

from ramp.cli import main
from ramp.nines import horizons, items, trials


@pytest.mark.parametrize(("systems", "scatter"), [(3, 0.5), (5, 0.5), (12, 1.0), (5, 0.0)])
def test_slopes_and_new_systems_are_covered(systems, scatter):
    """Horizons grow by 2 a year; each is measured with an error of .3, and systems scatter."""
    rng = np.random.default_rng(systems)
    covered = np.zeros(2)
    for _ in range(400):
        x = np.sort(rng.uniform(0, 3, systems))
        truth = 1 + 2 * x + scatter * rng.standard_normal(systems)
        error = 0.3 * rng.standard_normal(systems)
        draws = (truth + error)[:, None] + 0.3 * rng.standard_normal((systems, 400))
        slope, ahead = horizons.fit_line(x, draws, rng)
        new = 1 + 2 * (x.max() + 1) + scatter * rng.standard_normal()
        for k, (values, wanted) in enumerate(((slope, 2.0), (ahead, new))):
            low, high = np.quantile(values, (0.05, 0.95))
            covered[k] += low <= wanted <= high
    # The error of measurement is counted in the draws and in the scatter: never too few.
    assert (covered / 400 >= 0.86).all()


def dated_systems(rng, slope=2.0, systems=6, dates=True):
    """Rows of systems released half a year apart, on items of 1 to 1,024 minutes."""
    minutes = np.repeat(np.arange(11), 12)
    own = rng.normal(0, 0.5, len(minutes))
    for k in range(systems):
        p = expit(0.7 * (2 + slope * k / 2 - minutes) - own)
        for i, (d, q) in enumerate(zip(minutes, p, strict=True)):
            row = {"run": f"system-{chr(97 + k)}", "item": str(i), "difficulty": int(d)}
            when = (
                {"date": f"{2023 + k // 2}-{1 + 6 * (k % 2):02}-01"} if dates else {"step": k + 1}
            )
            yield row | when | {"success": int(rng.random() < q)}


def test_a_history_of_releases_tells_how_often_horizons_double(tmp_path, capsys):
    rows = list(dated_systems(np.random.default_rng(0)))
    t = trials.from_rows(rows)
    half = horizons.find_growth(items.fit(items.sum_cells(t), draws=200), t)[0]
    assert (half.success, half.unit, half.systems) == (0.5, "year", 6)
    low, middle, high = half.slope
    assert low < 2 < high and abs(middle - 2) < 0.5
    # Half a year after the last, which is 2.5 years after the first, horizons are at 2 + 2 * 3.5.
    assert half.ahead[0] < 9 < half.ahead[2]
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    assert main(["nines", "fit", str(path)]) == 0
    said = capsys.readouterr().out
    assert "doubles every" in said and "months" in said
    assert main(["nines", "fit", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["growth"][0]["unit"] == "year"


def test_steps_take_the_place_of_dates_and_two_systems_tell_nothing():
    rng = np.random.default_rng(1)
    rows = [row | {"run": "a"} for row in dated_systems(rng, systems=4, dates=False)]
    t = trials.from_rows(rows)
    growth = horizons.find_growth(items.fit(items.sum_cells(t), draws=80), t)
    assert growth[0].unit == "decade of step"
    two = trials.from_rows([row for row in rows if row["step"] <= 2])
    assert horizons.find_growth(items.fit(items.sum_cells(two), draws=80), two) == []
