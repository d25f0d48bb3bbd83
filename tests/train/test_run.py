"""The run folder: when it is finished, what goes on in it, what a kill or a full disk leaves."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from test_train import assert_same, run

from mapo.errors import DivergedError, MapoError
from mapo.models import find_model
from mapo.shards import owned
from mapo.train.train import Run
from tiny import make_pairs


def cut_off(*args: object) -> None:
    raise RuntimeError("power cut")


def unet_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "weights" / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: tensor.clone() for name, tensor in tensors.items()}  # the file will be damaged


def test_a_longer_run_that_dies_while_it_writes_its_final_weights_writes_them_next_time(
    tmp_path, sdxl, pairs, cache, monkeypatch
):
    from mapo.models.families.sdxl import StableDiffusionXL

    whole = tmp_path / "whole"
    run(whole, sdxl, pairs, cache, steps=4)
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(StableDiffusionXL, "save", cut_off)
        run(tmp_path / "r", sdxl, pairs, cache, steps=4)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["steps"] == 2  # the old weights are still a model
    run(tmp_path / "r", sdxl, pairs, cache, steps=4)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["steps"] == 4
    ours, theirs = unet_of(tmp_path / "r"), unet_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_not_written_again(tmp_path, sdxl, pairs, cache, heard):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    before = (tmp_path / "r" / "run.json").stat().st_mtime_ns
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    assert "is finished, after 1 step." in heard()
    assert (tmp_path / "r" / "run.json").stat().st_mtime_ns == before


def test_a_run_without_its_weights_writes_them_again(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    shutil.rmtree(tmp_path / "r" / "weights")
    with pytest.raises(MapoError, match="has lost its weights/unet"):
        find_model(str(tmp_path / "r"))
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    assert find_model(str(tmp_path / "r")).denoiser == tmp_path / "r" / "weights" / "unet"


def test_while_final_weights_change_places_the_folder_is_no_model(tmp_path, sdxl, pairs, cache, monkeypatch):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    seen, rename = [], Path.rename

    def renaming(path, target):
        if Path(target).name == "weights":
            seen.append((tmp_path / "r" / "run.json").exists())
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renaming)
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert seen == [False]


def test_a_finished_run_without_checkpoints_is_not_trained_over(tmp_path, sdxl, pairs, cache, heard):
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    before = unet_of(tmp_path / "r")
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert "is finished, after 2 steps" in heard()
    with pytest.raises(MapoError, match="has its final weights of 2 steps but no checkpoint to go on from"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=3)
    with pytest.raises(MapoError, match="other settings"):
        run(tmp_path / "r", sdxl, pairs, cache, objective="dpo", steps=2)
    after = unet_of(tmp_path / "r")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("damage", ["cut", "gone", "no config"])
def test_final_weights_that_are_damaged_are_written_again_from_the_checkpoint(tmp_path, sdxl, pairs, cache, damage):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    before, unet = unet_of(tmp_path / "r"), tmp_path / "r" / "weights" / "unet"
    path = unet / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "gone":
        shutil.rmtree(unet)
    else:
        (unet / "config.json").unlink()
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    after = unet_of(tmp_path / "r")
    assert (unet / "config.json").exists() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_whose_base_was_trained_further_is_refused(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "a", sdxl, pairs, cache, steps=1)
    run(tmp_path / "b", tmp_path / "a", pairs, cache, kind="lora", steps=1)
    run(tmp_path / "a", sdxl, pairs, cache, steps=2)
    with pytest.raises(MapoError, match=r"b was trained on the model .*a as it was then; that one has changed since"):
        find_model(str(tmp_path / "b"))


def test_a_run_that_took_the_place_of_its_base_is_refused_in_a_sentence(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "one", sdxl, pairs, cache, steps=1)
    run(tmp_path / "two", tmp_path / "one", pairs, cache, kind="lora", steps=1)
    (tmp_path / "one").rename(tmp_path / "old")
    (tmp_path / "two").rename(tmp_path / "one")
    with pytest.raises(MapoError, match="says that it stands on itself"):
        find_model(str(tmp_path / "one"))


def test_a_slip_in_the_name_of_a_run_sweeps_nothing(tmp_path, sdxl, pairs, cache):
    work = tmp_path / "work" / ".v0.2.partial"
    work.mkdir(parents=True)
    (work / "ledger.sqlite3").write_bytes(b"")
    left = tmp_path / "work" / ".x.99999999.partial"
    left.write_bytes(b"")
    with pytest.raises(MapoError, match="is not a run folder"):
        (tmp_path / "work" / "other.txt").write_text("mine")
        run(tmp_path / "work", sdxl, pairs, cache, steps=1)
    assert work.exists() and left.exists()


def test_leftovers_of_killed_processes_are_swept(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    left = [
        tmp_path / "r" / "checkpoints" / ".step-00000002.99999999.partial",
        tmp_path / "r" / ".weights.99999999.old",
    ]
    for folder in left:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "r" / ".run.json.99999999.partial").write_text("{")
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert [p.name for p in (tmp_path / "r").rglob(".*")] == []
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_new_checkpoint_is_on_the_disk_before_the_old_one_goes(tmp_path, sdxl, pairs, cache, monkeypatch):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    events = []
    sync, remove = os.fsync, shutil.rmtree
    monkeypatch.setattr(os, "fsync", lambda number: (events.append(("sync", _name(number))), sync(number))[1])

    def removing(path, *rest, **how):
        events.append(("remove", Path(path).name))
        remove(path, *rest, **how)

    monkeypatch.setattr(shutil, "rmtree", removing)
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    removed = events.index(("remove", "step-00000001"))
    synced = {name for what, name in events[:removed] if what == "sync"}
    assert {"weights.safetensors", "optimizer.safetensors", "state.json", "checkpoints"} <= synced


def _name(number: int) -> str:
    return Path(f"/proc/self/fd/{number}").readlink().name


def test_steps_before_a_divergence_are_kept_and_can_be_used(tmp_path, sdxl, pairs, cache, monkeypatch):
    from mapo.train import loop

    real, calls = loop.pair_losses, []

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 3 else 1)

    with monkeypatch.context() as patch, pytest.raises(DivergedError) as stopped:
        patch.setattr(loop, "pair_losses", broken)
        run(tmp_path / "r", sdxl, pairs, cache, steps=4)
    assert "Step 3: the loss is not finite for 4 pairs" in str(stopped.value)
    assert "up to step 2 is kept" in str(stopped.value) and "train.steps=2" in str(stopped.value)
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000002"]
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    run(tmp_path / "two", sdxl, pairs, cache, steps=2)
    ours, theirs = unet_of(tmp_path / "r"), unet_of(tmp_path / "two")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_lora_on_a_run_with_loras_is_one_file_that_any_pipeline_opens(tmp_path, sdxl, pairs, cache):
    from diffusers import StableDiffusionXLPipeline

    from mapo.models import open_model

    run(tmp_path / "a", sdxl, pairs, cache, kind="lora", steps=2, optim={"lr": 1e-2})
    run(tmp_path / "b", tmp_path / "a", pairs, cache, kind="lora", steps=2, optim={"lr": 1e-2})
    run(tmp_path / "c", tmp_path / "b", pairs, cache, kind="lora", steps=2, optim={"lr": 1e-2})
    ours = with_own_adapter(open_model(find_model(str(tmp_path / "b"))).denoiser("cpu", torch.float32), tmp_path / "c")
    second = with_own_adapter(
        open_model(find_model(str(tmp_path / "a"))).denoiser("cpu", torch.float32), tmp_path / "b"
    )
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    pipeline.load_lora_weights(tmp_path / "c" / "weights")
    first = open_model(find_model(str(tmp_path / "a"))).denoiser("cpu", torch.float32)
    middle = open_model(find_model(str(tmp_path / "b"))).denoiser("cpu", torch.float32)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    cond = {"text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)}
    states = torch.randn(1, 32, 40)
    with torch.no_grad():
        one, two, three, four, five = (
            u(x, t, states, added_cond_kwargs=cond).sample for u in (ours, pipeline.unet, first, second, middle)
        )
    assert torch.allclose(one, two, atol=1e-5) and torch.allclose(four, five, atol=1e-5)
    assert not torch.allclose(one, three, atol=1e-4) and not torch.allclose(one, five, atol=1e-4)


def with_own_adapter(denoiser: torch.nn.Module, run_folder: Path) -> torch.nn.Module:
    """A denoiser with the LoRA that a run trained itself, out of its checkpoint."""
    from safetensors.torch import load_file

    from mapo.models.families.sdxl import StableDiffusionXL
    from mapo.train.sections import AdapterConfig
    from mapo.train.weights.adapters import add_adapter, trainable

    add_adapter(denoiser, StableDiffusionXL, AdapterConfig(kind="lora", rank=4), 0)
    (checkpoint,) = (run_folder / "checkpoints").iterdir()
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in trainable(denoiser).items():
            parameter.copy_(weights[name])
    return denoiser


def test_a_lora_of_0_1_0_still_stands_on_the_loras_of_its_base(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "a", sdxl, pairs, cache, kind="lora", steps=1)
    run(tmp_path / "b", tmp_path / "a", pairs, cache, kind="lora", steps=1)
    about = json.loads((tmp_path / "b" / "run.json").read_text())
    for name in ("holds_loras_below", "base_from_here", "base_revision"):
        del about[name]
    (tmp_path / "b" / "run.json").write_text(json.dumps(about))
    assert len(find_model(str(tmp_path / "b")).loras) == 2


def test_a_folder_of_models_and_runs_may_be_moved_whole(tmp_path, sdxl, pairs, cache):
    work = tmp_path / "work"
    shutil.copytree(sdxl, work / "model")
    run(work / "a", work / "model", pairs, cache, steps=1)
    run(work / "b", work / "a", pairs, cache, kind="lora", steps=1)
    work.rename(tmp_path / "elsewhere")
    found = find_model(str(tmp_path / "elsewhere" / "b"))
    assert found.base == tmp_path / "elsewhere" / "model"


@pytest.mark.parametrize("objective", ["dpo", "sft"])
def test_a_run_whose_base_is_gone_says_what_stood_on_what(tmp_path, sdxl, pairs, cache, objective):
    shutil.copytree(sdxl, tmp_path / "model")
    run(tmp_path / "a", tmp_path / "model", pairs, cache, kind="lora", steps=1)
    shutil.move(tmp_path / "model", tmp_path / "gone")
    with pytest.raises(MapoError, match=r"a was trained on the model .*model, which is not there any more"):
        run(tmp_path / "b", tmp_path / "a", pairs, cache, objective=objective, steps=1)
    other = tmp_path / "model"
    shutil.copytree(sdxl, other)
    (other / "unet" / "config.json").write_text((other / "unet" / "config.json").read_text() + "\n")
    with pytest.raises(MapoError, match="content of model|other settings|not the model"):
        run(tmp_path / "a", other, pairs, cache, kind="lora", steps=2)


def test_a_second_training_into_one_folder_is_refused_while_the_first_is_at_work(tmp_path, sdxl, pairs, cache):
    with owned(tmp_path / "r"), pytest.raises(MapoError, match="Another process is writing .*r. Wait for it"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=1)) == 1
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_clock_that_jumps_changes_nothing(tmp_path, sdxl, pairs, cache, monkeypatch):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, "dpo", steps=2, reference="before")
    jumps = itertools.count(2e9, -1e6)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    got = run(tmp_path / "r", sdxl, pairs, cache, "dpo", steps=2, reference="before")
    assert_same(got, whole, tolerance=0)
    assert all(0 < line["seconds"] < 1000 and line["pairs_per_second"] > 0 for line in got)


def test_a_run_folder_knows_its_steps(tmp_path, sdxl):
    pairs = make_pairs(tmp_path / "pairs", count=4)
    run(tmp_path / "r", sdxl, pairs, steps=1)
    assert Run(tmp_path / "r").finished_steps() == 1
    assert Run(tmp_path / "nothing").finished_steps() == 0
