"""JSONL of rankings: ``{"prompt": …, "images": [paths], "rank": [1, 2, …]}``, rank 1 the best; all pairs of each."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import encoding_of, inside
from mapo.importers import BadRow, RawPair


def _file(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix == ".jsonl" else None
    found = sorted(source.glob("*.jsonl"))
    return found[0] if len(found) == 1 else None


def detects(source: Path) -> bool:
    """A ``.jsonl`` file, or a folder that holds exactly one, that has ``images`` and ``rank`` among its first lines."""
    path = _file(source)
    if path is None:
        return False
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        return any('"images"' in line and '"rank"' in line for line in itertools.islice(file, 100))


def read(source: Path) -> Iterator[RawPair | BadRow]:
    """All pairs of each ranking, better picture first; paths are taken from the file's folder and may not leave it."""
    path = _file(source)
    if path is None:
        raise MapoError(f"{source} is no .jsonl file and no folder with exactly one.")
    if encoding_of(path) == "utf-16":
        raise MapoError(f"{path} is UTF-16 text. Save it as UTF-8.")
    seen = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                yield BadRow(where, f"it is no JSON ({error})")
                continue
            seen += 1
            yield from _pairs(value, path.parent, where, f"{path.stem}:{number}")
    if not seen:
        raise MapoError(f"{path} holds no rankings.")


def _pairs(value: Any, folder: Path, where: str, group: str) -> Iterator[RawPair | BadRow]:
    if not isinstance(value, dict) or not {"prompt", "images", "rank"} <= value.keys():
        yield BadRow(where, "it lacks one of prompt, images, rank")
        return
    prompt, images, ranks = value["prompt"], value["images"], value["rank"]
    if not isinstance(prompt, str) or not isinstance(images, list) or not isinstance(ranks, list):
        yield BadRow(where, "prompt must be a text, images and rank lists")
        return
    if len(images) != len(ranks) or len(images) < 2:
        yield BadRow(
            where, f"it has {len(images)} images and {len(ranks)} ranks; it needs two or more, as many of each"
        )
        return
    if not all(isinstance(name, str) for name in images):
        yield BadRow(where, "an image is no path")
        return
    if not all(isinstance(r, int | float) and not isinstance(r, bool) and -math.inf < r < math.inf for r in ranks):
        yield BadRow(where, "a rank is no number")
        return
    data = []
    for name in images:
        try:
            data.append(inside(folder, name, where).read_bytes())
        except MapoError as error:
            yield BadRow(where, str(error).removeprefix(f"{where}: "))
            return
        except OSError:
            yield BadRow(where, f"the picture {name} cannot be read")
            return
    order = sorted(range(len(images)), key=lambda k: ranks[k])
    for better, worse in itertools.combinations(order, 2):
        tie = ranks[better] == ranks[worse]
        meta = {"chosen": {"image": images[better], "rank": ranks[better]}}
        meta["rejected"] = {"image": images[worse], "rank": ranks[worse]}
        yield RawPair(where, prompt, data[better], data[worse], 0.5 if tie else 1.0, 1.0, group, meta)
