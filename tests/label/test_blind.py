"""The order and the sides tell nothing, and stay the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_fixtures import BLUE, GREEN, PICTURES, RED, make_set
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.label.blind import BLOCK, BlindTask, of_folders, of_pairs, order, pair_key, sides
from mapo.pairs.pairs import PairSet, PairWriter, pair_id
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images
from mapo.texts import write_json

PAIRS = [pair_key(f"prompt {k}", "a", "b") for k in range(400)]


@given(st.text(), st.text(), st.text())
def test_the_name_of_two_pictures_does_not_depend_on_which_is_chosen(prompt: str, one: str, other: str) -> None:
    prompt, one, other = (text.encode("utf-8", "ignore").decode() for text in (prompt, one, other))
    assert pair_key(prompt, one, other) == pair_key(prompt, other, one)
    assert pair_key(prompt, one, other) not in (pair_id(prompt, one, other), pair_id(prompt, other, one))


def test_each_annotator_sees_every_pair_once_in_an_order_that_stays() -> None:
    ann, bob = order(PAIRS, "ann"), order(PAIRS, "bob")
    assert sorted(ann) == sorted(bob) == sorted(PAIRS)
    assert ann != bob and ann == order(reversed(PAIRS), "ann")
    places = [PAIRS.index(pair) for pair in ann]
    assert sum(a < b for a, b in pairwise(places)) in range(170, 230)  # not the order of the set


def test_people_who_stop_early_have_judged_the_same_pairs() -> None:
    ann, bob = order(PAIRS, "ann"), order(PAIRS, "bob")
    for start in range(0, len(PAIRS), BLOCK):
        assert set(ann[start : start + BLOCK]) == set(bob[start : start + BLOCK])


def test_sides_fall_evenly_and_independently_for_every_annotator() -> None:
    tasks = [BlindTask(pair, "p", ("a", "b")) for pair in PAIRS]
    left = {name: [sides(task, name)[0] == "a" for task in tasks] for name in ("ann", "bob")}
    for name in left:
        assert 160 < sum(left[name]) < 240
        assert left[name] == [sides(task, name)[0] == "a" for task in tasks]
    assert 160 < sum(a == b for a, b in zip(left["ann"], left["bob"], strict=True)) < 240
    assert set(sides(tasks[0], "ann")) == {"a", "b"}


def test_the_tasks_of_a_set_do_not_hold_which_picture_is_chosen(tmp_path: Path) -> None:
    pairs = make_set(tmp_path / "set", 8)
    material = of_pairs(pairs)
    with PairWriter(tmp_path / "other", {}) as writer:  # the same pairs the other way round
        for pair in pairs:
            writer.add_pair(pair.prompt, pairs.image_bytes(pair.rejected), pairs.image_bytes(pair.chosen))
    other = of_pairs(PairSet(tmp_path / "other"))
    assert material.tasks == other.tasks and len(material.tasks) == 8
    assert material.picture_names() == set(pairs.image_names())
    assert not material.sensitive


def test_a_pair_that_is_in_the_set_both_ways_round_is_judged_once(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}, sensitive=True) as writer:
        writer.add_pair("p", RED, GREEN)
        writer.add_pair("p", GREEN, RED)
        writer.add_pair("q", GREEN, RED)
    material = of_pairs(PairSet(tmp_path / "set"))
    assert [task.prompt for task in material.tasks.values()] == ["p", "q"]
    assert material.sensitive


def images(folder: Path, *pictures: bytes, **changes: Any) -> Path:
    rows = [
        replace(ImageRow(f"{k}.png", prompt_id(f"p{k}"), f"p{k}", 5, 0, sha256(data), "m"), **changes)
        for k, data in enumerate(pictures)
    ]
    append_images(folder, rows, list(pictures))
    return folder


def test_two_folders_are_matched_by_prompt_and_seed(tmp_path: Path) -> None:
    before, after = images(tmp_path / "b", RED, GREEN), images(tmp_path / "a", BLUE, RED)
    material = of_folders(before, after)
    records = [dict(task.record) for task in material.tasks.values()]
    assert records == [
        {"before": sha256(RED), "after": sha256(BLUE), "prompt_id": prompt_id("p0"), "seed": 5},
        {"before": sha256(GREEN), "after": sha256(RED), "prompt_id": prompt_id("p1"), "seed": 5},
    ]
    assert all(task.pictures == tuple(sorted(task.pictures)) for task in material.tasks.values())
    assert material.open_picture(sha256(BLUE)).getpixel((0, 0)) == (0, 0, 255)


def test_a_folder_marked_sensitive_makes_the_comparison_sensitive(tmp_path: Path) -> None:
    before, after = images(tmp_path / "b", RED), images(tmp_path / "a", BLUE)
    write_json(after / "images.json", {"settings": {}})
    assert not of_folders(before, after).sensitive
    write_json(after / "images.json", {"settings": {}, "sensitive": True})
    assert of_folders(before, after).sensitive


def test_folders_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    before = images(tmp_path / "b", RED)
    with pytest.raises(MapoError, match="the prompts are the same, but the seeds differ"):
        of_folders(before, images(tmp_path / "a", BLUE, seed=6))
    with pytest.raises(MapoError, match=r"b lacks 1 picture that .*more has: 'p1' seed 5"):
        of_folders(before, images(tmp_path / "more", BLUE, GREEN))
    twice = images(images(tmp_path / "t", RED), BLUE)
    with pytest.raises(MapoError, match="two pictures for 'p0' seed 5"):
        of_folders(before, twice)
    broken = images(tmp_path / "c", PICTURES[3])
    material = of_folders(before, broken)
    (broken / "0.png").write_bytes(b"other")
    with pytest.raises(MapoError, match="not the picture that the manifest names"):
        material.open_picture(sha256(PICTURES[3]))
