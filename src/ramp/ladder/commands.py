"""`ramp ladder` and its exercises: their arguments. No jax until they are known to be sound."""

import argparse
from pathlib import Path

from ramp.config import Config
from ramp.errors import UserError
from ramp.files import parse_path, quote_path
from ramp.ladder.rungs import RUNGS, Rung, select_rung

# Of --scale. Larger probes would not fit the context of their model.
SCALES = (0.5, 4)
EXIT_WRONG = 1  # of an answer to an exercise


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of the command, besides the keys of the configuration."""
    p.add_argument(
        "config", nargs="?", type=parse_path, default=Path("ladder"), help="text, width, tokens"
    )
    p.add_argument(
        "--run", type=parse_path, metavar="DIR", help="where results are kept (runs/ladder)"
    )
    p.add_argument("--to", type=int, metavar="N", help="climb no higher than rung N")
    p.add_argument("--only", type=int, metavar="N", help="this rung and the one below it")
    p.add_argument("--scale", type=float, default=1.0, help="multiplies the size of the probes")
    p.add_argument("--probes", action="store_true", help="without the corpus: a few minutes")


def run(args: argparse.Namespace, c: Config, directory: Path) -> int:
    """Check the arguments, then climb; the exit code."""
    low, high = SCALES
    if not low <= args.scale <= high:
        raise UserError(f"--scale {args.scale:g} must be at least {low} and at most {high}")
    rungs = choose_rungs(args)
    from ramp.host import keep_memory

    keep_memory()  # before imports that start threads
    from ramp.ladder.run import climb

    return climb(c, directory, rungs, args.scale, text=not args.probes)


def choose_rungs(args: argparse.Namespace) -> list[Rung]:
    """The rungs that --to, --only and --probes leave."""
    if args.to is not None and args.only is not None:
        raise UserError("--to and --only exclude each other; leave one of them out")
    rungs = RUNGS
    if args.to is not None:
        rungs = RUNGS[: select_rung(args.to).number + 1]
    if args.only is not None:
        rungs = [select_rung(args.only)]
    # Rungs without a probe are judged by the corpus alone.
    chosen = [rung for rung in rungs if rung.probe or not args.probes]
    if not chosen:
        raise UserError(f"rung {rungs[-1].number} has no probe; leave out --probes")
    return chosen


def add_exercise_arguments(p: argparse.ArgumentParser) -> None:
    """Of `ladder exercise`."""
    p.add_argument("number", type=int, metavar="N", help="the rung whose part is to be written")
    p.add_argument("--out", type=parse_path, metavar="FILE", help="default: exercise-N.py")


def run_exercise(args: argparse.Namespace) -> int:
    """Write the file of an exercise."""
    from ramp.ladder import exercises

    path = exercises.write_exercise(args.number, args.out)
    print(f"{path}: write what is missing, then `ramp ladder check {quote_path(path)}`")
    return 0


def add_check_arguments(p: argparse.ArgumentParser) -> None:
    """Of `ladder check`."""
    p.add_argument("file", type=parse_path, metavar="FILE", help="an exercise; it is run")


def run_check(args: argparse.Namespace) -> int:
    """Say what is wrong with an answer to an exercise; the exit code."""
    from ramp.ladder import exercises

    rung, wrong = exercises.check_answer(args.file)
    for hint in wrong:
        print(f"not yet: {hint}")
    if not wrong:
        print(
            f"right: rung {rung.number}, {rung.name}. On inputs that you have not seen it returns "
            "what the solution returns, and changes as that does when they change a little."
        )
    return len(wrong) and EXIT_WRONG
