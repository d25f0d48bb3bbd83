"""Pairs to look at: some at random, and those that most deserve a look, each with the reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageStat

from mapo.check.findings import ALIKE, closeness, contradictions, statistic
from mapo.check.leak import Floats, Leak, Together
from mapo.check.pictures import PictureTable
from mapo.check.rows import Rows
from mapo.errors import MapoError
from mapo.pages.thumbs import shrink
from mapo.pairs import PairSet

SHOWN = 24
PER_REASON = 6


@dataclass(frozen=True)
class Side:
    """A picture of a card: a data URI, or why there is none; ``veiled`` when it stays blurred until asked for."""

    uri: str
    why: str
    tiny: bool
    veiled: bool
    facts: str


@dataclass(frozen=True)
class Card:
    """A pair on the page."""

    row: int
    prompt: str
    split: str
    preference: float
    chosen: Side
    rejected: Side | None  # None where the set has none
    reasons: tuple[str, ...] = ()


def random_rows(rows: Rows, pictures: PictureTable, seed: int = 0) -> list[int]:
    """Rows drawn without a look at anything but whether both pictures can be shown, in the set's order."""
    read = pictures.read
    fit = np.flatnonzero(read[rows.chosen] & read[rows.rejected])
    drawn = np.random.default_rng(seed).permutation(len(fit))[:SHOWN]
    return sorted(int(i) for i in fit[drawn])


def suspicious_rows(
    rows: Rows, pictures: PictureTable, values: dict[str, Floats], leaks: list[Leak], together: Together
) -> dict[int, list[str]]:
    """Row → why it is suspicious, kind by kind; where there are too many, none crowds out another."""
    found, read = pictures.found, pictures.read
    both = read[rows.chosen] & read[rows.rejected]
    reversed_, cycle = contradictions(rows)
    same = both & (rows.chosen_content == rows.rejected_content) & rows.has_rejected
    apart = closeness(rows, pictures)
    area = found["width"] * found["height"]
    ratio = np.abs(np.nan_to_num(np.log(area[rows.chosen] / area[rows.rejected])))
    larger, near = rows.trained & (ratio > 0.01), rows.trained & ~same & (apart < ALIKE)
    kinds: list[list[tuple[int, str]]] = [
        [(i, "The same picture on both sides") for i in _first(same)],
        [(i, "Contradicted by another pair of this prompt") for i in _first(reversed_)],
        [(i, "On a circle of preferences") for i in _first(cycle)],
        [(i, f"{np.exp(ratio[i]):.3g} times as many pixels on one side") for i in _least(-ratio, larger)],
        [(i, "Nearly the same picture") for i in _least(apart, near)],
    ]  # fmt: skip
    if together.share.tells:
        told = np.nan_to_num(together.margins)
        names = [leak.name for leak in leaks]
        for sign, words in ((1, "Told by statistics alone"), (-1, "Statistics would choose the other picture")):
            extreme = _least(-sign * told, both & (sign * told > 0))
            kinds.append([(i, f"{words}: {_most_telling(i, rows, values, names)}") for i in extreme])
    chosen = list(dict.fromkeys(kind[turn][0] for turn in range(PER_REASON) for kind in kinds if turn < len(kind)))[
        :SHOWN
    ]
    reasons: dict[int, list[str]] = {}
    for row, words in (reason for kind in kinds for reason in kind):
        if row in chosen:
            reasons.setdefault(row, []).append(words)
    return reasons


def _first(flags: Any) -> list[int]:
    return [int(i) for i in np.flatnonzero(flags)[:PER_REASON]]


def _least(values: Floats, flags: Any) -> list[int]:
    places = np.flatnonzero(flags)
    return [int(i) for i in places[np.argsort(values[places], kind="stable")[:PER_REASON]]]


def _most_telling(row: int, rows: Rows, values: dict[str, Floats], names: list[str]) -> str:
    """The statistic in which the two pictures differ most, measured by how much pairs differ in it."""
    best, words = 0.0, "no single one stands out"
    for name in names:
        first, second = values[name][rows.chosen], values[name][rows.rejected]
        spread = float(np.nanstd(np.concatenate([first, second])))
        apart = abs(first[row] - second[row]) / spread if spread > 0 else 0.0
        if apart > best:
            best, words = float(apart), f"{statistic(name)} {_short(first[row])} against {_short(second[row])}"
    return words


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Gallery:
    """Makes cards; each picture is embedded once however often it is asked for."""

    def __init__(self, pairs: PairSet, rows: Rows, pictures: PictureTable, veiled: Collection[str] = ()) -> None:
        self.pairs, self.rows, self.pictures = pairs, rows, pictures
        self.veiled: set[int] = set()
        if pairs.info.get("sensitive"):  # rejected anywhere is veiled everywhere, and of a tie both are
            ties = rows.chosen_content[rows.preference == 0.5]
            self.veiled = {*rows.rejected_content.tolist(), *ties.tolist()}
        if veiled:  # by the names of the files that pictures were made from
            named = [row for row, pair in enumerate(pairs) if pair.meta.get("file") in veiled]
            self.veiled.update(rows.chosen_content[named].tolist())
        self._ready: dict[int, tuple[str, bool]] = {}

    def card(self, row: int, reasons: list[str] | None = None) -> Card:
        """The card of a row."""
        rows = self.rows
        said = [self._measured(row) if r == "Nearly the same picture" else r for r in reasons or ()]
        return Card(
            row, rows.texts[row], rows.split[row], float(rows.preference[row]),
            self._side(int(rows.chosen[row]), int(rows.chosen_content[row])),
            self._side(int(rows.rejected[row]), int(rows.rejected_content[row])) if rows.has_rejected else None,
            tuple(said),
        )  # fmt: skip

    def _side(self, place: int, content: int) -> Side:
        found = self.pictures.found[place]
        if not self.pictures.read[place]:
            return Side("", self.pictures.why.get(place, "kept as latents only"), False, False, "")
        if place not in self._ready:
            small, _, tiny = shrink(self.pairs.image(self.pictures.names[place]))
            self._ready[place] = small, tiny
        quality = "" if np.isnan(found["jpeg_quality"]) else f" q{found['jpeg_quality']:.0f}"
        facts = f"{found['width']:.0f} × {found['height']:.0f} {found['format']}{quality}, {_size(found['bytes'])}"
        return Side(self._ready[place][0], "", self._ready[place][1], content in self.veiled, facts)

    def _measured(self, row: int) -> str:
        """How nearly the same the two pictures of a row are, pixel by pixel."""
        try:
            places = self.rows.chosen[row], self.rows.rejected[row]
            first, second = (self.pairs.image(self.pictures.names[k]) for k in places)
        except MapoError:  # somebody changed the set meanwhile
            return "Nearly the same picture"
        if first.size != second.size:
            second = second.resize(first.size, Image.Resampling.LANCZOS)
        apart = float(np.mean(ImageStat.Stat(ImageChops.difference(first, second)).mean))
        return f"Nearly the same picture: pixels differ by {apart:.2g} of 255 grey levels"


def _size(number: float) -> str:
    for size, unit in ((1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g}\u00a0{unit}"
    return f"{number:.0f} bytes"
