"""All pictures of a prompt at once: what a vote on a grid says of its pairs, and a folder of pictures as a set."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from data_fixtures import encoded, noise
from mapo.build.groups import read_groups
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.label.ballot import Ballot, Refused
from mapo.label.blind import MOST, grid_key, hands, of_grids, of_pairs, pair_key, spread
from mapo.label.candidates import write_candidates
from mapo.label.consensus import apply_votes, summarise
from mapo.label.grids import on_pairs
from mapo.label.verb import open_set
from mapo.label.votes import Vote, VoteLog, read_votes
from mapo.pairs import PairSet

FOUR = ("a", "b", "c", "d")


def said(vote: str, left: str = "a", right: str = "d", pictures: tuple[str, ...] = FOUR, who: str = "ann") -> Vote:
    return Vote("t", who, grid_key("p", pictures), left, right, vote, prompt="p", pictures=pictures)


def relations(votes: list[Vote]) -> set[tuple[str, str, str]]:
    assert all(v.pair == pair_key("p", v.left, v.right) and not v.pictures for v in votes)
    return {(v.left, v.right, v.vote) for v in votes}


def test_the_best_is_better_than_all_others_and_all_are_better_than_the_worst() -> None:
    found = relations(on_pairs([said("left", "b", "c")]))
    assert found == {(x, y, "left") for x, y in (("b", "c"), ("b", "a"), ("b", "d"), ("a", "c"), ("d", "c"))}
    assert relations(on_pairs([said("left", "b", "a", ("a", "b"))])) == {("b", "a", "left")}
    for word in ("tie", "bad"):
        assert relations(on_pairs([said(word)])) == {(x, y, word) for x, y in combinations(FOUR, 2)}
    assert on_pairs([said("skip")]) == []


def test_of_two_votes_on_a_pair_the_later_one_stands_whichever_page_it_came_from() -> None:
    pair = Vote("u", "ann", pair_key("p", "a", "d"), "a", "d", "right")
    assert relations(on_pairs([said("left"), pair])) >= {("a", "d", "right")}
    assert relations(on_pairs([pair, said("left")])) >= {("a", "d", "left")}
    other = Vote("u", "bob", pair_key("p", "a", "d"), "a", "d", "right")
    assert len(on_pairs([said("left"), other])) == 6


@pytest.mark.parametrize("number", [2, 9, 10, 19, 100])
def test_many_pictures_of_a_prompt_are_dealt_into_even_hands(number: int) -> None:
    dealt = hands(range(number))
    assert sorted(k for hand in dealt for k in hand) == list(range(number))
    sizes = {len(hand) for hand in dealt}
    assert max(sizes) <= MOST and max(sizes) - min(sizes) <= 1 and min(sizes) > 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven pictures of one prompt, three of another, and one alone; some of them JPEG files."""
    (tmp_path / "own").mkdir()
    for number, prompt in enumerate(["a fox"] * 11 + ["a pond"] * 3 + ["alone"]):
        kind = "JPEG" if number % 3 == 0 else "PNG"
        (tmp_path / "own" / f"{number}.{kind.lower()}").write_bytes(encoded(noise(number), kind))
        (tmp_path / "own" / f"{number}.txt").write_text(prompt)
    return tmp_path / "own"


def ballot(pairs: PairSet) -> tuple[Ballot, VoteLog]:
    log = VoteLog(pairs.folder / "votes.jsonl")
    return Ballot(of_grids(pairs), log), log


def test_a_folder_becomes_a_set_of_ties_and_its_grids_are_its_prompts(folder: Path, tmp_path: Path, heard: Any) -> None:
    write_candidates(read_groups(folder), tmp_path / "set")
    assert "set: 28 pairs of 14 pictures and 2 prompts, 1 prompt with one picture only left out" in heard()
    pairs = PairSet(tmp_path / "set")
    assert {p.preference for p in pairs} == {0.5} and {p.source for p in pairs} == {"own"}
    assert pairs.info["provenance"]["counts"]["alone"] == 1
    grids = of_grids(pairs)
    assert sorted(len(task.pictures) for task in grids.tasks.values()) == [3, 5, 6]
    assert grids.grid and len(of_pairs(pairs).tasks) == 28  # 15 + 10 + 3
    assert grids.picture_names() == of_pairs(pairs).picture_names()
    orders = [spread(task, who) for who in ("ann", "bob") for task in grids.tasks.values()]
    assert orders[:3] != orders[3:] and [sorted(o) for o in orders[:3]] == [sorted(o) for o in orders[3:]]


def test_a_vote_on_a_grid_is_kept_whole_found_again_and_taken_back(folder: Path, tmp_path: Path) -> None:
    pairs = write_candidates(read_groups(folder), tmp_path / "set")
    first, log = ballot(pairs)
    with log:
        state = first.state("ann")
        task = state["tasks"][0]
        assert state["grid"] and set(task) == {"pair", "prompt", "pictures"} and state["total"] == 3
        best, *_, worst = task["pictures"]
        foreign = state["tasks"][1]["pictures"][0]
        for picked in ((best, best), (best, foreign), ("", worst), (best, "")):
            with pytest.raises(Refused, match="two pictures of this grid"):
                first.vote("ann", task["pair"], "picked", *picked)
        for word in ("left", "undo"):
            with pytest.raises(Refused, match="no vote"):
                first.vote("ann", task["pair"], word)
        assert not log.lines
        assert first.vote("ann", task["pair"], "picked", best, worst)["done"] == 1
        first.vote("bob", first.state("bob")["tasks"][0]["pair"], "bad")
    line = json.loads((pairs.folder / "votes.jsonl").read_text().splitlines()[0])
    assert line["vote"] == "left" and (line["left"], line["right"]) == (best, worst)
    assert line["pictures"] == task["pictures"] and line["prompt"] == task["prompt"] and "before" not in line
    again, log = ballot(pairs)
    with log:
        assert again.state("ann")["last"] == {"pair": task["pair"], "vote": "left"}
        assert again.undo("ann", task["pair"])["tasks"][0] == task
        assert [v.annotator for v in read_votes(pairs.folder / "votes.jsonl")] == ["bob"]


def test_the_votes_on_grids_make_an_ordinary_set(folder: Path, tmp_path: Path) -> None:
    pairs = write_candidates(read_groups(folder), tmp_path / "set")
    people, log = ballot(pairs)
    with log:
        for who in ("ann", "bob"):
            while tasks := people.state(who)["tasks"]:
                names = sorted(tasks[0]["pictures"])
                if tasks[0]["prompt"] == "a pond" and who == "bob":
                    people.vote(who, tasks[0]["pair"], "tie")
                else:
                    people.vote(who, tasks[0]["pair"], "picked", names[0], names[-1])
    told = summarise(read_votes(pairs.folder / "votes.jsonl"), of_pairs(pairs).tasks)
    assert "ann            19      19     0" in told and "bob            19      16     3" in told
    counts = apply_votes(pairs, tmp_path / "labeled")
    made = PairSet(tmp_path / "labeled")
    assert counts["pairs"] == len(made) == 9 + 7 + 3 and counts["swapped"] == counts["ties"] == 0
    assert counts["unlabeled"] == 28 - 19
    assert all(pair.chosen < pair.rejected for pair in made)
    assert {(p.preference, p.weight) for p in made if p.prompt == "a fox"} == {(1.0, 2.0)}
    assert {(p.preference, p.weight) for p in made if p.prompt == "a pond"} == {(0.75, 2.0)}
    for pair in made:  # what was told of a picture stays with it
        own = folder / pair.meta["chosen"]["file"]
        assert own.exists() and pair.meta["chosen"]["file"] != pair.meta["rejected"]["file"]


def mapo(*words: Any) -> Any:
    return CliRunner().invoke(cli, list(map(str, words)))


def test_a_folder_needs_a_set_to_go_to_and_goes_on_only_as_it_was(folder: Path, tmp_path: Path) -> None:
    assert "To judge a folder of pictures, name the set" in str(mapo("label", folder).exception)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    assert "run is a run, not a pairs set" in str(mapo("label", tmp_path / "run").exception)
    assert not (tmp_path / "set").exists()
    done = mapo("label", folder, "--out", tmp_path / "set", "--summary")
    assert done.exit_code == 0 and "There are no votes yet." in done.output
    before = (tmp_path / "set/set.json").stat().st_mtime_ns
    assert len(open_set(folder, tmp_path / "set")) == 28 and (tmp_path / "set/set.json").stat().st_mtime_ns == before
    (folder / "2.txt").write_text("a pond")
    with pytest.raises(MapoError, match="has other pictures or prompts than when .*set was made of it"):
        open_set(folder, tmp_path / "set")
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in str(mapo("label", tmp_path / "empty", "--out", tmp_path / "x").exception)
    (tmp_path / "empty" / "a.png").write_bytes(encoded(noise(1)))
    assert "1 picture, and none has a prompt: a.png" in str(
        mapo("label", tmp_path / "empty", "--out", tmp_path / "x").exception
    )
    assert "goes with a folder of pictures" in str(
        mapo("label", tmp_path / "set", "--captions", tmp_path / "c").exception
    )
    assert "The votes on a set lie in it" in str(mapo("label", tmp_path / "set", "--out", tmp_path / "x").exception)


def test_a_line_whose_pictures_are_not_a_list_is_named(tmp_path: Path) -> None:
    row = {"time": "t", "annotator": "a", "pair": "p", "left": "l", "right": "r", "vote": "left", "pictures": "l r"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(MapoError, match="line 1 is not a vote"):
        read_votes(tmp_path / "votes.jsonl")
