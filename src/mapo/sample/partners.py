"""Import with a second folder: good pictures find their rejected partners among those that a model drew."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.importers import import_pairs
from mapo.importers.partners import Folder, Partners, Picture
from mapo.sample.folder import is_sensitive, read_images, read_picture


def import_with_partners(source: str | Path, out: Path, rejected_from: Path | None, **how: Any) -> dict[str, int]:
    """As :func:`mapo.importers.import_pairs`; with ``rejected_from`` both are folders of pictures with their prompts.

    The pictures of ``source`` are then chosen, and those of ``rejected_from`` that have the same prompts are rejected.
    """
    if rejected_from is None:
        return import_pairs(source, out, **how)
    for name in ("format", "columns", "captions"):
        if how.get(name):
            raise MapoError(f"--{name} is for one source. Leave it out with --rejected-from.")
    if Path(source).resolve() == rejected_from.resolve():
        raise MapoError(f"--rejected-from {rejected_from} is the source itself. Name a folder of other pictures.")
    return import_pairs(source, out, partners=Partners(_read(Path(source)), _read(rejected_from)), **how)


def _read(folder: Path) -> Folder:
    """The pictures of a folder, those of a prompt by their seeds, or by their names where these are not known."""
    rows = sorted(read_images(folder), key=lambda row: row.seed)
    if not rows:
        raise MapoError(f"{folder} holds no pictures. Make some with `mapo sample`.")
    found = [Picture(row.file, row.prompt, row.sha256, partial(read_picture, folder, row)) for row in rows]
    return Folder(str(folder), found, is_sensitive(folder))
