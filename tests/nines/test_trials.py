import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.nines import trials
from ramp.nines.notes import Reading

HEAD = "run,step,task,item,seed,success\n"


def write(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_csv_jsonl_and_parquet_are_one(tmp_path):
    rows = [
        {"run": "a", "step": 10 * s, "task": "t", "item": f"i{i}", "success": (i + s) % 2}
        for s in (1, 2)
        for i in (1, 2)
    ]
    csv = write(
        tmp_path,
        "run,step,task,item,success\n" + "\n".join(",".join(map(str, r.values())) for r in rows),
    )
    jsonl = write(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    one, two, three = (trials.read(p) for p in (csv, jsonl, tmp_path / "t.parquet"))
    for key in trials.DEFAULTS:
        from_csv, from_jsonl, from_parquet = (getattr(t, key) for t in (one, two, three))
        is_number = from_csv.dtype.kind == "f"
        if is_number:
            assert from_csv.tolist() == pytest.approx(from_jsonl.tolist(), nan_ok=True)
        assert np.array_equal(from_jsonl, from_parquet, equal_nan=is_number)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HEAD + "a,1,t,i,0,1.5", "between 0 and 1"),
        (HEAD + "a,1,t,i,0,", "success is nan in row 1"),
        (HEAD + "a,1,t,i,0,perhaps", "not a number"),
        (HEAD + "a,1,t,i,0,1\na,1,t,i,0,0", "same trial is there twice"),
        ("run,step,item,sucess\na,1,i,1\nb,1,i,0", "--map sucess=success"),
        (HEAD, "no rows"),
        ("", "no rows"),
        ("run,success,chance\na,1,1.5", "chance"),
        ("run,success,difficulty\na,1,nan", "finite"),
        ("run,success,step\na,1,inf", "finite"),
    ],
)
def test_what_is_no_table_of_trials_gets_one_sentence(tmp_path, text, what):
    with pytest.raises(UserError, match=what):
        trials.read(write(tmp_path, text))


@pytest.mark.parametrize("name", ["t.parquet", "t.json", "t.jsonl", "t.xls"])
def test_broken_files_get_one_sentence(tmp_path, name):
    with pytest.raises(UserError):
        trials.read(write(tmp_path, '{"a": [1,', name))
    with pytest.raises(UserError):
        trials.read(tmp_path / "none.csv")
    for text in ("[1, 2]", "3", '{"doc_id": 1}', '{"a": 1}\n[2]'):
        with pytest.raises(UserError):
            trials.read(write(tmp_path, text, "odd.jsonl"))
    for text in ("[1, 2]", "3", "{}", '{"samples": [{"id": 1, "scores": {}}]}', '{"samples": 3}'):
        with pytest.raises(UserError):
            trials.read(write(tmp_path, text, "odd.json"))


def test_a_blank_after_a_comma_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("\ufeffitem, success ,seed\nq1, true, 0\nq2, failed, 0\n")
    t = trials.read(path)
    assert t.success.tolist() == [1, 0]
    assert t.item.tolist() == ["q1", "q2"] and t.seed.tolist() == ["0", "0"]
    path.write_text("item,success, success\nq1,1,1\n")
    with pytest.raises(UserError, match="'success' is there twice"):
        trials.read(path)


def test_repeats_without_seeds_are_numbered(tmp_path):
    t = trials.read(write(tmp_path, "run,step,item,success\na,1,i,1\na,1,i,0\na,1,j,0"))
    assert t.seed.tolist() == ["#0", "#1", "#0"]


def test_aggregates_keep_their_errors_and_extra_columns_that_do_not_vary(tmp_path):
    text = "model,step,shots,task,metric,value,stderr\np-1.4b,10,0,t,acc,.5,.1\np-1.4b,10,0,t,norm,.6,.1\np-1.4b,20,0,t,acc,1,0"
    path = write(tmp_path, text)
    with pytest.raises(UserError, match="--metric"):
        trials.read(path)
    c = trials.accuracy_curves(trials.read(path, Reading(metric=("acc",))))
    assert c.value.tolist() == [0.5, 1.0]
    assert c.size[0] == 1.4e9
    assert c.n.tolist() == pytest.approx([25, 25])  # an error of 0 is no certainty
    with pytest.raises(UserError, match="no column 'colour'"):
        trials.read(path, Reading(where={"colour": ("red",)}))


def test_errors_are_clustered_by_item():
    """Ten repeats of each item that always agree tell no more than one."""
    rng = np.random.default_rng(0)
    solved = rng.random(200) < 0.7
    rows = [
        {"run": "a", "step": 1, "item": str(i), "success": int(solved[i])}
        for i in range(200)
        for _ in range(10)
    ]
    c = trials.accuracy_curves(trials.from_rows(rows))
    p = solved.mean()
    assert c.stderr[0] == pytest.approx(np.sqrt(p * (1 - p) / 200), rel=0.01)
    assert c.n[0] == pytest.approx(200, rel=0.02)


def test_logs_of_other_tools(tmp_path):
    lm = [{"doc_id": i, "acc": i % 2, "filter": "none", "target": str(i)} for i in range(4)]
    path = write(
        tmp_path, "\n".join(map(json.dumps, lm)), "samples_arc_easy_2026-01-01T00-00-00.1.jsonl"
    )
    assert trials.read(path).task.tolist() == ["arc_easy"] * 4
    samples = [
        {"id": i, "epoch": e, "scores": {"match": {"value": "CI"[i % 2]}}}
        for i in range(3)
        for e in (1, 2)
    ]
    log = {"eval": {"task": "t", "model": "m"}, "samples": samples}
    assert trials.read(write(tmp_path, json.dumps(log), "log.json")).success.tolist() == [
        1,
        1,
        0,
        0,
        1,
        1,
    ]
    tau = [{"task_id": i, "trial": k, "reward": [1.0, 0.5][k]} for i in range(2) for k in range(2)]
    assert trials.read(write(tmp_path, json.dumps(tau), "tau.json")).success.tolist() == [
        1,
        0,
        1,
        0,
    ]
    tau2 = {"simulations": [{"task_id": 1, "trial": 0, "reward_info": {"reward": 1.0}}]}
    assert trials.read(write(tmp_path, json.dumps(tau2), "tau2.json")).success.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pythia-1.4b-deduped", 1.4e9),
        ("pythia-70m", 7e7),
        ("gpt-4-32k", None),
        ("gpt4o", None),
        ("v1-2.8b", 2.8e9),
    ],
)
def test_size_of_a_name(name, size):
    assert np.isnan(trials.parse_size(name)) if size is None else trials.parse_size(name) == size


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 5), st.booleans()), min_size=1, max_size=60
    )
)
def test_curves_are_the_means_of_their_trials(rows):
    t = trials.from_rows(
        [{"run": "a", "step": s, "item": str(i), "success": int(y)} for s, i, y in rows]
    )
    c = trials.accuracy_curves(t)
    for x, value, n in zip(c.x, c.value, c.n, strict=True):
        mine = [y for s, _, y in rows if np.isclose(np.log10(s), x)]
        assert value == pytest.approx(np.mean(mine))
        assert n > 0
