"""Parquet with the columns of Pick-a-Pic: jpg_0, jpg_1 (encoded pictures), label_0, label_1 (0, ½, 1), caption."""

from __future__ import annotations

from collections.abc import Iterator

from mapo.importers import BadRow, Options, RawPair, tables
from mapo.importers.sources import Source

NEEDED = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
KEPT = ("ranking_id", "user_id", "model_0", "model_1", "image_0_uid", "image_1_uid", "best_image_uid", "created_at")


def detects(source: Source) -> bool:
    """Parquet with some of the columns."""
    return bool(set(NEEDED) & set(tables.columns(source) or ()))


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """A pair per row."""
    yield from tables.rows(source, NEEDED, KEPT, _pair, start)


def _pair(row: tables.Row, table: tables.Table, where: str) -> RawPair:
    labels = (row["label_0"], row["label_1"])
    if labels not in ((0, 1), (1, 0), (0.5, 0.5)):
        raise ValueError(f"label_0 and label_1 are {labels[0]} and {labels[1]}, not (0, 1), (1, 0) or (0.5, 0.5)")
    if not isinstance(row["caption"], str):
        raise ValueError("there is no caption")
    pictures = [tables.picture_of(row[side], table) for side in ("jpg_0", "jpg_1")]
    chosen, rejected = pictures if labels[0] >= labels[1] else pictures[::-1]
    meta = {k: str(row[k]) for k in KEPT if row.get(k) is not None}
    preference = 0.5 if labels[0] == labels[1] else 1.0
    return RawPair(where, row["caption"], chosen, rejected, preference, 1.0, meta.get("ranking_id"), meta)
