"""Two folders of pictures with captions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_fixtures import BLUE, GREEN, RED, make_picture
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import Options, RawPair, import_pairs
from mapo.importers.formats.folders import detects, read
from mapo.importers.sources import Source
from mapo.pairs import PairSet
from mapo.pairs.splits import split_of


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


def test_the_other_two_folders_beside_the_first_two_are_told(tmp_path: Path) -> None:
    root = make(make(tmp_path / "in", ("chosen", "rejected")), ("w", "l"), ("c",))
    result = CliRunner().invoke(cli, ["import", str(root), "--out", str(tmp_path / "set")])
    assert "did not read l/ and w/, as chosen/ and rejected/ are there" in result.output, result.output
    assert [pair.prompt for pair in PairSet(tmp_path / "set")] == ["prompt a", "prompt b"]


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
    "no caption": (lambda root: (root / "chosen" / "b.txt").unlink(), r"^chosen/b\.png has no caption \(b\.txt or b\.caption, in either folder\)"),
    "two lines": (write("chosen/b.txt", b"one\ntwo"), "the caption chosen/b.txt has 2 lines; a prompt is one line"),
    "three lines of Windows": (write("chosen/b.txt", b"one\r\ntwo\r\nthree\r\n"), "has 3 lines"),
    "UTF-16 without a mark": (write("chosen/b.txt", "ab".encode("utf-16-le")), "it holds NUL characters"),
    "UTF-32": (write("chosen/b.txt", "ab".encode("utf-32")), "the caption chosen/b.txt cannot be read"),
    "Latin-1": (write("chosen/b.txt", "Bär".encode("latin-1")), "the caption chosen/b.txt cannot be read"),
    "caption is a pipe": (pipe("chosen/b.txt"), r"the caption chosen/b.txt cannot be read \(it is not a file\)"),
    "picture is a pipe": (pipe("chosen/b.png"), r"the picture chosen/b.png cannot be read \(it is not a file\)"),
    "empty caption": (write("chosen/b.txt", b"\n"), "^the prompt is empty: chosen/b.txt holds no text"),
    "captions differ": (write("rejected/b.txt", b"other"), "^the captions chosen/b.txt and rejected/b.txt differ"),
    "no partner": (lambda root: (root / "rejected" / "b.png").unlink(), r"^chosen/b\.png has no partner in rejected/\. Mend it, or leave such pairs out with"),
    "two partners": (write("rejected/b.jpg", GREEN), r"^rejected/b\.jpg and rejected/b\.png have one name; a pair needs one picture of it in rejected/"),
    "caption alone": (
        lambda root: [(root / side / "b.png").unlink() for side in ("chosen", "rejected")] and None,
        r"^chosen/b\.txt is a caption without a picture",
    ),
    "no picture": (write("rejected/b.png", b"text"), "^b: the rejected picture: it is not in a known picture format"),
    "link that leads out": (link("rejected/b.png"), "the path 'rejected/b.png' is a link that leads to .*x.png, outside of"),
    "caption that leads out": (link("chosen/b.txt"), "the path 'chosen/b.txt' is a link that leads to .*x.png, outside of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_told_and_can_be_dropped(tmp_path: Path, name: str) -> None:
    spoil, why = BAD[name]
    (tmp_path / "x.png").write_bytes(GREEN)
    spoil(make(tmp_path / "in"))
    with pytest.raises(MapoError, match=why):
        import_pairs(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    counts = import_pairs(tmp_path / "in", tmp_path / "set", on_bad_row="drop")
    assert counts == {"pairs": 1, "ties": 0, "repeats": 0, "bad": 1}


@pytest.mark.parametrize(
    ("bad", "starts"), [(2, "2 pairs are bad. chosen/c0"), (7, "7 pairs are bad. The first 5: chosen/c0")]
)
def test_several_bad_names_are_told_at_once(tmp_path: Path, bad: int, starts: str) -> None:
    root = make(tmp_path / "in")
    for k in range(bad):
        (root / "chosen" / f"c{k}.png").write_bytes((root / "chosen" / "a.png").read_bytes())
    with pytest.raises(MapoError) as told:
        import_pairs(root, tmp_path / "set")
    said = str(told.value)
    assert said.startswith(starts) and said.endswith("Mend them, or leave such pairs out with --on-bad-row drop.")
    assert [f"c{k}.png has no partner in rejected/" in said for k in range(bad)] == [k < 5 for k in range(bad)]
    assert not (tmp_path / "set").exists()


def test_a_file_where_folders_are_wanted_is_called_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(MapoError, match=r"a\.csv is a file; the format folders is a folder"):
        import_pairs(tmp_path / "a.csv", tmp_path / "set", format="folders")


def test_a_folder_without_the_other_one_and_empty_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "chosen").mkdir(parents=True)
    assert detects(Source(tmp_path / "in"))
    with pytest.raises(MapoError, match="in/ has a folder chosen/ but no folder rejected/ beside it"):
        import_pairs(tmp_path / "in", tmp_path / "set")
    (tmp_path / "in" / "rejected").mkdir()
    with pytest.raises(MapoError, match="in/ is empty: chosen/ and rejected/ hold no pictures"):
        import_pairs(tmp_path / "in", tmp_path / "set")
    assert not detects(Source(tmp_path))
    with pytest.raises(MapoError, match="has no folders chosen/ and rejected/, or w/ and l/"):
        import_pairs(tmp_path, tmp_path / "set", format="folders")


LITTER: dict[str, dict[str, bytes]] = {
    "4 .npz": {f"{side}/{k}.npz": b"PK" for side in ("chosen", "rejected") for k in "ab"},
    "2 .npz": {f"chosen/{k}_0064x0064_sdxl.npz": b"PK" for k in "ab"},
    "2 masks": {"chosen/a-masklabel.png": RED, "chosen/b-condlabel.png": RED},
    "1 .json": {"chosen/a.json": b"{}"},
    "2 Thumbs.db, 1 desktop.ini": {"chosen/Thumbs.db": b"x", "rejected/thumbs.db": b"x", "chosen/desktop.ini": b"x"},
    "1 .DS_Store, 1 hidden": {"chosen/.DS_Store": b"x", "rejected/._a.png": b"x"},
    "1 @eaDir": {"chosen/@eaDir/a.png@SynoEAStream": b"x", "chosen/@eaDir/a.png": RED},
    "1 hidden": {"chosen/.ipynb_checkpoints/a-checkpoint.png": RED},
    "1 .jsonl": {"chosen/metadata.jsonl": b"{}"},
    "1 .safetensors, 1 without an ending": {"chosen/a.safetensors": b"x", "chosen/LICENSE": b"x"},
}


@pytest.mark.parametrize("kinds", LITTER)
def test_what_other_programs_leave_beside_pictures_is_passed_over_and_counted(
    tmp_path: Path, kinds: str, heard: Callable[[], str]
) -> None:
    root = make(tmp_path / "in")
    for name, data in LITTER[kinds].items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    counts = import_pairs(root, tmp_path / "set", split="train")
    assert counts == {"pairs": 2, "ties": 0, "repeats": 0, "bad": 0}
    count = sum(int(word) for word in kinds.split() if word.isdigit())
    said = f"passed over {count} file{'s' * (count > 1)}: {kinds}"
    assert heard().splitlines() == [said]


def test_many_kinds_of_litter_are_one_line(tmp_path: Path, heard: Callable[[], str]) -> None:
    root = make(tmp_path / "in")
    for end in "abcdefghi":
        (root / "chosen" / f"x.{end}").write_text("")
    import_pairs(root, tmp_path / "set", split="train")
    said = "passed over 9 files: 1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 3 other kinds"
    assert heard().splitlines() == [said]


def test_a_folder_within_that_is_a_link_is_passed_over_and_counted(tmp_path: Path, heard: Callable[[], str]) -> None:
    root = make(tmp_path / "in")
    make(tmp_path / "more", names=("c",))
    (root / "chosen" / "more").symlink_to(tmp_path / "more" / "chosen")
    assert import_pairs(root, tmp_path / "set")["pairs"] == 2
    assert "passed over 1 file: 1 linked folders" in heard()


def test_a_link_in_a_circle_is_a_bad_row(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    (root / "chosen" / "z.png").symlink_to("z.png")
    (root / "rejected" / "z.png").write_bytes(RED)
    with pytest.raises(MapoError, match="its links lead in a circle.* Mend it, or leave such pairs out"):
        import_pairs(root, tmp_path / "set")
    assert import_pairs(root, tmp_path / "set", on_bad_row="drop")["pairs"] == 2


def test_folders_of_litter_alone_are_empty_and_say_what_they_hold(tmp_path: Path) -> None:
    for side in ("chosen", "rejected"):
        (tmp_path / "in" / side).mkdir(parents=True)
        (tmp_path / "in" / side / "a.npz").write_bytes(b"PK")
    with pytest.raises(MapoError, match=r"hold no pictures \(passed over 2 files: 2 \.npz\)"):
        import_pairs(tmp_path / "in", tmp_path / "set")


@pytest.mark.parametrize("sides", [("Chosen", "Rejected"), ("CHOSEN", "rejected"), ("W", "L")])
def test_the_folders_may_be_written_in_capitals(tmp_path: Path, sides: tuple[str, str]) -> None:
    root = make(tmp_path / "in", sides)
    assert detects(Source(root))
    assert import_pairs(root, tmp_path / "set")["pairs"] == 2
    assert PairSet(tmp_path / "set")[0].chosen == sha256(make_picture((255, 0, 0)))


def test_names_and_captions_that_code_accents_differently_are_one_pair(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for side, name, data in (("chosen", "ba\u0308r.png", RED), ("rejected", "b\u00e4r.png", BLUE)):
        (root / side).mkdir(parents=True)
        (root / side / name).write_bytes(data)
    (root / "chosen" / "b\u00e4r.txt").write_text("a bear")
    (row,) = read(Source(root), Options())
    assert row == [RawPair("b\u00e4r", "a bear", RED, BLUE, meta={"file": "b\u00e4r"})]


def test_a_folder_of_pictures_alone_is_told_of_the_two_folders(tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "a.png").write_bytes(RED)
    with pytest.raises(MapoError, match=r"style/ has no folders chosen/ and rejected/\. Put the better pictures into"):
        import_pairs(tmp_path / "style", tmp_path / "set")


def test_two_pictures_of_one_name_are_told_with_their_names(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    (root / "chosen" / "a.jpg").write_bytes(make_picture(format="JPEG"))
    with pytest.raises(
        MapoError, match=r"^chosen/a\.jpg and chosen/a\.png have one name; a pair needs one picture of it"
    ):
        import_pairs(root, tmp_path / "set")


def test_folders_in_the_hub_cache_are_read(tmp_path: Path) -> None:
    made = make(tmp_path / "made")
    repo = tmp_path / "hub" / "datasets--me--set"
    snapshot = repo / "snapshots" / "0123abc"
    (repo / "blobs").mkdir(parents=True)
    for path in [*made.rglob("*.png"), *made.rglob("*.txt")]:
        name = sha256(path.read_bytes())
        (repo / "blobs" / name).write_bytes(path.read_bytes())
        place = snapshot / path.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path("../../../blobs") / name)
    import_pairs(made, tmp_path / "expected")
    import_pairs(snapshot, tmp_path / "set")
    assert list(PairSet(tmp_path / "set")) == list(PairSet(tmp_path / "expected"))


def test_the_help_names_the_two_folders() -> None:
    said = " ".join(CliRunner().invoke(cli, ["import", "--help"]).output.split())
    assert "Two folders chosen/ and rejected/ (or w/ and l/)" in said


@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("W", "L")])
def test_folders_of_splits_with_the_two_folders_keep_their_splits(
    tmp_path: Path, sides: tuple[str, str], heard: Callable[[], str]
) -> None:
    for split, names in (("train", ("a", "b")), ("val", ("z", "a")), ("test", ("c", "d"))):
        make(tmp_path / "in" / split, sides, names)
    import_pairs(tmp_path / "in", tmp_path / "set")
    opened = PairSet(tmp_path / "set")
    assert [(pair.meta["file"], pair.split) for pair in opened] == [
        ("test/c", "test"), ("test/d", "test"), ("train/a", "train"), ("train/b", "train"), ("val/a", "validation"),
        ("val/z", "validation"),
    ]  # fmt: skip
    assert opened[2].chosen == sha256(make_picture((255, 0, 0)))
    assert opened.info["provenance"]["splits"] == {"train": 2, "validation": 2, "test": 2}
    said = heard()
    assert "The source's own splits are kept: 2 train, 2 validation, 2 test" in said
    assert "1 prompt stands in more than one split of the source" in said  # that of train/a and val/a
    import_pairs(tmp_path / "in", tmp_path / "other", split="by-prompt")
    assert all(pair.split == split_of(pair.prompt) for pair in PairSet(tmp_path / "other"))


def test_pairs_beside_folders_of_splits_and_in_folders_of_other_names_are_split_by_prompt_and_said(
    tmp_path: Path, heard: Callable[[], str]
) -> None:
    root = make(tmp_path / "in", names=("a",))
    make(root / "test", names=("b",))
    make(root / "extra", names=("c",))
    import_pairs(root, tmp_path / "set")
    assert {pair.meta["file"]: pair.split for pair in PairSet(tmp_path / "set")} == {
        "a": split_of("prompt a"), "test/b": "test", "extra/c": split_of("prompt c"),
    }  # fmt: skip
    said = heard()
    assert "1 pair is of no split that is known, and split by prompt." in said
    assert "1 pair is of the split 'extra', and split by prompt." in said


def test_folders_of_splits_within_the_two_folders_keep_them_too(tmp_path: Path) -> None:
    root = make(tmp_path / "in", names=("c",))
    for name in ("train/a", "Test/b", "my-test/d"):
        for side, colour in (("chosen", "red"), ("rejected", "blue")):
            (root / side / name).parent.mkdir()
            (root / side / f"{name}.png").write_bytes(make_picture(colour))
        (root / "chosen" / f"{name}.txt").write_text(f"prompt {name}")
    import_pairs(root, tmp_path / "set")
    assert {pair.meta["file"]: pair.split for pair in PairSet(tmp_path / "set")} == {
        "Test/b": "test", "train/a": "train", "c": split_of("prompt c"), "my-test/d": split_of("prompt my-test/d"),
    }  # fmt: skip


IN_SPLITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no partner": (lambda root: (root / "test" / "rejected" / "b.png").unlink(), r"^test/chosen/b\.png has no partner in test/rejected/"),
    "no caption": (lambda root: (root / "test" / "chosen" / "b.txt").unlink(), r"^test/chosen/b\.png has no caption"),
    "no picture": (write("test/rejected/b.png", b"text"), "^test/b: the rejected picture: it is not in a known picture format"),
    "link that leads out": (link("test/rejected/b.png"), "the path 'test/rejected/b.png' is a link that leads to"),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_SPLITS)
def test_a_bad_name_in_a_folder_of_a_split_is_told_with_its_path_and_can_be_dropped(tmp_path: Path, name: str) -> None:
    spoil, why = IN_SPLITS[name]
    (tmp_path / "x.png").write_bytes(GREEN)
    for split, names in (("test", ("a", "b")), ("train", ("c", "d"))):
        make(tmp_path / "in" / split, names=names)
    spoil(tmp_path / "in")
    with pytest.raises(MapoError, match=why):
        import_pairs(tmp_path / "in", tmp_path / "set")
    counts = import_pairs(tmp_path / "in", tmp_path / "set", on_bad_row="drop")
    assert (counts["pairs"], counts["bad"]) == (3, 1)


def test_a_split_with_one_of_the_two_folders_alone_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "in" / "train")
    (tmp_path / "in" / "test" / "chosen").mkdir(parents=True)
    with pytest.raises(MapoError, match="in/ has a folder test/chosen/ but no folder test/rejected/ beside it"):
        import_pairs(tmp_path / "in", tmp_path / "set")


def test_captions_of_one_name_in_two_splits_are_two_groups(tmp_path: Path) -> None:
    for k, split in enumerate(("train", "test")):
        root = make(tmp_path / "in" / split, names=("a",))
        (root / "chosen" / "a.txt").write_text(f"one {k}\ntwo {k}")
    import_pairs(tmp_path / "in", tmp_path / "set", captions="each")
    assert [(pair.group, pair.split) for pair in PairSet(tmp_path / "set")] == [
        ("test/a", "test"), ("test/a", "test"), ("train/a", "train"), ("train/a", "train"),
    ]  # fmt: skip


def test_the_two_folders_further_down_are_named(tmp_path: Path) -> None:
    make(tmp_path / "in" / "data" / "train")
    with pytest.raises(
        MapoError, match=r"in/ has no folders chosen/ and rejected/\. data/ in it has: import .*in/data\."
    ):
        import_pairs(tmp_path / "in", tmp_path / "set")
    assert import_pairs(tmp_path / "in" / "data", tmp_path / "set")["pairs"] == 2
    make(tmp_path / "in" / "cats")
    with pytest.raises(MapoError, match=r"cats/, data/ in it have: import each by itself, or put their pictures into"):
        import_pairs(tmp_path / "in", tmp_path / "other")
