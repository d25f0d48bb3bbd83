"""JSONL of scores: ``{"prompt": …, "images": [paths], "scores": [numbers]}``, more is better; best against worst.

Equal scores, and those closer than ``--least-gap``, are a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mapo.importers import BadRow, Options, RawPair, lines
from mapo.importers.sources import Source


def detects(source: Source) -> bool:
    """A ``.jsonl`` file, or a folder with one, that has ``images`` and ``scores`` among its first lines."""
    return {"images", "scores"} <= lines.keys(source)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """One pair per line."""
    yield from lines.rows(source, partial(_pairs, least_gap=options.least_gap), start)


def _pairs(value: dict[str, Any], folder: Path, where: str, group: str, least_gap: float) -> list[RawPair]:
    prompt, images, scores, data = lines.many(value, "scores", folder)
    order = sorted(range(len(images)), key=lambda k: -scores[k])
    best, worst = order[0], order[-1]
    gap = scores[best] - scores[worst]
    preference = 0.5 if gap == 0 or gap < least_gap else 1.0
    sides = (("chosen", best), ("rejected", worst))
    meta = {side: {"image": images[k], "score": scores[k]} for side, k in sides}
    return [RawPair(where, prompt, data[best], data[worst], preference, 1.0, group, meta)]
