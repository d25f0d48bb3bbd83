"""Training on pictures of several shapes: one step, several frames, and still a function of the position alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_train import assert_same, run

from mapo.encode.buckets import framing
from mapo.encode.fill import encode
from mapo.encode.seen import frames_of
from mapo.models import find_model, open_model
from mapo.pairs import PairSet, PairWriter
from mapo.sample.folder import png_bytes
from mapo.train.batches import Members, assemble, draws, portions
from tiny import make_flux

SHAPES = [(16, 16), (40, 20), (20, 40), (44, 20)]
IN_BUCKETS = {"buckets": True}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "mixed"
    rng = np.random.default_rng(0)
    with PairWriter(folder, {"made": "by a test"}) as writer:
        for k in range(12):
            wide, high = SHAPES[k % len(SHAPES)]
            both = (png_bytes(Image.fromarray(rng.integers(0, 256, (high, wide, 3), np.uint8))) for _ in range(2))
            writer.add_pair(f"a small red circle number {k}", *both, split="train")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sdxl, mixed):
    work = tmp_path_factory.mktemp("whole")
    return run(work / "run", sdxl, mixed, work / "cache", data=IN_BUCKETS), work / "cache"


def test_a_step_of_several_frames_is_the_same_in_any_portions(tmp_path, sdxl, mixed, whole):
    steps, cache = whole
    assert_same(run(tmp_path / "one", sdxl, mixed, cache, data=IN_BUCKETS, pairs_per_device=1), steps)
    assert_same(run(tmp_path / "two", sdxl, mixed, cache, data=IN_BUCKETS, pairs_per_device=2), steps)


def test_a_run_in_buckets_that_goes_on_is_the_uninterrupted_run(tmp_path, sdxl, mixed, whole):
    steps, cache = whole
    run(tmp_path / "r", sdxl, mixed, cache, data=IN_BUCKETS, steps=2)
    assert_same(run(tmp_path / "r", sdxl, mixed, cache, data=IN_BUCKETS), steps)


def test_training_says_in_which_frames_it_sees_the_pairs(tmp_path, sdxl, mixed, whole, heard):
    run(tmp_path / "r", sdxl, mixed, whole[1], data=IN_BUCKETS, steps=1)
    said = heard()
    assert "Seen in 3 frames, width × height and pairs of each: 20 × 12 (6), 16 × 16 (3), 12 × 20 (3)." in said


def test_square_pictures_are_trained_on_as_without_buckets(tmp_path, sdxl):
    squares = tmp_path / "squares"
    rng = np.random.default_rng(1)
    with PairWriter(squares, {"made": "by a test"}) as writer:
        for k in range(4):
            both = (png_bytes(Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))) for _ in range(2))
            writer.add_pair(f"number {k}", *both, split="train")
    one = run(tmp_path / "d", sdxl, squares, tmp_path / "e", steps=2)
    two = run(tmp_path / "f", sdxl, squares, tmp_path / "e", steps=2, data=IN_BUCKETS)
    timed = ("seconds", "pairs_per_second", "memory")
    assert [{k: v for k, v in line.items() if k not in timed} for line in one] == [
        {k: v for k, v in line.items() if k not in timed} for line in two
    ]


def test_a_batch_of_a_wide_frame_is_told_its_size_and_has_wide_latents(sdxl, mixed, whole):
    model, pairs = open_model(find_model(str(sdxl))), PairSet(mixed)
    among = frames_of(model, None, True)
    members = Members(pairs, np.arange(len(pairs)), framing(pairs, among))
    frame = members.frame(1)
    cache = encode(model, pairs, whole[1], buckets=True)
    drawn = draws([0], len(pairs), model.process, model.layout.latent(*frame), seed=0)
    row = [replace(one, row=1) for one in drawn]
    batch = assemble(members, row, cache, model, frame=frame)
    assert batch.latents.shape[-2:] == (frame.height // model.layout.stride, frame.width // model.layout.stride)
    assert batch.latents.shape[-1] > batch.latents.shape[-2] and batch.noise.shape[1:] == batch.latents.shape[1:]
    assert batch.cond["time_ids"].tolist() == [[20, 40, 0, 2, *frame]] * 2  # 24 × 12 pixels, of which 2 go on each side


def test_portions_are_of_one_kind_in_order_and_of_at_most_so_many():
    assert portions(range(7), 3, lambda _: None) == [[0, 1, 2], [3, 4, 5], [6]]
    assert portions([1, 2, 3, 4, 5, 7], 2, lambda n: n % 2) == [[1, 3], [5, 7], [2, 4]]


def test_a_flow_model_with_a_shift_by_resolution_trains_in_buckets_too(tmp_path, mixed):
    model = make_flux(tmp_path / "flux", dynamic=True)
    first = run(tmp_path / "r", model, mixed, tmp_path / "c", kind="lora", data=IN_BUCKETS, steps=2)
    again = run(tmp_path / "s", model, mixed, tmp_path / "c", kind="lora", data=IN_BUCKETS, steps=2, pairs_per_device=1)
    assert_same(again, first)
    assert all(np.isfinite(line["loss"]) for line in first)
