"""Scores: ``{"prompt": …, "images": [paths], "scores": [numbers]}``, more is better; best against worst.

Equal scores, and those closer than ``--least-gap``, are a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mapo.importers.containers import rows
from mapo.importers.containers.shape import Row, Shape, Where
from mapo.importers.formats.ranking import many
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, Options, RawPair

SHAPE = Shape((("prompt", "images", "scores"),))


def detects(source: Source) -> bool:
    """Whether there are ``prompt``, ``images`` and ``scores``."""
    return rows.has(source, SHAPE)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
    """One pair per row."""
    yield from rows.rows(source, SHAPE, partial(_pairs, least_gap=options.least_gap), start, options.captions)


def _pairs(row: Row, where: Where, least_gap: float) -> list[RawPair]:
    prompt, images, scores, data = many(row, "images", "scores", where)
    order = sorted(range(len(images)), key=lambda k: -scores[k])
    best, worst = order[0], order[-1]
    gap = scores[best] - scores[worst]
    preference = 0.5 if gap == 0 or gap < least_gap else 1.0
    sides = (("chosen", best), ("rejected", worst))
    meta = {side: {"image": images[k], "score": scores[k]} for side, k in sides}
    return [RawPair(where.text, prompt, data[best], data[worst], preference, 1.0, where.group, meta)]
