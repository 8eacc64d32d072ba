"""Tables to records: CSV in all its forms, and parquet by batches."""

import csv
import io
from itertools import chain
from typing import Any

from ramp.errors import UserError
from ramp.text.encodings import Bad
from ramp.text.reading import BLOCK, MAX_LINE, Reading, Records, decode, read_as_text


@read_as_text
def read_csv(file: io.BufferedReader, reading: Reading) -> Records:
    """The rows below a header, by its names; commas, semicolons, tabs or bars between fields."""
    csv.field_size_limit(MAX_LINE)  # a field is a document and may be longer than csv's 128 kB
    # Bytes that are not UTF-8 become surrogates, which `text_of` turns back.
    lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    header = lines.readline()
    delimiter = max(",;\t|", key=header.count)
    num_quotes = 0

    def count_quotes():
        nonlocal num_quotes
        for line in chain([header], lines):
            num_quotes += line.count('"')
            yield line

    rows = csv.DictReader(count_quotes(), delimiter=delimiter)
    try:
        for row in rows:
            yield f":{rows.line_num}", _decode_row(row, reading)
    except csv.Error:  # the rest of the file is lost
        yield f":{rows.line_num}", Bad("bad_file")
    # The last field has swallowed all lines behind a quote that is not closed.
    if num_quotes % 2:
        yield f":{rows.line_num}", Bad("open_quote")


def _decode_row(row, reading):
    row.pop(None, None)  # what stands behind the last column of the header
    try:
        return {key: _restore(value, reading) for key, value in row.items()}
    except Bad as bad:
        return bad


def _restore(value, reading):
    if value is None or value.isascii():
        return value
    data = value.encode("utf-8", "surrogateescape")
    return decode(data, reading)


def read_parquet(raw: Any, reading: Reading) -> Records:
    """The rows of some row groups, all columns or the one that holds `part.field`."""
    import pyarrow  # slow to import: only those who read parquet wait for it
    import pyarrow.parquet

    part, row = reading.part, 0
    # Parquet is read from its end: what comes through a pipe must be held.
    is_file = type(raw) is io.BufferedReader and raw.seekable()
    source = raw if is_file else io.BytesIO(raw.read())
    try:
        with pyarrow.parquet.ParquetFile(source, buffer_size=BLOCK) as file:
            names = file.schema_arrow.names
            column = part.field if part.field in names else part.field.split(".")[0]
            if part.field and column not in names:
                raise UserError(
                    f"{part.path} has no column {part.field!r} but {', '.join(names)}: "
                    "name one of these with #FIELD."
                )
            meta = file.metadata
            groups = range(part.start, meta.num_row_groups if part.stop is None else part.stop)
            row = sum(meta.row_group(i).num_rows for i in range(part.start))
            size = sum(meta.row_group(i).total_byte_size for i in groups)
            num_rows = sum(meta.row_group(i).num_rows for i in groups)
            # In batches of some megabytes, so that a file larger than memory can be read.
            batch_rows = min(1024, max(1, num_rows * 2**24 // max(size, 1)))
            columns = [column] if part.field else None
            for batch in file.iter_batches(batch_rows, groups, columns=columns):
                for record in _list_rows(batch):
                    row += 1
                    yield f":{row}", record
    except pyarrow.ArrowException:
        yield " at its end", Bad("bad_file")


def _list_rows(batch) -> list:
    """The rows of a batch; one that is not UTF-8 is one bad record and not the end of the file."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [Bad("bad_utf8")]
    return [row for i in range(batch.num_rows) for row in _list_rows(batch.slice(i, 1))]
