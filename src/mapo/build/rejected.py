"""Pairs of pictures that people have on both sides: a folder of chosen ones, and a folder of rejected ones.

The rejected picture of ``more/1.png`` is the one with the same path in its own folder, whatever its ending:
``more/1.png`` or ``more/1.jpg``. Both are cut to the frame of the chosen one, and lie in the set as PNG files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapo.build.against import Own, frames_for, held_out, size_of
from mapo.build.framed import in_frame
from mapo.captions.beside import files_of, in_order, named, some, stem_of
from mapo.encode.frame import Frame
from mapo.errors import MapoError
from mapo.models import find_model
from mapo.pairs.pairs import PairWriter
from mapo.pairs.pictures import ENDS
from mapo.pairs.splits import prompt_id
from mapo.shards import refuse_existing


def rejected_of(pictures: Sequence[Own], folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The rejected picture of each chosen one by its name, and the names of those that nobody asked for.

    MapoError names the chosen pictures that have none, and two rejected ones that only differ in their ending.
    """
    files = files_of(folder, "a folder of rejected pictures")
    found: dict[str, str] = {}
    for name in sorted((name for name in files if name.lower().endswith(ENDS)), key=in_order):
        if (before := found.setdefault(stem_of(name), name)) != name:
            raise MapoError(f"{folder}: {before} and {name} have one name. Keep one of them.")
    if lonely := [one.name for one in pictures if stem_of(one.name) not in found]:
        raise MapoError(
            f"{some(lonely, 'picture has', 'pictures have')} no rejected one of the same name in {folder}: "
            f"{named(lonely)}. Put it there, as {stem_of(lonely[0])}.png or with another ending, or leave the picture "
            'out with "keep": false in its line of the captions.'
        )
    used = {one.name: found[stem_of(one.name)] for one in pictures}
    paths = {name: folder / files[other] for name, other in used.items()}
    return paths, [name for name in found.values() if name not in used.values()]


def refuse_within(chosen: Path, rejected: Path) -> None:
    """MapoError where one of the two folders lies in the other: its pictures would be taken for the other's."""
    one, other = chosen.resolve(), rejected.resolve()
    if one == other:
        raise MapoError(f"--rejected {rejected} is the folder of the chosen pictures. Name another.")
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise MapoError(f"--rejected: of {chosen} and {rejected} one lies in the other. Put them beside each other.")


def told_unused(folder: Path, unused: Sequence[str]) -> str:
    """That a folder of rejected pictures has some without a chosen one."""
    return f"{folder} has {some(unused, 'picture', 'pictures')} without a chosen one, not used: {named(unused)}."


def build_beside(
    pictures: Sequence[Own], rejected: Mapping[str, Path], model: str, out: Path, *, resolution: int | None = None,
    **told: Any,
) -> dict[str, int]:  # fmt: skip
    """Make the set ``out``: a pair of each picture and its rejected one, in the frames of ``model``. Nothing is drawn.

    The model is ``told`` of what :func:`mapo.models.find_model` may be told. The counts are those of
    :func:`mapo.build.against.build_against`. MapoError where a picture is damaged, too small for its frame, or the same
    on both sides.
    """
    refuse_existing(out)
    files = find_model(model, weights=False, **told)
    frames = frames_for(pictures, files, resolution)
    _refuse_small([(rejected[one.name], frame) for one, frame in zip(pictures, frames, strict=True)])
    split = held_out(pictures)
    made: dict[str, Any] = {"made": "pictures that somebody has, chosen and rejected", "frames_of": files.stable_name}
    with PairWriter(out, made) as writer:
        for one, frame in zip(pictures, frames, strict=True):
            path = rejected[one.name]
            sides = in_frame(one.path, frame), in_frame(path, frame)
            if sides[0] == sides[1]:
                raise MapoError(f"{one.path} and {path} are the same picture. A rejected one has to be another.")
            meta = {"file": one.name, "rejected_file": path.name}
            writer.add_pair(one.caption, *sides, split=split[prompt_id(one.caption)], meta=meta)
        pairs = writer.count
    held = sum(name != "train" for name in split.values())
    return {"pairs": pairs, "pictures": len(pictures), "frames": len(set(frames)), "held_out": held}


def _refuse_small(pictures: Sequence[tuple[Path, Frame]]) -> None:
    sizes = [(path, size_of(path), frame) for path, frame in pictures]
    small = [f"{p} ({w} × {h})" for p, (w, h), frame in sizes if 2 * w < frame.width or 2 * h < frame.height]
    if small:
        raise MapoError(
            f"{some(small, 'rejected picture has', 'rejected pictures have')} less than half the size of the chosen "
            f"one's frame: {named(small)}. Put larger ones there, or take a smaller resolution."
        )
