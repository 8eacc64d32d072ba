"""Where text comes from: every source is a list of parts, every part yields documents.

`sources` says what can be named as a source, `formats` what files are read. A file of text is one
document, or several where it is long or one of few; in the other formats each record is one. What
cannot be read is skipped and counted, and a source of which more than a small fraction is bad is
refused. The id of a document is a hash of its text. Whether it is for training or validation
follows from the id alone, so it stays on its side wherever it is moved to, and two documents with
the same text are on one side.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.text import fetch
from ramp.text.cutting import cut_text
from ramp.text.encodings import Bad, wide_encoding
from ramp.text.fields import find_field, text_of
from ramp.text.formats import CUTTERS, FORMATS, RECORDS, records, split_suffixes
from ramp.text.reading import HEAD, MAX_DOCUMENT, Part
from ramp.text.sources import File, Listing, list_files

PART_BYTES = 64 * 2**20
# Counts of a `Tally` that say what was read. All others say what was left out.
USED = ("documents", "characters", "bytes", "pieces")

# A source of so few files of text is cut into pieces, about so many and of so many characters:
# whole, they may all fall on one side of the split.
FEW_FILES = 20
NUM_PIECES = 200
PIECE = (300, 8000)

REMEDIES = {
    "no_text": "name the field of the text with #FIELD, as in file:a.jsonl#body",
    "bad_utf8": "it is damaged UTF-8: write it anew, or remove it",
    "unknown_encoding": "convert it to UTF-8",
    "binary": "it is no text: remove it, or give it the suffix of its format",
}


@dataclass(frozen=True)
class Document:
    """A text. `id` is a hash of it, `where` says to people in which file and record it stands."""

    id: str
    text: str
    where: str


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
    fields: list[str] = field(default_factory=list)  # of the first record without a text
    notes: Counter = field(default_factory=Counter)  # what people should know: how many files

    def add(self, other: "Tally") -> None:
        """Count what another tally of the same source has seen of later parts."""
        self.counts.update(other.counts)
        self.kinds.update(other.kinds)
        self.good += other.good
        self.files += other.files
        self.notes.update(other.notes)
        self.first = self.first or other.first
        self.fields = self.fields or other.fields

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
        # The remedy is that of what is bad most often.
        kind = max(self.kinds, key=lambda kind: self.kinds[kind])
        remedy = REMEDIES.get(kind, "mend or remove them")
        if kind == "no_text" and self.fields:
            remedy += f"; the fields there are: {', '.join(self.fields[:20])}"
        raise UserError(
            f"{self.source}: {bad} of {among} cannot be read, first {self.first}: {remedy}."
        )


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
    for part in list_parts(source, cache, notes=tally.notes):
        yield part, tally
    tally.close()


def list_parts(
    source: str,
    cache: Path | None = None,
    part_bytes: int = PART_BYTES,
    notes: Counter | None = None,
) -> list[Part]:
    """The parts of `source` in a fixed order: one a file, several of a larger file.

    Text is cut behind paragraphs, JSONL behind lines, parquet behind row groups; a file of another
    format, one that is packed and one that is elsewhere is one part, however large. `cache` is the
    folder for what is downloaded; `notes` gets what is left out. UserError: nothing is there.
    """
    listing = list_files(source)
    files = select_files(source, listing, Counter() if notes is None else notes)
    piece = choose_piece(files)
    parts = []
    for file in files:
        whole = Part(
            source,
            file.name,
            file.path,
            listing.field,
            bytes=file.size,
            piece=piece,
            sha256=file.sha256,
            cache=cache,
        )
        parts += cut_file(whole, part_bytes)
    return parts


def select_files(source: str, listing: Listing, notes: Counter) -> list[File]:
    """The files that can be read: all that were named one by one, else those of known formats."""
    if listing.chosen:
        return list(listing.files)
    files = []
    others: Counter = Counter()
    for file in listing.files:
        if split_suffixes(file.name)[0]:
            files.append(file)
        else:
            others[Path(file.name).suffix or Path(file.name).name] += 1
    if not files:
        first = ", ".join(list(others)[:5])
        raise UserError(
            f"The source {source} holds no file of a known format but {first}: "
            f"ramp reads {' '.join(FORMATS)}, and any text that is named by its suffix, as *.py."
        )
    for suffix, number in others.items():
        notes[f"left out, of no known format: {suffix}"] += number
    return files


def choose_piece(files: list[File]) -> int:
    """How many characters of a file of text are a document: all, where there are many files."""
    all_texts = (file for file in files if split_suffixes(file.name)[0] not in RECORDS)
    texts = list(islice(all_texts, FEW_FILES))
    if not 0 < len(texts) < FEW_FILES:
        return MAX_DOCUMENT
    low, high = PIECE
    # What is packed, or of an unknown size, is taken for much.
    is_plain = all(file.size and not split_suffixes(file.name)[1] for file in texts)
    size = sum(file.size for file in texts) if is_plain else NUM_PIECES * high
    return min(max(size // NUM_PIECES, low), high)


def cut_file(part: Part, part_bytes: int) -> list[Part]:
    """A file as several parts, where it is larger, on this machine, and its format can be cut."""
    if part.bytes <= part_bytes or fetch.is_address(part.path):
        return [part]
    format_, packed = split_suffixes(part.name)
    cut = CUTTERS.get(format_ or ".txt")
    if cut is None or packed:
        return [part]
    path = Path(part.path)
    with path.open("rb") as file:
        if format_ != ".parquet" and wide_encoding(file.read(HEAD)):
            return [part]
    # Once for all its parts, which might find different ones.
    part = resolve_field(part)
    return [
        replace(part, start=start, stop=stop, bytes=size)
        for start, stop, size in cut(path, part_bytes)
    ]


def resolve_field(part: Part) -> Part:
    """The part with the field of its text, found by its first records if it was not named."""
    if part.field or split_suffixes(part.name)[0] not in RECORDS:
        return part
    field = find_field(record for _, record in records(part))
    return replace(part, field=field, is_found=bool(field))


def read_part(part: Part, tally: Tally) -> Iterator[Document]:
    """The documents of a part, in order.

    Adds to the counts of `tally`: documents, characters, bytes, pieces (documents that are a piece
    of a longer one), empty, and what is bad: bad_utf8, bad_line, no_text, bad_file ... It is for
    the caller to `close` the tally after the last part.
    """
    part = resolve_field(replace(part, path=str(part.fetch())))
    if part.is_found and not part.start:
        tally.notes[f"text found in the field {part.field!r}"] += 1

    def parse(record: Any) -> str:
        try:
            return text_of(record, part.field)
        except Bad:
            tally.fields = tally.fields or list(record if isinstance(record, dict) else [])
            raise

    for where, text in parse_records(part, tally, parse):
        # Not bad: many corpora have empty records.
        if not text.strip():
            tally.counts["empty"] += 1
            continue
        tally.good += 1
        pieces = [text]
        if len(text) > 1.5 * MAX_DOCUMENT:
            pieces = list(cut_text([text], MAX_DOCUMENT))
            tally.counts["pieces"] += len(pieces)
        elif " piece " in where:
            tally.counts["pieces"] += 1
        for number, piece in enumerate(pieces, 1):
            data = piece.encode()
            tally.counts["documents"] += 1
            tally.counts["characters"] += len(piece)
            tally.counts["bytes"] += len(data)
            place = f"{where} piece {number}" if len(pieces) > 1 else where
            yield Document(_hash(data), piece, place)


def parse_records(
    part: Part, tally: Tally, parse: Callable[[Any], Any]
) -> Iterator[tuple[str, Any]]:
    """(where it is, what `parse` makes of it) of each record of a part.

    Records that cannot be read, or for which `parse` raises `Bad`, are counted and left out.
    """
    # A file is counted with its first part.
    tally.files += part.start == 0
    for key, record in records(part, tally.notes):
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
    return _hash(text.encode("utf-8", "surrogatepass"))


def _hash(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def split_of(doc_id: str, val_fraction: float) -> str:
    """`val` for about `val_fraction` of the ids, `train` for the rest, by a hash of the id."""
    digest = hashlib.blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_fraction * 2**64 else "train"
