"""Scorers: pictures, prompts and, where asked for, reference pictures → numbers.

A scorer is a class with the attributes of :class:`Scorer`; a newcomer is one module and one line in :data:`SCORERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL.Image import Image
from tqdm import tqdm

from mapo.errors import MapoError, suggest
from mapo.files import PARTIAL, sha256
from mapo.images import ImageRow, read_images, read_picture
from mapo.pairs import decode_picture
from mapo.scores import read_scores, write_scores


class Scorer(Protocol):
    """What gives numbers. Batch size and order change nothing but rounding."""

    name: str
    version: str  # of our code that computes the number
    revision: str  # of the weights behind it, "" where there are none
    metrics: tuple[str, ...]  # names of its numbers; higher is better, or more of what the name says
    needs_reference: bool

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: Sequence[Image] | None = None
    ) -> Mapping[str, Sequence[float]]:
        """One number per picture for each metric."""


SCORERS: dict[str, str] = {
    "mini-learned": "mapo.scorers.mini:Learned",
    "mini-search": "mapo.scorers.mini:Search",
}
GROUPS: dict[str, tuple[str, ...]] = {"mini": ("mini-learned", "mini-search")}


def scorer_names(text: str) -> list[str]:
    """``mini,other`` → the scorers' names, groups resolved."""
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if name not in SCORERS and name not in GROUPS:
            raise MapoError(f"There is no scorer {name!r}. {suggest(name, [*SCORERS, *GROUPS])}")
        names += GROUPS.get(name, (name,))
    return list(dict.fromkeys(names))


def load_scorer(name: str) -> Scorer:
    """The scorer of that name, loaded."""
    module, attribute = SCORERS[scorer_names(name)[0]].split(":")
    scorer: Scorer = getattr(importlib.import_module(module), attribute)()
    return scorer


def _picture(folder: Path, row: ImageRow) -> Image:
    try:
        return decode_picture(read_picture(folder, row))
    except ValueError as error:
        raise MapoError(f"{folder / row.file}: {error}. Make it again with `mapo sample`.") from None


def score_images(folder: Path, names: str, out: Path, images_per_batch: int = 64) -> Path:
    """Score every picture of an images folder with each of ``names`` into one table at ``out``.

    Each scorer's rows are kept beside ``out`` until all are done, so an interrupted call goes on with the next scorer.
    """
    images = read_images(folder)
    if not images:
        raise MapoError(f"{folder} holds no pictures.")
    rows, parts = [], []
    content = sha256("".join(row.sha256 for row in images).encode())[:12]
    for name in scorer_names(names):
        scorer = load_scorer(name)
        part = out.with_name(f".{out.name}.{name}.{scorer.version}.{content}{PARTIAL}")
        parts.append(part)
        if part.exists():
            rows += read_scores(part).to_pylist()
            continue
        mine = []
        bar = tqdm(total=len(images), desc=f"score {name}", unit="image")
        for start in range(0, len(images), images_per_batch):
            batch = images[start : start + images_per_batch]
            values = scorer([_picture(folder, row) for row in batch], [row.prompt for row in batch])
            for metric in scorer.metrics:
                for row, value in zip(batch, values[metric], strict=True):
                    mine.append(
                        {
                            "image": row.sha256,
                            "prompt_id": row.prompt_id,
                            "prompt": row.prompt,
                            "seed": row.seed,
                            "model": row.model,
                            "scorer": scorer.name,
                            "metric": metric,
                            "version": scorer.version,
                            "revision": scorer.revision,
                            "reference": None,
                            "value": float(value),
                        }
                    )
            bar.update(len(batch))
        bar.close()
        write_scores(part, mine)
        rows += mine
    write_scores(out, rows)
    for part in parts:
        part.unlink()
    return out
