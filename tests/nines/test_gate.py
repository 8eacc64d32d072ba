import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ramp.cli import main
from ramp.errors import UserError
from ramp.nines import trials
from ramp.nines.audit import unit_evidence
from ramp.nines.gate import FAIL, PASS, UNDECIDED, judge, junit
from ramp.nines.sequential import (
    clean_evidence,
    confidence_sequence,
    count_clean_units,
    count_evidence,
    log_capital_above,
    log_capital_below,
    log_capital_of_loss,
)

ENOUGH = np.log(20)
SIDES = (log_capital_above, log_capital_below)
# Bars, and families by items of them with their correlation, at which an error rate is measured.
CLUSTERS = ((12, 40, 0.1), (30, 10, 0.3), (60, 5, 0.3), (200, 4, 0.5))


def first_pass(bar: float, failures: int) -> np.ndarray:
    """[F] how many items a log with 0, 1, ... failures needs to pass."""
    needed = []
    for f in range(failures):
        e = count_evidence(np.zeros(f)) if f else clean_evidence(0)
        needed.append(f + count_clean_units(e, bar))
    return np.array(needed)


def simulate_peeking(runs: int, truth: float, bar: float, most: int, seed: int):
    """[runs] the item after which a log that is looked at after every one passes; 0: never."""
    rng = np.random.default_rng(seed)
    needed = np.append(first_pass(bar, 60), np.inf)
    when = np.zeros(runs, int)
    for run in range(runs):
        failures = np.minimum((rng.random(most) > truth).cumsum(), 60)
        passes = np.arange(1, most + 1) >= needed[failures]
        when[run] = passes.argmax() + 1 if passes.any() else 0
    return when


def simulate_families(runs: int, truth: float, shape, seed: int, peek: bool = False) -> float:
    """How often families of correlated items pass a bar that is their true reliability."""
    rng = np.random.default_rng(seed)
    families, size, rho = shape
    phi = 1 / rho - 1
    passed = 0
    family = np.arange(families).repeat(size)
    names = family.astype(str)
    for _ in range(runs):
        p = rng.beta(truth * phi, (1 - truth) * phi, families)
        success = (rng.random(families * size) < p[family]).astype(float)
        seen = [len(family)]
        if peek:
            # Items come in any order, or family by family.
            order = rng.permutation(len(family)) if rng.random() < 0.5 else np.arange(len(family))
            success, names = success[order], family[order].astype(str)
            seen = range(1, len(family) + 1)
        passed += any(
            log_capital_above(unit_evidence(success[:n], names[:n], "family"), truth) >= ENOUGH
            for n in seen
        )
    return passed / runs


def test_false_certification_under_peeking():
    for truth, most in ((0.9, 600), (0.99, 4000)):
        assert (simulate_peeking(500, truth, truth, most, 0) > 0).mean() <= 0.05


def test_false_certification_with_families():
    for shape in CLUSTERS[:2]:
        assert simulate_families(300, 0.9, shape, 0) <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_false_certification_in_four_thousand_runs():
    """pytest -n 0 -s -m slow tests/nines/test_gate.py -k four_thousand"""
    for truth, most in ((0.5, 300), (0.9, 3000), (0.99, 20_000), (0.999, 60_000)):
        share = (simulate_peeking(4000, truth, truth, most, 1) > 0).mean()
        print(f"independent items at {truth}, looked at after each of {most}: {share:.4f}")
        assert share <= 0.05
    for truth in (0.5, 0.9, 0.95, 0.99):
        for shape in CLUSTERS:
            share = simulate_families(4000, truth, shape, 2)
            print(f"families {shape} at {truth}: {share:.4f}")
            assert share <= 0.05
    for truth in (0.5, 0.9):
        for shape in CLUSTERS[:2]:
            share = simulate_families(1000, truth, shape, 3, peek=True)
            print(f"families {shape} at {truth}, looked at after every item: {share:.4f}")
            assert share <= 0.05


def follow_advice(rng, truth: float, rounds: int = 12) -> bool:
    """Whether a system is certified that tries as many further items as it was told, each round."""
    tried = failures = 0
    more = 50
    for _ in range(rounds):
        tried += more
        failures += rng.binomial(more, 1 - truth)
        e = count_evidence(np.arange(tried) >= failures)
        more = count_clean_units(e, truth)
        if not more:
            return True
    return False


def test_advice_may_be_followed():
    rng = np.random.default_rng(0)
    assert np.mean([follow_advice(rng, 0.9) for _ in range(300)]) <= 0.05
    e = count_evidence(np.array([1.0] * 60 + [0.0]))
    more = count_clean_units(e, 0.9)
    assert log_capital_above(e + clean_evidence(more), 0.9) >= ENOUGH
    assert log_capital_above(e + clean_evidence(more - 1), 0.9) < ENOUGH


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_advice_in_four_thousand_runs():
    """pytest -n 0 -s -m slow tests/nines/test_gate.py -k advice"""
    for truth in (0.9, 0.99):
        rng = np.random.default_rng(1)
        share = np.mean([follow_advice(rng, truth) for _ in range(4000)])
        print(f"at {truth}, following the advice: {share:.4f}")
        assert share <= 0.05


def wald(truth: float, bad: float, good: float, runs: int) -> float:
    """Mean trials of Wald's test at risks of 5%."""
    rng = np.random.default_rng(2)
    failed = rng.random((runs, 5000)) > truth
    ratio = np.where(failed, np.log((1 - good) / (1 - bad)), np.log(good / bad)).cumsum(1)
    return (np.abs(ratio) >= np.log(19)).argmax(1).mean() + 1


def test_power_beside_walds_test():
    when = simulate_peeking(1000, 0.999, 0.99, 4000, 3)
    assert (when > 0).all()
    assert when.mean() <= 1.3 * wald(0.999, 0.99, 0.999, 1000)


def test_bounds_cover_at_all_times_at_once_and_agree_with_the_gate():
    rng = np.random.default_rng(4)
    missed = np.zeros(2)
    for _ in range(300):
        success = (rng.random(300) < 0.9).astype(float)
        seen = [count_evidence(success[:n]) for n in range(20, 301, 20)]
        # The lower bound is above a rate where the capital bet on that is enough.
        missed += [max(f(e, 0.9) for e in seen) > ENOUGH for f in SIDES]
    assert (missed / 300 <= 0.05).all()
    e = count_evidence(success)
    low, high = confidence_sequence(e)
    assert log_capital_above(e, low - 1e-6) > ENOUGH > log_capital_above(e, low + 1e-6)
    assert log_capital_below(e, high + 1e-6) > ENOUGH > log_capital_below(e, high - 1e-6)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_bounds_of_one_outcome(outcome):
    low, high = confidence_sequence(count_evidence(np.full(400, outcome)))
    assert 0 <= low < high <= 1
    assert high - low < 0.03


def log_rows(n: int, tries: int, rate: float, seeds: bool, rng) -> list[dict]:
    """Rows of one run: n items of six families, each tried so often."""
    rows = []
    for i in range(n):
        for k in range(tries):
            row = {"item": f"q{i}", "family": f"f{i % 6}", "success": int(rng.random() < rate)}
            rows.append(row | ({"seed": str(k)} if seeds else {}))
    return rows


@pytest.mark.parametrize("seeds", [True, False])
@pytest.mark.parametrize("unit", ["item", "family"])
def test_neither_order_nor_repeats_of_rows_change_the_verdict(seeds, unit):
    rng = np.random.default_rng(5)
    rows = log_rows(60, 4, 0.8, seeds, rng)
    verdict = judge(trials.from_rows(rows), 1, unit=unit)
    by_success = sorted(rows, key=lambda row: row["success"])
    for other in (by_success, by_success[::-1], [rows[i] for i in rng.permutation(len(rows))]):
        assert judge(trials.from_rows(other), 1, unit=unit) == verdict
    # Rows again: under another seed where they have one, else as they are.
    again = [row | ({"seed": "9" + row["seed"]} if seeds else {}) for row in rows]
    doubled = judge(trials.from_rows(rows + again), 1, unit=unit)
    assert replace(doubled, notes=verdict.notes) == verdict
    assert ("no seed" in doubled.notes[0]) != seeds


def test_retrying_what_failed_changes_nothing():
    rng = np.random.default_rng(6)
    rows = log_rows(60, 1, 0.5, True, rng)
    retried = rows + [r | {"seed": "1", "success": 1} for r in rows if not r["success"]]
    verdict = replace(judge(trials.from_rows(rows), 1), notes=())
    assert replace(judge(trials.from_rows(retried), 1), notes=()) == verdict
    # Seeds are numbers: the tenth try comes after the second.
    tenth = rows + [r | {"seed": "10", "success": 1} for r in rows]
    second = tenth + [r | {"seed": "2", "success": 0} for r in rows]
    assert judge(trials.from_rows(second), 1).failures == judge(trials.from_rows(rows), 1).failures


@pytest.mark.parametrize("failed", [40, 60, 85])
@pytest.mark.parametrize("seeds", [{}, {"seed": 0}])
def test_a_date_that_tries_again_what_failed_is_no_checkpoint(failed, seeds):
    rows = [
        {"date": "2026-01-01T10:00", "item": str(i), "success": int(i >= failed)} | seeds
        for i in range(100)
    ]
    retried = [r | {"date": "2026-01-01T11:00", "success": 1} for r in rows[:failed]]
    first = judge(trials.from_rows(rows), 1)
    both = judge(trials.from_rows(rows + retried), 1)
    assert (both.code, both.items, both.failures) == (FAIL, 100, failed)
    assert replace(both, notes=first.notes) == first
    # A later date of the whole suite, but for a few that broke, counts alone.
    later = [r | {"date": "2026-01-02T10:00", "success": 1} for r in rows[:96]]
    whole = judge(trials.from_rows(rows + retried + later), 1)
    assert (whole.code, whole.items, whole.failures) == (PASS, 96, 0)


def test_items_that_come_and_go_leave_a_date_a_checkpoint():
    """Each month replaces 15 items of 100; the last one has no failure."""
    rows = [
        {"date": f"2026-0{month}-01", "item": str(15 * month + i), "seed": 0, "success": month > 2}
        for month in (1, 2, 3)
        for i in range(100)
    ]
    v = judge(trials.from_rows(rows), 1)
    assert (v.code, v.items, v.failures) == (PASS, 100, 0)


def test_the_retry_of_pytest_does_not_pass(capsys, tmp_path):
    for k, (hour, items) in enumerate(((10, 100), (11, 40)), 1):
        cases = "".join(
            f'<testcase classname="c" name="t{i}">{"<failure/>" * (k == 1 and i < 40)}</testcase>'
            for i in range(items)
        )
        head = f'<testsuite name="pytest" timestamp="2026-01-01T{hour}:00:00" tests="{items}">'
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "junit.xml").write_text(f"{head}{cases}</testsuite>")
    code, out, _ = ask_gate(capsys, tmp_path, "--nines", 1)
    assert (code, "40 of 100 items failed" in out) == (FAIL, True)


def test_what_families_prove_is_not_passed_where_items_are_below_the_bar():
    large = [("large", i % 2) for i in range(100)]
    small = [(f"f{i}", 1) for i in range(100)]
    rows = [{"item": i, "family": f, "success": s} for i, (f, s) in enumerate(large + small)]
    verdict = judge(trials.from_rows(rows), 1)
    assert verdict.code == UNDECIDED
    assert any("by item it is below the bar" in note for note in verdict.notes)
    assert judge(trials.from_rows(rows[100:]), 1).code == PASS


@pytest.mark.parametrize("sizes", ["growing", "falling", "wild"])
def test_false_certification_as_families_of_unequal_size_come(sizes):
    # Whole families of one fate, looked at after each.
    rng = np.random.default_rng(9)
    passed = 0
    for _ in range(200):
        fate = (rng.random(200) < 0.9).astype(float)
        size = {
            "growing": 3 ** np.repeat(np.arange(4), 50),
            "falling": 3 ** np.repeat(np.arange(4)[::-1], 50),
            "wild": np.ceil(rng.pareto(1, 200)).astype(int).clip(1, 40),
        }[sizes]
        for n in range(20, 201, 20):
            family = np.arange(n).repeat(size[:n])
            e = unit_evidence(fate[family], family.astype(str), "family")
            if log_capital_above(e, 0.9) >= ENOUGH:
                passed += 1
                break
    assert passed / 200 <= 0.05


def test_a_log_that_grows_by_families_is_one_unit_until_the_second_comes():
    rows = [{"item": str(i), "family": "f0", "success": 1} for i in range(40)]
    first = judge(trials.from_rows(rows), 1)
    assert (first.code, first.unit, first.units) == (UNDECIDED, "family", 1)
    assert any("--unit item" in note for note in first.notes)
    assert judge(trials.from_rows(rows), 1, unit="item").code == PASS
    second = judge(trials.from_rows([*rows, {"item": "x", "family": "f1", "success": 1}]), 1)
    assert (second.unit, second.units) == ("family", 2)
    assert second.bounds[0] >= first.bounds[0]


@pytest.mark.parametrize("seeds", [{}, {"seed": 0}])
def test_items_that_are_numbered_anew_in_each_family_are_refused(seeds):
    rows = [
        {"item": str(i), "family": f"f{k}", "success": int(k != 3)} | seeds
        for k in range(12)
        for i in range(40)
    ]
    with pytest.raises(UserError, match=r"several families .*such as f0/0"):
        judge(trials.from_rows(rows), 1)
    # What the message says to do, works.
    named = [r | {"item": f"{r['family']}/{r['item']}"} for r in rows]
    v = judge(trials.from_rows(named), 1)
    assert (v.items, v.failures, v.units) == (480, 40, 12)


def test_a_family_counts_whichever_of_its_rows_names_it():
    rows = [{"item": str(i), "seed": s, "success": 1} for i in range(40) for s in (0, 1)]
    for named in (0, 1):
        some = [r | {"family": "f"} if r["seed"] == named else r for r in rows]
        assert judge(trials.from_rows(some), 1).units == 1


@pytest.mark.parametrize("seeds", [("2", "10"), ("", "0"), ("7", "x"), ("83", "12")])
def test_only_seeds_from_0_or_1_on_say_which_try_was_first(seeds):
    first, retry = seeds
    rows = [{"item": str(i), "seed": first, "success": 0} for i in range(60)]
    retried = [row | {"seed": retry, "success": 1} for row in rows]
    assert judge(trials.from_rows(rows), 1).code == FAIL
    failures = judge(trials.from_rows(rows + retried), 1).failures
    assert failures == (0 if retry == "0" else 60)


def test_whole_seeds_are_the_same_however_they_are_written(tmp_path):
    path = tmp_path / "log.csv"
    verdicts = []
    for form in ("{}", "{}.0"):
        rows = [f"{i},{form.format(k)},{int(k == 0)}" for i in range(60) for k in range(3)]
        path.write_text("item,seed,success\n" + "\n".join(rows))
        t = trials.read(path)
        assert sorted(set(t.seed)) == ["0", "1", "2"]
        verdicts.append(judge(t, 1))
    assert verdicts[0] == verdicts[1]
    assert verdicts[1].code == PASS


def test_one_odd_seed_does_not_reorder_the_rest():
    rows = [{"item": str(i), "seed": k, "success": int(k != 0)} for i in range(60) for k in (0, 1)]
    assert judge(trials.from_rows(rows), 1).failures == 60
    odd = [*rows, {"item": "0", "seed": "x", "success": 1}]
    assert judge(trials.from_rows(odd), 1).failures == 60


def test_rows_without_an_item_are_no_accuracy_of_the_others():
    rows = [{"item": str(i), "success": 1} for i in range(40)]
    with pytest.raises(UserError, match="400 rows have no item among trials"):
        judge(trials.from_rows(rows + [{"item": None, "success": 0}] * 400), 1)
    # The accuracy of the very trials is left out, and said.
    t = trials.from_rows([*rows, {"item": None, "success": 1}])
    assert len(t) == 40
    assert any("accuracies of trials" in note.text for note in t.notes)


def test_a_row_without_a_step_does_not_join_all_checkpoints():
    rows = [{"item": str(i), "step": s, "success": int(s == 1)} for i in range(60) for s in (1, 2)]
    assert judge(trials.from_rows(rows), 1).code == FAIL
    with pytest.raises(UserError, match="1 of 121 rows of run have no step"):
        judge(trials.from_rows([*rows, {"item": "x", "step": None, "success": 1}]), 1)


def compare_with_baseline(rng, new: dict, old: dict, runs: int = 200) -> float:
    """How often a system is called worse than itself; new, old: tries, and slices with rates."""
    worse = 0
    for _ in range(runs):
        logs = []
        for log in (new, old):
            logs.append(
                trials.from_rows(
                    {"item": str(i), "slice": s, "success": int(rng.random() < rate)}
                    for s, rate in log["slices"].items()
                    for i in range(60)
                    for _ in range(log["tries"])
                )
            )
        verdict = judge(logs[0], 1, baseline=logs[1])
        worse += verdict.regression.shown
    return worse / runs


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"tries": 4, "slices": {"base": 0.9}}, {"tries": 1, "slices": {"base": 0.9}}),
        (
            {"tries": 1, "slices": {"base": 0.9, "typos": 0.5}},
            {"tries": 1, "slices": {"base": 0.9}},
        ),
    ],
)
def test_more_tries_or_slices_are_not_called_worse(new, old):
    assert compare_with_baseline(np.random.default_rng(10), new, old, 60) <= 0.05


def test_a_baseline_hides_no_failure_and_every_failure_has_a_reason():
    rows = [{"item": str(i), "success": int(i >= 24)} for i in range(100)]
    t = trials.from_rows(rows)
    assert judge(t, 1, baseline=t).code == FAIL
    for better in range(0, 24, 3):
        old = trials.from_rows([r | {"success": int(int(r["item"]) >= 24 - better)} for r in rows])
        v = judge(trials.from_rows(rows), 1, baseline=old)
        assert (v.code == FAIL) == (v.regression.shown or v.bounds[1] < v.rate)


def test_a_partial_success_is_said_to_count_as_failed():
    rows = [{"item": str(i), "success": 0.5 if i < 7 else 1} for i in range(40)]
    verdict = judge(trials.from_rows(rows))
    assert verdict.failures == 7
    assert "7 trials scored between 0 and 1" in verdict.notes[0]


def write_log(path, successes, run="a"):
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["run", "item", "success"])
        out.writerows([run, f"q{i}", int(s)] for i, s in enumerate(successes))
    return path


def ask_gate(capsys, *words):
    code = main(["nines", "gate", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_exit_codes_and_reports(capsys, tmp_path):
    clean = write_log(tmp_path / "clean.csv", np.ones(400))
    few = write_log(tmp_path / "few.csv", np.ones(40))
    bad = write_log(tmp_path / "bad.csv", np.arange(400) % 3 > 0)
    xml = tmp_path / "gate.xml"
    types = {PASS: [], FAIL: ["fail"], UNDECIDED: ["undecided"]}
    for log, code in ((clean, PASS), (bad, FAIL), (few, UNDECIDED)):
        found, out, _ = ask_gate(capsys, log, "--junit", xml)
        assert found == code
        assert out.count("\n") == 1
        suite = ElementTree.parse(xml).getroot()
        case = suite.find("testcase")
        # Whatever exits with another code than 0 is a failure there, and nobody's error.
        assert {child.tag for child in case} <= {"failure", "system-out"}
        assert [child.get("type") for child in case.iter("failure")] == types[code]
        assert all(child.get("message") == out.strip() for child in case.iter("failure"))
        assert (suite.get("failures"), suite.get("errors")) == (str(int(code != PASS)), "0")
        figures = json.loads(ask_gate(capsys, log, "--json")[1])
        shown = case.find("system-out").text
        failed = sorted(f"q{i}" for i in range(0, 400, 3)) if log == bad else []
        assert figures["failing"] == failed[:100]
        assert (f"failed: {', '.join(failed[:3])}" in shown) == (log == bad)
        assert figures["code"] == code
        assert figures["summary"] == out.strip()
    # The advice works: so many more clean items pass.
    more = write_log(tmp_path / "more.csv", np.ones(40 + figures["more"]))
    assert ask_gate(capsys, more)[0] == PASS
    assert ask_gate(capsys, more, "--confidence", 0.999)[0] == UNDECIDED


def test_a_mistake_is_no_verdict(capsys, tmp_path):
    log = write_log(tmp_path / "log.csv", np.ones(40))
    for words in (["none.csv"], [log, "--nines", 0], [log, "--oops"], [log, "--unit", "family"]):
        code, _, error = ask_gate(capsys, *words)
        assert code == 64
        assert error.startswith("ramp: ")
    # What the messages say to do, works.
    two = tmp_path / "two.csv"
    other = write_log(tmp_path / "other.csv", np.zeros(40), run="b")
    two.write_text(log.read_text() + "".join(other.read_text().splitlines(keepends=True)[1:]))
    assert "--where run=NAME" in ask_gate(capsys, two)[2]
    assert ask_gate(capsys, two, "--where", "run=a", "--nines", 1)[0] == PASS
    assert "--baseline-run NAME" in ask_gate(capsys, log, "--baseline", two)[2]
    words = [two, "--where", "run=a", "--nines", 1, "--baseline", two]
    assert ask_gate(capsys, *words, "--baseline-run", "b")[0] == PASS


def test_every_report_is_xml_whatever_the_names_of_items():
    odd = ["a\x1b[31m", "b\x00", "c\ufffe", "d\ud800", "<&é\U0001f600"]
    v = judge(trials.from_rows({"item": name, "success": 0} for name in odd[:1]), 1)
    root = ElementTree.fromstring(junit(replace(v, failing=tuple(odd))).encode())
    named = root.find("testcase/system-out").text.splitlines()[-1]
    assert named == "failed: a\ufffd[31m, b\ufffd, c\ufffd, d\ufffd, <&é\U0001f600"


@pytest.mark.parametrize("option", ["--junit", "--page"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "name a folder that may be written"), (errno.ENOSPC, "free some space")],
)
def test_a_report_that_cannot_be_written_is_a_mistake_beside_the_verdict(
    capsys, tmp_path, monkeypatch, option, number, remedy
):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    bad = write_log(tmp_path / "bad.csv", np.zeros(60))
    for write in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, write, refuse)
    monkeypatch.setattr("ramp.files.open_atomic", refuse)
    code, out, error = ask_gate(capsys, bad, "--nines", 1, option, tmp_path / "report")
    assert (code, out.startswith("FAIL")) == (64, True)
    assert remedy in error


@pytest.mark.parametrize("words", ["nines gates", "nines", "nine gate", "nines --json gate"])
def test_a_misspelled_gate_is_not_undecided(words):
    assert main([*words.split(), "log.csv"]) == 64


def test_a_baseline_is_another_checkpoint(capsys, tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"m,{s},{i},{int(i >= 10 or s > 1)}\n" for s in (1, 2) for i in range(60)]
    log.write_text("run,step,item,success\n" + "".join(rows))
    words = [log, "--nines", 1]
    code, _, error = ask_gate(capsys, *words, "--baseline", log)
    assert code == 64 and "--baseline-run RUN@STEP" in error
    code, out, _ = ask_gate(capsys, *words, "--baseline", log, "--baseline-run", "m@1")
    assert "+0.1667 on 60 items of the baseline" in out
    code, out, _ = ask_gate(
        capsys, *words, "--where", "step=1", "--baseline", log, "--baseline-run", "m@2"
    )
    assert code == FAIL and "worse than the baseline" in out
    assert ask_gate(capsys, *words, "--baseline-run", "m@1")[0] == 64


def test_worse_than_the_baseline_fails(capsys, tmp_path):
    rng = np.random.default_rng(7)
    old = write_log(tmp_path / "old.csv", np.ones(600), run="old")
    new = write_log(tmp_path / "new.csv", rng.random(600) < 0.95, run="new")
    assert ask_gate(capsys, new, "--nines", 1)[0] == PASS
    code, out, _ = ask_gate(capsys, new, "--nines", 1, "--baseline", old)
    assert code == FAIL
    assert "worse than the baseline" in out


def test_as_good_as_the_baseline_is_rarely_called_worse():
    rng = np.random.default_rng(7)
    worse = 0
    for _ in range(400):
        a, b = (rng.random((2, 300)) < 0.9).astype(float)
        looks = [log_capital_of_loss(count_evidence((a - b)[:n])) for n in range(20, 301, 20)]
        worse += max(looks) >= ENOUGH
    assert worse / 400 <= 0.05
