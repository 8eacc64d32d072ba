"""Model files from anybody: each mistake is one sentence, soon, in little memory.

uv run pytest -m slow tests/export/test_hostile_models.py   # 200 of them by a fuzzer
"""

import json
import random
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import test_files

from ramp.errors import UserError
from ramp.export import export, load
from ramp.text.tokenizer import Tokenizer

SECONDS, MEGABYTES = 1.0, 100


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(configuration, weights, tokenizer) of a tiny model."""
    t = Tokenizer.train(test_files.TEXTS, 300)
    c = test_files.configured(t, qk_norm=False, tie_embeddings=True)
    return c, test_files.made(c), t


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    c, lm, t = model
    out = tmp_path_factory.mktemp("whole") / "out"
    export.export(c, lm, t, {}, "pretrain", out)
    return out


def import_all(path: Path, shapes: dict) -> str:
    """The sentence that the file is refused with; empty where it is a model. It is quick and small in any case."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    said = ""
    try:
        foreign, tokenizer = load.open_foreign(path)
        load.make_config(foreign, tokenizer, 64)
        load.load_foreign_params(foreign, shapes, tokenizer)
    except UserError as error:
        said = str(error)
    assert time.perf_counter() - began < SECONDS, said
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, (grown, said)
    assert "\n" not in said and len(said) < 600
    return said


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def head(
    fields: bytes = b"", num_fields: int = 0, tensors: bytes = b"", num_tensors: int = 0
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields) + fields + tensors


def tensor(name: str, offset: int, count: int = 8) -> bytes:
    return string(name) + struct.pack("<IQIQ", 1, count, 0, offset)


FIELD = string("a") + struct.pack("<II", 4, 7)
LIST = string("a") + struct.pack("<II", 9, 8)
ALIGNED = string("general.alignment") + struct.pack("<II", 4, 3)
HOSTILE = {
    "claims": (head(num_tensors=1 << 24) + bytes(1 << 20), "claims"),
    "fields": (head(num_fields=1 << 60) + bytes(1 << 20), "claims"),
    "list": (head(LIST + struct.pack("<Q", 1 << 24) + bytes(1 << 24), 1), "list of 16777216"),
    "short list": (
        head(LIST + struct.pack("<Q", 1 << 20) + bytes(1 << 20), 1),
        "middle of a field",
    ),
    "lists": (
        head(string("a") + struct.pack("<IIQ", 9, 9, 1 << 19) + bytes(1 << 23), 1),
        "list of the unknown type 9",
    ),
    "string": (head(struct.pack("<Q", 1 << 63), 1), "middle of a field"),
    "field twice": (head(FIELD * 2, 2), "'a' twice"),
    "tensor twice": (head(b"", 0, tensor("w", 0) * 2, 2) + bytes(256), "'w' twice"),
    "overlap": (head(b"", 0, tensor("w", 0, 16) + tensor("v", 32), 2) + bytes(256), "overlaps"),
    "odd offset": (head(b"", 0, tensor("w", 5), 1) + bytes(256), "no multiple"),
    "alignment": (head(ALIGNED, 1), "alignment is 3"),
    "huge tensor": (head(b"", 0, tensor("w", 0, 1 << 62), 1) + bytes(256), "truncated"),
    "empty": (b"", "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_gguf_is_refused_with_a_sentence(tmp_path, model, name):
    data, says = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(data)
    assert says in import_all(tmp_path / "m.gguf", test_files.shapes(model[0].model))


def rewrite(folder: Path, to: Path, change) -> Path:
    """A copy of the folder whose safetensors header and data are changed."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + size]), bytearray(raw[8 + size :])
    header = change(header, data) or header
    packed = json.dumps(header).encode()
    (to / "model.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed + data)
    return to


NORM = "model.norm.weight"


def put_nan(header, data):
    at = header[NORM]["data_offsets"][0]
    data[at : at + 4] = struct.pack("<f", float("nan"))


CHANGES = {
    "not a number": (put_nan, "not finite"),
    "overlap": (lambda h, d: h[NORM].update(data_offsets=[0, 256]), "safetensors|read"),
    "truncated": (lambda h, d: d.__delitem__(slice(-9, None)), "safetensors|read"),
    "shape": (lambda h, d: h[NORM].update(shape=[1 << 40]), "safetensors|read"),
    "type": (lambda h, d: h[NORM].update(dtype="Q9"), "safetensors|read"),
    "missing": (lambda h, d: {k: v for k, v in h.items() if k != NORM}, "read|lacks"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_safetensors_are_refused_with_a_sentence(tmp_path, model, folder, name):
    change, says = CHANGES[name]
    changed = rewrite(folder, tmp_path / "m", change)
    assert any(
        word in import_all(changed, test_files.shapes(model[0].model)) for word in says.split("|")
    )


@pytest.mark.slow
def test_fuzz(tmp_path, model, folder):
    """200 files with random damage: a sentence, or the model that it still is."""
    c, lm, t = model
    shapes = test_files.shapes(c.model)
    whole = {"m.gguf": test_files.small_gguf(c, lm, t)}
    whole["f/model.safetensors"] = (folder / "model.safetensors").read_bytes()
    whole["f/tokenizer.json"] = (folder / "tokenizer.json").read_bytes()
    whole["f/config.json"] = (folder / "config.json").read_bytes()
    rng = random.Random(7)
    refused = 0
    for _ in range(200):
        (tmp_path / "f").mkdir(exist_ok=True)
        for file in folder.iterdir():
            (tmp_path / "f" / file.name).write_bytes(file.read_bytes())
        name = rng.choice(sorted(whole))
        data = bytearray(whole[name])
        reach = min(len(data), 20_000)  # metadata stands in front
        for _ in range(rng.choice((1, 1, 3, 30))):
            at = rng.randrange(min(reach, len(data)))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1 << 24, 1 << 63, 2**64 - 1)))
            elif kind == 2:
                del data[at : at + rng.randrange(1, 64)]
            else:
                data[at:at] = data[max(0, at - 32) : at]
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (tmp_path / name).write_bytes(data)
        path = tmp_path / ("m.gguf" if name == "m.gguf" else "f")
        refused += bool(import_all(path, shapes))
    print(f"{refused} of 200 damaged files refused, each in {SECONDS} s and {MEGABYTES} MB")
    assert refused > 100
    assert np.isfinite(lm["head"]["norm"]).all()
