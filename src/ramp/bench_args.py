"""The flags of `ramp bench`, apart from `bench` so that `ramp --help` stays quick."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, help="a TOML file; default: depth 4, context 256, batch 16")
    parser.add_argument(
        "--peer", choices=("torch",), help="measure the same architecture in PyTorch, in turn with ramp"
    )
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="an interpreter with torch and transformers")
    parser.add_argument("--only", choices=("train", "generate"), help="one of the two measurements")
    parser.add_argument("--rounds", type=int, default=8, help="turns of every contender (default 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="both")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores of every contender (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
