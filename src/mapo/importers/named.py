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

import pyarrow as pa
import pyarrow.parquet as pq

from mapo.files import as_on_disk, encoding_of

TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"')  # the strings of JSON, a line or a whole file of it
JSON_ENDS, CSV_ENDS = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}
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
    folder = str(path.parent)
    for text in _texts(path):
        found = _stat(os.path.join(folder, text))  # noqa: PTH118 (a Path for each text is slow)
        if found is None and not (text.isascii() and "\\" not in text):
            found = _stat(as_on_disk(path.parent, text))
        if found:
            yield text, found


def _stat(path: str | Path) -> os.stat_result | None:
    """None for what is no file, or is not there."""
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
    return _texts_of_lines(path, end) if end in JSON_ENDS or end in CSV_ENDS else ()


def _texts_of_lines(path: Path, end: str) -> Iterator[str]:
    with path.open(encoding=encoding_of(path), errors="replace", newline="") as file:
        if end in CSV_ENDS:
            with contextlib.suppress(csv.Error):
                for row in csv.reader(file, delimiter=CSV_ENDS[end]):
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
            for column in batch.columns:
                for texts in _leaves(column):
                    yield from (os.fsdecode(text) for text in texts.to_pylist() if text)  # some are no UTF-8


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_struct(column.type):
        for part in column.flatten():
            yield from _leaves(part)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        yield from _leaves(column.flatten())
    elif pa.types.is_dictionary(column.type):
        yield from _leaves(column.dictionary_decode())
    else:
        yield column.cast(pa.large_binary())
