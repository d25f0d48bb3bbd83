"""Sets with known defects: each is found, counted, named by its rows, and given the right severity."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sets import check, named, png, random_rows, replace_picture, rows_of, write_set

from data_fixtures import encoded, noise
from mapo.check.pictures import jpeg_quality, look_at_pictures
from mapo.files import sha256
from mapo.pairs import PairSet, PairWriter

A, B, C, D = (png(900 + k) for k in range(4))

TRAIN = {"split": "train"}


def rgb(values: Any) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8))


def again(data: bytes) -> bytes:
    """Other bytes with the same pixels."""
    other = encoded(Image.open(io.BytesIO(data)), compress_level=0)
    assert other != data
    return other


def test_a_set_without_defects_has_no_errors_and_no_warnings(tmp_path: Path) -> None:
    summary = check(write_set(tmp_path / "set", random_rows(60, split="train")))
    assert (summary["errors"], summary["warnings"]) == (0, 0)
    assert summary["verdict"] == "Nothing wrong was found in the 60 pairs that are trained on."
    assert set(named(summary)) == {"length_unknown", "cropped", "trained_on"}
    assert (summary["pairs"], summary["prompts"], summary["pictures"], summary["pictures_read"]) == (60, 60, 120, 120)


# ------------------------------------------------------------------ pictures


def test_statistics_of_plain_pictures_are_what_they_must_be(tmp_path: Path) -> None:
    grey = rgb(np.full((10, 20, 3), 51))
    red = rgb(np.tile([255, 0, 0], (10, 20, 1)))
    halves = rgb(np.repeat(np.array([[0, 255]]), 10, 1)[None].repeat(10, 1).reshape(10, 20, 1).repeat(3, 2))
    checks = rgb((np.indices((10, 20)).sum(0) % 2 * 255)[..., None].repeat(3, 2))
    pictures = [encoded(p) for p in (grey, red, halves, checks)]
    folder = write_set(tmp_path / "set", [("a", *pictures[:2]), ("b", *pictures[2:])])
    found = look_at_pictures(PairSet(folder)).found
    np.testing.assert_allclose(found["brightness"], [0.2, 0.299, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(found["saturation"], [0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["contrast"], [0, 0, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(found["sharpness"], [0, 0, 10 / (10 * 9 + 9 * 10), 1], atol=1e-6)
    assert found["width"].tolist() == [20] * 4 and found["height"].tolist() == [10] * 4
    assert found["bytes"].tolist() == [len(p) for p in pictures]


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 51, 75, 90, 95, 99, 100])
def test_jpeg_quality_is_read_off_the_tables(quality: int) -> None:
    stored: Any = Image.open(io.BytesIO(encoded(noise(), "JPEG", quality=quality)))
    assert jpeg_quality(stored.quantization) == quality


def test_a_file_without_tables_has_no_jpeg_quality() -> None:
    assert np.isnan(jpeg_quality(None)) and np.isnan(jpeg_quality({}))


def test_damaged_pictures_are_all_found_and_named_by_their_rows(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", random_rows(12))
    animation = io.BytesIO()
    noise(1).save(animation, "GIF", save_all=True, append_images=[noise(2)])
    replace_picture(folder, png(2), png(2)[:200])  # row 1, chosen
    replace_picture(folder, png(7), b"")  # row 3, rejected
    replace_picture(folder, png(8), b"no picture at all")  # row 4, chosen
    replace_picture(folder, png(11), png(999), renamed=False)  # row 5, rejected
    replace_picture(folder, png(12), animation.getvalue())  # row 6, chosen
    summary = check(folder)
    unreadable, animated = named(summary)["unreadable"], named(summary)["animated"]
    assert unreadable["severity"] == animated["severity"] == "error"
    assert unreadable["says"] == "Unreadable pictures: 4 in 4 pairs."
    assert rows_of(unreadable) == [1, 3, 4, 5] and rows_of(animated) == [6]
    words = [said for _, said in unreadable["rows"]]
    for said, expected in zip(
        words, ("chosen: .*truncat", "rejected: it is empty", "not in a known picture format", "its hash"), strict=True
    ):
        assert re.search(expected, said, re.IGNORECASE), said
    assert summary["pictures_read"] == 24 - 5
    assert all(leak["paired"]["pairs"] == 12 - 5 for leak in summary["leaks"])


def test_five_rows_are_shown_and_the_rest_is_summed(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", random_rows(10))
    for k in range(8):
        replace_picture(folder, png(2 * k), b"x" * (k + 1))
    finding = named(check(folder))["unreadable"]
    assert (finding["count"], rows_of(finding)) == (8, [0, 1, 2, 3, 4])
    assert "and 3 more" in (tmp_path / "check.html").read_text("utf-8")


def test_modes_transparency_rotation_and_types_are_counted(tmp_path: Path) -> None:
    sideways = Image.Exif()
    sideways[0x0112] = 6
    odd = [
        encoded(noise(1, (24, 16)), "JPEG", exif=sideways),
        encoded(noise(2).convert("RGBA")),
        encoded(noise(3).convert("CMYK"), "JPEG"),
        encoded(noise(4).convert("P")),
    ]
    folder = write_set(tmp_path / "set", [("a", odd[0], odd[1]), ("b", odd[2], odd[3])])
    found = named(check(folder))
    says = {name: found[name]["says"] for name in ("rotated", "alpha", "mode")}
    assert says["rotated"].endswith("when read: 1 picture.")
    assert says["alpha"].endswith("when read: 1 picture.")
    assert says["mode"].endswith("when read: 2 pictures (CMYK 1, P 1).")
    pictures = look_at_pictures(PairSet(folder)).found
    assert (pictures["width"][0], pictures["height"][0]) == (16, 24)  # upright


def test_pictures_that_are_kept_as_latents_only_are_counted_and_not_looked_at(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        for prompt, chosen, rejected, _ in random_rows(4):
            writer.add_latent_only(sha256(rejected), 24, 16)
            writer.add_pair_by_hash(prompt, writer.add_image(chosen), sha256(rejected))
    summary = check(tmp_path / "set")
    assert named(summary)["latents_only"]["says"] == "Kept as latents only, so not looked at: 4 pictures."
    assert (summary["errors"], summary["pictures_read"], summary["leaks"]) == (0, 4, [])


# ------------------------------------------------------------------ content


def test_the_same_pixels_on_both_sides_are_an_error_whatever_the_files(tmp_path: Path) -> None:
    found = named(check(write_set(tmp_path / "set", [("a", A, B), ("b", C, again(C))])))
    assert found["same_picture"]["severity"] == "error" and rows_of(found["same_picture"]) == [1]
    assert found["same_pixels"]["says"].endswith("1.")
    assert "nearly_same" not in found


def test_one_changed_pixel_is_nearly_the_same_and_no_duplicate(tmp_path: Path) -> None:
    other = Image.open(io.BytesIO(A))
    other.putpixel((0, 0), (1, 2, 3))
    found = named(check(write_set(tmp_path / "set", [("a", A, encoded(other)), ("b", C, D)])))
    assert rows_of(found["nearly_same"]) == [0] and found["nearly_same"]["severity"] == "note"
    assert not {"same_picture", "same_pixels", "repeated_pictures"} & set(found)


def test_a_picture_in_train_and_test_is_found_by_content(tmp_path: Path) -> None:
    rows = [("a", A, B, {"split": "train"}), ("b", again(A), C, {"split": "test"}), ("c", D, png(5), {"split": "test"})]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert rows_of(found["picture_in_two_splits"]) == [0, 1]
    assert found["picture_in_two_splits"]["severity"] == "warning"
    assert rows_of(found["picture_of_two_prompts"]) == [0, 1]
    assert found["repeated_pictures"]["says"] == "Pictures in several pairs: 1 of 5, one in up to 2."


# ------------------------------------------------------------------ labels


def test_contradicting_labels_are_found_by_content_within_a_prompt(tmp_path: Path) -> None:
    rows = [("a fox", A, B), ("a dog", B, A), ("A  Fox", again(B), A), ("a fox", C, D)]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert rows_of(found["contradiction"]) == [0, 2] and found["contradiction"]["severity"] == "warning"
    assert "cycle" not in found and "repeated_pair" not in found


def test_a_tie_contradicts_nothing(tmp_path: Path) -> None:
    rows = [("a", A, B), ("a", B, A, {"preference": 0.5})]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert not {"contradiction", "cycle"} & set(found)
    assert found["ties"]["says"] == "Ties (preference 0.5), left out of the leak test: 1 of 2 pairs."


def test_a_circle_of_three_is_found_and_a_ranking_is_none(tmp_path: Path) -> None:
    ranking = [("a", A, B), ("a", B, C), ("a", A, C)]
    circle = [("b", A, B), ("b", B, C), ("b", C, A), ("b", A, D)]
    found = named(check(write_set(tmp_path / "set", ranking + circle)))
    assert rows_of(found["cycle"]) == [3, 4, 5]
    assert "contradiction" not in found


def test_a_repeated_pair_names_the_first_and_their_preferences(tmp_path: Path) -> None:
    rows = [("a", A, B, {"preference": 0.9}), ("b", A, B), ("A", again(A), B, {"preference": 0.7})]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert found["repeated_pair"]["rows"] == ((2, "“A” as in row 0, preference 0.7 here, 0.9 there"),)


def test_pairs_of_no_weight_are_a_note(tmp_path: Path) -> None:
    found = named(check(write_set(tmp_path / "set", [("a", A, B, {"weight": 0}), ("b", C, D)])))
    assert found["no_weight"]["count"] == 1 and found["no_weight"]["severity"] == "note"


# ------------------------------------------------------------------ prompts


def test_a_prompt_of_invisible_characters_is_empty(tmp_path: Path) -> None:
    found = named(check(write_set(tmp_path / "set", [("a", A, B), ("\u200b\u200b", C, D)])))
    assert found["empty_prompt"]["severity"] == "error" and rows_of(found["empty_prompt"]) == [1]


def test_repeated_and_nearly_equal_prompts_are_notes(tmp_path: Path) -> None:
    pictures = [png(k) for k in range(10)]
    prompts = ["a fox", "a fox", "A  FOX", "a dog", "caf\u00e9"]
    rows = [(p, pictures[2 * k], pictures[2 * k + 1]) for k, p in enumerate(prompts)]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert rows_of(found["alike_prompts"]) == [2]
    assert found["repeated_prompts"]["says"] == "Prompts of several pairs: 1 of 3; 3 pairs of “a fox”."
    assert {found[name]["severity"] for name in ("alike_prompts", "repeated_prompts")} == {"note"}


def test_a_prompt_in_two_splits_is_an_error(tmp_path: Path) -> None:
    rows = [("a fox", A, B, {"split": "train"}), ("A fox", C, D, {"split": "test"})]
    found = named(check(write_set(tmp_path / "set", rows)))
    assert found["prompt_in_two_splits"]["severity"] == "error" and rows_of(found["prompt_in_two_splits"]) == [0, 1]


def test_the_models_tokenizers_and_resolution_measure_prompts_and_pictures(tmp_path: Path, sdxl: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(sdxl, subfolder="tokenizer")
    most = tokenizer.model_max_length
    long = "zebra crossing " * most
    fits = "a red square"
    rows = [(fits, png(1, (16, 16)), png(2, (16, 20))), (long, png(3, (15, 99)), png(4, (16, 16)))]
    summary = check(write_set(tmp_path / "set", rows), model=str(sdxl))
    found = named(summary)
    over = len(tokenizer(long).input_ids) - most
    assert over > 0 and len(tokenizer(fits).input_ids) <= most
    assert found["long_prompt"]["severity"] == "warning"
    assert found["long_prompt"]["says"].endswith(
        f"longer than the {most} tokens that {sdxl} reads: 1 pair, by up to {over}."
    )
    assert [row for row, words in found["long_prompt"]["rows"] if f"{over} too many" in words] == [1]
    assert rows_of(found["small"]) == [1]  # the model of the tests works at 16 pixels
    assert "length_unknown" not in found


# ------------------------------------------------------------------ sizes and leaks


def test_pairs_whose_pictures_differ_in_size_are_named(tmp_path: Path) -> None:
    found = named(check(write_set(tmp_path / "set", [("a", A, B), ("b", C, png(1, (16, 24)))])))
    assert found["sizes_differ"]["rows"] == ((1, "“b” 24 × 16 against 16 × 24"),)


def leaks(summary: dict[str, Any]) -> dict[str, float]:
    return {leak["name"]: leak["paired"]["value"] for leak in summary["leaks"]}


def test_type_and_quality_that_tell_the_sides_apart_are_errors_with_exact_aucs(tmp_path: Path) -> None:
    rows = []
    for k in range(40):
        chosen = encoded(noise(2 * k), "JPEG", quality=90)
        rejected = encoded(noise(2 * k + 1), "JPEG", quality=60) if k % 4 else png(2 * k + 1)
        rows.append((f"prompt {k}", chosen, rejected))
    summary = check(write_set(tmp_path / "set", rows))
    found = leaks(summary)
    assert found["jpeg_quality"] == 1  # 30 pairs of two JPEG files
    assert found["format JPEG"] == 0.5 + 0.5 * 10 / 40
    assert found["width"] == found["height"] == found["aspect"] == 0.5
    finding = named(summary)["leak_file"]
    assert finding["severity"] == "error" and "JPEG quality. Chosen has more of it in 100 % of pairs" in finding["says"]
    assert named(summary)["leak_content"]["severity"] == "warning"  # JPEG of noise at 60 is smaller
    assert summary["leak_together"]["value"] > 0.8 and summary["leak_together"]["tells"]


def test_brightness_that_tells_the_sides_apart_is_a_warning_and_no_error(tmp_path: Path) -> None:
    def flat(level: int, k: int) -> bytes:
        return encoded(rgb(np.full((16, 16, 3), level) + np.random.default_rng(k).integers(0, 9, (16, 16, 3))))

    levels = [(180, 60) if k % 10 else (60, 180) for k in range(50)]
    rows = [(f"prompt {k}", flat(a, 2 * k), flat(b, 2 * k + 1), TRAIN) for k, (a, b) in enumerate(levels)]
    summary = check(write_set(tmp_path / "set", rows))
    assert leaks(summary)["brightness"] == 45 / 50
    assert summary["errors"] == 0
    assert "Chosen has more of brightness in 90 % of pairs" in named(summary)["leak_content"]["says"]


def test_ties_take_no_part_in_the_leak_test(tmp_path: Path) -> None:
    rows = random_rows(10) + [(f"tie {k}", png(500 + k, (40, 40)), png(600 + k), {"preference": 0.5}) for k in range(9)]
    summary = check(write_set(tmp_path / "set", rows))
    assert leaks(summary)["width"] == 0.5
    assert {leak["paired"]["pairs"] for leak in summary["leaks"]} == {10}


def test_with_buckets_a_picture_is_small_where_it_is_smaller_than_the_frame_in_which_it_is_seen(tmp_path: Path) -> None:
    sizes = [(64, 32), (32, 64), (48, 48), (60, 30), (47, 48)]  # the first three are the frames of mini
    rows = [(f"a fox {k}", png(2 * k, s), png(2 * k + 1, s), {"split": "train"}) for k, s in enumerate(sizes)]
    found = named(check(write_set(tmp_path / "set", rows), model="mini", buckets=True))["small"]
    assert rows_of(found) == [3, 4]
    assert found["says"].startswith(
        "Pictures with a side shorter than that of the frame in which mini sees them: 4 in 2"
    )
