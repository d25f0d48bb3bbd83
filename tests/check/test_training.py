"""The check looks at a set as training does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from sets import check, named, png, random_rows, replace_picture, rows_of, write_set

from data_fixtures import encoded, noise
from mapo.check.check import lines


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


def of_files(kinds: tuple[str, str], start: int, **rest: str) -> list[tuple[Any, ...]]:
    return [
        (f"prompt {k}", encoded(noise(2 * k), kinds[0]), encoded(noise(2 * k + 1), kinds[1]), rest)
        for k in range(start, start + 12)
    ]


def test_pairs_that_are_held_out_do_not_hide_a_leak_in_those_that_are_trained_on(tmp_path: Path) -> None:
    rows = [*of_files(("JPEG", "PNG"), 0, split="train"), *of_files(("PNG", "JPEG"), 12, split="test")]
    summary = check(write_set(tmp_path / "set", rows))
    assert "file type JPEG. Chosen has more of it in 100 %" in named(summary)["leak_file"]["says"]
    assert {leak["paired"]["pairs"] for leak in summary["leaks"]} <= {0, 12}
    assert "Only pairs that training sees are asked" in (tmp_path / "check.html").read_text("utf-8")


def test_what_is_the_commonest_is_asked_of_the_pairs_that_are_trained_on(tmp_path: Path) -> None:
    sizes = [(20, 16), (28, 16), (24, 12), (24, 20)]
    rows = [(f"p {k}", png(2 * k), png(2 * k + 1, sizes[k % 4]), {"split": "train"}) for k in range(12)]
    rows += [(f"p {k}", png(2 * k, (40, 40)), png(2 * k + 1, (40, 40)), {"split": "test"}) for k in range(12, 40)]
    assert "size 24 × 16" in named(check(write_set(tmp_path / "set", rows)))["leak_file"]["says"]


def test_a_leak_in_pairs_that_are_held_out_does_not_stand_against_training(tmp_path: Path) -> None:
    rows = [*random_rows(30, split="train"), *of_files(("JPEG", "PNG"), 30, split="test")]
    summary = check(write_set(tmp_path / "set", rows))
    assert not {"leak_file", "leak_content"} & named(summary).keys()
    assert summary["verdict"] == "Nothing wrong was found in the 30 pairs that are trained on."


def test_the_crop_of_pairs_that_are_held_out_is_nothing_to_training(tmp_path: Path) -> None:
    held = [("prompt 9", wide(9, "red"), wide(9, "blue"), {"split": "test"})]
    found = named(check(write_set(tmp_path / "set", [*random_rows(4, split="train"), *held])))
    assert not {"equal_after_crop", "mostly_cropped"} & found.keys()


def test_where_nothing_is_trained_on_the_leak_test_asks_all_pairs_and_says_so(tmp_path: Path) -> None:
    summary = check(write_set(tmp_path / "set", of_files(("JPEG", "PNG"), 0, split="test")))
    assert {"nothing_to_train_on", "leak_file"} <= named(summary).keys()
    assert "No pair is trained on, so the leak test asks all pairs." in lines(summary)
    assert "No pair is trained on, so all pairs are asked." in (tmp_path / "check.html").read_text("utf-8")


def test_the_leak_test_judges_what_the_crop_leaves_and_not_what_it_cuts_away(tmp_path: Path) -> None:
    def framed(seed: int, end: str, middle: int) -> bytes:
        picture = noise(seed, (144, 48)).point(lambda v: v // 4 + middle)
        ImageDraw.Draw(picture).rectangle([0, 0, 20, 48], fill=end)
        return encoded(picture)

    for how in ({}, {"model": "mini"}):
        told = [(f"p {k}", framed(k, "black", 120), framed(k + 99, "white", 60), {"split": "train"}) for k in range(40)]
        even = [(f"p {k}", framed(k, "white", 90), framed(k + 99, "black", 90), {"split": "train"}) for k in range(40)]
        summary = check(write_set(tmp_path / f"told {len(how)}", told), **how)
        leaks = {leak["name"]: leak["paired"]["value"] for leak in summary["leaks"]}
        assert leaks["brightness"] == 1
        summary = check(write_set(tmp_path / f"even {len(how)}", even), **how)
        assert not [leak["name"] for leak in summary["leaks"] if leak["tells"] and leak["name"] == "brightness"]


# ------------------------------------------------------------------ which rows are asked

Rows = list[tuple[Any, ...]]
SQUARE = (48, 48)  # nothing of it is cropped or enlarged for the built-in model


def square(seed: int) -> bytes:
    return png(seed, SQUARE)


def almost(seed: int) -> bytes:
    picture = noise(seed, SQUARE)
    picture.putpixel((0, 0), (1, 2, 3))
    return encoded(picture)


def faulty(name: str, start: int, **rest: Any) -> Rows:
    """Rows that have one fault, with pictures and prompts that depend on ``start``."""
    a, b, c = (square(start + k) for k in range(3))
    prompt = f"a fox number {start}"
    rows: dict[str, Rows] = {
        "sizes_differ": [(prompt, a, png(start, (60, 60)))],
        "small": [(prompt, png(start, (24, 24)), png(start + 1, (24, 24)))],
        "long_prompt": [(f"{prompt} {'and a red circle ' * 30}", a, b)],
        "nearly_same": [(prompt, a, almost(start))],
        "contradiction": [(prompt, a, b), (prompt, b, a)],
        "cycle": [(prompt, a, b), (prompt, b, c), (prompt, c, a)],
        "repeated_pair": [(prompt, a, b), (prompt.upper(), a, b)],
        "no_weight": [(prompt, a, b, {"weight": 0.0})],
        "cropped": [(prompt, png(start, (60, 48)), png(start + 1, (60, 48)))],
        "mostly_cropped": [(prompt, png(start, (120, 48)), png(start + 1, (120, 48)))],
        "equal_after_crop": [(prompt, wide(start, "red"), wide(start, "blue"))],
        "empty_prompt": [("\u200b" * start, a, b)],
        "same_picture": [(prompt, a, encoded(noise(start, SQUARE), compress_level=0))],
    }
    return [(*row[:3], {**(row[3] if len(row) > 3 else {}), **rest}) for row in rows[name]]


NUMBERS = {"contradiction": 2, "cycle": 3}  # of the rows that each finding is about, where it is not one
OF_TRAINING = (
    "sizes_differ", "small", "long_prompt", "nearly_same", "contradiction", "cycle", "repeated_pair", "no_weight",
    "cropped", "mostly_cropped", "equal_after_crop",
)  # fmt: skip
OF_THE_SET = ("empty_prompt", "same_picture")
CLEAN: Rows = [(f"a clean prompt {k}", square(900 + 2 * k), square(901 + 2 * k), {"split": "train"}) for k in range(4)]


def checked(folder: Path, rows: Rows) -> dict[str, dict[str, Any]]:
    return named(check(write_set(folder, rows), model="mini"))


@pytest.mark.parametrize("name", OF_TRAINING)
def test_a_fault_that_training_does_not_see_is_not_told(tmp_path: Path, name: str) -> None:
    held = checked(tmp_path / "held", CLEAN + faulty(name, 1, split="test"))
    ties = checked(tmp_path / "ties", CLEAN + faulty(name, 1, split="train", preference=0.5))
    assert name not in held and name not in ties


@pytest.mark.parametrize("name", OF_TRAINING)
def test_a_fault_in_both_splits_is_counted_where_training_sees_it(tmp_path: Path, name: str) -> None:
    number = NUMBERS.get(name, 1)
    rows = faulty(name, 1, split="test") + CLEAN + faulty(name, 11, split="train")
    seen = len(CLEAN) + len(faulty(name, 11))
    both = checked(tmp_path / "both", rows)[name]
    alone = checked(tmp_path / "alone", CLEAN + faulty(name, 11, split="train"))[name]
    assert both["count"] == alone["count"] == number
    assert f"{number} of {seen} pairs that training sees" in both["says"]
    assert "training sees" not in alone["says"]
    assert min(rows_of(both), default=len(rows)) >= len(faulty(name, 1)) + len(CLEAN)


@pytest.mark.parametrize("name", OF_TRAINING)
def test_where_nothing_is_trained_on_faults_are_told_of_all_pairs(tmp_path: Path, name: str) -> None:
    found = checked(tmp_path / "held", faulty(name, 1, split="test"))
    assert found[name]["count"] == NUMBERS.get(name, 1) and "training sees" not in found[name]["says"]


@pytest.mark.parametrize("name", OF_THE_SET)
def test_a_row_that_is_broken_is_an_error_in_any_split(tmp_path: Path, name: str) -> None:
    found = checked(tmp_path / "set", CLEAN + faulty(name, 1, split="test"))
    assert (found[name]["severity"], found[name]["count"]) == ("error", 1)
    assert "training sees" not in found[name]["says"]


def test_pictures_that_cannot_be_read_are_an_error_in_any_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [*CLEAN, ("a fox", square(1), square(2), {"split": "test"})])
    replace_picture(folder, square(2), b"broken")
    unreadable = named(check(folder))["unreadable"]
    assert unreadable["severity"] == "error" and unreadable["says"] == "Unreadable pictures: 1 in 1 pair."


def test_what_splits_share_is_told_though_one_side_is_not_trained_on(tmp_path: Path) -> None:
    rows = [("a fox", square(1), square(2), {"split": "train"}), ("a fox", square(2), square(1), {"split": "test"})]
    found = checked(tmp_path / "set", CLEAN + rows)
    assert {name: found[name]["count"] for name in ("prompt_in_two_splits", "picture_in_two_splits")} == {
        "prompt_in_two_splits": 2, "picture_in_two_splits": 2,
    }  # fmt: skip
    assert "contradiction" not in found  # the splits contradict each other, and training sees one of them


def test_small_pictures_are_counted_once_and_only_those_of_training(tmp_path: Path) -> None:
    small = [png(k, (24, 24)) for k in range(5)]
    rows = [("a fox", small[0], small[1], {"split": "train"}), ("a fox", small[0], small[2], {"split": "train"})]
    rows += [("a dog", small[3], small[4], {"split": "test"})]
    found = checked(tmp_path / "set", rows)
    assert found["small"]["says"].endswith("mini works: 3 in 2 of 2 pairs that training sees.")


def test_the_most_suspicious_pairs_are_those_of_training(tmp_path: Path) -> None:
    kinds = {"sizes_differ": "times as many pixels", "nearly_same": "pixels differ by"}
    for split, told in (("train", True), ("test", False)):
        for name, words in kinds.items():
            check(write_set(tmp_path / f"{name} {split}", CLEAN + faulty(name, 1, split=split)))
            assert (words in (tmp_path / "check.html").read_text("utf-8")) == told


# ------------------------------------------------------------------ the model's own side


def flat(colour: str, side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side), colour))


def test_pictures_are_the_same_where_they_are_so_at_the_models_own_side(tmp_path: Path, sdxl: Path) -> None:
    rows = [("a red wall", flat("red", 96), flat("red", 60), {"split": "train"})]
    folder = write_set(tmp_path / "set", CLEAN + rows)
    alone, mini, other = (named(check(folder, **how)) for how in ({}, {"model": "mini"}, {"model": str(sdxl)}))
    assert "equal_after_crop" not in alone  # 96 and 60 pixels are not the same, and their square is known only then
    assert rows_of(mini["equal_after_crop"]) == rows_of(other["equal_after_crop"]) == [4]


def test_the_leak_test_judges_pictures_at_the_models_own_side(tmp_path: Path) -> None:
    def blocks(seed: int) -> bytes:  # sharper than noise of 96 pixels once both are shown in 48, and less sharp before
        return encoded(noise(seed, SQUARE).resize((96, 96), Image.Resampling.NEAREST))

    rows = [(f"p {k}", png(2 * k, (96, 96)), blocks(2 * k + 1), {"split": "train"}) for k in range(8)]
    folder = write_set(tmp_path / "set", rows)
    for how, value in (({}, 1.0), ({"model": "mini"}, 0.0)):
        leaks = {leak["name"]: leak["paired"]["value"] for leak in check(folder, **how)["leaks"]}
        assert leaks["sharpness"] == value


def test_what_is_cut_away_is_counted_in_whole_pixels_of_the_models_own_side(tmp_path: Path, sdxl: Path) -> None:
    for size, model, told in (((99, 89), "mini", False), ((99, 90), str(sdxl), True)):
        rows = [("a fox", png(1, size), png(2, size), {"split": "train"})]
        folder = write_set(tmp_path / str(size), rows)
        alone, found = named(check(folder)), named(check(folder, model=model))
        assert ("cropped" in alone) == (not told)  # 89 of 99 pixels are less than nine tenths, 90 of 99 are more
        assert ("cropped" in found) == told  # 48 of 53 are more, 16 of 18 are less
        assert ("2 pictures cropped by more than a tenth" in found["trained_on"]["says"]) == told
