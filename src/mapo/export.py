"""Pairs for other programs: Parquet with pictures inside, which ``datasets.load_dataset`` and other trainers open."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mapo.errors import MapoError, suggest
from mapo.files import prepare_out, replacing
from mapo.pairs import Pair, PairSet
from mapo.splits import SPLITS

ROWS_PER_FILE = 2_000
ROWS_AT_ONCE = 32
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _with_features(schema: pa.Schema, pictures: tuple[str, ...]) -> pa.Schema:
    """Tell `datasets` which columns are pictures."""
    names = {
        pa.string(): "string",
        pa.float64(): "float64",
        pa.int64(): "int64",
        pa.binary(): "binary",
        pa.bool_(): "bool",
    }
    features: dict[str, Any] = {
        f.name: {"_type": "Image"} if f.name in pictures else {"dtype": names[f.type], "_type": "Value"} for f in schema
    }
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


PREFERENCE = _with_features(
    pa.schema(
        [
            ("prompt", pa.string()),
            ("chosen", PICTURE),
            ("rejected", PICTURE),
            ("preference", pa.float64()),
            ("weight", pa.float64()),
            ("id", pa.string()),
            ("group", pa.string()),
            ("source", pa.string()),
            ("meta", pa.string()),
        ]
    ),
    ("chosen", "rejected"),
)
PICKAPIC = _with_features(
    pa.schema(
        [
            ("jpg_0", pa.binary()),
            ("jpg_1", pa.binary()),
            ("label_0", pa.float64()),
            ("label_1", pa.float64()),
            ("caption", pa.string()),
            ("image_0_uid", pa.string()),
            ("image_1_uid", pa.string()),
            ("best_image_uid", pa.string()),
            ("ranking_id", pa.string()),
            ("has_label", pa.bool_()),
        ]
    ),
    (),
)


def _preference(pair: Pair, pairs: PairSet) -> dict[str, Any]:
    def picture(name: str) -> dict[str, Any]:
        return {"bytes": pairs.image_bytes(name), "path": None}

    return {
        "prompt": pair.prompt,
        "chosen": picture(pair.chosen),
        "rejected": picture(pair.rejected),
        "preference": pair.preference,
        "weight": pair.weight,
        "id": pair.id,
        "group": pair.group,
        "source": pair.source,
        "meta": json.dumps(dict(pair.meta), ensure_ascii=False),
    }


def _pickapic(pair: Pair, pairs: PairSet) -> dict[str, Any]:
    """The chosen picture stands on the side that the pair's name decides, so that the side tells nothing."""
    first = int(pair.id, 16) % 2 == 0
    sides = (pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)
    tie = pair.preference == 0.5
    return {
        "jpg_0": pairs.image_bytes(sides[0]),
        "jpg_1": pairs.image_bytes(sides[1]),
        "label_0": 0.5 if tie else float(first),
        "label_1": 0.5 if tie else float(not first),
        "caption": pair.prompt,
        "image_0_uid": sides[0],
        "image_1_uid": sides[1],
        "best_image_uid": "" if tie else pair.chosen,
        "ranking_id": pair.group or pair.id,
        "has_label": True,
    }


FORMATS: dict[str, tuple[pa.Schema, Callable[[Pair, PairSet], dict[str, Any]]]] = {
    "preference": (PREFERENCE, _preference),
    "pickapic": (PICKAPIC, _pickapic),
}


def export_pairs(pairs: PairSet, format: str, out: Path) -> Path:
    """Write ``out/data/<split>-*.parquet`` for every split that has pairs; the folder appears when it is whole."""
    if format not in FORMATS:
        raise MapoError(f"There is no export {format!r}. {suggest(format, FORMATS)}")
    if out.exists():
        raise MapoError(f"{out} already exists. Choose another --out, or delete it first.")
    schema, convert = FORMATS[format]
    prepare_out(out)
    rows = list(pairs)
    splits = {split: [p for p in rows if p.split == split] for split in SPLITS}
    with replacing(out) as temporary, tqdm(total=len(rows), desc=f"export {format}", unit="pair") as bar:
        (temporary / "data").mkdir(parents=True)
        for split, members in splits.items():
            files = -(-len(members) // ROWS_PER_FILE)
            for number in range(files):
                path = temporary / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
                with pq.ParquetWriter(path, schema, compression="none") as writer:
                    for part in _portions(members[number * ROWS_PER_FILE : (number + 1) * ROWS_PER_FILE]):
                        writer.write_table(pa.Table.from_pylist([convert(p, pairs) for p in part], schema))
                        bar.update(len(part))
    return out


def _portions(rows: list[Pair]) -> Iterator[list[Pair]]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
