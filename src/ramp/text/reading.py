"""A part of a file, and the file as it is read: opened as UTF-8, decoded line by line."""

import codecs
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ramp.text import fetch
from ramp.text.encodings import Bad, Decoder, is_binary, wide_encoding

# Of a part or a file: a key that says where in it the record is, and the record: a text, a dict or
# a `Bad`.
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


Reader = Callable[[Any, Reading], Records]


def open_text(file: Any, reading: Reading) -> io.BufferedReader | None:
    """The file as bytes of UTF-8, or of another encoding that keeps ASCII; None: it is no text."""
    file = io.BufferedReader(file, HEAD)
    head = b"" if reading.part.start else file.peek(HEAD)[:HEAD]
    if encoding := wide_encoding(head):
        reading.notes[f"read as {encoding}"] += 1
        return io.BufferedReader(_AsUtf8(file, encoding), HEAD)
    if is_binary(head):
        return None
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
        if reading.part.stop is not None:
            # What is left to read is shorter by the mark.
            reading.part = replace(reading.part, stop=reading.part.stop - len(codecs.BOM_UTF8))
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


def read_as_text(read: Callable[[io.BufferedReader, Reading], Records]) -> Reader:
    """A reader of files from one that takes them as `open_text` does."""

    def reader(raw: Any, reading: Reading) -> Records:
        file = open_text(raw, reading)
        if file is None:
            yield "", Bad("binary")
        else:
            yield from read(file, reading)

    return reader


def decode(data: bytes, reading: Reading) -> str:
    """The text of a line or a block of the file; `Bad` where it is none."""
    before = reading.decoder.encoding
    text = reading.decoder.decode(data)
    if reading.decoder.encoding != before:
        reading.notes[f"read as {reading.decoder.encoding}"] += 1
    return text
