"""Rankings: ``{"prompt": …, "images": [paths], "rank": [1, 2, …]}`` in JSON lines or other rows, rank 1 the best.

All pairs of each ranking, or its best against its worst (``--rankings best-worst``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mapo.importers.containers import cells, rows
from mapo.importers.containers.shape import Row, Shape, Where
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, Options, RawPair
from mapo.texts import parse_row

SHAPE = Shape((("prompt", "images", "rank"),))


def detects(source: Source) -> bool:
    """Whether there are ``prompt``, ``images`` and ``rank``."""
    return rows.has(source, SHAPE)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
    """The pairs of each row, better picture first, in one group."""
    yield from rows.rows(source, SHAPE, partial(_pairs, rankings=options.rankings), start, options.captions)


def _pairs(row: Row, where: Where, rankings: str) -> list[RawPair]:
    prompt, names, ranks, data = many(row, "images", "rank", where)
    return pairs_of(where, prompt, names, ranks, data, rankings)


def pairs_of(
    where: Where,
    prompt: str,
    names: Sequence[str],
    ranks: Sequence[float],
    data: Sequence[bytes],
    rankings: str,
) -> list[RawPair]:
    """Each two pictures of a ranking as a pair, or its best and worst."""
    order = sorted(range(len(names)), key=lambda k: ranks[k])
    places = [(order[0], order[-1])] if rankings == "best-worst" else itertools.combinations(order, 2)
    pairs = []
    for better, worse in places:
        preference = 0.5 if ranks[better] == ranks[worse] else 1.0
        sides = (("chosen", better), ("rejected", worse))
        meta = {side: {"image": names[k], "rank": ranks[k]} for side, k in sides}
        pairs.append(RawPair(where.text, prompt, data[better], data[worse], preference, 1.0, where.group, meta))
    return pairs


def many(row: Row, images: str, what: str, where: Where) -> tuple[str, list[str], list[float], list[bytes]]:
    """Prompt, names, numbers and bytes of a row about several pictures; ``what`` is the column of the numbers."""
    pictures, numbers = _listed(row[images]), _listed(row[what])
    if not isinstance(row["prompt"], str) or not isinstance(pictures, list) or not isinstance(numbers, list):
        raise ValueError(f"prompt must be a text, {images} and {what} lists")
    if len(pictures) != len(numbers) or len(pictures) < 2:
        raise ValueError(
            f"it has {len(pictures)} {images} and {len(numbers)} in {what}; it needs two or more, as many of each"
        )
    if not all(isinstance(picture, str | bytes | dict) for picture in pictures):
        raise ValueError("an image is not a path")
    found = [number(n) for n in numbers]
    if None in found:
        raise ValueError(f"one of {what} is not a number")
    names = [cells.name_of(picture, k) for k, picture in enumerate(pictures)]
    data = [cells.picture_of(picture, where.folder) for picture in pictures]
    return row["prompt"], names, [n for n in found if n is not None], data


def number(value: Any) -> float | None:
    """A rank or score, as it came where Python has it as a number; None for what has no place in an order."""
    found = None if isinstance(value, bool | str) else cells.as_number(value)
    if found is None or not math.isfinite(found):
        return None
    return value if isinstance(value, int | float) else found


def _listed(value: Any) -> Any:
    """A list, or the one that a cell of a CSV file holds as JSON."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return parse_row(value)
        except ValueError:
            return value
    return value
