import numpy as np
import pytest

from mapo.report.distributions import bin_edges, count_changes, draw_distribution
from mapo.statistics import PairedScores


def pairs(before, after):
    return [PairedScores("p", "p", i, b, a, "", "") for i, (b, a) in enumerate(zip(before, after, strict=True))]


def test_few_whole_numbers_get_a_bin_each():
    assert bin_edges(np.array([2.0, 9.0, 4.0])).tolist() == [k + 0.5 for k in range(1, 10)]


@pytest.mark.parametrize("values", [[3.25] * 5, [0.0, 0.0], [1e-9, 2e-9], [-7.5, 1e6], [0.1, 0.2, 0.3]])
def test_all_numbers_lie_within_the_bins(values):
    edges = bin_edges(np.array(values))
    assert (np.diff(edges) > 0).all() and np.histogram(values, edges)[0].sum() == len(values)


def test_many_numbers_get_at_most_32_bins():
    assert len(bin_edges(np.random.default_rng(0).standard_cauchy(5000))) == 33


def test_answers_are_counted_by_what_became_of_them():
    changes = count_changes(pairs([1, 0, 0, 1, 0], [1, 1, 1, 0, 0]))
    assert (changes.stayed, changes.gained, changes.lost, changes.never) == (0.2, 0.4, 0.2, 0.2)


def test_a_plot_takes_its_colours_from_the_page_and_has_names_of_its_own():
    values = np.random.default_rng(0).normal(21, 1, 60)
    plot = draw_distribution("pickscore", "in words", pairs(values, values + 0.5), "metric3")
    assert "var(--before)" in plot.svg and "var(--after)" in plot.svg and "#101112" not in plot.svg
    assert 'id="metric3-' in plot.svg and len(plot.svg) < 40_000


def test_metrics_of_numbers_get_histograms_and_those_of_yes_and_no_a_bar(world):
    world.add(lambda i: 20 + i, lambda i: 21 + i, scorer="pickscore", metric="pickscore").report()
    assert world.page.count("<svg") == 1 and world.page.count('class="stack"') == 1
    assert '>90.0\u202f%<span class="by">became yes<' in world.page
