"""Two folders, ``chosen/`` and ``rejected/`` (or ``w/`` and ``l/``), with pictures of equal names.

Each name has its prompt in a file of one line, ``NAME.txt`` or ``NAME.caption``, beside either picture or both; what
becomes of several lines is said by ``--captions``. What other programs leave there is passed over and counted.

The two may also lie in folders that are named by splits (``train/chosen``), or have such folders (``chosen/train``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mapo.errors import MapoError
from mapo.files import locate
from mapo.importers.containers import captions as several_captions
from mapo.importers.sources import Source, picture_at
from mapo.importers.splits import NAMES as SPLIT_NAMES
from mapo.importers.splits import split_named
from mapo.importers.types import BadRow, Options, RawPair
from mapo.pairs.pictures import CAPTION_ENDS, ENDS
from mapo.texts import read_text

NAMES = (("chosen", "rejected"), ("w", "l"))
MASKS = ("-masklabel", "-condlabel")  # NAME-masklabel.png, which trainers keep beside NAME.png
OF_SYSTEMS = {name.lower(): name for name in ("Thumbs.db", "desktop.ini", "@eaDir", ".DS_Store")}
KINDS_SHOWN = 6
Place = tuple[str | None, tuple[str, ...]]  # the split that a folder is named by, and the two folders in it
File = tuple[str, str, str]  # name without its end, folder, path below the source


def detects(source: Source) -> bool:
    """A folder that holds one of the four folders, or folders of splits that do."""
    return source.path is not None and bool(_places(source.path))


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
    """A pair per name, in the order of the names."""
    root = source.path
    places = _places(root) if root is not None else []
    if root is None or root.is_file():
        what = "is a file" if root else "is on the hub"
        raise MapoError(
            f"{source.name} {what}; the format folders is a folder here, with chosen/ and rejected/, or w/ and l/."
        )
    if not places:
        raise MapoError(f"{source.name}/ has no folders chosen/ and rejected/, or w/ and l/.{elsewhere(root)}")
    for _, sides in places:
        if len(sides) == 1:
            side = PurePosixPath(sides[0])
            there = side.name.lower()
            lacks = next(name for names in NAMES if there in names for name in names if name != there)
            raise MapoError(f"{source.name}/ has a folder {side}/ but no folder {side.with_name(lacks)}/ beside it.")
    passed_over: Counter[str] = Counter()
    seen = 0
    for split, sides in places:
        for name, found in itertools.groupby(_files(root, sides, passed_over), key=lambda file: file[0]):
            seen += 1
            if seen <= start:
                continue
            try:
                pairs = _pairs(root, name, sides, list(found), options.captions)
                yield [replace(pair, split=split or _split_in(name)) for pair in pairs]
            except ValueError as error:
                yield [BadRow("", str(error))]
    if not seen:
        also = f" ({_told(passed_over)})" if passed_over else ""
        raise MapoError(f"{source.name}/ is empty: {sides[0]}/ and {sides[1]}/ hold no pictures{also}.")
    if passed_over:
        source.notes.append(_told(passed_over))
    source.notes.extend(_unread(root, places))


def _places(root: Path) -> list[Place]:
    """Where the two folders lie: in ``root`` itself, and in folders of splits; as they are written, below ``root``."""
    places: list[Place] = [(None, sides)] if (sides := _sides(root)) else []
    inner = {name: tuple(f"{name}/{side}" for side in _sides(root / name)) for name in _below(root)}
    if any(sides and split_named(name) for name, sides in inner.items()):
        places += [(name, sides) for name, sides in inner.items() if sides]
    return places


def _sides(folder: Path) -> tuple[str, ...]:
    """Those of ``chosen`` and ``rejected``, else of ``w`` and ``l``, that a folder has, as they are written there."""
    there = {name.lower(): name for name in _below(folder)}
    for sides in NAMES:
        if found := tuple(there[side] for side in sides if side in there):
            return found
    return ()


def _unread(root: Path, places: list[Place]) -> list[str]:
    """A sentence where ``w`` or ``l`` lie beside ``chosen`` and ``rejected``, which come first."""
    found = []
    for split, sides in places:
        there = [f"{split}/{name}" if split else name for name in _below(root / (split or ""))]
        if others := [name for name in there if PurePosixPath(name).name.lower() in NAMES[1] and name not in sides]:
            named, first = (" and ".join(f"{name}/" for name in names) for names in (others, sides))
            found.append(f"did not read {named}, as {first} are there; import them by themselves from another folder")
    return found


def _below(folder: Path) -> list[str]:
    """The folders in a folder that are not hidden, in the order of their names."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if Path(entry).is_dir() and not entry.name.startswith("."))


def _split_in(name: str) -> str | None:
    """The split that the first folder of a pair's name is called by, if by nothing else."""
    first, _, rest = name.partition("/")
    return first if rest and first.lower() in SPLIT_NAMES else None


def elsewhere(root: Path) -> str:
    """A sentence about folders in ``root`` that hold the two folders; none where there is no such folder."""
    there = [name for name in _below(root) if _places(root / name)]
    if not there:
        return ""
    if len(there) == 1:
        return f" {there[0]}/ in it has: import {root / there[0]}."
    names = ", ".join(f"{name}/" for name in there[:KINDS_SHOWN]) + (" …" if len(there) > KINDS_SHOWN else "")
    return f" {names} in it have: import each by itself, or put their pictures into one chosen/ and one rejected/."


def _files(root: Path, sides: tuple[str, ...], passed_over: Counter[str]) -> Iterator[File]:
    """Pictures and captions, sorted by name; sorted on disk, so that memory does not grow with their number."""
    with contextlib.closing(sqlite3.connect("")) as names:
        names.execute("CREATE TABLE files (name TEXT, side TEXT, path TEXT)")
        for side in sides:
            for folder, below, files in os.walk(root / side, onerror=_raise):
                where = Path(folder).relative_to(root / side)
                kinds = {name: _kind_of_folder(Path(folder, name)) for name in below}
                below[:] = [name for name in below if not kinds[name]]
                kinds |= {name: _kind(name) for name in files}
                passed_over.update(kind for kind in kinds.values() if kind)
                names.executemany(
                    "INSERT INTO files VALUES (?, ?, ?)",
                    (
                        (
                            os.fsencode(_name(Path(side).parent / where / file)),
                            side,
                            os.fsencode(Path(side, where, file)),
                        )
                        for file in files
                        if not kinds[file]
                    ),
                )
        for name, side, path in names.execute("SELECT * FROM files ORDER BY name, side, path"):
            yield os.fsdecode(name), side, os.fsdecode(path)


def _raise(error: OSError) -> None:
    raise error


def _name(path: Path) -> str:
    """What the files of a pair have in common, however a system codes accents."""
    return unicodedata.normalize("NFC", str(path.parent / path.stem))


def _kind(name: str) -> str:
    """What is passed over; nothing for a picture or a caption."""
    stem, end = os.path.splitext(name.lower())  # noqa: PTH122 (of a mere name)
    if known := OF_SYSTEMS.get(name.lower()):
        return known
    if name.startswith("."):
        return "hidden"
    if end in ENDS and stem.endswith(MASKS):
        return "masks"
    return "" if end in ENDS or end in CAPTION_ENDS else end or "without an ending"


def _kind_of_folder(path: Path) -> str:
    if path.name.startswith(".") or path.name.lower() in OF_SYSTEMS:
        return OF_SYSTEMS.get(path.name.lower(), "hidden")
    return "linked folders" if path.is_symlink() else ""


def _told(passed_over: Counter[str]) -> str:
    kinds = [f"{count} {kind}" for kind, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))]
    if len(kinds) > KINDS_SHOWN:
        kinds[KINDS_SHOWN:] = [f"{len(kinds) - KINDS_SHOWN} other kinds"]
    count = passed_over.total()
    return f"passed over {count} file{'s' * (count > 1)}: {', '.join(kinds)}"


def _pairs(root: Path, name: str, sides: tuple[str, ...], files: list[File], several: str | None) -> list[RawPair]:
    """The pair of a name, or one for each of its captions."""
    captions = [path for _, _, path in files if Path(path).suffix.lower() in CAPTION_ENDS]
    pictures = {side: [path for _, where, path in files if where == side and path not in captions] for side in sides}
    if not any(pictures.values()):
        raise ValueError(f"{captions[0]} is a caption without a picture")
    for side, other in (sides, sides[::-1]):
        if len(pictures[side]) > 1:
            raise ValueError(f"{' and '.join(pictures[side])} have one name; a pair needs one picture of it in {side}/")
        if not pictures[other]:
            raise ValueError(f"{pictures[side][0]} has no partner in {other}/")
    chosen, rejected = (picture_at(root, pictures[side][0]) for side in sides)
    prompts = {path: _caption(root, path) for path in captions}
    if not prompts:
        stem = Path(name).name
        raise ValueError(f"{pictures[sides[0]][0]} has no caption ({stem}.txt or {stem}.caption, in either folder)")
    if len(set(prompts.values())) > 1:
        raise ValueError(f"the captions {' and '.join(captions)} differ")
    lines = prompts[captions[0]].split("\n")
    if not prompts[captions[0]].strip():
        raise ValueError(f"the prompt is empty: {captions[0]} holds no text")
    if len(lines) > 1:
        lines = several_captions.choose(lines, several, f"the caption {captions[0]} has {len(lines)} lines")
    pair = RawPair(name, lines[0], chosen, rejected, meta={"file": name})
    return [pair] if len(lines) == 1 else [replace(pair, prompt=p, group=name, split_as=lines[0]) for p in lines]


def _caption(root: Path, path: str) -> str:
    """The text of a caption file; line ends behind it do not count."""
    place = locate(root, path)
    try:
        if not place.is_file():  # a pipe would be waited for
            raise OSError(0, "it is not a file")
        return read_text(place).rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"the caption {path} cannot be read ({getattr(error, 'strerror', error)})") from None
