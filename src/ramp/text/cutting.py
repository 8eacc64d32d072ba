"""Where long text is cut: texts into documents, and large files into parts that are read alone."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

# A heading, a blank line, a line, a sentence, a word: the best place first, with what of the mark
# stays in front of the cut.
PLACES = (("\n# ", 1), ("\n## ", 1), ("\n\n", 2), ("\n\r\n", 3), ("\n", 1), (". ", 2), (" ", 1))
# How far from where it was to be a part may end, so that it ends at a blank line.
REACH = 2**20

# (first byte or row group, end, bytes) of a part.
Bounds = tuple[int, int | None, int]


def cut_text(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The joined `texts` in pieces of half to one and a half times `limit` characters.

    No text is held but the next piece. A text of at most 1.5 times the limit stays whole.
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > 1.5 * limit:
            end = _find_place(rest, start, limit)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _find_place(text, start, limit):
    for mark, kept in PLACES:
        place = text.rfind(mark, start + limit // 2, start + limit)
        if place >= 0:
            return place + kept
    return start + limit  # a word of a megabyte


def cut_lines(path: Path, part_bytes: int, mark: bytes = b"\n") -> list[Bounds]:
    """Parts of about `part_bytes`, each ending behind `mark`, or at a line end where it is rare."""
    size = path.stat().st_size
    bounds = [0]
    with path.open("rb") as file:
        while bounds[-1] + part_bytes < size:
            start = bounds[-1] + part_bytes - len(mark)
            file.seek(start)
            place = file.read(REACH).find(mark)
            if place >= 0:
                bounds.append(start + place + len(mark))
                continue
            file.seek(start)
            # A line of many megabytes: its end is looked for as far as it may be.
            while (block := file.readline(REACH)) and not block.endswith(b"\n"):
                pass
            bounds.append(file.tell())
    bounds += [size] if bounds[-1] < size else []
    return [(start, stop, stop - start) for start, stop in pairwise(bounds)]


def cut_paragraphs(path: Path, part_bytes: int) -> list[Bounds]:
    """Parts that end behind a blank line where there is one."""
    with path.open("rb") as file:
        is_crlf = b"\r\n" in file.read(REACH)
    return cut_lines(path, part_bytes, b"\r\n\r\n" if is_crlf else b"\n\n")


def cut_row_groups(path: Path, part_bytes: int) -> list[Bounds]:
    """Runs of row groups of a parquet file; the whole file where its footer is damaged."""
    import pyarrow
    import pyarrow.parquet

    size = path.stat().st_size
    try:
        meta = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return [(0, None, size)]  # its reader will say what is wrong
    bounds: list[Bounds] = []
    start = part = 0
    for group in range(meta.num_row_groups):
        part += meta.row_group(group).total_byte_size
        if part >= part_bytes or group + 1 == meta.num_row_groups:
            bounds.append((start, group + 1, part))
            start, part = group + 1, 0
    return bounds or [(0, None, size)]
