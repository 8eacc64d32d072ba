"""`python -m experiments.credit CONFIG`: the benchmark of credit.

Stop it and start it again at will.

Prints its table; `--write` also puts it into RESULTS.md beside this file.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ramp import config, host, rundir
from ramp.errors import UserError
from ramp.files import write_atomic

RESULTS = Path(__file__).with_name("RESULTS.md")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.credit",
        description="The benchmark of credit assignment; it resumes an earlier start.",
        epilog="Any key of the configuration is a flag too: --reinforce.level 6.",
    )
    parser.add_argument("config", type=Path, help="configs/credit-bench.toml")
    parser.add_argument("--run", type=Path, metavar="DIR", help="where results are kept")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="has process/*.jsonl, for the rows on real data"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--races", action="store_true", help="only the races of table policies")
    only.add_argument("--law", action="store_true", help="only the law of length")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    args, flags = parser.parse_known_args(argv)
    try:
        c = config.load(args.config, flags)
        directory = args.run or Path("runs") / args.config.stem
        c = host.setup_devices(c)  # before imports that start threads
        from experiments.credit import benchmark

        if args.races:
            report = benchmark.run_races(directory, c)
        elif args.law:
            report = benchmark.run_law(directory, c)
        else:
            report = benchmark.run(directory, c, args.data)
    except UserError as error:
        print(f"experiments.credit: {error}", file=sys.stderr)
        return 2
    print(report)
    if args.write:
        part = "races" if args.races else "law" if args.law else "table"
        page = insert_table(RESULTS.read_text("utf-8"), describe_run(args) + report, part)
        write_atomic(RESULTS, page)
    return 0


def describe_run(args: argparse.Namespace) -> str:
    """The command, the day and the machine, as a paragraph."""
    machine = rundir.describe_provenance()
    flags = "".join(f" --{name}" for name in ("races", "law") if getattr(args, name))
    flags += " --data DIR" if args.data else ""
    command = f"python -m experiments.credit {args.config}{flags} --write"
    return f"`{command}`, {time.strftime('%Y-%m-%d')}, {machine.processor}.\n\n"


def insert_table(page: str, report: str, part: str) -> str:
    """The page with the report in place of what stands between the two marks of a part."""
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{report}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
