"""`ramp plan`: its arguments. No jax until a plan is made: `chips.set_environment` comes first."""

import argparse
from collections.abc import Callable, Sequence

from ramp import config, rundir, sizes
from ramp.errors import UserError
from ramp.export import bring
from ramp.files import parse_path
from ramp.pods import chips

Check = Callable[[config.Config, Sequence[str]], None]
PROGRAMS = ("train", "finetune", "reinforce", "synthesize", "prefill", "decode")
# Later stages, with their sampling, are planned only when asked for.
DEFAULT = "train,prefill,decode"


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of the command, besides the keys of the configuration."""
    p.add_argument("config", nargs="?", type=parse_path, help="a TOML file, or a name such as cpu")
    p.add_argument("--topology", metavar="CHIP:AxB", help="v6e:2x4 (or v6e-8), v5p:4x4x8, h100:1x8")
    p.add_argument("--slices", type=int, default=1, help="slices joined by the data-center network")
    p.add_argument(
        "--only", default=DEFAULT, help=f"of {', '.join(PROGRAMS)}, by commas (default {DEFAULT})"
    )
    p.add_argument(
        "--search",
        action="store_true",
        help="rank meshes, microbatches and remat by arithmetic, compile the best",
    )
    p.add_argument("--price", type=float, metavar="DOLLARS", help="of one chip for an hour")
    p.add_argument(
        "--save", type=parse_path, metavar="DIR", help="write plan.json and the programs' HLO"
    )
    p.add_argument(
        "--diff", nargs=2, type=parse_path, metavar=("A", "B"), help="compare two saved plans"
    )


def run(args: argparse.Namespace, flags: list[str], check_settings: Check) -> int:
    """Check the arguments, then plan or compare; 1 if a program does not fit.

    check_settings: raises `UserError` where the settings of stages cannot work.
    """
    chips.set_environment()
    if args.diff:
        from ramp.pods import plan

        print(plan.compare(*map(plan.load, args.diff)))
        return 0
    if args.config is None or args.topology is None:
        example = "`ramp plan cpu --topology v6e:2x4`"
        raise UserError(f"a plan needs a configuration and --topology, such as {example}")
    # Names are checked before jax is imported and anything is compiled.
    topology = chips.parse(args.topology, args.slices)
    programs = [name for name in args.only.split(",") if name]
    for name in programs:
        if name not in PROGRAMS:
            raise UserError(f"--only {name}: a plan has {', '.join(PROGRAMS)}")
    named = config.list_named(args.config, flags)
    # This machine says nothing of that one: whole, unless small is asked for.
    whole, small = sizes.load_sizes(args.config, flags)
    c = bring.fit_to_base(small if whole.size == "small" else whole, named)
    c = rundir.fit_vocabulary(c)
    from ramp.pods import plan, search

    # What the run would refuse is not planned. Its texts may not be on this machine.
    check_settings(c, [name for name in programs if name in ("reinforce", "synthesize")])

    # The best choice is then planned like any other configuration.
    if args.search:
        c = search.find_best(c, topology)
    c, mesh = plan.resolve(c, topology, programs)
    report = plan.make_plan(c, mesh, topology, programs)
    if args.save:
        plan.save(report, args.save)
    print(plan.describe(report, c, topology, args.price))
    return 0 if all(program.fits for program in report.programs.values()) else 1
