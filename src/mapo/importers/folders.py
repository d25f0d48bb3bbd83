"""Two folders, ``chosen/`` and ``rejected/`` (or ``w/`` and ``l/``), with pictures of equal names.

Each name has its prompt in a file of one line, ``NAME.txt`` or ``NAME.caption``, beside either picture or both; what
becomes of several lines is said by ``--captions``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mapo.errors import MapoError
from mapo.files import inside, read_text
from mapo.importers import BadRow, Options, RawPair, captions
from mapo.importers.sources import Source, picture_at

NAMES = (("chosen", "rejected"), ("w", "l"))
CAPTIONS = (".txt", ".caption")
File = tuple[str, str, str]  # name without its end, side, path below the source


def detects(source: Source) -> bool:
    """A folder that holds one of the four folders."""
    return source.path is not None and any((source.path / side).is_dir() for sides in NAMES for side in sides)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """A pair per name, in the order of the names; files whose names begin with a dot are left alone."""
    root = source.path
    sides = next((s for s in NAMES if root is not None and any((root / side).is_dir() for side in s)), None)
    if root is None or sides is None:
        raise MapoError(f"{source.name} has no folders chosen and rejected, or w and l.")
    for side in sides:
        if not (root / side).is_dir():
            raise MapoError(f"{source.name} has no folder {side} beside the other one.")
    seen = 0
    for name, found in itertools.groupby(_files(root, sides), key=lambda file: file[0]):
        seen += 1
        if seen <= start:
            continue
        try:
            yield [*_pairs(root, name, sides, list(found), options.captions)]
        except ValueError as error:
            yield [BadRow(name, str(error))]
    if not seen:
        raise MapoError(f"{source.name} is empty: {sides[0]} and {sides[1]} hold no files.")


def _files(root: Path, sides: tuple[str, str]) -> Iterator[File]:
    """All files, sorted by name; sorted on disk, so that memory does not grow with their number."""
    with contextlib.closing(sqlite3.connect("")) as names:
        names.execute("CREATE TABLE files (name TEXT, side TEXT, path TEXT)")
        for side in sides:
            for folder, below, files in os.walk(root / side, onerror=_raise):
                below[:] = [b for b in below if not b.startswith(".")]
                where = Path(folder).relative_to(root / side)
                names.executemany(
                    "INSERT INTO files VALUES (?, ?, ?)",
                    (
                        (os.fsencode(where / Path(f).stem), side, os.fsencode(Path(side, where, f)))
                        for f in files
                        if not f.startswith(".")
                    ),
                )
        for name, side, path in names.execute("SELECT * FROM files ORDER BY name, side, path"):
            yield os.fsdecode(name), side, os.fsdecode(path)


def _raise(error: OSError) -> None:
    raise error


def _pairs(root: Path, name: str, sides: tuple[str, str], files: list[File], several: str | None) -> list[RawPair]:
    """The pair of a name, or one for each of its captions."""
    data: list[bytes] = []
    texts: dict[str, str] = {}
    for side in sides:
        own = [path for _, where, path in files if where == side]
        pictures = [path for path in own if Path(path).suffix.lower() not in CAPTIONS]
        if len(pictures) != 1:
            raise ValueError(f"{side} has {len(pictures) or 'no'} pictures of this name, it needs one")
        data.append(picture_at(root, pictures[0]))
        texts |= {path: _caption(root, path) for path in own if path not in pictures}
    if not texts:
        raise ValueError(f"there is no caption ({' or '.join(f'{name}{end}' for end in CAPTIONS)}) in either folder")
    if len(set(texts.values())) > 1:
        raise ValueError(f"its captions differ ({', '.join(texts)})")
    chosen, rejected = data
    path, text = next(iter(texts.items()))
    count = text.count("\n") + 1
    prompts = (
        [text] if count == 1 else captions.choose(text.split("\n"), several, f"the caption {path} has {count} lines")
    )
    group = name if len(prompts) > 1 else None
    return [RawPair(name, prompt, chosen, rejected, group=group, meta={"file": name}) for prompt in prompts]


def _caption(root: Path, path: str) -> str:
    """The text of a caption file; line ends behind it do not count."""
    try:
        place = inside(root, path, "x")
        if not place.is_file():  # a pipe would be waited for
            raise OSError(0, "it is no file")
        return read_text(place).rstrip("\r\n")
    except MapoError as error:
        raise ValueError(str(error).removeprefix("x: ")) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"the caption {path} cannot be read ({getattr(error, 'strerror', error)})") from None
