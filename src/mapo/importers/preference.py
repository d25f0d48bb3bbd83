"""Parquet with prompt, chosen, rejected (bytes, ``Image`` or paths beside the file), as trainers on the hub read it.

May also have preference (0.5 … 1), weight, group and meta (a JSON object).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mapo.importers import BadRow, Options, RawPair, tables
from mapo.importers.sources import Source

NEEDED = ("prompt", "chosen", "rejected")
MAY_HAVE = ("preference", "weight", "group", "meta")


def detects(source: Source) -> bool:
    """Parquet with one of the columns chosen and rejected."""
    return bool({"chosen", "rejected"} & set(tables.columns(source) or ()))


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """A pair per row."""
    yield from tables.rows(source, NEEDED, MAY_HAVE, _pair, start)


def _pair(row: tables.Row, table: tables.Table, where: str) -> RawPair:
    return pair_of(row, where, tables.picture_of(row["chosen"], table), tables.picture_of(row["rejected"], table))


def pair_of(row: Mapping[str, Any], where: str, chosen: bytes, rejected: bytes) -> RawPair:
    """A pair from what stands in a row beside its pictures; what may be missing has its default."""
    if not isinstance(row["prompt"], str):
        raise ValueError("there is no prompt")
    preference, weight = (1.0 if row.get(n) is None else tables.number_of(row[n], n) for n in ("preference", "weight"))
    group = row.get("group")
    if not isinstance(group, str | int | None):
        raise ValueError(f"group is {group!r}, which is no name")
    meta = row.get("meta")
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except ValueError:
            raise ValueError("meta is no JSON") from None
    if not isinstance(meta, Mapping | None):
        raise ValueError("meta is no JSON object")
    group = None if group is None else str(group)
    return RawPair(where, row["prompt"], chosen, rejected, preference, weight, group, dict(meta or {}))
