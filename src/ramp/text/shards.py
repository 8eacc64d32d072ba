"""Tokens on disk: a manifest, and the shards that it lists.

    data/train.json           what there is: streams, and of each the shards in their order
    data/train/00000.npy ...  flat `bos document bos document ...`, uint16 or uint32

A stream is the concatenation of its shards; a mix has one for each source. The manifest is written
last and holds a checksum of itself and of every shard: tokens without a manifest are not there, and
a shard is checked when it is first opened.
"""

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ramp.errors import UserError
from ramp.files import open_atomic, quote_path, read_kept, write_kept
from ramp.text.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 2**12  # written to a shard, and their bos
MAX_OPEN = 256  # shards that are mapped at once: each holds a file open


@dataclass(frozen=True)
class Shard:
    """A file of tokens."""

    file: str  # relative to the folder of the manifest
    tokens: int  # with bos
    documents: int
    bytes: int  # of text
    sha256: str  # of the tokens


@dataclass(frozen=True)
class Stream:
    """Shards that are read as one."""

    source: str  # of a mix; empty: all sources together
    weight: float  # of a mix: the fraction of training rows that come from here
    shards: tuple[Shard, ...]

    @property
    def tokens(self) -> int:
        """With bos."""
        return sum(shard.tokens for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """All that is known of the tokens of a split."""

    tokenizer: str  # its fingerprint
    bos: int
    dtype: str
    streams: tuple[Stream, ...]

    @property
    def shards(self) -> list[Shard]:
        """Of all streams, in order."""
        return [shard for stream in self.streams for shard in stream.shards]

    @property
    def tokens(self) -> int:
        """With bos."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """In all streams."""
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Of text, as the tokens spell it: what bits per byte divide by."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Of all that is said here, checksums of the tokens included."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all, and a copy."""
        content = asdict(self) | {"sha256": self.sha256}
        write_kept(path, json.dumps(content, indent=1) + "\n")

    @staticmethod
    def load(path: Path, fingerprint: str | None = None) -> "Manifest":
        """Read what `save` wrote.

        UserError: missing, damaged, or of another tokenizer than the one with the fingerprint.
        """
        try:
            content = json.loads(read_kept(path))
            digest = content.pop("sha256")
            streams = tuple(
                Stream(s["source"], s["weight"], tuple(Shard(**shard) for shard in s["shards"]))
                for s in content.pop("streams")
            )
            manifest = Manifest(**content, streams=streams)
            if manifest.sha256 != digest:
                raise ValueError("its content does not match its checksum")
        except FileNotFoundError:
            raise UserError(f"There are no tokens at {path}: {_remedy(path)}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"The tokens {path} are damaged ({error}): {_remedy(path)}.") from None
        if fingerprint is not None and manifest.tokenizer != fingerprint:
            raise UserError(f"The tokens {path} were made by another tokenizer: {_remedy(path)}.")
        return manifest


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds its ids."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def write_shard(path: Path, docs: Iterable[np.ndarray], tokenizer: Tokenizer) -> Shard:
    """Write `bos doc bos doc ...` to `path` (.npy), whole or not at all."""
    dtype = token_dtype(tokenizer)
    bos = np.array([tokenizer.bos], dtype)
    parts = [part for doc in docs for part in (bos, doc.astype(dtype, copy=False))]
    num_tokens = sum(map(len, parts))
    header = io.BytesIO()
    format_ = {"descr": dtype.str, "fortran_order": False, "shape": (num_tokens,)}
    np.lib.format.write_array_header_1_0(header, format_)
    digest, num_bytes = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        file.write(header.getvalue())
        # Some documents at a time: the whole would be in memory twice.
        for start in range(0, len(parts), DOCUMENTS_AT_ONCE):
            tokens = np.concatenate(parts[start : start + DOCUMENTS_AT_ONCE])
            file.write(tokens.data)
            digest.update(tokens.data)
            # Of the tokens rather than the text: exactly what bits per byte divide by.
            num_bytes += int(tokenizer.byte_lengths[tokens].sum())
    return Shard(
        file=f"{path.parent.name}/{path.name}",
        tokens=num_tokens,
        documents=len(parts) // 2,
        bytes=num_bytes,
        sha256=digest.hexdigest(),
    )


def write_tokens(path: Path, docs: Iterable[np.ndarray], tokenizer: Tokenizer) -> Manifest:
    """Write few documents as one shard, and the manifest `path` (.json)."""
    # The old manifest goes first: it must not be taken for that of other tokens.
    path.unlink(missing_ok=True)
    shard = write_shard(path.with_suffix("") / "00000.npy", docs, tokenizer)
    dtype = token_dtype(tokenizer).name
    manifest = Manifest(tokenizer.fingerprint, tokenizer.bos, dtype, (Stream("", 1.0, (shard,)),))
    manifest.save(path)
    return manifest


class TokenReader:
    """The tokens of a manifest by their places, memory-mapped shard by shard."""

    def __init__(self, path: Path, fingerprint: str | None = None):
        self.path = path
        self.manifest = Manifest.load(path, fingerprint)
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()
        self._checked: set[int] = set()
        # What is missing is said now, what is damaged when it is read.
        for shard in self.manifest.shards:
            if not (path.parent / shard.file).exists():
                raise UserError(f"The tokens {path.parent / shard.file} are gone: {_remedy(path)}.")

    @cached_property
    def starts(self) -> np.ndarray:
        """[shards + 1] the place of the first token of each shard, and the number of tokens."""
        return np.cumsum([0, *(shard.tokens for shard in self.manifest.shards)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens from `start` to before `stop`."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = [np.empty(0, self.manifest.dtype)]
        while start < stop:
            shard = self.shard(first)[start - self.starts[first] :][: stop - start]
            parts.append(shard)
            start += len(shard)
            first += 1
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def read_all(self) -> np.ndarray:
        """All tokens in memory: for corpora that are small, or of which all is needed."""
        return self.read(0, len(self))

    def read_documents(self, max_tokens: int) -> np.ndarray:
        """Whole documents of about `max_tokens` tokens, evenly spread; all where there are no more.

        At most `max_tokens`; the last document may be cut.
        """
        every = -(-len(self) // max_tokens)
        if every <= 1:
            return self.read_all()
        parts, seen = [], 0
        for number in range(len(self.manifest.shards)):
            tokens = self.shard(number)
            bounds = np.append(np.flatnonzero(tokens == self.manifest.bos), len(tokens))
            first = -seen % every
            seen += len(bounds) - 1
            chosen = zip(bounds[:-1][first::every], bounds[1:][first::every], strict=True)
            parts += [tokens[start:stop] for start, stop in chosen]
        return np.concatenate(parts)[:max_tokens]

    def shard(self, number: int) -> np.ndarray:
        """The memory-mapped tokens of a shard, checked when it is first opened."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.manifest.shards[number]
        path = self.path.parent / shard.file
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
            if tokens.shape != (shard.tokens,) or tokens.dtype != self.manifest.dtype:
                raise ValueError("its length is not that of the manifest")
            # A second for each GB, and a flipped bit would stay in the model for good.
            if number not in self._checked and _digest(tokens) != shard.sha256:
                raise ValueError("it does not match its checksum")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"The tokens {path} are damaged ({error}): {_remedy(path)}.") from None
        self._checked.add(number)
        self._open[number] = tokens
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return tokens


def _digest(tokens):
    return hashlib.sha256(tokens.data).hexdigest()


def _remedy(path):
    """The command that makes the files of RUN/data again, whatever is done."""
    run = next((p.parent for p in path.parents if p.name == "data"), path.parent)
    return f"run `ramp prepare {quote_path(run)} --force`"
