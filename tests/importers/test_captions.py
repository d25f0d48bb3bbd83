"""Several captions of one pair."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import BLUE, RED, encoded, noise, write_parquet
from mapo.errors import MapoError
from mapo.importers import import_pairs
from mapo.pairs import PairSet
from mapo.pairs.splits import SPLITS, normalise, split_of

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


def write_lines(folder: Path, rows: list[tuple[list[str] | str, int, int]]) -> Path:
    """JSON lines of (captions, chosen, rejected), pictures by their numbers."""
    folder.mkdir()
    for number in {number for _, *sides in rows for number in sides}:
        (folder / f"{number}.png").write_bytes(encoded(noise(number)))
    lines = [{"prompt": captions, "chosen": f"{c}.png", "rejected": f"{r}.png"} for captions, c, r in rows]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "x.jsonl"


def places(folder: Path) -> tuple[dict[str, set[str]], dict[frozenset[str], set[str]]]:
    """The splits of each prompt, and of each two pictures."""
    prompts: dict[str, set[str]] = {}
    pictures: dict[frozenset[str], set[str]] = {}
    for pair in PairSet(folder):
        prompts.setdefault(normalise(pair.prompt), set()).add(pair.split)
        pictures.setdefault(frozenset((pair.chosen, pair.rejected)), set()).add(pair.split)
    return prompts, pictures


TRAIN, VALIDATION, TEST = SPREAD
SHARED: dict[str, tuple[list[tuple[list[str] | str, int, int]], dict[str, str]]] = {
    "a later caption of one pair is the first of another": (
        [([TRAIN, TEST], 0, 1), ([TEST, VALIDATION], 2, 3)],
        dict.fromkeys(SPREAD, "train"),
    ),
    "a later caption stands alone, further up": ([(TEST, 2, 3), ([TRAIN, TEST], 0, 1)], dict.fromkeys((TRAIN, TEST), "train")),
    "a later caption stands alone in other letters": (
        [([TRAIN, "a BEAR"], 0, 1), (" A bear", 2, 3)],
        {TRAIN: "train", "a BEAR": "train", " A bear": "train"},
    ),
    "a pair joins two that are there": (
        [([TEST, "b"], 0, 1), ([TRAIN, "c"], 2, 3), (["b", "c"], 4, 5)],
        dict.fromkeys((TEST, TRAIN, "b", "c"), "test"),
    ),
    "the same pictures in another row, either of them chosen": (
        [([TEST, "b"], 0, 1), (TRAIN, 1, 0)],
        dict.fromkeys((TEST, TRAIN, "b"), "test"),
    ),
    "pairs that share nothing": (
        [([TRAIN, "b"], 0, 1), (TEST, 2, 3), (VALIDATION, 2, 4)],
        {TRAIN: "train", "b": "train", TEST: "test", VALIDATION: "validation"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_no_prompt_and_no_two_pictures_stand_in_two_splits(tmp_path: Path, name: str) -> None:
    rows, expected = SHARED[name]
    import_pairs(write_lines(tmp_path / "in", rows), tmp_path / "set", captions="each")
    assert {pair.prompt: pair.split for pair in PairSet(tmp_path / "set")} == expected
    for found in places(tmp_path / "set"):
        assert all(len(splits) == 1 for splits in found.values())


def test_a_thousand_captions_that_many_pairs_share_stand_in_one_split_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    rows: list[tuple[list[str] | str, int, int]] = []
    for _ in range(400):
        captions = [f"caption {draw.randrange(2000)}" for _ in range(draw.randint(2, 3))]
        rows.append((captions, draw.randrange(40), 40 + draw.randrange(40)))
    path = write_lines(tmp_path / "in", rows)
    import_pairs(path, tmp_path / "set", captions="each")
    assert {pair.split for pair in PairSet(tmp_path / "set")} == set(SPLITS)
    for found in places(tmp_path / "set"):
        assert 300 < len(found) < 999
        assert all(len(splits) == 1 for splits in found.values())
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 50)
    with monkeypatch.context() as patch:
        patch.setattr("mapo.pairs.writer.write_places", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_pairs(path, tmp_path / "again", captions="each")
    import_pairs(path, tmp_path / "again", captions="each")
    assert list(PairSet(tmp_path / "again")) == list(PairSet(tmp_path / "set"))


@pytest.mark.parametrize("how", [None, "first", "join", "each"])
def test_where_no_pair_has_several_captions_each_prompt_decides_as_ever(tmp_path: Path, how: str | None) -> None:
    rows: list[tuple[list[str] | str, int, int]] = [(prompt, 0, 1) for prompt in SPREAD]
    import_pairs(write_lines(tmp_path / "in", rows), tmp_path / "set", captions=how)
    assert [pair.split for pair in PairSet(tmp_path / "set")] == list(SPLITS)


@pytest.mark.parametrize("how", ["first", "join"])
def test_captions_that_become_one_prompt_are_split_by_that_prompt(tmp_path: Path, how: str) -> None:
    captions = [[a, b] for a in SPREAD for b in SPREAD if a != b]
    rows: list[tuple[list[str] | str, int, int]] = [(both, k, k + 1) for k, both in enumerate(captions)]
    import_pairs(write_lines(tmp_path / "in", rows), tmp_path / "set", captions=how)
    assert [pair.split for pair in PairSet(tmp_path / "set")] == [
        split_of(pair.prompt) for pair in PairSet(tmp_path / "set")
    ]


def test_splits_that_a_source_publishes_are_not_joined(tmp_path: Path, heard: Callable[[], str]) -> None:
    folder = write_lines(tmp_path / "in", [([TEST, "b"], 0, 1), (["b", TRAIN], 2, 3)]).parent
    rows = [json.loads(line) for line in (folder / "x.jsonl").read_text().splitlines()]
    splits = ("train", "validation")
    (folder / "x.jsonl").write_text(
        "\n".join(json.dumps({**row, "split": s}) for row, s in zip(rows, splits, strict=True))
    )
    import_pairs(folder, tmp_path / "set", captions="each")
    assert [pair.split for pair in PairSet(tmp_path / "set")] == ["train", "train", "validation", "validation"]
    assert "1 prompt stands in more than one split of the source" in heard()
