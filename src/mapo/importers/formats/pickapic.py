"""The columns of Pick-a-Pic: jpg_0, jpg_1 (encoded pictures), label_0, label_1 (0, ½, 1), caption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mapo.importers.containers import cells, rows
from mapo.importers.containers.shape import Row, Shape, Where
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, Options, RawPair

NEEDED = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
KEPT = ("ranking_id", "user_id", "model_0", "model_1", "image_0_uid", "image_1_uid", "best_image_uid", "created_at")
SHAPE = Shape((NEEDED, (*NEEDED[:4], "original_prompt")), ("has_label", *KEPT))  # the second: in WebDataset
WINNERS: dict[tuple[float | None, ...], int | None] = {
    (0, 1): 1, (1, 0): 0, (-1, 1): 1, (1, -1): 0, (0.5, 0.5): None,
}  # fmt: skip
UNLABELLED = "has_label is false"


def detects(source: Source) -> bool:
    """Whether all needed columns are there."""
    return rows.has(source, SHAPE)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
    """A pair per row."""
    yield from rows.rows(source, SHAPE, _pair, start, options.captions)


def _pair(row: Row, where: Where) -> RawPair | LeftOut:
    if row.get("has_label") is not None and cells.as_truth(row["has_label"]) is False:
        return LeftOut(UNLABELLED)
    winner = _winner(row["label_0"], row["label_1"])
    caption = cells.text_of(
        row.get("caption") if row.get("caption") is not None else row.get("original_prompt"), "caption"
    )
    pictures = [cells.picture_of(row[side], where.folder) for side in ("jpg_0", "jpg_1")]
    chosen, rejected = pictures[::-1] if winner == 1 else pictures
    meta = {k: str(row[k]) for k in KEPT if row.get(k) is not None}
    group = row.get("group") or meta.get("ranking_id")
    return RawPair(where.text, caption, chosen, rejected, 0.5 if winner is None else 1.0, 1.0, group, meta)


def _winner(*labels: Any) -> int | None:
    """Which of two pictures is better, None for a tie; labels may be numbers of any type, text or truth values."""
    numbers = tuple(cells.as_truth(label) if (n := cells.as_number(label)) is None else n for label in labels)
    if numbers not in WINNERS:
        shown = " and ".join(map(cells.short, labels))
        raise ValueError(f"label_0 and label_1 are {shown}, not (0, 1), (1, 0) or (0.5, 0.5)")
    return WINNERS[numbers]
