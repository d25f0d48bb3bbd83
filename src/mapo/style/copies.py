"""Whether a model draws copies of the pictures that it was trained on.

There are two ways to look at a picture. Both make a vector of it, and pictures are alike where their vectors are:

- The hash: 63 bits, which of the low frequencies of its brightness, at 32 × 32 pixels, are above their median (the
  perceptual hash of Krawetz and others). It needs no weights.
- DINOv2's embedding, which knows a subject again that is drawn elsewhere in the picture.

Pictures of one style are alike now and then, so what counts is whether drawings are near to a picture more often than
the pictures to each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
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
BITS = LOW * LOW - 1
NEAR = 10  # bits of 63; unrelated pictures differ in about 31
SHARE = 0.05  # of the pictures of a folder are near to another one, where nobody knows how far near is
AT_ONCE = 16  # pictures that are looked at

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """A way to look at pictures: ``see`` makes vectors of length 1 of some, "n d".

    Two pictures are ``scale`` · (1 − cosine) apart. ``near`` is at most how far those are that look like each other;
    None where the pictures of the folder have to tell.
    """

    name: str
    unit: str
    see: Callable[[Sequence[Image.Image]], Vectors]
    scale: float
    near: float | None


@dataclass(frozen=True)
class Nearest:
    """The picture of the folder that is most like a drawing, and how far they are apart."""

    drawing: str
    own: str
    apart: float


@dataclass(frozen=True)
class Embedded:
    """Pictures by their names, and their vectors "n d"."""

    names: list[str]
    vectors: Vectors


class LazyPictures(Mapping[str, Image.Image]):
    """Pictures by their names, each read when it is asked for."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Image.Image]) -> None:
        self.names, self.read = names, read

    def __getitem__(self, name: str) -> Image.Image:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


# ------------------------------------------------------------------ looking


def bits_of(picture: Image.Image) -> NDArray[np.bool_]:
    """The 63 bits of a picture."""
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
    low = dctn(grey, norm="ortho")[:LOW, :LOW].ravel()[1:]
    return np.asarray(low > np.median(low))


def _hashes(pictures: Sequence[Image.Image]) -> Vectors:
    bits = np.array([bits_of(picture) for picture in pictures], np.float64)
    return np.asarray((2 * bits - 1) / np.sqrt(BITS))


HASH = Look("perceptual hash", "bits of 63", _hashes, BITS / 2, NEAR)


def look_by(model: str | None) -> Look:
    """By DINOv2: the ``model`` of that folder or hub id, or where none is named that which is on this machine; else by
    the hash. MapoError where the model is not one."""
    if model is None and not dinov2_at_hand():
        return HASH
    from mapo.score.scorers.dinov2 import Dinov2Score

    scorer = Dinov2Score(model, "--copies-with") if model else Dinov2Score()
    return Look(scorer.name, "1 − cosine", lambda some: scorer.embed(some).double().numpy(), 1.0, None)


def dinov2_at_hand() -> bool:
    """Whether DINOv2's weights are on this machine."""
    from mapo.score.scorers.choice import lacks

    return lacks("dinov2") is None


def seen(pictures: Mapping[str, Image.Image], look: Look, *, mirrored: bool = False) -> Embedded:
    """The vectors of some pictures, or of their mirror images."""
    names, found = list(pictures), []
    for start in range(0, len(names), AT_ONCE):
        some = [pictures[name].convert("RGB") for name in names[start : start + AT_ONCE]]
        some = [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in some] if mirrored else some
        found.append(look.see(some))
    return Embedded(names, np.concatenate(found) if found else np.zeros((0, 1)))


def closest(ways: Sequence[Embedded], own: Embedded, look: Look) -> list[Nearest]:
    """For each drawing the picture that is most like it, of another name; ``ways`` has it as it is and mirrored."""
    if not own.names or not ways[0].names:
        return []
    alike = np.max([way.vectors @ own.vectors.T for way in ways], axis=0)
    apart = np.round(look.scale * (1 - alike), 6)
    found = []
    for row, name in enumerate(ways[0].names):
        others = [k for k, other in enumerate(own.names) if other != name]
        if others:
            k = min(others, key=lambda k: apart[row, k])
            found.append(Nearest(name, own.names[k], float(apart[row, k])))
    return found


def nearest(
    drawings: Mapping[str, Image.Image], own: Mapping[str, Image.Image], look: Look = HASH
) -> list[Nearest]:  # fmt: skip
    """As :func:`closest`, of the pictures themselves."""
    ways = [seen(drawings, look, mirrored=mirrored) for mirrored in (False, True)]
    return closest(ways, seen(own, look), look)


# ------------------------------------------------------------------ telling


def compared(
    own: Sequence[Nearest], before: Sequence[Nearest], after: Sequence[Nearest], look: Look = HASH
) -> dict[str, Any]:  # fmt: skip
    """How many drawings of both models look like a picture, beside how many of the pictures look like another one."""
    near = look.near
    if near is None:
        near = float(np.quantile([one.apart for one in own], SHARE)) if own else 0.0
    found: dict[str, Any] = {"by": look.name, "unit": look.unit, "near_is_at_most": near}
    for name, ones in (("own", own), ("before", before), ("after", after)):
        found[name] = {
            "pictures": len(ones), "near": sum(one.apart <= near for one in ones),
            "median_apart": statistics.median(one.apart for one in ones) if ones else None,
        }  # fmt: skip
    own_median = found["own"]["median_apart"]
    for name, ones in (("before", before), ("after", after)):
        found[name]["as_near_as_own"] = sum(own_median is not None and one.apart <= own_median for one in ones)
    found["copies"] = _are_more(found["after"], found["own"]) and _are_more(found["after"], found["before"])
    first = sorted(after, key=lambda one: one.apart)
    return {**found, "nearest": [asdict(one) for one in first[:12]]}


def _are_more(some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether the share that is near is surely higher: by Fisher's exact test, 1 in 100."""
    if not some["pictures"] or not others["pictures"]:
        return bool(some["near"])
    table = [[one["near"], one["pictures"] - one["near"]] for one in (some, others)]
    return bool(fisher_exact(table, alternative="greater").pvalue < 0.01)


def told(found: Mapping[str, Any], of: str = "") -> str:
    """The finding in a sentence or two; ``of`` says what the drawings show, where not all of them were looked at."""
    own, before, after = (found[name] for name in ("own", "before", "after"))
    number, others = f"{count(after['pictures'], 'drawing')}{of}", count(own["pictures"], "picture")
    look, one = ("looks" if some["near"] == 1 else "look" for some in (after, own))
    drawn, untrained, ours = (some["near"] or "none" for some in (after, before, own))
    text = (
        f"By {found['by']}, {drawn} of {number} {look} like a picture that was trained on. Before the training "
        f"{untrained} did. Of these {others} {ours} {one} like another one."
    )
    if 2 * own["near"] >= own["pictures"]:
        return f"{text} So many are alike that copies cannot be told here."
    if not after["near"]:
        return f"{text} So no copying is found."
    if found["copies"]:
        return f"{text} So the model copies: train fewer steps, or give it more pictures."
    like = "your own pictures are" if not _are_more(after, own) else "the untrained model's were"
    return f"{text} By that measure {like} about as much alike, so no copying is found."


def likeness(found: Mapping[str, Any], word: str) -> str:
    """Whether drawings of a ``word`` show the subject of the pictures, as far as vectors can say it."""
    before, after = found["before"], found["after"]
    if found["by"] == HASH.name or not after["pictures"]:
        return (
            f"Without DINOv2, which --copies-with names, no number says whether {word} is drawn. Look: is it the same "
            "one as in these photos, in places that no photo shows?"
        )
    return (
        f"By {found['by']}, {after['as_near_as_own']} of {count(after['pictures'], 'drawing')} of {word} are as near "
        f"to a photo as photos are to each other (before the training {before['as_near_as_own']}). That is a hint: "
        "look whether it is the same one, in places that no photo shows."
    )


def read_folder(folder: Path, names: Sequence[str]) -> LazyPictures:
    """Pictures by their names in a folder."""
    from mapo.pairs.pictures import decode_picture

    return LazyPictures(names, lambda name: decode_picture((folder / name).read_bytes()))
