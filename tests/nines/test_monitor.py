import json

import numpy as np
import pytest

from ramp.cli import main
from ramp.nines import trials
from ramp.nines.monitor import TIMES_WORSE, build_streams, watch


def alarms(rate: np.ndarray, seed: int, one_in: float = 1e5, share: float = 0.99) -> np.ndarray:
    """[R] the trial at which each of R logs rings; -1: never. rate: [R, N] the true pass rates."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((len(TIMES_WORSE), len(rate)))
    rang = np.full(len(rate), -1)
    for n in range(rate.shape[1]):
        good = rng.random(len(rate)) < rate[:, n]
        times = TIMES_WORSE[:, None]
        gain = np.where(good, (1 - times * (1 - share)) / share, times)
        sums = (sums + 1) * gain
        rings = (sums.mean(0) >= one_in) & (rang < 0)
        rang[rings] = n
    return rang


def log(success, **columns):
    """Trials with a date each, in order."""
    rows = []
    for i, s in enumerate(success):
        more = {key: values[i] for key, values in columns.items()}
        row = {"date": f"2026-01-01T{i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}", "item": str(i)}
        rows.append(row | {"success": int(s)} | more)
    return trials.from_rows(rows)


def ring(t, one_in=1e5, **budgets):
    return watch(t, build_streams(t, 0.99, **budgets), one_in=one_in).alarm


def test_a_log_is_watched_as_one_trial_at_a_time():
    for seed in range(3):
        rate = np.full((1, 400), 0.94)
        at = alarms(rate, seed)[0]
        rng = np.random.default_rng(seed)
        good = np.array([rng.random(1)[0] < 0.94 for _ in range(400)])
        alarm = ring(log(good))
        assert (alarm.trials - 1 if alarm else -1) == at


def test_false_alarms_are_as_rare_as_stated():
    rang = alarms(np.full((1500, 1000), 0.99), 0, one_in=1000)
    # Alarms of a constant risk: the mean is the trials watched over the alarms.
    watched = np.where(rang < 0, 1000, rang + 1).sum()
    assert watched / (rang >= 0).sum() >= 1000


def test_a_fall_is_found_soon():
    rate = np.full((400, 1400), 0.99)
    rate[:, 400:] = 0.95
    rang = alarms(rate, 1)
    assert (rang >= 0).all()
    assert (rang[rang >= 400] - 399).mean() <= 300


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_false_alarm_in_a_hundred_thousand():
    """pytest -n 0 -s -m slow tests/nines/test_monitor.py"""
    watched = 0
    false = 0
    for seed in range(4):
        rang = alarms(np.broadcast_to(0.99, (1000, 100_000)), 10 + seed)
        watched += np.where(rang < 0, 100_000, rang + 1).sum()
        false += (rang >= 0).sum()
    print(f"one false alarm in {watched / false:,.0f} trials")
    assert watched / false >= 1e5
    rate = np.full((4000, 1500), 0.99)
    rate[:, 500:] = 0.95
    rang = alarms(rate, 20)
    delay = (rang[rang >= 500] - 499).mean()
    print(f"from .99 to .95: found after {delay:.0f} trials")
    assert delay <= 300


def test_the_slice_and_the_moment_are_named():
    rng = np.random.default_rng(3)
    slices = np.array(["base", "typos"])[rng.integers(0, 2, 3000)]
    fails = (np.arange(3000) >= 2000) & (slices == "typos")
    success = rng.random(3000) < np.where(fails, 0.8, 0.995)
    alarm = ring(log(success, slice=slices))
    assert alarm.stream == "success, typos"
    assert alarm.change.startswith("2026-01-01T00:3")  # trial 2000 is at 00:33:20
    assert 2000 < alarm.trials < 2250
    assert alarm.after < 0.9 < alarm.before
    assert ring(log(np.ones(300))) is None


def test_trials_of_one_moment_have_no_order():
    rng = np.random.default_rng(4)
    success = (rng.random(3000) < 0.95).astype(int)
    days = [f"2026-01-{1 + i // 200:02}" for i in range(3000)]
    rows = [{"date": d, "item": str(i), "success": s} for i, (d, s) in enumerate(zip(days, success, strict=True))]  # fmt: skip
    alarm = ring(trials.from_rows(rows))
    assert alarm is not None
    for other in (rows[::-1], sorted(rows, key=lambda row: row["success"])):
        assert ring(trials.from_rows(other)) == alarm


def test_budgets_are_watched():
    rng = np.random.default_rng(5)
    seconds = rng.exponential(2, 1500)
    cost = np.where(np.arange(1500) < 700, 0.02, 0.06)
    t = log(np.ones(1500), seconds=seconds, cost=cost)
    assert ring(t, seconds=20) is None
    assert ring(t, seconds=4).stream == "seconds"
    alarm = ring(t, seconds=20, cost=0.05)
    assert alarm.stream == "cost"
    assert alarm.change == "2026-01-01T00:11:40"
    assert alarm.trials < 720


def test_monitor_command_and_its_mistakes(capsys, tmp_path):
    path = tmp_path / "log.csv"
    lines = [
        f"2026-01-{1 + i // 100:02},q{i},{int(not 500 <= i < 900 or i % 8 > 0)}"
        for i in range(1000)
    ]
    path.write_text("date,item,success\n" + "\n".join(lines))
    assert main(["nines", "monitor", str(path)]) == 1
    assert "ALARM at date 2026-01-0" in capsys.readouterr().out
    assert main(["nines", "monitor", str(path), "--rate", ".8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alarm"] is None
    # What comes before is left out, as the alarm advises.
    assert main(["nines", "monitor", str(path), "--since", "2026-01-10"]) == 0
    assert main(["nines", "monitor", str(path), "--since", "2027-01-10"]) == 2
    assert main(["nines", "monitor", str(path), "--cost", "1"]) == 2
    assert main(["nines", "monitor", str(path), "--by", "step"]) == 2
    assert "--by date or compute" in capsys.readouterr().err


def test_trials_without_a_place_are_refused_with_since_too(capsys, tmp_path):
    rows = [f"{'' if i % 2 else '2026-01-01'},q{i},{int(i % 2 == 0)}" for i in range(400)]
    path = tmp_path / "log.csv"
    path.write_text("date,item,success\n" + "\n".join(rows))
    for words in ([], ["--since", "2025-01-01"]):
        assert main(["nines", "monitor", str(path), *words]) == 2
        assert "200 of 400 trials have no date" in capsys.readouterr().err
    for option in ("--one-in", "--rate", "--seconds", "--within"):
        assert main(["nines", "monitor", str(path), option, "nan"]) == 2
        assert "'nan' is no number" in capsys.readouterr().err


def test_a_log_that_never_held_did_not_fall(capsys, tmp_path):
    rows = [f"2026-01-{d:02},{i},0" for d in range(1, 9) for i in range(20)]
    path = tmp_path / "log.csv"
    path.write_text("date,item,success\n" + "\n".join(rows))
    assert main(["nines", "monitor", str(path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "good by success is 0.0000, and it was never shown to be higher" in said
    assert "fell from" not in said
