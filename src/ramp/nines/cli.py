"""`ramp nines ...`: a table for people, --json for programs, --page for a meeting.

The arguments only, so that --help needs no NumPy. What the commands do is in `commands.py`.
"""

import argparse
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.files import to_json

Argument = tuple[tuple[str, ...], dict[str, Any]]


def _argument(*names: str, **options: Any) -> Argument:
    return names, options


# What all commands on a table take.
FILE = (
    _argument("file", type=Path, help="a table of trials (columns: nines/trials.py) or a log"),
    _argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only these rows",
    ),
)
# What several commands share.
CONFIDENCE = _argument("--confidence", type=float, default=0.95)
RECORD = {"type": Path, "metavar": "JSONL"}
MIX = {"action": "append", "default": [], "metavar": "NAME=FRACTION"}

# Every command: its help, and its arguments.
COMMANDS: dict[str, tuple[str, tuple[Argument, ...]]] = {
    "plan": (
        "how many trials certify a number of nines, and who bears which risk",
        (
            _argument("--nines", type=float, default=3.0, help="level to show (default 3)"),
            CONFIDENCE,
            _argument(
                "--correlation",
                type=float,
                default=0.5,
                help="of two tries at one item (default .5)",
            ),
        ),
    ),
    "certify": (
        "what the trials of the last checkpoint prove, without a model",
        (
            *FILE,
            _argument("--nines", type=float, default=2.0, help="level to show (default 2)"),
            CONFIDENCE,
        ),
    ),
    "fit": ("which items are hard, how able each checkpoint is, how failures correlate", FILE),
    "forecast": (
        "at which compute a number of nines is reached, with what probability",
        (
            *FILE,
            _argument("--nines", type=float, nargs="+", default=[1.0, 2.0, 3.0]),
            _argument("--probability", type=float, default=0.8, help="to reach it (default .8)"),
            _argument(
                "--decades",
                type=float,
                default=1.0,
                help="how far ahead, in powers of ten (default 1)",
            ),
            _argument("--run", help="whose future (default: the run that got furthest)"),
            _argument("--family", **MIX, help="fraction of a family in the mix"),
            _argument("--slice", **MIX, help="fraction of a slice in the mix"),
            _argument(
                "--schedule",
                type=Path,
                metavar="CSV",
                help="date,compute: what will have been spent when",
            ),
            _argument("--record", **RECORD, help="append this forecast, to be scored later"),
        ),
    ),
    "backtest": (
        "how good such forecasts were on this table, compared with simple baselines",
        (
            *FILE,
            _argument("--origin", type=float, help="forecast at this step (compute) of a run ..."),
            _argument(
                "--target",
                type=float,
                help="... its accuracy there, all smaller runs known to the end",
            ),
            _argument(
                "--threshold",
                type=float,
                nargs="+",
                default=[],
                help="score also 'will it reach T?'",
            ),
            _argument("--record", **RECORD, help="score the forecasts recorded there"),
        ),
    ),
    "observe": (
        "what systems will do on a task from what they do on others",
        (
            *FILE,
            _argument("--task", nargs="+", required=True, help="forecast where it was not tried"),
            _argument(
                "--predictors",
                nargs="+",
                metavar="TASK",
                help="tasks to predict it from (default: all others)",
            ),
            _argument(
                "--score-above",
                type=float,
                metavar="FLOP",
                help="predict the systems above this compute from the others, and score it",
            ),
        ),
    ),
    "audit-demo": (
        "how much a choice of items flatters a system",
        (
            *FILE,
            _argument("--run", required=True, help="the system of the demo"),
            _argument(
                "--items", required=True, help="of the demo: ids with commas, or @FILE, one a line"
            ),
            _argument("--hash", help="of the items, published before the demo"),
        ),
    ),
    "compare": (
        "two runs, paired by item, with the difference that could have been found",
        (*FILE, _argument("runs", nargs=2, metavar="RUN")),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their arguments to the parser of `ramp nines`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (text, arguments) in COMMANDS.items():
        p = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        p.add_argument("--json", action="store_true", help="print figures for a program instead")
        p.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page as well")
        for names, options in arguments:
            p.add_argument(*names, **options)


def run(args: argparse.Namespace) -> int:
    """Run a command: print its answer, and write the page if one is asked for."""
    from ramp.nines import commands, report

    for path in (args.page, getattr(args, "record", None)):
        # Known before the work that it would waste.
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path} cannot be written; name a file in a directory that exists")
    # The functions have the names of the commands.
    command = getattr(commands, args.what.replace("-", "_"))
    answer = command(args)
    if args.page:
        name = f": {args.file.name}" if "file" in args else ""
        report.write_parts(args.page, f"ramp nines {args.what}{name}", answer.parts)
    if args.json:
        print(to_json(_to_plain(answer.figures), indent=1))
    else:
        report.print_parts(answer.parts)
    return 0


def _to_plain(value: Any) -> Any:
    """Dataclasses and arrays as what JSON has."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    # An array, or a number of NumPy's.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
