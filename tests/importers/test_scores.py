"""JSONL of scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import PICTURES
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.pairs import PairSet

NAMES = [f"{k}.png" for k in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in zip(NAMES, PICTURES, strict=False):
        (folder / name).write_bytes(data)
    return folder


def write(folder: Path, *scores: Any) -> Path:
    lines = [{"prompt": f"prompt {k}", "images": NAMES[: len(s)], "scores": s} for k, s in enumerate(scores)]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "x.jsonl"


def test_the_picture_of_the_highest_score_is_chosen_over_that_of_the_lowest(folder: Path) -> None:
    assert import_pairs(write(folder, [0.5, -2, 3.5, 1]), folder.parent / "set")["pairs"] == 1
    (pair,) = PairSet(folder.parent / "set")
    assert (pair.chosen, pair.rejected) == (sha256(PICTURES[2]), sha256(PICTURES[1]))
    assert (pair.group, pair.source) == ("x:1", "scores")
    assert pair.meta == {"chosen": {"image": "2.png", "score": 3.5}, "rejected": {"image": "1.png", "score": -2}}


@pytest.mark.parametrize(("gap", "kept"), [(0.0, [0, 1, 2]), (0.5, [1, 2]), (0.51, [2]), (9.0, [])])
def test_scores_closer_than_the_least_gap_are_ties(folder: Path, gap: float, kept: list[int]) -> None:
    path = write(folder, [1, 1.25], [1, 1.5], [1, 3], [2, 2])
    how = {"least_gap": gap, "ties": "keep"}
    assert import_pairs(path, folder.parent / "set", **how) == {
        "pairs": 4,
        "ties": 4 - len(kept),
        "repeats": 0,
        "bad": 0,
    }
    sure = [pair.prompt for pair in PairSet(folder.parent / "set") if pair.preference == 1]
    assert sure == [f"prompt {k}" for k in kept]


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([1], "it has 1 images and 1 in scores; it needs two or more"),
        ([1, "2"], "one of scores is not a number"),
        ([1, None], "one of scores is not a number"),
        ([1, float("nan")], "one of scores is not a number"),
        ([10**400, 1.5], "one of scores is not a number"),
    ],
)
def test_scores_that_are_none_are_refused(folder: Path, scores: list[Any], why: str) -> None:
    with pytest.raises(MapoError, match=rf"^x\.jsonl line 1: {why}"):
        import_pairs(write(folder, scores), folder.parent / "set")
