"""The command line: `ramp VERB CONFIG|RUN [--run DIR] [--dry-run] [--table.key value ...]`.

A mistake of the user is one sentence and exit code 2; a fault is a traceback. Nothing heavy is imported before a verb
needs it: `ramp --help` answers at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ramp import config, rundir
from ramp.errors import UserError
from ramp.ladder import commands as ladder
from ramp.nines import cli as nines
from ramp.pods import commands as pods
from ramp.run import use_huge_pages
from ramp.serve import commands as serve

EXIT_USER, EXIT_DIVERGED, EXIT_PREEMPTED = 2, 3, 75

VERBS = {
    "run": "do all stages of a configuration, skip what is done, resume what is not",
    "prepare": "text -> tokenizer -> tokens",
    "pretrain": "train on the corpus",
    "eval": "bits per byte beside n-grams and xz, or the 22 tasks of CORE",
    "finetune": "train on conversations",
    "reinforce": "train on a task with credit step by step",
    "synthesize": "train on own samples, generation after generation, without losing diversity",
    "sample": "ask the questions of the configuration, or continue a prompt",
    "chat": "talk to the model of a run",
    "serve": "the model in a browser, and behind an API that existing clients speak",
    "export": "the model as a folder that other tools open",
    "import": "somebody else's model (GGUF, safetensors) as a run to go on from",
    "credit": "show which steps of a run's rollouts get which credit, as a page",
    "ladder": "climb from a table of counts to the model, each part added where the model without it fails",
    "synth": "why RUN ID: what became of a sample, and why; ask RUN QUESTION: how many answers a model has",
    "audit": "the benchmarks of the rooms credit and synth",
    "report": "write report.html again",
    "bench": "tokens per second of training and of generation",
    "plan": "compile a run for TPUs or GPUs that are not here: memory, collectives, time, dollars",
    "nines": "from trials to reliability to a scored forecast of readiness",
    "doctor": "what this machine has, and whether ramp can work on it",
}


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        return dispatch(argv)
    except UserError as error:
        print(f"ramp: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("ramp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def dispatch(argv: list[str] | None) -> int:
    args, flags = parsed(sys.argv[1:] if argv is None else argv)
    if (
        argv is None and args.verb in FLAGGED and args.verb != "bench"
    ):  # its worker does so, its peer does not
        use_huge_pages()
    return ACTIONS[args.verb](args, flags)


def parsed(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a verb, and what is left: keys of the configuration, for the verbs that take them."""
    parser = argparse.ArgumentParser(
        prog="ramp",
        description="One language model, grown from a bigram table to a chat model, in JAX.",
        epilog="`ramp VERB --help` tells more of each.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text in VERBS.items():
        tail = FLAGS if verb in FLAGGED else None
        _arguments(
            verb,
            verbs.add_parser(
                verb, help=text, description=text[0].upper() + text[1:] + ".", epilog=tail
            ),
        )
    args, flags = parser.parse_known_args(argv)
    if flags and args.verb not in FLAGGED:
        raise UserError(f"unknown argument {flags[0]}; see `ramp {args.verb} --help`")
    return args, flags


TRAINS = (
    "run",
    "prepare",
    "pretrain",
    "eval",
    "finetune",
    "reinforce",
    "synthesize",
    "sample",
    "bench",
    "plan",
)
FLAGGED = (*TRAINS, "audit", "ladder")  # verbs that take keys of the configuration
FLAGS = "Any key of the configuration is a flag too: --model.depth 8 --pretrain.steps 100. They are listed in src/ramp/config.py."


def _arguments(verb: str, p: argparse.ArgumentParser) -> None:
    if verb == "bench":
        p.add_argument(
            "config",
            nargs="?",
            type=Path,
            help="a TOML file; default: depth 4, context 256, batch 16",
        )
        p.add_argument(
            "--peer",
            choices=("torch",),
            help="measure the same architecture in PyTorch, in turn with ramp",
        )
        python = {"type": Path, "default": Path(sys.executable), "metavar": "PATH"}
        p.add_argument("--peer-python", **python, help="an interpreter with torch and transformers")
        p.add_argument("--only", choices=("train", "generate"), help="one of the two measurements")
        p.add_argument("--rounds", type=int, default=8, help="turns of every contender (default 8)")
        p.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="both")
        p.add_argument(
            "--threads", type=int, default=2, help="CPU cores of every contender (default 2)"
        )
        p.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    elif verb == "plan":
        pods.add_arguments(p)
    elif verb == "ladder":
        ladder.add_arguments(p)
    elif verb == "nines":
        nines.add_arguments(p)
    elif verb in ("serve", "export", "import"):
        serve.add_arguments(verb, p)
    elif verb in TRAINS:
        p.add_argument(
            "config", type=Path, help="a TOML file such as configs/cpu.toml, or a run directory"
        )
        p.add_argument(
            "--run",
            type=Path,
            metavar="DIR",
            help="the run directory (default: runs/<name of the config>)",
        )
        p.add_argument(
            "--dry-run",
            action="store_true",
            help="print parameters, memory, FLOPs and time; make nothing",
        )
        p.add_argument("--force", action="store_true", help="do a stage again that is done")
    elif verb == "audit":
        p.add_argument("what", choices=("credit", "synth"))
        p.add_argument(
            "config", type=Path, help="configs/credit-bench.toml or configs/collapse-bench.toml"
        )
        p.add_argument(
            "--run", type=Path, metavar="DIR", help="where results are kept and gone on from"
        )
        p.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="with process/*.jsonl or math/gsm8k_train.jsonl, for the rows on real data",
        )
        p.add_argument("--part", help="synth: only this part of the benchmark")
    elif verb == "synth":
        p.add_argument("what", choices=("why", "ask"))
        p.add_argument("run", type=Path, help="a run directory")
        p.add_argument(
            "about",
            help="why: a sample, such as g2-00017; ask: a question, such as 'Tell me a joke.'",
        )
        p.add_argument("--n", type=int, default=200, help="ask: replies to draw (default 200)")
        p.add_argument(
            "--verbalised",
            type=int,
            default=0,
            metavar="K",
            help="ask: also for K answers in one reply",
        )
        p.add_argument("--tokens", type=int, default=96, help="ask: longest reply (default 96)")
    elif verb in ("chat", "report", "credit"):
        p.add_argument("run", type=Path, help="a run directory")
    if verb == "credit":
        p.add_argument(
            "--problem", type=int, default=0, help="number of the first held-out problem to show"
        )
        p.add_argument("--groups", type=int, default=4, help="problems to sample")
    if verb == "eval":
        p.add_argument(
            "--suite",
            default="bpb",
            help="bpb: bits per byte (default); core: the 22 tasks of CORE",
        )
        p.add_argument("--bundle", type=Path, metavar="DIR", help="the tasks of --suite core")
        p.add_argument(
            "--limit",
            type=int,
            default=0,
            metavar="N",
            help="questions of each task (default: all)",
        )
    if verb in ("sample", "chat"):
        p.add_argument(
            "--stage",
            choices=("pretrain", "finetune"),
            help="whose weights speak (default: finetune)",
        )
        p.add_argument("--seed", type=int, default=0)
    if verb == "sample":
        p.add_argument(
            "--prompt",
            help="continue this text instead of asking the questions of the configuration",
        )
    if verb == "chat":
        p.add_argument("--temperature", type=float, help="0: always the most likely token")
        p.add_argument("--tokens", type=int, help="longest answer")
        p.add_argument(
            "--ask", action="append", metavar="QUESTION", help="ask this and leave; may be repeated"
        )


# ---------------------------------------------------------------------------------------------------- verbs
def _target(args: argparse.Namespace, flags: list[str]) -> tuple[config.Config, Path]:
    """The configuration and the run directory that the words on the command line mean."""
    path: Path = args.config
    if path.is_dir():
        if args.run:
            raise UserError(
                f"{path} is a run directory itself; leave out --run, or name a configuration file"
            )
        rundir.open_run(path)
        return config.load(path / "config.toml", flags), path
    return config.load(path, flags), args.run or Path("runs") / path.stem


def _train(args: argparse.Namespace, flags: list[str]) -> int:
    c, directory = _target(args, flags)
    if args.dry_run:
        from ramp.pods import dryrun

        print(dryrun.describe(c))
        return 0
    from ramp import run
    from ramp.train.preemption import Preempted
    from ramp.train.trainer import Diverged

    more = _suite(args) if args.verb == "eval" else {}
    stages = tuple(more) or (None if args.verb == "run" else (args.verb,))
    try:
        again = args.force or args.verb in (
            "eval",
            "sample",
        )  # asked for by name, these answer each time
        run.run(c, directory, stages, again, more)
    except Preempted as stopped:
        print(f"ramp: {stopped}", file=sys.stderr)
        return EXIT_PREEMPTED
    except Diverged as error:
        print(f"ramp: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    return 0


def _suite(args: argparse.Namespace) -> dict[str, Callable]:
    """What `--suite` asks for instead of bits per byte; its questions are read before any device is touched."""
    if args.suite not in ("bpb", "core"):
        raise UserError(f"there is no suite '{args.suite}'; --suite takes bpb or core")
    if args.suite == "bpb":
        if args.bundle or args.limit:
            raise UserError("--bundle and --limit belong to --suite core")
        return {}
    if not args.bundle or args.limit < 0:
        raise UserError(
            "--suite core takes --bundle DIR, the folder that holds core.yaml, and a --limit above 0 or none"
        )
    from ramp.evals import core, questions

    return {"core": partial(core.run, tasks=questions.read_bundle(args.bundle), limit=args.limit)}


def _sample(args: argparse.Namespace, flags: list[str]) -> int:
    if args.prompt is None:
        return _train(args, flags)
    c, directory = _target(args, flags)
    from ramp.serve import terminal

    terminal.complete(
        directory, c, args.prompt, args.stage or rundir.RunDir(directory).default_stage, args.seed
    )
    return 0


def _chat(args: argparse.Namespace, flags: list[str]) -> int:
    from ramp.serve import terminal

    stage = args.stage or rundir.RunDir(args.run).default_stage
    terminal.chat(args.run, stage, args.seed, args.temperature, args.tokens, args.ask)
    return 0


def _report(args: argparse.Namespace, flags: list[str]) -> int:
    from ramp.reporting import report

    rundir.open_run(args.run)
    print(report.write_report(args.run))
    return 0


def _credit(args: argparse.Namespace, flags: list[str]) -> int:
    found, c = rundir.open_run(args.run)
    from ramp import run
    from ramp.stages import reinforce

    print(reinforce.show_credit(found, run.setup_devices(c), args.problem, args.groups))
    return 0


def _audit(args: argparse.Namespace, flags: list[str]) -> int:
    c, directory = _target(args, flags)
    if args.part and args.what != "synth":
        raise UserError("--part belongs to `ramp audit synth`")
    from ramp import run

    c = run.setup_devices(c)  # before imports that start threads: see `run.run`
    if args.what == "synth":
        from experiments.collapse import bench

        print(bench.run(directory, c, args.data, args.part))
        return 0
    from experiments.credit import bench

    print(bench.run(directory, c, args.data))
    return 0


def _ladder(args: argparse.Namespace, flags: list[str]) -> int:
    return ladder.run(args, *_target(args, flags))


def _synth(args: argparse.Namespace, flags: list[str]) -> int:
    found, c = rundir.open_run(args.run)
    if args.what == "why":
        from ramp.synth import ledger

        print(ledger.describe_sample(found.path / "synth", args.about))
        return 0
    from ramp import run

    c = run.setup_devices(c)
    from ramp.evals import diversity

    print(
        diversity.format_table(
            diversity.run(found, c, args.about, args.n, args.verbalised, args.tokens)
        )
    )
    return 0


def _doctor(args: argparse.Namespace, flags: list[str]) -> int:
    from ramp.pods import doctor

    return doctor.run()


def _bench(args: argparse.Namespace, flags: list[str]) -> int:
    from experiments.speed import bench

    return bench.run(args, flags)


def _plan(args: argparse.Namespace, flags: list[str]) -> int:
    return pods.run(args, flags)


ACTIONS = dict.fromkeys(TRAINS, _train) | {
    "sample": _sample,
    "chat": _chat,
    "report": _report,
    "credit": _credit,
    "audit": _audit,
    "ladder": _ladder,
    "synth": _synth,
    "doctor": _doctor,
    "bench": _bench,
    "plan": _plan,
    "nines": lambda args, flags: nines.run(args),
    **dict.fromkeys(("serve", "export", "import"), lambda args, flags: serve.run(args)),
}


if __name__ == "__main__":
    sys.exit(main())
