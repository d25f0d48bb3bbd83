import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapo.build.judge import Filter, best_and_worst, choose, judges_of, parse_filter, ranks, unjudged
from mapo.build.recipe import changed_recipe, read_recipe
from mapo.errors import MapoError

STYLE = read_recipe("pick-style-cartoon")
BEST = changed_recipe(read_recipe("best-of-k"), candidates=3)


class Scorer:
    version, revision, metrics, needs_reference = "1", "", ("a",), False

    def __init__(self, name="s"):
        self.name = name


def sided(recipe, *values):
    return dict(zip(recipe.prefixes, values, strict=True))


def test_judges_are_named_with_their_metric():
    found = parse_filter("mini-search:-hazard")
    assert (found.scorer.name, found.metric, found.sign, found.threshold) == ("mini-search", "hazard", -1, None)
    assert parse_filter("mini-search:prompt_following:0.5").threshold == 0.5
    for text, message in {
        "mini-search:hazard:x": "the threshold 'x' is not a number",
        "mini-search:hazard:nan": "the threshold 'nan' is not a number",
        "mini-search:cartoons": "Did you mean 'cartoon'",
        "mini-serch:cartoon": "no scorer 'mini-serch'",
        "guards:diversity": "guards looks at all pictures of a prompt together, so it judges no pairs",
    }.items():
        with pytest.raises(MapoError, match=message):
            parse_filter(text)


def test_a_filter_compares_the_pictures_or_the_chosen_one_with_its_threshold():
    more, less, bar = Filter(Scorer(), "a"), Filter(Scorer(), "a", -1), Filter(Scorer(), "a", 1, 5.0)
    assert more.keeps(2, 1) and not more.keeps(1, 1) and not more.keeps(1, 2)
    assert less.keeps(1, 2) and not less.keeps(1, 1)
    assert bar.keeps(5.1, 9) and not bar.keeps(5, 0)
    assert not more.keeps(math.nan, 0) and not bar.keeps(math.nan, 0)
    assert not any(judge.keeps(*pair) for judge in (more, less) for pair in ((None, 1), (1, None), (None, None)))
    assert not bar.keeps(None, 0) and bar.keeps(6, None)


def test_the_recipe_s_threshold_is_that_of_judges_that_name_none():
    recipe = read_recipe("pick-style-cartoon-v2")
    judges = judges_of(recipe, [Filter(Scorer("s"), "a"), Filter(Scorer("t"), "a", 1, 0.5)])
    assert [j.threshold for j in judges] == [5.0, 0.5]
    with pytest.raises(MapoError, match=r"puts above 5 .*Name the judge"):
        judges_of(recipe, [])


def test_one_scorer_of_several_judges_is_loaded_once():
    judges = judges_of(STYLE, [Filter(Scorer("s"), "a"), Filter(Scorer("s"), "a", -1)])
    assert judges[0].scorer is judges[1].scorer


def test_equal_values_share_the_mean_of_their_places():
    assert ranks([3, 1, 3, 2]) == [1.5, 4, 1.5, 3]


def test_one_judge_takes_the_highest_and_the_lowest():
    assert choose(BEST, [Filter(Scorer(), "a")], [sided(BEST, 2, 3, 1)]) == ("candidate-1", "candidate-2")
    assert choose(BEST, [Filter(Scorer(), "a", -1)], [sided(BEST, 2, 3, 1)]) == ("candidate-2", "candidate-1")
    assert choose(BEST, [Filter(Scorer(), "a")], [sided(BEST, 1, 1, 1)]) is None


def test_of_several_judges_the_mean_rank_takes_and_every_judge_has_to_agree():
    two = [Filter(Scorer("s"), "a"), Filter(Scorer("t"), "a")]
    assert best_and_worst(two, [[3, 2, 1], [2, 3, 1]]) == (0, 2)
    assert choose(BEST, two, [sided(BEST, 3, 2, 1), sided(BEST, 2, 3, 1)]) == ("candidate-0", "candidate-2")
    assert choose(BEST, two, [sided(BEST, 3, 2, 1), sided(BEST, 1, 2, 3)]) is None


def test_a_judge_with_a_threshold_ranks_nothing_and_vetoes():
    two = [Filter(Scorer("s"), "a"), Filter(Scorer("t"), "a", 1, 0.5)]
    assert choose(BEST, two, [sided(BEST, 3, 2, 1), sided(BEST, 0.6, 9, 9)]) == ("candidate-0", "candidate-2")
    assert choose(BEST, two, [sided(BEST, 3, 2, 1), sided(BEST, 0.4, 9, 9)]) is None


def test_candidates_that_a_judge_could_not_order_make_no_pair():
    two = [Filter(Scorer("s"), "a"), Filter(Scorer("t"), "a", 1, 0.5)]
    assert choose(BEST, two, [sided(BEST, 3, None, 1), sided(BEST, 1, 1, 1)]) is None
    assert choose(BEST, two, [sided(BEST, 3, 2, 1), sided(BEST, 1, None, None)]) == ("candidate-0", "candidate-2")
    assert choose(BEST, two, [sided(BEST, 3, 2, 1), sided(BEST, None, 1, 1)]) is None


def test_a_recipe_with_prefixes_knows_its_sides():
    assert choose(STYLE, [], []) == ("chosen", "rejected")
    assert choose(STYLE, [Filter(Scorer(), "a")], [{"chosen": 1, "rejected": 2}]) is None


def test_a_missing_number_keeps_no_pair_and_is_told_from_a_verdict():
    order, bar = Filter(Scorer("s"), "a"), Filter(Scorer("t"), "a", 1, 5.0)
    assert choose(BEST, [order], [sided(BEST, 3, None, 1)]) is None and unjudged(
        BEST, [order], [sided(BEST, 3, None, 1)]
    )
    assert choose(STYLE, [order], [sided(STYLE, 3, None)]) is None and unjudged(STYLE, [order], [sided(STYLE, 3, None)])
    assert choose(STYLE, [bar], [sided(STYLE, None, 6)]) is None and unjudged(STYLE, [bar], [sided(STYLE, None, 6)])
    assert choose(STYLE, [bar], [sided(STYLE, 6, None)]) == ("chosen", "rejected")
    assert not unjudged(STYLE, [bar], [sided(STYLE, 6, None)]) and not unjudged(STYLE, [order], [sided(STYLE, 1, 2)])


def test_a_judge_of_the_request_with_a_threshold_looks_at_the_chosen_picture_alone():
    class Reader(Scorer):
        judges_request = True

    assert Filter(Reader(), "a", 1, 5.0).sides(STYLE) == ["chosen"]
    assert Filter(Reader(), "a").sides(STYLE) == Filter(Scorer(), "a", 1, 5.0).sides(STYLE) == ["chosen", "rejected"]
    assert Filter(Reader(), "a", 1, 5.0).sides(BEST) == list(BEST.prefixes)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_whatever_is_chosen_every_judge_prefers(values):
    judges = [Filter(Scorer(str(k)), "a") for k in range(len(values))]
    at = [sided(BEST, *row) for row in values]
    if sides := choose(BEST, judges, at):
        assert all(row[sides[0]] > row[sides[1]] for row in at)
