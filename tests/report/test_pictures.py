import base64
import io
import random

import numpy as np
import pytest
from PIL import Image
from worlds import make_images

from mapo.mini import scenes
from mapo.mini.draw import draw
from mapo.report import EXTREMES, SHOWN_PAIRS
from mapo.report.pictures import LARGE_BYTES, LARGE_SIDE, THUMB_BYTES, THUMB_SIDE, embed, spread


def test_pictures_of_the_built_in_world_are_embedded_to_the_pixel(tmp_path):
    scene = scenes.parse(scenes.prompts("test")[0])
    drawn = draw(scene, random.Random(0))
    row = make_images(tmp_path, "b", ["p"], (0,), lambda *_: Image.fromarray(drawn))[0]
    small, large, tiny = embed(tmp_path, row)
    assert (large, tiny) == ("", True)
    kind, data = small.split(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), drawn)


def test_large_pictures_keep_within_their_bytes_even_when_they_are_noise(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    row = make_images(tmp_path, "b", ["p"], (0,), lambda *_: Image.fromarray(noise))[0]
    for uri, side, most in zip(
        embed(tmp_path, row)[:2], (THUMB_SIDE, LARGE_SIDE), (THUMB_BYTES, LARGE_BYTES), strict=True
    ):
        data = base64.b64decode(uri.split(",")[1])
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, max(picture.size)) == ("WEBP", side)
        assert picture.width / picture.height == pytest.approx(9 / 7, abs=0.01)
        assert len(data) <= most


def test_a_page_cannot_grow_beyond_15_megabytes():
    pictures = 2 * (SHOWN_PAIRS + 2 * EXTREMES + 1)
    assert pictures * (THUMB_BYTES + LARGE_BYTES) * 4 / 3 < 14e6


def test_shown_pairs_take_every_prompt_once_before_any_twice():
    prompts = [name for name in "abcde" for _ in range(3)]
    assert [prompts[i] for i in spread(prompts, 5)] == list("abcde")
    assert [prompts[i] for i in spread(prompts, 7)] == [*"abcde", "a", "c"]
    assert sorted(spread(prompts, 99)) == list(range(15))
    assert spread([str(i) for i in range(100)], 4) == [0, 25, 50, 75]
