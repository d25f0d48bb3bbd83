"""The check looks at a set as training does."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageDraw
from sets import check, named, png, random_rows, rows_of, write_set

from data_fixtures import encoded, noise


def wide(seed: int, end: str) -> bytes:
    picture = noise(seed, (192, 48))
    ImageDraw.Draw(picture).rectangle([0, 0, 20, 48], fill=end)
    return encoded(picture)


def wide_set(folder: Path) -> Path:
    rows = [(f"prompt {k} with a red end", wide(k, "red"), wide(k, "blue"), {"split": "train"}) for k in range(3)]
    return write_set(folder, [*rows, ("prompt 3", png(7, (48, 48)), png(8, (48, 48)), {"split": "train"})])


def test_pairs_that_are_equal_after_the_crop_are_an_error_with_and_without_a_model(tmp_path: Path) -> None:
    folder = wide_set(tmp_path / "set")
    for how in ({}, {"model": "mini"}):
        found = named(check(folder, **how))
        assert found["equal_after_crop"]["severity"] == "error" and found["equal_after_crop"]["count"] == 3
        assert found["mostly_cropped"]["severity"] == "warning" and rows_of(found["mostly_cropped"]) == [0, 1, 2]
        assert "75% cut away" in found["mostly_cropped"]["rows"][0][1]
        assert ("assumed" in found["equal_after_crop"]["says"]) == (not how)
    assert "6 pictures cropped by more than a tenth" in found["trained_on"]["says"]


def test_pictures_that_differ_inside_the_crop_are_no_error(tmp_path: Path) -> None:
    rows = [(f"p {k}", png(2 * k, (96, 48)), png(2 * k + 1, (96, 48)), {"split": "train"}) for k in range(3)]
    found = named(check(write_set(tmp_path / "set", rows), model="mini"))
    assert "equal_after_crop" not in found and found["cropped"]["severity"] == "note"


def test_a_set_with_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    held = named(check(write_set(tmp_path / "held", random_rows(4, split="test"))))
    assert held["nothing_to_train_on"]["severity"] == "error"
    assert "no pair is in the split train (test 4)" in held["nothing_to_train_on"]["says"]
    ties = named(check(write_set(tmp_path / "ties", random_rows(4, split="train", preference=0.5))))
    assert "all ties (4)" in ties["nothing_to_train_on"]["says"]


def test_what_is_held_out_is_told(tmp_path: Path) -> None:
    rows = [*random_rows(4, split="train"), *random_rows(2, start=4, split="validation")]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert found["trained_on"]["says"] == "Training on 4 pairs; 2 held out (validation)."
