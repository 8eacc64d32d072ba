"""Dates as checkpoints, and what a stranger meets at the first try."""

import pytest

from ramp.cli import main

HEAD = "model,when,id,passed\n"
# Item b failed on the first night only.
NIGHTS = HEAD + "m,2026-10-01,a,1\nm,2026-10-01,b,0\nm,2026-10-02,a,1\nm,2026-10-02,b,1\n"


def ask(capsys, tmp_path, command, text, *words):
    path = tmp_path / "evals.csv"
    path.write_text(text)
    main(["nines", command, str(path), *words])
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).split())


@pytest.mark.parametrize("words", [(), ("--map", "when=date")])
def test_the_last_night_is_the_checkpoint(capsys, tmp_path, words):
    said = ask(capsys, tmp_path, "gate", NIGHTS, "--nines", "1", *words)
    assert "1 nine (0.9)" in said
    assert "0 of 2 items failed" in said
    assert "last of 2 dates, 2026-10-02; --where date=... chooses another" in said
    assert ("'when' is taken as date" in said) == (not words)
    first = ask(capsys, tmp_path, "gate", NIGHTS, *words, "--where", "date=2026-10-01")
    assert "1 of 2 items failed" in first
    # The order of the file does not matter.
    lines = NIGHTS.splitlines()
    turned = "\n".join([lines[0], *lines[:0:-1]])
    assert "0 of 2 items failed" in ask(capsys, tmp_path, "gate", turned, *words)


def test_certify_takes_the_last_night_too(capsys, tmp_path):
    assert "last of 2 dates" in ask(capsys, tmp_path, "certify", NIGHTS)


def test_a_night_by_its_time_as_printed(capsys, tmp_path):
    text = NIGHTS.replace("-01,", "-01 02:00:00,").replace("-02,", "-02 02:00:00,")
    said = ask(capsys, tmp_path, "gate", text)
    assert "last of 2 dates, 2026-10-02T02:00:00" in said
    first = ask(capsys, tmp_path, "gate", text, "--where", "date=2026-10-01T02:00:00")
    assert "1 of 2 items failed" in first


@pytest.mark.parametrize(
    "rows",
    [
        # Every row has a time of its own: a live log.
        "m,2026-10-01T01,a,0\nm,2026-10-01T02,b,1\nm,2026-10-01T03,a,1\nm,2026-10-01T04,b,1\n",
        # Every item has one row.
        "m,2026-10-01,a,0\nm,2026-10-01,b,1\nm,2026-10-02,c,1\nm,2026-10-02,d,1\n",
    ],
)
def test_dates_of_a_live_log_are_no_checkpoints(capsys, tmp_path, rows):
    said = ask(capsys, tmp_path, "gate", HEAD + rows, "--nines", "1")
    assert "1 of" in said
    assert "last of" not in said


def test_tries_that_seeds_tell_apart_stay_whatever_their_day(capsys, tmp_path):
    text = "model,date,item,seed,success\n" + "".join(
        f"m,2026-10-0{seed},{item},{seed},{int(seed > 1)}\n" for seed in (1, 2) for item in "ab"
    )
    assert "2 of 2 items failed" in ask(capsys, tmp_path, "gate", text)


def test_a_step_is_the_checkpoint_where_there_is_one(capsys, tmp_path):
    text = "model,step,date,item,success\nm,9,2026-10-01,a,0\nm,1,2026-10-02,a,1\n"
    assert "1 of 1 items failed" in ask(capsys, tmp_path, "gate", text)


def test_compare_says_which_rows(capsys, tmp_path):
    other = NIGHTS.partition("\n")[2].replace("m,", "n,")
    said = ask(capsys, tmp_path, "compare", NIGHTS + other + "n,2026-10-02,c,1\n", "m", "n")
    assert "rows of m 2 items, last of 2 dates, 2026-10-02" in said
    assert "rows of n 3 items, last of 2 dates, 2026-10-02" in said
    assert "n - m +0.0000" in said


def test_two_columns_of_dates_are_no_guess_but_a_choice(capsys, tmp_path):
    text = "model,when,due,id,passed\nm,2026-10-01,2026-11-01,a,1\nm,2026-10-02,2026-11-01,a,0\n"
    assert "--map when=date" in ask(capsys, tmp_path, "gate", text)
    said = ask(capsys, tmp_path, "gate", text, "--map", "when=date")
    assert "1 of 1 items failed" in said


def test_files_with_other_names_of_the_outcome(capsys, tmp_path):
    (tmp_path / "other.csv").write_text("model,id,success\nm,z,0\n")
    (tmp_path / "evals.csv").write_text("model,id,passed\nm,a,1\n")
    main(["nines", "gate", str(tmp_path)])
    assert "1 of 2 items failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "text", "words", "message"),
    [
        ("gate", "model,passed\nm,1\nm,1\n", (), "--map COLUMN=item (known are item, task_id"),
        ("gate", NIGHTS, ("--metric", "x"), "the log has no metrics; leave out --metric"),
        ("compare", "run,success\na,50\nb,60\n", ("a", "b", "--percent"), "item by item"),
        ("monitor", NIGHTS, ("--since", "yesterday"), "'yesterday' is no date"),
        ("monitor", NIGHTS, ("--by", "step", "--since", "x"), "is no number"),
    ],
)
def test_a_mistake_is_told_as_it_is(capsys, tmp_path, command, text, words, message):
    assert message in ask(capsys, tmp_path, command, text, *words)


def night(name, passed, items=40):
    return "model,id,passed\n" + "".join(f"{name},{i},{int(i >= passed)}\n" for i in range(items))


def test_old_and_new_logs_of_one_name_are_compared_by_their_files(capsys, tmp_path):
    """A run is never compared with itself, and the remedy that is named works."""
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text(night("m", 0))
    new.write_text(night("m", 10) + night("n", 0).partition("\n")[2])
    assert main(["nines", "compare", str(new), "m", "m"]) == 2
    assert "use ramp nines compare NEW m m --baseline OLD" in capsys.readouterr().err
    assert main(["nines", "compare", str(new), "m", "m", "--baseline", str(old)]) == 0
    said = capsys.readouterr().out
    assert "m - m (baseline)" in said
    assert "-0.2500" in said
    # Options may stand between the logs and the names of the runs.
    assert main(["nines", "compare", str(new), "--baseline", str(old), "m", "n"]) == 0
    assert "+0.0000" in capsys.readouterr().out
    assert main(["nines", "compare", str(new), "--where", "run=m", "m", "m"]) == 2
    assert main(["nines", "compare", str(new), "m", "n"]) == 0
    assert "+0.2500" in capsys.readouterr().out


def test_checkpoints_of_one_run_are_compared_by_their_steps(capsys, tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"m,{s},{i},{int(i >= 10 or s > 1)}\n" for s in (1, 2) for i in range(40)]
    log.write_text("run,step,item,success\n" + "".join(rows))
    assert main(["nines", "compare", str(log), "m", "m"]) == 2
    assert "name checkpoints of it, m@1 m@2;" in capsys.readouterr().err
    assert main(["nines", "compare", str(log), "m@1", "m@2"]) == 0
    assert "+0.2500" in capsys.readouterr().out
    assert main(["nines", "compare", str(log), "m@1", "m@7"]) == 2
    assert "there are m@1, m@2" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "gate", "certify", "forecast"])
def test_a_rate_is_no_number_of_nines(capsys, tmp_path, command):
    file = () if command == "plan" else (str(tmp_path / "any.csv"),)
    assert main(["nines", command, *file, "--nines", ".99"]) == (64 if command == "gate" else 2)
    assert "takes a number of nines; for .99 write 2" in capsys.readouterr().err
    main(["nines", command, *file, "--nines", "two"])
    assert "'two' is no number" in capsys.readouterr().err


def test_a_level_says_that_the_one_below_holds_it_back(capsys, tmp_path):
    text = "model,id,seed,passed\n" + "".join(f"m,{i},1,1\n" for i in range(60))
    said = ask(capsys, tmp_path, "certify", text, "--nines", "1")
    assert "0 more items without a failure would prove it; but pilot is not reached" in said
    assert "worst slice" not in said


def test_seeds_that_two_logs_share_are_no_order(capsys, tmp_path):
    text = "model,id,seed,date,passed\n" + "".join(
        f"m,{i},1,2026-01-01T00:{i:02}:0{second},{int(i > second)}\n"
        for second in (1, 2)
        for i in range(20)
    )
    said = ask(capsys, tmp_path, "gate", text)
    assert "3 of 20 items failed" in said
    assert "20 of them have a seed that the item has already" in said


def test_the_runs_of_a_log_are_one_system_if_that_is_said(capsys, tmp_path):
    text = "model,date,id,passed\n" + "".join(
        f"run{k},2026-01-0{k},{i},1\n" for k in (1, 2) for i in range(20)
    )
    said = ask(capsys, tmp_path, "monitor", text)
    assert "take them as one system with --ignore run" in said
    assert "No alarm in 40 trials" in ask(capsys, tmp_path, "monitor", text, "--ignore", "run")


def test_what_a_schedule_cannot_date_is_said(capsys, tmp_path):
    schedule = tmp_path / "schedule.csv"
    trials = "tests/nines/example/trials.csv"
    words = ["nines", "forecast", trials, "--run", "ours", "--schedule", str(schedule)]
    schedule.write_text("date,compute\n2019-01-01T00:00:00+02:00,1e19\n2020-07-01,1e20\n")
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The schedule ends at 1e+20 on 2020-07-01" in said
    assert "dates before today say when" in " ".join(said.split())
    schedule.write_text("date,compute\n2030-01-01T00:00:00+02:00,1e20\n2031-07-01,1e22\n")
    assert main(words) == 0
    assert "The schedule begins at 1e+20 on 2030-01-01" in " ".join(capsys.readouterr().out.split())
    schedule.write_text("day,compute\n2030-01-01,1e20\n")
    assert main(words) == 2
    assert "there is no column 'date'" in capsys.readouterr().err
