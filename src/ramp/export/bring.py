"""Models of other tools into runs: `ramp import`, and the key `base` of a configuration."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ramp import config
from ramp.config import Config, Model, Text
from ramp.errors import UserError
from ramp.files import parse_path
from ramp.rundir import Request, RunDir


def require_reader(path: Path, command: str) -> None:
    """Raise `UserError` where the package that reads or writes such a file is missing."""
    package = "gguf" if path.suffix == ".gguf" else "safetensors"
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{command} needs the package {package}; install it with `uv sync --extra export`"
        )


def find_model(name: str) -> Path:
    """`pip:NAME[==VERSION]` is the GGUF file in that installed package, read and never imported."""
    if not name.startswith("pip:"):
        path = parse_path(name)
        if not path.exists():
            raise UserError(f"{name}: no such file or folder; name a model's folder or a GGUF file")
        return path
    from ramp.text.sources import list_files

    return parse_path(list_files(f"{name}/*.gguf").files[0].path)


def import_model(
    path: Path, directory: Path, context_len: int, setup: Callable[[Config], Config]
) -> Config:
    """Make a run whose pretraining is done, and which every later stage can start from.

    Prints what does not come along. Returns the configuration of the run. Raises `UserError` for a
    file that ramp's model cannot compute, and for a directory that has a model.

    Args:
      setup: makes the mesh that the weights are put on, and resolves the configuration for it.
    """
    import jax

    from ramp.export import load
    from ramp.model import transformer
    from ramp.reporting.report import update_report
    from ramp.train.checkpoint import Checkpoints
    from ramp.train.processes import on_writer, to_mesh
    from ramp.train.restore import make_meta
    from ramp.train.state import abstract_state

    foreign, tokenizer = load.open_foreign(path)
    c = load.make_config(foreign, tokenizer, context_len)
    for loss in load.describe_losses(foreign, tokenizer):
        on_writer(lambda loss=loss: print(f"left out: {loss}"))
    run = RunDir(directory)
    # An import that was killed has left step 0 at most, and may be done again.
    names = {path.name for path in run.checkpoints("pretrain").glob("*")}
    if run.is_done("pretrain") or any(name.isdigit() and name != "0" for name in names):
        raise UserError(f"{directory} has a model already; name another directory with --run")
    ready = setup(c)
    m = ready.model
    mesh = jax.sharding.get_mesh()
    # Shapes and shardings only; no weights are made.
    like = abstract_state(lambda: transformer.init_params(m, jax.random.PRNGKey(0)), mesh)
    weights = load.load_foreign_params(foreign, like, tokenizer)
    lm = jax.tree.map(lambda w, x: to_mesh(w, x.sharding), weights, like)
    meta = make_meta("pretrain", ready, tokenizer) | {"imported": json.dumps(foreign.card)}
    # Nothing is written before the whole file has been read and checked.
    with ExitStack() as stack:
        on_writer(lambda: stack.enter_context(run.lock()))
        on_writer(lambda: (run.check_or_create(c), tokenizer.save(run.tokenizer)))
        checkpoints = Checkpoints(run.checkpoints("pretrain"))
        checkpoints.save(0, {"params": {"lm": lm}}, meta)
        checkpoints.close()
        # Later stages ask the report whether it is done.
        done = {"imported": foreign.path.name, "done": True}
        on_writer(lambda: update_report(run.path, "pretrain", done))
    name = foreign.card.get("name") or path.name
    on_writer(
        lambda: print(
            f"{directory}: {name}, {m.depth} layers, width {m.width}, "
            f"{tokenizer.vocab_size} tokens, context {m.context_len}"
        )
    )
    return ready


def fit_to_base(c: Config, named: Collection[str], directory: Path | None = None) -> Config:
    """The configuration with the shape and the tokenizer of the model that `base` names, if any.

    Of `model` it keeps how the result is computed, and `context_len` where that is shorter. A run
    in `directory` that has begun knows both. Raises `UserError` where `c` asks for another shape.
    named: see `config.list_named`.
    """
    if not c.base:
        return c
    shaped = RunDir(directory).written_config() if directory else None
    if shaped is None or shaped.base != c.base:
        path = find_model(c.base)
        require_reader(path, "`base`")
        from ramp.export import load

        shaped = load.make_config(*load.open_foreign(path), c.model.context_len)
    shape = config.identity(shaped.model) | {"dtype": c.model.dtype}
    asked, default = config.identity(c.model), config.identity(Model())
    for key, value in shape.items():
        # Who names the default of a key wants it as much as any other value.
        is_asked = f"model.{key}" in named or asked[key] != default[key]
        if is_asked and asked[key] != value:
            raise UserError(
                f"model.{key} is {asked[key]!r}, and {c.base}, which `base` names, has {value!r}; "
                f"leave it out, or give --model.{key} {json.dumps(value)}"
            )
    is_asked = "text.tokenizer" in named or c.text.tokenizer != Text().tokenizer
    if is_asked and c.text.tokenizer != "run":
        raise UserError(
            f"text.tokenizer is {c.text.tokenizer!r}, and `base` brings its own; leave it out"
        )
    size = shaped.text.vocab_size
    if "text.vocab_size" in named and c.text.vocab_size != size:
        raise UserError(
            f"text.vocab_size is {c.text.vocab_size}, and the tokenizer of `base` has {size}; "
            "leave it out"
        )
    text = replace(c.text, tokenizer="run", vocab_size=size)
    return replace(c, model=replace(c.model, **shape), text=text)


def begin_from_base(c: Config, directory: Path) -> Request | None:
    """The checkpoint of `base` that a new run begins from, imported into the run; None: it began.

    Raises `UserError` where the run began from another model.
    """
    run = RunDir(directory)
    written = run.written_config()
    if written:
        if written.base != c.base:
            raise UserError(
                f"{directory} began from {written.base or 'nothing'}, and base is "
                f"{c.base or 'empty'}; name a new directory with --run"
            )
        return None
    from ramp.host import setup_devices
    from ramp.train.processes import on_writer

    def make_room():
        # Refused here where the directory holds other things. What a killed start has imported may
        # be of another model.
        with run.lock():
            shutil.rmtree(run.base, ignore_errors=True)

    setup = partial(setup_devices, stages=())
    setup(c)  # joins the processes of the job
    on_writer(make_room)
    import_model(find_model(c.base), run.base, c.model.context_len, setup)
    return Request(run.base, None, "pretrain", weights_only=True)
