"""What a user's table may hold by mistake: one sentence, or handling that is said."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramp.cli import main
from ramp.errors import UserError
from ramp.nines import audit, cleaning, trials
from ramp.nines.notes import Reading

ROWS = [
    {"run": "a", "item": str(i), "seed": k, "success": i % 2} for i in range(4) for k in range(2)
]


def read(tmp_path, text, reading=None, name="t.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return trials.read(path, reading or Reading())


def said(t):
    return "\n".join(f"{note.kind}: {note.text} [{note.rows}]" for note in t.notes)


# --- text


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_rows_end_at_newlines_only(tmp_path, odd):
    rows = [row | {"prompt": f"a{odd}b"} for row in ROWS]
    jsonl = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert len(read(tmp_path, jsonl, name="t.jsonl")) == 8
    # In CSV without quotes, since only a newline would need them.
    csv = "run,item,seed,success,prompt\n"
    csv += "".join(f"a,{r['item']},{r['seed']},1,{r['prompt']}\n" for r in rows)
    assert len(read(tmp_path, csv)) == 8
    quoted = csv.replace(f"a{odd}b", '"two\nlines"')
    assert len(read(tmp_path, quoted)) == 8


def test_items_are_as_they_are_written(tmp_path):
    assert read(tmp_path, "item,success\n007,1\n7,0\n").item.tolist() == ["007", "7"]
    # A gap makes floats of whole numbers in some tools.
    pq.write_table(pa.table({"item": [1.0, 2.0], "success": [1, 0]}), tmp_path / "t.parquet")
    assert trials.read(tmp_path / "t.parquet").item.tolist() == ["1", "2"]


# --- columns


@pytest.mark.parametrize(
    ("one", "two"), [("run", "model"), ("success", "correct"), ("value", "score")]
)
def test_columns_that_would_be_one_are_refused_and_the_remedy_works(tmp_path, one, two):
    rows = (
        {one: "1", two: "0"} if one == "value" else {"run": "a", "success": "1", one: "1", two: "0"}
    )
    text = ",".join(["item", *rows]) + "\n" + ",".join(["x", *rows.values()]) + "\n"
    with pytest.raises(UserError, match=f"'{one}' and '{two}' would both be .*--ignore {two}"):
        read(tmp_path, text)
    assert len(read(tmp_path, text, Reading(ignore=(two,)))) == 1


def test_map_and_guesses(tmp_path):
    text = "who,instance_id,ok\na,1,true\na,2,false\n"
    with pytest.raises(UserError, match="no column success"):
        read(tmp_path, text)
    t = read(tmp_path, text, Reading(rename={"ok": "success", "who": "run"}))
    assert (t.run[0], t.item.tolist(), t.success.tolist()) == ("a", ["1", "2"], [1, 0])
    assert "guess: the column 'instance_id' is taken as item" in said(t)
    with pytest.raises(UserError, match="no column 'nope' for --map"):
        read(tmp_path, text, Reading(rename={"nope": "run"}))


def test_columns_that_ramp_does_not_know(tmp_path):
    text = "run,item,seed,success,prompt\na,1,0,1,hello\na,1,1,0,world\n"
    t = read(tmp_path, text)
    assert "dropped: columns that ramp does not use: prompt" in said(t)
    # The number of shots tells conditions apart: pooling them would be a choice.
    text = "run,item,success,shots\na,1,1,0\na,1,0,5\na,2,1,0\na,2,1,5\n"
    with pytest.raises(UserError, match=r"'shots' .*--where shots=VALUE"):
        read(tmp_path, text)
    assert len(read(tmp_path, text, Reading(where={"shots": ("5",)}))) == 2
    assert set(read(tmp_path, text, Reading(rename={"shots": "slice"})).slice) == {"0", "5"}
    assert len(read(tmp_path, text, Reading(ignore=("shots",)))) == 4
    with pytest.raises(UserError, match=r"did you mean 'compute'.*--map comptue=compute"):
        read(tmp_path, "run,item,success,comptue\na,1,1,1\n")


def test_missing_columns_are_said(tmp_path):
    t = read(tmp_path, "success\n0.5\n")
    for part in ("no column run", "no column task", "every row is an accuracy", "100 independent"):
        assert part in said(t)


def test_wide_tables(tmp_path):
    text = "Model,mmlu,gsm8k,note,FLOPs (1E21)\na-7b,0.5,,q,7\nb,0.25,1,r,90\n"
    t = read(tmp_path, text)
    assert sorted(zip(t.run, t.task, t.success, strict=True)) == [
        ("a-7b", "mmlu", 0.5),
        ("b", "gsm8k", 1),
        ("b", "mmlu", 0.25),
    ]
    for part in ("taken as wide", "no accuracies: note, FLOPs (1E21)", "sizes are read"):
        assert part in said(t)


# --- numbers


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("item,success\n1,1.5\n", "success is 1.5 in row 1 of"),
        ("item,success\n1,1\n2,150\n", "row 2 of .*between 0 and 1"),
        ("item,success\n1,nan\n", "success is nan .*--errors drop"),
        ("item,success\n1,maybe\n", "'maybe' in row 1 of .* is not a number"),
        ("item,success,step\n1,1,ckpt-3\n", "--step-from 'REGEX'"),
        ("item,success,compute\n1,1,-3\n", "compute below 0"),
        ("item,success,date\n1,1,soon\n", "date = 'soon' is no date"),
        ("item,item,success\n1,1,1\n", "'item' is there twice"),
        ("run,seed,item,success\na,0,1,1\na,0,1,0\n", "the same trial is there twice"),
    ],
)
def test_one_sentence(tmp_path, capsys, text, what):
    with pytest.raises(UserError, match=what):
        read(tmp_path, text)
    assert main(["nines", "certify", str(tmp_path / "t.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_percent(tmp_path):
    text = "run,task,success,stderr\na,t,87.5,2\na,u,1,1\n"
    with pytest.raises(UserError, match="--percent divides by 100"):
        read(tmp_path, text)
    t = read(tmp_path, text, Reading(percent=True))
    assert (t.success.tolist(), t.stderr.tolist()) == ([0.875, 0.01], [0.02, 0.01])
    with pytest.raises(UserError, match="leave out --percent"):
        read(tmp_path, "run,task,success\na,t,.5\n", Reading(percent=True))


def test_mixed_types(tmp_path):
    rows = [
        {"item": 1, "success": True},
        {"item": "b", "success": "0"},
        {"item": 2, "success": 0.5},
    ]
    t = read(tmp_path, "\n".join(map(json.dumps, rows)), name="t.jsonl")
    assert (t.item.tolist(), t.success.tolist()) == (["1", "b", "2"], [1, 0, 0.5])


def test_dates_are_of_one_zone_and_sort(tmp_path):
    dates = [
        "2026-01-01T01:00:00+02:00",
        "2025-12-31T23:30:00Z",
        "2026-01-01T00:00:00",
        "2026-01-02",
        "1767225600",
    ]
    t = read(tmp_path, "item,success,date\n" + "".join(f"{i},1,{d}\n" for i, d in enumerate(dates)))
    assert t.date.tolist() == [
        "2025-12-31T23:00:00",
        "2025-12-31T23:30:00",
        "2026-01-01T00:00:00",
        "2026-01-02",
        "2026-01-01T00:00:00",
    ]


def test_a_broken_trial_needs_no_success(tmp_path):
    t = read(tmp_path, "item,success,error\n1,1,\n2,,timeout\n3,0,\n")
    assert t.success.tolist() == [1, 0]
    assert "1 of 3 trials broke" in said(t)


# --- repeats


def test_copies_are_no_further_tries(tmp_path):
    once = trials.from_rows(ROWS)
    twice = trials.from_rows(ROWS * 2)
    assert len(twice) == len(once) == 8
    assert "copies, no further tries [8]" in said(twice)
    # Two files of the same content; two rows of the same place without seeds.
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("run,item,success\na,1,1\na,1,0\na,2,1\n")
    assert len(trials.read([tmp_path / "a.csv", tmp_path / "b.csv"])) == 3
    bare = [{"item": str(i), "success": 1} for i in range(4)]
    assert len(trials.from_rows(bare * 3)) == 4
    # Without seeds rows that differ, or are there unequally often, are tries of one item.
    t = trials.from_rows([*bare, bare[0], {"item": "1", "success": 0}])
    assert len(t) == 6
    assert "taken as tries of it [2]" in said(t)


def test_equal_items_of_two_tasks_are_two(tmp_path):
    rows = [
        {"run": r, "task": task, "item": str(i), "success": int((task == "easy") or r == "b")}
        for r in "ab"
        for task in ("easy", "hard")
        for i in range(3)
    ]
    t = trials.from_rows(rows)
    found = audit.audit_demo(t, "a", ["easy/0", "easy/1"])
    assert (found.suite, found.pass_rate, found.suite_pass_rate) == (6, 1.0, 0.5)
    with pytest.raises(UserError, match="such as easy/0"):
        audit.audit_demo(t, "a", ["0"])


# --- where things come from


def test_several_where_of_a_column_add_up(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text(
        "run,task,item,success\n" + "".join(f"a,{t},{i},1\n" for t in "xyz" for i in "12")
    )
    words = ["nines", "certify", str(path), "--json", "--where", "task=x", "--where", "task=y"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 4


def test_words_of_the_command_line(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text("")
    for words, what in (
        (["--where", "task"], "must read NAME=VALUE"),
        (["--map", "ok"], "must read NAME=VALUE"),
        ([], "holds no rows"),
    ):
        assert main(["nines", "certify", str(tmp_path / "t.jsonl"), *words]) == 2
        assert what in capsys.readouterr().err


def test_step_from_a_path_a_cell_and_a_run(tmp_path):
    for step in ("500", "1k"):
        folder = tmp_path / f"ckpt-{step}"
        folder.mkdir()
        (folder / "t.csv").write_text("run,item,success\na,1,1\na,2,0\n")
    t = trials.read(tmp_path, Reading(step_from=r"ckpt-(\d+k?)"))
    assert sorted(set(t.step)) == [500, 1000]
    text = "run,item,success,step\na,1,1,ckpt-20\n"
    assert read(tmp_path, text, Reading(step_from=r"ckpt-(\d+)")).step.tolist() == [20]
    text = "run,item,success\nm-20260102,1,1\n"
    t = read(tmp_path, text, Reading(date_from=r"\d{8}"))
    assert t.date.tolist() == ["2026-01-02"]
    with pytest.raises(UserError, match="--step-from 'x' is found in none"):
        read(tmp_path, "run,item,success\na,1,1\n", Reading(step_from="x"))


def test_checkpoints_that_are_runs_of_their_own_are_one_run(tmp_path):
    rows = [f"lm-ckpt-{step}-sft,{i},1" for step in (100, 200, 400) for i in range(5)]
    text = "\n".join(["run,item,success", *rows]) + "\n"
    reading = Reading(step_from=r"ckpt-(\d+)")
    t = read(tmp_path, text, reading)
    assert set(t.run) == {"lm-sft"} and sorted(set(t.step)) == [100, 200, 400]
    assert any("differ in the checkpoint alone are one: lm-sft" in note.text for note in t.notes)
    words = ["nines", "forecast", str(tmp_path / "t.csv"), "--step-from", r"ckpt-(\d+)"]
    assert main(words) == 0
    nameless = text.replace("lm-", "").replace("-sft", "")
    assert set(read(tmp_path, nameless, reading).run) == {"run"}
    # Where it tells no runs apart, names stay as they are.
    lone = "run,item,success\na-ckpt-1,1,1\nb-ckpt-2,1,1\n"
    assert set(read(tmp_path, lone, reading).run) == {"a-ckpt-1", "b-ckpt-2"}


def test_releases(tmp_path):
    table = tmp_path / "releases.csv"
    table.write_text("model,release_date,compute\na,2025-01-01,1e20\n")
    t = read(tmp_path, "run,item,success\na,1,1\nb,1,0\n", Reading(releases=table))
    assert t.date.tolist() == ["2025-01-01", ""]
    assert t.compute[0] == 1e20
    assert "runs that releases.csv does not have: b" in said(t)


def test_notes_are_printed_and_in_json(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("item,success,error\n1,1,\n2,1,\n3,,timeout\n")
    assert main(["nines", "certify", str(path), "--page", str(tmp_path / "p.html")]) == 0
    assert "1 of 3 trials broke" in capsys.readouterr().err
    assert "1 of 3 trials broke" in (tmp_path / "p.html").read_text()
    assert main(["nines", "certify", str(path), "--json"]) == 0
    kinds = {note["kind"] for note in json.loads(capsys.readouterr().out)["notes"]}
    assert {"error", "default"} <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_million_rows(tmp_path, kind):
    """`pytest -m slow -k million`: CPU seconds, since other programs may run beside it."""
    import resource
    import time

    n = 1_000_000
    rng = np.random.default_rng(0)
    columns = {
        "run": np.array(["model-a", "model-b"])[np.arange(n) % 2],
        "item": np.char.add("item-", (np.arange(n) % 50_000).astype(str)),
        "seed": np.arange(n) // 50_000,
        "success": rng.integers(0, 2, n),
    }
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = zip(*(c.tolist() for c in columns.values()), strict=True)
        with path.open("w") as file:
            if kind == "csv":
                file.write(",".join(columns) + "\n")
                file.writelines(",".join(map(str, row)) + "\n" for row in rows)
            else:
                file.writelines(
                    json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows
                )
    start = time.process_time()
    assert len(trials.read(path)) == n
    assert time.process_time() - start < 10
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**20 * 1.5
    )  # KiB, with pytest's own


CHECKPOINTS = [f"lm-step{step}" for step in (1000, 2000, 4000)]


def write_checkpoints(folder):
    """A run for each checkpoint, with an empty column of steps, as lm-evaluation-harness has it."""
    rows = [f"{run},,{i},{int(i < 6)}" for run in CHECKPOINTS for i in range(8)]
    return read_path(folder, "\n".join(["run,step,item,success", *rows]) + "\n")


def read_path(folder, text):
    path = folder / "t.csv"
    path.write_text(text)
    return path


def test_an_empty_column_of_steps_does_not_keep_runs_apart(tmp_path):
    t = trials.read(write_checkpoints(tmp_path), Reading(step_from=r"step(\d+)"))
    assert set(t.run) == {"lm"} and sorted(set(t.step)) == [1000, 2000, 4000]


def test_compute_from_a_name_joins_checkpoints_too(tmp_path):
    path = write_checkpoints(tmp_path)
    t = trials.read(path, Reading(compute_from=r"step(\d+)"))
    assert set(t.run) == {"lm"} and sorted(set(t.compute)) == [1000, 2000, 4000]
    both = trials.read(path, Reading(step_from=r"step(\d+)", compute_from=r"step(\d+)"))
    assert both.compute.tolist() == both.step.tolist()


@pytest.mark.parametrize("form", ["names in the log", "the joined name and a step"])
def test_releases_of_checkpoints(tmp_path, form):
    steps = (1000, 2000, 4000)
    of_step = {"names in the log": "{run},{flop}", "the joined name and a step": "lm,{flop},{step}"}
    head = "run,compute" + (",step" if "step" in form else "")
    lines = [
        of_step[form].format(run=run, flop=step * 1e6, step=step)
        for run, step in zip(CHECKPOINTS, steps, strict=True)
    ]
    table = tmp_path / "releases.csv"
    table.write_text("\n".join([head, *lines]) + "\n")
    path = write_checkpoints(tmp_path)
    t = trials.read(path, Reading(step_from=r"step(\d+)", releases=table))
    assert set(t.run) == {"lm"} and (t.compute == t.step * 1e6).all()


def test_rows_are_selected_by_what_a_pattern_finds(tmp_path):
    path = write_checkpoints(tmp_path)
    reading = Reading(step_from=r"step(\d+)", where={"step": ("2000",)})
    assert set(trials.read(path, reading).step) == {2000}
    with pytest.raises(UserError, match=r"no row with step = 7; there are 1000.*4000"):
        trials.read(path, Reading(step_from=r"step(\d+)", where={"step": ("7",)}))


def test_an_unknown_column_may_be_that_of_items(tmp_path):
    text = "run,problem,passed\n" + "".join(f"a,p{i},1\n" for i in range(12))
    with pytest.raises(UserError, match="--map problem=item"):
        read(tmp_path, text)
    t = read(tmp_path, text, Reading(rename={"problem": "item"}))
    assert len(set(t.item)) == 12


def test_a_scale_of_ten_is_no_percent(tmp_path):
    for top, offered in ((10, False), (80, True)):
        with pytest.raises(UserError) as error:
            read(tmp_path, f"run,item,success\na,1,{top}\na,2,1\n")
        assert ("--percent" in str(error.value)) == offered


def test_where_takes_a_value_with_a_comma(tmp_path):
    text = 'run,item,slice,success\na,1,"x,y",1\na,1,x,0\na,1,z,0\n'
    t = read(tmp_path, text, Reading(where={"slice": ("x,y",)}))
    assert t.slice.tolist() == ["x,y"]
    assert len(read(tmp_path, text, Reading(where={"slice": ("x,z",)}))) == 2


def test_what_a_verdict_says_of_its_trials_is_in_json(tmp_path, capsys):
    path = read_path(tmp_path, "item,success\n" + "".join(f"{i},0.5\n" for i in range(9)))
    main(["nines", "gate", str(path), "--nines", "1", "--json"])
    said = json.loads(capsys.readouterr().out)["notes"]
    assert any("scored between 0 and 1" in note["text"] for note in said)
    assert all({"kind", "text", "rows"} == set(note) for note in said)


@pytest.mark.parametrize("command", ["gate", "forecast"])
def test_runs_that_look_like_checkpoints_get_a_remedy_that_works(tmp_path, capsys, command):
    path = write_checkpoints(tmp_path)
    words = ["nines", command, str(path), "--nines", "1"]
    assert main(words) != 0
    remedy = r"--step-from 'step(\d+)'"
    assert remedy in capsys.readouterr().err
    assert main([*words, *remedy.replace("'", "").split()]) in (0, 1, 2)
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["a-step1", "a-step20"], r"step(\d+)"),
        (["7b-ckpt-1", "7b-ckpt-2"], r"ckpt\-(\d+)"),
        (["gpt-3.5", "gpt-4"], None),
        (["x", "y"], None),
        (["1-a", "2-b"], None),
        (["step1-step1", "step1-step2"], None),
    ],
)
def test_patterns_are_suggested_where_one_number_differs(names, pattern):
    said = cleaning.suggest_pattern(np.array(names))
    assert (f"'{pattern}'" in said) if pattern else said == ""


@pytest.mark.parametrize(("errors", "failures", "count"), [("drop", 1, 3), ("fail", 2, 4)])
def test_a_missing_outcome_is_dropped_or_failed_where_the_user_says_so(
    tmp_path, errors, failures, count
):
    text = "run,item,success\na,1,1\na,2,\na,3,0\na,4,1\n"
    with pytest.raises(UserError, match="--errors drop leaves such rows out, --errors fail"):
        read(tmp_path, text)
    t = read(tmp_path, text, Reading(errors=errors))
    assert (len(t), int((t.success == 0).sum())) == (count, failures)
    assert "no outcome (1)" in said(t)


def test_files_may_be_runs_of_their_own(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"run,item,seed,success\nm,1,0,{int(name == 'a')}\n")
    with pytest.raises(UserError, match="--ignore run --map path=run"):
        trials.read(tmp_path)
    t = trials.read(tmp_path, Reading(ignore=("run",), rename={"path": "run"}))
    assert sorted(t.success) == [0, 1] and len(set(t.run)) == 2


def test_nested_cells_of_records_are_columns(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"id": f"q{i}", "meta": {"i": i}, "grade": {"passed": i % 2 == 0}} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"--map grade\.passed=success"):
        trials.read(path)
    t = trials.read(path, Reading(rename={"grade.passed": "success"}))
    assert (t.item.tolist(), t.success.tolist()) == (["q0", "q1", "q2", "q3"], [1, 0, 1, 0])
