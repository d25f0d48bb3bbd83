"""Pictures as data URIs, small enough that a page with all of them can be sent by mail."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mapo.sample.folder import ImageRow, open_picture

PIXEL_SIDE = 128  # pictures up to this many pixels a side are embedded as they are and enlarged without smoothing
THUMB_SIDE, THUMB_BYTES = 256, 16_000
LARGE_SIDE, LARGE_BYTES = 512, 52_000
MOST_BYTES, MOST_BYTES_EACH = 10_000_000, 60_000  # of all pictures of a report, which as text take a third more
SIDES = ((40_000, 512), (24_000, 448), (0, 384))  # where a picture may have so many bytes, so many pixels a side


def room(pictures: int) -> tuple[int, int]:
    """The side in pixels and the most bytes of each picture of a page that holds so many."""
    most = min(MOST_BYTES // max(1, pictures), MOST_BYTES_EACH)
    return next(side for least, side in SIDES if most >= least), most


def embed(folder: Path, row: ImageRow, size: tuple[int, int]) -> tuple[str, bool]:
    """A picture of at most ``size`` (pixels a side, bytes), and whether it is so small that it was left as it is."""
    picture = open_picture(folder, row)
    side, most = size
    if max(picture.size) <= PIXEL_SIDE and len(data := _png(picture)) <= most:
        return _uri("png", data), True
    return _webp(_fit(picture, side), most), False


def shrink(picture: Image.Image) -> tuple[str, str, bool]:
    """An RGB picture as a thumbnail, a larger version (empty when the thumbnail is all), and whether it is tiny."""
    if max(picture.size) <= PIXEL_SIDE:
        return _uri("png", _png(picture)), "", True
    large = _fit(picture, LARGE_SIDE)
    small = _fit(large, THUMB_SIDE)
    return _webp(small, THUMB_BYTES), _webp(large, LARGE_BYTES) if max(large.size) > THUMB_SIDE else "", False


def spread(prompt_ids: Sequence[str], most: int) -> list[int]:
    """Places of up to ``most`` pairs, spread over prompts: each prompt's first pair, then each one's second, ..."""
    seen: dict[str, int] = {}
    rounds: dict[int, list[int]] = {}
    for place, name in enumerate(prompt_ids):
        rounds.setdefault(seen.get(name, 0), []).append(place)
        seen[name] = seen.get(name, 0) + 1
    chosen: list[int] = []
    for turn in sorted(rounds):
        room = most - len(chosen)
        places = rounds[turn]
        chosen += places if len(places) <= room else [places[i * len(places) // room] for i in range(room)]
    return chosen


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(s * scale)) for s in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=1.0)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _webp(picture: Image.Image, most_bytes: int) -> str:
    """WebP at the best of a few qualities that keeps within ``most_bytes``, smaller where none does."""
    for quality in (84, 70, 50, 25, 5):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=1)  # three times as fast as 3, a tenth larger
        if len(data := buffer.getvalue()) <= most_bytes:
            return _uri("webp", data)
    return _webp(_fit(picture, max(picture.size) * 2 // 3), most_bytes)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
