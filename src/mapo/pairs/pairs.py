"""A set of preference pairs on disk, opened for reading.

A set is a folder::

    images-00000.parquet …   sha256, bytes, width, height          each picture once; bytes are null where not kept
    pictures.npy             where each picture lies (see places.py)
    pairs.parquet            id, prompt, chosen, rejected, preference, weight, group, split, source, meta
    set.json                 format, version, counts, conversions, provenance

``chosen`` and ``rejected`` are the pictures' hashes, ``preference`` is how sure it is that chosen is better (1: sure,
0.5: a tie), ``meta`` is a JSON object. In a set of good pictures alone ``rejected`` is null in every row. ``writer.py``
writes sets; what everybody needs of it can be imported from here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from mapo.arguments import as_folder
from mapo.errors import MapoError, count, reason
from mapo.files import kind_of_folder, replacing, sha256
from mapo.pairs.pictures import ENDS, decode_picture
from mapo.pairs.places import NAME as PLACES
from mapo.pairs.places import Places
from mapo.pairs.schema import FORMAT, IMAGE_SCHEMA, PAIR_SCHEMA, TIE, VERSION, Pair, check_values, make_pair, pair_id
from mapo.pairs.splits import SPLITS
from mapo.pairs.writer import NOT_KEPT, PairWriter
from mapo.texts import read_json, write_json

__all__ = [
    "IMAGE_SCHEMA", "PAIR_SCHEMA", "TIE", "Pair", "PairSet", "PairWriter",
    "decode_picture", "make_pair", "pair_id", "replace_pairs", "sha256",
]  # fmt: skip

REMEDY = "Make the set with `mapo build` or `mapo import`."
ROWS_AT_ONCE = 8192
CHECKED = ("prompt", "chosen", "rejected", "preference", "weight", "split")
MAY_BE_NULL = ("group", "source", "meta")
SIDES = ("chosen", "rejected")
DRAW_THEM = "Draw them with `mapo build --chosen PICTURES --rejected-from MODEL`"


class PairSet:
    """A set opened for reading. Pairs are in memory as an Arrow table, pictures stay on disk."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder = as_folder("PairSet(): folder", folder)
        if not folder.is_dir():
            raise MapoError(f"There is no pairs set at {folder}. {REMEDY}")
        if not (folder / "set.json").exists():
            _refuse_other(folder)
        self.info: dict[str, Any] = read_json(folder / "set.json", "a pairs set", REMEDY)
        if not isinstance(self.info, dict):
            raise MapoError(f"{folder / 'set.json'} does not describe a pairs set. {REMEDY}")
        if self.info.get("format") != FORMAT or self.info.get("version") != VERSION:
            found = f"{self.info.get('format')} {self.info.get('version')}"
            raise MapoError(f"{folder} is a set of format {found}, this version reads {FORMAT} {VERSION}. {REMEDY}")
        try:
            with pq.ParquetFile(folder / "pairs.parquet", memory_map=True) as file:
                self.table = _cast(file.read(columns=PAIR_SCHEMA.names))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise MapoError(f"{folder / 'pairs.parquet'} is missing or damaged ({reason(error)}). {REMEDY}") from None
        if self.table.num_rows == 0:
            raise MapoError(f"{folder} holds no pairs. {REMEDY}")
        self._places = self._open_places()
        self._sides = self._check(self.table)
        self.info |= _counts(self.table)
        self._batches = self.table.to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._group = lru_cache(maxsize=8)(self._read_group)
        self._open_shard = lru_cache(maxsize=4)(lambda number: pq.ParquetFile(self._shard(number)))
        self._reading = Lock()  # a Parquet reader is for one thread at a time

    def __fspath__(self) -> str:
        return str(self.folder)

    def _open_places(self) -> Places:
        """The index of the pictures, after a look at whether the shards hold what it says."""
        path = self.folder / PLACES
        try:
            places = Places(path)
            pictures = np.bincount(places.records["shard"])
        except (OSError, ValueError, EOFError) as error:
            raise MapoError(f"{path} is missing or damaged ({reason(error)}). {REMEDY}") from None
        for number, held in enumerate(pictures.tolist()):
            shard = self._shard(number)
            try:
                with pq.ParquetFile(shard) as file:
                    if lacking := set(IMAGE_SCHEMA.names) - set(file.schema_arrow.names):
                        raise ValueError(f"it has no column {', '.join(sorted(lacking))}")
                    if file.metadata.num_rows != held:
                        raise ValueError(f"it holds {count(file.metadata.num_rows, 'picture')}, {PLACES} names {held}")
            except FileNotFoundError:
                raise MapoError(f"{shard} is missing, with {count(held, 'picture')}. {REMEDY}") from None
            except (pa.ArrowException, OSError, ValueError) as error:
                raise MapoError(f"{shard} is damaged ({reason(error)}). {REMEDY}") from None
        return places

    def _shard(self, number: int) -> Path:
        return self.folder / f"images-{number:05d}.parquet"

    def _check(self, table: pa.Table) -> dict[str, np.ndarray]:
        """The pictures of both sides; MapoError names the first row outside the schema or without its picture."""
        places: dict[str, np.ndarray] = {}
        paired = not table["rejected"].null_count
        for side in SIDES[: 1 + paired]:
            places[side] = self._places.rows_of(table[side])
            if len(rows := np.flatnonzero(places[side] < 0)):
                name = table[side][int(rows[0])].as_py()
                raise MapoError(
                    f"{self.folder}: row {rows[0]} names the {side} picture {name}, no shard has it. {REMEDY}"
                )
        preference, weight = (table[c].to_numpy() for c in ("preference", "weight"))
        fine = (preference >= 0.5) & (preference <= 1) & (weight >= 0) & (weight < np.inf)
        fine &= paired | (preference == 1)
        doubtful = [
            pc.equal(pc.utf8_trim_whitespace(table["prompt"]), ""),
            pc.fill_null(pc.equal(table["chosen"], table["rejected"]), False),
            pc.invert(pc.is_in(table["split"], pa.array(SPLITS))),
        ]
        for mask in doubtful:
            fine &= ~mask.to_numpy()
        for row in np.flatnonzero(~fine).tolist():
            try:
                check_values(*(table[c][row].as_py() for c in CHECKED))
            except ValueError as error:
                raise MapoError(f"{self.folder}: row {row}: {error}. {REMEDY}") from None
        return places

    def _read_group(self, shard: int, group: int) -> list[bytes | None]:
        try:
            with self._reading:
                return list(self._open_shard(shard).read_row_group(group, ["bytes"])["bytes"].to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise MapoError(f"{self._shard(shard)} is damaged ({reason(error)}). {REMEDY}") from None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> Pair:
        if not 0 <= row < len(self):
            raise IndexError(row)
        place = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._pair(row, self._batches[place].slice(row - self._starts[place], 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Pair]:
        row = 0
        for batch in self.table.to_batches(ROWS_AT_ONCE):
            for values in batch.to_pylist():
                yield self._pair(row, values)
                row += 1

    def _pair(self, row: int, values: dict[str, Any]) -> Pair:
        try:
            return Pair(**{**values, "meta": json.loads(values["meta"] or "{}")})
        except ValueError as error:
            raise MapoError(f"{self.folder}: row {row}: meta is not JSON ({reason(error)}). {REMEDY}") from None

    def _place(self, name: str) -> Any:
        place = self._places.find(name)
        if place is None:
            raise MapoError(f"{self.folder} has no picture {name}.")
        return place

    @property
    def sides(self) -> tuple[str, ...]:
        """Those of which the set has pictures: ``chosen``, and ``rejected`` unless it is of good pictures alone."""
        return tuple(self._sides)

    @property
    def has_rejected(self) -> bool:
        """Whether its pairs have a rejected picture: all have one, or none has."""
        return "rejected" in self._sides

    def refuse_without_rejected(self, who: str, instead: str = "") -> None:
        """MapoError where the set has no rejected pictures; ``who`` needs them. ``instead``: what else can be done."""
        if not self.has_rejected:
            raise MapoError(f"{self.folder} has no rejected pictures, and {who} needs them. {DRAW_THEM}{instead}.")

    def keeps(self, name: str) -> bool:
        """Whether the bytes of a picture are in the set; False where it is kept as latents only."""
        return bool(self._place(name)["kept"])

    def which_kept(self, numbers: np.ndarray) -> np.ndarray:
        """As :meth:`keeps` for some pictures, by their numbers as :meth:`image_sizes` counts them, "n"."""
        return np.asarray(self._places.records["kept"][numbers], bool)

    def keeps_all(self) -> bool:
        """Whether no picture of the set is kept as latents only; answered without a look at each pair."""
        return bool(self._places.records["kept"].all())

    def keeps_none(self) -> bool:
        """Whether the set keeps no picture, and no latents in its place: they were encoded while they were read."""
        return bool(self.info.get("pictures") == NOT_KEPT)

    def refuse_without_pictures(self, who: str) -> None:
        """MapoError where the set keeps no picture; ``who`` needs them."""
        if self.keeps_none():
            raise MapoError(
                f"{self.folder} keeps no pictures, as `mapo encode --stream` made it, and {who} needs them. Make a "
                "set that keeps them: `mapo import` reads the same source."
            )

    def image_bytes(self, name: str) -> bytes:
        """The encoded bytes of a picture, checked against the hash that names it."""
        place = self._place(name)
        if not place["kept"]:
            self.refuse_without_pictures("who looks at one")
            raise MapoError(
                f"{self.folder} keeps the picture {name} as latents only, so it cannot be looked at. "
                "Use the cache that was made with the set."
            )
        shard, group, row = (int(place[c]) for c in ("shard", "group", "row"))
        data = next(iter(self._group(shard, group)[row : row + 1]), None)
        if data is None or sha256(data) != name:
            raise MapoError(f"{self._shard(shard)}: picture {name} does not have the content of its hash. {REMEDY}")
        return data

    def image(self, name: str) -> Image.Image:
        """A picture of the set, RGB."""
        try:
            return decode_picture(self.image_bytes(name))
        except ValueError as error:
            raise MapoError(f"{self.folder}: picture {name}: {error}. {REMEDY}") from None

    def number_of_images(self) -> int:
        """How many pictures the set knows."""
        return len(self._places.records)

    def image_digests(self) -> np.ndarray:
        """The hashes of all pictures as bytes, in the order in which they lie on disk, "n 32"."""
        return self.digests_of(self.disk_order())

    def digests_of(self, numbers: np.ndarray) -> np.ndarray:
        """The hashes of some pictures as bytes, "n 32", by their numbers as :meth:`image_sizes` counts them."""
        return np.ascontiguousarray(self._places.records["sha"][numbers])

    def image_names(self) -> list[str]:
        """The hashes of all pictures, in the order in which they lie on disk."""
        digits = self.image_digests().tobytes().hex()
        return [digits[start : start + 64] for start in range(0, len(digits), 64)]

    def disk_order(self) -> np.ndarray:
        """The numbers of all pictures, as :meth:`image_sizes` counts them, in the order in which they lie on disk."""
        records = self._places.records
        return np.asarray(np.lexsort((records["row"], records["group"], records["shard"])))

    def places_of(self, side: str) -> np.ndarray:
        """For each row the number of its picture on one of ``sides``, as :meth:`image_sizes` counts them, "n"."""
        return self._sides[side]

    def image_sizes(self) -> np.ndarray:
        """Width and height of every picture, upright, "pictures 2"; no picture is read."""
        shards, groups, rows = (np.asarray(self._places.records[c], np.int64) for c in ("shard", "group", "row"))
        tables = []
        for number in range(int(shards.max()) + 1):
            try:
                with pq.ParquetFile(self._shard(number), memory_map=True) as file:
                    tables.append(file.read(["width", "height"]))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise MapoError(f"{self._shard(number)} is damaged ({reason(error)}). {REMEDY}") from None
        table = pa.concat_tables(tables)
        group = shards * (int(groups.max()) + 1) + groups
        counts = np.bincount(group)
        place = (np.cumsum(counts) - counts)[group] + rows  # on disk
        return np.stack([table["width"].to_numpy()[place], table["height"].to_numpy()[place]], 1)

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for column in ("id", "preference", "weight", "split"):
            for start in range(0, len(self), ROWS_AT_ONCE):
                digest.update(json.dumps(self.table[column].slice(start, ROWS_AT_ONCE).to_pylist()).encode())
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """A hash of the pairs' names, preferences, weights and splits, in order."""
        return self._fingerprint


def _refuse_other(folder: Path) -> None:
    """MapoError where a folder without ``set.json`` is known to be something else; the pairs in it are named."""
    if (folder / "pairs" / "set.json").is_file():
        raise MapoError(f"{folder} is not a pairs set, but holds one. Name it: {folder / 'pairs'}.")
    if kind := kind_of_folder(folder):
        raise MapoError(f"{folder} is {kind}, not a pairs set. {REMEDY}")
    if any(path.suffix.lower() in ENDS for path in folder.iterdir()):
        raise MapoError(
            f"{folder} is a folder of pictures, not a pairs set. {REMEDY} Where none is rejected, give the folder to "
            "`mapo style`."
        )


def _cast(table: pa.Table) -> pa.Table:
    """The table in the schema; ValueError when a cell is empty or no UTF-8."""
    table = table.select(PAIR_SCHEMA.names).cast(PAIR_SCHEMA)
    table.validate(full=True)
    if empty := [c for c in PAIR_SCHEMA.names if c not in (*MAY_BE_NULL, "rejected") and table[c].null_count]:
        raise ValueError(f"empty cells in {', '.join(empty)}")
    if table["rejected"].null_count not in (0, table.num_rows):
        raise ValueError("some rows have a rejected picture and others have none")
    return table


def _counts(table: pa.Table) -> dict[str, int]:
    return {"pairs": table.num_rows, "ties": int((table["preference"].to_numpy() == TIE).sum())}


def replace_pairs(folder: Path, table: pa.Table) -> None:
    """Give the set ``folder`` another table of pairs over its pictures, which stay as they are: relabelling.

    The table is checked as an opened set's is, then ``pairs.parquet`` and the counts in ``set.json`` are replaced.
    """
    opened = PairSet(folder)
    try:
        table = _cast(table)
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise MapoError(f"The new pairs of {folder} do not fit its schema ({reason(error)}).") from None
    if table.num_rows == 0:
        raise MapoError(f"No pairs would be left in {folder}. Keep at least one.")
    opened._check(table)
    with replacing(folder / "pairs.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_json(folder / "set.json", {**opened.info, **_counts(table)})  # a set counts its table again when opened
