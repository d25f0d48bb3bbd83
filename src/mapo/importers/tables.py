"""Reading Parquet a few rows at a time, from this machine or from the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mapo.errors import MapoError
from mapo.importers import BadRow, RawPair, sources
from mapo.importers.sources import Source, picture_at

ROWS_AT_ONCE = 32
READ_AT_ONCE = 2**20
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One Parquet file. ``folder`` is where its relative paths of pictures begin, None on the hub."""

    name: str
    place: str
    folder: Path | None

    def open(self) -> pq.ParquetFile:
        """OSError or ArrowException when that cannot be done; ConnectionError when the hub is the reason."""
        if self.folder is not None:
            return pq.ParquetFile(self.place, buffer_size=READ_AT_ONCE)
        return pq.ParquetFile(sources.hub_files().open(self.place, "rb"), buffer_size=READ_AT_ONCE)


def tables(source: Source) -> list[Table]:
    """The Parquet files of ``source``, in order of their names."""
    if source.path is not None:
        folder = source.path if source.path.is_dir() else source.path.parent
        paths = sorted(source.path.glob("**/*.parquet")) if source.path.is_dir() else [source.path]
        names = ((path, path.relative_to(folder)) for path in paths)
        return [  # what is hidden may be our own unfinished work
            Table(str(name), str(path), path.parent)
            for path, name in names
            if not any(part.startswith(".") for part in name.parts)
        ]
    files, root = sources.hub_files(), str(source.hub)
    if root.endswith(".parquet"):
        found = files.glob(root) if "*" in root else [root]
    else:
        found = files.glob(f"{root}/**/*.parquet")
    return [Table(Path(place).name, place, None) for place in sorted(found)]


def columns(source: Source) -> list[str] | None:
    """The columns of the first Parquet file; None when there is none that can be opened."""
    if source.path is not None and source.path.is_file() and source.path.suffix != ".parquet":
        return None
    for table in tables(source)[:1]:
        try:
            with table.open() as file:
                return list(file.schema_arrow.names)
        except (pa.ArrowException, OSError):
            return []
    return None


def rows(
    source: Source,
    needed: tuple[str, ...],
    wanted: tuple[str, ...],
    convert: Callable[[Row, Table, str], RawPair],
    start: int = 0,
) -> Iterator[list[RawPair | BadRow]]:
    """What ``convert`` makes of each row from number ``start`` on; its ValueErrors become bad rows.

    ``needed`` columns must be there, ``wanted`` ones may.
    """
    found = tables(source)
    if not found:
        raise MapoError(f"{source.name} holds no Parquet files.")
    _refuse_gaps(source, found)
    total = 0
    for table in found:
        number = 0
        try:
            with table.open() as file:
                names = _check_columns(file, table, needed, wanted)
                count = file.metadata.num_rows
                total += count
                number, start = min(start, count), max(start - count, 0)
                for row in _read(file, names, number):
                    where = f"{table.name} row {number}"
                    try:
                        yield [convert(row, table, where)]
                    except ValueError as error:
                        yield [BadRow(where, str(error))]
                    number += 1
        except MapoError:
            raise
        except pa.ArrowException as error:
            raise _damaged(table, number, error) from None
        except Exception as error:
            if table.folder is None:  # of whatever client the hub's library uses: nothing is wrong with the rows
                raise ConnectionError(f"{table.name} row {number} could not be fetched ({error})") from None
            if isinstance(error, OSError | UnicodeDecodeError):
                raise _damaged(table, number, error) from None
            raise
    if total == 0:
        raise MapoError(f"{source.name} is empty: its Parquet files have no rows.")


def _damaged(table: Table, number: int, error: Exception) -> MapoError:
    how = f"breaks off after row {number}" if number else "is no whole Parquet file"
    return MapoError(f"{table.name} {how} ({error}). Fetch it again, or import the others without it.")


def _refuse_gaps(source: Source, found: list[Table]) -> None:
    """Files named 00000-of-00003 must all be there."""
    seen: dict[tuple[str, int], set[int]] = {}
    for table in found:
        if match := PART.fullmatch(table.place):
            seen.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in seen.items():
        if len(found) > 1 and (gaps := sorted(set(range(count)) - numbers)):
            name = f"{Path(stem).name}-{gaps[0]:05d}-of-{count:05d}.parquet"
            more = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
            raise MapoError(f"{source.name} is not whole: it lacks {name}{more}. Fetch it, or rename what is there.")


def _check_columns(file: pq.ParquetFile, table: Table, needed: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    there = file.schema_arrow.names
    if missing := [c for c in needed if c not in there]:
        raise MapoError(f"{table.name} lacks the columns {', '.join(missing)}; it has {', '.join(there)}.")
    return [*needed, *(c for c in wanted if c in there)]


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
            yield from _values(pa.Table.from_batches([part]))


def _values(table: pa.Table) -> list[Row]:
    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):  # in nanoseconds it has no Python value
            table = table.set_column(place, field.name, table[field.name].cast(pa.string()))
    try:
        rows: list[Row] = table.to_pylist()
        return rows
    except UnicodeDecodeError:
        return _with_broken_texts(table)


def _with_broken_texts(table: pa.Table) -> list[Row]:
    """The rows of a table with texts that are no UTF-8: each wrong byte becomes half a character, which is refused."""
    kinds = (pa.string(), pa.large_string())
    texts = [field.name for field in table.schema if field.type in kinds]
    for name in texts:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.binary()))
    rows: list[Row] = table.to_pylist()
    for row in rows:
        row |= {k: row[k].decode("utf-8", "surrogateescape") for k in texts if row[k] is not None}
    return rows


def picture_of(cell: Any, table: Table) -> bytes:
    """The bytes of a cell: bytes, an ``Image`` of datasets ({bytes, path}), or a path beside the file."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if isinstance(data, str):
        data, path = None, data
    if isinstance(data, bytes) and data:
        return data
    if data is None and isinstance(path, str) and path:
        if table.folder is None:
            raise ValueError(f"the picture {path} is a path; on the hub pictures must be inside the table")
        return picture_at(table.folder, path)
    raise ValueError("a picture has no bytes")


def number_of(value: Any, name: str) -> float:
    """A number; ValueError says what ``name`` is instead."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, which is no number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large a number") from None
