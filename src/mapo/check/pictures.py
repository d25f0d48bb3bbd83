"""One look at every picture of a set: what its file is and what can be said of its pixels, in one row of numbers each.

Pictures stream through once, in the order in which they lie on disk, and are decoded on all cores. What stays in memory
is a record of PICTURE and a name each, about 500 bytes per picture; the whole check takes about twice that.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapo import progress
from mapo.encode.buckets import nearest
from mapo.encode.frame import Frame, crop, square
from mapo.errors import MapoError
from mapo.pairs.pairs import PairSet, decode_picture

SMALL_SIDE = 256  # pixels; brightness, saturation and contrast are taken from what is seen averaged down to this
SKETCH_SIDE = 8
AT_ONCE = 8  # pictures that a thread is given at a time
ORIENTATION = 0x0112  # the EXIF tag

READ, LATENTS, ANIMATED, UNREADABLE, MISSING = range(5)  # what became of a picture

PICTURE = np.dtype(
    [
        ("state", "u1"),  # READ …; all that follows is only known of pictures that were read
        ("content", "u8"),  # a hash of size and pixels: equal exactly when the decoded pictures are
        ("seen", "u8"),  # the same of what training sees of the picture
        ("format", "U12"),
        ("mode", "U6"),  # as stored
        ("alpha", "?"),
        ("exif", "?"),
        ("rotated", "?"),  # by EXIF
        ("bytes", "f8"),
        ("width", "f8"),  # upright
        ("height", "f8"),
        ("jpeg_quality", "f8"),  # 1 … 100, NaN for other types
        ("brightness", "f8"),  # mean luma, 0 … 1; this and the next three are of what training sees
        ("saturation", "f8"),  # mean of (max − min) / max over R, G, B, 0 … 1
        ("contrast", "f8"),  # standard deviation of luma, 0 … 0.5
        ("sharpness", "f8"),  # mean absolute difference of neighbouring lumas at full size, 0 … 1
        ("sketch", "u1", 3 * SKETCH_SIDE**2),  # RGB means of 8 × 8 fields of the whole picture
    ]
)

# The luminance table of the JPEG standard (Annex K); libjpeg scales it by quality.
LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
QUALITIES = np.arange(1, 101)
_SCALE = np.where(QUALITIES < 50, 5000 // QUALITIES, 200 - 2 * QUALITIES)
TABLES = ((np.asarray(LUMINANCE) * _SCALE[:, None] + 50) // 100).clip(1, 255)  # "quality 64"


@dataclass(frozen=True)
class PictureTable:
    """``found[i]`` describes the picture ``names[i]``; ``why`` says what is wrong with those that could not be read."""

    names: list[str]
    found: NDArray[Any]  # PICTURE
    why: dict[int, str]

    @property
    def read(self) -> NDArray[np.bool_]:
        """Which pictures were read whole."""
        return np.asarray(self.found["state"] == READ)


def look_at_pictures(
    pairs: PairSet, among: tuple[Frame, ...] = (), only: Collection[str] | None = None
) -> PictureTable:
    """Describe every picture that the set holds or names; nothing that is wrong with one of them stops the others.

    ``among`` are the frames in which a model is trained; of several a picture is seen in the one most like it. Without
    them it is the square that is as large as the picture allows. With ``only`` it looks at those of these names,
    without a bar.
    """
    held = [name for name in pairs.image_names() if only is None or name in only]
    there = set(held)
    named = {n for side in pairs.sides for n in pairs.table[side].unique().to_pylist()}
    named = named if only is None else named & set(only)
    names = held + sorted(named - there)
    found = np.zeros(len(names), PICTURE)
    all_kept = pairs.keeps_all()
    for i, name in enumerate(names):  # two files that cannot be read are not the same picture
        found[i]["content"] = found[i]["seen"] = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
        found[i]["state"] = LATENTS if not (all_kept or pairs.keeps(name)) else READ if name in there else MISSING
    for field in PICTURE.names or ():
        if PICTURE[field] == np.float64:
            found[field] = np.nan
    why = {int(i): "the set does not have it" for i in np.flatnonzero(found["state"] == MISSING)}
    stored = [int(i) for i in np.flatnonzero(found["state"] == READ)]
    with progress.bar(total=len(stored), desc="check", unit="picture", shown=only is None, terminal_only=True) as bar:
        for places, rows in _in_threads(pairs, names, stored, among):
            for place, row in zip(places, rows, strict=True):
                if isinstance(row, str):
                    found[place]["state"] = ANIMATED if row == "it is animated" else UNREADABLE
                    why[place] = row
                else:
                    found[place] = row
            bar.update(len(places))
    return PictureTable(names, found, why)


def _in_threads(
    pairs: PairSet, names: Sequence[str], places: Sequence[int], among: tuple[Frame, ...]
) -> Iterator[tuple[Sequence[int], list[tuple[Any, ...] | str]]]:
    """Portions of ``places`` with what was found there; this thread reads, the others decode, few are in memory."""
    threads = os.cpu_count() or 1
    waiting: deque[tuple[Sequence[int], Future[list[tuple[Any, ...] | str]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(places), AT_ONCE):
            portion = places[start : start + AT_ONCE]
            stored = [_stored(pairs, names[i]) for i in portion]
            waiting.append((portion, pool.submit(lambda data: [_describe(d, among) for d in data], stored)))
            if len(waiting) > 2 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _stored(pairs: PairSet, name: str) -> bytes | str:
    """A picture's bytes, or why there are none."""
    try:
        return pairs.image_bytes(name)
    except MapoError as error:
        where, _, rest = str(error).removesuffix(".").partition(": ")
        damaged = "does not have the content of its hash" in rest
        return "its bytes are not those that its hash names" if damaged else f"its file cannot be read ({where})"


def _describe(data: bytes | str, among: tuple[Frame, ...]) -> tuple[Any, ...] | str:
    """A row of PICTURE, or why there is none."""
    if isinstance(data, str):
        return data
    try:
        picture = decode_picture(data)
    except ValueError as error:
        return str(error)
    with Image.open(io.BytesIO(data)) as stored:  # the header alone
        alpha = "A" in stored.getbands() or "transparency" in stored.info
        exif = stored.getexif()
        rotated = exif.get(ORIENTATION, 1) not in (0, 1)
        quality = jpeg_quality(getattr(stored, "quantization", None))
        kind, mode = stored.format or "", stored.mode
    wide, high = picture.size
    frame = among[int(nearest(np.log([wide / high]), among)[0])] if among else square(min(picture.size))
    seen = picture if (high, wide) == frame else crop(picture, frame)[0]
    contents = [_content(one) for one in (picture, seen)]
    file = (READ, *contents, kind, mode, alpha, bool(exif), rotated, len(data), *picture.size, quality)
    return (*file, *_statistics(seen), _sketch(picture))


def _content(picture: Image.Image) -> int:
    pixels = hashlib.sha256(repr(picture.size).encode())
    pixels.update(picture.tobytes())
    return int.from_bytes(pixels.digest()[:8], "big")


def _statistics(picture: Image.Image) -> tuple[Any, ...]:
    """Brightness, saturation, contrast, sharpness of an RGB picture."""
    rgb = np.asarray(_small(picture), np.float32) / 255
    luma = rgb @ np.asarray((0.299, 0.587, 0.114), np.float32)
    most = rgb.max(-1)
    saturation = np.divide(most - rgb.min(-1), most, out=np.zeros_like(most), where=most > 0).mean()
    full = np.asarray(picture.convert("L"), np.int16)
    steps = [np.abs(np.diff(full, axis=axis)) for axis in (0, 1)]
    total, count = sum(int(s.sum()) for s in steps), sum(s.size for s in steps)
    return float(luma.mean()), float(saturation), float(luma.std()), total / max(1, count) / 255


def _sketch(picture: Image.Image) -> NDArray[Any]:
    return np.asarray(_small(picture).resize((SKETCH_SIDE, SKETCH_SIDE), Image.Resampling.BOX)).ravel()


def _small(picture: Image.Image) -> Image.Image:
    return picture.reduce(max(1, math.ceil(max(picture.size) / SMALL_SIDE)))


def jpeg_quality(tables: Any) -> float:
    """The quality at which libjpeg's luminance table comes closest to that of a file; NaN for no tables.

    Exact for files that libjpeg wrote, an estimate for others.
    """
    if not tables:
        return math.nan
    first = np.asarray(tables[min(tables)], np.int64)
    return float(QUALITIES[np.abs(TABLES - first).sum(1).argmin()])


def difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """How far two pictures' sketches are apart: the mean absolute difference in grey levels, 0 … 255."""
    return np.asarray(np.abs(first["sketch"].astype(np.int16) - second["sketch"]).mean(-1), np.float64)
