"""The rows of a source, whatever files hold them: Parquet, save_to_disk, lines of JSON, CSV or tar."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mapo.errors import MapoError
from mapo.importers.containers import arrow, captions, lines, tables, tars
from mapo.importers.containers.shape import SPLIT, Cursor, File, Row, Shape, Where
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, RawPair

KINDS = (arrow.files, tables.files, tars.files, lines.files)  # in a folder that holds several, the first that fits
NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?(\.[\w.]+)", re.DOTALL)  # some have a hash behind it
Item = RawPair | BadRow | LeftOut


def kinds_of(source: Source) -> list[tuple[list[File], list[str] | None]]:
    """The files of rows that ``source`` holds, kind by kind, and the columns of the first of each kind."""
    if "kinds" not in source.seen:
        found: list[list[File]] = []
        for find in KINDS:
            if not (source.hub and found) and (files := find(source)):  # the hub is asked no more than it takes
                found.append(files)
        source.seen["kinds"] = [(files, files[0].columns()) for files in found]
    kinds: list[tuple[list[File], list[str] | None]] = source.seen["kinds"]
    return kinds


def has(source: Source, shape: Shape, of_json: bool | None = None) -> bool:
    """Whether files of one kind have all columns of one of the forms; ``of_json``: only such files, or only others."""
    shape = replace(shape, names=source.columns)
    return any(
        not shape.missing(columns)
        for files, columns in kinds_of(source)
        if columns and of_json in (None, isinstance(files[0], lines.JsonFile))
    )


def read(source: Source, shape: Shape, start: int = 0) -> Iterator[tuple[Where, Row] | BadRow]:
    """Each row from number ``start`` on, with our names for its columns."""
    shape = replace(shape, names=source.columns)
    kinds = kinds_of(source)
    if not kinds:
        raise MapoError(no_files(source))
    files = next((files for files, columns in kinds if columns and not shape.missing(columns)), kinds[0][0])
    _refuse_gaps(source, files)
    cursor = Cursor(start)
    for file in files:
        yield from file.read(shape, cursor)
    if not cursor.seen:
        raise MapoError(f"{source.name} is empty: {files[0].empty}.")


def rows_in(source: Source) -> int | None:
    """How many rows the files of a source have, where their beginnings or ends on this machine tell; else None."""
    kinds = source.seen.get("kinds") or []  # as has() found them; other sources have no files of rows
    if len(kinds) != 1 or source.path is None:
        return None
    counts = [file.count() if isinstance(file, tables.Table) else None for file in kinds[0][0]]
    return None if None in counts else sum(n for n in counts if n is not None)


def _refuse_gaps(source: Source, files: list[File]) -> None:
    """MapoError where files named 00000-of-00003 are not all there; a file that was named by itself may stand alone."""
    named = (
        source.pattern or (source.path and source.path.is_file()) or str(source.hub).endswith((".parquet", *tars.ENDS))
    )
    if named and len(files) == 1:
        return
    seen: dict[tuple[str, str, str], set[int]] = {}
    for file in files:
        if match := NUMBERED.fullmatch(str(file.place)):
            seen.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (stem, count, end), numbers in seen.items():
        first = int(int(count) in numbers)  # some count from 1
        if gaps := sorted({*range(first, first + int(count))} - numbers):
            name = f"{Path(stem).name}-{gaps[0]:05d}-of-{count}{end}"
            more = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
            raise MapoError(f"{source.name} is not whole: it lacks {name}{more}. Fetch it, or rename what is there.")


def rows(
    source: Source,
    shape: Shape,
    convert: Callable[[Row, Where], list[RawPair] | RawPair | LeftOut],
    start: int = 0,
    several: str | None = None,
) -> Iterator[list[Item]]:
    """What ``convert`` makes of each row from number ``start`` on; its ValueErrors become bad rows.

    ``several`` says what is done with a list of captions (see captions.py).
    """
    for item in read(source, shape, start):
        if isinstance(item, BadRow):
            yield [item]
            continue
        where, row = item
        split = row.pop(SPLIT, None)
        split = where.split if split is None else str(split)
        try:
            made = [convert(single, where) for single in captions.each_row(row, several, where)]
        except ValueError as error:
            yield [BadRow(where.text, str(error))]
            continue
        items = [item for some in made for item in (some if isinstance(some, list) else [some])]
        first = next((item.prompt for item in items if isinstance(item, RawPair)), None) if len(made) > 1 else None
        yield [replace(item, split=split, split_as=first) if isinstance(item, RawPair) else item for item in items]


def passed_over(source: Source, shape: Shape) -> str | None:
    """What is said of files of other kinds that have the columns too and are not read; None: there are none."""
    shape = replace(shape, names=source.columns)
    fit = [files for files, columns in kinds_of(source) if columns and not shape.missing(columns)]
    if len(fit) < 2:
        return None
    others = ", ".join(files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "") for files in fit[1:])
    return f"{source.name} has rows in {fit[0][0].name} and in {others}; only those like the first are read."


def no_files(source: Source) -> str:
    """What is said of a source without rows."""
    if several := lines.candidates(source):
        names = ", ".join(path.name for path in several[:5]) + (" …" if len(several) > 5 else "")
        return (
            f"{source.name} holds {len(several)} files that could be meant ({names}). Name one of them, or several by "
            f"a pattern in quotes such as '{several[0].parent}/*{several[0].suffix}'."
        )
    return f"{source.name} holds no Parquet files, and no JSON lines, CSV, tar or save_to_disk folder either."
