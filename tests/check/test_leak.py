"""The leak test's numbers, against counting by hand and against chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mapo.check.leak import FOLDS, auc, paired_auc, share, tell_together

NUMBERS = st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=1, max_size=30)


def columns(pairs):
    return (np.array(side, float) for side in zip(*pairs, strict=True))


@given(NUMBERS)
def test_auc_is_the_share_of_all_comparisons_won_with_ties_half(pairs):
    x, y = columns(pairs)
    wins = [(a > b) + (a == b) / 2 for a, b in itertools.product(x, y)]
    assert auc(x, y) == pytest.approx(np.mean(wins))


@given(NUMBERS)
def test_paired_auc_is_the_share_of_pairs_won_with_ties_half(pairs):
    x, y = columns(pairs)
    found = paired_auc(x, y, np.arange(len(x)))
    assert found.value == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
    assert found.low <= found.value <= found.high


@given(NUMBERS, st.data())
def test_swapping_the_sides_mirrors_both_aucs_and_the_interval(pairs, data):
    x, y = columns(pairs)
    prompts = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(x), max_size=len(x))))
    one, other = paired_auc(x, y, prompts), paired_auc(y, x, prompts)
    assert auc(x, y) == pytest.approx(1 - auc(y, x))
    assert (one.value, one.low, one.high) == pytest.approx((1 - other.value, 1 - other.high, 1 - other.low))
    assert one.tells == other.tells


@given(NUMBERS)
def test_a_monotone_change_of_scale_changes_nothing(pairs):
    x, y = columns(pairs)
    prompts = np.arange(len(x))
    assert auc(x**3 + 7, y**3 + 7) == auc(x, y)
    assert paired_auc(x**3 + 7, y**3 + 7, prompts) == paired_auc(x, y, prompts)


def test_where_all_prompts_agree_the_interval_is_the_exact_one_over_prompts():
    found = share(np.ones(12), np.arange(12))
    exact = stats.binomtest(12, 12).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    repeated = share(np.ones(120), np.repeat(np.arange(12), 10))
    assert repeated.prompts == 12 and repeated.pairs == 120
    assert repeated.low < exact.low + 0.02  # ten pairs of a prompt are not ten prompts


def test_pairs_of_one_prompt_alone_say_nothing():
    found = share(np.ones(500), np.zeros(500))
    assert (found.low, found.high, found.tells) == (0, 1, False)


def test_nothing_but_ties_is_one_half_for_sure():
    found = share(np.full(30, 0.5), np.arange(30))
    assert (found.value, found.low, found.high, found.tells) == (0.5, 0.5, 0.5, False)


@pytest.mark.parametrize("truth", [0.5, 0.8])
def test_the_interval_covers_the_truth_although_pairs_of_a_prompt_go_together(truth):
    draw = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 6)
    covered = alone = 0
    for _ in range(400):
        chances = draw.beta(2 * truth, 2 * (1 - truth), 40)  # every prompt has its own
        values = (draw.random(240) < chances[prompts]).astype(float)
        found, ignorant = share(values, prompts), share(values, np.arange(240))
        covered += found.low <= truth <= found.high
        alone += ignorant.low <= truth <= ignorant.high
    assert covered >= 0.93 * 400
    assert alone < 0.85 * 400  # what would be claimed if every pair counted as independent


def sides(count, per_prompt=2):
    return np.arange(count), np.arange(count, 2 * count), np.arange(count) // per_prompt


def test_together_finds_a_leak_that_is_in_no_single_statistic():
    draw = np.random.default_rng(0)
    one, other = draw.normal(0, 1, (2, 800))
    other[:400] = -one[:400] + 1  # for the chosen the two add up to 1, each alone is nearly even
    other[400:] = -one[400:]
    values = {"brightness": one, "contrast": other}
    found = tell_together(values, *sides(400))
    assert found.share.value > 0.95 and found.share.tells
    assert found.margins.shape == (400,) and (np.sign(found.margins) > 0).mean() == found.share.value


def test_together_finds_nothing_in_noise():
    draw = np.random.default_rng(1)
    values = {f"noise {k}": draw.normal(size=1000) for k in range(10)}
    found = tell_together(values, *sides(500))
    assert found.share.low < 0.5 < found.share.high


def test_together_is_the_same_when_the_sides_are_swapped():
    draw = np.random.default_rng(2)
    values = {"brightness": draw.normal(size=200) + np.repeat([0.5, 0], 100), "width": draw.integers(1, 9, 200) * 1.0}
    first, second, prompts = sides(100)
    one, other = tell_together(values, first, second, prompts), tell_together(values, second, first, prompts)
    assert one.share == other.share
    np.testing.assert_allclose(one.margins, other.margins, atol=1e-9)


def test_what_is_not_known_is_no_difference():
    draw = np.random.default_rng(3)
    brightness = draw.normal(size=200)
    unknown = np.full(200, np.nan)
    one = tell_together({"brightness": brightness}, *sides(100))
    other = tell_together({"brightness": brightness, "jpeg_quality": unknown}, *sides(100))
    assert one.share == other.share


@pytest.mark.parametrize("count", [0, 1, FOLDS - 1])
def test_together_says_nothing_with_fewer_prompts_than_folds(count):
    found = tell_together({"brightness": np.arange(2.0 * count)}, *sides(count, 1))
    assert (found.share.low, found.share.high, found.share.tells) == (0, 1, False)
    assert np.isnan(found.margins).all()
