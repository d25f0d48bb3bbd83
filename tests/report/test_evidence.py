import json
import re

import pytest
from worlds import Parsed, World, make_images, picture, score_rows

from mapo.errors import MapoError
from mapo.report.report import write_report
from mapo.sample.folder import png_bytes
from mapo.score.table import write_scores


def test_a_score_of_a_picture_that_was_made_again_is_stale(world):
    world.rows[3]["image"] = "0" * 64
    with pytest.raises(
        MapoError, match=r"scores\.parquet has 1 score of other pictures.*'prompt 1' seed 1 .*changed since"
    ):
        world.report()


def test_scores_of_pictures_from_elsewhere_are_refused(world):
    world.rows[3] = {**world.rows[3], "seed": 99}
    with pytest.raises(MapoError, match="in neither folder"):
        world.report()


def test_scores_may_come_in_several_files_and_be_told_twice(world):
    half = len(world.rows) // 2
    for name, rows in (("a", world.rows[:half]), ("b", world.rows[half:]), ("c", world.rows[:5])):
        write_scores(world.root / f"{name}.parquet", rows)
    files = [world.root / f"{name}.parquet" for name in "abc"]
    apart = write_report(world.root / "before", world.root / "after", files, world.root / "r.html", "cartoon")
    assert apart["comparisons"] == world.report()["comparisons"]


def test_a_missing_picture_is_named(world):
    (world.root / "after" / world.after[2].file).unlink()
    with pytest.raises(MapoError, match=re.escape(world.after[2].file)):
        world.report()


def test_a_picture_that_is_not_the_manifests_is_refused(world):
    (world.root / "after" / world.after[2].file).write_bytes(png_bytes(picture("another")))
    with pytest.raises(MapoError, match="its hash differs"):
        world.report()


def test_folders_with_other_seeds_are_not_compared(tmp_path):
    with pytest.raises(MapoError, match="the prompts are the same, but the seeds differ"):
        World(tmp_path, seeds=(5, 6)).report()


def test_folders_with_other_prompts_are_not_compared(tmp_path):
    World(tmp_path)
    make_images(tmp_path / "other", "other", ["something else"])
    with pytest.raises(MapoError, match="no prompt in common"):
        write_report(tmp_path / "before", tmp_path / "other", [], tmp_path / "r.html")


def test_pictures_without_a_partner_are_counted_and_named(tmp_path):
    with pytest.raises(
        MapoError, match=r"after lacks 15 pictures that .*before has: 'prompt 0' seed 1; .* and 10 more"
    ):
        World(tmp_path, seeds=(0,)).report()


def test_two_pictures_of_one_prompt_and_seed_in_a_folder_are_refused(world):
    make_images(world.root / "after", "after", ["prompt 3"], seeds=(1,))
    with pytest.raises(MapoError, match="two pictures for 'prompt 3' seed 1"):
        world.report()


def test_a_goal_that_no_scorer_gave_is_refused_with_a_suggestion(world):
    with pytest.raises(MapoError, match=r"no scorer gave 'cartoons'\. Did you mean 'cartoon'\?"):
        world.report("cartoons")


def test_a_pair_scored_on_one_side_only_is_refused(world):
    world.rows = world.rows[:-2]
    with pytest.raises(MapoError, match="only one picture of 2 pairs"):
        world.report()


def test_a_pair_scored_on_neither_side_is_counted(world):
    world.rows = [r for r in world.rows if r["prompt"] != "prompt 4"]
    assert "mini-search gave no cartoon to 2 of 30 pairs." in world.report()["cautions"]


def test_a_pair_of_which_a_picture_was_given_no_number_is_counted_as_missing(world):
    world.rows[3]["value"] = None
    world.rows[-2]["value"] = None
    world.add(lambda i: 0, lambda i: 0, metric="diversity")
    for row in world.rows:
        if row["metric"] == "diversity":
            row["value"] = None
    summary = world.report()
    assert [(row["metric"], row["win_rate"]["pairs"]) for row in summary["comparisons"]] == [("cartoon", 28)]
    said = "mini-search: 2 pictures without a number for cartoon (1 before, 1 after); 2 of 30 pairs are left out of it."
    assert said in summary["cautions"]
    with pytest.raises(MapoError, match="no pair of pictures has a number for 'diversity'"):
        world.report("diversity")


def test_no_scores_at_all_are_refused(world):
    world.rows = []
    with pytest.raises(MapoError, match="no scores of these pictures"):
        world.report()


def test_different_sampling_before_and_after_is_said(tmp_path):
    summary = World(tmp_path, steps=20, noise_seed=7).report()
    assert any("steps is 16 before and 20 after" in c for c in summary["cautions"])
    assert any("30 of 30 pairs did not start from the same noise" in c for c in summary["cautions"])


def test_pictures_that_did_not_change_tie_and_are_counted(tmp_path):
    make_images(tmp_path / "after", "before", [f"prompt {i}" for i in range(15)], model="tuned")
    images = make_images(tmp_path / "before", "before", [f"prompt {i}" for i in range(15)])
    write_scores(tmp_path / "s.parquet", score_rows(images, lambda i: i % 2))
    summary = write_report(tmp_path / "before", tmp_path / "after", [tmp_path / "s.parquet"], tmp_path / "r.html")
    assert summary["comparisons"][0]["win_rate"]["value"] == 0.5
    assert (summary["call"], summary["pairs"]) == ("undecided", 30)
    assert any("30 of 30 pairs show the very same picture" in c for c in summary["cautions"])


def test_bounds_that_the_data_cannot_give_are_unknown_and_not_infinite(tmp_path):
    world = World(tmp_path, prompts=1)
    summary = world.add(lambda i: 21.5, lambda i: 21.9 + i, metric="pickscore").report("pickscore")
    assert summary["headline"]["difference"]["low"] is None
    assert "unknown" in Parsed(world.page).text and "inf" not in json.dumps(summary)


def test_pictures_without_a_number_are_counted_and_their_pairs_left_out(world):
    world.add(lambda i: None if i == 3 else 1.0, lambda i: None if i in (3, 7) else 2.0, scorer="vlm", metric="rating")
    summary = world.report()
    (row,) = [c for c in summary["comparisons"] if c["scorer"] == "vlm"]
    assert (row["win_rate"]["pairs"], row["pictures_without_a_number"]) == (28, 3)
    said = "vlm: 3 pictures without a number for rating (1 before, 2 after); 2 of 30 pairs are left out of it."
    assert said in summary["cautions"]


def test_a_scorer_that_gave_no_numbers_at_all_is_named_and_not_shown(world):
    world.add(lambda i: None, lambda i: 1.0, scorer="vlm", metric="rating")
    summary = world.report()
    assert "vlm gave no pair of pictures a number for rating, so it is not shown." in summary["cautions"]
    assert [c["scorer"] for c in summary["comparisons"]] == ["mini-search"]
    with pytest.raises(MapoError, match="no pair of pictures has a number for 'rating'"):
        world.report("rating")
    world.rows = [row for row in world.rows if row["scorer"] == "vlm"]
    with pytest.raises(MapoError, match=r"no scores to compare.*vlm gave no pair of pictures a number"):
        world.report(None)


def test_a_score_that_is_nan_is_refused_by_picture(world):
    world.rows[3]["value"] = float("nan")
    with pytest.raises(MapoError, match="hold nan as mini-search cartoon of prompt 'prompt 1', seed 1"):
        world.report()


def test_scores_of_two_versions_are_refused(world):
    world.rows[3]["version"] = "0"
    with pytest.raises(MapoError, match=r"before hold mini-search cartoon in 2 versions \(0 r1, 1 r1\)"):
        world.report()


def test_scores_before_and_after_in_different_versions_are_refused(world):
    for row in world.rows[30:]:
        row["revision"] = "r2"
    with pytest.raises(MapoError, match="scored before in version 1 r1 and after in 1 r2"):
        world.report()
