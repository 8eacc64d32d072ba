"""`ramp nines ...`: a table for people, --json for programs, --page for a meeting.

The arguments only, so that --help needs no NumPy. What the commands do is in `commands.py`.
"""

import argparse
import json
import math
import sys
from contextlib import suppress

from ramp.errors import UserError
from ramp.files import parse_path, to_json

EXIT_MISTAKE = 64  # of `ramp nines gate`, whose 2 means undecided; as in sysexits.h


def _argument(name, **options):
    return name, options


def parse_real(text: str) -> float:
    """A number. NaN is refused: no bar that it is compared with would stop it."""
    with suppress(ValueError):
        number = float(text)
        if not math.isnan(number):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number")


def _number(name, default, text=None, **options):
    return _argument(name, type=parse_real, default=default, help=text, **options)


def parse_nines(text: str) -> float:
    """A number of nines. What looks like a success rate is refused: .99 is two nines, not .99."""
    nines = parse_real(text)
    if not 0 < nines <= 9:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 9")
    if 0.9 <= nines < 1:
        count = f"{-math.log10(1 - nines):.4g}"
        raise argparse.ArgumentTypeError(f"takes a number of nines; for {text} write {count}")
    return nines


def _nines(default, text=None, **options):
    return _argument("--nines", type=parse_nines, default=default, help=text, **options)


def _mix(name, text):
    return _argument(name, action="append", default=[], metavar="NAME=FRACTION", help=text)


def _record(text):
    return _argument("--record", type=parse_path, metavar="JSONL", help=text)


def _text(name, metavar, text, **options):
    return _argument(name, metavar=metavar, help=text, **options)


def _list(name, metavar, text):
    return _text(name, metavar, text, action="append", default=[])


# What all commands on a table take.
FILE = (
    _argument(
        "file",
        type=parse_path,
        nargs="+",
        help="tables of trials (columns: nines/trials.py), logs, or folders of logs",
    ),
    _list("--where", "COLUMN=VALUE", "keep only these rows; several of one column add up"),
    _list("--map", "OLD=NEW", "take the column OLD of the file as NEW, such as passed=success"),
    _list("--ignore", "COLUMN", "leave out these columns"),
    _text("--scorer", "NAME", "of several scorers of a task, the one to take"),
    _text("--metric", "NAME", "of several metrics of a task, the one to take"),
    _text("--filter", "NAME", "of several filters of a task, the one to take"),
    _argument(
        "--errors",
        choices=("report", "drop", "fail"),
        default="report",
        help="trials that infrastructure broke: leave them out and say where (default), leave them "
        "out, or count them as failures",
    ),
    _argument("--percent", action="store_true", help="success and stderr are in percent"),
    _text("--step-from", "REGEX", r"read the step from a cell, run or path, as in 'ckpt-(\d+)'"),
    _text("--compute-from", "REGEX", "the same for the compute"),
    _text("--date-from", "REGEX", "the same for the date"),
    _text("--releases", "CSV", "run and date, compute, step or size of each", type=parse_path),
)
CONFIDENCE = _number("--confidence", 0.95)
UNIT = _argument(
    "--unit",
    choices=("auto", "item", "family"),
    default="auto",
    help="what is independent of each other (default: families where two are named, else items)",
)

# Every command: its help, and its arguments.
COMMANDS = {
    "plan": (
        "how many trials certify a number of nines, and who bears which risk",
        (
            _nines(3.0, "level to show (default 3)"),
            CONFIDENCE,
        ),
    ),
    "gate": (
        "pass (exit code 0), fail (1) or undecided (2), for a pipeline; 64: a mistake in the call",
        (
            *FILE,
            _nines(2.0, "level to show (default 2)"),
            CONFIDENCE,
            UNIT,
            _argument("--baseline", type=parse_path, metavar="OLD", help="fail if worse than it"),
            _argument(
                "--baseline-run", metavar="RUN[@STEP]", help="of the baseline, where it has several"
            ),
            _argument(
                "--junit",
                type=parse_path,
                metavar="XML",
                help="write a JUnit report, in which undecided is a failure too",
            ),
        ),
    ),
    "certify": (
        "what the trials of the last checkpoint prove, without a model",
        (*FILE, _nines(2.0, "level to show (default 2)"), CONFIDENCE, UNIT),
    ),
    "fit": ("which items are hard, how able each checkpoint is, how failures correlate", FILE),
    "forecast": (
        "at which compute a number of nines is reached, with what probability",
        (
            *FILE,
            _nines([1.0, 2.0, 3.0], nargs="+"),
            _number("--probability", 0.8, "to reach it (default .8)"),
            _number("--decades", 1.0, "how far ahead, in powers of ten (default 1)"),
            _argument("--run", help="whose future (default: the run that got furthest)"),
            _mix("--family", "fraction of a family in the mix"),
            _mix("--slice", "fraction of a slice in the mix"),
            _argument(
                "--schedule",
                type=parse_path,
                metavar="CSV",
                help="date,compute (or date,step, as the trials have): how far it will be when",
            ),
            _record("append this forecast, to be scored later"),
        ),
    ),
    "backtest": (
        "how good such forecasts were on this table, compared with simple baselines",
        (
            *FILE,
            _number("--origin", None, "forecast at this step (compute) of a run ..."),
            _number("--target", None, "... its accuracy there, all smaller runs known to the end"),
            _number("--threshold", [], "score also 'will it reach T?'", nargs="+"),
            _record("score the forecasts recorded there"),
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
            _number(
                "--score-above",
                None,
                "predict the systems above this compute from the others, and score it",
                metavar="FLOP",
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
    "monitor": (
        "an alarm (exit code 1) where a live log gets worse, at a stated rate of false alarms",
        (
            *FILE,
            _argument("--by", choices=("date", "step", "compute"), default="date"),
            _argument("--since", help="leave out what is earlier"),
            _number("--rate", 0.99, "pass rate that has to hold (default .99)"),
            _number("--one-in", 1e5, "trials a false alarm, at least (default 100,000)"),
            _number("--seconds", None, "budget of a trial"),
            _number("--cost", None, "budget of a trial, in the unit of the log"),
            _number("--within", 0.99, "share of trials within each budget (default .99)"),
        ),
    ),
    "compare": (
        "two runs, paired by item, with the difference that could have been found",
        (
            *FILE,
            _argument("runs", nargs=2, metavar="RUN", help="or RUN@STEP, one of its checkpoints"),
            _argument(
                "--baseline", type=parse_path, metavar="OLD", help="the first run is of this log"
            ),
            CONFIDENCE,
            UNIT,
        ),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their arguments to the parser of `ramp nines`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (text, arguments) in COMMANDS.items():
        p = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        p.add_argument("--json", action="store_true", help="print figures for a program instead")
        p.add_argument("--page", type=parse_path, metavar="FILE", help="write an HTML page as well")
        for argument, options in arguments:
            p.add_argument(argument, **options)


def run(args: argparse.Namespace) -> int:
    """Run a command: print its answer, and write the files that are asked for."""
    from ramp.nines import commands, report

    for path in (args.page, getattr(args, "record", None), getattr(args, "junit", None)):
        # Known before the work that it would waste.
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path} cannot be written; name a file in a directory that exists")
    # The functions have the names of the commands.
    answer = getattr(commands, args.what.replace("-", "_"))(args)
    # What reading the logs did to them goes with every answer.
    said = report.note_parts(getattr(args, "notes", ()))
    try:
        _write_files(args, [*answer.parts, *said], answer.junit)
    finally:
        # A verdict is known whatever becomes of its files.
        _print(args, answer, said)
    return answer.code


def _write_files(args, parts, junit):
    from ramp.nines import report

    if getattr(args, "junit", None):
        args.junit.write_text(junit, encoding="utf-8")
    if args.page:
        name = f": {args.file[0].name}" if "file" in args else ""
        report.write_parts(args.page, f"ramp nines {args.what}{name}", parts)


def _print(args, answer, said):
    from ramp.nines import report

    if args.json:
        # By way of JSON, which may still hold NaN.
        plain = json.loads(json.dumps(answer.figures, default=_to_plain))
        # What a verdict says of the trials that it counted, and what reading did.
        own = [{"kind": "counted", "text": text, "rows": 0} for text in plain.get("notes", ())]
        notes = getattr(args, "notes", ())
        print(to_json(plain | {"notes": own + [vars(note) for note in notes]}, indent=1))
    else:
        report.print_parts(answer.parts)
        # Apart from the answer, which may be one line for a pipeline.
        report.print_parts(said, sys.stderr)


def _to_plain(value):
    """An array, a number of NumPy's or a dataclass as what JSON has."""
    return value.tolist() if hasattr(value, "tolist") else vars(value)
