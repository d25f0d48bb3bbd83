"""Tables with prompt, chosen, rejected (bytes, ``Image`` or paths beside the file), as trainers on the hub read them.

May also have preference (0.5 … 1), weight, group and meta (a JSON object). Folders of pictures of `datasets` have
``chosen_file_name`` and ``rejected_file_name`` instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mapo.importers.containers import cells, rows
from mapo.importers.containers.shape import Row, Shape, Where
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, Options, RawPair
from mapo.texts import parse_row

SIDES = ("chosen", "rejected")
FILES = ("chosen_file_name", "rejected_file_name")
MAY_HAVE = ("preference", "weight", "group", "meta")
SHAPE = Shape((("prompt", *SIDES), ("prompt", *FILES)), MAY_HAVE)


def detects(source: Source) -> bool:
    """Whether files that are not lines of JSON have the columns."""
    return rows.has(source, SHAPE, of_json=False)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
    """A pair per row."""
    yield from rows.rows(source, SHAPE, _pair, start, options.captions)


def _pair(row: Row, where: Where) -> RawPair:
    sides = FILES if FILES[0] in row else SIDES
    return pair_of(row, where, *(cells.picture_of(row[side], where.folder) for side in sides))


def pair_of(row: Mapping[str, Any], where: Where, chosen: bytes, rejected: bytes) -> RawPair:
    """A pair from what stands in a row beside its pictures; what may be missing has its default."""
    prompt = cells.text_of(row["prompt"], "prompt")
    preference, weight = (1.0 if row.get(n) is None else cells.number_of(row[n], n) for n in ("preference", "weight"))
    group = row.get("group")
    if isinstance(group, float) and group.is_integer():
        group = int(group)
    if not isinstance(group, str | int | None):
        raise ValueError(f"group is {group!r}, which is not a name")
    meta = row.get("meta")
    if isinstance(meta, str):
        try:
            meta = parse_row(meta)
        except ValueError as error:
            raise ValueError(f"meta is not JSON ({error})") from None
    if not isinstance(meta, Mapping | None):
        raise ValueError("meta is not a JSON object")
    group = None if group is None else str(group)
    return RawPair(where.text, prompt, chosen, rejected, preference, weight, group, dict(meta or {}))
