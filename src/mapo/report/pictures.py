"""Pictures as data URIs, small enough that a page with all of them can be sent by mail."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mapo.errors import MapoError
from mapo.images import ImageRow, read_picture

PIXEL_SIDE = 128  # pictures up to this many pixels a side are embedded as they are and enlarged without smoothing
THUMB_SIDE, THUMB_BYTES = 256, 16_000
LARGE_SIDE, LARGE_BYTES = 512, 52_000


def embed(folder: Path, row: ImageRow) -> tuple[str, str, bool]:
    """A picture as a thumbnail, a larger version (empty when the thumbnail is all there is), and whether it is tiny."""
    try:
        picture = Image.open(io.BytesIO(read_picture(folder, row))).convert("RGB")
    except OSError as error:
        raise MapoError(f"{folder / row.file} is no readable picture ({error}). Sample it again.") from None
    return shrink(picture)


def shrink(picture: Image.Image) -> tuple[str, str, bool]:
    """An RGB picture as a thumbnail, a larger version (empty when the thumbnail is all), and whether it is tiny."""
    if max(picture.size) <= PIXEL_SIDE:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return _uri("png", buffer.getvalue()), "", True
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
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _webp(picture: Image.Image, most_bytes: int) -> str:
    """WebP at the best of a few qualities that keeps within ``most_bytes``, or the smallest."""
    data = b""
    for quality in (84, 70, 50, 25, 5):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=3)
        data = buffer.getvalue()
        if len(data) <= most_bytes:
            break
    return _uri("webp", data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
