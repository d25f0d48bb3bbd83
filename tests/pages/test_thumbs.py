import base64
import io
import random

import numpy as np
import pytest
from PIL import Image
from worlds import make_images

from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.pages.thumbs import MOST_BYTES_EACH, SIDES, embed, room, spread
from mapo.report.cards import EXTREMES
from mapo.report.report import SHOWN_PAIRS

MOST_PICTURES = 2 * (SHOWN_PAIRS + 2 * EXTREMES)


def opened(uri):
    data = base64.b64decode(uri.split(",")[1])
    return Image.open(io.BytesIO(data)), len(data)


def test_pictures_of_the_built_in_world_are_embedded_to_the_pixel(tmp_path):
    scene = scenes.parse(scenes.prompts("test")[0])
    drawn = draw(scene, random.Random(0))
    row = make_images(tmp_path, "b", ["p"], (0,), lambda *_: Image.fromarray(drawn))[0]
    uri, tiny = embed(tmp_path, row, room(MOST_PICTURES))
    assert tiny and uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(opened(uri)[0]), drawn)


@pytest.mark.parametrize("pictures", [2, 300, MOST_PICTURES])
def test_large_pictures_keep_within_their_bytes_even_when_they_are_noise(tmp_path, pictures):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    row = make_images(tmp_path, "b", ["p"], (0,), lambda *_: Image.fromarray(noise))[0]
    side, most = room(pictures)
    uri, tiny = embed(tmp_path, row, (side, most))
    picture, size = opened(uri)
    assert not tiny and size <= most
    assert picture.format == "WEBP" and max(picture.size) <= side
    assert picture.width / picture.height == pytest.approx(9 / 7, abs=0.02)


def test_a_picture_as_people_paint_them_keeps_its_side(tmp_path):
    smooth = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize((1024, 1024), Image.Resampling.BICUBIC)
    row = make_images(tmp_path, "b", ["p"], (0,), lambda *_: picture)[0]
    for pictures, side in ((100, 512), (350, 448), (MOST_PICTURES, 384)):
        assert opened(embed(tmp_path, row, room(pictures))[0])[0].size == (side, side)


def test_small_pictures_of_noise_still_keep_within_their_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    row = make_images(tmp_path, "b", ["p"], (0,), lambda *_: Image.fromarray(noise))[0]
    side, most = room(MOST_PICTURES)
    assert opened(embed(tmp_path, row, (side, most))[0])[1] <= most


def test_fewer_pictures_get_more_room_and_a_page_cannot_grow_beyond_15_megabytes():
    sizes = [room(n) for n in range(1, MOST_PICTURES + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == (SIDES[0][1], MOST_BYTES_EACH)
    assert max(n * most for n, (_, most) in enumerate(sizes, 1)) * 4 / 3 < 14e6


def test_shown_pairs_take_every_prompt_once_before_any_twice():
    prompts = [name for name in "abcde" for _ in range(3)]
    assert [prompts[i] for i in spread(prompts, 5)] == list("abcde")
    assert [prompts[i] for i in spread(prompts, 7)] == [*"abcde", "a", "c"]
    assert sorted(spread(prompts, 99)) == list(range(15))
    assert spread([str(i) for i in range(100)], 4) == [0, 25, 50, 75]
