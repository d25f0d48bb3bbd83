"""How a metric's numbers are spread before and after, and how yes and no answers have changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mapo.pages.svg import BEFORE, CHOSEN, INK, SIZE, Plot, new_figure, to_svg
from mapo.statistics import PairedScores

BINS = (8, 32)  # as few and as many as are drawn
NOTCHES = 20  # whole numbers of up to so many values get a bin each

Floats = NDArray[np.float64]


def bin_edges(values: Floats) -> Floats:
    """Bins for both sides together: a value each for few whole numbers (a scale of 1 to 10), else by their number."""
    low, high = float(values.min()), float(values.max())
    if high - low < NOTCHES and (values == np.round(values)).all():
        return np.arange(low - 0.5, high + 1)
    if low == high:
        reach = abs(low) * 1e-3 or 0.5
        low, high = low - reach, high + reach
    count = len(np.histogram_bin_edges(values, "auto")) - 1
    return np.linspace(low, high, int(np.clip(count, *BINS)) + 1)


def draw_distribution(title: str, note: str, pairs: Sequence[PairedScores], name: str) -> Plot:
    """Histograms of a metric before and after, as shares of the pictures; dashed lines are the means."""
    sides = [np.array(v, np.float64) for v in ([p.before for p in pairs], [p.after for p in pairs])]
    edges = bin_edges(np.concatenate(sides))
    figure, axes = new_figure("")
    for values, colour, label in zip(sides, (BEFORE, CHOSEN), ("before", "after"), strict=True):
        shares = np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.22)
        axes.stairs(shares, edges, color=colour, linewidth=1.5, label=label)
        axes.axvline(float(values.mean()), color=colour, linewidth=1.1, linestyle=(0, (3, 2)))
    if np.array_equal(edges % 1, np.full(len(edges), 0.5)):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, fontsize=SIZE)
    return Plot(title, note, to_svg(figure, name))


@dataclass(frozen=True)
class Changes:
    """Shares of pairs by the answer before and after: yes both times, no then yes, yes then no, no both times."""

    stayed: float
    gained: float
    lost: float
    never: float


def count_changes(pairs: Sequence[PairedScores]) -> Changes:
    """Of a metric that is 0 or 1."""
    first, second = (np.array(v, bool) for v in ([p.before for p in pairs], [p.after for p in pairs]))
    shares = (first & second, ~first & second, first & ~second, ~first & ~second)
    return Changes(*(float(share.mean()) for share in shares))
