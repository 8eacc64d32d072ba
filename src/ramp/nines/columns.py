"""Tables as columns of distinct cells: a million rows cost little more than what is distinct."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy import ndarray

# What arrow raises of cells that have no one type, or one that it cannot count.
MIXED = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
BATCH = 50_000  # rows that are rows only for a while


@dataclass(frozen=True)
class Column:
    """Cells, each distinct one once."""

    values: list[Any]  # distinct; None: missing
    codes: ndarray  # [N] the place of each row's cell among them

    def __getitem__(self, rows: ndarray | slice) -> "Column":
        return Column(self.values, self.codes[rows])

    def map(self, function: Callable[[Any], Any]) -> "Column":
        """The column of the function of every cell, called once for each distinct one."""
        return encode_cells([function(value) for value in self.values])[self.codes]

    def present(self) -> ndarray:
        """[N] whether a row has a cell here."""
        return np.array([v is not None for v in self.values], bool)[self.codes]

    def used(self) -> list[Any]:
        """The distinct cells that some row still has, without the missing one."""
        kept = np.unique(self.codes)
        return [self.values[k] for k in kept if self.values[k] is not None]


Table = dict[str, Column]


def count_rows(table: Table) -> int:
    """The number of rows; 0 of a table without columns."""
    return len(next(iter(table.values())).codes) if table else 0


def keep_rows(table: Table, rows: ndarray | slice) -> Table:
    """The same columns with these rows only."""
    return {key: column[rows] for key, column in table.items()}


def with_column(table: Table, name: str, column: Column) -> Table:
    """The table with one column more, or another one in its place."""
    return {**table, name: column}


def encode_cells(cells: Sequence[Any]) -> Column:
    """A column of cells. Cells that are missing, empty or NaN become None."""
    try:
        return _from_arrow(pa.array(cells, from_pandas=True))
    except MIXED:
        # Cells of several types, or of what has no order, such as lists.
        places: dict[Any, int] = {}
        values: list[Any] = []
        codes = np.empty(len(cells), np.int32)
        for row, cell in enumerate(cells):
            # To Python True, 1 and 1.0 are one key.
            is_nested = isinstance(cell, dict | list)
            key = (type(cell), json.dumps(cell, sort_keys=True) if is_nested else cell)
            if key not in places:
                places[key] = len(values)
                values.append(_clean_cell(cell))
            codes[row] = places[key]
        return Column(values, codes)


def _from_arrow(array):
    # Missing cells are found by their code, -1 after this, which is the last place.
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    values = [_clean_cell(value) for value in array.dictionary.to_pylist()]
    codes = array.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return Column([*values, None], codes.astype(np.int32))


def _clean_cell(cell):
    if cell == "" or cell != cell:
        return None
    return cell


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows of named cells; a row without a name has no cell there."""
    pieces: dict[str, list[Any]] = {}
    sizes: list[int] = []
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        # A dict keeps the order in which names came up.
        for name in dict.fromkeys(chain.from_iterable(batch)):
            # Of the batches before, which had no such name.
            earlier = pieces.setdefault(name, [pa.nulls(size) for size in sizes])
            earlier.append(_pack([row.get(name) for row in batch]))
        sizes.append(len(batch))
        for cells in pieces.values():
            if len(cells) < len(sizes):
                cells.append(pa.nulls(len(batch)))
    return {name: _join(cells) for name, cells in pieces.items()}


def _pack(cells):
    """Cells of one type as an array, which takes a tenth of the memory; others as they are."""
    try:
        return pa.array(cells, from_pandas=True)
    except MIXED:
        return cells


def _join(pieces):
    """A column of the pieces of it that the batches have."""
    types = {piece.type for piece in pieces if isinstance(piece, pa.Array)} - {pa.null()}
    if len(types) == 1 and all(isinstance(piece, pa.Array) for piece in pieces):
        (kind,) = types
        with suppress(*MIXED):
            return _from_arrow(pa.concat_arrays([piece.cast(kind) for piece in pieces]))
    plain = [piece.to_pylist() if isinstance(piece, pa.Array) else piece for piece in pieces]
    return encode_cells(list(chain.from_iterable(plain)))


def concatenate(tables: Sequence[Table]) -> Table:
    """One table of several; rows of a table without some column have no cell there."""
    if len(tables) == 1:
        return tables[0]
    sizes = [count_rows(table) for table in tables]
    whole = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        places: dict[Any, int] = {}
        values: list[Any] = []
        codes = []
        for table, size in zip(tables, sizes, strict=True):
            column = table.get(name) or Column([None], np.zeros(size, np.int32))
            moved = np.empty(len(column.values), np.int32)
            for place, value in enumerate(column.values):
                key = (type(value), repr(value) if isinstance(value, dict | list) else value)
                if key not in places:
                    places[key] = len(values)
                    values.append(value)
                moved[place] = places[key]
            codes.append(moved[column.codes])
        whole[name] = Column(values, np.concatenate(codes))
    return whole


def constant(value: Any, rows: int) -> Column:
    """A column with one cell everywhere."""
    return Column([value], np.zeros(rows, np.int32))


def group_codes(columns: Sequence[Column], rows: int) -> ndarray:
    """[N] a number that rows share where they agree in every column."""
    group = np.zeros(rows, np.int64)
    groups = 1
    for column in columns:
        size = max(len(column.values), 1)
        if groups * size >= 2**62:
            # One sort where the numbers would overflow, and one at the end.
            values, group = np.unique(group, return_inverse=True)
            groups = len(values)
        group = group * size + column.codes
        groups *= size
    return np.unique(group, return_inverse=True)[1]


def read_csv(path: Path) -> Table:
    """The table of a CSV file, its cells as they are written. ValueError: it is none."""
    from pyarrow import csv as arrow  # slow to import, and needed by this format only

    # A row ends at a newline only: U+2028 may stand in a text.
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = _find_delimiter(file.readline())
        file.seek(0)
        written = next(csv.reader(file, strict=True, delimiter=delimiter), [])
    # A blank after the comma is no part of a name.
    names = [name.strip() for name in written]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"its column {min(twice)!r} is there twice")
    if not names:
        return {}
    # As they are written: the item "007" is no number.
    types = {name: pa.dictionary(pa.int32(), pa.string()) for name in written}
    table = arrow.read_csv(
        path,
        read_options=arrow.ReadOptions(use_threads=False),
        parse_options=arrow.ParseOptions(newlines_in_values=True, delimiter=delimiter),
        convert_options=arrow.ConvertOptions(column_types=types, strings_can_be_null=False),
    )
    return _from_arrow_table(table.rename_columns(names))


def _find_delimiter(head):
    """What stands between the names of columns: a comma, or what spreadsheets write instead."""
    others = [mark for mark in ("\t", ";") if mark in head]
    return "," if "," in head or not others else others[0]


def read_parquet(path: Path) -> Table:
    """The table of a Parquet file; columns of lists or structs are no cells and left out."""
    import pyarrow.parquet as pq  # slow to import, and needed by this format only

    return _from_arrow_table(pq.read_table(path))


def _from_arrow_table(table):
    columns = {}
    for name, chunks in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(chunks.type):
            continue
        chunks = chunks if pa.types.is_dictionary(chunks.type) else chunks.dictionary_encode()
        array = chunks.unify_dictionaries().combine_chunks()
        columns[name] = _from_arrow(array) if len(array) else Column([], np.zeros(0, np.int32))
    return columns
