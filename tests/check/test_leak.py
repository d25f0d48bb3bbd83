"""The leak test's numbers, against counting by hand and against chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sets import check, named, write_set

from data_fixtures import encoded, noise
from mapo.check.leak import (
    FOLDS,
    auc,
    find_leaks,
    independent,
    paired_auc,
    share,
    sign_tests,
    statistics,
    tell_together,
)
from mapo.check.pictures import PICTURE, PictureTable

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


# ------------------------------------------------------------------ few prompts


def test_a_sign_test_is_corrected_for_their_number_and_knows_two_of_one_thing():
    signs = {
        "width": np.array([1, 1, 1, 1, 1, 1, 1, 1, 0.0]),
        "pixels": np.array([-1, -1, -1, -1, -1, -1, -1, -1, 0.0]),  # parts the pairs as width does
        "exif": np.array([1, 1, 1, 1, 1, 0, 0, 0, 0.0]),
        "alpha": np.array([1, -1, 0, 0, 0, 0, 0, 0, 0.0]),
        "rotated": np.zeros(9),  # no test at all
    }
    found = sign_tests(signs)
    want = {"width": 3 * 2 / 2**8, "pixels": 3 * 2 / 2**8, "exif": 2 * 2 / 2**5, "alpha": 1, "rotated": 1}
    assert found == pytest.approx(want)


def test_only_pairs_that_share_no_picture_are_counted_one_by_one():
    chosen, rejected = np.array([0, 0, 2, 4, 5, 6]), np.array([1, 2, 3, 1, 6, 7])
    assert independent(chosen, rejected).tolist() == [True, False, True, False, True, False]


def picture(draw, *, kind="PNG", size=(24, 16), mode="RGB", **how):
    made = noise(int(draw.integers(1 << 30)), size).convert(mode)
    return encoded(made, kind, **how)


def exif():
    from PIL import Image

    made = Image.Exif()
    made[0x010E] = "a description"
    return made


SHORTCUTS = {
    "file type": (lambda d: picture(d, kind="JPEG"), picture, "file type JPEG"),
    "quality": (
        lambda d: picture(d, kind="JPEG", quality=95), lambda d: picture(d, kind="JPEG", quality=60), "JPEG quality",
    ),
    "colour mode": (lambda d: picture(d, mode="L"), picture, "colour mode L"),
    "transparency": (lambda d: picture(d, mode="RGBA"), picture, "transparency"),
    "EXIF": (lambda d: picture(d, exif=exif()), picture, "EXIF data"),
    "upscaled": (lambda d: picture(d, size=(48, 32)), picture, "width"),
    "another shape": (lambda d: picture(d, size=(16, 24)), picture, "aspect"),
    "all of one size": (
        picture, lambda d: picture(d, size=[(20, 16), (28, 16), (24, 12), (24, 20)][d.integers(4)]), "size 24 × 16",
    ),
    "all of one quality": (
        lambda d: picture(d, kind="JPEG", quality=75),
        lambda d: picture(d, kind="JPEG", quality=int(d.choice([60, 65, 85, 90]))), "JPEG quality 75",
    ),
}  # fmt: skip


@pytest.mark.parametrize("prompts", [1, 2, 9])
@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_shortcut_in_the_files_is_found_from_a_dozen_pairs_of_any_number_of_prompts(tmp_path, name, prompts):
    one, other, words = SHORTCUTS[name]
    draw = np.random.default_rng(prompts)
    rows = [(f"prompt {k % prompts}", one(draw), other(draw)) for k in range(12)]
    found = named(check(write_set(tmp_path / "pairs", rows)))
    assert found["leak_file"]["severity"] == "error" and words in found["leak_file"]["says"]
    assert "fewer than 10 prompts, so pairs that share no picture were counted one by one" in found["leak_file"]["says"]
    turned = named(check(write_set(tmp_path / "turned", [(p, b, a) for p, a, b in rows])))
    assert words in turned["leak_file"]["says"]


def test_jpegs_against_pngs_of_one_prompt_are_found(tmp_path):
    draw = np.random.default_rng(0)
    rows = [("one prompt", picture(draw, kind="JPEG"), picture(draw)) for _ in range(36)]
    summary = check(write_set(tmp_path / "pairs", rows))
    assert summary["errors"] == 1
    says = named(summary)["leak_file"]["says"]
    assert says.startswith(
        "Leak: the file gives away which picture was chosen: file type JPEG. "
        "Chosen has more of it in 100 % of pairs (95 % interval 90 % to 100 %)."
    )
    assert all(len(sentence.split()) <= 25 for sentence in says.split(". "))
    assert "36 differ in it (exact sign test, p = 2.9e-11)" in says
    assert "file size" in named(summary)["leak_content"]["says"]


@pytest.mark.parametrize(("pairs", "name"), [(3, "leak_unsure"), (5, "leak_unsure"), (6, "leak_file")])
def test_a_handful_of_pairs_is_enough_and_fewer_are_told_as_what_they_are(tmp_path, pairs, name):
    draw = np.random.default_rng(0)
    rows = [("one prompt", picture(draw, kind="JPEG"), picture(draw), {"split": "train"}) for _ in range(pairs)]
    summary = check(write_set(tmp_path / "pairs", rows))
    found = named(summary)
    assert ("cannot tell whether there is a leak" in summary["verdict"]) == (name == "leak_unsure")
    assert {"leak_unsure", "leak_file"} & found.keys() == {name}
    assert "file type JPEG" in found[name]["says"] and (pairs >= 6 or f"all {pairs} pairs" in found[name]["says"])


def test_one_picture_that_wins_many_times_is_no_leak(tmp_path):
    draw = np.random.default_rng(0)
    best = picture(draw, kind="JPEG")
    rows = [("one prompt", best, picture(draw)) for _ in range(30)]
    assert not {"leak_file", "leak_content", "leak_unsure"} & named(check(write_set(tmp_path / "pairs", rows))).keys()


def test_fair_sets_of_few_prompts_raise_no_more_false_alarms_than_the_test_claims():
    """Pictures of two file types, three colour modes, many sizes and qualities, all drawn without a look at the side."""
    alarms = {True: 0, False: 0}
    for turn in range(200):
        draw, count = np.random.default_rng(turn), 8 + turn % 30
        found = np.zeros(2 * count, PICTURE)
        found["content"], found["format"] = np.arange(2 * count), draw.choice(["JPEG", "PNG"], 2 * count)
        found["mode"], found["exif"] = draw.choice(["RGB", "RGBA", "P"], 2 * count), draw.random(2 * count) < 0.3
        found["alpha"], found["width"] = found["mode"] == "RGBA", 128 * draw.integers(1, 5, 2 * count)
        found["height"] = draw.permutation(found["width"])
        found["jpeg_quality"] = np.where(found["format"] == "JPEG", draw.integers(60, 95, 2 * count), np.nan)
        for field in ("brightness", "saturation", "contrast", "sharpness", "bytes"):
            found[field] = draw.random(2 * count)
        values = statistics(PictureTable([str(k) for k in range(2 * count)], found, {}))
        leaks = find_leaks(values, *sides(count, 1), exact=True)
        for kind in alarms:
            alarms[kind] += any(leak.tells for leak in leaks if leak.of_the_file == kind)
    assert max(alarms.values()) <= 200 * 0.05
