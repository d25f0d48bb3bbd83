"""Whether a model draws copies of the pictures that it was trained on.

A picture becomes 63 bits: which of the low frequencies of its brightness, at 32 × 32 pixels, are above their median
(the perceptual hash of Krawetz and others). Pictures that differ in few bits look alike from afar. Those of one style
do so now and then, so what counts is whether drawings are near to a picture more often than the pictures to each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.stats import fisher_exact

from mapo.errors import count

SIDE, LOW = 32, 8
NEAR = 10  # bits of 63; unrelated pictures differ in about 31

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Nearest:
    """The picture of the folder that is most like a drawing, and in how many of 63 bits they differ."""

    drawing: str
    own: str
    bits: int


def bits_of(picture: Image.Image) -> Bits:
    """The 63 bits of a picture."""
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
    low = dctn(grey, norm="ortho")[:LOW, :LOW].ravel()[1:]
    return np.asarray(low > np.median(low))


def nearest(drawings: dict[str, Image.Image], own: dict[str, Image.Image]) -> list[Nearest]:
    """For each drawing the picture that is most like it, of another name; its mirror image counts too."""
    known = {name: bits_of(picture) for name, picture in own.items()}
    found = []
    for name, drawing in drawings.items():
        ways = [bits_of(way) for way in (drawing, drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
        apart = {other: min(int((bits != way).sum()) for way in ways) for other, bits in known.items() if other != name}
        if apart:
            closest = min(apart, key=lambda other: apart[other])
            found.append(Nearest(name, closest, apart[closest]))
    return found


def compared(own: Sequence[Nearest], before: Sequence[Nearest], after: Sequence[Nearest]) -> dict[str, Any]:
    """How many drawings of both models look like a picture, beside how many of the pictures look like another one."""
    closest = sorted(after, key=lambda one: one.bits)
    found: dict[str, Any] = {"near_is_at_most_bits": NEAR}
    for name, ones in (("own", own), ("before", before), ("after", after)):
        found[name] = {
            "pictures": len(ones), "near": sum(one.bits <= NEAR for one in ones),
            "median_bits": statistics.median(one.bits for one in ones) if ones else None,
        }  # fmt: skip
    found["copies"] = _are_more(found["after"], found["own"]) and _are_more(found["after"], found["before"])
    return {**found, "nearest": [asdict(one) for one in closest[:12]]}


def _are_more(some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether the share that is near is surely higher: by Fisher's exact test, 1 in 100."""
    if not some["pictures"] or not others["pictures"]:
        return bool(some["near"])
    table = [[one["near"], one["pictures"] - one["near"]] for one in (some, others)]
    return bool(fisher_exact(table, alternative="greater").pvalue < 0.01)


def told(found: dict[str, Any]) -> str:
    """The finding in a sentence or two."""
    own, before, after = (found[name] for name in ("own", "before", "after"))
    number, others = count(after["pictures"], "drawing"), count(own["pictures"], "picture")
    text = (
        f"{after['near']} of {number} look like a picture of the folder. Before the training {before['near']} did. Of "
        f"the {others} in the folder {own['near']} look like another one."
    )
    if 2 * own["near"] >= own["pictures"]:
        return f"{text} So many are alike that copies cannot be told here."
    if found["copies"]:
        text += " So the model copies: train fewer steps, or give it more pictures."
    return text


def read_folder(folder: Path, names: Sequence[str]) -> dict[str, Image.Image]:
    """Pictures by their names in a folder."""
    from mapo.pairs.pictures import decode_picture

    return {name: decode_picture((folder / name).read_bytes()) for name in names}
