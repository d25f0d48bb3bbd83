"""Prompts to make pictures from: the built-in lists, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import read_text
from mapo.mini import scenes
from mapo.splits import prompt_id

BUILT_IN = {
    f"mini:{split}{suffix}": (split, objects)
    for split in ("train", "validation", "test")
    for suffix, objects in (("", None), ("-one", 1), ("-two", 2))
}


def read_prompts(source: str) -> list[str]:
    """The prompts of ``source``, in order and without repeats (of two that differ only in case, the first).

    How many repeats were left out is printed.

    ``source`` is a built-in list (``mini:train``, ``mini:test-one``, …) or a file: ``.txt`` with a prompt a line,
    ``.jsonl`` or ``.json`` with strings or objects that have ``prompt`` or ``caption``, or ``.parquet`` with such a
    column.
    """
    if source in BUILT_IN:
        split, objects = BUILT_IN[source]
        return scenes.prompts(split, objects)
    if source.startswith("mini:"):
        raise MapoError(f"--prompts: there is no built-in list {source!r}. Known: {', '.join(BUILT_IN)}.")
    path = Path(source)
    if not path.is_file():
        raise MapoError(
            f"--prompts: there is no file {source}. Give a .txt, .json, .jsonl or .parquet file, or mini:test."
        )
    prompts: dict[str, str] = {}
    count = cased = 0
    try:
        for prompt in map(str.strip, _read(path)):
            if prompt:
                first = prompts.setdefault(prompt_id(prompt), prompt)
                count += 1
                cased += first != prompt
    except (ValueError, OSError) as error:
        raise MapoError(f"--prompts: {source} cannot be read ({error}).") from None
    if not prompts:
        raise MapoError(f"--prompts: {source} holds no prompts.")
    if count > len(prompts):
        print(
            f"{source}: {count - len(prompts)} prompts are there already and are left out "
            f"({cased} of them differ in case, white space or the coding of accents)."
        )
    return list(prompts.values())


def _read(path: Path) -> Iterable[str]:
    match path.suffix.lower():
        case ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                column = next((c for c in ("prompt", "caption") if c in names), None)
                if column is None:
                    raise ValueError(f"it has no column prompt or caption, but {', '.join(names)}")
                cells = enumerate(file.read([column])[column].to_pylist())
            return [_prompt_of(v, f"row {i}") for i, v in cells if v is not None]
        case ".json":
            values = json.loads(read_text(path))
            if not isinstance(values, list):
                raise ValueError("it is no list")
            return [_prompt_of(v, f"entry {i}") for i, v in enumerate(values)]
        case ".jsonl":
            lines = enumerate(read_text(path).split("\n"), 1)
            return [_prompt_of(_load(line, n), f"line {n}") for n, line in lines if line.strip()]
        case ".txt":
            return read_text(path).split("\n")
        case _:
            raise ValueError("its name does not end in .txt, .json, .jsonl or .parquet")


def _load(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON: {error}") from None


def _prompt_of(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for key in ("prompt", "caption"):
            if isinstance(value.get(key), str):
                return str(value[key])
    raise ValueError(f"{where} has no prompt")
