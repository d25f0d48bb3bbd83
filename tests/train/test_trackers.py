"""Other programs are told the numbers too, where they are installed."""

import importlib.util

import pytest
from held import make_held_out

from mapo.api import train
from mapo.errors import MapoError


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_tracker_that_is_not_installed_is_refused_with_how_to_install_it(tmp_path, sdxl):
    pairs = make_held_out(tmp_path / "pairs", 3, 2)
    with pytest.raises(
        MapoError, match=r"tensorboard is not installed. Install it with: pip install tensorboard. Or leave"
    ):
        train(model=sdxl, pairs=pairs, out=tmp_path / "r", settings={"train.trackers": ["tensorboard"]})
    assert not (tmp_path / "r").exists() and not (tmp_path / "cache").exists()


def test_an_unknown_tracker_is_refused_with_those_that_are_known(tmp_path, sdxl):
    with pytest.raises(MapoError, match="trackers knows tensorboard and wandb, not 'mlflow'"):
        train(model=sdxl, pairs=tmp_path, out=tmp_path / "r", settings={"train.trackers": ["mlflow"]})


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_is_told_the_numbers_of_training_and_of_held_out_pairs(tmp_path, sdxl):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pairs = make_held_out(tmp_path / "pairs", 3, 2)
    run = train(
        model=sdxl, pairs=pairs, out=tmp_path / "r",
        settings={"train.trackers": ["tensorboard"], "train.steps": 2, "train.pairs_per_step": 1, "train.evaluate_every": 1},
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "r" / "trackers")).Reload()
    told = [(event.step, event.value) for event in events.Scalars("train/error_chosen")]
    assert told == [(m["step"], pytest.approx(m["error_chosen"], rel=1e-6)) for m in run.metrics()]
    assert [event.step for event in events.Scalars("held_out/accuracy")] == [0, 1, 2]
