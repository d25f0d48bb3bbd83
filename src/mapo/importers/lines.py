"""Reading JSONL: a row per line, pictures as paths within the file's folder."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import encoding_of
from mapo.importers import BadRow, RawPair
from mapo.importers.sources import Source, picture_at

LINES_TO_LOOK_AT = 100


def file_of(source: Source) -> Path | None:
    """The ``.jsonl`` file that ``source`` is, or the ``metadata.jsonl`` or only one that it holds."""
    if source.path is None or source.path.is_file():
        return source.path if source.path is not None and source.path.suffix == ".jsonl" else None
    found = sorted(source.path.glob("*.jsonl"))
    if (named := source.path / "metadata.jsonl") in found:
        return named
    return found[0] if len(found) == 1 else None


def keys(source: Source) -> set[str]:
    """The keys of the first lines, to tell formats apart."""
    found: set[str] = set()
    if (path := file_of(source)) is None:
        return found
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        for line in itertools.islice(file, LINES_TO_LOOK_AT):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                found |= value.keys()
    return found


def rows(
    source: Source, convert: Callable[[dict[str, Any], Path, str, str], list[RawPair]], start: int = 0
) -> Iterator[list[RawPair | BadRow]]:
    """What ``convert(object, folder, where, group)`` makes of each line from the ``start``-th that is not blank.

    Its ValueErrors become bad rows.
    """
    path = file_of(source)
    if path is None:
        raise MapoError(f"{source.name} is no .jsonl file and no folder with exactly one.")
    if encoding_of(path) == "utf-16":
        raise MapoError(f"{path} is UTF-16 text. Save it as UTF-8.")
    seen = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            seen += 1
            if seen <= start:
                continue
            where = f"{path.name} line {number}"
            try:
                yield [*convert(_object(line), path.parent, where, f"{path.stem}:{number}")]
            except ValueError as error:
                yield [BadRow(where, str(error))]
    if not seen:
        raise MapoError(f"{path} is empty: it holds no lines.")


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def need(value: dict[str, Any], *names: str) -> None:
    """ValueError when a key is missing: which, and which are there."""
    if missing := [n for n in names if n not in value]:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(value) or 'nothing'}")


def many(value: dict[str, Any], what: str, folder: Path) -> tuple[str, list[str], list[float], list[bytes]]:
    """Prompt, names, numbers and bytes of a line about several pictures; ``what`` is the key of the numbers."""
    need(value, "prompt", "images", what)
    prompt, names, numbers = value["prompt"], value["images"], value[what]
    if not isinstance(prompt, str) or not isinstance(names, list) or not isinstance(numbers, list):
        raise ValueError(f"prompt must be a text, images and {what} lists")
    if len(names) != len(numbers) or len(names) < 2:
        raise ValueError(
            f"it has {len(names)} images and {len(numbers)} in {what}; it needs two or more, as many of each"
        )
    if not all(isinstance(name, str) for name in names):
        raise ValueError("an image is no path")
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < math.inf for n in numbers):
        raise ValueError(f"one of {what} is no number")
    return prompt, names, numbers, [picture_at(folder, name) for name in names]
