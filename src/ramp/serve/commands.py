"""The commands `ramp serve`, `ramp export` and `ramp import`."""

import argparse
import importlib.util
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramp import rundir
from ramp.config import Config
from ramp.errors import UserError
from ramp.export.bring import find_model
from ramp.files import parse_path, quote_path
from ramp.rundir import RunDir
from ramp.stages import parse_speaker

# Nobody else can reach these.
OWN_ADDRESSES = ("127.0.0.1", "localhost", "::1")
# What llama.cpp may round matrices to, by its names: from 32 bits a weight to about 4.5.
WEIGHTS = ("f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
MAX_LLAMA_SLOTS = 255  # it knows 256 sequences, of which one is spare
LIMITS = {
    "port": (0, 65535),
    "slots": (1, 1024),
    "queue": (0, 100_000),
    "per_address": (0, 100_000),
}


def add_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    """The arguments of one of the three commands."""
    add = parser.add_argument
    if name == "import":
        add(
            "file",
            type=parse_path,
            help="a .gguf file, or a folder: config.json, tokenizer.json, *.safetensors",
        )
        add(
            "--run", type=parse_path, required=True, metavar="DIR", help="the run directory to make"
        )
        add("--context", type=int, default=2048, help="longest context to keep (default 2048)")
        return
    add("run", type=parse_path, help="a run directory")
    add(
        "--stage",
        type=parse_speaker,
        metavar="STAGE",
        help="whose weights: pretrain, finetune, dpo, reinforce, synthesize, or one generation, "
        "synthesize-G (default: finetune, or pretrain where that is all)",
    )
    if name == "export":
        add(
            "--to",
            choices=("hf", "gguf"),
            default="hf",
            help="hf: a folder for transformers and others (default); gguf: a file for llama.cpp",
        )
        add("--out", type=parse_path, required=True, metavar="PATH", help="what to make")
        return
    add("--host", default="127.0.0.1", help="an address that others can reach needs a key")
    add("--port", type=int, default=8000, help="0: any that is free (default 8000)")
    add(
        "--key",
        metavar="FILE",
        type=parse_path,
        help="a file with the keys that clients may send, one a line; or set RAMP_API_KEY",
    )
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients may use for this server, besides localhost (repeatable)",
    )
    add(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may use the API, as https://example.org (repeatable)",
    )
    add("--log", metavar="FILE", type=parse_path, help="append a line for each request")
    add(
        "--per-address",
        type=int,
        default=0,
        help="connections that one address may hold open (default 0: any number)",
    )
    add(
        "--engine",
        choices=("jax", "llama.cpp"),
        default="jax",
        help="what computes: jax on the run's mesh, or llama.cpp, faster on a processor, "
        "from the extra llama",
    )
    add(
        "--weights",
        choices=WEIGHTS,
        metavar="KIND",
        default="",
        help=f"with --engine llama.cpp: round the weights to {', '.join(WEIGHTS)} (default q8_0)",
    )
    add("--slots", type=int, default=16, help="answers generated at the same time (default 16)")
    add("--queue", type=int, default=64, help="requests that may wait for a slot (default 64)")


def run(args: argparse.Namespace) -> int:
    """Run the command that `args.command` names; UserError for a package that is missing."""
    if args.command == "import":
        args.file = find_model(str(args.file))
    # Packages that are not installed are found before anything slow begins.
    package, extra = "safetensors", "export"
    if args.command == "serve":
        package, extra = "uvicorn", "serve"
        if args.engine == "llama.cpp" and importlib.util.find_spec(package):
            package, extra = "llama_cpp", "llama"
    elif "gguf" in (getattr(args, "to", ""), getattr(args, "file", args.run).suffix[1:]):
        package = "gguf"
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"`ramp {args.command}` needs the package {package}; "
            f"install it with `uv sync --extra {extra}`"
        )
    commands = {"serve": _serve, "export": _export, "import": _import}
    return commands[args.command](args)


@dataclass(frozen=True)
class LoadedRun:
    """The model of a run, on the current mesh."""

    run: RunDir
    c: Config
    tokenizer: Any
    lm: dict
    stage: str


def _find_stage(run, stage):
    """The stage whose weights are meant, of those that a run has."""
    if stage is None:
        # Imported models have no fine-tuning at first.
        stage = "finetune" if run.checkpoints("finetune").exists() else "pretrain"
    return run.find_weights(stage)


def _load(path, stage, on_host=False):
    """The model of a run's stage on the run's own mesh, or `on_host` in this machine's memory."""
    run, c = rundir.open_run(path)
    stage = _find_stage(run, stage)
    # jax is imported this late so that `ramp --help` and the mistakes above are quick.
    from ramp.host import setup_devices
    from ramp.text.tokenizer import Tokenizer
    from ramp.train.restore import load_params

    c = _use_host(c) if on_host else setup_devices(c, stages=())
    tokenizer = Tokenizer.load(run.tokenizer)
    params = load_params(run, stage, c, tokenizer)
    return LoadedRun(run, c, tokenizer, params["lm"], stage)


def _use_host(c):
    """Run on the processor, whatever else there is: copying weights needs memory and no speed."""
    import jax

    from ramp.host import setup_devices

    # Before jax looks for devices, which can take seconds or a lock.
    jax.config.update("jax_platforms", "cpu")
    return setup_devices(c, one_each=True, stages=())


def _export(args):
    loaded = _load(args.run, args.stage, on_host=True)
    # It needs packages of an extra, which `run` has found.
    from ramp.export.export import describe_differences, export
    from ramp.train.processes import on_writer

    report = loaded.run.report()
    model = (loaded.c, loaded.lm, loaded.tokenizer)
    on_writer(lambda: export(*model, report, loaded.stage, args.out, args.to))
    print(f"{args.out}: written, read back and compared")
    if args.to == "gguf":
        for difference in describe_differences(loaded.tokenizer):
            print(f"llama.cpp cuts into other tokens: {difference}")
    return 0


def _import(args):
    """Make a run whose pretraining is done; every later stage can start from it."""
    if args.context < 1:
        raise UserError(f"--context is {args.context}; it must be at least 1")
    # It needs packages of an extra, which `run` has found.
    from ramp.export.bring import import_model

    import_model(args.file, args.run, args.context, _use_host)
    run = quote_path(args.run)
    print(
        f"Next: `ramp serve {run}`, `ramp finetune {run}`, or train it on your own text: "
        f"`ramp run --from {run} --run NEW --text PATH`"
    )
    return 0


def _serve(args):
    from ramp.serve.access import LOCAL_HOSTS, Access, read_keys

    keys = read_keys(args.key)
    # By hand: argparse would exit with a usage text in place of one sentence.
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name)
        if not low <= value <= high:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {value}; it must be between {low} and {high}")
    is_own = args.host in OWN_ADDRESSES
    if not is_own and not keys:
        raise UserError(
            f"--host {args.host} can be reached by others: "
            "give a key with --key FILE or RAMP_API_KEY"
        )
    for origin in args.cors:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise UserError(
                f"--cors {origin} is no site; write it as https://example.org, without a path"
            )
    # Behind an address that others reach, the names they use for it are not known here.
    hosts = LOCAL_HOSTS if is_own else ()
    if args.allowed_host:
        hosts = (*LOCAL_HOSTS, *map(str.lower, args.allowed_host))
    access = Access(keys, hosts, tuple(args.cors))
    # Other processes would have to run the same programs in the same order.
    if os.environ.get("RAMP_DISTRIBUTED"):
        raise UserError(
            "`ramp serve` works in one process, on all of its devices; unset RAMP_DISTRIBUTED"
        )
    if args.weights and args.engine != "llama.cpp":
        raise UserError("--weights is for --engine llama.cpp; jax has the run's own model.dtype")
    if args.engine == "llama.cpp" and args.slots > MAX_LLAMA_SLOTS:
        raise UserError(
            f"--slots is {args.slots}; --engine llama.cpp has at most {MAX_LLAMA_SLOTS}"
        )
    from ramp.serve import api
    from ramp.serve.connections import Connections
    from ramp.serve.engine import Engine
    from ramp.serve.record import RequestLog

    log = RequestLog(args.log)
    # A port that is taken is found before the model is loaded and compiled.
    sock = api.listen(args.host, args.port)
    make_slots = _make_llama_slots if args.engine == "llama.cpp" else _make_jax_slots
    slots, model = make_slots(args)
    engine = Engine(slots, model.tokenizer, args.queue)
    api.serve(engine, model, sock, access, log, Connections(args.per_address))
    return 0


def _make_jax_slots(args):
    """Slots on the run's own mesh, and what they serve."""
    from ramp.serve.device import JaxSlots
    from ramp.serve.protocol import ServedModel

    loaded = _load(args.run, args.stage)
    # They make a copy of the weights.
    slots = JaxSlots(loaded.c.model, loaded.lm, loaded.tokenizer.vocab_size, args.slots)
    name = args.run.resolve().name
    return slots, ServedModel(name, loaded.c, loaded.tokenizer, loaded.stage)


def _make_llama_slots(args):
    """Slots of llama.cpp, and what they serve."""
    from ramp.serve.llama import LlamaSlots, can_repack, write_weights
    from ramp.serve.protocol import ServedModel
    from ramp.text.tokenizer import Tokenizer

    run, c = rundir.open_run(args.run)
    stage = _find_stage(run, args.stage)
    tokenizer = Tokenizer.load(run.tokenizer)
    kind = args.weights or "q8_0"
    print(f"exporting the weights for llama.cpp as {kind}")
    # An open file outlives its name.
    with tempfile.TemporaryDirectory() as folder:
        path = write_weights(args.run, stage, kind, Path(folder))
        repack = can_repack(path)
        shape = tokenizer.vocab_size, c.model.context_len
        slots = LlamaSlots(path, *shape, args.slots, repack)
    return slots, ServedModel(args.run.resolve().name, c, tokenizer, stage)
