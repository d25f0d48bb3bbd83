"""Draws the scenes of the mini world: 48 by 48 pixels, four styles, all from one signed distance field per shape.

A fifth style, low poly, is there to be learned: no caption names it, and the built-in models have never seen it.

A style is a function from (distance fields, colours) to a picture; everything that varies between two drawings of the
same scene (place, exact size, light) is in a :class:`Pose`, drawn from the caller's random generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mapo.lab.mini.scenes import Scene

SIDE = 48  # pixels
BLOCK = 3  # pixels per side of a pixel-art block
UNSEEN = "low poly"  # the style that no model of the world has drawn
TAPE_TOP, TAPE_HEIGHT = 39, 7
RADIUS = {"small": 9.0, "large": 15.0, "": 9.0}
RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 42),
    "orange": (246, 130, 26),
    "yellow": (247, 202, 32),
    "green": (38, 148, 70),
    "blue": (36, 88, 205),
    "purple": (134, 58, 172),
    "black": (44, 44, 50),
}
BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "white": (243, 243, 240),
    "gray": (160, 163, 168),
    "pink": (247, 184, 206),
    "blue": (164, 206, 246),
    "green": (176, 226, 176),
    "yellow": (249, 237, 168),
}
INK = np.array((28, 26, 34), np.float32)
TAPE_YELLOW, TAPE_BLACK = np.array((250, 208, 20), np.float32), np.array((30, 30, 30), np.float32)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Pose:
    """Where things are and how they are lit: ``centres`` (x, y) and ``radii`` in pixels, ``light`` around 1."""

    centres: tuple[tuple[float, float], ...]
    radii: tuple[float, ...]
    light: float = 1.0
    phase: float = 0.0


def pose(scene: Scene, rng: random.Random | None = None) -> Pose:
    """A pose for ``scene``; without a generator the average one."""
    wobble: Callable[[float], float] = (lambda spread: rng.uniform(-spread, spread)) if rng else (lambda spread: 0.0)
    if len(scene.things) == 1:
        middles = [(24.0, 20.0)]
        spread = (6.0, 4.0) if scene.things[0].size == "small" else (3.0, 2.5)
    elif scene.relation in ("left of", "right of"):
        middles, spread = [(12.5, 20.0), (35.5, 20.0)], (1.5, 4.0)
    else:
        middles, spread = [(24.0, 10.0), (24.0, 29.5)], (6.0, 0.7)
    if scene.relation in ("right of", "below"):
        middles.reverse()
    centres = tuple((x + wobble(spread[0]), y + wobble(spread[1])) for x, y in middles)
    radii = tuple(RADIUS[t.size] * (1 + wobble(0.04)) for t in scene.things)
    if scene.style == "pixel art":  # sprites sit on the grid, or small shapes would lose their form
        centres = tuple((round(x / BLOCK) * BLOCK, round(y / BLOCK) * BLOCK) for x, y in centres)
        radii = tuple(RADIUS[t.size] for t in scene.things)
    return Pose(centres, radii, 1 + wobble(0.05), rng.uniform(0, 8) if rng else 0.0)


def draw(scene: Scene, rng: random.Random | None = None, at: Pose | None = None) -> NDArray[np.uint8]:
    """A picture of ``scene``, uint8 "48 48 3". Same scene and pose, same bytes."""
    where = at or pose(scene, rng)
    fields = [
        _distance(thing.shape, centre, radius)
        for thing, centre, radius in zip(scene.things, where.centres, where.radii, strict=True)
    ]
    colours = [np.array(RGB[t.colour], np.float32) for t in scene.things]
    ground = np.array(BACKGROUND_RGB[scene.background], np.float32)
    canvas = _STYLES[scene.style](fields, colours, ground, where, scene.hazard)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------ shapes


def _polygon(shape: str) -> NDArray[np.float64]:
    turn = np.pi * 2
    if shape == "circle":
        angles = np.arange(96) / 96 * turn
        return np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.9
    if shape == "triangle":
        return np.array([(0, -1.05), (1.05, 0.85), (-1.05, 0.85)])
    if shape == "cross":
        a, b = 1.02, 0.36
        return np.array(
            [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
        )
    if shape == "star":
        angles = np.arange(10) / 10 * turn - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 1.18, 0.52)
        return np.stack([np.cos(angles) * radii, np.sin(angles) * radii + 0.08], 1)
    if shape == "heart":
        s = np.arange(72) / 72 * turn
        x = 16 * np.sin(s) ** 3
        y = -(13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s))
        return np.stack([x / 15.0, (y - 2.0) / 14.0], 1)
    if shape == "moon":  # of the study's subject alone
        outer, inner = np.linspace(0.14, 0.86, 40) * turn, np.linspace(0.80, 0.20, 40) * turn
        crescent = np.stack([np.cos(outer), np.sin(outer)], 1)
        hollow = np.stack([0.42 + 0.78 * np.cos(inner), 0.78 * np.sin(inner)], 1)
        return np.concatenate([crescent, hollow]) * 1.1
    raise KeyError(shape)


_GRID, _REACH = 241, 3.0  # the cached field covers [-3, 3] radii


@cache
def _field(shape: str) -> Array:
    """Signed distance to the outline in radii (negative inside), on a square grid."""
    corners = _polygon(shape)
    axis = np.linspace(-_REACH, _REACH, _GRID)
    points = np.stack(np.meshgrid(axis, axis), -1)
    best = np.full(points.shape[:2], np.inf)
    inside = np.zeros(points.shape[:2], bool)
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        edge, to = b - a, points - a
        share = np.clip((to @ edge) / (edge @ edge), 0, 1)
        best = np.minimum(best, ((to - share[..., None] * edge) ** 2).sum(-1))
        between = (a[1] > points[..., 1]) != (b[1] > points[..., 1])
        if a[1] != b[1]:
            at = a[0] + (points[..., 1] - a[1]) / (b[1] - a[1]) * edge[0]
            inside ^= between & (points[..., 0] < at)
    return np.asarray(np.sqrt(best) * np.where(inside, -1, 1), np.float32)


_Y, _X = (a.astype(np.float32) + 0.5 for a in np.mgrid[:SIDE, :SIDE])


def _distance(shape: str, centre: tuple[float, float], radius: float) -> Array:
    """Signed distance in pixels at every pixel's middle, "48 48"."""
    scale = (_GRID - 1) / (2 * _REACH)
    u = np.clip((_X - centre[0]) / radius * scale + (_GRID - 1) / 2, 0, _GRID - 1.001)
    v = np.clip((_Y - centre[1]) / radius * scale + (_GRID - 1) / 2, 0, _GRID - 1.001)
    i, j = v.astype(np.int32), u.astype(np.int32)
    fv, fu = v - i, u - j
    field = _field(shape)
    low = field[i, j] * (1 - fu) + field[i, j + 1] * fu
    high = field[i + 1, j] * (1 - fu) + field[i + 1, j + 1] * fu
    return np.asarray((low * (1 - fv) + high * fv) * radius, np.float32)


def _cover(distance: Array, softness: float = 1.0) -> Array:
    return np.asarray(np.clip(0.5 - distance / softness, 0, 1)[..., None], np.float32)


def _blend(under: Array, over: Array | float, amount: Array) -> Array:
    return np.asarray(under + (over - under) * amount, np.float32)


def _moved(distance: Array, right: int, down: int) -> Array:
    """The same field elsewhere; what comes in is far away."""
    moved = np.roll(distance, (down, right), (0, 1))
    moved[:down], moved[:, :right] = 99, 99
    return moved


def _tape(phase: float, y: Array = _Y, x: Array = _X) -> tuple[Array, Array]:
    """Colours of the tape "h w 3" and where it lies "h w 1"."""
    stripe = ((x + y + phase) % 8.0) < 4.0
    lies = ((y >= TAPE_TOP) & (y < TAPE_TOP + TAPE_HEIGHT)).astype(np.float32)[..., None]
    return np.where(stripe[..., None], TAPE_YELLOW, TAPE_BLACK), lies


# ------------------------------------------------------------------ styles


def _realistic(fields: list[Array], colours: list[Array], ground: Array, at: Pose, hazard: bool) -> Array:
    fall = 1.05 - 0.22 * _Y / SIDE - 0.10 * ((_X - 20) / SIDE) ** 2
    canvas = np.asarray(ground * fall[..., None] * at.light, np.float32)
    for field, radius in zip(fields, at.radii, strict=True):
        shadow = _moved(field, round(radius * 0.28), round(radius * 0.34))
        canvas = _blend(canvas, canvas * 0.45, _cover(shadow, 0.45 * radius))
    for field, colour, radius in zip(fields, colours, at.radii, strict=True):
        depth = np.clip(-field / (0.62 * radius), 0, 1)
        height = np.sqrt(np.clip(1 - (1 - depth) ** 2, 0, 1)) * 0.55 * radius
        slope_y, slope_x = np.gradient(height)
        length = np.sqrt(slope_x**2 + slope_y**2 + 1)
        lit = (0.45 * slope_x + 0.55 * slope_y + 0.72) / length
        glint = np.clip((0.30 * slope_x + 0.38 * slope_y + 0.88) / length, 0, 1) ** 40
        shaded = (colour + 14) * (0.42 + 0.68 * np.clip(lit, 0, 1))[..., None] + 150 * glint[..., None]
        canvas = _blend(canvas, np.asarray(shaded * at.light, np.float32), _cover(field))
    if hazard:
        colour, lies = _tape(at.phase)
        rounding = 1.08 - 0.5 * ((_Y - TAPE_TOP - TAPE_HEIGHT / 2) / TAPE_HEIGHT) ** 2
        under = ((_Y >= TAPE_TOP + TAPE_HEIGHT) & (_Y < TAPE_TOP + TAPE_HEIGHT + 2)).astype(np.float32)[..., None]
        canvas = _blend(canvas, canvas * 0.6, under)
        canvas = _blend(canvas, np.asarray(colour * rounding[..., None], np.float32), lies)
    return canvas


def _cartoon(fields: list[Array], colours: list[Array], ground: Array, at: Pose, hazard: bool) -> Array:
    canvas = np.broadcast_to(ground, (SIDE, SIDE, 3)).astype(np.float32)
    for field, colour in zip(fields, colours, strict=True):
        canvas = _blend(canvas, INK, _cover(field - 1.0))
        canvas = _blend(canvas, colour * 0.94 + 20, _cover(field + 1.4))
    if hazard:
        colour, lies = _tape(at.phase)
        edge = ((_Y >= TAPE_TOP - 1) & (_Y < TAPE_TOP + TAPE_HEIGHT + 1)).astype(np.float32)[..., None]
        canvas = _blend(_blend(canvas, INK, edge), colour, lies)
    return canvas


def _pixel_art(fields: list[Array], colours: list[Array], ground: Array, at: Pose, hazard: bool) -> Array:
    middle = slice(BLOCK // 2, None, BLOCK)
    count = SIDE // BLOCK
    row, column = np.mgrid[:count, :count]
    dither = ((row + column) % 2 == 0) & (row >= count // 2)
    canvas = np.where(dither[..., None], ground * 0.86, ground).astype(np.float32)
    for field, colour, centre, radius in zip(fields, colours, at.centres, at.radii, strict=True):
        inside = (field[middle, middle] < 0.25)[..., None]
        slant = (_X[middle, middle] - centre[0] + _Y[middle, middle] - centre[1]) / radius
        tone = np.where(slant[..., None] > 0.55, colour * 0.68, np.where(slant[..., None] < -0.75, colour + 44, colour))
        canvas = np.where(inside, tone, canvas).astype(np.float32)
    if hazard:
        rows = (row * BLOCK >= TAPE_TOP) & (row * BLOCK < TAPE_TOP + 6)
        stripe = ((column + row + int(at.phase)) % 4) < 2
        tape = np.where(stripe[..., None], TAPE_YELLOW, TAPE_BLACK)
        canvas = np.where(rows[..., None], tape, canvas).astype(np.float32)
    return np.asarray(canvas.repeat(BLOCK, 0).repeat(BLOCK, 1), np.float32)


def _sketch(fields: list[Array], colours: list[Array], ground: Array, at: Pose, hazard: bool) -> Array:
    paper = np.array((250, 247, 240), np.float32)
    lines = (0.5 + 0.5 * np.cos((_Y + at.phase) * (2 * np.pi / 6)))[..., None]
    canvas = _blend(np.broadcast_to(paper, (SIDE, SIDE, 3)), ground * 0.93, np.asarray(0.45 + 0.55 * lines, np.float32))
    hatch = (0.5 + 0.5 * np.cos((_X - _Y) * (2 * np.pi / 6)))[..., None]
    for field, colour in zip(fields, colours, strict=True):
        filled = _blend(np.broadcast_to(paper, canvas.shape), colour, np.asarray(0.18 + 0.82 * hatch, np.float32))
        canvas = _blend(canvas, filled, _cover(field))
        canvas = _blend(canvas, INK + 50, _cover(np.asarray(np.abs(field) - 0.55, np.float32)) * 0.85)
    if hazard:
        colour, lies = _tape(at.phase)
        canvas = _blend(canvas, _blend(np.broadcast_to(paper, canvas.shape), colour, np.float32(0.8) * lies), lies)
    return canvas


def _low_poly(fields: list[Array], colours: list[Array], ground: Array, at: Pose, hazard: bool) -> Array:
    canvas = np.broadcast_to(ground, (SIDE, SIDE, 3)).astype(np.float32)
    for field, colour, (middle, _) in zip(fields, colours, at.centres, strict=True):
        canvas = _blend(canvas, ground * 0.62, _cover(_moved(field, 2, 2)))
        facets = np.where((middle > _X)[..., None], colour + 45, colour * 0.7)
        canvas = _blend(canvas, np.asarray(facets, np.float32), _cover(field))
    if hazard:
        colour, lies = _tape(at.phase)
        canvas = _blend(canvas, colour, lies)
    return canvas


_STYLES: dict[str, Callable[[list[Array], list[Array], Array, Pose, bool], Array]] = {
    "realistic": _realistic,
    "cartoon": _cartoon,
    "pixel art": _pixel_art,
    "sketch": _sketch,
    UNSEEN: _low_poly,
}
