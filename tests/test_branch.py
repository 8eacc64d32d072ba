"""Runs that begin from others: `--from RUN[@STEP]`, and what a run goes on with or refuses."""

import json
import random
import re
import shlex
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from ramp import branch, cli, config
from ramp.config import Config, Text
from ramp.errors import UserError
from ramp.export import bring
from ramp.export.export import export
from ramp.rundir import RunDir
from ramp.text.tokenizer import Tokenizer
from ramp.train.checkpoint import Checkpoints

CONFIG = """
stages = ["prepare", "pretrain"]
[text]
sources = ["file:{texts}/*.txt"]
vocab_size = 300
[model]
depth = 1
width = 64
context_len = 32
dtype = "float32"
[pretrain]
steps = 6
save_every = 3
batch_size = 8
warmup_steps = 2
decay_fraction = 0.0
num_samples = 0
[finetune]
steps = 2
batch_size = 8
num_samples = 0
[chat]
sources = ["file:{texts}/chat.jsonl"]
[checkpoint]
max_to_keep = 3
"""


def ramp(*words: object) -> int:
    # A run sets its mesh for good: here it ends with the run, for the tests that follow.
    with jax.set_mesh(tiny.mesh()):
        return cli.main([str(word) for word in words])


def write_texts(folder, seed: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(200)]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(80):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(words, k=60)))


def write_chats(file, word: str) -> None:
    def chat(i):
        turns = [("user", f"say {word} {i}"), ("assistant", f"{i} {word}")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    file.write_text("".join(json.dumps(chat(i)) + "\n" for i in range(80)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder, configuration, a run of 6 steps)."""
    folder = tmp_path_factory.mktemp("branch")
    write_texts(folder / "texts", 0)
    write_chats(folder / "texts" / "chat.jsonl", "ok")
    (folder / "a.toml").write_text(CONFIG.format(texts=folder / "texts"))
    assert ramp("run", folder / "a.toml", "--run", folder / "a") == 0
    return folder


def undo(run, stage: str) -> None:
    """Make the report say that a stage is not done."""
    report = json.loads((run / "report.json").read_text())
    report[stage]["done"] = False
    (run / "report.json").write_text(json.dumps(report))
    (run / ".report.json.copy").unlink(missing_ok=True)


def leaves(run, stage: str, step: int) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, read without ramp's own code."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(run / "checkpoints" / stage / str(step) / "state")
    return {name: np.asarray(leaf) for name, leaf in tree["leaves"].items()}


def same(a: dict, b: dict, part: str = "") -> bool:
    names = [name for name in a if name.startswith(part)]
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in names)


def test_extending_a_run_is_the_longer_run(base, tmp_path):
    """The rate is constant here, so 6 steps and 3 more are 9 steps, bitwise, optimizer included."""
    assert ramp("run", base / "a.toml", "--run", tmp_path / "long", "--pretrain.steps", 9) == 0
    words = ("--from", base / "a", "--run", tmp_path / "more", "--pretrain.steps", 9)
    assert ramp("run", *words) == 0
    assert same(leaves(tmp_path / "long", "pretrain", 9), leaves(tmp_path / "more", "pretrain", 9))
    # Asked again, it is the same run, and done; by its directory alone too.
    assert ramp("run", *words) == 0
    assert ramp("run", tmp_path / "more") == 0


def test_a_branch_from_a_step_takes_another_rate_and_outlives_its_parent(base, tmp_path, capsys):
    parent = tmp_path / "parent"
    shutil.copytree(base / "a", parent)
    words = ("--run", tmp_path / "b", "--pretrain.lr_scale", 0.1)
    assert ramp("run", "--from", f"{parent}@3", *words) == 0
    assert "whole state" in capsys.readouterr().out
    first = leaves(tmp_path / "b", "pretrain", 3)
    assert same(first, leaves(parent, "pretrain", 3))
    assert not same(leaves(tmp_path / "b", "pretrain", 6), leaves(parent, "pretrain", 6), "params")
    shutil.rmtree(parent)
    assert ramp("sample", tmp_path / "b", "--stage", "pretrain", "--prompt", "abc") == 0
    origin = RunDir(tmp_path / "b").origin()
    assert (origin.stage, origin.step, origin.whole_state) == ("pretrain", 3, True)


def test_weights_only_begin_at_step_0(base, tmp_path):
    assert ramp("run", "--from", base / "a", "--run", tmp_path / "b", "--from-weights") == 0
    before, after = leaves(base / "a", "pretrain", 6), leaves(tmp_path / "b", "pretrain", 6)
    assert not same(before, after, "params")
    assert json.loads((tmp_path / "b" / "report.json").read_text())["pretrain"]["steps"] == 6


def test_a_later_stage_begins_from_the_weights_it_needs(base, tmp_path, capsys):
    assert ramp("finetune", "--from", f"{base / 'a'}@3", "--run", tmp_path / "b") == 0
    assert "the weights of" in capsys.readouterr().out
    assert Checkpoints(RunDir(tmp_path / "b").checkpoints("finetune")).steps()[-1] == 2


def test_other_text_keeps_the_tokenizer(base, tmp_path):
    write_texts(tmp_path / "texts", 1)
    sources = ("--text.sources", f"file:{tmp_path}/texts/*.txt", "--pretrain.steps", 8)
    assert ramp("run", "--from", base / "a", "--run", tmp_path / "b", *sources) == 0
    old, new = (RunDir(path).tokenizer.read_bytes() for path in (base / "a", tmp_path / "b"))
    assert old == new
    assert config.load(tmp_path / "b" / "config.toml").text.tokenizer == "run"


def test_a_mix_is_trained_by_its_weights_and_extended_like_any_run(base, tmp_path):
    """Three rows of the small text for one of the large: the epochs of each are in the report."""
    write_texts(tmp_path / "small", 2)
    mix = {f"file:{tmp_path}/small/*.txt": 3.0, f"file:{base}/texts/*.txt": 1.0}
    table = "\n".join(f'"{source}" = {weight}' for source, weight in mix.items())
    mixed = CONFIG.format(texts=base / "texts") + f"[text.mix]\n{table}\n"
    (tmp_path / "mix.toml").write_text(mixed)
    assert ramp("run", tmp_path / "mix.toml", "--run", tmp_path / "m") == 0
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    epochs = report["pretrain"]["epochs_by_source"]
    assert list(epochs) == list(mix)
    few, many = epochs.values()
    assert few == pytest.approx(3 * many, rel=0.15)  # both texts are about as long
    words = ("--run", tmp_path / "more", "--pretrain.steps", 9)
    assert ramp("run", "--from", tmp_path / "m", *words) == 0
    words = ("--run", tmp_path / "long", "--pretrain.steps", 9)
    assert ramp("run", tmp_path / "mix.toml", *words) == 0
    assert same(leaves(tmp_path / "long", "pretrain", 9), leaves(tmp_path / "more", "pretrain", 9))


def test_an_imported_model_goes_on_in_every_way(base, tmp_path):
    pytest.importorskip("safetensors")
    assert ramp("export", base / "a", "--out", tmp_path / "hf") == 0
    imported = tmp_path / "imported"
    assert ramp("import", tmp_path / "hf", "--run", imported, "--context", 32) == 0
    chats = ("--chat.sources", f"file:{base}/texts/chat.jsonl", "--finetune.steps", 2)
    assert ramp("finetune", imported, *chats, "--finetune.batch_size", 8) == 0
    text = ("--text.sources", f"file:{base}/texts/*.txt", "--pretrain.steps", 2)
    assert ramp("prepare", imported, *text[:2]) == 0
    assert ramp("eval", imported) == 0
    stages = ("--stages", "prepare", "pretrain", "--pretrain.batch_size", 8)
    assert ramp("run", "--from", imported, "--run", tmp_path / "more", *text, *stages) == 0


BASE = """
base = "{model}"
stages = ["prepare", "finetune", "diversity"]
[text]
sources = ["file:{texts}/*.txt"]
[model]
context_len = 32
[finetune]
steps = 2
batch_size = 8
num_samples = 0
[chat]
sources = ["file:{texts}/chat.jsonl"]
[diversity]
questions = ["hello", "what is it"]
max_new_tokens = 4
remedies = ["min-p"]
"""


def test_a_configuration_begins_from_a_model_of_another_tool(base, tmp_path, capsys):
    """It takes the model's shape and tokenizer, and asks the first model and the last one."""
    pytest.importorskip("safetensors")
    assert ramp("export", base / "a", "--out", tmp_path / "hf") == 0
    text = BASE.format(model=tmp_path / "hf", texts=base / "texts")
    (tmp_path / "b.toml").write_text(text)
    words = ("run", tmp_path / "b.toml", "--run", tmp_path / "b")
    for _ in range(2):
        assert ramp(*words) == 0
    # Nothing is done twice but the questions.
    assert "finetune: done before" in capsys.readouterr().out
    run = RunDir(tmp_path / "b")
    assert run.load_config().model.width == 64
    assert (run.origin().stage, run.origin().step) == ("pretrain", 0)
    rows = run.report()["diversity"]["answers"]
    assert [(r["model"], r["asked"]) for r in rows] == [
        ("origin", "plain"), ("origin", "min-p"), ("finetune", "plain"),
    ]  # fmt: skip
    assert rows[0]["change"] == 0
    assert all(1 <= r["different"] <= 10 for r in rows)
    # A run that has begun needs the file no more.
    (tmp_path / "hf").rename(tmp_path / "elsewhere")
    assert ramp("run", run.path) == 0
    assert ramp(*words) == 0
    assert ramp(*words, "--model.context_len", 16) == 2
    assert "has 32" in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(tmp_path / "hf")
    assert ramp(*words[:2], "--run", tmp_path / "c", "--dry-run") == 0
    assert "width 64" in capsys.readouterr().out
    assert ramp(*words[:2], "--run", tmp_path / "c", "--model.width", 128) == 2
    assert "has 64" in capsys.readouterr().err
    # The default of a key is no shape of this run either.
    assert ramp("run", run.path, "--model.width", 0) == 2
    assert "has 64" in capsys.readouterr().err
    assert ramp(*words, "--base", base) == 2
    assert ramp(*words[:2], "--run", tmp_path / "c", "--text.tokenizer", "bytes") == 2
    assert "brings its own" in capsys.readouterr().err
    # Nobody's files are taken for what a killed start has left.
    (tmp_path / "mine" / "base").mkdir(parents=True)
    (tmp_path / "mine" / "base" / "thesis.txt").write_text("all of it")
    assert ramp(*words[:2], "--run", tmp_path / "mine") == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine" / "base" / "thesis.txt").exists()
    # A run from its weights has the parent's model, whatever the parent began from.
    new = ("--run", tmp_path / "d", "--finetune.steps", 3)
    assert ramp("finetune", "--from", run.path, *new) == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.width", 0, "is 0, and .* has 64; leave it out"),
        ("model.qk_norm", "false", "is False, and .* has True; leave it out"),
        ("model.context_len", 999, "is 999, and .* has 96; leave it out"),
        ("text.tokenizer", '"bpe"', "is 'bpe', and `base` brings its own; leave it out"),
        ("text.vocab_size", 777, "is 777, and the tokenizer of `base` has 264; leave it out"),
        ("model.rope_theta", 10000.0, ""),
        ("model.context_len", 48, ""),
    ],
)
def test_what_is_asked_for_beside_a_base_is_never_passed_over(tmp_path, key, value, said):
    """Also the default of a key, which says as much as another value; in a file or as a flag."""
    pytest.importorskip("safetensors")
    model = replace(tiny.model(depth=1, vocab_size=264, context_len=96), qk_norm=True)
    c = config.resolve(Config(text=Text(tokenizer="bytes"), model=model))
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c.model)
        export(c, lm, Tokenizer.bytes_only(), {}, "finetune", tmp_path / "hf")
    section, _, name = key.partition(".")
    base = f'base = "{tmp_path / "hf"}"\n'
    (tmp_path / "plain.toml").write_text(base)
    (tmp_path / "named.toml").write_text(f"{base}[{section}]\n{name} = {value}\n")
    flags = [f"--{key}", str(value).strip('"')]
    for file, more in (("plain.toml", flags), ("named.toml", [])):
        named = config.list_named(tmp_path / file, more)
        asked = config.load(tmp_path / file, more)
        if said:
            with pytest.raises(UserError, match=f"{key} {said}") as refusal:
                bring.fit_to_base(asked, named)
            # Of a file that comes with ramp nothing can be left out.
            remedy = str(refusal.value).partition("or give ")[2].split()
            assert len(remedy) == 2 * (section == "model")
            if remedy:
                asked = config.load(tmp_path / file, [*more, *remedy])
                assert bring.fit_to_base(asked, named).model.width == 64
        else:
            fitted = bring.fit_to_base(asked, named)
            assert config.get(fitted, key) == value and fitted.model.width == 64


def test_text_alone_makes_a_run_and_goes_on(base, tmp_path, capsys):
    """What is not set is chosen and said; a run that was begun keeps it when more text comes."""
    write_texts(tmp_path / "texts", 2)
    words = ("run", "--text", tmp_path / "texts", "--run", tmp_path / "run", "--pretrain.steps", 2)
    assert ramp(*words, "--model.dtype", "float32") == 0
    said = capsys.readouterr().out
    assert "found: 80 .txt" in said
    assert "chosen: vocabulary" in said
    saved = (tmp_path / "run" / "config.toml").read_bytes()
    write_texts(tmp_path / "texts" / "more", 3)
    assert ramp(*words) == 0
    assert (tmp_path / "run" / "config.toml").read_bytes() == saved
    assert ramp("run", "--text", base / "texts", "--run", tmp_path / "run") == 2
    assert "text.sources" in capsys.readouterr().err
    in_brackets = ("--text", f"[{tmp_path / 'texts'}]", "--run", tmp_path / "run")
    assert ramp("run", *in_brackets, "--pretrain.steps", 2) == 0


def test_the_tokenizer_of_another_model_makes_the_vocabulary(base, tmp_path, capsys):
    """Its size is its own, in a configuration that does not say it; one that is too small is refused."""
    file = tmp_path / "tokenizer.json"
    shutil.copy(RunDir(base / "a").tokenizer, file)
    words = ("--text.tokenizer", file, "--run", tmp_path / "run")
    text = (base / "a.toml").read_text().replace("vocab_size = 300", "")
    (tmp_path / "b.toml").write_text(text)
    assert ramp("run", tmp_path / "b.toml", *words) == 0
    assert config.load(tmp_path / "run" / "config.toml").text.vocab_size == 300
    larger = Tokenizer.load(file)
    larger = Tokenizer(larger.merges + tuple((i, i) for i in range(97, 107)) * 10)
    larger.save(file)
    capsys.readouterr()
    words = ("--text.tokenizer", file, "--run", tmp_path / "c", "--model.vocab_size", 256)
    assert ramp("run", tmp_path / "b.toml", *words) == 2
    assert "model.vocab_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [("my/*.txt", "my"), ("a/b.txt", "b"), ("*.md", "text"), ("hf://x/y", "y"), (".", "text")],
)
def test_a_run_on_a_text_has_its_name(text, name):
    assert cli.name_run(text) == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "{a}"], "name its directory with --run"),
        (["--from", "{a}", "--run", "{b}"], "add --pretrain.steps with more"),
        (["--from", "{a}@4", "--run", "{b}", "--pretrain.steps", "9"], "keeps no step 4"),
        (["--from", "{a}@x", "--run", "{b}"], "after the @ comes a step"),
        (["--from", "{b}/none", "--run", "{b}"], "is not a run directory"),
        (["--from", "{a}", "--run", "{a}", "--pretrain.steps", "9"], "cannot begin from itself"),
        (["--from", "{a}", "--run", "{b}", "--model.mlp_dim", "384"], "are of another model"),
        (["--from", "{a}", "--run", "{b}", "--from-stage", "dpo"], "has no checkpoint of dpo"),
        (["{a}", "--from-weights"], "belong to --from"),
        (["--from", "{a}/config.toml", "--run", "{b}"], "config.toml is a file, and a run is"),
        (["--from", "{a}", "--run", "{a}/config.toml"], "config.toml is a file, and a run is"),
        (["--from", "{a}", "--run", "{a}/config.toml/b"], "config.toml is a file, and a run is"),
        ([], "name a configuration"),
        (["{a}", "--pretrain.lr_scale", "0.5"], "was begun with another configuration"),
    ],
)
def test_what_cannot_be_is_one_sentence(base, tmp_path, capsys, words, said):
    words = [word.format(a=base / "a", b=tmp_path / "b") for word in words]
    assert ramp("run", *words) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_the_remedy_for_another_configuration_works(base, tmp_path, capsys):
    assert ramp("run", base / "a", "--pretrain.steps", 8) == 2
    assert f"--from {base / 'a'} --run NEW" in capsys.readouterr().err
    words = ("--from", base / "a", "--run", tmp_path / "new", "--pretrain.steps", 8)
    assert ramp("run", *words) == 0


def test_going_on_from_a_step_that_is_not_the_best_says_which_is(base, tmp_path, capsys):
    parent = tmp_path / "a"
    shutil.copytree(base / "a", parent)
    words = ("--from", parent, "--run", tmp_path / "b", "--pretrain.steps", 7)
    Checkpoints(RunDir(parent).checkpoints("pretrain")).rescore(3, 0.0)
    assert ramp("run", *words) == 0
    said = capsys.readouterr().out
    assert "its last step, and step 3 was the best" in said
    remedy = re.search("`(--from .*?)`", said)[1].replace("NEW", str(tmp_path / "new"))
    assert ramp("run", *shlex.split(remedy)) == 0
    said = capsys.readouterr().out
    assert "checkpoints/pretrain/3" in said and "was the best" not in said
    # By weights it begins from the best step anyway.
    words = ("--from", parent, "--run", tmp_path / "c", "--from-weights")
    assert ramp("run", *words) == 0
    said = capsys.readouterr().out
    assert "checkpoints/pretrain/3" in said and "was the best" not in said


def test_a_state_that_does_not_fit_is_refused_at_once_and_the_remedy_works(base, tmp_path, capsys):
    words = ("--from", base / "a", "--run", tmp_path / "b", "--pretrain.steps", 8)
    words += ("--pretrain.lora_rank", 2)
    assert ramp("run", *words) == 2
    message = capsys.readouterr().err
    assert "does not fit pretrain.lora_rank 0 -> 2" in message and message.count("\n") == 1
    assert not (tmp_path / "b" / "config.toml").exists()
    (remedy,) = re.findall(r"add (--from-\w+)", message)
    assert ramp("run", *words, remedy) == 0


def test_another_vocabulary_than_that_of_the_weights_is_said(caplog):
    old = config.resolve(Config(text=Text(vocab_size=300)))
    for text, said in (
        (Text(vocab_size=350), "without text.vocab_size 300 -> 350"),
        (Text(vocab_size=300, tokenizer="bytes"), "without text.tokenizer 'bpe' -> 'bytes'"),
        (Text(vocab_size=300, sources=("file:b.txt",)), ""),
        (Text(vocab_size=300, tokenizer="run"), ""),
    ):
        caplog.clear()
        kept = branch.keep_tokenizer(old, Config(text=text))
        assert (kept.text.tokenizer, kept.text.vocab_size) == ("run", 300)
        assert said in caplog.text and bool(said) == bool(caplog.text)


def test_only_what_changes_the_state_is_refused():
    c = config.resolve(config.Config())

    def differ(**keys) -> list[str]:
        flags = [word for key, value in keys.items() for word in (f"--{key}", value)]
        new = config.load_flags(flags, None, c)
        return branch.list_state_changes(c, new, "reinforce")

    assert differ(**{"reinforce.train.lora_targets": "wq", "reinforce.method": "grpo"}) == []
    assert differ(**{"reinforce.train.ema_decay": "0.9"}) == [
        "reinforce.train.ema_decay 0.0 -> 0.9"
    ]
    assert differ(**{"reinforce.kl_coef": "0.1"}) == ["reinforce.kl_coef 0.0 -> 0.1"]
    # Set back, both together leave a configuration that runs.
    head = {"reinforce.reward": "head", "reinforce.label_fraction": "0.2"}
    assert differ(**head) == [
        "reinforce.reward 'answer' -> 'head'",
        "reinforce.label_fraction 0.0 -> 0.2",
    ]
    (method,) = differ(**{"reinforce.method": "implicit"})
    assert method.startswith("reinforce.method ") and method.endswith(" -> 'implicit'")


def test_a_dry_run_plans_what_is_asked_and_warns_of_a_control(base, tmp_path, capsys, caplog):
    parent = tmp_path / "a"
    shutil.copytree(base / "a", parent)
    file = parent / "config.toml"
    text, count = re.subn(r'\nreward = ".*"', '\nreward = "random"', file.read_text())
    assert count == 1
    file.write_text(text)
    words = ("reinforce", "--from", parent, "--run", tmp_path / "b", "--dry-run")
    words += ("--reinforce.num_prompts", 2, "--reinforce.group_size", 4)
    words += ("--reinforce.reward_seconds", 9, "--reinforce.train.steps", 2)
    assert ramp(*words) == 0
    planned = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert planned[-1] == "reinforce" and "pretrain" not in planned
    (said,) = [line for line in caplog.messages if "a control" in line]
    assert f"the reward is 'random', a control that {parent} was set to" in said
    (remedy,) = re.findall(r"(--reinforce.reward \w+)", said)
    caplog.clear()
    assert ramp(*words, *remedy.split()) == 0
    assert "for tests; reward: answer" in capsys.readouterr().out
    assert "a control" not in caplog.text


def test_a_branch_that_diverges_goes_back_to_what_it_began_from(base, tmp_path, capsys):
    run = tmp_path / "run"
    words = ("--from", f"{base / 'a'}@3", "--run", run, "--pretrain.steps", 40)
    assert ramp("run", *words, "--pretrain.lr_scale", 1e6) == 3
    said = capsys.readouterr().err
    good = int(re.search(r"step (\d+) is the last good checkpoint", said)[1])
    # Every update was refused, so a later step may hold the same weights.
    assert same(leaves(run, "pretrain", good), leaves(base / "a", "pretrain", 3), "params")
    remedy = re.search("`ramp (.*?)`", said)[1].replace("NEW", str(tmp_path / "new"))
    assert ramp(*shlex.split(remedy)) == 0


def test_the_remedy_of_a_run_that_diverged_works(base, tmp_path, capsys):
    words = ("--run", tmp_path / "run", "--pretrain.steps", 40, "--pretrain.lr_scale", 3000)
    assert ramp("run", base / "a.toml", *words) == 3
    said = capsys.readouterr().err
    remedy = re.search("`ramp (.*?)`", said)[1].replace("NEW", str(tmp_path / "new"))
    assert ramp(*shlex.split(remedy)) == 0


def test_swapped_conversations_are_refused_and_can_be_accepted(base, tmp_path, capsys):
    run, chats = tmp_path / "run", tmp_path / "chat.jsonl"
    shutil.copytree(base / "a", run)
    write_chats(chats, "ok")
    words = ("--chat.sources", f"file:{chats}", "--finetune.steps", 4, "--finetune.save_every", 2)
    assert ramp("finetune", run, *words) == 0
    # As if it had been killed after step 2.
    shutil.rmtree(run / "checkpoints" / "finetune" / "4")
    undo(run, "finetune")
    write_chats(chats, "no")
    capsys.readouterr()
    assert ramp("finetune", run, *words) == 2
    message = capsys.readouterr().err
    assert "was trained on other data" in message
    assert f"`ramp finetune --from {run} --run NEW`" in message
    assert ramp("finetune", "--from", run, "--run", tmp_path / "new") == 0
    # What was put back goes on where it was.
    write_chats(chats, "ok")
    assert ramp("finetune", run, *words) == 0


def test_text_that_was_prepared_again_is_refused(base, tmp_path, capsys):
    """Other documents behind the same path, prepared again in the middle of pretraining."""
    run, texts = tmp_path / "run", tmp_path / "texts"
    write_texts(texts, 0)
    words = (base / "a.toml", "--run", run, "--text.sources", f"file:{texts}/*.txt")
    assert ramp("run", *words) == 0
    shutil.rmtree(run / "checkpoints" / "pretrain" / "6")
    undo(run, "pretrain")
    write_texts(texts, 1)
    assert ramp("prepare", run, "--force", "--text.tokenizer", "run") == 2  # another setting
    capsys.readouterr()
    assert ramp("prepare", run, "--force") == 0
    said = capsys.readouterr().out
    assert "other tokens than before" in said
    assert ramp("run", *words) == 2
    message = capsys.readouterr().err
    # Another text fits another tokenizer, which is what is seen first.
    assert "was saved with another tokenizer" in message or "was trained on other data" in message
    remedy = re.search("`ramp (.*?)`", said)[1]
    assert ramp(*shlex.split(remedy)) == 0


def test_a_run_goes_on_in_the_dtype_it_was_begun_in(base, tmp_path, monkeypatch):
    from ramp import host

    text = (base / "a.toml").read_text().replace('dtype = "float32"\n', "")
    (tmp_path / "auto.toml").write_text(text)
    words = ("run", tmp_path / "auto.toml", "--run", tmp_path / "run")
    monkeypatch.setattr(host, "has_bfloat16", lambda: False)
    assert ramp(*words) == 0
    monkeypatch.setattr(host, "has_bfloat16", lambda: True)
    assert ramp(*words, "--stages", "prepare", "pretrain", "finetune") == 0
    assert config.load(tmp_path / "run" / "config.toml").model.dtype == "float32"
