"""Byte-level BPE: any text, and any bytes, to token ids and back.

Ids 0..255 are the bytes themselves, then one id for each merge, then the eight special tokens. The
special tokens live outside the BPE, so no text that a user writes can ever become one. Every digit
is a token of its own, which gives arithmetic its columns. The whole tokenizer is a split pattern
and a list of merges, saved as JSON. The `tokenizers` library trains and encodes; this file fixes
the ids, the bytes and the special tokens around it.

BPE: Sennrich, Haddow, Birch 2016 (arXiv:1508.07909); over bytes: Radford et al. 2019 (GPT-2).
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from ramp.errors import UserError
from ramp.files import quote_path, read_kept, write_kept

SPECIALS = (
    "<|bos|>",  # begins every document and every conversation
    "<|system|>",  # these four open a turn of a conversation
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",  # also encloses a call of the calculator
    "<|end|>",  # closes a turn
    "<|step|>",  # closes a step of a solution
    "<|pad|>",
)
FORMAT = "ramp-tokenizer-1"

# How text is split before BPE; merges never cross a split. Words keep the space before them.
PATTERN = "|".join(
    [
        r"'(?i:ll|re|ve|[dmst])",  # the tail of a contraction
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",  # a word with the one space or mark before it
        r"\p{N}",  # one digit
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation and the line end after it
        r"\s*[\r\n]+",  # line ends with the blanks before them
        r"\s+(?!\S)",  # blanks, leaving one for the word that follows
        r"\s+",
    ]
)

# A longer run of letters or blanks is cut for training, whose time grows with the square of a
# word's length: 200,000 letters cost 26 seconds, cut ones a tenth of one. Encoding is linear.
LONGEST_WORD = 256
LONG_RUN = re.compile(rf"(\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}})")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte inside `tokenizers` (the table of GPT-2)."""
    plain = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    # Control characters, blanks and the like take the next code points above the bytes.
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


LETTERS = _byte_letters()


@dataclass(frozen=True)
class Tokenizer:
    """A split pattern and merges, each merge a pair of earlier ids; all else follows from these.

    The rest is what imported models bring. Their special tokens keep the names that they had: the
    first eight of `names` play the parts of `SPECIALS`, and others may follow.
    """

    merges: tuple[tuple[int, int], ...] = ()
    pattern: str = PATTERN
    ignore_merges: bool = False  # a split piece that is a token is that token, however merged
    normalizer: str = ""  # "NFC": texts are composed first, so they decode to their composed form
    names: tuple[str, ...] = SPECIALS  # of the ids behind the merges
    visible: tuple[str, ...] = ()  # those of `names` that are text: `<think>`, wherever it stands
    stops: tuple[str, ...] = ()  # those that end an answer, besides `end` and `bos`
    add_bos: bool = True  # whether texts to continue begin with `bos`
    template: str = ""  # of conversations, in Jinja; empty: ramp's own form, see `chat`

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Fit merges to `texts`; the same texts give the same merges.

        Args:
          texts: held by the library as counts of words, not as a whole.
          vocab_size: counts bytes, merges and special tokens. Too little text for that many merges
            gives a smaller vocabulary: read `vocab_size` of the result.
        """
        smallest = 256 + len(SPECIALS)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size is {vocab_size}; it must be at least {smallest}: "
                "256 bytes and the special tokens."
            )
        bpe = build_bpe(PATTERN, models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIALS),
            initial_alphabet=LETTERS,  # every byte has a token, whether the texts hold it or not
            show_progress=False,
            special_tokens=[],
        )
        pieces = (piece for text in texts for piece in LONG_RUN.split(_replace_surrogates(text)))
        bpe.train_from_iterator(pieces, trainer)
        merges = json.loads(bpe.to_str())["model"]["merges"]
        return Tokenizer(number_tokens(merges))

    @staticmethod
    def bytes_only() -> "Tokenizer":
        """No merges: one token a byte, and its id is the byte."""
        return Tokenizer()

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each ordinary id."""
        pieces = [bytes([b]) for b in range(256)]
        known = set(pieces)
        for left, right in self.merges:
            piece = pieces[left] + pieces[right]
            # Two merges may spell the same piece. It has one id: that of the first.
            if piece not in known:
                known.add(piece)
                pieces.append(piece)
        return pieces

    @cached_property
    def display_pieces(self) -> list[bytes]:
        """What `decode` shows for each id: its bytes, or the name of the special token."""
        return self.pieces + [name.encode() for name in self.names]

    @cached_property
    def text_pieces(self) -> list[bytes]:
        """What each id adds to a text: its bytes; nothing for a special token."""
        visible = set(self.visible)
        return self.pieces + [name.encode() if name in visible else b"" for name in self.names]

    @cached_property
    def special_names(self) -> tuple[str, ...]:
        """The names that no text can spell, the longest first."""
        return tuple(sorted(set(self.names) - set(self.visible), key=lambda n: (-len(n), n)))

    @property
    def vocabulary(self) -> list[str]:
        """`pieces` in the letters of GPT-2's byte-level BPE."""
        return ["".join(LETTERS[b] for b in piece) for piece in self.pieces]

    @cached_property
    def _bpe(self) -> tokenizers.Tokenizer:
        return self.to_library()

    def to_library(self, with_specials: bool = False) -> tokenizers.Tokenizer:
        """A new object of the `tokenizers` library that encodes alike.

        with_specials: it also takes the names of special tokens for these tokens.
        """
        letters = self.vocabulary
        ids = {piece: i for i, piece in enumerate(letters)}
        visible = set(self.visible)
        added = []
        for name in self.names if with_specials else self.visible:
            # With an id of its own before it is added, it keeps that id.
            ids[name] = self.id_of(name)
            added.append(AddedToken(name, normalized=False, special=name not in visible))
        merges = [(letters[left], letters[right]) for left, right in self.merges]
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=self.ignore_merges)
        bpe = build_bpe(self.pattern, model)
        if self.normalizer:
            bpe.normalizer = normalizers.NFC()
        bpe.add_tokens(added)
        return bpe

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """int32 [V]: how many bytes of text each id stands for; 0 for special tokens."""
        return np.array([len(piece) for piece in self.text_pieces], np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the content: two tokenizers that encode alike have the same one."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.pieces) + len(self.names)

    def special(self, name: str) -> int:
        """The id of a special token, by its full name (`<|bos|>`) or the bare one (`bos`)."""
        name = name if name.startswith("<|") else f"<|{name}|>"
        return len(self.pieces) + SPECIALS.index(name)

    def id_of(self, name: str) -> int:
        """The id of one of `names`."""
        return len(self.pieces) + self.names.index(name)

    def name_of(self, i: int) -> str:
        """The name of an id behind the merges."""
        return self.names[i - len(self.pieces)]

    @property
    def bos(self) -> int:
        """The id that begins a document or a conversation."""
        return self.special("bos")

    @property
    def end(self) -> int:
        """The id that closes a turn."""
        return self.special("end")

    @property
    def step(self) -> int:
        """The id that closes a step of a solution."""
        return self.special("step")

    @property
    def pad(self) -> int:
        """The id that fills up a row."""
        return self.special("pad")

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: of a turn, and of what begins or ends a document."""
        return tuple(dict.fromkeys([self.end, self.bos, *map(self.id_of, self.stops)]))

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to continue, with `<|bos|>` where the model knows texts to begin so."""
        ids = self.encode(text)
        return [self.bos, *ids] if self.add_bos or not ids else ids

    def encode(self, text: str) -> list[int]:
        """Ids of any Python string. `<|bos|>` and its like in the text are ordinary characters."""
        if _is_utf8(text):
            return self._bpe.encode_batch_fast([text])[0].ids
        return self.encode_bytes(text.encode("utf-8", "surrogatepass"))

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, so that `decode_bytes` gives them back.

        Valid UTF-8 is encoded as text, each other byte as itself.
        """
        ids: list[int] = []
        # Python spells a byte that is not UTF-8 as one of the surrogates U+DC80 .. U+DCFF.
        for part in re.split("([\udc80-\udcff])", data.decode("utf-8", "surrogateescape")):
            if len(part) == 1 and "\udc80" <= part <= "\udcff":
                ids.append(ord(part) - 0xDC00)
            elif part:
                ids += self.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores; int32 arrays."""
        if all(map(_is_utf8, texts)):
            return [np.array(e.ids, np.int32) for e in self._bpe.encode_batch_fast(list(texts))]
        return [np.array(self.encode(text), np.int32) for text in texts]

    def encode_stream(self, texts: Iterable[str], chunk: int = 256) -> Iterator[np.ndarray]:
        """`encode_batch` over an iterable of any length, holding `chunk` texts at a time."""
        texts = iter(texts)
        while batch := list(islice(texts, chunk)):
            yield from self.encode_batch(batch)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: special tokens by name, bytes that are not UTF-8 as U+FFFD."""
        pieces = (self.display_pieces[self.check_id(i)] for i in ids)
        return b"".join(pieces).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`; a special token gives none."""
        return b"".join(self.text_pieces[self.check_id(i)] for i in ids)

    def check_id(self, i: int) -> int:
        """The same id; IndexError where the vocabulary has none such."""
        if not 0 <= i < self.vocab_size:  # Python would take -1 for the last one
            raise IndexError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        return i

    def _content(self) -> dict:
        content = {
            "format": FORMAT,
            "pattern": self.pattern,
            "specials": SPECIALS,
            "merges": self.merges,
        }
        # Only where it is used, so that other tokenizers keep the fingerprints they had without it.
        for field in IMPORTED:
            value = getattr(self, field.name)
            if value != field.default:
                content[field.name] = value
        return content

    def save(self, path: Path | str) -> None:
        """Write JSON, whole or not at all."""
        content = self._content() | {"fingerprint": self.fingerprint}
        write_kept(Path(path), json.dumps(content))

    @staticmethod
    def load(path: Path | str) -> "Tokenizer":
        """Read what `save` wrote; a missing, foreign or damaged file is a `UserError`."""
        try:
            content = json.loads(read_kept(Path(path)))
            if (content["format"], tuple(content["specials"])) != (FORMAT, SPECIALS):
                raise ValueError(f"it is not of the format {FORMAT}")
            if "chatml" in content:
                raise UserError(
                    f"The tokenizer {path} was imported by an older ramp, which kept less of it: "
                    "import the model again, into a new run."
                )
            imported: dict[str, Any] = {}
            for field in IMPORTED:
                value = content.get(field.name, field.default)
                # JSON has no tuples.
                imported[field.name] = tuple(value) if isinstance(value, list) else value
            tokenizer = Tokenizer(
                tuple((int(a), int(b)) for a, b in content["merges"]),
                content["pattern"],
                **imported,
            )
            if tokenizer.fingerprint != content["fingerprint"]:
                raise ValueError("its content does not match its fingerprint")
        except FileNotFoundError:
            raise UserError(
                f"There is no tokenizer at {path}: run {_remedy(path)} first."
            ) from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"The tokenizer {path} cannot be read ({error}): run {_remedy(path)}."
            ) from None
        return tokenizer


# What only imported tokenizers have; a file leaves out what is at its default.
IMPORTED = fields(Tokenizer)[2:]


def _remedy(path: Path | str) -> str:
    """The command that makes the tokenizer of a run, RUN/data/tokenizer.json, whatever is done."""
    return f"`ramp prepare {quote_path(Path(path).parent.parent)} --force`"


@dataclass(frozen=True)
class StreamDecoder:
    """Text of ids that arrive one at a time, never half a character.

    The pushed strings and the flush, joined, are `Tokenizer.decode` of the same ids.
    """

    # `tokenizers.decoders.DecodeStream` does not replace this class. It has no flush, so that a
    # character that a model leaves unfinished would be lost. It also takes a U+FFFD that stands in
    # the text for an unfinished character, and shows it only with whatever follows.

    tokenizer: Tokenizer

    @cached_property
    def _decoder(self) -> codecs.IncrementalDecoder:
        return codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, i: int) -> str:
        """What can be shown now that id `i` has arrived; may be empty."""
        return self._decoder.decode(self.tokenizer.display_pieces[self.tokenizer.check_id(i)])

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished."""
        return self._decoder.decode(b"", final=True)


def number_tokens(merges: Iterable[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    """Merges of pieces spelled in `LETTERS` as pairs of ids.

    KeyError: a piece that no earlier merge has made.
    """
    ids = {letter: byte for byte, letter in enumerate(LETTERS)}
    pairs = []
    for left, right in merges:
        pairs.append((ids[left], ids[right]))
        ids.setdefault(left + right, len(ids))  # a piece that two merges spell keeps its first id
    return tuple(pairs)


def build_bpe(pattern: str, model: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer of the library that splits by `pattern` and then works on bytes."""
    bpe = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_letters])
    return bpe


def _is_utf8(text):
    """Whether `text` has a UTF-8 form: a Python string with lone surrogates has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _replace_surrogates(text):
    """`text` with U+FFFD in place of lone surrogates, which have no UTF-8 form."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
