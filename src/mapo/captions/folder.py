"""The captions of a folder of pictures: of a list, else of the text beside the picture, else of its metadata."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mapo.captions.beside import (
    files_of,
    in_order,
    lists_of,
    named,
    read_list,
    some,
    stem_of,
    text_of,
    texts_beside,
    told_absent,
)
from mapo.captions.clean import clean_caption
from mapo.captions.given import GIVEN, LIST, read_given
from mapo.captions.ledger import Caption
from mapo.captions.metadata import told_in
from mapo.captions.programs.told import OddMetadata
from mapo.errors import MapoError
from mapo.files import inside
from mapo.pairs.pictures import ENDS

LOG = logging.getLogger(__name__)

BESIDE, METADATA = "beside", "metadata: "


@dataclass(frozen=True)
class Folder:
    """What a folder says of its pictures."""

    pictures: list[str]  # by their paths in the folder, in the order of their names
    captions: dict[str, Caption]
    without: dict[str, str]  # pictures without a caption, and why, where there is more to say
    passed_over: int  # files of other kinds
    absent: list[str]  # a sentence for each list that names pictures which are not there


def read_captions(folder: Path, *, raw: bool = False) -> list[Caption]:
    """The caption of every picture of a folder. MapoError names those that have none.

    ``raw``: captions stay as they were written, with weights and style words.
    """
    found = look_in(folder, raw=raw)
    for said in found.absent:
        LOG.warning(f"{said}. Nothing is made of them.")
    refuse_silent(folder, found.without, found.captions.values())
    return [found.captions[name] for name in found.pictures]


def of_file(folder: Path, file: Path, *, raw: bool = False) -> list[Caption]:
    """The captions of a file, without those that are left out; MapoError where a picture is gone."""
    given = read_given(file, folder, files_of(folder, "a folder of pictures"), partial(made, raw=raw))
    kept = [one for one in given.captions.values() if one.keep]
    if given.absent:
        raise MapoError(f"{told_absent(file, given.absent)}. Give `mapo caption` again, or take their lines out.")
    refuse_silent(folder, {}, kept)
    return kept


def look_in(folder: Path, *, raw: bool = False, but: Path | None = None, given: Path | None = None) -> Folder:
    """What is said of the pictures of a folder, and of which nothing is.

    What the file ``given`` says comes before all else. ``but`` is a list that is not asked.
    """
    files = files_of(folder, "a folder of pictures")
    _refuse_linked_folders(folder)
    own = [path.resolve() for path in (but, given) if path is not None]
    files = {name: path for name, path in files.items() if (folder / path).resolve() not in own}
    pictures = sorted((name for name in files if name.lower().endswith(ENDS)), key=in_order)
    if not pictures:
        raise MapoError(f"{folder} has no pictures. Name a folder of pictures, such as .png, .jpg and .webp.")
    said: dict[str, tuple[str, str]] = {}
    used = {files[name] for name in pictures}
    absent: list[str] = []
    captions: dict[str, Caption] = {}
    if given is not None:
        found = read_given(given, folder, files, partial(made, raw=raw))
        captions = found.captions
        absent += [told_absent(given, found.absent)] if found.absent else []
    for name in lists_of(folder, files):
        used.add(files[name])
        listed = read_list(folder, name, files)
        absent += [told_absent(folder / files[name], listed.absent)] if listed.absent else []
        for one in listed.found:
            said[one.file] = one.prompt, LIST
    texts, owners = texts_beside(folder, files, pictures)
    for stem, picture in owners.items():
        if stem in texts:
            used.update(files[name] for name in texts[stem])
            if files[picture] not in said and (text := text_of(folder, [files[name] for name in texts[stem]])[0]):
                said[files[picture]] = text, BESIDE
    without: dict[str, str] = {}
    for path in (files[name] for name in pictures if files[name] not in captions):
        text, source = said.get(path) or _of_metadata(folder, path, without)
        if text:
            captions[path] = Caption(path, made(text, source, raw=raw), source, text)
    return Folder([files[name] for name in pictures], captions, without, len(files) - len(used), absent)


def made(text: str, source: str, *, raw: bool = False) -> str:
    """The caption that becomes of a text from there."""
    if source.startswith(GIVEN):
        return text
    return " ".join(text.split()) if raw else clean_caption(text, of_program=source.startswith(METADATA))


def _of_metadata(folder: Path, path: str, without: dict[str, str]) -> tuple[str, str]:
    """The prompt in a picture and its program; where there is none it is noted in ``without``, with the reason."""
    try:
        told = told_in(inside(folder, path, str(folder)))
    except OddMetadata as error:
        without[path] = str(error)
        return "", ""
    except OSError as error:
        raise MapoError(
            f"{folder / path} cannot be read ({error.strerror or error}). Mend it, or take it out."
        ) from None
    if told is None:
        without[path] = ""
        return "", ""
    return told.prompt, METADATA + told.program


def refuse_silent(folder: Path, without: Mapping[str, str], captions: Iterable[Caption]) -> None:
    """MapoError names the pictures that have no caption, and those whose caption is of style words alone."""
    if without:
        reasons: dict[str, list[str]] = {}
        for name, why in without.items():
            reasons.setdefault(why, []).append(name)
        shown = [f"{named(names)} ({why})" if why else named(names) for why, names in reasons.items()]
        example = stem_of(next(iter(without)))
        raise MapoError(
            f"{folder}: {some(without, 'picture has', 'pictures have')} no caption: {named(shown)}. Write it into a "
            f"text of the same name beside the picture, such as {example}.txt, or let a model write it with "
            "--caption-with."
        )
    empty = [one for one in captions if one.keep and not one.caption]
    if empty:
        shown = [f"{one.file} (“{one.raw[:60]}”)" for one in empty]
        raise MapoError(
            f"{folder}: of {some(shown, 'caption', 'captions')} nothing is left without style words and weights: "
            f"{named(shown)}. Say what the pictures show, or take captions as they are with --raw."
        )


def _refuse_linked_folders(folder: Path) -> None:
    """What lies behind a link to a folder would be passed over in silence."""
    for place, below, _ in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in below:
            if (path := Path(place, name)).is_symlink():
                raise MapoError(
                    f"{path} is a link to a folder, which is not followed. Put the pictures themselves there, or take "
                    "the link out."
                )
