"""A user's own Python, named `PATH.py:NAME`: opened without editing ramp, and bounded in time.

What fails in it is the user's to mend: every failure is one sentence with the file and the line.
"""

import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ramp.errors import UserError, require_name


def is_user_code(spec: str) -> bool:
    """Whether a setting names an object of a file, and not one of ramp's own."""
    return spec.rpartition(":")[0].endswith(".py")


def load_object(spec: str, what: str, kind: type = object) -> Any:
    """The object NAME of `"path/mine.py:NAME"`. A file is run once, however many are asked of it.

    what: whose setting it is, such as "reinforce.reward"; it begins the sentence of an error. kind:
    what is offered in place of a name that is not there.
    Raises `UserError` where there is no such file or name, or where the file fails when it is run.
    """
    file, _, name = (spec if ":" in spec else f"{spec}:").rpartition(":")
    if not file.endswith(".py"):
        raise UserError(f"{what} is {spec!r}; write PATH.py:NAME, such as mine.py:NAME")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{what}: there is no file {file}; write PATH.py:NAME of one that is there")
    try:
        module = _run_file(path, path.stat().st_mtime_ns)
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {describe_failure(error, path)}; mend it") from None
    names = vars(module)
    if not name or name not in names:
        # What is imported is somebody else's, but for an object of the kind.
        own = (module.__name__, kind.__module__)
        fits = [
            key
            for key, value in names.items()
            if isinstance(value, kind) and getattr(value, "__module__", own[0]) in own
        ]
        fits = [key for key in fits if not key.startswith("_")]
        if not fits:
            raise UserError(f"{what}: {file} has no {kind.__name__} to name; write one there")
        if not name:
            has = f"{file} is a file, with {', '.join(fits)}"
            raise UserError(f"{what}: {has}; add the name, as {file}:{fits[0]}")
        require_name(f"{what}, {file}", name, fits)
    return names[name]


def require_own_or(what: str, name: str, known: Iterable[str], kind: type) -> None:
    """Raise `UserError` where a name is not known, with what it lacks where a file or folder is."""
    if name.endswith(".py"):
        load_object(name, what, kind)
    # Path("") is the folder one is in.
    if name and name not in [*known] and Path(name).is_dir():
        raise UserError(f"{what}: {name} is a folder; write FILE.py:NAME of a file in it")
    require_name(what, name, known)


# Kept by its time, so that a file that was edited is run again, and task and reward of one file
# share its classes.
@lru_cache(maxsize=64)
def _run_file(path: Path, changed_ns: int) -> ModuleType:
    # The file's neighbours can be imported, as they could if it were run by itself. Last, so that
    # none of them hides another module.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # The same in every process: what one pickles, another reads.
    name = f"user_code_{zlib.crc32(f'{path} {changed_ns}'.encode()):08x}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        # Not by an importer: its cache takes an edit within one second for none.
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def describe_failure(error: BaseException, path: Path | str) -> str:
    """What failed and where: `mine.py, line 3: NameError: name 'x' is not defined`.

    path: the user's file, whose innermost line is named, whatever it called fails; empty: none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    # A file that is no Python has not begun to run.
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    text = " ".join(f"{type(error).__name__}: {error}".split())  # one line: it is one sentence
    # Of a record, a problem or a verdict: what it does have.
    if isinstance(error, AttributeError) and is_dataclass(error.obj):
        text += f", it has {', '.join(field.name for field in fields(error.obj))}"
    return f"{where}: {text}".removeprefix(": ").removesuffix(":")


def call(
    function: Callable[..., Any], *args: Any, seconds: float, what: str, setting: str = ""
) -> Any:
    """What a user's function returns. setting: that of `seconds`; empty: there is none.

    Raises `UserError` where it fails, or has not returned after so many seconds. In a thread,
    since code that never returns cannot be ended; it dies with the process.
    """
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(("returned", function(*args)))
        except (Exception, SystemExit) as error:
            result.append(("failed", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        longer = f", or give it longer with --{setting} {10 * seconds:g}" if setting else ""
        said = f"{what} has not returned after {seconds:g} seconds"
        raise UserError(f"{said}; make it quicker{longer}")
    kind, value = result[0]
    if kind == "failed":
        # The frame below `work` is the user's, also of a partial or an object that is called; of a
        # function in C there is none.
        files = [frame.filename for frame in traceback.extract_tb(value.__traceback__)[1:2]]
        raise UserError(f"{what} fails: {describe_failure(value, *files or [''])}; mend it")
    return value
