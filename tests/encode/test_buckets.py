"""Wide and tall pictures are seen in frames of their shape, both of a pair in the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapo.check.check import check_pairs
from mapo.encode.buckets import framed, frames, framing, nearest
from mapo.encode.cache import cache_key
from mapo.encode.fill import encode, holds_all
from mapo.encode.frame import Frame, share_cut_away, square
from mapo.encode.seen import frames_of, what_training_sees
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet, PairWriter
from mapo.sample.folder import png_bytes

# Of 1024 pixels the frames that SDXL was trained in, as its paper lists them (arXiv 2307.01952, appendix I), in part.
PUBLISHED = [(1024, 1024), (960, 1088), (1152, 896), (832, 1216), (1344, 768), (640, 1600), (2048, 512)]


def noise(size: tuple[int, int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return png_bytes(Image.fromarray(pixels))


@pytest.fixture(scope="module")
def model(sdxl):
    return open_model(find_model(str(sdxl)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Squares, wide and tall pairs, and a picture that stands in a square pair and in a wide one."""
    folder = tmp_path_factory.mktemp("sets") / "mixed"
    shapes = [(16, 16), (40, 20), (20, 40), (16, 16), (44, 20), (32, 8)]
    twice = noise((16, 16), 99)
    with PairWriter(folder, {"made": "by a test"}) as writer:
        for k, size in enumerate(shapes):
            writer.add_pair(f"a red circle {k}", noise(size, 2 * k), noise(size, 2 * k + 1), split="train")
        writer.add_pair("a green star", twice, noise((16, 16), 50), split="train")
        writer.add_pair("a blue star", twice, noise((64, 16), 51), split="train")
    return folder


def test_the_frames_of_a_thousand_pixels_hold_those_that_sdxl_was_trained_in():
    found = frames(1024, 32)
    assert found[0] == square(1024) and set(PUBLISHED) <= set(found) and len(set(found)) == len(found)
    assert all(f.height % 64 == f.width % 64 == 0 and f.height * f.width <= 1024**2 for f in found)
    assert {(f.width, f.height) for f in found} == set(found)  # each shape lying and standing
    assert max(max(f) for f in frames(1024, 16, most=1536)) == 1536 < max(max(f) for f in frames(1024, 16))


@given(st.floats(-1.38, 1.38), st.sampled_from([(512, 64, 1 / 4), (768, 64, 1 / 6), (1024, 32, 1 / 7)]))
@settings(deadline=None)
def test_little_of_a_picture_up_to_four_times_as_long_as_wide_is_cut_away(shape, of):
    side, multiple, most = of
    found = frames(side, multiple)
    nearest_one = found[int(nearest(np.array([shape]), found)[0])]
    lost = share_cut_away(3000 * np.exp(shape / 2), 3000 * np.exp(-shape / 2), nearest_one.width, nearest_one.height)
    assert lost < most


def test_both_pictures_of_a_pair_have_one_frame_and_a_picture_has_one_in_each_pair(mixed, model):
    pairs = PairSet(mixed)
    seen = framing(pairs, frames_of(model, 16, True))
    by_prompt = {pair.prompt: seen.of(row) for row, pair in enumerate(pairs)}
    assert by_prompt["a red circle 0"] == by_prompt["a green star"] == square(16)
    assert by_prompt["a red circle 1"].width > by_prompt["a red circle 1"].height
    assert by_prompt["a red circle 2"] == by_prompt["a red circle 1"][::-1]
    assert by_prompt["a blue star"] == (12, 20)  # the nearest to 2 : 1, which is between a square and 4 : 1
    numbers, which = seen.pictures(pairs)
    assert len(numbers) == 2 * len(pairs)  # the picture that is in two pairs stands there twice
    assert sorted(which.tolist()) == which.tolist()


def test_the_cache_keeps_a_picture_once_for_each_frame_and_shares_squares_with_a_cache_without_buckets(
    mixed, model, tmp_path
):
    pairs, among = PairSet(mixed), frames_of(model, 16, True)
    plain = encode(model, pairs, tmp_path / "c", resolution=16)
    key = cache_key(model, 16)
    assert holds_all(model, pairs, tmp_path / "c", key) and not holds_all(
        model, pairs, tmp_path / "c", key, among=among
    )
    one = plain.latents(pairs[0].chosen, False)
    cache = encode(model, pairs, tmp_path / "c", resolution=16, buckets=True)
    assert holds_all(model, pairs, tmp_path / "c", key, among=among) and holds_all(model, pairs, tmp_path / "c", key)
    assert all((a == b).all() for a, b in zip(one, cache.latents(pairs[0].chosen, False, square(16)), strict=True))
    seen = framing(pairs, among)
    for row, pair in enumerate(pairs):
        for name in (pair.chosen, pair.rejected):
            frame = seen.of(row)
            assert cache.latents(name, False, frame)[0].shape == model.layout.latent(*frame)
    wide = next(row for row, pair in enumerate(pairs) if pair.prompt == "a red circle 5")  # 32 × 8 in its own shape
    height, width, top, left = cache.size(pairs[wide].chosen, seen.of(wide)).tolist()
    assert (height, width) == (8, 32) and top >= 0 and left >= 0


def test_two_shares_of_the_work_make_the_whole(mixed, model, tmp_path):
    pairs, among = PairSet(mixed), frames_of(model, 16, True)
    for number in (0, 1):
        encode(model, pairs, tmp_path / "c", resolution=16, buckets=True, shard=(number, 2))
    assert holds_all(model, pairs, tmp_path / "c", cache_key(model, 16), among=among)


def test_what_is_cut_away_is_counted_by_check_and_training_alike(mixed, model, sdxl, tmp_path):
    pairs = PairSet(mixed)
    without = what_training_sees(pairs, model, resolution=16)
    inside = what_training_sees(pairs, model, resolution=16, buckets=True)
    assert without.cropped == 9 and inside.cropped < without.cropped
    assert f"{inside.cropped} picture" in inside.line()
    line = check_pairs(pairs, tmp_path / "check.html", model=str(sdxl), buckets=True)["findings"]
    said = next(finding["says"] for finding in line if finding["name"] == "trained_on")
    assert said == what_training_sees(pairs, model, buckets=True).line()
    mostly = [f for f in check_pairs(pairs, tmp_path / "c.html", model=str(sdxl))["findings"] if "crop" in f["name"]]
    less = [f for f in line if "crop" in f["name"]]
    assert sum(f["count"] for f in less) < sum(f["count"] for f in mostly)


def test_buckets_without_a_model_are_refused_by_check(mixed, tmp_path):
    with pytest.raises(MapoError, match="--buckets depends on"):
        check_pairs(PairSet(mixed), tmp_path / "check.html", buckets=True)


def test_the_name_in_a_frame_is_the_pictures_own_in_the_square_and_a_hash_elsewhere():
    name = "ab" * 32
    assert framed(name, square(16), 16) == name
    others = {framed(name, frame, 16) for frame in (Frame(8, 32), Frame(32, 8), square(24))}
    assert len(others) == 3 and all(len(other) == 64 for other in others)
