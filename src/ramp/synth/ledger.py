"""The ledger: one Parquet row a sample, one file a generation, so that any sample can be explained and made again."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ramp.errors import UserError

SCHEMA = pa.schema({
    "id": pa.string(),  # g3-00017: generation and number
    "generation": pa.int32(),
    "parents": pa.list_(pa.string()),  # real documents the prompt was cut from
    "generator": pa.string(),  # fingerprint of the weights that wrote it
    "prompt": pa.list_(pa.int32()),
    "key": pa.int64(),  # the row's randomness
    "temperature": pa.float32(),
    "top_k": pa.int32(),
    "min_p": pa.float32(),
    "tokens": pa.list_(pa.int32()),  # what was drawn, the prompt left out
    "text": pa.string(),
    "logp": pa.float32(),  # of the tokens, nats, under what they were drawn from
    "logp_first": pa.float32(),  # under the first model
    "verdict": pa.bool_(),
    "cell": pa.int32(),
    "weight": pa.float32(),
    "decision": pa.string(),  # kept or dropped
    "reason": pa.string(),
    "steps": pa.list_(pa.int32()),  # of its own generation's training, in which it was used
})  # fmt: skip


def path(directory: Path, generation: int) -> Path:
    return directory / f"g{generation:03d}.parquet"


def write(
    directory: Path,
    generation: int,
    rows: Sequence[Mapping[str, Any]],
    run: str,
    facts: Mapping[str, str],
) -> Path:
    """Write a generation's rows, whole or not at all. `run`: fingerprint of the run; `facts`: its accounts, as text."""
    directory.mkdir(parents=True, exist_ok=True)
    target = path(directory, generation)
    table = pa.Table.from_pylist([dict(row) for row in rows], SCHEMA)
    meta = {"run": run, **facts}
    tmp = target.with_name(target.name + ".tmp")
    pq.write_table(
        table.replace_schema_metadata({k.encode(): v.encode() for k, v in meta.items()}), tmp
    )
    tmp.replace(target)
    return target


def read(
    directory: Path, generation: int, run: str | None = None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows, facts) of a generation; a missing or damaged file, or another run's, is a `UserError`."""
    source = path(directory, generation)
    try:
        table = pq.read_table(source)
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rows = table.select(SCHEMA.names).to_pylist()
    except FileNotFoundError:
        raise UserError(
            f"there is no ledger {source}; run `ramp synthesize` up to generation {generation}"
        ) from None
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"the ledger {source} cannot be read ({error}); delete it and the later ones, and run again"
        ) from None
    if run is not None and meta.get("run") != run:
        raise UserError(
            f"the ledger {source} is of another run; move it away, or name another directory with --run"
        )
    return rows, meta


def describe_sample(directory: Path, sample: str) -> str:
    """A sample told in words: where it comes from, what was made of it and why."""
    generation, _, number = sample.removeprefix("g").partition("-")
    if not (sample.startswith("g") and generation.isdigit() and number.isdigit()):
        raise UserError(f"a sample is named like g3-00017 (generation and number), not {sample!r}")
    rows, facts = read(directory, int(generation))
    row = next((r for r in rows if r["id"] == sample), None)
    if row is None:
        raise UserError(
            f"generation {int(generation)} has {len(rows)} samples, and {sample} is none of them"
        )
    bits = {k: -row[k] / max(len(row["tokens"]), 1) / math.log(2) for k in ("logp", "logp_first")}
    drawn = f"temperature {row['temperature']:g}" + (
        f", top-k {row['top_k']}" if row["top_k"] else ""
    )
    steps = row["steps"] or []
    lines = [
        f"{row['id']}: written by the weights {row['generator']} at {drawn}, key {row['key']}",
        f"from {', '.join(row['parents']) or 'nothing but the beginning of a document'}",
        f"surprise: {bits['logp']:.2f} bits a token under its writer, {bits['logp_first']:.2f} under the first model; "
        f"cell {row['cell']}",
        f"{row['decision']}{': ' + row['reason'] if row['reason'] else ''}; weight {row['weight']:.2f}",
        f"taught in {len(steps)} steps" + (f", {steps[0]} to {steps[-1]}" if steps else ""),
        f"its generation: {facts.get('decision', 'no decision recorded')}",
        "",
        row["text"],
    ]
    return "\n".join(lines)
