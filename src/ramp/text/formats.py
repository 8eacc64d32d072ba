"""Files to records: text, JSON, CSV, parquet, compressed or in a tar; damage is one `Bad` record.

A reader is `(file, reading) -> (key, record) ...`: the key says where in the file the record is,
the record is a text, a dict or a `Bad`. What has no known suffix is read as text.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from ramp.errors import UserError
from ramp.text.cutting import Bounds, cut_lines, cut_paragraphs, cut_row_groups, cut_text
from ramp.text.encodings import Bad
from ramp.text.fields import TEXT_FIELDS
from ramp.text.reading import BLOCK, MAX_LINE, Part, Reader, Reading, Records, decode, read_as_text
from ramp.text.tables import read_csv, read_parquet


def split_suffixes(name: str) -> tuple[str, str]:
    """(suffix of the format, that of the compression); the first empty where no format is known."""
    *stem, last = name.lower().rsplit(".", 2)
    if not stem:
        return "", ""
    if f".{last}" == ".tgz":
        return ".tar", ".gz"
    if f".{last}" not in COMPRESSIONS:
        return (f".{last}" if f".{last}" in FORMATS else ""), ""
    inner = f".{stem[-1]}" if len(stem) > 1 else ""
    # The text in a file such as `words.gz`.
    return (inner if inner in FORMATS else ".txt"), f".{last}"


def records(part: Part, notes: Counter | None = None) -> Records:
    """(key, record) of each record of a part."""
    path = part.fetch()
    reading = Reading(replace(part, path=str(path)), Counter() if notes is None else notes)
    if not path.exists():
        raise UserError(f"{path} is missing, though its source lists it: was it moved just now?")
    try:
        with path.open("rb") as file:
            file.seek(part.start if split_suffixes(part.name)[0] != ".parquet" else 0)
            yield from _read_file(file, part.name, reading)
    except PermissionError:
        raise UserError(f"{path} may not be read: change its permissions.") from None


def _read_file(raw: IO[bytes], name: str, reading: Reading) -> Records:
    """The records of a file, or of a member of a tar."""
    format_, packed = split_suffixes(name)
    try:
        file = COMPRESSIONS[packed](raw) if packed else raw
        yield from FORMATS.get(format_, _read_text)(file, reading)
    except PermissionError:
        raise
    # What the libraries below say of damaged data.
    except (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, UnicodeDecodeError):
        yield " at its end", Bad("bad_file")


# --- text


@read_as_text
def _read_text(file, reading) -> Records:
    bad = None

    def decode_blocks():
        nonlocal bad
        for block in _read_blocks(file, reading.part):
            try:
                yield decode(block, reading)
            except Bad as error:
                bad = bad or error

    pieces = cut_text(decode_blocks(), reading.part.piece)
    first = list(islice(pieces, 2))
    for number, text in enumerate(chain(first, pieces), 1):
        # With a block that cannot be read the file is damaged: a text with a hole is none.
        if bad:
            break
        yield f" piece {number}" if len(first) == 2 else "", text
    if bad:
        yield "", bad


def _read_blocks(file, part) -> Iterator[bytes]:
    """Blocks that end behind a line, a word, or at least a letter."""
    left = None if part.stop is None else part.stop - part.start
    rest = b""
    while block := file.read(BLOCK if left is None else min(BLOCK, left)):
        left = None if left is None else left - len(block)
        block = rest + block
        # The end of the file: nothing more can belong to its last letter.
        if len(block) < BLOCK:
            rest = block
            continue
        end = block.rfind(b"\n") + 1 or block.rfind(b" ") + 1 or _count_whole(block)
        rest = block[end:]
        yield block[:end]
    if rest:
        yield rest


def _count_whole(block):
    """Bytes before the last letter of UTF-8, which may go on in the next block."""
    end = len(block) - 1
    while end > 1 and block[end] & 0xC0 == 0x80:
        end -= 1
    return end if block[end] >= 0xC0 else len(block)


# --- JSON


@read_as_text
def _read_jsonl(file, reading) -> Records:
    """One record a line; also a file that is one piece of JSON in spite of its name."""
    first = file.readline(MAX_LINE)
    is_document = first.strip() in (b"[", b"{") and not reading.part.start
    yield from (_read_document if is_document else _read_lines)(first, file, reading)


@read_as_text
def _read_json(file, reading) -> Records:
    """A list of records, an object of them, or one record; or a line for each of them."""
    first = file.readline(MAX_LINE)
    # Many files of lines have this suffix.
    is_lines = isinstance(_parse_json(first, reading), dict) and bool(file.peek(1).strip())
    yield from (_read_lines if is_lines else _read_document)(first, file, reading)


def _read_lines(first, file, reading) -> Records:
    # Not `ramp.files.read_jsonl`, which is for our own files: here bad lines are counted by kind,
    # a line need not be an object, and a file may be larger than memory.
    part = reading.part
    # The numbers of earlier lines are not known to a later part.
    behind = f" behind byte {part.start}" if part.start else ""
    left = float("inf") if part.stop is None else part.stop - part.start
    number, line = 0, first
    while line and left > 0:
        number += 1
        left -= len(line)
        is_too_long = len(line) == MAX_LINE
        if line.strip():
            record = Bad("line_too_long") if is_too_long else _parse_json(line, reading)
            yield f":{number}{behind}", record
        while is_too_long and line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
            left -= len(line)
        line = file.readline(MAX_LINE)


def _read_document(first, file, reading) -> Records:
    data = first + file.read(MAX_LINE)
    if len(data) >= MAX_LINE:
        raise UserError(
            f"{reading.part.path} is one piece of JSON of more than {MAX_LINE >> 20} MB, which "
            "would be held as a whole: write it as .jsonl, one record a line."
        )
    if not data.strip():
        return
    content = _parse_json(data, reading)
    if isinstance(content, dict):
        yield from _split_object(content, reading.part.field)
    elif isinstance(content, list):
        yield from ((f":{number}", record) for number, record in enumerate(content, 1))
    else:
        yield "", content if isinstance(content, Bad | str) else Bad("no_text")


def _split_object(content, name) -> Records:
    """The records in an object: itself, the longest list in it, or its values by their keys."""
    lists = [key for key, value in content.items() if _is_table(value)]
    texts = [key for key, value in content.items() if isinstance(value, str)]
    if isinstance(content.get(name), str) or (not name and not TEXT_FIELDS.isdisjoint(texts)):
        yield "", content
    elif lists:
        key = max(lists, key=lambda key: len(content[key]))
        yield from ((f":{key}:{i}", record) for i, record in enumerate(content[key], 1))
    elif texts or any(isinstance(value, dict) for value in content.values()):
        yield from ((f":{key}", record) for key, record in content.items())
    else:
        yield "", Bad("no_text")


def _is_table(value):
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) for r in value)


def _parse_json(data, reading) -> Any:
    try:
        return json.loads(decode(data, reading))
    except Bad as bad:
        return bad
    except (ValueError, RecursionError):
        return Bad("bad_line")


# --- packed files


def _open_zstd(file) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd"))


def _read_tar(file, reading) -> Records:
    """The records of its members. Nothing is unpacked, so a name may lead where it likes."""
    # `|`: from the front to the end, since a packed file cannot go back.
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            is_known = member.isfile() and split_suffixes(member.name)[0]
            opened = tar.extractfile(member) if is_known else None
            if opened is None:
                what = "members of a tar left out: no file of a known format"
                reading.notes[what] += not member.isdir()
                continue
            part = replace(reading.part, start=0, stop=None)
            inner = Reading(part, reading.notes)
            for key, record in _read_file(opened, member.name, inner):
                yield f"/{member.name}{key}", record


# By suffix.
COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
FORMATS: dict[str, Reader] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_text,
    ".markdown": _read_text,
    ".rst": _read_text,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".tar": _read_tar,
}
# Those whose records have fields; the others are texts, or hold files of any format.
RECORDS = frozenset((".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".tar"))
# By suffix, of formats that can be cut: (path, bytes) -> (start, stop, bytes) of each part.
CUTTERS: dict[str, Callable[[Path, int], list[Bounds]]] = {
    ".jsonl": cut_lines,
    ".ndjson": cut_lines,
    ".parquet": cut_row_groups,
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), cut_paragraphs),
}
