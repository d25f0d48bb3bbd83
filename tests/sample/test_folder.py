"""A folder of generated pictures survives interruptions and is not believed blindly."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_fixtures import BLUE, GREEN, RED, files_below, make_picture, noise
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs.pairs import decode_picture
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images, png_bytes, read_images, read_manifest, read_picture


def make_row(name: str = "a", data: bytes = RED, **changes: Any) -> ImageRow:
    prompt = f"ein Bär 🐻 {name}"
    row = ImageRow(f"{name}.png", prompt_id(prompt), prompt, 3, 7, sha256(data), "mini", guidance=3.0)
    return replace(row, **changes)


def manifest(folder: Path) -> Path:
    return folder / "manifest.jsonl"


def test_rows_and_pictures_come_back_as_they_went_in(tmp_path: Path) -> None:
    rows = [make_row("a", RED), make_row("b", BLUE, prefix="Realistic 8k image.", steps=16, batch_layout="0/1/2")]
    append_images(tmp_path / "out", rows[:1], [RED])
    append_images(tmp_path / "out", rows[1:], [BLUE])
    assert read_images(tmp_path / "out") == rows
    assert [read_picture(tmp_path / "out", row) for row in rows] == [RED, BLUE]
    assert files_below(tmp_path / "out") == {"a.png", "b.png", "manifest.jsonl"}
    assert "Bär 🐻" in manifest(tmp_path / "out").read_text("utf-8")


def test_a_picture_as_png_keeps_every_pixel() -> None:
    picture = noise(3)
    assert decode_picture(png_bytes(picture)).tobytes() == picture.tobytes()
    assert png_bytes(picture) == png_bytes(picture.copy())


@settings(deadline=None)
@given(share=st.floats(0, 1))
def test_a_run_that_was_stopped_at_any_byte_goes_on(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("images")
    rows = [make_row(name) for name in "abcd"]
    append_images(folder, rows[:3], [RED] * 3)
    whole = manifest(folder).read_bytes()
    cut = whole[: round(share * len(whole))]
    manifest(folder).write_bytes(cut)
    left = len(read_images(folder))
    assert read_images(folder) == rows[:left]
    assert left - cut.count(b"\n") in (0, 1)  # a row that lacks only its line feed counts
    append_images(folder, rows[left:], [RED] * (4 - left))
    assert read_images(folder) == rows


def test_a_picture_is_written_before_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_images(tmp_path, [make_row("a")], [RED])
    with pytest.raises(ValueError):
        append_images(tmp_path, [make_row("b"), make_row("c")], [RED])
    assert read_images(tmp_path) == [make_row("a")]
    assert not list(tmp_path.glob(".*"))


def test_a_folder_without_a_manifest_is_no_images_folder(tmp_path: Path) -> None:
    with pytest.raises(
        MapoError, match="is not an images folder: it has no manifest.jsonl and no pictures. Make it with `mapo sample`"
    ):
        read_images(tmp_path)


def test_an_empty_manifest_holds_no_rows(tmp_path: Path) -> None:
    manifest(tmp_path).write_text("\n\n")
    assert read_images(tmp_path) == []


GOOD = asdict(make_row())
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "line 2 is not JSON"),
    "no object": (b"[1]", "line 2 is not one"),
    "no file": (json.dumps({k: v for k, v in GOOD.items() if k != "file"}).encode(), "line 2 is not one .*'file'"),
    "file is null": (json.dumps(GOOD | {"file": None}).encode(), "line 2 is not one .*file is None"),
    "seed is a text": (json.dumps(GOOD | {"seed": "3"}).encode(), "line 2 is not one .*seed is '3'"),
    "steps is true": (json.dumps(GOOD | {"steps": True}).encode(), "line 2 is not one .*steps is True"),
    "half a character": (b'{"file": "\xff"}', "line 2 is not JSON"),
    "later version": (json.dumps(GOOD | {"version": 2}).encode(), "line 2 has version 2, this version reads 1"),
    "picture is gone": (json.dumps(GOOD | {"file": "z.png"}).encode(), "line 2 names z.png, which is not there"),
    "outside": (json.dumps(GOOD | {"file": "../z.png"}).encode(), "line 2: the path '../z.png' leaves its folder"),
    "absolute": (
        json.dumps(GOOD | {"file": "/etc/passwd"}).encode(),
        "line 2: the path .* is absolute and lies outside of",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, name: str) -> None:
    line, message = BAD_LINES[name]
    append_images(tmp_path, [make_row("a")], [RED])
    with manifest(tmp_path).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(MapoError, match=message):
        read_images(tmp_path)


def test_whole_numbers_may_stand_for_fractions_and_later_keys_are_ignored(tmp_path: Path) -> None:
    append_images(tmp_path, [make_row("a")], [RED])
    manifest(tmp_path).write_text(json.dumps(asdict(make_row("a")) | {"guidance": 3, "later": 1}) + "\n")
    assert read_images(tmp_path) == [make_row("a")]


def test_rows_can_be_read_where_the_pictures_are_not(tmp_path: Path) -> None:
    append_images(tmp_path, [make_row("a")], [RED])
    (tmp_path / "a.png").unlink()
    assert read_manifest(tmp_path, check_files=False) == [make_row("a")]


def test_a_picture_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    append_images(tmp_path, [make_row("a", RED)], [RED])
    (tmp_path / "a.png").write_bytes(GREEN)
    with pytest.raises(MapoError, match="is not the picture that the manifest names"):
        read_picture(tmp_path, read_images(tmp_path)[0])


def test_a_picture_is_never_read_from_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(make_picture("black"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(MapoError, match="is a link that leads to .*secret.png, outside of its folder"):
        read_picture(tmp_path / "images", make_row(file="link.png"))
