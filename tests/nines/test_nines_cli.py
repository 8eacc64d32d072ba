import csv
import json
import os
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from worlds import world

from ramp.cli import main
from ramp.nines import headline
from ramp.nines.headline import Headline
from ramp.nines.page import say_chance
from ramp.nines.words import say_rate


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 items, 8 checkpoints, 4 tries."""
    return write_world(tmp_path_factory.mktemp("nines") / "trials.csv")


@pytest.fixture
def small(tmp_path):
    """24 items, 4 checkpoints, 4 tries."""
    return write_world(tmp_path / "trials.csv", items=24, checkpoints=4)


def write_world(path, **size):
    t, _, _ = world(7, **size)
    names = ["run", "compute", "item", "seed", "success"]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        out.writerows(zip(*(getattr(t, k) for k in names), strict=True))
    return path


def ask(capsys, *words) -> dict:
    assert main(["nines", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words) -> str:
    assert main(["nines", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ramp: ")
    assert error.count("\n") == 1
    return error


def test_plan(capsys):
    found = ask(capsys, "plan", "--nines", 3)
    assert [p["trials"] for p in found["plans"]] == [2995, 4742, 6294, 7752, 10511]
    # The price of asking after every trial is below a fifth.
    assert 2995 < found["any_time"][0] < 1.25 * 2995
    assert main(["nines", "plan"]) == 0
    assert "2,995" in capsys.readouterr().out
    assert "nines" in refused(capsys, "plan", "--nines", 0)


def test_certify_and_compare(capsys, table, tmp_path):
    found = ask(capsys, "certify", table, "--nines", 1)
    assert found["items"] == 60
    assert 0 < found["lower"] < 1
    assert [level["name"] for level in found["levels"]] == [
        "demo",
        "pilot",
        "production-1",
        "sustained",
    ]
    rows = list(csv.DictReader(table.open()))
    last = max(float(r["compute"]) for r in rows)
    two = tmp_path / "two.csv"
    kept = [r for r in rows if float(r["compute"]) == last]
    worse = [
        r | {"run": "worse", "success": "0" if int(r["item"]) % 3 == 0 else r["success"]}
        for r in kept
    ]
    with two.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(kept + worse)
    found = ask(capsys, "compare", two, "world", "worse")
    assert found["items"] == 60
    assert found["interval"][1] < 0
    shown = ",".join(str(i) for i in range(60) if i % 3)[:40].rsplit(",", 1)[0]
    found = ask(capsys, "audit-demo", two, "--run", "worse", "--items", shown)
    assert found["pass_rate"] > found["suite_pass_rate"]
    assert "several runs" in refused(capsys, "certify", two)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            v
            for k, v in attrs
            if k in ("src", "href", "xlink:href") and v and not v.startswith("#")
        ]


def test_forecast_is_a_page_for_a_meeting_and_is_scored_later(capsys, small, tmp_path, monkeypatch):
    monkeypatch.setattr(headline, "ORIGINS", 2)  # each takes a second
    page, record = tmp_path / "page.html", tmp_path / "forecasts.jsonl"
    schedule = tmp_path / "plan.csv"
    schedule.write_text("date,compute\n2027-01-01,10\n2028-01-01,10000\n")
    words = [
        "forecast",
        small,
        "--page",
        page,
        "--record",
        record,
        "--schedule",
        schedule,
        "--nines",
        "1",
        "2",
        "3",
    ]
    found = ask(capsys, *words)
    assert found["now"] == sorted(found["now"])
    by_end = [level["by_end"] for level in found["levels"]]
    assert by_end == sorted(by_end)[::-1]
    assert len(found["levels"][0]["dates"]) == 3
    text = page.read_text()
    parser = Page()
    parser.feed(text)
    assert parser.tags.count("svg") >= 1
    assert "script" not in parser.tags
    assert parser.links == []
    for part in (
        "What it would take",
        "What evidence is missing",
        "How good such statements were",
        "Best of 4 tries",
        "Words",
    ):
        assert part in text
    # How far to trust it is said once, at the top; below are the figures behind it.
    trust = text.index("came true within their")
    assert trust < text.index("What it would take")
    assert text.count("came true within their") == 1
    # Page, JSON and record say the same.
    (line,) = [json.loads(line) for line in record.read_text().splitlines()]
    keys = [field.name for field in fields(Headline)]
    assert {key: line[key] for key in keys} == {key: found[key] for key in keys}
    low, middle, high = found["now"]
    assert f"{say_rate(middle)} of tries today" in text
    assert f"{say_rate(low)} to {say_rate(high)}" in text
    for level in found["levels"]:
        cells = [say_chance(level[key]) for key in ("by_end", "now")]
        marked = [c.replace("under ", "&lt;").replace("over ", "&gt;") for c in cells]
        assert "".join(f"<td>{cell}</td>" for cell in marked) in text
        places = [level[key] for key in ("sure", "low", "high")]
        for place, date in zip(places, level["dates"], strict=True):
            assert (place or 0) <= found["places"][0] or date in text
    # The same statement is recorded once.
    words = [word for word in words if word not in ("--page", page)]
    assert main(["nines", *map(str, words)]) == 0
    assert "stays as it is" in capsys.readouterr().out
    assert len(record.read_text().splitlines()) == 1
    # Later checkpoints score it; what nobody has tried yet leaves it open.
    assert ask(capsys, "backtest", small, "--record", record)["open"] == 1
    rows = list(csv.DictReader(small.open()))
    grown = tmp_path / "later.csv"
    with grown.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
        for place in found["places"][10:12]:
            out.writerows(r | {"compute": 10**place} for r in rows[-96:])
    scores = ask(capsys, "backtest", grown, "--record", record)
    assert scores["open"] == 0
    (_, scored) = scores["scored"]
    assert scored["actual"] == pytest.approx(np.mean([float(r["success"]) for r in rows[-96:]]))
    for event in scored["events"]:
        (level,) = [v for v in found["levels"] if v["nines"] == event["nines"]]
        assert event["chance"] == pytest.approx(level["chances"][11])
        assert not event["happened"]
    assert scores["summary"]["count"] == 2
    # Another suite under the same name of run is no judge.
    other = tmp_path / "other.csv"
    changed = [r | {"task": "another"} for r in csv.DictReader(grown.open())]
    with other.open("w", newline="") as file:
        out = csv.DictWriter(file, changed[0])
        out.writeheader()
        out.writerows(changed)
    assert "did not try" in refused(capsys, "backtest", other, "--record", record)
    for wrong in (
        "{broken",
        '{"run": "a"}',
        record.read_text().replace('"places": [', '"places": [0.5, '),
    ):
        record.write_text(wrong)
        assert "not a record" in refused(capsys, "backtest", small, "--record", record)


def test_backtest_and_fit(capsys, table, tmp_path):
    found = ask(capsys, "backtest", table, "--page", tmp_path / "b.html")
    assert found["forecasts"] == 14
    assert {"nines", "persistence", "power law", "log-linear"} <= found["methods"].keys()
    found = ask(capsys, "fit", table)
    assert len(found["abilities"]) == 8
    assert len(found["difficulty"]) == 60
    assert found["converged"]


def test_a_fit_that_does_not_settle_is_said(capsys, table, monkeypatch, tmp_path):
    from ramp.nines import items

    peak = items._minimize_hyper
    monkeypatch.setattr(items, "_minimize_hyper", lambda *a: (*peak(*a)[:2], False))
    assert main(["nines", "fit", str(table), "--page", str(tmp_path / "page.html")]) == 0
    for text in (capsys.readouterr().out, (tmp_path / "page.html").read_text()):
        assert "WARNING" in text
        assert "did not settle" in text
    assert ask(capsys, "forecast", table)["converged"] is False


def test_mistakes_are_one_sentence(capsys, table, tmp_path):
    assert "not a file" in refused(capsys, "fit", tmp_path / "none.csv")
    assert "NAME=" in refused(capsys, "forecast", table, "--slice", "base")
    assert "sums to" in refused(capsys, "forecast", table, "--slice", "base=.5")
    assert "sums to nan" in refused(capsys, "forecast", table, "--slice", "base=nan")
    assert "no trial belongs" in refused(capsys, "forecast", table, "--run", "nobody")
    assert "schedule" in refused(capsys, "forecast", table, "--schedule", tmp_path / "none.csv")
    assert "together" in refused(capsys, "backtest", table, "--origin", 10)
    assert "sizes" in refused(capsys, "backtest", table, "--origin", 1, "--target", 10)
    assert "no row" in refused(capsys, "certify", table, "--where", "run=nobody")
    assert "demo" in refused(capsys, "audit-demo", table, "--run", "world", "--items", "none")
    steps = tmp_path / "steps.csv"
    steps.write_text("run,step,item,success\na,1,x,1\na,1,y,0\n")
    assert "one checkpoint" in refused(capsys, "forecast", steps)
    plan = tmp_path / "plan.csv"
    plan.write_text("date,compute\n2027-01-01,10\n2028-01-01,10000\n")
    steps.write_text("run,step,item,success\na,1,x,1\na,1,y,0\na,5,x,1\na,5,y,1\n")
    assert "needs date and step" in refused(capsys, "forecast", steps, "--schedule", plan)
    steps.write_text("run,item,success\na,x,1\na,y,0\n")
    assert "nothing to extrapolate" in refused(capsys, "forecast", steps)


def test_rates_have_the_digits_that_matter():
    one = 1 - 2.0**-53  # a mean of ones, but for its last bit
    assert [say_rate(rate) for rate in (one, 1, 0, 0.8, 0.987)] == [
        "100%",
        "100%",
        "0%",
        "80%",
        "98.7%",
    ]


def test_a_file_of_items_has_one_id_a_line(capsys, tmp_path):
    log = tmp_path / "log.jsonl"
    names = ["add(1, 2)", "add(2, 2)", "é", "other"]
    log.write_text("".join(json.dumps({"run": "a", "item": n, "success": 1}) + "\n" for n in names))
    words = ["audit-demo", log, "--run", "a", "--items", f"@{tmp_path / 'items.txt'}"]
    text = "\r\n".join(names[:3]) + "\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "items.txt").write_bytes(text.encode(encoding))
        assert ask(capsys, *words)["items"] == 3
    (tmp_path / "items.txt").write_bytes(text.encode("utf-16"))
    assert "not text in UTF-8" in refused(capsys, *words)


def test_help_needs_neither_jax_nor_numpy():
    code = "import sys; from ramp.nines import cli; sys.exit(any(m in sys.modules for m in ('jax', 'numpy', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


DATA = os.environ.get("RAMP_SHARED_DATA")
shared = pytest.mark.skipif(not DATA, reason="RAMP_SHARED_DATA is not set")
TASKS = (
    "arc_challenge",
    "arc_easy",
    "lambada_openai",
    "logiqa",
    "piqa",
    "sciq",
    "winogrande",
    "wsc",
)


@shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("origin", "crps", "brier"), [(43_000, 0.0165, 0.06), (13_000, 0.03, 0.06)]
)
def test_pythia_checkpoints(capsys, origin, crps, brier):
    words = [
        "backtest",
        Path(DATA) / "forecast/pythia_v1_evals_dev.csv",
        "--origin",
        origin,
        "--target",
        143_000,
    ]
    for name, value in (("shots", "0"), ("metric", "acc"), ("task", ",".join(TASKS))):
        words += ["--where", f"{name}={value}"]
    found = ask(capsys, *words, "--threshold", *np.arange(0.25, 0.71, 0.05).round(2))
    assert found["methods"]["nines"]["crps"] <= crps
    assert 0.85 <= found["methods"]["nines"]["coverage"] <= 0.95
    assert found["methods"]["nines"]["crps"] == min(v["crps"] for v in found["methods"].values())
    assert found["events"]["brier"] <= brier


@shared
def test_pass_hat_of_the_tau2_leaderboard():
    from ramp.nines import intervals

    with (Path(DATA) / "forecast/tau2_leaderboard_passk.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if all(r[f"pass_{k}"] for k in range(1, 5))]
    p = np.array([[float(r[f"pass_{k}"]) / 100 for k in range(1, 5)] for r in rows])
    group = np.array([r["domain"] for r in rows])
    rho = (p[:, 1] - p[:, 0] ** 2) / (p[:, 0] * (1 - p[:, 0]))
    two = [abs(intervals.logit_normal_pass_hat_k(4, a, b) - d) for a, b, _, d in p]
    one = []
    for i in range(len(p)):
        rest = np.arange(len(p)) != i
        expected = intervals.predict_correlation(
            p[rest, 0], rho[rest], group[rest], p[i, 0], group[i]
        )
        one.append(abs(intervals.beta_binomial_pass_hat_k(4, p[i, 0], expected) - p[i, 3]))
    assert len(p) == 74
    assert np.mean(two) <= 0.015
    assert np.mean(one) <= 0.05
    assert np.mean(np.abs(p[:, 0] ** 4 - p[:, 3])) == pytest.approx(0.163, abs=0.001)
