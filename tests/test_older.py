"""What 0.1.0 wrote opens: a set, its cache, a run, images and scores, made with the code of 0.1.0 (made.sh among them)."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mapo.api import PairSet, Run
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.models import find_model

MADE = Path(__file__).parent / "data" / "run-0.1.0.tar.xz"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """Its folder, in which we are, as the paths in it are relative."""
    with tarfile.open(MADE) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mapo(*words, exit_code=0):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == exit_code, (done.output, done.exception)
    return done.output


def close(one: Path, other: Path) -> bool:
    """Whether two pictures are the same but for rounding."""
    first, second = (np.asarray(Image.open(path).convert("RGB"), np.int16) for path in (one, other))
    return first.shape == second.shape and bool((np.abs(first - second) <= 2).all())


def test_its_set_is_checked_and_its_cache_needs_nothing_more(old):
    assert len(PairSet("pairs")) == 2
    mapo("check", "pairs", "--model", "mini", "--json", "check.json")
    before = {
        path: path.read_bytes() for path in Path("cache").glob("*.safetensors") if path.name != "index.safetensors"
    }
    assert "2 pairs are encoded in cache" in mapo("encode", "--model", "mini", "--pairs", "pairs", "--out", "cache")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_its_run_draws_the_pictures_that_it_drew(old):
    mapo("sample", "--model", "run", "--prompts", "prompts.txt", "--steps", 2, "--out", "again")
    drawn = sorted(path.name for path in Path("again").glob("*.png"))
    assert drawn == sorted(path.name for path in Path("after").glob("*.png")) and len(drawn) == 2
    assert all(close(Path("again", name), Path("after", name)) for name in drawn)
    assert not all(close(Path("again", name), Path("before", name)) for name in drawn)  # which the run changed


def test_its_checkpoints_name_no_model_and_a_step_of_it_is_refused_with_what_to_do(old):
    with pytest.raises(MapoError, match="written by an older version .* or go on with its training"):
        find_model("run@3")
    mapo("train", "--out", "run", "--set", "train.steps=4")
    assert find_model("run@4").loras


def test_its_run_goes_on_and_can_be_trained_on_top_of(old):
    first = Run("run").metrics()
    mapo("train", "--out", "run", "--set", "train.steps=5")
    assert [row["step"] for row in Run("run").metrics()] == [1, 2, 3, 4, 5]
    assert Run("run").metrics()[:3] == first and Run("run").steps == 5
    mapo("train", "--model", "run", "--pairs", "pairs", "--cache", "cache", "--adapter", "lora", "--out", "more",
         "--set", "train.steps=1", "--set", "train.pairs_per_step=2", "--set", "data.split=all")  # fmt: skip
    assert Run("more").steps == 1


def test_its_images_and_scores_make_a_report_and_its_run_is_exported(old):
    scores = ["--scores", "before.parquet", "--scores", "after.parquet"]
    mapo("report", "--before", "before", "--after", "after", *scores, "--goal", "cartoon", "--out", "report.html")
    assert Path("report.html").read_text("utf-8").startswith("<!doctype html")
    mapo("score", "after", "--scorer", "mini-learned", "--out", "after.parquet")  # nothing is left to do
    mapo("export", "run", "--to", "lora", "--out", "lora")
    assert json.loads(Path("run/run.json").read_text())["version"] == 1
    assert list(Path("lora").glob("*.safetensors")) and (Path("lora") / "README.md").exists()
