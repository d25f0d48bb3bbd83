"""Prompts to make pictures from: the built-in lists, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.mini import scenes

BUILT_IN = {
    f"mini:{split}{suffix}": (split, objects)
    for split in ("train", "validation", "test")
    for suffix, objects in (("", None), ("-one", 1), ("-two", 2))
}


def read_prompts(source: str) -> list[str]:
    """The prompts of ``source``, without repeats and in order.

    ``source`` is a built-in list (``mini:train``, ``mini:test-one``, …) or a file: ``.txt`` with a prompt a line,
    ``.jsonl`` or ``.json`` with strings or objects that have ``prompt`` or ``caption``, ``.parquet`` with such a column.
    """
    if source in BUILT_IN:
        split, objects = BUILT_IN[source]
        return scenes.prompts(split, objects)
    if source.startswith("mini:"):
        raise MapoError(f"--prompts: there is no built-in list {source!r}. Known: {', '.join(BUILT_IN)}.")
    path = Path(source)
    if not path.is_file():
        raise MapoError(f"--prompts: there is no file {source}. Give a .txt, .json, .jsonl or .parquet file, or mini:test.")
    try:
        found = list(_read(path))
    except (UnicodeDecodeError, ValueError, OSError) as error:
        raise MapoError(f"--prompts: {source} cannot be read ({error}).") from None
    prompts = list(dict.fromkeys(p.strip() for p in found if p.strip()))
    if not prompts:
        raise MapoError(f"--prompts: {source} holds no prompts.")
    return prompts


def _read(path: Path) -> Iterable[str]:
    match path.suffix.lower():
        case ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            column = next((c for c in ("prompt", "caption") if c in table.column_names), None)
            if column is None:
                raise ValueError(f"it has no column prompt or caption, but {', '.join(table.column_names)}")
            return [str(v) for v in table[column].to_pylist() if v is not None]
        case ".json":
            values = json.loads(path.read_text("utf-8"))
            if not isinstance(values, list):
                raise ValueError("it is no list")
            return [_prompt_of(v, f"entry {i}") for i, v in enumerate(values)]
        case ".jsonl":
            lines = enumerate(path.read_text("utf-8").splitlines(), 1)
            return [_prompt_of(_load(line, n), f"line {n}") for n, line in lines if line.strip()]
        case _:
            return path.read_text("utf-8").splitlines()


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
