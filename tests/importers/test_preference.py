"""Parquet with prompt, chosen, rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_fixtures import BLUE, GREEN, RED, make_set, write_parquet
from mapo.errors import MapoError
from mapo.export.pairs import export_pairs
from mapo.files import sha256
from mapo.importers import BadRow, Options, RawPair, import_pairs
from mapo.importers.formats.preference import detects, read
from mapo.importers.sources import Source
from mapo.pairs import PairSet


def make_row(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a bear", "chosen": RED, "rejected": BLUE, **changes}


def rows(path: Path) -> list[RawPair | BadRow]:
    return [item for row in read(Source(path), Options()) for item in row]


def as_cell(kind: str, name: str, data: bytes) -> Any:
    return {
        "bytes": data,
        "Image": {"bytes": data, "path": None},
        "Image with both": {"bytes": data, "path": "elsewhere.png"},
        "path": f"pictures/{name}.png",
        "Image with a path": {"bytes": None, "path": f"pictures/{name}.png"},
    }[kind]


@pytest.mark.parametrize("kind", ["bytes", "Image", "Image with both", "path", "Image with a path"])
def test_pictures_may_be_bytes_images_or_paths_beside_the_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    cells = {}
    for side, data in (("chosen", RED), ("rejected", BLUE)):
        (tmp_path / "in" / "pictures" / f"{side}.png").write_bytes(data)
        cells[side] = as_cell(kind, side, data)
    path = write_parquet(tmp_path / "in" / "x.parquet", [make_row(**cells)])
    monkeypatch.chdir(tmp_path)
    (found,) = rows(path.relative_to(tmp_path))
    assert found == RawPair("x.parquet row 0", "a bear", RED, BLUE)


def test_what_a_row_says_beside_its_pictures_is_kept(tmp_path: Path) -> None:
    row = make_row(preference=0.75, weight=2.0, group="g", meta='{"model": "x"}', other=1)
    (found,) = rows(write_parquet(tmp_path / "x.parquet", [row]))
    assert found == RawPair("x.parquet row 0", "a bear", RED, BLUE, 0.75, 2.0, "g", {"model": "x"})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "there is no prompt"),
    "empty prompt": ({"prompt": ""}, "the prompt is empty"),
    "no picture": ({"rejected": None}, "a picture has no bytes"),
    "empty picture": ({"rejected": b""}, "a picture has no bytes"),
    "cut picture": ({"rejected": BLUE[:50]}, "the rejected picture: it cannot be decoded"),
    "preference of the other": ({"preference": 0.25}, "preference is 0.25, it must lie in 0.5 … 1"),
    "preference that is not a number": ({"preference": float("nan")}, "preference is nan"),
    "negative weight": ({"weight": -1.0}, "weight is -1.0"),
    "preference in words": ({"preference": "sure"}, "preference is 'sure', which is not a number"),
    "group that is a list": ({"group": ["g"]}, r"group is \['g'\], which is not a name"),
    "meta that is not JSON": ({"meta": "{"}, "meta is not JSON"),
    "meta that is a list": ({"meta": "[]"}, "meta is not a JSON object"),
    "same picture": ({"rejected": RED}, "chosen and rejected are the same picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_the_import_or_is_dropped(tmp_path: Path, name: str) -> None:
    changes, why = BAD[name]
    good = dict.fromkeys(changes)
    made = [make_row(**{**good, **{k: v for k, v in make_row().items() if k in good}}), make_row(**changes)]
    path = write_parquet(tmp_path / "x.parquet", made)
    with pytest.raises(MapoError, match=rf"^x\.parquet row 1: {why}"):
        import_pairs(path, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert import_pairs(path, tmp_path / "set", on_bad_row="drop") == {"pairs": 1, "ties": 0, "repeats": 0, "bad": 1}


PATHS = {
    "../secret.png": "the path '../secret.png' leaves its folder",
    "/etc/hostname": "the path '/etc/hostname' is absolute and lies outside of its folder",
    "link.png": "the path 'link.png' is a link that leads to .*secret.png, outside of its folder",
    "gone.png": r"the picture gone\.png cannot be read \(it is not there\)",
    ".": r"the picture \. cannot be read \(it is not a file\)",
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_leads_out_of_the_folder_or_nowhere_is_a_bad_row(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(GREEN)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "a.png").write_bytes(RED)
    path = write_parquet(tmp_path / "in" / "x.parquet", [make_row(chosen="a.png", rejected=name)])
    with pytest.raises(MapoError, match=rf"^x\.parquet row 0: {PATHS[name]}"):
        import_pairs(path, tmp_path / "set")


def test_missing_columns_are_named_together_with_those_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [{"prompt": "a", "chosen": RED}])
    assert not detects(Source(path))
    with pytest.raises(MapoError, match=r"x\.parquet lacks the columns rejected; it has prompt, chosen\."):
        import_pairs(path, tmp_path / "set")


def test_a_prompt_of_five_thousand_words_is_kept_to_the_letter(tmp_path: Path) -> None:
    prompt = " ".join(f"Wort{k}" for k in range(5000)) + " \n "
    import_pairs(write_parquet(tmp_path / "x.parquet", [make_row(prompt=prompt)]), tmp_path / "set")
    assert PairSet(tmp_path / "set")[0].prompt == prompt


def test_our_own_export_comes_back_as_the_same_pairs(tmp_path: Path) -> None:
    before = make_set(tmp_path / "set", 12, preference=0.75, weight=3.0, group="g", meta={"seed": 1})
    export_pairs(before, "preference", tmp_path / "out")
    import_pairs(tmp_path / "out", tmp_path / "again")
    again = PairSet(tmp_path / "again")
    assert {p.id: (p.preference, p.weight, p.group, p.meta, p.split) for p in again} == {
        p.id: (p.preference, p.weight, p.group, p.meta, p.split) for p in before
    }
    assert {name: again.image_bytes(name) for name in again.image_names()} == {
        name: before.image_bytes(name) for name in before.image_names()
    }


def test_what_datasets_writes_with_its_image_feature_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()}
    )
    data = datasets.Dataset.from_dict(
        {"prompt": ["a"], "chosen": [{"bytes": RED}], "rejected": [{"bytes": BLUE}]}, features
    )
    data.to_parquet(str(tmp_path / "x.parquet"))
    import_pairs(tmp_path / "x.parquet", tmp_path / "set")
    assert PairSet(tmp_path / "set")[0].chosen == sha256(RED)
