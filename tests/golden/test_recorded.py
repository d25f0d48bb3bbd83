"""What 0.1.0 did right, held still: see recorded.py."""

import json

import numpy as np
import pytest

from golden import recorded

FOUND = json.loads(recorded.RECORDS.read_text())
HERE = recorded.environment()
MACHINES = [machine["environment"] for machine in FOUND["machines"]]  # each recorded with the code of 0.1.0


RECORDED = HERE in MACHINES
MACHINE = FOUND["machines"][MACHINES.index(HERE) if RECORDED else 0]
PORTABLE = FOUND["portable"]
FIRST = MACHINES[0] == HERE  # the one that made the pictures, pairs and scores


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


def assert_near(now: dict, then: dict, tolerance: float) -> None:
    near = {"rel": tolerance, "abs": tolerance}
    for step, (ours, theirs) in enumerate(zip(now["steps"], then["steps"], strict=True), 1):
        assert ours == pytest.approx(theirs, **near), f"step {step}"
    assert now["sum_of_squares"] == pytest.approx(then["sum_of_squares"], **near)


IN_SINGLE = [run for run in recorded.RUNS if run[0] == "float32"]
TWO_OF_THEM = [run for run in IN_SINGLE if run[1] in ("mapo", "dpo")]


@pytest.mark.parametrize("run", IN_SINGLE if RECORDED else TWO_OF_THEM, ids="/".join)
def test_twenty_steps_are_those_that_were_recorded(run, work):
    now, then = recorded.trajectory(*run, work), MACHINE["runs"]["/".join(run)]
    if RECORDED:
        assert now == then
    else:
        assert_near(now, then, 1e-5)


IN_DOUBLE = [("float64", "mapo", "full"), ("float64", "dpo", "lora")]


@pytest.mark.parametrize("run", IN_DOUBLE if RECORDED else recorded.PORTABLE, ids="/".join)
def test_twenty_steps_are_on_every_machine_those_that_were_recorded(run, work):
    """Two of them are enough where all objectives are compared to the bit in single precision."""
    now, then = recorded.portable(run, work), PORTABLE["runs"]["/".join(run)]
    if PORTABLE["environment"] == HERE:
        assert now == then
    else:
        assert_near(now, then, 1e-10)


def test_the_set_is_encoded_as_it_was(tmp_path):
    now, then = recorded.encoded(tmp_path / "cache"), recorded.tensors_of(recorded.CACHE)
    assert now.keys() == then.keys()
    for name in then:
        if FIRST:
            assert np.array_equal(now[name], then[name])
        else:
            assert now[name] == pytest.approx(then[name], rel=1e-5, abs=1e-5)


def assert_same_pixels(one: np.ndarray, two: np.ndarray) -> None:
    if FIRST:
        assert np.array_equal(one, two)
    else:  # another machine rounds some values to the next of 256
        assert np.abs(one.astype(int) - two.astype(int)).mean() < 0.05


def test_a_build_makes_the_pairs_that_were_recorded(tmp_path):
    now, then = recorded.built(tmp_path / "pairs"), recorded.recorded_pairs()
    assert [pair["prompt"] for pair in now] == [pair["prompt"] for pair in then]
    for ours, theirs in zip(now, then, strict=True):
        assert_same_pixels(ours["chosen"], theirs["chosen"])
        assert_same_pixels(ours["rejected"], theirs["rejected"])


def test_sampling_makes_the_pictures_that_were_recorded(tmp_path):
    now, then = recorded.sampled(tmp_path / "images"), recorded.pictures_of(recorded.IMAGES)
    assert now.keys() == then.keys() and len(now) == 16
    for name in then:
        assert_same_pixels(now[name], then[name])


def test_scores_are_those_that_were_recorded(tmp_path):
    now = recorded.scores(tmp_path / "scores.parquet")
    assert [row[:5] for row in now] == [row[:5] for row in FOUND["scores"]]
    for ours, theirs in zip(now, FOUND["scores"], strict=True):
        same = FIRST or theirs[5] is None
        assert ours[5] == (theirs[5] if same else pytest.approx(theirs[5], rel=1e-5, abs=1e-5)), ours[:4]
