"""Parquet with the columns of Pick-a-Pic: jpg_0, jpg_1 (encoded pictures), label_0, label_1 (0, ½, 1), caption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mapo.errors import MapoError
from mapo.importers import BadRow, RawPair

NEEDED = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
KEPT = ("ranking_id", "user_id", "model_0", "model_1", "image_0_uid", "image_1_uid", "best_image_uid", "created_at")
ROWS_AT_ONCE = 32


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.glob("**/*.parquet"))


def detects(source: Path) -> bool:
    """A Parquet file, or a folder that holds some."""
    return source.suffix == ".parquet" if source.is_file() else bool(_files(source))


def read(source: Path) -> Iterator[RawPair | BadRow]:
    """The pairs of one file or of all files of a folder, a few rows in memory at a time."""
    files = _files(source)
    if not files:
        raise MapoError(f"{source} holds no Parquet files.")
    for path in files:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise MapoError(f"{path} is no whole Parquet file ({error}).") from None
        missing = [c for c in NEEDED if c not in file.schema_arrow.names]
        if missing:
            there = ", ".join(file.schema_arrow.names)
            raise MapoError(f"{path} lacks the columns {', '.join(missing)} of Pick-a-Pic; it has {there}.")
        columns = [*NEEDED, *(c for c in KEPT if c in file.schema_arrow.names)]
        number = 0
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                table = pa.Table.from_batches([batch])
                place = table.schema.get_field_index("created_at")
                if place >= 0:  # in nanoseconds it has no Python value
                    table = table.set_column(place, "created_at", table["created_at"].cast(pa.string()))
                for row in table.to_pylist():
                    yield _pair(row, f"{path.name} row {number}")
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise MapoError(f"{path} breaks off after row {number} ({error}).") from None


def _pair(row: dict[str, Any], where: str) -> RawPair | BadRow:
    labels = (row["label_0"], row["label_1"])
    if labels not in ((0, 1), (1, 0), (0.5, 0.5)):
        return BadRow(where, f"label_0 and label_1 are {labels[0]} and {labels[1]}, not (0, 1), (1, 0) or (0.5, 0.5)")
    pictures = [p["bytes"] if isinstance(p, dict) else p for p in (row["jpg_0"], row["jpg_1"])]
    if not all(isinstance(p, bytes) and p for p in pictures):
        return BadRow(where, "a picture has no bytes")
    if not isinstance(row["caption"], str):
        return BadRow(where, "there is no caption")
    chosen, rejected = pictures if labels[0] >= labels[1] else pictures[::-1]
    meta = {k: str(row[k]) for k in KEPT if row.get(k) is not None}
    group = meta.get("ranking_id")
    return RawPair(where, row["caption"], chosen, rejected, 0.5 if labels[0] == labels[1] else 1.0, 1.0, group, meta)
