"""Runs whose files are damaged, or for which the disk has no room."""

import json
import shutil

import pytest
import torch
from test_train import assert_same, run

from apart import run_apart
from mapo.errors import MapoError
from mapo.models import find_model
from mapo.train.train import Run


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


def test_a_run_that_cannot_keep_one_checkpoint_does_not_begin(tmp_path, sdxl, pairs, cache, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch, pytest.raises(MapoError, match=r"take \d+ MB, and .*r has 0 MB free"):
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 10))
        run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=1)
    assert not (tmp_path / "r").exists()  # and the reference was not run
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


def with_small_files(out, sdxl, pairs, steps: int) -> str:
    """The last line of a training that may write no file above 60,000 bytes, a real limit in a process of its own."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path; from mapo.train.config import make_config; from mapo.train.train import train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "config = {'train': {'steps': int(sys.argv[4])}, 'model': sys.argv[2], 'pairs': sys.argv[3]}\n"
        "train(make_config(config), Path(sys.argv[1]))\n"
    )
    return run_apart("-c", code, out, sdxl, pairs, steps).stderr.strip().splitlines()[-1]


def test_final_weights_that_do_not_fit_leave_the_last_checkpoint_and_say_so(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    shutil.rmtree(tmp_path / "r" / "weights")
    last = with_small_files(tmp_path / "r", sdxl, pairs, 1)
    assert last.startswith(f"mapo.errors.MapoError: A file of {tmp_path / 'r'} could not be written (File too large)")
    assert last.endswith("The checkpoint of step 1 is kept. Make room, then run the same command again.")
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=1)) == 1
    assert (tmp_path / "r" / "weights").is_dir()


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_and_says_so(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    last = with_small_files(tmp_path / "r", sdxl, pairs, 2)
    assert last.startswith("mapo.errors.MapoError: The checkpoint of step 2 could not be written"), last
    assert "The checkpoint of step 1 is kept" in last
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000001"]
    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=2)
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=2), whole)


def kept_all(out, sdxl, pairs, cache, **settings):
    return run(out, sdxl, pairs, cache, save_every_steps=1, keep_checkpoints="all", **settings)


@pytest.mark.parametrize("damage", ["cut in half", "without moments", "half a state", "a byte", "of a step", "a digit"])
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
    elif damage == "a digit":
        state = json.loads((newest / "state.json").read_text())
        state["line"]["loss"] += 0.01
        (newest / "state.json").write_text(json.dumps(state))
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
    del saved["checksums"], saved["crc32"]  # as of a run that was begun before there were any
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
