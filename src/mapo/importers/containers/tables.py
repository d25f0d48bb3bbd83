"""Reading Parquet a few rows at a time, from this machine or from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mapo.errors import MapoError, reason
from mapo.importers import sources
from mapo.importers.containers.shape import Cursor, File, Row, Shape, Where, refuse_twice_in
from mapo.importers.sources import Source
from mapo.importers.splits import splits_of
from mapo.importers.types import BadRow

ROWS_AT_ONCE = 32
READ_AT_ONCE = 2**20
BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, KeyError)  # what a damaged table can raise


@dataclass(frozen=True)
class Table:
    """One Parquet file. ``folder`` is where its relative paths of pictures begin, None on the hub."""

    name: str
    place: str
    folder: Path | None
    split: str | None = None
    empty = "its Parquet files have no rows"
    kind = "Parquet"

    def open(self) -> pq.ParquetFile:
        """OSError or ArrowException when that cannot be done; ConnectionError when the hub is the reason."""
        if self.folder is not None:
            return pq.ParquetFile(self.place, buffer_size=READ_AT_ONCE)
        return pq.ParquetFile(sources.hub_files().open(self.place, "rb"), buffer_size=READ_AT_ONCE)

    def columns(self) -> list[str] | None:
        """Its columns; None when it is not a whole file."""
        try:
            with self.open() as file:
                return list(file.schema_arrow.names)
        except (pa.ArrowException, OSError):
            return None

    def count(self) -> int | None:
        """How many rows it has; None when it is not a whole file."""
        try:
            with self.open() as file:
                return int(file.metadata.num_rows)
        except (pa.ArrowException, OSError):
            return None

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """Its rows from the cursor on; row groups before it are not read."""
        return guarded(self, cursor, lambda: self._read(shape, cursor))

    def _read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[int, Row]]:
        with self.open() as file:
            names = pick(self.name, shape, file.schema_arrow.names)
            number = cursor.skip(file.metadata.num_rows)
            theirs = list(dict.fromkeys(names.values()))
            for row in _read(file, theirs, number):
                yield number, {ours: row[name] for ours, name in names.items()}
                number += 1


def guarded(
    table: Any, cursor: Cursor, read: Callable[[], Iterator[tuple[int, Row]]]
) -> Iterator[tuple[Where, Row] | BadRow]:
    """The rows of a table with their places; what a library says of damage becomes a sentence."""
    number = 0
    try:
        for at, row in read():
            cursor.passes()
            group = f"{Path(table.name).with_suffix('')}:{at}"
            yield Where(f"{table.name} row {at}", group, table.folder, table.split), row
            number = at + 1
    except MapoError:
        raise
    except pa.ArrowException as error:
        raise _damaged(table, number, error) from None
    except Exception as error:
        if table.folder is None:  # of whatever client the hub's library uses: nothing is wrong with the rows
            raise ConnectionError(f"{table.name} row {number} could not be fetched ({error})") from None
        if isinstance(error, BROKEN):
            raise _damaged(table, number, error) from None
        raise


def pick(name: str, shape: Shape, there: list[str]) -> dict[str, str]:
    """Our name → the table's for the columns to read; MapoError when one is missing."""
    refuse_twice_in(name, there)
    if missing := shape.missing(there):
        raise MapoError(f"{name} lacks the columns {', '.join(missing)}; it has {', '.join(there)}.")
    return shape.pick(there)


def files(source: Source) -> list[File]:
    """The Parquet files of ``source``, in order of their names."""
    if source.path is not None:
        there = list(source.files(".parquet", deep=True))
        splits = splits_of([name for name, _ in there])
        found = [Table(name, str(path), path.parent, split) for (name, path), split in zip(there, splits, strict=True)]
    else:
        hub, root = sources.hub_files(), str(source.hub)
        if root.endswith(".parquet"):
            places = hub.glob(root) if "*" in root else [root]
        else:
            places = hub.glob(f"{root}/**/*.parquet")
        places = sorted(places)
        splits = splits_of([sources.below_set(place) for place in places])
        found = [Table(Path(place).name, place, None, split) for place, split in zip(places, splits, strict=True)]
    return list(found)


def _damaged(table: Any, number: int, error: Exception) -> MapoError:
    how = f"breaks off after row {number}" if number else f"is not a whole {table.kind} file"
    return MapoError(f"{table.name} {how} ({reason(error)}). Fetch it again, or import the others without it.")


def _read(file: pq.ParquetFile, names: list[str], start: int) -> Iterator[Row]:
    """The rows from ``start`` on; row groups before it are not read.

    One row group after the other: over several at once, Arrow's memory grows with their number.
    """
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if start >= count:
            start -= count
            continue
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=names):
            part = batch.slice(start)
            start = max(start - batch.num_rows, 0)
            yield from values(pa.Table.from_batches([part]))


def values(table: pa.Table) -> list[Row]:
    """The rows in Python's types."""
    for place, field in enumerate(table.schema):
        kind = pa.string() if pa.types.is_timestamp(field.type) else _in_python(field.type)
        if kind != field.type:
            table = table.set_column(place, field.name, table[field.name].cast(kind))
    try:
        rows: list[Row] = table.to_pylist()
        return rows
    except UnicodeDecodeError:
        return _with_broken_texts(table)


def _in_python(kind: pa.DataType) -> pa.DataType:
    """The type with texts for times in nanoseconds, which have no Python value, at any depth."""
    if (pa.types.is_timestamp(kind) and kind.unit == "ns") or kind == pa.time64("ns"):
        return pa.string()
    if kind == pa.duration("ns"):
        return pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(i).with_type(_in_python(kind.field(i).type)) for i in range(kind.num_fields)])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_python(kind.value_type)))
    return kind


def _with_broken_texts(table: pa.Table) -> list[Row]:
    """The rows of a table with texts that are not UTF-8: each wrong byte becomes half a character, which is refused."""
    kinds = (pa.string(), pa.large_string())
    texts = [field.name for field in table.schema if field.type in kinds]
    for name in texts:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.binary()))
    rows: list[Row] = table.to_pylist()
    for row in rows:
        row |= {k: row[k].decode("utf-8", "surrogateescape") for k in texts if row[k] is not None}
    return rows
