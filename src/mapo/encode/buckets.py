"""Buckets: frames of about the same area and of different shapes, so that wide and tall pictures are trained on whole.

Both pictures of a pair have one frame: the one whose shape is nearest to theirs. A picture may stand in several pairs,
so the cache keeps a picture once for each frame in which it is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mapo.encode.frame import Floats, Frame, Integers, share_cut_away, square
from mapo.pairs import PairSet

LONGEST = 4  # times as long as wide, at most, as the frames that SDXL was trained in
STEPS = 16  # sides are multiples of about this part of the square's


@lru_cache
def frames(side: int, multiple: int, most: int | None = None) -> tuple[Frame, ...]:
    """The square of ``side`` pixels, then the frames of other shapes with no more pixels than it has.

    Every side is a whole ``multiple``, and no longer than ``most``, where a model has places for so many only.
    """
    step = multiple * max(1, round(side / STEPS / multiple))
    found = {square(side)}
    for short in range(step, side, step):
        long = min(side * side // short // step * step, most or side * LONGEST)
        if short < long <= short * LONGEST:
            found |= {Frame(short, long), Frame(long, short)}
    others = sorted(found - {square(side)}, key=lambda f: f.width / f.height)
    return (square(side), *others)


def nearest(shapes: Floats, among: tuple[Frame, ...]) -> Integers:
    """For each shape, which is the logarithm of width over height, the place of the frame that is most like it."""
    own = np.log([f.width / f.height for f in among])
    return np.asarray(np.abs(shapes[:, None] - own).argmin(axis=1))


@dataclass(frozen=True)
class Framing:
    """In which frame each pair of a set is seen: ``of_pair`` "pairs" are places in ``frames``."""

    frames: tuple[Frame, ...]
    of_pair: Integers

    def of(self, row: int) -> Frame:
        """The frame of a pair."""
        return self.frames[int(self.of_pair[row])]

    def pictures(self, pairs: PairSet) -> tuple[Integers, Integers]:
        """Every picture of a set in every frame in which it is seen: its number, and the place of the frame.

        Those of one frame come together, in the order in which they lie on disk.
        """
        order = pairs.disk_order()
        if len(self.frames) == 1:
            return order, np.zeros(len(order), np.int64)
        rank = np.argsort(order)
        sides = [np.stack([self.of_pair, rank[pairs.places_of(side)]], 1) for side in pairs.sides]
        both = np.unique(np.concatenate(sides), axis=0)
        return order[both[:, 1]], both[:, 0]

    def cut_away(self, pairs: PairSet) -> list[Floats]:
        """For each of the set's sides the share of its picture that each pair loses, "pairs"."""
        sizes, target = pairs.image_sizes(), np.array(self.frames)[self.of_pair]
        of_sides = (sizes[pairs.places_of(side)] for side in pairs.sides)
        return [share_cut_away(s[:, 0], s[:, 1], target[:, 1], target[:, 0]) for s in of_sides]

    def counts(self) -> Iterator[tuple[Frame, int]]:
        """The frames that occur, each with the number of its pairs, the most frequent first."""
        found = np.bincount(self.of_pair, minlength=len(self.frames))
        for place in np.argsort(-found, kind="stable"):
            if found[place]:
                yield self.frames[place], int(found[place])


def framing(pairs: PairSet, among: tuple[Frame, ...]) -> Framing:
    """The frame of each pair of a set: the one most like the mean shape of its pictures."""
    if len(among) == 1:
        return Framing(among, np.zeros(len(pairs), np.int64))
    sizes = pairs.image_sizes()
    shape = np.log(sizes[:, 0] / sizes[:, 1])
    mean = sum(shape[pairs.places_of(side)] for side in pairs.sides) / len(pairs.sides)
    return Framing(among, nearest(mean, among))


def framed(picture: str, to: Frame, side: int) -> str:
    """The name of a picture in a frame, as the cache has it: in the square of ``side`` pixels its own."""
    if to == square(side):
        return picture
    return hashlib.sha256(f"{picture} {to.width}x{to.height}".encode()).hexdigest()


def framed_digests(digests: NDArray[np.uint8], which: Integers, among: tuple[Frame, ...]) -> NDArray[np.uint8]:
    """As :func:`framed` for many: from the hashes of pictures "n 32" and the places of their frames, "n 32".

    The first frame is the square.
    """
    found = digests.copy()
    for row in np.flatnonzero(which):
        name = framed(digests[row].tobytes().hex(), among[which[row]], among[0].height)
        found[row] = np.frombuffer(bytes.fromhex(name), np.uint8)
    return found
