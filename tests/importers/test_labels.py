"""Labels of Pick-a-Pic in the types that people's tools write."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import BLUE, GREEN, RED
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.pairs import PairSet


def write(path: Path, first: Any, second: Any, **more: Any) -> Path:
    count = len(first)
    table = {"jpg_0": [RED] * count, "jpg_1": [BLUE] * count, "caption": [f"prompt {k}" for k in range(count)]}
    pq.write_table(pa.table(table | {"label_0": first, "label_1": second} | more), path)
    return path


CLEAR = {
    "text": (pa.array(["1", "0"]), pa.array(["0", "1"])),
    "text with a point": (pa.array(["1.0", " 0.0"]), pa.array(["0.0", "1.0 "])),
    "truth": (pa.array([True, False]), pa.array([False, True])),
    "truth as text": (pa.array(["True", " false"]), pa.array(["False", "TRUE"])),
    "int8": (pa.array([1, 0], pa.int8()), pa.array([0, 1], pa.int8())),
    "decimal": (pa.array([Decimal(1), Decimal(0)], pa.decimal128(5, 2)), pa.array([Decimal(0), Decimal(1)], pa.decimal128(5, 2))),
    "float32": (pa.array([1, 0], pa.float32()), pa.array([0, 1], pa.float32())),
    "signed": (pa.array([1, -1]), pa.array([-1, 1])),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAR)
def test_labels_of_every_type_with_one_clear_meaning_are_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.parquet", *CLEAR[name])
    assert import_pairs(path, tmp_path / "set") == {"pairs": 2, "ties": 0, "repeats": 0, "bad": 0}
    assert [pair.chosen for pair in PairSet(tmp_path / "set")] == [sha256(RED), sha256(BLUE)]


@pytest.mark.parametrize("half", [pa.array([0.5], pa.float32()), pa.array(["0.5"]), pa.array([Decimal("0.5")])])
def test_a_tie_is_a_tie_in_every_type(tmp_path: Path, half: Any) -> None:
    path = write(tmp_path / "x.parquet", half, half)
    assert import_pairs(path, tmp_path / "set", ties="keep")["ties"] == 1


UNCLEAR = {
    "words": (["yes"], ["no"], "label_0 and label_1 are 'yes' and 'no', not"),
    "neither in words": (["False"], ["false"], "label_0 and label_1 are 'False' and 'false', not"),
    "both": (["1"], ["1"], "label_0 and label_1 are '1' and '1', not"),
    "shares": ([0.8], [0.2], "label_0 and label_1 are 0.8 and 0.2, not"),
    "signed and not": ([-1], [0], "label_0 and label_1 are -1 and 0, not"),
    "neither": ([False], [False], "label_0 and label_1 are False and False, not"),
    "missing": (
        pa.array([None], pa.float64()),
        pa.array([None], pa.float64()),
        "label_0 and label_1 are None and None",
    ),
    "a list": ([[1]], [[0]], r"label_0 and label_1 are \[1\] and \[0\], not"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_labels_without_a_clear_meaning_are_refused_with_the_values_seen(tmp_path: Path, name: str) -> None:
    first, second, why = UNCLEAR[name]
    with pytest.raises(MapoError, match=rf"^x\.parquet row 0: {why}"):
        import_pairs(write(tmp_path / "x.parquet", first, second), tmp_path / "set")


@pytest.mark.parametrize("has_label", [pa.array([False, True]), pa.array(["False", "True"]), pa.array([0, 1])])
def test_rows_that_say_they_have_no_label_are_left_out_with_a_count(
    tmp_path: Path, has_label: Any, heard: Callable[[], str]
) -> None:
    path = write(tmp_path / "x.parquet", [0.0, 1.0], [0.0, 0.0], has_label=has_label)
    assert import_pairs(path, tmp_path / "set") == {"pairs": 1, "ties": 0, "repeats": 0, "bad": 0}
    assert "1 row was left out: has_label is false." in heard()
    assert PairSet(tmp_path / "set").info["provenance"]["left_out"] == {"has_label is false": 1}


def test_a_source_without_any_label_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [0.0], [0.0], has_label=[False])
    with pytest.raises(MapoError, match=r"gave no pairs .* 1 row was left out: has_label is false\."):
        import_pairs(path, tmp_path / "set")


def test_the_pictures_of_pick_a_pic_in_webdataset_have_their_labels_as_text(tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for key, labels in (("0", "01"), ("1", "10")):
            texts = {"original_prompt.txt": f"prompt {key}", "label_0.txt": labels[0], "label_1.txt": labels[1]}
            members = {"jpg_0.jpg": GREEN, "jpg_1.jpg": BLUE} | {name: text.encode() for name, text in texts.items()}
            for name, data in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    import_pairs(tmp_path / "x.tar", tmp_path / "set")
    assert [(p.prompt, p.chosen) for p in PairSet(tmp_path / "set")] == [
        ("prompt 0", sha256(BLUE)),
        ("prompt 1", sha256(GREEN)),
    ]
