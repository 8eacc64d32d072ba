"""Verifiers: strict answers, and what is found out about them before they are trusted."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from ramp.config import Synthesize, Thresholds
from ramp.errors import UserError
from ramp.synth import history, verify
from ramp.synth.docs import Docs

T = Synthesize(verifier_seconds=0.2)


def refusals(function, *texts):
    return verify.list_refusals("mine", function, texts, T)


def test_only_true_and_enough_of_a_score_are_acceptance():
    said = {"yes": True, "no": False, "np": np.bool_(True), "high": 0.9, "low": 0.1, "one": 1}
    said |= {"text": "no", "none": None, "nan": float("nan"), "over": 7.0, "list": [True]}
    found = dict(zip(said, refusals(said.__getitem__, *said), strict=True))
    assert {name for name, reason in found.items() if not reason} == {"yes", "np", "high", "one"}
    assert found["low"] == "mine gives 0.10 of 0.5" and found["no"] == "mine says no"
    assert all("neither true or false" in found[name] for name in ("text", "none", "nan", "over"))


def test_one_that_raises_or_exits_refuses():
    def broken(text):
        raise RuntimeError("no interpreter")

    def leaves(text):
        raise SystemExit(3)

    assert refusals(broken, "a") == ["mine raised RuntimeError: no interpreter"]
    assert refusals(leaves, "a") == ["mine raised SystemExit: 3"]


def test_names_that_are_no_function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("right = 3\n")
    for name, says in (("fluent", "neither clean"), (f"{path}:right", "no function")):
        with pytest.raises(UserError, match=says):
            verify.load_function(name, "synthesize.verifiers")


def test_an_edit_changes_the_hash(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("right = bool\n")
    names = ("clean", f"{path}:right", "")
    before = verify.hash_files(names)
    assert before == verify.hash_files(names)
    path.write_text("right = len\n")
    assert before != verify.hash_files(names)


def docs_of_two_kinds(n=400, share=0.12):
    """Documents of 30 of 200 words; a share of them is about words of its own."""
    rng = np.random.default_rng(0)
    of_cell = rng.random(n) < share
    docs = [rng.integers(0, 200, 30) for _ in range(n)]
    for i in np.flatnonzero(of_cell):
        docs[i][:10] = 200 + rng.integers(0, 20, 10)
    return docs, of_cell


def examine(accepts):
    docs, of_cell = docs_of_two_kinds()
    judge = lambda ds: ["" if accepts(d) else "says no" for d in ds]  # noqa: E731
    report, _ = verify.examine("mine", judge, docs, Docs.from_lists(docs), str, Thresholds())
    return report, of_cell


def test_a_kind_that_nobody_declared_is_named():
    report, of_cell = examine(lambda doc: doc.max() < 200)
    assert report.real == pytest.approx(1 - of_cell.mean())
    assert 0 < len(report.faults) <= verify.MAX_SHOWN and "is blind to" in report.faults[0]


def test_one_that_accepts_a_topic_alone_is_at_fault():
    report, _ = examine(lambda doc: doc.max() >= 200)
    assert "would teach the rest alone" in report.faults[0]


def test_blindness_to_order_and_to_the_end_is_said():
    report, _ = examine(lambda doc: True)
    assert "blind to the end of a text" in str(report) and "blind to order" in str(report)
    careful, _ = examine(lambda doc: len(doc) == 30)
    assert "the end" not in str(careful) and "order" in str(careful) and not careful.faults


def test_one_that_fails_on_every_real_document_is_its_authors_mistake():
    docs, _ = docs_of_two_kinds(20)
    judge = lambda ds: ["mine raised ValueError: no" for _ in ds]  # noqa: E731
    with pytest.raises(UserError, match="fails on every real document"):
        verify.examine("mine", judge, docs, Docs.from_lists(docs), str, Thresholds())


def test_refusals_by_chance_are_no_blindness():
    """In at most one of 100 verifiers that refuse at random, at any rate."""
    docs, _ = docs_of_two_kinds()
    cells = Docs.from_lists(docs)
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        accepted = rng.random(len(docs)) < rng.choice([0.1, 0.5, 0.9, 0.97])
        found += bool(verify.find_blind_cells(cells, accepted, 4.0))
    assert found <= 1


def test_precision_bound_in_simulation():
    """It rarely lies below the true precision, and asking much costs nothing."""
    rng = np.random.default_rng(0)
    for share, tpr, fpr in ((0.5, 0.95, 0.02), (0.6, 0.8, 0.2), (0.1, 0.99, 0.001)):
        accepted = share * tpr + (1 - share) * fpr
        true = share * tpr / accepted
        bounds = [
            verify.precision_bound(accepted, rng.binomial(400, tpr), rng.binomial(400, fpr), 400)
            for _ in range(300)
        ]
        assert np.mean(np.array(bounds) >= true - 0.01) > 0.85
    for accepted in (0.5, 0.2, 0.1, 0.01):
        assert verify.precision_bound(accepted, 400, 0, 400) == 1.0
    assert verify.precision_bound(1.0, 400, 400, 400) == 0.0  # one that always agrees tells nothing


def test_a_verifier_may_hang_on_few_texts():
    def judge(text):
        if "hang" in text:
            time.sleep(5)
        return True

    said = refusals(judge, "a", "hang 1", "b", "hang 2")
    assert [bool(reason) for reason in said] == [False, True, False, True]
    assert "not returned after 0.2 seconds" in said[1]
    with pytest.raises(UserError, match="the first of 3 texts: 'hang 1'"):
        refusals(judge, "hang 1", "hang 2", "hang 3")


def test_figures_of_reasons_are_counted_together_and_names_stay():
    reasons = ["v2.py:ok gives 0.12 of 0.5", "v2.py:ok gives 0.3 of .5", "v1.py:ok says no"]
    rows = [SimpleNamespace(reason=reason, decision="dropped") for reason in reasons]
    found = history.count_refusals(rows)
    assert found == {"v2.py:ok gives N of N": 2, "v1.py:ok says no": 1}
