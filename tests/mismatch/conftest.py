"""A style that the built-in model does not draw, and what was measured of it."""

import pytest
from mismatch_sets import COUNT, STEPS, drawn, write_pairs

from mapo.lab.mini import scenes
from mapo.mismatch.mismatch import measure


@pytest.fixture(scope="module")
def style_set(tmp_path_factory):
    """Pixel art as chosen and realistic drawings as rejected, which is what the built-in model draws."""
    plain = [scene for scene in scenes.one_object_scenes() if scenes.scene_split(scene) == "train"][:COUNT]
    rows = [(scenes.context(s), drawn("pixel art", k, s), drawn("realistic", k, s)) for k, s in enumerate(plain)]
    return write_pairs(tmp_path_factory.mktemp("sets") / "style", rows)


@pytest.fixture(scope="module")
def style(style_set, tmp_path_factory):
    """The measured style set, and the folder of own samples."""
    images = tmp_path_factory.mktemp("own") / "images"
    return measure("mini", style_set, images, steps=STEPS, draws=4), images
