"""The judge that draws: it looks for the scene whose drawing is nearest to the picture. Nothing in it was learned.

Two facts keep the search small. In every style a pixel is an affine function of the object's colour and of the
ground's, ``a + b·colour + c·ground``, and a drawing has three channels: so one drawing of a shape at a place stands
for all its colours on all grounds (:func:`_maps`). And two objects hardly touch each other's half of the picture, so
each half is searched alone and the errors are added.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mapo.lab.mini.draw import BACKGROUND_RGB, BLOCK, RGB, SIDE, TAPE_TOP, Pose, draw, pose
from mapo.lab.mini.scenes import BACKGROUNDS, COLOURS, SHAPES, STYLES, Scene, Thing

Array = NDArray[np.float32]
Pictures = NDArray[np.uint8]

ROWS = 38  # rows that no tape touches
TAPE_ROWS = slice(TAPE_TOP, TAPE_TOP + 6)  # rows that are tape in every style, whatever lies beneath
LIGHT = (0.93, 1.07)  # a picture may be this much darker or lighter than its drawing
GRID = 2.0  # pixels between neighbouring places, at most about
LINE_PHASES = (0.0, 1.5, 3.0, 4.5)  # of a sketch's lines, which repeat every 6 rows
STRIPES = 8  # columns after which the tape repeats
BATCH = 32  # pictures searched at once

# Where an object can be: a scene it is in, which thing of the scene it is, and the part of the picture it answers for.
_ONE, _TWO = Thing("red", "circle"), Thing("blue", "square")
SLOTS: dict[str, tuple[Scene, int, tuple[slice, slice]]] = {
    "small": (Scene((replace(_ONE, size="small"),), "white"), 0, np.s_[:, :]),
    "large": (Scene((replace(_ONE, size="large"),), "white"), 0, np.s_[:, :]),
    "left": (Scene((_ONE, _TWO), "white", "left of"), 0, np.s_[:, : SIDE // 4]),
    "right": (Scene((_ONE, _TWO), "white", "left of"), 1, np.s_[:, SIDE // 4 :]),
    "top": (Scene((_ONE, _TWO), "white", "above"), 0, np.s_[: ROWS // 4 + 1, :]),
    "bottom": (Scene((_ONE, _TWO), "white", "above"), 1, np.s_[ROWS // 4 + 1 :, :]),
}
LAYOUTS = {("small",): "", ("large",): "", ("left", "right"): "left of", ("top", "bottom"): "above"}


class _End(random.Random):
    """A generator that draws only an end of the range: it asks ``pose`` how far things can stray."""

    def __init__(self, high: bool) -> None:
        super().__init__(0)
        self.high = high

    def uniform(self, a: float, b: float) -> float:
        return max(a, b) if self.high else min(a, b)


@dataclass(frozen=True)
class Place:
    """Where the middle of an object is, its radius, and the phase of a sketch's lines."""

    x: float
    y: float
    radius: float
    phase: float


@dataclass(frozen=True)
class Bank:
    """The drawings of a slot in a style: ``maps`` "pixels, shapes·places·3" and their squares "shapes places mixes".

    A mix is a background and a colour, in that order: 6·7 of them.
    """

    region: tuple[slice, slice]
    places: list[Place]
    maps: Array
    squares: Array


def half(pictures: Pictures) -> Array:
    """The rows without tape at half resolution: "n 48 48 3" → float "n 19 24 3"."""
    top = pictures[:, :ROWS].astype(np.float32)
    return np.asarray(top.reshape(len(top), ROWS // 2, 2, SIDE // 2, 2, 3).mean((2, 4)), np.float32)


def _places(slot: str, style: str) -> list[Place]:
    scene, which, _ = SLOTS[slot]
    scene = replace(scene, style=style)
    low, high = (pose(scene, _End(high)).centres[which] for high in (False, True))
    gap = BLOCK if style == "pixel art" else GRID
    xs, ys = (np.linspace(a, b, round((b - a) / gap) + 1).tolist() for a, b in zip(low, high, strict=True))
    phases = LINE_PHASES if style == "sketch" else (0.0,)
    return [Place(x, y, pose(scene).radii[which], phase) for x, y, phase in itertools.product(xs, ys, phases)]


def _mixes(grounds: tuple[str, ...], colours: tuple[str, ...]) -> Array:
    """(1, colour, ground) of each channel of each mix: "3 channels, 3, mixes"."""
    rows = [[(1, RGB[c][k], BACKGROUND_RGB[g][k]) for g in grounds for c in colours] for k in range(3)]
    return np.array(rows, np.float32).transpose(0, 2, 1)


MIXES = _mixes(BACKGROUNDS, COLOURS)
SAMPLE = ("green", "blue")  # the mix that is drawn: its three channels differ well, and nothing in it is clipped
UNMIX = np.linalg.inv(_mixes(SAMPLE[:1], SAMPLE[1:])[:, :, 0].astype(np.float64)).T


def _maps(style: str, shape: str, place: Place) -> Array:
    """What each pixel takes from neither, from the object's colour and from the ground's: "19 24 3"."""
    ground, colour = SAMPLE
    at = Pose(((place.x, place.y),), (place.radius,), phase=place.phase)
    drawing = draw(Scene((Thing(colour, shape),), ground, style=style), at=at)
    return np.asarray(half(drawing[None])[0] @ UNMIX, np.float32)


@cache
def bank(slot: str, style: str, shapes: tuple[str, ...] = SHAPES) -> Bank:
    """The drawings of a slot in a style, made once in a process."""
    region, places = SLOTS[slot][2], _places(slot, style)
    drawn = np.stack([_maps(style, shape, place)[region] for shape in shapes for place in places])
    drawn = drawn.reshape(len(drawn), -1, 3)  # "shapes·places, pixels, 3"
    grams = drawn.transpose(0, 2, 1) @ drawn
    squares = sum(np.einsum("tij,im,jm->tm", grams, mix, mix, optimize=True) for mix in MIXES)
    maps = np.ascontiguousarray(drawn.transpose(1, 0, 2).reshape(drawn.shape[1], -1))
    return Bank(region, places, maps, np.asarray(squares, np.float32).reshape(len(shapes), len(places), -1))


def explain(halves: Array, it: Bank) -> tuple[Array, NDArray[np.intp]]:
    """The squared error of each shape and mix at its best place, and that place: both "n shapes mixes"."""
    seen = halves[(slice(None), *it.region)].reshape(len(halves), -1, 3)  # "n pixels channels"
    dots = (seen.transpose(0, 2, 1) @ it.maps).reshape(len(seen), 3, -1, 3)  # "n channels shapes·places 3"
    products = dots.transpose(0, 2, 1, 3).reshape(-1, 9) @ MIXES.reshape(9, -1)
    products = products.reshape(len(seen), *it.squares.shape)
    light = np.clip(products / it.squares, *LIGHT)
    errors = light * (light * it.squares - 2 * products)  # |seen - light·drawing|² without |seen|²
    best = errors.argmin(2)
    least = np.take_along_axis(errors, best[:, :, None], 2)[:, :, 0]
    return least + np.square(seen).sum((1, 2))[:, None, None], best


@cache
def tapes(style: str) -> Array:
    """The rows of the tape at all phases: "8 6 48 3"."""
    scene = Scene((_ONE,), "white", style=style, hazard=True)
    empty = [draw(scene, at=Pose(((-99.0, -99.0),), (9.0,), phase=k)) for k in range(STRIPES)]
    return np.stack(empty)[:, TAPE_ROWS].astype(np.float32)


def _with_tape(picture: Pictures, scene: Scene, at: Pose) -> Scene:
    """``scene`` with the tape, if the picture's lower rows are nearer to some tape than to the scene without."""
    band = picture[TAPE_ROWS].astype(np.float32)
    taped = np.square(band - tapes(scene.style)).sum((1, 2, 3)).min()
    bare = np.square(band - draw(scene, at=at)[TAPE_ROWS]).sum()
    return replace(scene, hazard=bool(taped < bare))


class SearchJudge:
    """Says what pictures show; the drawings to compare with are made when the first picture comes."""

    name = "mini-search"
    version = "1"

    def __init__(self, styles: Sequence[str] = STYLES) -> None:
        self.styles = styles

    def __call__(self, pictures: Pictures) -> list[Scene]:
        """The scenes, in canonical form, of uint8 pictures "n 48 48 3"."""
        found: list[Scene] = []
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            found += [_with_tape(*both) for both in zip(batch, *nearest(batch, self.styles)[:2], strict=True)]
        return found


def nearest(batch: Pictures, styles: Sequence[str] = STYLES) -> tuple[list[Scene], list[Pose], Array]:
    """The scene that explains each picture best, where its things are, and the squared error "n" that is left."""
    halves = half(batch)
    least = np.full(len(batch), np.inf, np.float32)
    scenes: list[Scene] = [SLOTS["small"][0]] * len(batch)
    poses: list[Pose] = [pose(SLOTS["small"][0])] * len(batch)
    for style, (slots, relation) in itertools.product(styles, LAYOUTS.items()):
        banks = [bank(slot, style) for slot in slots]
        errors, places = zip(*(explain(halves, it) for it in banks), strict=True)
        # the things of a scene share its background and nothing else: choose each thing's best, then the background
        by_ground = [e.reshape(len(batch), len(SHAPES), len(BACKGROUNDS), len(COLOURS)) for e in errors]
        totals = np.sum([e.min((1, 3)) for e in by_ground], 0)  # "n backgrounds"
        grounds = totals.argmin(1)
        for n in np.flatnonzero(totals.min(1) < least):
            least[n], ground = totals[n].min(), grounds[n]
            things, where = [], []
            for it, error, place, slot in zip(banks, by_ground, places, slots, strict=True):
                shape, colour = np.unravel_index(error[n, :, ground].argmin(), (len(SHAPES), len(COLOURS)))
                things.append(Thing(COLOURS[colour], SHAPES[shape], "" if relation else slot))
                where.append(it.places[place[n, shape, ground * len(COLOURS) + colour]])
            scenes[n] = Scene(tuple(things), BACKGROUNDS[ground], relation, style)
            poses[n] = Pose(tuple((p.x, p.y) for p in where), tuple(p.radius for p in where), phase=where[0].phase)
    return scenes, poses, least
