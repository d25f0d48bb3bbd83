"""What votes come to: exact preferences and weights, and an agreement that can be worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_fixtures import BLUE, GREEN, RED, make_picture
from mapo.errors import MapoError
from mapo.label.blind import of_pairs, pair_key
from mapo.label.consensus import agreement, apply_votes, exchanged, spoken, summarise, value_counts, verdict
from mapo.label.votes import CHOICES, Vote, VoteLog, read_votes
from mapo.pairs.pairs import PairSet, PairWriter, pair_id
from mapo.texts import read_json

A, B = "a" * 64, "b" * 64


def vote(pair: str, name: str, said: str, chosen: str = A, rejected: str = B, swap: bool = False) -> Vote:
    """``said`` is chosen, rejected, tie, bad or skip."""
    left, right = (rejected, chosen) if swap else (chosen, rejected)
    picture = {"chosen": chosen, "rejected": rejected}.get(said)
    choice = said if picture is None else "left" if picture == left else "right"
    return Vote("2026-01-01T00:00:00+00:00", name, pair, left, right, choice)


def votes_of(*sayings: str) -> list[Vote]:
    return [vote("p", f"person {k}", said, swap=k % 2 == 1) for k, said in enumerate(sayings)]


@pytest.mark.parametrize(
    ("sayings", "better", "preference", "votes", "bad"),
    [
        (["chosen"], A, 1.0, 1, 0),
        (["rejected"], B, 1.0, 1, 0),
        (["chosen", "chosen", "rejected"], A, 2 / 3, 3, 0),
        (["rejected", "rejected", "chosen"], B, 2 / 3, 3, 0),
        (["chosen", "tie"], A, 0.75, 2, 0),
        (["tie", "tie"], A, 0.5, 2, 0),
        (["chosen", "rejected"], A, 0.5, 2, 0),
        (["chosen", "bad"], A, 1.0, 1, 1),
        (["rejected", "skip", "skip"], B, 1.0, 1, 0),
    ],
)
def test_the_preference_is_the_share_of_votes_for_the_better_picture(
    sayings: list[str], better: str, preference: float, votes: int, bad: int
) -> None:
    found = verdict(votes_of(*sayings), A, B)
    assert found is not None
    assert (found.better, found.votes, found.bad) == (better, votes, bad)
    assert found.preference == pytest.approx(preference, abs=1e-12)


@pytest.mark.parametrize("sayings", [["bad"], ["bad", "bad", "chosen"], ["bad", "skip"]])
def test_a_pair_that_most_find_bad_has_no_better_picture(sayings: list[str]) -> None:
    assert verdict(votes_of(*sayings), A, B) is None


@given(st.lists(st.sampled_from(["chosen", "rejected", "tie", "bad", "skip"]), min_size=1, max_size=9))
def test_swapping_the_pair_swaps_the_verdict_and_nothing_else(sayings: list[str]) -> None:
    if all(said == "skip" for said in sayings):
        return
    votes = votes_of(*sayings)
    one, other = verdict(votes, A, B), verdict(votes, B, A)
    if one is None or other is None:
        assert one is other is None
        return
    assert (one.preference, one.votes, one.bad) == (other.preference, other.votes, other.bad)
    assert 0.5 <= one.preference <= 1
    assert (one.better == other.better) == (one.preference > 0.5)


# ------------------------------------------------------------------ agreement


def two_people(*sayings: tuple[str, str]) -> list[Vote]:
    return [
        vote(f"{k}", name, said, swap=k % 3 == 0)
        for k, both in enumerate(sayings)
        for name, said in zip("xy", both, strict=True)
    ]


def test_alpha_is_what_a_hand_works_out() -> None:
    """Four pairs, values first, second: AA AB BB BB. Do = 2 of 8, De = 2·3·5 / (8·7), so alpha = 1 - 0.25·56/30."""
    votes = two_people(("chosen",) * 2, ("chosen", "rejected"), ("rejected",) * 2, ("rejected",) * 2)
    found = agreement(votes)
    assert found.alpha == pytest.approx(1 - 0.25 * 56 / 30, abs=1e-12) and found.pairs == 4
    assert found.interval is not None and found.interval[0] < found.alpha <= found.interval[1]
    assert found == agreement(votes)  # the bootstrap is seeded
    assert "0.53, 95 % interval [" in str(found)


def test_ties_and_both_bad_are_values_and_skipped_pairs_are_missing() -> None:
    votes = two_people(("tie", "tie"), ("bad", "bad"), ("chosen", "skip"), ("rejected", "chosen"))
    assert value_counts(votes).tolist() == [[0, 0, 2, 0], [0, 0, 0, 2], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert agreement(votes).pairs == 3


def test_agreement_does_not_depend_on_which_picture_the_set_had_chosen() -> None:
    sayings = [("chosen", "chosen"), ("chosen", "rejected"), ("rejected", "rejected"), ("tie", "chosen")]
    assert agreement(two_people(*sayings)).alpha == agreement([
        vote(v.pair, v.annotator, {"left": "chosen", "right": "rejected"}.get(v.vote, v.vote), v.left, v.right)
        for v in two_people(*sayings)
    ]).alpha  # fmt: skip


def test_the_interval_narrows_with_more_pairs() -> None:
    rng = np.random.default_rng(0)
    said = [("chosen", "rejected")[k] for k in rng.integers(0, 2, 200)]
    other = [s if rng.random() < 0.8 else ("chosen", "rejected")[rng.integers(0, 2)] for s in said]
    widths = []
    for n in (25, 200):
        found = agreement(two_people(*list(zip(said, other, strict=True))[:n]))
        assert found.alpha is not None and found.interval is not None
        assert found.interval[0] < 0.8 < found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
    assert widths[1] < widths[0] / 2


def test_agreement_that_cannot_be_measured_says_so() -> None:
    assert "no pair was judged by two people" in str(agreement([vote("p", "x", "chosen")]))
    alike = agreement(two_people(("chosen", "chosen"), ("chosen", "chosen"), ("tie", "skip"))[:2])
    assert alike.alpha is None and "not defined" in str(alike)
    perfect = agreement(two_people(("chosen", "chosen"), ("tie", "tie")))
    assert perfect.alpha == 1 and perfect.interval is None and "never disagreed" in str(perfect)


def test_the_summary_counts_the_votes_of_every_annotator() -> None:
    votes = two_people(("tie", "tie"), ("bad", "skip"), ("chosen", "rejected"))
    lines = summarise(votes, "0123456").splitlines()
    assert [line.split() for line in lines[1:3]] == [["x", "3", "1", "1", "1", "0"], ["y", "3", "1", "1", "0", "1"]]
    assert lines[3] == "3 of 7 pairs judged."
    assert summarise([], "0123456") == "There are no votes yet."


def test_votes_on_pairs_that_are_gone_are_left_out_and_counted() -> None:
    votes = two_people(("tie", "tie"), ("chosen", "chosen"), ("chosen", "rejected"))
    said = summarise(votes, ["0", "1"])
    assert "2 votes on pairs that are not here are left out." in said and "2 of 2 pairs judged." in said
    assert str(agreement(votes[:4])) in said


@pytest.mark.parametrize("seed", range(4))
def test_the_same_votes_have_one_interval_in_whatever_order_they_stand(seed: int) -> None:
    words, draw = ("chosen", "rejected", "tie", "bad", "skip"), np.random.default_rng(seed)
    votes = two_people(*[(words[a], words[b]) for a, b in draw.integers(0, 5, (24, 2))])
    assert agreement([votes[k] for k in draw.permutation(len(votes))]) == agreement(votes)


# ------------------------------------------------------------------ the set that the votes make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with PairWriter(tmp_path / "pairs", {"recipe": "r"}, sensitive=True) as writer:
        for k in range(6):
            meta = {"chosen": {"seed": 1}, "rejected": {"seed": 2}, "scores": {"chosen": 3, "rejected": 4}, "n": 5}
            pictures = make_picture((k, 0, 0)), make_picture((k, 9, 9))
            writer.add_pair(f"prompt {k}", *pictures, meta=meta, preference=0.9, weight=3.0, group="g", split="test")
    return tmp_path / "pairs"


def cast(folder: Path, **sayings: str) -> None:
    """Of each person, a letter per pair: c, r, t, b, s or - for chosen, rejected, tie, bad, skip, not judged."""
    words = {"c": "chosen", "r": "rejected", "t": "tie", "b": "bad", "s": "skip"}
    with VoteLog(folder / "votes.jsonl") as log:
        for name, letters in sayings.items():
            for pair, letter in zip(PairSet(folder), letters, strict=False):
                key = pair_key(pair.prompt, pair.chosen, pair.rejected)
                if letter != "-":
                    log.append(vote(key, name, words[letter], pair.chosen, pair.rejected, swap=letter == "r"))


def test_the_votes_make_a_new_set_and_the_old_one_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    cast(folder, ann="crctb-", bob="crrtbs", cy="ct")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    counts = apply_votes(PairSet(folder), tmp_path / "out")
    assert counts == {"pairs": 2, "swapped": 1, "ties": 2, "both_bad": 1, "unlabeled": 1, "repeats": 0}
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    old, new = PairSet(folder), PairSet(tmp_path / "out")
    assert [(p.prompt, p.preference, p.weight) for p in new] == [("prompt 0", 1.0, 3.0), ("prompt 1", 2.5 / 3, 3.0)]
    assert (new[1].chosen, new[1].rejected) == (old[1].rejected, old[1].chosen)
    assert new[1].id == pair_id("prompt 1", new[1].chosen, new[1].rejected)
    assert new[1].meta == {
        "chosen": {"seed": 2}, "rejected": {"seed": 1}, "scores": {"chosen": 4, "rejected": 3}, "n": 5,
        "label": {"votes": 3, "both_bad": 0, "id_before": old[1].id},
    }  # fmt: skip
    assert new[0].id == old[0].id and (new[0].group, new[0].split) == ("g", "test")
    assert new.image_bytes(new[1].chosen) == old.image_bytes(old[1].rejected)


def test_ties_and_unlabelled_pairs_are_kept_on_request(folder: Path, tmp_path: Path) -> None:
    cast(folder, ann="cct---")
    apply_votes(PairSet(folder), tmp_path / "out", keep_ties=True, keep_unlabeled=True)
    found = [(p.preference, p.weight) for p in PairSet(tmp_path / "out")]
    assert found == [(1, 1), (1, 1), (0.5, 1), (0.9, 3), (0.9, 3), (0.9, 3)]
    assert "label" not in PairSet(tmp_path / "out")[3].meta


def test_the_summary_and_the_set_say_one_interval(folder: Path, tmp_path: Path) -> None:
    """Votes are cast in another order than that of the set, one of them on a pair that the set no longer has."""
    pairs = PairSet(folder)
    with VoteLog(folder / "votes.jsonl") as log:
        for name, letters in {"ann": "crctcb", "bob": "tcrtcr", "cy": "crrbct"}.items():
            for k in (4, 1, 5, 0, 3, 2) if name == "ann" else range(6):
                word = {"c": "chosen", "r": "rejected", "t": "tie", "b": "bad"}[letters[k]]
                key = pair_key(pairs[k].prompt, pairs[k].chosen, pairs[k].rejected)
                log.append(vote(key, name, word, pairs[k].chosen, pairs[k].rejected))
            log.append(vote("gone", name, {"ann": "chosen"}.get(name, "tie")))
    said = summarise(read_votes(folder / "votes.jsonl"), of_pairs(pairs).tasks)
    apply_votes(pairs, tmp_path / "out")
    labels = read_json(tmp_path / "out" / "set.json", "", "")["provenance"]["labels"]
    low, high = labels["alpha_interval"]
    assert f"{labels['alpha']:.2f}, 95 % interval [{low:.2f}, {high:.2f}]" in said and low < labels["alpha"] < high
    assert labels["pairs_judged_by_two_or_more"] == 6 and "over the 6 pairs" in said


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({}, "2 pairs; 1 left out because votes were even; 3 left out because nobody judged them."),
        (
            {"keep_ties": True},
            "3 pairs; 1 is kept as a tie because votes were even; 3 left out because nobody judged them.",
        ),
        (
            {"keep_ties": True, "keep_unlabeled": True},
            "6 pairs; 1 is kept as a tie because votes were even; 3 kept as before because nobody judged them.",
        ),
    ],
)
def test_it_is_said_whether_ties_and_unjudged_pairs_were_kept(
    folder: Path, tmp_path: Path, keep: dict[str, bool], says: str
) -> None:
    cast(folder, ann="cct---")
    assert spoken(apply_votes(PairSet(folder), tmp_path / "out", **keep), **keep) == says


def test_the_set_says_how_it_was_labelled_and_names_nobody(folder: Path, tmp_path: Path) -> None:
    cast(folder, ann="crctb-", bob="crrtbs")
    apply_votes(PairSet(folder), tmp_path / "out")
    info = read_json(tmp_path / "out" / "set.json", "", "")
    labels = info["provenance"]["labels"]
    found = agreement(read_votes(folder / "votes.jsonl"))
    assert info["sensitive"] and info["pairs"] == 2 and info["images"] == 12 and info["provenance"]["recipe"] == "r"
    assert (labels["annotators"], labels["votes_per_annotator"]) == (2, [6, 5])
    assert labels["alpha"] == pytest.approx(found.alpha) and tuple(labels["alpha_interval"]) == found.interval
    assert labels["counts"]["swapped"] == 1
    assert "ann" not in json.dumps(info).replace("annotator", "")


def test_pictures_are_shared_and_not_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cast(folder, ann="c")
    apply_votes(PairSet(folder), tmp_path / "linked")
    shard = "images-00000.parquet"
    assert (folder / shard).samefile(tmp_path / "linked" / shard)

    def no_links(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", no_links)
    apply_votes(PairSet(folder), tmp_path / "copied")
    assert not (folder / shard).samefile(tmp_path / "copied" / shard)
    assert (folder / shard).read_bytes() == (tmp_path / "copied" / shard).read_bytes()


def test_labelling_goes_on_in_the_new_set_and_comes_to_the_same(folder: Path, tmp_path: Path) -> None:
    """Votes are found again although the swapped pairs have new ids."""
    cast(folder, ann="rrc-bt", bob="rc-cb-")
    apply_votes(PairSet(folder), tmp_path / "once", keep_ties=True)
    apply_votes(PairSet(tmp_path / "once"), tmp_path / "twice", keep_ties=True)
    columns = ["id", "prompt", "chosen", "rejected", "preference", "weight"]
    once, twice = (pq.read_table(tmp_path / name / "pairs.parquet", columns=columns) for name in ("once", "twice"))
    assert once.equals(twice) and len(once) == 5
    assert set(of_pairs(PairSet(tmp_path / "once")).tasks) <= set(of_pairs(PairSet(folder)).tasks)


def test_labels_that_contradict_each_other_become_one_pair(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "pairs", {}) as writer:
        writer.add_pair("p", RED, GREEN)
        writer.add_pair("p", GREEN, RED)
        writer.add_pair("q", GREEN, BLUE)
    cast(tmp_path / "pairs", ann="c")
    counts = apply_votes(PairSet(tmp_path / "pairs"), tmp_path / "out")
    assert (counts["pairs"], counts["repeats"], counts["swapped"]) == (1, 1, 1)
    new = PairSet(tmp_path / "out")
    assert new[0].chosen == PairSet(tmp_path / "pairs")[0].chosen
    assert read_json(tmp_path / "out" / "set.json", "", "")["provenance"]["labels"]["votes_per_annotator"] == [1]


def test_nothing_is_written_where_nothing_can_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MapoError, match="holds no votes"):
        apply_votes(PairSet(folder), tmp_path / "out")
    cast(folder, ann="tb")
    with pytest.raises(
        MapoError,
        match="leave no pair: 1 left out because votes were even; 1 left out because most found .*; 4 left out because nobody",
    ):
        apply_votes(PairSet(folder), tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(MapoError, match="already exists"):
        apply_votes(PairSet(folder), tmp_path / "there", keep_ties=True)
    assert {f.name for f in tmp_path.iterdir()} == {"pairs", "there"}


def test_every_choice_of_the_page_is_understood() -> None:
    assert [v.vote for v in votes_of("chosen", "chosen", "tie", "bad", "skip")] == list(CHOICES)


def test_what_is_said_of_either_picture_is_exchanged_also_by_names_of_one_side() -> None:
    drawn = {"file": "a.png", "rejected_seed": 3, "rejected_model": "mini", "n": 1}
    turned = {"rejected_file": "a.png", "chosen_seed": 3, "chosen_model": "mini", "n": 1}
    assert exchanged(drawn) == turned and exchanged(turned) == drawn
    beside = {"file": "a.png", "rejected_file": "b.png"}
    assert exchanged(beside) == {"rejected_file": "a.png", "file": "b.png"}
    assert exchanged({"file": "a.png", "chosen": {"file": "b.png"}}) == {"file": "a.png", "rejected": {"file": "b.png"}}
