"""Prompts to make pictures from: the built-in lists, a file or folder of the user's, or a set on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mapo.errors import MapoError
from mapo.files import decode_text
from mapo.importers import sources
from mapo.importers.sources import Source, find_source, is_hub_id
from mapo.mini import scenes
from mapo.schema import check_text
from mapo.splits import prompt_id

BUILT_IN = {
    f"mini:{split}{suffix}": (split, objects)
    for split in ("train", "validation", "test")
    for suffix, objects in (("", None), ("-one", 1), ("-two", 2))
}
COLUMNS = ("prompt", "caption")
KINDS = (".parquet", ".jsonl", ".json", ".txt")  # of a folder the files of the first kind that it has
GIVE = "Give a .txt, .json, .jsonl or .parquet file, or mini:test, or owner/name for a set on the hub"


def read_prompts(source: str) -> list[str]:
    """The prompts of ``source``, in order and without repeats (of two that differ only in case, the first).

    How many repeats were left out is printed.

    ``source`` is a built-in list (``mini:train``, ``mini:test-one``, …), a file, a folder of files, or a set on the
    hub: ``owner/name``, ``hf://owner/name`` or ``hf://owner/name/path`` with a file, folder or pattern. Files are
    ``.txt`` with a prompt a line, ``.jsonl`` or ``.json`` with strings or objects that have ``prompt`` or ``caption``,
    or ``.parquet`` with such a column; ``source:COLUMN`` reads another one. Raises MapoError naming what is no prompt.
    """
    if source in BUILT_IN:
        split, objects = BUILT_IN[source]
        return scenes.prompts(split, objects)
    if source.startswith("mini:"):
        raise MapoError(f"--prompts: there is no built-in list {source!r}. Known: {', '.join(BUILT_IN)}.")
    found, column = _find(source)
    prompts: dict[str, str] = {}
    count = cased = 0
    try:
        for prompt in map(str.strip, _read(found, column)):
            if prompt:
                first = prompts.setdefault(prompt_id(prompt), prompt)
                count += 1
                cased += first != prompt
    except Exception as error:
        if found.hub is None and not isinstance(error, ValueError | OSError):
            raise  # on the hub it may be anything of whatever client its library uses
        copy = ". Where the hub has made a copy in Parquet, it is OWNER/NAME@~parquet" if found.hub else ""
        raise MapoError(f"--prompts: {found.name} cannot be read ({error}){copy}.") from None
    if not prompts:
        raise MapoError(f"--prompts: {found.name} holds no prompts.")
    if count > len(prompts):
        print(
            f"{found.name}: {count - len(prompts)} prompts are there already and are left out "
            f"({cased} of them differ in case, white space or the coding of accents)."
        )
    return list(prompts.values())


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
        print(f"{source.name}: prompts of {len(places)} files, {names[0]} to {names[-1]}")
    for place in places:
        where = f"{PurePosixPath(place).name} " if len(places) > 1 else ""
        try:
            with files.open(place, "rb") as file:
                yield from _prompts(file, PurePosixPath(place).suffix.lower(), column)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None


def _places(files: Any, root: str) -> list[str]:
    """The files that ``root`` (a file, a folder, or a pattern) stands for, in order of their names."""
    if "*" not in root and files.isfile(root):
        return [root]
    there = files.glob(root) if "*" in root else files.find(root)
    for kind in KINDS:
        ours = [p for p in there if p.lower().endswith(kind) and not PurePosixPath(p).name.startswith("dataset_info")]
        if ours:
            return sorted(ours)
    raise ValueError(f"it holds no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")


def _prompts(file: Any, kind: str, column: str | None) -> Iterable[str]:
    match kind:
        case ".parquet":
            return _of_parquet(file, column)
        case ".json":
            values = json.loads(decode_text(file.read()))
            if not isinstance(values, list):
                raise ValueError("it is no list")
            return [_prompt_of(v, f"entry {i}", column) for i, v in enumerate(values)]
        case ".jsonl":
            lines = enumerate(decode_text(file.read()).split("\n"), 1)
            return [_prompt_of(_load(line, n), f"line {n}", column) for n, line in lines if line.strip()]
        case ".txt":
            if column:
                raise ValueError(f"a text has no column {column}")
            return decode_text(file.read()).split("\n")
        case _:
            raise ValueError(f"its name does not end in {', '.join(reversed(KINDS[1:]))} or {KINDS[0]}")


def _of_parquet(file: Any, column: str | None) -> list[str]:
    """A column's texts; no other column is read. Empty cells are no prompts."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        names = table.schema_arrow.names
        found = next((c for c in ([column] if column else COLUMNS) if c in names), None)
        if found is None:
            wanted = column or " or ".join(COLUMNS)
            raise ValueError(f"it has no column {wanted}, but {', '.join(names)}; name one behind a colon")
        cells = enumerate(table.read([found])[found].to_pylist())
    return [_prompt_of(v, f"row {i}", None) for i, v in cells if v is not None]


def _load(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON: {error}") from None


def _prompt_of(value: Any, where: str, column: str | None) -> str:
    if isinstance(value, dict):
        keys = (column,) if column else COLUMNS
        value = next((value[key] for key in keys if isinstance(value.get(key), str)), None)
    elif column:
        value = None
    if not isinstance(value, str):
        raise ValueError(f"{where} has no {column or 'prompt'}")
    check_text(value, where)
    return value
