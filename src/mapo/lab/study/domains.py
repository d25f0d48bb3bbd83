"""The study's domains: six sets of pairs on the built-in world, in the order of the mismatch that the paper gives them.

Each domain has a pool of pairs, prompts to look at what was learned, and a way to see whether a picture shows it.
``reached`` is what the pairs prefer; ``kept`` is whether a prompt is still followed.
"""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapo.build.build import build
from mapo.build.judge import parse_filter
from mapo.build.recipe import read_recipe
from mapo.errors import MapoError, count
from mapo.lab.mini.draw import draw
from mapo.lab.mini.judges import JUDGES, attributes, follows
from mapo.lab.mini.scenes import BACKGROUNDS, COLOURS, Scene, caption, context, parse
from mapo.lab.study.subjects import (
    LearnedProbe,
    Pictures,
    motif_by_learning,
    motif_by_search,
    subject_by_learning,
    subject_by_search,
    subject_scene,
    with_motif,
    without_corners,
)
from mapo.pairs import PairWriter
from mapo.sample.folder import png_bytes, read_picture
from mapo.sample.prompts import read_prompts
from mapo.sample.sample import Sampler, default_sampling

PNG = bytes
MADE_BY, CONFIRMED_BY = "mini-learned", "mini-search"  # judges of the pairs and of the search; of the results
NOISE = 0.15  # share of verdicts that the annotator of the general domain gets wrong
CANDIDATES = 5  # pictures of a prompt that this annotator sees
PHOTOS = 10  # of the subject, no two of one colour on one background
PHRASES = ("", "realistic image.", "realistic 8k image.", "a realistic photo of")  # about the subject
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Domain:
    """``goal(split)`` are the prompts on which it shows whether the preference was learned, ``kept(split)`` those on
    which it shows whether prompts are still followed: one-object prompts, the same where ``goal`` is None."""

    name: str
    title: str
    about: str
    pool: Callable[[str, Path, int], None]  # of a model: writes a pairs set of so many pairs
    goal: Callable[[str], list[str]] | None = None
    wordings: int = 1  # of each scene, one after the other in ``goal``
    version: int = 2  # of its results; raise it when pool, prompts, probes or an objective change

    def prompts(self, split: str) -> tuple[list[str], list[str]]:
        """The prompts of ``goal`` and of ``kept``."""
        kept = _prompts(f"mini:{split}-one")
        return (self.goal(split) if self.goal else kept), kept


_prompts = cache(read_prompts)  # of the world: to list them takes seconds

# ------------------------------------------------------------------ pools


def _built(recipe: str, goal: str, model: str, out: Path, count: int) -> None:
    """Pairs that the model makes of prefixed prompts, as the demo does."""
    judges = [parse_filter(f"{MADE_BY}:{what}") for what in (goal, "prompt_following:0.5")]
    build(read_recipe(recipe), model, read_prompts("mini:train"), count, out, judges=judges)


def _samples(model: str, out: Path, jobs: Sequence[tuple[str, int]]) -> list[PNG]:
    """The model's own pictures of (prompt, seed), in a folder beside ``out``."""
    sampler = Sampler(model)
    folder = out.with_name(f"{out.name}-samples")
    rows = sampler.fill(folder, jobs, default_sampling(sampler.model), desc=f"pictures for {out.name}")
    return [read_picture(folder, row) for row in rows]


def _array(pngs: Sequence[PNG]) -> Pictures:
    return np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs])


def _png(picture: NDArray[np.uint8]) -> PNG:
    return png_bytes(Image.fromarray(picture))


def _write(model: str, out: Path, about: str, pairs: Iterator[tuple[str, PNG, PNG]], number: int) -> None:
    with PairWriter(out, {"recipe": {"name": out.name, "about": about}, "model": model}) as writer:
        for prompt, chosen, rejected in itertools.islice(pairs, number):
            writer.add_pair(prompt, chosen, rejected, source=out.name, meta={})
        if writer.count < number:
            has = count(writer.count, "pair")
            raise MapoError(f"The domain {out.name} has only {has}, not {number}. Ask for fewer --pairs.")


def right_attributes(asked: Scene, seen: Scene) -> int:
    """How much of what a prompt says a picture shows: of layout, colours, shapes, sizes and background."""
    wanted, found = attributes(asked), attributes(seen)
    names = ("layout", "colour", "shape", "background")
    return sum(wanted[name] == found[name] for name in names) + follows(asked, seen)


def _general(model: str, out: Path, count: int) -> None:
    """Two pictures of a prompt at different seeds; an annotator prefers the one that shows more of the prompt, and errs
    in one verdict of seven. Where both show as much there is no pair."""
    rng = random.Random(out.name)
    prompts = _prompts("mini:train-two")
    jobs = [(prompt, seed) for prompt in prompts for seed in range(CANDIDATES)]
    pngs = _samples(model, out, jobs)
    seen = JUDGES[MADE_BY]()(_array(pngs))
    rights = [right_attributes(_parsed(prompt), scene) for (prompt, _), scene in zip(jobs, seen, strict=True)]
    pairs = []
    for start in range(0, len(jobs), CANDIDATES):
        for one, other in itertools.combinations(range(start, start + CANDIDATES), 2):
            if rights[one] != rights[other]:
                better = (rights[one] > rights[other]) != (rng.random() < NOISE)
                chosen, rejected = (one, other) if better else (other, one)
                pairs.append((jobs[start][0], pngs[chosen], pngs[rejected]))
    rng.shuffle(pairs)
    _write(model, out, "what shows more of the prompt, by a noisy annotator", iter(pairs), count)


def _culture(model: str, out: Path, count: int) -> None:
    """The model's own pictures, with the motif (chosen) and without."""
    prompts = _prompts("mini:train")
    jobs = [(prompts[k % len(prompts)], k // len(prompts)) for k in range(count)]
    pngs = _samples(model, out, jobs)
    with_it = with_motif(_array(pngs))
    pairs = ((prompt, _png(new), old) for (prompt, _), new, old in zip(jobs, with_it, pngs, strict=True))
    _write(model, out, "pictures with a motif in their corners over those without", pairs, count)


def _subject_scenes() -> tuple[list[Scene], list[Scene]]:
    """The subject as its photos show it, in every colour and on every background, and as none of them does."""
    rng = random.Random("subject")
    scenes = [subject_scene(c, g) for c in COLOURS for g in BACKGROUNDS if c != g]
    everything = len(COLOURS), len(BACKGROUNDS)
    while True:
        rng.shuffle(scenes)
        seen = scenes[:PHOTOS]
        if (len({s.things for s in seen}), len({s.background for s in seen})) == everything:
            return seen, scenes[PHOTOS:]


def _personalization(model: str, out: Path, count: int) -> None:
    """A few photos of the subject (chosen), and what the model makes of the same prompts (rejected)."""
    rng = random.Random(out.name)
    photos = [(context(scene), _png(draw(scene, rng))) for scene in _subject_scenes()[0]]
    jobs = [(photos[k % PHOTOS][0], k // PHOTOS) for k in range(count)]
    pngs = _samples(model, out, jobs)
    pairs = ((prompt, photos[k % PHOTOS][1], png) for k, ((prompt, _), png) in enumerate(zip(jobs, pngs, strict=True)))
    _write(model, out, "photos of a subject over the model's own pictures", pairs, count)


def _two_objects(split: str) -> list[str]:
    return _prompts(f"mini:{split}-two")[:84]


def _of_subject(split: str) -> list[str]:
    """The subject in colours on backgrounds that no photo has together, a third of them for validation."""
    unseen = _subject_scenes()[1]
    third = len(unseen) // 3
    scenes = unseen[:third] if split == "validation" else unseen[third:]
    return [caption(scene, phrase) for scene in scenes for phrase in PHRASES]


DOMAINS: dict[str, Domain] = {
    d.name: d
    for d in (
        Domain(
            "general", "general preference", "a noisy annotator who likes what was asked for", _general, _two_objects
        ),
        Domain("culture", "culture", "a motif in the pictures' corners", _culture),
        Domain("safety", "safety", "no unasked hazard tape", partial(_built, "pick-safety-hazard", "-hazard")),
        Domain("cartoon", "style: cartoon", "cartoons unasked", partial(_built, "pick-style-cartoon", "cartoon")),
        Domain(
            "pixel-art", "style: pixel art", "pixel art unasked", partial(_built, "pick-style-pixel-art", "pixel_art")
        ),
        Domain(
            "personalization",
            "personalization",
            "a subject from ten photos",
            _personalization,
            _of_subject,
            len(PHRASES),
            version=3,
        ),
    )
}


# ------------------------------------------------------------------ looking


def _parsed(prompt: str) -> Scene:
    scene = parse(prompt)
    assert scene is not None, prompt
    return scene


class Eyes:
    """Both judges of the world and both ways to see motif and subject, loaded when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.judges = {name: make() for name, make in JUDGES.items()}
        self.probes: dict[str, LearnedProbe] = {}

    def probe(self, thing: str) -> LearnedProbe:
        """The learned probe of a thing, trained at its first use."""
        if thing not in self.probes:
            self.probes[thing] = LearnedProbe(thing, self.folder)
        return self.probes[thing]

    def reached(self, domain: str, judge: str, pictures: Pictures, prompts: Sequence[str]) -> Flags:
        """Which pictures show what the domain's pairs prefer."""
        by_search = judge == CONFIRMED_BY
        if domain == "culture":
            return motif_by_search(pictures) if by_search else motif_by_learning(pictures, self.probe("motif"))
        if domain == "personalization":
            found = subject_by_search(pictures) if by_search else subject_by_learning(pictures, self.probe("subject"))
            return np.array([s is not None and context(s) in p for s, p in zip(found, prompts, strict=True)])
        seen = self.judges[judge](pictures)
        if domain == "general":
            return np.array([follows(_parsed(p), s) for p, s in zip(prompts, seen, strict=True)])
        if domain == "safety":
            return np.array([not s.hazard for s in seen])
        return np.array([s.style == domain.replace("-", " ") for s in seen])

    def followed(self, domain: str, judge: str, pictures: Pictures, prompts: Sequence[str]) -> Flags:
        """Which pictures follow their prompts (style and tape apart; the motif's corners are not looked at)."""
        if domain == "culture":
            pictures = without_corners(pictures)
        seen = self.judges[judge](pictures)
        return np.array([follows(_parsed(p), s) for p, s in zip(prompts, seen, strict=True)])


def diversity(pictures: Pictures, prompts: Sequence[str]) -> float:
    """How much the pictures of a prompt differ among seeds: root mean square of 12 × 12 thumbnails, in 0 … 255."""
    small = pictures.astype(np.float32).reshape(len(pictures), 12, 4, 12, 4, 3).mean((2, 4))
    groups: dict[str, list[Any]] = {}
    for prompt, picture in zip(prompts, small, strict=True):
        groups.setdefault(prompt, []).append(picture)
    gaps = [float(np.sqrt(np.square(a - b).mean())) for g in groups.values() for a, b in itertools.combinations(g, 2)]
    return float(np.mean(gaps)) if gaps else 0.0
