"""`--from RUN[@STEP]`: a run that begins from another one's weights, or from its whole state.

The new run gets files of its own: hard links where the file system has them, so they cost nothing
and the old run may be deleted. Going on in the stage that the checkpoint is of takes the whole
state, optimizer and position in the data included; any other stage starts from its weights. What
may differ from the old run is said by flags: rates, steps, batch, data, stages. The shape of the
model and the tokenizer belong to the weights and stay.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ramp import config
from ramp.config import Config
from ramp.credit import learn
from ramp.errors import UserError
from ramp.files import quote_path, read_kept, warn_once, write_kept
from ramp.reporting.report import update_report
from ramp.rundir import Origin, Request, RunDir, list_changes, open_run
from ramp.stages import STAGES
from ramp.train.checkpoint import Checkpoints


def begin(request: Request, c: Config, target: RunDir, stages: Sequence[str]) -> None:
    """Fill a new run directory from its parent, once: asked again for the same, it changes nothing.

    Call it under the target's lock, in the process that writes, with what `keep_tokenizer` returns.
    Raises `UserError` for what does not fit together.
    """
    parent, old = open_run(request.parent)
    if parent.path.resolve() == target.path.resolve():
        raise UserError(f"{target.path} cannot begin from itself; name a new directory with --run")
    first = find_first_stage(stages)
    origin = choose_origin(request, parent, first)
    # The weights are float32 whatever is computed with them.
    changes = [line for line in list_changes(old, c, "model") if "model.dtype" not in line]
    if changes:
        raise UserError(
            f"the weights of {parent.path} are of another model ({'; '.join(changes[:4])}); "
            "leave these keys as they are there"
        )
    if target.config.exists():
        if target.origin() != origin:
            raise UserError(
                f"{target.path} is a run that began elsewhere; name a new directory with --run"
            )
        return
    if origin.whole_state:
        _require_same_state(parent, old, c, first)
        _require_steps_left(origin, c, first)
    # What a killed start has left is made anew: the caller writes config.toml last.
    write_kept(target.origin_file, origin.to_json())
    for path in (target.data, target.path / "checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
    source = parent.checkpoints(origin.stage) / str(origin.step)
    folder = target.checkpoints(first) if origin.whole_state else target.origin_weights
    link_tree(source, folder / source.name)
    _link_data(parent, old, target, c)
    kind = "the whole state" if origin.whole_state else "the weights"
    print(f"{first}: begins from {kind} of {source}")
    best = Checkpoints(source.parent).best_step()
    # Going on means the last state, which need not be the one that the run's page is about.
    if request.step is None and best not in (None, origin.step):
        print(
            f"{first}: that is its last step, and step {best} was the best: "
            f"`--from {quote_path(f'{parent.path}@{best}')} --run NEW` begins from it"
        )


def find_first_stage(stages: Sequence[str]) -> str:
    """The first of some stages that trains. Raises `UserError` where none does."""
    for name in stages:
        if name in STAGES and STAGES[name].train:
            return name
    raise UserError(f"--from begins a stage that trains, and {', '.join(stages)} does not train")


def choose_origin(request: Request, parent: RunDir, first: str) -> Origin:
    """The checkpoint that a new run begins from. Raises `UserError` where there is none such."""
    stage = request.stage or first
    # A stage that has never run there starts from the weights that it needs, and those from
    # what they need: `reinforce` of a run that was only pretrained.
    while not request.stage and stage and not Checkpoints(parent.checkpoints(stage)).steps():
        stage = STAGES[stage].needs
    checkpoints = Checkpoints(parent.checkpoints(stage or first))
    steps = checkpoints.steps()
    if not steps or not stage:
        have = ", ".join(sorted(path.name for path in parent.checkpoints("").glob("*")))
        raise UserError(
            f"{parent.path} has no checkpoint of {request.stage or first}"
            + (f"; it has some of {have}: name one with --from-stage" if have else "")
        )
    # An imported model has weights and no optimizer.
    has_state = any(name.startswith("opt/") for name in checkpoints.leaf_names())
    whole_state = stage == first and has_state and not request.weights_only
    best = checkpoints.best_step()
    step = steps[-1] if whole_state or best is None else best
    if request.step is not None:
        step = request.step
    if step not in steps:
        kept = ", ".join(map(str, steps))
        raise UserError(f"{parent.path} keeps no step {step} of {stage}; it keeps {kept}")
    return Origin(str(parent.path.resolve()), stage, step, whole_state)


def keep_tokenizer(old: Config, c: Config) -> Config:
    """The configuration with the parent's tokenizer, where other text would make another one."""
    if list_changes(old, c, "text") or list_changes(old, c, "seed"):
        asked = [
            line
            for line in list_changes(old, c, "text")
            if line.startswith(("text.tokenizer ", "text.vocab_size "))
        ]
        # Of a run that was begun so it says "run".
        if asked and "run" not in (c.text.tokenizer, old.text.tokenizer):
            warn_once(f"the tokenizer stays that of the weights, without {'; '.join(asked)}")
        text = replace(c.text, tokenizer="run", vocab_size=old.text.vocab_size)
        return replace(c, text=text)
    return c


def _require_same_state(parent: RunDir, old: Config, c: Config, first: str) -> None:
    changes = list_state_changes(old, c, first)
    if changes:
        raise UserError(
            f"the state that {parent.path} has saved does not fit {'; '.join(changes)}: set that "
            "back, or add --from-weights to begin at step 0 from its weights"
        )


def list_state_changes(old: Config, c: Config, stage: str) -> list[str]:
    """Keys whose change gives the state of a stage other arrays, as `key old -> new`."""
    parts = zip(_list_state_parts(old, stage), _list_state_parts(c, stage), strict=True)
    return [
        f"{key} {before!r} -> {after!r}"
        for (key, before, held), (_, after, holds) in parts
        if before != after and held != holds
    ]


def _list_state_parts(c: Config, stage: str) -> list[tuple[str, Any, Any]]:
    """Keys that decide which arrays the state of a stage has, their values, what counts of them."""
    key, r = STAGES[stage].train, c.reinforce
    t = config.get(c, key)
    parts = [
        (f"{key}.lora_rank", t.lora_rank, t.lora_rank),
        (f"{key}.lora_targets", t.lora_targets, t.lora_rank and t.lora_targets),
        (f"{key}.optimizer", t.optimizer, t.optimizer),
        (f"{key}.ema_decay", t.ema_decay, t.ema_decay > 0),
    ]
    if stage == "reinforce":
        has_ref, has_head = learn.needs_ref(r), learn.trains_head(r)
        parts += [
            ("reinforce.kl_coef", r.kl_coef, has_ref),
            ("reinforce.reward", r.reward, has_head),
            ("reinforce.label_fraction", r.label_fraction, has_head),
            ("reinforce.method", r.method, (has_ref, has_head)),
        ]
    return parts


def _require_steps_left(origin: Origin, c: Config, first: str) -> None:
    key = STAGES[first].train
    steps = config.get(c, key).steps
    if origin.step >= steps:
        raise UserError(
            f"{first} has done {origin.step} of {steps} steps there; "
            f"add --{key}.steps with more, or --from-weights to begin again from its weights"
        )


def _link_data(parent: RunDir, old: Config, target: RunDir, c: Config) -> None:
    """Give a new run its tokenizer and, where they are of the same text, its tokens."""
    is_same_text = not (list_changes(old, c, "text") or list_changes(old, c, "seed"))
    if is_same_text and parent.is_done("prepare"):
        link_tree(parent.data, target.data)
        update_report(target.path, "prepare", parent.report()["prepare"])
    else:
        target.data.mkdir(parents=True, exist_ok=True)
        # Not a link to the file: it may be damaged, and it needs a copy of its own.
        write_kept(target.tokenizer, read_kept(parent.tokenizer))


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links; by bytes on a file system without them."""
    shutil.copytree(source, target, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, target)
