"""Pictures ready for the page, and which of them stand where: pairs, and what a run drew while it was trained."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from mapo.errors import MapoError
from mapo.models.checkpoints import pictures
from mapo.pages.thumbs import THUMB_BYTES, THUMB_SIDE, embed, room
from mapo.report.evidence import Comparison
from mapo.report.verdict import percent, score
from mapo.sample.folder import ImageRow, Key, Rows, open_picture, read_manifest, told_seed
from mapo.statistics import PairedScores

EXTREMES = 6  # best and worst changes
COARSE = 16  # pixels a side, enough to see where things lie
STRIP_STEPS, STRIP_PROMPTS = 8, 6  # the most of a strip


class Cards:
    """The cards of ``keys``; every picture is read and embedded once, on all cores."""

    def __init__(
        self, before: Path, after: Path, first: Rows, second: Rows, keys: Iterable[Key], shown: Comparison,
        kinds: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.shown, self.rows, self.others, self.kinds = shown, first, second, kinds
        self.scores = {(p.prompt_id, p.seed): p for p in shown.pairs}
        wanted = [(f, rows[key]) for key in dict.fromkeys(keys) for f, rows in ((before, first), (after, second))]
        size = room(len(wanted))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(lambda place: embed(place[0], place[1], size), wanted)
            self.pictures = dict(zip(((folder, row.file) for folder, row in wanted), made, strict=True))
        self.places = {key: ((before, first[key].file), (after, second[key].file)) for key in dict.fromkeys(keys)}

    def card(self, key: Key) -> dict[str, Any]:
        """What the template shows of a pair."""
        (first, tiny), (second, tiny_after) = (self.pictures[place] for place in self.places[key])
        row, other, pair = self.rows[key], self.others[key], self.scores.get(key)
        return {
            "prompt": row.prompt,
            "seed": row.seed,
            "place": " · ".join(
                filter(None, [self.kinds.get(row.prompt_id), told_seed(other if other.numbered else row)])
            ),
            "before": first,
            "after": second,
            "pixels": tiny and tiny_after,
            "width": row.width,
            "height": row.height,
            "size_after": (other.width, other.height),
            "change": self._change(pair) if pair else "",
        }

    def _change(self, pair: PairedScores) -> str:
        if self.shown.panel:
            return f"{percent(pair.after)} of the votes for after"
        first, second = score(pair.before, self.shown), score(pair.after, self.shown)
        return f"{self.shown.metric.replace('_', ' ')} {first}\u00a0→\u00a0{second}"


def first_alike(before: Path, after: Path, pairs: Sequence[tuple[ImageRow, ImageRow]]) -> int:
    """The place of the first pair whose two pictures are laid out alike: as much as half of them are, or more.

    On such a pair a slider shows what is different. Pairs of the very same picture do not count.
    """
    alike = {
        place: _alike(open_picture(before, row), open_picture(after, other))
        for place, (row, other) in enumerate(pairs)
        if row.sha256 != other.sha256
    }
    middle = statistics.median(alike.values()) if alike else 0.0
    return next((place for place, value in alike.items() if value >= middle), 0)


def _alike(one: Image, other: Image) -> float:
    """The cosine of two small versions of pictures, each without its own middle colour: 1 where all lies alike."""
    small = [np.asarray(p.convert("RGB").resize((COARSE, COARSE)), np.float64).reshape(-1, 3) for p in (one, other)]
    a, b = (values - np.median(values, axis=0) for values in small)
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-9))


def extremes(headline: Comparison | None) -> tuple[list[PairedScores], list[PairedScores]]:
    """The pairs that gained and lost most by the headline's scorer, one of a prompt; ties in the pictures' order."""
    if headline is None:
        return [], []
    ranked = {p.prompt_id: p for p in sorted(headline.pairs, key=headline.gain)}  # the best of each prompt
    best = sorted((p for p in ranked.values() if headline.gain(p) > 0), key=lambda p: -headline.gain(p))
    ranked = {p.prompt_id: p for p in sorted(headline.pairs, key=lambda p: -headline.gain(p))}  # and the worst
    worst = sorted((p for p in ranked.values() if headline.gain(p) < 0), key=headline.gain)
    return best[:EXTREMES], worst[:EXTREMES]


def count_gains(headline: Comparison | None) -> dict[str, int]:
    """How many pairs got better, stayed equal and got worse."""
    gains: Sequence[float] = [headline.gain(p) for p in headline.pairs] if headline else []
    return {
        "better": sum(g > 0 for g in gains),
        "equal": sum(g == 0 for g in gains),
        "worse": sum(g < 0 for g in gains),
    }


def strip(run: Path) -> dict[str, Any]:
    """What a run drew of the same prompts and seed while it was trained: ``steps``, and for each prompt its pictures.

    At most so many steps, the first and the last among them. A step whose pictures cannot be read is left out; a run
    that drew nothing has no steps.
    """
    drawn = {step: (folder, rows) for step, folder in pictures(run).items() if (rows := _rows(folder))}
    steps = [*drawn]
    if len(steps) > STRIP_STEPS:
        steps = [steps[k * (len(steps) - 1) // (STRIP_STEPS - 1)] for k in range(STRIP_STEPS)]
    shown: dict[str, dict[int, Any]] = {}
    for step in steps:
        folder, rows = drawn[step]
        for prompt, row in rows.items():
            if prompt in shown or len(shown) < STRIP_PROMPTS:
                source, tiny = embed(folder, row, (THUMB_SIDE, THUMB_BYTES))
                shown.setdefault(prompt, {})[step] = {"source": source, "tiny": tiny, "size": (row.width, row.height)}
    prompts = [{"prompt": prompt, "pictures": [found.get(step) for step in steps]} for prompt, found in shown.items()]
    return {"steps": steps, "prompts": prompts}


def _rows(folder: Path) -> dict[str, ImageRow]:
    try:
        return {row.prompt: row for row in read_manifest(folder)}
    except (MapoError, OSError):
        return {}
