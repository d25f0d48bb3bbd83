"""A set that is damaged, or not there, is refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import (
    BLUE,
    GREEN,
    RED,
    make_set,
)
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs.pairs import PairSet, PairWriter
from mapo.pairs.pictures import Picture, check_picture


def edit_info(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "set.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])

    return edit


def edit_pairs(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / "pairs.parquet")), folder / "pairs.parquet")

    return edit


def with_column(name: str, values: pa.Array) -> Callable[[Path], None]:
    return edit_pairs(lambda table: table.set_column(table.column_names.index(name), name, values))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


BAD_SETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no set.json": (remove("set.json"), r"is not a pairs set: it has no set\.json"),
    "a run": (lambda folder: (folder / "set.json").rename(folder / "run.json"), "is a run, not a pairs set. Make the"),
    "pictures": (
        lambda folder: (folder / "set.json").rename(folder / "a.PNG"),
        "is a folder of pictures, not a pairs set. Make the set .* Where none is rejected, give the folder to `mapo style`",
    ),
    "set.json of another kind": (overwrite("set.json", b"[]"), r"set\.json does not describe a pairs set"),
    "set.json damaged": (cut("set.json"), r"set\.json cannot be read"),
    "a later version": (edit_info(version=3), "is a set of format mapo-pairs 3, this version reads mapo-pairs 2"),
    "another format": (edit_info(format="other"), "is a set of format other 2"),
    "no pairs file": (remove("pairs.parquet"), r"pairs\.parquet is missing or damaged"),
    "pairs file cut": (cut("pairs.parquet"), r"pairs\.parquet is missing or damaged"),
    "pairs file empty": (overwrite("pairs.parquet", b""), r"pairs\.parquet is missing or damaged"),
    "pairs file without rows": (edit_pairs(lambda t: t.slice(0, 0)), "holds no pairs"),
    "pairs file without a column": (edit_pairs(lambda t: t.drop_columns(["weight"])), "pairs.parquet is .*weight"),
    "preferences of letters": (
        with_column("preference", pa.array(["x", "y"])),
        r"pairs\.parquet is missing or damaged",
    ),
    "picture of no shard": (with_column("rejected", pa.array(["0" * 64] * 2)), "row 0 names the rejected picture 000"),
    "picture without name": (
        with_column("chosen", pa.array([None, "x"])),
        r"is missing or damaged \(empty cells in chosen\)",
    ),
    "prompt that is empty": (with_column("prompt", pa.array(["fine", ""])), "row 1: the prompt is empty"),
    "preference of the other": (
        with_column("preference", pa.array([1, 0.2])),
        "row 1: preference is 0.2, it must lie in",
    ),
    "weight below 0": (with_column("weight", pa.array([-1.0, 1.0])), "row 0: weight is -1.0"),
    "unknown split": (with_column("split", pa.array(["train", "val"])), "row 1: split is 'val'"),
    "same picture twice": (
        edit_pairs(lambda t: t.set_column(3, "rejected", t["chosen"])),
        "row 0: .* the same picture",
    ),
    "prompt that is not a text": (
        with_column("prompt", pa.StringArray.from_buffers(2, *pa.array([b"\xff", b"a"]).buffers()[1:])),
        r"pairs\.parquet is missing or damaged .*UTF8",
    ),
    "no shard": (remove("images-00000.parquet"), r"images-00000\.parquet is missing, with 3 pictures"),
    "shard of too few": (
        lambda folder: pq.write_table(
            pq.read_table(folder / "images-00000.parquet").slice(1), folder / "images-00000.parquet"
        ),
        r"images-00000\.parquet is damaged \(it holds 2 pictures, pictures\.npy names 3\)",
    ),
    "no index": (remove("pictures.npy"), r"pictures\.npy is missing or damaged"),
    "index cut": (cut("pictures.npy"), r"pictures\.npy is missing or damaged"),
    "index empty": (overwrite("pictures.npy", b""), r"pictures\.npy is missing or damaged"),
    "index of another kind": (
        lambda folder: np.save(folder / "pictures.npy", np.arange(9)),
        r"pictures\.npy is missing or damaged \(it is not an index of pictures\)",
    ),
    "index in disorder": (
        lambda folder: np.save(folder / "pictures.npy", np.load(folder / "pictures.npy")[::-1]),
        r"pictures\.npy is missing or damaged \(it is not sorted\)",
    ),
    "name that is not a hash": (
        with_column("rejected", pa.array(["z" * 64] * 2)),
        "row 0 names the rejected picture zzz",
    ),
    "name that is too short": (with_column("rejected", pa.array(["ab", "ab"])), "row 0 names the rejected picture ab"),
    "shard cut": (cut("images-00000.parquet"), r"images-00000\.parquet is damaged"),
    "shard of another kind": (
        lambda folder: pq.write_table(pa.table({"x": [1]}), folder / "images-00000.parquet"),
        r"images-00000\.parquet is damaged",
    ),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_a_damaged_set_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    damage, message = BAD_SETS[name]
    make_set(tmp_path / "set", 2)
    damage(tmp_path / "set")
    with pytest.raises(MapoError, match=message) as failure:
        PairSet(tmp_path / "set")
    assert "`mapo import`" in str(failure.value)


def test_meta_that_is_no_json_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 2)
    with_column("meta", pa.array(["{}", "{"]))(tmp_path / "set")
    opened = PairSet(tmp_path / "set")
    assert opened[0].meta == {}
    with pytest.raises(MapoError, match=r"row 1: meta is not JSON .*`mapo import`"):
        list(opened)


def test_a_folder_that_holds_a_set_names_it(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "style" / "pairs", {}) as writer:
        writer.add_pair("a bear", RED, BLUE)
    with pytest.raises(MapoError, match=r"style is not a pairs set, but holds one\. Name it: .*style/pairs\."):
        PairSet(tmp_path / "style")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="There is no pairs set at"):
        PairSet(tmp_path / "set")


def test_a_picture_whose_content_is_not_that_of_its_hash_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 2)
    shard = tmp_path / "set" / "images-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.set_column(1, "bytes", pa.array([GREEN, None, GREEN], pa.binary())), shard)
    opened = PairSet(tmp_path / "set")
    for name in opened.image_names():
        with pytest.raises(MapoError, match="does not have the content of its hash"):
            opened.image_bytes(name)


def test_a_damaged_place_inside_a_shard_is_found_when_its_picture_is_read(tmp_path: Path) -> None:
    opened = make_set(tmp_path / "set", 2)
    shard = tmp_path / "set" / "images-00000.parquet"
    data = bytearray(shard.read_bytes())
    for picture in (opened.image_bytes(name) for name in opened.image_names()):
        data[data.index(picture) + 40] ^= 255
    shard.write_bytes(data)
    for name in opened.image_names():
        with pytest.raises(MapoError, match="does not have the content of its hash"):
            PairSet(tmp_path / "set").image_bytes(name)


def test_a_page_of_a_shard_that_cannot_be_read_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 2)
    shard = tmp_path / "set" / "images-00000.parquet"
    place = pq.ParquetFile(shard).metadata.row_group(0).column(1).data_page_offset
    data = bytearray(shard.read_bytes())
    data[place : place + 12] = b"\xff" * 12
    shard.write_bytes(data)
    opened = PairSet(tmp_path / "set")
    with pytest.raises(MapoError, match=r"images-00000\.parquet is damaged"):
        opened.image_bytes(opened[0].chosen)


def test_a_shard_without_pictures_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 2)
    shard = tmp_path / "set" / "images-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns(["bytes"]), shard)
    with pytest.raises(MapoError, match=r"images-00000\.parquet is damaged \(it has no column bytes\)"):
        PairSet(tmp_path / "set")


def test_a_stored_file_that_is_no_picture_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    bad = Picture(sha256(b"text"), b"text", 6, 4)
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_checked_pair("a", bad, check_picture(RED))
    opened = PairSet(tmp_path / "set")
    with pytest.raises(MapoError, match=r"picture [0-9a-f]+: it is not in a known picture format.*`mapo import`"):
        opened.image(opened[0].chosen)
