"""Parquet with Pick-a-Pic's columns."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import BLUE, GREEN, RED, write_parquet
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import BadRow, Options, RawPair, import_pairs
from mapo.importers.formats.pickapic import NEEDED, detects, read
from mapo.importers.sources import Source
from mapo.pairs import PairSet


def make_row(**changes: Any) -> dict[str, Any]:
    return {"jpg_0": RED, "jpg_1": BLUE, "label_0": 1.0, "label_1": 0.0, "caption": "ein Bär 🐻", **changes}


def rows(path: Path) -> list[RawPair | BadRow]:
    return [item for row in read(Source(path), Options()) for item in row]


def test_the_picture_with_label_1_is_chosen(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [make_row(), make_row(label_0=0.0, label_1=1.0)])
    first, second = rows(path)
    assert isinstance(first, RawPair)
    assert isinstance(second, RawPair)
    assert (first.prompt, first.chosen, first.rejected, first.preference) == ("ein Bär 🐻", RED, BLUE, 1.0)
    assert (second.chosen, second.rejected, second.preference) == (BLUE, RED, 1.0)
    assert (first.where, second.where) == ("p.parquet row 0", "p.parquet row 1")


def test_labels_may_be_whole_numbers(tmp_path: Path) -> None:
    (found,) = rows(write_parquet(tmp_path / "p.parquet", [make_row(label_0=0, label_1=1)]))
    assert isinstance(found, RawPair)
    assert found.chosen == BLUE


def test_equal_halves_are_a_tie_and_ties_are_dropped_with_a_count(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [make_row(), *[make_row(label_0=0.5, label_1=0.5)] * 3])
    assert [row.preference for row in rows(path) if isinstance(row, RawPair)] == [1.0, 0.5, 0.5, 0.5]
    assert import_pairs(path, tmp_path / "set") == {"pairs": 1, "ties": 3, "repeats": 0, "bad": 0}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "both are better": ({"label_0": 1.0, "label_1": 1.0}, "label_0 and label_1 are 1.0 and 1.0, not (0, 1)"),
    "neither is better": ({"label_0": 0.0, "label_1": 0.0}, "label_0 and label_1 are 0.0 and 0.0"),
    "a third": ({"label_0": 0.3, "label_1": 0.7}, "label_0 and label_1 are 0.3 and 0.7"),
    "no label": ({"label_0": None, "label_1": None}, "label_0 and label_1 are None and None"),
    "one label": ({"label_1": None}, "label_0 and label_1 are 1.0 and None"),
    "not a number": ({"label_0": float("nan")}, "label_0 and label_1 are nan and 0.0"),
    "no picture": ({"jpg_0": None}, "a picture has no bytes"),
    "empty picture": ({"jpg_1": b""}, "a picture has no bytes"),
    "no caption": ({"caption": None}, "there is no caption"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_is_no_pair_is_told_by_its_number(tmp_path: Path, name: str) -> None:
    changes, why = BAD[name]
    good, bad = rows(write_parquet(tmp_path / "p.parquet", [make_row(), make_row(**changes)]))
    assert isinstance(good, RawPair)
    assert isinstance(bad, BadRow)
    assert bad.where == "p.parquet row 1"
    assert why in bad.why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"caption": "  "}, "the prompt is empty"),
        ({"jpg_1": RED}, "chosen and rejected are the same picture"),
        ({"jpg_1": BLUE[:40]}, "the rejected picture: "),
        ({"label_0": 1.0, "label_1": 1.0}, "label_0 and label_1 are 1.0 and 1.0"),
    ],
)
def test_a_bad_row_stops_the_import_or_is_dropped(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    path = write_parquet(tmp_path / "p.parquet", [make_row(), make_row(**changes), make_row(caption="b")])
    with pytest.raises(MapoError, match=f"^p.parquet row 1: {why}"):
        import_pairs(path, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert import_pairs(path, tmp_path / "set", on_bad_row="drop") == {"pairs": 2, "ties": 0, "repeats": 0, "bad": 1}


def test_missing_columns_are_named_together_with_those_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{"caption": "a", "jpg_0": RED, "chosen": 1}])
    with pytest.raises(MapoError) as failure:
        rows(path)
    assert "p.parquet lacks the columns jpg_1, label_0, label_1; it has caption, jpg_0, chosen." in str(failure.value)


@pytest.mark.parametrize("column", NEEDED)
def test_every_needed_column_is_needed(tmp_path: Path, column: str) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{k: v for k, v in make_row().items() if k != column}])
    with pytest.raises(MapoError, match=f"lacks the columns {column}; it has"):
        rows(path)


def test_pictures_may_be_structs_as_the_image_feature_of_datasets_stores_them(tmp_path: Path) -> None:
    def picture(data: bytes | None) -> dict[str, Any]:
        return {"bytes": data, "path": "x.jpg"}

    good = make_row(jpg_0=picture(RED), jpg_1=picture(GREEN))
    bad = make_row(jpg_0=picture(RED), jpg_1=picture(None))
    first, second = rows(write_parquet(tmp_path / "p.parquet", [good, bad]))
    assert isinstance(first, RawPair)
    assert (first.chosen, first.rejected) == (RED, GREEN)
    assert isinstance(second, BadRow)
    assert second.why == "the picture x.jpg cannot be read (it is not there)"


def test_a_text_that_is_no_utf_8_is_a_bad_row_and_the_others_are_read(tmp_path: Path) -> None:
    rows = [make_row(caption=text) for text in ("a bear", "?", "ein Bär")]
    table = pa.Table.from_pylist(rows)
    data = b"a bear" + b"\xff" + "ein Bär".encode()
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(struct.pack("<4i", 0, 6, 7, len(data))), pa.py_buffer(data)]
    )
    place = table.schema.get_field_index("caption")
    pq.write_table(table.set_column(place, "caption", texts), tmp_path / "x.parquet")
    with pytest.raises(MapoError, match=r"^x\.parquet row 1: the prompt is not UTF-8: byte 0xff at place 0"):
        import_pairs(tmp_path / "x.parquet", tmp_path / "set")
    assert import_pairs(tmp_path / "x.parquet", tmp_path / "set", on_bad_row="drop")["bad"] == 1
    assert [pair.prompt for pair in PairSet(tmp_path / "set")] == ["a bear", "ein Bär"]


def test_what_describes_a_pair_is_kept_and_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    row = make_row(ranking_id=12, user_id=None, model_0="SDXL", are_different=True, image_0_url="http://x")
    import_pairs(write_parquet(tmp_path / "p.parquet", [row]), tmp_path / "set")
    (pair,) = PairSet(tmp_path / "set")
    assert pair.group == "12"
    assert pair.meta == {"ranking_id": "12", "model_0": "SDXL"}
    assert (pair.chosen, pair.rejected, pair.source) == (sha256(RED), sha256(BLUE), "pickapic")


def test_times_in_nanoseconds_are_kept_to_the_last_digit_without_pandas(tmp_path: Path) -> None:
    numbers, pictures = ("label_0", "label_1"), ("jpg_0", "jpg_1")
    kinds = {"created_at": pa.timestamp("ns"), "caption": pa.string()}
    schema = pa.schema(kinds | dict.fromkeys(numbers, pa.int64()) | dict.fromkeys(pictures, pa.binary()))
    row = make_row(label_0=1, label_1=0, created_at=1_700_000_000_000_000_001)
    path = write_parquet(tmp_path / "p.parquet", [row], schema)
    (tmp_path / "pandas.py").write_text("raise ImportError")
    code = """import sys, pathlib
from mapo.importers import Options
from mapo.importers.formats.pickapic import read
from mapo.importers.sources import Source
print(next(read(Source(pathlib.Path(sys.argv[1])), Options()))[0].meta)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "{'created_at': '2023-11-14 22:13:20.000000001'}", done.stderr


def test_a_folder_gives_the_pairs_of_all_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b/x.parquet", "a/y.parquet", "a/x.parquet"):
        write_parquet(tmp_path / "in" / name, [make_row(caption=f"{name} {k}") for k in range(40)])
    found = [row.prompt for row in rows(tmp_path / "in") if isinstance(row, RawPair)]
    assert found == [f"{name} {k}" for name in ("a/x.parquet", "a/y.parquet", "b/x.parquet") for k in range(40)]


def test_a_parquet_file_or_a_folder_of_some_is_detected(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "deep" / "p.parquet", [make_row()])
    (tmp_path / "empty").mkdir()
    other = write_parquet(tmp_path / "other.parquet", [{"prompt": "a", "chosen": RED, "rejected": BLUE}])
    (tmp_path / "x.jsonl").write_text("{}")
    assert detects(Source(path))
    assert detects(Source(tmp_path / "in"))
    assert not detects(Source(tmp_path / "empty"))
    assert not detects(Source(tmp_path / "x.jsonl"))
    assert not detects(Source(other))


@pytest.mark.parametrize("content", [b"", b"text", None, b"PAR1" + b"\0" * 100 + b"PAR1", b"PAR1" + b"\xff" * 100])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = write_parquet(tmp_path / "p.parquet", [make_row()])
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(MapoError, match=r"p\.parquet is not a whole Parquet file") as told:
        rows(path)
    assert "\n" not in str(told.value)


def test_a_file_that_is_damaged_inside_says_after_which_row(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([make_row(caption=f"{k}") for k in range(80)]), path, row_group_size=40)
    place = pq.ParquetFile(path).metadata.row_group(1).column(4).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 12] = b"\xff" * 12
    path.write_bytes(data)
    with pytest.raises(MapoError, match=r"p\.parquet breaks off after row (32|40)"):
        rows(path)
    with pytest.raises(MapoError, match="breaks off"):
        import_pairs(path, tmp_path / "set", on_bad_row="drop")
    assert not (tmp_path / "set").exists()


def test_a_folder_without_parquet_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="holds no Parquet files"):
        rows(tmp_path)
