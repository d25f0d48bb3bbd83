"""The table of scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_fixtures import files_below
from mapo.errors import MapoError
from mapo.score.table import SCHEMA, read_scores, write_scores


def make_row(**changes: Any) -> dict[str, Any]:
    texts = dict.fromkeys(("image", "prompt_id", "prompt", "model", "scorer", "metric", "version", "revision"), "x")
    return {**texts, "image": "0123456789abcdef", "seed": 1, "reference": None, "value": 0.5, **changes}


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    prompt=st.text(st.characters(codec="utf-8")),
)
def test_scores_come_back_equal(
    values: list[float | None], prompt: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("scores") / "deep" / "scores.parquet"
    rows = [make_row(value=value, prompt=prompt, seed=k) for k, value in enumerate(values)]
    write_scores(path, iter(rows))
    table = read_scores(path)
    assert table.to_pylist() == [{name: row[name] for name in SCHEMA.names} for row in rows]
    assert files_below(path.parent) == {"scores.parquet"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_an_error_and_the_old_table_stays(tmp_path: Path, value: float) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_row()])
    with pytest.raises(MapoError, match=f"mini gave {value} for picture 0123456789ab; only finite numbers are kept"):
        write_scores(path, [make_row(), make_row(scorer="mini", value=value)])
    assert read_scores(path).num_rows == 1
    assert files_below(tmp_path) == {"scores.parquet"}


def test_a_missing_table_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="There is no table of scores at .*Make it with `mapo score`"):
        read_scores(tmp_path / "scores.parquet")


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_table_is_refused_with_a_remedy(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_row()])
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    with pytest.raises(MapoError, match="cannot be read .*`mapo score`"):
        read_scores(path)


def test_another_parquet_file_or_version_is_no_table_of_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_row()])
    good = pq.read_table(path)
    others = [
        pa.table({"x": [1]}),
        good.replace_schema_metadata({"mapo-scores": "2"}),
        good.replace_schema_metadata(None),
        good.drop_columns(["reference"]),
    ]
    for other in others:
        pq.write_table(other, path)
        with pytest.raises(MapoError, match="is not a table of scores of version 1"):
            read_scores(path)


def test_further_columns_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_row()])
    pq.write_table(pq.read_table(path).append_column("mine", pa.array([1])), path)
    assert read_scores(path).column_names == SCHEMA.names


def test_a_table_in_a_folder_that_looks_like_a_partition_is_read_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "model=sdxl" / "seed=9" / "scores.parquet"
    write_scores(path, [make_row(model="mini", seed=1)])
    assert read_scores(path).select(["model", "seed"]).to_pylist() == [{"model": "mini", "seed": 1}]


@pytest.mark.parametrize("name", ["image", "prompt_id", "scorer", "metric", "seed"])
def test_a_row_that_says_not_what_it_is_about_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_row(), {**make_row(seed=2), name: None}])
    with pytest.raises(MapoError, match=rf"scores\.parquet has no {name} in row 2"):
        read_scores(path)


@pytest.mark.parametrize(
    ("name", "kind"), [("value", pa.string()), ("seed", pa.string()), ("value", pa.list_(pa.int8()))]
)
def test_a_column_of_another_type_is_refused(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_row()])
    table = pq.read_table(path)
    column = pa.array(["abc"], kind) if kind == pa.string() else pa.array([[1]], kind)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
    with pytest.raises(MapoError, match="columns of other types"):
        read_scores(path)
