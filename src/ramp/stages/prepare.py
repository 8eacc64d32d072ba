"""Text to tokens, once: sources -> documents -> tokenizer -> one stream of ids per split."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ramp.config import Config, Text
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.text.corpus import Document, documents, split_of
from ramp.text.rows import write_tokens
from ramp.text.tokenizer import Tokenizer


def run(rundir: RunDir, c: Config) -> dict:
    """Train the tokenizer on the training split and write both splits' tokens; returns what the report shows."""
    began = time.perf_counter()
    counts: Counter = Counter()
    by_split: dict[str, list[Document]] = {"train": [], "val": []}
    for document in read_documents(c.text, rundir.data, counts):
        by_split[split_of(document.id, c.text.val_fraction)].append(document)
    for split, docs in by_split.items():
        if not docs:
            raise UserError(
                f"no document fell into the {split} split ({counts['documents']} in all, text.val_fraction "
                f"{c.text.val_fraction:g}); add text, or cut it into more documents"
            )
    tokenizer = make_tokenizer(c.text, by_split["train"])
    tokenizer.save(rundir.tokenizer)
    metas = {
        s: write_tokens(rundir.tokens(s), _encoded(tokenizer, docs), tokenizer)
        for s, docs in by_split.items()
    }
    train, val = metas["train"], metas["val"]
    result = {
        "tokens": train["tokens"],
        "val_tokens": val["tokens"],
        "bytes": train["bytes"],
        "val_bytes": val["bytes"],
        "documents": train["documents"],
        "val_documents": val["documents"],
        "vocab": tokenizer.vocab_size,
        "bytes_per_token": train["bytes"] / max(train["tokens"], 1),
        "counts": dict(counts),
        "sha256": {split: meta["sha256"] for split, meta in metas.items()},
        "tokenizer": tokenizer.fingerprint,
        "seconds": time.perf_counter() - began,
    }
    skipped = ", ".join(
        f"{n} {kind}"
        for kind, n in counts.items()
        if kind not in ("documents", "characters", "bytes")
    )
    print(
        f"prepare: {counts['documents']:,} documents, {counts['bytes'] / 1e6:.1f} MB; skipped: {skipped or 'nothing'}; "
        f"{train['tokens']:,} train and {val['tokens']:,} validation tokens of a vocabulary of {tokenizer.vocab_size:,} "
        f"({result['bytes_per_token']:.2f} bytes a token)"
    )
    return result


def read_documents(text: Text, directory: Path, counts: Counter) -> Iterator[Document]:
    cache = Path(text.cache) if text.cache else directory / "shards"
    for source in text.sources:
        yield from documents(source, counts, cache=cache)


def make_tokenizer(text: Text, train: list[Document]) -> Tokenizer:
    if text.tokenizer == "bytes":
        return Tokenizer.bytes_only()
    return Tokenizer.train((d.text for d in train), text.vocab_size)


def _encoded(tokenizer: Tokenizer, docs: list[Document]):
    return tokenizer.encode_stream(d.text for d in docs)
