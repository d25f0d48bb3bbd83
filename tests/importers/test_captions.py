"""Several captions of one pair."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import BLUE, RED, write_parquet
from mapo.errors import MapoError
from mapo.importers import import_pairs
from mapo.pairs import PairSet
from mapo.pairs.splits import SPLITS, split_of

LINES = ["a bear", "a bear in snow", "", "ein Bär "]
MADE = {
    "first": ["a bear"],
    "join": ["a bear, a bear in snow, ein Bär"],
    "each": ["a bear", "a bear in snow", "ein Bär"],
}


def make(folder: Path, kind: str, captions: list[str]) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(RED)
    (folder / "b.png").write_bytes(BLUE)
    row: dict[str, Any] = {"prompt": captions, "chosen": "a.png", "rejected": "b.png"}
    match kind:
        case "folders":
            for side, data in (("chosen", RED), ("rejected", BLUE)):
                (folder / "two" / side).mkdir(parents=True)
                (folder / "two" / side / "1.png").write_bytes(data)
                (folder / "two" / side / "1.txt").write_bytes("\r\n".join(captions).encode() + b"\r\n")
            return folder / "two"
        case "jsonl":
            (folder / "x.jsonl").write_text(json.dumps(row))
        case "ranking":
            (folder / "x.jsonl").write_text(
                json.dumps({"prompt": captions, "images": ["b.png", "a.png"], "rank": [2, 1]})
            )
        case "parquet":
            write_parquet(folder / "x.parquet", [row])
        case "pickapic":
            row = {"jpg_0": RED, "jpg_1": BLUE, "label_0": 1, "label_1": 0, "caption": captions}
            write_parquet(folder / "x.parquet", [row])
        case "tar":
            members = {"1.chosen.png": RED, "1.rejected.png": BLUE, "1.txt": "\n".join(captions).encode() + b"\n"}
            with tarfile.open(folder / "x.tar", "w") as tar:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return next(folder.glob("x.*"))


KINDS = ("folders", "jsonl", "ranking", "parquet", "pickapic", "tar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", MADE)
def test_several_captions_become_what_was_asked_for(tmp_path: Path, kind: str, how: str) -> None:
    path = make(tmp_path / "in", kind, LINES)
    with pytest.raises(MapoError, match=r"a prompt is one line\. Say --captions first, join or each"):
        import_pairs(path, tmp_path / "set")
    counts = import_pairs(path, tmp_path / "set", captions=how)
    assert counts == {"pairs": len(MADE[how]), "ties": 0, "repeats": 0, "bad": 0}
    pairs = list(PairSet(tmp_path / "set"))
    assert [pair.prompt for pair in pairs] == MADE[how]
    assert len({(pair.chosen, pair.rejected, pair.group) for pair in pairs}) == 1
    assert how != "each" or pairs[0].group is not None
    assert PairSet(tmp_path / "set").info["provenance"]["captions"] == how


SPREAD = [next(f"{split} {k}" for k in range(99) if split_of(f"{split} {k}") == split) for split in SPLITS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", SPREAD)
def test_the_captions_of_two_pictures_share_the_split_of_the_first(tmp_path: Path, kind: str, first: str) -> None:
    path = make(tmp_path / "in", kind, [first, *SPREAD])
    import_pairs(path, tmp_path / "set", captions="each")
    pairs = list(PairSet(tmp_path / "set"))
    assert len(pairs) == 3
    assert {pair.split for pair in pairs} == {split_of(first)}


def test_a_split_that_is_published_or_asked_for_counts_more_than_the_first_caption(tmp_path: Path) -> None:
    path = make(tmp_path / "in", "jsonl", SPREAD).rename(tmp_path / "in" / "test.jsonl")
    for split in (None, "validation"):
        import_pairs(path, tmp_path / str(split), captions="each", split=split)
        assert {pair.split for pair in PairSet(tmp_path / str(split))} == {split or "test"}


@pytest.mark.parametrize("kind", KINDS)
def test_one_caption_is_one_whatever_was_asked_for(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "in", kind, ["a bear"])
    for how in (None, *MADE):
        import_pairs(path, tmp_path / str(how), captions=how)
        assert [pair.prompt for pair in PairSet(tmp_path / str(how))] == ["a bear"]


BAD = {"numbers": ([1, 2], "prompt is a list of other things"), "nothing": ([], "prompt is an empty list"), "blank": ([" ", ""], "the prompt is empty"),
       "messages": ([{"role": "user", "content": "a bear"}], "prompt is a list of messages")}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_list_that_holds_no_captions_is_a_bad_row(tmp_path: Path, name: str) -> None:
    captions, why = BAD[name]
    with pytest.raises(MapoError, match=f"^x.jsonl line 1: {why}"):
        import_pairs(make(tmp_path / "in", "jsonl", captions), tmp_path / "set", captions="each")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [None, *MADE])
def test_captions_of_white_space_alone_are_a_bad_row_that_counts(tmp_path: Path, kind: str, how: str | None) -> None:
    path = make(tmp_path / "in", kind, [" ", "\t", " "])
    with pytest.raises(MapoError, match="the prompt is empty"):
        import_pairs(path, tmp_path / "set", captions=how)
    with pytest.raises(MapoError, match=r"gave no pairs \(0 ties, 1 bad row\)"):
        import_pairs(path, tmp_path / "set", captions=how, on_bad_row="drop")


def test_a_wrong_word_for_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="--captions is 'all'; it must be first, join or each"):
        import_pairs(tmp_path, tmp_path / "set", captions="all")
