"""Logs as evaluation tools leave them: each is read, and nothing about it is silent.

Shapes follow what the tools wrote: inspect_ai 0.3.285 (mockllm), lm-eval 0.4.9.1 (dummy), pytest 9;
the others follow their documentation and source.
"""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from ramp.errors import UserError
from ramp.nines import audit, intervals, trials
from ramp.nines.notes import Reading


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def write_lines(path, rows):
    return write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def notes(t, kind):
    return [note.text for note in t.notes if note.kind == kind]


def pass_hat(t, k):
    """pass^k by item."""
    item = np.unique(t.item, return_inverse=True)[1]
    return intervals.pass_hat_k(k, np.bincount(item, t.success), np.bincount(item).astype(float))


# --- inspect


def inspect_samples(items=6, epochs=2, **scorers):
    scorers = scorers or {"match": lambda i, e: "CI"[i % 2]}
    return [
        {
            "id": i,
            "epoch": e,
            "scores": {name: {"value": grade(i, e)} for name, grade in scorers.items()},
            "started_at": "2026-01-01T01:00:00+01:00",
            "total_time": 1.5,
        }
        for e in range(1, epochs + 1)
        for i in range(items)
    ]


def inspect_header(status="success", items=6, epochs=2):
    about = {
        "task": "t",
        "model": "m",
        "dataset": {"samples": items},
        "config": {"epochs": epochs},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return {"status": status, "eval": about}


def write_eval(path, header, samples, compression=zipfile.ZIP_DEFLATED, summaries=True):
    names = [f"samples/{s['id']}_epoch_{s['epoch']}.json" for s in samples]
    with zipfile.ZipFile(path, "w", compression) as archive:
        if header["status"] == "started":
            archive.writestr("_journal/start.json", json.dumps({"eval": header["eval"]}))
        else:
            archive.writestr("header.json", json.dumps(header))
        for name, sample in zip(names, samples, strict=True):
            archive.writestr(name, json.dumps(sample))
        if summaries:
            archive.writestr("summaries.json", json.dumps(samples))
    return path


@pytest.mark.parametrize("summaries", [True, False])
def test_inspect_eval_and_json_are_one(tmp_path, summaries):
    header, samples = inspect_header(), inspect_samples()
    one = trials.read(write_eval(tmp_path / "a.eval", header, samples, summaries=summaries))
    two = trials.read(write(tmp_path / "a.json", header | {"samples": samples}))
    for t in (one, two):
        assert (t.run[0], t.task[0], len(t), len(np.unique(t.item))) == ("m", "t", 12, 6)
        assert pass_hat(t, 2) == 0.5
        assert t.date[0] == "2026-01-01T00:00:00"
        assert t.seconds[0] == 1.5
        assert not t.notes


def test_inspect_eval_as_inspect_packs_it_by_zstandard(tmp_path, monkeypatch):
    """Python before 3.14 cannot write such a ZIP: the members of a stored one are replaced."""
    packed = json.dumps(inspect_header()).encode()
    samples = json.dumps(inspect_samples()).encode()
    path = tmp_path / "a.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("header.json", packed), ("summaries.json", samples)):
            archive.writestr(name, pa.compress(content, codec="zstd", asbytes=True))
    real = zipfile.ZipFile.getinfo

    def getinfo(self, name):
        info = real(self, name)
        info.compress_type = 93
        return info

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", getinfo)
    # No samples/: a log whose samples are in its summaries only.
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(12):
            archive.writestr(f"samples/{i}.json", "{}")
    assert pass_hat(trials.read(path), 2) == 0.5


def test_two_scorers_are_a_choice_of_the_user(tmp_path):
    samples = inspect_samples(fmt=lambda i, e: "C", exact=lambda i, e: "CI"[i % 2])
    path = write_eval(tmp_path / "a.eval", inspect_header(), samples)
    with pytest.raises(UserError, match="t has the scorers exact, fmt; name one with --scorer"):
        trials.read(path)
    t = trials.read(path, Reading(scorer=("exact",)))
    assert t.success.mean() == 0.5
    assert notes(t, "choice") == ["t: the scorer exact, and not fmt, of the same trials"]
    with pytest.raises(UserError, match="no scorer 'nothing'; there are exact, fmt"):
        trials.read(path, Reading(scorer=("nothing",)))


def test_a_scorer_with_several_values_is_a_choice_too(tmp_path):
    samples = inspect_samples(both=lambda i, e: {"a": 1, "b": i % 2})
    path = write_eval(tmp_path / "a.eval", inspect_header(), samples)
    with pytest.raises(UserError, match="--metric"):
        trials.read(path)
    assert trials.read(path, Reading(metric=("b",))).success.mean() == 0.5


@pytest.mark.parametrize("status", ["cancelled", "error", "started"])
def test_partial_logs_say_so(tmp_path, status):
    path = write_eval(tmp_path / "a.eval", inspect_header(status), inspect_samples()[:-2])
    (said,) = notes(trials.read(path), "partial")
    assert f"status {status}" in said
    assert "10 of 12" in said


def test_broken_trials_are_an_outcome_of_their_own(tmp_path):
    samples = inspect_samples()
    samples[0] |= {"scores": {}, "error": "sandbox died"}  # else right
    path = write_eval(tmp_path / "a.eval", inspect_header(), samples)
    report, drop, fail = (trials.read(path, Reading(errors=e)) for e in ("report", "drop", "fail"))
    assert (len(report), len(drop), len(fail)) == (11, 11, 12)
    assert fail.success.sum() == report.success.sum() == 5
    assert "1 of 12 trials broke" in notes(report, "error")[0]
    assert "sandbox died" in notes(drop, "error")[0]
    assert "count as failures" in notes(fail, "error")[0]
    for sample in samples:
        sample |= {"scores": {}, "error": "no key"}
    path = write_eval(tmp_path / "b.eval", inspect_header(), samples)
    with pytest.raises(UserError, match="--errors fail"):
        trials.read(path)
    assert trials.read(path, Reading(errors="fail")).success.sum() == 0


# --- lm-evaluation-harness


def write_lm_eval(folder, date="2026-01-01T00-00-00.123456", **more):
    rows = [
        {
            "doc_id": i,
            "doc": {"q": "a\u2028b"},
            "filter": f,
            "metrics": ["exact_match"],
            "exact_match": s,
        }
        for i in range(8)
        for f, s in (("strict", 0.0), ("loose", float(i < 4)))
    ]
    write_lines(folder / f"samples_gen_{date}.jsonl", rows)
    rows = [
        {
            "doc_id": i,
            "filter": "none",
            "acc": i % 2,
            "acc_norm": 1.0,
            "perplexity": -3.0,
            "f1": [1, 2],
        }
        for i in range(8)
    ]
    write_lines(folder / f"samples_choice_{date}.jsonl", rows)
    results = {
        "results": {
            "gen": {"alias": "gen", "exact_match,loose": 0.5, "exact_match_stderr,loose": 0.19},
            "choice": {"acc,none": 0.5, "acc_norm,none": 1.0, "acc_stderr,none": "N/A"},
            "other": {"acc,none": 0.25, "acc_stderr,none": 0.1},
            "all": {"acc,none": 0.3},
        },
        "group_subtasks": {"all": ["choice", "other"], "gen": []},
        "versions": {},
        "config": {"model": "hf", "model_args": "pretrained=org/m-1.4b,revision=step3000,dtype=x"},
        "model_name": "org/m-1.4b",
        "date": 1767225600.5,
    } | more
    write(folder / f"results_{date}.json", results)
    return folder


def test_lm_eval_folder(tmp_path):
    folder = write_lm_eval(tmp_path / "org__m")
    with pytest.raises(UserError, match="gen has the filters loose, strict; name one with --filt"):
        trials.read(folder, Reading(metric=("acc",)))
    # Both at once, and the remedy as it is printed works.
    both = "choice has the metrics acc, acc_norm; gen has the filters loose, strict; name one with "
    with pytest.raises(UserError, match=f"{both}--metric NAME and --filter NAME"):
        trials.read(folder)
    t = trials.read(folder, Reading(metric=("acc",), filter=("loose",)))
    assert set(t.run) == {"org/m-1.4b"}
    assert set(t.step) == {3000}
    assert t.size[0] == 1.4e9
    for task, rate, count in (("gen", 0.5, 8), ("choice", 0.5, 8), ("other", 0.25, 1)):
        own = t[t.task == task]
        assert (own.success.mean(), len(own)) == (rate, count)
    assert "all" not in t.task
    said = "\n".join(note.text for note in t.notes)
    for part in ("all", "perplexity", "f1", "acc_norm", "strict", "revision", "there themselves"):
        assert part in said


def test_lm_eval_before_0_4(tmp_path):
    results = {
        "results": {"piqa": {"acc": 0.7, "acc_stderr": 0.01, "acc_norm": 0.71}},
        "versions": {"piqa": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=m"},
    }
    path = write(tmp_path / "r.json", results)
    t = trials.read(path, Reading(metric=("acc",)))
    assert (t.run[0], t.task[0], t.success[0], t.stderr[0]) == ("m", "piqa", 0.7, 0.01)
    rows = [{"doc_id": i, "prompt_0": "", "truth": "1", "acc": "True"} for i in range(3)]
    rows[1]["acc"] = "False"
    t = trials.read(write(tmp_path / "piqa_write_out_info.json", rows))
    assert (t.task[0], t.success.tolist()) == ("piqa", [1, 0, 1])


# --- HELM


def test_helm(tmp_path):
    run = tmp_path / "mmlu:subject=x,model=org_m"
    spec = {"name": run.name, "adapter_spec": {"model": "org/m"}}
    write(run / "run_spec.json", spec)

    def stat(name, total, count=1, **about):
        return {"name": {"name": name, "split": "test", **about}, "count": count, "sum": total}

    instances = [
        {
            "instance_id": f"id{i}",
            "train_trial_index": 0,
            "stats": [stat("exact_match", i % 2), stat("num_output_tokens", 3)],
        }
        | ({"perturbation": {"name": "typos"}} if p else {})
        for i in range(6)
        for p in (0, 1)
    ]
    write(run / "per_instance_stats.json", instances)
    write(run / "stats.json", [stat("exact_match", 3, 6), stat("inference_runtime", 9, 6)])
    t = trials.read(tmp_path)
    assert (t.run[0], t.task[0], len(t), t.success.mean()) == ("org/m", "mmlu:subject=x", 12, 0.5)
    assert set(t.slice) == {"base", "typos"}
    assert "run_spec.json" in notes(t, "dropped")[0]
    valid = [{"instance_id": "v", "stats": [stat("exact_match", 0, split="valid")]}]
    write(run / "per_instance_stats.json", instances + valid)
    t = trials.read(tmp_path)
    assert "v" not in t.item and "instances of valid beside test" in notes(t, "dropped")[0]
    write(run / "per_instance_stats.json", valid)
    assert trials.read(run / "per_instance_stats.json").item.tolist() == ["v"]
    (run / "per_instance_stats.json").unlink()
    assert trials.read(tmp_path).success.tolist() == [0.5]


# --- agents


def test_tau(tmp_path):
    rows = [
        {"task_id": i, "trial": k, "reward": float(k < 2), "info": {}, "traj": []}
        for i in range(3)
        for k in range(4)
    ]
    rows[0] |= {"reward": 0.0, "info": {"error": "rate limit\nmore"}}
    t = trials.read(write(tmp_path / "m.json", rows), Reading(errors="fail"))
    # Its own pass^2: C(1, 2) = 0 of C(4, 2) for the first, C(2, 2) = 1 of 6 for the others.
    assert pass_hat(t, 2) == pytest.approx(2 / 18)
    assert notes(trials.read(tmp_path / "m.json"), "error") == [
        "m, tau: 1 of 12 trials broke and are left out of every rate (rate limit (1)); "
        "--errors fail counts them as failures"
    ]


@pytest.mark.parametrize("error", ["", "\nboom", None])
def test_an_error_of_tau_counts_whatever_its_text(tmp_path, error):
    rows = [{"task_id": i, "reward": float(i), "info": {}} for i in range(2)]
    rows[0]["info"] = {"error": error, "traceback": "..."}
    t = trials.read(write(tmp_path / "m.json", rows))
    assert len(t) == (2 if error is None else 1)


def simulation(i, k, **more):
    return {
        "id": f"{i}-{k}",
        "task_id": i,
        "trial": k,
        "duration": 2.0,
        "agent_cost": 0.1,
        "termination_reason": "user_stop",
        "reward_info": {"reward": 1.0},
    } | more


@pytest.mark.parametrize("layout", ["file", "folder", "index"])
def test_tau2(tmp_path, layout):
    runs = [simulation(i, k) for i in range(3) for k in range(2)]
    runs[0] |= {"termination_reason": "max_steps", "reward_info": None}
    runs[1] |= {"termination_reason": "infrastructure_error", "reward_info": None}
    about = {
        "info": {
            "agent_info": {"llm": "m"},
            "environment_info": {"domain_name": "airline"},
            "num_trials": 2,
        },
        "tasks": [{}] * 4,
    }
    if layout == "folder":
        for run in runs:
            write(tmp_path / f"simulations/{run['id']}.json", run)
        path = write(tmp_path / "results.json", about)
        write(tmp_path / "results.json", about | {"simulation_index": []})
    elif layout == "index":
        index = [r | {"reward": (r.pop("reward_info") or {}).get("reward")} for r in runs]
        path = write(tmp_path / "results.json", about | {"simulation_index": index})
    else:
        path = write(tmp_path / "results.json", about | {"simulations": runs})
    t = trials.read(path)
    assert (t.run[0], t.task[0], len(t), t.success.sum()) == ("m", "airline", 5, 4)
    assert (t.cost[0], t.seconds[0]) == (0.1, 2.0)
    assert "infrastructure_error" in notes(t, "error")[0]
    assert "2 of 8 simulations are missing" in notes(t, "partial")[0]


def test_swe_bench(tmp_path):
    report = {
        "submitted_ids": ["a", "b", "c", "d"],
        "completed_ids": ["a", "b"],
        "incomplete_ids": ["z"],
        "resolved_ids": ["a"],
        "unresolved_ids": ["b"],
        "empty_patch_ids": ["c"],
        "error_ids": ["d"],
        "schema_version": 2,
    }
    t = trials.read(write(tmp_path / "m.run.json", report))
    assert (t.run[0], dict(zip(t.item, t.success, strict=True))) == (
        "m.run",
        {"a": 1, "b": 0, "c": 0},
    )
    assert notes(t, "error")
    assert notes(t, "partial")
    path = write(tmp_path / "report.json", {"a": {"resolved": True}, "b": {"resolved": False}})
    assert trials.read(path).success.tolist() == [1, 0]


def test_terminal_bench_and_harbor(tmp_path):
    modes = ["none", "agent_timeout", "unknown_agent_error", "parse_error"]
    rows = [
        {"task_id": f"t{i}", "trial_name": "1", "is_resolved": i == 0, "failure_mode": mode}
        for i, mode in enumerate(modes)
    ]
    t = trials.read(write(tmp_path / "run/results.json", {"id": "x", "results": rows}))
    assert (t.run[0], t.success.tolist()) == ("run", [1, 0])
    for i, (reward, error) in enumerate(((1.0, None), (0.0, None), (None, "EnvironmentError"))):
        trial = {
            "task_name": f"t{i}",
            "trial_name": f"t{i}__a",
            "config": {"agent": {"model_name": "m"}},
            "verifier_result": None if reward is None else {"rewards": {"reward": reward}},
            "exception_info": error and {"exception_type": error},
        }
        write(tmp_path / f"job/t{i}/result.json", trial)
    t = trials.read(tmp_path / "job")
    assert (t.run[0], t.success.tolist()) == ("m", [1, 0])
    assert "EnvironmentError" in notes(t, "error")[0]


def test_runs_of_metr(tmp_path):
    rows = [
        {
            "task_id": f"f/{i}",
            "task_family": "f",
            "run_id": f"{i}-{k}",
            "alias": "M 1",
            "model": "m-1",
            "score_binarized": int(k > 0),
            "score_cont": 0.5,
            "human_minutes": 8.0,
            "started_at": 1767225600000.0,
            "scaffold": ["x"],
            "generation_cost": 0.2,
        }
        for i in range(3)
        for k in range(2)
    ]
    t = trials.read(write_lines(tmp_path / "runs.jsonl", rows))
    assert (t.run[0], t.family[0], t.difficulty[0], t.cost[0]) == ("M 1", "f", 3.0, 0.2)
    assert t.date[0] == "2026-01-01T00:00:00"
    assert pass_hat(t, 1) == 0.5
    assert "--metric score_cont" in notes(t, "choice")[0]
    t = trials.read(tmp_path / "runs.jsonl", Reading(metric=("score_cont",)))
    assert t.success.mean() == 0.5
    assert set(t.success) == {0.5}


# --- checks of applications


def test_promptfoo(tmp_path):
    def row(i, **more):
        return {
            "provider": {"id": "openai:m", "label": "m"},
            "prompt": {"raw": "{{q}}"},
            "testIdx": i,
            "success": i % 2 == 0,
            "failureReason": i % 2,
            "latencyMs": 250,
            "cost": 0.01,
            "gradingResult": {"pass": i % 2 == 0},
        } | more

    rows = [row(0), row(1), row(2, success=False, failureReason=2, error="API error: 500")]
    path = write(tmp_path / "out.json", {"evalId": "e", "results": {"version": 3, "results": rows}})
    for t in (trials.read(path), trials.read(write_lines(tmp_path / "out.jsonl", rows))):
        assert (t.run[0], t.success.tolist(), t.seconds[0], t.cost[0]) == ("m", [1, 0], 0.25, 0.01)
        assert "API error" in notes(t, "error")[0]


def test_a_case_that_promptfoo_repeats_is_one_item(tmp_path):
    def row(i, case, ok):
        about = {"vars": {"q": case}, "testCase": {"vars": {"q": case}, "assert": [1]}}
        return {"provider": "m", "prompt": {"raw": "x"}, "testIdx": i, "success": ok} | about

    rows = [row(i, "ab"[i // 3], i % 3 != 0) for i in range(6)]
    path = write(tmp_path / "out.json", {"evalId": "e", "results": {"version": 3, "results": rows}})
    t = trials.read(path)
    assert (t.item.tolist(), t.seed.tolist()) == (["0"] * 3 + ["3"] * 3, ["0", "1", "2"] * 2)
    assert audit.last_checkpoint(t).failures == 2


def test_a_metric_of_deepeval_that_broke_is_no_failure_of_the_others(tmp_path):
    good = {"name": "m1", "success": True}, {"name": "m2", "success": True}
    broke = {"name": "m1", "success": False, "error": "\nboom"}
    cases = [
        {"name": "c0", "success": False, "metricsData": [broke, good[1]]},
        {"name": "c1", "success": True, "metricsData": list(good)},
    ]
    path = write(tmp_path / "run.json", {"testCases": cases})
    for metric, failures in (("m1", 1), ("m2", 0), ("all", 1)):
        t = trials.read(path, Reading(metric=(metric,), errors="fail"))
        assert (len(t), int((t.success == 0).sum())) == (2, failures)
        left = trials.read(path, Reading(metric=(metric,)))
        assert (len(left), int((left.success == 0).sum())) == (2 - failures, 0)


def test_deepeval(tmp_path):
    cases = [
        {
            "name": f"case{i}",
            "success": i == 0,
            "metricsData": [
                {"name": "exact", "success": i == 0, "score": 1.0, "threshold": 0.5},
                {"name": "format", "success": True, "score": 1.0, "threshold": 0.5},
            ],
        }
        for i in range(2)
    ]
    path = write(tmp_path / "run.json", {"testCases": cases})
    with pytest.raises(
        UserError, match="has the metrics all, exact, format; name one with --metric"
    ):
        trials.read(path)
    assert trials.read(path, Reading(metric=("exact",))).success.tolist() == [1, 0]


def test_junit(tmp_path):
    text = """<?xml version="1.0"?><testsuites><testsuite name="pytest" timestamp="2026-01-01T00:00:00+00:00">
<testcase classname="a" name="t[0]" time="0.5"/>
<testcase classname="a" name="t[1]" time="0.5"><failure message="no"/></testcase>
<testcase classname="a" name="u"><error message="db down"/></testcase>
<testcase classname="a" name="v"><skipped/></testcase></testsuite></testsuites>"""
    t = trials.read(write(tmp_path / "junit.xml", text))
    assert (t.item.tolist(), t.success.tolist()) == (["a::t[0]", "a::t[1]"], [1, 0])
    assert "db down" in notes(t, "error")[0]
    assert "skipped" in notes(t, "dropped")[0]


@pytest.mark.parametrize(
    ("case", "count", "failures", "said"),
    [
        ('<testcase name="D" status="notrun"/>', 1, 0, "skipped"),
        ('<testcase name="F"><flakyFailure/></testcase>', 2, 1, "failed at first"),
        ('<testcase name="A"/>', 1, 0, "more tests than the suite counts"),
        ('<testcase name="T" time="1,234.5"/>', 2, 0, ""),
    ],
)
def test_junit_of_other_tools(tmp_path, case, count, failures, said):
    tests = 1 if "more" in said else 2
    text = f'<testsuite name="s" tests="{tests}"><testcase name="A"/>{case}</testsuite>'
    t = trials.read(write(tmp_path / "t.xml", text))
    assert (len(t), int((t.success == 0).sum())) == (count, failures)
    assert said in " ".join(note.text for note in t.notes)


@pytest.mark.parametrize("value", [None, float("nan"), "absent"])
def test_a_sample_that_one_scorer_left_out_is_missing_from_it(tmp_path, value):
    samples = inspect_samples(6, 1, some=lambda i, e: value if i < 2 else "C", all=lambda i, e: 1)
    for sample in samples:
        if sample["scores"]["some"]["value"] == "absent":
            sample["scores"].pop("some")
    path = write_eval(tmp_path / "a.eval", inspect_header(epochs=1), samples)
    t = trials.read(path, Reading(scorer=("some",)))
    assert len(t) == 4 and "2 of 6 trials broke" in notes(t, "error")[0]


def test_words_and_odd_values_of_inspect(tmp_path):
    samples = inspect_samples(4, 1, s=lambda i, e: ["yes", "No"][i % 2])
    path = write_eval(tmp_path / "a.eval", inspect_header(items=4, epochs=1), samples)
    assert sorted(trials.read(path).success.tolist()) == [0, 0, 1, 1]
    samples = inspect_samples(4, 1, s=lambda i, e: [1, 0])
    with pytest.raises(UserError, match=r"success = \[1, 0\] .* is not a number"):
        trials.read(write_eval(path, inspect_header(items=4, epochs=1), samples))
    empty = write(tmp_path / "b/a.json", inspect_header(status="cancelled"))
    for where in (empty, empty.parent):
        with pytest.raises(UserError, match="status cancelled, and 0 of 12 samples"):
            trials.read(where)


def test_equal_notes_of_several_samples_add_up(tmp_path):
    samples = inspect_samples(6, 1)
    for sample in samples[:2]:
        sample["limit"] = {"type": "message"}
    t = trials.read(write_eval(tmp_path / "a.eval", inspect_header(epochs=1), samples))
    assert [note.rows for note in t.notes if note.kind == "partial"] == [2]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_of_spreadsheets(tmp_path, mark):
    text = "model,item,passed\nm,1,PASSED\nm,2,Failed\n".replace(",", mark)
    name = "t.tsv" if mark == "\t" else "t.csv"
    assert trials.read(write(tmp_path / name, text)).success.tolist() == [1, 0]


def test_a_folder_says_what_it_left_out(tmp_path):
    write(tmp_path / "config.json", {"a": 1})
    write(tmp_path / "sub/t.csv", "run,item,success\na,1,1\na,2,0\n")
    write(tmp_path / "sub/u.csv", "model,item,score\nb,1,1\nb,2,1\n")
    t = trials.read(tmp_path)
    assert sorted(zip(t.run, t.success, strict=True)) == [("a", 0), ("a", 1), ("b", 1), ("b", 1)]
    assert "config.json" in notes(t, "dropped")[0]
    with pytest.raises(UserError, match="none of the logs"):
        trials.read(tmp_path / "config.json")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no log"):
        trials.read(tmp_path / "none")
