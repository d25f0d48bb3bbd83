"""Rows as HPDv2 has them: a prompt, a list of pictures, and which is preferred (1 and 0) or a rank for each.

``train.json`` has ``human_preference`` and ``file_path`` or ``image_path``, ``test.json`` has ``image_path`` and
``rank``. Its pictures lie beside the file, or in the folder ``train`` or ``test`` beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from mapo.importers.containers import rows
from mapo.importers.containers.shape import Row, Shape, Where
from mapo.importers.formats.ranking import many, pairs_of
from mapo.importers.sources import Source, lies_in
from mapo.importers.types import BadRow, LeftOut, Options, RawPair

SHAPE = Shape(
    (
        ("prompt", "image_path", "human_preference"),
        ("prompt", "file_path", "human_preference"),
        ("prompt", "image_path", "rank", "raw_annotations"),
    )
)


def detects(source: Source) -> bool:
    """Whether all columns of one of its two files are there."""
    return rows.has(source, SHAPE)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
    """The pairs of each row, in one group."""
    yield from rows.rows(source, SHAPE, partial(_pairs, rankings=options.rankings), start, options.captions)


def _pairs(row: Row, where: Where, rankings: str) -> list[RawPair]:
    images = "image_path" if row.get("image_path") is not None else "file_path"
    what = "human_preference" if row.get("human_preference") is not None else "rank"
    if images not in row or what not in row:
        raise ValueError("it has no pictures or no preference")
    prompt, names, numbers, data = many(row, images, what, _with_pictures(where, row[images]))
    if what == "rank":
        return pairs_of(where, prompt, names, numbers, data, rankings)
    if not set(numbers) <= {0, 1}:
        raise ValueError(f"human_preference is {row[what]}; it must be a list of 1 and 0")
    if len(numbers) > 2 and len(set(numbers)) == 1:
        raise ValueError(f"human_preference is {row[what]}; it prefers none of more than two pictures")
    pairs = pairs_of(where, prompt, names, [1 - n for n in numbers], data, rankings)
    return pairs if len(numbers) == 2 else [pair for pair in pairs if pair.preference == 1]


def _with_pictures(where: Where, names: object) -> Where:
    """The place with the folder in which the pictures lie."""
    first = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    if first is None or where.folder is None or lies_in(where.folder, first) or where.split is None:
        return where
    inner = where.folder / where.split
    return replace(where, folder=inner) if lies_in(inner, first) else where
