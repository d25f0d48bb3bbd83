"""Pictures and sets that several tests make in the same way."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mapo.pairs import PairSet, PairWriter


def encoded(picture: Image.Image, format: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **how)
    return buffer.getvalue()


def make_picture(colour: Any = "red", size: tuple[int, int] = (6, 4), format: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", size, colour), format)


def noise(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


COLOURS = ("red", "green", "blue", "white", "black", "orange")
PICTURES = tuple(make_picture(colour) for colour in COLOURS)
RED, GREEN, BLUE, WHITE, BLACK, ORANGE = PICTURES


def make_set(folder: Path, count: int = 8, **rest: Any) -> PairSet:
    """A set of ``count`` pairs over ``count`` + 1 pictures."""
    with PairWriter(folder, {"made": "by a test"}) as writer:
        for k in range(count):
            writer.add_pair(f"prompt {k}", make_picture((k, 0, 0)), make_picture((k + 1, 0, 0)), **rest)
    return PairSet(folder)


def write_parquet(path: Path, rows: list[Mapping[str, Any]], schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def files_below(folder: Path) -> set[str]:
    """Every file and folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
