"""The command line: `ramp COMMAND CONFIG|RUN [--options] [--section.key value ...]`.

A mistake of the user is one sentence and exit code 2; a fault is a traceback. Nothing slow is
imported before a command needs it, so that `ramp --help` answers at once.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from ramp import config, interrupts, rundir, schema, sizes
from ramp.config import Config
from ramp.errors import UserError
from ramp.export import bring
from ramp.files import parse_path, quote_path, warn_once
from ramp.host import setup_devices, skip_absent_devices, use_huge_pages
from ramp.ladder import commands as ladder
from ramp.nines import cli as nines
from ramp.pods import commands as pods
from ramp.serve import commands as serve
from ramp.stages import STAGES, list_sections, parse_speaker

EXIT_USER, EXIT_DIVERGED = 2, 3
EXIT_BROKEN_PIPE = 141  # as shells report SIGPIPE

Arguments = argparse.Namespace
Flags = list[str]


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of printing the usage."""
        raise UserError(f"{message}; see `{self.prog} --help`")


@dataclass(frozen=True)
class Command:
    """One command of `ramp`: its line of help, its own arguments, and what it does."""

    help: str
    run: Callable[[Arguments, Flags], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    sections: tuple[str, ...] | None = ()
    """sections of the configuration whose keys are flags of it; None: all"""
    goes_on: bool = False
    """stopped by a signal, it exits with 75: the same command goes on from what is saved"""

    def list_keys(self) -> list[schema.Key]:
        """The keys of the configuration that it takes as flags."""
        return config.list_keys(self.sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return dispatch(words, restart=argv is None)
    except UserError as error:
        print(f"ramp: {error}", file=sys.stderr)
        return choose_mistake_code(words)
    except KeyboardInterrupt:
        print("ramp: interrupted", file=sys.stderr)
        return interrupts.EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        # Where to write is the user's to choose; other faults of a disk are not.
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "name a folder that may be written"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, or name a folder on another disk"
        else:
            raise
        # A write that fails, unlike a file that does not open, names no file.
        where = f"{error.filename}: " if error.filename else ""
        print(f"ramp: {where}{error.strerror}; {remedy}", file=sys.stderr)
        return choose_mistake_code(words)


def choose_mistake_code(words: Sequence[str]) -> int:
    """64 where a pipeline would take 2 for the "undecided" of `ramp nines gate`."""
    name, what = [*words, "", ""][:2]
    # It may be misspelled: a pipeline that lets 2 pass would never try the gate.
    is_gate = what == "gate" or (name == "nines" and what not in nines.COMMANDS)
    return nines.EXIT_MISTAKE if is_gate else EXIT_USER


def dispatch(words: Sequence[str], restart: bool = False) -> int:
    """restart: whether this process may start itself again with huge pages."""
    if not words or words[0] in ("-h", "--help"):
        print(describe_commands())
        return 0 if words else EXIT_USER
    if words[0] == "--version":
        # Imported here, since no other command needs it.
        from importlib import metadata

        print(f"ramp {metadata.version('ramp-lm')}")
        return 0
    command, args, flags = parse(words)
    if restart:
        # They have waited since the first moment of this process.
        interrupts.listen() if command.goes_on else interrupts.unblock()
    # Before the command imports jax, which looks for devices on import.
    skip_absent_devices()
    # Only commands that take keys compute for long enough to gain from huge pages.
    if restart and command.sections != ():
        use_huge_pages()
    return command.run(args, flags)


def parse(words: Sequence[str]) -> tuple[Command, Arguments, Flags]:
    """A command, its own arguments, and the flags that are keys of the configuration."""
    # A name may be of two words.
    count = 2 if " ".join(words[:2]) in COMMANDS else 1
    name, rest = " ".join(words[:count]), words[count:]
    if name in MOVED:
        raise UserError(f"`ramp {name}` is now `{MOVED[name]}`")
    if name not in COMMANDS:
        unknown = schema.describe_unknown(name, COMMANDS).replace("unknown key", "unknown command")
        raise UserError(f"{unknown}; see `ramp --help`")
    command = COMMANDS[name]
    asks_help = bool({"-h", "--help"} & set(rest))
    parser = Parser(
        prog=f"ramp {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        # Reading the documentation of keys parses source, so only where it is printed.
        epilog=describe_keys(command) if asks_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An abbreviation would stop working once another option begins alike.
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    # argparse has no public list of a parser's options.
    own = list(parser._option_string_actions)
    # Without keys, every word is for the command itself.
    words, flags = separate_keys(rest, own) if command.sections != () else (rest, [])
    args, unknown = parser.parse_known_args(words)
    if unknown:
        close = schema.describe_unknown(unknown[0], own).replace("unknown key", "unknown argument")
        raise UserError(f"{close}; see `ramp {name} --help`")
    args.command = name
    taken = {key.name for key in command.list_keys()} if flags else set()
    for flag, _ in schema.split_flags(flags):
        key = flag.removeprefix("--").replace("-", "_")
        if key not in taken and key in {key.name for key in config.list_keys()}:
            raise UserError(f"{flag} is a key that `ramp {name}` does not read; leave it out")
    if flags:
        # Refuse wrong keys and values before anything else is looked at.
        schema.parse_flags(flags, command.list_keys())
    return command, args, flags


def separate_keys(words: Sequence[str], own: Sequence[str]) -> tuple[list[str], Flags]:
    """Words for the command's own parser, and the groups `--section.key value ...`.

    A group runs to the next word that begins with `--`.
    """
    # These have no dot in their name, and so could pass for options of the command.
    top_level = {f"--{key.name}" for key in config.list_keys() if "." not in key.name}
    arguments, flags = [], []
    target = arguments
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            # The command's own option wins over a key of the same name.
            is_key = flag not in own and ("." in flag or flag in top_level)
            target = flags if is_key else arguments
        # A word without dashes is a value, and goes where its flag went.
        target.append(word)
    return arguments, flags


def describe_commands() -> str:
    """What `ramp --help` prints."""
    lines = [f"  {name:12} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ramp COMMAND ...",
            "",
            "Grow one language model from a bigram table to a chat model, in JAX.",
            "",
            *lines,
            "",
            "`ramp COMMAND --help` lists its arguments and the keys of the configuration it takes.",
        ]
    )


def describe_keys(command: Command) -> str:
    """The keys of the configuration that a command takes, for its `--help`."""
    if not command.list_keys():
        return ""
    return "keys of the configuration, over the file's:\n" + schema.format_keys(command.list_keys())


# --- arguments


def add_run_arguments(p: argparse.ArgumentParser) -> None:
    """Of `run` and of every stage."""
    p.add_argument(
        "config",
        nargs="?",
        type=parse_path,
        help="a TOML file, the name of one that comes with ramp (cpu, smoke), or a run directory",
    )
    p.add_argument(
        "--run", type=parse_path, metavar="DIR", help="run directory (default: runs/CONFIG)"
    )
    p.add_argument(
        "--text",
        nargs="+",
        metavar="PATH",
        help="train on these texts: files, folders, globs or addresses; what is not set is chosen",
    )
    p.add_argument(
        "--from",
        dest="parent",
        metavar="RUN[@STEP]",
        help="begin a new run from this one; flags say what differs",
    )
    p.add_argument("--from-stage", metavar="STAGE", help="whose checkpoint of that run to take")
    p.add_argument(
        "--from-weights",
        action="store_true",
        help="take the weights only: begin at step 0 with a new optimizer",
    )
    p.add_argument(
        "--dry-run", action="store_true", help="print parameters, memory, FLOPs and time only"
    )
    p.add_argument(
        "--force",
        action="store_true",
        help="do again, from the beginning, what is done; what it had made goes to RUN/replaced",
    )


def add_eval_arguments(p: argparse.ArgumentParser) -> None:
    """Of `eval`."""
    add_run_arguments(p)
    p.add_argument(
        "--suite", default="bpb", help="bpb: bits per byte (default); core: the 22 tasks of CORE"
    )
    p.add_argument("--bundle", type=parse_path, metavar="DIR", help="the tasks of --suite core")
    p.add_argument(
        "--limit", type=int, default=0, metavar="N", help="questions of each task (default: all)"
    )


def add_speaker_arguments(p: argparse.ArgumentParser) -> None:
    """Whose weights are sampled, and with which seed."""
    add_stage_argument(p)
    p.add_argument("--seed", type=int, default=0, help="of sampling (default 0)")


def add_stage_argument(p: argparse.ArgumentParser) -> None:
    """Whose weights."""
    # Other stages leave no weights that continue text.
    stages = ", ".join(stage.name for stage in STAGES.values() if stage.speaks)
    p.add_argument(
        "--stage",
        type=parse_speaker,
        metavar="STAGE",
        help=f"whose weights: {stages}, or one generation, synthesize-G "
        "(default: finetune; pretrain of an imported model)",
    )


def add_sample_arguments(p: argparse.ArgumentParser) -> None:
    """Of `sample`."""
    add_run_arguments(p)
    add_speaker_arguments(p)
    p.add_argument("--prompt", help="continue this text instead of answering the questions")


def add_run_directory(p: argparse.ArgumentParser) -> None:
    """Of commands that read a run."""
    p.add_argument("run", type=parse_path, help="a run directory")


def add_chat_arguments(p: argparse.ArgumentParser) -> None:
    """Of `chat`."""
    add_run_directory(p)
    add_speaker_arguments(p)
    p.add_argument("--temperature", type=float, help="0: always the most likely token")
    p.add_argument("--tokens", type=int, help="longest answer")
    p.add_argument("--ask", action="append", metavar="QUESTION", help="ask and leave; repeatable")


def add_credit_arguments(p: argparse.ArgumentParser) -> None:
    """Of `credit`."""
    add_run_directory(p)
    p.add_argument("--problem", type=int, default=0, help="first held-out problem (default 0)")
    p.add_argument("--groups", type=int, default=4, help="problems to sample (default 4)")


def add_audit_arguments(p: argparse.ArgumentParser) -> None:
    """Of `credit audit`."""
    p.add_argument(
        "--reward", help="search for what fools it: a name, FILE.py:FN, or a weighted sum of these"
    )
    p.add_argument(
        "--task", default="", help="whose problems: NAME or FILE.py:TASK (default chain)"
    )
    p.add_argument("--prompts", default="", help="a file of questions in place of a task's")
    p.add_argument("--level", type=int, default=4, help="difficulty of the problems (default 4)")
    p.add_argument(
        "--budget",
        type=int,
        default=8000,
        help="solutions to judge, about; the checker gets half (default 8000)",
    )
    p.add_argument(
        "--rollouts", type=parse_path, help="in place of --reward: a JSONL log of any trainer"
    )
    p.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="WHAT=NAME",
        help="which field of the log is WHAT: group (the problem), text, steps, reward, right, "
        "gold (the right answer), verdicts (on steps), first_error, advantages or tokens; "
        "repeatable; of --prompts: prompt or answer",
    )
    p.add_argument("--page", type=parse_path, help="write what was found to this HTML file")
    p.add_argument("--json", type=parse_path, help="write what was found to this JSON file")


def add_measure_arguments(p: argparse.ArgumentParser) -> None:
    """Of `synth measure`."""
    kinds = "texts: a file or folder of JSONL, Parquet, CSV or plain text; #FIELD names a field"
    p.add_argument("real", help=f"real {kinds}")
    p.add_argument("samples", help="what is to be judged, likewise")
    p.add_argument("--train", metavar="POOL", help="what the samples may be copied from (REAL)")
    p.add_argument("--seed", type=int, default=0, help="of the resamples (default 0)")
    p.add_argument("--page", type=parse_path, metavar="FILE", help="write an HTML page as well")
    p.add_argument("--json", action="store_true", help="print figures for a program instead")


def add_ask_arguments(p: argparse.ArgumentParser) -> None:
    """Of `synth ask`."""
    p.add_argument("model", help="a run, a model folder, a GGUF file, or http://HOST:PORT")
    p.add_argument("questions", help="a question in quotes, or a file of them; #FIELD names it")
    p.add_argument("--n", type=int, default=32, help="replies to each question (default 32)")
    p.add_argument(
        "--remedies",
        default="plain",
        metavar="A,B",
        help="ways of asking: plain, temperature, min-p, verbalized, seeds, personas, or all",
    )
    p.add_argument("--tokens", type=int, default=96, help="longest reply (default 96)")
    p.add_argument("--seed", type=int, default=0, help="of sampling (default 0)")
    p.add_argument("--name", default="", help="which model of a server that has several")
    p.add_argument(
        "--replies",
        type=parse_path,
        default=Path("replies.jsonl"),
        metavar="FILE",
        help="where replies are kept; those there are not asked again (default replies.jsonl)",
    )
    p.add_argument("--page", type=parse_path, metavar="FILE", help="write an HTML page as well")
    p.add_argument("--json", action="store_true", help="print figures for a program instead")


def add_synth_arguments(p: argparse.ArgumentParser) -> None:
    """Of `synth`."""
    p.add_argument(
        "what",
        choices=("why", "decide"),
        help="or measure, or ask, which have a --help of their own",
    )
    add_run_directory(p)
    p.add_argument("about", help="why: a sample, such as g2-00017; decide: texts, a source")


# --- actions


def load_target(args: Arguments, flags: Flags) -> tuple[Config, Path]:
    """The configuration and the run directory that the words on the command line mean."""
    keys = COMMANDS[args.command].list_keys()
    if args.config is None:
        return load_without_file(args, flags, keys)
    path: Path = args.config
    if config.is_run(path):
        if args.run:
            raise UserError(f"{path} is a run directory itself; leave out --run, or name a file")
        sizes.refuse_size(flags, keys)
        # The saved configuration, so that a run goes on as it was begun.
        return rundir.RunDir(path).load_config(flags, keys), path
    directory = args.run or Path("runs") / path.stem
    begun = rundir.RunDir(directory).written_config()
    # `ramp ladder` begins from no run.
    if not begun and getattr(args, "parent", None):
        parent = parse_path(str(rundir.parse_request(args.parent).parent))
        begun = rundir.RunDir(parent).written_config()
    return sizes.choose_size(path, flags, keys, begun), directory


def load_without_file(args: Arguments, flags: Flags, keys: Sequence[schema.Key]) -> tuple:
    """`load_target` where another run or a text stands in place of a configuration."""
    sizes.refuse_size(flags, keys)
    if args.parent:
        if not args.run:
            raise UserError("--from begins a new run: name its directory with --run")
        parent = parse_path(str(rundir.parse_request(args.parent).parent))
        is_gone = rundir.RunDir(parent).written_config() is None
        if is_gone and rundir.RunDir(args.run).written_config():
            go_on = f"`ramp {args.command} {quote_path(args.run)}`"
            raise UserError(f"{parent} is no run any more; {args.run} has begun: {go_on} goes on")
        return rundir.RunDir(parent).load_config(flags, keys), args.run
    if args.text:
        directory = args.run or Path("runs") / name_run(args.text[0])
        # Begun before: it goes on with what was chosen then.
        if (directory / "config.toml").exists():
            return rundir.RunDir(directory).load_config(flags, keys), directory
        return config.load_flags(flags, keys), directory
    raise UserError(f"name a configuration, such as `ramp {args.command} cpu`, or give --text PATH")


def name_run(text: str) -> str:
    """A directory's name for a run on a text: the last folder or file that is no pattern."""
    parts = [part for part in text.split("/") if part and not set("*?[{#") & set(part)]
    return Path(parts[-1]).stem if parts and Path(parts[-1]).stem not in ("", ".", "..") else "text"


def choose_for_text(args: Arguments, c: Config, directory: Path) -> Config:
    """Look into the texts of `--text`, say what was found, and fill in what is not set."""
    c = config.replace(c, text=config.replace(c.text, sources=tuple(args.text)))
    # Weights from elsewhere have a shape, and a run that was begun has all of its choices.
    if args.parent or (directory / "config.toml").exists():
        return c
    # Slow to import, and only for those who bring texts.
    from ramp.text import inspect

    inspection = inspect.inspect_sources(c.text.sources, directory / "data" / "shards")
    c = inspect.choose_config(inspection, c)
    print(inspect.describe(inspection, c))
    return c


def read_request(args: Arguments) -> rundir.Request | None:
    """What `--from` and its companions ask for. Raises `UserError`."""
    if args.parent:
        return rundir.parse_request(args.parent, args.from_stage or "", args.from_weights)
    if args.from_stage or args.from_weights:
        raise UserError("--from-stage and --from-weights belong to --from RUN[@STEP]; add it")
    return None


def run_stages(args: Arguments, flags: Flags, stages: tuple[str, ...] = ()) -> int:
    """Do all stages of a configuration, or the named ones."""
    request = read_request(args)
    if args.text:
        # As a key of the configuration takes a list, with and without brackets.
        args.text = schema.parse_list("--text", args.text)
    c, directory = load_target(args, flags)
    if args.parent:
        # The weights are the parent's, whatever that began from.
        c = config.replace(c, base="")
        is_named = "--reinforce.reward" in [flag for flag, _ in schema.split_flags(flags)]
        # A configuration of one's own has said what it wants.
        if "reinforce" in (stages or c.stages) and not is_named and not args.config:
            warn_of_control(c, args.parent)
    c = bring.fit_to_base(c, config.list_named(args.config, flags), directory)
    c = rundir.fit_vocabulary(c)
    if args.text:
        c = choose_for_text(args, c, directory)
    if args.dry_run:
        # Before anything is written: a dry run only calculates.
        from ramp.pods import dryrun
        from ramp.rivals import list_rivals
        from ramp.stages.checks import check_names

        c = config.replace(c, stages=stages or c.stages)
        check_names(c, c.stages)
        for rival in list_rivals(c, c.stages):
            check_names(rival.configure(c), [rival.stage])
        print(dryrun.describe(c))
        return 0
    suite = read_suite(args) if stages == ("eval",) else None
    suites = {"core": suite} if suite else {}
    from ramp import run
    from ramp.train.divergence import Diverged
    from ramp.train.preemption import Preempted

    stages = tuple(suites) or stages
    # Whoever asks for a suite, or for samples, wants them of the model as it is now.
    force = args.force or any(name in suites or STAGES[name].repeats for name in stages)
    if c.base:
        request = bring.begin_from_base(c, directory)
    try:
        run.run(c, directory, stages, force, suites, request)
    except Preempted as stopped:
        print(f"ramp: {stopped}", file=sys.stderr)
        return interrupts.EXIT_PREEMPTED
    except Diverged as error:
        print(f"ramp: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    return 0


def warn_of_control(c: Config, parent: str) -> None:
    """Say so where a reward that knows nothing of solutions comes from another run's settings."""
    # Slow to import.
    from ramp.credit import rewards

    if {term.name for term in rewards.parse_reward(c.reinforce.reward)} <= {"random", "none"}:
        warn_once(
            f"reinforce: the reward is {c.reinforce.reward!r}, a control that {parent} was set to; "
            "--reinforce.reward answer pays for right answers"
        )


def read_suite(args: Arguments) -> Callable[..., dict] | None:
    """What `--suite` asks for instead of bits per byte; None: nothing.

    The questions are read before any device is touched: a wrong folder is refused at once.
    """
    if args.suite not in ("bpb", "core"):
        raise UserError(f"there is no suite '{args.suite}'; --suite takes bpb or core")
    if args.suite == "bpb":
        if args.bundle or args.limit:
            raise UserError("--bundle and --limit belong to --suite core")
        return None
    if not args.bundle or args.limit < 0:
        raise UserError(
            "--suite core takes --bundle DIR, the folder of core.yaml, and a --limit of 0 or more"
        )
    from ramp.evals import core, questions

    tasks = questions.read_bundle(args.bundle)
    return partial(core.run, tasks=tasks, limit=args.limit)


def run_sample(args: Arguments, flags: Flags) -> int:
    """Continue a prompt, or answer the questions of the configuration."""
    if args.prompt is None:
        # The stage `sample` always speaks with the fine-tuned model and the run's own seed.
        if args.stage or args.seed:
            raise UserError("--stage and --seed belong to --prompt; add one, or leave them out")
        return run_stages(args, flags, ("sample",))
    c, directory = load_target(args, flags)
    from ramp.serve import terminal

    stage = rundir.RunDir(directory).find_weights(args.stage)
    terminal.complete(directory, c, args.prompt, stage, args.seed)
    return 0


def run_chat(args: Arguments, flags: Flags) -> int:
    """Talk to the model of a run."""
    from ramp.serve import terminal

    run, _ = rundir.open_run(args.run)
    stage = run.find_weights(args.stage)
    terminal.chat(args.run, stage, args.seed, args.temperature, args.tokens, args.ask)
    return 0


def run_report(args: Arguments, flags: Flags) -> int:
    """Write report.html again."""
    from ramp.reporting import report

    rundir.open_run(args.run)
    print(report.write_report(args.run))
    return 0


def run_credit(args: Arguments, flags: Flags) -> int:
    """Show which steps of a run's rollouts get which credit."""
    run, c = rundir.open_run(args.run)
    c = setup_devices(c, stages=("reinforce",))
    from ramp.stages import reinforce

    print(reinforce.show_credit(run, c, args.problem, args.groups))
    return 0


def run_audit(args: Arguments, flags: Flags) -> int:
    """Audit a reward or a log."""
    from ramp.credit import report

    task = args.task if args.task or args.prompts else "chain"
    t = config.Reinforce(task=task, prompts=args.prompts, level=args.level)
    named = dict(field.partition("=")[::2] for field in args.field)
    print(report.run_audit(args.reward, args.rollouts, t, args.budget, named, args.page, args.json))
    return 0


def run_measure(args: Arguments, flags: Flags) -> int:
    """Compare samples with real text: 0 as diverse, 1 not, or too few to tell."""
    from ramp.synth import measure_report

    return measure_report.run(args.real, args.samples, args.train, args.page, args.json, args.seed)


def run_ask(args: Arguments, flags: Flags) -> int:
    """Tell how many answers a model has."""
    from ramp.synth import ask

    options = (args.n, args.remedies, args.tokens, args.seed, args.name)
    files = (args.replies, args.page, args.json)
    return ask.run(args.model, args.questions, *options, *files)


def run_synth(args: Arguments, flags: Flags) -> int:
    """Tell what became of a sample, or which texts from elsewhere may teach."""
    run, c = rundir.open_run(args.run)
    if args.what == "why":
        # Only reads a file, and so needs no device.
        from ramp.synth import ledger

        print(ledger.describe_sample(run.path / "synth", args.about))
        return 0
    c = setup_devices(c, stages=())
    from ramp.stages import candidates

    return candidates.run(run, c, args.about)


def run_ladder(args: Arguments, flags: Flags) -> int:
    """Climb the ladder."""
    return ladder.run(args, *load_target(args, flags))


def run_plan(args: Arguments, flags: Flags) -> int:
    """Plan a run."""
    from ramp.stages.checks import check_settings

    return pods.run(args, flags, check_settings)


def run_doctor(args: Arguments, flags: Flags) -> int:
    """Look at this machine."""
    from ramp.pods import doctor

    return doctor.run()


def make_stage_command(name: str) -> Command:
    """The command of a stage, from its row in the table."""
    stage = STAGES[name]
    # The two stages with arguments of their own; the table in `stages` knows no argparse.
    arguments = {"eval": add_eval_arguments, "sample": add_sample_arguments}
    work = run_sample if name == "sample" else partial(run_stages, stages=(name,))
    add_arguments = arguments.get(name, add_run_arguments)
    sections = (*list_sections(name), "stages")
    return Command(stage.help, work, add_arguments, sections, goes_on=True)


def make_serve_command(name: str, text: str) -> Command:
    """`serve`, `export` or `import`."""
    return Command(text, lambda args, flags: serve.run(args), partial(serve.add_arguments, name))


COMMANDS = {
    "run": Command(
        "do all stages of a configuration; skip what is done, resume what is not",
        run_stages,
        add_run_arguments,
        sections=None,
        goes_on=True,
    ),
    # A new stage is a command as soon as it is a row of the table.
    **{name: make_stage_command(name) for name in STAGES},
    "chat": Command("talk to the model of a run", run_chat, add_chat_arguments),
    "serve": make_serve_command("serve", "the model in a browser and behind an OpenAI-style API"),
    "export": make_serve_command("export", "write the model as a folder or a GGUF file"),
    "import": make_serve_command("import", "make a run of a model from GGUF or safetensors files"),
    "credit": Command(
        "which steps of a run's rollouts get which credit; also: credit audit",
        run_credit,
        add_credit_arguments,
    ),
    "credit audit": Command(
        "what fools a reward, or where the credit of another trainer's log went",
        run_audit,
        add_audit_arguments,
    ),
    "synth": Command(
        "why RUN ID: what became of a sample; decide RUN TEXTS: which texts from elsewhere may "
        "teach; also: synth measure, synth ask",
        run_synth,
        add_synth_arguments,
    ),
    "synth ask": Command(
        "MODEL QUESTIONS: how many answers a chat model has, and what other ways of asking give",
        run_ask,
        add_ask_arguments,
    ),
    "synth measure": Command(
        "REAL SAMPLES: are the samples as diverse as real text? exit code 1 where they are not, or "
        "are too few to tell; cut, joined, only longer and only shorter are said, with exit code 0",
        run_measure,
        add_measure_arguments,
    ),
    "nines": Command(
        "from evaluation logs to reliability to a scored forecast of readiness",
        lambda args, flags: nines.run(args),
        nines.add_arguments,
    ),
    "ladder": Command(
        "add each part of a transformer where the model without it fails",
        run_ladder,
        ladder.add_arguments,
        sections=None,
        goes_on=True,
    ),
    "ladder exercise": Command(
        "write a file in which one part of the model is missing, with its story",
        lambda args, flags: ladder.run_exercise(args),
        ladder.add_exercise_arguments,
    ),
    "ladder check": Command(
        "FILE: what is wrong with an answer to an exercise; exit code 1 where something is",
        lambda args, flags: ladder.run_check(args),
        ladder.add_check_arguments,
    ),
    "plan": Command(
        "compile a run for TPUs or GPUs that are not here: memory, collectives, time, dollars",
        run_plan,
        pods.add_arguments,
        sections=None,
    ),
    "report": Command("write report.html of a run again", run_report, add_run_directory),
    "doctor": Command("check what this machine has, and whether ramp can work on it", run_doctor),
}

# Commands that are experiments now, run from a clone: said to those who knew them.
MOVED = {
    "audit": "python -m experiments.credit or python -m experiments.collapse",
    "bench": "python -m experiments.speed",
}


if __name__ == "__main__":
    sys.exit(main())
