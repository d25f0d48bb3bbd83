import math
import statistics

import pytest
from worlds import Parsed, World

from mapo.errors import MapoError

BASE = [0.1 * k for k in range(15)]  # a prompt's mean before; seeds lie 0.02 to either side of it


def guarded(world, metric, shift, before=lambda i: BASE[i // 2] + 0.02 * (-1) ** i):
    return world.add(before, lambda i: before(i) + shift, scorer="guards", metric=metric)


def test_the_spread_is_that_of_the_prompts_means_before(world):
    (guard,) = guarded(world, "saturation", 0.2).report()["guards"]
    spread = statistics.stdev(BASE)
    assert guard["spread"] == pytest.approx(spread)
    assert guard["shift"] == pytest.approx(0.2 / spread)
    assert guard["before"]["value"] == pytest.approx(statistics.mean(BASE))


@pytest.mark.parametrize(("factor", "warns"), [(0.99, False), (1.01, True), (-1.01, True), (-0.99, False)])
def test_a_guard_that_moves_by_more_than_its_spread_warns(world, factor, warns):
    summary = guarded(world, "edge_density", factor * statistics.stdev(BASE)).report()
    assert summary["guards"][0]["warns"] is warns
    said = [c for c in summary["cautions"] if c.startswith("This looks over-optimised: edge density went from ")]
    assert len(said) == warns
    assert ("<mark>looks over-optimised</mark>" in world.page) is warns
    if warns:
        assert "1.0 times its spread between prompts before" in said[0]


def test_guards_that_warn_together_say_it_once(world):
    summary = guarded(guarded(world, "saturation", 5), "diversity", -5).report(None)
    said = [c for c in summary["cautions"] if c.startswith("This looks over-optimised: ")]
    assert len(said) == 1 and said[0].count("Look at the pictures") == 1
    assert "diversity went from" in said[0] and "; saturation went from" in said[0]


def test_guards_take_no_part_in_the_verdict(world):
    alone = world.report(None)
    summary = guarded(guarded(world, "saturation", 5), "diversity", -5).report(None)
    assert summary["verdict"] == alone["verdict"] and summary["comparisons"] == alone["comparisons"]
    assert [g["metric"] for g in summary["guards"]] == ["diversity", "saturation"]


def test_a_guard_cannot_be_the_goal(world):
    with pytest.raises(MapoError, match="saturation is a guard, which has no better or worse"):
        guarded(world, "saturation", 1).report("saturation")


def test_guards_alone_compare_nothing(world):
    world.rows = []
    with pytest.raises(MapoError, match="no scores to compare"):
        guarded(world, "saturation", 1).report(None)


def test_a_guard_that_never_differed_before_warns_of_any_move(world):
    summary = guarded(world, "saturation", 0.01, before=lambda i: 0.5).report()
    assert summary["guards"][0]["warns"] and summary["guards"][0]["shift"] is None
    assert "more than its spread" in summary["cautions"][0]
    world.rows = world.rows[:60]
    assert not guarded(world, "saturation", 0, before=lambda i: 0.5).report()["guards"][0]["warns"]


def test_few_prompts_do_not_look_over_optimised(tmp_path):
    world = guarded(World(tmp_path, prompts=4), "saturation", 3.0)
    assert not world.report()["guards"][0]["warns"]


def test_with_one_prompt_the_spread_is_unknown_and_nothing_warns(tmp_path):
    world = World(tmp_path, prompts=1)
    summary = world.add(lambda i: i, lambda i: i + 5, scorer="guards", metric="saturation").report()
    assert summary["guards"][0]["spread"] is None and not summary["guards"][0]["warns"]
    assert "one prompt only" in Parsed(world.page).text and not math.isnan(summary["guards"][0]["difference"]["value"])


def test_a_guard_without_numbers_is_said(world):
    summary = world.add(lambda i: None, lambda i: None, scorer="guards", metric="diversity").report()
    assert "Diversity needs two seeds per prompt." in summary["cautions"]
    assert summary["guards"] == [] and 'id="guards"' not in world.page


def test_every_guard_has_a_plot(world):
    guarded(guarded(world, "saturation", 0.1), "colour_entropy", 0.1).report()
    assert world.page.count("<svg") == 2 and "colour entropy" in Parsed(world.page).text
