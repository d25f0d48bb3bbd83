"""JSONL of rankings: ``{"prompt": …, "images": [paths], "rank": [1, 2, …]}``, rank 1 the best.

All pairs of each ranking, or its best against its worst (``--rankings best-worst``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mapo.importers import BadRow, Options, RawPair, lines
from mapo.importers.sources import Source


def detects(source: Source) -> bool:
    """A ``.jsonl`` file, or a folder with one, that has ``images`` and ``rank`` among its first lines."""
    return {"images", "rank"} <= lines.keys(source)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """The pairs of each line, better picture first, in one group."""
    yield from lines.rows(source, partial(_pairs, rankings=options.rankings), start)


def _pairs(value: dict[str, Any], folder: Path, where: str, group: str, rankings: str) -> list[RawPair]:
    prompt, images, ranks, data = lines.many(value, "rank", folder)
    order = sorted(range(len(images)), key=lambda k: ranks[k])
    places = [(order[0], order[-1])] if rankings == "best-worst" else itertools.combinations(order, 2)
    pairs = []
    for better, worse in places:
        preference = 0.5 if ranks[better] == ranks[worse] else 1.0
        sides = (("chosen", better), ("rejected", worse))
        meta = {side: {"image": images[k], "rank": ranks[k]} for side, k in sides}
        pairs.append(RawPair(where, prompt, data[better], data[worse], preference, 1.0, group, meta))
    return pairs
