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
