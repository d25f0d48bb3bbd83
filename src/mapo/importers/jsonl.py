"""JSONL of pairs: ``{"prompt": …, "chosen": path, "rejected": path}``, may have preference, weight, group, meta.

The ``metadata.jsonl`` of an image folder of `datasets` has ``chosen_file_name`` and ``rejected_file_name`` instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapo.importers import BadRow, Options, RawPair, lines
from mapo.importers.preference import pair_of
from mapo.importers.sources import Source, picture_at

SIDES = ("chosen", "rejected")


def detects(source: Source) -> bool:
    """A ``.jsonl`` file, or a folder with one, that names chosen or rejected pictures."""
    return bool({*SIDES, *(f"{side}_file_name" for side in SIDES)} & lines.keys(source))


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """A pair per line."""
    yield from lines.rows(source, _pairs, start)


def _pairs(value: dict[str, Any], folder: Path, where: str, group: str) -> list[RawPair]:
    names = [f"{side}_file_name" if f"{side}_file_name" in value else side for side in SIDES]
    lines.need(value, "prompt", *names)
    if not all(isinstance(value[name], str) for name in names):
        raise ValueError(f"{' and '.join(names)} must be paths")
    chosen, rejected = (picture_at(folder, value[name]) for name in names)
    return [pair_of(value, where, chosen, rejected)]
