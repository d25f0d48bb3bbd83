"""Other programs are told the numbers too, where they are installed."""

import importlib
import importlib.util
import json
import logging
import sys

import pytest
from accelerate import PartialState, tracking
from held import make_held_out

from mapo.api import plan, train
from mapo.errors import MapoError

KEY = "k3y-of-somebody"
STAND_IN = """
import json, os
from pathlib import Path

LINES = Path(os.environ["TELLS_LINES"])

def told(*values):
    with LINES.open("a") as file:
        file.write(json.dumps(values) + "\\n")

class Config(dict):
    def update(self, values, allow_val_change):
        told("config", values)

class Run:
    def log(self, values, step=None):
        if step == int(os.environ.get("TELLS_FAILS_AT", -1)):
            raise ConnectionError(f"https://me:secret@wandb.example refuses {os.environ['TELLS_KEY']}")
        told("log", step, values)
    def finish(self):
        told("finish")

config = Config()

def init(project):
    if project == "refused":
        raise ValueError(f"the key {os.environ['TELLS_KEY']} is not known\\nand more")
    told("init", project)
    return Run()
"""


def is_there(name):
    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("tracked") / "pairs", 3, 2)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package that accelerate takes for wandb and that writes down what it is told by accelerate's own tracker."""
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    about = tmp_path / "packages" / "wandb-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    lines = tmp_path / "lines.jsonl"
    monkeypatch.setenv("TELLS_LINES", str(lines))
    monkeypatch.setenv("TELLS_KEY", KEY)
    PartialState._reset_state()  # as it is in a process of its own
    yield lambda: [json.loads(line) for line in lines.read_text().splitlines()]
    sys.modules.pop("wandb", None)


@pytest.mark.parametrize("name", sorted(tracking.LOGGER_TYPE_TO_CLASS))
def test_a_tracker_that_is_not_installed_is_refused_with_how_to_install_it(tmp_path, sdxl, pairs, name):
    if is_there(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(MapoError, match=rf"{name} is not installed. Install it with: pip install {name}. Or leave"):
        train(model=sdxl, pairs=pairs, out=tmp_path / "r", settings={"train.trackers": [name]})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("verb", [train, plan])
def test_an_unknown_tracker_is_refused_with_those_that_are_known(tmp_path, sdxl, pairs, verb):
    known = ", ".join(sorted(tracking.LOGGER_TYPE_TO_CLASS))
    with pytest.raises(MapoError, match=f"accelerate does not know 'ledger'. Known: {known}."):
        verb(model=sdxl, pairs=pairs, out=tmp_path / "r", settings={"train.trackers": ["ledger"]})


def test_a_tracker_of_accelerate_is_told_the_settings_and_the_numbers(tmp_path, sdxl, pairs, wandb):
    run = train(
        model=sdxl, pairs=pairs, out=tmp_path / "mine",
        settings={"train.trackers": ["wandb"], "train.steps": 2, "train.pairs_per_step": 1, "train.evaluate_every": 2},
    )  # fmt: skip
    told = wandb()
    assert told[0] == ["init", "mine"] and told[-1] == ["finish"]
    assert told[1][0] == "config" and told[1][1]["train.pairs_per_step"] == 1 and told[1][1]["objective.name"] == "mapo"
    steps = [(step, values["train/error_chosen"]) for _, step, values in told[2:-1] if "train/error_chosen" in values]
    assert steps == [(row["step"], row["error_chosen"]) for row in run.metrics()]
    held = [(step, values["held_out/accuracy"]) for _, step, values in told[2:-1] if "held_out/accuracy" in values]
    assert held == [(row["step"], row["accuracy"]) for row in run.evaluations()]
    assert KEY not in str(told)


def test_training_goes_on_without_a_tracker_that_fails_and_no_key_is_shown(
    tmp_path, sdxl, pairs, wandb, monkeypatch, caplog
):
    monkeypatch.setenv("TELLS_FAILS_AT", "2")
    with caplog.at_level(logging.WARNING, "mapo"):
        run = train(
            model=sdxl, pairs=pairs, out=tmp_path / "mine",
            settings={"train.trackers": ["wandb"], "train.steps": 3, "train.pairs_per_step": 1},
        )  # fmt: skip
    assert [row["step"] for row in run.metrics()] == [1, 2, 3] and run.steps == 3
    (said,) = [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()]
    assert said == (
        "wandb could not be told (https://…@wandb.example refuses …). Training goes on without it; metrics.jsonl "
        "has the same numbers."
    )
    assert [line[1] for line in wandb() if line[0] == "log"] == [1]


def test_a_tracker_that_cannot_be_started_ends_in_one_sentence_without_the_key(tmp_path, sdxl, pairs, wandb):
    with pytest.raises(MapoError) as error:
        train(
            model=sdxl, pairs=pairs, out=tmp_path / "refused", settings={"train.trackers": ["wandb"], "train.steps": 1}
        )
    assert str(error.value) == "train.trackers: wandb could not be started (the key … is not known)."


@pytest.mark.skipif(not is_there("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_is_told_the_numbers_of_training_and_of_held_out_pairs(tmp_path, sdxl, pairs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(
        model=sdxl, pairs=pairs, out=tmp_path / "r",
        settings={"train.trackers": ["tensorboard"], "train.steps": 2, "train.pairs_per_step": 1, "train.evaluate_every": 1},
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "r" / "trackers" / "r")).Reload()
    told = [(event.step, event.value) for event in events.Scalars("train/error_chosen")]
    assert told == [(m["step"], pytest.approx(m["error_chosen"], rel=1e-6)) for m in run.metrics()]
    assert [event.step for event in events.Scalars("held_out/accuracy")] == [0, 1, 2]
