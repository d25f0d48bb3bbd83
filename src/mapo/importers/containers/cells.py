"""What a cell of a row says, whatever its type: a picture, a number, a text, or something that a set can keep."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from mapo.importers.sources import picture_at

NUMBERS = ("preference", "weight", "rank")
LONGEST_PATH = 255
BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR")  # how PNG, JPEG and WebP begin


def picture_of(cell: Any, folder: Path | None) -> bytes:
    """The bytes of a cell: bytes, an ``Image`` of datasets ({bytes, path}), or a path below ``folder``."""
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, list) and len(cell) > 1:
        what = "numbers" if isinstance(cell[0], list) else f"{len(cell)} things"
        raise ValueError(f"a picture is a list of {what}; it must be the bytes of a file (PNG, JPEG), or a path")
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if isinstance(data, str):
        data, path = None, data
    if isinstance(data, bytes) and data:
        return data
    if data is None and isinstance(path, str) and path:
        if folder is None:
            raise ValueError(f"the picture {path[:200]} is a path; on the hub and in a tar pictures must be inside")
        if path.startswith("data:") or (len(path) > LONGEST_PATH and path.startswith(BASE64)):
            raise ValueError("a picture is written as base64 text; write it to a file and name its path, or keep bytes")
        return picture_at(folder, path)
    raise ValueError("a picture has no bytes")


def name_of(cell: Any, number: int) -> str:
    """What a picture is called: its path, or its number where it has none."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return path if isinstance(path, str) and path else str(number)


def from_text(column: str, text: Any) -> Any:
    """A cell of a file that holds nothing but text: a number where the column has numbers."""
    number = as_number(text) if column in NUMBERS and isinstance(text, str) else None
    return text if number is None else number


def number_of(value: Any, name: str) -> float:
    """A number; ValueError says what ``name`` is instead."""
    number = as_number(value)
    if number is None or isinstance(value, bool | str):
        raise ValueError(f"{name} is {value!r}, which is not a number")
    if math.isinf(number) and isinstance(value, int):
        raise ValueError(f"{name} is too large a number")
    return number


def as_number(value: Any) -> float | None:
    """The number that a cell says (True is 1), or None."""
    if isinstance(value, str) and "_" in value:
        return None
    if not isinstance(value, int | float | Decimal | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def as_truth(value: Any) -> bool | None:
    """True or False for a cell that says so (1 and 0 too, and their texts), or None."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), as_truth(as_number(value)))
    number = as_number(value)
    return bool(number) if number in (0, 1) else None


def text_of(value: Any, name: str) -> str:
    """A text; ValueError says what ``name`` is instead."""
    if value is None:
        raise ValueError(f"there is no {name}")
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise ValueError(f"the {name} is {short(value)}, which is not a text")
    return value


def short(value: Any) -> str:
    """The value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def plain(value: Any) -> tuple[Any, int]:
    """The value in JSON's forms (times as ISO 8601), and how many values in it have none and are left out."""
    match value:
        case None | bool() | int() | str():
            return value, 0
        case float():
            return (value, 0) if math.isfinite(value) else (None, 1)
        case Decimal():
            return plain(int(value) if value.is_finite() and value == value.to_integral_value() else float(value))
        case datetime.date() | datetime.time():
            return value.isoformat(), 0
        case datetime.timedelta():
            return value.total_seconds(), 0
        case uuid.UUID():
            return str(value), 0
        case Mapping():
            kept, lost = {}, 0
            for key, one in value.items():
                kept[str(key)], more = plain(one)
                lost += more
                if more and kept[str(key)] is None:
                    del kept[str(key)]
            return kept, lost
        case list() | tuple():
            made = [plain(one) for one in value]
            return [one for one, _ in made], sum(more for _, more in made)
        case _:
            return None, 1
