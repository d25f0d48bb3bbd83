"""The set on disk: what goes in comes out, and what is outside the schema is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_fixtures import (
    BLACK,
    BLUE,
    GREEN,
    PICTURES,
    RED,
    files_below,
    make_picture,
    make_set,
)
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs.pairs import PAIR_SCHEMA, Pair, PairSet, PairWriter, make_pair, pair_id, replace_pairs
from mapo.pairs.splits import SPLITS, split_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
REST = st.fixed_dictionaries(
    {},
    optional={
        "preference": st.floats(0.5, 1),
        "weight": st.floats(0, 1e300),
        "group": st.none() | TEXT,
        "split": st.sampled_from(SPLITS),
        "source": TEXT,
        "meta": st.dictionaries(TEXT, JSON, max_size=3),
    },
)
ROW = st.tuples(TEXT.filter(str.strip), st.permutations(PICTURES).map(lambda p: (p[0], p[1])), REST)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=6))
def test_what_is_written_is_read_back_equal(rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("set") / "pairs"
    with PairWriter(folder, {"by": "hypothesis"}) as writer:
        written = [p for prompt, sides, rest in rows if (p := writer.add_pair(prompt, *sides, **rest))]
    opened = PairSet(folder)
    assert list(opened) == written
    assert len(opened) == opened.info["pairs"] == len({p.id for p in written})
    named = {name for pair in written for name in (pair.chosen, pair.rejected)}
    assert set(opened.image_names()) == named
    assert opened.info["images"] == len(named)
    by_name = {sha256(picture): picture for picture in PICTURES}
    assert all(opened.image_bytes(name) == by_name[name] for name in named)


def test_a_pair_without_further_words_is_sure_full_weight_and_on_its_prompts_side(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("a bear", RED, BLUE)
    pair = PairSet(tmp_path / "set")[0]
    red, blue = sha256(RED), sha256(BLUE)
    assert pair == Pair(pair_id("a bear", red, blue), "a bear", red, blue, 1.0, 1.0, None, split_of("a bear"), "", {})


def test_the_name_of_a_pair_depends_on_its_prompt_its_pictures_and_their_sides() -> None:
    names = {pair_id("a", "x", "y"), pair_id("a", "y", "x"), pair_id("b", "x", "y"), pair_id("a", "x", "z")}
    assert len(names) == 4
    assert pair_id("a", "x", "y") == pair_id("a", "x", "y")


def test_each_picture_is_stored_once_however_many_pairs_it_is_in(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        for k in range(50):
            writer.add_pair(f"prompt {k}", RED, PICTURES[1 + k % 5])
    stored = pq.read_table(tmp_path / "set" / "images-00000.parquet").to_pylist()
    assert sorted(row["bytes"] for row in stored) == sorted(PICTURES)
    assert all(row["sha256"] == sha256(row["bytes"]) for row in stored)
    assert {(row["width"], row["height"]) for row in stored} == {(6, 4)}


def test_the_very_same_pair_is_kept_once(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        assert writer.add_pair("a", RED, BLUE) is not None
        assert writer.add_pair("a", RED, BLUE, weight=2.0) is None
        assert writer.add_pair("a", BLUE, RED) is not None
    assert [p.weight for p in PairSet(tmp_path / "set")] == [1.0, 1.0]


def test_many_pictures_go_into_several_shards_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapo.pairs.writer.IMAGES_PER_ROW_GROUP", 3)
    monkeypatch.setattr("mapo.pairs.writer.BYTES_PER_SHARD", 6 * len(RED))
    opened = make_set(tmp_path / "set", 40)
    assert len(list((tmp_path / "set").glob("images-*.parquet"))) == 7
    assert len(opened.image_names()) == 41
    for k, pair in enumerate(opened):
        assert (opened.image(pair.chosen).getpixel((0, 0)), opened.image(pair.rejected).getpixel((0, 0))) == (
            (k, 0, 0),
            (k + 1, 0, 0),
        )


def test_more_pairs_than_one_portion_are_all_there_in_order(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        for k in range(5000):
            writer.add_pair(f"prompt {k}", RED, BLUE)
    assert PairSet(tmp_path / "set").table["prompt"].to_pylist() == [f"prompt {k}" for k in range(5000)]


# ------------------------------------------------------------------ whole or not at all


def test_a_set_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {"why": "test"}, sensitive=True) as writer:
        writer.add_pair("a", RED, BLUE)
        assert not (tmp_path / "set").exists()
    names = {"images-00000.parquet", "pairs.parquet", "pictures.npy", "set.json"}
    assert files_below(tmp_path) == {"set", *(f"set/{name}" for name in names)}
    info = PairSet(tmp_path / "set").info
    assert info == {
        "format": "mapo-pairs", "version": 2, "sensitive": True, "pairs": 1, "ties": 0, "images": 2,
        "images_not_kept": 0, "conversions": {}, "provenance": {"why": "test"},
    }  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("a", RED, BLUE)
        raise error
    assert files_below(tmp_path) == set()


def test_a_provenance_that_is_no_json_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError), PairWriter(tmp_path / "set", {"object": object()}) as writer:
        writer.add_pair("a", RED, BLUE)
    assert files_below(tmp_path) == set()


def test_an_empty_set_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="No pair to write"), PairWriter(tmp_path / "set", {}):
        pass
    assert files_below(tmp_path) == set()


def test_what_a_killed_writer_left_does_not_get_in(tmp_path: Path) -> None:
    stale = tmp_path / ".set.partial"
    stale.mkdir()
    (stale / "images-00007.parquet").write_text("stale")
    assert len(make_set(tmp_path / "set", 2)) == 2
    assert not stale.exists()
    assert not (tmp_path / "set" / "images-00007.parquet").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_out_that_exists_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "set"
    out.write_text("mine") if kind == "file" else out.mkdir()
    with pytest.raises(MapoError, match=r"already exists\. Choose another --out"):
        PairWriter(out, {})
    assert files_below(tmp_path) == {"set"}


def test_an_out_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MapoError, match="Cannot write to"):
        PairWriter(tmp_path / "file" / "set", {})


# ------------------------------------------------------------------ pairs that are refused

BAD_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "blank prompt": ({"prompt": " \n"}, "the prompt is empty"),
    "same picture": ({"rejected": RED}, "chosen and rejected are the same picture"),
    "unsure of the other": ({"preference": 0.3}, "preference is 0.3, it must lie in 0.5 … 1"),
    "more than sure": ({"preference": 1.01}, "preference is 1.01"),
    "no preference": ({"preference": math.nan}, "preference is nan"),
    "negative weight": ({"weight": -1.0}, "weight is -1.0"),
    "a weight whose sums are endless": ({"weight": 1e308}, r"weight is 1e\+308, more than 1e\+300; only the ratios"),
    "endless weight": ({"weight": math.inf}, "weight is inf"),
    "no weight": ({"weight": math.nan}, "weight is nan"),
    "unknown split": ({"split": "valid"}, "split is 'valid', it must be one of train, validation, test"),
    "half a character": ({"prompt": "\ud83d"}, r"the prompt has half a character at place 0 \(U\+D83D"),
    "half a character in meta": ({"meta": {"a": "\ud83d"}}, "meta has half a character"),
    "not a number in meta": ({"meta": {"a": math.nan}}, "JSON"),
    "bad chosen": ({"chosen": b"text"}, "the chosen picture: it is not in a known picture format"),
    "bad rejected": ({"rejected": b""}, "the rejected picture: it is empty"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_pair_outside_the_schema_is_refused_and_leaves_no_picture(tmp_path: Path, name: str) -> None:
    changes, message = BAD_PAIRS[name]
    with PairWriter(tmp_path / "set", {}) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add_pair(**{"prompt": "a", "chosen": RED, "rejected": BLUE, **changes})
        writer.add_pair("good", GREEN, BLACK)
    opened = PairSet(tmp_path / "set")
    assert [p.prompt for p in opened] == ["good"]
    assert set(opened.image_names()) == {sha256(GREEN), sha256(BLACK)}
    assert opened.info["images"] == 2


def test_a_tie_can_be_kept() -> None:
    assert make_pair("a", "x", "y", preference=0.5).preference == 0.5


# ------------------------------------------------------------------ reading


def test_a_relabelled_table_with_other_column_order_and_types_is_read(tmp_path: Path) -> None:
    before = list(make_set(tmp_path / "set", 3))
    path = tmp_path / "set" / "pairs.parquet"
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index("group"), "group", pa.nulls(3))
    table = table.set_column(table.column_names.index("prompt"), "prompt", table["prompt"].cast(pa.large_string()))
    table = table.set_column(table.column_names.index("preference"), "preference", pa.array([1, 1, 1]))
    pq.write_table(table.select(table.column_names[::-1]).append_column("mine", pa.array([1, 2, 3])), path)
    opened = PairSet(tmp_path / "set")
    assert list(opened) == before
    assert opened.table.schema == PAIR_SCHEMA


def test_a_folder_whose_name_looks_like_a_partition_is_read_as_any_other(tmp_path: Path) -> None:
    opened = make_set(tmp_path / "split=elsewhere" / "weight=7", 2, split="test", weight=2.0)
    assert [(p.split, p.weight) for p in opened] == [("test", 2.0)] * 2


def test_a_row_beyond_the_end_is_an_index_error(tmp_path: Path) -> None:
    opened = make_set(tmp_path / "set", 2)
    assert opened[1].prompt == "prompt 1"
    with pytest.raises(IndexError):
        opened[2]


def test_the_fingerprint_follows_what_is_learned_from_and_nothing_else(tmp_path: Path) -> None:
    def fingerprint(name: str, **rest: Any) -> str:
        return make_set(tmp_path / name, 3, **{"split": "train", **rest}).fingerprint()

    plain = fingerprint("plain")
    assert fingerprint("again", source="another", meta={"a": 1}) == plain
    others = [fingerprint("w", weight=2.0), fingerprint("p", preference=0.9), fingerprint("s", split="test")]
    assert len({plain, *others}) == 4


# ------------------------------------------------------------------ relabelling


def test_pairs_are_replaced_and_pictures_stay(tmp_path: Path) -> None:
    opened = make_set(tmp_path / "set", 4)
    images = (tmp_path / "set" / "images-00000.parquet").read_bytes()
    table = opened.table.slice(0, 3).set_column(4, "preference", pa.array([0.5, 1.0, 0.5]))
    replace_pairs(tmp_path / "set", table)
    again = PairSet(tmp_path / "set")
    assert [p.preference for p in again] == [0.5, 1.0, 0.5]
    assert (again.info["pairs"], again.info["ties"], again.info["images"]) == (3, 2, 5)
    written = json.loads((tmp_path / "set" / "set.json").read_text())
    assert (written["pairs"], written["ties"], written["provenance"]) == (3, 2, {"made": "by a test"})
    assert (tmp_path / "set" / "images-00000.parquet").read_bytes() == images
    assert not [p for p in (tmp_path / "set").iterdir() if p.name.startswith(".")]


def change(name: str, values: list[Any]) -> Any:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


BAD_TABLES: dict[str, tuple[Any, str]] = {
    "none left": (lambda table: table.slice(0, 0), "No pairs would be left"),
    "a column is missing": (lambda table: table.drop_columns(["weight"]), "do not fit its schema"),
    "an empty cell": (change("preference", [1.0, None]), "do not fit its schema"),
    "a preference of the other": (change("preference", [1.0, 0.2]), "row 1: preference is 0.2"),
    "a strange picture": (change("chosen", ["0" * 64] * 2), "row 0 names the chosen picture 000"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_does_not_fit_is_refused_and_the_set_stays(tmp_path: Path, name: str) -> None:
    spoil, why = BAD_TABLES[name]
    opened = make_set(tmp_path / "set", 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with pytest.raises(MapoError, match=why):
        replace_pairs(tmp_path / "set", spoil(opened.table))
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before


def test_a_set_counts_its_table_and_not_what_was_once_written(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 3)
    path = tmp_path / "set" / "pairs.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    assert PairSet(tmp_path / "set").info["pairs"] == 2


def test_the_sizes_of_both_sides_are_known_without_reading_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("mapo.pairs.writer.IMAGES_PER_ROW_GROUP", 3)
    monkeypatch.setattr("mapo.pairs.writer.BYTES_PER_SHARD", 400)
    with PairWriter(tmp_path / "set", {}) as writer:
        for k in range(9):
            writer.add_pair(f"p {k}", make_picture((k, 0, 0), (6 + k, 4)), make_picture((k, 9, 0), (5, 30 - k)))
    opened = PairSet(tmp_path / "set")
    assert len(list((tmp_path / "set").glob("images-*.parquet"))) > 1
    for side in ("chosen", "rejected"):
        found = opened.image_sizes()[opened.places_of(side)]
        assert found.tolist() == [list(opened.image(getattr(pair, side)).size) for pair in opened]


def test_a_row_is_the_same_asked_for_alone_or_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("mapo.pairs.writer.PAIRS_PER_ROW_GROUP", 4)
    monkeypatch.setattr("mapo.pairs.writer.PAIRS_AT_ONCE", 3)
    opened = make_set(tmp_path / "set", 11)
    assert [opened[row] for row in range(11)] == list(opened)
    with pytest.raises(IndexError):
        opened[11]


def test_a_set_is_opened_by_a_path_or_by_its_text(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("a bear", RED, BLUE)
    assert PairSet(str(tmp_path / "set")).fingerprint() == PairSet(tmp_path / "set").fingerprint()
    with pytest.raises(MapoError, match="There is no pairs set at nowhere"):
        PairSet("nowhere")
