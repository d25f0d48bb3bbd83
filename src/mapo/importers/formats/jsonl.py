"""JSON lines, or a JSON list, of pairs: ``{"prompt": …, "chosen": path, "rejected": path}``, and what may stand beside.

The ``metadata.jsonl`` of an image folder of `datasets` has ``chosen_file_name`` and ``rejected_file_name`` instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from mapo.importers.containers import cells, rows
from mapo.importers.containers.shape import Row, Where
from mapo.importers.formats.preference import FILES, SHAPE, SIDES, pair_of
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, Options, RawPair


def detects(source: Source) -> bool:
    """Whether lines of JSON name a prompt and both pictures."""
    return rows.has(source, SHAPE, of_json=True)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
    """A pair per line."""
    yield from rows.rows(source, SHAPE, _pair, start, options.captions)


def _pair(row: Row, where: Where) -> RawPair:
    names = [name if name in row else side for name, side in zip(FILES, SIDES, strict=True)]
    if not all(isinstance(row[name], str | dict) for name in names):
        raise ValueError(f"{' and '.join(names)} must be paths")
    if "" in (row[name] for name in names):
        raise ValueError("a path is empty")
    chosen, rejected = (cells.picture_of(row[name], where.folder) for name in names)
    return pair_of(row, where, chosen, rejected)
