"""Reading GGUF, the one-file format of llama.cpp: metadata, and tensors as float32.

The layout is that of the ggml project's `docs/gguf.md`, versions 2 and 3, little-endian.

The package `gguf` turns quantised blocks into numbers, 25 types of them. Its reader is not used: it
believes the lengths in a file, so a list that claims 2^60 entries keeps it busy for ever. A file
comes from anybody, and here every length is checked against what is left of the file.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError

# The format's numbers of types, as letters of the module `struct`.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# The largest vocabularies have 2^18 tokens and twice as many merges; a Python object each.
MAX_LIST = 1 << 20
MAX_ENTRIES = 1 << 16  # fields, tensors


@dataclass
class _Cursor:
    """A position in the file's bytes that never leaves them."""

    data: mmap.mmap
    at: int = 0

    def take(self, size):
        # The one place where a length is believed, so the one that checks.
        if not 0 <= size <= len(self.data) - self.at:
            raise ValueError("it ends in the middle of a field")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form):
        # "<": little-endian, without padding.
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self):
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise ValueError(f"it has a field of the unknown type {kind}")
        inner = self.number("I")
        count = self.number("Q")
        # Before the list is built.
        if count > MAX_LIST:
            raise ValueError(f"it has a list of {count} entries")
        if inner == STRING:
            return [self.text() for _ in range(count)]
        # No model's file has lists in lists.
        if inner not in NUMBERS:
            raise ValueError(f"it has a list of the unknown type {inner}")
        form = f"<{count}{NUMBERS[inner]}"
        return list(struct.unpack(form, self.take(struct.calcsize(form))))


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: its shape in numpy's order, its type, its bytes as rows of blocks."""

    shape: tuple[int, ...]
    kind: int
    blocks: np.ndarray


@dataclass(frozen=True)
class GgufFile:
    """An opened file; tensors are read when they are asked for."""

    meta: dict[str, Any]
    places: dict[str, _Place]

    def read_tensor(self, name: str) -> np.ndarray:
        """A tensor as float32 in numpy's order: [outputs, inputs] for a matrix."""
        from gguf import GGMLQuantizationType, dequantize

        place = self.places[name]
        kind = GGMLQuantizationType(place.kind)
        blocks = place.blocks.copy()  # a view of a mapped file may not be aligned
        try:
            # `dequantize` wants these two as numbers already.
            dtype = {"F32": "<f4", "F16": "<f2"}.get(kind.name)
            numbers = blocks.view(dtype) if dtype else dequantize(blocks, kind)
        except NotImplementedError:
            raise UserError(
                f"tensor {name} is of type {kind.name}, which the package gguf does not dequantise"
            ) from None
        return numbers.astype(np.float32).reshape(place.shape)


def read_gguf(path: Path) -> GgufFile:
    """Metadata and the places of the tensors.

    UserError: not a GGUF file, truncated, or with a tensor of a type that `gguf` does not know.
    """
    try:
        with path.open("rb") as file:
            return _read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path} cannot be read as GGUF: {error}") from None


def _read(data):
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    # Version 1 had lengths of 32 bits.
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; 2 and 3 are known")
    num_tensors = cursor.number("Q")
    num_fields = cursor.number("Q")
    if max(num_tensors, num_fields) > MAX_ENTRIES:
        raise ValueError(f"it claims {num_tensors} tensors and {num_fields} fields")
    # A field is name, type, value.
    meta = {}
    for _ in range(num_fields):
        name = cursor.text()
        if name in meta:
            raise ValueError(f"it has the field {name[:80]!r} twice")
        meta[name] = cursor.value(cursor.number("I"))
    entries = {}
    for _ in range(num_tensors):
        # An entry is name, dimensions (fastest first), type, offset.
        name = cursor.text()
        num_dims = cursor.number("I")
        if num_dims > 4:
            raise ValueError(f"tensor {name[:80]} has {num_dims} dimensions")
        if name in entries:
            raise ValueError(f"it has the tensor {name[:80]!r} twice")
        shape = tuple(cursor.number("Q") for _ in range(num_dims))[::-1]
        entries[name] = shape, cursor.number("I"), cursor.number("Q")
    align = meta.get("general.alignment", 32)
    if type(align) is not int or align < 8 or align % 8:
        raise ValueError(f"its alignment is {align!r}; that is a multiple of 8")
    # Tensors begin at the next multiple of the alignment.
    start = -(-cursor.at // align) * align
    end = start
    places = {}
    for name, (shape, kind, offset) in sorted(entries.items(), key=lambda entry: entry[1][2]):
        if offset % align or start + offset < end:
            raise ValueError(f"tensor {name[:80]} overlaps another one or begins at no multiple")
        places[name] = _locate(data, name, shape, kind, start + offset)
        end = start + offset + places[name].blocks.nbytes
    return GgufFile(meta, places)


def _locate(data, name, shape, kind, start):
    """The bytes of a tensor; ValueError where the file is too short for them."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in set(GGMLQuantizationType):
        raise ValueError(f"tensor {name} is of the unknown type {kind}")
    # Quantised types store blocks of numbers that share a scale.
    block_numbers, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    num_blocks, rest = divmod(math.prod(shape), block_numbers)
    end = start + num_blocks * block_bytes
    if rest or end > len(data):
        raise ValueError(f"tensor {name} {list(shape)} is incomplete; the file is truncated")
    # A view: nothing is read before it is asked for.
    blocks = np.frombuffer(data, np.uint8, end - start, start)
    return _Place(shape, kind, blocks.reshape(num_blocks, block_bytes))
