"""Reading and writing files.

The one atomic write, the one way to keep a small file safe from damage, the one JSONL reader, and
the one way in which numbers become JSON.
"""

import hashlib
import json
import logging
import math
import os
import re
import shlex
import threading
import time
import zlib
from codecs import BOM_UTF8
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from ramp.errors import UserError

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 10.0  # see `GrowingFile`
# The end of a line that ramp wrote: the checksum of all that stands before it in the line.
CHECKSUM = re.compile(rb', "crc": "([0-9a-f]{8})"}$')


@cache
def warn_once(message: str) -> None:
    """Warn, but not again of the same: a command may read a file several times."""
    log.warning(message)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write the whole file or leave the old one, whatever happens in between."""
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomic(path: Path) -> Generator[BinaryIO]:
    """A file to write to, which takes the place of `path` when all is written."""
    # In the same folder: a rename is atomic only within one file system.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        # Before the rename: a crash must not leave an empty file in the old one's place.
        os.fsync(file.fileno())
    temporary.replace(path)


def path_exists(path: Path | str) -> bool:
    """`Path.exists`, which raises for a name that is longer than any file's."""
    with suppress(OSError):
        return Path(path).exists()
    return False


def quote_path(path: Path | str) -> str:
    """A path as a command line takes it, for the commands that are printed."""
    return shlex.quote(str(path))


def parse_path(text: str) -> Path:
    """A path given on the command line. Raises `UserError` for an address.

    A run is locked, appended to and mapped into memory, which object stores do not do: `Path` would
    make a local folder named `gs:` of it.
    """
    if "://" in text:
        raise UserError(
            f"{text} is an address, and this takes a path: mount the bucket, as tpu_scripts/ do "
            "with gcsfuse, or copy the files here, and name the folder"
        )
    return Path(text)


# --- files that are kept twice


def write_kept(path: Path, content: str | bytes) -> None:
    """Write a file and, beside it, a hidden copy with a checksum.

    For what is small and cannot be made again cheaply. The file stays as plain as other tools and
    people want it, and of the three, file, copy and checksum, two agree whatever byte is damaged.
    """
    data = content.encode() if isinstance(content, str) else content
    # The copy first: a kill in between leaves a file that the copy replaces.
    write_atomic(_copy_path(path), _digest(data) + data)
    write_atomic(path, data)


def read_kept(path: Path) -> bytes:
    """The content that `write_kept` wrote, with a warning where its copy had to be asked.

    A file without a copy is taken as it is. Nothing is written here, so that a run can be read in
    a directory that may only be read; see `repair_kept`. FileNotFoundError: there is no such file,
    or somebody has deleted it. ValueError: neither the file nor its copy is whole.
    """
    data, digest, copy = _read_both(path)
    if copy is None or data == copy:
        return data
    # Another process may be between its two writes.
    time.sleep(0.1)
    data, digest, copy = _read_both(path)
    if copy is None or data == copy:
        return data
    if _digest(data) == digest:
        warn_once(f"the copy of {path} is damaged; the file itself is whole")
        return data
    if _digest(copy) == digest:
        warn_once(f"{path} is damaged; its copy is used")
        return copy
    raise ValueError("neither the file nor its copy is whole")


def read_copy(path: Path) -> bytes | None:
    """What `write_kept` last wrote to `path`, whatever stands there now.

    None: it was never written so, or the copy is damaged.
    """
    try:
        digest, copy = _split_copy(_copy_path(path).read_bytes())
    except FileNotFoundError:
        return None
    return copy if _digest(copy) == digest else None


def repair_kept(path: Path) -> None:
    """Write a kept file and its copy again where one of them is damaged, with a warning.

    For whoever holds the lock of the run. ValueError: neither is whole.
    """
    data, digest, copy = _read_both(path)
    if copy is None or (data == copy and _digest(data) == digest):
        return
    write_kept(path, read_kept(path))
    log.warning("%s and its copy are whole again", path)


def list_kept(directory: Path) -> list[Path]:
    """The kept files of a directory and of its folders."""
    copies = [*directory.glob(".*.copy"), *directory.glob("*/.*.copy")]
    files = [copy.with_name(copy.name[1 : -len(".copy")]) for copy in sorted(copies)]
    # A file that is gone was deleted by somebody: its copy does not bring it back.
    return [file for file in files if file.exists()]


def _copy_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.copy")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _read_both(path: Path) -> tuple[bytes, bytes, bytes | None]:
    """(the file, checksum, copy); None for a copy that is not there."""
    data = path.read_bytes()
    if not _copy_path(path).exists():
        return data, b"", None
    return data, *_split_copy(_copy_path(path).read_bytes())


def _split_copy(stored: bytes) -> tuple[bytes, bytes]:
    """The checksum, 64 hexadecimal digits, and the content."""
    return stored[:64], stored[64:]


# --- JSONL


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSONL file that ramp wrote; none if there is no file.

    A line that a kill has torn, or that does not match its checksum, is left out, and a warning
    says so.
    """
    if not path.exists():
        return
    for number, line in _number_lines(path):
        try:
            record = _parse_line(line)
        except ValueError as error:
            warn_once(f"line {number} of {path} is left out: {error}")
        else:
            yield record


def iterate_whole_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSONL file, ramp's or another tool's; ValueError: one is damaged."""
    for number, line in _number_lines(path):
        try:
            record = _parse_line(line)
        except ValueError as error:
            remedy = f"`sed -i {number}d {quote_path(path)}` leaves it out"
            raise ValueError(f"line {number}: {error}; {remedy}") from None
        yield record


def read_whole_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a JSONL file, ramp's or another tool's; ValueError where one is damaged."""
    return list(iterate_whole_jsonl(path))


def _number_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, and their numbers."""
    # Bytes are split at newlines only: str.splitlines would also cut at U+2028 inside a text.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removesuffix(b"\n")
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if line.strip():
                yield number, line


def _parse_line(line: bytes) -> dict[str, Any]:
    """The record of a line; ValueError: it is torn or damaged."""
    # Lines of other tools have no checksum.
    found = CHECKSUM.search(line)
    if found and _checksum(line[: found.start()]) != found[1]:
        raise ValueError("it does not match its checksum")
    # As text, since json would look for an encoding in every line.
    record = json.loads(line.decode())
    # A torn line may happen to be JSON, such as the number that was left of an object.
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    record.pop("crc", None)
    return record


def to_line(record: dict[str, Any]) -> str:
    """A record as a line of JSONL, with a checksum as its last key."""
    text = to_json(record).removesuffix("}")
    return f'{text}, "crc": "{_checksum(text.encode()).decode()}"}}\n'


class GrowingFile:
    """A file that is appended to for as long as a run takes, and closed every few seconds.

    A mounted bucket (gcsfuse) shows and keeps what was written once the file is closed: what lies
    in an open one is lost with the machine. Every write is flushed, so that a killed process loses
    nothing on a disk of its own. It is made at once: OSError where it cannot be written.
    """

    def __init__(self, path: Path, seconds: float = PUBLISH_SECONDS):
        self.path = path
        self.seconds = seconds  # that may pass between two times that it is closed
        self._file: BinaryIO | None = None
        self._published = -math.inf
        self._lock = threading.RLock()  # a timer closes it, too
        self._timer: threading.Timer | None = None
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Append; it is published now, or when the seconds have passed."""
        with self._lock:
            if self._file is None:
                self._file = self.path.open("ab")
            self._file.write(data)
            self._file.flush()
            # Not at every write: each time a bucket takes the file anew.
            left = self._published + self.seconds - time.monotonic()
            if left <= 0:
                self.publish()
            elif self._timer is None:
                # The next write may be an hour away.
                self._timer = threading.Timer(left, self.publish)
                self._timer.daemon = True
                self._timer.start()

    def publish(self) -> None:
        """Close it; the next write opens it again. Where that fails it is said, and no more."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            file, self._file = self._file, None
            if file is None:
                return
            self._published = time.monotonic()
            try:
                file.close()
            except OSError as error:
                log.warning("%s may lack its last lines: it did not close (%s)", self.path, error)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one record, and see it on the disk before returning."""
    with path.open("ab+") as file:
        # A kill may have torn the last line: start on a fresh one.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(to_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def _checksum(text: bytes) -> bytes:
    # Any one damaged byte, and any burst of up to 32 bits, changes it.
    return b"%08x" % zlib.crc32(text)


# --- JSON


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON: a number that is not finite becomes null, since JSON has no NaN."""
    return json.dumps(replace_nonfinite(value), indent=indent, allow_nan=False)


def replace_nonfinite(value: Any) -> Any:
    """The same nested value with null in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return value
