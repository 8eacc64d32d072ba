"""Sources to shards: two passes over the text, parallel, resumable, in bounded memory.

    units        the parts of the sources, see `units`
    first pass   in parallel, see `passes`
    judging      in one process: duplicates, validation or training; the tokenizer is fitted
    second pass  in parallel
    manifests    last, so that tokens are there as a whole or not at all

What a unit has yielded is kept in `work/`: a preparation that was killed goes on where it was, and
only units in work are lost. Nothing depends on the number of workers: units are cut by size, and
results are put together in their order.
"""

import hashlib
import io
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Text
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.text import dedup, engine
from ramp.text.corpus import Tally, content_id, documents, split_of
from ramp.text.huggingface import open_tokenizer
from ramp.text.passes import (
    SAMPLE_BYTES,
    SPLITS,
    FirstPass,
    Plan,
    SecondPass,
    make_first_pass,
    make_second_pass,
)
from ramp.text.shards import Manifest, Shard, Stream, token_dtype
from ramp.text.tokenizer import Tokenizer
from ramp.text.units import UNKNOWN_SIZE, Unit, list_units

SAMPLE_PIECE = 2**18  # characters that the tokenizer is given at once
PROGRESS_SECONDS = 10


@dataclass(frozen=True)
class Prepared:
    """What was made, and what was left out."""

    manifests: dict[str, Manifest]
    tokenizer: Tokenizer
    counts: dict[str, int]
    sample_bytes: int  # that the tokenizer was fitted to; 0: it was not fitted
    test: dedup.TestSet


def prepare_tokens(text: Text, data: Path, tokenizer_path: Path) -> Prepared:
    """Make `train.json`, `val.json` and their shards in the folder `data`, and the tokenizer.

    What an earlier call has kept is taken. UserError: a source cannot be read, has changed, or
    leaves a split without a document.
    """
    # By default beside the run's tokens, so that a run directory holds all that made it.
    cache_folder = Path(text.cache) if text.cache else data / "shards"
    sources = [source for source, _ in text.mix] or [*text.sources]
    notes: Counter = Counter()
    units = list_units(sources, bool(text.mix), cache_folder, notes)
    test = read_test_set(text, cache_folder)
    plan = make_plan(text, units, test, data / "work")
    for split in SPLITS:
        (data / f"{split}.json").unlink(missing_ok=True)
    _run_first_passes(text, plan, units)
    firsts = [plan.first(unit) for unit in units]
    tallies = merge_tallies(firsts, sources)
    for note, number in sum((tally.notes for tally in tallies), notes).items():
        print(f"prepare: {note} ({number:,} {'file' if number == 1 else 'files'})")
    verdicts, is_val = judge_documents(plan, firsts)
    check_splits(tallies, verdicts, is_val, firsts, text)
    bounds = np.cumsum([0, *(len(first["is_val"]) for first in firsts)])
    dropped = [verdicts[a:b] != dedup.KEPT for a, b in pairwise(bounds)]
    tokenizer, sample_bytes = fit_tokenizer(text, tokenizer_path, firsts, dropped)
    tokenizer.save(tokenizer_path)
    splits = np.where(verdicts != dedup.KEPT, len(SPLITS), is_val).astype(np.uint8)
    tasks = [
        SecondPass(
            unit,
            first,
            splits[a:b],
            tokenizer_path,
            tokenizer.fingerprint,
            data,
            content_id([plan.key(unit), tokenizer.fingerprint, splits[a:b].tobytes().hex()]),
        )
        for unit, first, (a, b) in zip(units, firsts, pairwise(bounds), strict=True)
    ]
    _run_second_passes(text, tasks)
    manifests = write_manifests(text, data, tokenizer, tasks)
    _remove_leftovers(data, manifests)
    counts: Counter = sum((tally.counts for tally in tallies), Counter())
    counts.update({name: int(n) for name, n in count_verdicts(verdicts).items() if n})
    return Prepared(manifests, tokenizer, dict(counts), sample_bytes, test)


def make_plan(text: Text, units: Sequence[Unit], test: dedup.TestSet, work: Path) -> Plan:
    """What the first pass depends on; writes the n-grams of the test sets for it."""
    total = sum(part.bytes or UNKNOWN_SIZE for unit in units for part in unit.parts)
    work.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    grams: dict[str, Any] = {str(n): gram for n, gram in test.grams.items()}
    np.savez(buffer, **grams)
    plan = Plan(
        val_fraction=text.val_fraction,
        threshold=text.dedup_threshold if text.dedup == "near" else None,
        sample_fraction=min(1.0, SAMPLE_BYTES / total) if text.tokenizer == "bpe" else 0.0,
        drop_exact=text.dedup != "off",
        test=hashlib.sha256(buffer.getvalue()).hexdigest(),
        work=work,
    )
    write_atomic(plan.test_path, buffer.getvalue())
    return plan


def read_test_set(text: Text, cache_folder: Path) -> dedup.TestSet:
    """The n-grams of all test sets; none where none are named."""
    counts: Counter = Counter()
    found = (documents(source, counts, cache=cache_folder) for source in text.decontaminate)
    return dedup.TestSet.read(document.text for own in found for document in own)


def _run_first_passes(text: Text, plan: Plan, units: Sequence[Unit]) -> None:
    todo = [unit for unit in units if not plan.first(unit).is_made(plan.key(unit))]
    changed = sum(plan.first(unit).path.exists() for unit in todo)
    if changed:
        print(f"prepare: {changed} of {len(units)} parts or their settings have changed since")
    _run(text, "read", make_first_pass, [(plan, unit) for unit in todo], len(units))


def _run_second_passes(text: Text, tasks: Sequence[SecondPass]) -> None:
    todo = [task for task in tasks if task.result() is None]
    _run(text, "encoded", make_second_pass, todo, len(tasks))
    # Only where workers see another disk than this process.
    if any(task.result() is None for task in todo):
        raise UserError(
            f"The workers of Ray do not write to {todo[0].data}: put the run directory on storage "
            "that all of them share."
        )


def _run(text: Text, done: str, function, arguments: list, total: int) -> None:
    """Run tasks, and say now and then how far they are."""
    kept = total - len(arguments)
    if kept and arguments:
        print(f"prepare: {kept} of {total} parts had been {done} before")
    began = said = time.monotonic()
    results = engine.run_tasks(function, arguments, text.engine, text.workers)
    for number, _ in enumerate(results, 1):
        if time.monotonic() - said < PROGRESS_SECONDS:
            continue
        said = time.monotonic()
        left = (said - began) / number * (len(arguments) - number)
        print(f"prepare: {kept + number} of {total} parts {done}, {left:.0f} s left", flush=True)


def merge_tallies(firsts: Sequence[FirstPass], sources: Sequence[str]) -> list[Tally]:
    """The counts of each source; refuses one of which too much is bad."""
    merged = {source: Tally(source) for source in sources}
    for first in firsts:
        for tally in first.tallies():
            merged[tally.source].add(tally)
    for tally in merged.values():
        tally.close()
    return list(merged.values())


def judge_documents(plan: Plan, firsts: Sequence[FirstPass]) -> tuple[np.ndarray, np.ndarray]:
    """The verdict (`dedup`) of each document of all units, and whether it is for validation."""
    is_val, contaminated, is_hashed = (
        np.concatenate([np.empty(0, bool), *(first[name] for first in firsts)])
        for name in ("is_val", "is_contaminated", "is_hashed")
    )
    judge = dedup.Judge(is_val, np.where(contaminated, dedup.CONTAMINATED, 0).astype(np.uint8))
    if plan.drop_exact:
        judge.drop_exact(lambda half: (first["ids"][:, half] for first in firsts))
    if plan.threshold is not None:
        # On disk: 128 bytes a document.
        path = plan.work / "digests"
        with path.open("wb") as file:
            for first in firsts:
                file.write(first["digests"].data)
        shape = (len(is_val), dedup.NUM_PERMUTATIONS)
        digests = np.memmap(path, np.uint8, "r", shape=shape)
        judge.drop_near(
            lambda band: (first[f"band{band}"] for first in firsts),
            digests,
            is_hashed,
            plan.threshold,
        )
    return judge.verdict, is_val


def count_verdicts(verdicts: np.ndarray) -> dict[str, int]:
    """Documents that were left out, by kind."""
    return dict(zip(dedup.REASONS, np.bincount(verdicts, minlength=5)[1:].tolist(), strict=True))


def check_splits(tallies, verdicts, is_val, firsts, text: Text) -> None:
    """Refuse a corpus that leaves a split without a document, with what would help."""
    kept = verdicts == dedup.KEPT
    if (kept & is_val).any() and (kept & ~is_val).any():
        return
    num_documents = sum(tally.good for tally in tallies)
    counted = [f"{n} {name}" for name, n in count_verdicts(verdicts).items() if n]
    left_out = ", ".join(counted).replace("_", " ")
    found = f"{num_documents} documents were read" + (
        f", of which {left_out} left" * bool(left_out)
    )
    if kept.sum() < 2:
        raise UserError(
            f"{found}: training and validation need one each; give more text, or cut it into more "
            "documents."
        )
    # Few documents can all fall on one side of the split.
    ids = [first["ids"].astype(">u8").tobytes().hex() for first in firsts]
    ids = [joined[i : i + 32] for joined in ids for i in range(0, len(joined), 32)]
    ids = [doc_id for doc_id, is_kept in zip(ids, kept, strict=True) if is_kept]
    for percent in range(1, 51):
        held_out = sum(split_of(doc_id, percent / 100) == "val" for doc_id in ids)
        if 0 < held_out < len(ids):
            raise UserError(
                f"{found}, and text.val_fraction {text.val_fraction:g} leaves none of them for "
                f"{'training' if is_val.any() else 'validation'}: set text.val_fraction to "
                f"{percent / 100:g}, which holds out {held_out}, or give more text."
            )
    raise UserError(f"{found}, too few for two splits: give more text.")


def fit_tokenizer(
    text: Text, present: Path, firsts: Sequence[FirstPass], dropped: Sequence[np.ndarray]
) -> tuple[Tokenizer, int]:
    """The tokenizer that the configuration names, and the bytes it was fitted to."""
    # Weights from elsewhere have brought theirs.
    if text.tokenizer == "run":
        return Tokenizer.load(present), 0
    if text.tokenizer == "bytes":
        return Tokenizer.bytes_only(), 0
    if text.tokenizer != "bpe":
        return open_tokenizer(Path(text.tokenizer)), 0
    # The size of a file need not be that of its text: the sample is thinned once more.
    size = sum(int(first["sample_sizes"].sum()) for first in firsts)
    fraction = min(1.0, SAMPLE_BYTES / max(size, 1))
    fitted = 0

    def pieces() -> Iterator[str]:
        nonlocal fitted
        for first, is_dropped in zip(firsts, dropped, strict=True):
            for content in first.sample(is_dropped, fraction):
                fitted += len(content.encode())
                # The library holds what it is given at once several times over.
                starts = range(0, len(content), SAMPLE_PIECE)
                yield from (content[start : start + SAMPLE_PIECE] for start in starts)

    # From the training split alone: fitted to validation text too, it would flatter the model.
    return Tokenizer.train(pieces(), text.vocab_size), fitted


def write_manifests(
    text: Text, data: Path, tokenizer: Tokenizer, tasks: Sequence[SecondPass]
) -> dict[str, Manifest]:
    """Write what lists the shards of each split, in the order of their units."""
    manifests = {}
    for split in SPLITS:
        # Validation is read whole, whatever the weights: in one stream.
        names = [*text.mix] if text.mix and split == "train" else [("", 1.0)]
        shards: list[list[Shard]] = [[] for _ in names]
        for task in tasks:
            made = task.result() or {}
            if split in made:
                shards[min(task.unit.stream, len(names) - 1)].append(made[split])
        streams = [Stream(*name, tuple(own)) for name, own in zip(names, shards, strict=True)]
        dtype = token_dtype(tokenizer).name
        manifest = Manifest(tokenizer.fingerprint, tokenizer.bos, dtype, tuple(streams))
        manifests[split] = manifest
    for split, manifest in manifests.items():
        manifest.save(data / f"{split}.json")
    return manifests


def _remove_leftovers(data: Path, manifests: dict[str, Manifest]) -> None:
    """Remove what was kept for a later start, and shards of earlier preparations."""
    listed = {data / shard.file for manifest in manifests.values() for shard in manifest.shards}
    for split in SPLITS:
        for path in (data / split).glob("*"):
            if path not in listed:
                path.unlink()
    shutil.rmtree(data / "work")
