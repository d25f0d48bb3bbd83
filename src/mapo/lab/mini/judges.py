"""What the judges' verdicts are good for: was the prompt followed, and how far do two judges agree?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mapo.files import replacing
from mapo.lab.mini.draw import SIDE, draw
from mapo.lab.mini.scenes import STYLES, Scene, canonical, context, parse, random_plain_scenes

Pictures = NDArray[np.uint8]


class Judge(Protocol):
    """Looks at uint8 pictures "n 48 48 3" and says what each shows, as a canonical scene."""

    name: str
    version: str

    def __call__(self, pictures: Pictures) -> list[Scene]: ...  # noqa: D102


def _learned() -> Judge:
    from mapo.lab.mini.judge_learned import LearnedJudge  # torch: only for those who ask for this judge

    return LearnedJudge()


def _search() -> Judge:
    from mapo.lab.mini.judge_search import SearchJudge

    return SearchJudge()


JUDGES: dict[str, Callable[[], Judge]] = {"mini-learned": _learned, "mini-search": _search}


def follows(asked: Scene, seen: Scene) -> bool:
    """Whether ``seen`` shows all that the context of ``asked`` states; style and tape do not matter.

    A size counts only where both state one: judges state none in scenes of two objects, which are all alike.
    """
    asked, seen = canonical(asked), canonical(seen)
    if (len(asked.things), asked.relation, asked.background) != (len(seen.things), seen.relation, seen.background):
        return False
    return all(
        (a.colour, a.shape) == (s.colour, s.shape) and (not a.size or not s.size or a.size == s.size)
        for a, s in zip(asked.things, seen.things, strict=True)
    )


def attributes(scene: Scene) -> dict[str, object]:
    """All that a verdict says, by attribute; equal canonical scenes have equal attributes."""
    scene = canonical(scene)
    return {
        "layout": scene.relation or "single",
        "colour": tuple(t.colour for t in scene.things),
        "shape": tuple(t.shape for t in scene.things),
        "size": tuple(t.size for t in scene.things),
        "background": scene.background,
        "style": scene.style,
        "hazard": scene.hazard,
    }


def agreement(some: Sequence[Scene], others: Sequence[Scene]) -> dict[str, float]:
    """How often two lists of scenes say the same: by attribute, and in ``everything``."""
    pairs = [(attributes(a), attributes(b)) for a, b in zip(some, others, strict=True)]
    shares = {key: float(np.mean([a[key] == b[key] for a, b in pairs])) for key in pairs[0][0]}
    return shares | {"everything": float(np.mean([a == b for a, b in pairs]))}


def compare(pictures: Pictures, prompts: Sequence[str] | None = None) -> dict[str, float]:
    """How often both judges agree on ``pictures``: by attribute, in everything and, given prompts, on following them.

    With prompts there is also the share of pictures that follow theirs, by judge.
    """
    verdicts = {name: make()(pictures) for name, make in JUDGES.items()}
    shares = agreement(*verdicts.values())
    if prompts is not None:
        asked = [parse(prompt) for prompt in prompts]
        followed = {
            name: np.array([a is not None and follows(a, s) for a, s in zip(asked, seen, strict=True)])
            for name, seen in verdicts.items()
        }
        learned, search = followed.values()
        shares["follows"] = float((learned == search).mean())
        shares |= {f"follows by {name}": float(hits.mean()) for name, hits in followed.items()}
    return shares


def in_words(scene: Scene) -> str:
    """A verdict on one line."""
    return f"{scene.style}: {context(scene)}{', tape' if scene.hazard else ''}"


def disagreements(pictures: Pictures, path: Path, at_most: int = 24) -> int:
    """Write a PNG of the pictures on which the judges differ, both verdicts beneath each; returns how many differ."""
    verdicts = {name: make()(pictures) for name, make in JUDGES.items()}
    both = enumerate(zip(*verdicts.values(), strict=True))
    differ = [n for n, (one, other) in both if attributes(one) != attributes(other)]
    columns, zoom, width, height = 4, 4, 300, 4 * SIDE + 90
    shown = differ[:at_most]
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(shown) // columns)) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for place, n in enumerate(shown):
        x, y = place % columns * width, place // columns * height
        picture = Image.fromarray(pictures[n]).resize((zoom * SIDE, zoom * SIDE), Image.Resampling.NEAREST)
        sheet.paste(picture, (x + 6, y + 6))
        lines = [f"picture {n}"]
        for name, seen in verdicts.items():
            lines += _wrapped(f"{name}: {in_words(seen[n])}", 48)
        pen.multiline_text((x + 6, y + zoom * SIDE + 9), "\n".join(lines), fill="black", spacing=1)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
    return len(differ)


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = "   " + word
        else:
            line = f"{line} {word}".strip()
    yield line


# ------------------------------------------------------------------ how good a judge is


def drawings(split: str, count: int, seed: int = 0, styles: Sequence[str] = STYLES) -> tuple[list[Scene], Pictures]:
    """Scenes of a split and a drawing of each: every style, with and without the tape, in equal parts."""
    rng = random.Random(f"judges:{split}:{seed}")
    plain = random_plain_scenes(split, rng)
    kinds = [(style, hazard) for style in styles for hazard in (False, True)]
    scenes = [replace(next(plain), style=style, hazard=hazard) for style, hazard in islice(cycle(kinds), count)]
    return scenes, np.stack([draw(scene, rng) for scene in scenes])


def accuracy(judge: Judge, scenes: Sequence[Scene], pictures: Pictures) -> dict[str, dict[str, float]]:
    """How often ``judge`` is right, by style (and ``all``) and attribute (and ``everything``)."""
    seen = judge(pictures)
    table = {"all": agreement(scenes, seen)}
    for style in dict.fromkeys(scene.style for scene in scenes):
        rows = [n for n, scene in enumerate(scenes) if scene.style == style]
        table[style] = agreement([scenes[n] for n in rows], [seen[n] for n in rows])
    return table
