"""A run directory whose files somebody edits, deletes or damages, and stages that are to begin anew."""

import errno
import json
import logging
import os
import shutil

import pytest

from ramp import cli, config, files
from ramp.errors import UserError
from ramp.reporting import html
from ramp.reporting.report import update_report
from ramp.rundir import Origin, RunDir
from ramp.text.tokenizer import Tokenizer


@pytest.fixture
def run(tmp_path):
    """A run that has begun pretraining."""
    run = RunDir(tmp_path / "run")
    run.check_or_create(config.resolve(config.load_flags(["--model.depth", "2"])))
    update_report(run.path, "pretrain", {"done": True})
    (run.checkpoints("pretrain") / "4").mkdir(parents=True)
    return run


def edit(run, old: str, new: str) -> None:
    text = run.config.read_text()
    assert old in text
    run.config.write_text(text.replace(old, new))


def load(run, caplog):
    """The configuration, and what was said of it."""
    files.warn_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        return run.load_config(), caplog.text


def test_an_edit_by_hand_is_said_and_used_until_a_command_writes_it(run, caplog):
    assert load(run, caplog)[1] == ""
    edit(run, "temperature = 0.8", "temperature = 0.5")
    c, said = load(run, caplog)
    assert c.sample.temperature == 0.5
    assert "sample.temperature 0.8 -> 0.5" in said and f"`rm {run.config}`" in said
    run.check_or_create(config.resolve(c))
    assert load(run, caplog)[1] == ""
    edit(run, "[sample]", "[sample]  # a comment changes nothing")
    assert load(run, caplog)[1] == ""


def test_what_a_begun_stage_depends_on_is_refused_and_the_remedy_works(run, caplog):
    for old, new, says in (
        ("depth = 2", "depth = 6", "model.depth 2 -> 6"),
        ("[model]", "[mqdel]", "unknown"),
        ("depth = 2", 'depth = "', "not readable as TOML"),
    ):
        edit(run, old, new)
        with pytest.raises(UserError, match=says) as refused:
            run.load_config()
        assert f"`rm {run.config}`" in str(refused.value)
        run.config.unlink()
        c, said = load(run, caplog)
        assert c.model.depth == 2 and "is gone" in said
        run.check_or_create(config.resolve(c))  # writes it again
        assert load(run, caplog)[1] == ""
    # What has not begun may be changed.
    edit(run, "beta = 0.1", "beta = 0.3")
    assert load(run, caplog)[0].dpo.beta == 0.3


def test_an_edit_that_another_run_can_have_leads_to_that_run(run, tmp_path, capsys):
    """Taken back first: until then the run cannot be read, not even to begin another from it."""
    edit(run, "lr_scale = 1.0", "lr_scale = 0.5")
    words = ["run", "--from", str(run.path), "--run", str(tmp_path / "new"), "--dry-run"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"`rm {run.config}` brings back what ramp wrote last; for other values then" in said
    assert f"begin a new run from it with flags and --from {run.path} --run NEW" in said
    run.config.unlink()
    assert cli.main([*words, "--pretrain.lr_scale", "0.5"]) == 0


@pytest.mark.parametrize(
    ("flags", "offer"),
    [
        (["--model.depth", "3"], "name another --run"),
        (["--text.vocab_size", "350"], "name another --run"),
        (["--text.tokenizer", "bytes"], "name another --run"),
        (["--pretrain.beta1", "0.5"], "with flags and --from"),
        (["--text.sources", "file:model.txt"], "with flags and --from"),
    ],
)
def test_only_what_weights_can_take_is_offered_from_them(run, flags, offer):
    update_report(run.path, "prepare", {"done": True})
    c = config.resolve(config.load_flags(["--model.depth", "2", *flags]))
    with pytest.raises(UserError, match="was begun with another configuration") as refused:
        run.check_or_create(c)
    assert offer in str(refused.value)


def test_paths_in_printed_commands_are_quoted(run):
    mine = RunDir(run.path.rename(run.path.with_name("my run")))
    assert mine.redo("finetune") == f"`ramp finetune '{mine.path}' --force`"
    edit(mine, "beta1 = 0.9\n", "beta1 = 0.8\n")
    with pytest.raises(UserError) as refused:
        mine.load_config()
    assert f"`rm '{mine.config}'`" in str(refused.value)
    assert f"--from '{mine.path}' --run" in str(refused.value)


def test_a_run_whose_parent_is_gone_is_named(run, tmp_path, capsys):
    assert cli.main(["run", "--from", str(tmp_path / "pa"), "--run", str(run.path)]) == 2
    assert f"has begun: `ramp run {run.path}` goes on" in capsys.readouterr().err


def test_a_stage_that_begins_anew_leaves_what_it_had_made_aside(run, capsys):
    run.tokens("train").write_text("{}")
    run.tokenizer.write_text("{}")
    (run.data / "shards").mkdir()
    run.put_aside(["pretrain"])
    run.put_aside(["prepare", "finetune"])
    assert (run.path / "replaced" / "1" / "checkpoints" / "pretrain" / "4").is_dir()
    assert (run.path / "replaced" / "2" / "data" / "tokenizer.json").exists()
    assert (run.data / "shards").exists() and not run.tokens("train").exists()
    assert str(run.path / "replaced" / "1") in capsys.readouterr().out
    update_report(run.path, "pretrain", {"imported": "x.gguf"})
    with pytest.raises(UserError, match="was imported"):
        run.put_aside(["pretrain"])


@pytest.mark.parametrize(
    ("folder", "command"),
    [("finetune", "finetune"), ("sft", "reinforce"), ("synthesize-12", "synthesize")],
)
def test_the_remedy_names_the_stage_that_makes_a_folder(run, folder, command):
    assert run.redo(folder) == f"`ramp {command} {run.path} --force`"


def test_generations_are_found_by_name(run):
    with pytest.raises(UserError, match="has not finished"):
        run.find_weights("synthesize")
    run.checkpoints("synthesize-1").mkdir()
    with pytest.raises(UserError, match="has no synthesize-2; it has synthesize-1"):
        run.find_weights("synthesize-2")
    for generation, folder in ((1, "synthesize-1"), (0, "pretrain")):
        update_report(run.path, "synthesize", {"generation": generation})
        assert run.find_weights("synthesize") == folder


READERS = (
    ("chat", "{run}", "--ask", "Hello"),
    ("sample", "{run}", "--prompt", "Hello"),
    ("export", "{run}", "--out", "{out}"),
    ("serve", "{run}", "--port", "0"),
    ("credit", "{run}"),
    ("synth", "why", "{run}", "g1-00001"),
    ("synth", "ask", "{run}", "Hello"),
    ("eval", "{run}"),
    ("report", "{run}"),
)


@pytest.fixture(params=["missing", "empty", "foreign", "only a configuration", "prepared"])
def partial_run(request, tmp_path):
    """A directory that is no run, or holds the beginning of one."""
    path = tmp_path / "run"
    if request.param == "missing":
        return path
    path.mkdir()
    if request.param == "foreign":
        (path / "letter.txt").write_text("dear diary")
        (path / "report.json").write_text("[1]")
        (path / "data").mkdir()
    if request.param in ("only a configuration", "prepared"):
        model = ("--model.width", "32", "--model.depth", "1", "--model.vocab_size", "264")
        small = ("--model.head_dim", "16", "--model.context_len", "64", "--text.tokenizer", "bytes")
        c = config.load_flags([*model, *small])
        RunDir(path).check_or_create(config.resolve(c))
    if request.param == "prepared":
        Tokenizer.bytes_only().save(RunDir(path).tokenizer)
        update_report(path, "prepare", {"done": True})
    return path


@pytest.mark.parametrize("words", READERS, ids=lambda words: " ".join(words[:2]))
def test_readers_of_what_is_no_whole_run_say_one_sentence(partial_run, words, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(run=partial_run, out=tmp_path / "out") for word in words]
    code = cli.main(words)
    out, error = capsys.readouterr()
    if words[0] == "report" and partial_run.joinpath("config.toml").exists():
        assert code == 0 and out.strip() == str(partial_run / "report.html")
        return
    assert code == 2, out
    assert error.startswith("ramp: ") and len(error.strip().splitlines()) == 1
    left = [path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock"]
    assert left == before


def test_a_start_that_is_refused_leaves_nothing(run, tmp_path, capsys):
    (run.path / "report.json").unlink(missing_ok=True)
    shutil.rmtree(run.checkpoints(""), ignore_errors=True)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for new in ("runs/mine", "empty"):
        assert cli.main(["pretrain", "--from", str(run.path), "--run", str(tmp_path / new)]) == 2
        assert "has no checkpoint" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
    # What is made stays, and so does the lock beside it.
    with RunDir(tmp_path / "runs" / "mine").lock():
        (tmp_path / "runs" / "mine" / "config.toml").touch()
    assert (tmp_path / "runs" / "mine" / ".lock").exists()


@pytest.mark.parametrize(
    "names",
    [
        ("origin.json", "data/letter.txt"),
        ("poetry.lock",),
        ("my-config.toml",),
        ("report.json",),
        ("checkpoints/mine",),
    ],
)
def test_files_of_somebody_are_no_start_that_was_killed(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="not empty and not a run"), RunDir(tmp_path).lock():
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_start_from_another_run_that_was_killed_may_begin_again(tmp_path):
    """At any of its steps: the copy of origin.json, the file, then what it fills."""
    run = RunDir(tmp_path)
    origin = Origin("/elsewhere", "pretrain", 3, True).to_json()
    files.write_kept(run.origin_file, origin)
    whole = run.origin_file.rename(tmp_path / "origin.json.tmp")
    with run.lock():
        pass
    whole.rename(run.origin_file)
    with run.lock():
        pass
    (run.checkpoints("pretrain") / "3").mkdir(parents=True)
    run.data.mkdir()
    run.tokenizer.write_text("{}")
    update_report(run.path, "prepare", {"done": True})
    with run.lock():
        pass
    # Somebody's own file beside it stays somebody's own.
    (tmp_path / "letter.txt").write_text("dear diary")
    with pytest.raises(UserError, match="not empty and not a run"), run.lock():
        pass


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EROFS, "Read-only file system; name a folder"),
        (errno.ENOSPC, "No space left on device; free some space"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(run, capsys, monkeypatch, number, says):
    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    # Everything that is written goes through one of these two; root may write everywhere else.
    monkeypatch.setattr(files, "write_atomic", refuse)
    monkeypatch.setattr(html, "write_atomic", refuse)
    assert cli.main(["report", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert f"report.html: {says}" in error
    assert len(error.splitlines()) == 1


def test_other_compilers_are_said(run, capsys):
    """A machine made anew may bring another jax or libtpu; the run goes on and says so."""
    c = run.load_config()
    run.check_or_create(c)
    assert "this run last went on" not in capsys.readouterr().out
    record_file = run.path / "provenance.json"
    record = json.loads(record_file.read_text())
    record["versions"] |= {"jax": "0.10.0", "tokenizers": "0.1"}
    files.write_kept(record_file, json.dumps(record))
    run.check_or_create(c)
    said = capsys.readouterr().out
    assert "last went on jax 0.10.0, here it is jax" in said and "tokenizers" not in said
    for damage in ("{", "{}"):
        files.write_kept(record_file, damage)
        run.check_or_create(c)
    assert json.loads(record_file.read_text())["versions"]["jax"] != "0.10.0"
