"""`ramp serve`, `ramp export`, `ramp import`: their arguments, and what is opened before the work begins."""

import argparse
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ramp import config, rundir
from ramp.config import Config
from ramp.errors import UserError
from ramp.rundir import RunDir

STAGES = ("pretrain", "finetune", "reinforce")
KEY = "RAMP_API_KEY"


def add_arguments(verb: str, p: argparse.ArgumentParser) -> None:
    if verb == "import":
        p.add_argument(
            "file",
            type=Path,
            help="a .gguf file, or a folder: config.json, tokenizer.json, *.safetensors",
        )
        p.add_argument(
            "--run", type=Path, required=True, metavar="DIR", help="the run directory to make"
        )
        p.add_argument(
            "--context",
            type=int,
            default=2048,
            help="tokens it shall attend to (default: at most 2048)",
        )
        return
    p.add_argument("run", type=Path, help="a run directory")
    p.add_argument(
        "--stage",
        choices=STAGES,
        help="whose weights (default: finetune, or pretrain where that is all)",
    )
    if verb == "export":
        p.add_argument(
            "--to", choices=("hf",), default="hf", help="hf: a folder for transformers and its like"
        )
        p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    if verb == "serve":
        p.add_argument(
            "--host",
            default="127.0.0.1",
            help="an address other than this machine's own needs a key",
        )
        p.add_argument("--port", type=int, default=8000, help="0: any that is free (default 8000)")
        p.add_argument(
            "--key",
            metavar="FILE",
            type=Path,
            help=f"a file with the key clients send; or set {KEY}",
        )
        p.add_argument(
            "--slots", type=int, default=16, help="answers written at the same time (default 16)"
        )
        p.add_argument(
            "--queue", type=int, default=64, help="requests that may wait for a slot (default 64)"
        )


def run(args: argparse.Namespace) -> int:
    module, extra = ("uvicorn", "serve") if args.command == "serve" else ("safetensors", "export")
    needed = args.command != "import" or args.file.suffix != ".gguf"
    if needed and importlib.util.find_spec(module) is None:
        raise UserError(
            f"`ramp {args.command}` needs the package {module}; install it with `uv sync --extra {extra}`"
        )
    return {"serve": _serve, "export": _export, "import": _import}[args.command](args)


def _opened(
    path: Path, stage: str | None, alone: bool = False
) -> tuple[RunDir, Config, Any, dict, str]:
    """(run, configuration, tokenizer, parameters {"lm"}, stage) on the run's mesh, or `alone` in this host's memory."""
    found, c = rundir.open_run(path)
    stage = stage or ("finetune" if found.checkpoints("finetune").exists() else "pretrain")
    from ramp.host import setup_devices
    from ramp.text.tokenizer import Tokenizer
    from ramp.train.restore import load_params

    c = _in_memory(c) if alone else setup_devices(c)
    tokenizer = Tokenizer.load(found.tokenizer)
    return found, c, tokenizer, load_params(found, stage, c, tokenizer), stage


def _in_memory(c: Config) -> Config:
    """On the host's processor, whatever else there is: copying weights needs room and no speed."""
    import jax

    from ramp.host import setup_devices

    jax.config.update("jax_platforms", "cpu")
    return setup_devices(replace(c, mesh=config.Mesh(data=1)), devices=1)


def _export(args: argparse.Namespace) -> int:
    found, c, tokenizer, params, stage = _opened(args.run, args.stage, alone=True)
    from ramp.export.export import export

    export(c, params["lm"], tokenizer, found.report(), stage, args.out)
    print(f"{args.out}: written, read back and compared")
    return 0


def _import(args: argparse.Namespace) -> int:
    """A run whose pretraining is done: every stage goes on from it."""
    if args.context < 1:
        raise UserError(f"--context is {args.context}; it must be at least 1")
    import jax

    from ramp.export import load
    from ramp.model import transformer
    from ramp.reporting.report import update_report
    from ramp.train.checkpoint import Checkpoints
    from ramp.train.restore import model_identity
    from ramp.train.state import abstract_state

    f, tokenizer = load.open_foreign(args.file)
    c, found = load.make_config(f, tokenizer, args.context), RunDir(args.run)
    if found.has_begun("pretrain"):
        raise UserError(f"{args.run} has a model already; name another directory with --run")
    m = _in_memory(c).model
    like = abstract_state(
        lambda: transformer.init_params(m, jax.random.PRNGKey(0)), jax.sharding.get_mesh()
    )
    lm = jax.tree.map(
        lambda w, x: jax.device_put(w, x.sharding),
        load.load_foreign_params(f, like, tokenizer),
        like,
    )
    meta = {
        "stage": "pretrain",
        "model": config.fingerprint(model_identity(m)),
        "tokenizer": tokenizer.fingerprint,
    }
    with found.lock():
        found.check_or_create(c)
        tokenizer.save(found.tokenizer)
        checkpoints = Checkpoints(found.checkpoints("pretrain"))
        checkpoints.save(
            0, {"params": {"lm": lm}}, meta | {"seed": c.seed, "imported": json.dumps(f.card)}
        )
        checkpoints.close()
        for stage in ("prepare", "pretrain"):
            update_report(found.path, stage, {"imported": f.where.name, "done": True})
    shape = (
        f"{m.depth} layers, width {m.width}, {tokenizer.vocab_size} tokens, context {m.context_len}"
    )
    print(
        f"{args.run}: {f.card.get('name') or args.file.name}, {shape}\nNext: ramp serve {args.run}"
    )
    return 0


def _serve(args: argparse.Namespace) -> int:
    key = os.environ.get(KEY, "")
    if args.key:
        try:
            key = args.key.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--key {args.key} cannot be read: {error}") from None
        if not key:
            raise UserError(f"--key {args.key} is empty")
    for name, low, high in (("port", 0, 65535), ("slots", 1, 1024), ("queue", 0, 100_000)):
        if not low <= getattr(args, name) <= high:
            raise UserError(
                f"--{name} is {getattr(args, name)}; it must be between {low} and {high}"
            )
    if args.host not in ("127.0.0.1", "localhost", "::1") and not key:
        raise UserError(
            f"--host {args.host} can be reached by others: give a key with --key FILE or {KEY}"
        )
    if os.environ.get("RAMP_DISTRIBUTED"):
        raise UserError(
            "`ramp serve` works in one process, on all of its devices; unset RAMP_DISTRIBUTED"
        )
    from ramp.serve import api
    from ramp.serve.engine import Engine
    from ramp.serve.protocol import Server

    sock = api.listen(args.host, args.port)
    _, c, tokenizer, params, stage = _opened(args.run, args.stage)
    engine = Engine(c.model, params.pop("lm"), tokenizer, args.slots, args.queue)
    api.serve(engine, Server(args.run.resolve().name, c, tokenizer, stage), sock, key)
    return 0
