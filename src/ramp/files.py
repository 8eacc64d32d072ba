"""Reading and writing files.

The one atomic write, the one JSONL reader, and the one way in which numbers become JSON.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write the whole file or leave the old one, whatever happens in between."""
    data = content.encode() if isinstance(content, str) else content
    # In the same folder: a rename is atomic only within one file system.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        # Before the rename: a crash must not leave an empty file in the old one's place.
        os.fsync(file.fileno())
    temporary.replace(path)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSONL file that ramp wrote; none if there is no file.

    A line that a kill has torn is left out, and a warning says so.
    """
    if not path.exists():
        return
    # Split bytes at newlines only: str.splitlines would also cut at U+2028 inside a text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            log.warning("%s:%d is not JSON and was skipped", path, number)
            continue
        # A torn line may happen to be JSON, such as the number that was left of an object.
        if isinstance(record, dict):
            yield record


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one record, and see it on the disk before returning."""
    with path.open("a", encoding="utf-8") as file:
        # A kill may have torn the last line: start on a fresh one.
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        file.write(to_json(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


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
