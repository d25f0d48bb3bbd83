"""A file of captions that somebody names: one that `mapo caption` wrote, or any list of pictures and prompts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mapo.captions.beside import FILE, JSON_LINES, LISTS, PROMPT, Files, columns_of, read_rows
from mapo.captions.ledger import FIELDS, Caption, read_ledger
from mapo.errors import MapoError

LIST, GIVEN = "list", "given: "


@dataclass(frozen=True)
class Given:
    """The captions by their pictures, as the disk has their names, and the pictures that are not there."""

    captions: dict[str, Caption]
    absent: list[str]


def read_given(file: Path, folder: Path, files: Files, made: Callable[[str, str], str]) -> Given:
    """What a file says of the pictures of ``folder``, where its paths begin; MapoError names the line that is wrong.

    Captions that `mapo caption` wrote stay as they are. Of a list they are ``made(prompt, source)``.
    """
    if not file.is_file():
        raise MapoError(f"--captions: there is no file {file}. Name one that `mapo caption` wrote, or a list.")
    if _is_list(file):
        listed = read_rows(file, folder, _home(file, folder), files)
        prompts = {one.file: one.prompt for one in listed.found}
        return Given({n: Caption(n, made(said, LIST), LIST, said) for n, said in prompts.items()}, listed.absent)
    captions, absent = dict[str, Caption](), list[str]()
    for name, one in read_ledger(file).items():
        path = files.get(unicodedata.normalize("NFC", name))
        if path is None:
            absent.append(name)
        else:
            captions[path] = replace(one, file=path, source=f"{GIVEN}{file.name}", raw=one.caption)
    return Given(captions, absent)


def _is_list(file: Path) -> bool:
    """Whether a file has a column of pictures and one of prompts, and is not one that `mapo caption` wrote."""
    if not file.name.lower().endswith(LISTS):
        return False
    try:
        columns = set(columns_of(file))
    except (OSError, ValueError) as error:
        raise MapoError(f"{file} cannot be read ({error}). Mend it, or name another file.") from None
    listed = not columns.isdisjoint(FILE) and not columns.isdisjoint(PROMPT)
    if file.name.lower().endswith(JSON_LINES):
        return listed and not columns <= FIELDS.keys()
    if not listed:
        found = ", ".join(sorted(columns)) or "nothing"
        raise MapoError(f"{file} has no column of pictures (file_name) and one of prompts (prompt). It has {found}.")
    return True


def _home(file: Path, folder: Path) -> PurePosixPath:
    """Where the paths of a list begin: at the list, where it lies in the folder, else at the folder."""
    place, root = file.resolve().parent, folder.resolve()
    return PurePosixPath(place.relative_to(root).as_posix()) if place.is_relative_to(root) else PurePosixPath(".")
