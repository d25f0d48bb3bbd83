"""Training curves of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from mapo.errors import MapoError
from mapo.files import why_not
from mapo.pages.svg import CHOSEN, INK, REJECTED, SIZE, TEXT, Plot, new_figure, to_svg
from mapo.statistics import smooth
from mapo.texts import read_lines

FIRST = 20  # steps that later errors are measured against, at most
POINTS = 300  # per curve, at most

Floats = NDArray[np.float64]


def read_metrics(run: Path) -> dict[str, Floats]:
    """The columns of ``run/metrics.jsonl``; a value that a step lacks is NaN."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise MapoError(f"{run} is not a run{why_not(run, path.name)}. Give the folder that `mapo train` wrote.")
    rows: list[Mapping[str, object]] = list(read_lines(path))
    if any(not isinstance(row, dict) for row in rows):
        raise MapoError(f"{path} is damaged: a line is not an object. Run `mapo train` again.")
    names = {k for row in rows for k, v in row.items() if isinstance(v, int | float)}
    return {n: np.array([_float(row.get(n)) for row in rows], np.float64) for n in sorted(names)}


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def draw_curves(metrics: Mapping[str, Floats]) -> list[Plot]:
    """Denoising errors relative to the first steps, margin and accuracy: those that the run recorded."""
    curves: list[Plot] = []
    errors = [n for n in ("error_chosen", "error_rejected") if n in metrics]
    if errors:
        curves.append(_errors(metrics, errors))
    if "margin" in metrics:
        curves.append(_single(metrics, "margin", "Margin", "error of rejected minus error of chosen", None))
    if "accuracy" in metrics:
        curves.append(_single(metrics, "accuracy", "Accuracy", "pairs in which chosen has the smaller error", 0.5))
    return curves


def _column(metrics: Mapping[str, Floats], name: str) -> tuple[Floats, Floats]:
    """Pairs seen and values, where there is a value."""
    values = metrics[name]
    seen = metrics.get("pairs_seen", metrics.get("step", np.arange(1, len(values) + 1, dtype=np.float64)))
    there = np.isfinite(values) & np.isfinite(seen)
    return seen[there], values[there]


def _reach(count: int) -> int:
    return max(1, count // 25)


def _thin(count: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.intp))


def _errors(metrics: Mapping[str, Floats], names: Sequence[str]) -> Plot:
    figure, axes = _figure(metrics)
    words: list[str] = []
    first = 1
    for name, colour, dashes in zip(names, (CHOSEN, REJECTED), ("-", (0, (5, 1.5))), strict=False):
        seen, values = _column(metrics, name)
        if not len(values):
            continue
        first = max(1, min(FIRST, len(values) // 10))
        start = values[:first].mean()
        if not start > 0:
            continue
        line = smooth(values / start, _reach(len(values)))
        keep = _thin(len(line))
        label = name.removeprefix("error_")
        axes.plot(seen[keep], line[keep], color=colour, linestyle=dashes, linewidth=1.6, label=label)
        last = float((values[-first:] / start).mean() - 1)
        words.append(f"{label} {100 * last:+.1f}\u202f%".replace("-", "\u2212"))
    axes.axhline(1, color=INK, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, fontsize=SIZE)
    steps = "step" if first == 1 else f"{first} steps"
    note = f"Relative to the first {steps}. At the end, over as many: {', '.join(words)}." if words else ""
    return Plot("Denoising error", note, to_svg(figure, "errors"))


def _single(metrics: Mapping[str, Floats], name: str, title: str, meaning: str, even: float | None) -> Plot:
    figure, axes = _figure(metrics)
    seen, values = _column(metrics, name)
    note = f"{meaning[0].upper()}{meaning[1:]}."
    if len(values):
        line = smooth(values, _reach(len(values)))
        keep = _thin(len(line))
        axes.plot(seen[keep], line[keep], color=TEXT, linewidth=1.6)
        tail = max(1, min(FIRST, len(values) // 10))
        start, end = values[:tail].mean(), values[-tail:].mean()
        note += f" From {start:.3g} to {end:.3g}.".replace("-", "\u2212")
    axes.axhline(0 if even is None else even, color=INK, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    if even is not None:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f}\u202f%"))
    return Plot(title, note, to_svg(figure, name))


def _figure(metrics: Mapping[str, Floats]) -> tuple[Figure, Axes]:
    figure, axes = new_figure("pairs seen" if "pairs_seen" in metrics else "step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes
