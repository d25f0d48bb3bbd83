"""The files that an import reads, as a digest of their names, sizes and times: whether a source has changed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mapo.files import as_on_disk
from mapo.pairs.splits import SPLITS
from mapo.texts import delimiter_of, encoding_of

TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"')  # the strings of JSON, a line or a whole file of it
JSON_ENDS, CSV_ENDS = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
ARROW_ENDS = (".arrow", ".feather")
ROWS_AT_ONCE = 1024


def state_of(path: Path) -> list[int | str]:
    """How many files an import of ``path`` reads, and a digest of their names, sizes and times.

    Of a folder these are all files below it; of a file, itself and the files that it names. Names that begin with a
    dot do not count: they are left alone, and ours while we work.
    """
    count = total = 0
    for name, found in _below(path) if path.is_dir() else _with_named(path):
        entry = f"{name}\0{found.st_size}\0{found.st_mtime_ns}".encode("utf-8", "surrogatepass")
        total += int.from_bytes(hashlib.sha256(entry).digest(), "big")  # a sum: the order on disk does not matter
        count += 1
    return [count, f"{total % 2**256:064x}"]


def _below(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif found := _stat(entry.path):
                    yield os.path.relpath(entry.path, folder), found


def _with_named(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    yield path.name, path.stat()
    places = [str(path.parent), *(str(path.parent / split) for split in SPLITS if (path.parent / split).is_dir())]
    for text in _texts(path):
        for name in texts_in(text):
            if found := _found(path.parent, places, name):
                yield name, found


def _found(folder: Path, places: list[str], name: str) -> os.stat_result | None:
    """The file of this name, wherever a reader looks: beside the list, in ``train`` and so on, or by its last part."""
    for place in places:
        if found := _stat(os.path.join(place, name)):  # noqa: PTH118 (a Path for each text is slow)
            return found
    if not (name.isascii() and "\\" not in name) and (found := _stat(as_on_disk(folder, name))):
        return found
    return _stat(os.path.join(folder, name.rpartition("/")[2])) if "/" in name else None  # noqa: PTH118


def texts_in(value: Any) -> Iterator[str]:
    """The texts in a value of JSON; also those in a text that is itself a list in JSON, as cells of CSV are."""
    if isinstance(value, str):
        yield value
        if value.startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                yield from (text for text in json.loads(value) if isinstance(text, str))
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def _stat(path: str | Path) -> os.stat_result | None:
    """None for what is not a file, or is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a path may be a text)
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _texts(path: Path) -> Iterable[str]:
    """Every text in a list of ours, prompts too: which of them are paths only the disk knows."""
    end = path.suffix.lower()
    if end == ".parquet":
        return _texts_of_table(path)
    if end in ARROW_ENDS:
        return _texts_of_arrow(path)
    return _texts_of_lines(path, end) if end in JSON_ENDS or end in CSV_ENDS else ()


def _texts_of_lines(path: Path, end: str) -> Iterator[str]:
    with path.open(encoding=encoding_of(path), errors="replace", newline="") as file:
        if end in CSV_ENDS:
            with contextlib.suppress(csv.Error):
                for row in csv.reader(file, delimiter=delimiter_of(path)):
                    yield from row
            return
        for line in file:
            for text in TEXTS.findall(line):
                with contextlib.suppress(ValueError):
                    yield json.loads(text)


def _texts_of_table(path: Path) -> Iterator[str]:
    """The texts of a table, in lists and structs too; its bytes are not read."""
    with contextlib.suppress(pa.ArrowException, OSError), pq.ParquetFile(path) as file:
        columns = [file.schema.column(k) for k in range(len(file.schema.names))]
        names = [column.path for column in columns if column.logical_type.type == "STRING"]
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names) if names else ():
            yield from _texts_of_batch(batch)


def _texts_of_arrow(path: Path) -> Iterator[str]:
    with contextlib.suppress(pa.ArrowException, OSError), pa.memory_map(str(path)) as file:
        for batch in opened(file)[1]:
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield from _texts_of_batch(batch.slice(start, ROWS_AT_ONCE))


def opened(file: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of a stream, or of a file with a footer."""
    try:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    except pa.ArrowInvalid:
        file.seek(0)
        whole: Any = pa.ipc.open_file(file)
        return whole.schema, (whole.get_batch(k) for k in range(whole.num_record_batches))


def _texts_of_batch(batch: pa.RecordBatch) -> Iterator[str]:
    for column in batch.columns:
        for texts in _leaves(column):
            yield from (os.fsdecode(text) for text in texts.to_pylist() if text)  # some are not UTF-8


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_struct(column.type):
        for part in column.flatten():
            yield from _leaves(part)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        yield from _leaves(column.flatten())
    elif pa.types.is_dictionary(column.type):
        yield from _leaves(column.dictionary_decode())
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield column.cast(pa.large_binary())
