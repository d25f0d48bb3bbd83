"""A checkpoint of a run as a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import run

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.train.config import make_config
from mapo.train.run.checkpoint import save_checkpoint
from mapo.train.run.folder import Run
from mapo.train.train import train
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


def test_the_last_checkpoint_is_the_run_and_an_earlier_one_has_the_weights_of_its_step(runs, sdxl):
    for kind in ("full", "lora"):
        assert are_equal(weights_of(f"{runs}/{kind}@3"), weights_of(runs / kind))
        trained = load_file(runs / kind / "checkpoints" / "step-00000002" / "weights.safetensors")
        found, base = weights_of(f"{runs}/{kind}@2"), weights_of(sdxl)
        if kind == "full":
            assert are_equal(found, trained)
            continue
        downs = [name for name in trained if ".lora_A." in name]
        for down in downs:
            name = down.replace(".lora_A.default.", ".")
            change = trained[down.replace("lora_A", "lora_B")] @ trained[down]
            assert change.abs().max() > 0 and torch.allclose(found[name], base[name] + change, atol=1e-6)
        assert len(downs) == sum(not torch.equal(found[name], base[name]) for name in base)
    two, three = (find_model(f"{runs}/lora@{step}").revision() for step in (2, 3))
    assert two != three and two == find_model(f"{runs}/lora@2").revision()


def test_a_run_that_stands_on_a_checkpoint_may_be_moved_with_it_and_holds_its_lora(tmp_path, runs):
    before = weights_of(runs / "on-top")
    assert not are_equal(before, weights_of(f"{runs}/lora@2"))
    assert are_equal(before, weights_of(f"{runs}/on-top@1"))
    shutil.copytree(runs / "lora", tmp_path / "lora")
    shutil.copytree(runs / "on-top", tmp_path / "on-top")
    assert are_equal(weights_of(tmp_path / "on-top"), before)
    assert find_model(str(tmp_path / "on-top")).stable_name == str(tmp_path / "on-top")


def test_a_checkpoint_has_what_was_trained_of_the_text_encoders(tmp_path, sdxl, pairs):
    adapter = {"kind": "lora", "text_encoders": True}
    values = {"model": str(sdxl), "pairs": str(pairs), "adapter": adapter, "optim": {"lr": 1e-2, "text_lr": 1e-2}}
    train(make_config({**values, "train": {"steps": 1, "pairs_per_step": 2}}), tmp_path / "r")

    def states(model: Path | str) -> torch.Tensor:
        return open_model(find_model(str(model))).text_encoder("cpu")(["a red circle"])["prompt_embeds"]

    assert torch.equal(states(f"{tmp_path}/r@1"), states(tmp_path / "r"))
    assert not torch.equal(states(f"{tmp_path}/r@1"), states(sdxl))


def test_what_no_gradient_reaches_comes_from_the_base(tmp_path):
    """The places of Stable Diffusion 3 are no parameters, so a checkpoint does not hold them."""
    base = make_sd3(tmp_path / "sd3", t5=False)
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["pos_embed.pos_embed"] = tensors["pos_embed.pos_embed"] * 0.5
    save_file(tensors, file, {"format": "pt"})
    parameters = dict(open_model(find_model(str(base))).denoiser("cpu", torch.float32).named_parameters())
    assert "pos_embed.pos_embed" not in parameters
    about = {"base": str(base), "adapter": "full", "denoiser": "transformer"}
    trained = {name: value.detach() + 1 for name, value in parameters.items()}
    save_checkpoint(
        tmp_path / "r" / "checkpoints" / "step-00000001", {"weights": trained}, {"step": 1, "model_is": about}
    )
    found = weights_of(f"{tmp_path}/r@1")
    assert are_equal(found, {**trained, "pos_embed.pos_embed": tensors["pos_embed.pos_embed"]})


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
    with pytest.raises(MapoError, match="there is no folder or file nothing@7"):
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


def test_as_many_checkpoints_are_kept_as_are_asked_for(tmp_path):
    made = Run(tmp_path / "r")
    for most, kept in ((2, [3, 4]), ("all", [3, 4, 5, 6]), (3, [5, 6, 7]), (1, [8])):
        for step in range(max((*steps_in(made), 0)) + 1, kept[-1] + 1):
            save_checkpoint(made.checkpoint_at(step), {}, {"step": step})
            made.keep(most)
        assert steps_in(made) == kept


def steps_in(made: Run) -> list[int]:
    return [json.loads((path / "state.json").read_text())["step"] for path in made.checkpoints()]


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
