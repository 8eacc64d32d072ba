"""Bytes to text: UTF-8 where it can be, else the encoding that the bytes look like, by name."""

import codecs
from dataclasses import dataclass

BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What texts are found in; a detector that may choose among a hundred often takes a rare one.
COMMON = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("koi8_r", "koi8_u", "cp874", "mac_roman", "iso8859_2", "cp437", "cp850", "cp866"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949", "iso2022_jp"),
]
SAMPLE = 4096  # bytes of which an encoding is guessed: more do not change the guess
# What texts of Western Europe have beyond ASCII in cp1252: letters, quotes, dashes. Several
# encodings have letters at these bytes, and a detector that weighs them all alike takes the French
# of cp1252 for Romanian.
WESTERN = frozenset(
    (
        *bytes.fromhex("80 85 86 8c 9c a0 a1 a3 a7 a9 aa ab ad ae b0 b4 b7 ba bb bc bd bf"),
        *(*range(0x91, 0x98), *range(0xC0, 0xD0), *range(0xD1, 0xDD), *range(0xDF, 0xFD)),
    )
)


class Bad(Exception):
    """A record that cannot be read; the argument is its kind in the counts, such as `bad_utf8`."""


def wide_encoding(head: bytes) -> str | None:
    """`utf-16` or `utf-32`, also `utf-16-le` or `-be` without a mark; None: one byte a letter.

    `head` is how the file begins.
    """
    for mark, name in BOMS.items():
        if head.startswith(mark):
            return name
    # Text in the letters of Europe has a zero in every second byte.
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
        others = head[0::2] if zeros == head[1::2] else head[1::2]
        if zeros and zeros.count(0) > 0.7 * len(zeros) and others.count(0) < 0.05 * len(zeros):
            return name
    return None


def is_binary(head: bytes) -> bool:
    """Whether these bytes are no text: many are zeros or other control characters."""
    control = sum(head.count(byte) for byte in (*range(7), *range(14, 27), *range(28, 32)))
    return control > 0.03 * len(head)


@dataclass
class Decoder:
    """Decodes the lines, or the blocks, of one file. What it has seen decides what comes next."""

    encoding: str = "utf-8"  # what it takes bytes for that are not UTF-8
    has_utf8: bool = False  # whether letters beyond ASCII have come in UTF-8

    def decode(self, data: bytes) -> str:
        """The text of `data`, or `Bad`: a damaged file, or no encoding that could be told."""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            return self._decode_other(data, error.start)
        if not self.has_utf8 and not data.isascii():
            self.has_utf8 = True
        return text

    def _decode_other(self, data, start):
        if self.encoding == "utf-8" and (self.has_utf8 or _is_damaged_utf8(data, start)):
            raise Bad("bad_utf8")
        if self.encoding == "utf-8":
            sample = data[max(0, start - SAMPLE // 2) : start + SAMPLE]
            self.encoding = guess_encoding(sample) or "utf-8"
        try:
            return data.decode(self.encoding)
        except UnicodeDecodeError:
            raise Bad("unknown_encoding") from None


def _is_damaged_utf8(data, start):
    """Whether bytes, of which those at `start` are no UTF-8, are so by damage."""
    # Whole letters before the first fault, and most of what is behind it: other encodings have
    # letters that look so by chance, but not as many.
    head = data[start : start + SAMPLE]
    whole = head.decode("utf-8", "ignore").encode()
    num_ascii = sum(byte < 128 for byte in head)
    is_mostly_whole = len(whole) - num_ascii >= 0.75 * (len(head) - num_ascii)
    return is_mostly_whole or not data[:start].isascii()


def guess_encoding(sample: bytes) -> str | None:
    """The name of the encoding that bytes look like, which are not UTF-8; None: none."""
    import charset_normalizer  # slow to import: only those with such text wait for it

    if is_binary(sample):
        return None
    beyond = [byte for byte in sample if byte >= 128]
    western = sum(byte in WESTERN for byte in beyond)
    # Other alphabets have most of their letters beyond ASCII.
    if western > 0.95 * len(beyond) and len(beyond) < 0.35 * len(sample):
        return "cp1252"
    best = charset_normalizer.from_bytes(sample, cp_isolation=COMMON).best()
    return best.encoding if best else None
