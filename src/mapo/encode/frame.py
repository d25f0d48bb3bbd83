"""The frame in which training sees a picture: resized to the shorter side, then the square in the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def frame(width: Any, height: Any, side: Any) -> tuple[Integers, Integers, Integers, Integers]:
    """Width and height after resizing, left and top of the crop; for numbers or arrays of them."""
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    scale = side / np.minimum(width, height)
    wide, high = (np.maximum(side, np.rint(length * scale)).astype(np.int64) for length in (width, height))
    return wide, high, (wide - side) // 2, (high - side) // 2


def share_cut_away(width: Any, height: Any, side: Any) -> Floats:
    """The share of a picture that lies outside of the crop, 0 … 1."""
    wide, high, _, _ = frame(width, height, side)
    return np.asarray(1 - np.asarray(side, np.float64) ** 2 / (wide * high))


def crop(picture: Image.Image, side: int) -> tuple[Image.Image, int, int]:
    """The square of ``side`` pixels that is trained on, and its left and top in the resized picture."""
    wide, high, left, top = (int(value) for value in frame(*picture.size, side))
    if (wide, high) != picture.size:
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    return picture.crop((left, top, left + side, top + side)), left, top
