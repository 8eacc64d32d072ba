"""The verb `ramp ladder`: its flags. No jax until the flags are known to be sound."""

import argparse
from dataclasses import replace
from pathlib import Path

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.ladder.rungs import RUNGS, select_rungs


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=Path("configs/ladder.toml"),
        help="text, width, tokens",
    )
    p.add_argument(
        "--run", type=Path, metavar="DIR", help="where results are kept (default: runs/ladder)"
    )
    p.add_argument("--to", type=int, metavar="N", help="climb no higher than rung N")
    p.add_argument("--only", type=int, metavar="N", help="this rung alone, beside the one below it")
    p.add_argument("--seed", type=int, help="another seed: other rows, other weights")
    p.add_argument(
        "--scale", type=float, default=1.0, help="size of the probes, as a multiple of the default"
    )
    p.add_argument("--probes", action="store_true", help="leave the corpus out: some minutes")


def run(args: argparse.Namespace, c: Config, directory: Path) -> int:
    if args.to is not None and args.only is not None:
        raise UserError("--to and --only exclude each other; leave one of them out")
    if not 0.5 <= args.scale <= 4:
        raise UserError(f"--scale {args.scale:g} must be at least 0.5 and at most 4")
    last = RUNGS[-1] if args.to is None else select_rungs(args.to)
    chosen = (
        [r for r in RUNGS if r.number <= last.number]
        if args.only is None
        else [select_rungs(args.only)]
    )
    if args.probes:
        chosen = [r for r in chosen if r.probe]
    if args.seed is not None:
        c = config.check_config(replace(c, seed=args.seed))
    from ramp.host import keep_memory

    keep_memory()  # before imports that start threads: see `run.run`
    from ramp.ladder import run

    return run.run(c, directory, chosen, args.scale, text=not args.probes)
