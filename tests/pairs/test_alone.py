"""Sets of good pictures alone: `rejected` is null in every row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import BLUE, GREEN, RED
from mapo.errors import MapoError
from mapo.label.blind import of_grids, of_pairs
from mapo.label.consensus import apply_votes
from mapo.pairs import PairSet, PairWriter
from mapo.pairs.pairs import replace_pairs
from mapo.pairs.schema import pair_id


@pytest.fixture
def alone(tmp_path):
    with PairWriter(tmp_path / "set", {}) as writer:
        assert writer.add_pair("a red field", RED, None) and writer.add_pair("a blue field", BLUE, None)
        assert writer.add_pair("a red field", RED, None) is None
        writer.add_pair_by_hash("blue", writer.add_image(BLUE), None, split="test")
    return PairSet(tmp_path / "set")


def test_it_opens_and_says_what_it_has(alone):
    assert not alone.has_rejected and alone.sides == ("chosen",)
    assert [(pair.prompt, pair.rejected, pair.preference) for pair in alone] == [
        ("a red field", None, 1.0), ("a blue field", None, 1.0), ("blue", None, 1.0),
    ]  # fmt: skip
    first = alone[0]
    assert alone.image_bytes(first.chosen) == RED and first.id == pair_id("a red field", first.chosen, None)
    assert alone.number_of_images() == 2 and (alone.info["pairs"], alone.info["images"]) == (3, 2)
    assert pq.read_table(alone.folder / "pairs.parquet")["rejected"].null_count == 3


def test_a_set_of_both_kinds_is_neither_written_nor_read(tmp_path, alone):
    for first, second in ((GREEN, None), (None, GREEN)):
        with PairWriter(tmp_path / "both", {}) as writer:
            writer.add_pair("a", RED, first)
            with pytest.raises(ValueError, match="a set has a rejected picture in every pair or in none"):
                writer.add_pair("b", BLUE, second)
        assert len(PairSet(tmp_path / "both")) == 1
        (tmp_path / "both").rename(tmp_path / f"one-{first is None}")
    table = alone.table.to_pylist()
    table[1]["rejected"] = table[0]["chosen"]
    with pytest.raises(MapoError, match="some rows have a rejected picture and others have none"):
        replace_pairs(alone.folder, pa.Table.from_pylist(table, alone.table.schema))


def test_what_was_begun_with_one_kind_goes_on_with_that_kind(tmp_path):
    with pytest.raises(RuntimeError), PairWriter(tmp_path / "set", {}, job={"of": "x"}) as writer:
        writer.add_pair("a", RED, None)
        writer.commit(1)
        raise RuntimeError
    with PairWriter(tmp_path / "set", {}, job={"of": "x"}) as writer:
        with pytest.raises(ValueError, match="in every pair or in none"):
            writer.add_pair("b", BLUE, GREEN)
        writer.add_pair("b", BLUE, None)
    assert len(PairSet(tmp_path / "set")) == 2


def test_nothing_is_preferred_to_nothing(tmp_path, alone):
    with PairWriter(tmp_path / "other", {}) as writer:
        with pytest.raises(ValueError, match=r"preference is 0.7 without a rejected picture, where it must be 1"):
            writer.add_pair("a", RED, None, preference=0.7)
        writer.add_pair("a", RED, None)
    table = alone.table.set_column(4, "preference", pa.array([1.0, 0.5, 1.0]))
    with pytest.raises(MapoError, match=r"row 1: preference is 0.5 without a rejected picture"):
        replace_pairs(alone.folder, table)


def test_what_compares_refuses_it_with_what_to_do(tmp_path, alone):
    from mapo.export.pairs import export_pairs, export_to_hub

    why = r"has no rejected pictures, and mapo {} needs them. Draw them with `mapo build --chosen PICTURES --rej"
    for verb, work in (
        ("label", lambda: of_pairs(alone)),
        ("label", lambda: of_grids(alone)),
        ("label", lambda: apply_votes(alone, tmp_path / "out")),
        ("export", lambda: export_pairs(alone, "preference", tmp_path / "out")),
        ("export", lambda: export_to_hub(alone, tmp_path / "out", "owner/name", api=object())),
    ):
        with pytest.raises(MapoError, match=why.format(verb)):
            work()
    assert not (tmp_path / "out").exists()
