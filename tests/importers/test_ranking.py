"""JSONL of rankings."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import make_picture
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import BadRow, Options, RawPair, import_pairs
from mapo.importers.formats.ranking import detects, read
from mapo.importers.sources import Source
from mapo.pairs import PairSet

PROMPT = "a painting of an ocean, 雪"
NAMES = ["1.webp", "2.webp", "3.webp", "4.webp"]
DATA = [make_picture(colour, (16, 16), "WEBP") for colour in ("red", "green", "blue", "gray")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name, data in zip(NAMES, DATA, strict=True):
        (folder / name).write_bytes(data)
    (folder / "sub" / "5.webp").write_bytes(make_picture("black"))
    (tmp_path / "secret.png").write_bytes(make_picture("white"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def make_line(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "images": NAMES, "rank": [1, 2, 3, 4], "reward": [0.5, 0.2, -1.4, -2.0], **changes}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "ranking.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text + "\n", "utf-8")
    return path


def test_a_ranking_of_four_gives_six_pairs_of_one_group_with_the_better_one_chosen(folder: Path) -> None:
    write(folder, make_line(images=[NAMES[k] for k in (2, 0, 3, 1)], rank=[3, 1, 4, 2]))
    assert import_pairs(folder, folder.parent / "set") == {"pairs": 6, "ties": 0, "repeats": 0, "bad": 0}
    opened = PairSet(folder.parent / "set")
    names = [sha256(data) for data in DATA]
    assert [(p.chosen, p.rejected) for p in opened] == list(combinations(names, 2))
    assert {(p.prompt, p.group, p.preference, p.weight, p.source) for p in opened} == {
        (PROMPT, "ranking:1", 1.0, 1.0, "ranking")
    }
    assert opened[0].meta == {"chosen": {"image": "1.webp", "rank": 1}, "rejected": {"image": "2.webp", "rank": 2}}
    assert len(opened.image_names()) == 4


def test_equal_ranks_are_ties_and_are_dropped_with_a_count(folder: Path) -> None:
    path = write(folder, make_line(rank=[1, 2, 2, 2.5]))
    assert import_pairs(path, folder.parent / "set") == {"pairs": 5, "ties": 1, "repeats": 0, "bad": 0}
    names = [sha256(data) for data in DATA]
    pairs = [(p.chosen, p.rejected) for p in PairSet(folder.parent / "set")]
    assert pairs == [pair for pair in combinations(names, 2) if pair != (names[1], names[2])]


def test_the_best_can_be_set_against_the_worst_alone(folder: Path) -> None:
    path = write(folder, make_line(rank=[2, 1, 4, 3]), make_line(prompt="b", rank=[1, 1, 1, 1]))
    counts = import_pairs(path, folder.parent / "set", rankings="best-worst")
    assert counts == {"pairs": 1, "ties": 1, "repeats": 0, "bad": 0}
    (pair,) = PairSet(folder.parent / "set")
    assert (pair.chosen, pair.rejected, pair.group) == (sha256(DATA[1]), sha256(DATA[2]), "ranking:1")


def test_every_line_is_a_group_of_its_own(folder: Path) -> None:
    write(folder, make_line(), "", make_line(prompt="b", images=NAMES[:2], rank=[2, 1]))
    import_pairs(folder, folder.parent / "set")
    groups = [p.group for p in PairSet(folder.parent / "set")]
    assert groups == ["ranking:1"] * 6 + ["ranking:3"]


def test_pictures_lie_in_the_files_folder_wherever_one_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, make_line(images=["sub/5.webp", "sub/../1.webp"], rank=[1, 2]))
    monkeypatch.chdir(folder.parent)
    assert import_pairs(path.relative_to(folder.parent), Path("set"))["pairs"] == 1


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ('{"prompt": ', "it is not JSON"),
    "no object": ([1], "it is not a JSON object"),
    "no rank": ({"prompt": "a", "images": NAMES}, "it lacks rank; it has prompt, images"),
    "prompt is not a text": (make_line(prompt=3), "prompt must be a text"),
    "prompt is empty": (make_line(prompt=" "), "the prompt is empty"),
    "images is not a list": (make_line(images="1.webp"), "images and rank lists"),
    "an image is not a path": (make_line(images=[*NAMES[:3], None]), "an image is not a path"),
    "fewer ranks": (make_line(rank=[1, 2, 3]), "it has 4 images and 3 in rank"),
    "one image": (make_line(images=NAMES[:1], rank=[1]), "it has 1 images and 1 in rank; it needs two or more"),
    "a rank is a text": (make_line(rank=[1, 2, 3, "4"]), "one of rank is not a number"),
    "a rank is true": (make_line(rank=[True, 2, 3, 4]), "one of rank is not a number"),
    "a rank is NaN": (make_line(rank=[1, 2, 3, float("nan")]), "one of rank is not a number"),
    "a rank is endless": (make_line(rank=[1, 2, 3, float("inf")]), "one of rank is not a number"),
    "a rank is null": (make_line(rank=[1, 2, 3, None]), "one of rank is not a number"),
    "picture is gone": (make_line(images=[*NAMES[:3], "9.webp"]), "the picture 9.webp cannot be read"),
    "picture is a folder": (make_line(images=[*NAMES[:3], "sub"]), "the picture sub cannot be read"),
    "same picture twice": (make_line(images=["1.webp", "1.webp"], rank=[1, 2]), "are the same picture"),
    "picture is not a picture": (
        make_line(images=["1.webp", "ranking.jsonl"], rank=[1, 2]),
        "the rejected picture: it is not in",
    ),
    "parent folder": (make_line(images=[*NAMES[:3], "../secret.png"]), r"the path '../secret.png' leaves its folder"),
    "absolute path": (
        make_line(images=[*NAMES[:3], "/etc/hostname"]),
        "the path '/etc/hostname' is absolute and lies outside of its folder",
    ),
    "link that leads out": (
        make_line(images=[*NAMES[:3], "link.png"]),
        "the path 'link.png' is a link that leads to .*secret.png, outside of its folder",
    ),
    "a NUL in the path": (make_line(images=[*NAMES[:3], "a\0b"]), "no file can have the path"),
    "half a character in the path": (
        '{"prompt": "a", "images": ["\\ud83d", "b"], "rank": [1, 2]}',
        "no file can have the path",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_by_its_number_and_stops_the_import(folder: Path, name: str) -> None:
    line, why = BAD[name]
    path = write(folder, make_line(images=NAMES[:2], rank=[1, 2], prompt="good"), "", line)
    with pytest.raises(MapoError, match=rf"^ranking\.jsonl line 3: .*{why}"):
        import_pairs(path, folder.parent / "set")
    assert not (folder.parent / "set").exists()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_can_be_dropped(folder: Path, name: str) -> None:
    path = write(folder, BAD[name][0], make_line(images=NAMES[:2], rank=[1, 2], prompt="good"))
    counts = import_pairs(path, folder.parent / "set", on_bad_row="drop")
    assert counts["bad"] >= 1
    assert [p.prompt for p in PairSet(folder.parent / "set")] == ["good"]


def test_a_line_that_is_no_utf_8_is_named_by_its_number(folder: Path) -> None:
    path = write(folder, make_line())
    path.write_bytes(path.read_bytes() + '{"prompt": "Bär"}\n'.encode("latin-1"))
    (bad,) = list(read(Source(path), Options()))[-1]
    assert isinstance(bad, BadRow)
    assert bad.where == "ranking.jsonl line 2"
    assert bad.why.startswith("it is not JSON")


def test_a_byte_order_mark_does_no_harm_and_utf_16_is_refused_in_a_sentence(folder: Path) -> None:
    path = write(folder, make_line())
    text = path.read_text("utf-8")
    path.write_text(text, "utf-8-sig")
    assert detects(Source(path))
    assert all(isinstance(item, RawPair) for row in read(Source(path), Options()) for item in row)
    path.write_text(text, "utf-16")
    with pytest.raises(MapoError, match=r"ranking\.jsonl is UTF-16 text\. Save it as UTF-8\."):
        import_pairs(path, folder.parent / "set")


def test_lines_may_hold_any_line_separator_of_unicode(folder: Path) -> None:
    path = write(folder, make_line(prompt="one\u2028two\x85three"))
    assert {item.prompt for row in read(Source(path), Options()) for item in row if isinstance(item, RawPair)} == {
        "one\u2028two\x85three"
    }


def test_a_jsonl_file_of_rankings_or_the_folder_of_one_is_detected(folder: Path) -> None:
    path = write(folder, "", "not yet", make_line())
    assert detects(Source(path))
    assert detects(Source(folder))
    (folder / "second.jsonl").write_text("{}")
    assert not detects(Source(folder))
    assert not detects(Source(folder / "second.jsonl"))
    assert not detects(Source(folder / "1.webp"))


def test_a_source_that_is_no_ranking_is_refused(folder: Path) -> None:
    with pytest.raises(
        MapoError, match="holds no Parquet files, and no JSON lines, CSV, tar or save_to_disk folder either"
    ):
        import_pairs(folder, folder.parent / "set", format="ranking")
    (folder / "empty.jsonl").write_text("\n\n")
    with pytest.raises(MapoError, match="is empty: it holds no lines"):
        import_pairs(folder / "empty.jsonl", folder.parent / "set", format="ranking")
