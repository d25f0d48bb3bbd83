"""Plots as inline SVG that takes its colours from the page, so that they are at home in the dark too."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

SIZE = 9.5  # of text, in points of a figure that is about as wide on the page as drawn
# Stand-ins that only this page draws with; they become CSS variables in the SVG.
INK, FAINT, CHOSEN, REJECTED, TEXT, BEFORE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112"
VARIABLES = {
    INK: "var(--muted)",
    FAINT: "var(--line)",
    CHOSEN: "var(--after)",
    REJECTED: "var(--rejected)",
    TEXT: "var(--ink)",
    BEFORE: "var(--before)",
}


@dataclass(frozen=True)
class Plot:
    """A plot with its heading and what it says in a sentence, for those who cannot see it."""

    title: str
    note: str
    svg: str


def new_figure(x_label: str) -> tuple[Figure, Axes]:
    """A small figure in the page's manner, without a background."""
    figure = Figure(figsize=(3.7, 2.25), layout="constrained")
    axes = figure.subplots()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelcolor=INK, length=3, width=0.7, labelsize=SIZE)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK, fontsize=SIZE)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    return figure, axes


def _short(value: float, _: object = None) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def to_svg(figure: Figure, name: str) -> str:
    """The figure as inline SVG: text stays text, colours become the page's, names are unique on the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg aria-hidden="true" \1>', text, count=1)
    text = re.sub(r"font-family: [^;\"]*;|xlink:(?=href)", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
