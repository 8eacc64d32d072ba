import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ramp.cli import main
from ramp.errors import UserError
from ramp.nines import observational, trials


def suite(seed: int = 0, systems: int = 40) -> list[dict]:
    """Systems of four families with one hidden ability; cost predicts it badly, other tasks well."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(systems):
        cost = rng.uniform(20, 24)
        ability = 0.8 * (cost - 22) + rng.normal(0, 1.0)
        for task, hard, noise in (("a", 0.0, 0.1), ("b", 0.5, 0.1), ("target", 1.0, 0.2)):
            p = 1 / (1 + np.exp(-1.5 * (ability - hard) - noise * rng.normal()))
            named = {"run": f"s{k}", "family": "wxyz"[k % 4], "compute": 10**cost, "task": task}
            rows.append(named | {"success": p, "stderr": 0.02})
    return rows


def of(rows: list[dict], **how) -> observational.Systems:
    return observational.build_systems(trials.from_rows(rows), "target", **how)


def test_other_tasks_tell_what_compute_cannot():
    s = of(suite())
    found = observational.score_above(s, 10**22.5)
    assert found.systems > 8
    assert found.coverage > 0.7
    known = s.x <= 22.5
    line = np.polyfit(s.x[known], s.y[known], 1)
    by_cost = 1 / (1 + np.exp(-np.polyval(line, s.x[~known])))
    assert found.squared_error < 0.3 * ((s.value[~known] - by_cost) ** 2).mean()


def test_scores_know_nothing_of_what_is_asked():
    s = of(suite())
    known, asked = s.x <= 22.5, s.x > 22.5
    before = observational.predict(s, known, asked)
    hidden = observational.Systems(
        s.name,
        s.family,
        s.x,
        s.z,
        *(np.where(known, a, np.nan) for a in (s.y, s.value, s.error, s.n)),
    )
    assert np.array_equal(observational.predict(hidden, known, asked), before)


def test_far_from_every_system_is_uncertain():
    s = of(suite())
    far = s.z + np.where(np.arange(len(s))[:, None] == 0, 8.0, 0.0)
    asked = np.arange(len(s)) == 0
    near, wide = (observational.predict(observational.Systems(s.name, s.family, s.x, z, s.y, s.value, s.error, s.n), ~asked, asked)
                  for z in (s.z, far))  # fmt: skip
    spread = [
        np.subtract(*np.quantile(np.log(d + 1e-3) - np.log(1 - d + 1e-3), (0.95, 0.05)))
        for d in (near, wide)
    ]
    assert spread[1] > 1.5 * spread[0]


def test_the_command_predicts_what_was_not_tried_and_names_what_is_missing(tmp_path, capsys):
    rows = [r for r in suite() if not (r["task"] == "target" and r["run"] in ("s1", "s2"))]
    path = tmp_path / "systems.csv"
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    assert main(["nines", "observe", str(path), "--task", "target", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["target"]
    assert set(found) == {"s1", "s2"}
    assert all(low <= middle <= high for low, middle, high in found.values())
    for words, said in (
        (["--task", "nothing"], "no trial is of the task"),
        (["--task", "a"], "nothing to predict"),
        (["--task", "target", "--score-above", "1e30"], "nothing to score"),
        (["--task", "target", "--score-above", "1e19"], "are known on the task"),
        (["--task", "target", "--predictors", "target"], "other tasks"),
    ):
        assert main(["nines", "observe", str(path), *words]) == 2
        assert said in capsys.readouterr().err


def test_systems_need_a_task_to_be_predicted_from():
    with pytest.raises(UserError, match="other tasks"):
        of([r for r in suite() if r["task"] == "target"])


def test_a_sparse_table_names_the_tasks_that_were_tried_most(tmp_path, capsys):
    rows = [
        row
        for row in suite()
        # The last five did not try the target.
        if int(row["run"][1:]) < {"target": 20, "a": 25, "b": 4}[row["task"]]
        or (row["task"] == "b" and int(row["run"][1:]) >= 21)
    ]
    path = tmp_path / "systems.csv"
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    words = ["nines", "observe", str(path), "--task", "target"]
    assert main(words) == 2
    assert "so many systems: a (20), b (4)" in capsys.readouterr().err
    # What the message says to do, works.
    assert main([*words, "--predictors", "a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["target"]
    assert set(found) == {"s20", "s21", "s22", "s23", "s24"}


shared = os.environ.get("RAMP_SHARED_DATA")
EMERGENT = ("parsinlu_qa_2_acc", "word_unscrambling_2_exact_match", "ipa_transliterate_2_exact_match",
            "arithmetic_3ds_2_acc", "arithmetic_3da_2_acc", "arithmetic_2dm_2_acc", "arithmetic_2da_2_acc")  # fmt: skip
BENCHMARKS = (
    "MMLU",
    "ARC-C",
    "HellaSwag",
    "Winograd",
    "TruthfulQA",
    "GSM8K",
    "XWinograd",
    "HumanEval",
)


@pytest.mark.skipif(not shared, reason="RAMP_SHARED_DATA is not set")
def test_observational_scaling_of_emergent_tasks():
    read = lambda name: csv.DictReader((Path(shared) / "forecast" / name).open())  # noqa: E731
    base, rows = {r["Model"]: r for r in read("base_llm_benchmark_eval.csv")}, []
    for r in read("base_llm_emergent_capability_eval.csv"):
        b = base.get(r["Model"], {})
        if b.get("FLOPs (1E21)"):
            named = {
                "run": r["Model"],
                "family": b["Model Family"],
                "compute": 1e21 * float(b["FLOPs (1E21)"]),
            }
            scores = {k: r[k] for k in EMERGENT} | {k: b[k] for k in BENCHMARKS}
            rows += [named | {"task": k, "success": v} for k, v in scores.items() if v]
    t = trials.from_rows(rows)
    found = [
        observational.score_above(observational.build_systems(t, task, list(BENCHMARKS)), 8.4e22)
        for task in EMERGENT
    ]
    count = [f.systems for f in found]
    error, coverage = (
        np.average([getattr(f, k) for f in found], weights=count)
        for k in ("squared_error", "coverage")
    )
    print(f"{sum(count)} forecasts: squared error {error:.4f}, 90% intervals cover {coverage:.3f}")
    assert error < 0.0147
    assert 0.85 <= coverage <= 0.95
