"""Prompts to make pictures from: the built-in lists, a file or folder of the user's, or a set on the hub."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mapo.errors import MapoError
from mapo.importers import sources
from mapo.importers.sources import Source, find_source, is_hub_id
from mapo.pairs.schema import check_text
from mapo.pairs.splits import prompt_id
from mapo.texts import decode_text, delimiter_in, parse_row, refuse_twice
from mapo.worlds import WORLDS, find

LOG = logging.getLogger(__name__)

BUILT_IN = {f"{world.name}:{name}": (world, name) for world in WORLDS.values() for name in world.lists}
COLUMNS = ("prompt", "caption")
LIKE_THEM = ("prompt", "prompts", "caption", "captions", "text", "texts")  # in capitals or not, where only one is there
KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")  # of a folder the first kind that it has
FILES = "a .txt, .csv, .tsv, .json, .jsonl or .parquet file"
GIVE = f"Give {FILES}, a pairs set, or mini:test, or owner/name for a set on the hub"


class NoColumn(ValueError):
    """Where there is no column of prompts, or several; ``names`` are those that there are."""

    def __init__(self, says: str, names: Iterable[str]) -> None:
        super().__init__(says)
        self.names = [name for name in names if name]


def read_prompts(source: str) -> list[str]:
    """The prompts of ``source``, in order and without repeats (of two that differ only in case, the first).

    How many repeats were left out is a message.

    ``source`` is a built-in list (``mini:train``, ``mini:test-one``, …), a file, a folder of files, a pairs set, or a
    set on the hub: ``owner/name``, ``hf://owner/name`` or ``hf://owner/name/path`` with a file, folder or pattern.
    Files are ``.txt`` with a prompt a line, ``.jsonl``, ``.ndjson`` or ``.json`` with strings or objects that have
    ``prompt`` or ``caption``, or ``.csv``, ``.tsv`` or ``.parquet`` with such a column. ``Prompts``, ``text`` and the
    like will do where no other can be meant; ``source:COLUMN`` reads any. All prompts of a file come from one column.
    Raises MapoError naming what is not a prompt.
    """
    if source in BUILT_IN:
        world, name = BUILT_IN[source]
        return list(find(world.read_list)(name))
    if source.partition(":")[0] in WORLDS:
        raise MapoError(f"--prompts: there is no built-in list {source!r}. Known: {', '.join(BUILT_IN)}.")
    found, column = _find(source)
    try:
        return _distinct(_read(found, column), found.name)
    except NoColumn as error:
        given = source if column is None else source.rpartition(":")[0]
        raise MapoError(
            f"--prompts: {found.name} {error}. It has {', '.join(error.names[:20]) or 'none'}. Name the one to read "
            f"behind a colon, such as {given}:{next(iter(error.names), 'COLUMN')}."
        ) from None
    except MapoError:
        raise
    except Exception as error:
        if found.hub is None and not isinstance(error, ValueError | OSError):
            raise  # on the hub it may be anything of whatever client its library uses
        copy = ". Where the hub has made a copy in Parquet, it is OWNER/NAME@~parquet" if found.hub else ""
        raise MapoError(f"--prompts: {found.name} cannot be read ({error}){copy}.") from None


def asked_prompts(given: str | Sequence[str]) -> list[str]:
    """The prompts of a source, or those of a list, to which the same rule about repeats applies."""
    return read_prompts(given) if isinstance(given, str) else _distinct(given, "the list")


def _distinct(prompts: Iterable[str], name: str) -> list[str]:
    """Prompts without empty ones and repeats; MapoError where none is left."""
    spellings: dict[str, list[str]] = {}
    for number, prompt in enumerate(map(str.strip, prompts), 1):
        if prompt:
            _check_whole(prompt, number, name)
            spellings.setdefault(prompt_id(prompt), []).append(prompt)
    if not spellings:
        raise MapoError(f"--prompts: {name} holds no prompts.")
    repeated = [same for same in spellings.values() if len(same) > 1]
    if repeated:
        LOG.info(f"{name}: {_repeats(repeated)}")
    return [same[0] for same in spellings.values()]


def _check_whole(prompt: str, number: int, name: str) -> None:
    """MapoError where a prompt is not a text that a file can hold."""
    try:
        check_text(prompt, f"prompt {number}")
    except ValueError as error:
        raise MapoError(f"--prompts: {name} cannot be read: {error}. Write it in UTF-8.") from None


def _repeats(repeated: list[list[str]]) -> str:
    """What there is to say of prompts that occur several times."""
    most = max(map(len, repeated))
    times = "twice" if most == 2 else f"{most} times" if len(repeated) == 1 else "several times"
    if len(repeated) == 1:
        said = f"1 prompt occurs {times}; it is used once."
    else:
        said = f"{len(repeated)} prompts occur {times}; each is used once."
    differ = sum(len(set(same)) > 1 for same in repeated)
    return f"{said} Capitals, white space and the coding of accents make no other prompt." if differ else said


def source_name(source: str) -> str:
    """What a set remembers of where its prompts came from: no path of somebody's machine."""
    name = source.rpartition(":")[0] or source
    if source in BUILT_IN or source.startswith("hf:/") or is_hub_id(source) or is_hub_id(name):
        return source
    return Path(source).name


def _find(source: str) -> tuple[Source, str | None]:
    """What ``source`` names, and the column behind its last colon."""
    name, colon, column = source.rpartition(":")
    if not colon or "/" in column or Path(source).exists():
        name, column = source, ""
    if name.startswith("hf:/") or is_hub_id(name):
        return find_source(name), column or None
    if not name or not Path(name).exists():
        if " " in source.strip():
            raise MapoError(
                f"--prompts names a file or a set of prompts, and there is none called {source!r}. A prompt itself is "
                "given to `mapo sample` with --prompt; for other verbs write it into a .txt file, a prompt a line."
            )
        raise MapoError(f"--prompts: there is no file {name}. {GIVE}.")
    return Source(path=Path(name)), column or None


def _read(source: Source, column: str | None) -> Iterator[str]:
    """All prompts of all files, as they stand."""
    import fsspec

    files = fsspec.filesystem("file") if source.path is not None else sources.hub_files()
    root = str(source.path if source.path is not None else source.hub)
    places = _places(files, root)
    if len(places) > 1:
        names = [PurePosixPath(place).name for place in places]
        LOG.info(f"{source.name}: prompts of {len(places)} files, {names[0]} to {names[-1]}")
    for place in places:
        where = f"{PurePosixPath(place).name} " if len(places) > 1 else ""
        try:
            with files.open(place, "rb") as file:
                yield from _prompts(file, PurePosixPath(place).suffix.lower(), column)
        except NoColumn as error:
            raise NoColumn(f"{where}{error}", error.names) from None
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None


def _places(files: Any, root: str) -> list[str]:
    """The files that ``root`` (a file, a folder, or a pattern) stands for, in order of their names."""
    if "*" not in root and files.isfile(root):
        return [root]
    if "*" not in root and files.isfile(f"{root}/set.json"):  # a pairs set, whose pictures lie beside its pairs
        return [f"{root}/pairs.parquet"]
    there = files.glob(root) if "*" in root else files.find(root)
    for kind in KINDS:
        ours = [p for p in there if p.lower().endswith(kind) and PurePosixPath(p).name not in sources.NO_ROWS]
        if ours:
            return sorted(ours)
    raise ValueError(f"it holds no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")


def _prompts(file: Any, kind: str, column: str | None) -> Iterable[str]:
    match kind:
        case ".parquet":
            return _of_parquet(file, column)
        case ".csv" | ".tsv":
            return _of_table(decode_text(file.read()), kind, column)
        case ".json":
            values = _of_json(decode_text(file.read()))
            return _of_values([(f"entry {i}", value) for i, value in enumerate(values)], column)
        case ".jsonl" | ".ndjson":
            lines = enumerate(decode_text(file.read()).split("\n"), 1)
            return _of_values([(f"line {n}", _load(line, n)) for n, line in lines if line.strip()], column)
        case ".txt":
            if column:
                raise ValueError(f"a text has no column {column}")
            return decode_text(file.read()).split("\n")
        case _:
            raise ValueError(f"its name does not end in {', '.join(reversed(KINDS[1:]))} or {KINDS[0]}")


def _column(names: Sequence[str], column: str | None, where: str = "") -> str:
    """The name of the column to read; NoColumn where none can be meant, or more than one."""
    for wanted in [column] if column else COLUMNS:
        if wanted in names:
            return wanted
    if not names:
        raise ValueError(f"{where}has no {column or 'prompt'}")
    alike = [name for name in names if name.strip().lower() in LIKE_THEM]
    if len(alike) == 1 and not column:
        return alike[0]
    if alike and not column:
        raise NoColumn(f"{where}has several columns that could be the prompts", alike)
    raise NoColumn(f"{where}has no column {column or ' or '.join(COLUMNS)}", names)


def _of_parquet(file: Any, column: str | None) -> list[str]:
    """A column's texts; no other column is read. Empty cells are not prompts."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        refuse_twice(table.schema_arrow.names)
        found = _column(table.schema_arrow.names, column)
        cells = enumerate(table.read([found])[found].to_pylist())
    return [_text(v, f"row {i}", found) for i, v in cells if v is not None]


def _of_table(text: str, kind: str, column: str | None) -> list[str]:
    """A column of a table whose first line has the names; in a ``.csv`` cells may be parted by semicolons or tabs."""
    sign = delimiter_in(text.partition("\n")[0], kind)
    how: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if kind == ".tsv" and '""' not in text else {"strict": True}
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign, **how)
    prompts = []
    try:
        names = [name.strip() for name in next(rows, [])]
        refuse_twice(names)
        place = names.index(_column(names, column, "(its first line names the columns) "))
        for row in rows:
            if len(row) > len(names) and any(row[len(names) :]):
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} cells and the first line {len(names)}; "
                    "a text that has the separator in it stands in quotation marks"
                )
            if len(row) > place:
                check_text(row[place], f"line {rows.line_num}")
                prompts.append(row[place])
            elif any(row):
                raise ValueError(f"line {rows.line_num} has no {names[place]}")
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None
    return prompts


def _of_json(text: str) -> list[Any]:
    try:
        values = parse_row(text)
    except ValueError as error:
        if "Extra data" in str(error):
            raise ValueError(
                "it holds several values; where each has a line of its own, name the file .jsonl"
            ) from None
        raise
    if not isinstance(values, list):
        raise ValueError("it is not a list")
    return values


def _load(line: str, number: int) -> Any:
    try:
        return parse_row(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _of_values(values: Sequence[tuple[str, Any]], column: str | None) -> list[str]:
    """The prompts of strings and objects, each with its place; one column for all, as a gap is not another's text."""
    objects = [(where, value) for where, value in values if isinstance(value, dict)]
    texts = dict.fromkeys(name for _, value in objects for name, text in value.items() if isinstance(text, str))
    found = _column(list(texts), column, f"{objects[0][0]} ") if objects else column
    cells = [(where, v.get(found) if isinstance(v, dict) else None if column else v) for where, v in values]
    return [_text(cell, where, found) for where, cell in cells]


def _text(value: Any, where: str, column: str | None) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} has no {column or 'prompt'}")
    check_text(value, where)
    return value
