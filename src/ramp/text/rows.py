"""Tokens on disk, fixed rows, and `batch(seed, step)`.

A corpus is one flat stream, `bos document bos document ...`, in a memory-mapped `.npy` file. A row
is T of its tokens and, as targets, the token that follows each; none is dropped and, but for the
first, each is a target exactly once. A batch is a pure function of (seed, step): the position in
the data is the step alone, and any number of hosts, each asking for its part, form the same global
batch.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.text.tokenizer import Tokenizer

REMEDY = "run `ramp prepare` again"


# --- the stream on disk


@dataclass(frozen=True)
class StreamInfo:
    """The sidecar of a stream of tokens."""

    tokens: int  # with bos
    documents: int
    bytes: int  # of text
    dtype: str
    tokenizer: str  # its fingerprint
    sha256: str  # of the tokens


def write_tokens(path: Path, docs: Iterable[np.ndarray], tokenizer: Tokenizer) -> StreamInfo:
    """Write `bos doc bos doc ...` to `path` (.npy, uint16 or uint32) and a sidecar `path`.json.

    Whole or not at all: the sidecar is written last, and tokens without one are not read.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    # The old sidecar goes first: it must not be taken for that of other tokens.
    _sidecar(path).unlink(missing_ok=True)
    # All in memory, where the texts are too: the tokens take less room than those.
    parts = [np.append(tokenizer.bos, doc).astype(dtype) for doc in docs]
    stream = np.concatenate([np.empty(0, dtype), *parts])  # a source may be empty
    info = StreamInfo(
        tokens=len(stream),
        documents=len(parts),
        # Of the tokens rather than the text: exactly what bits per byte divide by.
        bytes=sum(int(tokenizer.byte_lengths[part].sum()) for part in parts),
        dtype=dtype.name,
        tokenizer=tokenizer.fingerprint,
        sha256=hashlib.sha256(stream.data).hexdigest(),
    )
    buffer = io.BytesIO()
    np.save(buffer, stream)
    write_atomic(path, buffer.getvalue())
    write_atomic(_sidecar(path), json.dumps(asdict(info), indent=2) + "\n")
    return info


def _sidecar(path):
    return path.with_name(path.name + ".json")


def read_tokens(path: Path, fingerprint: str | None = None) -> tuple[np.ndarray, StreamInfo]:
    """The memory-mapped stream and its sidecar.

    UserError where they do not fit each other, or the tokenizer with the fingerprint.
    """
    try:
        info = StreamInfo(**json.loads(_sidecar(path).read_text()))
        stream = np.load(path, mmap_mode="r", allow_pickle=False)
        # Reading it all takes a second per GB, and a flipped bit would stay in the model for good.
        digest = hashlib.sha256(stream).hexdigest()
        if stream.shape != (info.tokens,) or digest != info.sha256:
            raise ValueError("they do not match their sidecar")
    except FileNotFoundError:
        raise UserError(f"There are no tokens at {path}: {REMEDY}.") from None
    except (ValueError, TypeError, EOFError) as error:
        raise UserError(f"The tokens {path} are damaged ({error}): {REMEDY}.") from None
    if fingerprint is not None and info.tokenizer != fingerprint:
        raise UserError(f"The tokens {path} were made by another tokenizer: {REMEDY}.")
    return stream, info


# --- rows


class Rows(Protocol):
    """Rows of equal length that are read by their numbers."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), ...]."""
        ...


@dataclass(frozen=True)
class TokenRows:
    """Row i of the stream at `path`: tokens [iT, iT+T), targets one later.

    The last row is padded with weight 0. `fingerprint` is that of the tokenizer; a stream made by
    another one is a `UserError`.
    """

    path: Path
    length: int
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if len(self.stream) < 2:
            raise UserError(
                f"The tokens {self.path} are too few for a row: give a source with more text."
            )

    @cached_property
    def stream(self) -> np.ndarray:
        """[tokens] all of it, memory-mapped."""
        return read_tokens(Path(self.path), self.fingerprint)[0]

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.length)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`tokens`, `targets` int32 and `weights` float32 of these rows, each [len(rows), T]."""
        # T + 1 tokens a row: the last target is the first token of the next row.
        at = rows[:, None] * self.length + np.arange(self.length + 1)
        inside = at[:, 1:] < len(self.stream)
        tokens = self.stream[np.minimum(at, len(self.stream) - 1)].astype(np.int32)
        return {
            "tokens": tokens[:, :-1] * inside,
            "targets": tokens[:, 1:] * inside,
            "weights": inside.astype(np.float32),
        }


@dataclass(frozen=True)
class ArrayRows:
    """Rows of packed conversations, each array [N, T]."""

    tokens: np.ndarray  # int32
    targets: np.ndarray  # int32
    weights: np.ndarray  # float32, loss weights of the targets
    segments: np.ndarray  # int32, number of the conversation in its row, -1: padding

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), T]."""
        return {name: array[rows] for name, array in vars(self).items()}

    def save(self, path: Path, fingerprint: str) -> None:
        """Write .npz with the tokenizer's fingerprint, for people to look into: ramp reads none."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self), tokenizer=np.array(fingerprint))
        write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class SubsampledRows:
    """`count` rows of a source, evenly spread over it.

    Not its first rows: documents of one kind stand together, so its head is no sample.
    """

    source: Rows
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), T]."""
        return self.source.take(rows * len(self.source) // len(self))


# --- batches


@dataclass(frozen=True)
class Batches:
    """`batches(step)`: the global batch of a step; `batches(step, lo, hi)`: its rows lo..hi.

    Pure in (seed, step). Shuffled (training): every epoch is another permutation of all rows,
    epochs follow each other without end, and a batch may straddle two. In order (evaluation):
    `num_batches` batches, the last one padded with rows of weight 0.
    """

    source: Rows
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not len(self.source):
            raise UserError(
                f"A batch of {self.batch_size} rows out of {len(self.source)}: "
                "both must be at least 1."
            )

    @property
    def num_batches(self) -> int:
        """Batches that hold every row once, the last one possibly in part."""
        return -(-len(self.source) // self.batch_size)

    @cached_property
    def _order(self):
        """Row number by global position: only Grain's index, to read whole batches at a time."""
        if not self.shuffle:
            return range(len(self.source))
        import grain  # takes seconds to import, and imports jax: only training pays

        order = grain.MapDataset.range(len(self.source)).seed(self.seed).shuffle()
        return order.repeat(None, reseed_each_epoch=True)

    def __call__(self, step: int, lo: int = 0, hi: int | None = None) -> dict[str, np.ndarray]:
        """Each array [hi - lo, T], contiguous. No state: any step may be asked for at any time."""
        hi = self.batch_size if hi is None else hi
        is_past_end = not self.shuffle and step >= self.num_batches
        if step < 0 or is_past_end or not 0 <= lo < hi <= self.batch_size:
            raise IndexError(f"rows {lo}..{hi} of batch {step}")
        first = step * self.batch_size + lo
        last = step * self.batch_size + hi
        if not self.shuffle:
            last = min(last, len(self.source))
        # The order holds all epochs one after another, so a position need not know its epoch.
        rows = [int(self._order[i]) for i in range(first, last)]
        # Row 0 stands in for those past the end, and is blanked below: every batch has one shape.
        num_missing = hi - lo - len(rows)
        batch = self.source.take(np.array(rows + [0] * num_missing, np.int64))
        for name, array in batch.items():
            array[len(rows) :] = -1 if name == "segments" else 0
        return batch
