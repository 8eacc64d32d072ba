"""What no stage could work with is refused before devices are asked for and before a directory is made."""

import re
from dataclasses import replace

import pytest
from interruptions import write_config

from ramp import cli, config, run
from ramp.errors import UserError
from ramp.evals import samples
from ramp.rundir import RunDir
from ramp.stages import dpo, finetune, pretrain, reinforce
from ramp.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("all"))


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--text.sources", "file:/nowhere/*.txt"], "matches no file"),
        (["--text.tokenizer", "/nowhere/tokenizer.json"], "/nowhere/tokenizer.json"),
        (["--text.sources", "/nowhere/*.txt"], "matches no file"),  # without file:
        (["--chat.sources", "file:/nowhere/*.jsonl"], "matches no file"),
        (["--chat.tasks", "adition/1"], "write NAME/LEVEL"),
        (["--chat.mistakes", "addition/7=0.5"], "which is none of chat.tasks"),
        (["--chat.tasks", "words/1", "--chat.mistakes", "words/1=0.5"], "one: addition"),
        (["--chat.tasks", "addition/1", "--chat.mistakes", "addition/1=8"], "is 8, not"),
        (["--dpo.sources", "file:/nowhere/*.jsonl"], "matches no file"),
        (["--reinforce.task", "adition"], "did you mean 'addition'"),
        (["--reinforce.method", "rlo"], "did you mean 'rloo'"),
        (["--synthesize.verifiers", "clean", "/nowhere/mine.py:right"], "there is no file"),
        (["--synthesize.max_new_tokens", "120"], "do not fit into model.context_len"),
    ],
)
def test_settings_are_refused_before_devices_and_directories(
    path, tmp_path, flags, says, capsys, monkeypatch
):
    def fail(*args, **kwargs):
        raise AssertionError("devices were asked for")

    monkeypatch.setattr(run, "setup_devices", fail)
    new = tmp_path / "new"
    assert cli.main(["run", str(path), "--run", str(new), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not new.exists()
    # A stage that does not run may lack anything.
    monkeypatch.setattr(run, "setup_devices", lambda *_, **__: pytest.skip("went on"))
    stages = ["--stages", "eval"]
    with pytest.raises(pytest.skip.Exception, match="went on"):
        cli.main(["run", str(path), "--run", str(new), *flags, *stages])


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--chat.tasks", "adition/1"], "write NAME/LEVEL"),
        (["--chat.tasks", "addition/1", "--chat.mistakes", "addition/1=8"], "is 8, not"),
        (["--reinforce.method", "rlo"], "did you mean 'rloo'"),
        (["--rivals", "one: reinforce --reinforce.method rlo"], "did you mean 'rloo'"),
        (["--rivals", "one: reinforce --reinforce.lr 3"], "reinforce.lr"),
        # Of a dry run nobody asks that the text is on the same machine.
        (["--text.sources", "file:/nowhere/*.txt", "--chat.sources", "file:/nowhere/*.jsonl"], ""),
    ],
)
def test_a_dry_run_refuses_what_needs_no_text(path, tmp_path, flags, says, capsys):
    words = ["run", str(path), "--run", str(tmp_path / "new"), "--dry-run", *flags]
    assert cli.main(words) == (2 if says else 0)
    printed = capsys.readouterr()
    assert says in printed.err and ("parameters" in printed.out) == (not says)


def test_lengths_are_refused_once_the_tokenizer_is_there(path):
    tokenizer, rundir = Tokenizer.bytes_only(), RunDir(path.parent / "run")
    c = config.resolve(config.load(path))
    for module in (pretrain, finetune, samples, dpo, reinforce):
        module.check_lengths(rundir, c, tokenizer)
    with pytest.raises(UserError, match=r"sample\.prompts holds a text of 201 tokens"):
        long = replace(c.sample, prompts=("w" * 200,))
        pretrain.check_lengths(rundir, replace(c, sample=long), tokenizer)
    with pytest.raises(UserError, match=r"sample\.questions holds a text of 2.. tokens"):
        long = replace(c.sample, questions=("w" * 200,))
        samples.check_lengths(rundir, replace(c, sample=long), tokenizer)
    short = {"seq_len": 8}
    wrong = replace(c, chat=replace(c.chat, tasks=()), finetune=replace(c.finetune, **short))
    with pytest.raises(UserError, match=r"no conversation of the train split fits .* of 8 tokens"):
        finetune.check_lengths(rundir, wrong, tokenizer)
    with pytest.raises(UserError, match=r"raise finetune\.seq_len"):
        finetune.check_lengths(rundir, replace(c, finetune=wrong.finetune), tokenizer)
    with pytest.raises(UserError, match=r"raise trials\.max_new_tokens"):
        little = replace(c, trials=replace(c.trials, max_new_tokens=4))
        finetune.check_lengths(rundir, little, tokenizer)
    with pytest.raises(UserError, match=r"no pair of the train split fits into 8 tokens"):
        train = replace(c.dpo.train, **short)
        dpo.check_lengths(rundir, replace(c, dpo=replace(c.dpo, train=train)), tokenizer)
    with pytest.raises(UserError, match=r"do not fit reinforce\.train\.seq_len 8"):
        train = replace(c.reinforce.train, **short)
        rl = replace(c.reinforce, train=train)
        reinforce.check_lengths(rundir, replace(c, reinforce=rl), tokenizer)
    with pytest.raises(UserError, match="context of 128"):
        rl = replace(c.reinforce, max_new_tokens=126)
        reinforce.check_lengths(rundir, replace(c, reinforce=rl), tokenizer)


def test_solutions_that_are_longer_than_rollouts_are_named(path, capsys):
    tokenizer, rundir = Tokenizer.bytes_only(), RunDir(path.parent / "run")
    c = config.resolve(config.load(path))
    room = {"max_new_tokens": 24, "train": replace(c.reinforce.train, seq_len=128)}
    c = replace(c, reinforce=replace(c.reinforce, task="addition", level=3, **room))
    reinforce.check_lengths(rundir, c, tokenizer)
    said = capsys.readouterr().out
    assert "and rollouts are cut at 24: raise reinforce.max_new_tokens" in said
    longest = int(re.search(r"the longest (\d+)", said)[1])
    # The remedy works.
    c = replace(c, reinforce=replace(c.reinforce, max_new_tokens=longest))
    reinforce.check_lengths(rundir, c, tokenizer)
    assert "rollouts are cut" not in capsys.readouterr().out


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(path, tmp_path):
    """Its last ids would be read as rows that are not there, without a word."""
    rundir = RunDir(tmp_path)
    rundir.data.mkdir()
    Tokenizer.bytes_only().save(rundir.tokenizer)
    c = config.resolve(config.load(path))
    run.check_lengths(rundir, c, [])
    small = replace(c, model=replace(c.model, vocab_size=200))
    with pytest.raises(UserError, match="has 264 tokens and the model 200"):
        run.check_lengths(rundir, small, [])
