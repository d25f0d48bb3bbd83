"""Votes outlive crashes, and nothing that is not a vote is taken for one."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapo.errors import MapoError
from mapo.label.votes import CHOICES, UNDO, Vote, VoteLog, read_votes, standing

ONE, TWO = "a" * 64, "b" * 64
VOTE = Vote("2026-01-02T03:04:05.006+00:00", "Änn 🐻", "0123456789abcdef", ONE, TWO, "left")


def write(path: Path, *votes: Vote) -> bytes:
    with VoteLog(path) as log:
        for vote in votes:
            log.append(vote)
    return path.read_bytes()


def test_votes_come_back_as_they_were_cast(tmp_path: Path) -> None:
    votes = [replace(VOTE, pair=f"{k:016d}", vote=choice) for k, choice in enumerate(CHOICES)]
    write(tmp_path / "votes.jsonl", *votes)
    assert read_votes(tmp_path / "votes.jsonl") == votes
    first = json.loads((tmp_path / "votes.jsonl").read_text("utf-8").splitlines()[0])
    assert first == {
        "time": VOTE.time,
        "annotator": "Änn 🐻",
        "pair": "0" * 16,
        "left": ONE,
        "right": TWO,
        "vote": "left",
    }
    assert [v.better for v in votes] == [ONE, TWO, None, None, None]


def test_a_set_without_votes_has_none(tmp_path: Path) -> None:
    assert read_votes(tmp_path / "votes.jsonl") == []


def test_an_undo_takes_its_vote_back_and_of_two_votes_the_later_stands() -> None:
    other = replace(VOTE, annotator="bob")
    lines = [VOTE, other, replace(VOTE, vote=UNDO)]
    assert standing(lines) == [other]
    again = replace(VOTE, vote="tie")
    assert standing([*lines, again]) == [other, again]
    assert standing([VOTE, other, again]) == [other, again]


@settings(deadline=None, max_examples=60)
@given(share=st.floats(0, 1))
def test_a_file_cut_at_any_byte_is_read_and_goes_on_with_a_fresh_line(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    votes = [replace(VOTE, pair=f"{k:016d}") for k in range(3)]
    whole = write(path, *votes)
    cut = whole[: round(share * len(whole))]
    path.write_bytes(cut)
    kept = len(read_votes(path))
    assert read_votes(path) == votes[:kept]
    assert kept - cut.count(b"\n") in (0, 1)  # a vote that lacks only its line feed counts
    write(path, *votes[kept:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [b'{"time"', b'{"time": "now"}', b"[1]"])
def test_a_last_line_that_is_not_yet_a_vote_gives_way_to_the_next_one(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(write(path, VOTE) + torn)
    assert read_votes(path) == [VOTE]
    later = replace(VOTE, pair="2" * 16)
    write(path, later)
    assert read_votes(path) == [VOTE, later] and torn + b"{" not in path.read_bytes()


def test_a_vote_is_kept_only_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.jsonl"
    before = write(path, VOTE)

    def fails(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with VoteLog(path) as log:
        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            log.append(replace(VOTE, pair="1" * 16))
        assert path.read_bytes() == before and log.lines == [VOTE]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("no json", "Expecting value"),
        ("[1]", "not a JSON object"),
        ('{"time": "now"}', "it lacks annotator, pair, left, right, vote"),
        (json.dumps({**VOTE.__dict__, "vote": "both"}), "vote is 'both'"),
        (json.dumps({**VOTE.__dict__, "left": 3}), "left is 3"),
        (json.dumps({**VOTE.__dict__, "seed": True}), "seed is True"),
    ],
)
def test_a_whole_line_that_is_no_vote_is_named(line: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    good = write(path, VOTE)
    path.write_bytes(good + line.encode() + b"\n" + good)
    for read in (read_votes, VoteLog):
        with pytest.raises(MapoError, match=rf"votes.jsonl line 2 is not a vote \(.*{why}"):
            read(path)


def test_a_second_server_on_the_same_votes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with VoteLog(path) as log:
        with pytest.raises(MapoError, match="Another `mapo label` is writing to .*votes.jsonl"):
            VoteLog(path)
        log.append(VOTE)
        assert read_votes(path) == [VOTE]  # to read is allowed at any time
    with VoteLog(path) as log:
        assert log.lines == [VOTE]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.jsonl"
    before = write(path, VOTE)
    write_some = os.write
    with VoteLog(path) as log:
        monkeypatch.setattr(os, "write", lambda file, data: write_some(file, data[:20]))
        with pytest.raises(OSError) as refused:
            log.append(replace(VOTE, pair="1" * 16))
        assert refused.value.errno == errno.ENOSPC
        monkeypatch.undo()
        assert path.read_bytes() == before and log.lines == [VOTE]
        log.append(replace(VOTE, pair="2" * 16))
    assert [v.pair for v in read_votes(path)] == [VOTE.pair, "2" * 16]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="Votes cannot be written to .*No such file"):
        VoteLog(tmp_path / "nowhere" / "votes.jsonl")


@pytest.mark.parametrize(
    ("choice", "better_is_left", "outcome"),
    [("left", True, "after"), ("right", True, "before"), ("left", False, "before"), ("right", False, "after"),
     ("tie", True, "tie"), ("bad", True, "tie"), ("skip", True, None)],
)  # fmt: skip
def test_a_vote_on_a_comparison_says_who_won(choice: str, better_is_left: bool, outcome: str | None) -> None:
    before, after = (TWO, ONE) if better_is_left else (ONE, TWO)
    vote = replace(VOTE, vote=choice, before=before, after=after, prompt_id="p", seed=3)
    assert vote.outcome == outcome


def test_two_equal_pictures_are_a_tie_whatever_was_pressed(tmp_path: Path) -> None:
    vote = replace(VOTE, right=ONE, before=ONE, after=ONE, prompt_id="p", seed=3)
    assert vote.outcome == "tie"
    write(tmp_path / "votes.jsonl", vote)
    assert read_votes(tmp_path / "votes.jsonl") == [vote]
