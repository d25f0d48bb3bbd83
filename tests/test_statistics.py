import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from mapo.errors import MapoError
from mapo.score.table import SCHEMA
from mapo.statistics import (
    Estimate,
    is_binary,
    mean,
    mean_difference,
    mean_share,
    paired,
    percentiles,
    ratio,
    win_rate,
)


def table(values, model="m", **changes):
    """Scores by (prompt, seed)."""
    rows = [
        {
            "image": f"{model}-{prompt}-{seed}",
            "prompt_id": prompt,
            "prompt": f"a picture of {prompt}",
            "seed": seed,
            "model": model,
            "scorer": "judge",
            "metric": "cartoon",
            "version": "1",
            "revision": "",
            "reference": None,
            "value": value,
            **changes,
        }
        for (prompt, seed), value in values.items()
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def names(count, seeds=1):
    return [f"prompt {i // seeds}" for i in range(count)]


# ------------------------------------------------------------------ win rates


def test_a_win_counts_one_and_a_tie_half():
    result = win_rate([0.2, 3.0, 0.0, -1.0], names(4))
    assert result.value == 0.625
    assert (result.pairs, result.prompts) == (4, 4)


def test_swapping_before_and_after_mirrors_the_win_rate():
    differences = np.random.default_rng(1).normal(0.3, 1, 80)
    there, back = win_rate(differences, names(80, 2)), win_rate(-differences, names(80, 2))
    assert there.value == pytest.approx(1 - back.value)
    assert there.low == pytest.approx(1 - back.high, abs=0.02)
    assert there.high == pytest.approx(1 - back.low, abs=0.02)


def test_the_interval_contains_the_value_and_stays_between_0_and_1():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        result = win_rate(rng.normal(rng.normal(), 1, 24), names(24, 2))
        assert 0 <= result.low <= result.value <= result.high <= 1


def test_the_same_pairs_give_the_same_interval_in_any_order():
    differences, clusters = np.random.default_rng(2).normal(0.2, 1, 60), np.array(names(60, 3))
    shuffled = np.random.default_rng(3).permutation(60)
    assert win_rate(differences, clusters) == win_rate(differences[shuffled], clusters[shuffled])


def test_another_generator_moves_the_bounds_but_not_the_value():
    values, clusters = np.random.default_rng(2).normal(0.2, 1, 60), names(60, 3)
    first, second = (mean(values, clusters, rng) for rng in (0, np.random.default_rng(5)))
    assert first.value == second.value
    assert first.low != second.low
    assert first.low == pytest.approx(second.low, abs=0.03)


def test_seeds_that_agree_within_a_prompt_widen_the_interval():
    outcomes = np.repeat(np.random.default_rng(4).choice([1.0, -1.0], 30, p=[0.7, 0.3]), 8)
    clustered = win_rate(outcomes, names(240, 8))
    naive = win_rate(outcomes, names(240))
    assert clustered.value == naive.value
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(math.sqrt(8), rel=0.25)


def test_repeating_every_pair_does_not_narrow_the_interval():
    outcomes = np.random.default_rng(4).choice([1.0, -1.0], 40, p=[0.7, 0.3])
    once = win_rate(outcomes, names(40))
    often = win_rate(np.repeat(outcomes, 5), names(200, 5))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_winning_everything_gives_the_exact_interval_over_prompts():
    result = win_rate([1.0] * 60, names(60, 2))
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(0.025 ** (1 / 30))
    assert result.conclusive
    lost = win_rate([-1.0] * 60, names(60, 2))
    assert (lost.value, lost.low) == (0.0, 0.0)
    assert lost.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert lost.conclusive


def test_only_ties_decide_nothing():
    result = win_rate([0.0] * 50, names(50))
    exact = stats.binomtest(25, 50).proportion_ci(method="exact")
    assert result.value == 0.5
    assert (result.low, result.high) == pytest.approx((exact.low, exact.high))
    assert not result.conclusive


def test_an_odd_number_of_prompts_that_all_tie_has_an_interval_around_a_half():
    result = win_rate([0.0] * 21, names(21))
    assert result.low == pytest.approx(1 - result.high)
    assert result.covers(0.5)


def test_one_prompt_tells_nothing_however_many_seeds_it_has():
    result = win_rate([1.0] * 40, ["the only prompt"] * 40)
    assert (result.pairs, result.prompts) == (40, 1)
    assert result.low == pytest.approx(0.025)
    assert not result.conclusive


@pytest.mark.parametrize(
    ("pairs", "seeds", "conclusive"), [(19, 1, False), (20, 1, True), (36, 4, False), (40, 4, True)]
)
def test_nothing_is_conclusive_below_20_pairs_or_10_prompts(pairs, seeds, conclusive):
    assert win_rate([1.0] * pairs, names(pairs, seeds)).conclusive is conclusive


def test_an_interval_that_covers_even_odds_is_not_conclusive():
    result = win_rate([1.0] * 22 + [-1.0] * 18, names(40))
    assert result.covers(0.5)
    assert not result.conclusive


def test_intervals_cover_the_truth_in_about_nineteen_of_twenty_experiments():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(150):
        chance = rng.beta(2.8, 1.2, 14)  # prompts differ; 70 % on average
        wins = rng.random((14, 3)) < chance[:, None]
        hits += win_rate(np.where(wins, 1.0, -1.0).ravel(), names(42, 3)).covers(0.7)
    assert 0.90 <= hits / 150 <= 0.99


def test_no_pairs_and_numbers_that_are_none_are_refused():
    with pytest.raises(MapoError, match="no pairs"):
        win_rate([], [])
    with pytest.raises(MapoError, match="2 scores are not numbers. Score those pictures again"):
        win_rate([1.0, math.nan, math.inf], names(3))
    with pytest.raises(MapoError, match="1 score is not a number. Score that picture again"):
        win_rate([1.0, math.nan], names(2))


# ------------------------------------------------------------------ means


def test_a_mean_difference_agrees_with_the_t_interval_on_ordinary_data():
    rng = np.random.default_rng(7)
    before = rng.normal(21, 1, 200)
    after = before + rng.normal(0.3, 0.5, 200)
    result = mean_difference(before, after, names(200))
    exact = stats.ttest_1samp(after - before, 0).confidence_interval()
    assert result.value == pytest.approx((after - before).mean())
    assert (result.low, result.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    assert result.conclusive


def test_equal_scores_leave_room_for_a_change_that_was_not_seen():
    result = mean_difference([1.0, 0.0] * 20, [1.0, 0.0] * 20, names(40))
    most = 1 - 0.025 ** (1 / 40)
    assert (result.value, result.low, result.high) == pytest.approx((0, -most, most))
    assert not result.conclusive


def test_a_change_of_every_answer_has_an_exact_interval():
    result = mean_difference([0.0] * 40, [1.0] * 40, names(40))
    assert (result.value, result.high) == (1, 1)
    assert result.low == pytest.approx(2 * 0.025 ** (1 / 40) - 1)
    assert result.conclusive


def test_a_rate_of_all_or_nothing_has_an_exact_interval():
    assert mean([1.0] * 30, names(30)).low == pytest.approx(0.025 ** (1 / 30))
    assert mean([0.0] * 30, names(30)).high == pytest.approx(1 - 0.025 ** (1 / 30))


def test_real_numbers_of_one_prompt_have_no_bounds():
    result = mean([21.3, 22.7], ["p", "p"])
    assert (result.value, result.low, result.high) == (22.0, -math.inf, math.inf)
    assert not result.conclusive


def test_a_prompt_with_more_seeds_weighs_more_in_the_mean_over_pairs():
    assert mean([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]).value == 2.0


def test_only_0_and_1_make_a_rate():
    assert is_binary([0, 1.0, 1])
    assert not is_binary([0, 0.5, 1])


# ------------------------------------------------------------------ pairs


def test_pairs_join_prompt_and_seed_in_the_order_of_before():
    before = table({("b", 0): 1.0, ("a", 0): 2.0, ("a", 1): 3.0}, "old")
    after = table({("a", 1): 3.5, ("a", 0): 1.0, ("c", 0): 9.0, ("b", 0): 1.0}, "new")
    pairs = paired(before, after, "judge", "cartoon")
    assert [(p.prompt_id, p.seed, p.difference) for p in pairs] == [("b", 0, 0.0), ("a", 0, -1.0), ("a", 1, 0.5)]
    assert (pairs[2].image_before, pairs[2].image_after) == ("old-a-1", "new-a-1")


def test_other_scorers_and_metrics_are_left_alone():
    before = pa.concat_tables([table({("a", 0): 1.0}), table({("a", 0): math.nan}, metric="sketch")])
    assert len(paired(before, table({("a", 0): 2.0}), "judge", "cartoon")) == 1


def test_tables_without_a_common_prompt_are_refused():
    with pytest.raises(MapoError, match="no prompt in common"):
        paired(table({("a", 0): 1.0}), table({("b", 0): 1.0}), "judge", "cartoon")


def test_the_same_prompts_with_other_seeds_are_refused_by_name():
    with pytest.raises(MapoError, match="seeds differ"):
        paired(table({("a", 0): 1.0}), table({("a", 1): 1.0}), "judge", "cartoon")


def test_a_picture_scored_twice_is_refused():
    twice = pa.concat_tables([table({("a", 0): 1.0}), table({("a", 0): 0.5})])
    with pytest.raises(MapoError, match=r"after hold judge cartoon twice for prompt 'a picture of a', seed 0"):
        paired(table({("a", 0): 1.0}), twice, "judge", "cartoon")


@pytest.mark.parametrize("change", [{"version": "2"}, {"revision": "abc"}])
def test_numbers_of_two_versions_are_not_compared(change):
    with pytest.raises(MapoError, match="before in version 1 and after in"):
        paired(table({("a", 0): 1.0}), table({("a", 0): 1.0}, **change), "judge", "cartoon")


def test_a_table_with_two_versions_of_a_scorer_is_refused():
    mixed = pa.concat_tables([table({("a", 0): 1.0}), table({("b", 0): 1.0}, version="2", revision="abc")])
    with pytest.raises(MapoError, match=r"before hold judge cartoon in 2 versions \(1, 2 abc\)"):
        paired(mixed, table({("a", 0): 1.0, ("b", 0): 0.0}), "judge", "cartoon")
    again = pa.concat_tables([table({("a", 0): 1.0}), table({("a", 0): 1.0}, version="2")])
    with pytest.raises(MapoError, match=r"before hold judge cartoon in 2 versions"):
        paired(again, table({("a", 0): 1.0}), "judge", "cartoon")


def test_a_pair_without_a_number_is_left_out():
    before = table({("a", 0): 1.0, ("b", 0): None, ("c", 0): 0.0})
    after = table({("a", 0): None, ("b", 0): None, ("c", 0): 1.0})
    assert [p.prompt_id for p in paired(before, after, "judge", "cartoon")] == ["c"]
    with pytest.raises(MapoError, match="gave no cartoon to any pair"):
        paired(table({("a", 0): None}), table({("a", 0): 1.0}), "judge", "cartoon")


def test_shares_of_votes_make_a_win_rate():
    shares = [1.0, 0.5, 2 / 3, 0.0] * 10
    result = mean_share(shares, names(40))
    assert result.value == pytest.approx(sum(shares) / 40) and result.low < result.value < result.high
    signs = [1.0, 0.0, 1.0, -1.0] * 10
    assert win_rate(signs, names(40)) == mean_share([1.0, 0.5, 1.0, 0.0] * 10, names(40))
    assert mean_share([0.9] * 40, names(40)).conclusive


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused_by_picture(value):
    with pytest.raises(MapoError, match=r"after hold (nan|inf) as judge cartoon of prompt 'a picture of a', seed 0"):
        paired(table({("a", 0): 1.0}), table({("a", 0): value}), "judge", "cartoon")


def test_a_pair_of_which_a_picture_was_given_no_number_is_left_out():
    before = table({("a", 0): 1.0, ("b", 0): None, ("c", 0): 0.0, ("d", 0): None})
    after = table({("a", 0): 0.5, ("b", 0): 1.0, ("c", 0): None, ("d", 0): None})
    assert [(p.prompt_id, p.difference) for p in paired(before, after, "judge", "cartoon")] == [("a", -0.5)]
    with pytest.raises(MapoError, match="judge gave no cartoon to any pair of pictures"):
        paired(table({("a", 0): 1.0}), table({("a", 0): None}), "judge", "cartoon")


def test_a_metric_nobody_gave_is_refused_with_a_suggestion():
    with pytest.raises(MapoError, match=r"before have no judge cartoons\. Did you mean 'judge cartoon'\?"):
        paired(table({("a", 0): 1.0}), table({("a", 0): 1.0}), "judge", "cartoons")


# ------------------------------------------------------------------ ratios


def test_a_ratio_is_the_sum_over_the_sum_and_its_interval_is_over_prompts():
    rng = np.random.default_rng(0)
    wholes = rng.uniform(1, 5, 60)
    parts = 0.5 * wholes + rng.normal(0, 0.3, 60)
    found = ratio(parts, wholes, names(60, 3))
    assert found.value == pytest.approx(parts.sum() / wholes.sum(), rel=1e-12)
    assert found.covers(0.5) and found.conclusive and (found.pairs, found.prompts) == (60, 20)
    by_hand = stats.bootstrap(
        (parts.reshape(20, 3).sum(1), wholes.reshape(20, 3).sum(1)), lambda p, w, axis: p.sum(axis) / w.sum(axis),
        paired=True, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((by_hand.low, by_hand.high), abs=0.004)


def test_a_ratio_whose_interval_covers_nothing_is_not_conclusive_and_of_equal_weights_is_the_mean():
    values = np.tile([-1.0, 1.0, 0.2], 10)
    found = ratio(values, np.full(30, 2.0), names(30))
    assert not found.conclusive and found.covers(0)
    assert found.value == pytest.approx(mean(values, names(30)).value / 2)
    assert found.low == pytest.approx(mean(values, names(30)).low / 2, abs=1e-9)


@pytest.mark.parametrize("prompts", [20, 42, 100])
def test_three_prompts_that_agree_call_nothing_and_six_do(prompts):
    for speaking, called in ((3, False), (5, False), (6, True), (8, True)):
        differences = [1.0] * speaking + [0.0] * (prompts - speaking)
        found = win_rate(differences, names(prompts))
        assert found.conclusive is called and found.covers(0.5) is not called
        other = mean_difference([1.0] * prompts, [1.0 - d for d in differences], names(prompts))
        assert other.conclusive is called and other.covers(0.0) is not called and other.value < 0


def test_where_nothing_differs_but_by_chance_about_one_interval_in_twenty_calls_it():
    rng, prompts, called = np.random.default_rng(1), 42, 0
    for _ in range(200):
        called += win_rate(rng.choice([-1, 0, 1], prompts, p=[0.05, 0.9, 0.05]), names(prompts)).conclusive
    assert called <= 12


def test_every_interval_of_the_package_is_an_estimate():
    from mapo.check.leak import share
    from mapo.lab.study.estimates import estimate

    whole = win_rate([1, -1] * 10, [str(k) for k in range(20)])
    told = share(np.array([0.0, 1.0] * 10), np.arange(20))
    percent = estimate([np.array([[0.25, 0.75, 0.5], [0.0, 1.0, 0.5]])])
    for found in (whole, told, percent):
        assert isinstance(found, Estimate) and found.value == 0.5
        assert found.covers(0.5) and not found.covers(found.high + 0.01)


def test_percentiles_pass_over_resamples_without_a_value():
    values = np.array([0.0, 1.0, 2.0, 3.0])

    def mean_of_some(rows):
        return float("nan") if len(set(rows.tolist())) < 2 else float(values[rows].mean())

    low, high = percentiles(mean_of_some, 4, 500)
    assert 0 <= low < 1.5 < high <= 3 and (low, high) == percentiles(mean_of_some, 4, 500)
