"""A run: its stages in order; what is done is skipped, what is not is resumed."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from ramp.config import Config
from ramp.errors import NothingToLearn, UserError
from ramp.files import quote_path, write_atomic
from ramp.host import measure_budget, setup_devices
from ramp.rivals import list_rivals
from ramp.rundir import Request, RunDir, open_run
from ramp.stages import STAGES
from ramp.stages.checks import check_settings
from ramp.text.engine import end_with_parent
from ramp.text.tokenizer import Tokenizer


def run(
    c: Config,
    directory: Path,
    stages: Sequence[str] = (),
    force: bool = False,
    suites: dict[str, Callable[..., dict]] | None = None,
    request: Request | None = None,
) -> None:
    """Do `stages` (by default all of the configuration's) in `directory`.

    A stage that is done is skipped unless `force`: then it begins anew, and what it had made is put
    aside. Raises `UserError`, `Preempted` (saved, start again) or `Diverged`; `NothingToLearn`
    when the other stages are done.

    Args:
      suites: evaluations by name that are not stages of their own; they need a pretrained model and
        are called as `suite(rundir, config, stop)`.
      request: the run that a new one begins from; None: from nothing.
    """
    rundir, suites, stages = RunDir(directory), suites or {}, tuple(stages or c.stages)
    # A stage that is done needs its sources no more.
    todo = [name for name in stages if force or not is_finished(rundir, c, name)]
    # What the settings of any stage make impossible is said before anything costs time.
    check_settings(c, todo)
    rivals = list_rivals(c, stages)
    for rival in rivals:
        check_settings(rival.configure(c), [rival.stage])
    # Before imports that start threads.
    asked = rundir.keep_chosen(c)
    c = setup_devices(asked, stages=stages)
    from ramp.reporting import report
    from ramp.train import memory
    from ramp.train.preemption import Preemption
    from ramp.train.processes import is_writer, on_writer

    # All at once: a module that cannot be imported is found before hours of training.
    modules = {
        name: importlib.import_module(STAGES[name].module) for name in todo if name in STAGES
    }
    c = memory.fit_batch(asked, c, todo, measure_budget())
    stop = Preemption()
    failed: list[str] = []
    with ExitStack() as stack:
        # The lock is held to the end; only the process that writes takes it.
        on_writer(lambda: (stack.enter_context(rundir.lock()), rundir.repair()))
        if request:
            from ramp import branch

            c = branch.keep_tokenizer(open_run(request.parent)[1], c)
            # The model of another tool is there for all stages, also those that do not train.
            begun = (*stages, "finetune") if c.base else stages
            on_writer(partial(branch.begin, request, c, rundir, begun))
        on_writer(partial(rundir.check_or_create, c, is_done=not todo))
        if force:
            on_writer(partial(begin_anew, rundir, stages, [str(r.folder) for r in rivals]))
        are_lengths_checked = False
        for name in stages:
            # Those that `force` had begun anew before a request to stop are done by now.
            if is_finished(rundir, c, name) and not (force and is_repeated(name)):
                print(f"{name}: done before{say_edited(rundir, c, name)}")
                continue
            if name != "prepare" and not are_lengths_checked:
                check_lengths(rundir, c, [modules[x] for x in todo if x in modules])
                are_lengths_checked = True
            require_done(rundir, name, needs="pretrain" if name in suites else STAGES[name].needs)
            # Before it begins: what is edited meanwhile is not what it began with.
            ended = {"done": True, "own_files": hash_own_files(c, name)}
            if name == "prepare":
                before = rundir.report().get(name, {}).get("sha256")
                result = on_writer(partial(prepare_in_subprocess, rundir, c))
                if result and before not in (None, result["sha256"]):
                    print_outdated(rundir)
            else:
                work = suites[name] if name in suites else modules[name].run
                try:
                    result = work(rundir, c, stop)
                except NothingToLearn as error:
                    # The others need not wait: those that build on it say that it is missing.
                    on_writer(partial(print, error, file=sys.stderr))
                    failed.append(name)
                    # How its figures went is what shows why.
                    on_writer(partial(report.write_report, directory))
                    continue
            # The other processes have no result of `prepare`, and write none.
            on_writer(partial(report.update_report, directory, name, result or {}))
            # After each stage, so that a run that breaks off later has a report too.
            on_writer(partial(report.write_report, directory))
            # Last: a kill before this repeats the end of the stage, a later one loses nothing.
            on_writer(partial(report.update_report, directory, name, ended))
        on_writer(lambda: rundir.begun_anew.unlink(missing_ok=True))
    # Behind the stages, which whoever waits for the model wants first.
    done = [rival for rival in rivals if rundir.is_done(rival.stage)]
    for rival in done:
        print(f"rival of {rival.stage}: {rival.name} {' '.join(rival.flags)}")
        where = directory / rival.folder
        run(rival.configure(asked), where, request=rival.request(directory, asked))
    if done:
        on_writer(partial(report.write_report, directory))
    if failed:
        page = directory / "report.html"
        raise NothingToLearn(f"{', '.join(failed)} is left undone, as said above; see {page}")
    if is_writer():
        print(f"report: {directory / 'report.html'}")


def is_finished(rundir: RunDir, c: Config, name: str) -> bool:
    """Whether a stage has done all that the configuration asks for."""
    extends = STAGES[name].extends if name in STAGES else ""
    if not rundir.is_done(name) or not extends:
        return rundir.is_done(name)
    made = rundir.report()[name][extends]
    return len(made) >= getattr(getattr(c, name), extends) or made[-1]["decision"] == "stop"


def hash_own_files(c: Config, name: str) -> str:
    """Of the files of the user's that a stage works with; empty: it has none, or they are gone."""
    module = importlib.import_module(STAGES[name].module) if name in STAGES else None
    # A stage that is done needs them no more.
    with suppress(OSError, UserError):
        return module.hash_own_files(c) if hasattr(module, "hash_own_files") else ""
    return ""


def say_edited(rundir: RunDir, c: Config, name: str) -> str:
    """What is to say of a stage that is done where its files were edited since."""
    before = rundir.report()[name].get("own_files")
    # Of a run of an older ramp nobody knows.
    if not before or hash_own_files(c, name) in ("", before):
        return ""
    return (
        ", with files of yours (code, questions or texts) as they were before an edit; "
        f"{rundir.redo(name)} does it again with what is there now"
    )


def check_lengths(rundir: RunDir, c: Config, modules: Sequence[ModuleType]) -> None:
    """Raise `UserError` where what the tokenizer made does not fit what a stage asks for."""
    # A stage that is asked for on its own says itself what it lacks.
    if not rundir.tokenizer.exists():
        return
    tokenizer = Tokenizer.load(rundir.tokenizer)
    # An id beyond the table would be read as another row of it, without a word.
    if tokenizer.vocab_size > c.model.vocab_size:
        raise UserError(
            f"{rundir.tokenizer} has {tokenizer.vocab_size} tokens and the model "
            f"{c.model.vocab_size}; set --model.vocab_size {tokenizer.vocab_size}"
        )
    for module in modules:
        if hasattr(module, "check_lengths"):
            module.check_lengths(rundir, c, tokenizer)


def is_repeated(name: str) -> bool:
    """Whether what is asked for only looks at a model, and so leaves nothing to go on from."""
    return name not in STAGES or STAGES[name].repeats


def begin_anew(rundir: RunDir, stages: Sequence[str], rivals: Sequence[str] = ()) -> None:
    """Undo stages that are to be done from the beginning, once: a start that goes on does not.

    rivals: folders of what stands beside them, which would be of other weights.
    """
    from ramp.reporting import report

    stages = [name for name in stages if not is_repeated(name)]
    mark = " ".join(stages)
    if not stages:
        return
    if rundir.begun_anew.exists() and rundir.begun_anew.read_text() == mark:
        return
    begun = [name for name in stages if rundir.has_begun(name)]
    # First: killed in between, the same command without --force must not find them done.
    for name in begun:
        if rundir.is_done(name):
            report.update_report(rundir.path, name, {"done": False})
    rundir.put_aside(begun, rivals)
    write_atomic(rundir.begun_anew, mark)


def print_outdated(rundir: RunDir) -> None:
    """Say which stages were trained on tokens that are not there any more."""
    trained = [stage.name for stage in STAGES.values() if stage.train]
    begun = [name for name in trained if rundir.has_begun(name)]
    if begun:
        print(
            f"prepare: these are other tokens than before, on which {', '.join(begun)} trained; "
            f"`ramp run {quote_path(rundir.path)} --stages {' '.join(begun)} --force` trains on "
            "the new ones"
        )


def has_origin_for(rundir: RunDir, name: str, needs: str) -> bool:
    """Whether a stage has what it needs from the run that this one began from."""
    origin = rundir.origin()
    if origin is None:
        return False
    # Its own state, or weights that stand in for those of the stage that has not run here.
    if origin.whole_state:
        return origin.stage == name
    return not rundir.has_begun(needs)


def require_done(rundir: RunDir, name: str, needs: str) -> None:
    """Refuse a stage whose input is not there, with the command that makes it."""
    if needs and not rundir.is_done(needs) and not has_origin_for(rundir, name, needs):
        raise UserError(
            f"{name} needs {needs}, which {rundir.path} has not finished; "
            f"run `ramp {needs} {quote_path(rundir.path)}`"
        )


def prepare_in_subprocess(rundir: RunDir, c: Config) -> dict:
    """Run `prepare` in a process of its own.

    In this one the tokenizer's threads would wait for the single memory arena that `keep_memory`
    leaves (30 s instead of 7), and its garbage would stay.
    """
    from ramp.stages import prepare

    # Spawned: a fork of a process that has started jax's threads may hang.
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent, (os.getpid(),)) as pool:
        return pool.submit(prepare.run, rundir, c).result()
