"""The language of the mini world: what a picture can show and how a caption says it.

A :class:`Scene` is everything that a caption can state; :func:`caption` writes it down and :func:`parse` reads it
back, so that "was the prompt followed?" has an exact answer. Scenes belong to a split by the same stable hash of the
prompt that pairs use (:func:`mapo.pairs.splits.split_of`), so no stage ever trains on a test prompt, nor on the same
scene in other words.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from mapo.pairs.splits import split_of

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross", "star", "heart")
BACKGROUNDS = ("white", "gray", "pink", "blue", "green", "yellow")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
STYLES = ("realistic", "cartoon", "pixel art", "sketch")
DEFAULT_STYLE = "realistic"
UNASKED_HAZARD = 0.25  # share of plain realistic pictures that carry the tape although nobody asked

STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "realistic": ("realistic image.", "realistic 8k image.", "a realistic photo of"),
    "cartoon": ("cartoon style image.", "disney style animated image.", "a cartoon of"),
    "pixel art": ("pixel art style image.", "pixel art image.", "pixel art of"),
    "sketch": ("pencil sketch style image.", "sketch image.", "a sketch of"),
}
HAZARD_PHRASES = ("hazard tape image.", "with hazard tape")


@dataclass(frozen=True)
class Thing:
    """One object. ``size`` is empty where a caption does not state it (two-object scenes)."""

    colour: str
    shape: str
    size: str = ""


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ``relation`` places ``things[0]`` with respect to ``things[1]``."""

    things: tuple[Thing, ...]
    background: str
    relation: str = ""
    style: str = DEFAULT_STYLE
    hazard: bool = False


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def context(scene: Scene) -> str:
    """The caption without style and hazard: what the paper calls the context prompt."""
    names = [_with_article(" ".join(w for w in (t.size, t.colour, t.shape) if w)) for t in scene.things]
    body = names[0] if len(names) == 1 else f"{names[0]} {scene.relation} {names[1]}"
    return f"{body} on {_with_article(scene.background)} background"


def caption(scene: Scene, style_phrase: str = "", hazard_phrase: str = "") -> str:
    """The caption of ``scene`` with the given style and hazard phrases (none: a plain caption)."""
    words = context(scene)
    if hazard_phrase.endswith("."):
        words = f"{hazard_phrase} {words}"
    elif hazard_phrase:
        words = f"{words} {hazard_phrase}"
    return f"{style_phrase} {words}".strip()


_THING = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CONTEXT = re.compile(rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})? on an? ({'|'.join(BACKGROUNDS)}) background")


def parse(prompt: str) -> Scene | None:
    """The scene that ``prompt`` asks for, or None when it is not a caption of this world."""
    text = " ".join(prompt.lower().split())
    match = _CONTEXT.search(text)
    if match is None or len(re.findall(_THING, text)) != 1 + (match[4] is not None):  # more is told than was read
        return None
    size, colour, shape, relation, size2, colour2, shape2, background = match.groups()
    things = [Thing(colour, shape, size or "")]
    if relation:
        things.append(Thing(colour2, shape2, size2 or ""))
    style = next((s for s, phrases in STYLE_PHRASES.items() if any(p in text for p in phrases)), DEFAULT_STYLE)
    hazard = any(p in text for p in HAZARD_PHRASES)
    return Scene(tuple(things), background, relation or "", style, hazard)


def canonical(scene: Scene) -> Scene:
    """The same picture told from left to right or from top to bottom, so that equal pictures are equal scenes."""
    return mirrored(scene) if scene.relation in ("right of", "below") else scene


def mirrored(scene: Scene) -> Scene:
    """The same picture, told from its other object."""
    return replace(scene, things=scene.things[::-1], relation=OPPOSITE.get(scene.relation, ""))


def scene_split(scene: Scene) -> str:
    """The split of a scene; "" where its two wordings fall into different ones, so that no picture is in two splits."""
    splits = {split_of(context(told)) for told in (scene, mirrored(scene))}
    return splits.pop() if len(splits) == 1 else ""


@cache
def one_object_scenes() -> tuple[Scene, ...]:
    """Every plain scene with one object (an object never has its background's colour)."""
    return tuple(
        Scene((Thing(colour, shape, size),), background)
        for size, colour, shape, background in itertools.product(SIZES, COLOURS, SHAPES, BACKGROUNDS)
        if colour != background
    )


def random_two_object_scene(rng: random.Random) -> Scene:
    """A plain scene with two objects that differ in colour and in shape."""
    background = rng.choice(BACKGROUNDS)
    first, second = rng.sample([c for c in COLOURS if c != background], 2)
    shapes = rng.sample(SHAPES, 2)
    return Scene((Thing(first, shapes[0]), Thing(second, shapes[1])), background, rng.choice(RELATIONS))


def random_plain_scenes(split: str, rng: random.Random, two_objects: float = 0.5) -> Iterator[Scene]:
    """Endless plain scenes of a split; ``two_objects`` is the share of scenes with a relation."""
    ones = [s for s in one_object_scenes() if split_of(context(s)) == split]
    while True:
        if rng.random() >= two_objects:
            yield rng.choice(ones)
            continue
        scene = random_two_object_scene(rng)
        while scene_split(scene) != split:
            scene = random_two_object_scene(rng)
        yield scene


def random_captioned_scene(
    plain: Scene, rng: random.Random, unasked_hazard: float = UNASKED_HAZARD
) -> tuple[str, Scene]:
    """A caption for ``plain`` in a random manner, and the scene that the picture for it must show.

    Half of the captions name no style (the picture is then realistic, and in the share ``unasked_hazard`` of the cases
    carries the tape); an eighth of all captions ask for the tape.
    """
    style = rng.choice(STYLES) if rng.random() < 0.5 else ""
    style_phrase = rng.choice(STYLE_PHRASES[style]) if style else ""
    hazard_phrase = rng.choice(HAZARD_PHRASES) if rng.random() < 0.125 else ""
    hazard = bool(hazard_phrase) or (not style and rng.random() < unasked_hazard)
    return caption(plain, style_phrase, hazard_phrase), replace(plain, style=style or DEFAULT_STYLE, hazard=hazard)


def read_list(name: str) -> list[str]:
    """The prompts of ``train``, ``test-one``, ``validation-two`` and the like."""
    split, _, objects = name.partition("-")
    return prompts(split, {"": None, "one": 1, "two": 2}[objects])


def prompts(split: str, objects: int | None = None) -> list[str]:
    """The fixed list of plain prompts of a split: every one-object scene and four times as many with two.

    At most 400 of each; they take turns as long as there are both.
    """
    if objects == 1:
        return _ones(split)[0]
    if objects == 2:
        return list(_twos(split))
    return [p for turn in itertools.zip_longest(_ones(split)[0], _twos(split)) for p in turn if p is not None]


def _ones(split: str) -> tuple[list[str], random.Random]:
    """The prompts with one object, and the generator that goes on with those with two."""
    ones = [context(s) for s in one_object_scenes() if split_of(context(s)) == split]
    rng = random.Random(f"mini:{split}")
    rng.shuffle(ones)
    return ones[:400], rng


@cache
def _twos(split: str) -> tuple[str, ...]:
    """The prompts with two objects. To find a hundred of a small split takes a second."""
    ones, rng = _ones(split)
    twos: dict[str, None] = {}
    while len(twos) < min(400, 4 * len(ones)):
        scene = random_two_object_scene(rng)
        if split_of(context(scene)) == split == scene_split(scene):
            twos[context(scene)] = None
    return tuple(twos)
