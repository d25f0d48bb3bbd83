import re

import pytest
from worlds import Parsed, World

from mapo.report.cards import EXTREMES
from mapo.report.verdict import decimals, number, signed, span
from mapo.statistics import Interval


def test_a_clear_gain_is_called_with_its_win_rate_and_interval(world):
    summary = world.report()
    # 3 of 30 pairs (places 0, 10 and 20) stay at 0 and tie: 27 + 3 / 2 of 30
    assert summary["headline"]["win_rate"]["value"] == pytest.approx(0.95)
    assert summary["call"] == "better"
    assert re.match(r"After beats before on cartoon: it wins 95\.0\s% of 30 pairs \(95\s% interval", summary["verdict"])
    assert summary["verdict"] in Parsed(world.page).text


def test_a_loss_is_called_a_loss(world):
    world.add(lambda i: 0.9 + 0.01 * i, lambda i: 0.5, metric="aesthetic")
    summary = world.report("aesthetic")
    assert summary["call"] == "worse"
    assert summary["verdict"].startswith("After is worse than before on aesthetic")


def test_a_difference_within_the_interval_is_not_called(world):
    world.add(lambda i: 0, lambda i: (-1) ** i, metric="aesthetic")
    summary = world.report("aesthetic")
    assert summary["call"] == "undecided"
    assert "No difference can be called on aesthetic" in summary["verdict"]
    assert "covers 50" in summary["verdict"]


def test_nineteen_pairs_or_nine_prompts_are_too_little_to_call(tmp_path):
    summary = World(tmp_path, prompts=9).report()
    assert summary["call"] == "undecided"
    assert summary["verdict"].startswith("Nothing can be concluded on cartoon: 18 pairs from 9 prompts are too few")


def test_a_minus_turns_the_goal_so_that_less_is_better(world):
    world.add(lambda i: 1, lambda i: i % 5 == 0, metric="hazard")
    assert world.report("hazard")["call"] == "worse"
    summary = world.report("-hazard")
    assert summary["call"] == "better"
    assert "hazard (lower is better)" in summary["verdict"]
    row = summary["headline"]
    assert row["win_rate"]["value"] == pytest.approx(0.9)
    assert (row["before"]["value"], row["after"]["value"]) == (1.0, pytest.approx(0.2))


def test_of_a_flaw_less_is_better_unless_it_is_the_goal(world):
    world.add(lambda i: 1, lambda i: i % 5 == 0, metric="hazard")
    rates = {c["metric"]: c for c in world.report("cartoon")["comparisons"]}
    assert rates["hazard"]["win_rate"]["value"] == pytest.approx(0.9) and rates["hazard"]["lower_is_better"]
    assert not rates["cartoon"]["lower_is_better"]
    assert "lower is better" in world.page


def test_without_a_goal_no_winner_is_picked_from_several_metrics(world):
    world.add(lambda i: 0, lambda i: 1, metric="hazard")
    summary = world.report(None)
    assert (summary["call"], summary["headline"]) == ("undecided", None)
    assert "2 of 2 win rates below exclude 50" in summary["detail"]
    assert "Largest gains" not in world.page


def test_one_clear_win_rate_among_several_is_told_as_one(world):
    world.add(lambda i: 0, lambda i: 0, metric="hazard")
    assert "1 of 2 win rates below excludes 50" in world.report(None)["detail"]


def test_without_a_goal_a_single_metric_is_the_goal(world):
    assert world.report(None)["call"] == "better"


def test_the_judge_of_the_pairs_is_marked_and_does_not_speak_first(world):
    world.add(lambda i: 0, lambda i: 1, scorer="mini-learned")
    summary = world.report(judges_of_pairs=["mini-learned"])
    assert summary["headline"]["scorer"] == "mini-search"
    assert [(c["scorer"], c["made_pairs"]) for c in summary["comparisons"]] == [
        ("mini-search", False),
        ("mini-learned", True),
    ]
    assert "made the pairs" in world.page
    assert any("mini-learned also made or filtered" in c for c in summary["cautions"])


def test_a_judge_that_is_the_only_scorer_speaks_with_a_warning(world):
    summary = world.report(judges_of_pairs=["mini-search"])
    assert summary["headline"]["made_pairs"]
    assert "not independent evidence" in summary["detail"]


def test_a_judge_that_scores_nothing_here_is_named_in_the_provenance(world):
    summary = world.report(judges_of_pairs=["hps-v2.1"])
    assert "made the training pairs and scores nothing here" in world.page
    assert summary["judges_of_pairs"] == ["hps-v2.1"] and not summary["cautions"]


def test_of_several_scorers_the_most_cautious_speaks(world):
    world.add(lambda i: 0, lambda i: i % 3 != 0, scorer="mini-learned")
    summary = world.report()
    assert summary["headline"]["scorer"] == "mini-learned"
    assert "most cautious of 2 scorers. mini-search: 95.0" in summary["detail"]


def test_prompts_that_are_all_followed_before_and_after_are_not_called_a_difference(world):
    world.add(lambda i: 1, lambda i: 1, metric="prompt_following")
    world.report()
    text = Parsed(world.page).text
    assert (
        "before and 100.0\u202f% after. No difference was seen: 0.0 points (95" in text and "may be chance" not in text
    )


def test_a_score_of_how_well_text_fits_says_how_well_prompts_are_followed(world):
    world.add(lambda i: 30 + i / 10, lambda i: 29 + i / 10, scorer="clip", metric="clip_score")
    summary = world.report()
    assert [r["metric"] for r in summary["prompt_following"]] == ["clip_score"]
    assert "clip (clip score): 31.45 before and 30.45 after. Prompts are followed worse" in Parsed(world.page).text


def test_before_and_after_of_a_metric_have_the_same_decimals(world):
    world.add(lambda i: i / 10, lambda i: 20 + i, metric="aesthetic")
    world.report("aesthetic")
    told = re.search(r"aesthetic, mean(\S+)\s→\s(\S+)", Parsed(world.page).text.replace("\n", ""))
    assert told and len(told[1].partition(".")[2]) == len(re.match(r"[\d.]+", told[2])[0].partition(".")[2])


def test_scorers_that_contradict_each_other_call_no_winner(world):
    world.add(lambda i: 1, lambda i: 0, scorer="mini-learned")
    summary = world.report()
    assert summary["call"] == "undecided"
    assert "scorers disagree on cartoon" in summary["verdict"]


def test_prompt_following_is_told_as_a_difference_with_its_interval(world):
    world.add(lambda i: 1, lambda i: i % 3 != 0, metric="prompt_following")
    summary = world.report()
    (row,) = summary["prompt_following"]
    assert row["difference"]["value"] == pytest.approx(-1 / 3)
    assert row["difference"]["low"] < -1 / 3 < row["difference"]["high"] < 0
    assert "Prompts are followed worse: \u221233.3 points" in Parsed(world.page).text


def test_unmeasured_prompt_following_is_said(world):
    world.report()
    assert "no scorer gave prompt_following" in world.page


def test_pictures_that_gained_and_lost_most_come_one_of_a_prompt(world):
    world.add(lambda i: 0, lambda i: i - 14.5, metric="aesthetic")
    world.report("aesthetic")
    cards = Parsed(world.page).cards()[30:]
    assert len(cards) == 2 * EXTREMES
    assert [c["data-prompt"] for c in cards[:2]] == ["prompt 14", "prompt 13"]
    assert [c["data-prompt"] for c in cards[EXTREMES : EXTREMES + 2]] == ["prompt 0", "prompt 1"]
    assert cards[0]["data-change"] == "aesthetic 0.0\u00a0→\u00a014.5"


# ------------------------------------------------------------------ numbers


def interval(value, low, high):
    return Interval(value, low, high, 30, 30, True)


@pytest.mark.parametrize(
    ("estimate", "rate", "told", "bounds"),
    [
        (interval(0.8751, 0.83, 0.912), True, "87.5\u202f%", "83.0\u201391.2\u202f%"),
        (interval(21.6712, 21.46, 21.89), False, "21.67", "21.46\u201321.89"),
        (interval(0.30612, 0.3001, 0.3129), False, "0.306", "0.300\u20130.313"),
        (interval(-123.4, -180, -60), False, "\u2212123", "\u2212180\u2013\u221260"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_supports(estimate, rate, told, bounds):
    assert number(estimate, rate) == told
    if estimate.low > 0:
        assert span(estimate, rate) == bounds


def test_differences_carry_their_sign_and_zero_has_none():
    assert signed(interval(-0.0214, -0.05, 0.01), True) == "\u22122.1 points"
    assert signed(interval(0.331, -0.01, 0.66), False) == "+0.33"
    assert signed(interval(-0.0001, -0.02, 0.02), True) == "0.0 points"
    assert span(interval(-0.02, -0.05, 0.01), True, sign=True) == "\u22125.0 to +1.0"
    assert decimals(interval(0.0, 0.0, 0.0)) == 0


@pytest.mark.parametrize("metrics", [["nsfw"], ["nsfw", "unsafe"]])
def test_a_flaw_is_never_the_goal_unless_it_is_named(world, metrics):
    world.rows = []
    for metric in metrics:
        world.add(lambda i: 1, lambda i: i % 5 == 0, scorer=metric, metric=metric)
    summary = world.report(None)
    assert (summary["call"], summary["headline"]) == ("undecided", None)
    assert summary["verdict"] == (
        "No goal was named, and nothing at hand knows better or worse, so no winner is called."
    )
    assert f"{', '.join(metrics)}) looks for flaws alone" in summary["detail"]
    assert "Largest gains" not in world.page
    assert world.report("-nsfw")["call"] == "better"
