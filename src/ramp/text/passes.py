"""The two passes over a unit of text, and what each leaves on disk.

    first pass   hashes and MinHash of the documents, a sample of them for the tokenizer
    second pass  a shard of tokens for each split

Each result holds a key, a hash of all that it depends on: a result with the key that is wanted need
not be made again. It is written last, whole or not at all.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.text import dedup
from ramp.text.corpus import Part, Tally, content_id, split_of
from ramp.text.encode import FastEncoder
from ramp.text.shards import Shard, write_shard
from ramp.text.tokenizer import Tokenizer
from ramp.text.units import Unit, read_unit

FORMAT = 1  # of what is kept; another number makes it anew
# Text that the tokenizer is fitted to; more of it moves few merges.
SAMPLE_BYTES = 64 * 2**20
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Plan:
    """What the first pass depends on besides its unit."""

    val_fraction: float
    threshold: float | None  # of near duplicates; None: none are looked for
    drop_exact: bool
    sample_fraction: float  # of the documents, for the tokenizer
    test: str  # a hash of the test sets
    work: Path

    @property
    def test_path(self) -> Path:
        """The n-grams of the test sets."""
        return self.work / "test.npz"

    def key(self, unit: Unit) -> str:
        """A hash of all that the first pass over a unit depends on."""
        settings = {name: value for name, value in vars(self).items() if name != "work"}
        return content_id([FORMAT, settings, [_describe(part) for part in unit.parts]])

    def first(self, unit: Unit) -> "FirstPass":
        """What the first pass leaves of a unit."""
        return FirstPass(self.work / "first" / f"{unit.name}.npz")


def _describe(part: Part) -> list:
    """A part and the state of its file."""
    stat = Path(part.path).stat() if Path(part.path).exists() else None
    state = [stat.st_size, stat.st_mtime_ns] if stat else [part.path, part.sha256]
    return [part.source, part.name, part.field, part.start, part.stop, *state]


# --- the first pass


@dataclass(frozen=True)
class FirstPass:
    """A file of what the first pass found in a unit, an array a member."""

    path: Path

    @property
    def sample_path(self) -> Path:
        """The texts for the tokenizer."""
        return self.path.with_suffix(".txt")

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            work = self.path.parent.parent
            raise UserError(
                f"{self.path} is damaged ({error}): delete {work}, and prepare again."
            ) from None

    def is_made(self, key: str) -> bool:
        """Whether it is there, and of the unit with this key."""
        return self.path.exists() and str(self["key"]) == key

    def tallies(self) -> list[Tally]:
        """What was counted, by source."""
        entries = json.loads(str(self["tallies"]))
        counters = ("counts", "kinds", "notes")
        return [Tally(**e | {name: Counter(e[name]) for name in counters}) for e in entries]

    def sample(self, dropped: np.ndarray, fraction: float) -> Iterator[str]:
        """That fraction of the sampled texts, at least one, without documents that are dropped."""
        numbers = self["sample"]
        keys = self["ids"][numbers, 1]
        least = keys[~dropped[numbers]].min(initial=2**64 - 1)
        with self.sample_path.open("rb") as file:
            for number, key, size in zip(numbers, keys, self["sample_sizes"], strict=True):
                content = file.read(int(size))
                is_chosen = int(key) < fraction * 2**64 or key == least
                if is_chosen and not dropped[number]:
                    yield content.decode()


def make_first_pass(argument: tuple[Plan, Unit]) -> None:
    """The first pass over a unit."""
    plan, unit = argument
    first = plan.first(unit)
    first.path.parent.mkdir(parents=True, exist_ok=True)
    tallies: dict[str, Tally] = {}
    hashes = dedup.Fingerprinter(plan.threshold, _load_test(plan.test_path, plan.test))
    ids, is_val, sample, sizes = [], [], [], []
    with first.sample_path.open("wb") as file:
        for document in read_unit(unit, tallies):
            hashes.add(document.text)
            ids.append(bytes.fromhex(document.id))
            is_val.append(split_of(document.id, plan.val_fraction) == "val")
            if is_val[-1] or not plan.sample_fraction:
                continue
            # At least one of each unit, for documents may be few and long.
            if not sample or _first_word(ids[-1]) < plan.sample_fraction * 2**64:
                sizes.append(file.write(document.text[:SAMPLE_BYTES].encode()))
                sample.append(len(ids) - 1)
    found = hashes.finish()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        key=np.array(plan.key(unit)),
        ids=np.frombuffer(b"".join(ids), ">u8").reshape(-1, 2).astype(np.uint64),
        is_val=np.array(is_val, bool),
        is_hashed=found.is_hashed,
        is_contaminated=found.is_contaminated,
        digests=found.bytes,
        sample=np.array(sample, np.int64),
        sample_sizes=np.array(sizes, np.int64),
        tallies=np.array(json.dumps([vars(tally) for tally in tallies.values()])),
        # Each a member of its own, to be read alone.
        **{f"band{i}": band for i, band in enumerate(found.bands)},
    )
    # Last: with it the unit counts as done.
    write_atomic(first.path, buffer.getvalue())


def _first_word(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


@cache
def _load_test(path: Path, _digest: str) -> dedup.TestSet | None:
    """The n-grams of the test sets; once a process, and again when they are others."""
    if not path.exists():
        return None
    with np.load(path) as file:
        return dedup.TestSet({int(n): file[n] for n in file.files}, 0, 0)


# --- the second pass


@dataclass(frozen=True)
class SecondPass:
    """What the second pass over a unit depends on besides the first one."""

    unit: Unit
    first: FirstPass
    split: np.ndarray  # uint8 of each document: 0 training, 1 validation, 2 neither
    tokenizer: Path
    fingerprint: str  # of the tokenizer
    data: Path
    key: str

    @property
    def note(self) -> Path:
        """Says which shards were made."""
        return self.first.path.parent.parent / "second" / f"{self.unit.name}.json"

    def result(self) -> dict[str, Shard] | None:
        """The shards by split, if they are made; a split without documents has none."""
        if not self.note.exists():
            return None
        content = json.loads(self.note.read_text())
        shards = {split: Shard(**shard) for split, shard in content["shards"].items()}
        is_there = all((self.data / shard.file).exists() for shard in shards.values())
        return shards if is_there and content["key"] == self.key else None


def make_second_pass(task: SecondPass) -> None:
    """Write the shards of a unit."""
    encoder = _load_encoder(task.tokenizer, task.fingerprint)
    ids = iter(task.first["ids"].tolist())
    split = iter(task.split.tolist())

    def read() -> Iterator[tuple[int, str]]:
        for document in read_unit(task.unit, {}):
            expected = next(ids, None)
            digest = bytes.fromhex(document.id)
            if expected != [_first_word(digest), _first_word(digest[8:])]:
                raise _changed(document.where)
            yield next(split), document.text
        if next(ids, None) is not None:
            raise _changed(task.unit.parts[-1].name)

    encoded: list[list[np.ndarray]] = [[], []]
    kept: list[int] = []

    def texts() -> Iterator[str]:
        for which, text in read():
            if which < len(SPLITS):
                kept.append(which)
                yield text

    # The encoder asks for many texts before it gives the first one back.
    for number, tokens in enumerate(encoder.encode_all(texts())):
        encoded[kept[number]].append(tokens)
    shards = {
        name: write_shard(task.data / name / f"{task.unit.name}.npy", docs, encoder.tokenizer)
        for name, docs in zip(SPLITS, encoded, strict=True)
        if docs
    }
    task.note.parent.mkdir(parents=True, exist_ok=True)
    listed = {name: asdict(shard) for name, shard in shards.items()}
    write_atomic(task.note, json.dumps({"key": task.key, "shards": listed}))


def _changed(where) -> UserError:
    return UserError(
        f"{where} has changed while it was prepared: leave the sources alone, and start again."
    )


@cache
def _load_encoder(path: Path, _fingerprint: str) -> FastEncoder:
    return FastEncoder(Tokenizer.load(path))
