"""A checkpoint of a run as a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_train import run

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.train.config import make_config
from mapo.train.run import Run
from tiny import make_sd3


def weights_of(model: Path | str) -> dict[str, torch.Tensor]:
    return dict(open_model(find_model(str(model))).denoiser("cpu", torch.float32).state_dict())


def are_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sdxl, pairs, cache) -> Path:
    """Three steps of each kind, whose checkpoints are all kept; the LoRA stands on the LoRA of step 2."""
    folder = tmp_path_factory.mktemp("runs")
    how = {"save_every_steps": 1, "keep_checkpoints": "all", "optim": {"lr": 1e-2}, "precision": "float32"}
    run(folder / "full", sdxl, pairs, cache, steps=3, **how)
    run(folder / "lora", sdxl, pairs, cache, kind="lora", steps=3, **how)
    run(folder / "on-top", f"{folder}/lora@2", pairs, cache, kind="lora", steps=1, **how)
    return folder


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_last_checkpoint_is_the_run_and_an_earlier_one_is_the_run_that_ended_there(
    tmp_path, runs, sdxl, pairs, cache, kind
):
    assert are_equal(weights_of(f"{runs}/{kind}@3"), weights_of(runs / kind))
    run(tmp_path / "r", sdxl, pairs, cache, kind=kind, steps=2, optim={"lr": 1e-2}, precision="float32")
    assert are_equal(weights_of(f"{runs}/{kind}@2"), weights_of(tmp_path / "r"))
    assert not are_equal(weights_of(f"{runs}/{kind}@1"), weights_of(f"{runs}/{kind}@2"))
    two, three = (find_model(f"{runs}/{kind}@{step}").revision() for step in (2, 3))
    assert two != three and two == find_model(f"{runs}/{kind}@2").revision()


def test_a_run_that_stands_on_a_checkpoint_may_be_moved_with_it_and_holds_its_lora(tmp_path, runs):
    before = weights_of(runs / "on-top")
    assert not are_equal(before, weights_of(f"{runs}/lora@2"))
    assert are_equal(before, weights_of(f"{runs}/on-top@1"))
    shutil.copytree(runs / "lora", tmp_path / "lora")
    shutil.copytree(runs / "on-top", tmp_path / "on-top")
    assert are_equal(weights_of(tmp_path / "on-top"), before)
    assert find_model(str(tmp_path / "on-top")).stable_name == str(tmp_path / "on-top")


def test_what_no_gradient_reaches_comes_from_the_base(tmp_path, pairs):
    """The places of Stable Diffusion 3 are no parameters, so a checkpoint does not hold them."""
    from safetensors.torch import load_file, save_file

    base = make_sd3(tmp_path / "sd3")
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["pos_embed.pos_embed"] = tensors["pos_embed.pos_embed"] * 0.5
    save_file(tensors, file, {"format": "pt"})
    run(tmp_path / "r", base, pairs, steps=1, precision="float32")
    assert are_equal(weights_of(f"{tmp_path}/r@1"), weights_of(tmp_path / "r"))
    assert torch.equal(weights_of(f"{tmp_path}/r@1")["pos_embed.pos_embed"], tensors["pos_embed.pos_embed"])


def test_a_run_that_is_not_finished_is_a_model_by_its_checkpoints(tmp_path, runs):
    from mapo.sample.sample import sample

    work = tmp_path / "lora"
    shutil.copytree(runs / "lora", work)
    (work / "run.json").unlink()
    shutil.rmtree(work / "weights")
    with pytest.raises(
        MapoError, match=rf"is not finished\. Its .* as models\. There are {work}@1, {work}@2, {work}@3"
    ):
        find_model(str(work))
    (row,) = sample(f"{work}@2", ["a red circle"], 0, tmp_path / "images", steps=1)
    assert row.model == f"{work}@2"
    with pytest.raises(
        MapoError, match=rf"{work} has no checkpoint of step 7\. There are {work}@1, .*keep_checkpoints"
    ):
        find_model(f"{work}@7")
    with pytest.raises(MapoError, match="there is no folder nothing@7"):
        find_model("nothing@7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MapoError, match="empty has no checkpoints"):
        find_model(f"{tmp_path}/empty@7")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"half"), "step-00000001 is damaged"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "step-00000001 is damaged"),
        (lambda folder: (folder / "state.json").write_text('{"step": 1, "model_is": 5}'), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text('{"step": 1}'), "was written by an older version"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path, runs, damage, says):
    shutil.copytree(runs / "full", tmp_path / "r")
    damage(tmp_path / "r" / "checkpoints" / "step-00000001")
    with pytest.raises(MapoError, match=says):
        find_model(f"{tmp_path}/r@1")


def test_as_many_checkpoints_are_kept_as_are_asked_for_and_more_may_be_asked_later(tmp_path, sdxl, pairs, cache):
    def steps() -> list[int]:
        return [json.loads((path / "state.json").read_text())["step"] for path in Run(tmp_path / "r").checkpoints()]

    run(tmp_path / "r", sdxl, pairs, cache, steps=4, save_every_steps=1, keep_checkpoints=2)
    assert steps() == [3, 4]
    run(tmp_path / "r", sdxl, pairs, cache, steps=5, save_every_steps=1, keep_checkpoints="all")
    assert steps() == [3, 4, 5]
    run(tmp_path / "r", sdxl, pairs, cache, steps=6, save_every_steps=1, keep_checkpoints=1)
    assert steps() == [6]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "some"])
def test_a_number_of_checkpoints_that_is_none_is_refused_in_a_sentence(value):
    values = {"model": "mini", "pairs": "p", "train": {"keep_checkpoints": value}}
    with pytest.raises(MapoError, match=r"train.keep_checkpoints = .* does not fit: .*at least 1, or \"all\""):
        make_config(values)


def test_pictures_of_a_checkpoint_may_be_reported_with_their_run(runs):
    from mapo.report.maker import check_run
    from mapo.sample.folder import ImageRow

    row = ImageRow("a.png", "p", "p", 0, 0, "s", f"{(runs / 'full').resolve()}@2", revision="of step 2")
    (said,) = check_run(runs / "full", Path("after"), {("p", 0): row})
    assert "at step 2. Curves and pairs are those of the whole run" in said
