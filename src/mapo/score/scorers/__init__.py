"""Scorers: pictures, prompts and, where asked for, reference pictures → numbers.

A scorer is a class with the attributes of :class:`Scorer`; a newcomer is one module and one line in :data:`SCORERS`.
``NAME@SOURCE`` is a scorer with other weights: a folder, or a repository of the hub.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

from PIL.Image import Image

from mapo.errors import MapoError, suggest
from mapo.worlds import WORLDS, find


class Scorer(Protocol):
    """What gives numbers. Batch size and order change nothing but rounding.

    A scorer that is a function of prepared pictures has two more methods, and preparing then runs beside the network:
    ``prepare(picture)``, which any thread may call, and ``score(prepared, prompts, references)``, which is
    ``__call__`` with what ``prepare`` made of the pictures and references.

    A class says what its scorer needs, so that nothing has to be fetched to find out whether it is at hand: ``needs``
    has the hub's repositories with patterns of their files, or a static method ``lacks()`` gives None, or what to type
    to get what is not there. ``why_none`` has a sentence for metrics that some pictures can have no number of.
    """

    name: str
    version: str  # of our code that computes the number
    revision: str  # of the weights behind it, "" where there are none
    metrics: tuple[str, ...]  # names of its numbers; higher is better, or more of what the name says (see FLAWS)
    needs_reference: bool  # it is given a reference picture for each picture
    whole_prompts: bool  # it is given all pictures of a prompt in one call

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: Sequence[Image] | None = None
    ) -> Mapping[str, Sequence[float | None]]:
        """One number per picture for each metric; None where there is none to give."""

    def notes(self) -> list[str]:
        """What a person must know about the numbers given so far, a sentence each."""


class Unfinished(MapoError):
    """A scorer could not end a call; ``said`` holds its numbers of the first pictures, of each metric as many."""

    def __init__(self, message: str, said: Mapping[str, Sequence[float | None]]) -> None:
        super().__init__(message)
        self.said = said


SCORERS: dict[str, str] = {
    "clip": "mapo.score.scorers.clip:ClipScore",
    "guards": "mapo.score.scorers.guards:Guards",
    "pickscore": "mapo.score.scorers.clip:PickScore",
    "hps-v2.0": "mapo.score.scorers.hps:HpsV20",
    "hps-v2.1": "mapo.score.scorers.hps:HpsV21",
    "aesthetic": "mapo.score.scorers.aesthetic:Aesthetic",
    "siglip": "mapo.score.scorers.siglip:SiglipScore",
    "dinov2": "mapo.score.scorers.dinov2:Dinov2Score",
    "imagereward": "mapo.score.scorers.imagereward:ImageReward",
    "nsfw": "mapo.score.scorers.nsfw:Nsfw",
    "safety": "mapo.score.scorers.safety:Safety",
    "vlm": "mapo.score.scorers.vlm:VlmScore",
    **{name: place for world in WORLDS.values() for name, place in world.scorers.items()},
}
FLAWS = frozenset({"hazard", "unsafe", "nsfw"})  # metrics of which less is better
GROUPS: dict[str, tuple[str, ...]] = {world.name: tuple(world.scorers) for world in WORLDS.values()}


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


def scorer_class(name: str) -> Any:
    """The class of a scorer."""
    return find(SCORERS[name])


def load_scorer(text: str) -> Scorer:
    """The scorer of that name, the first of a group. A large one loads its weights when it is first called."""
    name, at, source = scorer_names(text)[0].partition("@")
    kind = scorer_class(name)
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
    if isinstance(prompts, str):
        raise TypeError(f"{scorer} takes a list of prompts, one for each picture; it was given one text")
    for place, (picture, prompt) in enumerate(zip_longest(pictures, prompts)):
        if not isinstance(picture, Image) or not isinstance(prompt, str):
            kinds = f"{type(picture).__name__} and {type(prompt).__name__}"
            raise TypeError(f"{scorer} takes a picture and its prompt, in this order; number {place} is {kinds}")
    check_pictures(scorer, pictures)


def check_pictures(scorer: str, pictures: Sequence[Image]) -> None:
    """Refuse what is not a picture, and other modes than RGB."""
    for place, picture in enumerate(pictures):
        if not isinstance(picture, Image):
            raise TypeError(f"{scorer} takes pictures; number {place} is {type(picture).__name__}")
        if picture.mode != "RGB":
            raise TypeError(f"{scorer} takes RGB pictures; number {place} is {picture.mode}")
