"""Reading GGUF, the one-file format of llama.cpp: metadata and tensors, quantised blocks turned back into float32.

The layout is that of the ggml project's `docs/gguf.md`, versions 2 and 3, little-endian. A file is somebody else's:
every length in it is checked against what is left of the file before it is believed.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ramp.errors import UserError

# Names of ggml's tensor types, for the sentence that refuses them.
NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
}
NAMES |= {12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 30: "BF16"}
NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY, MOST = 8, 9, 1 << 24


def _floats(raw: np.ndarray, dtype: str = "<f2") -> np.ndarray:
    return np.ascontiguousarray(raw).view(dtype).astype(np.float32)


def _q4_1(block: np.ndarray) -> np.ndarray:
    """Scale, least value, and 16 bytes that hold 32 numbers: their low halves are the first 16, the high ones the rest."""
    scale, least, quants = _floats(block[:, :2]), _floats(block[:, 2:4]), block[:, 4:]
    return scale * np.concatenate([quants & 15, quants >> 4], axis=1).astype(np.float32) + least


def _q8_0(block: np.ndarray) -> np.ndarray:
    return _floats(block[:, :2]) * _floats(block[:, 2:], "i1")


# type: (numbers a block, bytes a block, blocks [n, bytes] -> float32)
KINDS: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (1, 4, partial(_floats, dtype="<f4")),
    1: (1, 2, _floats),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}


@dataclass
class _Cursor:
    """A place in the file's bytes that never leaves them."""

    data: np.ndarray
    at: int = 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise ValueError("it ends in the middle of a field")
        self.at += size
        return self.data[self.at - size : self.at].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY or depth > 2:
            raise ValueError(f"it has a field of the unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if count > MOST:
            raise ValueError(f"it has a list of {count} entries")
        return [self.value(inner, depth + 1) for _ in range(count)]


@dataclass(frozen=True)
class Gguf:
    """An opened file. `tensor(name)` is float32 in numpy's order: [outputs, inputs] for a matrix."""

    meta: dict[str, Any]
    places: dict[str, tuple[tuple[int, ...], int, int]]  # name: (shape, type, first byte)
    data: np.ndarray

    def tensor(self, name: str) -> np.ndarray:
        shape, kind, start = self.places[name]
        numbers, size, decode = KINDS[kind]
        blocks = math.prod(shape) // numbers
        return decode(self.data[start : start + blocks * size].reshape(blocks, size)).reshape(shape)


def read(path: Path) -> Gguf:
    """Metadata and the places of the tensors. UserError: not a GGUF file, truncated, or of a kind not known here."""
    try:
        return _read(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path} cannot be read as GGUF: {error}") from None


def _read(data: np.ndarray) -> Gguf:
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; 2 and 3 are known")
    tensors, fields = cursor.number("<Q"), cursor.number("<Q")
    if max(tensors, fields) > MOST:
        raise ValueError(f"it claims {tensors} tensors and {fields} fields")
    meta = {}
    for _ in range(fields):
        name = cursor.text()
        meta[name] = cursor.value(cursor.number("<I"))
    found = []
    for _ in range(tensors):
        name, dims = cursor.text(), cursor.number("<I")
        if dims > 4:
            raise ValueError(f"tensor {name} has {dims} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dims))[::-1]
        found.append((name, shape, cursor.number("<I"), cursor.number("<Q")))
    align = meta.get("general.alignment", 32)
    if type(align) is not int or align < 1:
        raise ValueError(f"its alignment is {align!r}")
    base = -(-cursor.at // align) * align
    places = {}
    for name, shape, kind, offset in found:
        if kind not in KINDS:
            known = ", ".join(NAMES[k] for k in KINDS)
            raise ValueError(
                f"tensor {name} is of type {NAMES.get(kind, kind)}; ramp reads {known}"
            )
        numbers, size, _ = KINDS[kind]
        if math.prod(shape) % numbers or base + offset + math.prod(shape) // numbers * size > len(
            data
        ):
            raise ValueError(
                f"tensor {name} {list(shape)} does not fit in what is there; the file is truncated"
            )
        places[name] = (shape, kind, base + offset)
    return Gguf(meta, places, data)
