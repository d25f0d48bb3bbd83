"""Cells of every type that a table can hold: read where they have one meaning, a sentence where not, no traceback."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import BLUE, RED
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.importers.containers.cells import plain
from mapo.pairs import PairSet

TIME = datetime.datetime(2024, 1, 2, 3, 4, 5)


def write(path: Path, **columns: Any) -> Path:
    table = {"prompt": ["a bear"], "chosen": [RED], "rejected": [BLUE]}
    pq.write_table(pa.table(table | columns), path)
    return path


META: dict[str, tuple[Any, Any, int]] = {
    "nested": ([{"a": 1, "b": {"c": "x", "d": [1.5, None]}}], {"a": 1, "b": {"c": "x", "d": [1.5, None]}}, 0),
    "time": ([{"t": TIME}], {"t": "2024-01-02T03:04:05"}, 0),
    "date": ([{"t": TIME.date()}], {"t": "2024-01-02"}, 0),
    "time of day": ([{"t": TIME.time()}], {"t": "03:04:05"}, 0),
    "span": ([{"t": datetime.timedelta(minutes=1)}], {"t": 60.0}, 0),
    "decimal": ([{"n": Decimal("1.50"), "m": Decimal("2.00")}], {"n": 1.5, "m": 2}, 0),
    "bytes": ([{"thumb": b"\0\1", "a": 1}], {"a": 1}, 1),
    "bytes deep down": ([{"a": {"thumb": b"\0", "b": 2}, "c": [b"x"]}], {"a": {"b": 2}, "c": [None]}, 2),
    "no number": ([{"a": float("nan"), "b": 1}], {"b": 1}, 1),
    "nanoseconds": (
        pa.array([{"t": 1_700_000_000_000_000_001}], pa.struct([("t", pa.timestamp("ns"))])),
        {"t": "2023-11-14 22:13:20.000000001"},
        0,
    ),
    "nanoseconds in a list": (
        pa.array([{"t": [1]}], pa.struct([("t", pa.list_(pa.timestamp("ns")))])),
        {"t": ["1970-01-01 00:00:00.000000001"]},
        0,
    ),
    "a map": (pa.array([{"m": [("k", 1)]}], pa.struct([("m", pa.map_(pa.string(), pa.int64()))])), {"m": [["k", 1]]}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("on_bad_row", ["stop", "drop"])
def test_values_of_meta_are_kept_in_a_plain_form_or_left_out_with_a_count(
    tmp_path: Path, name: str, on_bad_row: str, heard: Callable[[], str]
) -> None:
    meta, kept, lost = META[name]
    counts = import_pairs(write(tmp_path / "x.parquet", meta=meta), tmp_path / "set", on_bad_row=on_bad_row)
    assert counts == {"pairs": 1, "ties": 0, "repeats": 0, "bad": 0}
    opened = PairSet(tmp_path / "set")
    assert opened[0].meta == kept
    assert opened.info["provenance"].get("meta_left_out", 0) == lost
    assert ("no form in JSON" in heard()) == bool(lost)


def test_values_that_no_table_holds_are_plain_too() -> None:
    name = uuid.UUID(int=5)
    assert plain({1: name, "x": (1, 2), "y": Decimal("NaN"), "z": object()}) == ({"1": str(name), "x": [1, 2]}, 2)
    assert plain({"t": TIME.replace(tzinfo=datetime.UTC)})[0] == {"t": "2024-01-02T03:04:05+00:00"}


GOOD: dict[str, dict[str, Any]] = {
    "dictionary": {"prompt": pa.array(["a bear"]).dictionary_encode(), "chosen": pa.array([RED], pa.binary()).dictionary_encode()},
    "large": {"prompt": pa.array(["a bear"], pa.large_string()), "chosen": pa.array([RED], pa.large_binary())},
    "view": {"prompt": pa.array(["a bear"], pa.string_view()), "chosen": pa.array([RED], pa.binary_view())},
    "fixed": {"chosen": pa.array([RED], pa.binary(len(RED)))},
    "list of one": {"chosen": [[{"bytes": RED, "path": None}]]},
    "prompt in bytes": {"prompt": pa.array([b"a bear"], pa.binary())},
    "prompt in a list of one": {"prompt": [["a bear"]]},
    "half precision": {"weight": pa.array(np.array([2], "f2")), "preference": pa.array(np.array([0.75], "f2"))},
    "decimal weight": {"weight": pa.array([Decimal("2.50")])},
    "nulls": {"weight": pa.nulls(1), "group": pa.nulls(1), "meta": pa.nulls(1), "preference": pa.nulls(1)},
    "group of fractions": {"group": [1.0]},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_cells_of_every_type_with_one_meaning_are_read(tmp_path: Path, name: str) -> None:
    import_pairs(write(tmp_path / "x.parquet", **GOOD[name]), tmp_path / "set")
    (pair,) = PairSet(tmp_path / "set")
    assert (pair.prompt, pair.chosen) == ("a bear", sha256(RED))
    assert pair.group in (None, "1")


PIXELS = np.zeros((4, 4, 3), np.uint8).tolist()
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "pixels": ({"chosen": [PIXELS]}, "a picture is a list of numbers; it must be the bytes of a file"),
    "two pictures": ({"chosen": [[RED, BLUE]]}, "a picture is a list of 2 things"),
    "a number for a picture": ({"chosen": [5]}, "a picture has no bytes"),
    "base64": ({"chosen": ["iVBORw0KGgo" + "A" * 400]}, "a picture is written as base64 text"),
    "an address of data": ({"chosen": ["data:image/png;base64,iVBORw0KGgo"]}, "a picture is written as base64 text"),
    "messages": ({"prompt": [[{"role": "user", "content": "a bear"}]]}, "prompt is a list of messages"),
    "a number for a prompt": ({"prompt": [5]}, "the prompt is 5, which is not a text"),
    "a time for a prompt": ({"prompt": [TIME.date()]}, "the prompt is datetime.date"),
    "prompt in other bytes": ({"prompt": pa.array(["Bär".encode("latin-1")], pa.binary())}, "the prompt is not UTF-8: byte 0xe4"),
    "preference in percent": ({"preference": [90]}, "preference is 90.0, it must lie in 0.5"),
    "weight as a time": ({"weight": [TIME.date()]}, "weight is datetime.date.*, which is not a number"),
    "group of parts": ({"group": [1.5]}, "group is 1.5, which is not a name"),
    "group of bytes": ({"group": [b"g"]}, "group is b'g', which is not a name"),
    "meta of a time": ({"meta": [TIME]}, "meta is not JSON"),
    "meta of bytes": ({"meta": [b"x"]}, "meta is not a JSON object"),
    "meta of words": ({"meta": ["made by hand"]}, "meta is not JSON"),
    "meta of a list": ({"meta": [["a"]]}, "meta is not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_cells_of_other_types_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    columns, why = BAD[name]
    path = write(tmp_path / "x.parquet", **columns)
    with pytest.raises(MapoError, match=rf"^x\.parquet row 0: {why}"):
        import_pairs(path, tmp_path / "set")
    with pytest.raises(MapoError, match="gave no pairs .0 ties, 1 bad row"):
        import_pairs(path, tmp_path / "set", on_bad_row="drop")


def test_shards_whose_columns_differ_in_type_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "0.parquet", weight=pa.nulls(1), group=pa.array([1]), meta=pa.nulls(1))
    write(
        tmp_path / "in" / "1.parquet",
        prompt=["b"],
        weight=[2.0],
        group=["g"],
        extra=[b"x"],
        chosen=[{"bytes": RED, "path": None}],
    )
    import_pairs(tmp_path / "in", tmp_path / "set")
    assert [(p.weight, p.group) for p in PairSet(tmp_path / "set")] == [(1.0, "1"), (2.0, "g")]


def test_meta_in_lines_of_json_has_no_nan(tmp_path: Path) -> None:
    for name, data in (("a.png", RED), ("b.png", BLUE)):
        (tmp_path / name).write_bytes(data)
    line = json.dumps({"prompt": "a", "chosen": "a.png", "rejected": "b.png", "meta": {"x": float("nan"), "y": 1}})
    (tmp_path / "x.jsonl").write_text(line)
    import_pairs(tmp_path / "x.jsonl", tmp_path / "set")
    assert PairSet(tmp_path / "set")[0].meta == {"y": 1}
