"""The configuration: every mistake is named with its place, and what is written is read back."""

import ast
import dataclasses
import functools
import os
import threading
import typing
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ramp import cli, config, schema, sizes
from ramp.config import Config, Range, fingerprint, load, resolve, to_toml
from ramp.errors import UserError
from ramp.rundir import RunDir


@pytest.fixture
def written(tmp_path):
    def write(text, *flags):
        path = tmp_path / "a.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, list(flags))

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\ndepht = 3", "unknown key 'model.depht'; did you mean 'model.depth'"),
        ("[modle]\ndepth = 3", "unknown key 'modle'; did you mean 'model'"),
        (
            "[eval]\nqqqqq = 3",
            "unknown key 'eval.qqqqq'; known here: num_rows, batch_size, baselines",
        ),
        ("[model]\ndepth = 'four'", "'model.depth' takes int, not str"),
        ("[model]\ndepth = 4.0", "'model.depth' takes int, not float"),
        ("[model]\ndepth = true", "'model.depth' takes int, not bool"),
        ("[model]\nqk_norm = 1", "'model.qk_norm' takes bool, not int"),
        ("[pretrain]\ngrad_clip_norm = '1'", "'pretrain.grad_clip_norm' takes float, not str"),
        ("[text]\nsources = 'file:a'", "'text.sources' takes a list of strings"),
        ("[text]\nsources = [1]", "'text.sources' takes a list of strings"),
        (
            "[model]\ndtype = 'float16'",
            "'model.dtype' is 'float16'; it can be 'auto', 'float32', 'bfloat16'",
        ),
        ("model = 3", "'model' is a table [model]"),
        ("[model]\ndepth = -1", "'model.depth' is -1; it must be at least 0 and at most 256"),
        ("[pretrain]\nbeta1 = 1.5", "'pretrain.beta1' is 1.5; it must be at least 0 and at most 1"),
        ("[text]\nval_fraction = 0.0", "'text.val_fraction' is 0.0; it must be more than 0"),
        ("[pretrain]\nlr_scale = nan", "'pretrain.lr_scale' is nan"),
        ("[pretrain]\nlr_scale = inf", "'pretrain.lr_scale' is inf"),
        (
            "[reinforce]\nentropy_coef = nan",
            "'reinforce.entropy_coef' is nan; it must be a finite number",
        ),
        (
            "[pretrain]\nsteps = 3000000000",
            "'pretrain.steps' is 3000000000; it must be at least 0 and at most 2147483647",
        ),
        ("[reinforce]\nsft_steps = 3000000000", "at most 2147483647"),
        (
            "stages = ['pretrian']",
            "unknown stage 'pretrian'; did you mean 'pretrain'?, in 'stages'",
        ),
        ("[model]\nwindow_pattern = 'SXL'", "'model.window_pattern' is 'SXL'"),
        ("[model]\nwindow_pattern = ''", "'model.window_pattern' is ''"),
        ("[mesh]\nmodel = -1", "only one axis of 'mesh' can be -1"),
        ("[mesh]\ndata = 0", "an axis of 'mesh' is 0"),
        ("[model\ndepth = 3", "not readable as TOML"),
        (b"seed = 1 # \xff", "not readable as TOML"),
    ],
)
def test_mistakes_are_named(written, text, message):
    with pytest.raises(UserError) as error:
        written(text)
    assert message in str(error.value) and "a.toml" in str(error.value)
    assert "\n" not in str(error.value).strip()


def test_every_fraction_has_a_range():
    """Without one a key takes nan."""
    floats = [key for key in config.list_keys() if key.type is float]
    assert floats and all(any(isinstance(m, config.Range) for m in k.marks) for k in floats)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf[model]\ndepth = 3\n")
    assert load(tmp_path / "a.toml").model.depth == 3
    assert config.list_named(tmp_path / "a.toml", []) == {"model.depth"}


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="no such configuration"):
        load(tmp_path / "none.toml")
    with pytest.raises(UserError, match=str(tmp_path)):
        load(tmp_path)


def test_a_folder_without_a_run_does_not_hide_a_configuration(tmp_path, monkeypatch):
    """Such as an empty one called cpu; a run in it is meant, and so is any other folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("cpu", "mine"):
        Path(name).mkdir()
    assert not config.is_run(Path("cpu")) and config.is_run(Path("mine"))
    assert load(Path("cpu")) == load(Path(__file__).parents[1] / "configs" / "cpu.toml")
    for name in ("config.toml", ".config.toml.copy"):
        (tmp_path / "cpu" / name).touch()
        assert config.is_run(Path("cpu"))
        (tmp_path / "cpu" / name).unlink()


def test_a_name_that_no_file_can_have_is_no_configuration():
    name = Path("x" * 300)
    assert not config.is_run(name)
    with pytest.raises(UserError, match="no such configuration"):
        load(name)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            "num_heads = 6\nnum_kv_heads = 4",
            "'model.num_heads' 6 is not a multiple of 'model.num_kv_heads' 4",
        ),
        ("head_dim = 15", "'model.head_dim' 15 must be even"),
        ("vocab_size = 300", "'model.vocab_size' 300 is smaller than 'text.vocab_size' 4096"),
        (
            "token_mixer = 'mean'",
            "'model.qk_norm' is True, but token_mixer = 'mean' learns no queries",
        ),
        (
            "token_mixer = 'window'\nqk_norm = false",
            "'model.rope' is True, but token_mixer = 'window' has positions of its own",
        ),
        (
            "mlp = 'none'\nmlp_dim = 128",
            "'model.mlp_dim' is 128, but mlp = 'none' has no feed-forward",
        ),
        (
            "residual = false\nx0_scalars = true",
            "'model.x0_scalars' is True, but there is no residual stream",
        ),
        (
            "context_len = 64\n[pretrain]\nseq_len = 65",
            "'pretrain.seq_len' 65 is longer than 'model.context_len' 64",
        ),
        (
            "[finetune]\nbatch_size = 9\ngrad_accum_steps = 2",
            "'finetune.batch_size' 9 is not divisible by 'finetune.grad_accum_steps' 2",
        ),
    ],
)
def test_what_must_hold_between_keys(written, over, message):
    with pytest.raises(UserError) as error:
        resolve(written("[model]\n" + over))
    assert message in str(error.value)


def test_flags_win_over_the_file(written):
    text = "seed = 5\n[model]\ndepth = 3\ncontext_len = 128"
    c = written(
        text,
        "--model.depth",
        "8",
        "--pretrain.grad_clip_norm",
        "2",
        "--model.tie_embeddings",
        "True",
        "--text.sources",
        "file:a",
        "file:b",
    )
    assert (
        c.seed,
        c.model.depth,
        c.model.context_len,
        c.pretrain.grad_clip_norm,
        c.model.tie_embeddings,
    ) == (5, 8, 128, 2.0, True)
    assert c.text.sources == ("file:a", "file:b")
    with pytest.raises(UserError, match=r"'model.depth' is -3"):
        written(text, "--model.depth", "-3")


def test_a_whole_number_may_stand_for_a_real_one(written):
    clip = written("[pretrain]\ngrad_clip_norm = 2").pretrain.grad_clip_norm
    assert clip == 2.0 and type(clip) is float


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model.dpeth", "3"],
            "--model.dpeth: unknown key 'model.dpeth'; did you mean 'model.depth'",
        ),
        (["--model.depth", "many"], "--model.depth takes a whole number, not 'many'"),
        (["--model.depth"], "--model.depth takes one value, not 0"),
        (["--model.depth", "3", "4"], "--model.depth takes one value, not 2"),
        (["--pretrain.lr_scale", "fast"], "--pretrain.lr_scale takes a number, not 'fast'"),
        (["--model.rope", "1"], "--model.rope takes true or false, not '1'"),
        (["--text.sources", '["a",'], "--text.sources is not a list"),
        (["--model.dtype", "float16"], "'model.dtype' is 'float16'; it can be"),
        (["--model.heads", "3"], "'model.heads' is now 'model.num_heads'"),
        (["--synthesize.max_weight", "3"], "there is no 'synthesize.max_weight' any more"),
        (["--reinforce.batch", "3"], "'reinforce.batch' is now 'reinforce.train.batch_size'"),
        (["stray"], "unexpected argument 'stray'"),
        (
            ["--reinforce.train.batch_size", "32"],
            "'reinforce.train.batch_size' is 32, but this stage sets it to 128",
        ),
        (["--reinforce.train.z_loss", "0.1"], "'reinforce.train.z_loss' is 0.1"),
        (["--synthesize.train.eval_every", "7"], "'synthesize.train.eval_every' is 7"),
        (["--text.mix", "a.txt=0.5", "a.txt=0.7"], "--text.mix names 'a.txt' twice"),
    ],
)
def test_wrong_flags_are_one_sentence(written, flags, message):
    with pytest.raises(UserError) as error:
        written("seed = 1", *flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_are_read_as_their_keys_want_them(written):
    flags = ["--model.rope=false", "--text.sources", '["file:a b", "file:c"]', "--model.depth=5"]
    c = written("", *flags, "--pretrain.beta1", "0", "--text.cache", "-x")
    assert (c.model.rope, c.model.depth, c.pretrain.beta1) == (False, 5, 0.0)
    assert c.text.sources == ("file:a b", "file:c")
    for words in (["[a/*.txt, b]"], ["[a/*.txt,b]"], ["[a/*.txt,", "b]"], ["a/*.txt", "b"]):
        assert written("", "--text.sources", *words).text.sources == ("a/*.txt", "b")
    assert c.text.cache == "-x"


def test_a_section_keeps_its_own_defaults_under_a_table(written):
    """[reinforce.train] lies over Reinforce's own Train, not over Train's defaults."""
    t = written("[reinforce.train]\nlr_scale = 2").reinforce.train
    assert (t.lr_scale, t.optimizer, t.steps, t.skip_sigma) == (2.0, "adamw", 100, 0.0)


def test_old_names_say_the_new_one():
    """Every renamed key points to a key that exists, and no old name is still a key."""
    names = {key.name for key in config.list_keys()}
    renamed = schema.renamed_keys()
    assert set(renamed.values()) - {""} <= names
    assert not set(renamed) & names


def other_value(key):
    """A value of a key that is allowed and not its default."""
    if typing.get_origin(key.type) is Literal:
        return next(v for v in typing.get_args(key.type) if v != key.default)
    if schema.is_table(key.type):
        return ["file:a.txt=0.5"]
    if typing.get_origin(key.type) is tuple:
        return ["prepare"] if key.name == "stages" else ["other"]
    if key.type is bool:
        return not key.default
    if key.type is str:
        special = {"model.window_pattern": "SL", "text.tokenizer": "my/tokenizer.json"}
        return special.get(key.name, "other")
    limits = next((m for m in key.marks if isinstance(m, Range)), Range())
    steps = (2, 1, -1, 0.25, -0.25, 0.01, 0.3, -0.01)
    candidates = [key.type(key.default + step) for step in steps]
    return next(v for v in candidates if limits.holds(v) and v != key.default)


@pytest.mark.parametrize("key", config.list_keys(), ids=lambda key: key.name)
def test_every_flag_changes_the_configuration_or_is_refused(tmp_path, key):
    """By its own flag a key changes the resolved run, unless its stage decides it and says so; and somebody reads it."""
    path = tmp_path / "a.toml"
    path.write_text("")
    value = other_value(key)
    words = value if isinstance(value, list) else [str(value)]
    try:
        changed = load(path, [f"--{key.name}", *words])
    except UserError as error:
        assert "leave it out" in str(error)
        return
    try:
        assert resolve(changed) != resolve(Config())
    except UserError as error:  # it contradicts another key's default, and that is said
        assert key.name.split(".")[-1] in str(error) or "model." in str(error)
    assert key.name.split(".")[-1] in read_names()


@functools.cache
def read_names():
    """Every attribute that ramp's code reads, outside the schema: a key nobody reads is a flag that does nothing."""
    root = Path(config.__file__).parent
    names = set()
    for file in root.rglob("*.py"):
        if file.name not in ("config.py", "schema.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {"stages", "seed"}


# ---------------------------------------------------------------------------------------------------- round trip
def values(hint, name):
    """Any value that the type and the range of a key allow."""
    marks, base = (), hint
    if typing.get_origin(hint) is Annotated:
        base, *marks = typing.get_args(hint)
    if dataclasses.is_dataclass(base):
        return configs(base)
    limits = next((m for m in marks if isinstance(m, Range)), Range())
    words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    special = {
        "window_pattern": st.text("SL", min_size=1, max_size=4),
        "tokenizer": st.sampled_from(["bpe", "bytes", "run", "a/tokenizer.json"]),
        "stages": st.just(("prepare", "pretrain")),
    }
    if name in special:
        return special[name]
    if schema.is_table(base):
        numbers = st.floats(0, 1e9, exclude_min=True)
        return st.dictionaries(words, numbers, max_size=3).map(lambda d: tuple(d.items()))
    if typing.get_origin(base) is Literal:
        return st.sampled_from(typing.get_args(base))
    if base is bool:
        return st.booleans()
    if base is int:
        return st.integers(
            max(limits.low, 1 if name in ("replica", "data", "model") else -(2**53)),
            min(limits.high, 2**53),
        )
    if base is float:
        return st.floats(
            max(limits.low, limits.above), limits.high, allow_nan=False, allow_infinity=False
        ).filter(limits.holds)
    return words if base is str else st.lists(words, min_size=1, max_size=3).map(tuple)


def configs(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    built = st.builds(cls, **{name: values(hint, name) for name, hint in hints.items()})
    if hasattr(cls, "fix_train"):
        built = built.map(lambda c: dataclasses.replace(c, train=c.fix_train()))
    return built


@settings(max_examples=30, deadline=None)
@given(configs(Config))
@example(Config(sample=config.Sample(prompts=('\U0001f600 \x7f \x00 \\ " \n',))))
def test_what_is_written_is_read_back(tmp_path_factory, c):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(c), encoding="utf-8")
    assert load(path) == c
    assert fingerprint(load(path)) == fingerprint(c)


def test_shipped_configurations_resolve_and_come_back(written):
    files = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert files
    for file in files:
        c = resolve(load(file))
        assert written(to_toml(c)) == c


# ---------------------------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize("depth", [0, 1, 2, 4, 7, 12, 24])
@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
def test_resolve_fills_in_everything_and_only_once(depth, mlp):
    c = resolve(Config(model=config.Model(depth=depth, mlp=mlp)))
    m = c.model
    for key in (
        "width",
        "head_dim",
        "num_heads",
        "num_kv_heads",
        "mlp_dim",
        "vocab_size",
        "short_window",
    ):
        assert getattr(m, key) > 0, key
    for t in (c.pretrain, c.finetune):
        for key in (
            "steps",
            "batch_size",
            "seq_len",
            "muon_lr",
            "adam_lr",
            "embed_lr",
            "head_lr",
            "scalar_lr",
            "eval_every",
            "save_every",
        ):
            assert getattr(t, key) > 0, key
    assert (m.width % 128, m.mlp_dim % 128, m.vocab_size % 128, m.num_heads * m.head_dim) == (
        0,
        0,
        0,
        m.width,
    )
    assert resolve(c) == c


def test_rule_by_hand():
    """Depth 12: the figures of the rule's docstring, worked out on paper."""
    c = resolve(
        Config(model=config.Model(depth=12, context_len=2048), text=config.Text(vocab_size=32768))
    )
    m, t = c.model, c.pretrain
    assert (m.width, m.head_dim, m.num_heads, m.mlp_dim, m.vocab_size, m.short_window) == (
        768,
        64,
        12,
        2048,
        32768,
        512,
    )
    matrices = 12 * (4 * 768 * 768 + 3 * 768 * 2048) + 768 * 32768
    assert t.batch_size * 2048 == 2**19 and t.steps == 12 * matrices // 2**19
    assert (t.muon_lr, t.embed_lr, t.head_lr) == (0.02, 0.3, 0.008)
    assert c.finetune.muon_lr == pytest.approx(
        0.2 * 0.02 * (c.finetune.batch_size * 2048 / 2**19) ** 0.5
    )


def test_what_is_set_by_hand_stays():
    c = resolve(
        Config(
            model=config.Model(width=96, mlp_dim=100, num_heads=3),
            pretrain=config.Train(steps=7, batch_size=5, muon_lr=0.5),
        )
    )
    assert (c.model.width, c.model.mlp_dim, c.model.num_heads) == (96, 100, 3)
    assert (c.pretrain.steps, c.pretrain.batch_size, c.pretrain.muon_lr) == (7, 5, 0.5)


def test_fingerprint():
    a, b = Config(), Config()
    assert fingerprint(a) == fingerprint(b) and len(fingerprint(a)) == 16
    assert fingerprint(a) != fingerprint(dataclasses.replace(a, seed=1))
    assert fingerprint(a.model, a.text) != fingerprint(a.text, a.model)


def test_a_run_of_an_older_ramp_opens(tmp_path, caplog):
    """Keys that are gone since are left out of what ramp wrote; from a user they are refused."""
    text = "[synthesize]\nmin_ess = 0.3\ngenerations = 3\n"
    assert config.parse(text.encode(), "config.toml", is_of_run=True).synthesize.generations == 3
    assert "synthesize.min_ess" in caplog.text
    with pytest.raises(UserError, match="any more"):
        config.parse(text.encode(), "mine.toml")


SIZES = """small = [
  "--model.depth 2",
  "--pretrain.steps 20",
]
[model]
depth = 4
[pretrain]
steps = 50
warmup_steps = 2
"""
SIZE_KEYS = config.list_keys(("model", "pretrain", "size", "small"))


def choose_here(path, monkeypatch, *flags, lacks, begun=None):
    monkeypatch.setattr(sizes, "lacks_bfloat16", lambda: lacks)
    c = sizes.choose_size(path, list(flags), SIZE_KEYS, begun)
    return c, (c.size, c.model.depth, c.pretrain.steps)


def test_a_processor_without_bfloat16_takes_the_small_size(tmp_path, monkeypatch, caplog):
    (tmp_path / "a.toml").write_text(SIZES)
    choose = functools.partial(choose_here, tmp_path / "a.toml", monkeypatch)
    assert choose(lacks=False)[1] == ("whole", 4, 50) and not caplog.text
    assert choose("--size", "small", lacks=False)[1] == ("small", 2, 20) and not caplog.text
    assert choose("--size", "whole", lacks=True)[1] == ("whole", 4, 50) and not caplog.text
    assert choose(lacks=True)[1] == ("small", 2, 20)
    assert "(model.depth 2, pretrain.steps 20); --size whole takes the other" in caplog.text
    assert choose("--pretrain.steps", "30", lacks=True)[1] == ("small", 2, 30)
    assert choose("--small", '["--pretrain.steps 9"]', lacks=True)[1] == ("small", 4, 9)
    assert choose("--small", "[]", lacks=True)[1] == ("auto", 4, 50)


def test_a_run_keeps_its_size_on_another_machine(tmp_path, monkeypatch, caplog):
    (tmp_path / "a.toml").write_text(SIZES)
    choose = functools.partial(choose_here, tmp_path / "a.toml", monkeypatch)
    for lacks in (False, True):
        run = RunDir(tmp_path / f"run{lacks}")
        run.path.mkdir()
        c, size = choose(lacks=lacks)
        run.check_or_create(resolve(c))
        caplog.clear()
        assert choose(lacks=not lacks, begun=run.written_config())[1] == size
        # As the run's own directory says it, also with other values than the small size has.
        assert run.load_config(["--pretrain.steps", "25"]).pretrain.steps == 25
        assert run.load_config().model.depth == size[1] and not caplog.text
        # A copy of its file is what it says, whoever edits it.
        text = run.config.read_text().replace("steps = ", "steps = 1", 1)
        (tmp_path / "copy.toml").write_text(text)
        for there in (False, True):
            copy = choose_here(tmp_path / "copy.toml", monkeypatch, lacks=there)[0]
            assert copy == load(tmp_path / "copy.toml") and copy.size == size[0]
    # Of a run that is older than sizes.
    assert choose(lacks=True, begun=Config())[1] == ("whole", 4, 50)


def test_a_run_has_one_size(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text(SIZES)
    c, _ = choose_here(tmp_path / "a.toml", monkeypatch, lacks=True)
    (tmp_path / "run").mkdir()
    RunDir(tmp_path / "run").check_or_create(resolve(c))
    for words in (
        ["run", str(tmp_path / "run")],
        ["run", "--from", str(tmp_path / "run"), "--run", str(tmp_path / "new")],
        ["run", "--text", str(tmp_path), "--run", str(tmp_path / "new")],
    ):
        _, args, flags = cli.parse([*words, "--size", "whole"])
        with pytest.raises(UserError, match="a run keeps the size"):
            cli.load_target(args, flags)
    # One that begins from it is as large, with a configuration or without.
    monkeypatch.setattr(sizes, "lacks_bfloat16", lambda: False)
    words = ["--from", str(tmp_path / "run"), "--run", str(tmp_path / "new")]
    for first in (["run"], ["run", str(tmp_path / "a.toml")]):
        _, args, flags = cli.parse([*first, *words])
        assert cli.load_target(args, flags)[0].model.depth == 2


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("--model.dept 2", "--model.dept: .*did you mean"),
        ("--model.dtype half", "'model.dtype' is 'half'"),
        ("--pretrain.steps 1.5", "--pretrain.steps takes a whole number"),
        ("--sample.questions What's", "no closing quotation"),
        ("model.depth 2", "unexpected argument"),
    ],
)
def test_a_wrong_flag_of_the_small_size_is_said_on_every_machine(
    tmp_path, monkeypatch, entry, says
):
    (tmp_path / "a.toml").write_text(f'small = ["{entry}"]')
    with pytest.raises(UserError, match=rf"a.toml: 'small'.*{says}") as refused:
        choose_here(tmp_path / "a.toml", monkeypatch, lacks=False)
    assert "command line" not in str(refused.value)


def test_there_is_no_small_size_where_nothing_is_said_of_it(tmp_path, monkeypatch):
    for text in ("", "small = []", 'small = [""]'):
        (tmp_path / "a.toml").write_text(text)
        assert choose_here(tmp_path / "a.toml", monkeypatch, lacks=True)[1][0] == "auto"
        with pytest.raises(UserError, match="has no smaller size; leave out --size"):
            choose_here(tmp_path / "a.toml", monkeypatch, "--size", "small", lacks=True)


def test_sizes_are_read_from_a_pipe_too(tmp_path, monkeypatch):
    pipe = tmp_path / "a.toml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(SIZES,), daemon=True)
    writer.start()
    assert choose_here(pipe, monkeypatch, lacks=True)[1] == ("small", 2, 20)


def test_the_small_size_of_the_main_run_is_smaller():
    whole, small = sizes.load_sizes(Path("cpu"))
    for c in (whole, small):
        assert resolve(c).stages == whole.stages
    assert small.pretrain.steps < whole.pretrain.steps


def test_a_plan_is_of_the_size_that_is_asked_for(monkeypatch):
    """Whatever machine it is made on."""
    monkeypatch.setattr(sizes, "lacks_bfloat16", lambda: True)
    widths = []

    def resolve_only(c, topology, programs):
        widths.append(resolve(c).model.width)
        raise UserError("enough")

    monkeypatch.setattr("ramp.pods.plan.resolve", resolve_only)
    for flags in ([], ["--size", "small"], ["--size", "whole"]):
        assert cli.main(["plan", "cpu", "--topology", "v6e:2x4", *flags]) == 2
    assert widths == [256, 128, 256]
