"""What is in a corpus, from a sample of it, and a configuration that suits it.

For a person who has text and no configuration: `inspect_sources` looks, `choose_config` fills in
what was not set, `describe` says both. Nothing is printed or written here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ramp.config import BUILT_IN_TOKENIZERS, Config
from ramp.errors import UserError
from ramp.text import fetch
from ramp.text.corpus import Tally, list_parts, read_part, split_of
from ramp.text.formats import split_suffixes
from ramp.text.reading import Part

# What is read at most: a few seconds of work.
SAMPLE_PARTS = 200
SAMPLE_BYTES = 2**24
MAX_IDS = 2000  # of documents that are held, so that both splits can be seen to get some
# Bytes of text in a byte of a file, where that is not seen: packed files, and others.
PACKED, PLAIN = 3.0, 0.9
DOCUMENT_BYTES = 3000  # of text that nobody has looked into
# Of other machines: files that are asked for their size, and bytes that are downloaded.
MAX_ASKED = 20
MAX_DOWNLOAD = 2**25
UNKNOWN_SIZE = 2**28  # where the other side does not say
TOO_SMALL = 2000  # bytes of text that no model learns from

# (bytes of text from which it holds, text.vocab_size, bytes a token of English then has).
VOCABULARIES = ((0, 512, 2.2), (3e5, 1024, 2.8), (3e6, 4096, 3.6), (1e9, 16384, 4.2))
# (tokens from which it holds, model.depth, model.width). What two cores train in minutes.
MODELS = ((0, 2, 64), (1e5, 2, 128), (5e5, 4, 256))
BATCH_SIZE = 8
MAX_CONTEXT, MIN_CONTEXT = 256, 16
MAX_STEPS, MIN_STEPS = 750, 60
MAX_EPOCHS = 12  # more repetitions of a small text teach it by heart
# Small batches at a short horizon want rates above the rule's: experiments/LOG.md.
LR_SCALE = 6.0


@dataclass(frozen=True)
class Inspection:
    """What was found. Figures are estimates unless everything was read."""

    sources: tuple[str, ...]
    formats: tuple[tuple[str, int], ...]  # suffix, files
    num_files: int
    num_documents: int
    num_bytes: int  # of text in UTF-8
    num_repeated: int  # documents of the sample that stand there once more
    num_sampled: int  # documents of the sample
    is_exact: bool  # everything was read
    ids: tuple[str, ...]  # of all different documents, where they were read and are few
    notes: tuple[str, ...]  # fields, encodings, what is cut or left out, in plain words


@dataclass
class _Sample:
    """What reading a part has shown."""

    documents: int = 0
    bytes: int = 0  # of text
    disk: float = 0.0  # bytes of the file that they come from
    is_whole: bool = False


def inspect_sources(sources: Sequence[str], cache: Path | None = None) -> Inspection:
    """Look into the files of all sources, at a bounded sample of what they hold.

    Of other machines only small files are read; `cache` is where they stay. UserError: a source is
    missing, of no known format, or nothing in it can be read.
    """
    notes: Counter = Counter()
    parts = {source: list_parts(source, cache, notes=notes) for source in sources}
    everything = [part for own in parts.values() for part in own]
    everything = _find_sizes(everything)
    local = _select_near(everything)
    # Spread evenly: a folder may hold another kind of text at its end than at its beginning.
    step = -(-len(local) // SAMPLE_PARTS) or 1
    chosen = local[step // 2 :: step]
    budget = SAMPLE_BYTES // max(len(chosen), 1)
    tallies = {source: Tally(source) for source in sources}
    ids: Counter = Counter()
    samples = {part: _read_sample(part, tallies[part.source], budget, ids) for part in chosen}
    is_exact = len(chosen) == len(everything) and all(s.is_whole for s in samples.values())
    for tally in tallies.values():
        notes.update(tally.notes)
        # What a sample cannot decide is decided when all is read.
        is_hopeless = not tally.good and any(p.source == tally.source for p in chosen)
        if is_exact or is_hopeless:
            tally.close()
        elif tally.kinds:
            notes[f"{tally.kinds.total()} of the sampled records cannot be read: {tally.first}"] = 1
    documents, size = _estimate(everything, samples)
    lines = [f"{note} ({n:,} files)" if n > 1 else note for note, n in notes.items()]
    if pieces := sum(tally.counts["pieces"] for tally in tallies.values()):
        lines.append(f"long texts are cut into documents: {pieces:,} pieces in what was read")
    if len(local) < len(everything):
        lines.append(
            f"{len(everything) - len(local):,} large files of other machines were not looked into"
        )
    files = {(part.source, part.name): split_suffixes(part.name) for part in everything}
    formats = Counter("".join(suffixes) or "other text" for suffixes in files.values())
    return Inspection(
        sources=tuple(sources),
        formats=tuple(formats.most_common()),
        num_files=len(files),
        num_documents=round(documents),
        num_bytes=round(size),
        num_repeated=ids.total() - len(ids),
        num_sampled=ids.total(),
        is_exact=is_exact,
        ids=tuple(ids) if is_exact and len(ids) <= MAX_IDS else (),
        notes=tuple(lines),
    )


def _find_sizes(parts: Sequence[Part]) -> list[Part]:
    """The parts with the sizes of some that are elsewhere; more would take too long."""
    unknown = [part for part in parts if fetch.is_address(part.path) and not part.bytes]
    sizes = {part: fetch.find_size(part.path) for part in unknown[:MAX_ASKED]}
    mean = sum(sizes.values()) // max(len(sizes), 1) or UNKNOWN_SIZE
    sizes = {part: sizes.get(part) or mean for part in unknown}
    return [replace(part, bytes=sizes.get(part, part.bytes)) for part in parts]


def _select_near(parts: Sequence[Part]) -> list[Part]:
    """The parts that can be read at once: of this machine, and small ones of others."""
    near, left = [], MAX_DOWNLOAD
    for part in parts:
        is_far = fetch.is_address(part.path)
        if is_far and not 0 < part.bytes <= left:
            continue
        left -= part.bytes if is_far else 0
        near.append(part)
    return near


def _read_sample(part: Part, tally: Tally, budget: int, ids: Counter) -> _Sample:
    """Read a part up to `budget` bytes of text."""
    sample = _Sample()
    for document in read_part(part, tally):
        ids[document.id] += 1
        sample.documents += 1
        sample.bytes += len(document.text.encode())
        if sample.bytes > budget:
            break
    else:
        sample.is_whole = True
    # How far into the file that is, is only seen at its end.
    expansion = PACKED if split_suffixes(part.name)[1] or not _is_plain(part) else PLAIN
    sample.disk = part.bytes if sample.is_whole else sample.bytes / expansion
    return sample


def _is_plain(part):
    """Whether a file has about as many bytes as text."""
    return split_suffixes(part.name)[0] != ".parquet"


def _estimate(parts: Sequence[Part], samples: dict[Part, _Sample]) -> tuple[float, float]:
    """(documents, bytes of text) of all parts, those that were not read by their size on disk."""
    by_format: dict[str, _Sample] = {}
    for part, sample in samples.items():
        total = by_format.setdefault(split_suffixes(part.name)[0], _Sample())
        total.documents += sample.documents
        total.bytes += sample.bytes
        total.disk += sample.disk
    documents = size = 0.0
    for part in parts:
        sample = samples.get(part)
        known = (
            sample if sample and sample.is_whole else by_format.get(split_suffixes(part.name)[0])
        )
        if known is None or not known.disk:
            documents, size = documents + part.bytes / DOCUMENT_BYTES, size + part.bytes
            continue
        share = 1.0 if known is sample else part.bytes / known.disk
        documents += known.documents * share
        size += known.bytes * share
    return documents, size


# --- choosing


def choose_config(inspection: Inspection, c: Config) -> Config:
    """`c` with what is still at its default filled in for this text.

    UserError: there is too little text.
    """
    if inspection.num_bytes < TOO_SMALL or inspection.num_documents < 2:
        raise UserError(
            f"{', '.join(inspection.sources)}: {inspection.num_bytes:,} bytes of text in "
            f"{inspection.num_documents:,} documents are too few to train on: "
            f"give at least {TOO_SMALL:,} bytes in two documents."
        )
    default = Config()

    def fill(section: str, **choices: Any) -> None:
        nonlocal c
        own, usual = getattr(c, section), getattr(default, section)
        unset = {k: v for k, v in choices.items() if getattr(own, k) == getattr(usual, k)}
        c = replace(c, **{section: replace(own, **unset)})

    # A tokenizer from elsewhere has its own.
    if c.text.tokenizer in BUILT_IN_TOKENIZERS:
        fill("text", vocab_size=_pick(VOCABULARIES, inspection.num_bytes)[1])
    fill("text", val_fraction=choose_val_fraction(inspection, default.text.val_fraction))
    tokens = count_tokens(inspection, c)
    train, val = tokens * (1 - c.text.val_fraction), tokens * c.text.val_fraction
    if c.model.depth == default.model.depth and not c.model.width:
        _, depth, width = _pick(MODELS, tokens)
        fill("model", depth=depth, width=width)
    # Some rows of validation text at least.
    context = MAX_CONTEXT
    while context > MIN_CONTEXT and context * 4 > val:
        context //= 2
    fill("model", context_len=context)
    fill("pretrain", batch_size=BATCH_SIZE)
    row = c.pretrain.seq_len or c.model.context_len
    step_tokens = c.pretrain.batch_size * row
    steps = round(MAX_EPOCHS * train / step_tokens)
    fill("pretrain", steps=min(max(steps, MIN_STEPS), MAX_STEPS), lr_scale=LR_SCALE)
    fill("pretrain", warmup_steps=max(1, c.pretrain.steps // 20))
    if c.stages == default.stages:
        c = replace(c, stages=("prepare", "pretrain", "eval"))
    return c


def _pick(table, size):
    """The last row of a table that holds from a size up to `size`."""
    return [row for row in table if row[0] <= size][-1]


def choose_val_fraction(inspection: Inspection, usual: float) -> float:
    """The least fraction from the usual one on that leaves several documents in each split.

    UserError: none does.
    """
    few = min(8, max(1, inspection.num_documents // 8))
    if not inspection.ids:
        return max(usual, min(0.25, few / inspection.num_documents))
    # Which documents a fraction holds out is known: try.
    for percent in range(round(100 * usual), 51):
        held_out = sum(split_of(i, percent / 100) == "val" for i in inspection.ids)
        if few <= held_out <= len(inspection.ids) - few:
            return percent / 100
    raise UserError(
        f"{', '.join(inspection.sources)}: {len(inspection.ids)} different documents are too few "
        "to train on some and validate on others: give more text."
    )


def count_tokens(inspection: Inspection, c: Config) -> float:
    """About how many tokens the text has in the vocabulary of a configuration."""
    if c.text.tokenizer == "bytes":
        return inspection.num_bytes
    by_size = [row for row in VOCABULARIES if row[1] <= max(c.text.vocab_size, VOCABULARIES[0][1])]
    return inspection.num_bytes / by_size[-1][2]


# --- saying


def describe(inspection: Inspection, c: Config) -> str:
    """What was found, and what a configuration will do with it, in a few lines."""
    formats = ", ".join(f"{n:,} {suffix}" for suffix, n in inspection.formats)
    about = "" if inspection.is_exact else "about "
    lines = [
        f"found: {formats}: {about}{_say_bytes(inspection.num_bytes)} of text in "
        f"{about}{inspection.num_documents:,} documents",
        *(f"  {note}" for note in inspection.notes),
    ]
    if inspection.num_repeated:
        lines.append(
            f"  {inspection.num_repeated:,} of {inspection.num_sampled:,} documents that were read "
            "stand there more than once"
        )
    row = c.pretrain.seq_len or c.model.context_len
    seen = c.pretrain.steps * c.pretrain.batch_size * row
    epochs = seen / count_tokens(inspection, c) / (1 - c.text.val_fraction)
    lines += [
        f"chosen: vocabulary {c.text.vocab_size:,}, depth {c.model.depth}, width "
        f"{c.model.width or 'by rule'}, context {c.model.context_len}, "
        f"{c.text.val_fraction:.0%} of the documents for validation",
        f"  {c.pretrain.steps:,} steps of {c.pretrain.batch_size} rows of {row} tokens: "
        f"{seen / 1e6:.2f}M tokens, about {epochs:{'.2g' if epochs < 10 else ',.0f'}} epochs"
        + (" of little text: the model will know it by heart" if epochs > 4 else ""),
        f"  stages: {' '.join(c.stages)}; set any key, as --pretrain.steps, to have it otherwise",
    ]
    return "\n".join(lines)


def _say_bytes(size):
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
