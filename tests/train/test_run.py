"""The run folder: when it is finished, what goes on in it, what a kill or a full disk leaves."""

import itertools
import json
import os
import shutil
import time
import tomllib
from pathlib import Path

import pytest
import torch
from held import make_held_out
from test_train import assert_same, metrics, run

from apart import run_apart
from mapo.errors import DivergedError, MapoError
from mapo.models import find_model
from mapo.shards import owned
from mapo.train.config import make_config
from mapo.train.train import Run, train
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


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_run_whose_rate_has_fallen_to_zero_is_not_lengthened(tmp_path, sdxl, pairs, cache, schedule):
    how = {"lr": 1e-3, "warmup_steps": 0, "schedule": schedule}
    run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim=how)
    with pytest.raises(MapoError, match=f"begun with 2 steps of optim.schedule={schedule}.*would jump after step 2"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=4, optim=how)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim=how)) == 2


def test_a_run_on_its_way_to_zero_is_not_shortened_but_may_end_where_it_is(tmp_path, sdxl, pairs, cache, monkeypatch):
    how = {"lr": 1e-3, "warmup_steps": 0, "schedule": "cosine"}

    def cut(run_folder, values, log_step=Run.log_step):
        log_step(run_folder, values)
        if values["step"] == 3:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Run, "log_step", cut)
        run(tmp_path / "r", sdxl, pairs, cache, steps=4, optim=how, save_every_steps=2)
    with pytest.raises(MapoError, match="begun with 4 steps .*With 3 steps the rate would jump after step 2"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=3, optim=how)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim=how)) == 2


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


def test_resuming_reads_the_weights_once(tmp_path, sdxl, pairs, cache, monkeypatch):
    from mapo.train.run import checkpoint

    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    read = []
    load_file = checkpoint.load_file
    monkeypatch.setattr(checkpoint, "load_file", lambda path: (read.append(path.name), load_file(path))[1])
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert sorted(read) == ["optimizer.safetensors", "weights.safetensors"]


def test_what_the_command_does_not_say_comes_from_the_run(tmp_path, sdxl, pairs, cache):
    said = {"adapter": {"kind": "lora", "rank": 2}, "objective": {"name": "mapo", "beta": 0.3}}
    more = {"optim": {"lr": 2e-3}, "train": {"steps": 1, "pairs_per_step": 2}}
    common = {"model": str(sdxl), "pairs": str(pairs), "cache": str(cache)}
    train(make_config({**common, **said, **more}), tmp_path / "r")
    train(make_config({**common, "train": {"steps": 2}}), tmp_path / "r")
    now = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert said["adapter"].items() <= now["adapter"].items() and now["objective"]["beta"] == 0.3
    assert now["optim"]["lr"] == 2e-3 and now["train"]["pairs_per_step"] == 2
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2]


def test_settings_that_need_others_find_them_in_the_run(tmp_path, sdxl, pairs, cache):
    from mapo.api import train

    out, held = tmp_path / "r", make_held_out(tmp_path / "pairs", 3, 2)
    common = {"train.pairs_per_step": 1, "train.evaluate_every": 1, "train.steps": 1}
    train(model=sdxl, pairs=held, adapter="lora", out=out, settings=common)
    train(out=out, settings={"train.keep_checkpoints": "best,last", "train.steps": 2})
    assert [m["step"] for m in metrics(out)] == [1, 2]
    with pytest.raises(MapoError, match="adapter.targets was left out and is now"):
        train(out=out, settings={"adapter.targets": ["to_q"], "train.steps": 3})


def test_a_command_that_names_only_the_run_goes_on_there(tmp_path, sdxl, pairs, cache):
    from mapo.cli import cli
    from test_cli import refused

    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    cli.main(["train", "--out", str(tmp_path / "r"), "--set", "train.steps=2"], standalone_mode=False)
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2]
    assert "Give --model" in refused("train", "--out", tmp_path / "nothing")


def test_a_run_of_0_1_0_goes_on_although_there_are_new_settings(tmp_path, sdxl, pairs, cache):
    """Its config.toml names no setting that came later; each then has the meaning it had."""
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    path = tmp_path / "r" / "config.toml"
    lines = [line for line in path.read_text().splitlines() if "images_per_batch" not in line]
    assert len(lines) < len(path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2]


def test_what_0_1_0_wrote_knows_no_tokenizers_and_is_taken_up(tmp_path, sdxl, pairs, cache):
    model = shutil.copytree(sdxl, tmp_path / "model")
    new, old = find_model(str(model)).revisions()
    run(tmp_path / "r", model, pairs, cache, steps=1)
    state, about = tmp_path / "r" / "checkpoints" / "step-00000001" / "state.json", tmp_path / "r" / "run.json"
    for path in (state, about):
        assert new in path.read_text()
        path.write_text(path.read_text().replace(new, old))
    assert find_model(str(tmp_path / "r")).base == model
    run(tmp_path / "r", model, pairs, cache, steps=2)
    with (model / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(MapoError, match="the content of model"):
        run(tmp_path / "r", model, pairs, cache, steps=3)
    with pytest.raises(MapoError, match="that one has changed since"):
        find_model(str(tmp_path / "r"))


def test_a_setting_that_came_later_has_its_old_meaning_in_an_old_run(tmp_path, sdxl, pairs, cache, monkeypatch):
    import mapo.train.run.changes as module

    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    path = tmp_path / "r" / "config.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "images_per_batch" not in line))
    monkeypatch.setattr(module, "AS_IN_0_1_0", {"data": {"images_per_batch": 3}})
    monkeypatch.setattr(module, "MAY_CHANGE", module.MAY_CHANGE - {"data.images_per_batch"})
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert tomllib.loads(path.read_text())["data"]["images_per_batch"] == 3


def test_every_setting_that_came_after_0_1_0_says_what_it_means_in_older_runs():
    import mapo.train.run.changes as module
    from mapo.settings import merge
    from mapo.train.config import Config

    in_0_1_0 = {
        "": {"model", "pairs", "cache", "objective", "adapter", "optim", "data", "train"},
        "adapter": {"kind", "rank"},
        "optim": {"lr", "beta1", "beta2", "eps", "weight_decay", "clip_norm", "schedule", "warmup_steps"},
        "data": {"resolution", "flip", "split", "ties"},
        "train": {
            "steps", "pairs_per_step", "pairs_per_device", "seed", "precision", "gradient_checkpointing",
            "save_every_steps",
        },
    }  # fmt: skip
    later = {("", name) for name in set(Config.model_fields) - in_0_1_0.pop("")}
    later |= {
        (section, name)
        for section, names in in_0_1_0.items()
        for name in set(Config.model_fields[section].annotation.model_fields) - names
    }
    told = merge({}, module.AS_IN_0_1_0)
    said = {(section, name) for section, names in told.items() if isinstance(names, dict) for name in names}
    assert later == said | {("", name) for name, value in told.items() if not isinstance(value, dict)}


@pytest.mark.parametrize(("kind", "rate"), [("full", 1e-5), ("lora", 1e-4)])
def test_a_rate_that_is_not_set_is_that_of_what_is_trained(tmp_path, sdxl, pairs, cache, kind, rate):
    values = {"model": str(sdxl), "pairs": str(pairs), "cache": str(cache), "adapter": {"kind": kind, "rank": 2}}
    train(make_config({**values, "train": {"steps": 1, "pairs_per_step": 2}}), tmp_path / "r")
    assert metrics(tmp_path / "r")[0]["lr"] == rate
    assert tomllib.loads((tmp_path / "r" / "config.toml").read_text())["optim"]["lr"] == rate


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


def test_a_run_whose_cache_has_moved_is_told_before_all_is_encoded_again(tmp_path, sdxl, pairs, cache, heard):
    here, there = tmp_path / "cache", tmp_path / "moved"
    shutil.copytree(cache, here)
    run(tmp_path / "r", sdxl, pairs, here, steps=1)
    here.rename(there)
    run(tmp_path / "r", sdxl, pairs, there, steps=2)
    assert "any more" not in heard()
    run(tmp_path / "r", sdxl, pairs, here, steps=3)
    assert f"There is no cache at {here} any more, so all is encoded again. If it lies elsewhere now, stop" in heard()


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


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("run.json", b'{"base": ', "cannot be read"),
        ("run.json", b"[1]", "is damaged"),
        ("run.json", b"{}", "is damaged"),
        ("weights/pytorch_lora_weights.safetensors", None, "pytorch_lora_weights.safetensors is cut off"),
        ("config.toml", b"model = ", "config.toml cannot be read"),
        ("config.toml", b"\xff\xfe\x00", "config.toml cannot be read"),
        ("config.toml", b"", "config.toml: The setting model is missing"),
        ("metrics.jsonl", b"5\n", "metrics.jsonl is damaged"),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path, sdxl, pairs, cache, file, damage, says):
    from mapo.models import open_model

    run(tmp_path / "r", sdxl, pairs, cache, kind="lora", steps=1)
    path = tmp_path / "r" / file
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    with pytest.raises(MapoError, match=says):
        model = find_model(str(tmp_path / "r"))
        open_model(model).denoiser("cpu", torch.float32)
        run(tmp_path / "r", sdxl, pairs, cache, kind="lora", steps=2)


def test_a_second_training_into_one_folder_is_refused_while_the_first_is_at_work(tmp_path, sdxl, pairs, cache):
    with owned(tmp_path / "r"), pytest.raises(MapoError, match="Another process is writing .*r. Wait for it"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=1)) == 1
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_run_that_cannot_keep_one_checkpoint_does_not_begin(tmp_path, sdxl, pairs, cache, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch, pytest.raises(MapoError, match=r"take \d+ MB, and .*r has 0 MB free"):
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 10))
        run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=1)) == 1


def test_a_run_that_cannot_write_a_checkpoint_beside_the_last_one_does_not_begin(
    tmp_path, sdxl, pairs, cache, monkeypatch
):
    """One is kept, but a new one is written before the old one goes."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    run(tmp_path / "first", sdxl, pairs, cache, steps=1)
    size = sum(path.stat().st_size for path in (tmp_path / "first" / "checkpoints").rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, int(1.5 * size)))
    with pytest.raises(MapoError, match="^2 checkpoints, of which the new one comes before the old one goes, and"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=2, save_every_steps=1)
    assert len(run(tmp_path / "b", sdxl, pairs, cache, steps=2)) == 2  # which is saved once
    assert len(run(tmp_path / "b", sdxl, pairs, cache, steps=3)) == 3  # beside the one that there is


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_and_says_so(tmp_path, sdxl, pairs, cache):
    """A real limit on the size of files, in a process of its own."""
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path; from mapo.train.config import make_config; from mapo.train.train import train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "train(make_config({'train': {'steps': 2}, 'model': sys.argv[2], 'pairs': sys.argv[3]}), Path(sys.argv[1]))\n"
    )
    done = run_apart("-c", code, tmp_path / "r", sdxl, pairs)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mapo.errors.MapoError: The checkpoint of step 2 could not be written"), done.stderr
    assert "The checkpoint of step 1 is kept" in last
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000001"]
    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=2)
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=2), whole)


def kept_all(out, sdxl, pairs, cache, **settings):
    return run(out, sdxl, pairs, cache, save_every_steps=1, keep_checkpoints="all", **settings)


@pytest.mark.parametrize("damage", ["cut in half", "without moments", "half a state", "a byte", "of a step"])
def test_a_checkpoint_that_is_damaged_is_set_aside_and_the_one_before_is_used(
    tmp_path, sdxl, pairs, cache, heard, damage
):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=4)
    kept_all(tmp_path / "r", sdxl, pairs, cache, steps=3)
    newest = tmp_path / "r" / "checkpoints" / "step-00000003"
    if damage == "cut in half":
        weights = newest / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "without moments":
        (newest / "optimizer.safetensors").unlink()
    elif damage == "a byte":
        changed = bytearray((newest / "optimizer.safetensors").read_bytes())
        changed[-100] ^= 1
        (newest / "optimizer.safetensors").write_bytes(changed)
    elif damage == "of a step":
        state = json.loads((newest / "state.json").read_text())
        (newest / "state.json").write_text(json.dumps({**state, "step": 2}))
    else:
        (newest / "state.json").write_text('{"step": 3, "pai')
    heard()
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=4), whole)
    said = heard()
    assert "The checkpoint of step 3 is damaged" in said and "so training goes on from that of step 2." in said
    assert (tmp_path / "r" / "checkpoints" / "step-00000003.damaged").is_dir()
    assert [int(path.name[5:]) for path in Run(tmp_path / "r").checkpoints()] == [1, 2, 3, 4]


def test_a_torn_last_line_is_written_again_so_that_each_step_stands_once(tmp_path, sdxl, pairs, cache):
    whole = run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    log = tmp_path / "r" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    found = run(tmp_path / "r", sdxl, pairs, cache, steps=3)
    assert [row["step"] for row in found] == [1, 2, 3] and found[:2] == whole


def test_a_checkpoint_that_is_damaged_a_second_time_is_set_aside_too(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "whole", sdxl, pairs, cache, steps=4)
    for steps in (3, 4):
        kept_all(tmp_path / "r", sdxl, pairs, cache, steps=steps)
        for path in Run(tmp_path / "r").checkpoints()[2:]:
            (path / "optimizer.safetensors").write_bytes(b"half")
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=5), run(tmp_path / "whole", sdxl, pairs, cache, steps=5))
    aside = sorted(path.name for path in (tmp_path / "r" / "checkpoints").glob("*.damaged*"))
    assert aside == ["step-00000003.damaged", "step-00000003.damaged-2", "step-00000004.damaged"]


def test_moments_of_which_a_name_is_damaged_are_told_before_the_first_step(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    moments = tmp_path / "r" / "checkpoints" / "step-00000001" / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes().replace(b"/exp_avg_sq", b"/exp_evg_sq", 1))
    with pytest.raises(MapoError, match=r"The checkpoint .* is damaged \(optimizer.safetensors is not as it was saved"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    state = moments.with_name("state.json")
    saved = json.loads(state.read_text())
    del saved["checksums"]  # as of a run that was begun before there were any
    state.write_text(json.dumps(saved))
    with pytest.raises(MapoError, match=r"The checkpoint .* is damaged \(of .* exp_evg_sq, .*not the moments"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=2)


def test_a_damaged_checkpoint_with_none_before_it_is_refused_and_stays(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    weights = tmp_path / "r" / "checkpoints" / "step-00000001" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(MapoError, match="The checkpoint .*step-00000001 is damaged"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert weights.exists()


def test_other_settings_are_told_with_both_values_and_may_be_allowed(tmp_path, sdxl, pairs, cache, heard):
    def again(allow_change=True, steps=4, **sections):
        given = {"model": str(sdxl), "pairs": str(pairs), "train": {"steps": steps, **sections.pop("train", {})}}
        train(make_config({**given, **sections}), tmp_path / "r", allow_change=allow_change)

    run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim={"lr": 1e-3, "schedule": "cosine"})
    changed = {"optim": {"lr": 5e-4}, "objective": {"name": "mapo", "beta": 0.3}}
    with pytest.raises(MapoError) as said:
        again(allow_change=False, **changed)
    assert (
        "other settings (objective.beta, optim.lr): objective.beta was 0.1 and is now 0.3; optim.lr was 0.001 and is"
        in str(said.value)
    )
    assert "To go on here all the same, add --allow-change." in str(said.value)
    with pytest.raises(MapoError, match=r"--allow-change does not help: the checkpoint does not fit \(adapter.kind\)"):
        again(adapter={"kind": "lora"}, **changed)
    heard()
    again(**changed)
    assert "From step 2 on with other settings: objective.beta was 0.1 and is now 0.3; optim.lr was" in heard()
    assert [line["step"] for line in metrics(tmp_path / "r")] == [1, 2, 3, 4]
    (line,) = (tmp_path / "r" / "changes.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 2, "changed": {"objective.beta": [0.1, 0.3], "optim.lr": [1e-3, 5e-4]}}
    again(allow_change=False)  # which is what the run says now
    with pytest.raises(MapoError, match="the content of pairs"):
        again(
            allow_change=False, pairs=str(make_pairs(tmp_path / "other", seed=9)), cache=str(tmp_path / "c2"), steps=5
        )
    again(pairs=str(tmp_path / "other"), cache=str(tmp_path / "c2"), steps=5)
    assert len(metrics(tmp_path / "r")) == 5


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
