"""Units: what one worker prepares alone, a part of a large file or many small files together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramp.text.corpus import Document, Part, Tally, cut_file, list_parts, read_part

# A unit is a 128th of the text within these bounds: many for few cores, few files for much text.
MIN_UNIT, MAX_UNIT = 2**22, 2**26  # bytes
UNCUT = 2**62
UNKNOWN_SIZE = 2**28  # of what is downloaded when it is read


@dataclass(frozen=True)
class Unit:
    """The parts that one worker reads, and the stream that they belong to."""

    number: int
    stream: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.number:05d}"


def list_units(
    sources: Sequence[str], is_mix: bool, cache: Path, notes: Counter | None = None
) -> list[Unit]:
    """The units of all sources in order; those of a mix are of one source each.

    `notes` gets what is left out of a folder, in words, and how many files it is.
    """
    # Listed once: a folder may hold a hundred thousand files.
    listed = [list_parts(source, cache, UNCUT, notes) for source in sources]
    total = sum(part.bytes or UNKNOWN_SIZE for own in listed for part in own)
    size = min(max(total // 128, MIN_UNIT), MAX_UNIT)
    groups: list[tuple[int, list[Part]]] = []  # of a stream
    room = 0
    for number, own in enumerate(listed):
        stream = number if is_mix else 0
        for part in (part for whole in own for part in cut_file(whole, size)):
            own_size = part.bytes or UNKNOWN_SIZE
            if not groups or groups[-1][0] != stream or own_size > room:
                groups.append((stream, []))
                room = size
            groups[-1][1].append(part)
            room -= own_size
    return [Unit(i, stream, tuple(parts)) for i, (stream, parts) in enumerate(groups)]


def read_unit(unit: Unit, tallies: dict[str, Tally]) -> Iterator[Document]:
    """The documents of a unit, which are counted by source."""
    for part in unit.parts:
        yield from read_part(part, tallies.setdefault(part.source, Tally(part.source)))
