"""The command line: `ramp VERB CONFIG|RUN [--run DIR] [--dry-run] [--table.key value ...]`.

A mistake of the user is one sentence and exit code 2; a fault is a traceback. Nothing heavy is imported before a verb
needs it: `ramp --help` answers at once.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from ramp.errors import UserError

EXIT_USER, EXIT_DIVERGED, EXIT_PREEMPTED = 2, 3, 75

VERBS = {
    "run": "do all stages of a configuration, skip what is done, resume what is not",
    "prepare": "text -> tokenizer -> tokens",
    "pretrain": "train on the corpus",
    "eval": "bits per byte beside n-grams and xz",
    "finetune": "train on conversations",
    "sample": "ask the questions of the configuration, or continue a prompt",
    "chat": "talk to the model of a run",
    "report": "write report.html again",
    "bench": "tokens per second of training and of generation",
    "doctor": "what this machine has, and whether ramp can work on it",
}


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"ramp: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("ramp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def dispatch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ramp",
        description="One language model, grown from a bigram table to a chat model, in JAX.",
        epilog="`ramp VERB --help` tells more of each.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text in VERBS.items():
        _arguments(verb, verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".", add_help=False))
    args, flags = parser.parse_known_args(argv)
    if args.help:
        return _help(verbs.choices[args.verb], args.verb)
    if flags and args.verb in ("chat", "report", "doctor"):
        raise UserError(f"unknown flag {flags[0]}; see `ramp {args.verb} --help`")
    return _run_verb(args, flags)


TRAINS = ("run", "prepare", "pretrain", "eval", "finetune", "sample", "bench")


def _arguments(verb: str, p: argparse.ArgumentParser) -> None:
    p.add_argument("-h", "--help", action="store_true", help="show this help")
    if verb == "bench":
        from ramp.bench_args import add_arguments

        add_arguments(p)
    elif verb in TRAINS:
        p.add_argument("config", nargs="?", type=Path, help="a TOML file such as configs/cpu.toml, or a run directory")
        p.add_argument("--run", type=Path, metavar="DIR", help="the run directory (default: runs/<name of the config>)")
        p.add_argument("--dry-run", action="store_true", help="print parameters, memory, FLOPs and time; make nothing")
        p.add_argument("--force", action="store_true", help="do a stage again that is done")
    elif verb in ("chat", "report"):
        p.add_argument("run", nargs="?", type=Path, help="a run directory")
    if verb in ("sample", "chat"):
        p.add_argument("--stage", choices=("pretrain", "finetune"), default="finetune", help="whose weights speak")
        p.add_argument("--seed", type=int, default=0)
    if verb == "sample":
        p.add_argument("--prompt", help="continue this text with the pretrained model instead")
    if verb == "chat":
        p.add_argument("--temperature", type=float)
        p.add_argument("--tokens", type=int, help="longest answer")
        p.add_argument("--ask", action="append", metavar="QUESTION", help="ask this and leave; may be repeated")
