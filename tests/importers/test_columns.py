"""Columns of other names: which format is nearest, and ``--columns``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import BLUE, RED, write_parquet
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import IMPORTERS, import_pairs
from mapo.importers.sources import Source
from mapo.pairs import PairSet

PICTURES = {"a.png": RED, "b.png": BLUE}


def write(folder: Path, kind: str, row: dict[str, Any]) -> Path:
    """One row in a file of this kind, its pictures beside it."""
    folder.mkdir()
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    path = folder / f"x.{kind}"
    match kind:
        case "parquet":
            write_parquet(path, [row])
        case "json":
            path.write_text(json.dumps([row]))
        case "csv" | "tsv":
            mark = "," if kind == "csv" else "\t"
            path.write_text(f"{mark.join(row)}\n{mark.join(row.values())}\n")
        case _:
            path.write_text(json.dumps(row))
    return path


ALL_KINDS = ("parquet", "jsonl", "ndjson", "json", "csv", "tsv")
OTHERS = {
    "prompt=caption": {"caption": "a bear", "chosen": "a.png", "rejected": "b.png"},
    "prompt=text,chosen=image_w,rejected=image_l": {"text": "a bear", "image_w": "a.png", "image_l": "b.png"},
    "chosen=win,rejected=lose": {"prompt": "a bear", "win": "a.png", "lose": "b.png"},
    "prompt=Prompt,chosen=Chosen,rejected=REJECTED": {"Prompt": "a bear", "Chosen": "a.png", "REJECTED": "b.png"},
    "chosen=good,rejected=bad": {"prompt": "a bear", "good": "a.png", "bad": "b.png"},
    "prompt=Caption,chosen=Winner,rejected=Loser": {"Caption": "a bear", "Winner": "a.png", "Loser": "b.png"},
}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("columns", OTHERS)
def test_the_columns_that_an_error_suggests_make_the_import_work(tmp_path: Path, columns: str, kind: str) -> None:
    path = write(tmp_path / "in", kind, OTHERS[columns])
    with pytest.raises(MapoError, match=f"lacks the columns .*: say --columns {columns}[.]"):
        import_pairs(path, tmp_path / "set")
    import_pairs(path, tmp_path / "set", columns=columns)
    (pair,) = PairSet(tmp_path / "set")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a bear", sha256(RED), sha256(BLUE))
    assert PairSet(tmp_path / "set").info["provenance"]["columns"] == dict(
        word.split("=") for word in columns.split(",")
    )


def test_a_caption_beside_chosen_and_rejected_is_not_taken_for_pick_a_pic(tmp_path: Path) -> None:
    path = write(tmp_path / "in", "parquet", OTHERS["prompt=caption"])
    with pytest.raises(MapoError, match="The nearest format is preference") as failure:
        import_pairs(path, tmp_path / "set")
    assert "jpg_0" not in str(failure.value)


NEEDED = {
    "pickapic": {"jpg_0": RED, "jpg_1": BLUE, "label_0": 1, "label_1": 0, "caption": "a bear"},
    "preference": {"prompt": "a bear", "chosen": RED, "rejected": BLUE},
    "ranking": {"prompt": "a bear", "images": ["a.png"], "rank": [1]},
    "scores": {"prompt": "a bear", "images": ["a.png"], "scores": [1]},
    "hpdv2": {"prompt": "a bear", "image_path": ["a.png"], "human_preference": [1]},
    "imagereward": {"prompt": "a bear", "prompt_id": "1", "img_better": "a.png", "img_worse": "b.png"},
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_format_is_detected_by_all_of_its_columns_and_by_no_fewer(tmp_path: Path, name: str) -> None:
    import importlib

    module = importlib.import_module(IMPORTERS[name])
    row = NEEDED[name]
    assert module.detects(Source(write_parquet(tmp_path / "x.parquet", [row])))
    for column in row:
        rest = {k: v for k, v in row.items() if k != column}
        assert not module.detects(Source(write_parquet(tmp_path / f"{column}.parquet", [rest])))


def test_what_is_missing_without_a_likely_name_is_said_with_a_place_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "in", "parquet", {"text": "a bear", "chosen": "a.png", "bild": "b.png"})
    with pytest.raises(MapoError, match="say so: --columns prompt=text,rejected=NAME"):
        import_pairs(path, tmp_path / "set")


WRONG = {
    "prompt=txt": r"--columns prompt=txt: .*x\.parquet has no column txt\. Did you mean 'text'\? It has text, chosen",
    "promt=text": "--columns promt=text: there is no column promt to fill. Did you mean 'prompt'",
    "prompt": "--columns: 'prompt' is not NAME=COLUMN",
    "prompt=": "--columns: 'prompt=' is not NAME=COLUMN",
    "prompt=text,prompt=chosen": "--columns names prompt twice",
    "": "--columns: '' is not NAME=COLUMN",
}


@pytest.mark.parametrize("columns", WRONG)
def test_a_wrong_name_of_a_column_is_told_with_the_right_one(tmp_path: Path, columns: str) -> None:
    path = write(tmp_path / "in", "parquet", {"text": "a bear", "chosen": "a.png", "rejected": "b.png"})
    with pytest.raises(MapoError, match=WRONG[columns]):
        import_pairs(path, tmp_path / "set", columns=columns)


def test_columns_for_two_folders_of_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "chosen").mkdir(parents=True)
    with pytest.raises(MapoError, match="has no columns that could have other names"):
        import_pairs(tmp_path / "in", tmp_path / "set", columns="prompt=text")


def test_a_column_that_the_format_does_not_use_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "a bear", "text": "x", "chosen": "a.png", "rejected": "b.png"}
    path = write(tmp_path / "in", "csv", row)
    with pytest.raises(MapoError, match="--columns images=text: the format preference has no column images"):
        import_pairs(path, tmp_path / "set", columns="prompt=prompt,images=text")
    for side in ("chosen", "rejected"):
        (tmp_path / "in" / side).mkdir()
    with pytest.raises(MapoError, match="--columns prompt=text: the format folders has no column prompt"):
        import_pairs(tmp_path / "in", tmp_path / "set", columns="prompt=text", format="folders")


def test_columns_can_give_the_better_of_two_prompts(tmp_path: Path) -> None:
    row = {"prompt": "bear", "quality_prompt": "a bear in snow", "chosen": "a.png", "rejected": "b.png"}
    import_pairs(write(tmp_path / "in", "jsonl", row), tmp_path / "set", columns="prompt=quality_prompt")
    assert PairSet(tmp_path / "set")[0].prompt == "a bear in snow"


def test_columns_can_be_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from click.testing import CliRunner

    from mapo.cli import cli

    path = write(tmp_path / "in", "csv", OTHERS["prompt=caption"])
    words = ["import", str(path), "--columns", "prompt=caption", "--out", str(tmp_path / "set")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0
    assert f"1 pair in {tmp_path / 'set'} (0 ties dropped, 0 repeats, 0 bad)" in result.output
    assert len(PairSet(tmp_path / "set")) == 1
