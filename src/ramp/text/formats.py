"""Files to records: text, JSON, CSV, parquet, compressed or in a tar; damage is one `Bad` record.

A reader is `(file, reading) -> (key, record) ...`: the key says where in the file the record is,
the record is a text, a dict or a `Bad`. What has no known suffix is read as text.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from ramp.errors import UserError
from ramp.text import fetch
from ramp.text.cutting import Bounds, cut_lines, cut_paragraphs, cut_row_groups, cut_text
from ramp.text.encodings import Bad, Decoder, is_binary, wide_encoding
from ramp.text.fields import TEXT_FIELDS

Records = Iterator[tuple[str, Any]]

MAX_DOCUMENT = 2**20  # characters; longer texts are cut into several documents
MAX_LINE = 2**28  # bytes that are held at once: one line, one record, one file of JSON
BLOCK = 2**20  # bytes of a text that are read at once
HEAD = 2**16  # bytes by which a file is judged


@dataclass(frozen=True)
class Part:
    """What one worker reads alone: a file, or a range of a large one. Can be pickled.

    Parts of small files are small too: whoever hands them out may want to put many together.
    """

    source: str
    name: str  # of the file, the same on every machine
    path: str  # a local file, or the address of one that is downloaded when it is read
    field: str = ""  # of a record: where its text is; empty: found when it is read
    start: int = 0  # the first byte, or the first row group of parquet
    stop: int | None = None  # the end; None: that of the file
    bytes: int = 0  # how large it is on disk; 0: not known
    piece: int = MAX_DOCUMENT  # characters of a document that a file of text is cut into
    is_found: bool = False  # whether `field` was found and not named
    sha256: str | None = None  # that a shard list promises for an address
    cache: Path | None = None  # for what is downloaded; None: the default folder

    def fetch(self) -> Path:
        """The local file, downloaded and checked if `path` is an address."""
        if not fetch.is_address(self.path):
            return Path(self.path)
        return fetch.fetch(self.path, self.sha256, self.cache or fetch.default_cache())


@dataclass
class Reading:
    """A file that is being read."""

    part: Part
    notes: Counter  # what people should know, in plain words: how many files
    decoder: Decoder = field(default_factory=Decoder)


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
    import pyarrow

    format_, packed = split_suffixes(name)
    try:
        file = COMPRESSIONS[packed](raw) if packed else raw
        yield from FORMATS.get(format_, _read_text)(file, reading)
    except PermissionError:
        raise
    # What the libraries below say of damaged data.
    except (
        *(EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError),
        *(pyarrow.ArrowException, UnicodeDecodeError),
    ):
        yield " at its end", Bad("bad_file")


# --- text


def _open_text(file, reading) -> io.BufferedReader | None:
    """The file as bytes of UTF-8, or of another encoding of one byte a letter; None: no text."""
    file = io.BufferedReader(file, HEAD)
    head = b"" if reading.part.start else file.peek(HEAD)[:HEAD]
    if encoding := wide_encoding(head):
        reading.notes[f"read as {encoding}"] += 1
        return io.BufferedReader(_AsUtf8(file, encoding), HEAD)
    if is_binary(head):
        return None
    file.read(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    return file


class _AsUtf8(io.RawIOBase):
    """A file of UTF-16 or UTF-32 as one of UTF-8."""

    def __init__(self, file, encoding):
        self._text = io.TextIOWrapper(file, encoding, newline="")
        self._rest = b""

    def readable(self):
        return True

    def readinto(self, buffer):
        self._rest = self._rest or self._text.read(len(buffer)).encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _decode(data, reading) -> str:
    before = reading.decoder.encoding
    text = reading.decoder.decode(data)
    if reading.decoder.encoding != before:
        reading.notes[f"read as {reading.decoder.encoding}"] += 1
    return text


def _read_text(raw, reading) -> Records:
    file = _open_text(raw, reading)
    if file is None:
        yield "", Bad("binary")
        return
    bad = None

    def decode_blocks():
        nonlocal bad
        for block in _read_blocks(file, reading.part):
            try:
                yield _decode(block, reading)
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


def _read_jsonl(raw, reading) -> Records:
    """One record a line; also a file that is one piece of JSON in spite of its name."""
    file = _open_text(raw, reading)
    if file is None:
        yield "", Bad("binary")
        return
    first = file.readline(MAX_LINE)
    is_document = first.strip() in (b"[", b"{") and not reading.part.start
    yield from (_read_document if is_document else _read_lines)(first, file, reading)


def _read_json(raw, reading) -> Records:
    """A list of records, an object of them, or one record; or a line for each of them."""
    file = _open_text(raw, reading)
    if file is None:
        yield "", Bad("binary")
        return
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
        return json.loads(_decode(data, reading))
    except Bad as bad:
        return bad
    except (ValueError, RecursionError):
        return Bad("bad_line")


# --- tables


def _read_csv(raw, reading) -> Records:
    file = _open_text(raw, reading)
    if file is None:
        yield "", Bad("binary")
        return
    csv.field_size_limit(MAX_LINE)  # a field is a document and may be longer than csv's 128 kB
    # Bytes that are not UTF-8 become surrogates, which `text_of` turns back.
    lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    header = lines.readline()
    delimiter = max(",;\t|", key=header.count)
    num_quotes = 0

    def count_quotes():
        nonlocal num_quotes
        for line in chain([header], lines):
            num_quotes += line.count('"')
            yield line

    rows = csv.DictReader(count_quotes(), delimiter=delimiter)
    try:
        for row in rows:
            yield f":{rows.line_num}", _decode_row(row, reading)
    except csv.Error:  # the rest of the file is lost
        yield f":{rows.line_num}", Bad("bad_file")
    # The last field has swallowed all lines behind a quote that is not closed.
    if num_quotes % 2:
        yield f":{rows.line_num}", Bad("open_quote")


def _decode_row(row, reading):
    row.pop(None, None)  # what stands behind the last column of the header
    try:
        return {key: _restore(value, reading) for key, value in row.items()}
    except Bad as bad:
        return bad


def _restore(value, reading):
    if value is None or value.isascii():
        return value
    data = value.encode("utf-8", "surrogateescape")
    return _decode(data, reading)


def _read_parquet(raw, reading) -> Records:
    import pyarrow  # slow to import: only those who read parquet wait for it
    import pyarrow.parquet

    part, row = reading.part, 0
    # Parquet is read from its end: what comes through a pipe must be held.
    is_file = type(raw) is io.BufferedReader and raw.seekable()
    source = raw if is_file else io.BytesIO(raw.read())
    with pyarrow.parquet.ParquetFile(source, buffer_size=BLOCK) as file:
        names = file.schema_arrow.names
        column = part.field if part.field in names else part.field.split(".")[0]
        if part.field and column not in names:
            raise UserError(
                f"{part.path} has no column {part.field!r} but {', '.join(names)}: "
                "name one of these with #FIELD."
            )
        meta = file.metadata
        groups = range(part.start, meta.num_row_groups if part.stop is None else part.stop)
        row = sum(meta.row_group(i).num_rows for i in range(part.start))
        size = sum(meta.row_group(i).total_byte_size for i in groups)
        num_rows = sum(meta.row_group(i).num_rows for i in groups)
        # In batches of some megabytes, so that a file larger than memory can be read.
        batch_rows = min(1024, max(1, num_rows * 2**24 // max(size, 1)))
        columns = [column] if part.field else None
        for batch in file.iter_batches(batch_rows, groups, columns=columns):
            for record in _list_rows(batch):
                row += 1
                yield f":{row}", record


def _list_rows(batch) -> list:
    """The rows of a batch; one that is not UTF-8 is one bad record and not the end of the file."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [Bad("bad_utf8")]
    return [row for i in range(batch.num_rows) for row in _list_rows(batch.slice(i, 1))]


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
FORMATS: dict[str, Callable[[Any, Reading], Records]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_text,
    ".markdown": _read_text,
    ".rst": _read_text,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
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
