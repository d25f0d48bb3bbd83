"""Where each tensor of a cache lies, so that reading one costs the same in a cache of any size.

The index is made from the headers of the shards and kept in ``index.safetensors``. It is no more than a short cut: it
is made again where it is missing, damaged, or does not fit the shards that are there.

The head of a shard has a checksum of each tensor, and whoever reads a tensor compares: a byte that has changed on the
disk is never trained on. Shards of older versions have none, and are read as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapo.errors import CacheDamaged
from mapo.files import replacing
from mapo.models.parts.tensors import DTYPES, bytes_of, save_tensors

NAME = "index.safetensors"
VERSION = "2"
CHECKS = "crc32"  # in a shard's head: the checksums of its tensors by their names, as JSON
UNKNOWN = -1
KINDS = ("latents", "text")  # of shards, as their names begin
SUFFIX = ".safetensors"
KEY = 16  # bytes of a picture's or a prompt's hash by which it is found
RECORD = np.dtype(
    [
        ("head", ">u8"),
        ("tail", ">u8"),
        ("column", "<i4"),
        ("shard", "<i4"),
        ("form", "<i4"),
        ("start", "<i8"),
        ("check", "<i8"),
    ]
)

Shard = tuple[str, int, int]  # name, bytes, time of the last change
Digests = NDArray[np.uint8]  # "n 16" or more


@dataclass(frozen=True)
class Entry:
    """A tensor: the file in which it lies, the byte at which it begins, its dtype and shape, and its checksum."""

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]
    check: int = UNKNOWN

    def read(self) -> Tensor:
        """The tensor; CacheDamaged where the file is gone, shorter than it was, or holds other numbers."""
        tensor = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        wanted = bytes_of(tensor)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start)
                whole = file.readinto(wanted) == len(wanted)
        except OSError as error:
            raise damaged(self.path, error.strerror or str(error)) from None
        if not whole:
            raise damaged(self.path, "it is shorter than it was")
        if self.check != UNKNOWN and zlib.crc32(wanted) != self.check:
            raise damaged(self.path, "it holds other bytes than were written")
        return tensor


def checksums(tensors: Mapping[str, Tensor]) -> str:
    """Those of some tensors, as the head of their shard has them."""
    return json.dumps({name: zlib.crc32(bytes_of(tensor)) for name, tensor in tensors.items()})


class Index:
    """The tensors of a cache's shards; ``complete`` are the fingerprints of sets of which nothing is missing.

    ``stale`` says that ``index.safetensors`` does not hold this yet.
    """

    def __init__(
        self, folder: Path, shards: list[Shard], columns: list[str], forms: list[tuple[str, tuple[int, ...]]],
        records: dict[str, NDArray[Any]], complete: set[str], stale: bool,
    ) -> None:  # fmt: skip
        self.folder, self.shards, self.columns, self.forms, self.stale = folder, shards, columns, forms, stale
        self.records, self.complete = records, complete

    def find(self, digest: bytes) -> dict[str, Entry]:
        """What there is of a picture or prompt, by column; empty where it is not in the cache."""
        head, tail = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:KEY], "big")
        heads, tails = self.records["head"], self.records["tail"]
        place = int(np.searchsorted(heads, np.uint64(head)))
        found = {}
        while place < len(heads) and int(heads[place]) == head:
            if int(tails[place]) == tail:
                column, shard, form = (int(self.records[c][place]) for c in ("column", "shard", "form"))
                start, check = (int(self.records[c][place]) for c in ("start", "check"))
                path = self.folder / self.shards[shard][0]
                found[self.columns[column]] = Entry(path, start, *self.forms[form], check)
            place += 1
        return found

    def holds(self, digests: Digests) -> NDArray[np.bool_]:
        """Which of these pictures or prompts are in the cache, "n"."""
        heads, tails = self.records["head"], self.records["tail"]
        if not len(heads) or not len(digests):
            return np.zeros(len(digests), bool)
        wanted = np.ascontiguousarray(digests[:, :KEY]).view(">u8").astype(np.uint64)
        places = np.minimum(np.searchsorted(heads, wanted[:, 0]), len(heads) - 1)
        there = np.asarray(heads[places] == wanted[:, 0])
        found = np.asarray(there & (tails[places] == wanted[:, 1]))
        for row in np.flatnonzero(there & ~found).tolist():  # two hashes that begin alike
            found[row] = bool(self.find(wanted[row].astype(">u8").tobytes()))
        return found

    def first_numbers(self, digests: Digests, column: str, most: int) -> Tensor:
        """The first ``most`` numbers of the tensor in ``column`` of each of these, "n most"; NaN where there are none.

        The shards are mapped and read at these places only.
        """
        found = torch.full((len(digests), most), torch.nan)
        rows = self._rows(digests, column)
        there = np.flatnonzero(rows >= 0)
        which = np.stack([self.records[c][rows[there]] for c in ("shard", "form")], axis=1)
        for shard, form in np.unique(which, axis=0).tolist():
            some = there[(which == (shard, form)).all(axis=1)]
            dtype, shape = DTYPES[self.forms[form][0]], self.forms[form][1]
            numbers = min(most, math.prod(shape))
            path = self.folder / self.shards[shard][0]
            try:
                raw = np.memmap(path, np.uint8, "r")
                places = self.records["start"][rows[some], None] + np.arange(numbers * dtype.itemsize)
                values = torch.from_numpy(raw[places]).view(dtype)
            except (OSError, ValueError, IndexError) as error:
                raise damaged(path, str(error)) from None
            found[torch.from_numpy(some), :numbers] = values.float()
        return found

    def _rows(self, digests: Digests, column: str) -> NDArray[np.int64]:
        """The record of each of these in a column, -1 where there is none."""
        rows = np.full(len(digests), -1)
        heads = self.records["head"]
        if not len(heads) or column not in self.columns:
            return rows
        wanted = np.ascontiguousarray(digests[:, :KEY]).view(">u8").astype(np.uint64)
        first, end = (np.searchsorted(heads, wanted[:, 0], side) for side in ("left", "right"))
        for step in range(int((end - first).max(initial=0))):
            places = np.minimum(first + step, len(heads) - 1)
            fits = (first + step < end) & (self.records["tail"][places] == wanted[:, 1])
            fits &= self.records["column"][places] == self.columns.index(column)
            rows[fits] = places[fits]
        return rows

    def columns_of(self, kind: str) -> list[str]:
        """The names of the tensors in the shards of a kind."""
        shards = [k for k, (name, _, _) in enumerate(self.shards) if name.startswith(f"{kind}-")]
        used = np.unique(self.records["column"][np.isin(self.records["shard"], shards)])
        return sorted(self.columns[k] for k in used.tolist())

    def write(self) -> None:
        """Keep the index beside the shards."""
        tensors = {
            name: torch.from_numpy(np.array(values.view(np.int64) if values.dtype == np.uint64 else values))
            for name, values in self.records.items()
        }
        about = {name: getattr(self, name) for name in ("shards", "columns", "forms")}
        about |= {"complete": sorted(self.complete), "digest": _digest(self.records)}
        with replacing(self.folder / NAME) as temporary:
            save_tensors(tensors, temporary, {"version": VERSION, "about": json.dumps(about)})
        self.stale = False


def damaged(path: Path, why: str) -> CacheDamaged:
    """What to say of a shard that cannot be read."""
    return CacheDamaged(
        f"{path} is damaged ({why}). Delete this file and run the command again: what was in it is encoded again, "
        "everything else in the cache stays."
    )


def open_index(folder: Path) -> Index:
    """The index of the shards that are there; only headers that it does not know yet are read."""
    shards = _shards(folder)
    kept = _read(folder)
    if kept and kept.shards == shards:
        return kept
    columns, forms = (list(kept.columns), list(kept.forms)) if kept else ([], [])
    parts = [_kept_records(kept, shards)] if kept else []
    known = set(kept.shards) if kept else set()
    for number, shard in enumerate(shards):
        if shard not in known:
            parts.append(_read_header(folder / shard[0], shard[1], number, columns, forms))
    records = np.concatenate(parts) if parts else np.empty(0, RECORD)
    order = np.lexsort((records["column"], records["tail"], records["head"]))
    plain = {
        name: np.ascontiguousarray(records[name][order].astype(records.dtype[name].newbyteorder("=")))
        for name in RECORD.names or ()
    }
    complete = kept.complete if kept and known <= set(shards) else set[str]()  # a shard that is gone may be missed
    return Index(folder, shards, columns, forms, plain, complete, stale=True)


def _shards(folder: Path) -> list[Shard]:
    try:
        with os.scandir(folder) as files:
            found = [f for f in files if f.name.startswith(tuple(f"{k}-" for k in KINDS)) and f.name.endswith(SUFFIX)]
            return sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in found)
    except FileNotFoundError:
        return []


def _read(folder: Path) -> Index | None:
    """The index as it was kept, or None where it is missing or cannot be read."""
    path = folder / NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        header, base = _header(path, path.stat().st_size)
        if header["__metadata__"]["version"] != VERSION:
            return None
        about = json.loads(header["__metadata__"]["about"])
        records: dict[str, NDArray[Any]] = {}
        for name in RECORD.names or ():  # mapped, as only some pages of them are needed
            kind = RECORD[name].newbyteorder("=")
            first, end = header[name]["data_offsets"]
            records[name] = np.memmap(path, kind, "r", base + first, (end - first) // kind.itemsize).view(np.ndarray)
        if len({len(values) for values in records.values()}) != 1 or about["digest"] != _digest(records):
            return None
        shards = [(str(name), int(size), int(time)) for name, size, time in about["shards"]]
        forms = [(str(dtype), tuple(shape)) for dtype, shape in about["forms"]]
        return Index(folder, shards, list(about["columns"]), forms, records, set(about["complete"]), stale=False)
    return None


def _digest(records: dict[str, NDArray[Any]]) -> str:
    """Whether the numbers are those that were written: a wrong one would give the wrong tensor."""
    digest = hashlib.sha256()
    for name in sorted(records):
        digest.update(np.ascontiguousarray(records[name]).data)
    return digest.hexdigest()


def _kept_records(kept: Index, shards: list[Shard]) -> NDArray[Any]:
    """The records of the shards that are still there as they were, under their new numbers."""
    place = {shard: number for number, shard in enumerate(shards)}
    renumbered = np.array([place.get(shard, -1) for shard in kept.shards], np.int32)
    numbers = renumbered[kept.records["shard"]]
    fine = numbers >= 0
    records = np.empty(int(fine.sum()), RECORD)
    for name in RECORD.names or ():
        records[name] = numbers[fine] if name == "shard" else kept.records[name][fine]
    return records


def _read_header(
    path: Path, size: int, number: int, columns: list[str], forms: list[tuple[str, tuple[int, ...]]]
) -> NDArray[Any]:
    """The records of one shard. New columns and forms are added to the lists."""
    rows = []
    try:
        header, base = _header(path, size)
        checks = json.loads((header.pop("__metadata__", None) or {}).get(CHECKS, "{}"))
        for name, entry in header.items():
            digest, _, column = name.partition("|")
            form = (entry["dtype"], tuple(entry["shape"]))
            first, end = entry["data_offsets"]
            if base + end > size:
                raise ValueError("it is shorter than its header says")
            if form[0] not in DTYPES or len(key := bytes.fromhex(digest)[:KEY]) < KEY:
                raise ValueError(f"its entry {name!r} is of a kind that is not known")
            head, tail = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
            place = _number(column, columns), number, _number(form, forms), base + first
            rows.append((head, tail, *place, int(checks.get(name, UNKNOWN))))
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, str(error)) from None
    return np.array(rows, RECORD)


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the byte at which its tensors begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its beginning is not that of a safetensors file")
        return dict(json.loads(file.read(length))), 8 + length


def _number(value: Any, known: list[Any]) -> int:
    if value not in known:
        known.append(value)
    return known.index(value)


def digests_of(names: Iterable[str]) -> Digests:
    """Hexadecimal names as bytes, "n 16"."""
    joined = b"".join(bytes.fromhex(name[: 2 * KEY]) for name in names)
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY)
