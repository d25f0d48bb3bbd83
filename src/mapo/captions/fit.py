"""Whether a folder of pictures and captions can be learned from: refusals in a sentence, before anything is drawn."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mapo import progress
from mapo.captions.beside import named, some
from mapo.captions.clean import style_words
from mapo.captions.ledger import Caption
from mapo.errors import MapoError, count
from mapo.files import inside, sha256
from mapo.pairs.pictures import decode_picture

LOG = logging.getLogger(__name__)

FEWEST = 5


def refuse_unfit(
    folder: Path, captions: Sequence[Caption], *, fewest: int = FEWEST, side: int = 0, styled: bool = False
) -> None:  # fmt: skip
    """MapoError where the pictures and captions that are kept cannot be learned from.

    Every picture is decoded. ``fewest`` pictures must be different; each must have ``side`` pixels on both sides. All
    captions may say a style only where that is meant (``styled``).
    """
    kept = [one for one in captions if one.keep]
    _refuse_few(folder, len(kept), fewest)
    if not styled:
        refuse_style_in_every_line(folder, kept)
    looked = look(folder, [one.file for one in kept])
    sizes = {name: size for name, (size, _) in looked.items()}
    if small := [f"{name} ({w} × {h})" for name, (w, h) in sizes.items() if min(w, h) < side]:
        raise MapoError(
            f"{folder}: {some(small, 'picture has', 'pictures have')} fewer than {side} pixels on a side: "
            f"{named(small)}. Put larger ones there, or take them out."
        )
    _refuse_copies(folder, {name: pixels for name, (_, pixels) in looked.items()}, fewest)


def _refuse_few(folder: Path, number: int, fewest: int) -> None:
    if number < fewest:
        raise MapoError(
            f"{folder} has {count(number, 'picture')} with a caption, and {fewest} is the least to learn from. Add "
            "more."
        )


def _refuse_copies(folder: Path, hashes: dict[str, str], fewest: int) -> None:
    """Copies are the same pixels, whatever the file. Few different pictures are refused, other copies are told."""
    alike: dict[str, list[str]] = {}
    for name, found in hashes.items():
        alike.setdefault(found, []).append(name)
    copies = [names for names in alike.values() if len(names) > 1]
    if len(alike) < fewest:
        most = max(alike.values(), key=len)
        raise MapoError(
            f"{folder} has {count(len(hashes), 'picture')}, of which {len(alike)} {'is' if len(alike) == 1 else 'are'} "
            f"different: {most[0]} is there {len(most)} times ({named(most[1:])}). {fewest} different pictures are the "
            "least to learn from. Add more."
        )
    for names in copies[:FEWEST]:
        LOG.warning(f"{folder}: {named(names)} are the same picture, which then counts {len(names)} times.")


def look(folder: Path, names: Sequence[str]) -> dict[str, tuple[tuple[int, int], str]]:
    """The size (width, height) and the hash of the pixels of each picture; MapoError names those that are damaged."""

    def seen(name: str) -> str | tuple[tuple[int, int], str]:
        try:
            picture = decode_picture(inside(folder, name, str(folder)).read_bytes())
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)
        return picture.size, sha256(b"%d %d " % picture.size + picture.tobytes())

    found: dict[str, tuple[tuple[int, int], str]] = {}
    damaged: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.bar(total=len(names), desc="look", unit="picture") as bar:
        for name, said in zip(names, pool.map(seen, names), strict=True):
            if isinstance(said, str):
                damaged.append(f"{name} ({said})")
            else:
                found[name] = said
            bar.update()
    if damaged:
        raise MapoError(
            f"{folder}: {some(damaged, 'picture is', 'pictures are')} damaged: {named(damaged)}. Put whole ones there, "
            "or take them out."
        )
    return found


def told_of_style(captions: Iterable[Caption]) -> list[str]:
    """That some captions say style words, so that a person may take them out; nothing where none does."""
    found = {one.file: sorted(style_words(one.caption)) for one in captions if one.keep}
    shown = [f"{name} ({', '.join(f'“{word}”' for word in words)})" for name, words in found.items() if words]
    if not shown:
        return []
    return [
        f"{some(shown, 'caption says', 'captions say')} how the picture is drawn: {named(shown)}. The model then "
        "learns it as what these words mean. Take them out, unless the picture shows them."
    ]


def refuse_style_in_every_line(folder: Path, captions: Iterable[Caption]) -> None:
    """MapoError where all captions say the same style words: a model then learns that these words mean the style."""
    kept = [one for one in captions if one.keep]
    shared = set.intersection(*(style_words(one.caption) for one in kept)) if kept else set()
    if shared:
        words = ", ".join(f"“{word}”" for word in sorted(shared))
        raise MapoError(
            f"{folder}: all {len(kept)} captions say {words}. The model would learn to draw so where a prompt says it, "
            "and it then has nothing to learn from plain prompts. Take these words out of the captions, or leave --raw "
            "out."
        )
