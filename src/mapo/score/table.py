"""The table of scores: one row per picture, scorer and metric, in Parquet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mapo.errors import MapoError, reason
from mapo.files import prepare_out, replacing

VERSION = 1
SCHEMA = pa.schema(
    [
        ("image", pa.string()),  # sha256 of the picture
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("scorer", pa.string()),
        ("metric", pa.string()),
        ("version", pa.string()),
        ("revision", pa.string()),
        ("reference", pa.string()),
        ("value", pa.float64()),  # null: the scorer gave none
    ],
    metadata={"mapo-scores": str(VERSION)},
)


def write_scores(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table of scores, atomically. None is kept as null, NaN and infinities are an error, never a row."""
    rows = list(rows)
    for row in rows:
        check_value(row["value"], row["scorer"], row["image"])
    prepare_out(path)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")


def check_value(value: float | None, scorer: str, image: str) -> float | None:
    """The value that a scorer gave a picture (its hash), which may be None; MapoError where it is not finite."""
    if value is not None and not math.isfinite(value):
        raise MapoError(f"{scorer} gave {value} for picture {image[:12]}; only finite numbers are kept.")
    return None if value is None else float(value)


def read_scores(path: Path) -> pa.Table:
    """A table that :func:`write_scores` wrote."""
    remedy = "Make it with `mapo score`."
    if not path.is_file():
        raise MapoError(f"There is no table of scores at {path}. {remedy}")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise MapoError(f"{path} cannot be read ({reason(error)}). {remedy}") from None
    version = (table.schema.metadata or {}).get(b"mapo-scores", b"").decode()
    if version != str(VERSION) or set(SCHEMA.names) - set(table.column_names):
        raise MapoError(f"{path} is not a table of scores of version {VERSION}. {remedy}")
    for name in ("image", "prompt_id", "prompt", "seed", "scorer", "metric"):
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True) + 1
            raise MapoError(f"{path} has no {name} in row {row}. {remedy}")
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowException as error:
        raise MapoError(f"{path} has columns of other types ({reason(error)}). {remedy}") from None
