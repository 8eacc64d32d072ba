"""Text to tokens, once: sources -> documents -> tokenizer -> one stream of ids per split."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramp.config import Config, Text
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.text.corpus import Document, documents, split_of
from ramp.text.shards import Manifest, write_tokens
from ramp.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PrepareReport:
    """What report.json says of the tokens; figures without `val_` are those of training."""

    tokens: int
    val_tokens: int
    bytes: int
    val_bytes: int
    documents: int
    val_documents: int
    vocab: int
    bytes_per_token: float
    counts: dict[str, int]  # documents, characters, bytes, and what was left out by kind
    sha256: dict[str, str]  # of the tokens by split
    tokenizer: str  # its fingerprint
    seconds: float


def run(rundir: RunDir, c: Config) -> dict[str, Any]:
    """Train the tokenizer on the training split, write both splits' tokens, return the report."""
    if not c.text.sources:
        raise UserError("text.sources is empty; name the text, such as --text.sources my/*.txt")
    began = time.perf_counter()
    counts: Counter = Counter()
    # In memory as a whole: the tokenizer reads the training split once more.
    by_split: dict[str, list[Document]] = {"train": [], "val": []}
    for document in read_documents(c.text, rundir.data, counts):
        by_split[split_of(document.id, c.text.val_fraction)].append(document)
    # Few long documents can all fall on one side.
    for split, docs in by_split.items():
        if not docs:
            raise UserError(
                f"no document fell into the {split} split ({counts['documents']} in all, "
                f"text.val_fraction {c.text.val_fraction:g}); "
                "add text, or cut it into more documents"
            )
    # From the training split alone: fitted to validation text too, it would flatter the model.
    tokenizer = make_tokenizer(rundir, c.text, by_split["train"])
    tokenizer.save(rundir.tokenizer)
    infos: dict[str, Manifest] = {}
    for split, docs in by_split.items():
        encoded = tokenizer.encode_stream(document.text for document in docs)
        infos[split] = write_tokens(rundir.tokens(split), encoded, tokenizer)
    train, val = infos["train"], infos["val"]
    report = PrepareReport(
        tokens=train.tokens,
        val_tokens=val.tokens,
        bytes=train.bytes,
        val_bytes=val.bytes,
        documents=train.documents,
        val_documents=val.documents,
        vocab=tokenizer.vocab_size,
        bytes_per_token=train.bytes / max(train.tokens, 1),
        counts=dict(counts),
        sha256={split: info.sha256 for split, info in infos.items()},
        tokenizer=tokenizer.fingerprint,
        seconds=time.perf_counter() - began,
    )
    print_summary(report)
    return asdict(report)


def print_summary(report: PrepareReport) -> None:
    """One line on what was read, what was skipped and what became of it."""
    # All other counts are of what was left out.
    used = ("documents", "characters", "bytes")
    skipped = [f"{n} {kind}" for kind, n in report.counts.items() if kind not in used]
    megabytes = report.counts["bytes"] / 1e6
    print(
        f"prepare: {report.counts['documents']:,} documents, {megabytes:.1f} MB; "
        f"skipped: {', '.join(skipped) or 'nothing'}; "
        f"{report.tokens:,} train and {report.val_tokens:,} validation tokens "
        f"of a vocabulary of {report.vocab:,} ({report.bytes_per_token:.2f} bytes a token)"
    )


def read_documents(text: Text, directory: Path, counts: Counter) -> Iterator[Document]:
    """The documents of all sources in the order of the configuration."""
    # By default beside the run's tokens, so that a run directory holds all that made it.
    cache = Path(text.cache) if text.cache else directory / "shards"
    for source in text.sources:
        yield from documents(source, counts, cache=cache)


def make_tokenizer(rundir: RunDir, text: Text, train: list[Document]) -> Tokenizer:
    """The tokenizer that the configuration names, fitted to the training documents."""
    # Weights from elsewhere have brought theirs.
    if text.tokenizer == "run":
        return Tokenizer.load(rundir.tokenizer)
    if text.tokenizer == "bytes":
        return Tokenizer.bytes_only()
    return Tokenizer.train((document.text for document in train), text.vocab_size)
