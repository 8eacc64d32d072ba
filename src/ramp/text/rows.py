"""Tokens on disk, fixed rows, and `batch(seed, step)`.

A corpus is one flat stream, `bos document bos document ...`, in a memory-mapped `.npy` file. A row is T of its tokens
and, as targets, the token that follows each; none is dropped and, but for the first, each is a target exactly once. A
batch is a pure function of (seed, step), so that the position in the data is the step alone and any number of hosts,
each asking for its part, form the same global batch.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.text.tokenizer import Tokenizer


def write_tokens(path: Path, docs: Iterable[np.ndarray], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write `bos doc bos doc ...` to `path` (.npy, uint16 or uint32) and a sidecar `path`.json, which it returns.

    The sidecar: tokens (with bos), documents, bytes of text, dtype, the tokenizer's fingerprint, sha256 of the tokens.
    Whole or not at all: the sidecar is written last, and tokens without one are not read.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    tmp, sidecar = path.with_name(path.name + ".tmp"), _sidecar(path)
    sidecar.unlink(missing_ok=True)
    try:
        with tmp.open("wb") as file:
            meta = _write_stream(file, docs, tokenizer, dtype)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
        tmp.write_text(json.dumps(meta, indent=2) + "\n")
        tmp.replace(sidecar)
    finally:
        tmp.unlink(missing_ok=True)
    return meta


def _write_stream(
    file: Any, docs: Iterable[np.ndarray], tokenizer: Tokenizer, dtype: np.dtype
) -> dict[str, Any]:
    digest, tokens, documents, n_bytes = hashlib.sha256(), 0, 0, 0
    _write_header(file, dtype, 0)
    for doc in docs:
        ids = np.concatenate([[tokenizer.bos], np.asarray(doc, np.int64)])
        piece = ids.astype(dtype).tobytes()
        file.write(piece)
        digest.update(piece)
        tokens, documents = tokens + len(ids), documents + 1
        n_bytes += int(tokenizer.byte_lengths[ids].sum())
    file.seek(0)
    _write_header(file, dtype, tokens)  # numpy leaves room in the header for the length to grow
    meta = {"tokens": tokens, "documents": documents, "bytes": n_bytes, "dtype": dtype.name}
    return meta | {"tokenizer": tokenizer.fingerprint, "sha256": digest.hexdigest()}


def read_tokens(path: Path, fingerprint: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """The memory-mapped stream and its sidecar, checked against each other and against the tokenizer's fingerprint."""
    remedy = "run `ramp prepare` again"
    try:
        meta = json.loads(_sidecar(path).read_text())
        stream = np.load(path, mmap_mode="r", allow_pickle=False)
        digest = hashlib.sha256(stream).hexdigest()
        if stream.shape != (meta["tokens"],) or digest != meta["sha256"]:
            raise ValueError("they are not those their sidecar tells of")
    except FileNotFoundError:
        raise UserError(f"There are no tokens at {path}: {remedy}.") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"The tokens {path} are damaged ({error}): {remedy}.") from None
    if fingerprint is not None and meta.get("tokenizer") != fingerprint:
        raise UserError(f"The tokens {path} were made by another tokenizer: {remedy}.")
    return stream, meta


@dataclass(frozen=True)
class TokenRows:
    """Row i of the stream at `path`: tokens [iT, iT+T), targets one later; the last row is padded with weight 0.

    `fingerprint` is the tokenizer's; a stream of another one is a `UserError`.
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
    def _opened(self) -> tuple[np.ndarray, dict[str, Any]]:
        return read_tokens(Path(self.path), self.fingerprint)

    @property
    def stream(self) -> np.ndarray:
        """[tokens] all of it, memory-mapped."""
        return self._opened[0]

    @property
    def meta(self) -> dict[str, Any]:
        """The sidecar that `write_tokens` wrote."""
        return self._opened[1]

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.length)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """`tokens` int32 [T], `targets` int32 [T], `weights` float32 [T]."""
        return _one(self, i)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), T]."""
        at = rows[:, None] * self.length + np.arange(self.length + 1)
        inside = at[:, 1:] < len(self.stream)
        held = self.stream[np.minimum(at, len(self.stream) - 1)].astype(np.int32)
        return {
            "tokens": held[:, :-1] * inside,
            "targets": held[:, 1:] * inside,
            "weights": inside.astype(np.float32),
        }


@dataclass(frozen=True)
class ArrayRows:
    """Rows of packed conversations: int32 `tokens`, `targets`, `segments` and float32 `weights`, each [N, T]."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segments: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return _one(self, i)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), T]."""
        return {name: array[rows] for name, array in self.arrays().items()}

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "tokens": self.tokens,
            "targets": self.targets,
            "weights": self.weights,
            "segments": self.segments,
        }

    def save(self, path: Path, fingerprint: str) -> None:
        """Write .npz with the tokenizer's fingerprint, whole or not at all."""
        tmp = path.with_name(path.name + ".tmp")
        with tmp.open("wb") as file:
            np.savez(file, **self.arrays(), tokenizer=np.array(fingerprint))
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)

    @staticmethod
    def load(path: Path, fingerprint: str | None = None) -> "ArrayRows":
        """Read what `save` wrote; a missing or damaged file, or another tokenizer's, is a `UserError`."""
        remedy = "run `ramp prepare` again"
        try:
            with np.load(path, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files}
            rows = ArrayRows(held["tokens"], held["targets"], held["weights"], held["segments"])
        except FileNotFoundError:
            raise UserError(f"There are no rows at {path}: {remedy}.") from None
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"The rows {path} are damaged ({error}): {remedy}.") from None
        if fingerprint is not None and str(held["tokenizer"]) != fingerprint:
            raise UserError(f"The rows {path} were made by another tokenizer: {remedy}.")
        return rows


@dataclass(frozen=True)
class SubsampledRows:
    """`count` rows of a source, evenly spread over it: documents of one kind lie together, so its head is no sample."""

    source: TokenRows | ArrayRows
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each array [len(rows), T]."""
        return self.source.take(rows * len(self.source) // len(self))


@dataclass(frozen=True)
class Batches:
    """`batches(step)`: the global batch of a step, pure in (seed, step); `batches(step, lo, hi)`: its rows lo..hi.

    Shuffled (training): every epoch is another permutation of all rows, epochs follow each other without end, and a
    batch may straddle two. In order (evaluation): `num_batches` batches, the last one padded with rows of weight 0.
    """

    source: TokenRows | ArrayRows | SubsampledRows
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not len(self.source):
            raise UserError(
                f"A batch of {self.batch_size} rows out of {len(self.source)}: both must be at least 1."
            )

    @property
    def num_batches(self) -> int:
        """Batches that hold every row once, the last one possibly in part."""
        return -(-len(self.source) // self.batch_size)

    @cached_property
    def _order(self) -> Any:
        """Row number by global position. Grain's index, so that rows are gathered a batch at a time."""
        if not self.shuffle:
            return range(len(self.source))
        import grain  # takes seconds to import, and imports jax: only training pays

        order = grain.MapDataset.range(len(self.source)).seed(self.seed).shuffle()
        return order.repeat(None, reseed_each_epoch=True)

    def __call__(self, step: int, lo: int = 0, hi: int | None = None) -> dict[str, np.ndarray]:
        """Each array [hi - lo, T], contiguous. No thread, no state: any step may be asked for at any time."""
        hi = self.batch_size if hi is None else hi
        if (
            step < 0
            or not 0 <= lo < hi <= self.batch_size
            or (not self.shuffle and step >= self.num_batches)
        ):
            raise IndexError(f"rows {lo}..{hi} of batch {step}")
        first = step * self.batch_size
        last = first + hi if self.shuffle else min(first + hi, len(self.source))
        rows = [int(self._order[i]) for i in range(first + lo, last)]
        batch = self.source.take(np.array(rows + [0] * (hi - lo - len(rows)), np.int64))
        for name, array in batch.items():
            array[len(rows) :] = -1 if name == "segments" else 0
        return batch


def _one(source: TokenRows | ArrayRows, i: int) -> dict[str, np.ndarray]:
    if not 0 <= i < len(source):
        raise IndexError(f"row {i} of {len(source)}")
    return {name: array[0] for name, array in source.take(np.array([i])).items()}


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_header(file: Any, dtype: np.dtype, length: int) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, header)
