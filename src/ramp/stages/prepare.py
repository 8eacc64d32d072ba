"""Text to tokens, once: sources -> documents -> tokenizer -> shards of ids for each split."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from ramp.config import Config
from ramp.rundir import RunDir
from ramp.text.corpus import USED
from ramp.text.prepare import prepare_tokens


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
    tokenizer_bytes: int  # of the sample of training text that it was fitted to
    mix: dict[str, int]  # training tokens of each source of a mix
    test_documents: int  # of the test sets that were looked for
    test_documents_too_short: int  # among them, and so not looked for
    seconds: float


def run(rundir: RunDir, c: Config) -> dict[str, Any]:
    """Train the tokenizer on the training split, write both splits' tokens, return the report."""
    began = time.perf_counter()
    made = prepare_tokens(c.text, rundir.data, rundir.tokenizer)
    train, val = made.manifests["train"], made.manifests["val"]
    report = PrepareReport(
        tokens=train.tokens,
        val_tokens=val.tokens,
        bytes=train.bytes,
        val_bytes=val.bytes,
        documents=train.documents,
        val_documents=val.documents,
        vocab=made.tokenizer.vocab_size,
        bytes_per_token=train.bytes / max(train.tokens, 1),
        counts=made.counts,
        sha256={split: manifest.sha256 for split, manifest in made.manifests.items()},
        tokenizer=made.tokenizer.fingerprint,
        tokenizer_bytes=made.sample_bytes,
        mix={stream.source: stream.tokens for stream in train.streams if stream.source},
        test_documents=made.test.num_documents,
        test_documents_too_short=made.test.num_short,
        seconds=time.perf_counter() - began,
    )
    print_summary(report)
    return asdict(report)


def print_summary(report: PrepareReport) -> None:
    """What was read, what was left out and what became of it."""
    # All other counts are of what was left out.
    left_out = [
        f"{n:,} {kind.replace('_', ' ')}" for kind, n in report.counts.items() if kind not in USED
    ]
    megabytes = report.counts["bytes"] / 1e6
    print(
        f"prepare: {report.counts['documents']:,} documents, {megabytes:.1f} MB; "
        f"left out: {', '.join(left_out) or 'nothing'}; "
        f"{report.tokens:,} train and {report.val_tokens:,} validation tokens "
        f"of a vocabulary of {report.vocab:,} ({report.bytes_per_token:.2f} bytes a token)"
    )
    if pieces := report.counts.get("pieces"):
        print(f"prepare: {pieces:,} of the documents are pieces of longer texts")
    if report.tokenizer_bytes < report.bytes and report.tokenizer_bytes:
        fitted = report.tokenizer_bytes / 1e6
        print(f"prepare: tokenizer fitted to {fitted:.1f} of {report.bytes / 1e6:.1f} MB")
    if report.test_documents:
        print(
            f"prepare: looked for {report.test_documents:,} test documents, but not for "
            f"{report.test_documents_too_short:,} of them that have fewer than 8 words"
        )
    for source, tokens in report.mix.items():
        print(f"prepare: {tokens:,} tokens of {source}")
