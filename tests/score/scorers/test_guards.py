"""The guards against their formulas, computed one pixel at a time, and what must hold for any picture."""

import colorsys
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapo.score.scorers import load_scorer
from mapo.score.scorers.guards import lab

GUARDS = load_scorer("guards")
METRICS = ("saturation", "edge_density", "colour_entropy", "diversity")


def noise(size, seed=0):
    return Image.frombytes("RGB", size, random.Random(f"{size} {seed}").randbytes(3 * size[0] * size[1]))


def smooth(size, seed=0):
    return noise((3, 3), seed).resize(size, Image.Resampling.BICUBIC)


def of(picture):
    return {name: values[0] for name, values in GUARDS([picture], ["a"]).items()}


def lab_of_pixel(red, green, blue):
    """CIE 15 and IEC 61966-2-1 for one pixel, by scalars."""
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red / 255, green / 255, blue / 255)]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    ratios = [sum(m * c for m, c in zip(row, light, strict=True)) / sum(row) for row in rows]
    x, y, z = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in ratios)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def pixels_of(picture):
    width, height = picture.size
    return [[picture.getpixel((x, y)) for x in range(width)] for y in range(height)]


PICTURES = [noise((7, 5)), noise((2, 9), 1), smooth((40, 31)), smooth((33, 48), 2), noise((1, 1))]


def test_lab_is_that_of_the_standard():
    for colour, known in {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (119, 119, 119): (50.03, 0, 0),
    }.items():
        assert lab(np.array(colour, np.uint8)) == pytest.approx(known, abs=0.05)
        assert lab(np.array(colour, np.uint8)) == pytest.approx(lab_of_pixel(*colour), abs=1e-9)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p.size}")
def test_saturation_is_the_mean_chroma(picture):
    chroma = [math.hypot(*lab_of_pixel(*pixel)[1:]) for row in pixels_of(picture) for pixel in row]
    assert of(picture)["saturation"] == pytest.approx(math.fsum(chroma) / len(chroma), rel=1e-12)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p.size}")
def test_edge_density_is_the_share_of_steep_pixels_by_sobel(picture):
    luma = [[(0.299 * r + 0.587 * g + 0.114 * b) / 255 for r, g, b in row] for row in pixels_of(picture)]
    width, height = picture.size

    def at(x, y):
        return luma[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    steep = 0
    for y in range(height):
        for x in range(width):
            right, down = (
                sum(w * (at(x + 1, y + d) - at(x - 1, y + d)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 8,
                sum(w * (at(x + d, y + 1) - at(x + d, y - 1)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 8,
            )
            steep += math.sqrt(right**2 + down**2) > 0.05
    assert of(picture)["edge_density"] == pytest.approx(steep / (width * height), abs=1e-12)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p.size}")
def test_colour_entropy_is_that_of_a_histogram_of_512_colours(picture):
    counts = Counter((r // 32, g // 32, b // 32) for row in pixels_of(picture) for r, g, b in row)
    total = sum(counts.values())
    bits = -sum(n / total * math.log2(n / total) for n in counts.values())
    assert of(picture)["colour_entropy"] == pytest.approx(bits, abs=1e-12)


def test_diversity_is_the_mean_distance_to_the_others_of_the_prompt():
    pictures = [smooth((64, 64), k) for k in range(5)]
    prompts = ["a cat", "a dog", "A  cat", "a cat", "a horse"]
    small = [
        [lab_of_pixel(*pixel) for row in pixels_of(p.resize((32, 32), Image.Resampling.BOX)) for pixel in row]
        for p in pictures
    ]

    def distance(one, other):
        return sum(math.dist(a, b) for a, b in zip(small[one], small[other], strict=True)) / 1024

    cats = (0, 2, 3)
    want = {k: sum(distance(k, j) for j in cats if j != k) / 2 for k in cats}
    found = GUARDS(pictures, prompts)["diversity"]
    assert [found[k] for k in cats] == pytest.approx([want[k] for k in cats], rel=1e-12)
    assert found[1] is None and found[4] is None


def test_a_picture_that_is_all_edges_and_known_colours():
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))
    black.paste("white", (4, 0, 8, 8))
    assert of(black) == {"saturation": 0, "edge_density": 2 / 8, "colour_entropy": 1, "diversity": None}
    ramp = Image.new("RGB", (8, 1))
    ramp.putdata([(k * 12,) * 3 for k in range(8)])  # 0.047 a pixel, below the 0.05 that counts
    assert of(ramp)["edge_density"] == 0
    ramp.putdata([(k * 14,) * 3 for k in range(8)])  # 0.055 a pixel, but at the border it goes on flat
    assert of(ramp)["edge_density"] == 6 / 8
    both = GUARDS([white, Image.new("RGB", (8, 8))], ["a", "a"])["diversity"]
    assert both == pytest.approx([100, 100], abs=1e-9)


COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=30, deadline=None)
@given(COLOURS, SIZES)
def test_a_picture_of_one_colour_has_no_edges_and_no_entropy(colour, size):
    found = of(Image.new("RGB", size, colour))
    assert (found["edge_density"], found["colour_entropy"]) == (0, 0)
    assert math.copysign(1, found["colour_entropy"]) == 1


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(0, 99))
def test_a_grey_picture_has_no_saturation(size, seed):
    assert of(noise(size, seed).convert("L").convert("RGB"))["saturation"] == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99))
def test_more_vivid_colours_are_more_saturated(seed):
    hue = random.Random(seed).random()
    steps = [
        Image.new("RGB", (4, 4), tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, s, 0.8)))
        for s in (0.1, 0.4, 0.9)
    ]
    values = [of(picture)["saturation"] for picture in steps]
    assert values[0] < values[1] < values[2]


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(2, 5))
def test_equal_pictures_have_no_diversity(size, seed, count):
    assert GUARDS([noise(size, seed)] * count, ["a"] * count)["diversity"] == [0] * count


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b"])), min_size=1, max_size=7), st.randoms())
def test_order_changes_nothing_but_rounding_and_other_prompts_nothing(asked, rng):
    pictures, prompts = [smooth((20, 30), k) for k, _ in asked], [prompt for _, prompt in asked]
    found = GUARDS(pictures, prompts)
    order = rng.sample(range(len(asked)), len(asked))
    turned = GUARDS([pictures[k] for k in order], [prompts[k] for k in order])
    alone = [k for k, prompt in enumerate(prompts) if prompt == "a"]
    apart = GUARDS([pictures[k] for k in alone], ["a"] * len(alone))
    for metric in METRICS:
        for values, places in ((turned, order), (apart, alone)):
            for got, place in zip(values[metric], places, strict=True):
                want = found[metric][place]
                assert got is want is None or got == pytest.approx(want, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_resolution_changes_little_above_256_pixels(metric):
    from mapo.lab.mini.draw import draw
    from mapo.lab.mini.scenes import parse

    texts = ("a small red circle on a gray background", "a large blue star on a white background")
    scenes = [Image.fromarray(draw(parse(text))) for text in texts]
    found = []
    for side in (256, 512, 1024):
        pictures = [scene.resize((side, side), Image.Resampling.BICUBIC) for scene in scenes]
        found.append(GUARDS(pictures, ["a", "a"])[metric][0])
    assert found[0] > 0 and found[1:] == pytest.approx([found[0]] * 2, rel=0.1)


def test_ranges_hold_at_the_most_colourful_noise():
    found = GUARDS([noise((300, 300), k) for k in range(2)], ["a", "a"])
    assert 0 < found["saturation"][0] < 134 and 0 < found["edge_density"][0] <= 1
    assert 8.9 < GUARDS([noise((200, 200))], ["a"])["colour_entropy"][0] <= 9


def test_swapped_arguments_are_refused():
    with pytest.raises(TypeError, match="guards takes a picture and its prompt, in this order"):
        GUARDS(["a"], [noise((4, 4))])


def test_guards_need_no_torch():
    import subprocess
    import sys

    code = "import sys, mapo.score.scorers as s; s.load_scorer('guards'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
