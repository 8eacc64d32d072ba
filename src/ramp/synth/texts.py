"""Texts of any origin and language, read from files and split into words. No model, no jax."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace

from ramp.errors import UserError
from ramp.synth.docs import Docs
from ramp.text.corpus import read_part, tally_parts
from ramp.text.formats import RECORDS, split_suffixes
from ramp.text.reading import MAX_DOCUMENT

# Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Chinese, Japanese. There each
# character is a word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u30ff\u31f0-\u31ff"
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Marks that stand inside a word and that Python's \w leaves out: accents, vowel signs.
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{MARKS}])+|[^\w\s]")

# What parts the texts of one plain file, the surest first, with the lines a text may then have.
SEPARATORS = (
    (r"<\|endoftext\|>", "<|endoftext|>", 10_000),
    (r"\n[ \t\r]*\n", "blank lines", 50),
    (r"\n", "lines", 3),
)


@dataclass(frozen=True)
class Texts:
    """The texts of a source, and their words."""

    source: str
    strings: list[str]
    docs: Docs
    notes: tuple[str, ...]  # how they were read, in plain words

    def __len__(self) -> int:
        return len(self.strings)


class Vocabulary:
    """Numbers of words, given as they come. Case and how accents are written count for nothing."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def split(self, text: str) -> list[int]:
        """The words and the punctuation of a text."""
        plain = text if text.isascii() else unicodedata.normalize("NFC", text)
        ids = self.ids
        return [ids.setdefault(word, len(ids)) for word in WORD.findall(plain.casefold())]

    def read(self, source: str) -> Texts:
        """The texts of a source, as `text.sources` names it.

        A plain file that stands alone is parted at what it is found to be parted by; of several,
        each is a text. UserError: it is missing, holds no text, or has no such field.
        """
        strings, notes = read_strings(source)
        docs = Docs.from_lists([self.split(string) for string in strings])
        return Texts(source, strings, docs, tuple(notes))


def read_strings(source: str) -> tuple[list[str], list[str]]:
    """(the texts of a source, how they were read in plain words). UserError as `read` has it."""
    strings: list[str] = []
    counts: Counter = Counter()
    notes: Counter = Counter()
    paths = set()
    is_plain = False
    for part, tally in tally_parts(source, counts, max_bad=0.01):
        notes = tally.notes
        paths.add(part.path)
        is_plain = split_suffixes(part.name)[0] not in RECORDS
        # Whole: where its texts part is found below.
        whole = replace(part, piece=MAX_DOCUMENT)
        strings += [document.text for document in read_part(whole, tally)]
    lines = list(notes)
    if is_plain and len(paths) == 1:
        strings, separator = split_plain("".join(strings))
        lines.append(f"parted at {separator}")
    if counts["empty"]:
        lines.append(f"{counts['empty']:,} empty ones left out")
    lines += [f"{n:,} left out: {kind}" for kind, n in tally.kinds.items()]
    return strings, lines


def split_plain(text: str) -> tuple[list[str], str]:
    """The texts of a plain file, and what parts them."""
    num_lines = text.strip().count("\n")
    for pattern, name, max_lines in SEPARATORS:
        pieces = [piece.strip() for piece in re.split(pattern, text) if piece.strip()]
        # A stray blank line in a file of one text a line parts nothing.
        if len(pieces) > max(1, num_lines / max_lines):
            return pieces, name
    return [text.strip()], "nothing: it is one text"


def require_texts(texts: Texts, least: int) -> None:
    """UserError where a source has fewer texts than anything can be said of."""
    if len(texts) < least:
        raise UserError(
            f"{texts.source} holds {len(texts)} text{'s' * (len(texts) != 1)} and a comparison "
            f"takes {least} or more: give more, or name their field with #FIELD"
        )
