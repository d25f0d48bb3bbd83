"""Sets with pairs that are held out."""

import random
from pathlib import Path

from PIL import Image

from mapo.pairs import PairWriter
from mapo.sample.folder import png_bytes


def noise(rng: random.Random, size: tuple[int, int] = (20, 16), light: int = 0) -> bytes:
    data = bytes(min(255, light + rng.randrange(256 - light)) for _ in range(3 * size[0] * size[1]))
    return png_bytes(Image.frombytes("RGB", size, data))


def make_held_out(
    folder: Path, train: int = 8, held: int = 6, info=None, light: int = 0, shared: int = 0, wide: int = 0
) -> Path:
    """Pairs of noise, some in ``validation``. ``light``: how much brighter than black the darkest chosen pixel is;
    ``shared``: so many held-out prompts are also trained on; ``wide``: pixels by which every second pair is wider."""
    rng = random.Random(5)
    with PairWriter(folder, {"made": "by a test"}, **(info or {})) as writer:
        for k in range(train + held):
            prompt = f"a circle number {k - train if train <= k < train + shared else k}"
            split = "train" if k < train else "validation"
            size = (20 + wide * (k % 2), 16)
            writer.add_pair(prompt, noise(rng, size, light), noise(rng, size), split=split)
    return folder
