"""The ledger: one Parquet row for each sample, one file for each generation, so that any sample can
be explained and made again.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ramp.errors import UserError
from ramp.files import quote_path, read_kept, write_kept

STRING = pa.string()
INT = pa.int32()
FLOAT = pa.float32()


@dataclass(frozen=True)
class LedgerRow:
    """All that is known of a sample: where it came from, what was decided, where it was used."""

    id: str  # g3-00017: generation and number
    generation: int
    parents: list[str]  # real documents that the prompt was cut from
    generator: str  # fingerprint of the weights that wrote it
    prompt: list[int]
    key: int  # the sample's own randomness
    temperature: float
    top_k: int
    min_p: float
    tokens: list[int]  # what was drawn, without the prompt
    text: str
    logp: float  # of the tokens, nats, under exactly what they were drawn from
    logp_first: float  # nats, under the first model
    verdict: bool  # whether it passed
    cell: str  # the user's kind of text, empty where none is told
    weight: float
    decision: str  # kept or dropped
    reason: str
    steps: list[int]  # of its own generation's training, in which it was used


# The Arrow type of each column, in the order of the fields of LedgerRow.
TYPES = (
    STRING, INT, pa.list_(STRING), STRING, pa.list_(INT), pa.int64(), FLOAT, INT, FLOAT,
    pa.list_(INT), STRING, FLOAT, FLOAT, pa.bool_(), STRING, FLOAT, STRING, STRING, pa.list_(INT),
)  # fmt: skip
SCHEMA = pa.schema([(f.name, kind) for f, kind in zip(fields(LedgerRow), TYPES, strict=True)])


def ledger_path(directory: Path, generation: int) -> Path:
    """The file of a generation."""
    return directory / f"g{generation:03d}.parquet"


def write_ledger(
    directory: Path,
    generation: int,
    rows: Sequence[LedgerRow],
    run: str,
    facts: Mapping[str, str],
) -> None:
    """Write a generation's rows, whole or not at all.

    run: fingerprint of the run. facts: what else is recorded of the generation, as text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([vars(row) for row in rows], SCHEMA)
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"run": run, **facts}), buffer)
    # A sample cannot be made again without all the generations before it.
    write_kept(ledger_path(directory, generation), buffer.getvalue().to_pybytes())


def read_ledger(
    directory: Path, generation: int, run: str | None = None
) -> tuple[list[LedgerRow], dict[str, str]]:
    """(rows, facts) of a generation.

    UserError for a missing or damaged file, or one of another run than `run`.
    """
    path = ledger_path(directory, generation)
    try:
        table = pq.read_table(pa.BufferReader(read_kept(path)))
        facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rows = [LedgerRow(**record) for record in table.select(SCHEMA.names).to_pylist()]
    except FileNotFoundError:
        raise UserError(
            f"there is no ledger {path}; run `ramp synthesize` up to generation {generation}"
        ) from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"the ledger {path} is damaged ({error}); "
            f"`ramp synthesize {quote_path(directory.parent)} --force` begins the generations again"
        ) from None
    if run is not None and facts.get("run") != run:
        raise UserError(
            f"the ledger {path} is of another run; "
            "move it away, or name another directory with --run"
        )
    return rows, facts


def describe_sample(directory: Path, sample: str) -> str:
    """A sample in words: where it comes from, what was made of it and why.

    sample: its id, such as g3-00017; UserError for one that does not exist.
    """
    # Candidates from elsewhere have a folder of their own.
    folder, _, sample = sample.rpartition("/")
    if folder and not re.fullmatch(r"[A-Za-z0-9_-]+", folder):
        raise UserError(f"{folder!r} is no name of candidates, such as mine in mine/g0-00017")
    directory = directory / folder
    found = re.fullmatch("g([0-9]{1,9})-[0-9]{1,9}", sample)
    if not found:
        raise UserError(f"a sample is named like g3-00017 (generation and number), not {sample!r}")
    generation = int(found[1])
    rows, facts = read_ledger(directory, generation)
    row = next((row for row in rows if row.id == sample), None)
    if row is None:
        raise UserError(
            f"generation {generation} has {len(rows)} samples, and {sample} is none of them"
        )
    bits_per_nat = -1 / max(len(row.tokens), 1) / math.log(2)
    surprisal = f"{row.logp_first * bits_per_nat:.2f} bits per token under the first model"
    origin = f"read from {row.generator}"
    if not math.isnan(row.logp):
        origin = f"written by the weights {row.generator} at temperature {row.temperature:g}"
        origin += f", top-k {row.top_k}" if row.top_k else ""
        origin += f", key {row.key}"
        surprisal += f", {row.logp * bits_per_nat:.2f} under its writer"
    decision = f"{row.decision}: {row.reason}" if row.reason else row.decision
    cell = f"; cell {row.cell}" if row.cell else ""
    training = f"trained on in {len(row.steps)} steps"
    if row.steps:
        training += f", {row.steps[0]} to {row.steps[-1]}"
    return (
        f"{row.id}: {origin}\n"
        f"prompt from {', '.join(row.parents) or 'nothing but the beginning of a document'}\n"
        f"surprisal: {surprisal}{cell}\n"
        f"{decision}; weight {row.weight:.2f}\n"
        f"{training}\n"
        f"its generation: {facts.get('decision', 'no decision recorded')}\n\n"
        f"{row.text}"
    )
