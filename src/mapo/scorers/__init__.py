"""Scorers: pictures, prompts and, where asked for, reference pictures → numbers.

A scorer is a class with the attributes of :class:`Scorer`; a newcomer is one module and one line in :data:`SCORERS`.
``NAME@SOURCE`` is a scorer with other weights: a folder, or a repository of the hub.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

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
    ) -> Mapping[str, Sequence[float | None]]:
        """One number per picture for each metric; None where there is none to give."""

    def notes(self) -> list[str]:
        """What a person must know about the numbers given so far, a sentence each."""


SCORERS: dict[str, str] = {
    "clip": "mapo.scorers.clip:ClipScore",
    "pickscore": "mapo.scorers.clip:PickScore",
    "hps-v2.0": "mapo.scorers.hps:HpsV20",
    "hps-v2.1": "mapo.scorers.hps:HpsV21",
    "aesthetic": "mapo.scorers.aesthetic:Aesthetic",
    "siglip": "mapo.scorers.siglip:SiglipScore",
    "dinov2": "mapo.scorers.dinov2:Dinov2Score",
    "imagereward": "mapo.scorers.imagereward:ImageReward",
    "safety": "mapo.scorers.safety:Safety",
    "vlm": "mapo.scorers.vlm:VlmScore",
    "mini-learned": "mapo.scorers.mini:Learned",
    "mini-search": "mapo.scorers.mini:Search",
}
GROUPS: dict[str, tuple[str, ...]] = {"mini": ("mini-learned", "mini-search")}


def scorer_names(text: str) -> list[str]:
    """``mini,clip@SOURCE`` → the scorers' names, groups resolved.

    A comma begins another scorer only where the name of one follows; elsewhere it is part of a source.
    """
    names: list[str] = []
    for part in text.split(","):
        name, at, _ = part.strip().partition("@")
        if at and name in GROUPS:
            raise MapoError(f"{part.strip()!r}: {name} is several scorers and takes no source. Write {name!r}.")
        if name in SCORERS or name in GROUPS:
            names += GROUPS.get(name, (part.strip(),))
        elif names and "@" in names[-1]:
            names[-1] += f",{part}"
        else:
            raise MapoError(f"There is no scorer {name!r}. {suggest(name, [*SCORERS, *GROUPS])}")
    return list(dict.fromkeys(names))


def load_scorer(text: str) -> Scorer:
    """The scorer of that name, the first of a group. A large one loads its weights when it is first called."""
    name, at, source = scorer_names(text)[0].partition("@")
    module, attribute = SCORERS[name].split(":")
    kind = getattr(importlib.import_module(module), attribute)
    if at and not (source and inspect.signature(kind).parameters):
        what = "has no weights to choose" if source else "has no source behind its @"
        raise MapoError(f"The scorer {text!r} {what}. Write {name!r}.")
    scorer: Scorer = kind(source) if at else kind()
    return scorer


def split_judge(text: str) -> tuple[str, str, str | None]:
    """``SCORER:METRIC`` or ``SCORER:METRIC:THRESHOLD`` → its two or three parts, the threshold as it stands.

    A scorer with a source, whose path may hold colons, is read from the right: a number there is the threshold.
    """
    if "@" not in text:
        name, _, rest = text.partition(":")
        metric, colon, threshold = rest.partition(":")
        return name, metric, threshold if colon else None
    name, colon, last = text.rpartition(":")
    if not colon:
        return text, "", None
    if not _is_number(last):
        return name, last, None
    name, _, metric = name.rpartition(":")
    return name, metric, last


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_inputs(scorer: str, pictures: Sequence[Image], prompts: Sequence[str]) -> None:
    """Refuse what would be scored wrongly in silence: swapped arguments, other modes than RGB, unequal numbers."""
    for place, (picture, prompt) in enumerate(zip_longest(pictures, prompts)):
        if not isinstance(picture, Image) or not isinstance(prompt, str):
            kinds = f"{type(picture).__name__} and {type(prompt).__name__}"
            raise TypeError(f"{scorer} takes a picture and its prompt, in this order; number {place} is {kinds}")
    check_pictures(scorer, pictures)


def check_pictures(scorer: str, pictures: Sequence[Image]) -> None:
    """Refuse what is no picture, and other modes than RGB."""
    for place, picture in enumerate(pictures):
        if not isinstance(picture, Image):
            raise TypeError(f"{scorer} takes pictures; number {place} is {type(picture).__name__}")
        if picture.mode != "RGB":
            raise TypeError(f"{scorer} takes RGB pictures; number {place} is {picture.mode}")


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
    scorers = [load_scorer(name) for name in scorer_names(names)]
    if twice := {s.name for s in scorers if sum(s.name == other.name for other in scorers) > 1}:
        raise MapoError(f"--scorer: two scorers would be called {min(twice)} in the table. Score with one at a time.")
    rows, parts = [], []
    content = "".join(row.sha256 for row in images)
    while scorers:
        scorer = scorers.pop(0)  # so that no two hold their weights at a time
        key = sha256(f"{scorer.name} {scorer.version} {scorer.revision} {content}".encode())[:16]
        part = out.with_name(f".{out.name}.{key}{PARTIAL}")
        parts.append(part)
        if not part.exists():
            write_scores(part, _score(scorer, folder, images, images_per_batch))
            for note in scorer.notes():
                print(f"note: {note}")
        rows += read_scores(part).to_pylist()
    write_scores(out, rows)
    for part in parts:
        part.unlink()
    return out


def _score(scorer: Scorer, folder: Path, images: Sequence[ImageRow], images_per_batch: int) -> list[dict[str, Any]]:
    """One scorer's rows of the table."""
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(images), desc=f"score {scorer.name}", unit="image") as bar:
        for start in range(0, len(images), images_per_batch):
            batch = images[start : start + images_per_batch]
            values = scorer([_picture(folder, row) for row in batch], [row.prompt for row in batch])
            for metric in scorer.metrics:
                for row, value in zip(batch, values[metric], strict=True):
                    rows.append(
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
                            "value": None if value is None else float(value),
                        }
                    )
            bar.update(len(batch))
    return rows
