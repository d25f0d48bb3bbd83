"""Two folders of pictures with captions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_fixtures import BLUE, GREEN, RED, make_picture
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import Options, RawPair, import_pairs
from mapo.importers.folders import detects, read
from mapo.importers.sources import Source
from mapo.pairs import PairSet


def make(root: Path, sides: tuple[str, str] = ("chosen", "rejected"), names: tuple[str, ...] = ("a", "b")) -> Path:
    for side, colour in zip(sides, ((255, 0), (0, 255)), strict=True):
        (root / side).mkdir(parents=True)
        for k, name in enumerate(names):
            (root / side / f"{name}.png").write_bytes(make_picture((*colour, k)))
    for name in names:
        (root / sides[0] / f"{name}.txt").write_text(f"prompt {name}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("w", "l")])
def test_pictures_of_equal_names_are_pairs_in_the_order_of_the_names(tmp_path: Path, sides: tuple[str, str]) -> None:
    root = make(tmp_path / "in", sides, ("b", "a", "c"))
    assert import_pairs(root, tmp_path / "set") == {"pairs": 3, "ties": 0, "repeats": 0, "bad": 0}
    pairs = list(PairSet(tmp_path / "set"))
    assert [(p.prompt, p.meta) for p in pairs] == [(f"prompt {n}", {"file": n}) for n in "abc"]
    assert pairs[1].chosen == sha256(make_picture((255, 0, 0)))
    assert pairs[1].rejected == sha256(make_picture((0, 255, 0)))


def test_names_may_lie_deeper_and_have_other_ends(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for side, name, data in (("chosen", "1.jpg", RED), ("rejected", "1.webp", BLUE)):
        (root / side / "deep").mkdir(parents=True)
        (root / side / "deep" / name).write_bytes(data)
        (root / side / ".hidden").write_text("")
    (root / "rejected" / "deep" / "1.caption").write_text("a bear")
    (row,) = read(Source(root), Options())
    assert row == [RawPair("deep/1", "a bear", RED, BLUE, meta={"file": "deep/1"})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_caption_is_read_whole_in_any_unicode_that_says_what_it_is(tmp_path: Path, encoding: str, end: str) -> None:
    root = make(tmp_path / "in", names=("a",))
    (root / "chosen" / "a.txt").write_bytes(f" ein Bär, 雪 🐻{end}".encode(encoding))
    (row,) = read(Source(root), Options())
    assert isinstance(row[0], RawPair)
    assert row[0].prompt == " ein Bär, 雪 🐻"


def test_equal_captions_on_both_sides_are_one(tmp_path: Path) -> None:
    root = make(tmp_path / "in", names=("a",))
    (root / "rejected" / "a.caption").write_text("prompt a")
    assert import_pairs(root, tmp_path / "set")["pairs"] == 1


def link(path: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).unlink()
        (root / path).symlink_to(root.parent / "x.png")

    return spoil


def write(path: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes(data) and None


def pipe(path: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).unlink()
        os.mkfifo(root / path)

    return spoil


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no caption": (lambda root: (root / "chosen" / "b.txt").unlink(), r"there is no caption \(b\.txt or b\.caption\)"),
    "two lines": (write("chosen/b.txt", b"one\ntwo"), "the caption chosen/b.txt has 2 lines; a prompt is one line"),
    "three lines of Windows": (write("chosen/b.txt", b"one\r\ntwo\r\nthree\r\n"), "has 3 lines"),
    "UTF-16 without a mark": (write("chosen/b.txt", "ab".encode("utf-16-le")), "it holds NUL characters"),
    "UTF-32": (write("chosen/b.txt", "ab".encode("utf-32")), "the caption chosen/b.txt cannot be read"),
    "Latin-1": (write("chosen/b.txt", "Bär".encode("latin-1")), "the caption chosen/b.txt cannot be read"),
    "caption is a pipe": (pipe("chosen/b.txt"), r"the caption chosen/b.txt cannot be read \(it is no file\)"),
    "picture is a pipe": (pipe("chosen/b.png"), r"the picture chosen/b.png cannot be read \(it is no file\)"),
    "empty caption": (write("chosen/b.txt", b"\n"), "the prompt is empty"),
    "captions differ": (write("rejected/b.txt", b"other"), r"its captions differ \(chosen/b.txt, rejected/b.txt\)"),
    "no partner": (lambda root: (root / "rejected" / "b.png").unlink(), "rejected has no pictures of this name"),
    "two partners": (write("rejected/b.jpg", GREEN), "rejected has 2 pictures of this name"),
    "caption alone": (
        lambda root: [(root / side / "b.png").unlink() for side in ("chosen", "rejected")] and None,
        "chosen has no pictures of this name",
    ),
    "no picture": (write("rejected/b.png", b"text"), "the rejected picture: it is in no format"),
    "link that leads out": (link("rejected/b.png"), "the path 'rejected/b.png' is a link that leads to .*x.png, outside of"),
    "caption that leads out": (link("chosen/b.txt"), "the path 'chosen/b.txt' is a link that leads to .*x.png, outside of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_told_and_can_be_dropped(tmp_path: Path, name: str) -> None:
    spoil, why = BAD[name]
    (tmp_path / "x.png").write_bytes(GREEN)
    spoil(make(tmp_path / "in"))
    with pytest.raises(MapoError, match=rf"^b: .*{why}"):
        import_pairs(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    counts = import_pairs(tmp_path / "in", tmp_path / "set", on_bad_row="drop")
    assert counts == {"pairs": 1, "ties": 0, "repeats": 0, "bad": 1}


def test_a_folder_without_the_other_one_and_empty_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "chosen").mkdir(parents=True)
    assert detects(Source(tmp_path / "in"))
    with pytest.raises(MapoError, match="in has no folder rejected beside the other one"):
        import_pairs(tmp_path / "in", tmp_path / "set")
    (tmp_path / "in" / "rejected").mkdir()
    with pytest.raises(MapoError, match="is empty: chosen and rejected hold no files"):
        import_pairs(tmp_path / "in", tmp_path / "set")
    assert not detects(Source(tmp_path))
    with pytest.raises(MapoError, match="has no folders chosen and rejected, or w and l"):
        import_pairs(tmp_path, tmp_path / "set", format="folders")
