"""Pairs for other programs: Parquet with pictures inside, which ``datasets.load_dataset`` and other trainers open."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mapo import progress
from mapo.errors import MapoError, count, suggest
from mapo.export import hub
from mapo.files import prepare_out, replacing
from mapo.pairs import PairSet
from mapo.pairs.pictures import upright
from mapo.pairs.provenance import sources as sources_of
from mapo.pairs.provenance import without_folders
from mapo.pairs.splits import SPLITS
from mapo.shards import owned, refuse_existing

ROWS_PER_FILE, BYTES_PER_FILE = 2_000, 500 * 2**20
ROWS_PER_GROUP, BYTES_PER_GROUP = 32, 64 * 2**20
PAIRS_AT_ONCE = 1_024  # without their pictures
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # sets of 0.1.0 did not count those that are rotated
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
Row = dict[str, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def _preference(row: Row, chosen: bytes, rejected: bytes) -> Row:
    kept = {name: row[name] for name in ("prompt", "preference", "weight", "id", "group", "source", "meta")}
    return {**kept, "chosen": {"bytes": chosen, "path": None}, "rejected": {"bytes": rejected, "path": None}}


def _hub(row: Row, chosen: bytes, rejected: bytes) -> Row:
    """What names a folder of this machine in a pair's meta is left with its last part."""
    before = json.loads(row["meta"] or "{}")
    after = without_folders(before)
    meta = row["meta"] if after == before else json.dumps(after, ensure_ascii=False)
    return _preference({**row, "meta": meta}, chosen, rejected)


def _pickapic(row: Row, chosen: bytes, rejected: bytes) -> Row:
    """The chosen picture stands on the side that the pair's name decides, so that the side tells nothing."""
    first = int(row["id"], 16) % 2 == 0
    names, pictures = (row["chosen"], row["rejected"]), (chosen, rejected)
    if not first:
        names, pictures = names[::-1], pictures[::-1]
    tie = row["preference"] == 0.5
    return {
        "jpg_0": pictures[0],
        "jpg_1": pictures[1],
        "label_0": 0.5 if tie else float(first),
        "label_1": 0.5 if tie else float(not first),
        "caption": row["prompt"],
        "image_0_uid": names[0],
        "image_1_uid": names[1],
        "best_image_uid": "" if tie else row["chosen"],
        "ranking_id": row["group"] or row["id"],
        "has_label": True,
    }


FORMATS: dict[str, tuple[pa.Schema, Callable[[Row, bytes, bytes], Row]]] = {
    "preference": (PREFERENCE, _preference),
    "pickapic": (PICKAPIC, _pickapic),
    "hub": (PREFERENCE, _hub),
}
READ_AS_THEY_LIE = ("pickapic",)  # bytes that others decode themselves; `datasets` turns what it decodes
ON_MISSING_PICTURE = ("stop", "drop")
PICTURES_REMEMBERED = 4  # of a ranking, one picture is in several pairs


def export_pairs(
    pairs: PairSet,
    format: str,
    out: Path,
    *,
    on_missing_picture: str = "stop",
    repo: str | None = None,
    licence: str | None = None,
    source_licences: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Write ``out/data/<split>-*.parquet`` for every split that has pairs; the folder appears when it is whole.

    A pair whose picture the set keeps as latents only stops the export, or with ``on_missing_picture="drop"`` is left
    out. ``repo`` and the licences are for the card that ``hub`` adds. Returns counts: pairs, ties, graded (preferences
    between tie and sure), weighted (weights other than 1), left_out, turned (pictures written upright).
    """
    if format not in FORMATS:
        raise MapoError(f"There is no export {format!r}. {suggest(format, FORMATS)}")
    if on_missing_picture not in ON_MISSING_PICTURE:
        known = " or ".join(ON_MISSING_PICTURE)
        raise MapoError(f"--on-missing-picture is {on_missing_picture!r}; it must be {known}.")
    pairs.refuse_without_pictures("mapo export")
    pairs.refuse_without_rejected("mapo export")
    refuse_existing(out)
    if licence and not hub.LICENCE.fullmatch(licence):
        raise MapoError(f"--license is {licence!r}; write the hub's name for it, such as cc-by-4.0, mit or other.")
    schema, convert = FORMATS[format]
    sources = sources_of(pairs, source_licences or {})
    prepare_out(out)
    kept = _kept(pairs, on_missing_picture)
    preference, weight = (pairs.table[column].to_numpy()[kept] for column in ("preference", "weight"))
    counts = {
        "pairs": len(preference),
        "ties": int((preference == 0.5).sum()),
        "graded": int(((preference > 0.5) & (preference < 1)).sum()),
        "weighted": int((weight != 1).sum()),
        "left_out": len(pairs) - len(preference),
    }
    sizes: dict[str, hub.Size] = {}
    turned: set[str] = set()
    read = _upright_reader(pairs, turned) if format in READ_AS_THEY_LIE else pairs.image_bytes
    with owned(out), replacing(out) as temporary, _bar(len(preference), format) as bar:
        (temporary / "data").mkdir(parents=True)
        for split in SPLITS:
            members = kept & pc.equal(pairs.table["split"], split).to_numpy()
            if members.any():
                tables = _tables(pairs, members, schema, convert, read, bar)
                sizes[split] = _write_split(temporary / "data", split, schema, tables)
        if format == "hub":
            hub.write_card(
                temporary, repo.split("/")[-1] if repo else out.name, repo, pairs, kept, sizes, sources, licence
            )
    return {**counts, "turned": len(turned)}


def _bar(pairs: int, format: str) -> Any:
    return progress.bar(total=pairs, desc=f"export {format}", unit="pair")


def _may_turn(pairs: PairSet) -> bool:
    """Whether some picture of the set is rotated by EXIF, or nothing is known of that."""
    return bool(pairs.info.get("conversions", {"rotated": True}).get("rotated"))


def _upright_reader(pairs: PairSet, turned: set[str]) -> Callable[[str], bytes]:
    """Reads pictures for programs that do not look at EXIF; ``turned`` becomes the names of those that it turned."""
    any_kind = _may_turn(pairs)

    @lru_cache(PICTURES_REMEMBERED)
    def read(name: str) -> bytes:
        data = pairs.image_bytes(name)
        if not any_kind and not data.startswith(TIFF):
            return data
        try:
            new = upright(data)
        except ValueError as error:
            raise MapoError(f"{pairs.folder}: picture {name}: {error}. Look at the set with `mapo check`.") from None
        if new is not None:
            turned.add(name)
        return new or data

    return read


def _kept(pairs: PairSet, on_missing_picture: str) -> Mask:
    """The rows whose two pictures are there as pictures."""
    fine, first = np.ones(len(pairs), bool), ""
    if pairs.keeps_all():
        return fine
    for side in ("chosen", "rejected"):
        for row, name in enumerate(pairs.table[side]):
            if not pairs.keeps(name.as_py()):
                fine[row], first = False, first or f"row {row}'s {side} picture"
    missing = int((~fine).sum())
    if missing and on_missing_picture != "drop":
        raise MapoError(
            f"{pairs.folder} keeps the pictures of {count(missing, 'pair')} as latents only ({first} is the first), "
            "so they cannot be exported. Leave these pairs out with --on-missing-picture drop."
        )
    if not fine.any():
        raise MapoError(f"{pairs.folder} keeps all its rejected pictures as latents only; nothing could be exported.")
    return fine


def _tables(
    pairs: PairSet,
    rows: Mask,
    schema: pa.Schema,
    convert: Callable[[Row, bytes, bytes], Row],
    read: Callable[[str], bytes],
    bar: Any,
) -> Iterator[pa.Table]:
    """A row group at a time, so that memory does not grow with the set."""
    waiting: list[Row] = []
    size = 0
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs.table.slice(start, PAIRS_AT_ONCE).filter(pa.array(rows[start : start + PAIRS_AT_ONCE]))
        for row in part.to_pylist():
            pictures = (read(row["chosen"]), read(row["rejected"]))
            waiting.append(convert(row, *pictures))
            size += sum(map(len, pictures))
            if len(waiting) >= ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
                yield pa.Table.from_pylist(waiting, schema)
                bar.update(len(waiting))
                waiting, size = [], 0
    if waiting:
        yield pa.Table.from_pylist(waiting, schema)
        bar.update(len(waiting))


def _write_split(folder: Path, split: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> hub.Size:
    """Files of a split, named with their number when that is known."""
    files: list[Path] = []
    rows = in_memory = 0
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        room = room_bytes = 0
        for table in tables:
            if writer is None or room <= 0 or room_bytes <= 0:
                stack.close()
                files.append(folder / f"{split}-{len(files):05d}")
                writer = stack.enter_context(pq.ParquetWriter(files[-1], schema, compression="none"))
                room, room_bytes = ROWS_PER_FILE, BYTES_PER_FILE
            writer.write_table(table)
            room, room_bytes = room - table.num_rows, room_bytes - table.nbytes
            rows, in_memory = rows + table.num_rows, in_memory + table.nbytes
    for file in files:
        file.rename(f"{file}-of-{len(files):05d}.parquet")
    on_disk = sum(path.stat().st_size for path in folder.glob(f"{split}-*.parquet"))
    return hub.Size(rows, in_memory, on_disk)


def export_to_hub(
    pairs: PairSet, out: Path, repo: str | None, *, private: bool | None = None, api: Any = None, **card: Any
) -> tuple[dict[str, int], str]:
    """Write the folder ``out``, or take it as it is where it is an export of this set, and upload it to ``repo``.

    Without ``repo`` it is only written. Counts (empty for a folder that was there) and the address on the hub or "".
    ``api`` is a ``huggingface_hub.HfApi``; who you are comes from ``hf auth login``.
    """
    if repo is None:
        return export_pairs(pairs, "hub", out, **card), ""
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    pairs.refuse_without_rejected("mapo export")  # before anybody asks the hub
    private = hub.check_repo(repo, private, bool(pairs.info.get("sensitive")), api)
    written = hub.is_export_of(out, pairs)
    if written and (card.get("licence") or card.get("source_licences")):
        raise MapoError(f"{out} was written before: write the licences into its README.md, or delete it first.")
    counts = {} if written else export_pairs(pairs, "hub", out, repo=repo, **card)
    return counts, hub.push(out, repo, private, api)


def parse_licences(texts: Sequence[str]) -> dict[str, str]:
    """``SOURCE=LICENCE``, divided at the last ``=``."""
    found = {}
    for text in texts:
        source, equals, licence = text.rpartition("=")
        if not equals or not source.strip() or not licence.strip():
            raise MapoError(f"--source-license is {text!r}; write SOURCE=LICENSE.")
        found[source.strip()] = licence.strip()
    return found


def describe(counts: Mapping[str, int], format: str) -> str:
    """The counts as words, with what Pick-a-Pic's columns cannot tell."""
    parts = [count(counts["ties"], "tie")] * bool(counts["ties"])
    if counts["left_out"]:
        parts.append(f"{counts['left_out']} left out, as a picture is kept as latents only")
    if turned := counts["turned"]:
        one = turned == 1
        parts.append(f"{turned} rotated picture{'' if one else 's'} {'is' if one else 'are'} written upright, as PNG")
    if format == "pickapic" and counts["graded"]:
        sure = "a sure one" if counts["graded"] == 1 else "sure ones"
        parts.append(
            f"{count(counts['graded'], 'graded preference')} became {sure}, which is all these labels can tell"
        )
    if format == "pickapic" and counts["weighted"]:
        parts.append(
            f"{count(counts['weighted'], 'weight')} {'is' if counts['weighted'] == 1 else 'are'} not told by "
            "these columns"
        )
    return count(counts["pairs"], "pair") + (f" ({'; '.join(parts)})" if parts else "")
