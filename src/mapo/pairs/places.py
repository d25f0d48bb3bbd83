"""``pictures.npy``: where each picture of a set lies, sorted by hash; a million are opened without reading them.

A record is ``sha`` (32 bytes), ``shard``, ``group``, ``row`` and whether its bytes are ``kept``. The file is mapped.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NAME = "pictures.npy"
RECORD = np.dtype([("sha", "u1", (32,)), ("shard", "<i4"), ("group", "<i4"), ("row", "<i4"), ("kept", "<i4")])
AT_ONCE = 32_768  # names looked up
WRITTEN_AT_ONCE = 4_096


def write_places(path: Path, count: int, places: Iterable[tuple[bytes, int, int, int, bool]]) -> None:
    """Write ``count`` places that come sorted by hash."""
    rest = iter(places)
    with path.open("wb") as file:
        head = {"descr": np.lib.format.dtype_to_descr(RECORD), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, head)
        while part := list(islice(rest, WRITTEN_AT_ONCE)):
            records = np.zeros(len(part), RECORD)
            records["sha"] = np.frombuffer(b"".join(p[0] for p in part), np.uint8).reshape(-1, 32)
            for column, name in enumerate(("shard", "group", "row", "kept"), 1):
                records[name] = [p[column] for p in part]
            file.write(records.tobytes())


class Places:
    """The index of a set; ValueError or OSError when the file is not one."""

    def __init__(self, path: Path) -> None:
        self.records = np.load(path, mmap_mode="r", allow_pickle=False)
        if self.records.dtype != RECORD or self.records.ndim != 1:
            raise ValueError("it is not an index of pictures")
        self._heads = _heads(self.records["sha"])
        if (self._heads[1:] < self._heads[:-1]).any():
            raise ValueError("it is not sorted")

    def find(self, name: str) -> Any | None:
        """The record of a picture, or None."""
        row = self._row_of(name)
        return None if row < 0 else self.records[row]

    def _row_of(self, name: str) -> int:
        try:
            wanted = np.frombuffer(bytes.fromhex(name), np.uint8)
        except ValueError:
            return -1
        if len(wanted) != 32:
            return -1
        head = _heads(wanted[None])[0]
        place = int(np.searchsorted(self._heads, head))
        while place < len(self.records) and self._heads[place] == head:
            if np.array_equal(self.records[place]["sha"], wanted):
                return place
            place += 1
        return -1

    def missing(self, names: pa.ChunkedArray) -> np.ndarray:
        """The rows of ``names`` (hashes as texts) that no record has, "n"."""
        return np.flatnonzero(self.rows_of(names) < 0)

    def rows_of(self, names: pa.ChunkedArray) -> np.ndarray:
        """Which record each of ``names`` (hashes as texts) has, -1 for none, "n"."""
        if not len(self.records):
            return np.full(len(names), -1)
        parts = [np.empty(0, np.int64)]
        for start in range(0, len(names), AT_ONCE):  # a few at a time stay in the processor's cache
            parts.append(self._rows_of(names.slice(start, AT_ONCE).combine_chunks()))
        return np.concatenate(parts)

    def _rows_of(self, names: pa.StringArray) -> np.ndarray:
        first = np.frombuffer(names.buffers()[1], np.int32)[names.offset]
        letters = np.frombuffer(names.buffers()[2], np.uint8)[first:][: 64 * len(names)]
        try:
            if not pc.all(pc.equal(pc.binary_length(names), 64)).as_py():
                raise ValueError("not all are 64 digits")
            shas = np.frombuffer(binascii.unhexlify(letters.tobytes()), np.uint8).reshape(-1, 32)
        except ValueError:
            return np.array([self._row_of(name) for name in names.to_pylist()])
        heads = _heads(shas)
        order = np.argsort(heads)  # neighbours lie together in the file too
        places = np.minimum(np.searchsorted(self._heads, heads[order]), len(self.records) - 1)
        found = np.ascontiguousarray(self.records["sha"][places]).view(np.uint64)
        unlike = (found != shas[order].view(np.uint64)).reshape(-1, 4)
        rows = np.empty(len(names), np.int64)
        rows[order] = places
        # not there, or two hashes that begin alike
        for row in order[unlike[:, 0] | unlike[:, 1] | unlike[:, 2] | unlike[:, 3]].tolist():
            rows[row] = self._row_of(names[row].as_py())
        return rows


def _heads(shas: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each hash as a number, "n 32" → "n"."""
    return np.ascontiguousarray(shas[:, :8]).view(">u8").ravel().astype(np.uint64)
