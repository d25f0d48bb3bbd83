"""The drawings: the same every time, and showing what the scene says."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mapo.lab.mini import scenes
from mapo.lab.mini.draw import (
    BACKGROUND_RGB,
    BLOCK,
    RGB,
    SIDE,
    TAPE_BLACK,
    TAPE_HEIGHT,
    TAPE_TOP,
    TAPE_YELLOW,
    UNSEEN,
    draw,
    pose,
)
from mapo.lab.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    STYLES,
    Scene,
    Thing,
    canonical,
    one_object_scenes,
    random_two_object_scene,
)

DRAWN = (*STYLES, UNSEEN)
TAPE_ROWS = dict.fromkeys(STYLES, (TAPE_TOP, TAPE_TOP + TAPE_HEIGHT)) | {"pixel art": (TAPE_TOP, TAPE_TOP + 6)}
EDGE = {"realistic": (0, 2), "cartoon": (1, 1), "pixel art": (0, 0), "sketch": (0, 0)}  # rows of shade above and below


def some_scenes() -> list[Scene]:
    rng = random.Random(0)
    return [*one_object_scenes()[::29], *(random_two_object_scene(rng) for _ in range(16))]


def difference(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.abs(one.astype(np.int64) - two.astype(np.int64))


@pytest.mark.parametrize("style", DRAWN)
@pytest.mark.parametrize("hazard", [False, True])
def test_a_drawing_is_48_by_48_rgb_and_the_same_from_the_same_seed(style: str, hazard: bool) -> None:
    for scene in (replace(s, style=style, hazard=hazard) for s in some_scenes()):
        picture = draw(scene, random.Random(7))
        assert (picture.shape, picture.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert np.array_equal(picture, draw(scene, random.Random(7)))
        assert np.array_equal(picture, draw(scene, at=pose(scene, random.Random(7))))


def test_without_a_generator_the_average_pose_is_drawn() -> None:
    for scene in some_scenes():
        assert np.array_equal(draw(scene), draw(scene, at=pose(scene)))


def test_a_drawing_takes_its_chance_only_from_its_generator() -> None:
    scene = some_scenes()[0]
    random.seed(1)
    one = draw(scene, random.Random(7))
    random.seed(2)
    assert np.array_equal(one, draw(scene, random.Random(7)))


@pytest.mark.parametrize("style", DRAWN)
def test_another_seed_moves_the_drawing(style: str) -> None:
    rng = random.Random(0)
    pictures = {draw(Scene((Thing("red", "star", "small"),), "white", style=style), rng).tobytes() for _ in range(20)}
    assert len(pictures) >= 10


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations(DRAWN, 2)))
def test_the_styles_differ_far_more_than_two_drawings_of_one(one: str, two: str) -> None:
    for scene in some_scenes():
        at = pose(replace(scene, style="pixel art"))  # on the grid, so that nothing but the style differs
        pictures = [draw(replace(scene, style=style), at=at) for style in (one, two)]
        assert difference(*pictures).mean() > 4


def test_every_shape_colour_and_background_can_be_told_apart() -> None:
    for style in DRAWN:
        plain = Scene((Thing("red", "circle", "large"),), "white", style=style)
        scenes = [replace(plain, things=(Thing("red", shape, "large"),)) for shape in SHAPES]
        scenes += [replace(plain, things=(Thing(colour, "circle", "large"),)) for colour in COLOURS[1:]]
        scenes += [replace(plain, background=background) for background in BACKGROUNDS[1:]]
        for one, two in itertools.combinations([draw(scene) for scene in scenes], 2):
            assert difference(one, two).mean() > 1.5


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_flat_styles_have_the_very_colours_that_the_scene_names(colour: str, background: str) -> None:
    scene = Scene((Thing(colour, "square", "large"),), background)
    cartoon = draw(replace(scene, style="cartoon"))
    assert cartoon[20, 24].tolist() == [round(c * 0.94 + 20) for c in RGB[colour]]
    assert cartoon[0, 0].tolist() == list(BACKGROUND_RGB[background])
    blocks = draw(replace(scene, style="pixel art"))
    assert blocks[21, 24].tolist() == list(RGB[colour])
    assert blocks[0, 0].tolist() == list(BACKGROUND_RGB[background])


def test_a_large_object_covers_more_than_a_small_one() -> None:
    for shape in SHAPES:
        areas = []
        for size in ("small", "large"):
            scene = Scene((Thing("red", shape, size),), "white", style="cartoon")
            areas.append((difference(draw(scene), np.uint8(BACKGROUND_RGB["white"])).sum(-1) > 30).sum())
        assert areas[1] > 1.8 * areas[0]


def middle(picture: NDArray[np.uint8], colour: str) -> tuple[float, float]:
    """The mean (x, y) of the pixels that have the colour of a cartoon's object."""
    at = difference(picture, np.array([round(c * 0.94 + 20) for c in RGB[colour]], np.uint8)).sum(-1) <= 3
    assert at.sum() > 20
    y, x = np.nonzero(at)
    return float(x.mean()), float(y.mean())


@pytest.mark.parametrize("relation", RELATIONS)
def test_objects_stand_as_their_relation_says(relation: str) -> None:
    rng = random.Random(3)
    for first, second in itertools.permutations(SHAPES, 2):
        scene = Scene((Thing("red", first), Thing("blue", second)), "white", relation, "cartoon")
        picture = draw(scene, rng)
        (x1, y1), (x2, y2) = middle(picture, "red"), middle(picture, "blue")
        across, down = x2 - x1, y2 - y1
        ahead = {"left of": across, "right of": -across, "above": down, "below": -down}[relation]
        aside = down if relation in ("left of", "right of") else across
        assert ahead > 12
        assert ahead > abs(aside)


def test_a_scene_told_from_the_other_side_is_the_same_drawing() -> None:
    for scene in some_scenes():
        for style in STYLES:
            told = replace(scene, style=style)
            assert difference(draw(told), draw(canonical(told))).max() <= 1  # the order of drawing rounds


@pytest.mark.parametrize("style", STYLES)
def test_the_tape_lies_in_its_rows_across_the_whole_picture_and_nowhere_else(style: str) -> None:
    first, last = TAPE_ROWS[style]
    above, below = EDGE[style]
    rng = random.Random(5)
    for scene in (replace(s, style=style) for s in some_scenes()):
        at = pose(scene, rng)
        plain, taped = draw(scene, at=at), draw(replace(scene, hazard=True), at=at)
        changed = difference(plain, taped).sum(-1) > 0
        assert not changed[: first - above].any()
        assert not changed[last + below :].any()
        assert changed[first:last].mean() > 0.9  # black on black and yellow on yellow change nothing
        stripes = taped[first:last].reshape(-1, 3).astype(np.float64)
        distance = [np.abs(stripes - colour).sum(-1) for colour in (TAPE_YELLOW, TAPE_BLACK)]
        share = (distance[0] < distance[1]).mean()
        assert 0.35 < share < 0.65


def test_the_tape_has_room_below_the_objects() -> None:
    rng = random.Random(6)
    alone = [Scene((Thing("blue", shape, size),), "white") for shape in SHAPES for size in ("small", "large")]
    both = itertools.product(itertools.permutations(SHAPES, 2), ("above", "below"))
    stacked = [Scene((Thing("blue", one), Thing("red", two)), "white", relation) for (one, two), relation in both]
    for scene in alone + stacked:
        for _ in range(3):
            picture = draw(replace(scene, style="cartoon"), rng)
            drawn = difference(picture, np.array(BACKGROUND_RGB["white"], np.uint8)).sum(-1) > 60
            assert drawn[TAPE_TOP:].sum() < 0.04 * drawn.sum()


def test_pixel_art_is_made_of_whole_blocks() -> None:
    for scene in some_scenes():
        picture = draw(replace(scene, style="pixel art", hazard=True), random.Random(2))
        blocks = picture.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()


def test_a_brighter_light_makes_a_brighter_realistic_picture() -> None:
    scene = Scene((Thing("red", "circle", "large"),), "gray")
    average = pose(scene)
    dark, bright = (draw(scene, at=replace(average, light=light)).mean() for light in (0.95, 1.05))
    assert bright / dark == pytest.approx(1.05 / 0.95, rel=0.01)


def test_no_two_shapes_of_a_size_and_style_share_a_drawing() -> None:
    for style in scenes.STYLES:
        for size in scenes.SIZES:
            drawn = [
                draw(scenes.Scene((scenes.Thing("red", shape, size),), "white", style=style)).astype(int)
                for shape in scenes.SHAPES
            ]
            for k, one in enumerate(drawn):
                for other in drawn[:k]:
                    assert (np.abs(one - other).max(-1) > 40).sum() >= 30, (style, size)
