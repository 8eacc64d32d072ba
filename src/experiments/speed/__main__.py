"""`python -m experiments.speed [CONFIG] [--peer torch ...] [--section.key value ...]`."""

import argparse
import sys
from pathlib import Path

from experiments.speed import bench
from ramp.errors import UserError


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and the rest: keys of the configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.speed",
        description="Tokens per second of training and of generation.",
        epilog="Any key of the configuration is a flag too: --model.depth 8 --pretrain.steps 100.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", nargs="?", type=Path, help="a TOML file; default: depth 4, context 256, batch 16"
    )
    parser.add_argument("--peer", choices=("torch",), help="also the same architecture in PyTorch")
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=Path(sys.executable),
        metavar="PATH",
        help="an interpreter with torch and transformers",
    )
    parser.add_argument("--only", choices=("train", "generate"), help="one of the two measurements")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contender (default 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="both")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores of each (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    return parser.parse_known_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the benchmark; the exit code is 2 for a mistake of the user."""
    args, flags = parse(sys.argv[1:] if words is None else words)
    try:
        return bench.run(args, flags)
    except UserError as error:
        print(f"experiments.speed: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
