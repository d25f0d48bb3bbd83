"""What other programs open."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_fixtures import BLUE, GREEN, PICTURES, RED, encoded, files_below, make_set, noise
from mapo.errors import MapoError
from mapo.export.pairs import FORMATS, describe, export_pairs
from mapo.importers import import_pairs
from mapo.pairs.pairs import PairSet, PairWriter, decode_picture


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    """Pairs of all three splits, a tie, a graded one, a ranking, and a JPEG beside the PNGs."""
    folder = tmp_path_factory.mktemp("sets") / "pairs"
    with PairWriter(folder, {}) as writer:
        for k in range(60):
            writer.add_pair(f"Bär {k} 🐻", PICTURES[k % 6], PICTURES[(k + 1 + k % 5) % 6], source="test", meta={"k": k})
        writer.add_pair("tie", RED, BLUE, preference=0.5, split="train")
        writer.add_pair("graded", RED, encoded(noise(), "JPEG"), preference=0.7, weight=2.0, split="train")
        writer.add_pair("ranked", RED, GREEN, group="r:1", split="train")
        writer.add_pair("ranked", RED, BLUE, group="r:1", split="train")
    return PairSet(folder)


def exported(pairs: PairSet, format: str, out: Path, **how: Any) -> Path:
    export_pairs(pairs, format, out, **how)
    return out


def opened(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return datasets.load_dataset(str(folder), cache_dir=str(cache))


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_load_dataset_opens_the_preference_export_and_decodes_the_very_pictures(
    pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(exported(pairs, "preference", tmp_path / "hf"), tmp_path / "cache", monkeypatch)
    assert set(found) == {"train", "validation", "test"}
    for split, rows in found.items():
        expected = [p for p in pairs if p.split == split]
        assert len(rows) == len(expected) > 0
        for row, pair in zip(rows, expected, strict=True):
            for side in ("chosen", "rejected"):
                assert isinstance(row[side], Image.Image)
                assert row[side].convert("RGB").tobytes() == pixels(pairs.image_bytes(getattr(pair, side)))
            for name in ("id", "prompt", "preference", "weight", "group", "source"):
                assert row[name] == getattr(pair, name)
            assert json.loads(row["meta"]) == pair.meta


def test_load_dataset_opens_the_pickapic_export(
    pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(exported(pairs, "pickapic", tmp_path / "pp"), tmp_path / "cache", monkeypatch)
    assert sum(len(rows) for rows in found.values()) == len(pairs)
    row = found["train"][0]
    assert isinstance(row["jpg_0"], bytes)
    assert {row["label_0"], row["label_1"]} == {0.0, 1.0}
    assert row["has_label"] is True


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_in_the_pickapic_export_the_labels_follow_the_pictures(pairs: PairSet, tmp_path: Path) -> None:
    by_sides = {(p.prompt, frozenset((p.chosen, p.rejected))): p for p in pairs}
    for row in rows_of(exported(pairs, "pickapic", tmp_path / "pp")):
        uids = (row["image_0_uid"], row["image_1_uid"])
        pair = by_sides[row["caption"], frozenset(uids)]
        assert [row["jpg_0"], row["jpg_1"]] == [pairs.image_bytes(uid) for uid in uids]
        assert row["ranking_id"] == (pair.group or pair.id)
        if pair.preference == 0.5:
            assert (row["label_0"], row["label_1"], row["best_image_uid"]) == (0.5, 0.5, "")
        else:
            better = uids.index(pair.chosen)
            assert (row["label_0"], row["label_1"]) == (float(better == 0), float(better == 1))
            assert row["best_image_uid"] == uids[better] == pair.chosen


def test_in_the_pickapic_export_the_side_tells_nothing(tmp_path: Path) -> None:
    rows = rows_of(exported(make_set(tmp_path / "set", 200), "pickapic", tmp_path / "pp"))
    assert sum(row["label_0"] for row in rows) == pytest.approx(100, abs=28)  # four standard deviations


def test_the_pickapic_export_comes_back_as_the_same_pairs_without_ties(pairs: PairSet, tmp_path: Path) -> None:
    export_pairs(pairs, "pickapic", tmp_path / "pp")
    counts = import_pairs(tmp_path / "pp", tmp_path / "again")
    sure = {p.id: p for p in pairs if p.preference != 0.5}
    again = {p.id: p for p in PairSet(tmp_path / "again")}
    assert counts == {"pairs": len(sure), "ties": 1, "repeats": 0, "bad": 0}
    assert again.keys() == sure.keys()
    for name, pair in again.items():
        assert (pair.prompt, pair.chosen, pair.rejected) == (sure[name].prompt, sure[name].chosen, sure[name].rejected)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_goes_into_files_of_its_splits_in_order(
    pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("mapo.export.pairs.ROWS_PER_FILE", 20)
    monkeypatch.setattr("mapo.export.pairs.ROWS_PER_GROUP", 10)
    monkeypatch.setattr("mapo.export.pairs.PAIRS_AT_ONCE", 7)
    out = exported(pairs, format, tmp_path / "out")
    train = [p.prompt for p in pairs if p.split == "train"]
    count = -(-len(train) // 20)
    assert count > 1
    names = [f"train-{k:05d}-of-{count:05d}.parquet" for k in range(count)]
    assert sorted(p.name for p in (out / "data").glob("train-*")) == names
    column = "caption" if format == "pickapic" else "prompt"
    assert [p for name in names for p in pq.read_table(out / "data" / name)[column].to_pylist()] == train


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path, format: str) -> None:
    pairs = make_set(tmp_path / "set", 3)
    shard = tmp_path / "set" / "images-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[data.index(pairs.image_bytes(pairs[2].rejected)) + 40] ^= 255
    shard.write_bytes(data)
    with pytest.raises(MapoError, match="does not have the content of its hash"):
        export_pairs(PairSet(tmp_path / "set"), format, tmp_path / "exports" / "out")
    assert files_below(tmp_path / "exports") == set()


def test_an_out_that_exists_is_refused_and_kept(pairs: PairSet, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MapoError, match=r"already exists\. Choose another --out"):
        export_pairs(pairs, "preference", tmp_path / "out")
    assert files_below(tmp_path) == {"out"}


def test_an_unknown_format_suggests_the_right_one(pairs: PairSet, tmp_path: Path) -> None:
    with pytest.raises(MapoError, match=r"There is no export 'preferences'\. Did you mean 'preference'\?"):
        export_pairs(pairs, "preferences", tmp_path / "out")


COLUMNS = ("prompt", "preference", "weight", "id", "group", "source", "meta")


@pytest.mark.parametrize("format", ["preference", "hub"])
def test_every_column_comes_back_as_it_was(pairs: PairSet, tmp_path: Path, format: str) -> None:
    rows = {row["id"]: row for row in rows_of(exported(pairs, format, tmp_path / "out"))}
    assert len(rows) == len(pairs)
    for pair in pairs.table.to_pylist():
        row = rows[pair["id"]]
        assert {c: row[c] for c in COLUMNS} == {c: pair[c] for c in COLUMNS}
        for side in ("chosen", "rejected"):
            assert row[side] == {"bytes": pairs.image_bytes(pair[side]), "path": None}


def test_files_and_row_groups_stay_small_where_pictures_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        for k in range(30):
            writer.add_pair(f"p {k}", encoded(noise(2 * k)), encoded(noise(2 * k + 1)), split="train")
    pair = len(encoded(noise(0))) + len(encoded(noise(1)))  # the others are as large but for a few bytes
    monkeypatch.setattr("mapo.export.pairs.BYTES_PER_GROUP", int(2.5 * pair))
    monkeypatch.setattr("mapo.export.pairs.BYTES_PER_FILE", int(8.5 * pair))
    out = exported(PairSet(tmp_path / "set"), "preference", tmp_path / "out")
    names = [f"train-{k:05d}-of-00004.parquet" for k in range(4)]
    assert sorted(path.name for path in (out / "data").iterdir()) == names
    with pq.ParquetFile(out / "data" / names[0]) as file:
        assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [3, 3, 3]


def test_what_pickapic_cannot_tell_is_counted_and_said(pairs: PairSet, tmp_path: Path) -> None:
    counts = export_pairs(pairs, "pickapic", tmp_path / "pp")
    assert counts == {"pairs": len(pairs), "ties": 1, "graded": 1, "weighted": 1, "left_out": 0, "turned": 0}
    said = describe(counts, "pickapic")
    assert said.startswith(f"{len(pairs)} pairs (1 tie; 1 graded preference became a sure one")
    assert "1 weight is not told" in said
    assert describe(counts, "preference") == f"{len(pairs)} pairs (1 tie)"
    one, two = ({**dict.fromkeys(counts, number), "graded": 0, "weighted": 0} for number in (1, 2))
    left_out = "left out, as a picture is kept as latents only"
    assert describe(one, "hub") == f"1 pair (1 tie; 1 {left_out}; 1 rotated picture is written upright, as PNG)"
    assert describe(two, "hub") == f"2 pairs (2 ties; 2 {left_out}; 2 rotated pictures are written upright, as PNG)"


def with_latents_of(gone: set[str], pairs: PairSet, folder: Path) -> PairSet:
    """The same pairs, with some pictures known and not kept."""
    with PairWriter(folder, {}) as writer:
        for pair in pairs:
            for name in (pair.chosen, pair.rejected):
                writer.add_latent_only(name, 6, 4) if name in gone else writer.add_image(pairs.image_bytes(name))
            rest = {k: getattr(pair, k) for k in ("preference", "weight", "group", "split", "source", "meta")}
            writer.add_pair_by_hash(pair.prompt, pair.chosen, pair.rejected, **rest)
    return PairSet(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_pairs_kept_as_latents_only_are_refused_or_left_out_on_request(
    pairs: PairSet, tmp_path: Path, format: str
) -> None:
    gone = pairs[3].rejected
    without = [p for p in pairs if gone not in (p.chosen, p.rejected)]
    missing = len(pairs) - len(without)
    partly = with_latents_of({gone}, pairs, tmp_path / "partly")
    with pytest.raises(MapoError, match=rf"keeps the pictures of {missing} pairs as latents only \(row \d+'s"):
        export_pairs(partly, format, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"partly"}
    counts = export_pairs(partly, format, tmp_path / "out", on_missing_picture="drop")
    assert (counts["pairs"], counts["left_out"]) == (len(without), missing)
    prompts = {row["caption" if format == "pickapic" else "prompt"] for row in rows_of(tmp_path / "out")}
    assert prompts == {p.prompt for p in without}
    nothing = with_latents_of(set(pairs.image_names()), pairs, tmp_path / "nothing")
    with pytest.raises(MapoError, match="nothing could be exported"):
        export_pairs(nothing, format, tmp_path / "none", on_missing_picture="drop")


def turned_set(folder: Path) -> PairSet:
    """Photos as phones write them: all eight orientations, and of some colour modes."""
    with PairWriter(folder, {}) as writer:
        for k, (mode, format) in enumerate(TURNED):
            writer.add_pair(f"p {k}", photo(k, mode, format), RED, split="train")
        writer.add_pair("p 1 again", photo(1, *TURNED[1]), BLUE, split="train")
        writer.add_pair("upright", encoded(noise(), "JPEG"), GREEN, split="train")
    return PairSet(folder)


TURNED = [("RGB", "JPEG")] * 9 + [
    ("RGB", "PNG"),
    ("L", "JPEG"),
    ("CMYK", "JPEG"),
    ("RGBA", "PNG"),
    ("P", "PNG"),
    ("RGB", "WEBP"),
    ("RGB", "TIFF"),
    ("CMYK", "TIFF"),
]


def photo(number: int, mode: str, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number if number in range(2, 9) else 6
    return encoded(noise(number).convert(mode), format, exif=exif)


def test_a_rotated_tiff_of_a_set_of_0_1_0_is_exported_upright_too(tmp_path: Path) -> None:
    """Its ``set.json`` does not count it."""
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("a", photo(6, "RGB", "TIFF"), encoded(noise(1), "PNG"))
    about = json.loads((tmp_path / "set" / "set.json").read_text())
    assert about["conversions"].pop("rotated") == 1
    (tmp_path / "set" / "set.json").write_text(json.dumps(about))
    assert export_pairs(PairSet(tmp_path / "set"), "pickapic", tmp_path / "pp")["turned"] == 1


def test_a_rotated_picture_is_exported_upright_and_counted(tmp_path: Path) -> None:
    """Whoever opens the bytes without a look at EXIF sees what training sees, to the bit."""
    pairs = turned_set(tmp_path / "set")
    counts = export_pairs(pairs, "pickapic", tmp_path / "pp")
    assert counts["turned"] == len(TURNED)
    assert f"{len(TURNED)} rotated pictures are written upright, as PNG" in describe(counts, "pickapic")
    seen = {}
    for row in rows_of(tmp_path / "pp"):
        seen |= {row[f"image_{k}_uid"]: row[f"jpg_{k}"] for k in (0, 1)}
    assert seen.keys() == set(pairs.image_names())
    for name, data in seen.items():
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.getexif().get(0x0112, 1) == 1
            assert picture.size == pairs.image(name).size
        assert decode_picture(data).tobytes() == pairs.image(name).tobytes()
        kept = pairs.image_bytes(name)
        assert (data == kept) == (Image.open(io.BytesIO(kept)).getexif().get(0x0112, 1) == 1)


@pytest.mark.parametrize("format", ["preference", "hub"])
def test_exports_that_datasets_turns_itself_keep_the_bytes(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = turned_set(tmp_path / "set")
    export_pairs(pairs, format, tmp_path / "out")
    by_id = {pair.id: pair for pair in pairs}
    for row in rows_of(tmp_path / "out"):
        assert row["chosen"]["bytes"] == pairs.image_bytes(by_id[row["id"]].chosen)
    for row in opened(tmp_path / "out", tmp_path / "cache", monkeypatch)["train"]:
        assert row["chosen"].size == pairs.image(by_id[row["id"]].chosen).size


def test_a_set_that_does_not_say_what_was_converted_is_looked_through(tmp_path: Path) -> None:
    turned_set(tmp_path / "set")
    info = json.loads((tmp_path / "set" / "set.json").read_text())
    del info["conversions"]
    (tmp_path / "set" / "set.json").write_text(json.dumps(info))
    assert export_pairs(PairSet(tmp_path / "set"), "pickapic", tmp_path / "pp")["turned"] == len(TURNED)
