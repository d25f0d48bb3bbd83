"""The frame in which training sees a picture: resized until it covers the frame, then the middle is cut out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Frame(NamedTuple):
    """What is left of a picture after resizing and cropping, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} × {self.height}"


def square(side: int) -> Frame:
    """The square of ``side`` pixels."""
    return Frame(side, side)


def frame(width: Any, height: Any, wide: Any, high: Any = None) -> tuple[Integers, Integers, Integers, Integers]:
    """Width and height after resizing, left and top of the crop, for a frame of ``wide`` × ``high`` pixels.

    Numbers or arrays of them; without ``high`` the frame is a square.
    """
    high = wide if high is None else high
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    scale = np.maximum(wide / width, high / height)
    across = np.maximum(wide, np.rint(width * scale)).astype(np.int64)
    down = np.maximum(high, np.rint(height * scale)).astype(np.int64)
    return across, down, (across - wide) // 2, (down - high) // 2


def share_cut_away(width: Any, height: Any, wide: Any, high: Any = None) -> Floats:
    """The share of a picture that lies outside of the crop, 0 … 1."""
    high = wide if high is None else high
    across, down, _, _ = frame(width, height, wide, high)
    return np.asarray(1 - np.asarray(wide, np.float64) * high / (across * down))


def crop(picture: Image.Image, to: Frame) -> tuple[Image.Image, int, int]:
    """The part of a picture that is trained on, and its left and top in the resized picture."""
    across, down, left, top = (int(value) for value in frame(*picture.size, to.width, to.height))
    if (across, down) != picture.size:
        picture = picture.resize((across, down), Image.Resampling.BILINEAR)
    return picture.crop((left, top, left + to.width, top + to.height)), left, top
