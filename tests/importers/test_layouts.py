"""Where the files of rows and their pictures lie in a dataset repository of the hub that was downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_fixtures import BLUE, GREEN, RED, encoded, noise
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.pairs import PairSet
from mapo.pairs.splits import split_of


def write(root: Path, name: str, prompt: str | None = None, chosen: str = "1.png", rejected: str = "2.png") -> Path:
    """A file with one pair, of the kind that its name tells; the prompt is the name if nothing else is said."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"prompt": prompt or name, "chosen": chosen, "rejected": rejected}
    if name.endswith(".json"):
        path.write_text(json.dumps([row]))
    elif name.endswith("l") or name.endswith(".ndjson"):
        path.write_text(json.dumps(row) + "\n")
    else:
        mark = "\t" if name.endswith(".tsv") else ","
        path.write_text(f"{mark.join(row)}\n{mark.join(row.values())}\n")
    return path


def put_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.png").write_bytes(RED)
    (folder / "2.png").write_bytes(BLUE)
    return folder


LITTER = {"README.md": "# A set", "dataset_infos.json": "{}", ".gitattributes": "", "LICENSE": "MIT"}
LAYOUTS: dict[str, dict[str, str | None]] = {  # file → its split; None: by prompt
    "one list in data": {"data/train.json": "train"},
    "a table here": {"train.csv": "train"},
    "lists of splits in data": {"data/train.jsonl": "train", "data/validation.jsonl": "validation", "data/test.jsonl": "test"},
    "numbered lists in data": {"data/train-00000-of-00002.jsonl": "train", "data/train-00001-of-00002.jsonl": "train"},
    "parts without a split": {"data/part-0.ndjson": None, "data/part-1.ndjson": None, "data/part-2.ndjson": None},
    "parts with their number": {"data/x-00001-of-00002.csv": None, "data/x-00002-of-00002.csv": None},
    "numbers alone": {"0000.json": None, "0001.json": None},
    "one file in data": {"data/pairs.tsv": None},
    "folders of splits in data": {"data/train/rows.json": "train", "data/test/rows.json": "test"},
    "numbered lists in folders of splits": {"train/0.jsonl": "train", "train/1.jsonl": "train", "val/0.jsonl": "validation"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pictures", ["beside", "here"])
def test_files_in_the_layouts_of_the_hub_are_read_with_their_pictures_beside_them_or_in_the_folder_itself(
    tmp_path: Path, layout: str, pictures: str
) -> None:
    root = tmp_path / "in"
    for name, text in LITTER.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    put_pictures(root / "images")
    for name in LAYOUTS[layout]:
        write(root, name, chosen="images/1.png", rejected="images/2.png")
        if pictures == "beside":
            put_pictures((root / name).parent / "images")
    import_pairs(root, tmp_path / "set")
    assert {pair.prompt: pair.split for pair in PairSet(tmp_path / "set")} == {
        name: split or split_of(name) for name, split in LAYOUTS[layout].items()
    }
    assert {(pair.chosen, pair.rejected) for pair in PairSet(tmp_path / "set")} == {(sha256(RED), sha256(BLUE))}


def test_pictures_beside_the_file_count_more_than_those_in_the_folder_itself(tmp_path: Path) -> None:
    root = put_pictures(tmp_path / "in")
    for split in ("train", "test"):
        write(root, f"{split}/rows.jsonl", split)
        (put_pictures(root / split) / "1.png").write_bytes(GREEN)
    (root / "test" / "rows.jsonl").write_text(
        json.dumps({"prompt": "x", "chosen": "9.png", "rejected": "2.png"})
        + "\n"
        + (root / "test" / "rows.jsonl").read_text()
    )
    with pytest.raises(
        MapoError, match=r"^test/rows\.jsonl line 1: the picture 9\.png cannot be read \(it is not there"
    ):
        import_pairs(root, tmp_path / "set")
    import_pairs(root, tmp_path / "set", on_bad_row="drop")
    assert [pair.chosen for pair in PairSet(tmp_path / "set")] == [sha256(GREEN), sha256(GREEN)]


def test_a_ranking_in_a_table_finds_its_pictures_in_the_folder_itself(tmp_path: Path) -> None:
    root = tmp_path / "in"
    put_pictures(root / "images")
    (root / "data").mkdir()
    (root / "data" / "train.csv").write_text(
        'prompt,images,rank\na bear,"[""images/1.png"", ""images\\\\2.png""]","[2, 1]"\n'
    )
    import_pairs(root, tmp_path / "set")
    assert PairSet(tmp_path / "set")[0].chosen == sha256(BLUE)


def test_paths_still_do_not_leave_the_folder_that_was_given(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    write(tmp_path / "in", "data/train.json", chosen="../../1.png", rejected="../../2.png")
    with pytest.raises(MapoError, match=r"the path '\.\./\.\./1\.png' leaves its folder"):
        import_pairs(tmp_path / "in", tmp_path / "set")


def test_a_file_without_rows_is_passed_by_for_one_with_rows(tmp_path: Path) -> None:
    root = put_pictures(tmp_path / "in")
    (root / "stats.json").write_text(json.dumps({"pairs": 1, "of": ["a"]}, indent=2))
    with pytest.raises(MapoError, match=r"stats\.json is one JSON value, not a list of rows"):
        import_pairs(root, tmp_path / "set")
    write(root, "data/train.jsonl", "a bear")
    assert import_pairs(root, tmp_path / "set")["pairs"] == 1
    write(root, "train.csv", "a fox")
    import_pairs(root, tmp_path / "other")
    assert [pair.prompt for pair in PairSet(tmp_path / "other")] == ["a fox"]


@pytest.mark.parametrize("names", [("machines.jsonl", "people.jsonl"), ("pairs_v1.json", "pairs_v2.json")])
def test_several_files_that_could_be_meant_in_data_are_asked_about(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = tmp_path / "in"
    put_pictures(root / "data")
    for name in names:
        write(root, f"data/{name}")
    with pytest.raises(MapoError, match=rf"in holds 2 files that could be meant \({', '.join(names)}\)") as told:
        import_pairs(root, tmp_path / "set")
    pattern = str(told.value).split("'")[1]
    assert import_pairs(pattern, tmp_path / "set")["pairs"] == 2


def test_files_of_rows_that_lie_elsewhere_are_named_with_a_pattern_that_works(tmp_path: Path) -> None:
    root = tmp_path / "in"
    put_pictures(root / "annotations")
    for name in ("annotations/a.jsonl", "annotations/b.jsonl"):
        write(root, name)
    with pytest.raises(
        MapoError,
        match=r"in/ has no folders chosen/ and rejected/\. Rows may lie in annotations/a\.jsonl, annotations/b",
    ) as told:
        import_pairs(root, tmp_path / "set")
    assert import_pairs(str(told.value).split("'")[1], tmp_path / "set")["pairs"] == 2


def test_an_import_goes_on_only_with_the_pictures_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str]
) -> None:
    root = tmp_path / "in"
    put_pictures(root / "images")
    write(root, "data/train.json", chosen="images/1.png", rejected="images/2.png")
    with monkeypatch.context() as patch:
        patch.setattr("mapo.pairs.writer.write_places", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_pairs(root, tmp_path / "set")
    (root / "images" / "1.png").write_bytes(encoded(noise()))
    import_pairs(root, tmp_path / "set")
    assert "it begins afresh" in heard()
    assert PairSet(tmp_path / "set")[0].chosen == sha256(encoded(noise()))
