"""Fixed rows of the tokens on disk, and `batch(seed, step)`.

A row is T tokens of a stream (`shards`) and, as targets, the token that follows each; none is
dropped and, but for the first of a stream, each is a target exactly once. A batch is a pure
function of (seed, step): the position in the data is the step alone, and any number of hosts, each
asking for its part, form the same global batch.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.text.shards import TokenReader

# --- rows


class Rows(Protocol):
    """Rows of equal length that are read by their numbers."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), ...]."""
        ...


@dataclass(frozen=True)
class TokenRows:
    """Row i of a stream of the manifest at `path`: tokens [iT, iT+T), targets one later.

    The rows of a mix are those of its streams, one stream after the other. The last row of each is
    padded with weight 0. `fingerprint` is that of the tokenizer; tokens made by another one are a
    `UserError`.

    mask_documents: rows carry `segments`, the number of the document within the row of each token.
    """

    path: Path
    length: int
    fingerprint: str | None = None
    mask_documents: bool = False

    def __post_init__(self) -> None:
        for stream in self.reader.manifest.streams:
            if stream.tokens < 2:
                name = f" of {stream.source}" if stream.source else ""
                raise UserError(
                    f"The tokens {self.path}{name} are too few for a row: "
                    "give a source with more text."
                )

    @cached_property
    def reader(self) -> TokenReader:
        """The tokens that the rows are made of."""
        return TokenReader(Path(self.path), self.fingerprint)

    @property
    def stream(self) -> np.ndarray:
        """[tokens] all of them: in memory, where they are in several shards."""
        return self.reader.read_all()

    @cached_property
    def _tokens(self) -> np.ndarray:
        """[streams] the tokens of each."""
        return np.array([stream.tokens for stream in self.reader.manifest.streams])

    @cached_property
    def _num_rows(self) -> np.ndarray:
        """[streams] the rows of each."""
        return -(-(self._tokens - 1) // self.length)

    @property
    def mix(self) -> list[tuple[int, float]]:
        """The rows of each stream and its weight; empty where there is one stream."""
        streams = self.reader.manifest.streams
        if len(streams) == 1:
            return []
        return [
            (int(rows), stream.weight) for rows, stream in zip(self._num_rows, streams, strict=True)
        ]

    def count_epochs(self, num_rows: int) -> dict[str, float]:
        """How often each source of a mix is read when so many rows are drawn."""
        streams = self.reader.manifest.streams
        total = sum(stream.weight for stream in streams)
        return {
            stream.source: num_rows * stream.weight / total / int(rows)
            for rows, stream in zip(self._num_rows, streams, strict=True)
        }

    def __len__(self) -> int:
        return int(self._num_rows.sum())

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`tokens`, `targets` int32 and `weights` float32 of these rows, each [len(rows), T].

        And `segments` int32, if documents are masked; -1 beyond the end of the stream.
        """
        # T + 1 tokens a row: the last target is the first token of the next row.
        grid = np.zeros((len(rows), self.length + 1), np.int32)
        inside = np.zeros((len(rows), self.length), bool)
        stream_end = np.cumsum(self._tokens)
        last_row = np.cumsum(self._num_rows)
        stream_r = np.searchsorted(last_row, rows, side="right")
        row_in_stream = rows - (last_row - self._num_rows)[stream_r]
        starts = (stream_end - self._tokens)[stream_r] + row_in_stream * self.length
        stops = np.minimum(starts + self.length + 1, stream_end[stream_r])
        # A row at a time: each is a slice of one shard, or of two.
        for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            grid[i, : stop - start] = self.reader.read(start, stop)
            inside[i, : stop - start - 1] = True
        batch = {
            "tokens": grid[:, :-1] * inside,
            "targets": grid[:, 1:] * inside,
            "weights": inside.astype(np.float32),
        }
        if self.mask_documents:
            document = np.cumsum(grid[:, :-1] == self.reader.manifest.bos, axis=1, dtype=np.int32)
            batch["segments"] = np.where(inside, document, np.int32(-1))
        return batch


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

    mix: rows and weight of each part of the source, in the order of its rows. A shuffled batch
    then draws from them by weight, and each part has epochs of its own.
    """

    source: Rows
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    mix: Sequence[tuple[int, float]] = ()

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
    def _orders(self) -> list:
        """Of each part, the row by position: all epochs of it, one after another."""
        import grain  # takes seconds to import, and imports jax: only training pays

        orders, start = [], 0
        for number, (rows, _) in enumerate(self.mix or [(len(self.source), 1.0)]):
            rows_of_part = grain.MapDataset.range(start, start + rows)
            # Grain's index alone is used, to read whole batches at a time. Parts of one size must
            # not take the same order.
            order = rows_of_part.seed(self.seed + number).shuffle()
            orders.append(order.repeat(None, reseed_each_epoch=True))
            start += rows
        return orders

    def _draw(self, positions: range) -> list[int]:
        """The rows at these positions of the shuffled order, in which a position has its epoch."""
        parts, places = split_positions(np.array(positions), [w for _, w in self.mix] or [1.0])
        pairs = zip(parts.tolist(), places.tolist(), strict=True)
        return [int(self._orders[part][place]) for part, place in pairs]

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
        rows = self._draw(range(first, last)) if self.shuffle else [*range(first, last)]
        # Row 0 stands in for those past the end, and is blanked below: every batch has one shape.
        num_missing = hi - lo - len(rows)
        batch = self.source.take(np.array(rows + [0] * num_missing, np.int64))
        for name, array in batch.items():
            array[len(rows) :] = -1 if name == "segments" else 0
        return batch


def split_positions(
    position_n: np.ndarray, weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The part that each position of a mix falls to, and its place in the order of that part.

    Both [N]. Of the first n positions a part has n times its fraction (to a ten-millionth), but for
    less than one for each part: whatever n is, and on every machine, in whole numbers.
    """
    position_n = position_n.astype(np.int64)
    part_n = np.full(len(position_n), -1)
    place_n = np.zeros_like(position_n)
    total = float(sum(weights))
    for part, weight in enumerate(weights):
        # Of what earlier parts have left, this one takes every k-th, as a line is drawn in pixels.
        fraction = round(weight / total * 2**24) if part + 1 < len(weights) else 2**24
        before_n = position_n * fraction >> 24
        takes_n = (part_n < 0) & ((position_n + 1) * fraction >> 24 > before_n)
        part_n[takes_n] = part
        place_n[takes_n] = before_n[takes_n]
        position_n = position_n - before_n
        total -= weight
    return part_n, place_n
