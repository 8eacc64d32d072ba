"""Units: what one worker prepares alone, a part of a large file or many small files together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ramp.text.corpus import Document, Part, Tally, list_parts, read_part

# A unit is a 128th of the text within these bounds: many for few cores, few files for much text.
MIN_UNIT, MAX_UNIT = 2**22, 2**26  # bytes
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
    whole = [part for source in sources for part in list_parts(source, cache)]
    total = sum(part.bytes or UNKNOWN_SIZE for part in whole)
    size = min(max(total // 128, MIN_UNIT), MAX_UNIT)
    units: list[Unit] = []
    room = 0
    for number, source in enumerate(sources):
        stream = number if is_mix else 0
        for part in list_parts(source, cache, size, notes):
            own_size = part.bytes or UNKNOWN_SIZE
            if not units or units[-1].stream != stream or own_size > room:
                units.append(Unit(len(units), stream, ()))
                room = size
            units[-1] = replace(units[-1], parts=(*units[-1].parts, part))
            room -= own_size
    return units


def read_unit(unit: Unit, tallies: dict[str, Tally]) -> Iterator[Document]:
    """The documents of a unit, which are counted by source."""
    for part in unit.parts:
        yield from read_part(part, tallies.setdefault(part.source, Tally(part.source)))
