"""A folder of drawings of the built-in world with their captions beside them, as somebody's own pictures would lie."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mapo.errors import MapoError, suggest
from mapo.files import replacing
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw


def write_pictures(out: Path, style: str, number: int, seed: int = 0) -> int:
    """Write so many drawings in a style into a new folder, and what each shows into a text of its name; how many.

    No two have the same caption, none says the style, and all are scenes that may be trained on.
    """
    if style not in scenes.STYLES:
        raise MapoError(f"There is no style {style!r}. {suggest(style, scenes.STYLES)}")
    most = len(scenes.prompts("train"))
    if not 1 <= number <= most:
        raise MapoError(f"--pictures {number}: give 1 to {most}, as many different captions as there are.")
    if out.exists():
        raise MapoError(f"{out} is there already. Delete it, or choose another --out.")
    rng = random.Random(seed)
    found: dict[str, scenes.Scene] = {}
    for scene in scenes.random_plain_scenes("train", rng):
        found.setdefault(scenes.context(scene), scene)
        if len(found) == number:
            break
    with replacing(out) as temporary:
        temporary.mkdir()
        for place, (caption, scene) in enumerate(found.items(), 1):
            path = temporary / f"{place:03d}.png"
            Image.fromarray(draw(replace(scene, style=style), rng)).save(path)
            path.with_suffix(".txt").write_text(f"{caption}\n", "utf-8")
    return len(found)
