"""Sets of drawings."""

import random
from dataclasses import replace

from PIL import Image

from mapo.lab.mini.draw import draw as draw_scene
from mapo.pairs.pairs import PairWriter
from mapo.sample.folder import png_bytes

COUNT, STEPS = 20, 4


def write_pairs(folder, rows, split="train"):
    """A set of (prompt, chosen PNG, rejected PNG)."""
    with PairWriter(folder, {"made": "by a test"}) as writer:
        for prompt, chosen, rejected in rows:
            writer.add_pair(prompt, chosen, rejected, split=split)
    return folder


def drawn(style, seed, scene):
    return png_bytes(Image.fromarray(draw_scene(replace(scene, style=style), random.Random(seed))))
