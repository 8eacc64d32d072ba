"""The stages of a run: one row of plain data each, read by everything else that knows of stages.

To add a stage: a file beside these with `run(rundir, config, stop) -> dict` (for the report), a
section in `ramp/config.py`, and a row here. Modules are named as text and imported when they run,
so that `ramp --help` is quick.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatch

from ramp.errors import UserError


@dataclass(frozen=True)
class Stage:
    """What the rest of ramp knows of a stage."""

    name: str
    help: str
    """one line of `ramp --help`"""
    module: str
    """has `run(rundir, config, stop)`, and may have `check_lengths(rundir, config, tokenizer)`,
    called when the text is prepared, and `hash_own_files(config)`, so that an edit of the user's
    files is noticed when the stage is done; what its settings alone tell is in `checks`"""
    needs: str = ""
    """the stage that must be done first"""
    reads: tuple[str, ...] = ()
    """sections of the configuration that it reads besides those of the stages it needs; flags of
    other sections are refused"""
    identity: tuple[str, ...] = ()
    """sections that its result depends on: they cannot change in a run that has begun it"""
    train: str = ""
    """where its `Train` settings are in the configuration; empty: it does not train"""
    lr_fraction: float = 1.0
    """its learning rates by rule, as a fraction of pretraining's"""
    measures: bool = False
    """it measures bits of text, `eval.batch_size` rows at once"""
    speaks: bool = False
    """its weights can be sampled from: chat, sample and serve offer it"""
    outputs: tuple[str, ...] = ()
    """patterns of what it leaves in the run directory and goes on from, which `--force` puts aside;
    checkpoints/NAME always"""
    extends: str = ""
    """a number of its section that may be raised when it is done; its report has a list of that
    name, with what is done of it"""
    repeats: bool = False
    """asked for by name, it runs again although it is done"""

    def list_outputs(self) -> tuple[str, ...]:
        """All patterns of what `--force` puts aside."""
        return f"checkpoints/{self.name}", *self.outputs


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            "text to tokenizer to tokens",
            "ramp.stages.prepare",
            reads=("seed", "base", "rivals", "size", "small", "text", "mesh", "hosts"),
            identity=("seed", "text"),
            outputs=("data/train*", "data/val*", "data/*tokenizer.json*"),
        ),
        Stage(
            "pretrain",
            "train on the corpus",
            "ramp.stages.pretrain",
            needs="prepare",
            reads=("model", "pretrain", "eval", "sample", "checkpoint"),
            identity=("model", "pretrain"),
            train="pretrain",
            measures=True,
            speaks=True,
        ),
        Stage(
            "eval",
            "bits per byte compared with n-grams and xz, or the 22 tasks of CORE",
            "ramp.evals.bpb",
            needs="pretrain",
            measures=True,
            repeats=True,
        ),
        Stage(
            "finetune",
            "train on conversations",
            "ramp.stages.finetune",
            needs="pretrain",
            reads=("chat", "finetune", "trials"),
            identity=("chat", "finetune", "trials"),
            train="finetune",
            measures=True,
            lr_fraction=0.2,
            speaks=True,
        ),
        Stage(
            "sample",
            "answer the questions of the configuration, or continue a prompt",
            "ramp.evals.samples",
            needs="finetune",
            repeats=True,
        ),
        Stage(
            "dpo",
            "train on preferred and rejected answers (DPO)",
            "ramp.stages.dpo",
            needs="finetune",
            reads=("dpo",),
            identity=("dpo",),
            train="dpo.train",
            lr_fraction=0.02,
            speaks=True,
        ),
        Stage(
            "reinforce",
            "train on a task with credit for each step",
            "ramp.stages.reinforce",
            needs="finetune",
            reads=("reinforce",),
            identity=("reinforce",),
            train="reinforce.train",
            lr_fraction=0.05,
            outputs=("checkpoints/sft",),
            speaks=True,
        ),
        Stage(
            "synthesize",
            "train on own samples, generation after generation, without losing diversity",
            "ramp.stages.synthesize",
            needs="pretrain",
            reads=("synthesize",),
            identity=("synthesize",),
            outputs=("checkpoints/synthesize-*", "synth"),
            extends="generations",
            train="synthesize.train",
            lr_fraction=0.2,
            speaks=True,
        ),
        Stage(
            "diversity",
            "count the answers to open questions that each stage's model has",
            "ramp.stages.diversity",
            needs="pretrain",
            reads=("diversity",),
            repeats=True,
        ),
    )
}


def parse_speaker(text: str) -> str:
    """What `--stage` takes: a stage that speaks, or one generation of synthesize.

    Raises `UserError` for another.
    """
    names = [stage.name for stage in STAGES.values() if stage.speaks]
    if text in names or re.fullmatch(r"synthesize-\d+", text):
        return text
    raise UserError(
        f"--stage takes {', '.join(names)}, or one generation such as synthesize-1, not {text!r}"
    )


def find_stage(checkpoints: str) -> str:
    """The stage that the folder `checkpoints/...` of a run is of; some train in sub-stages."""
    for stage in STAGES.values():
        if any(fnmatch(f"checkpoints/{checkpoints}", p) for p in stage.list_outputs()):
            return stage.name
    return checkpoints


def list_sections(name: str) -> tuple[str, ...]:
    """Sections of the configuration that a stage or one that it needs reads."""
    stage = STAGES[name]
    before = list_sections(stage.needs) if stage.needs else ()
    return before + stage.reads
