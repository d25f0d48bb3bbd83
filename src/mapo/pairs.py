"""A set of preference pairs on disk: schema, writing, reading.

A set is a folder::

    images-00000.parquet …   sha256, bytes, width, height          each picture once
    pairs.parquet            id, prompt, chosen, rejected, preference, weight, group, split, source, meta
    set.json                 format, version, counts, provenance

``chosen`` and ``rejected`` are the pictures' hashes, ``preference`` is how sure it is that chosen is better (1: sure,
0.5: a tie), ``meta`` is a JSON object. A set is written beside its place and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from mapo.errors import MapoError
from mapo.files import PARTIAL, prepare_out, read_json, sha256, write_json
from mapo.splits import SPLITS, split_of

FORMAT, VERSION = "mapo-pairs", 1
IMAGES_PER_ROW_GROUP = 32
BYTES_PER_SHARD = 256 * 2**20
REMEDY = "Make the set with `mapo build` or `mapo import`."

IMAGE_SCHEMA = pa.schema(
    [("sha256", pa.string()), ("bytes", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
)
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("preference", pa.float64()),
        ("weight", pa.float64()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("meta", pa.string()),
    ]
)


@dataclass(frozen=True)
class Pair:
    """One row of ``pairs.parquet``."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    preference: float = 1.0
    weight: float = 1.0
    group: str | None = None
    split: str = "train"
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def pair_id(prompt: str, chosen: str, rejected: str) -> str:
    """The name of a pair: 16 hexadecimal digits of a hash of its prompt and its pictures."""
    return hashlib.sha256("\0".join((prompt, chosen, rejected)).encode()).hexdigest()[:16]


def make_pair(prompt: str, chosen: str, rejected: str, **rest: Any) -> Pair:
    """A pair with its name and split filled in; ValueError when a value is outside the schema."""
    pair = Pair(pair_id(prompt, chosen, rejected), prompt, chosen, rejected, **{"split": split_of(prompt), **rest})
    _check(prompt, chosen, rejected, pair.preference, pair.weight, pair.split)
    return pair


def _check(prompt: str, chosen: str, rejected: str, preference: float, weight: float, split: str) -> None:
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if not 0.5 <= preference <= 1:
        raise ValueError(f"preference is {preference}, it must lie in 0.5 … 1 (swap the pictures if it is below)")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight is {weight}, it must be a number that is not negative")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, it must be one of {', '.join(SPLITS)}")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same picture")


def _meta(pair: Pair) -> str:
    """The pair's meta as JSON; ValueError when a text of the pair cannot be written."""
    text = json.dumps(dict(pair.meta), ensure_ascii=False, allow_nan=False)
    for part in (text, pair.source, pair.group or ""):
        part.encode()  # half a character is a ValueError here, not later for the whole table
    return text


def decode_picture(data: bytes) -> Image.Image:
    """Encoded bytes → RGB picture, upright (EXIF rotation applied) and opaque (alpha laid on white).

    Raises ValueError for anything that is not one whole still picture.
    """
    if not data:
        raise ValueError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(data))
            if getattr(picture, "is_animated", False):
                raise ValueError("it is animated")
            picture = ImageOps.exif_transpose(picture)  # reads the pixels
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError("it is in no format of pictures that is known") from None
    except Exception as error:
        raise ValueError(f"it cannot be decoded ({str(error) or type(error).__name__})") from None
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"its colour mode {picture.mode} has more than 8 bits per channel")
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


class PairWriter:
    """Writes a set row by row; nothing appears at ``folder`` before the ``with`` block ends well."""

    def __init__(self, folder: Path, provenance: Mapping[str, Any], sensitive: bool = False) -> None:
        if folder.exists():
            raise MapoError(f"{folder} already exists. Choose another --out, or delete it first.")
        prepare_out(folder)
        self.folder, self.provenance, self.sensitive = folder, dict(provenance), sensitive
        self.work = folder.with_name(f".{folder.name}{PARTIAL}")
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self._known: set[bytes] = set()
        self._waiting: list[dict[str, Any]] = []
        self._shard: pq.ParquetWriter | None = None
        self._shards = self._shard_bytes = 0
        self._ids: set[str] = set()
        self._pairs: list[dict[str, Any]] = []
        self._table = pq.ParquetWriter(self.work / "pairs.parquet", PAIR_SCHEMA, compression="zstd")
        self.count = 0

    def add_image(self, data: bytes) -> str:
        """Store an encoded picture once and return its hash; ValueError when it cannot be decoded."""
        row = self._image_row(data)
        self._store(row)
        return str(row["sha256"])

    def add_latent_only(self, sha256: str, width: int, height: int) -> None:
        """Name a picture that the set knows but does not keep."""
        self._store({"sha256": sha256, "bytes": None, "width": width, "height": height})

    def _image_row(self, data: bytes) -> dict[str, Any]:
        name = sha256(data)
        if bytes.fromhex(name) in self._known:
            return {"sha256": name}
        picture = decode_picture(data)
        return {"sha256": name, "bytes": data, "width": picture.width, "height": picture.height}

    def _store(self, row: dict[str, Any]) -> None:
        key = bytes.fromhex(row["sha256"])
        if key in self._known:
            return
        self._known.add(key)
        self._waiting.append(row)
        if len(self._waiting) >= IMAGES_PER_ROW_GROUP:
            self._flush_images()

    def add_pair(self, prompt: str, chosen: bytes, rejected: bytes, **rest: Any) -> Pair | None:
        """Store a pair and its pictures; None when the very same pair is already there."""
        pair = make_pair(prompt, sha256(chosen), sha256(rejected), **rest)
        if pair.id in self._ids:
            return None
        _meta(pair)
        images = []
        for side, data in (("chosen", chosen), ("rejected", rejected)):
            try:
                images.append(self._image_row(data))
            except ValueError as error:
                raise ValueError(f"the {side} picture: {error}") from None
        for image in images:  # only now, or a bad pair would leave its good picture behind
            self._store(image)
        return self.add_pair_by_hash(prompt, pair.chosen, pair.rejected, **rest)

    def add_pair_by_hash(self, prompt: str, chosen: str, rejected: str, **rest: Any) -> Pair | None:
        """Store a pair of pictures that are in the set already; None when the very same pair is there."""
        pair = make_pair(prompt, chosen, rejected, **rest)
        if pair.id in self._ids:
            return None
        row = {**asdict(pair), "meta": _meta(pair)}
        self._ids.add(pair.id)
        self._pairs.append(row)
        self.count += 1
        if len(self._pairs) >= 4096:
            self._flush_pairs()
        return pair

    def _flush_images(self) -> None:
        if not self._waiting:
            return
        if self._shard is None:
            self._shard = pq.ParquetWriter(
                self.work / f"images-{self._shards:05d}.parquet", IMAGE_SCHEMA, compression="none"
            )
            self._shards, self._shard_bytes = self._shards + 1, 0
        self._shard.write_table(pa.Table.from_pylist(self._waiting, IMAGE_SCHEMA))
        self._shard_bytes += sum(len(row["bytes"] or b"") for row in self._waiting)
        self._waiting.clear()
        if self._shard_bytes >= BYTES_PER_SHARD:
            self._shard.close()
            self._shard = None

    def _flush_pairs(self) -> None:
        if self._pairs:
            self._table.write_table(pa.Table.from_pylist(self._pairs, PAIR_SCHEMA))
            self._pairs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush_images()
                self._flush_pairs()
            if self._shard:
                self._shard.close()
            self._table.close()
            if kind is None and self.count == 0:
                raise MapoError(f"No pair to write to {self.folder}: the source gave none.")
            if kind is None:
                counts = {"pairs": self.count, "images": len(self._known)}
                head = {"format": FORMAT, "version": VERSION, "sensitive": self.sensitive}
                write_json(self.work / "set.json", {**head, **counts, "provenance": self.provenance})
                self.work.rename(self.folder)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)


class PairSet:
    """A set opened for reading. Pairs are in memory as an Arrow table, pictures stay on disk."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise MapoError(f"There is no pairs set at {folder}. {REMEDY}")
        self.folder = folder
        self.info: dict[str, Any] = read_json(folder / "set.json", "a pairs set", REMEDY)
        if not isinstance(self.info, dict):
            raise MapoError(f"{folder / 'set.json'} does not describe a pairs set. {REMEDY}")
        if self.info.get("format") != FORMAT or self.info.get("version") != VERSION:
            found = f"{self.info.get('format')} {self.info.get('version')}"
            raise MapoError(f"{folder} is a set of format {found}, this version reads {FORMAT} {VERSION}. {REMEDY}")
        self.table = self._read(folder / "pairs.parquet", PAIR_SCHEMA)
        if self.table.num_rows == 0:
            raise MapoError(f"{folder} holds no pairs. {REMEDY}")
        self._shards = sorted(folder.glob("images-*.parquet"))
        self._place: dict[str, tuple[int, int, int]] = {}
        for number, shard in enumerate(self._shards):
            try:
                with pq.ParquetFile(shard) as file:
                    for group in range(file.num_row_groups):
                        for row, name in enumerate(file.read_row_group(group, ["sha256"])["sha256"].to_pylist()):
                            self._place[name] = (number, group, row)
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise MapoError(f"{shard} is damaged ({error}). {REMEDY}") from None
        checked = ("prompt", "chosen", "rejected", "preference", "weight", "split")
        for row, values in enumerate(zip(*(self.table[c].to_pylist() for c in checked), strict=True)):
            for side, name in zip(checked[1:3], values[1:3], strict=True):
                if name not in self._place:
                    raise MapoError(f"{folder}: row {row} names the {side} picture {name}, no shard has it. {REMEDY}")
            try:
                _check(*values)
            except ValueError as error:
                raise MapoError(f"{folder}: row {row}: {error}. {REMEDY}") from None
        self._group = lru_cache(maxsize=8)(self._read_group)

    @staticmethod
    def _read(path: Path, schema: pa.Schema) -> pa.Table:
        try:
            table = pq.read_table(path, columns=schema.names, partitioning=None).cast(schema)
            table.validate(full=True)
            if empty := [c for c in schema.names if c not in ("group", "source", "meta") and table[c].null_count]:
                raise ValueError(f"empty cells in {', '.join(empty)}")
            return table
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MapoError(f"{path} is missing or damaged ({error}). {REMEDY}") from None

    def _read_group(self, shard: int, group: int) -> list[bytes]:
        path = self._shards[shard]
        try:
            with pq.ParquetFile(path) as file:
                return list(file.read_row_group(group, ["bytes"])["bytes"].to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise MapoError(f"{path} is damaged ({error}). {REMEDY}") from None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> Pair:
        values = self.table.slice(row, 1).to_pylist()[0]
        try:
            return Pair(**{**values, "meta": json.loads(values["meta"] or "{}")})
        except ValueError as error:
            raise MapoError(f"{self.folder}: row {row}: meta is no JSON ({error}). {REMEDY}") from None

    def __iter__(self) -> Iterator[Pair]:
        for row in range(len(self)):
            yield self[row]

    def keeps(self, name: str) -> bool:
        """Whether the set holds the bytes of a picture, or knows it by its hash alone."""
        shard, group, row = self._place[name]
        return next(iter(self._group(shard, group)[row : row + 1]), b"") is not None

    def image_bytes(self, name: str) -> bytes:
        """The encoded bytes of a picture, checked against the hash that names it."""
        shard, group, row = self._place[name]
        if not self.keeps(name):
            raise MapoError(f"{self.folder}: picture {name} is not kept in this set, only its latents are.")
        data: bytes | None = next(iter(self._group(shard, group)[row : row + 1]), None)
        if data is None or sha256(data) != name:
            raise MapoError(f"{self._shards[shard]}: picture {name} does not have the content of its hash. {REMEDY}")
        return data

    def image(self, name: str) -> Image.Image:
        """A picture of the set, RGB."""
        try:
            return decode_picture(self.image_bytes(name))
        except ValueError as error:
            raise MapoError(f"{self.folder}: picture {name}: {error}. {REMEDY}") from None

    def image_names(self) -> list[str]:
        """The hashes of all pictures, in the order in which they lie on disk."""
        return list(self._place)

    def fingerprint(self) -> str:
        """A hash of the pairs' names, preferences, weights and splits, in order."""
        digest = hashlib.sha256()
        for column in ("id", "preference", "weight", "split"):
            digest.update(json.dumps(self.table[column].to_pylist()).encode())
        return digest.hexdigest()[:16]
