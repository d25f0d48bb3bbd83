"""Rankings as HPDv2 and ImageRewardDB publish them."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import encoded, make_picture, noise, write_parquet
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.pairs import PairSet

DATA = [encoded(noise(k)) for k in range(12)]
NAMES = [sha256(data) for data in DATA]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for k, data in enumerate(DATA):
        (tmp_path / "in" / f"{k}.png").write_bytes(data)
    return tmp_path / "in"


def save(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        return write_parquet(path, rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


def found(folder: Path) -> list[tuple[str, int, int]]:
    return [(p.prompt, NAMES.index(p.chosen), NAMES.index(p.rejected)) for p in PairSet(folder)]


@pytest.mark.parametrize("key", ["image_path", "file_path"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.parquet"])
def test_the_training_rows_of_hpdv2_become_the_preferred_and_the_other(folder: Path, name: str, key: str) -> None:
    rows = [
        {"prompt": "a", key: ["0.png", "1.png"], "human_preference": [1, 0]},
        {"prompt": "b", key: ["2.png", "3.png"], "human_preference": [0, 1]},
        {"prompt": "c", key: ["4.png", "5.png"], "human_preference": [0, 0]},
        {"prompt": "d", key: ["4.png", "5.png", "6.png"], "human_preference": [0, 1, 0]},
    ]
    assert import_pairs(save(folder / name, rows), folder.parent / "set")["ties"] == 1
    assert found(folder.parent / "set") == [("a", 0, 1), ("b", 3, 2), ("d", 5, 4), ("d", 5, 6)]
    assert PairSet(folder.parent / "set")[0].source == "hpdv2"


def test_the_two_files_of_hpdv2_are_read_from_its_folders_with_their_splits(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for split, numbers in (("train", (0, 1)), ("test", (2, 3, 4))):
        (folder / split).mkdir(parents=True)
        for k in numbers:
            (folder / split / f"{k}.png").write_bytes(DATA[k])
    save(folder / "train.json", [{"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]}])
    test = {"prompt": "b", "image_path": ["2.png", "3.png", "4.png"], "rank": [2, 0, 1]}
    save(folder / "test.json", [{**test, "raw_annotations": [{"rank": [2, 0, 1], "user_hash": "x"}]}])
    import_pairs(folder, tmp_path / "set")
    assert sorted(found(tmp_path / "set")) == [("a", 1, 0), ("b", 3, 2), ("b", 3, 4), ("b", 4, 2)]
    assert {(p.prompt, p.split) for p in PairSet(tmp_path / "set")} == {("a", "train"), ("b", "test")}


BAD_HPD = {
    "a third value": ([1, 2], r"human_preference is \[1, 2\]; it must be a list of 1 and 0"),
    "fewer": ([1], "it has 2 image_path and 1 in human_preference"),
    "text": (["1", "0"], "one of human_preference is not a number"),
    "a number": (1, "image_path and human_preference lists"),
}


@pytest.mark.parametrize("name", BAD_HPD)
def test_a_bad_row_of_hpdv2_is_named(folder: Path, name: str) -> None:
    preference, why = BAD_HPD[name]
    row = {"prompt": "a", "image_path": ["0.png", "1.png"], "human_preference": preference}
    with pytest.raises(MapoError, match=f"^x.json entry 1: .*{why}"):
        import_pairs(save(folder / "x.json", [row]), folder.parent / "set")


def picture_rows(order: dict[str, list[int]], ranks: list[Any], key: str = "image_path") -> list[dict[str, Any]]:
    """A row per picture, as ImageRewardDB has them."""
    return [
        {
            "prompt_id": name, "prompt": f"prompt {name}", "classification": "People",
            "image_amount_in_total": len(numbers), "rank": rank, "overall_rating": 5,
            key: f"{number}.png" if key == "image_path" else {"bytes": DATA[number], "path": f"{number}.png"},
        }
        for name, numbers in order.items()
        for number, rank in zip(numbers, ranks, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.parquet"])
def test_a_row_per_picture_becomes_the_ranking_of_its_prompt(folder: Path, name: str) -> None:
    rows = picture_rows({"000-1": [0, 1, 2, 3], "000-2": [4, 5, 6, 7]}, [2, 1, 4, 3])
    path = save(folder / name, rows)
    assert import_pairs(path, folder.parent / "set") == {"pairs": 12, "ties": 0, "repeats": 0, "bad": 0}
    expected = [
        (f"prompt 000-{n}", 4 * n - 4 + a, 4 * n - 4 + b) for n in (1, 2) for a, b in combinations((1, 0, 3, 2), 2)
    ]
    assert found(folder.parent / "set") == expected
    assert [p.group for p in PairSet(folder.parent / "set")] == ["000-1"] * 6 + ["000-2"] * 6
    import_pairs(path, folder.parent / "best", rankings="best-worst")
    assert found(folder.parent / "best") == [("prompt 000-1", 1, 2), ("prompt 000-2", 5, 6)]


def test_pictures_inside_the_rows_and_equal_ranks_are_read(folder: Path) -> None:
    path = save(folder / "x.parquet", picture_rows({"1": [0, 1, 2]}, [1, 1, 2], "image"))
    assert import_pairs(path, folder.parent / "set")["ties"] == 1
    assert found(folder.parent / "set") == [("prompt 1", 0, 2), ("prompt 1", 1, 2)]


def test_groups_and_pairs_of_image_reward_db_are_read_too(folder: Path) -> None:
    pictures = [{"bytes": DATA[k], "path": None} for k in range(3)]
    group = {"prompt_id": "1", "prompt": "a", "image": pictures, "rank": [3, 1, 2], "classification": "People"}
    import_pairs(save(folder / "x.parquet", [group]), folder.parent / "groups")
    assert found(folder.parent / "groups") == [("a", 1, 2), ("a", 1, 0), ("a", 2, 0)]
    pair = {"prompt_id": "1", "prompt": "a", "img_better": pictures[2], "img_worse": pictures[0]}
    import_pairs(save(folder / "y.parquet", [pair]), folder.parent / "pairs")
    assert found(folder.parent / "pairs") == [("a", 2, 0)]


def test_an_unpacked_part_of_image_reward_db_is_read_with_its_split(folder: Path) -> None:
    rows = picture_rows({"000-1": [0, 1, 2]}, [3, 1, 2])
    for row in rows:
        row["image_path"] = f"images/train/train_1/{row['image_path']}"
    import_pairs(save(folder / "train_1.json", rows), folder.parent / "set")
    assert found(folder.parent / "set") == [("prompt 000-1", 1, 2), ("prompt 000-1", 1, 0), ("prompt 000-1", 2, 0)]
    assert {p.split for p in PairSet(folder.parent / "set")} == {"train"}


def spoiled(**changes: Any) -> list[dict[str, Any]]:
    rows = picture_rows({"1": [0, 1, 2], "2": [4, 5, 6]}, [1, 2, 3])
    rows[1] |= changes
    return rows


SHUFFLED = picture_rows({"1": [0, 1, 2], "2": [4, 5, 6]}, [1, 2, 3])
BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a rank in words": (spoiled(rank="second"), r"prompt_id 1\): rank is 'second', which is not a number"),
    "no rank": (spoiled(rank=None), "rank is None, which is not a number"),
    "a rank that is not a number": (spoiled(rank=math.nan), "rank is nan, which is not a number"),
    "an infinite rank": (spoiled(rank=-math.inf), "rank is -inf, which is not a number"),
    "a rank of 400 digits": (spoiled(rank=10**400), "rank is 10+…, which is not a number"),
    "a picture that is gone": (spoiled(image_path="x.png"), r"the picture x\.png cannot be read"),
    "another prompt": (spoiled(prompt="other"), "2: prompt_id 1 has two prompts"),
    "one picture": (SHUFFLED[2:], r"prompt_id 1\): it has one picture; a ranking needs two or more"),
    "shuffled": ([*SHUFFLED[:2], *SHUFFLED[3:], SHUFFLED[2]], r"6 \(prompt_id 1\): rows of this prompt_id stood further up already; sort"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_ranking_with_a_bad_row_is_refused_whole(folder: Path, name: str) -> None:
    rows, why = BAD[name]
    path = save(folder / "x.jsonl", rows)
    with pytest.raises(MapoError, match=f"^x.jsonl line .*{why}"):
        import_pairs(path, folder.parent / "set")
    counts = import_pairs(path, folder.parent / "set", on_bad_row="drop")
    assert counts["bad"] == 1
    assert {prompt for prompt, *_ in found(folder.parent / "set")} >= {"prompt 2"}


def test_a_row_that_cannot_be_read_spoils_both_rankings_that_it_may_belong_to(folder: Path) -> None:
    rows = picture_rows({"1": [0, 1, 2], "2": [4, 5, 6], "3": [0, 2, 4]}, [1, 2, 3])
    path = save(folder / "x.jsonl", rows)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{", *lines[4:]]) + "\n")  # the first row of prompt 2
    counts = import_pairs(path, folder.parent / "set", on_bad_row="drop")
    assert counts["bad"] == 2
    assert {prompt for prompt, *_ in found(folder.parent / "set")} == {"prompt 3"}


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "\ud83d", "", "../x.png", "/etc/hostname"])
def test_a_path_that_cannot_be_is_a_bad_row(folder: Path, path: str) -> None:
    row = {"prompt": "a", "image_path": [path, "1.png"], "human_preference": [1, 0]}
    with pytest.raises(MapoError, match="^train.jsonl line 1: "):
        import_pairs(save(folder / "train.jsonl", [row]), folder.parent / "set")
    rows = picture_rows({"1": [0, 1]}, [1, 2])
    rows[1]["image_path"] = path
    with pytest.raises(MapoError, match="^x.jsonl line 1 "):
        import_pairs(save(folder / "x.jsonl", rows), folder.parent / "set")


def test_a_real_ranking_of_four_pictures_gives_its_six_pairs(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "imagereward"
    if not folder.is_dir():
        pytest.skip("the real pictures are not beside this checkout")
    assert import_pairs(folder, tmp_path / "set")["pairs"] == 6
    line = json.loads((folder / "ranking.jsonl").read_text())
    rows = [
        {"prompt_id": "1", "prompt": line["prompt"], "rank": rank, "image": (folder / name).read_bytes()}
        for name, rank in zip(line["images"], line["rank"], strict=True)
    ]
    import_pairs(save(tmp_path / "x.parquet", rows), tmp_path / "rows")
    assert [(p.chosen, p.rejected) for p in PairSet(tmp_path / "rows")] == [
        (p.chosen, p.rejected) for p in PairSet(tmp_path / "set")
    ]


def test_the_ranking_of_another_tool_is_suggested_by_name(folder: Path) -> None:
    path = save(folder / "x.jsonl", [{"prompt": "a", "generations": ["0.png", "1.png"], "ranking": [2, 1]}])
    with pytest.raises(MapoError, match="The nearest format is ranking: say --columns images=generations,rank=ranking"):
        import_pairs(path, folder.parent / "set")
    import_pairs(path, folder.parent / "set", columns="images=generations,rank=ranking")
    assert found(folder.parent / "set") == [("a", 1, 0)]
    assert make_picture() not in DATA
