"""`python -m experiments.collapse CONFIG`: what generations of own samples do to a model.

Every part keeps its results in the run directory, so it can be stopped and started again at will.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ramp import config, host
from ramp.errors import UserError

PARTS = ("exact", "measure", "trigram", "jokes", "gate", "law", "world", "guard")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; the exit code is 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collapse",
        description="The benchmark of training on own samples; it resumes an earlier start.",
        epilog="Any key of the configuration is a flag too: --synthesize.train.steps 60.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="configs/collapse-bench.toml")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="where results are kept (default runs/CONFIG)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="has math/gsm8k_train.jsonl, for the trigrams"
    )
    parser.add_argument("--part", choices=PARTS, help="only this part")
    args, flags = parser.parse_known_args(argv)
    try:
        c = config.resolve(config.load(args.config, flags))
        c = host.setup_devices(c)  # before imports that start threads
        from experiments.collapse import bench

        directory = args.run or Path("runs") / args.config.stem
        print(bench.run(directory, c, args.data, args.part))
    except UserError as error:
        print(f"experiments.collapse: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
