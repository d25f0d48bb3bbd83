"""The set on disk: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
from mapo.pairs.pictures import Picture, check_picture
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


# ------------------------------------------------------------------ sets that are refused


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
