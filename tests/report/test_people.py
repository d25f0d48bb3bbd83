import pytest
from worlds import Parsed, World

from mapo.errors import MapoError
from mapo.report.report import write_report


def row_of(summary):
    (row,) = [c for c in summary["comparisons"] if c["scorer"] == "people"]
    return row


def test_votes_are_a_win_rate_of_their_own(world):
    votes = world.vote("votes.jsonl", ["after"] * 20 + ["before"] * 4 + ["tie"] * 3 + ["bad"] + ["skip"] * 2)
    summary = world.report(votes=[votes])
    row = row_of(summary)
    assert row["win_rate"]["value"] == pytest.approx((20 + 4 / 2) / 28)
    assert (row["win_rate"]["pairs"], row["metric"]) == (28, "human_preference")
    assert row["people"] == {
        "votes": 28, "ties": 3, "both_bad": 1, "skipped": 2, "shares": [[28, pytest.approx(22 / 28)]],
        "also_made_pairs": 0,
    }  # fmt: skip
    text = Parsed(world.page).text
    assert "28 votes by one person on 28 of 30 pairs, blind." in text
    assert "3 ties and 1 time both bad count half; 2 skipped do not count." in text


def test_a_named_goal_speaks_and_people_are_told_beside_it(world):
    summary = world.report("cartoon", votes=[world.vote("votes.jsonl", ["before"] * 30)])
    assert summary["headline"]["scorer"] == "mini-search" and summary["call"] == "better"
    assert "People, asked blindly, say otherwise: after wins 0.0" in summary["detail"]
    agreeing = world.report("cartoon", votes=[world.vote("more.jsonl", ["after"] * 30)])
    assert "People, asked blindly: after wins 100.0" in agreeing["detail"]
    torn = world.report("cartoon", votes=[world.vote("torn.jsonl", ["after", "before", "before", "after"] * 7)])
    assert "not clearly of either opinion: after wins 50.0" in torn["detail"]


@pytest.mark.parametrize("goal", [None, "human_preference"])
def test_without_another_goal_people_decide(world, goal):
    world.add(lambda i: 0, lambda i: 1, metric="hazard")
    summary = world.report(goal, votes=[world.vote("votes.jsonl", ["before"] * 28)])
    assert summary["headline"]["scorer"] == "people" and summary["call"] == "worse"
    assert summary["verdict"].startswith("After is worse than before on human preference: it wins only 0.0")
    assert "By people who did not know which was which" in summary["detail"]
    assert Parsed(world.page).cards()[0]["data-change"] == "0.0\u202f% of the votes for after"


def test_people_need_no_scorer(world):
    votes = world.vote("votes.jsonl", ["after"] * 30)
    summary = write_report(world.root / "before", world.root / "after", [], world.root / "r.html", votes=[votes])
    assert [c["scorer"] for c in summary["comparisons"]] == ["people"] and summary["call"] == "better"


def test_nineteen_judged_pairs_conclude_nothing(world):
    summary = world.report(None, votes=[world.vote("votes.jsonl", ["after"] * 19)])
    assert summary["call"] == "undecided"
    assert summary["verdict"].startswith("Nothing can be concluded on human preference: 19 pairs from 10 prompts")


def test_votes_of_several_people_on_a_pair_are_averaged_and_make_it_no_heavier(world):
    votes = world.vote("votes.jsonl", ["after", "after", "before"] + ["tie"] * 27)
    for name in ("bob", "eve", "kim"):
        world.vote("votes.jsonl", ["after", "before"], annotator=name)
    row = row_of(world.report(votes=[votes]))
    # pair 0: 4 of 4, pair 1: 1 of 4, pair 2: 0 of 1, 27 ties
    assert row["win_rate"]["value"] == pytest.approx((1 + 0.25 + 0 + 27 / 2) / 30)
    assert row["people"]["votes"] == 36
    assert row["people"]["shares"] == [[30, pytest.approx(15.5 / 30)], [2, 0.5], [2, 0.5], [2, 0.5]]


def test_many_votes_on_the_same_pairs_do_not_narrow_the_interval(world):
    choices = ["after"] * 18 + ["before"] * 12
    once = row_of(world.report(votes=[world.vote("once.jsonl", choices)]))["win_rate"]
    for name in "abcdefgh":
        world.vote("often.jsonl", choices, annotator=name)
    often = row_of(world.report(votes=[world.root / "often.jsonl"]))["win_rate"]
    assert often == once


def test_files_of_votes_are_put_together_and_the_later_vote_stands(world):
    first = world.vote("ann.jsonl", ["before"] * 30)
    second = world.vote("bob.jsonl", ["after"] * 30, annotator="bob")
    again = world.vote("again.jsonl", ["after"] * 30)
    row = row_of(world.report(votes=[first, second]))
    assert (row["win_rate"]["value"], row["people"]["votes"]) == (0.5, 60)
    row = row_of(world.report(votes=[first, second, again]))
    assert (row["win_rate"]["value"], row["people"]["votes"]) == (1.0, 60)


def test_who_voted_is_not_on_the_page(world):
    votes = world.vote("votes.jsonl", ["after"] * 30, annotator="Zerlina Q.")
    world.vote("votes.jsonl", ["before"] * 30, annotator="Ottokar")
    world.report(votes=[votes])
    assert "Zerlina" not in world.page and "Ottokar" not in world.page
    assert "Each by themselves gave after 100.0\u202f% of 30 votes, 0.0\u202f% of 30 votes" in Parsed(world.page).text


def test_votes_on_pictures_that_changed_are_refused(world):
    votes = world.vote("votes.jsonl", ["after"] * 3)
    world.vote("votes.jsonl", ["after"], annotator="bob", after="0" * 64)
    with pytest.raises(MapoError, match=r"1 vote on other pictures.* 'bob' .* cast on pictures that have changed"):
        world.report(votes=[votes])


def test_votes_on_pictures_from_elsewhere_are_refused(world):
    with pytest.raises(MapoError, match="about a prompt and seed that is in neither folder"):
        world.report(votes=[world.vote("votes.jsonl", ["after"], seed=99)])


def test_votes_with_the_folders_exchanged_are_refused(world):
    first, second = world.before[0].sha256, world.after[0].sha256
    votes = world.vote("votes.jsonl", ["after"], before=second, after=first)
    with pytest.raises(MapoError, match="cast with the two folders exchanged"):
        world.report(votes=[votes])


def test_votes_on_a_pairs_set_are_refused(world):
    votes = world.vote("votes.jsonl", ["after"], before="", after="")
    with pytest.raises(MapoError, match="votes on the pairs of a set, not on pictures before and after"):
        world.report(votes=[votes])


def test_no_votes_and_only_skips_are_refused(world):
    with pytest.raises(MapoError, match=r"no votes in .*nowhere\.jsonl"):
        world.report(votes=[world.root / "nowhere.jsonl"])
    with pytest.raises(MapoError, match="all 3 votes on these pictures are skips"):
        world.report(votes=[world.vote("votes.jsonl", ["skip"] * 3)])
    with pytest.raises(MapoError, match="Give their --votes"):
        world.report("human_preference")


def test_equal_pictures_are_a_tie_whatever_was_pressed(tmp_path):
    world = World(tmp_path)
    world.after[0] = world.before[0]
    votes = world.vote("votes.jsonl", ["before"], after=world.before[0].sha256)
    with pytest.raises(MapoError, match="changed since"):  # the folder after still has another picture there
        world.report(votes=[votes])
