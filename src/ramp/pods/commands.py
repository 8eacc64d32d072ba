"""The verb `ramp plan`: its flags, and what it prints. No jax until a plan is made: `chips.quiet` must come before it."""

import argparse
from pathlib import Path

from ramp import config
from ramp.errors import UserError
from ramp.pods import chips

PROGRAMS = ("train", "reinforce", "prefill", "decode")
USUAL = "train,prefill,decode"


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "config", nargs="?", type=Path, help="a TOML file such as configs/speedrun-v6e8.toml"
    )
    p.add_argument(
        "--topology", metavar="CHIP:AxB", help="such as v6e:2x4, v5p:4x4x8, h100:1x8 (hosts x GPUs)"
    )
    p.add_argument(
        "--slices",
        type=int,
        default=1,
        help="slices of that topology, joined by the data-centre network",
    )
    p.add_argument(
        "--only",
        default=USUAL,
        help=f"programs to plan, of {', '.join(PROGRAMS)} (default {USUAL})",
    )
    p.add_argument(
        "--search",
        action="store_true",
        help="rank meshes, microbatches and remat by arithmetic, compile the best",
    )
    p.add_argument(
        "--price",
        type=float,
        metavar="DOLLARS",
        help="of one chip for an hour (default: the list price)",
    )
    p.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="write plan.json and the compiled programs as HLO text",
    )
    p.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="compare two saved plans")


def run(args: argparse.Namespace, flags: list[str]) -> int:
    chips.quiet()
    if args.diff:
        from ramp.pods import plan

        print(plan.diff(*map(plan.load, args.diff)))
        return 0
    if args.config is None or args.topology is None:
        raise UserError(
            "a plan needs a configuration and --topology, such as `ramp plan configs/cpu.toml --topology v6e:2x4`"
        )
    topology = chips.parse(args.topology, args.slices)
    programs = tuple(filter(None, args.only.split(",")))
    for name in programs:
        if name not in PROGRAMS:
            raise UserError(f"--only {name}: a plan has {', '.join(PROGRAMS)}")
    c = config.load(args.config, flags)
    from ramp.pods import plan, search

    if args.search:
        c = search.best(c, topology)
    c = plan.prepare(c, topology)[0]
    report = plan.plan(c, topology, programs, args.save)
    print(plan.describe(report, c, topology, args.price))
    return 0 if all(p["fits"] for p in report["programs"].values()) else 1
