"""Sets of pairs with known defects, and what the check says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_fixtures import encoded, noise
from mapo.check.check import check_pairs
from mapo.files import sha256
from mapo.pairs.pairs import IMAGE_SCHEMA, PAIR_SCHEMA, PairSet, PairWriter


def png(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    return encoded(noise(seed, size))


def write_set(folder: Path, rows: list[tuple[Any, ...]], sensitive: bool = False) -> Path:
    """Rows are (prompt, chosen, rejected) and perhaps a dict of the other columns."""
    with PairWriter(folder, {"made": "by a test"}, sensitive) as writer:
        for prompt, chosen, rejected, *rest in rows:
            writer.add_pair(prompt, chosen, rejected, **(rest[0] if rest else {}))
    return folder


def random_rows(count: int, start: int = 0, **rest: Any) -> list[tuple[Any, ...]]:
    return [(f"prompt {k}", png(2 * k), png(2 * k + 1), rest) for k in range(start, start + count)]


def replace_picture(folder: Path, old: bytes, new: bytes, renamed: bool = True) -> None:
    """Put other bytes in a picture's place; not ``renamed``, they do not match their hash."""
    names = {sha256(old): sha256(new) if renamed else sha256(old)}
    path = folder / "images-00000.parquet"
    images = pq.read_table(path).to_pylist()
    for row in images:
        if row["sha256"] == sha256(old):
            row["sha256"], row["bytes"] = names[row["sha256"]], new
    pq.write_table(pa.Table.from_pylist(images, IMAGE_SCHEMA), path)
    places = np.load(folder / "pictures.npy")
    was, now = (np.frombuffer(bytes.fromhex(name), np.uint8) for name in next(iter(names.items())))
    places["sha"][(places["sha"] == was).all(1)] = now
    np.save(folder / "pictures.npy", places[np.argsort([bytes(sha) for sha in places["sha"]])])
    table = folder / "pairs.parquet"
    pairs = pq.read_table(table).to_pylist()
    for row in pairs:
        row |= {side: names.get(row[side], row[side]) for side in ("chosen", "rejected")}
    pq.write_table(pa.Table.from_pylist(pairs, PAIR_SCHEMA), table)


def check(folder: Path, **how: Any) -> dict[str, Any]:
    return check_pairs(PairSet(folder), folder.parent / "check.html", **how)


def named(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in summary["findings"]}


def rows_of(finding: dict[str, Any]) -> list[int]:
    return [row for row, _ in finding["rows"]]
