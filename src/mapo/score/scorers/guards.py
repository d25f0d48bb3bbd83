"""Reward-free guards: plain properties of pictures that move when training has gone too far. No network, float64.

A picture whose shorter side is above :data:`SIDE` is first reduced to it (area average, 8 bits), so that the numbers do
not depend on resolution; a smaller one is taken as it is.

``saturation``      mean chroma √(a² + b²) in CIELAB (sRGB, D65): 0 for greys, 134 for the bluest blue
``edge_density``    share of pixels at which the slope of the luma, by Sobel's filter, is above :data:`SLOPE`
``colour_entropy``  bits of the histogram of colours with 8 steps per RGB channel, 0 … 9
``diversity``       mean CIELAB distance ΔE (1976) to the other pictures of the prompt, each reduced to 32 × 32; None
                    where there is no other
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapo.pairs.splits import prompt_id
from mapo.score.scorers import check_inputs

SIDE = 256  # pixels
SLOPE = 0.05  # of the luma's whole range, per pixel
STEPS = 8  # of each channel
THUMB = 32  # pixels

Floats = NDArray[np.float64]

TO_XYZ = np.array(  # linear sRGB → XYZ, IEC 61966-2-1
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Measured:
    """What the guards keep of a picture."""

    saturation: float
    edge_density: float
    colour_entropy: float
    thumb: Floats  # CIELAB "32 32 3"


def _linear() -> Floats:
    """sRGB's curve: the light of each of the 256 values of a channel."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


LIGHT = _linear()
WHITE = TO_XYZ.sum(1)


def lab(pixels: NDArray[np.uint8]) -> Floats:
    """sRGB "… 3" → CIELAB "… 3" relative to D65."""
    relative = LIGHT[pixels] @ (TO_XYZ / WHITE[:, None]).T
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def saturation(pixels: NDArray[np.uint8]) -> float:
    """Mean chroma of a picture "h w 3"."""
    return float(np.hypot(*np.moveaxis(lab(pixels)[..., 1:], -1, 0)).mean())


def edge_density(pixels: NDArray[np.uint8]) -> float:
    """Share of pixels of a picture "h w 3" on an edge; beyond its border it goes on as at the border."""
    luma = np.pad(pixels / 255 @ LUMA, 1, mode="edge")
    across, down = luma[:, 2:] - luma[:, :-2], luma[2:] - luma[:-2]  # of two pixels' distance
    slope_x = (across[:-2] + 2 * across[1:-1] + across[2:]) / 8
    slope_y = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 8
    return float((np.hypot(slope_x, slope_y) > SLOPE).mean())


def colour_entropy(pixels: NDArray[np.uint8]) -> float:
    """Bits of the histogram of the colours of a picture "h w 3"."""
    steps = pixels.astype(np.int64) * STEPS // 256
    counts = np.bincount((steps @ np.array([STEPS * STEPS, STEPS, 1])).ravel())
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # and never −0


def diversity(thumbs: Sequence[Floats]) -> list[float | None]:
    """Mean distance of each of a prompt's pictures, CIELAB "s s 3", to the others."""
    if len(thumbs) < 2:
        return [None] * len(thumbs)
    every = np.stack(thumbs)
    away = [np.sqrt(((every - own) ** 2).sum(-1)).mean((1, 2)).sum() for own in every]
    return [float(total / (len(thumbs) - 1)) for total in away]


class Guards:
    """The guards as a scorer. More is not better: a report looks at how far they move."""

    name = "guards"
    version = "1"
    revision = ""
    metrics: tuple[str, ...] = ("saturation", "edge_density", "colour_entropy", "diversity")
    why_none = {"diversity": "Diversity needs two seeds per prompt"}  # noqa: RUF012
    needs_reference = False
    whole_prompts = True

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float | None]]:
        """All four numbers of each picture; those of one prompt are compared with each other."""
        check_inputs(self.name, pictures, prompts)
        return self.score([self.prepare(picture) for picture in pictures], prompts)

    def prepare(self, picture: Image.Image) -> Measured:
        """Everything about an RGB picture that needs no other."""
        small = picture
        if (short := min(picture.size)) > SIDE:
            width, height = (max(1, round(side * SIDE / short)) for side in picture.size)
            small = picture.resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(small)
        thumb = np.asarray(picture.resize((THUMB, THUMB), Image.Resampling.BOX))
        return Measured(saturation(pixels), edge_density(pixels), colour_entropy(pixels), lab(thumb))

    def score(
        self, prepared: Sequence[Measured], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float | None]]:
        """All four numbers of each picture."""
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt_id(prompt), []).append(place)
        away: dict[int, float | None] = {}
        for group in places.values():
            away |= dict(zip(group, diversity([prepared[place].thumb for place in group]), strict=True))
        return {
            "saturation": [one.saturation for one in prepared],
            "edge_density": [one.edge_density for one in prepared],
            "colour_entropy": [one.colour_entropy for one in prepared],
            "diversity": [away[place] for place in range(len(prepared))],
        }

    def notes(self) -> list[str]:
        """Nothing to note."""
        return []
